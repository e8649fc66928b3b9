"""Compiled functions of numpy arrays, for small programs on the CPU. They know nothing of the package, and nothing but them
knows numba; ``jit`` says how they are compiled and called. A kernel takes a batch; below it functions take one instance, or
eight of them as a number of eight lanes.

Tools
    ``jit``             compiling, and sharing a batch among threads
    ``lanes``           the number of eight lanes
    ``memory``          arrays whose memory is used again
    ``status``          how an element ended
    ``dense``, ``indefinite``, ``envelope``
                        factors of matrices: positive definite; indefinite; quasi-definite within an envelope
    ``fill``            how many entries a sparse factor has
    ``eigen``, ``svec``
                        symmetric matrices
    ``elementary``      exp and log of lanes

From parameters to data, and the checks of an answer
    ``structure``       which entries of P and A are stored, and products with them
    ``substitution``    data from parameters, and gradients back
    ``optimality``      residuals and gap
    ``verification``    the problem as it was declared

Equalities and inequalities
    ``active_set``, ``separable``, ``interior_point``
                        solvers
    ``kkt``, ``kkt_once``
                        their derivative: factors that are kept, and those that are used once

Second-order, semidefinite and exponential cones
    ``table``           which entries are stored, and where everything is kept
    ``conic``           the solver
    ``scaling``, ``exponential_scaling``
                        what it asks of each cone
    ``spectrum``, ``exponential``
                        projections and their derivatives
    ``conic_kkt``, ``conic_newton``
                        the derivative, and Newton's method to the last digits

Nonlinear programs
    ``tape``            functions and their derivatives as a list of operations
    ``nonlinear``       the solver: one state, a lane, for each of the instances that go side by side
    ``nonlinear_rows``, ``nonlinear_lane``
                        what a lane holds
    ``nonlinear_phases``
                        what it does between two evaluations, with ``nonlinear_barrier`` (how far it is from optimality),
                        ``nonlinear_newton`` (steps), ``nonlinear_search`` (their lengths) and ``nonlinear_polish`` (the end)
"""

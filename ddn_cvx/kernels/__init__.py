"""Compiled functions of numpy arrays, for small programs on the CPU. They know nothing of the package, and nothing but them
knows numba; ``jit`` says how they are compiled and called.

    ``jit``, ``lanes``, ``memory``                  compiling, eight elements side by side, memory that is used again
    ``dense``, ``indefinite``, ``eigen``, ``elementary``, ``fill``
                                                    matrices and functions
    ``structure``, ``substitution``, ``cone_units``, ``optimality``, ``verification``
                                                    from parameters to data, and the checks of an answer
    ``active_set``, ``separable``, ``interior_point``, ``kkt``, ``kkt_once``
                                                    equalities and inequalities: solvers, and their derivative
    ``conic``, ``conic_*``, ``cones``, ``scaling``, ``exponential*``, ``spectrum``, ``table``
                                                    the same with other cones
    ``nonlinear``, ``nonlinear_*``, ``tape``, ``envelope``
                                                    nonlinear programs with a tape
"""

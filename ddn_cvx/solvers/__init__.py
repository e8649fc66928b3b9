"""Forward solvers: a program and numbers in, points with a status an element out. How an answer is checked and
differentiated is no business of theirs; a new one is a file here and a line in a registry.

Cone programs
    ``base``            what a solver is, and what it returns
    ``registry``        from names to solvers
    ``auto``            the default, which chooses by the model of costs in ``cost`` and the rates in ``cost_rates``
    ``active_set``, ``mehrotra``
                        compiled, for small programs (``ddn_cvx.kernels``); ``compiled`` is what they have alike
    ``interior_point``  batched, in torch, for dense quadratic programs; ``interior_point_path`` is its iteration
    ``conic_interior_point``
                        the same for all cones: ``conic_embedding`` (an iteration), ``conic_newton`` (its linear systems),
                        ``conic_scaling`` and ``conic_cones``, the cones as ``barrier`` wants them, in a file each
    ``barrier*``        what each kind of cone contributes to it
    ``first_order``     without factors, for large programs; scaled by ``first_order_scaling``
    ``clarabel``, ``scs``, ``ecos``, ``diffcp``, ``cvxpy_any``
                        packages, each imported inside a function; ``elementwise`` hands them one instance after the other,
                        scaled by ``equilibrate``
    ``polish``          the last digits, whichever solver it was

Nonlinear programs
    ``nonlinear_base``, ``nonlinear_registry``, ``nonlinear_auto``
                        as above
    ``nonlinear_interior_point``
                        batched, in torch, with ``nonlinear_barrier``, ``nonlinear_newton``, ``nonlinear_filter``,
                        ``nonlinear_restoration`` and ``nonlinear_polish``
    ``compiled_nonlinear``
                        compiled, for small ones with a tape
    ``newton``, ``lbfgs``, ``descent``
                        without constraints
    ``least_squares``, ``robust_loss``
                        sums of squares, and of what grows more slowly
    ``augmented_lagrangian``, ``multi_start``
                        around another solver
    ``starts``          random points

Equations and initial value problems
    ``root_base``, ``root_registry``, ``root_auto``
                        as above
    ``root_newton``, ``anderson``, ``broyden``
                        the methods
    ``ode_base``, ``torchdiffeq``
                        integrators

Around all of them
    ``by_name``         names and options
    ``guard``, ``deadline``
                        breakdowns and time
"""

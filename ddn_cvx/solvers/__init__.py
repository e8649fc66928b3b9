"""Forward solvers: a program and numbers in, points with a status an element out. How an answer is checked and
differentiated is no business of theirs; a new one is a file here and a line in a registry.

    no prefix           cone programs: ``base``, ``registry``, the default ``auto`` with its model ``cost``
    ``conic_*``, ``barrier*``
                        the conic interior-point method, and what each kind of cone contributes
    ``nonlinear_*``     nonlinear programs, with ``compiled_nonlinear``, ``augmented_lagrangian`` and ``multi_start``;
                        without constraints ``newton``, ``lbfgs`` and what they share, ``descent``; ``least_squares``
                        with its ``robust_loss``
    ``root_*``          equations, with ``anderson`` and ``broyden``
    ``ode_base``, ``torchdiffeq``
                        initial value problems
    ``elementwise``, ``clarabel``, ``scs``, ``ecos``, ``diffcp``, ``cvxpy_any``
                        packages that take one instance at a time; each imports its package inside a function
    ``compiled``, ``active_set``, ``mehrotra``
                        the solvers that are kernels (``ddn_cvx.kernels``)
    ``by_name``, ``checks``
                        from a name to a solver, and what is checked of its options
    ``guard``, ``deadline``, ``polish``
                        around every solve: breakdowns, time, and the last digits
"""

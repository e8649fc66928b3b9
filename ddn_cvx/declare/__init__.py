"""What the user writes, read once; nothing here solves anything, and only here (and in nodes) is cvxpy imported.

``node``                                        everything that can be declared
``cvxpy_convex``, ``canonical``, ``auto_dpp``, ``rules``, ``in_cone``
                                                convex cvxpy problems -> cone programs
``cvxpy_nonconvex``, ``smooth_form*``, ``free_entries``
                                                other cvxpy problems -> nonlinear programs
``torch_problem``, ``fixed_point``, ``ode``     problems in torch functions ...
``functions``, ``arguments``, ``capture``, ``probe``, ``smooth``
                                                ... and what is done with such functions
``atoms``, ``atoms_*``                          cvxpy expressions -> batched torch functions, one rule an atom
``as_declared``, ``domains``, ``check_plan``      checks of an answer against the problem as declared
"""

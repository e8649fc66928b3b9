"""The waist: structure without values. A program says what its data are, when a point is optimal, and with which matrix
that is differentiated; solvers and adjoints know nothing else of a problem.

    ``base``, ``conic``, ``nonlinear``, ``root``    what a program is, one file a kind
    ``instance``, ``optimality``, ``verification``, ``nearby``
                                                    how far a point is from optimal, and what it is worth
    ``conic_sizes``                                 what slacks and multipliers of a cone program are measured by
    ``factor``, ``active_kkt``                      the KKT system at a point (``linalg`` solves it)
    ``affine_map``, ``elimination``, ``substituted``
                                                    parameters -> data of a cone program
    ``cone_units``                                  ordinary coefficients in rows of curved cones
    ``epigraph``, ``row_order``, ``units``          the same program in a form that some solver wants
    ``products``                                    derivatives of a nonlinear program without matrices
    ``pushed``                                      a nonlinear program with a linear term in its objective
    ``tape``, ``tape_*``, ``scalar_graph``          functions -> code that needs no Python
"""

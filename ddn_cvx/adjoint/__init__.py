"""How a solution is differentiated, whatever solver found it; the user passes one of these objects to the layer.

``base``, ``dispatch``                          what an adjoint is, for cone and for nonlinear programs
``implicit``, ``compiled``                      the default for cone programs, in torch and in compiled code
``nonlinear``, ``kkt_solve``                    the same for nonlinear programs
``root``, ``ode``                               equations and initial value problems
``approximate``, ``lpgd``, ``smoothed``, ``unrolled``, ``diffcp``
                                                the other adjoints, one file each
``transforms``                                  what each of them needs that is an ``autograd.Function``
``barrier``, ``conic_rows``                     what several of them use
"""

"""Linear systems of a batch, in torch and scipy: factor once, solve forwards and transposed, tell what is singular.

``kkt``, ``sparse``, ``krylov``, ``polyhedral`` the reduced KKT system of a cone program: dense, sparse, by products, by
                                                kernels; one interface
``saddle``, ``saddle_structured``, ``blocks``   that of a nonlinear program
``general``                                     square systems without symmetry
``iterative``, ``gmres``                        Krylov methods
``pattern``, ``products``, ``fill``, ``inertia``
                                                sparse matrices of one pattern, and what their structure tells
"""

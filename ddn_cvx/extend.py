"""What extensions are written against: the interfaces of cones, solvers and adjoints, and what their methods are given.

A new one is a class in a file of its own; the how-to page "Extend it" shows one of each. ``ddn_cvx.testing`` checks them.
"""

from ddn_cvx.adjoint.base import Adjoint as Adjoint
from ddn_cvx.adjoint.base import Solve as Solve
from ddn_cvx.adjoint.kkt_solve import NonlinearAdjoint as NonlinearAdjoint
from ddn_cvx.adjoint.kkt_solve import NonlinearSolve as NonlinearSolve
from ddn_cvx.adjoint.kkt_solve import Solved as Solved
from ddn_cvx.cones import Cone as Cone
from ddn_cvx.cones import Curved as Curved
from ddn_cvx.cones import Dense as Dense
from ddn_cvx.cones import Diagonal as Diagonal
from ddn_cvx.cones import Spectrum as Spectrum
from ddn_cvx.program.conic import ConicData as ConicData
from ddn_cvx.program.conic import ConicProgram as ConicProgram
from ddn_cvx.program.nonlinear import NonlinearProgram as NonlinearProgram
from ddn_cvx.program.nonlinear import Theta as Theta
from ddn_cvx.program.optimality import Active as Active
from ddn_cvx.program.optimality import State as State
from ddn_cvx.program.root import RootProgram as RootProgram
from ddn_cvx.program.verification import multipliers as multipliers
from ddn_cvx.solvers.base import RawSolution as RawSolution
from ddn_cvx.solvers.base import Solver as Solver
from ddn_cvx.solvers.base import Workspace as Workspace
from ddn_cvx.solvers.by_name import register as register
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint as NonlinearPoint
from ddn_cvx.solvers.nonlinear_base import NonlinearSolver as NonlinearSolver
from ddn_cvx.solvers.ode_base import Broken as Broken
from ddn_cvx.solvers.ode_base import Field as Field
from ddn_cvx.solvers.ode_base import Integrator as Integrator
from ddn_cvx.solvers.root_base import RootPoint as RootPoint
from ddn_cvx.solvers.root_base import RootSolver as RootSolver

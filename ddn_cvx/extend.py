"""What extensions are written against: the interfaces of cones, solvers and adjoints, and what their methods are given.

A new one is a class in a file of its own; the how-to page "Extend it" shows one of each. ``ddn_cvx.testing`` checks them.
"""

from ddn_cvx.adjoint.base import Adjoint as Adjoint, Solve as Solve
from ddn_cvx.adjoint.kkt_solve import (
    NonlinearAdjoint as NonlinearAdjoint,
    NonlinearSolve as NonlinearSolve,
    Solved as Solved,
)
from ddn_cvx.cones import Cone as Cone, Curved as Curved, Dense as Dense, Diagonal as Diagonal, Spectrum as Spectrum
from ddn_cvx.program.conic import ConicData as ConicData, ConicProgram as ConicProgram
from ddn_cvx.program.nonlinear import NonlinearProgram as NonlinearProgram, Theta as Theta
from ddn_cvx.program.optimality import Active as Active, State as State
from ddn_cvx.program.root import RootProgram as RootProgram
from ddn_cvx.program.verification import multipliers as multipliers
from ddn_cvx.solvers.base import RawSolution as RawSolution, Solver as Solver, Workspace as Workspace
from ddn_cvx.solvers.by_name import register as register
from ddn_cvx.solvers.deadline import expired as expired
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint as NonlinearPoint, NonlinearSolver as NonlinearSolver
from ddn_cvx.solvers.ode_base import Broken as Broken, Field as Field, Integrator as Integrator
from ddn_cvx.solvers.root_base import RootPoint as RootPoint, RootSolver as RootSolver

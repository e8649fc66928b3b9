"""Optimisation problems as PyTorch layers, declared in cvxpy syntax, differentiated through their optimality conditions."""

from ddn_cvx.adjoint.approximate import Approximate
from ddn_cvx.adjoint.diffcp import DiffcpAdjoint
from ddn_cvx.adjoint.implicit import Implicit
from ddn_cvx.adjoint.lpgd import LPGD
from ddn_cvx.adjoint.smoothed import Smoothed
from ddn_cvx.adjoint.unrolled import Unrolled
from ddn_cvx.declare.fixed_point import FixedPoint, Root
from ddn_cvx.declare.ode import ODE
from ddn_cvx.declare.torch_problem import TorchProblem
from ddn_cvx.errors import (
    DeclarationError,
    DeclarativeError,
    DegradedAnswerWarning,
    DifferentiationError,
    InputError,
    SolverError,
)
from ddn_cvx.layer import DeclarativeLayer
from ddn_cvx.solution import Regularity, Solution, Status
from ddn_cvx.solvers.anderson import Anderson
from ddn_cvx.solvers.auto import Auto
from ddn_cvx.solvers.broyden import Broyden
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.cvxpy_any import CvxpySolver
from ddn_cvx.solvers.diffcp import Diffcp
from ddn_cvx.solvers.ecos import ECOS
from ddn_cvx.solvers.interior_point import InteriorPoint
from ddn_cvx.solvers.nonlinear_interior_point import NonlinearInteriorPoint
from ddn_cvx.solvers.root_newton import RootNewton
from ddn_cvx.solvers.scs import SCS
from ddn_cvx.solvers.torchdiffeq import Torchdiffeq

__version__ = "0.1.0"

__all__ = [
    "ECOS",
    "LPGD",
    "ODE",
    "SCS",
    "Anderson",
    "Approximate",
    "Auto",
    "Broyden",
    "Clarabel",
    "CvxpySolver",
    "DeclarationError",
    "DeclarativeError",
    "DeclarativeLayer",
    "DegradedAnswerWarning",
    "Diffcp",
    "DiffcpAdjoint",
    "DifferentiationError",
    "FixedPoint",
    "Implicit",
    "InputError",
    "InteriorPoint",
    "NonlinearInteriorPoint",
    "Regularity",
    "Root",
    "RootNewton",
    "Smoothed",
    "Solution",
    "SolverError",
    "Status",
    "TorchProblem",
    "Torchdiffeq",
    "Unrolled",
    "__version__",
]

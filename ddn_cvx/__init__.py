"""Optimisation problems as PyTorch layers, declared in cvxpy syntax, differentiated through their optimality conditions."""

from ddn_cvx.adjoint.diffcp import DiffcpAdjoint
from ddn_cvx.adjoint.implicit import Implicit
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
from ddn_cvx.solvers.active_set import ActiveSet
from ddn_cvx.solvers.auto import Auto
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.cvxpy_any import CvxpySolver
from ddn_cvx.solvers.diffcp import Diffcp
from ddn_cvx.solvers.ecos import ECOS
from ddn_cvx.solvers.interior_point import InteriorPoint
from ddn_cvx.solvers.mehrotra import Mehrotra
from ddn_cvx.solvers.scs import SCS

__version__ = "0.1.0"

__all__ = [
    "ECOS",
    "SCS",
    "ActiveSet",
    "Auto",
    "Clarabel",
    "CvxpySolver",
    "DeclarationError",
    "DeclarativeError",
    "DeclarativeLayer",
    "DegradedAnswerWarning",
    "Diffcp",
    "DiffcpAdjoint",
    "DifferentiationError",
    "Implicit",
    "InputError",
    "InteriorPoint",
    "Mehrotra",
    "Regularity",
    "Solution",
    "SolverError",
    "Status",
    "__version__",
]

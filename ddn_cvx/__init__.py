"""Optimisation problems as PyTorch layers, declared in cvxpy syntax, differentiated through their optimality conditions."""

from ddn_cvx.adjoint.approximate import Approximate
from ddn_cvx.adjoint.diffcp import DiffcpAdjoint
from ddn_cvx.adjoint.implicit import Implicit
from ddn_cvx.adjoint.lpgd import LPGD
from ddn_cvx.adjoint.smoothed import Smoothed
from ddn_cvx.adjoint.unrolled import Unrolled
from ddn_cvx.declare.fixed_point import FixedPoint, Root
from ddn_cvx.declare.in_cone import InCone
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
from ddn_cvx.solvers.active_set import ActiveSet
from ddn_cvx.solvers.anderson import Anderson
from ddn_cvx.solvers.augmented_lagrangian import AugmentedLagrangian
from ddn_cvx.solvers.auto import Auto
from ddn_cvx.solvers.broyden import Broyden
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.compiled_nonlinear import CompiledInteriorPoint
from ddn_cvx.solvers.conic_interior_point import ConicInteriorPoint
from ddn_cvx.solvers.cvxpy_any import CvxpySolver
from ddn_cvx.solvers.diffcp import Diffcp
from ddn_cvx.solvers.ecos import ECOS
from ddn_cvx.solvers.first_order import FirstOrder
from ddn_cvx.solvers.interior_point import InteriorPoint
from ddn_cvx.solvers.lbfgs import LBFGS
from ddn_cvx.solvers.least_squares import BundleAdjustment, LeastSquares
from ddn_cvx.solvers.mehrotra import Mehrotra
from ddn_cvx.solvers.multi_start import MultiStart
from ddn_cvx.solvers.newton import Newton, NewtonKrylov
from ddn_cvx.solvers.nonlinear_auto import NonlinearAuto
from ddn_cvx.solvers.nonlinear_interior_point import NonlinearInteriorPoint
from ddn_cvx.solvers.robust_loss import RobustLoss
from ddn_cvx.solvers.root_auto import RootAuto
from ddn_cvx.solvers.root_newton import RootNewton
from ddn_cvx.solvers.scs import SCS
from ddn_cvx.solvers.torchdiffeq import Torchdiffeq

__version__ = "0.1.0"

__all__ = [
    "ECOS",
    "LBFGS",
    "LPGD",
    "ODE",
    "SCS",
    "ActiveSet",
    "Anderson",
    "Approximate",
    "AugmentedLagrangian",
    "Auto",
    "Broyden",
    "BundleAdjustment",
    "Clarabel",
    "CompiledInteriorPoint",
    "ConicInteriorPoint",
    "CvxpySolver",
    "DeclarationError",
    "DeclarativeError",
    "DeclarativeLayer",
    "DegradedAnswerWarning",
    "Diffcp",
    "DiffcpAdjoint",
    "DifferentiationError",
    "FirstOrder",
    "FixedPoint",
    "Implicit",
    "InCone",
    "InputError",
    "InteriorPoint",
    "LeastSquares",
    "Mehrotra",
    "MultiStart",
    "Newton",
    "NewtonKrylov",
    "NonlinearAuto",
    "NonlinearInteriorPoint",
    "Regularity",
    "RobustLoss",
    "Root",
    "RootAuto",
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

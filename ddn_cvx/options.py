"""The keyword arguments of a layer, and what comes out of it, for type checkers; ``DeclarativeLayer`` explains them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

from typing_extensions import TypeVar

from ddn_cvx.adjoint.base import Adjoint
from ddn_cvx.declare.arguments import Shape
from ddn_cvx.declare.fixed_point import FixedPoint, Root
from ddn_cvx.declare.ode import ODE
from ddn_cvx.declare.torch_problem import TorchProblem
from ddn_cvx.solver_for import AnySolver

Out = TypeVar("Out", default=Any)
"""A tensor, a tuple of tensors, or a dict of tensors."""
Single: TypeAlias = "int | Shape"
Several: TypeAlias = Mapping[str, Shape]
DeclaredSingle: TypeAlias = "TorchProblem[Single] | FixedPoint[Single] | Root[Single] | ODE[Single]"
DeclaredSeveral: TypeAlias = "TorchProblem[Several] | FixedPoint[Several] | Root[Several] | ODE[Several]"


class CvxpyProblem(Protocol):
    """``cvxpy.Problem``: to type checkers, who know little of cvxpy, anything that has constraints."""

    @property
    def constraints(self) -> list[Any]:
        """Those of the problem."""


class Options(TypedDict, total=False):
    """All but the problem, its parameters and its variables."""

    solver: str | AnySolver | None
    solver_options: Mapping[str, Any] | None
    adjoint: Adjoint | None
    gp: bool
    on_failure: Literal["raise", "nan"]
    tolerance: float
    polish_steps: int
    time_limit: float | None

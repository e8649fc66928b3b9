"""What a layer needs of a declared problem, whatever was declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ddn_cvx.program.conic import ConicData, ConicProgram


@dataclass(frozen=True)
class ParameterSpec:
    """Name, shape ``(*shape)`` of one instance, and whether complex values are meant."""

    name: str
    shape: tuple[int, ...]
    is_complex: bool


@dataclass(frozen=True)
class Bound:
    """Problem data for a batch of parameter values."""

    data: ConicData
    """Numbers of the program that is solved; elements that are not ``finite`` hold harmless ones."""
    parameters: Tensor
    """The parameters as one vector, ``(B, k)``, of which the data are a function."""
    finite: Tensor
    """Which elements' parameters are numbers, ``(B,)`` bool."""


class ConvexNode(Protocol):
    """A declared convex problem: parameters -> conic data, conic solution -> outputs, both plain torch."""

    program: ConicProgram
    parameters: tuple[ParameterSpec, ...]
    has_conditions: bool
    """Whether ``admissible`` has anything to check."""
    curvature_varies: bool
    """Whether P depends on parameters, so that convexity has to be checked with their values."""

    def bind(self, values: Sequence[Tensor]) -> Bound:
        """Problem data; ``values`` are ``(B, *shape)`` in double precision. Differentiable."""

    def recover(self, x: Tensor, y: Tensor, bound: Bound) -> tuple[Tensor, ...]:
        """The requested outputs ``(B, *shape)``. Differentiable."""

    def admissible(self, values: Sequence[Tensor]) -> Tensor:
        """Whether the parameters have their declared attributes, ``(B,)`` bool."""

    def inspect(
        self, values: Sequence[Tensor], bound: Bound, x: Tensor, y: Tensor, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """The problem as declared at a candidate solution: objective value and largest relative violation, ``(B,)``;
        an objective that differs from its canonical value counts as a violation."""

    def everything(
        self, values: Sequence[Tensor], x: Tensor, y: Tensor
    ) -> tuple[dict[str, Tensor], tuple[tuple[Tensor, ...], ...]]:
        """All variables by name, and the dual variables of each declared constraint."""

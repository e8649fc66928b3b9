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
    """Numbers of the program that is solved."""
    parameters: Tensor
    """The parameters as one vector, ``(B, k)``, of which the data are a function."""


@dataclass(frozen=True)
class Inspection:
    """A candidate solution as the user would see it."""

    value: Tensor
    """Objective as declared, ``(B,)``."""
    violation: Tensor
    """Largest relative violation of a constraint or of the objective's canonical value, ``(B,)``."""
    primal: dict[str, Tensor]
    dual: tuple[tuple[Tensor, ...], ...]


class ConvexNode(Protocol):
    """A declared convex problem: parameters -> conic data, conic solution -> outputs, both plain torch."""

    program: ConicProgram
    parameters: tuple[ParameterSpec, ...]
    curvature_varies: bool
    """Whether P depends on parameters, so that convexity has to be checked with their values."""

    def bind(self, values: Sequence[Tensor]) -> Bound:
        """Problem data; ``values`` are ``(B, *shape)`` in double precision. Differentiable."""

    def recover(self, x: Tensor, y: Tensor, bound: Bound) -> tuple[Tensor, ...]:
        """The requested outputs ``(B, *shape)``. Differentiable."""

    def admissible(self, values: Sequence[Tensor]) -> Tensor:
        """Whether the parameters are finite and have their declared attributes, ``(B,)`` bool."""

    def inspect(self, values: Sequence[Tensor], x: Tensor, y: Tensor, tolerance: float) -> Inspection:
        """Evaluate the problem as declared at a candidate solution."""

"""How a layer is differentiated is an object that the user passes in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor

from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.factor import Factors


class Solve(Protocol):
    """The opaque forward computation, called with physical (unwrapped) tensors."""

    program: ConicProgram
    factors: Factors

    def __call__(self, data: ConicData, *extra: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(x, v, ok)``: primal (B, n), dual minus slack (B, m), and which elements have a solution (B,) bool.

        Elements without a solution hold zeros.
        """

    def again(self, data: ConicData) -> tuple[Tensor, Tensor, Tensor]:
        """The same for other numbers, of which nothing is remembered."""


class Adjoint(ABC):
    """Attaches derivatives to the map from problem data to solution."""

    @abstractmethod
    def attach(self, solve: Solve, data: ConicData, extra: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Run ``solve(data, *extra)`` and return its ``(x, v, ok)`` as differentiable functions of ``data``."""

"""What a layer needs of a declared problem, whatever was declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.kernels.substitution import Substitution
from ddn_cvx.kernels.verification import Plan
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.instance import Point


@dataclass(frozen=True)
class ParameterSpec:
    """Name, shape ``(*shape)`` of one instance, and whether complex values are meant."""

    name: str
    shape: tuple[int, ...]
    is_complex: bool
    entries: NDArray[np.int64] | None = field(default=None, compare=False)
    """Of a sparse parameter the places of its entries in the flattened array (C order), ``(nnz,)``: only their values, in
    this order, go into the program."""

    def __post_init__(self) -> None:
        # Every call of a layer looks its parameters up.
        object.__setattr__(self, "_hash", hash((self.name, self.shape, self.is_complex)))

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined]  # not a field

    def __reduce__(self) -> tuple[Any, ...]:
        return ParameterSpec, (self.name, self.shape, self.is_complex, self.entries)  # hashes differ between processes

    @property
    def inner(self) -> tuple[int, ...]:
        """The shape of what goes into the program."""
        return self.shape if self.entries is None else (len(self.entries),)


@dataclass(frozen=True)
class Bound:
    """Problem data for a batch of parameter values."""

    data: ConicData
    """Numbers of the program that is solved; elements that are not ``finite`` hold harmless ones."""
    parameters: Tensor
    """The parameters as one vector, ``(B, k)``, of which the data are a function."""
    finite: Tensor
    """Which elements' parameters and data are numbers, ``(B,)`` bool."""


class Binding(Protocol):
    """The map from parameters to problem data."""

    program: ConicProgram

    @property
    def compiled(self) -> Substitution | None:
        """The same map for the compiled kernels; None where they do not take the program."""

    def is_ordinary(self, u: NDArray[np.float64]) -> bool:
        """Whether ``compiled`` gives the numbers of ``bind`` for the parameter vectors u (B, k)."""

    def bind(self, pieces: Sequence[Tensor]) -> Bound:
        """Problem data for the pieces of the parameter vector. Differentiable."""


class ConvexNode(Binding, Protocol):
    """A declared convex problem: parameters -> conic data, conic solution -> outputs, both plain torch."""

    parameters: tuple[ParameterSpec, ...]
    has_conditions: bool
    """Whether ``admissible`` has anything to check."""
    curvature_varies: bool
    """Whether P depends on parameters, so that convexity has to be checked with their values."""

    @property
    def plan(self) -> Plan | None:
        """What ``inspect`` computes, for a compiled kernel; None where torch does it."""

    def pieces(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Real tensors ``(B, ...)`` that, one after the other, make up the parameter vector; ``values`` are
        ``(B, *shape)`` in double precision. Differentiable."""

    def recover(self, x: Tensor, v: Tensor, pieces: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The requested outputs ``(B, *shape)`` from ``x`` (B, n) and ``v = y - s`` (B, m). Differentiable."""

    def admissible(self, values: Sequence[Tensor]) -> Tensor:
        """Whether the parameters have their declared attributes, ``(B,)`` bool."""

    def inspect(self, values: Sequence[Tensor], u: Tensor, point: Point, tolerance: float) -> tuple[Tensor, Tensor]:
        """The problem as declared at a candidate solution: objective value and largest relative violation, ``(B,)``;
        an objective that differs from its canonical value counts as a violation. ``u`` is the parameter vector (B, k)."""

    def everything(
        self, values: Sequence[Tensor], x: Tensor, y: Tensor
    ) -> tuple[dict[str, Tensor], tuple[tuple[Tensor, ...], ...]]:
        """All variables by name, and the dual variables of each declared constraint."""

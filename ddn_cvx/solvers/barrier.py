"""What the conic interior-point method asks of a cone: a barrier, a scaling and how far a step may go.

A cone K of degree ν has a barrier f, and K* its conjugate f*.  A *scaling* at ``(s, z)`` is a matrix W with ``H = W'W``
positive definite and ``Hz = s``: for the symmetric cones that of Nesterov and Todd (1998), for the others one that
also maps ``-∇f(s)`` to ``-∇f*(z)`` (Tunçel, 2001; Dahl & Andersen, 2021).  The Newton systems see the cone only
through W, and through the *target*

    d = s + σμ ∇f*(z) + η(Δs, Δz),        H Δz + Δs = -d,

whose last term is the second-order correction of Mehrotra, or its analogue for curved barriers.

Everything is batched: ``number`` equal cones of dimension ``dim`` are tensors ``(B, r, number, dim)`` of ``r`` rows
for each element, no method looks at a number, and no shape depends on one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scaling(ABC):
    """``W`` for each cone; vectors are the last dimension of ``(B, r, number, dim)``."""

    @abstractmethod
    def down(self, v: Tensor) -> Tensor:
        """``W^-T v``: of a slack; and of the columns of the constraint matrix, as rows of its transpose."""

    @abstractmethod
    def up(self, v: Tensor) -> Tensor:
        """``W^-1 v``: from scaled to plain multipliers."""

    @abstractmethod
    def back(self, v: Tensor) -> Tensor:
        """``W' v``: from scaled to plain slacks."""


@dataclass(frozen=True, eq=False)
class Barrier(ABC):
    """``number`` equal cones."""

    number: int
    dim: int
    degree: int
    """ν of all of them together."""
    measured: ClassVar[bool] = True
    """Whether ``reach`` has a closed form; otherwise ``inside`` is asked."""

    @abstractmethod
    def centre(self, like: Tensor) -> Tensor:
        """The point with ``e = -∇f*(e)``, ``(number, dim)``, of the dtype and device of ``like``."""

    @abstractmethod
    def scaling(self, s: Tensor, z: Tensor) -> Scaling:
        """At interior points ``(B, 1, number, dim)``."""

    @abstractmethod
    def target(self, W: Scaling, s: Tensor, z: Tensor, centring: Tensor, ds: Tensor, dz: Tensor) -> Tensor:
        """``d`` for ``centring`` σμ ``(B, 1, 1, 1)`` and the predictor's step."""

    def reach(self, s: Tensor, ds: Tensor) -> Tensor:
        """The inverse of the longest step, ``(B, 1)``, zero or less if there is none, where that has a closed form."""
        raise NotImplementedError

    def inside(self, s: Tensor, z: Tensor) -> Tensor:
        """Whether all cones of ``(*lead, B, 1, number, dim)`` hold s and z in their interiors, ``(*lead, B)``."""
        raise NotImplementedError

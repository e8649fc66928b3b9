"""The KKT factor of a conic program at a point: compiled or dense for small programs, sparse for large ones, and none but
products for those whose factors would not be sparse."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ddn_cvx.linalg.kkt import DenseKKT, NullSpace
from ddn_cvx.linalg.krylov import KrylovKKT
from ddn_cvx.linalg.polyhedral import PolyhedralKKT
from ddn_cvx.linalg.sparse import SparseKKT
from ddn_cvx.program.conic import ConicData, ConicProgram


class KKT(Protocol):
    """Solves with the Jacobian J of the residual, and with its transpose, for k right-hand sides at once."""

    @property
    def null(self) -> NullSpace:
        """Where J is singular."""

    def forward(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``J (a, c) = (r, t)``; r (B, n, k), t (B, m, k)."""

    def reverse(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """``J'(u, w) = (g, h)``; g (B, n, k), h (B, m, k)."""


def factorise(
    program: ConicProgram,
    P: Tensor,
    A: Tensor,
    v: Tensor,
    ok: Tensor,
    dense: tuple[Tensor, Tensor] | None = None,
) -> KKT:
    """Factor J at ``v = y - s`` (B, m) for pattern values P (B, nnz), A (B, nnz); elements not ``ok`` become the identity.

    ``dense`` holds the same matrices as ``program.dense`` gives them, if they are at hand.
    """
    if program.structure is not None and program.cones.is_polyhedral and v.device.type == "cpu":

        def some(rows: Tensor) -> DenseKKT:
            return dense_factor(program, P[rows], A[rows], v[rows], ok[rows])

        return PolyhedralKKT(program.structure, P, A, v, ok, some)
    if program.is_dense:
        return dense_factor(program, P, A, v, ok, dense)
    spectrum = program.cones.dual_spectrum(v)
    if not program.has_sparse_factor:
        visible = torch.as_tensor(program.visible, device=v.device)
        return KrylovKKT(program.P, program.A, P, A, program.cones, spectrum, ok, visible)
    return SparseKKT(program.P, program.A, P, A, program.cones, spectrum, ok, program.visible)


def dense_factor(
    program: ConicProgram, P: Tensor, A: Tensor, v: Tensor, ok: Tensor, dense: tuple[Tensor, Tensor] | None = None
) -> DenseKKT:
    """``factorise`` by dense linear algebra in torch, for cones of every kind."""
    spectrum = program.cones.dual_spectrum(v)
    whole_P, whole_A = program.dense(ConicData(P, P, A, A)) if dense is None else dense
    visible = torch.as_tensor(program.visible, device=v.device)
    return DenseKKT(whole_P, whole_A, spectrum, ok, visible, program.bounds(v.device))


class Factors:
    """Remembers the last factor, so that forward polish, backward and double backward share it."""

    def __init__(self, program: ConicProgram):
        self.program = program
        self._key: tuple[Tensor, ...] = ()
        self.last: KKT | None = None

    def keep(self, P: Tensor, A: Tensor, v: Tensor, ok: Tensor, kkt: KKT) -> None:
        """Remember a factor made elsewhere."""
        self._key, self.last = (P, A, v, ok), kkt

    def holds(self, P: Tensor, A: Tensor, v: Tensor, ok: Tensor) -> bool:
        """Whether the factor for these very tensors is at hand."""
        return len(self._key) == 4 and all(a is b for a, b in zip((P, A, v, ok), self._key, strict=True))

    def at(self, P: Tensor, A: Tensor, v: Tensor, ok: Tensor) -> KKT:
        """The factor for these numbers; recomputed unless they are the last ones bit for bit."""
        key = (P, A, v, ok)
        if self.last is None or not all(
            a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in zip(key, self._key, strict=True)
        ):
            self.keep(*key, factorise(self.program, *key))
        assert self.last is not None
        return self.last

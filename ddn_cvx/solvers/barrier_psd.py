"""The cone of positive semidefinite matrices as svec: ``f*(Z) = -log det Z``.

The scaling is ``W^-T(X) = G X G'`` where ``(G'G)^-1`` is the point of Nesterov and Todd, ``L M^-1 L'`` with ``S = LL'``,
``Z = NN'`` and M the positive part of ``N'L = QM``.  Eigenvalues and singular values would make the device wait for
the host; the polar decomposition needs products only (the Newton–Schulz iteration with the coefficients of Amsel,
Persson, Musco & Gower, 2025), and its matrix is well conditioned close to the central path.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular

from ddn_cvx.solvers.barrier import Barrier, Scaling

_ODD = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115952949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.875, -1.25, 0.375),
    (1.875, -1.25, 0.375),
)
"""Coefficients of x, x³, x⁵: together they send [1e-3, 1] to one."""


@dataclass(frozen=True, eq=False)
class _Congruence(Scaling):
    cone: PSD
    G: Tensor
    inverse: Tensor
    """Of G."""
    root: Tensor
    """R with ``(RR')^-1 = G S G' = G^-T Z G^-1``, the common image of s and z."""

    def down(self, v: Tensor) -> Tensor:
        return self.cone.congruence(self.G, v)

    def up(self, v: Tensor) -> Tensor:
        return self.cone.congruence(self.G.mT, v)

    def back(self, v: Tensor) -> Tensor:
        return self.cone.congruence(self.inverse, v)


@dataclass(frozen=True, eq=False)
class PSD(Barrier):
    """``number`` semidefinite cones of matrices of an order."""

    order: int
    full: Tensor
    """The row of svec for each entry of the matrix, ``(order²,)``."""
    shrink: Tensor
    """What to multiply it with, ``(order²,)``."""
    upper: Tensor
    """The entry of the matrix for each row of svec, ``(dim,)``."""
    grow: Tensor
    """What to multiply that with, ``(dim,)``."""
    measured = False

    @staticmethod
    def of(number: int, order: int, like: Tensor) -> PSD:
        entries = [(i, j) for j in range(order) for i in range(j + 1)]
        position = {entry: k for k, entry in enumerate(entries)}
        full = [position[min(i, j), max(i, j)] for i in range(order) for j in range(order)]
        shrink = [1.0 if i == j else 0.5**0.5 for i in range(order) for j in range(order)]
        upper = [i * order + j for i, j in entries]
        grow = [1.0 if i == j else 2**0.5 for i, j in entries]
        return PSD(
            number,
            len(entries),
            number * order,
            order,
            torch.tensor(full, device=like.device),
            torch.tensor(shrink, dtype=like.dtype, device=like.device),
            torch.tensor(upper, device=like.device),
            torch.tensor(grow, dtype=like.dtype, device=like.device),
        )

    def matrix(self, v: Tensor) -> Tensor:
        """``(..., dim)`` to ``(..., order, order)``."""
        return _pick(v, self.full).mul_(self.shrink).unflatten(-1, (self.order, self.order))

    def svec(self, M: Tensor) -> Tensor:
        """The inverse of ``matrix``, which reads the upper triangle only."""
        return _pick(M.flatten(-2), self.upper).mul_(self.grow)

    def congruence(self, G: Tensor, v: Tensor) -> Tensor:
        """``G X G'`` for ``G (B, number, k, k)`` and X given by ``v (B, r, number, dim)``; two tall products."""
        B, r, number, k = *v.shape[:3], self.order
        X = self.matrix(v.transpose(1, 2)).reshape(B, number, r * k, k)
        half = (X @ G.mT).view(B, number, r, k, k).mT.reshape(B, number, r * k, k)
        return self.svec((half @ G.mT).view(B, number, r, k, k)).transpose(1, 2)

    def centre(self, like: Tensor) -> Tensor:
        return self.svec(torch.eye(self.order, dtype=like.dtype, device=like.device)).expand(self.number, -1)

    def scaling(self, s: Tensor, z: Tensor) -> Scaling:
        L = cholesky_ex(self.matrix(torch.cat((s, z), 1).transpose(1, 2))).L  # (B, number, 2, k, k)
        S, Z = L.unbind(2)
        product = Z.mT @ S
        C = cholesky_ex(_positive_part(product)).L
        eye = torch.eye(self.order, dtype=s.dtype, device=s.device).expand_as(C)
        R = solve_triangular(C, eye, upper=False)
        return _Congruence(self, C.mT @ solve_triangular(S, eye, upper=False), S @ R.mT, R)

    def target(self, W: Scaling, s: Tensor, z: Tensor, centring: Tensor, ds: Tensor, dz: Tensor) -> Tensor:
        # In scaled coordinates, where s and z are both λ, a solution X of λX + Xλ = ab + ba would be the correction of
        # Mehrotra.  The mean of λ^-1 and X's right-hand side is one to first order around multiples of the identity.
        assert isinstance(W, _Congruence)
        inverse = (W.root @ W.root.mT).unsqueeze(1)
        a = self.matrix(self.congruence(W.G, ds))
        b = self.matrix(self.congruence(W.inverse.mT, dz))
        product = a @ b
        change = inverse @ (product + product.mT) / 2
        return s + self.congruence(W.inverse, self.svec((change + change.mT) / 2 - centring.unsqueeze(-1) * inverse))

    def inside(self, s: Tensor, z: Tensor) -> Tensor:
        info = cholesky_ex(self.matrix(torch.cat((s, z), -3))).info
        return (info == 0).flatten(-2).all(-1)


def _pick(v: Tensor, index: Tensor) -> Tensor:
    """Entries of the last dimension; several times faster than ``index_select`` on the CPU."""
    return v.gather(-1, index.expand(*v.shape[:-1], -1))


def _positive_part(A: Tensor) -> Tensor:
    """M of ``A = QM``."""
    norm = torch.linalg.matrix_norm(A, keepdim=True)
    X = A / norm
    for a, b, c in _ODD:
        gram = X.mT @ X
        X = (
            X @ torch.baddbmm(b * gram.flatten(0, -3), gram.flatten(0, -3), gram.flatten(0, -3), alpha=c).view_as(gram)
            + a * X
        )
    M = X.mT @ A
    return (M + M.mT) / 2

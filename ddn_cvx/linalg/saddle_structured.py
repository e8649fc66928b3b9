"""Saddle-point systems whose H is diagonal, block-diagonal or an arrow: the same answers, at a fraction of the cost.

``BlockSaddle`` solves ``[[H, A'], [A, -D]]`` with H of equal diagonal blocks (of order one: a diagonal), through whichever
side is smaller: the k rows of A by the Schur complement ``D + A H^-1 A'``, or the n variables by ``H + A' D^-1 A`` where D
has no zeros.  ``Arrow`` solves ``[[C, E'], [E, P]]`` with P block-diagonal: cameras and points of a bundle adjustment, or
any variables that all share with many groups that share nothing among themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import cholesky_ex

from ddn_cvx.linalg.blocks import times


class BlockSaddle:
    """The system for a batch, with H block-diagonal and positive definite.

    Parameters
    ----------
    blocks : Tensor (B, g, s, s)
        The g diagonal blocks of H, n = g s; for a diagonal H, ``h.reshape(B, n, 1, 1)``.
    A : Tensor (B, k, n)
    D : Tensor (B, k), optional
        Nonnegative; zero if not given.

    Attributes
    ----------
    correct_inertia : Tensor (B,) bool
        H is positive definite and the rows of A are independent where D is zero; elsewhere solutions are not finite.
    """

    def __init__(self, blocks: Tensor, A: Tensor, D: Tensor | None = None):
        self.A, self.D = A, torch.zeros_like(A[..., 0]) if D is None else D
        self.blocks = blocks
        (batch, groups, size, _), k = blocks.shape, A.shape[1]
        n = groups * size
        if size == 1:
            positive = (blocks > 0).flatten(1).all(-1)
        else:
            self.L, info = cholesky_ex(blocks)
            positive = (info == 0).all(-1)
        self.small = k > n and bool((self.D > 0).all())
        if self.small:
            M = A.mT @ (A / self.D.unsqueeze(-1))
            M.view(batch, groups, size, groups, size).diagonal(dim1=1, dim2=3).add_(blocks.permute(0, 2, 3, 1))
        else:
            self.V = self._inverse(A.mT)
            M = A @ self.V
            M.diagonal(dim1=1, dim2=2).add_(self.D)
        self.S, info = cholesky_ex(M)
        floor = M.shape[-1] * torch.finfo(M.dtype).eps * M.diagonal(dim1=1, dim2=2)
        independent = (self.S.diagonal(dim1=1, dim2=2).square() > floor).all(-1)
        self.correct_inertia = positive & (info == 0) & independent

    def _inverse(self, right: Tensor) -> Tensor:
        """``H^-1 right``, right ``(B, n, r)``."""
        parts = right.reshape(*self.blocks.shape[:3], right.shape[-1])
        whole = parts / self.blocks if self.blocks.shape[-1] == 1 else torch.cholesky_solve(parts, self.L)
        return whole.reshape(right.shape)

    def residual(self, top: Tensor, low: Tensor, u: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
        """``(top, low) - K (u, omega)``."""
        above = torch.baddbmm(top - times(self.blocks, u), self.A.mT, omega, alpha=-1)
        return above, torch.baddbmm(low, self.A, u, alpha=-1).addcmul_(self.D.unsqueeze(-1), omega)

    def solve(self, top: Tensor, low: Tensor, refinements: int = 1) -> tuple[Tensor, Tensor]:
        """``K (u, omega) = (top, low)``, top ``(B, n, r)`` and low ``(B, k, r)``."""
        u, omega = self._solve(top, low)
        for _ in range(refinements):
            du, domega = self._solve(*self.residual(top, low, u, omega))
            u, omega = u + du, omega + domega
        return u, omega

    def _solve(self, top: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        if self.small:
            inverse = 1.0 / self.D.unsqueeze(-1)
            u = torch.cholesky_solve(top + self.A.mT @ (inverse * low), self.S)
            return u, inverse * (self.A @ u - low)
        omega = torch.cholesky_solve(self.V.mT @ top - low, self.S)
        return self._inverse(top) - self.V @ omega, omega


class Arrow:
    """``[[C, E'], [E, P]] (x, w) = (top, low)`` through the Schur complement ``C - E'P^-1 E`` of the shared variables.

    Parameters
    ----------
    C : Tensor (B, c, c)
        The shared variables.
    E : Tensor (B, g, s, c)
        Coupling of each of the g groups of s variables to them.
    P : Tensor (B, g, s, s)
        The groups.

    Attributes
    ----------
    positive : Tensor (B,) bool
        The matrix is positive definite; elsewhere solutions are not finite.
    """

    def __init__(self, C: Tensor, E: Tensor, P: Tensor):
        self.E = E
        self.L, info = cholesky_ex(P)
        self.V = torch.cholesky_solve(E, self.L)
        self.S, shared = cholesky_ex(C - torch.einsum("bgsc,bgsd->bcd", E, self.V))
        self.positive = (info == 0).all(-1) & (shared == 0)

    def solve(self, top: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """top ``(B, c)`` and low ``(B, g, s)``; returns x and w of the same shapes."""
        reduced = top - torch.einsum("bgsc,bgs->bc", self.V, low)
        x = torch.cholesky_solve(reduced.unsqueeze(-1), self.S).squeeze(-1)
        w = torch.cholesky_solve((low - torch.einsum("bgsc,bc->bgs", self.E, x)).unsqueeze(-1), self.L).squeeze(-1)
        return x, w

"""The reduced KKT system of a conic program: one symmetric factorisation for polishing, derivatives and their
transposes.

The residual ``F(x, v) = [Px + q + A'y ; Ax + y - v - b]`` with ``y = Pi_K*(v)`` has the Jacobian

    J = [ P   A'D ]        D = D Pi_K*(v) = U diag(lambda) U',   0 <= lambda <= 1.
        [ A   D-I ]

With ``S = diag(sqrt(lambda))`` and ``Ã = U'A`` both J and J' reduce to ONE symmetric quasi-definite matrix

    K = [ P    Ã'S      ]
        [ SÃ   lambda-I ]

    J (a, c) = (r, t):    K (a, tau)   = (r, S U't),            c = Aa + US tau - t
    J'(u, w) = (g, h):    K (u, omega) = (g + A'h, S U'h),      w = US omega - h

Inactive rows (lambda = 0) drop out by themselves: their row of K is that of minus the identity. Nothing is divided by
lambda, so there is no threshold to choose. Where K is singular, the minimum-norm solution of K is used: for a positive
semidefinite P the null space of K is the direct sum of directions in x (a valley of solutions) and directions in the
multipliers (dependent active constraints).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddn_cvx.cones import DualSpectrum

SINGULAR = 1e-12
"""K counts as singular when a probed inverse grows beyond ``1 / SINGULAR`` after equilibration."""
EIGENVALUE_CUTOFF = 1e-9
"""Eigenvalues of a singular K below this fraction of the largest are taken as zero."""


@dataclass(frozen=True)
class NullSpace:
    """Dimension of the null space of K per element, split as above; both ``(B,)`` int64."""

    primal: Tensor
    dual: Tensor


class DenseKKT:
    """Factor of the reduced system for a batch of B instances.

    Parameters
    ----------
    P : Tensor (B, n, n)
        Symmetric.
    A : Tensor (B, m, n)
    spectrum : DualSpectrum
        Eigendecomposition of D at v, ``values`` (B, m).
    ok : Tensor (B,) bool
        Elements without a solution; their system is replaced by the identity.
    """

    def __init__(self, P: Tensor, A: Tensor, spectrum: DualSpectrum, ok: Tensor):
        self.A, self.spectrum = A, spectrum
        self.n, self.m = P.shape[-1], A.shape[-2]
        self.root = spectrum.values.clamp(min=0).sqrt()
        rotated = spectrum.rotate(A)
        self.K = _assemble(P, rotated * self.root.unsqueeze(-1), spectrum.values, ok)
        self.scale = _equilibrate(self.K)
        scaled = self.K * self.scale.unsqueeze(-1) * self.scale.unsqueeze(-2)
        self.LD, self.pivots, _ = torch.linalg.ldl_factor_ex(scaled)
        self._detect()

    def _detect(self) -> None:
        """Find singular elements by one step of inverse iteration from a fixed vector, and decompose just those."""
        batch, order, _ = self.K.shape
        probe = torch.cos(torch.arange(1, order + 1, dtype=self.K.dtype, device=self.K.device) ** 2)
        probe = (probe / probe.norm().clamp(min=1e-30)).expand(batch, order).unsqueeze(-1)
        grown = torch.linalg.ldl_solve(self.LD, self.pivots, probe.contiguous()).flatten(1).norm(dim=1)
        healthy = grown * SINGULAR <= 1.0
        none = torch.zeros_like(healthy, dtype=torch.int64)
        self.null = NullSpace(none, none.clone())
        self.singular = torch.nonzero(~healthy).flatten()
        if self.singular.numel():
            values, vectors = torch.linalg.eigh(self.K[self.singular])
            size = values.abs()
            zero = size <= EIGENVALUE_CUTOFF * size.amax(-1, keepdim=True).clamp(min=1e-300)
            self.inverse_values = torch.where(zero, 0.0, 1.0 / torch.where(zero, 1.0, values))
            self.vectors = vectors
            weight = vectors**2 * zero.unsqueeze(-2)
            self.null.primal[self.singular] = weight[:, : self.n].sum((-2, -1)).round().long()
            self.null.dual[self.singular] = weight[:, self.n :].sum((-2, -1)).round().long()

    def _solve(self, r: Tensor) -> Tensor:
        """``K z = r`` for r (B, n + m, k): factor, solve, one step of refinement; minimum norm where singular."""
        z = self._apply_inverse(r)
        z = z + self._apply_inverse(r - self.K @ z)
        if self.singular.numel():
            V = self.vectors
            exact = V @ (self.inverse_values.unsqueeze(-1) * (V.mT @ r[self.singular]))
            z = z.index_copy(0, self.singular, exact)
        return z

    def _apply_inverse(self, r: Tensor) -> Tensor:
        scale = self.scale.unsqueeze(-1)
        return scale * torch.linalg.ldl_solve(self.LD, self.pivots, (scale * r).contiguous())

    def forward(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(a, c)`` with ``J (a, c) = (r, t)``; r (B, n, k), t (B, m, k)."""
        root = self.root.unsqueeze(-1)
        z = self._solve(torch.cat([r, root * self.spectrum.rotate(t)], 1))
        a, tau = z[:, : self.n], z[:, self.n :]
        return a, self.A @ a + self.spectrum.unrotate(root * tau) - t

    def reverse(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """``(u, w)`` with ``J' (u, w) = (g, h)``; g (B, n, k), h (B, m, k)."""
        root = self.root.unsqueeze(-1)
        z = self._solve(torch.cat([g + self.A.mT @ h, root * self.spectrum.rotate(h)], 1))
        u, omega = z[:, : self.n], z[:, self.n :]
        return u, self.spectrum.unrotate(root * omega) - h


def _assemble(P: Tensor, SA: Tensor, values: Tensor, ok: Tensor) -> Tensor:
    batch, m, n = SA.shape
    K = P.new_zeros(batch, n + m, n + m)
    K[:, :n, :n] = P
    K[:, n:, :n] = SA
    K[:, :n, n:] = SA.mT
    K.diagonal(dim1=1, dim2=2)[:, n:] = values - 1.0
    eye = torch.eye(n + m, dtype=P.dtype, device=P.device)
    return torch.where(ok[:, None, None], K, eye)


def _equilibrate(K: Tensor) -> Tensor:
    """Symmetric row scaling by powers of two (exact), one pass; empty rows are left alone."""
    size = K.abs().amax(-1) if K.shape[-1] else K.new_ones(K.shape[:2])
    exponent = torch.where(size > 0, -0.5 * torch.log2(torch.where(size > 0, size, 1.0)), 0.0).round()
    return torch.exp2(exponent)

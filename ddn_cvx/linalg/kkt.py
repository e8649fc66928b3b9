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

SINGULAR = 1e-11
"""K counts as singular when the estimated norm of its inverse exceeds ``1 / SINGULAR`` after equilibration."""
VISIBLE = 1e-8
"""Squared length of the part of a null space that counts as being there."""
EIGENVALUE_CUTOFF = 1e-9
"""Eigenvalues of a singular K below this fraction of the largest are taken as zero."""


@dataclass(frozen=True)
class NullSpace:
    """Whether K is singular, split as above; both ``(B,)`` bool.

    Directions in auxiliary variables alone do not count: the declared variables are unique all the same, and so are
    their derivatives of every order (the epigraph variable of an inactive ``norm(x) <= 1`` is an example).
    """

    primal: Tensor
    dual: Tensor

    @property
    def any(self) -> Tensor:
        """Either of them, ``(B,)`` bool."""
        return self.primal | self.dual


@dataclass(frozen=True)
class Bounds:
    """Rows of A that bound a single variable, ``A[rows, columns]`` their only entries; the others are ``general``."""

    rows: Tensor
    columns: Tensor
    general: Tensor


class DenseKKT:
    """Factor of the reduced system for a batch of B instances.

    A bound that is active fixes its variable and needs no row of K: rows that bound a single variable are substituted
    before the factorisation, which then has the order of the variables and the other constraints only.

    Parameters
    ----------
    P : Tensor (B, n, n)
        Symmetric.
    A : Tensor (B, m, n)
    spectrum : DualSpectrum
        Eigendecomposition of D at v, ``values`` (B, m).
    ok : Tensor (B,) bool
        Elements without a solution; their system is replaced by the identity.
    visible : Tensor (n,) bool
        The variables whose uniqueness matters.
    bounds : Bounds, optional
    """

    def __init__(
        self,
        P: Tensor,
        A: Tensor,
        spectrum: DualSpectrum,
        ok: Tensor,
        visible: Tensor,
        bounds: Bounds | None = None,
    ):
        if not bool(ok.all()):
            P, A = (torch.where(ok[:, None, None], t, 0.0) for t in (P, A))
        self.P, self.A, self.spectrum = P, A, spectrum
        self.n, self.bounds = P.shape[-1], bounds
        values = torch.where(ok.unsqueeze(-1), spectrum.values.clamp(0.0, 1.0), 0.0)
        self.root = values.sqrt()
        self.SA = spectrum.rotate(A) * self.root.unsqueeze(-1)
        self.idle = (~ok).to(P.dtype)
        irregular = None
        if bounds is None:
            K = _assemble(P, self.SA, values, self.idle)
        else:
            irregular = self._substitute(bounds, A, values)
            free = 1.0 - self.fixed
            masked = P * free.unsqueeze(-1) * free.unsqueeze(-2)
            masked.diagonal(dim1=1, dim2=2).add_(self.fixed)
            self.SA_general = self.SA[:, bounds.general]
            general = values[:, bounds.general]
            K = _assemble(masked, self.SA_general * free.unsqueeze(-2), general, self.idle)
        self.scale = _equilibrate(K)
        self.K = K.mul_(self.scale.unsqueeze(-1)).mul_(self.scale.unsqueeze(-2))
        self.LD, self.pivots, _ = torch.linalg.ldl_factor_ex(self.K)
        self._detect(values, irregular, visible)

    def _substitute(self, bounds: Bounds, A: Tensor, values: Tensor) -> Tensor:
        """Mark the variables that active bounds fix; returns the elements where that is not possible."""
        coefficient = A[:, bounds.rows, bounds.columns]
        active = values[:, bounds.rows] > 0.5
        usable = active & (coefficient != 0)
        self.inverse = torch.where(usable, 1.0 / torch.where(usable, coefficient, 1.0), 0.0)
        count = values.new_zeros(values.shape[0], self.n).index_add(1, bounds.columns, usable.to(values.dtype))
        self.fixed = (count > 0.5).to(values.dtype)
        return (count > 1.5).any(-1) | (active != usable).any(-1)

    def _detect(self, values: Tensor, irregular: Tensor | None, visible: Tensor) -> None:
        """Find singular elements by one step of inverse iteration from a fixed vector, and decompose just those."""
        batch, order, _ = self.K.shape
        probe = torch.cos(torch.arange(1, order + 1, dtype=self.K.dtype, device=self.K.device) ** 2)
        probe = (probe / probe.norm().clamp(min=1e-30)).expand(batch, order).unsqueeze(-1)
        grown = torch.linalg.ldl_solve(self.LD, self.pivots, probe.contiguous()).flatten(1).norm(dim=1)
        # a fixed vector meets the worst direction in about 1 / sqrt(order) of its length
        healthy = grown * order**0.5 * SINGULAR <= 1.0
        if irregular is not None:
            healthy = healthy & ~irregular
        none = torch.zeros_like(healthy)
        self.null = NullSpace(none, none.clone())
        self.singular = torch.nonzero(~healthy).flatten()
        if self.singular.numel():
            pick = self.singular
            K = _assemble(self.P[pick], self.SA[pick], values[pick], self.idle[pick])
            spectrum, vectors = torch.linalg.eigh(K)
            size = spectrum.abs()
            zero = size <= EIGENVALUE_CUTOFF * size.amax(-1, keepdim=True).clamp(min=1e-300)
            self.inverse_spectrum = torch.where(zero, 0.0, 1.0 / torch.where(zero, 1.0, spectrum))
            self.vectors = vectors
            weight = (vectors**2 * zero.unsqueeze(-2)).sum(-1)
            self.null.primal[pick] = (weight[:, : self.n] * visible).sum(-1) > VISIBLE
            self.null.dual[pick] = weight[:, self.n :].sum(-1) > VISIBLE

    def _solve(self, top: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """``K (u, omega) = (top, low)`` for the full K; minimum norm where singular."""
        if self.bounds is None:
            u, omega = self._factored(top, low)
        else:
            rows, columns, general = self.bounds.rows, self.bounds.columns, self.bounds.general
            inverse, fixed = self.inverse.unsqueeze(-1), self.fixed.unsqueeze(-1)
            known = torch.zeros_like(top).index_add(1, columns, inverse * low[:, rows])
            reduced_top = (top - self.P @ known) * (1.0 - fixed) + known
            u, inner = self._factored(reduced_top, low[:, general] - self.SA_general @ known)
            slack = top - self.P @ u - self.SA_general.mT @ inner
            omega = torch.empty_like(low)
            omega[:, general] = inner
            omega[:, rows] = torch.where(inverse != 0, inverse * slack[:, columns], -low[:, rows])
        if self.singular.numel():
            V, pick = self.vectors, self.singular
            right = torch.cat([top[pick], low[pick]], 1)
            exact = V @ (self.inverse_spectrum.unsqueeze(-1) * (V.mT @ right))
            u = u.index_copy(0, pick, exact[:, : self.n])
            omega = omega.index_copy(0, pick, exact[:, self.n :])
        return u, omega

    def _factored(self, top: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """Solve with the factor and one step of refinement."""
        scale = self.scale.unsqueeze(-1)
        right = scale * torch.cat([top, low], 1)
        z = torch.linalg.ldl_solve(self.LD, self.pivots, right)
        z = scale * (z + torch.linalg.ldl_solve(self.LD, self.pivots, right - self.K @ z))
        return z[:, : self.n], z[:, self.n :]

    def forward(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(a, c)`` with ``J (a, c) = (r, t)``; r (B, n, k), t (B, m, k)."""
        root = self.root.unsqueeze(-1)
        a, tau = self._solve(r, root * self.spectrum.rotate(t))
        return a, self.A @ a + self.spectrum.unrotate(root * tau) - t

    def reverse(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """``(u, w)`` with ``J' (u, w) = (g, h)``; g (B, n, k), h (B, m, k)."""
        root = self.root.unsqueeze(-1)
        u, omega = self._solve(g + self.A.mT @ h, root * self.spectrum.rotate(h))
        return u, self.spectrum.unrotate(root * omega) - h


def _assemble(P: Tensor, SA: Tensor, values: Tensor, idle: Tensor) -> Tensor:
    """K with both triangles; idle elements (P = 0, SA = 0, values = 0) get the identity in the corner of P."""
    batch, m, n = SA.shape
    K = P.new_zeros(batch, n + m, n + m)
    K[:, :n, :n] = P
    K[:, n:, :n] = SA
    K[:, :n, n:] = SA.mT
    diagonal = K.diagonal(dim1=1, dim2=2)
    diagonal[:, :n] += idle.unsqueeze(-1)
    diagonal[:, n:] = values - 1.0
    return K


def _equilibrate(K: Tensor) -> Tensor:
    """Symmetric row scaling by powers of two (exact), one pass; empty rows are left alone."""
    if not K.shape[-1]:
        return K.new_ones(K.shape[:2])
    size = K.abs().amax(-1)
    exponent = torch.where(size > 0, -0.5 * torch.log2(torch.where(size > 0, size, 1.0)), 0.0).round()
    return torch.exp2(exponent)

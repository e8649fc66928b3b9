"""The reduced KKT system of a very large conic program: no factor and no assembled matrix, but products and MINRES.

Same system and interface as ``linalg.kkt.DenseKKT``, for programs whose factors would not be sparse. The whole batch is
solved at once, on its device; memory is that of the data and a dozen vectors. K is scaled symmetrically to rows of length
one, and what a first solve leaves is solved for again.

Where K is singular the solution is of least norm in these scaled variables.
"""

from __future__ import annotations

import warnings
from functools import cached_property

import torch
from torch import Tensor

from ddn_cvx.cones import DualSpectrum, Product
from ddn_cvx.errors import DegradedAnswerWarning
from ddn_cvx.linalg.iterative import minres
from ddn_cvx.linalg.kkt import NullSpace
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.linalg.products import Products, symmetric

SWEEPS = 8  # of the scaling
TOLERANCE = 1e-13  # relative residual that is aimed at
ITERATIONS = 4000  # of one solve
ROUNDS = 4
ROUNDING = 1e-14  # eigenvalues of a derivative of a projection, between 0 and 1, that are zero
POOR = 1e-7
"""Relative residual of a derivative that is worth a warning."""
SINGULAR = 1e-6
"""Share of a vector outside the range of K that counts as a null space."""


class KrylovKKT:
    """Solves with the reduced systems of B instances of one pattern; arguments as in ``linalg.sparse.SparseKKT``."""

    def __init__(
        self,
        P_pattern: Pattern,
        A_pattern: Pattern,
        P: Tensor,
        A: Tensor,
        cones: Product,
        spectrum: DualSpectrum,
        ok: Tensor,
        visible: Tensor,
    ):
        self.m, self.n = A_pattern.shape
        row = ok.unsqueeze(-1)
        P, A = torch.where(row, P, 0.0), torch.where(row, A, 0.0)
        pattern, which = symmetric(P_pattern)
        P = P[:, torch.as_tensor(which, device=P.device)]
        self.P, self.A = Products(pattern, P), Products(A_pattern, A)
        self.spectrum, self.row, self.visible = spectrum, row, visible
        values = torch.where(spectrum.values > ROUNDING, spectrum.values.clamp(max=1), 0.0)
        self.root, self.low = values.sqrt(), values - 1.0
        share = _block_means(cones, values)
        squares = Products(pattern, P.square()), Products(A_pattern, A.square())
        self.scale = self._scaling(*squares, share)

    def _scaling(self, P: Products, A: Products, share: Tensor) -> Tensor:
        """Factors that bring the rows of K near length one; in curved cones rows count by their means."""
        d, e = share.new_ones(share.shape[0], self.n), torch.ones_like(share)
        for _ in range(SWEEPS):
            columns = d * d * (P(d * d) + A.transposed(share * e * e))
            rows = e * e * (share * A(d * d) + (1 - share).square() * e * e)
            self.empty = torch.cat((columns, rows), 1) == 0
            d, e = (t / torch.where(s > 0, s, 1.0) ** 0.25 for t, s in ((d, columns), (e, rows)))
        return torch.cat((d, e), 1)

    def _times(self, z: Tensor) -> Tensor:
        """K z."""
        u, w = z[:, : self.n], z[:, self.n :]
        top = self.P(u) + self.A.transposed(self._unrotate(self.root * w))
        return torch.cat((top, self.root * self._rotate(self.A(u)) + self.low * w), 1)

    def _solve(self, r: Tensor) -> Tensor:
        """``K z = r``, (B, n + m), or the nearest to it."""
        scale = self.scale
        size = (scale * r).norm(dim=1).clamp(min=1e-300)

        def scaled(z: Tensor) -> Tensor:
            return scale * self._times(scale * z)

        # What stands alone, like the epigraph variable of an inactive cone, stays zero.
        r = torch.where(self.empty, 0.0, r)
        z, left, best = torch.zeros_like(r), scale * r, torch.full_like(size, torch.inf)
        for _ in range(ROUNDS):
            trial = z + minres(scaled, left, TOLERANCE, ITERATIONS)
            rest = scale * r - scaled(trial)
            error = rest.norm(dim=1) / size
            better = error < 0.5 * best
            z = torch.where((error < best).unsqueeze(1), trial, z)
            left, best = torch.where((better & (error > TOLERANCE)).unsqueeze(1), rest, 0.0), torch.minimum(error, best)
            if not bool(left.any()):
                break
        rest = scale * r - scaled(z)
        # What is left may lie outside the range of K, and then K takes it to zero.
        outside = scaled(rest).norm(dim=1) <= POOR * rest.norm(dim=1)
        self.accurate = (best <= POOR) | outside
        return scale * z

    @cached_property
    def null(self) -> NullSpace:
        """Which parts of K are rank-deficient: what of a fixed vector K cannot reproduce lies in the null space."""
        probe = torch.cos(torch.arange(1.0, self.n + self.m + 1, dtype=self.root.dtype, device=self.root.device) ** 2)
        probe = probe.expand_as(self.scale)
        rest = self.scale * (probe / self.scale - self._times(self._solve(probe / self.scale)))
        primal, dual = rest[:, : self.n] * self.visible, rest[:, self.n :]
        limit = SINGULAR * probe.norm(dim=1)
        ok = self.row.squeeze(1)
        return NullSpace(ok & (primal.norm(dim=1) > limit), ok & (dual.norm(dim=1) > limit))

    def forward(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(a, c)`` with ``J (a, c) = (r, t)``; r (B, n, k), t (B, m, k)."""
        found = []
        for one, two in zip(r.unbind(2), t.unbind(2), strict=True):
            one, two = torch.where(self.row, one, 0.0), torch.where(self.row, two, 0.0)
            z = self._solve(torch.cat((one, self.root * self._rotate(two)), 1))
            a = z[:, : self.n]
            found.append((a, self.A(a) + self._unrotate(self.root * z[:, self.n :]) - two))
        return self._columns(found, r, t)

    def reverse(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """``(u, w)`` with ``J' (u, w) = (g, h)``; g (B, n, k), h (B, m, k)."""
        found = []
        for one, two in zip(g.unbind(2), h.unbind(2), strict=True):
            one, two = torch.where(self.row, one, 0.0), torch.where(self.row, two, 0.0)
            z = self._solve(torch.cat((one + self.A.transposed(two), self.root * self._rotate(two)), 1))
            if not bool(self.accurate.all()):
                warnings.warn(
                    f"The derivatives of {int((~self.accurate).sum())} of {len(g)} batch elements have a relative residual "
                    f"above {POOR:g}: their KKT systems are ill-conditioned, and too large for a factor. Rescale the "
                    "problem, or add a small quadratic term to the objective.",
                    DegradedAnswerWarning,
                    stacklevel=2,
                )
            found.append((z[:, : self.n], self._unrotate(self.root * z[:, self.n :]) - two))
        return self._columns(found, g, h)

    @staticmethod
    def _columns(pairs: list[tuple[Tensor, Tensor]], r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if not pairs:
            return torch.zeros_like(r), torch.zeros_like(t)
        first, second = zip(*pairs, strict=True)
        return torch.stack(first, 2), torch.stack(second, 2)

    def _rotate(self, t: Tensor) -> Tensor:
        return self.spectrum.rotate(t.unsqueeze(-1)).squeeze(-1)

    def _unrotate(self, t: Tensor) -> Tensor:
        return self.spectrum.unrotate(t.unsqueeze(-1)).squeeze(-1)


def _block_means(cones: Product, values: Tensor) -> Tensor:
    """The mean of the eigenvalues of each curved cone in the places of its rows; others as they are."""
    sizes: list[int] = []
    for kind, rows, _ in cones.blocks():
        length = rows.stop - rows.start
        sizes += [1] * length if kind in ("zero", "nonneg") else [length]
    if cones.is_polyhedral:
        return values
    lengths = torch.tensor(sizes, device=values.device)
    cone = torch.repeat_interleave(torch.arange(len(sizes), device=values.device), lengths)
    total = values.new_zeros(len(values), len(sizes)).index_add(1, cone, values)
    return (total / lengths)[:, cone]

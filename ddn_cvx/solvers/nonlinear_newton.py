"""The Newton step of the interior-point method: condensed, with per-element inertia correction, refined.

With ``W = Z / S`` the step solves

    [ H + Jc'WJc + delta I    Jh'      ] (dy, dlam) = - (grad L + Jc'(mu/s - z + W (c + s)), h)
    [ Jh                     -delta_c  ]

and then ``ds = -(c + s) - Jc dy``, ``dz = mu/s - z - W ds``.  delta is raised for just those elements whose matrix lacks the
inertia of a minimum, delta_c for those whose rows of Jh are dependent.  The refinement uses the residual of the system
before condensation, so that large W cost no accuracy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.linalg.elements import take
from ddn_cvx.linalg.saddle import CondensedFactor
from ddn_cvx.solvers.nonlinear_barrier import BarrierForm, Derivatives

_BEYOND = 2.0  # delta next to the most negative curvature
_FIRST_SHIFT = 1e-4  # delta where none was needed before
_FLAT = 1e-13  # curvature below this, relative to the Hessian, is none
_HEAVIER, _HEAVIEST = 100.0, 1e6  # steps and limit of the weights of equalities
_LEAST_SHIFT, _LARGEST_SHIFT = 1e-12, 1e20  # of delta
_DUAL_SHIFT = 1e-8  # the first delta_c


class Step(NamedTuple):
    """``dy (B, n)``, ``ds (B, k)``, ``dlam (B, p)``, ``dz (B, k)``."""

    y: Tensor
    s: Tensor
    lam: Tensor
    z: Tensor


class NewtonSystem:
    """The factor at one iterate, for the step and its second-order correction."""

    def __init__(self, form: BarrierForm, at: Derivatives, H: Tensor, s: Tensor, z: Tensor, shift: Tensor, least: Tensor):
        """``shift`` (B,) is the last successful delta, ``least`` (B,) the smallest that is allowed now."""
        self.form, self.at, self.H, self.s, self.z = form, at, H, s, z
        self.W = z / s
        self.size = H.abs().amax(-1) + form.bound_weights(self.W)
        condensed = form.weigh(H, at.Jg, self.W)
        self.shift, self.dual_shift = least.clone(), torch.zeros_like(least)
        self.factor = self._factorise(condensed, at.Jh, least, torch.zeros_like(at.h), self.size)
        self.failed = torch.zeros_like(shift, dtype=torch.bool)
        self._correct(condensed, shift)

    @staticmethod
    def _factorise(condensed: Tensor, Jh: Tensor, shift: Tensor, D: Tensor, size: Tensor) -> CondensedFactor:
        shifted = condensed.clone()
        shifted.diagonal(dim1=1, dim2=2).add_(shift.unsqueeze(-1))
        return CondensedFactor(shifted, Jh, D, size + shift.unsqueeze(-1))

    def _correct(self, condensed: Tensor, last: Tensor) -> None:
        """Give the elements whose factorisation failed the inertia of a minimum.

        delta follows from the least curvature along the rows of Jh, so that the most negative one is turned into its
        absolute value.  Where that is positive already, or still the factorisation fails, the weights of the rows are raised
        first: the factorisation of a matrix of the right inertia succeeds once they are large enough.
        """
        rows = torch.nonzero(~self.factor.correct_inertia).flatten()
        if not len(rows):
            return
        lowest = _tangent_curvature(condensed[rows], self.at.Jh[rows])
        first = torch.where(last > 0, (last / 3).clamp(_LEAST_SHIFT, _FIRST_SHIFT), _FIRST_SHIFT)[rows]
        flat = lowest <= _FLAT * self.size[rows].amax(-1)
        needed = torch.maximum(_BEYOND * lowest.abs(), first)
        self.shift[rows] = torch.where(flat, torch.maximum(needed, self.shift[rows]), self.shift[rows])
        weight = torch.where(flat, 1.0, _HEAVIER)
        finite = condensed[rows].sum((1, 2)).isfinite()
        while len(rows):
            dependent = self.factor.positive[rows] & ~self.factor.independent[rows]
            new, old_dual = self.shift[rows], self.dual_shift[rows]
            new_dual = torch.where(dependent, (10 * old_dual).clamp(min=_DUAL_SHIFT), old_dual)
            self.dual_shift[rows] = new_dual
            D, size = new_dual.unsqueeze(-1).expand_as(self.at.h[rows]), self.size[rows] * weight.unsqueeze(-1)
            self.factor.put(rows, self._factorise(condensed[rows], self.at.Jh[rows], new, D, size))
            self.failed[rows] = ~((new < _LARGEST_SHIFT) & (new_dual < 1.0) & finite)
            left = ~self.factor.correct_inertia[rows] & ~self.failed[rows]
            weak = ~self.factor.positive[rows] & left
            heaviest = weak & (weight >= _HEAVIEST)
            self.shift[rows] = torch.where(heaviest, 8 * new.clamp(min=_FIRST_SHIFT), new)
            weight = torch.where(weak & ~heaviest, _HEAVIER * weight, weight)[left]
            rows, finite = rows[left], finite[left]

    def step(self, lam: Tensor, barrier: Tensor, h: Tensor, violation: Tensor, refine: Tensor) -> Step:
        """The step for the barrier parameter (B, 1), with ``h`` and ``violation = c + s`` of the linearised constraints.

        Only the elements ``refine`` (B, 1) bool are refined: it is not worth it as long as W spans few orders of magnitude.
        """
        form, at, W = self.form, self.at, self.W
        slope = at.gradient + form.pull(at.Jg, self.z)
        if at.h.shape[1]:
            slope = slope + (lam.unsqueeze(1) @ at.Jh).squeeze(1)
        target = barrier / self.s - self.z
        top = -slope - form.pull(at.Jg, target + W * violation)
        dy, dlam = self._solve(top, -h)
        ds = -violation - form.push(at.Jg, dy)
        dz = target - W * ds
        if not bool(refine.any()):
            return Step(dy, ds, dlam, dz)
        top = -slope - (dy.unsqueeze(1) @ self.H).squeeze(1) - self.shift.unsqueeze(-1) * dy - form.pull(at.Jg, dz)
        low = -h
        if at.h.shape[1]:
            top = top - (dlam.unsqueeze(1) @ at.Jh).squeeze(1)
            low = low - (at.Jh @ dy.unsqueeze(-1)).squeeze(-1) + self.dual_shift.unsqueeze(-1) * dlam
        more, more_lam = (torch.where(refine, t, 0.0) for t in self._solve(top, low))
        fewer = form.push(at.Jg, more)
        return Step(dy + more, ds - fewer, dlam + more_lam, dz + W * fewer)

    def _solve(self, top: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        u, omega = self.factor.solve(top.unsqueeze(-1), low.unsqueeze(-1), refinements=0)
        return u.squeeze(-1), omega.squeeze(-1)

    def take(self, rows: Tensor) -> NewtonSystem:
        """Some elements."""
        some = object.__new__(NewtonSystem)
        some.form, some.at = self.form.take(rows), take(self.at, rows)
        some.H, some.s, some.z, some.W, some.size = (t[rows] for t in (self.H, self.s, self.z, self.W, self.size))
        some.shift, some.dual_shift, some.failed = (t[rows] for t in (self.shift, self.dual_shift, self.failed))
        some.factor = self.factor.take(rows)
        return some


def _tangent_curvature(H: Tensor, J: Tensor) -> Tensor:
    """The least eigenvalue of H on the null space of J, ``(B,)``; infinite where that is nothing."""
    p, n = J.shape[1:]
    if p >= n:
        return H.new_full((len(H),), torch.inf)
    H, J = H.nan_to_num(), J.nan_to_num()
    if p:
        Z = torch.linalg.qr(J.mT, mode="complete").Q[..., p:]
        H = Z.mT @ H @ Z
    return torch.linalg.eigvalsh(H)[:, 0]

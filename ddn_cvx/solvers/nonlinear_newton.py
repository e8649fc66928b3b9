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

from ddn_cvx.linalg.saddle import CondensedFactor
from ddn_cvx.solvers.nonlinear_barrier import BarrierForm, Derivatives

_BEYOND = 2.0
_FIRST_SHIFT = 1e-4
_LEAST_SHIFT = 1e-12
_LARGEST_SHIFT = 1e20
_DUAL_SHIFT = 1e-8


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
        """Raise delta for the elements that need it until they have the inertia of a minimum."""
        growth = torch.where(last > 0, 8.0, 100.0)
        first = torch.where(last > 0, (last / 3).clamp(_LEAST_SHIFT, _FIRST_SHIFT), _FIRST_SHIFT)
        rows = torch.nonzero(~self.factor.correct_inertia).flatten()
        if len(rows):
            lowest = torch.linalg.eigvalsh(self.factor.augmented(rows, condensed[rows]).nan_to_num())[:, 0]
            first = first.index_copy(0, rows, torch.maximum(_BEYOND * lowest.abs(), first[rows]))
        while len(rows):
            old, old_dual = self.shift[rows], self.dual_shift[rows]
            dependent = self.factor.positive[rows] & ~self.factor.independent[rows]
            raised = torch.where(old > 0, old * growth[rows], first[rows])
            new = torch.where(dependent, old, raised)
            raised = torch.where(old_dual > 0, 10 * old_dual, _DUAL_SHIFT)
            new_dual = torch.where(dependent, raised, old_dual)
            self.shift[rows], self.dual_shift[rows] = new, new_dual
            D = new_dual.unsqueeze(-1).expand_as(self.at.h[rows])
            self.factor.put(rows, self._factorise(condensed[rows], self.at.Jh[rows], new, D, self.size[rows]))
            self.failed[rows] = ~((new < _LARGEST_SHIFT) & (new_dual < 1.0) & condensed[rows].sum((1, 2)).isfinite())
            rows = torch.nonzero(~self.factor.correct_inertia & ~self.failed).flatten()

    def step(self, lam: Tensor, barrier: Tensor, h: Tensor, violation: Tensor, refine: bool) -> Step:
        """The step for the barrier parameter (B, 1), with ``h`` and ``violation = c + s`` of the linearised constraints.

        Not worth refining as long as W spans few orders of magnitude.
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
        if not refine:
            return Step(dy, ds, dlam, dz)
        top = -slope - (dy.unsqueeze(1) @ self.H).squeeze(1) - self.shift.unsqueeze(-1) * dy - form.pull(at.Jg, dz)
        low = -h
        if at.h.shape[1]:
            top = top - (dlam.unsqueeze(1) @ at.Jh).squeeze(1)
            low = low - (at.Jh @ dy.unsqueeze(-1)).squeeze(-1) + self.dual_shift.unsqueeze(-1) * dlam
        more, more_lam = self._solve(top, low)
        fewer = form.push(at.Jg, more)
        return Step(dy + more, ds - fewer, dlam + more_lam, dz + W * fewer)

    def _solve(self, top: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        u, omega = self.factor.solve(top.unsqueeze(-1), low.unsqueeze(-1), refinements=0)
        return u.squeeze(-1), omega.squeeze(-1)

    def take(self, rows: Tensor) -> NewtonSystem:
        """Some elements."""
        some = object.__new__(NewtonSystem)
        some.form, some.at = self.form.take(rows), Derivatives(*(t[rows] for t in self.at))
        some.H, some.s, some.z, some.W, some.size = (t[rows] for t in (self.H, self.s, self.z, self.W, self.size))
        some.shift, some.dual_shift, some.failed = (t[rows] for t in (self.shift, self.dual_shift, self.failed))
        some.factor = self.factor.take(rows)
        return some

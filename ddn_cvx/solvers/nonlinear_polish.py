"""Newton steps on the active set: from an interior-point method's accuracy to machine accuracy.

The rows whose multiplier exceeds their slack are taken as equalities, the others drop out; the step solves the
optimality conditions of that equality-constrained program.  It is kept where it lowers the error of the whole program.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.linalg.saddle import CondensedFactor
from ddn_cvx.solvers.nonlinear_barrier import BarrierForm, Derivatives


def polish(
    form: BarrierForm, y: Tensor, lam: Tensor, z: Tensor, active: Tensor, good: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(y, lam, z, error)`` after at most ``steps`` steps for the elements ``good``; ``active`` (B, k) marks rows of c."""
    at = form.derivatives(y)
    p = form.program.p
    active = active & (z > -at.c)
    z = torch.where(active, z, 0.0)
    error = _error(form, at, lam, z)
    for _ in range(steps):
        weight = active.to(y.dtype)
        rows = torch.cat((at.Jh, torch.cat((at.Jg, form.bound_rows()), 1) * weight.unsqueeze(-1)), 1)
        D = torch.cat((torch.zeros_like(at.h), 1 - weight), 1)
        factor = CondensedFactor(form.hessian(y, lam, z), rows, D)
        multipliers = torch.cat((lam, z), 1)
        slope = at.gradient + (multipliers.unsqueeze(1) @ rows).squeeze(1)
        low = -torch.cat((at.h, at.c * weight), 1)
        dy, change = (t.squeeze(-1) for t in factor.solve(-slope.unsqueeze(-1), low.unsqueeze(-1), refinements=2))
        new_y, new_lam, new_z = y + dy, lam + change[:, :p], (z + change[:, p:] * weight).clamp(min=0)
        new_at = form.derivatives(new_y)
        new_error = _error(form, new_at, new_lam, new_z)
        better = good & factor.correct_inertia & (new_error < error)
        column = better.unsqueeze(-1)
        y, lam, z = torch.where(column, new_y, y), torch.where(column, new_lam, lam), torch.where(column, new_z, z)
        error = torch.where(better, new_error, error)
        at = new_at if bool(better.all()) else form.derivatives(y)
    return y, lam, z, error


def _error(form: BarrierForm, at: Derivatives, lam: Tensor, z: Tensor) -> Tensor:
    slope = at.gradient + form.pull(at.Jg, z) + (lam.unsqueeze(1) @ at.Jh).squeeze(1)
    weight = 1 + lam.abs().sum(-1) / 100 + z.sum(-1) / 100
    return torch.cat((slope / weight.unsqueeze(-1), at.h, torch.minimum(z, -at.c)), 1).abs().amax(-1)

"""Newton steps on the active set: from an interior-point method's accuracy to machine accuracy.

The rows whose multiplier exceeds their slack are taken as equalities, the others drop out; the step solves the
optimality conditions of that equality-constrained program.  It is kept where it lowers the error of the whole program.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.linalg.saddle import CondensedFactor
from ddn_cvx.solvers.nonlinear_barrier import BarrierForm, Derivatives

_NEGATIVE = 1e-7  # curvature below minus this, relative to the largest, is a way down
_STEP = 1e-2  # length of the step off a saddle point, relative to y


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
        rows = _active_rows(form, at, weight)
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


def leave_saddle(form: BarrierForm, y: Tensor, lam: Tensor, z: Tensor, good: Tensor) -> tuple[Tensor, Tensor]:
    """The elements ``good`` (as indices) that are saddle points or maxima, and points off them, downhill.

    The Lagrangian's curvature is looked at along the directions that leave the active constraints (z > 0) as they are.
    """
    at = form.derivatives(y)
    weight = (z > -at.c).to(y.dtype)
    H, rows = form.hessian(y, lam, z), _active_rows(form, at, weight)
    D = torch.cat((torch.zeros_like(at.h), 1 - weight), 1)
    suspects = torch.nonzero(good & ~CondensedFactor(H, rows, D).positive).flatten()
    if not len(suspects):
        return suspects, y[suspects]
    H, rows, y = H[suspects], rows[suspects], y[suspects]
    values, vectors = torch.linalg.eigh(rows.mT @ rows)
    free = values <= 1e-10 * values.amax(-1, keepdim=True).clamp(min=1e-300)
    free = torch.where(values.amax(-1, keepdim=True) > 0, free, True)
    basis = vectors * free.unsqueeze(-2)  # the tangent directions; the others are zero
    values, inner = torch.linalg.eigh(basis.mT @ H @ basis)
    direction = (basis @ inner[..., :1]).squeeze(-1)
    down = values[:, 0] < -_NEGATIVE * H.abs().amax((1, 2))
    step = _STEP * y.abs().amax(-1, keepdim=True).clamp(min=1.0) * direction
    some = form.take(suspects)
    ahead, behind = some.values(y + step).f, some.values(y - step).f
    moved = torch.where((ahead <= behind).unsqueeze(-1), y + step, y - step)
    return suspects[down], moved[down]


def _active_rows(form: BarrierForm, at: Derivatives, weight: Tensor) -> Tensor:
    """Jacobian of the equalities and of the rows of c, the inactive ones zero; ``(B, p + k, n)``."""
    return torch.cat((at.Jh, torch.cat((at.Jg, form.bound_rows(len(weight))), 1) * weight.unsqueeze(-1)), 1)


def _error(form: BarrierForm, at: Derivatives, lam: Tensor, z: Tensor) -> Tensor:
    slope = at.gradient + form.pull(at.Jg, z) + (lam.unsqueeze(1) @ at.Jh).squeeze(1)
    weight = 1 + lam.abs().sum(-1) / 100 + z.sum(-1) / 100
    return torch.cat((slope / weight.unsqueeze(-1), at.h, torch.minimum(z, -at.c)), 1).abs().amax(-1)

"""Feasibility restoration: where no step improves, the constraints alone are brought down, and infeasibility is recognised.

Levenberg–Marquardt's method on ``r(y) = [h(y); max(g(y), 0)]`` within the bounds.  A point where the gradient ``J'r``
vanishes along all directions the bounds allow, and r does not, is a proof that no point nearby is less infeasible.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import cholesky_ex

from ddn_cvx.solvers.deadline import expired
from ddn_cvx.solvers.nonlinear_barrier import BarrierForm, Derivatives, Values

_STATIONARY = 1e-7  # cosine between r and the space of the columns of J that is none
_LEAST_VIOLATION = 1e-7  # of an infeasible point
_LEAST_SLOPE = 1e-3  # of the slopes that this cosine is relative to
_ASIDE, _CLEARLY = (1e-2, 1.0), 0.999  # relative distances to points beside, and how much better these must end
_REACH = 2.0  # longest step, relative to y
_STALLED = 1e-4  # the same where rounding stops all progress
_LEAST_DECREASE = 1e-13  # relative, of a step that is taken
_LARGEST_RIDGE = 1e12  # after which an element gives up
_CHECK = 4  # iterations between two questions to the device
_SECOND_ORDER = 8  # iterations of Gauss and Newton before second derivatives are used


class Restored(NamedTuple):
    """The points reached ``(B, n)``, and whether they are infeasible and stationary for the violation ``(B,)``."""

    y: Tensor
    infeasible: Tensor


def restore(form: BarrierForm, y: Tensor, reduction: float, iterations: int = 100) -> Restored:
    """Reduce the violation to ``reduction`` times what it is, or as far as it goes.

    A point is called infeasible only if that is so from beside it also: a maximum of the violation is stationary, too.
    """
    if not form.program.p + form.program.m:
        return Restored(y, torch.zeros_like(y[:, 0], dtype=torch.bool))
    found = _levenberg_marquardt(form, y, reduction, iterations)
    aside = torch.cos(torch.arange(1, y.shape[1] + 1, dtype=y.dtype, device=y.device) ** 2)
    for distance in _ASIDE:
        rows = torch.nonzero(found.infeasible).flatten()
        if not len(rows):
            break
        some, stuck = form.take(rows), found.y[rows]
        moved = stuck + distance * stuck.abs().amax(-1, keepdim=True).clamp(min=1.0) * aside
        lower, upper = _box(some, stuck)
        again = _levenberg_marquardt(some, torch.minimum(torch.maximum(moved, lower), upper), 0.0, iterations)
        before, after = (_violation(some, some.values(point)) for point in (stuck, again.y))
        better = after < _CLEARLY * before
        better_y = torch.where(better.unsqueeze(-1), again.y, stuck)
        infeasible = torch.where(better, again.infeasible, True)
        found = Restored(found.y.index_copy(0, rows, better_y), found.infeasible.index_copy(0, rows, infeasible))
    return found


def feasible_points(form: BarrierForm, starts: Tensor, count: int, iterations: int = 100) -> tuple[Tensor, Tensor]:
    """What is reached from several starts ``(K, B, n)`` for each element: ``count`` points ``(count, B, n)``, those
    that are feasible first, and which these are ``(count, B)`` bool."""
    several = form.tile(len(starts))
    reached = _levenberg_marquardt(several, starts.flatten(0, 1), 0.0, iterations).y
    values = several.values(reached)
    feasible = ((_violation(several, values) <= _LEAST_VIOLATION) & values.f.isfinite()).view(starts.shape[:2])
    order = (~feasible).to(torch.uint8).argsort(dim=0, stable=True)[:count]
    return reached.view_as(starts).take_along_dim(order.unsqueeze(-1), 0), feasible.take_along_dim(order, 0)


def _violation(form: BarrierForm, values: Values) -> Tensor:
    return torch.cat((values.h, values.c[:, : form.program.m].clamp(min=0)), 1).norm(dim=-1)


def _levenberg_marquardt(form: BarrierForm, y: Tensor, reduction: float, iterations: int) -> Restored:
    m = form.program.m
    lower, upper = _box(form, y)
    at = form.derivatives(y)
    r, J = _residual(at, m)
    cost = start = r.square().sum(-1)
    first_slope = (1e-2 * J.square().sum((1, 2)).sqrt()).clamp(min=_LEAST_SLOPE)  # J itself may vanish at the end
    ridge = torch.full_like(cost, 1e-2)
    infeasible = torch.zeros_like(cost, dtype=torch.bool)
    live = cost.isfinite()
    for iteration in range(iterations):
        slope = (r.unsqueeze(1) @ J).squeeze(1)
        blocked = ((y <= lower) & (slope > 0)) | ((y >= upper) & (slope < 0))
        slope = slope.masked_fill(blocked, 0.0)
        steepest = torch.maximum(J.square().sum((1, 2)).sqrt(), first_slope)
        size = steepest * cost.sqrt()
        angle = slope.norm(dim=-1) / size
        stationary = ~(angle > _STATIONARY) | ((angle < _STALLED) & (ridge > _LARGEST_RIDGE))
        infeasible = infeasible | (live & stationary & (r.abs().amax(-1) > _LEAST_VIOLATION))
        live = live & ~stationary & (cost > reduction**2 * start) & (ridge <= _LARGEST_RIDGE)
        if iteration % _CHECK == 0 and (expired() or not bool(live.any())):
            break
        masked = J.masked_fill(blocked.unsqueeze(1), 0.0)
        normal = masked.mT @ masked
        typical = normal.diagonal(dim1=1, dim2=2).mean(-1).clamp(min=1e-12)
        if iteration == _SECOND_ORDER:
            ridge = ridge.clamp(max=1e-2)  # it was raised for want of the curvature
        normal.diagonal(dim1=1, dim2=2).add_((ridge * typical).unsqueeze(-1))
        if iteration >= _SECOND_ORDER:
            normal = _with_curvature(form, y, r, normal, blocked)
        L = cholesky_ex(normal).L
        d = -torch.cholesky_solve(slope.unsqueeze(-1), L).squeeze(-1)
        reach = _REACH * y.norm(dim=-1).clamp(min=1.0) / d.norm(dim=-1).clamp(min=1e-300)
        trial = torch.minimum(torch.maximum(y + reach.clamp(max=1.0).unsqueeze(-1) * d, lower), upper)
        new_at = form.derivatives(trial)
        new_r, new_J = _residual(new_at, m)
        new_cost = new_r.square().sum(-1)
        finite = new_J.sum((1, 2)).isfinite() & new_at.gradient.sum(-1).isfinite() & new_at.f.isfinite()
        better = new_cost < cost * (1 - _LEAST_DECREASE)
        flatter = (new_r.unsqueeze(1) @ new_J).squeeze(1).masked_fill(blocked, 0.0).norm(dim=-1) < 0.5 * slope.norm(dim=-1)
        good = live & finite & (better | (flatter & (new_cost <= cost * (1 + _LEAST_DECREASE))))
        column = good.unsqueeze(-1)
        y, r, J = torch.where(column, trial, y), torch.where(column, new_r, r), torch.where(column.unsqueeze(-1), new_J, J)
        cost, ridge = torch.where(good, new_cost, cost), torch.where(good, ridge * 0.1, ridge * 10).clamp(min=1e-12)
    return Restored(y, infeasible)


def _with_curvature(form: BarrierForm, y: Tensor, r: Tensor, normal: Tensor, blocked: Tensor) -> Tensor:
    """With what ``normal`` lacks of the Hessian of ``|r|^2 / 2`` where that leaves it positive definite: without it,
    infeasible programs converge slowly."""
    p, none = form.program.p, torch.zeros_like(r)
    lam, mu = r[:, :p], r[:, p:]
    curvature = form.hessian(y, lam, mu) - form.hessian(y, none[:, :p], none[:, p:])
    free = (~blocked).to(y.dtype)
    exact = normal + curvature * free.unsqueeze(1) * free.unsqueeze(2)
    definite = cholesky_ex(exact).info == 0
    return torch.where(definite[:, None, None], exact, normal)


def _residual(at: Derivatives, m: int) -> tuple[Tensor, Tensor]:
    g = at.c[:, :m]
    violated = (g > 0).to(g.dtype)
    return torch.cat((at.h, g * violated), 1), torch.cat((at.Jh, at.Jg * violated.unsqueeze(-1)), 1)


def _box(form: BarrierForm, y: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds, moved a little inside; y is inside the bounds themselves and stays where it is if nearer to them."""
    lower, upper = form.program.bounds(form.theta, y)
    margin = 1e-8 * torch.where((upper - lower).isfinite(), upper - lower, 1.0)
    return torch.minimum(lower + margin, y), torch.maximum(upper - margin, y)

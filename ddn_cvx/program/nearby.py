"""What the functions of a nonlinear program do right next to a point that satisfies the first-order conditions.

Values and derivatives at one point do not show that it lies on a kink, where torch returns some subgradient and a Hessian
that sees neither side, nor that it is an inflection of a program without any curvature there (``y ** 3`` at zero). The
gradient of the Lagrangian at a few points next to it shows both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.linalg.blocks import row_sizes, to_dense
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.program.optimality import Judged, State, faint_force, largest, probe, pulls

SIDE = 1e-11
"""Relative distance to both sides of a kink, where smooth functions change by their curvature only."""
JUMP = 1e-9
"""Change of the gradient across a point, relative to its forces, that may be a kink."""
SHARP = 100.0
"""How much more the gradient changes across a kink than it does next to it."""
SLIGHT = 1e-3
"""Curvature, next to one and to the objective, that is looked at."""
AWAY = 1e-3
"""Relative length of the steps along which a minimum must not fall much faster than its curvature lets it rise."""
FALLS = 10.0
"""How much faster."""


@torch.no_grad()
def kinked(program: NonlinearProgram, theta: Theta, point: Judged, ok: Tensor) -> Tensor:
    """Elements whose Lagrangian has a kink at the point, in some direction that its bounds leave, ``(B,)`` bool."""
    if program.is_smooth(point.state.y, theta):
        return torch.zeros_like(ok)
    rows = torch.nonzero(ok).flatten()
    if not len(rows):
        return torch.zeros_like(ok)
    some = point if len(rows) == len(ok) else point.take(rows)
    theta = theta if len(rows) == len(ok) else theta.take(rows)
    slopes = _slopes(program, theta, some, SIDE * torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64))[0]
    across = largest(slopes[2] - slopes[1])
    along = torch.maximum(largest(slopes[1] - slopes[0]), largest(slopes[3] - slopes[2]))
    force = largest(some.first.gradient) + largest(row_sizes(some.H)) * (1.0 + largest(some.state.y))
    jumps = across > SHARP * along + JUMP * force.nan_to_num(0.0, 0.0) + faint_force(some.state, some.first.f)
    return torch.zeros_like(ok).index_put((rows,), jumps)


@torch.no_grad()
def sinks(program: NonlinearProgram, theta: Theta, point: Judged, ok: Tensor) -> Tensor:
    """Elements with hardly any curvature, and no active constraints but bounds, whose objective falls next to the point,
    ``(B,)`` bool."""
    if program.p or not program.is_dense:
        return torch.zeros_like(ok)
    size = 1.0 + largest(point.state.y)
    slight = largest(row_sizes(point.H)) <= SLIGHT * (1.0 + point.first.f.abs() / size)
    rows = torch.nonzero(ok & slight & (point.active.all.g == 0).all(-1)).flatten()
    if not len(rows):
        return torch.zeros_like(ok)
    some, theta = point.take(rows), theta.take(rows)
    slopes, steps = _slopes(program, theta, some, AWAY * torch.tensor([-1.0, 1.0], dtype=torch.float64))
    gained = (slopes * steps).sum(-1)
    expected = ((steps.unsqueeze(-2) @ to_dense(some.H)).squeeze(-2) * steps).sum(-1).clamp(min=0.0)
    noise = faint_force(some.state, some.first.f) * largest(steps)
    return torch.zeros_like(ok).index_put((rows,), (gained < -FALLS * expected - noise).any(0))


def _slopes(program: NonlinearProgram, theta: Theta, point: Judged, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the Lagrangian at points in a row, and the steps there, ``(k, B, n)`` each; bounds are respected."""
    y, lam, mu, _ = point.state
    order = torch.arange(1, program.n + 1, dtype=y.dtype, device=y.device)
    # Any two entries differ: the way runs along no kink between variables.
    way = probe(y) * (1.0 + torch.frac(order * 0.6180339887498949)) * (point.active.all.box == 0)
    reach = (1.0 + largest(y)).unsqueeze(-1)
    ends = (y + lengths.to(y)[:, None, None] * reach * way).clamp(point.lower, point.upper)
    # A large program is evaluated at one of the points after the other, for the sake of memory.
    together = len(lengths) if program.is_dense else 1
    slopes = torch.cat([_slope(program, theta, State(some.flatten(0, 1), lam, mu, y)) for some in ends.split(together)])
    return slopes.reshape(ends.shape) * (point.active.all.box == 0), ends - y


def _slope(program: NonlinearProgram, theta: Theta, state: State) -> Tensor:
    """The gradient of the Lagrangian at points ``state.y`` (k B, n), with the multipliers of ``state`` (B, .)."""
    k = len(state.y) // len(state.z)
    many, points = theta.tile(k), State(state.y, *(t.repeat(k, 1) for t in (state.lam, state.mu, torch.zeros_like(state.z))))
    if program.is_smooth(points.y, many) is None:
        return program.gradient(points.y, many, points.lam, points.mu)
    first = program.first(points.y, many)  # by code that needs no Python
    return first.gradient + sum(pulls(points, first))

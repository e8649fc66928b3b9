"""How far a point of a nonlinear program is from satisfying the first-order conditions, and which constraints are active.

All measures are relative and free of the units of objective and constraints: the violation of a constraint is the distance
to where its linearisation vanishes, next to ``1 + |y|``; the residual of stationarity is taken next to the forces that
should balance in it, and to how much the gradient changes over such a distance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ddn_cvx.linalg.blocks import per_element, row_sizes, to_dense
from ddn_cvx.program.nonlinear import First, NonlinearProgram, Theta

WEAK = 1e-7
"""An active constraint whose relative multiplier and slack are both below this is weakly active."""

NOISE = 1e-10
"""Added to forces before they are compared: what is of the size of rounding next to one may be left unbalanced."""
ROUNDING = 1e-14
"""Curvature times length, next to the largest force, that is none."""
FAINT = 1e-12
"""Forces so small, next to one and to the objective per length, may be what rounding leaves of larger ones that cancel."""
CURVED = 1e4
"""As many times as large a curvature may be, times length, and be looked at."""
TREMBLE = 1e-13
"""Relative distances over which derivatives change by their rounding errors only."""
SHAKY = 30.0
"""As many such changes a derivative may be and still count as none: a few points are a small sample of rounding errors."""


class State(NamedTuple):
    """A primal-dual point, ``y`` (B, n), ``lam`` (B, p), ``mu`` (B, m), ``z`` (B, n)."""

    y: Tensor
    lam: Tensor
    mu: Tensor
    z: Tensor


class Active(NamedTuple):
    """Which constraints hold with equality: 1 with a force, 1/2 without (weakly active), 0 not active."""

    g: Tensor
    """``(B, m)``."""
    box: Tensor
    """``(B, n)``; positive at an upper bound, negative at a lower one."""

    @property
    def strong(self) -> Active:
        """Weakly active constraints taken as inactive; entries 0 and 1 (with sign)."""
        return Active((self.g == 1).to(self.g.dtype), torch.where(self.box.abs() == 1, self.box, 0.0))

    @property
    def all(self) -> Active:
        """Weakly active constraints taken as active."""
        return Active((self.g > 0).to(self.g.dtype), self.box.sign())

    @property
    def weak(self) -> Tensor:
        """Elements with a weakly active constraint, ``(B,)`` bool."""
        return (self.g == 0.5).any(-1) | (self.box.abs() == 0.5).any(-1)


class Judged(NamedTuple):
    """A point with its derivatives and its residuals."""

    state: State
    first: First
    H: Tensor
    """Hessian of the Lagrangian, ``(B, n, n)`` or its diagonal blocks (``linalg.blocks``)."""
    active: Active
    primal: Tensor
    """Largest violation of a constraint, ``(B,)``."""
    dual: Tensor
    """Largest residual of stationarity, ``(B,)``."""
    gap: Tensor
    """Largest violation of complementarity and of the multipliers' signs, ``(B,)``."""
    lower: Tensor
    upper: Tensor

    @property
    def worst(self) -> Tensor:
        """The largest of the three, infinite where it is not a number, ``(B,)``."""
        return torch.stack((self.primal, self.dual, self.gap)).amax(0).nan_to_num(nan=torch.inf)

    def take(self, rows: Tensor) -> Judged:
        """Some elements."""
        some: Judged = tree_map(lambda t: t[rows], self)
        return some

    @staticmethod
    def choose(mask: Tensor, yes: Judged, no: Judged) -> Judged:
        """Element by element."""
        if bool(mask.all()):
            return yes
        if yes.H.ndim != no.H.ndim:
            yes, no = yes._replace(H=to_dense(yes.H)), no._replace(H=to_dense(no.H))

        def pick(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(per_element(mask, a), a, b)

        chosen: Judged = tree_map(pick, yes, no)
        return chosen


def judge(program: NonlinearProgram, theta: Theta, state: State, bent: bool = True, first: First | None = None) -> Judged:
    """Residuals, derivatives and active constraints at a point; no gradients flow.

    Unless ``bent`` the Hessian, by far the dearest of them, is left out, and counts as zero. ``first``: the values and
    first derivatives at ``state.y``, if they are known. Programs too large for matrices have empty ones (no columns), and
    the sizes of rows are estimated from products.
    """
    with torch.no_grad():
        y, lam, mu, z = state
        if first is None:
            first = program.first(y, theta) if program.is_dense else _without_matrices(program, theta, y)
        # Without an objective the multipliers are rounding errors, which nothing could be compared with.
        pulled = (first.gradient != 0).any(-1, keepdim=True)
        lam, mu, z = (torch.where(pulled, t, 0.0) for t in (lam, mu, z))
        state = State(y, lam, mu, z)
        lower, upper = program.bounds(theta, y)
        size = 1.0 + largest(y)
        if program.is_dense:
            H = curvature(program, theta, state, first) if bent else y.new_zeros(len(y), 0, 0)
            acting = pulls(state, first)
            bend, steep_h, steep_g = largest(row_sizes(H)), largest(first.Jh), largest(first.Jg)
        else:
            H = y.new_zeros(len(y), 0, 0)
            acting = [program.gradient(y, theta, lam, mu) - first.gradient, z]
            bend = largest(program.hvp(y, theta, lam, mu, probe(y)))
            steep_h, steep_g = (t.abs() for t in program.jvp(y, theta, probe(y)))
        forces = torch.stack([largest(t) for t in (first.gradient, *acting)]).amax(0)
        force, residual = forces + bend * size + NOISE, largest(first.gradient + sum(acting))
        # An infinite curvature or force would hide any residual.
        dual = torch.where(force.isfinite(), residual / force, torch.inf)
        rows = torch.nonzero(_faint(state, first.f, forces, bend) & (residual > 0) & bent).flatten()
        if len(rows):
            noise = _tremor(program, theta, state, rows)[0]
            dual = dual.index_put((rows[residual[rows] <= SHAKY * noise],), dual.new_zeros(()))
        span, push = size.unsqueeze(-1), force.unsqueeze(-1)
        steep_h, steep_g = _or_one(steep_h), _or_one(steep_g)
        g, mu_g = first.g / (steep_g * span), mu * steep_g / push
        above, below, force_z = (y - upper) / span, (lower - y) / span, z / push
        primal = torch.stack([largest(first.h / (steep_h * span)), *(_most(t) for t in (g, above, below))]).amax(0)
        pairs = ((mu_g, g), (force_z.clamp(min=0), above), ((-force_z).clamp(min=0), below))
        gap = torch.stack([largest(torch.minimum(f, -v)) for f, v in pairs]).amax(0)
        active = _classify(g, mu_g, above, below, force_z, lower >= upper)
        return Judged(state, first, H, active, primal.clamp(min=0), dual, gap, lower, upper)


def curvature(program: NonlinearProgram, theta: Theta, state: State, first: First) -> Tensor:
    """The Hessian of the Lagrangian ``(B, n, n)``, or its diagonal blocks. Where the curvatures of objective and constraints
    cancel, or those of the terms of an objective that is flat, it is zero: what is left is rounding, not a small Hessian."""
    H = program.curvature(state.y, theta, state.lam, state.mu)
    forces = torch.stack([largest(t) for t in (first.gradient, *pulls(state, first))]).amax(0)
    bend = largest(row_sizes(H))
    cancelled = bend * (1.0 + largest(state.y)) <= ROUNDING * forces
    rows = torch.nonzero(_faint(state, first.f, forces, bend) & (bend > 0)).flatten()
    if len(rows):
        noise = _tremor(program, theta, state, rows, bent=True)[1]
        cancelled = cancelled.index_put((rows[bend[rows] <= SHAKY * noise],), cancelled.new_ones(()))
    return torch.where(per_element(cancelled, H), 0.0, H) if bool(cancelled.any()) else H


def _faint(state: State, f: Tensor, forces: Tensor, bend: Tensor) -> Tensor:
    """Elements without a force to compare with, as on a plateau between two groups of points that pull equally, ``(B,)``."""
    least = faint_force(state, f)
    return (forces <= least) & (bend * (1.0 + largest(state.y)) <= CURVED * least)


def faint_force(state: State, f: Tensor) -> Tensor:
    """The force that rounding may leave of larger ones that cancel, ``(B,)``."""
    return FAINT * (1.0 + f.abs() / (1.0 + largest(state.y)))


def _tremor(
    program: NonlinearProgram, theta: Theta, state: State, rows: Tensor, bent: bool = False
) -> tuple[Tensor, Tensor]:
    """How much the gradient of the Lagrangian, and if ``bent`` its Hessian, differ at points next to each other, or by code
    and by torch, ``(rows,)`` each: what is not much larger is rounding."""
    y, lam, mu, _ = (t[rows] for t in state)
    theta = theta.take(rows)
    lower, upper = program.bounds(theta, y)
    lengths = TREMBLE * torch.linspace(-1.0, 1.0, 9, dtype=y.dtype, device=y.device)[:, None, None]
    points = (y + lengths * (1.0 + y.abs()) * probe(y)).clamp(lower, upper).flatten(0, 1)
    many, lam, mu = theta.tile(len(lengths)), lam.repeat(len(lengths), 1), mu.repeat(len(lengths), 1)

    def spread(*parts: Tensor) -> Tensor:
        every = torch.stack(parts).reshape(-1, len(rows), *parts[0].shape[1:])
        return largest((every.amax(0) - every.amin(0)).flatten(1))

    slopes = [program.gradient(points, many, lam, mu)]
    if program.is_dense:
        first = program.first(points, many)
        slopes.append(first.gradient + sum(pulls(State(points, lam, mu, torch.zeros_like(points)), first)))
    bends = spread(row_sizes(program.curvature(points, many, lam, mu))) if bent else torch.zeros_like(y[:, 0])
    return spread(*slopes), bends


def pulls(state: State, first: First) -> list[Tensor]:
    """What constraints and bounds add to the gradient, ``(B, n)`` each."""
    pull_h = (state.lam.unsqueeze(-2) @ first.Jh).squeeze(-2)
    return [pull_h, (state.mu.unsqueeze(-2) @ first.Jg).squeeze(-2), state.z]


def _without_matrices(program: NonlinearProgram, theta: Theta, y: Tensor) -> First:
    f, h, g = program.values(y, theta)
    slope = program.gradient(y, theta, torch.zeros_like(h), torch.zeros_like(g))
    return First(f, slope, h, h.new_zeros(*h.shape, 0), g, g.new_zeros(*g.shape, 0))


def probe(y: Tensor) -> Tensor:
    """A fixed vector of signs without a pattern: its product with a row is as large as the row's norm, give or take."""
    order = torch.arange(1, y.shape[-1] + 1, dtype=torch.float64, device=y.device)
    return torch.where(torch.cos(order * order) > 0, 1.0, -1.0).to(y.dtype).expand_as(y)


def _classify(g: Tensor, mu: Tensor, above: Tensor, below: Tensor, z: Tensor, fixed: Tensor) -> Active:
    def share(value: Tensor, force: Tensor) -> Tensor:
        weak = (value.abs() <= WEAK) & (force.abs() <= WEAK)
        return torch.where(weak, 0.5, (force + value > 0).to(value.dtype))

    box = share(above, z)
    box = torch.where(box > 0, box, -share(below, -z))
    return Active(share(g, mu), torch.where(fixed, torch.where(z < 0, -1.0, 1.0), box))


def largest(t: Tensor) -> Tensor:
    """``max |t|`` of the last dimension; zero if it is empty."""
    return torch.maximum(t.amax(-1), -t.amin(-1)) if t.shape[-1] else t.new_zeros(t.shape[:-1])


def _most(t: Tensor) -> Tensor:
    return t.amax(-1) if t.shape[-1] else t.new_zeros(t.shape[:-1])


def _or_one(t: Tensor) -> Tensor:
    return torch.where(t > 0, t, 1.0)

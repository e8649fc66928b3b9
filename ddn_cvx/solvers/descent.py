"""Unconstrained minimisation of a batch along descent directions: what ``Newton``, ``NewtonKrylov`` and ``LBFGS`` share.

Each element has its own step length, by bisection to the weak Wolfe conditions (Lewis & Overton 2013) or to Armijo's alone,
its own end and its own status; elements that are done leave the batch.  A solver supplies the directions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.linalg.elements import put, take
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solution import Status
from ddn_cvx.solvers.deadline import expired
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint

_ARMIJO, _WOLFE = 1e-4, 0.9  # of the decrease, and of the slope, that are asked for
_TRIALS = 30  # of lengths of a step
_PATIENCE = 20  # steps without progress beyond rounding
_FAR, _LOW = 1e10, 1e4  # so far away, with an objective so far below zero, an iterate counts as diverging
_LIVE = int(Status.ITERATION_LIMIT)


class Directions(ABC):
    """Where to go from a point; what it remembers is per element."""

    wolfe: bool
    """Whether steps must satisfy the curvature condition also."""

    @abstractmethod
    def __call__(self, y: Tensor, slope: Tensor) -> Tensor:
        """A direction ``(B, n)`` for the gradient ``slope`` (B, n)."""

    @abstractmethod
    def learn(self, dy: Tensor, change: Tensor) -> None:
        """A step ``dy`` (B, n) was made, and the gradient changed by ``change``; zero for elements that stood still."""

    @abstractmethod
    def take(self, rows: Tensor) -> None:
        """Forget all elements but these."""


class Goal(NamedTuple):
    """When to stop: gradient at most ``tolerance``, relative to the first one if above one, or after ``iterations``.

    Elements that no longer improve are SOLVED up to ``solved`` and INACCURATE up to ``inaccurate``.
    """

    tolerance: float
    solved: float
    inaccurate: float
    iterations: int


class _Point(NamedTuple):
    row: Tensor
    y: Tensor
    f: Tensor
    slope: Tensor
    size: Tensor
    start: Tensor
    value: Tensor
    status: Tensor
    iterations: Tensor
    waited: Tensor


def unconstrained_only(program: NonlinearProgram) -> str | None:
    """The reason why a program is not for an unconstrained method, or None."""
    if program.p or program.m or program.has_bounds:
        return "it is for problems without constraints and bounds"
    return None if program.n else "it needs at least one variable"


def descend(program: NonlinearProgram, theta: Theta, start: Tensor, directions: Directions, goal: Goal) -> NonlinearPoint:
    """Minimise from ``start`` ``(B, n)``."""
    f, slope = _evaluate(program, theta, start)
    row = torch.arange(len(start), device=start.device)
    size = slope.abs().amax(-1).clamp(min=1.0)
    status = torch.full_like(row, _LIVE).masked_fill(~_finite(f, slope), int(Status.NUMERICAL_ERROR))
    zero, far = torch.zeros_like(row), start.abs().amax(-1).clamp(min=1.0)
    record = point = _Point(row, start, f, slope, size, far, f.abs().clamp(min=1.0), status, zero, zero)
    for iteration in range(goal.iterations + 1):
        point = _judge(point, goal, iteration)
        live = point.status == _LIVE
        left = torch.nonzero(live).flatten()
        last = iteration == goal.iterations or expired()
        if not len(left) or last or 4 * len(left) <= 3 * len(live):
            record = put(record, point.row, point)
            if not len(left) or last:
                break
            point = take(point, left)
            theta = theta.take(left)
            directions.take(left)
        d = directions(point.y, point.slope)
        uphill = ~((d * point.slope).sum(-1) < 0)
        d = torch.where(uphill.unsqueeze(-1), -point.slope, d)
        found = _search(program, theta, point, d, directions.wolfe)
        directions.learn(found.y - point.y, found.slope - point.slope)
        point = found
    nothing = NonlinearPoint.blank(program, record.y)
    return NonlinearPoint(record.y, nothing.lam, nothing.mu, nothing.z, record.status, record.iterations)


def _evaluate(program: NonlinearProgram, theta: Theta, y: Tensor) -> tuple[Tensor, Tensor]:
    first = program.first(y, theta)
    return first.f, first.gradient


def _finite(f: Tensor, slope: Tensor) -> Tensor:
    return f.isfinite() & slope.sum(-1).isfinite()


def _judge(point: _Point, goal: Goal, iteration: int) -> _Point:
    live = point.status == _LIVE
    eps = torch.finfo(point.f.dtype).eps
    done = point.slope.abs().amax(-1) <= max(goal.tolerance, 10 * eps) * point.size
    far = (point.y.abs().amax(-1) > _FAR * point.start) & (point.f < -_LOW * point.value)
    status = point.status.masked_fill(live & far, int(Status.UNBOUNDED)).masked_fill(live & done, int(Status.SOLVED))
    status = _stuck(point._replace(status=status), goal)
    return point._replace(status=status, iterations=torch.where(live, iteration, point.iterations))


def _stuck(point: _Point, goal: Goal) -> Tensor:
    """Elements marked by a negative status found no step: what they have is judged."""
    error = point.slope.abs().amax(-1) / point.size
    eps = torch.finfo(point.f.dtype).eps
    code = torch.where(error <= max(goal.inaccurate, 1e5 * eps), int(Status.INACCURATE), int(Status.NUMERICAL_ERROR))
    code = torch.where(error <= max(goal.solved, 1e4 * eps), int(Status.SOLVED), code)
    return torch.where(point.status < 0, code, point.status)


def _search(program: NonlinearProgram, theta: Theta, point: _Point, d: Tensor, wolfe: bool) -> _Point:
    """The point a step along ``d`` leads to; its status is -1 where no step is found."""
    descent = (d * point.slope).sum(-1)
    rounding = 20 * torch.finfo(point.f.dtype).eps * point.f.abs().clamp(min=1e-300)
    y = point.y + d
    f, slope = _evaluate(program, theta, y)
    low, high = torch.zeros_like(f), torch.full_like(f, torch.inf)
    length = torch.ones_like(f)
    best = point._replace(y=y, f=f, slope=slope)
    long, short = _fails(point, descent, d, f, slope, length, rounding, wolfe)
    left = torch.nonzero((long | short) & (point.status == _LIVE)).flatten()
    accepted = ~long
    low, high = torch.where(short, length, low), torch.where(long, length, high)
    for _ in range(_TRIALS):
        if not len(left):
            break
        middle = torch.where(high[left].isinf(), 2 * length[left], 0.5 * (low[left] + high[left]))
        some, some_d = take(point, left), d[left]
        y = some.y + middle.unsqueeze(-1) * some_d
        f, slope = _evaluate(program, theta.take(left), y)
        long, short = _fails(some, descent[left], some_d, f, slope, middle, rounding[left], wolfe)
        keep = left[~long]
        values = {"y": y[~long], "f": f[~long], "slope": slope[~long]}
        best = best._replace(**{name: getattr(best, name).index_copy(0, keep, new) for name, new in values.items()})
        accepted[keep] = True
        low = low.index_copy(0, left, torch.where(short, middle, low[left]))
        high = high.index_copy(0, left, torch.where(long, middle, high[left]))
        length = length.index_copy(0, left, middle)
        left = left[long | short]
    live = point.status == _LIVE
    moved = (accepted & live).unsqueeze(-1)
    better = (best.f < point.f - rounding) | (best.slope.norm(dim=-1) < 0.9 * point.slope.norm(dim=-1))
    waited = torch.where(better, 0, point.waited + 1)
    stalled = live & (~accepted | (waited > _PATIENCE))
    return point._replace(
        y=torch.where(moved, best.y, point.y),
        f=torch.where(moved.squeeze(-1), best.f, point.f),
        slope=torch.where(moved, best.slope, point.slope),
        status=point.status.masked_fill(stalled, -1),
        waited=waited,
    )


def _fails(
    point: _Point, descent: Tensor, d: Tensor, f: Tensor, slope: Tensor, length: Tensor, rounding: Tensor, wolfe: bool
) -> tuple[Tensor, Tensor]:
    """Whether a step is too long (f is not low enough, or not finite), and whether it is too short (f still falls)."""
    long = ~(f <= point.f + _ARMIJO * length * descent + rounding) | ~_finite(f, slope)
    if not wolfe:
        return long, torch.zeros_like(long)
    short = ~long & ((slope * d).sum(-1) < _WOLFE * descent) & (length < 1e12)
    return long, short

"""The derivative on the central path: kinks and vertices with a declared width.

Complementarity ``μ g = 0`` is replaced by ``μ s = width, s = -g``, so that a constraint is neither active nor inactive but
both a little; the point of the central path that belongs to the width is found, and the derivative is taken there. The
layer still returns the exact solution. With ``v = μ - s`` and

    μ(v) = (v + sqrt(v² + 4 width)) / 2,    s(v) = (-v + sqrt(v² + 4 width)) / 2

both are positive whatever v is, and Newton's method needs no interior start; each step, and the derivative, is one KKT
system ``[[H, A'], [A, -s/μ]]``. The width has the units of the objective. A linear program becomes a smooth function of its
costs: what would be zero almost everywhere tells how far a vertex is from changing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.adjoint.barrier import attach_barrier
from ddn_cvx.adjoint.base import Solve
from ddn_cvx.adjoint.conic_rows import attach_rows
from ddn_cvx.adjoint.kkt_solve import NonlinearAdjoint, NonlinearSolve, Solved, require_dense
from ddn_cvx.adjoint.nonlinear import solution_map
from ddn_cvx.checks import require_positive
from ddn_cvx.errors import DifferentiationError
from ddn_cvx.linalg.saddle import SaddleKKT
from ddn_cvx.program.active_kkt import Columns
from ddn_cvx.program.conic import ConicData
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.program.optimality import Active, State, largest

STEPS = 100
"""Newton steps to a point of the central path, at most."""
HALVINGS = 12
"""Times a step is halved, at most."""
REACHED = 1e-9
"""Residual, relative to the size of what should cancel, at which Newton's method stops."""
OFF = 0.05
"""Relative error of the slacks and multipliers, however small they are, up to which a point counts as on the path."""


@dataclass(frozen=True)
class Smoothed(NonlinearAdjoint):
    """The exact solution with the derivative of the central path: kinks and vertices have a declared width.

    Conic and nonlinear programs, first derivatives in reverse and forward mode. A linear program, whose exact derivative
    is zero almost everywhere, becomes informative. Boyd & Vandenberghe, "Convex optimization", section 11.2, is about
    the path.

    Raises
    ------
    InputError
        A width that is not positive.
    DifferentiationError
        From the backward pass: the path is not reached, or a second derivative is asked for.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, c = cp.Variable(2), cp.Parameter(2)
    >>> cheapest = cp.Problem(cp.Minimize(c @ x), [cp.sum(x) == 1, x >= 0])
    >>> costs = torch.tensor([1.0, 1.1], requires_grad=True)
    >>> layer = ddn.DeclarativeLayer(cheapest, [c], x, adjoint=ddn.Smoothed(width=0.1))
    >>> layer(costs)[0].backward()
    >>> bool(costs.grad[0] < -0.1), bool(costs.grad[1] > 0.1)  # dearer means less of it
    (True, True)
    """

    width: float = 1e-2
    """How far from the solution the derivative is taken: ``μ s = width``, in units of the objective (default 0.01)."""

    def __post_init__(self) -> None:
        require_positive("width", self.width)

    def attach(self, solve: Solve, data: ConicData, extra: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        if not solve.program.cones.is_polyhedral:
            return attach_barrier(solve, data, extra, self.width)
        return attach_rows(self.attach_nonlinear, solve, data, extra)

    def attach_nonlinear(self, solve: NonlinearSolve, theta: Theta, batch: int) -> Solved:
        """``solve(theta)`` with the derivative of the path."""
        return solution_map(_SmoothedSolve(solve, self.width), theta, batch, "inactive")


class _SmoothedSolve:
    """A nonlinear solve that is linearised on the central path; bounds are rows like other inequalities there."""

    def __init__(self, solve: NonlinearSolve, width: float):
        self._solve, self._width = solve, width
        self.inexact = f"Smoothed({width}) has first derivatives only"
        self.failures = False

    kinks = False

    @property
    def program(self) -> NonlinearProgram:
        """The program with its bounds as inequalities."""
        return bounds_as_rows(self._solve.program)

    @property
    def factors(self) -> _Factors:
        """KKT matrices on the path."""
        return _Factors(self.program, self._width)

    def __call__(self, theta: Theta, batch: int) -> Solved:
        """The exact solution, and the point of the path."""
        exact = self._solve(theta, batch)
        require_dense(self._solve.program, "Smoothed")
        self.failures = self._solve.failures
        state, _, ok, answer = exact
        path = State(
            state.y, state.lam, _path_multipliers(self._solve.program, self.program, theta, state, self._width), state.z
        )
        if bool(ok.any()):
            good = torch.nonzero(ok).flatten()
            found = central_point(self.program, theta.take(good), State(*(t[good] for t in path)), self._width)
            path = State(*(whole.index_copy(0, good, part) for whole, part in zip(path, found, strict=True)))
        idle = Active(torch.zeros_like(path.mu), torch.zeros_like(state.y))
        return Solved(path, idle, ok, answer)

    def perturbed(self, theta: Theta, push: Tensor, start: State) -> tuple[State, Tensor]:
        """That of the exact problem."""
        return self._solve.perturbed(theta, push, start)


class _Factors:
    def __init__(self, program: NonlinearProgram, width: float):
        self._program, self._width = program, width

    def at(self, theta: Theta, state: State, active: Active, ok: Tensor) -> _PathKKT:
        return _PathKKT(self._program, theta, state, self._width, ok)


class _PathKKT:
    def __init__(self, program: NonlinearProgram, theta: Theta, state: State, width: float, ok: Tensor):
        with torch.no_grad():
            first = program.first(state.y, theta)
            H = program.hessian(state.y, theta, state.lam, state.mu)
        self.p = program.p
        self.saddle = SaddleKKT(H, torch.cat((first.Jh, first.Jg), 1), _spread(state, width), ok)

    def solve(self, top: Tensor, h: Tensor, g: Tensor, z: Tensor) -> Columns:
        u, t = self.saddle.solve(top, torch.cat((h, g), 1))
        return u, t[:, : self.p], t[:, self.p :], torch.zeros_like(z)


def _spread(state: State, width: float) -> Tensor:
    """``s / μ = width / μ²`` of the inequalities, zero for the equalities."""
    return torch.cat((torch.zeros_like(state.lam), width / state.mu.clamp(min=1e-150) ** 2), 1)


def bounds_as_rows(program: NonlinearProgram) -> NonlinearProgram:
    """The same program with ``y - upper <= 0`` and ``lower - y <= 0`` among the inequalities; -1 where there is no bound."""
    if not program.has_bounds:
        return program

    def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        f, h, g = program.values(y, theta)
        lower, upper = program.bounds(theta, y)
        above = torch.where(upper.isfinite(), y - torch.where(upper.isfinite(), upper, 0.0), -1.0)
        below = torch.where(lower.isfinite(), torch.where(lower.isfinite(), lower, 0.0) - y, -1.0)
        return f, h, torch.cat((g, above, below), -1)

    return NonlinearProgram(program.n, program.p, program.m + 2 * program.n, evaluate)


def _path_multipliers(given: NonlinearProgram, rows: NonlinearProgram, theta: Theta, state: State, width: float) -> Tensor:
    """Multipliers to start from: those of the solution, moved to where the path may be."""
    mu = torch.cat((state.mu, state.z.clamp(min=0), (-state.z).clamp(min=0)), 1) if given.has_bounds else state.mu
    with torch.no_grad():
        _, _, g = rows.values(state.y, theta)
    return _halves(mu - (-g).clamp(min=0), width)[0]


class _Halves(NamedTuple):
    mu: Tensor
    s: Tensor


def _halves(v: Tensor, width: float) -> _Halves:
    """``μ(v), s(v)`` without cancellation."""
    larger = 0.5 * (v.abs() + (v * v + 4 * width).sqrt())
    smaller = width / larger
    return _Halves(torch.where(v > 0, larger, smaller), torch.where(v > 0, smaller, larger))


@torch.no_grad()
def central_point(program: NonlinearProgram, theta: Theta, start: State, width: float) -> State:
    """The point with ``μ (-g) = width`` near ``start``, for a program without bounds.

    Raises
    ------
    DifferentiationError
        Newton's method does not reach it for some element.
    """
    y, lam, v = start.y, start.lam, start.mu - width / start.mu
    residual, size = _residual(program, theta, y, lam, v, width)
    for _ in range(STEPS):
        waiting = size > REACHED
        if not bool(waiting.any()):
            break
        dy, dlam, dv = _newton(program, theta, (y, lam, v), residual, width)
        length, missed = torch.ones_like(size), waiting
        for _ in range(HALVINGS):
            step = torch.where(missed, length, 0.0).unsqueeze(-1)
            trial = (y + step * dy, lam + step * dlam, v + step * dv)
            found, found_size = _residual(program, theta, *trial, width)
            better = missed & (found_size < size)
            row = better.unsqueeze(-1)
            y, lam, v = (torch.where(row, new, old) for new, old in zip(trial, (y, lam, v), strict=True))
            residual = tuple(torch.where(row, new, old) for new, old in zip(found, residual, strict=True))
            size = torch.where(better, found_size, size)
            missed, length = missed & ~better, 0.5 * length
            if not bool(missed.any()):
                break
    mu, s = _halves(v, width)
    off = largest(_newton(program, theta, (y, lam, v), residual, width)[2] / (mu + s))  # |dμ| / μ = |ds| / s
    lost = int((~((size <= REACHED**0.5) & (off <= OFF))).sum())
    if lost:
        raise DifferentiationError(
            f"The central path of width {width} was not reached at {lost} batch element(s): choose a larger width if this "
            "one is close to rounding, and a smaller one otherwise."
        )
    return State(y, lam, mu, torch.zeros_like(y))


def _newton(
    program: NonlinearProgram, theta: Theta, point: tuple[Tensor, Tensor, Tensor], residual: tuple[Tensor, ...], width: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The step ``(dy, dlam, dv)``."""
    (y, lam, v), (top, h, g) = point, residual
    mu, s = _halves(v, width)
    kkt = _PathKKT(program, theta, State(y, lam, mu, torch.zeros_like(y)), width, torch.ones_like(y[:, 0], dtype=torch.bool))
    dy, dlam, omega, _ = (t.squeeze(-1) for t in kkt.solve(*(-r.unsqueeze(-1) for r in (top, h, g, torch.zeros_like(y)))))
    push = (program.first(y, theta).Jg @ dy.unsqueeze(-1)).squeeze(-1) + g
    # dv from the better conditioned of the two equations it satisfies: μ'(v) dv = ω, s'(v) dv = -(Jg dy + g + s)
    return dy, dlam, torch.where(mu > s, omega * (mu + s) / mu, push * (mu + s) / s)


def _residual(
    program: NonlinearProgram, theta: Theta, y: Tensor, lam: Tensor, v: Tensor, width: float
) -> tuple[tuple[Tensor, ...], Tensor]:
    mu, s = _halves(v, width)
    first = program.first(y, theta)
    pull = (lam.unsqueeze(-2) @ first.Jh + mu.unsqueeze(-2) @ first.Jg).squeeze(-2)
    parts = (first.gradient + pull, first.h, first.g + s)
    scale = 1 + largest(first.gradient)
    size = torch.stack([largest(p) for p in parts]).nan_to_num(nan=torch.inf)
    return parts, torch.maximum(size[0] / scale, size[1:].amax(0))

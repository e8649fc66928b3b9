"""A batched primal-dual interior-point method for nonlinear programs, in plain torch.

The method is that of IPOPT (Wächter & Biegler, Mathematical Programming 106, 2006): Newton's method on the optimality
conditions of a sequence of log-barrier problems, a filter line search with second-order corrections, inertia correction,
and a feasibility restoration.  Every decision is made for each element by itself: barrier parameter, regularisation, step
lengths, filter, status.  Elements that are done leave the batch.  An iteration costs one evaluation of first derivatives
and one of the Hessian.

Equality-constrained and unconstrained programs are the special cases without rows of c or h.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.checks import require_positive_options
from ddn_cvx.linalg.elements import choose, put, take
from ddn_cvx.linalg.saddle import CondensedFactor
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solution import Status
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.deadline import expired
from ddn_cvx.solvers.nonlinear_barrier import BarrierForm, Derivatives
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint, NonlinearSolver
from ddn_cvx.solvers.nonlinear_filter import Errors, Filter, Iterate, errors, measures, search
from ddn_cvx.solvers.nonlinear_newton import NewtonSystem
from ddn_cvx.solvers.nonlinear_polish import leave_saddle, polish
from ddn_cvx.solvers.nonlinear_restoration import feasible_points, restore
from ddn_cvx.solvers.starts import scattered

_READY = 10.0  # the barrier problem is solved well enough at this many times mu
_SLOWEST, _FASTEST = 0.1, 1.8  # mu falls to the smaller of 0.1 mu and mu ** 1.8
_LARGEST_MULTIPLIER = 1e3  # initial multipliers beyond this are set to zero
_STIFF = 1e-3  # barrier parameters from which on steps are refined
_SHORT, _CRAWLED = 0.05, 6  # this many steps in a row of less than this part of Newton's are as bad as none
_RESTORATIONS = 8  # after this many an element gives up
_STARTS, _TRIES = 8, 3  # from which a feasible point is looked for, and this method started again, at most
_STALLED = 15  # iterations without progress after which a point that is good enough is kept
_FAR, _LOW = 1e10, 1e4  # an iterate this far away, with an objective this far below zero, counts as diverging
_SMALL_SCALE = 2.0**-8  # scales of the start below this may hide errors
_FORCED_SHIFT = 1e-3  # least regularisation after a search has failed where the point is feasible


class _Record(NamedTuple):
    """What is known of each element, ``(B, ...)``."""

    row: Tensor
    best: Tensor
    y: Tensor
    lam: Tensor
    z: Tensor
    status: Tensor
    iterations: Tensor
    waited: Tensor
    trouble: Tensor
    start: Tensor
    value: Tensor


class _State(NamedTuple):
    """The last and the least allowed regularisation, and how many short steps were made in a row, ``(B,)``."""

    shift: Tensor
    least: Tensor
    crawled: Tensor


@register
@dataclass(frozen=True)
class NonlinearInteriorPoint(NonlinearSolver):
    """The batched interior-point method for nonlinear programs in torch, with a filter line search, inertia correction
    and restoration (Wächter & Biegler, Math. Programming 106, 2006). Tolerances apply to the scaled functions.

    An element without a feasible point near the start is started again from feasible points that are found from eight
    random starts, the same in every call. INFEASIBLE says that there were none, which is no proof without convexity.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> node = ddn.TorchProblem(
    ...     variable=(2,), objective=lambda y, x: ((y - x) ** 2).sum(), equality=lambda y, x: (y * y).sum() - 1
    ... )
    >>> layer = ddn.DeclarativeLayer(node, solver=ddn.NonlinearInteriorPoint(tolerance=1e-9))
    >>> layer(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    name: ClassVar[str] = "nonlinear_interior_point"
    minds_time: ClassVar[bool] = True

    max_iterations: int = 200
    """Newton steps after which an element gives up (default 200)."""
    tolerance: float = 1e-10
    """Error of the optimality conditions at which an element stops (default 1e-10)."""
    solved_tolerance: float = 1e-8
    """Largest error of a SOLVED element that stopped improving (default 1e-8)."""
    inaccurate_tolerance: float = 1e-5
    """Largest error of an INACCURATE element (default 1e-5)."""
    barrier: float = 0.1
    """Barrier parameter mu at the start (default 0.1)."""
    warm_barrier: float = 1e-3
    """The same for a warm start (default 1e-3)."""

    def __post_init__(self) -> None:
        require_positive_options(self)

    def unsupported(self, program: NonlinearProgram) -> str | None:
        return None if program.n else "it needs at least one variable"

    @torch.no_grad()
    def solve(
        self, program: NonlinearProgram, theta: Theta, start: Tensor, warm: NonlinearPoint | None = None
    ) -> NonlinearPoint:
        """Solve the batch. A warm start is polished first: where the active set is still right, that is all it takes."""
        theta, start = theta.detach(), (start if warm is None else warm.y).detach()
        if not len(start):
            return NonlinearPoint.blank(program, start)
        return _Run(self, program, theta, start, warm).result()


class _Run:
    """One solve of a batch."""

    def __init__(
        self,
        options: NonlinearInteriorPoint,
        program: NonlinearProgram,
        theta: Theta,
        start: Tensor,
        warm: NonlinearPoint | None,
        may_restart: bool = True,
    ):
        self.options, self.program, self.may_restart = options, program, may_restart
        eps = torch.finfo(start.dtype).eps
        self.tolerance = max(options.tolerance, 100 * eps)
        self.solved = max(options.solved_tolerance, 1e4 * eps)
        self.inaccurate = max(options.inaccurate_tolerance, 1e5 * eps)
        self.least_barrier = self.tolerance / 10
        self.whole = form = BarrierForm(program, theta, start)
        at = form.first
        y, batch = form.start, len(start)
        s = (-at.c).clamp(min=1e-2)
        barrier = options.barrier if warm is None else options.warm_barrier
        mu = torch.full_like(y[:, :1], barrier if form.rows else 0.0)
        z = (mu / s).expand_as(s)
        if warm is None:
            lam = _least_squares_multipliers(form, at, z)
        else:
            lam, z_warm = form.scaled_multipliers(warm.lam, warm.mu, warm.z)
            s = torch.maximum(s, mu)
            z = torch.maximum(z_warm, mu / s)
        finite = _finite(at)
        status = torch.full_like(at.f, int(Status.ITERATION_LIMIT), dtype=torch.int64)
        status = status.masked_fill(~finite, int(Status.NUMERICAL_ERROR)).masked_fill(form.crossed, int(Status.INFEASIBLE))
        zero = torch.zeros_like(status)
        row = torch.arange(batch, device=y.device)
        self.record = _Record(row, torch.full_like(at.f, torch.inf), y, lam, z, status, zero, zero, zero, y, at.f)
        self.iterate = Iterate(y, s, lam, z, mu)
        if warm is not None:
            self._try(lam, z_warm)
        rows = torch.nonzero(self.record.status == int(Status.ITERATION_LIMIT)).flatten()
        self._iterate(form.take(rows), take(self.iterate, rows), take(at, rows), take(self.record, rows))

    def _try(self, lam: Tensor, z: Tensor) -> None:
        """Polish the warm start, and settle the elements for which that suffices."""
        good = self.record.status == int(Status.ITERATION_LIMIT)
        y, lam, z, error = polish(self.whole, self.whole.start, lam, z, z > 0, good, steps=3)
        done = good & (error <= self.tolerance)
        status = torch.full_like(self.record.status, int(Status.SOLVED))
        settled = self.record._replace(y=y, lam=lam, z=z, best=error, status=status)
        self.record = choose(done, settled, self.record)

    def _iterate(self, form: BarrierForm, iterate: Iterate, at: Derivatives, record: _Record) -> None:
        last, zero = self.options.max_iterations, at.f.new_zeros(())
        state = _State(torch.zeros_like(at.f), torch.zeros_like(at.f), torch.zeros_like(record.status))
        filter_ = Filter.empty(measures(at, iterate.s, iterate.mu)[0])
        for iteration in range(last + 1):
            error = errors(form, at, iterate)
            record = self._judge(record, iterate, at, error.at(zero), state.shift > 0, iteration)
            live = record.status == int(Status.ITERATION_LIMIT)
            left = torch.nonzero(live).flatten()
            over = iteration == last or expired()
            if not len(left) or over or 4 * len(left) <= 3 * len(live):
                self.record = put(self.record, record.row, record)
                if not len(left) or over:
                    break
                form, iterate, at, record = form.take(left), take(iterate, left), take(at, left), take(record, left)
                state, filter_, error = take(state, left), take(filter_, left), take(error, left)
            mu = self._lower(iterate.mu, error)
            filter_ = filter_.clear((mu < iterate.mu).squeeze(-1))
            iterate = iterate._replace(mu=mu)
            H = form.hessian(iterate.y, iterate.lam, iterate.z)
            system = NewtonSystem(form, at, H, iterate.s, iterate.z, state.shift, state.least)
            step = system.step(iterate.lam, mu, at.h, at.c + iterate.s, refine=mu < _STIFF)
            fraction = (1 - mu).clamp(min=0.99)
            before = iterate.y
            iterate, at, filter_, failed = search(form, system, iterate, at, step, fraction, filter_, error.at(mu))
            short = (iterate.y - before).norm(dim=-1) < _SHORT * step.y.norm(dim=-1)
            crawled = torch.where(short, state.crawled + 1, 0)
            failed = failed | (crawled > _CRAWLED)
            shift = torch.where(system.shift > 0, system.shift, 0.0)
            least = torch.where(failed, (10 * system.shift).clamp(min=_FORCED_SHIFT), 0.0)
            state = _State(shift, least, crawled.masked_fill(failed, 0))
            if bool(failed.any()):
                rows = torch.nonzero(failed).flatten()
                changed = self._rescue(form.take(rows), take(iterate, rows), take(at, rows), take(record, rows))
                iterate, at, record = (
                    put(iterate, rows, changed[0]),
                    put(at, rows, changed[1]),
                    put(record, rows, changed[2]),
                )
                filter_ = filter_.clear(failed)

    def _judge(
        self, record: _Record, iterate: Iterate, at: Derivatives, error: Tensor, shifted: Tensor, iteration: int
    ) -> _Record:
        """Keep the best points, and end the elements that are solved, stuck or lost.

        Near a saddle point, where the matrix had to be ``shifted``, a small error is no reason to stay.
        """
        live = record.status == int(Status.ITERATION_LIMIT)
        better = live & (error < record.best)
        progress = error < 0.9 * record.best
        column = better.unsqueeze(-1)
        record = record._replace(
            best=torch.where(better, error, record.best),
            y=torch.where(column, iterate.y, record.y),
            lam=torch.where(column, iterate.lam, record.lam),
            z=torch.where(column, iterate.z, record.z),
        )
        saddle = shifted & (error > self.solved)
        waited = torch.where(progress | saddle | (error > self.inaccurate), 0, record.waited + 1)
        stuck = (waited > _STALLED) & (record.best <= self.inaccurate)
        far = iterate.y.abs().amax(-1) > _FAR * record.start.abs().amax(-1).clamp(min=1.0)
        low = at.f < -_LOW * record.value.abs().clamp(min=1.0)
        status = record.status.masked_fill(live & far & low, int(Status.UNBOUNDED))
        status = torch.where(live & stuck, self._grade(status, record.best), status)
        status = status.masked_fill(live & (record.best <= self.tolerance), int(Status.SOLVED))
        return record._replace(status=status, waited=waited, iterations=torch.where(live, iteration, record.iterations))

    def _lower(self, mu: Tensor, error: Errors) -> Tensor:
        """The next barrier parameter; several reductions at once where the error allows."""
        if not error.products.shape[1]:
            return mu
        for _ in range(2):
            next_mu = torch.minimum(_SLOWEST * mu, mu**_FASTEST).clamp(min=self.least_barrier)
            mu = torch.where(error.at(mu).unsqueeze(-1) <= _READY * mu, next_mu, mu)
        return mu

    def _rescue(
        self, form: BarrierForm, iterate: Iterate, at: Derivatives, record: _Record
    ) -> tuple[Iterate, Derivatives, _Record]:
        """Restore feasibility where it is lacking; elsewhere the next step is regularised more. Both a few times only."""
        lacking = errors(form, at, iterate).primal > self.solved
        found = restore(form, iterate.y, reduction=0.1)
        y = torch.where(lacking.unsqueeze(-1), found.y, iterate.y)
        at = form.derivatives(y)
        s = torch.maximum(-at.c, (1e-2 * iterate.mu).clamp(max=1e-4))
        z = (iterate.mu / s).clamp(max=1e3)
        lam = _least_squares_multipliers(form, at, z)
        restored = Iterate(y, s, lam, z, iterate.mu)
        iterate = choose(lacking, restored, iterate)
        trouble = record.trouble + 1
        status = record.status.masked_fill(lacking & found.infeasible, int(Status.INFEASIBLE))
        live = status == int(Status.ITERATION_LIMIT)
        lost = live & ((trouble > _RESTORATIONS) | ~_finite(at))
        lost_status = self._grade(torch.full_like(status, int(Status.NUMERICAL_ERROR)), record.best)
        return iterate, at, record._replace(status=torch.where(lost, lost_status, status), trouble=trouble)

    def _grade(self, status: Tensor, error: Tensor) -> Tensor:
        """``status``, or what the error allows to say instead."""
        status = torch.where(error <= self.inaccurate, int(Status.INACCURATE), status)
        return torch.where(error <= self.solved, int(Status.SOLVED), status)

    def result(self) -> NonlinearPoint:
        """Polish, classify what is left, undo the scaling."""
        form, record = self.whole, self.record
        status, y, lam, z = record.status, record.y, record.lam, record.z
        status = torch.where(status == int(Status.ITERATION_LIMIT), self._grade(status, record.best), status)
        open_ = (status == int(Status.ITERATION_LIMIT)) | (status == int(Status.NUMERICAL_ERROR))
        unsettled = torch.nonzero(open_).flatten()
        if len(unsettled):
            some = form.take(unsettled)
            found = restore(some, y[unsettled], reduction=0.0)
            code = torch.where(found.infeasible, int(Status.INFEASIBLE), status[unsettled])
            status = status.index_copy(0, unsettled, code)
        good = status <= int(Status.INACCURATE)
        y, lam, z, error = polish(form, y, lam, z, z > 0, good, steps=1)
        status = torch.where(good & (error <= self.tolerance), int(Status.SOLVED), status)
        point = NonlinearPoint(y, *form.multipliers(y, lam, z), status, record.iterations)
        if not self.may_restart:
            return point
        rows, moved = leave_saddle(form, y, lam, z, status == int(Status.SOLVED))
        if len(rows):
            point = self._restart(point, rows, moved)
        if form.scaled:
            point = self._rescale(point)
        return self._elsewhere(point)

    def _elsewhere(self, point: NonlinearPoint) -> NonlinearPoint:
        """Other starts where the method broke down, or no point nearby is feasible, which proves nothing of others."""
        lost = (point.status == int(Status.INFEASIBLE)) | (point.status == int(Status.NUMERICAL_ERROR))
        rows = torch.nonzero(lost & ~self.whole.crossed).flatten()
        if not len(rows) or not self.program.p + self.program.m:
            return point
        form, start = self.whole.take(rows), self.whole.start[rows]
        spread = start.abs().amax(-1, keepdim=True).clamp(min=1.0)
        starts = scattered(start, *self.program.bounds(form.theta, start), _STARTS, spread)
        found, feasible = feasible_points(form, starts, _TRIES)
        aside, which = found.flatten(0, 1), torch.nonzero(feasible.flatten()).flatten()
        if not len(which):
            return point
        theta = form.theta.tile(_TRIES).take(which)
        again = _Run(self.options, self.program, theta, aside[which], None, may_restart=False).result()
        every = NonlinearPoint.blank(self.program, aside).put(which, again)
        first = every.status.view_as(feasible).argmin(0)
        best = every.take(first * len(rows) + torch.arange(len(rows), device=rows.device))
        return self._keep(point, rows, best, best.status <= int(Status.INACCURATE))

    def _restart(self, point: NonlinearPoint, rows: Tensor, start: Tensor) -> NonlinearPoint:
        """Solve again from beside a saddle point, and keep what is better."""
        program, some = self.program, self.whole.theta.take(rows)
        again = _Run(self.options, program, some, start, None, may_restart=False).result()
        lower = program.values(again.y, some)[0] < program.values(point.y[rows], some)[0]
        return self._keep(point, rows, again, (again.status == int(Status.SOLVED)) & lower)

    def _rescale(self, point: NonlinearPoint) -> NonlinearPoint:
        """Go on, with scales of the solution, where those of the start were so small that they hide errors."""
        form = self.whole
        scales = torch.cat((form.scale_f.unsqueeze(-1), form.scale_h, form.scale_g), 1)
        hidden = (scales.amin(-1) < _SMALL_SCALE) & (point.status <= int(Status.INACCURATE))
        rows = torch.nonzero(hidden).flatten()
        if not len(rows):
            return point
        old = point.take(rows)
        again = _Run(self.options, self.program, form.theta.take(rows), old.y, old, may_restart=False).result()
        return self._keep(point, rows, again, again.status <= int(Status.INACCURATE))

    @staticmethod
    def _keep(point: NonlinearPoint, rows: Tensor, again: NonlinearPoint, where: Tensor) -> NonlinearPoint:
        again = replace(again, iterations=again.iterations + point.iterations[rows])
        keep = torch.nonzero(where).flatten()
        return point.put(rows[keep], again.take(keep))


def _finite(at: Derivatives) -> Tensor:
    return torch.stack([t.flatten(1).sum(1) if t.dim() > 1 else t for t in at]).isfinite().all(0)


def _least_squares_multipliers(form: BarrierForm, at: Derivatives, z: Tensor) -> Tensor:
    """``lam`` of least ``|grad f + Jc'z + Jh'lam|``, zero where that is large."""
    batch, p, n = at.Jh.shape
    if not p:
        return at.h
    slope = at.gradient + form.pull(at.Jg, z)
    identity = torch.eye(n, dtype=at.f.dtype, device=at.f.device).expand(batch, n, n)
    factor = CondensedFactor(identity, at.Jh, torch.full_like(at.h, 1e-10))
    lam = factor.solve(-slope.unsqueeze(-1), torch.zeros_like(at.h).unsqueeze(-1), refinements=0)[1].squeeze(-1)
    usable = (lam.abs().amax(-1) <= _LARGEST_MULTIPLIER) & factor.correct_inertia
    return torch.where(usable.unsqueeze(-1), lam, 0.0)

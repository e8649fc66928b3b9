"""One call of a layer over a nonlinear program: start -> solve -> polish -> check -> report.

Whoever found the point, the solver or the user's own function, it is judged by the conditions of the problem as declared:
feasible, stationary with multipliers of the right signs, curved upwards along the constraints (a saddle point or a maximum
satisfies the first three), and not on the way to an infimum at infinity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ddn_cvx.adjoint.base import Adjoint
from ddn_cvx.adjoint.dispatch import attach
from ddn_cvx.adjoint.kkt_solve import Solved
from ddn_cvx.call_parts import (
    finite_elements,
    gather_beside,
    nan_where_failed,
    outside_inference,
    require_followed,
    without_numbers,
)
from ddn_cvx.declare.cvxpy_nonconvex import NonconvexProblem
from ddn_cvx.declare.torch_problem import TorchProblem
from ddn_cvx.diagnose import condition_numbers
from ddn_cvx.errors import DeclarationError
from ddn_cvx.failure import raise_failures, warn_of
from ddn_cvx.inputs import Batch, match
from ddn_cvx.program.active_kkt import ActiveKKT, Factors, ProductKKT, kkt_matrix, polish, strays, violated
from ddn_cvx.program.base import ParameterSpec
from ddn_cvx.program.nearby import kinked, sinks
from ddn_cvx.program.nonlinear import First, NonlinearProgram, Theta
from ddn_cvx.program.optimality import Active, Judged, State, judge, largest
from ddn_cvx.program.pushed import pushed
from ddn_cvx.program.verification import descends, multipliers
from ddn_cvx.solution import Regularity, Solution, Status
from ddn_cvx.solvers.guard import guarded
from ddn_cvx.solvers.nonlinear_auto import NonlinearAuto
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint, NonlinearSolver

REMOTE = 1e7
"""How much farther from the start than the numbers of the problem an answer may be and not be looked at."""


@dataclass(frozen=True)
class Report:
    """What is known about a batch of solves."""

    solved: Solved
    value: Tensor
    slack: Tensor
    status: Tensor
    iterations: Tensor
    primal: Tensor
    dual: Tensor
    gap: Tensor


@dataclass(frozen=True)
class _Answer:
    """What the user's own solver says."""

    y: Tensor
    status: Tensor


class NonlinearCall:
    """The opaque forward computation (``adjoint.kkt_solve.NonlinearSolve``).

    Parameters
    ----------
    run : NonlinearRun
    batch : Batch
    layout
        How the inputs are nested.
    """

    inexact = None
    program: NonlinearProgram
    factors: Factors

    def __init__(self, run: NonlinearRun, batch: Batch, specs: Sequence[ParameterSpec], layout: Any):
        self.run, self.batch, self.specs, self.layout = run, batch, specs, layout
        self.report: Report | None = None
        self._kinks = self._failures = False
        self._cause: BaseException | None = None

    @property
    def kinks(self) -> bool:
        """Whether some element had a weakly active constraint."""
        return self._kinks

    @property
    def failures(self) -> bool:
        """Whether some element was not solved."""
        return self._failures

    def __call__(self, theta: Theta, batch: int) -> Solved:
        """Solve physical tensors; elements without a solution hold zeros."""
        self.program = self.run.node.program(theta, self.layout)
        self.factors = Factors(self.program)
        reason = None if _own_solver(self.run.node) else self.run.solver.unsupported(self.program)
        if reason is not None:
            raise DeclarationError(f"Solver {self.run.solver.name!r} cannot take this problem: {reason}.")
        device = theta.tensors[0].device if theta.tensors else self.batch.device
        finite = finite_elements(theta, batch, device)
        if isinstance(self.run.node, NonconvexProblem):
            finite = finite & self.run.node.admissible(theta.detach(), batch)
        status = torch.where(finite, int(Status.SOLVED), int(Status.INVALID_DATA))
        todo = torch.nonzero(finite).flatten()
        some = theta if len(todo) == batch else theta.take(todo)
        start = torch.zeros(len(todo), self.program.n, dtype=torch.float64, device=device)
        lower, upper = self.program.bounds(some, start)
        start = self.run.node.start(some, self.layout, start).clamp(lower, upper) if len(todo) else start
        if isinstance(self.run.node, TorchProblem):
            self._require_followed(some, start)
        sensible = (lower <= upper).all(-1)
        verdict = torch.where((lower > upper).any(-1), int(Status.INFEASIBLE), int(Status.INVALID_DATA))
        status = status.index_copy(0, todo, torch.where(sensible, status[todo], verdict))
        if not bool(sensible.all()):
            todo, start = todo[sensible], start[sensible]
            some = theta.take(todo)
        return self._check(theta, some, start, *self._point(some, start), status, todo)

    def _point(self, theta: Theta, start: Tensor) -> tuple[NonlinearPoint, First | None]:
        """What was found from ``start``, and the derivatives there if they are known already."""
        if not len(start):
            return NonlinearPoint.blank(self.program, start), None
        if _own_solver(self.run.node):
            return self._users_point(self.run.node, theta, start)
        point, self._cause = self._solved(theta, start)
        return point, None

    def _solved(self, theta: Theta, start: Tensor) -> tuple[NonlinearPoint, BaseException | None]:
        """What the solver finds from ``start``, and what it raised."""
        solver, program = self.run.solver, self.program

        def solve(rows: Tensor | None) -> NonlinearPoint:
            some = (theta, start) if rows is None else (theta.take(rows), start[rows])
            return solver.solve(program, *some)

        nothing = NonlinearPoint.blank(program, torch.full_like(start, torch.nan))
        return guarded(solve, nothing, solver.name, solver.minds_time, self.run.time_limit)

    def _users_point(self, node: TorchProblem, theta: Theta, start: Tensor) -> tuple[NonlinearPoint, First]:
        """What the user's own solver finds, with multipliers."""

        def answer(rows: Tensor | None) -> _Answer:
            some = (theta, start) if rows is None else (theta.take(rows), start[rows])
            y = node.solve(some[0], self.layout, some[1])
            return _Answer(y, torch.full_like(blank.status, int(Status.SOLVED))[: len(y)])

        codes = torch.full(start.shape[:1], int(Status.NUMERICAL_ERROR), device=start.device)
        blank = _Answer(torch.full_like(start, torch.nan), codes)
        found, self._cause = guarded(answer, blank, "solve", False, self.run.time_limit)
        y = found.y
        usable = torch.isfinite(y).all(-1)
        (_, lam, mu, z), first = multipliers(self.program, theta, torch.where(usable.unsqueeze(-1), y, start), usable)
        status = torch.where(found.status == int(Status.TIME_LIMIT), found.status, int(Status.NUMERICAL_ERROR))
        status = torch.where(usable, int(Status.SOLVED), status)
        return NonlinearPoint(y, lam, mu, z, status, torch.zeros_like(status)), first

    def _check(
        self, theta: Theta, some: Theta, start: Tensor, raw: NonlinearPoint, first: First | None, code: Tensor, todo: Tensor
    ) -> Solved:
        """Polish, judge and report what was found for the elements ``todo``, whose parameters are ``some``; the others
        have a status (``code``) already."""
        program, run, whole = self.program, self.run, len(todo) == len(code)
        state, usable = _usable(raw)
        point = polish(program, some, judge(program, some, state, first=first), usable, run.polish_steps)
        ok = self._satisfied(some, point, usable)
        strong = point.active.strong
        # Before the factorisation, which changes the units of the Hessian.
        sunk = torch.zeros_like(ok) if run.node.stationary else sinks(program, some, point, ok)
        if program.is_dense:
            kkt: ActiveKKT | ProductKKT = ActiveKKT(point.H, point.first.Jh, point.first.Jg, strong, ok, program.visible)
        else:
            kkt = ProductKKT(program, some, point.state, strong, ok)
        ok = ok & ~strays(program, point, kkt, ok)
        claims = (raw.status == int(Status.SOLVED)) | (raw.status == int(Status.INACCURATE))
        verdict = torch.where(usable, int(Status.INACCURATE), int(Status.NUMERICAL_ERROR))
        found = torch.where(ok, int(Status.SOLVED), torch.where(claims, verdict, raw.status))
        found = found.masked_fill(self._no_minimum(some, point, kkt, ok) | (sunk & ok), int(Status.SADDLE_POINT))
        found = found.masked_fill(self._recedes(some, start, point, found), int(Status.UNBOUNDED))
        ok = found == int(Status.SOLVED)
        status = code.index_copy(0, todo, found)
        state = State(*(torch.where(ok.unsqueeze(-1), t, 0.0) for t in point.state))
        active = Active(*(torch.where(ok.unsqueeze(-1), t, 0.0) for t in point.active))

        def spread(t: Tensor) -> Tensor:
            return t if whole else t.new_zeros(len(status), *t.shape[1:]).index_copy(0, todo, t)

        spread_state = State(*map(spread, state))
        solved = Solved(spread_state, Active(*map(spread, active)), spread(ok), spread_state)
        if whole and bool(ok.all()):
            self.factors.keep(theta, solved.state, strong, solved.ok, kkt)
        self._kinks |= bool(active.weak.any())
        self._failures |= not (whole and bool(ok.all()))
        numbers = (spread(t) for t in (raw.iterations, point.primal, point.dual, point.gap))
        self.report = Report(solved, spread(run.node.sign * point.first.f), spread(-point.first.g), status, *numbers)
        if run.on_failure == "raise":
            raise_failures(status, self.batch.shape, self.specs, self.batch.values, self._cause)
        warn_of(self._cause)
        return solved

    def _satisfied(self, theta: Theta, point: Judged, usable: Tensor) -> Tensor:
        """Where the first-order conditions of the problem as declared hold, ``(B,)`` bool."""
        program, node, tolerance = self.program, self.run.node, self.run.tolerance
        ok = usable & (point.worst <= tolerance) & torch.isfinite(point.first.f)
        ok = ok & ~violated(program, theta, point, ok, tolerance) & program.credible(point.state.y, theta, point.first)
        ok = ok & ~kinked(program, theta, point, ok)
        if isinstance(node, NonconvexProblem):
            ok = ok & (node.violation(point.state.y, point.first.f, theta, tolerance) <= tolerance)
        return ok

    def _no_minimum(self, theta: Theta, point: Judged, kkt: ActiveKKT | ProductKKT, ok: Tensor) -> Tensor:
        """Elements ``ok`` that can go down all the same, ``(B,)`` bool."""
        program, node = self.program, self.run.node
        wrong = torch.zeros_like(ok)
        if node.stationary:
            return wrong
        doubtful = ok & (~kkt.minimum | kkt.flat) if program.is_dense else ok & _own_solver(node)
        rows = torch.nonzero(doubtful).flatten()
        if len(rows):
            wrong = wrong.index_put((rows,), descends(program, theta.take(rows), point.take(rows)))
        if isinstance(node, NonconvexProblem):
            wrong = wrong | (ok & (node.outside(point.state, theta, ok) > self.run.tolerance))
        return wrong

    def _recedes(self, theta: Theta, start: Tensor, point: Judged, found: Tensor) -> Tensor:
        """Elements SOLVED very far from ``start`` that, solved again from twice as far, end elsewhere and no higher: they
        only tend to their infimum, ``(B,)`` bool."""
        y, program = point.state.y, self.program
        reach = 1.0 + largest(start) + theta.largest(start[:, 0])
        gone = (found == int(Status.SOLVED)) & (largest(y) > REMOTE * reach)
        rows = torch.nonzero(gone).flatten()
        if not len(rows) or _own_solver(self.run.node):
            return torch.zeros_like(gone)
        some, home = theta.take(rows), y[rows]
        lower, upper = program.bounds(some, home)
        raw, _ = self._solved(some, (2 * home - start[rows]).clamp(lower, upper))
        state, usable = _usable(raw)
        again = polish(program, some, judge(program, some, state), usable, self.run.polish_steps)
        elsewhere = largest(again.state.y - home) > 0.1 * largest(home)
        f = point.first.f[rows]
        no_higher = again.first.f <= f + self.run.tolerance * (1.0 + f.abs())
        there = usable & (again.worst <= self.run.tolerance) & elsewhere & no_higher
        return torch.zeros_like(gone).index_put((rows,), there)

    def perturbed(self, theta: Theta, push: Tensor, start: State) -> tuple[State, Tensor]:
        """The solution near ``start`` with ``push . y`` added to the objective, and which elements have one."""
        program, wider = pushed(self.program, theta, push)
        solver = self.run.solver if self.run.solver.unsupported(program) is None else NonlinearAuto()
        zero = torch.zeros(len(push), dtype=torch.int64, device=push.device)
        state, usable = _usable(solver.solve(program, wider, start.y, NonlinearPoint(*start, zero, zero)))
        point = polish(program, wider, judge(program, wider, state), usable, self.run.polish_steps)
        return point.state, usable & (point.worst <= self.run.tolerance)

    def regularity(self, theta: Theta) -> Tensor:
        """``Regularity`` flags, ``(B,)``."""
        assert self.report is not None
        state, active, ok, _ = self.report.solved
        flags = torch.zeros_like(self.report.status)
        null = self.factors.at(theta.detach(), state, active.strong, ok).nearly_singular
        flags = flags + null.primal * int(Regularity.SINGULAR_HESSIAN) + null.dual * int(Regularity.RANK_DEFICIENT)
        return torch.where(ok, flags + active.weak * int(Regularity.WEAKLY_ACTIVE), 0)

    def _require_followed(self, theta: Theta, y: Tensor) -> None:
        """Look at what the functions depend on."""
        with torch.enable_grad():
            values = self.program.values(y, theta)
            results = (*values, *self.program.bounds(theta, y))
        self.program.tape(y, theta, values)
        require_followed(results, "The functions of the problem use")


@dataclass(frozen=True)
class NonlinearRun:
    """How a layer over a nonlinear problem computes: all that does not change between calls."""

    node: TorchProblem | NonconvexProblem
    solver: NonlinearSolver
    adjoint: Adjoint
    on_failure: str
    tolerance: float
    polish_steps: int
    time_limit: float | None = None

    def outputs(self, args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Tensor]:
        """The outputs ``(*batch, *shape)`` by name."""
        solved, _, batch, theta = self._run(args, named)
        return {name: batch.restore(value) for name, value in self._recovered(solved, theta).items()}

    def _recovered(self, solved: Solved, theta: Theta) -> dict[str, Tensor]:
        if isinstance(self.node, TorchProblem):
            found = self.node.unpack(solved.state.y)
        else:
            found = self.node.recover(solved.state, theta, solved.ok)
        return {name: nan_where_failed(solved.ok, value) for name, value in found.items()}

    def solution(self, args: Sequence[Any], named: Mapping[str, Any]) -> Solution:
        """Everything that is known about the answer."""
        solved, call, batch, theta = self._run(args, named)
        report = call.report if math.prod(batch.shape) else _no_report(solved)
        if report is None or len(report.status) != math.prod(batch.shape):
            raise without_numbers()
        state, _, ok, _ = report.solved

        def masked(t: Tensor) -> Tensor:
            return batch.restore(nan_where_failed(ok, t.detach()))

        def integers(t: Tensor) -> Tensor:
            return t.reshape(batch.shape)

        return Solution(
            outputs=tuple(batch.restore(t) for t in self._recovered(solved, theta).values()),
            value=masked(report.value),
            status=integers(report.status),
            iterations=integers(report.iterations),
            primal_residual=batch.restore(report.primal),
            dual_residual=batch.restore(report.dual),
            gap=batch.restore(report.gap),
            regularity=integers(call.regularity(theta) if len(ok) else report.status),
            x=masked(state.y),
            s=masked(report.slack),
            y=masked(torch.cat((state.lam, state.mu, state.z), 1)),
            primal={name: masked(value) for name, value in self.node.unpack(state.y).items()},
            dual=tuple(tuple(masked(d) for d in group) for group in self._duals(state, theta, ok)),
        )

    def conditioning(self, args: Sequence[Any], named: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Which inequalities and bounds are active ``(B, m + n)``, and the condition number of the KKT matrix ``(B,)``."""
        _, call, _, theta = self._run(args, named)
        assert call.report is not None
        state, active, ok, _ = call.report.solved
        rows = torch.cat(active.all, 1) != 0
        if not call.program.is_dense:
            return rows, torch.full_like(call.report.value, torch.nan)
        return rows, condition_numbers(kkt_matrix(judge(call.program, theta.detach(), state), active.all), ok)

    def _duals(self, state: State, theta: Theta, ok: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        if isinstance(self.node, TorchProblem):
            return (state.lam,), (state.mu,), (state.z,)
        with torch.no_grad():
            return self.node.duals(state, theta, ok)

    def _run(self, args: Sequence[Any], named: Mapping[str, Any]) -> tuple[Solved, NonlinearCall, Batch, Theta]:
        if isinstance(self.node, TorchProblem):
            specs, tensors, layout = self.node.arguments.match(args, named)
        else:
            specs, tensors, layout = list(self.node.parameters), match(self.node.parameters, args, named), ()
        return outside_inference(lambda tensors: self._solve(tensors, specs, layout), tensors)

    def _solve(
        self, tensors: Sequence[Tensor], specs: Sequence[ParameterSpec], layout: Any
    ) -> tuple[Solved, NonlinearCall, Batch, Theta]:
        weights = self.node.captured.values() if isinstance(self.node, TorchProblem) else []
        batch = gather_beside(weights, specs, tensors)
        count = math.prod(batch.shape)
        theta = self.node.theta(batch.values, batch.device)
        call = NonlinearCall(self, batch, specs, layout)
        if not count:
            return _nothing(self.node, theta), call, batch, theta
        return attach(self.adjoint, call, theta, count), call, batch, theta


def _usable(raw: NonlinearPoint) -> tuple[State, Tensor]:
    """The point, zero where it is not finite, and where it is."""
    vectors = (raw.y, raw.lam, raw.mu, raw.z)
    usable = torch.isfinite(torch.cat(vectors, 1)).all(-1)
    return State(*(torch.where(usable.unsqueeze(-1), v, 0.0) for v in vectors)), usable


def _own_solver(node: TorchProblem | NonconvexProblem) -> TypeGuard[TorchProblem]:
    """Whether the user gave one."""
    return isinstance(node, TorchProblem) and "solve" in node.functions


def _nothing(node: TorchProblem | NonconvexProblem, theta: Theta) -> Solved:
    """The answer to an empty batch; what it depends on gets a gradient of zero."""
    parts = [0.0 * t.sum() for t in theta.tensors]
    device = theta.tensors[0].device if parts else None
    # A problem in torch functions shows how many constraints it has only once they are called.
    sizes = (node.n, 0, 0) if isinstance(node, TorchProblem) else node.sizes
    y, lam, mu = (torch.zeros(0, k, dtype=torch.float64, device=device) + sum(parts) for k in sizes)
    state = State(y, lam, mu, y)
    return Solved(state, Active(mu.detach(), y.detach()), torch.zeros(0, dtype=torch.bool, device=device), state)


def _no_report(solved: Solved) -> Report:
    state = State(*(t.detach() for t in solved.state))
    none = state.y[:, 0]
    codes = none.to(torch.int64)
    return Report(Solved(state, solved.active, solved.ok, state), none, state.mu, codes, codes, none, none, none)

"""One call of a layer between ``bind`` and ``recover``: solve, polish, check, and remember what happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.diagnose import condition_numbers
from ddn_cvx.failure import raise_failures, warn_of
from ddn_cvx.inputs import Batch
from ddn_cvx.kernels import spectrum
from ddn_cvx.kernels.jit import Task, sweep
from ddn_cvx.kernels.lanes import LANES
from ddn_cvx.program.base import ConvexNode
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.conic_sizes import sizes
from ddn_cvx.program.factor import KKT, Factors
from ddn_cvx.program.instance import Instance, Measurement, Point, Residuals, choose
from ddn_cvx.program.substituted import Substituted
from ddn_cvx.solution import Regularity, Status
from ddn_cvx.solvers.auto import Auto
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace, solve_guarded
from ddn_cvx.solvers.compiled import Compiled, Prepared
from ddn_cvx.solvers.polish import GOAL, polish

Array = NDArray[np.float64]
LOOSE = 1e-4
"""Newton step at a solution, relative to it, from which on the solution is not determined to first order."""
BLURRED = 1e-8
"""What is left of complementarity, relative to the dual, from which on it is open which constraints are active."""
TOUCHING = 1e-9
"""Slack at which an inequality counts as active in a diagnosis."""


class Report(NamedTuple):
    """What is known about a batch of solves; vectors of elements without a solution are not meaningful."""

    x: Tensor
    y: Tensor
    s: Tensor
    value: Tensor
    status: Tensor
    iterations: Tensor
    residuals: Residuals
    values: Sequence[Tensor]
    """The parameters that were solved for."""
    data: ConicData
    """The numbers of the programs."""
    point: tuple[Tensor, Tensor, Tensor, Tensor]
    """``(P, A, v, ok)`` for the factor."""
    equations: tuple[Tensor, Tensor]
    """What is left of the two equations there, ``(B, n)`` and ``(B, m)``."""

    @property
    def ok(self) -> Tensor:
        """Which elements are solved, ``(B,)`` bool."""
        return self.point[3]


class _Attempt(NamedTuple):
    """What a solver has found for a batch of clean numbers."""

    instance: Instance
    raw: RawSolution
    point: Point
    finite: Tensor
    """Which elements are to be solved, ``(B,)`` bool."""
    inspected: Tensor | None
    """``ConvexNode.inspect`` there, as columns (B, 2), if it is known."""
    cause: BaseException | None
    """What the solver raised."""


class _Swept(NamedTuple):
    """What one sweep of the kernels has found."""

    prepared: Prepared
    measured: Measurement
    arrays: tuple[Array, Array, Array, Array]
    """x, v, y and s."""
    found: Array | None
    """``ConvexNode.inspect`` there, as columns (B, 2), if that has a kernel."""

    def is_finished(self, tolerance: float) -> bool:
        """Whether there is nothing to gain by polishing, and nothing wrong."""
        if self.found is None:
            return False
        # The largest of numbers of which one is NaN is NaN, and not below anything.
        worst, measures = self.found.max(0)[1], self.measured.measures.max(0)
        return bool(measures[3] <= GOAL and measures[4] <= tolerance and worst <= tolerance)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """x, v, y and s."""
        return tuple(map(torch.from_numpy, self.arrays))

    @property
    def point(self) -> Point:
        """The same with the optimality conditions there."""
        return self.measured.point(*self.tensors)

    @property
    def inspected(self) -> Tensor | None:
        """Objective and violation of the problem as declared, ``(B, 2)``."""
        return None if self.found is None else torch.from_numpy(self.found)

    def report(self, tensors: tuple[Tensor, ...], values: Sequence[Tensor], data: ConicData, finite: Tensor) -> Report:
        """Of a batch that is finished."""
        x, v, y, s = tensors
        raw, measured, inspected = self.prepared.raw, self.measured.point(x, v, y, s), self.inspected
        assert inspected is not None
        left, point = (measured.top, measured.low), (data.P, data.A, v, finite)
        return Report(x, y, s, inspected[:, 0], raw.status, raw.iterations, measured.residuals, values, data, point, left)


class Call:
    """The opaque forward computation of one layer call (``adjoint.base.Solve``)."""

    def __init__(
        self,
        node: ConvexNode,
        solver: Solver,
        workspace: Workspace,
        batch: Batch,
        on_failure: str,
        tolerance: float,
        polish_steps: int,
        time_limit: float | None = None,
    ):
        self.node, self.solver, self.workspace, self.batch = node, solver, workspace, batch
        self.on_failure, self.tolerance, self.polish_steps = on_failure, tolerance, polish_steps
        self.time_limit = time_limit
        self.program: ConicProgram = node.program
        self.factors = Factors(node.program)
        self.complete = False
        """Whether all elements are solved."""
        self._report: Callable[[], Report] | None = None

    @cached_property
    def report(self) -> Report | None:
        """What happened; None before, which under a transform of ``torch.func`` is always."""
        return None if self._report is None else self._report()

    def __call__(self, data: ConicData, *extra: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solve physical tensors; ``extra`` is ``(finite, parameters, admissible, *values)``."""
        finite, parameters, admissible, *values = extra
        finite = finite & admissible
        if self.node.curvature_varies:
            finite = finite & self.program.is_convex(_keep(finite, data, 0.0))
        clean = asked = data
        if not bool(finite.all()):
            if self.on_failure == "raise":
                status = torch.where(finite, int(Status.SOLVED), int(Status.INVALID_DATA))
                raise_failures(status, self.batch.shape, self.node.parameters, self.batch.values)
            clean, asked = _keep(finite, data, 0.0), _keep(finite, data, torch.nan)
        instance = Instance(self.program, clean)
        raw, cause = RawSolution.empty(self.program, 0, data.q), None
        if finite.shape[0]:
            raw, cause = solve_guarded(self.solver, self.program, asked, self.workspace, self.time_limit)
        attempt = _Attempt(instance, raw, instance.at(raw.x, raw.y - raw.s), finite, None, cause)
        return self._conclude(data, attempt, parameters, values)

    def from_parameters(self, u: Array, *extra: Tensor) -> tuple[ConicData, tuple[Tensor, Tensor, Tensor]]:
        """The data for parameter vectors u (B, k), and what ``__call__`` gives for them; ``extra`` is
        ``(admissible, *values)``.

        Where the solver is a compiled kernel there is one sweep of kernels from u to the checks. What they say of elements
        that should not have been solved in the first place is not used: then all is done step by step.
        """
        admissible, *values = extra
        substituted = self._substituted(u)
        data, swept = substituted.data, self._sweep(substituted, u)
        finite = torch.from_numpy(substituted.finite)
        if swept is None or not self._is_posed(data, substituted.finite, admissible):
            return data, self(data, finite, torch.from_numpy(u), *extra)
        if not swept.is_finished(self.tolerance):
            instance = Instance(self.program, data)
            if self.program.curved is not None and instance.units.are_small:  # this solver has to be told
                return data, self(data, finite, torch.from_numpy(u), *extra)
            attempt = _Attempt(instance, swept.prepared.raw, swept.point, finite, swept.inspected, None)
            return data, self._conclude(data, attempt, torch.from_numpy(u), values)
        x, v, _, _ = tensors = swept.tensors
        self.complete = True
        self._report = partial(swept.report, tensors, values, data, finite)
        return data, (x, v, finite)

    def _substituted(self, u: Array) -> Substituted:
        binding, structure = self.node.compiled, self.program.structure
        assert binding is not None and structure is not None
        return Substituted.of(binding, structure, u)

    def _is_posed(self, data: ConicData, finite: NDArray[np.bool_], admissible: Tensor) -> bool:
        """Whether every element is to be solved."""
        if not finite.all() or (self.node.has_conditions and not bool(admissible.all())):
            return False
        return not self.node.curvature_varies or bool(self.program.is_convex(data).all())

    def _sweep(self, substituted: Substituted, u: Array) -> _Swept | None:
        """Data, solution, optimality conditions and checks; None, with the data alone, if the solver is none of the kernels
        or an element is not solved."""
        program, plan, batch, solver = self.program, self.node.plan, len(u), self.solver
        if isinstance(solver, Auto):
            solver = solver.choose(program, self.workspace, "cpu")
        if not batch or self.time_limit is not None or not isinstance(solver, Compiled):  # a sweep has no clock
            sweep(batch, [substituted.task])
            return None
        data, curved = substituted.arrays, program.curved
        prepared = solver.prepare(program, data)
        v, y, s = (np.empty((batch, program.m)) for _ in range(3))
        point, answer = (prepared.x, v, y, s), (prepared.y, prepared.s)
        checks, found = [], None
        if curved is not None:
            checks.append(Task(spectrum.split, 100 * program.m, (curved, *answer, v, y, s), LANES))
        measured = Measurement.of(program.structure, data, point, curved is None, answer if curved is None else None)
        checks.append(measured.task)
        if plan is not None:
            found = np.empty((batch, 2))
            checks.append(plan.task(u, prepared.x, measured.measures, found, self.tolerance))
        sweep(batch, [substituted.task, *prepared.tasks, *checks], prepared.threads)
        if not prepared.is_complete:
            solver.complete(program, data, prepared)
            if prepared.status.any():
                return None
            sweep(batch, checks, prepared.threads)
        return _Swept(prepared, measured, point, found)

    def _conclude(
        self, data: ConicData, attempt: _Attempt, parameters: Tensor, values: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Polish and check what the solver has found."""
        instance, raw, first, finite, inspected, cause = attempt
        point, factor, usable = self._improve(instance, raw, first, finite)
        if inspected is not None and point is first:
            value, violation = inspected.unbind(1)
        else:
            value, violation = self.node.inspect(values, parameters, point, self.tolerance)
        worst = torch.stack((point.residuals.worst, instance.hidden(point), violation)).amax(0)
        ok = usable & (worst <= self.tolerance)
        status, x, v = torch.zeros_like(raw.status), point.x, point.v
        complete = bool(ok.all())
        if not complete:
            status = torch.where(ok, int(Status.SOLVED), _failure(raw.status, usable))
            status = torch.where(finite, status, int(Status.INVALID_DATA))
            if self.on_failure == "raise":
                raise_failures(status, self.batch.shape, self.node.parameters, self.batch.values, cause)
            warn_of(cause)
            x, v = (torch.where(ok.unsqueeze(-1), t, 0.0) for t in (x, v))
        if factor is not None and (complete or bool((ok == usable).all())):
            self.factors.keep(data.P, data.A, v, ok, factor)
        where = (data.P, data.A, v, ok)
        left = point.top, point.low
        report = Report(x, point.y, point.s, value, status, raw.iterations, point.residuals, values, data, where, left)
        self.complete, self._report = complete, lambda: report
        return x, v, ok

    def _improve(
        self, instance: Instance, raw: RawSolution, point: Point, finite: Tensor
    ) -> tuple[Point, KKT | None, Tensor]:
        """The solver's points after polishing, the factor there if it is known, and which elements have a point."""
        if bool((point.residuals.worst <= GOAL).all()):  # nothing to gain, and nothing that is not a number
            return point, None, finite
        usable = finite & torch.isfinite(torch.cat((raw.x, raw.y, raw.s), 1)).all(-1)
        if not bool(usable.all()):
            point = instance.at(*(torch.where(usable.unsqueeze(-1), t, 0.0) for t in (point.x, point.v)))
        point, factor = polish(instance, point, usable, self.polish_steps)
        if bool((usable & (point.residuals.worst > self.tolerance)).any()):
            point, factor = self._better(instance, raw, usable, point), None
        return point, factor, usable

    def again(self, data: ConicData) -> tuple[Tensor, Tensor, Tensor]:
        """``(x, v, ok)`` of other numbers, which are not those of the problem as declared."""
        instance = Instance(self.program, data)
        raw, _ = solve_guarded(self.solver, self.program, data, self.workspace, self.time_limit)
        point = instance.at(raw.x, raw.y - raw.s)
        point, _, usable = self._improve(instance, raw, point, torch.ones_like(raw.status, dtype=torch.bool))
        return point.x, point.v, usable & (point.residuals.worst <= self.tolerance)

    def _better(self, instance: Instance, raw: RawSolution, usable: Tensor, point: Point) -> Point:
        """The polished point, or the solver's own where polishing does not reach it.

        Reading ``v = y - s`` as a point loses what is left of complementarity. Newton's method makes up for that unless
        it cannot find the active set, which happens close to weakly active constraints.
        """
        own = instance.judge(*(torch.where(usable.unsqueeze(-1), t, 0.0) for t in (raw.x, raw.y, raw.s)))
        take = (point.residuals.worst > self.tolerance) & (own.residuals.worst < point.residuals.worst)
        return choose(take, own, point)

    def conditioning(self) -> tuple[Tensor, Tensor]:
        """Which rows of inequalities and curved cones have no slack ``(B, rows)``, and the condition number of the KKT
        matrix of the last solve ``(B,)``, NaN for programs that are not dense."""
        assert self.report is not None
        P, A, v, ok = self.report.point
        cones = self.program.cones
        active = ok.unsqueeze(-1) & ((cones.project_dual(v) - v)[:, cones.zero :] <= TOUCHING)
        if not self.program.is_dense:
            return active, torch.full_like(self.report.value, torch.nan)
        return active, condition_numbers(self.program.jacobian(P, A, v), ok)

    def regularity(self) -> Tensor:
        """``Regularity`` flags of the last solve, ``(B,)`` int64; costs a factorisation unless one is at hand."""
        assert self.report is not None
        P, A, v, ok = self.report.point
        flags = torch.zeros_like(self.report.status)
        if not flags.numel():
            return flags
        kkt = self.factors.at(P, A, v, ok)
        loose = kkt.null.primal | self._is_loose(kkt, ok)
        flags = flags + loose * int(Regularity.SINGULAR_HESSIAN) + kkt.null.dual * int(Regularity.RANK_DEFICIENT)
        measured = sizes(self.program, self.report.data, self.report.x, v)
        weak = self.program.cones.dual_weak(v, measured).any(-1) | self._is_blurred(v)
        flags = flags + weak * int(Regularity.WEAKLY_ACTIVE)
        return torch.where(ok, flags, 0)

    def _is_loose(self, kkt: KKT, ok: Tensor) -> Tensor:
        """Whether residuals as small as these leave x open: the next Newton step is not small, as where the objective
        only tends to its infimum. ``(B,)`` bool."""
        assert self.report is not None
        top, low = (torch.where(ok.unsqueeze(-1), -part, 0.0).unsqueeze(-1) for part in self.report.equations)
        step, size = (
            t.abs().amax(1) if t.shape[1] else t.new_zeros(len(t))
            for t in (kkt.forward(top, low)[0].squeeze(-1), self.report.x)
        )
        return step > LOOSE * (size + LOOSE)

    def _is_blurred(self, v: Tensor) -> Tensor:
        """Whether the duals are not the projection of ``v = y - s``, as at a solver's own point that polishing did not
        improve. ``(B,)`` bool."""
        assert self.report is not None
        if not v.shape[1]:
            return torch.zeros_like(self.report.ok)
        y = self.report.y
        return (self.program.cones.project_dual(v) - y).abs().amax(1) > BLURRED * (y.abs().amax(1) + BLURRED)


def _failure(status: Tensor, usable: Tensor) -> Tensor:
    """The status of an element that is not solved: the solver's own verdict, unless that was a success or an opinion on
    a point we could check and reject."""
    claims = (status == int(Status.SOLVED)) | (status == int(Status.INACCURATE))
    return torch.where(claims, torch.where(usable, int(Status.INACCURATE), int(Status.NUMERICAL_ERROR)), status)


def _keep(rows: Tensor, data: ConicData, otherwise: float) -> ConicData:
    return ConicData(*(torch.where(rows.unsqueeze(-1), part, otherwise) for part in data))

"""One call of a layer between ``bind`` and ``recover``: solve, polish, check, and remember what happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.failure import raise_failures, warn_of
from ddn_cvx.inputs import Batch
from ddn_cvx.program.base import ConvexNode
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.factor import KKT, Factors
from ddn_cvx.program.instance import Instance, Point, Residuals, choose
from ddn_cvx.solution import Regularity, Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace, solve_guarded
from ddn_cvx.solvers.polish import GOAL, polish

LOOSE = 1e-4
"""Newton step at a solution, relative to it, from which on the solution is not determined to first order."""


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
    point: tuple[Tensor, Tensor, Tensor, Tensor]
    """``(P, A, v, ok)`` for the factor."""
    equations: tuple[Tensor, Tensor]
    """What is left of the two equations there, ``(B, n)`` and ``(B, m)``."""
    complete: bool
    """Whether all elements are solved."""

    @property
    def ok(self) -> Tensor:
        """Which elements are solved, ``(B,)`` bool."""
        return self.point[3]


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
        self.report: Report | None = None

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
        point, factor, usable = self._improve(instance, raw, finite)
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
        self.report = Report(
            x, point.y, point.s, value, status, raw.iterations, point.residuals, values, where, left, complete
        )
        return x, v, ok

    def _improve(self, instance: Instance, raw: RawSolution, finite: Tensor) -> tuple[Point, KKT | None, Tensor]:
        """The solver's points after polishing, the factor there if it is known, and which elements have a point."""
        point = instance.at(raw.x, raw.y - raw.s)
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
        point, _, usable = self._improve(instance, raw, torch.ones_like(raw.status, dtype=torch.bool))
        return point.x, point.v, usable & (point.residuals.worst <= self.tolerance)

    def _better(self, instance: Instance, raw: RawSolution, usable: Tensor, point: Point) -> Point:
        """The polished point, or the solver's own where polishing does not reach it.

        Reading ``v = y - s`` as a point loses what is left of complementarity. Newton's method makes up for that unless
        it cannot find the active set, which happens close to weakly active constraints.
        """
        own = instance.judge(*(torch.where(usable.unsqueeze(-1), t, 0.0) for t in (raw.x, raw.y, raw.s)))
        take = (point.residuals.worst > self.tolerance) & (own.residuals.worst < point.residuals.worst)
        return choose(take, own, point)

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
        flags = flags + self.program.cones.dual_weak(v).any(-1) * int(Regularity.WEAKLY_ACTIVE)
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


def _failure(status: Tensor, usable: Tensor) -> Tensor:
    """The status of an element that is not solved: the solver's own verdict, unless that was a success or an opinion on
    a point we could check and reject."""
    claims = (status == int(Status.SOLVED)) | (status == int(Status.INACCURATE))
    return torch.where(claims, torch.where(usable, int(Status.INACCURATE), int(Status.NUMERICAL_ERROR)), status)


def _keep(rows: Tensor, data: ConicData, otherwise: float) -> ConicData:
    return ConicData(*(torch.where(rows.unsqueeze(-1), part, otherwise) for part in data))

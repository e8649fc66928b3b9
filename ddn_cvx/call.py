"""One call of a layer between ``bind`` and ``recover``: solve, polish, check, and remember what happened."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddn_cvx.errors import SolverError
from ddn_cvx.inputs import Batch
from ddn_cvx.program.base import ConvexNode
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.factor import KKT, Factors
from ddn_cvx.solution import Regularity, Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.polish import Residuals, polish, residuals

POLISH_GOAL = 1e-13
WEAK = 1e-7
"""A constraint this close (relative) to the kink of its projection counts as weakly active."""


@dataclass(frozen=True)
class Report:
    """Everything known about a batch of solves; NaN where there is no solution."""

    x: Tensor
    y: Tensor
    s: Tensor
    value: Tensor
    status: Tensor
    iterations: Tensor
    residuals: Residuals
    primal: dict[str, Tensor]
    dual: tuple[tuple[Tensor, ...], ...]
    call: Call
    point: tuple[Tensor, Tensor, Tensor, Tensor]
    """``(P, A, v, ok)`` for the factor."""

    def regularity(self) -> Tensor:
        """``Regularity`` flags, ``(B,)`` int64; costs a factorisation unless one is at hand."""
        P, A, v, ok = self.point
        flags = torch.zeros_like(self.status)
        if not flags.numel():
            return flags
        kkt = self.call.factors.at(P, A, v, ok)
        flags = flags + kkt.null.primal * int(Regularity.SINGULAR_HESSIAN)
        flags = flags + kkt.null.dual * int(Regularity.RANK_DEFICIENT)
        margin = self.call.program.cones.dual_margin(v)
        if margin.shape[-1]:
            weak = margin.amin(-1) <= WEAK * (1 + v.abs().amax(-1))
            flags = flags + weak * int(Regularity.WEAKLY_ACTIVE)
        return torch.where(ok, flags, 0)


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
    ):
        self.node, self.solver, self.workspace, self.batch = node, solver, workspace, batch
        self.on_failure, self.tolerance, self.polish_steps = on_failure, tolerance, polish_steps
        self.program: ConicProgram = node.program
        self.factors = Factors(node.program)
        self.report: Report | None = None

    def __call__(self, data: ConicData, *extra: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solve physical tensors; ``extra`` is ``(admissible, *values)``."""
        program = self.program
        finite, *values = extra
        for part in data:
            finite = finite & torch.isfinite(part).all(-1)
        if self.node.curvature_varies:
            finite = finite & program.is_convex(ConicData(*(torch.where(finite.unsqueeze(-1), p, 0.0) for p in data)))
        if self.on_failure == "raise" and not bool(finite.all()):
            status = torch.where(finite, int(Status.SOLVED), int(Status.INVALID_DATA))
            self._raise(status)
        clean = ConicData(*(torch.where(finite.unsqueeze(-1), part, 0.0) for part in data))
        raw = self._solve(ConicData(*(torch.where(finite.unsqueeze(-1), part, torch.nan) for part in data)))
        usable = finite & torch.isfinite(raw.x).all(-1) & torch.isfinite(raw.y).all(-1) & torch.isfinite(raw.s).all(-1)
        keep = usable.unsqueeze(-1)
        x, v = torch.where(keep, raw.x, 0.0), torch.where(keep, raw.y - raw.s, 0.0)
        x, v, factor = polish(program, clean, x, v, usable, self.polish_steps, POLISH_GOAL)
        x, v, y, s, measured, factor = self._better(clean, raw, usable, x, v, factor)
        seen = self.node.inspect(values, x, y, self.tolerance)
        right = (measured.worst <= self.tolerance) & (seen.violation <= self.tolerance)
        ok = usable & right
        status = torch.where(ok, int(Status.SOLVED), _failure(raw.status, usable))
        status = torch.where(finite, status, int(Status.INVALID_DATA))
        blank = ok.unsqueeze(-1)
        zero_x, zero_v = torch.where(blank, x, 0.0), torch.where(blank, v, 0.0)
        nan = torch.nan
        self.report = Report(
            x=torch.where(blank, x, nan),
            y=torch.where(blank, y, nan),
            s=torch.where(blank, s, nan),
            value=torch.where(ok, seen.value, nan),
            status=status,
            iterations=raw.iterations,
            residuals=measured,
            primal={k: _mask(ok, t) for k, t in seen.primal.items()},
            dual=tuple(tuple(_mask(ok, t) for t in ts) for ts in seen.dual),
            call=self,
            point=(data.P, data.A, zero_v, ok),
        )
        if factor is not None and bool((ok == usable).all()):
            self.factors.keep(data.P, data.A, zero_v, ok, factor)
        if self.on_failure == "raise" and not bool(ok.all()):
            self._raise(status)
        return zero_x, zero_v, ok

    def _better(
        self, data: ConicData, raw: RawSolution, usable: Tensor, x: Tensor, v: Tensor, factor: KKT | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Residuals, KKT | None]:
        """The polished point, or the solver's own where polishing does not reach it.

        Reading ``v = y - s`` as a point loses what is left of complementarity. Newton's method makes up for that unless it
        cannot find the active set, which happens close to weakly active constraints.
        """
        y = self.program.cones.project_dual(v)
        s = y - v
        measured = residuals(self.program, data, x, y, s)
        if bool((~usable | (measured.worst <= self.tolerance)).all()):
            return x, v, y, s, measured, factor
        keep = usable.unsqueeze(-1)
        raw_x, raw_y, raw_s = (torch.where(keep, t, 0.0) for t in (raw.x, raw.y, raw.s))
        own = residuals(self.program, data, raw_x, raw_y, raw_s)
        take = (measured.worst > self.tolerance) & (own.worst < measured.worst)
        row = take.unsqueeze(-1)
        pairs = ((raw_x, x), (raw_y - raw_s, v), (raw_y, y), (raw_s, s))
        x, v, y, s = (torch.where(row, a, b) for a, b in pairs)
        mixed = (torch.where(take, getattr(own, k), getattr(measured, k)) for k in ("primal", "dual", "gap"))
        return x, v, y, s, Residuals(*mixed), None

    def _solve(self, data: ConicData) -> RawSolution:
        if not data.q.shape[0]:
            return RawSolution.empty(self.program, 0, data.q)
        if self.solver.on_device:
            return self.solver.solve(self.program, data, self.workspace)
        on_cpu = ConicData(*(part.cpu().contiguous() for part in data))
        raw = self.solver.solve(self.program, on_cpu, self.workspace)
        device = data.q.device
        return RawSolution(*(t.to(device) for t in (raw.x, raw.y, raw.s, raw.status, raw.iterations)))

    def _raise(self, status: Tensor) -> None:
        failed = torch.nonzero(status != int(Status.SOLVED)).flatten().tolist()
        codes = [Status(int(status[i])) for i in failed]
        total = status.shape[0]
        shape = self.batch.shape if torch.Size(self.batch.shape).numel() == total else (total,)
        indices = tuple(_unravel(i, shape) for i in failed)
        lines = [f"{len(failed)} of {total} batch elements have no solution."]
        for code in sorted(set(codes)):
            where = [str(index) for index, c in zip(indices, codes, strict=True) if c == code]
            listed = ", ".join(where[:8]) + (f" and {len(where) - 8} more" if len(where) > 8 else "")
            lines.append(f"  {code.name} at {listed or '()'}: {code.remedy}.")
        if Status.INVALID_DATA in codes:
            lines += self._culprits()
        lines.append('Pass on_failure="nan" to get NaN for just these elements, or call layer.solve() for the details.')
        raise SolverError("\n".join(lines), tuple(codes), indices)

    def _culprits(self) -> list[str]:
        """Which parameters hold non-finite values."""
        found = []
        for spec, value in zip(self.node.parameters, self.batch.values, strict=True):
            if value.numel() and not bool(torch.isfinite(value).all()):
                found.append(f"  Parameter {spec.name!r} holds NaN or infinity.")
        return found


def _failure(status: Tensor, usable: Tensor) -> Tensor:
    """The status of an element that is not solved: the solver's own verdict, unless that was a success or an opinion on
    a point we could check and reject."""
    claims = (status == int(Status.SOLVED)) | (status == int(Status.INACCURATE))
    return torch.where(claims, torch.where(usable, int(Status.INACCURATE), int(Status.NUMERICAL_ERROR)), status)


def _mask(ok: Tensor, tensor: Tensor) -> Tensor:
    return torch.where(ok.reshape(-1, *(1,) * (tensor.ndim - 1)), tensor, torch.full_like(tensor, torch.nan))


def _unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    out: list[int] = []
    for size in reversed(shape):
        out.append(index % size)
        index //= size
    return tuple(reversed(out))

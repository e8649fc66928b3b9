"""One call of a layer over equations: start -> solve -> polish -> check -> report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.adjoint.base import Adjoint
from ddn_cvx.adjoint.implicit import Implicit
from ddn_cvx.adjoint.root import RootSolved, root_map
from ddn_cvx.call_parts import finite_elements, gather_beside, outside_inference, require_followed, without_numbers
from ddn_cvx.declare.fixed_point import FixedPoint, Root
from ddn_cvx.diagnose import condition_numbers
from ddn_cvx.errors import DeclarationError
from ddn_cvx.failure import raise_failures, warn_of
from ddn_cvx.inputs import Batch
from ddn_cvx.linalg.elements import choose
from ddn_cvx.linalg.general import GeneralFactor
from ddn_cvx.linalg.gmres import gmres
from ddn_cvx.program.base import ParameterSpec
from ddn_cvx.program.nonlinear import Theta
from ddn_cvx.program.root import RootProgram
from ddn_cvx.solution import Regularity, Solution, Status
from ddn_cvx.solvers.guard import guarded
from ddn_cvx.solvers.root_base import RootPoint, RootSolver, probes, units

_REMOTE = 1e3  # so much farther out than the start, or with so much smaller a Jacobian, large systems are looked at
_NEAR = 1e4  # points that are fewer roundings than this apart have the same Jacobian


class _Point(NamedTuple):
    """Where equations are satisfied, and how well; ``(B, ...)`` each."""

    y: Tensor
    error: Tensor
    """Largest residual in units of y, relative to y, ``(B,)``."""
    step: Tensor
    """Length of Newton's step, relative to y, ``(B,)``; zero if the Jacobian is not formed."""
    singular: Tensor
    scale: Tensor


@dataclass(frozen=True)
class _Report:
    solved: RootSolved
    status: Tensor
    iterations: Tensor
    error: Tensor
    singular: Tensor


class RootCall:
    """The opaque forward computation (``adjoint.root.RootSolve``)."""

    program: RootProgram

    def __init__(self, run: RootRun, batch: Batch, specs: Sequence[ParameterSpec], layout: Any):
        self.run, self.batch, self.specs, self.layout = run, batch, specs, layout
        self.report: _Report | None = None
        self.singular = 0
        self._kept: tuple[Tensor, GeneralFactor] | None = None

    def __call__(self, theta: Theta, batch: int) -> RootSolved:
        """Solve physical tensors; elements without a solution hold zeros."""
        run = self.run
        functions = run.node.functions
        self.program = run.node.program(theta, self.layout)
        reason = run.solver.unsupported(self.program)
        if reason is not None:
            raise DeclarationError(f"Solver {run.solver.name!r} cannot take these equations: {reason}.")
        device = theta.tensors[0].device if theta.tensors else self.batch.device
        finite = finite_elements(theta, batch, device)
        status = torch.where(finite, int(Status.SOLVED), int(Status.INVALID_DATA))
        todo = torch.nonzero(finite).flatten()
        some = theta if len(todo) == batch else theta.take(todo)
        y = torch.zeros(batch, functions.n, dtype=functions.dtype, device=device)
        error, scale = torch.full_like(y[:, 0], torch.nan), torch.ones_like(y)
        iterations, singular = torch.zeros_like(status), torch.zeros_like(finite)
        self._kept, cause = None, None
        if len(todo):
            start = functions.value(run.node.initial, "initial", some, self.layout, len(todo)).contiguous()
            self._require_followed(start, some)
            raw, cause = self._solved(some, start)
            usable = raw.y.isfinite().all(-1)
            point = self._checked(torch.where(usable.unsqueeze(-1), raw.y, start), some, start)
            good = usable & self._accepted(point, start)
            claims = (raw.status == int(Status.SOLVED)) | (raw.status == int(Status.INACCURATE))
            verdict = torch.where(claims, int(Status.INACCURATE), raw.status)
            status = status.index_copy(0, todo, torch.where(good, int(Status.SOLVED), verdict))
            if len(todo) == batch and bool(good.all()):
                y = point.y
            else:
                y, self._kept = y.index_copy(0, todo, torch.where(good.unsqueeze(-1), point.y, 0.0)), None
            scale = scale.index_copy(0, todo, point.scale)
            error, singular = error.index_copy(0, todo, point.error), singular.index_copy(0, todo, good & point.singular)
            iterations = iterations.index_copy(0, todo, raw.iterations)
        solved = RootSolved(y, scale, status == int(Status.SOLVED))
        self.report = _Report(solved, status, iterations, error, singular)
        if run.on_failure == "raise":
            raise_failures(status, self.batch.shape, self.specs, self.batch.values, cause)
        warn_of(cause)
        return solved

    def _solved(self, theta: Theta, start: Tensor) -> tuple[RootPoint, BaseException | None]:
        def solve(rows: Tensor | None) -> RootPoint:
            some = (theta, start) if rows is None else (theta.take(rows), start[rows])
            return self.run.solver.solve(self.program, *some)

        codes = torch.full(start.shape[:1], int(Status.NUMERICAL_ERROR), device=start.device)
        blank = RootPoint(torch.full_like(start, torch.nan), codes, torch.zeros_like(codes))
        return guarded(solve, blank, self.run.solver.name, self.run.solver.minds_time, self.run.time_limit)

    def _accepted(self, point: _Point, start: Tensor) -> Tensor:
        """A singular Jacobian makes a small residual meaningless; it then has to vanish to rounding, and not by escaping."""
        eps = torch.finfo(point.y.dtype).eps
        tolerance = max(self.run.tolerance, 100 * eps)
        strict = point.singular & (point.error * _escaped(point.y, start) <= min(tolerance, 1e3 * eps))
        return torch.where(point.singular, strict, (point.error <= tolerance) & (point.step <= 10 * tolerance))

    def _checked(self, y: Tensor, theta: Theta, start: Tensor) -> _Point:
        """The point after Newton steps that improve it, as far as the Jacobian is formed."""
        program = self.program
        if not program.is_dense:
            before, after = units(program, theta, start), units(program, theta, y)
            scale = torch.maximum(before, after).unsqueeze(-1).expand_as(y)
            error = _size(program.residual(y, theta) / scale, y)
            doubtful = (_escaped(y, start) > _REMOTE) | (after < before / _REMOTE)
            return _Point(y, error, torch.zeros_like(error), self._singular(y, theta, scale, doubtful), scale)
        reference = torch.ones_like(y)
        if not program.is_map:  # that J has shrunk since the start may be the sign of a double root
            reference = program.linearise(start, theta).matrix().abs().amax(-1).nan_to_num(0.0, 0.0, 0.0)
        best, newton, factor = self._judged(y, theta, reference)
        self._kept = (best.y, factor)
        for _ in range(self.run.polish_steps):
            if not bool((best.step > 10 * torch.finfo(y.dtype).eps).any()):
                break
            new, further, factor = self._judged(best.y - newton, theta, reference)
            better = new.error < 0.5 * best.error
            best = choose(better, new, best)
            newton = torch.where(better.unsqueeze(-1), further, 0.0)
            if not bool(better.any()):
                break
            here = better | (best.step <= _NEAR * torch.finfo(y.dtype).eps)
            self._kept = (best.y, factor) if bool(here.all()) else None
        return best

    def _judged(self, y: Tensor, theta: Theta, reference: Tensor) -> tuple[_Point, Tensor, GeneralFactor]:
        """The point, Newton's step from it, and the factor of its Jacobian."""
        linear = self.program.linearise(y, theta)
        J = linear.matrix()
        scale = torch.maximum(reference, J.abs().amax(-1).nan_to_num(0.0, 0.0, 0.0))
        scale = torch.where(scale > 0, scale, 1.0)
        factor = GeneralFactor(J, scale)
        newton = factor.solve(linear.F.unsqueeze(-1)).squeeze(-1)
        return _Point(y, _size(linear.F / scale, y), _size(newton, y), factor.singular, scale), newton, factor

    def factor(self, y: Tensor) -> GeneralFactor | None:
        """The factor of the Jacobian at the answer ``y``, if ``y`` is the answer."""
        if self._kept is None or self._kept[0].shape != y.shape or self._kept[0].data_ptr() != y.data_ptr():
            return None
        return self._kept[1]

    def _require_followed(self, y: Tensor, theta: Theta) -> None:
        """Look at what the function depends on."""
        with torch.enable_grad():
            F = self.program.residual(y.detach(), theta.detach())
        require_followed([F], "The function uses", "its")

    def regularity(self, theta: Theta) -> Tensor:
        """``Regularity`` flags, ``(B,)``."""
        assert self.report is not None
        y, scale, ok = self.report.solved
        singular = self.report.singular if self.program.is_dense else self._singular(y, theta.detach(), scale, ok)
        return singular * int(Regularity.SINGULAR_JACOBIAN)

    def _singular(self, y: Tensor, theta: Theta, scale: Tensor, asked: Tensor) -> Tensor:
        """Elements, of those ``asked`` for (B,), whose Jacobian is as good as singular, by products with it, ``(B,)``."""
        rows, singular = torch.nonzero(asked).flatten(), torch.zeros_like(asked)
        if not len(rows):
            return singular
        linear = self.program.linearise(y[rows], theta.take(rows))
        eps = torch.finfo(y.dtype).eps
        found = gmres(linear.push, probes(y[rows])[0] * scale[rows], 1e3 * eps)
        bad = (found.residual > eps**0.4) | (found.x.abs().amax(-1) > 0.1 / eps**0.5)
        return singular.index_copy(0, rows, bad)


@dataclass(frozen=True)
class RootRun:
    """How a layer over a ``FixedPoint`` or ``Root`` computes: all that does not change between calls."""

    node: FixedPoint | Root
    solver: RootSolver
    adjoint: Adjoint
    on_failure: str
    tolerance: float
    polish_steps: int
    time_limit: float | None = None

    def outputs(self, args: Sequence[Any], named: Mapping[str, Any]) -> Tensor | dict[str, Tensor]:
        """The variable ``(*batch, *shape)``: a tensor, or a dict if there is a dict of variables."""
        y, _, batch, _ = self._run(args, named)
        found = {name: batch.restore(value) for name, value in self.node.functions.unpack(y).items()}
        return next(iter(found.values())) if self.node.bare else found

    def solution(self, args: Sequence[Any], named: Mapping[str, Any]) -> Solution:
        """The same with everything that is known about it."""
        y, call, batch, theta = self._run(args, named)
        if not len(y):
            none = y.detach()[:, 0]
            solved = RootSolved(y.detach(), y.detach(), none.bool())
            report = _Report(solved, none.to(torch.int64), none.to(torch.int64), none, none.bool())
            flags = report.status
        elif call.report is None or len(call.report.status) != math.prod(batch.shape):
            raise without_numbers()
        else:
            report, flags = call.report, call.regularity(theta)
        masked = batch.restore(torch.where(report.solved.ok.unsqueeze(-1), report.solved.y.detach(), torch.nan))
        zero = torch.zeros_like(report.error)

        def integers(t: Tensor) -> Tensor:
            return t.reshape(batch.shape)

        return Solution(
            outputs=tuple(batch.restore(t) for t in self.node.functions.unpack(y).values()),
            value=batch.restore(zero),
            status=integers(report.status),
            iterations=integers(report.iterations),
            primal_residual=batch.restore(report.error),
            dual_residual=batch.restore(zero),
            gap=batch.restore(zero),
            regularity=integers(flags),
            x=masked,
            s=masked[..., :0],
            y=masked[..., :0],
            primal=self.node.functions.unpack(masked),
        )

    def conditioning(self, args: Sequence[Any], named: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """No active rows, and the condition number of the Jacobian ``(B,)``."""
        _, call, _, theta = self._run(args, named)
        assert call.report is not None
        y, _, ok = call.report.solved
        none = torch.zeros(len(ok), 0, dtype=torch.bool, device=ok.device)
        if not call.program.is_dense:
            return none, torch.full_like(call.report.error, torch.nan)
        return none, condition_numbers(call.program.linearise(y, theta.detach()).matrix(), ok)

    def _run(self, args: Sequence[Any], named: Mapping[str, Any]) -> tuple[Tensor, RootCall, Batch, Theta]:
        specs, tensors, layout = self.node.arguments.match(args, named)
        return outside_inference(lambda tensors: self._solve(tensors, specs, layout), tensors)

    def _solve(
        self, tensors: Sequence[Tensor], specs: Sequence[ParameterSpec], layout: Any
    ) -> tuple[Tensor, RootCall, Batch, Theta]:
        if not isinstance(self.adjoint, Implicit):
            raise DeclarationError(
                f"{type(self.adjoint).__name__} cannot differentiate a fixed point or root; use adjoint=Implicit()."
            )
        functions = self.node.functions
        batch = gather_beside(functions.captured.values(), specs, tensors)
        count = math.prod(batch.shape)
        theta = functions.theta(batch.values, batch.device)
        call = RootCall(self, batch, specs, layout)
        if not count:
            none = torch.zeros(0, functions.n, dtype=functions.dtype, device=batch.device)
            return none + sum(0.0 * t.sum() for t in theta.tensors), call, batch, theta
        solved = root_map(call, theta, count)
        return torch.where(solved.ok.unsqueeze(-1), solved.y, torch.nan), call, batch, theta


def _escaped(y: Tensor, start: Tensor) -> Tensor:
    """How much farther out than the start, ``(B,)``."""
    return (1 + y.abs().amax(-1)) / (1 + start.abs().amax(-1))


def _size(vector: Tensor, y: Tensor) -> Tensor:
    return vector.abs().amax(-1) / (1 + y.abs().amax(-1))

"""A batched primal-dual interior-point method for conic programs of every kind, in plain torch, on any device.

The quadratic objective stays quadratic.  ``conic_embedding`` says what one iteration does, ``conic_newton`` how its linear
systems are solved, ``conic_cones`` and the barriers what each kind of cone contributes.  Here the elements of a batch are
prepared, judged between iterations, and leave when they are done.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.checks import require_positive_options
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.conic_cones import Cones
from ddn_cvx.solvers.conic_embedding import Arithmetic, Problem, advance, errors, start
from ddn_cvx.solvers.conic_scaling import equilibrate
from ddn_cvx.solvers.deadline import expired
from ddn_cvx.solvers.elementwise import closed_form, is_finite

_CHUNK = 2**25  # numbers in P and A that are solved at a time
_PATIENCE = 4  # tests without progress after which an inaccurate iterate is the best there will be
_WARM = 0.99  # weight of a warm start


class _Limits(NamedTuple):
    """Tolerances and regularisation that suit a precision."""

    tolerance: float
    solved: float
    inaccurate: float
    certificate: float
    regularisation: float


_SINGLE = _Limits(1e-6, 1e-5, 1e-3, 1e-5, 1e-6)
"""The least that make sense in single precision."""


@register
@dataclass(frozen=True)
class ConicInteriorPoint(Solver):
    """The batched interior-point method in torch, for dense programs with cones of every kind, on any device (Nesterov &
    Todd, SIAM J. Optim. 8, 1998; Dahl & Andersen, Math. Programming 194, 2021).

    Tolerances are relative and apply to equilibrated data. Where factors or data are float32 none is below what float32
    can reach: 1e-6 to stop, 1e-5 to be SOLVED, 1e-3 to be INACCURATE, 1e-5 for certificates.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(3), cp.Parameter(3)
    >>> entropy = cp.Problem(cp.Maximize(p @ x + cp.sum(cp.entr(x))), [cp.sum(x) == 1])  # its solution is the softmax of p
    >>> layer = ddn.DeclarativeLayer(entropy, [p], x, solver=ddn.ConicInteriorPoint())
    >>> layer(torch.tensor([1.0, 2.0, 3.0]))
    tensor([0.0900, 0.2447, 0.6652])
    """

    name: ClassVar[str] = "conic_interior_point"
    minds_time: ClassVar[bool] = True
    on_device: ClassVar[bool] = True

    max_iterations: int = 100
    """Iterations, of one factorisation each, after which an element gives up (default 100)."""
    tolerance: float = 1e-10
    """Residual and gap at which an element stops (default 1e-10)."""
    solved_tolerance: float = 1e-8
    """Largest residual of a SOLVED element that stopped improving (default 1e-8)."""
    inaccurate_tolerance: float = 1e-5
    """Largest residual of an INACCURATE element (default 1e-5)."""
    certificate_tolerance: float = 1e-9
    """Largest residual of a certificate of infeasibility or unboundedness (default 1e-9)."""
    regularisation: float = 1e-9
    """What is added to the diagonal of the factorised matrices, next to data of order one (default 1e-9)."""
    refinements: int = 2
    """Steps of iterative refinement of a Newton step (default 2)."""
    single: bool = False
    """Factorise in float32, for devices on which float64 is slow; iterates and refinement stay float64 (default False)."""
    check_every: int | None = None
    """Iterations between tests for convergence; None is 1 on CPUs and 4 on devices that wait for them (default None)."""

    def __post_init__(self) -> None:
        require_positive_options(self, *(option.name for option in fields(self) if option.name != "single"))

    def unsupported(self, program: ConicProgram) -> str | None:
        return None

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch.  ``warm`` is an answer to similar numbers; elements of it that are not finite give no start."""
        if not program.n or not program.m:
            return closed_form(program, data)
        if not len(data.q):
            return RawSolution.empty(program, 0, data.q)
        like = data.q.new_zeros(0)
        cones = workspace.get(("conic cones", program, like.device, like.dtype), lambda: Cones(program.cones, like))
        size = max(1, _CHUNK // (program.n * (program.n + program.m)))
        answers = []
        for first in range(0, len(data.q), size):
            rows = slice(first, first + size)
            some = ConicData(*(t[rows] for t in data))
            answers.append(
                self._solve(program, cones, some, None if warm is None else (warm.x[rows], warm.y[rows], warm.s[rows]))
            )
        return RawSolution(*(torch.cat(parts) for parts in zip(*answers, strict=True)))

    @torch.no_grad()
    def _solve(
        self, program: ConicProgram, cones: Cones, data: ConicData, warm: tuple[Tensor, Tensor, Tensor] | None
    ) -> tuple[Tensor, ...]:
        """``x, y, s, status, iterations``."""
        n, m, p = program.n, program.m, cones.zero
        finite = is_finite(data)
        row = finite[:, None]
        P, A = program.dense(data)
        # A harmless problem takes the place of one that cannot be solved.
        centre = cones.centre(data.q)
        P = torch.where(row[..., None], P, torch.eye(n, dtype=P.dtype, device=P.device))
        A = torch.where(row[..., None], A[:, cones.order], 0.0)
        q, b = (
            torch.where(row, data.q, 0.0),
            torch.where(row, data.b[:, cones.order], torch.cat((centre.new_zeros(p), centre))),
        )
        scaled = equilibrate(P, q, A, b, cones)
        near = None
        if warm is not None:
            x, y, s = warm
            near = torch.cat((x / scaled.x, y[:, cones.order] / scaled.y, (s[:, cones.order] / scaled.s)[:, p:]), 1)
        problem = Problem(scaled.P, scaled.q, scaled.A, scaled.b, cones)
        kept, status, iterations = self._iterate(problem, near)
        x, y, s = kept.split((n, m, m - p), 1)
        s = torch.nn.functional.pad(s, (p, 0))
        solution = ((status <= int(Status.INACCURATE)) & finite)[:, None]  # a certificate is none
        x = torch.where(solution, x * scaled.x, torch.nan)
        y, s = (torch.where(solution, t, torch.nan)[:, cones.back] for t in (y * scaled.y, s * scaled.s))
        return x, y, s, torch.where(finite, status, int(Status.INVALID_DATA)), iterations

    def _iterate(self, problem: Problem, warm: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """``x, u, s`` ``(B, .)``, status and iterations ``(B,)``."""
        dtype = torch.float32 if self.single else problem.P.dtype
        limits = self._limits(dtype)
        arithmetic = Arithmetic(dtype, limits.regularisation, self.refinements)
        every = self.check_every or (1 if problem.P.device.type == "cpu" else 4)
        state = result = _State.first(start(problem, warm, _WARM))
        for iteration in range(self.max_iterations + 1):
            last = iteration == self.max_iterations or expired()
            if iteration % every == 0 or last:
                state = state.judged(problem, limits, iteration)
                left = state.live.flatten().nonzero().squeeze(1)  # the device waits here, and nowhere else
                ended = last or not len(left)
                if ended or 2 * len(left) <= len(state.row):
                    rows = state.row.flatten()
                    result = _State(*(all_.index_copy(0, rows, some) for all_, some in zip(result, state, strict=True)))
                    if ended:
                        break
                    problem, state = problem.take(left), _State(*(t[left] for t in state))
            state = state._replace(whole=advance(problem, state.whole, arithmetic))
        status = torch.where(result.live, int(Status.ITERATION_LIMIT), int(Status.NUMERICAL_ERROR))
        status = torch.where(result.best <= limits.inaccurate, int(Status.INACCURATE), status)
        status = torch.where(result.verdict > 0, result.verdict, status)
        status = torch.where(result.best <= limits.solved, int(Status.SOLVED), status)
        return result.kept.squeeze(1), status.flatten(), result.iterations.flatten()

    def _limits(self, dtype: torch.dtype) -> _Limits:
        own = _Limits(
            self.tolerance, self.solved_tolerance, self.inaccurate_tolerance, self.certificate_tolerance, self.regularisation
        )
        return own if dtype == torch.float64 else _Limits(*map(max, own, _SINGLE))


class _State(NamedTuple):
    """Iterates and what is known of them; everything has the batch first, ``(B, 1, .)``."""

    whole: Tensor
    """``x, u, s, τ, κ``."""
    best: Tensor
    """The smallest error so far, and ..."""
    kept: Tensor
    """... ``x, u, s`` there, divided by τ."""
    waited: Tensor
    """Tests since then."""
    verdict: Tensor
    """The ``Status`` that a certificate proves, or zero."""
    iterations: Tensor
    live: Tensor
    row: Tensor
    """Place in the batch."""

    @staticmethod
    def first(whole: Tensor) -> _State:
        row = torch.arange(len(whole), device=whole.device)[:, None, None]
        none = torch.zeros_like(row)
        best, kept = whole.new_full(row.shape, torch.inf), torch.full_like(whole[..., :-2], torch.nan)
        return _State(whole, best, kept, none, none, none, none == 0, row)

    def judged(self, problem: Problem, limits: _Limits, iteration: int) -> _State:
        """Keep the best iterates, and end the elements that are solved, proven hopeless, stuck or lost."""
        found = errors(problem, self.whole)
        better = (found.solution < self.best) & self.live
        best = torch.where(better, found.solution, self.best)
        kept = torch.where(better, self.whole[..., :-2] / self.whole[..., -2:-1], self.kept)
        waited = (self.waited + 1).masked_fill_(better, 0)
        verdict = torch.where(found.unbounded <= limits.certificate, int(Status.UNBOUNDED), 0)
        verdict = torch.where(found.infeasible <= limits.certificate, int(Status.INFEASIBLE), verdict)
        verdict = torch.where(self.live, verdict, self.verdict)
        stuck = (waited >= _PATIENCE) & (best < limits.inaccurate)
        lost = ~self.whole.isfinite().all(2, keepdim=True)
        live = self.live & ~((best <= limits.tolerance) | (verdict > 0) | stuck | lost)
        iterations = torch.where(self.live, iteration, self.iterations)
        return _State(self.whole, best, kept, waited, verdict, iterations, live, self.row)

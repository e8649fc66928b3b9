"""Compiled interior-point methods for small programs: linear and quadratic ones (``kernels.interior_point``), and those with
second-order, semidefinite and exponential cones (``kernels.conic``).

A batch costs no Python an element: threads share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ddn_cvx.checks import require_positive_options
from ddn_cvx.kernels import conic, conic_newton, interior_point
from ddn_cvx.kernels.jit import Task
from ddn_cvx.kernels.lanes import LANES
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Workspace
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.compiled import FINISHED, Array, Compiled, Prepared, run, solve_batch, unsupported

GOALS = (1e-5, FINISHED)
"""Relative residuals at which Newton's method on the optimality conditions takes over; the second for what it does not
bring to the end from the first, as close to a kink."""
ACCEPTED = 1e-7
"""Relative residual of a point that is a solution."""


@register
@dataclass(frozen=True)
class Mehrotra(Compiled):
    """The compiled predictor-corrector methods (Mehrotra, SIAM J. Optim. 2, 1992), for small programs without power
    cones.

    They recognise neither infeasible nor unbounded elements: these are ``NUMERICAL_ERROR``.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> ball = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm(x) <= 1])
    >>> ddn.DeclarativeLayer(ball, [p], x, solver=ddn.Mehrotra(threads=1))(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """

    name: ClassVar[str] = "mehrotra"
    minds_time: ClassVar[bool] = True

    threads: int | None = None
    """Threads that share a batch; None is one a processor (default None)."""

    def __post_init__(self) -> None:
        require_positive_options(self, "threads")

    def unsupported(self, program: ConicProgram) -> str | None:
        return unsupported(program)

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch. An interior-point method gains nothing from a warm start: ``warm`` is not used."""
        return solve_batch(self, program, data)

    def prepare(self, program: ConicProgram, data: Sequence[Array]) -> Prepared:
        n = program.n
        if program.curved is not None:
            return self._curved(program, data, GOALS[0])
        return Prepared.of(interior_point.solve, program, data, 10 * (n**3 / 3 + n * n * program.m), self.threads)

    def _curved(self, program: ConicProgram, data: Sequence[Array], goal: float) -> Prepared:
        """Interior points up to residuals of ``goal``, and from there Newton's method."""
        batch, n, m = len(data[1]), program.n, program.m
        points = [np.empty((batch, size)) for size in (n, m, m)]
        errors, status, iterations = np.full(batch, np.inf), np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        program_and_data, work = (program.curved, *data), 100.0 * (n * n + m)
        solve = Task(conic.solve, work, (*program_and_data, *points, errors, status, iterations, goal), LANES)
        polish = Task(conic_newton.polish, work, (*program_and_data, *points, errors), LANES)
        x, y, s = points
        return Prepared((solve, polish), x, y, s, status, iterations, self.threads, errors)

    def complete(self, program: ConicProgram, data: Sequence[Array], prepared: Prepared) -> None:
        """Once more for what Newton's method did not bring to the end, and NaN for what is no solution then."""
        errors, status = prepared.errors, prepared.status
        if errors is None:
            return
        points = prepared.x, prepared.y, prepared.s
        again = np.flatnonzero(np.isfinite(errors) & ~(errors <= FINISHED))
        if len(again):
            other = self._curved(program, [t[again] for t in data], GOALS[1])
            run(other)
            assert other.errors is not None
            better = other.errors < errors[again]
            for whole, part in zip((*points, errors), (other.x, other.y, other.s, other.errors), strict=True):
                whole[again[better]] = part[better]
            prepared.iterations[again] += other.iterations
        failed = ~(errors <= ACCEPTED)
        for point in points:
            point[failed] = np.nan
        status[failed & (status == int(Status.SOLVED))] = int(Status.NUMERICAL_ERROR)

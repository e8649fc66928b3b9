"""Compiled interior-point methods for small programs: linear and quadratic ones (``kernels.interior_point``), and those with
second-order, semidefinite and exponential cones (``kernels.conic``).

A batch costs no Python an element: threads share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ddn_cvx.kernels import conic, conic_newton, interior_point
from ddn_cvx.kernels.jit import spread
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Workspace
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.compiled import Array, Compiled, Prepared, solve_batch, unsupported
from ddn_cvx.solvers.deadline import clock
from ddn_cvx.solvers.elementwise import require_positive

GOALS = (1e-5, 1e-12)
"""Relative residuals at which Newton's method on the optimality conditions takes over; the second for what it does not
bring to the end from the first, as close to a kink."""
FINISHED = 1e-12
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
        require_positive(self, *([] if self.threads is None else ["threads"]))

    def unsupported(self, program: ConicProgram) -> str | None:
        return unsupported(program)

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch. An interior-point method gains nothing from a warm start: ``warm`` is not used."""
        return self._solve_curved(program, data) if program.curved is not None else solve_batch(self, program, data)

    def prepare(self, program: ConicProgram, data: Sequence[Array]) -> Prepared | None:
        n = program.n
        if program.curved is not None:  # these are two kernels, and elements go through them a second time
            return None
        return Prepared.of(interior_point.solve, program, data, 10 * (n**3 / 3 + n * n * program.m), self.threads)

    def complete(self, program: ConicProgram, data: Sequence[Array], prepared: Prepared) -> None:
        """There is no other."""

    def _solve_curved(self, program: ConicProgram, data: ConicData) -> RawSolution:
        arrays = [t.contiguous().numpy() for t in data]
        points, errors, status, iterations = self._attempt(program, arrays, GOALS[0])
        again = np.flatnonzero(np.isfinite(errors) & ~(errors <= FINISHED))
        if len(again):
            others = self._attempt(program, [t[again] for t in arrays], GOALS[1])
            better = others[1] < errors[again]
            for whole, part in zip((*points, errors), (*others[0], others[1]), strict=True):
                whole[again[better]] = part[better]
            iterations[again] += others[3]
        failed = ~(errors <= ACCEPTED)
        for point in points:
            point[failed] = np.nan
        status[failed & (status == int(Status.SOLVED))] = int(Status.NUMERICAL_ERROR)
        return RawSolution(*map(torch.from_numpy, (*points, status, iterations)))

    def _attempt(
        self, program: ConicProgram, arrays: list[np.ndarray], goal: float
    ) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """x, y and s, their errors, the status of those that hold no numbers, and iterations."""
        batch, n, m = len(arrays[1]), program.n, program.m
        points = [np.empty((batch, size)) for size in (n, m, m)]
        errors, status, iterations = np.empty(batch), np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        work = 20.0 * (n * n + m) * 10
        threads, over = self.threads, clock()
        outs = *points, errors, status, iterations
        for late in spread(conic.solve, batch, work, program.curved, *arrays, *outs, goal, threads=threads, over=over):
            errors[late], status[late] = np.nan, int(Status.TIME_LIMIT)
            for point in points:  # what memory holds by chance is no point to polish
                point[late] = np.nan
        spread(conic_newton.polish, batch, work, program.curved, *arrays, *points, errors, threads=threads)
        return points, errors, status, iterations

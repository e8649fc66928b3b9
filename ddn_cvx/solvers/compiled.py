"""What the solvers in compiled code have alike: which programs they take, and how a kernel gets a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ddn_cvx.kernels.jit import Task, sweep
from ddn_cvx.program.conic import COMPILED_LIMIT, CURVED_LIMIT, ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver
from ddn_cvx.solvers.deadline import clock

Array = NDArray[np.float64]

FINISHED = 1e-12
"""Relative residual at which a point is a solution up to rounding."""


def unsupported(program: ConicProgram) -> str | None:
    """Why there is no compiled code for the program."""
    if program.cones.power:
        return "there is no compiled code for power cones"
    if program.structure is None:
        limit = COMPILED_LIMIT if program.cones.is_polyhedral else CURVED_LIMIT
        return f"it needs a variable, and takes n + m up to {limit}"
    return None


class Compiled(Solver):
    """A solver in compiled kernels."""

    @abstractmethod
    def prepare(self, program: ConicProgram, data: Sequence[Array]) -> Prepared:
        """What to do for a batch. The data need not be there yet."""

    @abstractmethod
    def complete(self, program: ConicProgram, data: Sequence[Array], prepared: Prepared) -> None:
        """Solve elements that the kernels have left unsolved in another way, where there is one."""


class Prepared(NamedTuple):
    """Kernels, and where their answer will be; as in ``RawSolution``."""

    tasks: tuple[Task, ...]
    x: Array
    y: Array
    s: Array
    status: NDArray[np.int64]
    iterations: NDArray[np.int64]
    threads: int | None
    errors: Array | None = None
    """Relative residuals ``(B,)`` by which ``complete`` judges; None if the status says all."""

    @property
    def is_complete(self) -> bool:
        """Whether ``complete`` has nothing to do."""
        return not self.status.any() and (self.errors is None or bool((self.errors <= FINISHED).all()))

    @staticmethod
    def of(kernel: Any, program: ConicProgram, data: Sequence[Array], work: float, threads: int | None) -> Prepared:
        """For ``kernel(first, last, structure, *data, x, y, s, status, iterations)``; ``work`` is that of one element."""
        batch = len(data[1])
        x, y, s = (np.empty((batch, size)) for size in (program.n, program.m, program.m))
        status, iterations = np.empty(batch, np.int64), np.empty(batch, np.int64)
        arguments = (program.structure, *data, x, y, s, status, iterations)
        return Prepared((Task(kernel, work, arguments),), x, y, s, status, iterations, threads)

    def leave(self, rows: slice) -> None:
        """There was no time for these."""
        for answer in (self.x, self.y, self.s):
            answer[rows] = np.nan
        self.status[rows], self.iterations[rows] = int(Status.TIME_LIMIT), 0
        if self.errors is not None:
            self.errors[rows] = np.nan

    @property
    def raw(self) -> RawSolution:
        """The answer."""
        return RawSolution(*map(torch.from_numpy, self[1:6]))


def run(prepared: Prepared) -> None:
    """The kernels over the batch, shared among threads, as far as the time limit goes."""
    for rows in sweep(len(prepared.x), prepared.tasks, prepared.threads, clock()):
        prepared.leave(rows)


def solve_batch(solver: Compiled, program: ConicProgram, data: ConicData) -> RawSolution:
    """The solver's kernels over the batch, and over what they leave."""
    arrays = [t.contiguous().numpy() for t in data]
    prepared = solver.prepare(program, arrays)
    run(prepared)
    if not prepared.is_complete:
        solver.complete(program, arrays, prepared)
    return prepared.raw

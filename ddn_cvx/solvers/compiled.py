"""What the solvers in compiled code have alike: which programs they take, and how a kernel gets a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ddn_cvx.kernels.jit import Task, sweep
from ddn_cvx.program.conic import COMPILED_LIMIT, ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver
from ddn_cvx.solvers.deadline import clock

Array = NDArray[np.float64]


def unsupported(program: ConicProgram) -> str | None:
    """Why there is no compiled code for the program."""
    if program.cones.power:
        return "there is no compiled code for power cones"
    if program.structure is None:
        return f"it needs a variable, and takes n + m up to {COMPILED_LIMIT}"
    return None


class Compiled(Solver):
    """A solver that is one compiled kernel for some programs."""

    @abstractmethod
    def prepare(self, program: ConicProgram, data: Sequence[Array]) -> Prepared | None:
        """What to do for a batch; None where it takes more than a kernel. The data need not be there yet."""

    @abstractmethod
    def complete(self, program: ConicProgram, data: Sequence[Array], prepared: Prepared) -> None:
        """Solve elements that the kernel has left unsolved by another one, where there is one."""


class Prepared(NamedTuple):
    """A kernel, and where its answer will be; as in ``RawSolution``."""

    task: Task
    x: Array
    y: Array
    s: Array
    status: NDArray[np.int64]
    iterations: NDArray[np.int64]
    threads: int | None

    @staticmethod
    def of(kernel: Any, program: ConicProgram, data: Sequence[Array], work: float, threads: int | None) -> Prepared:
        """For ``kernel(first, last, structure, *data, x, y, s, status, iterations)``; ``work`` is that of one element."""
        batch = len(data[1])
        x, y, s = (np.empty((batch, size)) for size in (program.n, program.m, program.m))
        status, iterations = np.empty(batch, np.int64), np.empty(batch, np.int64)
        arguments = (program.structure, *data, x, y, s, status, iterations)
        return Prepared(Task(kernel, work, arguments), x, y, s, status, iterations, threads)

    def leave(self, rows: slice) -> None:
        """There was no time for these."""
        for answer in (self.x, self.y, self.s):
            answer[rows] = np.nan
        self.status[rows], self.iterations[rows] = int(Status.TIME_LIMIT), 0

    @property
    def raw(self) -> RawSolution:
        """The answer."""
        return RawSolution(*map(torch.from_numpy, self[1:6]))


def solve_batch(solver: Compiled, program: ConicProgram, data: ConicData) -> RawSolution:
    """The solver's kernel over the batch, shared among threads."""
    arrays = [t.contiguous().numpy() for t in data]
    prepared = solver.prepare(program, arrays)
    assert prepared is not None
    late = sweep(data.q.shape[0], [prepared.task], prepared.threads, clock())
    for rows in late:
        prepared.leave(rows)
    if not late:
        solver.complete(program, arrays, prepared)
    return prepared.raw

"""What the solvers in compiled code have alike: which programs they take, and how a kernel gets a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ddn_cvx.kernels.jit import spread
from ddn_cvx.program.conic import COMPILED_LIMIT, ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution
from ddn_cvx.solvers.deadline import clock


def unsupported(program: ConicProgram) -> str | None:
    """Why there is no compiled code for the program."""
    if program.cones.power:
        return "there is no compiled code for power cones"
    if program.structure is None:
        return f"it needs a variable, and takes n + m up to {COMPILED_LIMIT}"
    return None


def solve_batch(kernel: Any, program: ConicProgram, data: ConicData, work: float, threads: int | None) -> RawSolution:
    """``kernel`` over the batch, shared among threads; ``work`` is operations for one element."""
    batch, n, m = data.q.shape[0], program.n, program.m
    arrays = (t.contiguous().numpy() for t in data)
    vectors = (np.full((batch, size), np.nan) for size in (n, m, m))
    out = (*vectors, np.zeros(batch, np.int64), np.zeros(batch, np.int64))
    for late in spread(kernel, batch, work, program.structure, *arrays, *out, threads=threads, over=clock()):
        out[3][late] = int(Status.TIME_LIMIT)
    return RawSolution(*map(torch.from_numpy, out))

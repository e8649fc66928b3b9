"""Compiled interior-point method for small linear and convex quadratic programs (``kernels.interior_point``).

A batch costs no Python an element: threads share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ddn_cvx.kernels import interior_point
from ddn_cvx.kernels.jit import spread
from ddn_cvx.program.conic import COMPILED_LIMIT, ConicData, ConicProgram
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.elementwise import require_positive


@dataclass(frozen=True)
class Mehrotra(Solver):
    """Options of the compiled predictor-corrector method. It recognises neither infeasible nor unbounded elements: they are
    NUMERICAL_ERROR."""

    name: ClassVar[str] = "mehrotra"

    threads: int | None = None
    """Threads that share a batch; None is one a processor (default None)."""

    def __post_init__(self) -> None:
        require_positive(self, *([] if self.threads is None else ["threads"]))

    def unsupported(self, program: ConicProgram) -> str | None:
        if not program.cones.is_polyhedral:
            return "it takes equalities and inequalities only, and the program has other cones"
        if program.structure is None:
            return f"it needs a variable, and takes n + m up to {COMPILED_LIMIT}"
        return None

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch. An interior-point method gains nothing from a warm start: ``warm`` is not used."""
        structure, batch, n, m = program.structure, data.q.shape[0], program.n, program.m
        assert structure is not None
        arrays = (t.contiguous().numpy() for t in data)
        vectors = (np.full((batch, size), np.nan) for size in (n, m, m))
        out = (*vectors, np.zeros(batch, np.int64), np.zeros(batch, np.int64))
        work = 10 * (n**3 / 3 + n * n * m)
        spread(interior_point.solve, batch, work, structure, *arrays, *out, threads=self.threads)
        return RawSolution(*map(torch.from_numpy, out))

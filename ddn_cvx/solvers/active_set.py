"""Compiled active-set methods for small strictly convex quadratic programs, exact up to rounding.

Goldfarb & Idnani's dual method (``kernels.active_set``), and for separable programs with bounds the primal-dual method
(``kernels.separable``) first. A batch costs no Python an element: threads share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ddn_cvx.kernels import active_set
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.compiled import solve_batch, unsupported
from ddn_cvx.solvers.elementwise import require_positive


@dataclass(frozen=True)
class ActiveSet(Solver):
    """Options of the active-set methods."""

    name: ClassVar[str] = "active_set"
    minds_time: ClassVar[bool] = True
    minds_units: ClassVar[bool] = False

    threads: int | None = None
    """Threads that share a batch; None is one a processor (default None)."""

    def __post_init__(self) -> None:
        require_positive(self, *([] if self.threads is None else ["threads"]))

    def unsupported(self, program: ConicProgram) -> str | None:
        if not program.cones.is_polyhedral:
            return "it takes equalities and inequalities only, and the program has other cones"
        reason = unsupported(program)
        if reason is not None:
            return reason
        if len(np.unique(program.P.rows[program.P.rows == program.P.cols])) < program.n:
            return "its objective must be strictly convex: a variable has no quadratic term"
        return None

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch. The methods start from the minimiser without constraints: ``warm`` is not used."""
        assert program.structure is not None
        n = program.n
        work = n**3 / 3 + (n if program.structure.separable else n * n) * (n + program.m)
        return solve_batch(active_set.solve, program, data, work, self.threads)

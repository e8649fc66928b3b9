"""Compiled interior-point method for small linear and convex quadratic programs (``kernels.interior_point``).

A batch costs no Python an element: threads share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ddn_cvx.kernels import interior_point
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.compiled import solve_batch, unsupported
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
        return unsupported(program)

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch. An interior-point method gains nothing from a warm start: ``warm`` is not used."""
        n = program.n
        return solve_batch(interior_point.solve, program, data, 10 * (n**3 / 3 + n * n * program.m), self.threads)

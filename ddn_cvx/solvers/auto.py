"""The default solver: picks by the structure of the program, never by its numbers or the size of the batch.

An element's answer must not change with its batch mates, so neither may the solver.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.active_set import ActiveSet
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace, solve_in_units
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.elementwise import require_positive
from ddn_cvx.solvers.interior_point import InteriorPoint
from ddn_cvx.solvers.mehrotra import Mehrotra


@dataclass(frozen=True)
class Auto(Solver):
    """``ActiveSet`` for small strictly convex quadratic programs, ``Mehrotra`` for other small programs without power
    cones, ``InteriorPoint`` for dense ones of moderate size, ``Clarabel`` for all others and for elements that the first
    choice does not solve.
    """

    name: ClassVar[str] = "auto"
    minds_units: ClassVar[bool] = False  # it takes them out for the solvers that do

    most: int = 600
    """n + m above which dense factors, one for each element, take too much memory and time (default 600)."""
    density: float = 0.3
    """Share of the entries of P and A that must be stored for dense algebra to pay (default 0.3)."""
    threads: int | None = None
    """Threads that share a batch; None is one a processor (default None)."""

    def __post_init__(self) -> None:
        require_positive(self, "most", "density", *([] if self.threads is None else ["threads"]))

    def unsupported(self, program: ConicProgram) -> str | None:
        return self._choice(program)[0].unsupported(program)

    def explain(self, program: ConicProgram, batch: int) -> str:
        """One sentence: the solver for a batch of this size and why."""
        solver, reason = self._choice(program)
        return f"{type(solver).__name__} for {batch} instances of n = {program.n}, m = {program.m}: {reason}"

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch with the solver that ``explain`` names."""
        solver, _ = workspace.get((self, program), lambda: self._choice(program))
        raw = solve_in_units(solver, program, data, workspace)
        if isinstance(solver, Clarabel):
            return raw
        if not bool(raw.status.any()):  # SOLVED is zero
            return raw
        settled = (raw.status == int(Status.SOLVED)) | (raw.status == int(Status.INVALID_DATA))
        if bool(settled.all()):
            return raw
        again = torch.nonzero(~settled).flatten()
        second = solve_in_units(self._clarabel, program, ConicData(*(t[again] for t in data)), workspace)
        parts = ("x", "y", "s", "status", "iterations")
        merged = {part: getattr(raw, part).index_copy(0, again, getattr(second, part)) for part in parts}
        return replace(raw, **merged)

    @property
    def _clarabel(self) -> Clarabel:
        return Clarabel(threads=self.threads)

    def _choice(self, program: ConicProgram) -> tuple[Solver, str]:
        n, m = program.n, program.m
        if not program.cones.is_polyhedral:
            if Mehrotra().unsupported(program) is None:
                return Mehrotra(self.threads), "a small program is solved in compiled code"
            return self._clarabel, "it has cones other than half-lines"
        if ActiveSet().unsupported(program) is None:
            return ActiveSet(self.threads), "a small strictly convex quadratic program is solved exactly by active sets"
        if Mehrotra().unsupported(program) is None:
            return Mehrotra(self.threads), "a small linear or quadratic program is solved in compiled code"
        if not n or n + m > self.most:
            return self._clarabel, f"n + m = {n + m} is above {self.most}" if n else "it has no variables"
        density = (2 * program.P.nnz + program.A.nnz) / (n * (n + 1) + m * n)
        if density < self.density:
            return self._clarabel, f"only {density:.0%} of the entries of P and A are stored"
        return (
            InteriorPoint(),
            f"a quadratic program with {density:.0%} of its entries is solved in one batch",
        )

"""A constraint that gets lost on the way to the solver does not go unnoticed.

Every entry of the zoo is solved with some rows of its conic program missing: each cone, all equalities, all
inequalities, and each row of these two. Twice: a solver that never hears of the rows and tells the most favourable
lie about them (no multiplier, the slack that fits), and a canonical form that never had them, so that the program
is solved rightly and is the wrong one. The layer has to report a failure, unless the answer is right all the same
because the rows do not matter at that point, or because polishing has found them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import cvxpy
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor
from zoo import ZOO, Entry, reference_solution

import ddn_cvx as ddn
from ddn_cvx.cones import Product
from ddn_cvx.declare import cvxpy_convex
from ddn_cvx.declare.canonical import Canonical, canonicalise
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace

SEEDS = (1, 2, 3, 4)
TOLERANCE = 1e-6
Rows = tuple[int, ...]


# Programs without some of their rows.


@dataclass(frozen=True)
class Loss:
    """A program without ``rows``, which are whole cones, equalities or inequalities."""

    program: ConicProgram
    kept: np.ndarray
    """Rows of the full program."""
    entries: np.ndarray
    """Stored entries of its A."""

    @staticmethod
    def of(full: ConicProgram, rows: Rows) -> Loss:
        kept = np.setdiff1d(np.arange(full.m), rows)
        entries = np.flatnonzero(np.isin(full.A.rows, kept))
        place = np.searchsorted(kept, full.A.rows[entries]), full.A.cols[entries]
        A = Pattern.of(sp.csc_array((np.ones(len(entries)), place), shape=(len(kept), full.n)))
        counts: dict[str, Any] = {"zero": 0, "nonneg": 0, "soc": [], "psd": [], "exp": 0, "power": []}
        for kind, block, extra in full.cones.blocks():
            left = np.isin(np.arange(block.start, block.stop), kept).sum()
            if kind in ("zero", "nonneg"):
                counts[kind] = int(left)
            elif left:
                counts[kind] = counts[kind] + (1 if kind == "exp" else [extra])
        cones = Product(**{kind: tuple(count) if isinstance(count, list) else count for kind, count in counts.items()})
        return Loss(ConicProgram(full.P, A, cones), kept, entries)


def losses(program: ConicProgram) -> Iterator[Rows]:
    """Each block, and the single rows of the blocks whose rows are cones of their own."""
    for kind, block, _ in program.cones.blocks():
        rows = tuple(range(block.start, block.stop))
        yield rows
        if kind in ("zero", "nonneg") and len(rows) > 1:
            yield from ((row,) for row in rows)


@dataclass(frozen=True)
class Lossy(Solver):
    """Clarabel on the program without some rows, whose slack it makes up."""

    name: ClassVar[str] = "lossy"
    rows: Rows = ()

    def unsupported(self, program: ConicProgram) -> str | None:
        return None

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        loss = Loss.of(program, self.rows)
        less = ConicData(data.P, data.q, data.A[:, loss.entries], data.b[:, loss.kept])
        raw = ddn.Clarabel(threads=1).solve(loss.program, less, Workspace())
        y, s = torch.zeros_like(data.b), data.b - program.A_times(data.A, raw.x)
        y[:, loss.kept], s[:, loss.kept] = raw.y, raw.s
        return replace(raw, y=y, s=s)


def forgetful(canonical: Canonical, rows: Rows) -> Canonical:
    """The canonical form that is left when cvxpy drops some rows."""
    full, loss = canonical.program, Loss.of(canonical.program, rows)
    start = full.P.nnz + full.n + 1
    data = np.concatenate([np.arange(start), start + loss.entries, start + full.A.nnz + loss.kept])

    def shrunk(maps: tuple[sp.csr_array, sp.csr_array | None]) -> tuple[sp.csr_array, sp.csr_array | None]:
        return maps[0][:, loss.kept], None if maps[1] is None else maps[1][:, loss.kept]

    duals = {key: shrunk(maps) for key, maps in canonical.duals.items()}
    return replace(canonical, program=loss.program, data=canonical.data[data], duals=duals)


# What becomes of the answers.


@cache
def sample(name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and the true outputs of an entry at several points, one batch element a point."""
    entry = ZOO[name]
    values = [entry.sample(np.random.default_rng(seed)) for seed in SEEDS]
    answers = [reference_solution(entry, value) for value in values]
    return tuple([torch.as_tensor(np.stack(parts)) for parts in zip(*batch, strict=True)] for batch in (values, answers))


def layer_of(entry: Entry) -> ddn.DeclarativeLayer:
    problem, parameters, outputs = entry.build()
    return ddn.DeclarativeLayer(problem, parameters, outputs, gp="gp" in entry.tags, on_failure="nan")


def verdicts(entry: Entry, layer: ddn.DeclarativeLayer) -> list[str]:
    """At each point ``caught``, ``harmless`` or ``missed``."""
    values, answers = sample(entry.name)
    solution = layer.solve(*values)
    solved, right = solution.status == int(Status.SOLVED), torch.ones(len(SEEDS), dtype=torch.bool)
    if "nonunique" in entry.tags:
        problem, parameters, outputs = entry.build()
        for k in range(len(SEEDS)):
            right[k] = bool(solved[k]) and _is_optimal(
                problem, [*zip(parameters, values, strict=True)], [*zip(outputs, solution.outputs, strict=True)],
                [*zip(outputs, answers, strict=True)], k,
            )  # fmt: skip
    else:
        for output, answer in zip(solution.outputs, answers, strict=True):
            error = (output - answer).abs().flatten(1).amax(1)
            right &= error <= TOLERANCE * (1 + answer.abs().flatten(1).amax(1))
    return ["caught" if not s else "harmless" if r else "missed" for s, r in zip(solved, right, strict=True)]


def _is_optimal(problem: cvxpy.Problem, given: Any, found: Any, known: Any, k: int) -> bool:
    """One of many solutions is right if it is feasible and as good as the known one."""
    for parameter, value in given:
        parameter.value = value[k].numpy()
    values = []
    for outputs in (known, found):
        for variable, value in outputs:
            variable.save_value(value[k].detach().numpy())
        values.append(problem.objective.value)
    feasible = all(np.max(constraint.violation()) <= TOLERANCE for constraint in problem.constraints)
    return feasible and bool(np.isclose(*values, rtol=TOLERANCE, atol=TOLERANCE))


@dataclass
class Tally:
    """Of all losses of an entry."""

    every: Counter[str]
    """By loss and point."""
    idle: list[Rows]
    """Losses that made no difference at any point."""


def tally(program: ConicProgram, judge: Callable[[Rows], list[str]]) -> Tally:
    found = Tally(Counter(), [])
    for rows in losses(program):
        told = judge(rows)
        found.every.update(told)
        if set(told) == {"harmless"}:
            found.idle.append(rows)
    return found


@cache
def with_lossy_solver(name: str, polish_steps: int) -> Tally:
    entry, layer = ZOO[name], layer_of(ZOO[name])
    layer.polish_steps = polish_steps
    return tally(layer.node.program, lambda rows: verdicts(entry, layer.with_solver(Lossy(rows))))


@cache
def with_forgetful_declaration(name: str) -> Tally:
    entry, seen = ZOO[name], list[Canonical]()

    def watched(*args: Any) -> Canonical:
        seen.append(canonicalise(*args))
        return seen[-1]

    def judge(rows: Rows) -> list[str]:
        patch.setattr(cvxpy_convex, "canonicalise", lambda *args: forgetful(canonicalise(*args), rows))
        return verdicts(entry, layer_of(entry))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cvxpy_convex, "canonicalise", watched)
        layer_of(entry)
        return tally(seen[0].program, judge)


each = pytest.mark.parametrize("name", ZOO)


@pytest.mark.parametrize("polish_steps", [0, 3])
@each
def test_rows_that_the_solver_loses_are_missed(name: str, polish_steps: int) -> None:
    assert with_lossy_solver(name, polish_steps).every["missed"] == 0


@each
def test_rows_that_the_declaration_loses_are_missed(name: str) -> None:
    assert with_forgetful_declaration(name).every["missed"] == 0

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
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor
from zoo import ZOO, Built, Entry, reference_solution

import ddn_cvx as ddn
from ddn_cvx.cones import Product
from ddn_cvx.declare import cvxpy_convex
from ddn_cvx.declare.canonical import Canonical, canonicalise
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace

POINTS = (range(4), range(4, 16))  # the second for rows that do not matter at any of the first
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


def layer_of(name: str, built: Built) -> ddn.DeclarativeLayer:
    problem, parameters, outputs = built
    return ddn.DeclarativeLayer(problem, parameters, outputs, gp="gp" in ZOO[name].tags, on_failure="nan")


@dataclass(frozen=True)
class Trial:
    """One entry of the zoo at several points, one batch element a point."""

    entry: Entry
    values: list[Tensor]
    answers: list[Tensor]
    """The true outputs."""

    def judge(self, layer: ddn.DeclarativeLayer) -> list[str]:
        """At each point ``caught``, ``harmless`` or ``missed``."""
        solution = layer.solve(*self.values)
        # Where polishing does not bring x to the optimum, x is as good as the square root of the gap.
        accuracy = TOLERANCE if layer.polish_steps else 1e-4
        said = []
        for k in range(len(solution.status)):
            found, known = ([t[k] for t in outputs] for outputs in (solution.outputs, self.answers))
            if solution.status[k] != int(Status.SOLVED):
                said.append("caught")
            elif all(torch.allclose(a, b, rtol=accuracy, atol=accuracy) for a, b in zip(found, known, strict=True)):
                said.append("harmless")
            else:
                said.append("harmless" if self.is_optimal(k, found) else "missed")
        return said

    def is_optimal(self, k: int, found: list[Tensor]) -> bool:
        """Where the optimum is flat, a point is right that is feasible and as good as the known one, by cvxpy's account."""
        problem, parameters, outputs = self.entry.build()
        if {v.id for v in outputs} != {v.id for v in problem.variables()}:
            return False
        for parameter, value in zip(parameters, self.values, strict=True):
            parameter.value = value[k].numpy()
        objectives = []
        for answer in ([t[k] for t in self.answers], found):
            for variable, value in zip(outputs, answer, strict=True):
                variable.save_value(value.numpy())
            objectives.append(problem.objective.value)
        feasible = all(np.max(constraint.violation()) <= TOLERANCE for constraint in problem.constraints)
        return feasible and bool(np.isclose(*objectives, rtol=TOLERANCE, atol=TOLERANCE))


@cache
def trial(name: str, seeds: range) -> Trial:
    values = [ZOO[name].sample(np.random.default_rng(seed)) for seed in seeds]
    answers = [reference_solution(ZOO[name], value) for value in values]
    batches = ([torch.as_tensor(np.stack(parts)) for parts in zip(*batch, strict=True)] for batch in (values, answers))
    return Trial(ZOO[name], *batches)


def verdicts(name: str, layer: ddn.DeclarativeLayer) -> Counter[str]:
    said: Counter[str] = Counter()
    for seeds in POINTS[: 1 if "degenerate" in ZOO[name].tags else 2]:
        if not said["caught"]:
            said.update(trial(name, seeds).judge(layer))
    return said


Tally: TypeAlias = dict[Rows, Counter[str]]


@cache
def with_lossy_solver(name: str, polish_steps: int) -> Tally:
    layer = layer_of(name, ZOO[name].build())
    layer.polish_steps = polish_steps
    return {rows: verdicts(name, layer.with_solver(Lossy(rows))) for rows in losses(layer.node.program)}


@cache
def with_forgetful_declaration(name: str) -> Tally:
    built, seen, tally = ZOO[name].build(), list[Canonical](), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cvxpy_convex, "canonicalise", lambda *args: seen.append(canonicalise(*args)) or seen[0])
        layer_of(name, built)
        for rows in losses(seen[0].program):
            less = forgetful(seen[0], rows)
            patch.setattr(cvxpy_convex, "canonicalise", lambda *args, less=less: less)
            tally[rows] = verdicts(name, layer_of(name, built))
    return tally


each = pytest.mark.parametrize("name", ZOO)


@pytest.mark.parametrize("polish_steps", [0, 3])
@each
def test_what_the_solver_loses_is_noticed(name: str, polish_steps: int) -> None:
    assert [rows for rows, said in with_lossy_solver(name, polish_steps).items() if said["missed"]] == []


@each
def test_what_the_declaration_loses_is_noticed(name: str) -> None:
    assert [rows for rows, said in with_forgetful_declaration(name).items() if said["missed"]] == []


# With rows that follow from the others, whatever the parameters: the definiteness of a matrix whose logarithmic
# determinant is finite, and the diagonal of a skew-symmetric matrix.
REDUNDANT = {"covariance_selection", "hermitian_projection"}


def test_count(capsys: pytest.CaptureFixture[str]) -> None:
    ways: dict[str, Callable[[str], Tally]] = {
        "lying solver": lambda name: with_lossy_solver(name, 0),
        "lying solver, polished": lambda name: with_lossy_solver(name, 3),
        "forgetful declaration": with_forgetful_declaration,
    }
    for way, tally_of in ways.items():
        tallies = {name: tally_of(name) for name in ZOO}
        every = sum((said for tally in tallies.values() for said in tally.values()), Counter[str]())
        number = sum(map(len, tallies.values()))
        idle = {name for name, tally in tallies.items() if not all(said["caught"] for said in tally.values())}
        with capsys.disabled():
            print(f"\n{way}: {number} losses in {len(ZOO)} problems, at several points each: {dict(every)}", end="")
        assert every["missed"] == 0
        if way == "forgetful declaration":  # else polishing repairs, or the rows are gone with a variable
            assert {name for name in idle if "degenerate" not in ZOO[name].tags} == REDUNDANT

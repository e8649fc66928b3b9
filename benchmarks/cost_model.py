"""Measure the constants of ``ddn_cvx.solvers.cost``, and how good the choices are that follow from them.

    python -m benchmarks.cost_model            # measure, fit, compare the picks with the best measured
    python -m benchmarks.cost_model --write    # and write ddn_cvx/solvers/cost_rates.py

One thread. Programs are random with a known solution, half of the inequalities active; linear programs end in a vertex.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import nnls

from ddn_cvx.cones import Product
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solvers.active_set import ActiveSet
from ddn_cvx.solvers.auto import Auto
from ddn_cvx.solvers.base import Solver, Workspace, solve_in_units
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.conic_interior_point import ConicInteriorPoint
from ddn_cvx.solvers.cost import OPERATIONS, Rate, Size
from ddn_cvx.solvers.cost_rates import RATES
from ddn_cvx.solvers.interior_point import InteriorPoint
from ddn_cvx.solvers.mehrotra import Mehrotra

CANDIDATES: list[Solver] = [
    ActiveSet(threads=1), Mehrotra(threads=1), InteriorPoint(), ConicInteriorPoint(), Clarabel(threads=1)
]  # fmt: skip
FILE = Path(__file__).parents[1] / "ddn_cvx" / "solvers" / "cost_rates.py"
SIZES = (5, 10, 20, 50, 100, 200, 300)
BATCHES = (1, 64)
GOOD = 1.3
"""How much slower than the best measured choice a pick may be."""


@dataclass(frozen=True)
class Case:
    """A program, and the measured seconds of a batch by solver."""

    name: str
    size: Size
    batch: int
    program: ConicProgram
    seconds: dict[str, float]


def quadratic(n: int, rng: np.random.Generator) -> tuple[sp.csc_array, sp.csc_array, int]:
    """Dense and strictly convex: n/5 equalities and n inequalities."""
    m = n // 5 + n
    return sp.csc_array(np.triu(np.ones((n, n)))), sp.csc_array(np.ones((m, n))), n // 5


def linear(n: int, rng: np.random.Generator) -> tuple[sp.csc_array, sp.csc_array, int]:
    """A linear program in a box: n/2 dense equalities, 2 n bounds."""
    box = sp.vstack([sp.eye_array(n), -sp.eye_array(n)])
    return sp.csc_array((n, n)), sp.csc_array(sp.vstack([np.ones((n // 2, n)), box])), n // 2


def simplex(n: int, rng: np.random.Generator) -> tuple[sp.csc_array, sp.csc_array, int]:
    """Separable: one equality, n bounds."""
    return sp.csc_array(sp.eye_array(n)), sp.csc_array(sp.vstack([np.ones((1, n)), -sp.eye_array(n)])), 1


def sparse(n: int, rng: np.random.Generator) -> tuple[sp.csc_array, sp.csc_array, int]:
    """A chain, as in optimal control: a diagonal objective, n/2 equalities of three neighbours, n bounds."""
    k = n // 2
    rows = np.repeat(np.arange(k), 3)
    cols = (2 * np.repeat(np.arange(k), 3) + np.tile([0, 1, 2], k)) % n
    chain = sp.csc_array((np.ones(3 * k), (rows, cols)), shape=(k, n))
    return sp.csc_array(sp.eye_array(n)), sp.csc_array(sp.vstack([chain, -sp.eye_array(n)])), k


FAMILIES = {"qp": quadratic, "lp": linear, "simplex": simplex, "sparse": sparse}


def draw(family: str, n: int, batch: int) -> tuple[ConicProgram, ConicData]:
    """A program and numbers with a known solution."""
    rng = np.random.default_rng(n)
    P_mask, A_mask, equalities = FAMILIES[family](n, rng)
    program = ConicProgram(Pattern.of(P_mask), Pattern.of(A_mask), Product(equalities, A_mask.shape[0] - equalities))
    m, signs = program.m, A_mask[program.A.rows, program.A.cols]
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for _ in range(batch):
        root = rng.standard_normal((n, n)) / np.sqrt(n)
        P = (root @ root.T + 0.5 * np.eye(n)) * np.asarray((P_mask + P_mask.T).todense() != 0)
        values = np.where(np.abs(signs) * (np.bincount(program.A.rows, minlength=m) > 1)[program.A.rows] > 0,
                          rng.standard_normal(program.A.nnz), signs)  # fmt: skip
        A = program.A.matrix(values)
        x = rng.standard_normal(n)
        active = rng.random(m) < 0.5
        if not program.P.nnz:  # a vertex: as many active rows as variables
            at_bound = rng.permutation(n)[equalities:]
            active[:] = False
            active[equalities + at_bound + n * rng.integers(2, size=len(at_bound))] = True
        s, y = np.where(active, 0, rng.random(m)), np.where(active, rng.random(m), 0)
        s[:equalities], y[:equalities] = 0, rng.standard_normal(equalities)
        data = (P[program.P.rows, program.P.cols], -P @ x - A.T @ y, values, A @ x + s)
        for column, value in zip(columns, data, strict=True):
            column.append(value)
    return program, ConicData(*(torch.from_numpy(np.stack(column)) for column in columns))


def measure(solver: Solver, program: ConicProgram, data: ConicData, patience: float) -> float:
    """The least seconds of a call among those that fit into ``patience``, after one that does not count."""
    workspace = Workspace()
    solve_in_units(solver, program, data, workspace)
    best, end = np.inf, time.perf_counter() + patience
    while True:
        start = time.perf_counter()
        raw = solve_in_units(solver, program, data, workspace)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > end:
            return best if float((raw.status == 0).double().mean()) > 0.9 else np.inf


def grid(families: list[str], sizes: list[int], patience: float) -> Iterator[Case]:
    """Every family, size and batch, all solvers one after the other."""
    for family in families:
        for n in sizes:
            for batch in BATCHES:
                count = batch if n <= 100 else min(batch, 8)
                program, data = draw(family, n, count)
                able = [s for s in CANDIDATES if s.unsupported(program) is None]
                found = {solver.name: measure(solver, program, data, patience) for solver in able}
                yield Case(f"{family} {n}", Size.of(program), count, program, found)


def fit(cases: list[Case]) -> dict[str, Rate]:
    """Constants that are right by as small a factor as possible: least squares of relative errors."""
    found = {}
    for name, count in OPERATIONS.items():
        own = [(c, c.seconds[name]) for c in cases if np.isfinite(c.seconds.get(name, np.inf))]
        if not own:
            continue
        rows = np.array([[1.0, c.batch, c.batch * count(c.size) * 1e-9] for c, _ in own])
        measured = np.array([t for _, t in own])
        weights = 1 / measured
        for _ in range(20):  # relative to the geometric mean of both, so that too little counts like too much
            call, element, inverse = nnls(rows * weights[:, None], measured * weights)[0]
            weights = 1 / np.sqrt(measured * np.maximum(rows @ (call, element, inverse), 1e-9))
        found[name] = Rate(call, element, 1e9 / max(inverse, 1e-3))
    return found


def report(cases: list[Case], rates: dict[str, Rate]) -> str:
    """A table of measured and estimated microseconds an instance, and how many choices are good."""
    names = list(OPERATIONS)
    lines = ["measured (estimated) microseconds an instance; * picked", " " * 22 + "".join(f"{n:>24}" for n in names)]
    good = 0
    for case in cases:
        picked, best = Auto().pick(case.program).solver.name, min(case.seconds.values())
        ratio = case.seconds[picked] / best
        good += ratio <= GOOD
        cells = []
        for name in names:
            if name not in case.seconds:
                cells.append(f"{'-':>24}")
                continue
            guess = rates[name].seconds(OPERATIONS[name](case.size), case.batch) / case.batch
            text = f"{case.seconds[name] / case.batch * 1e6:.0f} ({guess * 1e6:.0f}){'*' if name == picked else ' '}"
            cells.append(f"{text:>24}")
        lines.append(f"{case.name:<14} B={case.batch:<4} " + "".join(cells) + f"  {ratio:.2f}")
    lines.append(f"{good} of {len(cases)} picks are within {GOOD} of the best measured")
    return "\n".join(lines)


def write(rates: dict[str, Rate]) -> None:
    """Write the constants, with three digits."""
    lines = [
        '"""Written by ``python -m benchmarks.cost_model --write``; see ``cost``."""',
        "",
        "# (solver, device): seconds a call, seconds an instance, operations a second",
        "RATES: dict[tuple[str, str], tuple[float, float, float]] = {",
        *(
            f'    ("{name}", "cpu"): ({r.call:.2e}, {r.element:.2e}, {r.operations:.2e}),'
            for name, r in sorted(rates.items())
        ),
        "}",
    ]
    FILE.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Measure, fit, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the constants into the package")
    parser.add_argument("--patience", type=float, default=0.05, help="seconds for each measurement (default 0.05)")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = list(grid(args.families, args.sizes, args.patience))
    rates = fit(cases)
    RATES.update({(name, "cpu"): (r.call, r.element, r.operations) for name, r in rates.items()})
    print(report(cases, rates))
    for name, r in rates.items():
        times = f"{r.call * 1e6:8.0f} us a call, {r.element * 1e6:8.1f} us an instance"
        print(f"{name:<16} {times}, {r.operations / 1e9:6.2f} operations a ns")
    if args.write:
        write(rates)


if __name__ == "__main__":
    main()

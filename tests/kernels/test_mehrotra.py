"""The compiled interior-point method against the optimality conditions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from quadratic import Program, random_program

from ddn_cvx.kernels import interior_point


def one(program: Program):
    n, m = len(program.q), len(program.b)
    out = [np.full((1, k), np.nan) for k in (n, m, m)]
    codes = [np.zeros(1, np.int64) for _ in range(2)]
    interior_point.solve(0, 1, program.structure, *program.values, *out, *codes)
    return (*(t[0] for t in out), *(c[0] for c in codes))


def boxed(program: Program, linear: bool) -> Program:
    n = len(program.q)
    A = np.concatenate([program.A, np.eye(n), -np.eye(n)])
    P = np.zeros((n, n)) if linear else program.P
    return Program(P, program.q, A, np.concatenate([program.b, np.full(2 * n, 5.0)]), program.zero)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**31), n=st.integers(1, 12), equalities=st.integers(0, 3), inequalities=st.integers(0, 15),
    bounds=st.integers(0, 12), kind=st.sampled_from(["strict", "semidefinite", "linear"]),
)  # fmt: skip
def test_optimal_or_given_up(seed: int, n: int, equalities: int, inequalities: int, bounds: int, kind: str) -> None:
    program = random_program(
        seed, n, min(equalities, n - 1), inequalities, bounds, rank=None if kind == "strict" else n // 2
    )
    if kind != "strict":
        program = boxed(program, kind == "linear")
    x, y, s, status, _ = one(program)
    assert status in (interior_point.SOLVED, interior_point.BROKEN)
    if status == interior_point.SOLVED:
        assert program.violation(x, y, s) <= 1e-6
    else:
        assert np.isnan(x).all()


@pytest.mark.parametrize("linear", [False, True])
def test_most_are_solved(linear: bool) -> None:
    """Some have no interior: two bounds of one variable are tight at once."""
    programs = [boxed(random_program(seed, 10, 2, 12, 4, rank=5), linear) for seed in range(100)]
    found = [one(program) for program in programs]
    assert sum(status == interior_point.SOLVED for *_, status, _ in found) >= 90
    assert np.mean([iterations for *_, iterations in found]) <= 15


def test_what_has_no_solution_is_not_solved() -> None:
    for q, A, b in (
        (np.ones(1), [[1.0], [-1.0]], [-1.0, -1.0]),  # infeasible
        (np.ones(1), [[1.0], [1.0]], [1.0, 2.0]),  # unbounded
    ):
        x, _, _, status, _ = one(Program(np.zeros((1, 1)), q, np.array(A), np.array(b), 0))
        assert status == interior_point.BROKEN and np.isnan(x).all()
    program = boxed(random_program(0, 4, 1, 3, 2), True)
    program.values[1][0, 0] = np.inf
    assert one(program)[3] == interior_point.INVALID

"""The active-set methods against the optimality conditions, which have one solution where P is positive definite."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from quadratic import Program, random_program

from ddn_cvx.kernels import active_set, separable, status as kernel_status
from ddn_cvx.kernels.jit import spread
from ddn_cvx.solution import Status


def solve(program: Program, threads: int = 1, copies: int = 1):
    values = [np.repeat(t, copies, 0) for t in program.values]
    m = len(program.b)
    out = [np.full((copies, k), np.nan) for k in (len(program.q), m, m)]
    codes = [np.zeros(copies, np.int64) for _ in range(2)]
    kernels = [separable.solve] if program.structure.separable else []
    for kernel in (*kernels, active_set.solve):  # what the first leaves is for the second
        spread(kernel, copies, 1e9, program.structure, *values, *out, *codes, threads=threads)
        if not (codes[0] == separable.LIMIT).any():
            break
    return (*out, *codes)


def one(program: Program):
    return tuple(t[0] for t in solve(program))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**31), n=st.integers(1, 12), equalities=st.integers(0, 4), inequalities=st.integers(0, 15),
    bounds=st.integers(0, 12),
)  # fmt: skip
def test_optimal(seed: int, n: int, equalities: int, inequalities: int, bounds: int) -> None:
    program = random_program(seed, n, min(equalities, n), inequalities, bounds)
    x, y, s, status, _ = one(program)
    assert status == active_set.SOLVED
    assert program.violation(x, y, s) <= 1e-10


@pytest.mark.parametrize("n, equalities, inequalities", [(60, 10, 80), (100, 0, 100), (90, 30, 20)])
def test_optimal_when_large(n: int, equalities: int, inequalities: int) -> None:
    program = random_program(0, n, equalities, inequalities, 30)
    x, y, s, status, _ = one(program)
    assert status == active_set.SOLVED and program.violation(x, y, s) <= 1e-10


def project_simplex(p):
    """By sorting (Held, Wolfe & Crowder, 1974)."""
    u = np.sort(p)[::-1]
    total = np.cumsum(u) - 1
    k = np.flatnonzero(u - total / np.arange(1, len(p) + 1) > 0)[-1]
    return np.maximum(p - total[k] / (k + 1), 0)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 40), scale=st.floats(-3, 3))
def test_simplex_projection(seed: int, n: int, scale: float) -> None:
    p = 10.0**scale * np.random.default_rng(seed).standard_normal(n)
    A = np.concatenate([np.ones((1, n)), -np.eye(n)])
    program = Program(np.eye(n), -p, A, np.concatenate([[1.0], np.zeros(n)]), 1)
    assert program.structure.separable or n == 1
    x, _, _, status, rounds = one(program)
    assert status == active_set.SOLVED
    assert 0 < rounds <= 40
    np.testing.assert_allclose(x, project_simplex(p), atol=1e-12 * (1 + np.abs(p).max()))


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 20), equalities=st.integers(0, 3), bounds=st.integers(1, 40))
def test_separable(seed: int, n: int, equalities: int, bounds: int) -> None:
    general = random_program(seed, n, min(equalities, n), 0, bounds)
    program = Program(np.diag(1 + np.arange(n) % 5.0), general.q, general.A, general.b, general.zero)
    assert program.structure.separable
    x, y, s, status, _ = one(program)
    assert status == active_set.SOLVED and program.violation(x, y, s) <= 1e-10


def test_redundant_constraints_do_no_harm() -> None:
    program = random_program(3, 8, 3, 6, 4)
    A, b = program.A, program.b
    twice = Program(program.P, program.q, np.concatenate([A[:3], 2 * A[:3], A]), np.concatenate([b[:3], 2 * b[:3], b]), 9)
    x, y, s, status, _ = one(twice)
    assert status == active_set.SOLVED and twice.violation(x, y, s) <= 1e-9
    again = Program(program.P, program.q, np.concatenate([A, A[3:]]), np.concatenate([b, b[3:]]), 3)
    x2, y, s, status, _ = one(again)
    assert status == active_set.SOLVED and again.violation(x2, y, s) <= 1e-9
    np.testing.assert_allclose(x, x2, atol=1e-9)


@pytest.mark.parametrize(
    "A, b, zero",
    [
        ([[1.0, 0.0], [-1.0, 0.0]], [-1.0, -1.0], 0),
        ([[1.0, 1.0], [-1.0, -1.0]], [-1.0, -1.0], 0),
        ([[1.0, 1.0], [1.0, 1.0]], [0.0, 1.0], 2),
        ([[0.0, 0.0], [1.0, 1.0]], [-1.0, 1.0], 0),
        ([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], [3.0, 1.0, 1.0], 1),
    ],
)
@pytest.mark.parametrize("P", [np.eye(2), np.array([[2.0, 1.0], [1.0, 2.0]])])
def test_infeasible(P, A, b, zero) -> None:
    x, y, s, status, _ = one(Program(P, np.ones(2), np.array(A), np.array(b), zero))
    assert status == active_set.INFEASIBLE
    assert all(np.isnan(t).all() for t in (x, y, s))


def test_codes_are_those_of_the_package() -> None:
    meaning = {"BROKEN": "NUMERICAL_ERROR", "INVALID": "INVALID_DATA", "LIMIT": "ITERATION_LIMIT"}
    codes = {name: code for name, code in vars(kernel_status).items() if name.isupper()}
    assert codes and all(code == Status[meaning.get(name, name)] for name, code in codes.items())


def test_what_is_not_strictly_convex_is_left_alone() -> None:
    for P in (np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([[1.0, 2.0], [2.0, 1.0]])):
        program = Program(P, np.ones(2), -np.eye(2), np.zeros(2), 0)
        assert one(program)[3] == active_set.BROKEN


def test_what_is_not_finite_is_said_to_be() -> None:
    for index in range(4):
        program = random_program(0, 4, 1, 3, 2)
        program.values[index][0, 0] = np.nan
        x, _, _, status, _ = one(program)
        assert status == active_set.INVALID and np.isnan(x).all()


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_zero_is_never_a_negative_one(slope: float) -> None:
    x, _, _, status, _ = one(Program(np.eye(2), np.full(2, slope), -np.eye(2), np.zeros(2), 0))
    assert status == separable.SOLVED and (x == 0.0).all() and not np.signbit(x).any()


def test_threads_change_no_bit() -> None:
    program = random_program(1, 15, 3, 20, 5)
    alone = one(program)
    for threads in (1, 2, 3):
        for found, expected in zip(solve(program, threads, 37), alone, strict=True):
            assert all(np.array_equal(row, expected) for row in found)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 8), copies=st.integers(1, 3), noise=st.sampled_from([0.0, 1e-13, 1e-10]))
def test_degenerate_vertices_are_solved_or_given_up(seed: int, n: int, copies: int, noise: float) -> None:
    """More tight constraints than variables, some of them nearly equal."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-2, 3, (2 * n, n)).astype(float)
    point = rng.integers(-2, 3, n).astype(float)
    A = np.concatenate([rows + noise * rng.standard_normal(rows.shape) for _ in range(copies)])
    program = Program(np.eye(n) + 0.5, rng.standard_normal(n), A, A @ point, 0)
    x, y, s, status, _ = one(program)
    assert status in (active_set.SOLVED, active_set.LIMIT, active_set.BROKEN) or noise > 0
    if status == active_set.SOLVED:
        assert program.violation(x, y, s) <= 1e-8

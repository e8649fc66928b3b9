"""The factors of the KKT system against numpy's solution of the whole system."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from quadratic import Program, random_program

from ddn_cvx.kernels import kkt_once, separable
from ddn_cvx.linalg.polyhedral import PolyhedralKKT


def jacobian(program: Program, v) -> np.ndarray:
    D = np.diag(np.where((np.arange(len(v)) < program.zero) | (v > 0), 1.0, 0.0))
    return np.block([[program.P, program.A.T @ D], [program.A, D - np.eye(len(v))]])


def factor(program: Program, v, ok: bool = True) -> PolyhedralKKT:
    def refuse(rows):
        raise LookupError(rows)

    P, _, A, _ = (torch.from_numpy(t) for t in program.values)
    return PolyhedralKKT(program.structure, P, A, torch.from_numpy(v)[None], torch.tensor([ok]), refuse)


def active(program: Program, seed: int, count: int):
    """A random v with at most ``count`` active inequalities, and no variable fixed twice."""
    rng = np.random.default_rng(seed)
    v = -rng.random(len(program.b)) - 0.1
    v[: program.zero] = rng.standard_normal(program.zero)
    fixed: set[int] = set()
    for i in rng.permutation(np.arange(program.zero, len(v)))[:count]:
        support = np.flatnonzero(program.A[i])
        if len(support) == 1 and support[0] in fixed:
            continue
        fixed.update(support if len(support) == 1 else [])
        v[i] = rng.random() + 0.1
    return v


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**31), n=st.integers(2, 10), equalities=st.integers(0, 2), inequalities=st.integers(0, 5),
    bounds=st.integers(0, 8), columns=st.integers(1, 3),
)  # fmt: skip
def test_solutions(seed: int, n: int, equalities: int, inequalities: int, bounds: int, columns: int) -> None:
    program = random_program(seed, n, min(equalities, n - 1), inequalities, bounds)
    v = active(program, seed, max(0, n - 1 - program.zero))
    J = jacobian(program, v)
    if np.linalg.cond(J) > 1e7:
        return
    factors = factor(program, v)
    right = np.random.default_rng(seed).standard_normal((n + len(v), columns))
    top, low = (torch.from_numpy(t.copy())[None] for t in np.split(right, [n]))
    for method, matrix in ((factors.forward, J), (factors.reverse, J.T)):
        found = np.concatenate([t[0].numpy() for t in method(top, low)])
        expected = np.linalg.solve(matrix, right)
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9 * np.abs(expected).max())
    once = [np.empty((1, n)), np.empty((1, len(v))), np.empty(1, bool)]
    values = program.values[0], program.values[2], v[None], np.ones(1, bool)
    kkt_once.reverse(0, 1, program.structure, *values, right[None, :n, 0], right[None, n:, 0], *once)
    assert once[2].all()
    np.testing.assert_allclose(np.concatenate(once[:2], 1)[0], np.linalg.solve(J.T, right[:, 0]), rtol=1e-8, atol=1e-8)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 10), equalities=st.integers(0, 3), bounds=st.integers(0, 8))
def test_separable(seed: int, n: int, equalities: int, bounds: int) -> None:
    general = random_program(seed, n, min(equalities, n - 1), 0, bounds)
    program = Program(np.diag(1 + np.arange(n) % 5.0), general.q, general.A, general.b, general.zero)
    v = active(program, seed, max(0, n - 1 - program.zero))
    J = jacobian(program, v)
    if np.linalg.cond(J) > 1e7:
        return
    right = np.random.default_rng(seed).standard_normal(n + len(v))
    u, w, healthy = np.empty((1, n)), np.empty((1, len(v))), np.empty(1, bool)
    values = program.values[0], program.values[2], v[None], np.ones(1, bool)
    separable.reverse(0, 1, program.structure, *values, right[None, :n], right[None, n:], u, w, healthy)
    assert healthy.all() and program.structure.separable
    np.testing.assert_allclose(np.concatenate((u, w), 1)[0], np.linalg.solve(J.T, right), rtol=1e-8, atol=1e-8)


def test_a_singular_quadratic_term_is_made_up_for_by_constraints() -> None:
    program = random_program(2, 6, 4, 0, 0, rank=2)
    v = np.zeros(4)
    J = jacobian(program, v)
    right = np.random.default_rng(0).standard_normal(10)
    top, low = torch.from_numpy(right[:6])[None, :, None], torch.from_numpy(right[6:])[None, :, None]
    found = np.concatenate([t[0, :, 0].numpy() for t in factor(program, v).forward(top, low)])
    np.testing.assert_allclose(J @ found, right, atol=1e-10)


@pytest.mark.parametrize(
    "P, A, v",
    [
        (np.eye(2), [[1.0, 1.0], [2.0, 2.0]], [1.0, 1.0]),  # the same constraint twice
        (np.zeros((2, 2)), [[1.0, 1.0]], [1.0]),  # a direction without curvature
        (np.eye(2), [[1.0, 0.0], [2.0, 0.0]], [1.0, 1.0]),  # two bounds on one variable
        (np.eye(2), [[1.0, 1.0], [1.0, -1.0], [1.0, 0.5]], [1.0, 1.0, 1.0]),  # more constraints than variables
    ],
)
def test_singular_systems_are_handed_over(P, A, v) -> None:
    program = Program(P, np.zeros(2), np.array(A), np.zeros(len(v)), 0)
    with pytest.raises(LookupError):
        factor(program, np.array(v))


def test_elements_without_a_solution_get_zeros() -> None:
    program = random_program(0, 4, 1, 3, 2)
    factors = factor(program, np.ones(len(program.b)), ok=False)
    ones = torch.ones(1, 4, 1, dtype=torch.float64), torch.ones(1, len(program.b), 1, dtype=torch.float64)
    assert not any(t.any() for t in factors.forward(*ones))

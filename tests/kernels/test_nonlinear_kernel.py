"""Factors of indefinite matrices against numpy, and the compiled nonlinear method's independence of what is beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ddn_cvx.kernels.indefinite import factor, solve
from ddn_cvx.kernels.jit import jit
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solvers.compiled_nonlinear import CompiledInteriorPoint
from tests.hock_schittkowski import PROBLEMS

F64 = torch.float64


@jit
def factor_and_solve(K: Any, size: int, pivots: Any, x: Any) -> tuple[int, int]:
    counts = factor(K, size, pivots)
    solve(K, size, pivots, x)
    return counts


def matrices() -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    found = []
    for n in (1, 2, 3, 5, 8, 21, 40):
        for kind in range(6):
            A = chance.standard_normal((n, n))
            A = A + A.T
            if kind % 3 == 1:  # a saddle point: no pivots on part of the diagonal
                A[n - n // 3 :, n - n // 3 :] = 0.0
            if kind % 3 == 2:  # holes
                A = np.triu(A * (chance.random((n, n)) < 0.4)) + np.diag(chance.standard_normal(n))
                A = A + np.triu(A, 1).T
            if np.abs(np.linalg.eigvalsh(A)).min() > 1e-6:
                found.append(A)
    return found


def test_indefinite_factor_has_the_inertia_and_solves() -> None:
    tried = matrices()
    assert len(tried) > 30
    for A in tried:
        n, right = len(A), np.arange(1.0, len(A) + 1)
        K, x = np.full((n + 2, n + 2), np.nan), right.copy()
        K[:n, :n] = np.triu(A) + np.tril(np.full((n, n), np.nan), -1)  # the lower triangle is not read
        values = np.linalg.eigvalsh(A)
        assert factor_and_solve(K, n, np.zeros(n, np.int64), x) == ((values > 0).sum(), (values < 0).sum())
        np.testing.assert_allclose(A @ x, right, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("A", [np.zeros((3, 3)), np.diag([1.0, 0.0, 2.0]), np.diag([1.0, np.nan, 2.0])])
def test_a_singular_matrix_is_recognised(A: np.ndarray) -> None:
    positive, negative = factor_and_solve(A.copy(), 3, np.zeros(3, np.int64), np.ones(3))
    assert positive + negative < 3


def by_number(number: int) -> tuple[NonlinearProgram, Theta, torch.Tensor]:
    problem = next(p for p in PROBLEMS if p.number == number)
    return problem.program(), *problem.batch(37, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("number", [43, 71, 61])
def test_an_answer_does_not_depend_on_batch_mates_lanes_and_threads(number: int) -> None:
    """37 elements fill four and a half blocks of lanes."""
    program, theta, start = by_number(number)
    whole = CompiledInteriorPoint(threads=1).solve(program, theta, start)
    rows = torch.tensor([36, 5, 17, 0, 5])
    some = CompiledInteriorPoint(threads=1).solve(program, theta.take(rows), start[rows])
    spread = CompiledInteriorPoint(threads=3).solve(program, theta, start)
    for name in ("y", "lam", "mu", "z", "status", "iterations"):
        assert torch.equal(getattr(whole, name)[rows], getattr(some, name)), name
        assert torch.equal(getattr(whole, name), getattr(spread, name)), name


def test_an_element_with_nan_is_alone_with_it() -> None:
    program, theta, start = by_number(71)
    before = CompiledInteriorPoint(threads=1).solve(program, theta, start)
    theta.tensors[0][3], start[11, 0] = torch.nan, torch.nan
    after = CompiledInteriorPoint(threads=1)._run(program, program.tape(start[:1], theta.take([0])), theta, start, None)
    failed = torch.zeros(len(start), dtype=torch.bool)
    failed[[3, 11]] = True
    assert (after.status[failed] != 0).all()
    assert torch.equal(before.y[~failed], after.y[~failed])

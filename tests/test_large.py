"""Problems with many parameters: sparse parameters, no factors where they would be dense, memory linear in the entries."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import ddn_cvx as ddn
from ddn_cvx.cones import Product
from ddn_cvx.linalg import fill
from ddn_cvx.linalg.krylov import KrylovKKT
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.linalg.sparse import SparseKKT
from ddn_cvx.program.conic import ConicData, ConicProgram

PLACES = (np.array([0, 0, 1, 2, 3, 3, 4]), np.array([0, 2, 1, 2, 0, 1, 2]))


def regression(**attributes: object) -> tuple[ddn.DeclarativeLayer, cp.Parameter]:
    A, b, x = cp.Parameter((5, 3), sparsity=PLACES, **attributes), cp.Parameter(5), cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + cp.norm1(A.T @ (A @ np.ones(3)) * 0.1 - x)))
    return ddn.DeclarativeLayer(problem, [A, b], x), A


def stored(parameter: cp.Parameter, values: torch.Tensor, batch: int = 0) -> torch.Tensor:
    """A sparse tensor, of a batch if there is one."""
    places = torch.as_tensor(np.stack(parameter.sparse_idx))
    if not batch:
        return torch.sparse_coo_tensor(places, values, parameter.shape, check_invariants=True)
    which = torch.arange(batch).repeat_interleave(places.shape[1]).unsqueeze(0)
    places = torch.cat((which, places.repeat(1, batch)))
    return torch.sparse_coo_tensor(places, values.flatten(), (batch, *parameter.shape), check_invariants=True)


def test_sparse_tensors_are_what_dense_ones_are() -> None:
    layer, A = regression()
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 7, generator=generator, dtype=torch.float64).requires_grad_()
    b = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    dense = stored(A, values, 2).to_dense()
    expected = torch.autograd.grad((layer(dense, b) * weight).sum(), values)[0]
    assert expected.abs().min() > 1e-6
    out = layer(stored(A, values, 2), b)
    torch.testing.assert_close(out, layer(dense, b))
    torch.testing.assert_close(torch.autograd.grad((out * weight).sum(), values)[0], expected)
    one = stored(A, values[0])
    torch.testing.assert_close(layer(one, b[0]), out[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls this layout a beta
        torch.testing.assert_close(layer(one.to_sparse_csr(), b[0]), out[0])


def test_other_entries_are_refused() -> None:
    layer, _ = regression()
    b = torch.zeros(5, dtype=torch.float64)
    few = torch.sparse_coo_tensor([[0, 1], [0, 1]], [1.0, 2.0], (5, 3), dtype=torch.float64, check_invariants=True)
    with pytest.raises(ddn.InputError, match=r"7 entries.*with 2 entries"):
        layer(few, b)
    full = torch.ones(5, 3, dtype=torch.float64)
    with pytest.raises(ddn.SolverError, match="INVALID_DATA"):
        layer(full, b)
    signed, B = regression(nonneg=True)
    with pytest.raises(ddn.SolverError, match="INVALID_DATA"):
        signed(stored(B, -torch.ones(7, dtype=torch.float64)), b)
    x, p = cp.Variable(3), cp.Parameter(3)
    plain = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p))), [p], x)
    with pytest.raises(ddn.InputError, match="sparsity="):
        plain(torch.zeros(3, dtype=torch.float64).to_sparse())


def test_the_structure_tells_whether_there_is_a_sparse_factor() -> None:
    rng, n = np.random.default_rng(0), 4000
    P = Pattern.of(sp.eye_array(n))
    band = Pattern.of(sp.diags_array([1.0, 1.0, 1.0], offsets=[0, 3, 5], shape=(n, n)))
    anywhere = Pattern.of(sp.random_array((n, n), density=10 / n, rng=rng))
    assert fill.has_sparse_factor(P, band, Product(nonneg=n))
    assert fill.has_sparse_factor(P, band, Product(soc=(5,) * (n // 5)))
    assert not fill.has_sparse_factor(P, anywhere, Product(nonneg=n))
    assert not fill.has_sparse_factor(P, band, Product(nonneg=n - 3003, psd=(77,)))  # a block of 3003 rows


def test_the_count_of_entries_is_that_of_the_factor() -> None:
    M = sp.random_array((60, 60), density=0.04, rng=np.random.default_rng(1))
    K = sp.csc_array(M + M.T + 60 * sp.eye_array(60))
    L = np.linalg.cholesky(K.toarray())
    entries = int((np.tril(L, -1) != 0).sum())
    upper = sp.csc_array(sp.triu(K, 1))
    arrays = upper.indptr.astype(np.int64), upper.indices.astype(np.int64)
    assert fill.fill.count(*arrays, 10_000) == entries and fill.fill.count(*arrays, entries - 1) == -1


@pytest.mark.parametrize("curved", [False, True])
def test_products_give_what_factors_give(curved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Solution, gradient, second derivative and regularity of a program that is told to have no sparse factor."""
    n, generator = 1200, torch.Generator().manual_seed(0)
    x, p, least = cp.Variable(n), cp.Parameter(n), cp.Parameter()
    if curved:
        limits = [cp.norm(cp.reshape(x, (4, n // 4), order="F"), 2, axis=0) <= 1]
    else:
        limits = [x >= least, cp.sum(x) == 500, x[0] == 1]
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - p) + 0.1 * cp.sum_squares(cp.diff(x)) + 0 * least), limits)
    bound = torch.tensor([0.0, 0.01], dtype=torch.float64, requires_grad=True)
    value = torch.randn(2, n, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(2, n, generator=generator, dtype=torch.float64)

    outputs = [x] if curved else [x, limits[0].dual_variables[0]]

    def derivatives(layer: ddn.DeclarativeLayer) -> list[torch.Tensor]:
        out, *dual = layer(value, bound)
        loss = (out.square() * weight).sum() + sum((d * weight.flip(1)).sum() for d in dual)
        first, slope = torch.autograd.grad(loss, (value, bound), create_graph=True, allow_unused=True)
        return [out, first] if curved else [out, first, slope, torch.autograd.grad((first * weight).sum(), value)[0]]

    layer = ddn.DeclarativeLayer(problem, [p, least], outputs)
    expected = derivatives(layer)
    assert isinstance(_factor(layer, value, bound), SparseKKT)
    monkeypatch.setattr("ddn_cvx.linalg.fill.GROWTH", 0)
    monkeypatch.setattr("ddn_cvx.linalg.fill.ALWAYS", 1)
    other = ddn.DeclarativeLayer(problem, [p, least], outputs)
    assert isinstance(_factor(other, value, bound), KrylovKKT)
    for found, known in zip(derivatives(other), expected, strict=True):
        torch.testing.assert_close(found, known, rtol=1e-6, atol=1e-7)
    assert all(r & ddn.Regularity.SINGULAR_HESSIAN == 0 for r in other.solve(value, bound).regularities)


def _factor(layer: ddn.DeclarativeLayer, *values: torch.Tensor) -> object:
    from ddn_cvx.program.factor import factorise

    program = layer.node.program
    data = layer.node.bind(layer.node.pieces([v.detach() for v in values])).data
    return factorise(program, data.P, data.A, torch.ones_like(data.b), torch.ones(2, dtype=torch.bool))


def test_redundant_constraints_without_a_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddn_cvx.linalg.fill.GROWTH", 0)
    monkeypatch.setattr("ddn_cvx.linalg.fill.ALWAYS", 1)
    n = 1100
    x, p = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, 2 * cp.sum(x) == 2])
    layer = ddn.DeclarativeLayer(problem, [p], x)
    value = torch.rand(n, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    solution = layer.solve(value)
    assert solution.regularities == [ddn.Regularity.RANK_DEFICIENT]
    solution.outputs[0][:7].sum().backward()
    expected = torch.full((n,), -7 / n, dtype=torch.float64)
    expected[:7] += 1
    assert value.grad is not None and torch.allclose(value.grad, expected, atol=1e-8)


def test_large_quadratic_terms_are_checked_for_convexity() -> None:
    n, rng = 2500, np.random.default_rng(0)
    none, cones = Pattern.of(sp.csc_array((0, n))), Product()

    def convex(upper: sp.csc_array, shifts: list[float]) -> list[bool]:
        pattern = Pattern.of(upper)
        base = torch.as_tensor(sp.csc_array(upper).data)
        diagonal = torch.as_tensor((pattern.rows == pattern.cols).astype(float))
        values = torch.stack([base + s * diagonal for s in shifts])
        zero = torch.zeros(len(shifts), 0, dtype=torch.float64)
        data = ConicData(values, torch.zeros(len(shifts), n, dtype=torch.float64), zero, zero)
        found: list[bool] = ConicProgram(pattern, none, cones).is_convex(data).tolist()
        return found

    D = sp.diags_array([1.0, -1.0], offsets=[0, 1], shape=(n - 1, n))
    band = sp.csc_array(sp.triu(D.T @ D))  # eigenvalues from 0 to 4
    band.sort_indices()
    assert convex(band, [0.0, 0.1, -1e-6]) == [True, True, False]
    assert convex(sp.eye_array(n, format="csc"), [0.0, -0.5, -1.5]) == [True, True, False]
    M = sp.random_array((n, n), density=30 / n, rng=rng)
    everywhere = sp.csc_array(sp.triu(M.T @ M))
    everywhere.sort_indices()
    assert convex(everywhere, [1e-6, -1.0]) == [True, False]


def test_a_concave_objective_of_a_large_layer_is_invalid() -> None:
    n = 1500
    x, w = cp.Variable(n), cp.Parameter(n, nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.multiply(w, cp.square(x)))), [x >= -1, x <= 2])
    layer = ddn.DeclarativeLayer(problem, [w], x, on_failure="nan")
    value = torch.ones(2, n, dtype=torch.float64)
    value[1, 7] = -5e-5  # within the tolerance of the attribute
    assert layer.solve(value).statuses == [ddn.Status.SOLVED, ddn.Status.INVALID_DATA]


def test_memory_is_linear_in_the_entries() -> None:
    """100 000 entries of a matrix that would take 400 MB, and its maps many times that."""
    code = """
import json, benchmarks.large as large
row = large.measure("least squares, entries along a band", 100_000)
print(json.dumps(row))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    row = json.loads(done.stdout)
    assert row["memory"] < 380 and row["error"] < 1e-4

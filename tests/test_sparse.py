"""Large sparse programs: factorised sparsely, and right."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as spl
import torch
from zoo import simplex

import ddn_cvx as ddn
from ddn_cvx.program.conic import ConicProgram


@pytest.fixture(autouse=True)
def no_dense_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a dense matrix was formed")

    monkeypatch.setattr(ConicProgram, "dense", refuse)


def smoothing(n: int) -> tuple[ddn.DeclarativeLayer, sp.csr_array]:
    """``min 1/2 |x - p|^2 + 1/2 |D x|^2`` subject to ``x >= 0`` and ``sum(x) == total``, with second differences D."""
    D = sp.diags_array([1.0, -2.0, 1.0], offsets=[0, 1, 2], shape=(n - 2, n)).tocsr()
    x, p, total = cp.Variable(n), cp.Parameter(n), cp.Parameter()
    objective = 0.5 * cp.sum_squares(x - p) + 0.5 * cp.sum_squares(D @ x)
    return ddn.DeclarativeLayer(cp.Problem(cp.Minimize(objective), [x >= 0, cp.sum(x) == total]), [p, total], x), D


def test_gradient_of_a_large_quadratic_program() -> None:
    n = 1500
    layer, D = smoothing(n)
    assert not layer.node.program.is_dense
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(2, n, generator=generator, dtype=torch.float64).requires_grad_()
    total = torch.tensor([900.0, 1100.0], dtype=torch.float64, requires_grad=True)
    x = layer(p, total)
    g = torch.randn(2, n, generator=generator, dtype=torch.float64)
    (x * g).sum().backward()
    assert p.grad is not None and total.grad is not None
    for k in range(2):
        # the equality-constrained problem on the free variables, solved by scipy
        free = x[k].detach().numpy() > 1e-7
        H = sp.csc_array(sp.eye_array(n) + D.T @ D)[free][:, free]
        ones = np.ones((free.sum(), 1))
        K = sp.csc_array(sp.block_array([[H, ones], [ones.T, None]]))
        primal = spl.spsolve(K, np.append(p[k].detach().numpy()[free], total[k].item()))[:-1]
        np.testing.assert_allclose(x[k].detach().numpy()[free], primal, atol=1e-9)
        dual = spl.spsolve(K, np.append(g[k].numpy()[free], 0.0))
        expected = np.zeros(n)
        expected[free] = dual[:-1]
        np.testing.assert_allclose(p.grad[k].numpy(), expected, atol=1e-9)
        assert total.grad[k].item() == pytest.approx(dual[-1], abs=1e-9)


def test_second_derivative_and_forward_mode() -> None:
    layer, _ = smoothing(1100)
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(1100, generator=generator, dtype=torch.float64)
    total = torch.tensor(700.0, dtype=torch.float64)
    tangent, cotangent = torch.randn(2, 1100, generator=generator, dtype=torch.float64)

    def loss(p: torch.Tensor) -> torch.Tensor:
        return (layer(p, total) ** 3 * cotangent).sum()

    _, moved = torch.func.jvp(torch.func.grad(loss), (p,), (tangent,))
    step = 1e-6
    difference = (torch.func.grad(loss)(p + step * tangent) - torch.func.grad(loss)(p - step * tangent)) / (2 * step)
    assert torch.allclose(moved, difference, atol=1e-4 * float(difference.abs().max()))


def test_curved_cones_stay_sparse() -> None:
    """Many small second-order cones: the gradient of each block's projection is known in closed form."""
    blocks, dim = 400, 4
    x, p = cp.Variable((dim, blocks)), cp.Parameter((dim, blocks))
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - p)), [cp.norm(x, 2, axis=0) <= 1])
    layer = ddn.DeclarativeLayer(problem, [p], x)
    assert not layer.node.program.is_dense
    generator = torch.Generator().manual_seed(2)
    value = torch.randn(dim, blocks, generator=generator, dtype=torch.float64).requires_grad_()
    cotangent = torch.randn(dim, blocks, generator=generator, dtype=torch.float64)
    (layer(value) * cotangent).sum().backward()
    twin = value.detach().clone().requires_grad_()
    size = torch.linalg.vector_norm(twin, dim=0)
    (twin / size.clamp(min=1) * cotangent).sum().backward()
    assert value.grad is not None and twin.grad is not None
    assert torch.allclose(layer(value), twin / size.clamp(min=1), atol=1e-8)
    assert torch.allclose(value.grad, twin.grad, atol=1e-7)


def test_redundant_constraints_get_the_minimum_norm_derivative() -> None:
    n = 1200
    x, p = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, 2 * cp.sum(x) == 2, x >= 0])
    layer = ddn.DeclarativeLayer(problem, [p], x)
    value = torch.rand(n, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    solution = layer.solve(value)
    np.testing.assert_allclose(solution.outputs[0].detach().numpy(), simplex(value.detach().numpy()), atol=1e-8)
    assert solution.regularities == [ddn.Regularity.RANK_DEFICIENT]
    solution.outputs[0][:7].sum().backward()
    support = solution.outputs[0].detach() > 1e-8
    inside = torch.zeros(n, dtype=torch.float64)
    inside[:7] = 1
    expected = torch.where(support, inside - inside[support].mean(), 0.0)
    assert value.grad is not None and torch.allclose(value.grad, expected, atol=1e-6)

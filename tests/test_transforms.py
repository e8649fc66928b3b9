"""Second derivatives, forward mode and ``torch.func`` over the layer: right, or a clear error."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from test_gradients import REGULAR, layer_for, tensors
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from zoo import ZOO, Entry

import ddn_cvx as ddn
from ddn_cvx.testing import check_layer

SECOND_ORDER = [
    "simplex_projection", "l2_ball_projection", "soc_projection", "psd_projection", "softmax_by_entropy",
    "constrained_least_squares", "linear_program", "power_cone", "power_cone_columns", "box_volume", "every_cone",
    "product_of_parameters", "complex_least_squares", "largest_eigenvalue", "huber_fit",
]  # fmt: skip


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_check_layer(name: str) -> None:
    entry = ZOO[name]
    values = entry.sample(np.random.default_rng(3))
    check_layer(layer_for(entry), *tensors(values))


@pytest.mark.parametrize("entry", REGULAR, ids=lambda e: e.name)
def test_forward_mode_agrees_with_reverse_mode(entry: Entry) -> None:
    layer, params = layer_for(entry), tensors(entry.sample(np.random.default_rng(5)))
    generator = torch.Generator().manual_seed(0)
    tangents = tuple(torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params)
    outputs, moved = jvp(layer, tuple(params), tangents)
    cotangents = tuple(torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs)
    _, pull = vjp(layer, *params)
    pulled = pull(cotangents)
    left = sum(float((c.conj() * m).real.sum()) for c, m in zip(cotangents, moved, strict=True))
    right = sum(float((g.conj() * t).real.sum()) for g, t in zip(pulled, tangents, strict=True))
    assert left == pytest.approx(right, rel=1e-8, abs=1e-8)


def regression() -> tuple[ddn.DeclarativeLayer, torch.Tensor, torch.Tensor]:
    x, A, b = cp.Variable(3), cp.Parameter((5, 3)), cp.Parameter(5)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + 0.1 * cp.sum_squares(x)), [cp.sum(x) <= 0.5, x >= -1])
    generator = torch.Generator().manual_seed(2)
    layer = ddn.DeclarativeLayer(problem, [A, b], x)
    return layer, torch.randn(4, 5, 3, generator=generator).double(), torch.randn(5, generator=generator).double()


def test_jacobians_agree() -> None:
    layer, A, b = regression()
    for one, other in zip(jacrev(layer, (0, 1))(A[0], b), jacfwd(layer, (0, 1))(A[0], b), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_vmap_is_the_loop() -> None:
    layer, A, b = regression()
    assert torch.allclose(vmap(layer, (0, None))(A, b), torch.stack([layer(a, b) for a in A]), atol=1e-12)
    loop = torch.stack([jacrev(layer, 1)(a, b) for a in A])
    assert torch.allclose(vmap(jacrev(layer, 1), (0, None))(A, b), loop, atol=1e-10)
    assert torch.allclose(vmap(jacfwd(layer, 1), (0, None))(A, b), loop, atol=1e-10)
    nested = vmap(vmap(layer, (0, None)), (None, 0))(A, torch.stack([b, 2 * b]))
    assert torch.allclose(nested, torch.stack([torch.stack([layer(a, c) for a in A]) for c in (b, 2 * b)]), atol=1e-10)


def test_hessians_agree_with_differences_of_gradients() -> None:
    layer, A, b = regression()

    def loss(b: torch.Tensor) -> torch.Tensor:
        return (layer(A[0], b) ** 3).sum()

    step = 1e-5
    columns = [(grad(loss)(b + step * e) - grad(loss)(b - step * e)) / (2 * step) for e in torch.eye(5).double()]
    reference = torch.stack(columns, 1)
    for found in (hessian(loss)(b), jacrev(jacrev(loss))(b), torch.autograd.functional.hessian(loss, b)):
        assert torch.allclose(found, reference, atol=1e-7)


def test_failures_inside_vmap() -> None:
    x, p = cp.Variable(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.square(x)), [x >= 1, x <= p])
    strict = ddn.DeclarativeLayer(problem, [p], x)
    lenient = ddn.DeclarativeLayer(problem, [p], x, on_failure="nan")
    caps = torch.tensor([2.0, 0.0, 3.0])
    with pytest.raises(ddn.SolverError):
        vmap(strict)(caps)
    assert torch.equal(torch.isnan(vmap(lenient)(caps)), torch.tensor([False, True, False]))
    assert torch.isfinite(vmap(grad(lambda q: lenient(q).nansum()))(caps)).all()


def test_second_derivative_at_a_singular_point_is_refused() -> None:
    x, p, A = cp.Variable(2), cp.Parameter(2), cp.Parameter((2, 2))
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [A @ x == 0]), [p, A], x)
    redundant = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    point = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)
    out = layer(point, redundant)
    (first,) = torch.autograd.grad(out[0], point, create_graph=True)
    assert torch.allclose(first, torch.tensor([0.5, -0.5]).double())
    with pytest.raises(ddn.DifferentiationError, match="singular"):
        torch.autograd.grad(first.sum(), redundant)

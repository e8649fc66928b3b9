"""The deep equilibrium model: gradients of the unrolled network, the bound, bad sizes."""

from __future__ import annotations

import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx.nodes import DeepEquilibrium


@pytest.mark.parametrize("features", [6, 80])
def test_gradients_are_those_of_the_unrolled_network_at_convergence(features: int) -> None:
    """With the Jacobian (6 features) and with products alone (80), in the input and every weight."""
    torch.manual_seed(0)
    node = DeepEquilibrium(4, features, bound=0.9)
    with torch.no_grad():
        node.cell.recurrent *= 2  # all rows are at the bound
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    v = torch.randn(3, features, dtype=torch.float64)
    variables = [x, *node.cell.parameters()]
    y = x.new_zeros(3, features)
    for _ in range(300):
        y = node.cell(y, x)
    found = node(x)
    assert torch.allclose(found, y, rtol=1e-7, atol=1e-8)
    right = torch.autograd.grad(y, variables, v)
    for one, other in zip(torch.autograd.grad(found, variables, v), right, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-7)


def test_weights_of_any_size_have_an_equilibrium() -> None:
    torch.manual_seed(0)
    node = DeepEquilibrium(2, 20, bound=0.99)
    with torch.no_grad():
        node.cell.recurrent *= 0.5
        assert torch.equal(node.cell.weight, node.cell.recurrent)  # rows below the bound stay as they are
        node.cell.recurrent *= 1e6
    x = 1e3 * torch.randn(2, 5, 2, dtype=torch.float64)
    assert float(node.cell.weight.detach().abs().sum(-1).max()) <= 0.99 + 1e-12
    assert node(x).shape == (2, 5, 20)
    assert node(torch.zeros(2, dtype=torch.float64)).shape == (20,)


def test_a_row_of_zeros_has_a_gradient() -> None:
    node = DeepEquilibrium(2, 3)
    with torch.no_grad():
        node.cell.recurrent.zero_()
    node(torch.ones(1, 2)).sum().backward()
    assert node.cell.recurrent.grad is not None and bool(node.cell.recurrent.grad.isfinite().all())


@pytest.mark.parametrize("arguments", [(0, 3), (3, 0), (3, 3, 1.0), (3, 3, 0.0), (3, 3, float("nan"))])
def test_what_is_out_of_range_is_refused(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ddn.DeclarationError, match=r"above 0|between 0 and 1"):
        DeepEquilibrium(*arguments)


def test_input_of_another_size_is_refused() -> None:
    with pytest.raises(ddn.InputError):
        DeepEquilibrium(3, 4)(torch.zeros(2, 5))

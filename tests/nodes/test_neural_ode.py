"""Neural differential equations: there and back, the weights, explosions, bad declarations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ddn_cvx as ddn
from ddn_cvx.nodes import LinearODE, NeuralODE, VectorField


def test_there_and_back_in_any_batch() -> None:
    torch.manual_seed(0)
    node = NeuralODE(3, VectorField(3, 8))
    y0, T = torch.randn(2, 4, 3, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)
    assert torch.allclose(node(node(y0, T), -T), y0, atol=1e-7)
    assert torch.allclose(node(y0, T)[1, 2], node(y0[1, 2], T[1, 2]), atol=1e-8)
    assert torch.allclose(node(y0, torch.zeros((), dtype=torch.float64)), y0, atol=1e-12)


def test_weights_learn_the_same_by_the_adjoint_equation_and_through_the_steps() -> None:
    torch.manual_seed(0)
    field = VectorField(2, 8)
    y0, T = torch.randn(5, 2, dtype=torch.float64), torch.linspace(-1, 2, 5, dtype=torch.float64)
    slopes = []
    for adjoint in (ddn.Implicit(), ddn.Unrolled()):
        field.zero_grad()
        NeuralODE(2, field, adjoint=adjoint)(y0, T).square().sum().backward()
        slopes.append(torch.cat([p.grad.flatten() for p in field.parameters()]))
    assert slopes[0].abs().min() > 0 and torch.allclose(*slopes, rtol=1e-6, atol=1e-7)


class Cube(nn.Module):
    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y**3


def test_state_that_explodes_is_not_an_answer() -> None:
    """dy/dt = y^3 from 1 is infinite at t = 1/2."""
    node = NeuralODE(1, Cube())
    with pytest.raises(ddn.SolverError):
        node(torch.ones(1), torch.tensor(1.0))
    node.on_failure = "nan"
    y = node(torch.tensor([[1.0], [0.5]], dtype=torch.float64), torch.tensor(1.0))
    assert y[0].isnan() and y[1].item() == pytest.approx(0.5 / (1 - 2 * 0.25) ** 0.5)


def test_bad_declarations() -> None:
    with pytest.raises(ddn.DeclarationError, match="features"):
        LinearODE(0)
    with pytest.raises(ddn.DeclarationError, match="field must be"):
        NeuralODE(2, lambda t, y: y)

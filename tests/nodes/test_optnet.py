"""Quadratic programs with learned data: special cases and bad input."""

from __future__ import annotations

import pytest
import torch
from draws import normal

import ddn_cvx as ddn
from ddn_cvx.nodes import LearnedConstraints, QuadraticProgram, TotalVariation


def test_without_constraints_it_is_a_linear_system() -> None:
    p = normal(3, 4)
    Q = torch.diag(torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64))
    assert torch.allclose(QuadraticProgram(4)(Q, p), -p / Q.diagonal(), atol=1e-10)


def test_the_gradient_of_a_shared_matrix_is_the_sum_over_the_batch() -> None:
    Q, p = torch.eye(2, dtype=torch.float64), normal(5, 2)
    layer, G, h = QuadraticProgram(2, inequalities=1), normal(1, 2).requires_grad_(), normal(1).requires_grad_()
    together = torch.autograd.grad(layer(Q, p, G, h).square().sum(), (G, h))
    alone = [torch.autograd.grad(layer(Q, one, G, h).square().sum(), (G, h)) for one in p]
    for k in range(2):
        assert torch.allclose(together[k], sum(one[k] for one in alone), atol=1e-9)


def test_an_indefinite_matrix_and_an_infeasible_element_are_refused() -> None:
    with pytest.raises(ddn.SolverError):
        QuadraticProgram(2)(torch.diag(torch.tensor([1.0, -1.0])), torch.zeros(2))
    G, h = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    layer = QuadraticProgram(2, inequalities=2)
    layer.on_failure = "nan"
    y = layer(torch.eye(2), torch.zeros(2), G, h)
    assert torch.equal(y[0], torch.zeros(2)) and y[1].isnan().all()


def test_learned_constraints_hold_for_every_input() -> None:
    node = LearnedConstraints(6, 3)
    y = node(1e3 * normal(20, 6))
    assert (y >= -1e-9).all()
    assert torch.allclose(y @ node.A.double().mT, (node.A @ node.log_z.exp()).double().expand(20, 3), atol=1e-6)
    y.square().sum().backward()
    assert node.A.grad is not None and node.A.grad.abs().sum() > 0 and node.A.grad.dtype == torch.float32


def test_learned_constraints_of_a_simplex_choose_the_least_input() -> None:
    node = LearnedConstraints(3, 1, curvature=1e-3)
    with torch.no_grad():
        node.A.fill_(1.0)
    expected = torch.tensor([[0.0, 3.0, 0.0]])  # A z = 3
    assert torch.allclose(node(torch.tensor([[1.0, -2.0, 0.5]])), expected, atol=1e-6)


def test_total_variation_from_nothing_to_the_mean() -> None:
    signal, layer = normal(2, 8), TotalVariation(8)
    assert torch.allclose(layer(signal, torch.zeros(7, dtype=torch.float64)), signal, atol=1e-9)
    flat = layer(signal, torch.full((7,), 100.0, dtype=torch.float64))
    assert torch.allclose(flat, signal.mean(-1, keepdim=True).expand(2, 8), atol=1e-8)
    with pytest.raises(ddn.SolverError, match="attribute"):
        layer(signal, torch.full((7,), -1.0, dtype=torch.float64))


@pytest.mark.parametrize(
    "build",
    [
        lambda: QuadraticProgram(0), lambda: QuadraticProgram(2, -1), lambda: LearnedConstraints(2, 3),
        lambda: LearnedConstraints(2, 1, curvature=0.0), lambda: TotalVariation(1),
    ],
)  # fmt: skip
def test_bad_declarations(build) -> None:
    with pytest.raises(ddn.DeclarationError):
        build()


def test_bad_input() -> None:
    with pytest.raises(ddn.InputError, match="batch, 3"):
        LearnedConstraints(3, 1)(torch.zeros(2, 4))

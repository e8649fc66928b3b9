"""Nodes of the reference implementation's tutorials: equal eigenvalues, singular systems, empty polytopes, hard scores."""

from __future__ import annotations

import pytest
import torch
from draws import normal

import ddn_cvx as ddn
from ddn_cvx.nodes import AnalyticCentre, Attention, Eigenvectors, Entmax, Tridiagonal


@pytest.mark.parametrize("top", [1, 3, 5])
def test_eigenvectors_and_their_derivative_are_those_of_eigh(top: int) -> None:
    X, v = normal(2, 5, 5), normal(2, 5, top, seed=1)
    X = (1e3 * (X + X.mT)).requires_grad_()
    values, U = Eigenvectors(5, top)(X)
    right, vectors = torch.linalg.eigh(X)
    vectors = vectors.flip(-1)[..., :top]
    vectors = vectors * (vectors * U.detach()).sum(-2, keepdim=True).sign()
    assert torch.allclose(values, right.flip(-1)[..., :top]) and torch.allclose(U, vectors, atol=1e-10)
    ours, other = (torch.autograd.grad((of * v).sum(), X, retain_graph=True)[0] for of in (U, vectors))
    assert torch.allclose(ours, 0.5 * (other + other.mT), rtol=1e-6, atol=1e-10)


def test_only_the_symmetric_part_has_eigenvectors() -> None:
    X = normal(2, 4, 4).requires_grad_()
    values, U = Eigenvectors(4, 2)(X)
    right, vectors = Eigenvectors(4, 2)(0.5 * (X + X.mT).detach())
    assert torch.allclose(values, right) and torch.allclose(U, vectors, atol=1e-10)
    (slope,) = torch.autograd.grad((U * normal(4, 2, seed=1)).sum(), X)
    assert torch.allclose(slope, slope.mT) and slope.abs().max() > 0.1


def test_equal_eigenvalues_have_a_finite_derivative() -> None:
    """Only the turn towards the third eigenvector is determined; ``eigh`` divides by zero."""
    X = torch.diag(torch.tensor([2.0, 2.0, 0.0], dtype=torch.float64)).requires_grad_()
    _, U = Eigenvectors(3, 2)(X)
    (slope,) = torch.autograd.grad((U * normal(3, 2)).sum(), X)
    assert bool(slope.isfinite().all()) and float(slope[:2, :2].abs().max()) < 1e-6 < float(slope.abs().max())


@pytest.mark.parametrize("n", [2, 60])
def test_tridiagonal_systems_without_dominance(n: int) -> None:
    """The first pivot is zero: elimination alone fails."""
    diagonal, lower, upper, right = (
        normal(n),
        1 + normal(n - 1, seed=1).abs(),
        2 + normal(n - 1, seed=2).abs(),
        normal(n, seed=3),
    )
    diagonal[0] = 0.0
    A = torch.diag(diagonal) + torch.diag(lower, -1) + torch.diag(upper, 1)
    x = Tridiagonal(n)(diagonal, lower, upper, right)
    assert torch.allclose(A @ x, right, atol=1e-7 * (1 + float(x.abs().max())))


def test_singular_systems_and_empty_or_unbounded_sets_are_refused() -> None:
    with pytest.raises(ddn.SolverError):
        Tridiagonal(2)(torch.ones(2), torch.ones(1), torch.ones(1), torch.tensor([1.0, 2.0]))
    sides = torch.tensor([[1.0], [-1.0]])
    with pytest.raises(ddn.SolverError):
        AnalyticCentre(2, 1)(sides, torch.tensor([1.0, -2.0]))
    with pytest.raises(ddn.SolverError):
        AnalyticCentre(2, 1)(sides.abs(), torch.tensor([1.0, 2.0]))


def test_the_centre_needs_no_point_inside_to_begin_with() -> None:
    A = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    b = torch.tensor([102.0, -100.0, -50.0, 56.0], dtype=torch.float64)  # 100 < y_0 < 102, -56 < y_1 < -50
    right = torch.tensor([101.0, -53.0], dtype=torch.float64)
    assert torch.allclose(AnalyticCentre(4, 2)(A, b), right, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 1.2, 1.5, 2.0])
def test_hard_scores(alpha: float) -> None:
    """Far apart, equal, shifted, alone."""
    node = Entmax(alpha)
    s = torch.tensor([[1e4, 0.0, -1e4], [3.0, 3.0, 3.0]], dtype=torch.float64, requires_grad=True)
    right = torch.tensor([[1.0, 0.0, 0.0], [1 / 3] * 3], dtype=torch.float64)
    p = node(s)
    assert torch.allclose(p, right, atol=1e-9) and torch.allclose(node(s + 1e6), p, atol=1e-7)
    (slope,) = torch.autograd.grad((p * normal(3)).sum(), s)
    assert bool(slope.isfinite().all()) and float(slope.sum(-1).abs().max()) < 1e-9
    assert torch.allclose(node(normal(2, 4, 1)), torch.ones(2, 4, 1).double())


@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_scores_are_divided_by_the_temperature(temperature: float) -> None:
    queries, keys, values = normal(2, 3, 5), normal(2, 4, 5, seed=1), normal(2, 4, 6, seed=2)
    scores = queries @ keys.mT / 5**0.5 / temperature
    assert torch.allclose(Attention(1.0, temperature)(queries, keys, values), scores.softmax(-1) @ values, atol=1e-9)
    assert torch.allclose(Entmax(1.5, temperature)(temperature * scores), Entmax(1.5)(scores), atol=1e-9)


def test_balanced_attention_gives_every_key_its_share() -> None:
    queries, keys = normal(2, 4, 3), normal(2, 8, 3, seed=1)
    weights = Attention(temperature=0.05, balanced=(4, 8)).weights(queries, keys)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4).double(), atol=1e-9)
    assert torch.allclose(weights.sum(-2), torch.full((2, 8), 0.5).double(), atol=1e-9)


def test_bad_arguments_are_refused() -> None:
    wrong = (
        (Eigenvectors, (3, 4)), (Eigenvectors, (3, 0)), (Tridiagonal, (1,)), (AnalyticCentre, (2, 2)), (Entmax, (2.5,)),
        (Entmax, (1.5, 0.0)), (Attention, (2.0, 1.0, (3, 3))),
    )  # fmt: skip
    for node, arguments in wrong:
        with pytest.raises(ddn.DeclarationError):
            node(*arguments)
    for node, inputs in (
        (Eigenvectors(3), (torch.zeros(2, 3),)),
        (Tridiagonal(3), (torch.ones(3), torch.ones(3), torch.ones(2), torch.ones(3))),
        (Entmax(), (torch.zeros(2, 0),)),
        (Attention(), (torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 4))),
        (Attention(), (torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(5, 3))),
        (Attention(balanced=(2, 3)), (torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4, 3))),
    ):
        with pytest.raises(ddn.InputError):
            node(*inputs)

"""Training problems: the derivative of ridge regression in closed form, the decision function, bad input."""

from __future__ import annotations

import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx.nodes import CATALOGUE, LogisticRegression, RidgeRegression, SupportVectorMachine


def sample(name: str) -> tuple[torch.Tensor, ...]:
    return CATALOGUE[name].sample(3, torch.Generator().manual_seed(0))


def test_derivative_of_ridge_regression_in_closed_form() -> None:
    """``h = (A'A + Lambda)^-1 v``: with respect to lambda ``-h w``, to b ``A h``, to A ``(b - A w) h' - A h w'``."""
    A, b, penalty = (t.requires_grad_() for t in sample("ridge-regression"))
    w = RidgeRegression(9, 4)(A, b, penalty)
    v = torch.randn(w.shape, generator=torch.Generator().manual_seed(1), dtype=w.dtype)
    found = torch.autograd.grad(w, (A, b, penalty), v)
    with torch.no_grad():
        L = torch.linalg.cholesky(A.mT @ A + torch.diag_embed(penalty))
        h = torch.cholesky_solve(v.unsqueeze(-1), L)
        column = w.unsqueeze(-1)
        right = ((b.unsqueeze(-1) - A @ column) @ h.mT - A @ h @ column.mT, (A @ h).squeeze(-1), -h.squeeze(-1) * w)
    for one, expected in zip(found, right, strict=True):
        assert torch.allclose(one, expected, rtol=1e-9, atol=1e-11)


def test_shared_data_under_many_penalties() -> None:
    A, b, _ = (t[0] for t in sample("logistic-regression"))
    penalty = torch.tensor([[0.1], [1.0], [1e6]], dtype=torch.float64).expand(-1, 4)
    w = LogisticRegression(9, 4)(A, b, penalty)
    assert torch.allclose(w[1], LogisticRegression(9, 4)(A, b, penalty[1]), rtol=1e-7, atol=1e-9)
    assert bool((w.norm(dim=-1).diff() < 0).all())
    assert torch.allclose(w[2], 0.5e-6 * (b @ A), rtol=1e-4)  # one step from zero


def test_separable_classes_without_penalty_have_no_answer() -> None:
    A, b = torch.tensor([[1.0], [-1.0]]), torch.tensor([1.0, -1.0])
    with pytest.raises(ddn.SolverError):
        LogisticRegression(2, 1)(A, b, torch.zeros(1))


def test_decision_function_is_that_of_scikit_learn() -> None:
    from sklearn.svm import SVC

    x, b, _, C = (t[0] for t in sample("support-vector-machine"))
    scale = x.new_full((2,), 1.3)
    points = torch.randn(5, 2, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    weights, intercept = SupportVectorMachine(8)(x, b, scale, C)
    model = SVC(C=float(C), gamma=0.5 * 1.3**2, tol=1e-12).fit(x.numpy(), b.numpy())
    expected = torch.from_numpy(model.decision_function(points.numpy()))
    found = SupportVectorMachine.decide(x, weights, intercept, scale, points)
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_same_example_twice() -> None:
    """The weights are not unique then; the decision function is."""
    x, b = torch.tensor([[0.0], [0.0], [1.0]]).double(), torch.tensor([1.0, 1.0, -1.0]).double()
    weights, intercept = SupportVectorMachine(3)(x, b, torch.ones(1).double(), torch.tensor(10.0).double())
    decision = SupportVectorMachine.decide(x, weights, intercept, torch.ones(1).double(), x)
    assert torch.allclose(decision, b, atol=1e-6)


def test_many_examples_in_single_precision() -> None:
    """Their kernel is positive semidefinite to rounding in double precision only."""
    generator = torch.Generator().manual_seed(0)
    b = torch.tensor([1.0, -1.0]).repeat(30)
    x = torch.randn(60, 2, generator=generator) + 0.5 * b.unsqueeze(-1)
    svm, scale, C = SupportVectorMachine(60), torch.full((2,), 0.3), torch.tensor(10.0)
    weights, intercept = svm(x, b, scale, C)
    assert weights.dtype == intercept.dtype == torch.float32
    exact = svm(x.double(), b.double(), scale.double(), C.double())
    assert torch.allclose(weights.double(), exact[0], atol=1e-3) and torch.allclose(intercept.double(), exact[1], atol=1e-3)


@pytest.mark.parametrize("make", [RidgeRegression, LogisticRegression])
def test_sizes_must_be_positive(make: type[ddn.DeclarativeLayer]) -> None:
    with pytest.raises(ddn.DeclarationError, match="above 0"):
        make(0, 3)


def test_bad_input_of_the_support_vector_machine_is_refused() -> None:
    with pytest.raises(ddn.DeclarationError, match="examples"):
        SupportVectorMachine(1)
    x, b, scale, C = sample("support-vector-machine")
    svm = SupportVectorMachine(8)
    with pytest.raises(ddn.InputError, match="one sign"):
        svm(x, b.abs(), scale, C)
    with pytest.raises(ddn.InputError, match="8"):
        svm(x[:, :7], b[:, :7], scale, C)
    with pytest.raises(ddn.DeclarativeError):
        svm(x, b, scale, -C)

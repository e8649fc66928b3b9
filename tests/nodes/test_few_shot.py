"""Heads fitted to a few examples: the primal problem by cvxpy, invariances, and bad input."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from draws import normal

import ddn_cvx as ddn
from ddn_cvx.nodes import RidgeHead, SVMHead


@pytest.mark.parametrize("C", [0.1, 10.0])
def test_svm_is_the_primal_problem(C: float) -> None:
    """Five ways and five shots in three dimensions: far more examples than dimensions, and classes that overlap."""
    support, queries = normal(5, 5, 3), normal(7, 3, seed=1)
    x, labels = support.flatten(0, 1).numpy(), np.repeat(np.arange(5), 5)
    W, slack = cp.Variable((5, 3)), cp.Variable(25, nonneg=True)
    margins = [(W[labels[n]] - W[k]) @ x[n] >= 1 - slack[n] for n in range(25) for k in range(5) if k != labels[n]]
    cp.Problem(cp.Minimize(0.5 * cp.sum_squares(W) + C * cp.sum(slack)), margins).solve(solver="CLARABEL")
    found = SVMHead(5, 5, C=C, ridge=1e-7)(support, queries)
    assert torch.allclose(found, queries @ torch.from_numpy(W.value).T, atol=1e-4)


def test_two_ways_are_the_binary_machine_of_scikit_learn() -> None:
    """With mirrored classes the offset of SVC is zero, and its C and margin are those of the difference of scores."""
    SVC = pytest.importorskip("sklearn.svm").SVC
    one, queries = normal(4, 3) + 0.5, normal(6, 3, seed=1)
    support = torch.stack((one, -one))
    machine = SVC(C=1.0, kernel="linear", tol=1e-10).fit(support.flatten(0, 1).numpy(), [1] * 4 + [0] * 4)
    scores = SVMHead(2, 4, C=0.5, ridge=1e-8)(support, queries)
    assert torch.allclose(scores[:, 0] - scores[:, 1], torch.from_numpy(machine.decision_function(queries)), atol=1e-5)


@pytest.mark.parametrize("build", [SVMHead, RidgeHead])
def test_scores_turn_with_the_embedding_and_follow_the_classes(build: type[SVMHead] | type[RidgeHead]) -> None:
    head, support, queries = build(3, 2), normal(2, 3, 2, 4), normal(2, 5, 4, seed=1)
    scores = head(support, queries)
    turn = torch.linalg.qr(normal(4, 4, seed=2)).Q
    assert torch.allclose(head(support @ turn, queries @ turn), scores, atol=1e-7)
    assert torch.allclose(head(support.flip(-3), queries), scores.flip(-1), atol=1e-7)
    assert head(support[0].float(), queries[0].float()).shape == (5, 3)


@pytest.mark.parametrize("build", [SVMHead, RidgeHead])
def test_examples_that_coincide(build: type[SVMHead] | type[RidgeHead]) -> None:
    """Equal examples of different classes make every class score alike, and derivatives stay finite."""
    support = torch.ones(3, 2, 4, dtype=torch.float64, requires_grad=True)
    scores = build(3, 2)(support, torch.ones(1, 4, dtype=torch.float64))
    assert torch.allclose(scores, scores[:, :1].expand_as(scores), atol=1e-6)
    assert torch.autograd.grad(scores[0, 0], support)[0].isfinite().all()


@pytest.mark.parametrize(
    "build",
    [
        lambda: SVMHead(1, 2), lambda: SVMHead(2, 0), lambda: SVMHead(2, 2, C=0.0), lambda: SVMHead(2, 2, ridge=-1.0),
        lambda: RidgeHead(2, 2, penalty=0.0),
    ],
)  # fmt: skip
def test_bad_declarations(build) -> None:
    with pytest.raises(ddn.DeclarationError):
        build()


def test_bad_input() -> None:
    with pytest.raises(ddn.InputError, match="support must be"):
        RidgeHead(3, 2)(torch.zeros(2, 3, 4), torch.zeros(5, 4))
    with pytest.raises(ddn.InputError, match="queries must be"):
        RidgeHead(3, 2)(torch.zeros(3, 2, 4), torch.zeros(5, 3))

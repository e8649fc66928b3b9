"""Doubly stochastic matrices: POT, the assignment in the limit, the unrolled gradient, vertices, bad input."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment

import ddn_cvx as ddn
from ddn_cvx.nodes import DoublyStochastic


def scores(n: int, batch: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assignment(X: torch.Tensor) -> torch.Tensor:
    rows = [torch.from_numpy(linear_sum_assignment(-one)[1]) for one in X.numpy()]
    return torch.nn.functional.one_hot(torch.stack(rows), X.shape[-1]).double()


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_entropic_is_the_transport_plan_of_pot(temperature: float) -> None:
    ot = pytest.importorskip("ot")
    X = scores(6)
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64).numpy()
    found = DoublyStochastic(6, "entropic", temperature)(X)
    for one, P in zip(X, found, strict=True):
        plan = ot.sinkhorn(
            uniform, uniform, -one.numpy(), temperature, method="sinkhorn_log", numItermax=50000, stopThr=1e-13
        )
        assert torch.allclose(P, 6 * torch.from_numpy(plan), atol=1e-8)


@pytest.mark.parametrize("regulariser", ["entropic", "euclidean"])
@pytest.mark.parametrize("n", [3, 8])
def test_the_limit_is_the_best_assignment(regulariser: str, n: int) -> None:
    X = scores(n).requires_grad_()
    P = DoublyStochastic(n, regulariser, temperature=1e-3)(X)
    assert torch.allclose(P, assignment(X.detach()), atol=1e-6)
    (slope,) = torch.autograd.grad((P * scores(n, seed=1)).sum(), X)
    assert float(slope.abs().max()) < 1e-4


def test_the_euclidean_projection_reaches_a_permutation_and_the_entropic_does_not() -> None:
    X = 4 * torch.eye(3, dtype=torch.float64).roll(1, 0)
    assert torch.allclose(DoublyStochastic(3, "euclidean")(X), X / 4, atol=1e-9)
    assert bool((DoublyStochastic(3, "entropic")(X) > 1e-3).all())


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_entropic_gradient_is_that_of_the_unrolled_iteration(scale: float) -> None:
    X, v = (scale * scores(5)).requires_grad_(), scores(5, seed=1)
    unrolled = X
    for _ in range(4000):
        unrolled = unrolled - unrolled.logsumexp(-1, keepdim=True)
        unrolled = unrolled - unrolled.logsumexp(-2, keepdim=True)
    found = DoublyStochastic(5)(X)
    assert torch.allclose(found, unrolled.exp(), atol=1e-4)  # of the iteration, which is slow at scale 6
    (right,) = torch.autograd.grad(unrolled.exp(), X, v)
    assert torch.allclose(torch.autograd.grad(found, X, v)[0], right, atol=1e-4)


@pytest.mark.parametrize("regulariser", ["entropic", "euclidean"])
def test_sums_batches_and_what_changes_nothing(regulariser: str) -> None:
    """Numbers added to whole rows and columns of X do not change P."""
    X = scores(4, batch=6).reshape(2, 3, 4, 4)
    node = DoublyStochastic(4, regulariser)
    P = node(X)
    assert P.shape == X.shape and bool((P > -1e-9).all())
    assert torch.allclose(P.sum(-1), torch.ones(2, 3, 4).double()) and torch.allclose(P.sum(-2), P.sum(-1))
    assert torch.allclose(node(X + 50.0 * scores(4, 6, 1).reshape(2, 3, 4, 4)[..., :1]), P, atol=1e-8)
    assert torch.allclose(node(X[0, 0]), P[0, 0], atol=1e-9)


def test_bad_arguments_and_input_are_refused() -> None:
    for arguments, word in (((1,), "n must"), ((3, "sparse"), "regulariser"), ((3, "entropic", 0.0), "temperature")):
        with pytest.raises(ddn.DeclarationError, match=word):
            DoublyStochastic(*arguments)
    with pytest.raises(ddn.InputError, match=r"\(\*batch, 3, 3\)"):
        DoublyStochastic(3)(torch.zeros(2, 3, 4))
    for value in (torch.nan, torch.inf):
        with pytest.raises(ddn.DeclarativeError):
            DoublyStochastic(2)(torch.tensor([[[value, 0.0], [0.0, 0.0]]]))

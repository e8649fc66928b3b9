"""Transport, mixtures, structured prediction: POT, the cheapest plan, scikit-learn, all matchings, bad input."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from draws import normal

import ddn_cvx as ddn
from ddn_cvx.nodes import GaussianMixture, MatchingSVM, OptimalTransport
from ddn_cvx.nodes.mixtures import log_likelihood, responsibilities


def shares(*shape: int, seed: int = 0) -> torch.Tensor:
    a = normal(*shape, seed=seed).abs() + 0.2
    return a / a.sum(-1, keepdim=True)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_plans_are_those_of_pot(temperature: float) -> None:
    ot = pytest.importorskip("ot")
    cost, a, b = normal(2, 5, 8), shares(2, 5), shares(2, 8, seed=1)
    found = OptimalTransport(5, 8, temperature)(cost, 3 * a, b)  # only ratios count
    for one, *data in zip(found, a.numpy(), b.numpy(), cost.numpy(), strict=True):
        plan = ot.sinkhorn(*data, temperature, method="sinkhorn_log", numItermax=100000, stopThr=1e-13)
        assert torch.allclose(one, torch.from_numpy(plan), atol=1e-10)


def test_cold_plans_cost_what_the_linear_program_costs() -> None:
    ot = pytest.importorskip("ot")
    cost, a, b = normal(5, 8).abs(), shares(5), shares(8, seed=1)
    cost.requires_grad_()
    P = OptimalTransport(5, 8, temperature=1e-3)(cost, a, b)
    assert torch.allclose(P.sum(-1), a, atol=1e-9) and torch.allclose(P.sum(-2), b, atol=1e-9)
    best = ot.emd2(a.numpy(), b.numpy(), cost.detach().numpy())
    assert abs(float((P * cost).sum().detach()) - best) < 1e-3
    (slope,) = torch.autograd.grad((P * normal(5, 8, seed=2)).sum(), cost)
    assert bool(slope.isfinite().all())


def test_transport_refuses_bad_input() -> None:
    for arguments, word in (((0, 3), "m and n"), ((1, 1), "m and n"), ((2, 3, 0.0), "temperature")):
        with pytest.raises(ddn.DeclarationError, match=word):
            OptimalTransport(*arguments)
    node = OptimalTransport(2, 3)
    with pytest.raises(ddn.InputError, match=r"\(\*batch, 2, 3\)"):
        node(torch.zeros(3, 2), torch.ones(2), torch.ones(3))
    for a in ([2.0, -1.0], [1.0, 0.0]):
        with pytest.raises(ddn.InputError, match="above 0"):
            node(torch.zeros(2, 3), torch.tensor(a), torch.ones(3))
        with pytest.raises(ddn.InputError, match="above 0"):
            OptimalTransport(3, 2)(torch.zeros(3, 2), torch.ones(3), torch.tensor(a))
    with pytest.raises(ddn.SolverError):
        node(torch.zeros(2, 3), torch.tensor([1.0, torch.nan]), torch.ones(3))


def test_mixture_is_scikit_learns_and_a_maximum() -> None:
    """Overlapping groups, on which plain expectation maximisation needs thousands of steps."""
    from sklearn.mixture import GaussianMixture as Reference

    x = normal(60, 3) + 2 * torch.eye(3, dtype=torch.float64).repeat(20, 1)
    start = x[:4]
    shares, means, variances = GaussianMixture(4, 3, floor=0.1)(x, start)
    found = float(log_likelihood(x, shares, means, variances).mean())
    model = Reference(
        4, covariance_type="spherical", reg_covar=0.1, tol=1e-14, max_iter=50000, means_init=start.numpy(),
        weights_init=np.full(4, 0.25), precisions_init=np.full(4, 1 / (float((x - x.mean(0)).square().mean()) + 0.1)),
    ).fit(x.numpy())  # fmt: skip
    assert torch.allclose(means, torch.from_numpy(model.means_), atol=1e-4)
    assert abs(found - model.score(x.numpy())) < 1e-8
    r = responsibilities(x, shares, means, variances)
    assert torch.allclose(r, torch.from_numpy(model.predict_proba(x.numpy())), atol=1e-4)


def test_means_that_move_with_all_points() -> None:
    """A shift of all points shifts every mean, and scaling about zero scales them: two derivatives that are known."""
    x, start = torch.cat((normal(12, 2), 4 + normal(12, 2, seed=1))), torch.tensor([[0.0, 0.0], [4.0, 4.0]]).double()
    node = GaussianMixture(2, 2, floor=1e-12)
    _, shifted = torch.func.jvp(lambda x: node(x, start), (x,), (torch.ones_like(x),))
    _, scaled = torch.func.jvp(lambda x: node(x, start), (x,), (x,))
    shares, means, variances = node(x, start)
    for tangent, right in (
        (shifted, (0 * shares, torch.ones_like(means), 0 * variances)),
        (scaled, (0 * shares, means, 2 * variances)),
    ):
        for one, other in zip(tangent, right, strict=True):
            assert torch.allclose(one, other, atol=1e-7)


def test_mixture_refuses_bad_input() -> None:
    for arguments, word in (((0, 2), "components"), ((2, 2, 0.0), "floor"), ((2, 2, 0.1, -1), "steps")):
        with pytest.raises(ddn.DeclarationError, match=word):
            GaussianMixture(*arguments)
    node = GaussianMixture(2, 3)
    for x, start in (((5, 2), (2, 3)), ((0, 3), (2, 3)), ((5, 3), (3, 3)), ((3,), (2, 3))):
        with pytest.raises(ddn.InputError, match=r"must be \(\*batch"):
            node(torch.zeros(x), torch.zeros(start))


def test_the_margin_holds_over_all_matchings_and_learns_a_rule() -> None:
    """Things and places have numbers, and the right matching puts the same order on both: phi = -(a_i - b_j)^2."""
    a, b = normal(6, 4), normal(6, 4, seed=1)
    order = b.gather(1, b.argsort(-1)).unsqueeze(-2).sub(b.unsqueeze(-1)).abs().argmin(-1)  # rank of every place
    Y = (a.argsort(-1).argsort(-1).unsqueeze(-1) == order.unsqueeze(-2)).double()
    phi = torch.stack((-(a.unsqueeze(-1) - b.unsqueeze(-2)).square(), normal(6, 4, 4, seed=2)), -1)
    w = MatchingSVM(6, 4, 2)(phi, Y, torch.tensor(100.0, dtype=torch.float64))
    assert float(w[0]) > 5 * float(w[1].abs())
    every = torch.stack([torch.eye(4, dtype=torch.float64)[list(p)] for p in permutations(range(4))])
    score = torch.einsum("pij,kij->kp", every, phi @ w)
    assert bool((every[score.argmax(-1)] == Y).all())


def test_matchings_refuse_bad_input() -> None:
    for sizes in ((0, 3, 2), (2, 1, 2), (2, 3, 0)):
        with pytest.raises(ddn.DeclarationError, match="examples"):
            MatchingSVM(*sizes)
    with pytest.raises(ddn.InputError, match="phi"):
        MatchingSVM(2, 3, 4)(torch.zeros(2, 3, 3, 5), torch.zeros(2, 3, 3), torch.ones(()))

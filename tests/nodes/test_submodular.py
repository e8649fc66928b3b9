"""Submodular minimisation: maximum flow by scipy, cvxpy, the derivative by level sets, special graphs, bad input."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import maximum_flow

import ddn_cvx as ddn
from ddn_cvx.nodes import CutRelaxation, MinNormPoint
from ddn_cvx.nodes.submodular import grid, subsets


def picture(side: int, batch: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers, for maximum flow, at which no level set of total variation is at zero."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randint(-100, 101, (batch, side * side), generator=generator).double() + 0.25
    return u, torch.randint(0, 60, (batch, 2 * side * (side - 1)), generator=generator).double()


@pytest.mark.parametrize("threshold", [0.0, 20.0])
def test_the_sign_is_the_minimal_cut(threshold: float) -> None:
    """The value of the cut at any level is that of the maximum flow."""
    u, w = picture(7)
    ends = grid(7, 7).T
    for score, weight, x in zip(u - threshold, w, CutRelaxation(49, ends.T)(u, w), strict=True):
        found = (x > threshold).double()
        value = -(score * found).sum() + (weight * (found[ends[0]] - found[ends[1]]).abs()).sum()
        rows, nodes = np.concatenate((ends[0], ends[1], np.full(49, 49))), np.arange(49)
        columns, sink = np.concatenate((ends[1], ends[0], nodes)), np.full(49, 50)
        whole = 4 * score
        capacity = torch.cat((4 * weight, 4 * weight, whole.clamp(min=0), (-whole).clamp(min=0))).numpy().astype(np.int32)
        places = (np.concatenate((rows, nodes)), np.concatenate((columns, sink)))
        flow = maximum_flow(sp.csr_array((capacity, places), shape=(51, 51)), 49, 50).flow_value
        assert float(4 * value + whole.clamp(min=0).sum()) == pytest.approx(flow, abs=1e-6)


def test_the_relaxation_is_that_of_cvxpy_also_with_edges_without_weight() -> None:
    u, w = picture(5, batch=1, seed=1)
    w[0, :7] = 0.0
    i, j = grid(5, 5).T.numpy()
    x = cp.Variable(25)
    cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - u[0].numpy()) + w[0].numpy() @ cp.abs(x[i] - x[j]))).solve(
        cp.CLARABEL, tol_gap_rel=1e-12, tol_gap_abs=1e-10, tol_feas=1e-12
    )
    assert torch.allclose(CutRelaxation(25, grid(5, 5))(u, w)[0], torch.from_numpy(x.value), atol=1e-5)


def test_the_derivative_is_the_mean_over_level_sets() -> None:
    """``dx/du`` averages over each level set, exactly: the rounding off does not show."""
    u, w = picture(6, batch=2)
    node = CutRelaxation(36, grid(6, 6))
    x = node(u, w)
    J = torch.autograd.functional.jacobian(lambda u: node(u, w).sum(0), u).transpose(0, 1)
    same = (x.unsqueeze(-1) - x.unsqueeze(-2)).abs() < 1e-9
    connected = torch.matrix_exp(same * (torch.eye(36) + adjacent(36, node.ends)).double()) > 0  # within a level set
    assert torch.allclose(J, connected / connected.sum(-1, keepdim=True).double(), atol=1e-9)
    assert bool((connected.sum(-1) > 1).any())


def adjacent(n: int, ends: torch.Tensor) -> torch.Tensor:
    A = torch.zeros(n, n)
    A[ends[0], ends[1]] = A[ends[1], ends[0]] = 1.0
    return A


def test_scale_batches_and_a_weight_that_joins_everything() -> None:
    u, w = picture(4, batch=6)
    node = CutRelaxation(16, grid(4, 4))
    x = node(u, w)
    assert torch.allclose(node(1e-6 * u, 1e-6 * w), 1e-6 * x, rtol=1e-9, atol=1e-12)
    assert torch.allclose(node(u.reshape(2, 3, 16), w.reshape(2, 3, 24)).reshape(6, 16), x, atol=1e-9)
    assert torch.allclose(node(u, w[0])[1], node(u[1], w[0]), atol=1e-8)
    assert torch.allclose(node(u, 0 * w), u, atol=1e-9)
    assert torch.allclose(node(u, 1e3 + w), u.mean(-1, keepdim=True).expand(-1, 16), atol=1e-8)
    assert torch.equal(node(0 * u, 0 * w), 0 * u)


def test_the_minimiser_of_a_table() -> None:
    """``{y < 0}`` is the least minimiser, for a function that is no cut: coverage minus cost."""
    generator = torch.Generator().manual_seed(0)
    members = subsets(6)
    covers = (torch.rand(6, 20, generator=generator) < 0.3).double()
    cost = 4 * torch.rand(4, 6, generator=generator, dtype=torch.float64)
    F = (members @ covers > 0).sum(-1).double() - cost @ members.T
    y = MinNormPoint(6)(F)
    least = ((y < -1e-9) * 2 ** torch.arange(6)).sum(-1)
    assert torch.allclose(F.gather(1, least.unsqueeze(-1))[:, 0], F.amin(-1), atol=1e-9)
    assert torch.allclose(MinNormPoint(6)(F + 7.0), y, atol=1e-9)  # the value of the empty set is subtracted
    assert torch.allclose(y.clamp(max=0).sum(-1), F.amin(-1), atol=1e-8)  # the dual value


def test_bad_arguments_and_input_are_refused() -> None:
    for n in (0, 13):
        with pytest.raises(ddn.DeclarationError, match="n must"):
            MinNormPoint(n)
    for edges, word in (([(0, 3)], "0 to 2"), ([(-1, 0)], "0 to 2"), ([(1, 1)], "itself"), ([], "at least one")):
        with pytest.raises(ddn.DeclarationError, match=word):
            CutRelaxation(3, edges)
    table = MinNormPoint(2)
    for F, word in (([0.0, 1.0, 1.0], "F must be"), ([0.0, 1.0, 1.0, 3.0], "submodular")):
        with pytest.raises(ddn.InputError, match=word):
            table(torch.tensor(F))
    cut = CutRelaxation(3, [(0, 1), (1, 2)])
    with pytest.raises(ddn.InputError, match=r"\(\*batch, 3\)"):
        cut(torch.zeros(2, 4), torch.zeros(2, 2))
    with pytest.raises(ddn.InputError, match="negative"):
        cut(torch.zeros(3), torch.tensor([1.0, -1.0]))
    for value in (torch.nan, torch.inf):
        with pytest.raises(ddn.DeclarativeError):
            cut(torch.tensor([0.0, value, 0.0]), torch.ones(2))

"""RANSAC in a node: solvers in numpy, least squares on inliers and its gradient, no say for outliers, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from draws import normal

import ddn_cvx as ddn
from ddn_cvx.nodes import Consensus, HomographyFit, LineFit
from ddn_cvx.nodes.consensus import transfer


def line_points(batch: int, count: int, wrong: int) -> torch.Tensor:
    """Points within 0.03 or so of the line with slope 0.5, of which the first are elsewhere."""
    along = torch.linspace(-1, 1, count, dtype=torch.float64).expand(batch, count)
    across = 0.5 * along + 0.01 * normal(batch, count)
    across = torch.cat((across[:, :wrong] + 1 + normal(batch, wrong, seed=1).abs(), across[:, wrong:]), 1)
    return torch.stack((along, across), -1)


def test_a_solver_in_numpy_that_knows_nothing_of_gradients() -> None:
    """A plane through three points; the gradient is that of least squares on the points near it."""

    def through(points: torch.Tensor) -> torch.Tensor:
        columns = np.concatenate((points[..., :2].numpy(), np.ones((*points.shape[:-1], 1))), -1)
        with np.errstate(all="ignore"):
            return torch.from_numpy(np.linalg.pinv(columns) @ points[..., 2:].numpy()).squeeze(-1)

    def height(plane: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (x[:, :2] @ plane[:2] + plane[2] - x[:, 2]).unsqueeze(-1)

    x = normal(2, 12, 3)
    x[..., 2] = 0.3 * x[..., 0] - 0.7 * x[..., 1] + 0.2 + 0.02 * normal(2, 12, seed=1)
    x[:, :4, 2] += 3
    w = (0.5 + normal(2, 12, seed=2).abs()).requires_grad_()
    x.requires_grad_()
    found = Consensus(3, height, through, sample=3, threshold=0.3)(x, w)
    A, root = torch.cat((x[:, 4:, :2], torch.ones(2, 8, 1).double()), -1), w[:, 4:].sqrt().unsqueeze(-1)
    right = torch.linalg.lstsq(root * A, root * x[:, 4:, 2:]).solution.squeeze(-1)
    assert torch.allclose(found, right, atol=1e-9)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), (x, w)) for y in (found, right)), strict=True):
        assert torch.allclose(one, other, atol=1e-8)
        assert float(one[:, :4].abs().max()) < 1e-14


@pytest.mark.parametrize("wrong", [0, 12])
def test_lines_are_those_of_the_inliers(wrong: int) -> None:
    x = line_points(3, 20, wrong).requires_grad_()
    found = LineFit(0.1)(x, torch.ones(20))
    kept = x[:, wrong:]
    middle = kept.mean(1, keepdim=True)
    n = torch.linalg.svd(kept - middle).Vh[:, -1]
    right = torch.cat((n, -(n * middle[:, 0]).sum(-1, keepdim=True)), -1) * n[:, 1:].sign()
    assert torch.allclose(found, right, atol=1e-9)
    v = normal(3, 3)
    ours, other = (torch.autograd.grad((of * v).sum(), x)[0] for of in (found, right))
    assert torch.allclose(ours, other, atol=1e-8)


def test_homographies_half_of_whose_pairs_are_wrong() -> None:
    x = 2 * torch.rand(4, 30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    H = torch.eye(3, dtype=torch.float64) + 0.1 * normal(4, 3, 3)
    y = transfer(H, x)
    y[:, :15] = 1.5 * normal(4, 15, 2, seed=1)
    found = HomographyFit(0.05)(x, y, torch.ones(30))
    assert torch.allclose(found / found[:, 2:, 2:], H / H[:, 2:, 2:], atol=1e-6)
    rough = torch.ones(30)
    rough[:15] = 0.0
    shared = HomographyFit(0.05)(x[0], transfer(H, x[0]), torch.ones(30))  # the same points in every picture
    assert torch.allclose(shared / shared[:, 2:, 2:], H / H[:, 2:, 2:], atol=1e-6)
    assert torch.allclose(HomographyFit(100.0, hypotheses=4)(x, y, rough), found, atol=1e-6)  # points without weight


def test_the_answer_does_not_depend_on_the_batch_or_on_the_day() -> None:
    x = line_points(6, 15, 6).reshape(2, 3, 15, 2)
    node = LineFit(0.1, hypotheses=20)
    torch.manual_seed(1)
    one = node(x, torch.ones(15))
    torch.manual_seed(2)
    assert one.shape == (2, 3, 3) and torch.allclose(node(x[1, 2], torch.ones(15)), one[1, 2], atol=1e-10)
    assert torch.allclose(node(x, torch.full((15,), 7.0)), one, atol=1e-10)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ddn.DeclarationError, match="threshold"):
        LineFit(0.0)
    with pytest.raises(ddn.DeclarationError, match="hypotheses"):
        HomographyFit(0.1, hypotheses=0)
    node = LineFit(0.1)
    for x, w in (((1, 2), (1,)), ((5, 3), (5,)), ((5, 2), (4,))):
        with pytest.raises(ddn.InputError):
            node(torch.zeros(x), torch.ones(w))
    x = line_points(1, 10, 2)[0]
    for w in (-torch.ones(10), torch.zeros(10), torch.full((10,), torch.nan)):
        with pytest.raises(ddn.DeclarativeError):
            node(x, w)
    with pytest.raises(ddn.DeclarativeError):
        node(x * torch.tensor([torch.inf, 1.0]), torch.ones(10))

"""Robust pooling beyond the catalogue's sample: many points, plateaus, units, starts."""

from __future__ import annotations

import pytest
import torch

from ddn_cvx import Regularity
from ddn_cvx.nodes import CATALOGUE, RobustPooling
from ddn_cvx.nodes.robust_pooling import PENALTIES


@pytest.mark.parametrize("penalty", ["truncated", "welsch"])
def test_many_points_are_swept_until_they_stand_still(penalty: str) -> None:
    """The weights of a penalty with a hard edge change one point at a time: a dozen sweeps are not enough for hundreds."""
    x = torch.randn(1024, 256, generator=torch.Generator().manual_seed(0))
    y = RobustPooling(penalty)(x)
    distance = (y.unsqueeze(-1) - x).square()
    weight = (distance < 1).float() if penalty == "truncated" else (-0.5 * distance).exp()
    assert torch.allclose(y, (weight * x).sum(-1) / weight.sum(-1), atol=1e-5)


@pytest.mark.parametrize("penalty", ["huber", "pseudo-huber"])
def test_between_two_groups_of_points(penalty: str) -> None:
    """Every number between the groups is a minimum for the Huber penalty, whose curvature is zero there."""
    x = torch.tensor([[-5.0, -5.0, 5.0, 5.0]], requires_grad=True)
    y = RobustPooling(penalty)(x)
    y.sum().backward()
    assert y.abs().item() < 1e-6 and x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("shift, alpha", [(0.0, 1.0), (1e6, 1.0), (-3e3, 1e-6)])
def test_a_plateau_of_minima_is_one_whatever_rounding_says(shift: float, alpha: float) -> None:
    """Two points pull to each side: the gradient and the Hessian that cancel leave rounding errors, next to no force at all.

    The plateau is [a + alpha, b - alpha] for the middle two points a and b, if it is not empty.
    """
    x = 10 * alpha * (torch.randn(512, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).relu() + shift
    low, high = x.sort(-1).values[:, 1] + alpha, x.sort(-1).values[:, 2] - alpha
    plateau = high > low
    pooling = RobustPooling("huber", alpha)
    y = pooling(x.requires_grad_())
    y.sum().backward()
    assert plateau.sum() > 100 and ((y >= low) & (y <= high))[plateau].all()
    assert x.grad is not None and not x.grad[plateau].any()
    flags = pooling.layer.solve(x.detach().unsqueeze(-1)).regularity
    assert torch.equal(flags == int(Regularity.SINGULAR_HESSIAN), plateau)


@pytest.mark.parametrize("alpha", [1e-3, 40.0])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_alpha_is_the_unit_of_the_points(penalty: str, alpha: float) -> None:
    (x,) = CATALOGUE[f"robust-pooling-{penalty}"].sample(20, torch.Generator().manual_seed(1))
    y = RobustPooling(penalty, starts=9)(x)
    assert torch.allclose(RobustPooling(penalty, alpha, starts=9)(alpha * x), alpha * y, rtol=1e-6, atol=1e-7 * alpha)


@pytest.mark.parametrize("penalty", ["truncated", "welsch"])
def test_no_start_lies_beyond_the_reach_of_every_point(penalty: str) -> None:
    x = torch.tensor([[-9.0, -3.0, 3.0, 9.0], [0.0, 50.0, 100.0, 100.1]])
    y = RobustPooling(penalty)(x)
    assert (y.unsqueeze(-1) - x).abs().amin(-1).max() < 0.1

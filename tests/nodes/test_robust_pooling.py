"""Robust pooling beyond the catalogue's sample: many points."""

from __future__ import annotations

import pytest
import torch

from ddn_cvx.nodes import RobustPooling
from ddn_cvx.nodes.robust_pooling import PENALTIES, _reweight


@pytest.mark.parametrize("penalty", ["truncated", "welsch"])
def test_many_points_are_swept_until_they_stand_still(penalty: str) -> None:
    """The weights of a penalty with a hard edge change one point at a time: a dozen sweeps are not enough for hundreds."""
    x = torch.randn(1024, 256, generator=torch.Generator().manual_seed(0))
    y = RobustPooling(penalty)(x)
    distance = (y.unsqueeze(-1) - x).square()
    weight = (distance < 1).float() if penalty == "truncated" else (-0.5 * distance).exp()
    assert torch.allclose(y, (weight * x).sum(-1) / weight.sum(-1), atol=1e-5)


def test_more_numbers_than_torch_takes_quantiles_of() -> None:
    """`torch.quantile` refuses 2**24 numbers and more; 24 clouds of 1024 points with 1024 features have as many."""
    x = torch.ones(1, 2**24 + 1, 1)
    assert _reweight(PENALTIES["quadratic"], 1.0, 1, x).item() == 1.0

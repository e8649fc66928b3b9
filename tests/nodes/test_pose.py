"""Poses: exact rotations, the derivative of the SVD solution, hostile points, and a solver with the arrow structure."""

from __future__ import annotations

import math

import pytest
import torch
from draws import normal

import ddn_cvx as ddn
from ddn_cvx.nodes import Bundle, PnP, WeightedProcrustes
from ddn_cvx.nodes.pose import kabsch, project, rotation


def test_outputs_are_rotations_even_of_reflected_points() -> None:
    x = normal(200, 10, 3)
    y = torch.cat((x[:100] @ rotation(normal(100, 4, seed=1)).mT, x[100:] * torch.tensor([-1.0, 1.0, 1.0], dtype=x.dtype)))
    R, t = WeightedProcrustes()(x, y, torch.ones(200, 10, dtype=x.dtype))
    a, b, c = R.unbind(-1)
    assert (R.mT @ R - torch.eye(3, dtype=x.dtype)).abs().max() <= 1e-12
    assert torch.allclose((torch.linalg.cross(a, b) * c).sum(-1), torch.ones(200, dtype=x.dtype))
    right, shift = kabsch(x, y, torch.ones(200, 10, dtype=x.dtype))
    assert torch.allclose(R, right, atol=1e-9) and torch.allclose(t, shift, atol=1e-9)


def test_gradients_are_those_through_the_singular_value_decomposition() -> None:
    inputs = [t.requires_grad_() for t in (normal(4, 8, 3), normal(4, 8, 3, seed=1), normal(4, 8, seed=2).exp())]
    weight = normal(4, 3, 3, seed=3)
    ours = torch.autograd.grad((weight * WeightedProcrustes()(*inputs)[0]).sum(), inputs)
    theirs = torch.autograd.grad((weight * kabsch(*inputs)[0]).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_half_turns(axis: int) -> None:
    """Where the quaternion has no real part, and rotation vectors and traces are awkward."""
    turn = torch.full((3,), -1.0, dtype=torch.float64)
    turn[axis] = 1.0
    x = normal(1, 6, 3)
    R, _ = WeightedProcrustes()(x, x * turn, torch.ones(1, 6, dtype=x.dtype))
    assert torch.allclose(R[0], turn.diag(), atol=1e-9)


def test_scale_of_points_and_weights_does_not_matter() -> None:
    x, y, w = normal(2, 6, 3), normal(2, 6, 3, seed=1), normal(2, 6, seed=2).exp()
    R, t = WeightedProcrustes()(x, y, w)
    large, far = WeightedProcrustes()(1e6 * x, 1e6 * y, 1e-6 * w)
    assert torch.allclose(R, large, atol=1e-9) and torch.allclose(1e6 * t, far, rtol=1e-8, atol=1e-2)


def test_points_on_a_line_give_one_of_the_best() -> None:
    x = (torch.arange(5.0, dtype=torch.float64).unsqueeze(-1) * torch.tensor([1.0, 2.0, 3.0])).unsqueeze(0).requires_grad_()
    R, t = WeightedProcrustes()(x, x.detach() @ rotation(normal(4)).mT, torch.ones(1, 5, dtype=x.dtype))
    assert torch.allclose(x @ R.mT + t, x.detach() @ rotation(normal(4)).mT)
    R.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_points_without_weight_have_no_pose() -> None:
    with pytest.raises(ddn.SolverError):
        WeightedProcrustes()(normal(1, 5, 3), normal(1, 5, 3), torch.zeros(1, 5, dtype=torch.float64))


def test_one_point_fixes_the_translation_only() -> None:
    x, y = normal(1, 1, 3), normal(1, 1, 3, seed=1)
    R, t = WeightedProcrustes()(x, y, torch.ones(1, 1, dtype=x.dtype))
    assert torch.allclose(x @ R.mT + t, y) and torch.allclose(R @ R.mT, torch.eye(3, dtype=x.dtype))


def test_a_point_without_weight_has_a_derivative() -> None:
    """That of its weight is the limit of derivatives at small ones; its pixels do not matter."""
    points, truth = normal(8, 3), torch.tensor([1.0, 0.1, 0.2, 0.0, 0.0, 0.1, 6.0], dtype=torch.float64)
    pixels = project(truth, points) + 0.01 * normal(8, 2, seed=1)
    weights = torch.ones(8, dtype=torch.float64)
    weights[2] = 0.0

    def depth(weights: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        return PnP(8)(points, pixels, weights, truth)[1][2]

    slopes = torch.func.grad(depth, (0, 1))(weights, pixels)
    step = torch.zeros_like(weights).index_fill(0, torch.tensor(2), 1e-5)
    assert slopes[0][2].item() == pytest.approx((depth(weights + step, pixels) - depth(weights, pixels)).item() / 1e-5, 1e-3)
    assert slopes[0][2].abs() > 1e-3 and slopes[1][2].abs().max() < 1e-12


def test_negative_weights_are_refused() -> None:
    weights = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    with pytest.raises(ddn.InputError, match="negative"):
        WeightedProcrustes()(normal(3, 3), normal(3, 3, seed=1), weights)
    with pytest.raises(ddn.InputError, match="negative"):
        PnP(3)(normal(3, 3), normal(3, 2, seed=1), weights, normal(7))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ddn.InputError, match="weights"):
        WeightedProcrustes()(normal(1, 5, 3), normal(1, 5, 3), torch.ones(1, 4))
    with pytest.raises(ddn.InputError, match=r"pixels must be \(\*batch, 5, 2\)"):
        PnP(5)(normal(1, 5, 3), normal(1, 5, 3), torch.ones(1, 5), normal(1, 7))
    with pytest.raises(ddn.DeclarationError, match="at least 3"):
        PnP(2)
    with pytest.raises(ddn.DeclarationError, match="trust"):
        Bundle(2, 3, trust=0.0)


def test_camera_is_found_from_a_start_that_is_a_third_of_a_turn_off() -> None:
    points, truth = normal(1, 12, 3), rotation(torch.tensor([[math.cos(1.0), 0.0, 0.0, math.sin(1.0)]], dtype=torch.float64))
    seen = points @ truth.mT + torch.tensor([0.1, -0.2, 6.0], dtype=points.dtype)
    start = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5.0]], dtype=points.dtype)
    R, t = PnP(12)(points, seen[..., :2] / seen[..., 2:], torch.ones(1, 12, dtype=points.dtype), start)
    assert torch.allclose(R, truth, atol=1e-8) and t[0, 2].item() == pytest.approx(6.0)
    assert (R.mT @ R - torch.eye(3, dtype=R.dtype)).abs().max() <= 1e-12

"""Random fields: large pictures, filling in, Charbonnier's penalty, and bad input."""

from __future__ import annotations

import copy
import math

import cvxpy as cp
import pytest
import torch

from ddn_cvx import DeclarationError, InputError
from ddn_cvx.nodes import FieldOfExperts, PictureTotalVariation
from ddn_cvx.nodes.markov_fields import SMALL

f64 = torch.float64


def test_gradient_of_filters_and_weights_of_a_large_picture() -> None:
    """By products with the Hessian, against differences."""
    torch.manual_seed(0)
    node, x = FieldOfExperts(3, 3, tolerance=1e-9).double(), torch.rand(2, 16, 14, dtype=f64)
    assert x[0].numel() > SMALL
    weights = torch.randn_like(x)
    for parameter in node.energy.parameters():
        (slope,) = torch.autograd.grad((node(x) * weights).sum(), parameter)
        direction, step, ends = torch.randn_like(parameter), 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
                ends.append((node(x) * weights).sum())
                parameter -= sign * step * direction
        assert torch.isclose((ends[0] - ends[1]) / (2 * step), (slope * direction).sum(), rtol=1e-4, atol=1e-7)


def test_weights_of_any_size_of_picture_are_the_same_file() -> None:
    torch.manual_seed(0)
    node, other = FieldOfExperts(2, 2), FieldOfExperts(2, 2)
    x = torch.rand(4, 5)
    right = node(x)
    other.load_state_dict(node.state_dict())
    assert torch.equal(other(x), right)
    assert {name for name, _ in node.named_parameters()} == {"energy.filters", "energy.log_weights"}
    twin = copy.deepcopy(node)
    with torch.no_grad():
        twin.energy.log_weights += 2.0
    assert not torch.allclose(twin(x), right, atol=1e-3) and torch.equal(node(x), right)


def test_what_is_not_trusted_is_filled_in() -> None:
    node = FieldOfExperts(2, 2, tolerance=1e-8).double()
    node.energy.filters.data = torch.tensor([[[-1.0, 1.0], [0.0, 0.0]], [[-1.0, 0.0], [1.0, 0.0]]], dtype=f64)
    ramp = torch.arange(6.0, dtype=f64).expand(1, 5, 6) / 10
    trusted = torch.ones_like(ramp)
    trusted[:, 2, 3] = 0.0
    hidden = torch.where(trusted > 0, ramp, 100.0)
    assert (node(hidden, trusted)[:, 2, 3] - 0.3).abs() < 0.05


def test_charbonnier_of_differences_along_the_rows_is_total_variation_of_each() -> None:
    torch.manual_seed(0)
    node = FieldOfExperts(1, 2, penalty="charbonnier", rounding=1e-3, tolerance=1e-6).double()
    node.energy.filters.data = torch.tensor([[[-1.0, 1.0], [0.0, 0.0]]], dtype=f64)
    node.energy.log_weights.data.fill_(math.log(0.1))
    x = torch.rand(1, 3, 6, dtype=f64)
    found = node(x).detach()[0]
    for row, answer in zip(x[0, :-1].numpy(), found[:-1].numpy(), strict=True):
        y = cp.Variable(6)
        cp.Problem(cp.Minimize(0.5 * cp.sum_squares(y - row) + 0.1 * cp.tv(y))).solve(solver=cp.CLARABEL)
        assert abs(answer - y.value).max() < 0.01
    assert torch.allclose(found[-1], x[0, -1])  # no window begins in the last row


def test_charbonnier_is_rounded_as_it_says() -> None:
    """Two pixels, one filter: the difference d of the answer solves d + 2 w d / sqrt(d^2 + r^2) = that of the picture."""
    node = FieldOfExperts(1, 2, penalty="charbonnier", rounding=0.3, tolerance=1e-10).double()
    node.energy.filters.data = torch.tensor([[[-1.0, 1.0], [0.0, 0.0]]], dtype=f64)
    node.energy.log_weights.data.fill_(math.log(0.2))
    found = node(torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=f64))[0].detach()
    d = (found[1] - found[0]).item()
    assert d + 2 * 0.2 * d / math.hypot(d, 0.3) == pytest.approx(1.0, abs=1e-8)


def test_bad_input_is_refused() -> None:
    for wrong in ({"penalty": "cubic"}, {"rounding": 0.0}):
        with pytest.raises(DeclarationError, match=next(iter(wrong))):
            FieldOfExperts(2, 3, **wrong)
    with pytest.raises(DeclarationError, match="at least"):
        FieldOfExperts(0, 3)
    with pytest.raises(DeclarationError, match="at least 2"):
        PictureTotalVariation(1, 4)
    for x, m in ((torch.zeros(2, 4), None), (torch.zeros(5, 5), torch.zeros(5, 4))):
        with pytest.raises(InputError, match=r"\(\*batch, h, w\)"):
            FieldOfExperts(2, 3)(x, m)

"""Hard constraints: they hold exactly, gradients lie in their tangent space, and what is impossible is refused."""

from __future__ import annotations

import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx.nodes import BoneLengths, HardConstraint


def test_lengths_hold_and_gradients_are_tangential() -> None:
    joints = torch.randn(50, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    lengths = torch.tensor([1.0, 2.0], dtype=torch.float64)
    found = BoneLengths([(0, 1), (1, 2)])(joints, lengths)
    assert (found.diff(dim=1).norm(dim=-1) - lengths).abs().max() <= 1e-8
    (gradient,) = torch.autograd.grad(found.diff(dim=1).norm(dim=-1).sum(), joints)
    assert gradient.abs().max() < 1e-8  # no joint changes a length that is fixed


def test_pose_that_satisfies_the_lengths_stays() -> None:
    joints = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    found = BoneLengths([(0, 1), (1, 2)], 2)(joints, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert torch.allclose(found, joints, atol=1e-12)


def test_lengths_that_no_triangle_has_are_refused() -> None:
    joints = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    with pytest.raises(ddn.SolverError):
        BoneLengths([(0, 1), (1, 2), (2, 0)], 2)(joints, torch.tensor([1.0, 1.0, 5.0], dtype=torch.float64))


def test_bad_declarations_and_shapes_are_refused() -> None:
    with pytest.raises(ddn.DeclarationError, match="bones"):
        BoneLengths([(1, 1)])
    with pytest.raises(ddn.DeclarationError, match="n must be"):
        HardConstraint(0, lambda y, c: y, 1)
    with pytest.raises(ddn.DeclarationError, match="callable"):
        HardConstraint(1, None, 1)
    for length in (0.0, -1.0):
        with pytest.raises(ddn.InputError, match="above 0"):
            BoneLengths([(0, 1)])(torch.randn(2, 3), torch.tensor([length]))
    with pytest.raises(ddn.InputError, match="joints must be"):
        BoneLengths([(0, 1)])(torch.zeros(2, 2), torch.ones(1))

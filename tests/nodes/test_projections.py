"""Projections onto spheres where the nearest point is not unique, and radii that no sphere has."""

from __future__ import annotations

import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx.nodes import LpBall, LpSphere


@pytest.mark.parametrize("p", [1.0, 2.0, torch.inf])
def test_the_middle_goes_to_a_point_of_the_sphere(p: float) -> None:
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    y = LpSphere(3, p)(x, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert torch.allclose(torch.linalg.vector_norm(y, p, -1), torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert bool(torch.autograd.grad(y.sum(), x)[0].isfinite().all())


@pytest.mark.parametrize("p", [1.0, 2.0, torch.inf])
def test_negative_radii_are_refused(p: float) -> None:
    x, r = torch.tensor([3.0, 4.0]), torch.tensor(-1.0)
    with pytest.raises(ddn.InputError, match="negative"):
        LpSphere(2, p)(x, r)
    with pytest.raises(ddn.SolverError, match="INFEASIBLE"):
        LpBall(2, p)(x, r)


@pytest.mark.parametrize("build", [LpBall, LpSphere])
def test_other_norms_are_refused(build: type[LpBall] | type[LpSphere]) -> None:
    with pytest.raises(ddn.DeclarationError, match="1, 2 or infinity"):
        build(3, p=3.0)

"""The relaxation of MAXSAT: its value, its derivatives with and without matrices, and bad input."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch

from ddn_cvx import DeclarationError, InputError
from ddn_cvx.nodes import MaxSatRelaxation, SATNet

f64 = torch.float64


def test_value_is_that_of_the_semidefinite_program() -> None:
    n, generator = 6, torch.Generator().manual_seed(0)
    S = torch.randn(3, n + 1, 4, generator=generator, dtype=f64)
    C = S @ S.mT
    C = C - torch.diag_embed(C.diagonal(dim1=-2, dim2=-1))
    node = MaxSatRelaxation(n, tilt=0.0)
    solution = node.solve(C, torch.zeros(3, n, node.rank, dtype=f64), torch.zeros(3, n, dtype=f64))
    for matrix, value in zip(C.numpy(), solution.value, strict=True):
        X = cp.Variable((n + 1, n + 1), PSD=True)
        best = cp.Problem(cp.Minimize(0.5 * cp.trace(matrix @ X)), [cp.diag(X) == 1]).solve(solver=cp.CLARABEL)
        assert abs(best - float(value)) < 1e-6 * (1 + abs(best))


@pytest.mark.parametrize("tilt, rank", [(0.0, 4), (0.1, 4), (0.1, 26)], ids=["turned at will", "tilted", "by products"])
def test_gradient_of_the_clauses(tilt: float, rank: int) -> None:
    """Also where the answer is only unique up to rotations, and without matrices, against differences."""
    torch.manual_seed(0)
    node = SATNet(4, 5, rank=rank, tilt=tilt, tolerance=1e-9, sweeps=100_000).double()
    z = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]], dtype=f64)
    known = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=f64).expand(2, 4)
    weights = torch.tensor([0.0, 1.0, 0.0, -0.7], dtype=f64)
    (slope,) = torch.autograd.grad((node(z, known) * weights).sum(), node.S)
    assert node.layer.rank == rank and np.isfinite(slope.numpy()).all()
    direction, step = torch.randn(node.S.shape, dtype=f64), 1e-5
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            node.S += sign * step * direction
            ends.append((node(z, known) * weights).sum())
            node.S -= sign * step * direction
    assert torch.isclose((ends[0] - ends[1]) / (2 * step), (slope * direction).sum(), rtol=1e-4, atol=1e-7)


def test_bad_input_is_refused() -> None:
    for wrong in ({"n": 0, "clauses": 3}, {"n": 3, "clauses": 0}, {"n": 3, "clauses": 3, "auxiliary": -1}):
        with pytest.raises(DeclarationError, match="at least"):
            SATNet(**wrong)
    with pytest.raises(DeclarationError, match="rank"):
        MaxSatRelaxation(3, rank=1)
    with pytest.raises(DeclarationError, match="tilt"):
        MaxSatRelaxation(3, tilt=-0.1)
    with pytest.raises(InputError, match="between 0 and 1"):
        SATNet(2, 2)(torch.tensor([[1.5, 0.0]]), torch.tensor([[1.0, 0.0]]))
    with pytest.raises(InputError, match="known"):
        SATNet(2, 2)(torch.zeros(1, 2), torch.zeros(1, 3))

"""Krylov methods against dense factorisations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ddn_cvx.linalg.iterative import MatrixFreeSaddle, cg, minres

F64 = torch.float64


def symmetric(batch: int, n: int, values: Tensor, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(batch, n, n, generator=g, dtype=F64)).Q
    return Q @ (values.unsqueeze(-1) * Q.mT)


def apply(A: Tensor):
    return lambda v: (A @ v.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_cg_solves_positive_definite_systems(preconditioned: bool) -> None:
    A = symmetric(5, 30, torch.logspace(-2, 2, 30, dtype=F64)) * torch.tensor([1.0, 1e3, 1e-3, 1.0, 1.0])[:, None, None]
    b = torch.randn(5, 30, dtype=F64, generator=torch.Generator().manual_seed(1))
    b[3] = 0.0
    diagonal = A.diagonal(dim1=1, dim2=2)
    x, negative = cg(apply(A), b, 1e-12, 500, (lambda r: r / diagonal) if preconditioned else None)
    np.testing.assert_allclose(x.numpy(), np.linalg.solve(A.numpy(), b.numpy()[..., None])[..., 0], rtol=1e-6, atol=1e-9)
    assert not negative.any()
    assert (x[3] == 0).all()


def test_cg_stops_at_negative_curvature_with_a_descent_direction() -> None:
    values = torch.linspace(1, 3, 10, dtype=F64).repeat(2, 1)
    values[1, 0] = -1.0
    A = symmetric(2, 10, values)
    b = torch.ones(2, 10, dtype=F64)
    x, negative = cg(apply(A), b, 1e-12)
    assert negative.tolist() == [False, True]
    assert ((x * b).sum(-1) > 0).all()


def test_cg_stays_in_its_trust_region() -> None:
    A = symmetric(2, 10, torch.linspace(-1, 3, 10, dtype=F64).expand(2, 10))
    radius = torch.tensor([0.5, 2.0], dtype=F64)
    x, _ = cg(apply(A), torch.ones(2, 10, dtype=F64), radius=radius)
    torch.testing.assert_close(x.norm(dim=-1), radius)


def test_minres_solves_indefinite_systems() -> None:
    values = torch.cat((torch.linspace(-3, -1, 12, dtype=F64), torch.linspace(0.5, 4, 20, dtype=F64))).repeat(4, 1)
    A = symmetric(4, 32, values) * torch.tensor([1.0, 1e4, 1e-4, 1.0])[:, None, None]
    b = torch.randn(4, 32, dtype=F64, generator=torch.Generator().manual_seed(1))
    b[3] = 0.0
    x = minres(apply(A), b, 1e-12)
    np.testing.assert_allclose(x.numpy(), np.linalg.solve(A.numpy(), b.numpy()[..., None])[..., 0], rtol=1e-8, atol=1e-11)


def test_minres_gives_least_norm_where_singular() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 0.0, 1.0, 3.0], dtype=F64).repeat(2, 1)
    A = symmetric(2, 6, values)
    b = apply(A)(torch.randn(2, 6, dtype=F64, generator=torch.Generator().manual_seed(1)))
    expected = np.linalg.pinv(A.numpy(), rcond=1e-10, hermitian=True) @ b.numpy()[..., None]
    np.testing.assert_allclose(minres(apply(A), b, 1e-13).numpy(), expected[..., 0], atol=1e-9)


def test_matrix_free_saddle() -> None:
    """Order 10^5 with tridiagonal H and a banded A, in a few vectors of memory; checked by its residual."""
    n, p = 60_000, 20_000

    def hvp(v: Tensor) -> Tensor:
        out = 4.0 * v
        out[:, 1:] -= v[:, :-1]
        out[:, :-1] -= v[:, 1:]
        return out

    def push(v: Tensor) -> Tensor:
        return v.view(1, p, 3) @ torch.tensor([1.0, 2.0, -1.0], dtype=F64)

    def pull(w: Tensor) -> Tensor:
        return (w.unsqueeze(-1) * torch.tensor([1.0, 2.0, -1.0], dtype=F64)).flatten(1)

    g = torch.Generator().manual_seed(0)
    top, low = torch.randn(1, n, generator=g, dtype=F64), torch.randn(1, p, generator=g, dtype=F64)
    u, omega = MatrixFreeSaddle(hvp, push, pull, n, scale=2.0).solve(top, low, 1e-12)
    assert float((hvp(u) + pull(omega) - top).norm()) < 1e-9 * float(top.norm())
    assert float((push(u) - low).norm()) < 1e-9 * float(low.norm())

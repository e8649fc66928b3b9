"""GMRES: exact in n steps, per-element stopping, restarts, singular and inconsistent systems."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddn_cvx.linalg.gmres import gmres

f64 = torch.float64


def matrices(batch: int, n: int) -> Tensor:
    return torch.randn(batch, n, n, generator=torch.Generator().manual_seed(0), dtype=f64)


def times(A: Tensor):
    return lambda v: (A @ v.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_exact_after_n_steps(n: int) -> None:
    A, b = matrices(5, n), torch.ones(5, n, dtype=f64)
    found = gmres(times(A), b, 1e-12)
    assert torch.allclose(times(A)(found.x), b, atol=1e-8) and bool((found.residual <= 1e-9).all())


@pytest.mark.parametrize("restart", [5, 50])
def test_restarts(restart: int) -> None:
    A = torch.eye(60, dtype=f64) + 0.05 * matrices(3, 60)
    b = torch.ones(3, 60, dtype=f64)
    found = gmres(times(A), b, 1e-10, restart=restart)
    assert torch.allclose(times(A)(found.x), b, atol=1e-8)


def test_easy_and_hard_elements_share_a_batch() -> None:
    """The identity is done after one step, zero at once; the others go on, and lose nothing."""
    A = torch.cat([torch.eye(8, dtype=f64).expand(2, 8, 8), matrices(2, 8)])
    b = torch.ones(4, 8, dtype=f64)
    b[1] = 0
    found = gmres(times(A), b)
    assert torch.allclose(times(A)(found.x), b, atol=1e-8) and (found.x[1] == 0).all()
    alone = gmres(times(A[3:]), b[3:])
    assert torch.allclose(found.x[3:], alone.x, atol=1e-8)


def test_singular_systems_report_what_is_left() -> None:
    A = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=f64)).expand(2, 3, 3)
    b = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], dtype=f64)
    found = gmres(times(A), b)
    assert torch.allclose(found.x[0], torch.tensor([1.0, 0.5, 0.0], dtype=f64)) and found.residual[0] < 1e-9
    assert found.residual[1] > 0.5 and found.x.isfinite().all()


def test_nan_stays_in_its_element() -> None:
    A = torch.stack([torch.full((2, 2), torch.nan, dtype=f64), 2 * torch.eye(2, dtype=f64)])
    found = gmres(times(A), torch.ones(2, 2, dtype=f64))
    assert torch.allclose(found.x[1], torch.full((2,), 0.5, dtype=f64)) and not found.residual[0] < 1


def test_iterations_are_limited() -> None:
    calls = []
    A = matrices(1, 50)

    def apply(v: Tensor) -> Tensor:
        calls.append(1)
        return times(A)(v)

    assert gmres(apply, torch.ones(1, 50, dtype=f64), iterations=10).residual[0] > 1e-6
    assert len(calls) <= 12

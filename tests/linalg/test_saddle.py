"""Saddle-point systems against eigenvalues, dense solves and pseudo-inverses of numpy, element by element."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ddn_cvx.linalg.saddle import CondensedFactor, SaddleKKT

F64 = torch.float64


def system(batch: int, n: int, k: int, seed: int = 0, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor, Tensor]:
    """H indefinite but positive definite on null(A) for every other element; D zero, small and large."""
    g = torch.Generator().manual_seed(seed)
    H = torch.randn(batch, n, n, generator=g, dtype=F64)
    A = torch.randn(batch, k, n, generator=g, dtype=F64)
    # curvature -1 in the row space of A, +1 in its null space; the odd ones are free to be anything
    Q = torch.linalg.qr(A.mT).Q
    row_space = Q @ Q.mT
    convex = torch.eye(n, dtype=F64) - 2 * row_space + 0.05 * (H + H.mT) / n**0.5
    H = torch.where((torch.arange(batch) % 2 == 0)[:, None, None], convex, H + H.mT)
    D = torch.zeros(batch, k, dtype=F64)
    return H.to(dtype), A.to(dtype), D.to(dtype)


def dense(H: Tensor, A: Tensor, D: Tensor) -> np.ndarray:
    top = torch.cat([H, A.mT], 2)
    return torch.cat([top, torch.cat([A, -torch.diag_embed(D)], 2)], 1).double().numpy()


@pytest.mark.parametrize("n, k", [(1, 0), (6, 0), (5, 1), (12, 4), (7, 7)])
def test_inertia_and_solution(n: int, k: int) -> None:
    H, A, D = system(20, n, k)
    K = dense(H, A, D)
    values = np.linalg.eigvalsh(K)
    right = ((values > 0).sum(1) == n) & ((values < 0).sum(1) == k)
    kkt = SaddleKKT(H, A, D)
    np.testing.assert_array_equal(kkt.correct_inertia.numpy(), right)
    assert right.any()
    assert right.all() == (k == n)  # there are elements of both kinds
    b = torch.randn(20, n + k, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    z = torch.cat(kkt.solve(b[:, :n], b[:, n:]), 1)
    np.testing.assert_allclose(z.numpy(), np.linalg.solve(K, b.numpy()), rtol=1e-9, atol=1e-11)
    assert not kkt.singular.any.any()


def test_condensed_factor_never_accepts_the_wrong_inertia() -> None:
    H, A, D = system(200, 8, 3, seed=3)
    values = np.linalg.eigvalsh(dense(H, A, D))
    right = ((values > 0).sum(1) == 8) & ((values < 0).sum(1) == 3)
    accepted = CondensedFactor(H, A, D).correct_inertia.numpy()
    assert not (accepted & ~right).any()
    assert (accepted == right).mean() > 0.97  # and rejects few of the right ones


def test_inactive_rows_fade_out() -> None:
    """D from 0 to 1e12: the solution is that of numpy, with weights that differ by twelve orders of magnitude."""
    H, A, D = system(6, 6, 4)
    H = H @ H.mT + torch.eye(6, dtype=F64)
    D = D + torch.tensor([0.0, 1e-9, 1.0, 1e12], dtype=F64)
    K = SaddleKKT(H, A, D)
    assert K.correct_inertia.all()
    b = torch.randn(6, 10, 1, dtype=F64, generator=torch.Generator().manual_seed(2))
    z = torch.cat(K.solve(b[:, :6], b[:, 6:]), 1)
    np.testing.assert_allclose(z.numpy(), np.linalg.solve(dense(H, A, D), b.numpy()), rtol=1e-9, atol=1e-20)


def test_badly_scaled_barrier_terms() -> None:
    """Diagonal barrier terms up to 1e12 do not spoil the inertia test nor the refined solution."""
    H, A, D = system(10, 8, 3, seed=5)
    H = H[::2]
    H = H + torch.diag_embed(torch.logspace(-12, 12, 8, dtype=F64).expand(5, 8))
    A, D = A[::2], D[::2]
    factor = CondensedFactor(H, A, D)
    b = torch.ones(5, 11, 1, dtype=F64)
    u, omega = factor.solve(b[:, :8], b[:, 8:])
    top, low = factor.residual(b[:, :8], b[:, 8:], u, omega)
    values = np.linalg.eigvalsh(dense(H, A, D))
    right = torch.from_numpy((values < 0).sum(1) == 3)
    assert (factor.correct_inertia == right).all()
    assert float(top[right].abs().max()) < 1e-9 and float(low[right].abs().max()) < 1e-12


def test_singular_elements_get_least_norm() -> None:
    """One valley, one pair of dependent rows, one regular element: each flagged, each equal to the pseudo-inverse."""
    H = torch.eye(4, dtype=F64).repeat(3, 1, 1)
    A = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, -1.0, 0.0]], dtype=F64).repeat(3, 1, 1)
    H[0, 3, 3] = 0.0
    A[1, 1] = 2 * A[1, 0]
    kkt = SaddleKKT(H, A)
    assert kkt.correct_inertia.tolist() == [False, False, True]
    assert kkt.singular.primal.tolist() == [True, False, False]
    assert kkt.singular.dual.tolist() == [False, True, False]
    b = torch.randn(3, 6, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    z = torch.cat(kkt.solve(b[:, :4], b[:, 4:]), 1)
    expected = np.linalg.pinv(dense(H, A, torch.zeros(3, 2, dtype=F64)), rcond=1e-9, hermitian=True) @ b.numpy()
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_elements_without_solution_do_no_harm() -> None:
    H, A, D = system(4, 5, 2)
    H[1] = torch.nan
    kkt = SaddleKKT(H, A, D, ok=torch.tensor([True, True, False, True]))
    alone = SaddleKKT(H[:1], A[:1], D[:1])
    one = torch.ones(4, 7, 1, dtype=F64)
    u, _ = kkt.solve(one[:, :5], one[:, 5:])
    assert u.isfinite().all()
    assert kkt.correct_inertia.tolist()[:3] == [True, False, False]
    torch.testing.assert_close(u[:1], alone.solve(one[:1, :5], one[:1, 5:])[0], rtol=1e-13, atol=0)


def test_float32() -> None:
    H, A, D = system(20, 8, 3, dtype=torch.float32)
    kkt = SaddleKKT(H, A, D)
    values = np.linalg.eigvalsh(dense(H, A, D))
    np.testing.assert_array_equal(kkt.correct_inertia.numpy(), (values < 0).sum(1) == 3)
    b = torch.ones(20, 11, 1)
    z = torch.cat(kkt.solve(b[:, :8], b[:, 8:]), 1)
    assert z.dtype == torch.float32
    expected = np.linalg.solve(dense(H, A, D), b.double().numpy())
    np.testing.assert_allclose(z.numpy(), expected, rtol=2e-3, atol=2e-4)


def test_take_and_put() -> None:
    H, A, D = system(6, 5, 2)
    H[::2] = torch.eye(5, dtype=F64)
    factor = CondensedFactor(H, A, D)
    shifted = H + 50 * torch.eye(5, dtype=F64)
    bad = torch.nonzero(~factor.correct_inertia).flatten()
    assert len(bad)
    factor.put(bad, CondensedFactor(shifted[bad], A[bad], D[bad]))
    assert factor.correct_inertia.all()
    one = torch.ones(6, 7, 1, dtype=F64)
    u, _ = factor.solve(one[:, :5], one[:, 5:])
    again, _ = factor.take(bad).solve(one[bad, :5], one[bad, 5:])
    torch.testing.assert_close(u[bad], again)


def test_empty_batch_and_order_200() -> None:
    """Order 200, batch 4: the size at which batched LU fails in some builds."""
    assert SaddleKKT(torch.zeros(0, 3, 3), torch.zeros(0, 1, 3)).correct_inertia.shape == (0,)
    H, A, D = system(4, 150, 50)
    kkt = SaddleKKT(H, A, D)
    b = torch.ones(4, 200, 1, dtype=F64)
    z = torch.cat(kkt.solve(b[:, :150], b[:, 150:]), 1)
    np.testing.assert_allclose(dense(H, A, D) @ z.numpy(), b.numpy(), atol=1e-8)


def test_right_inertia_that_the_weights_do_not_reveal() -> None:
    """Curvature 1e-6 along the constraint and a coupling of 10 across it: only the exact factorisation sees a minimum."""
    H = torch.tensor([[[0.0, 10.0], [10.0, 1e-6]], [[0.0, 10.0], [10.0, -1e-6]]], dtype=F64)
    A = torch.tensor([[1.0, 0.0]], dtype=F64).repeat(2, 1, 1)
    assert not CondensedFactor(H, A).correct_inertia.any()
    kkt = SaddleKKT(H, A)
    assert kkt.correct_inertia.tolist() == [True, False]
    assert not kkt.singular.any.any()
    z = torch.cat(kkt.solve(torch.ones(2, 2, 1, dtype=F64), torch.ones(2, 1, 1, dtype=F64)), 1)
    K = dense(H, A, torch.zeros(2, 1, dtype=F64))
    np.testing.assert_allclose(z.numpy(), np.linalg.solve(K, np.ones((2, 3, 1))), rtol=1e-8)

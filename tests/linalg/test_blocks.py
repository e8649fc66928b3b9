"""Saddle-point systems whose H is given by its diagonal blocks, against the whole matrix in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ddn_cvx.linalg.blocks import add_to_diagonal, keep, row_sizes, times, to_dense
from ddn_cvx.linalg.saddle import SaddleKKT

F64 = torch.float64


def blocks(batch: int, groups: int, size: int, seed: int = 0) -> Tensor:
    """Positive definite in the even elements, anything in the odd ones."""
    H = torch.randn(batch, groups, size, size, generator=torch.Generator().manual_seed(seed), dtype=F64)
    even = (torch.arange(batch) % 2 == 0)[:, None, None, None]
    return torch.where(even, H @ H.mT + 0.1 * torch.eye(size, dtype=F64), H + H.mT)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("groups, size", [(6, 1), (3, 4), (1, 5)])
def test_operations_are_those_of_the_whole_matrix(groups: int, size: int) -> None:
    H, n = blocks(4, groups, size), groups * size
    whole = torch.stack([torch.block_diag(*element) for element in H])
    assert torch.equal(to_dense(H), whole)
    x, free = random(4, n, 3), (random(4, n) > 0).to(F64)
    torch.testing.assert_close(times(H, x), whole @ x, rtol=1e-13, atol=1e-13)
    assert torch.equal(row_sizes(H), whole.abs().amax(-1))
    assert torch.equal(to_dense(keep(H, free)), whole * free.unsqueeze(-1) * free.unsqueeze(-2))
    before = whole + torch.diag_embed(free)
    add_to_diagonal(H, free)
    assert torch.equal(to_dense(H), before)


@pytest.mark.parametrize("groups, size, k", [(6, 1, 0), (6, 1, 3), (8, 1, 8), (3, 4, 5), (2, 3, 1)])
def test_inertia_and_solution(groups: int, size: int, k: int) -> None:
    n = groups * size
    H, A, D = blocks(20, groups, size), random(20, k, n), torch.zeros(20, k, dtype=F64)
    whole = torch.stack([torch.block_diag(*element) for element in H])
    K = torch.cat((torch.cat((whole, A.mT), 2), torch.cat((A, -torch.diag_embed(D)), 2)), 1).numpy()
    values = np.linalg.eigvalsh(K)
    kkt = SaddleKKT(H, A, D)
    np.testing.assert_array_equal(kkt.correct_inertia.numpy(), ((values > 0).sum(1) == n) & ((values < 0).sum(1) == k))
    assert kkt.correct_inertia.any()
    b = random(20, n + k, 3, seed=2)
    z = torch.cat(kkt.solve(b[:, :n], b[:, n:]), 1)
    np.testing.assert_allclose(z.numpy(), np.linalg.solve(K, b.numpy()), rtol=1e-9, atol=1e-10)
    # positive definite elements are factored by blocks: what is said about them is what the whole matrix says
    torch.testing.assert_close(kkt.growth[::2], SaddleKKT(whole, A, D).growth[::2], rtol=1e-6, atol=0.0)


def test_singular_and_failed_elements() -> None:
    H, A = torch.ones(4, 6, 1, 1, dtype=F64), random(4, 2, 6)
    H[0, 3] = 0.0  # positive definite along the constraints all the same
    H[1, :3] = 0.0  # three flat directions, two constraints: a valley
    A[2, 1] = 2 * A[2, 0]  # dependent constraints
    H[3, 0] = torch.nan
    ok = torch.tensor([True, True, True, False])
    kkt = SaddleKKT(H, A, ok=ok)
    assert kkt.correct_inertia.tolist() == [True, False, False, False]
    assert kkt.singular.primal.tolist() == [False, True, False, False]
    assert kkt.singular.dual.tolist() == [False, False, True, False]
    right = random(4, 8, 1, seed=3)
    z = torch.cat(kkt.solve(right[:, :6], right[:, 6:]), 1)
    whole = to_dense(H[:3])
    K = torch.cat((torch.cat((whole, A[:3].mT), 2), torch.cat((A[:3], A.new_zeros(3, 2, 2)), 2)), 1)
    for element in range(3):
        expected = np.linalg.pinv(K[element].numpy(), rcond=1e-10) @ right[element].numpy()
        np.testing.assert_allclose(z[element].numpy(), expected, rtol=1e-9, atol=1e-10)
    assert z[3].isfinite().all()
    alone = SaddleKKT(H[:1], A[:1]).solve(right[:1, :6], right[:1, 6:])
    assert torch.equal(torch.cat(alone, 1), z[:1])  # bit for bit what it is without the others

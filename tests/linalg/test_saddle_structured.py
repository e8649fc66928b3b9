"""Structured saddle-point systems against dense ones of numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ddn_cvx.linalg.saddle_structured import Arrow, BlockSaddle

F64 = torch.float64


def blocks(batch: int, groups: int, size: int) -> Tensor:
    X = torch.randn(batch, groups, size, size, generator=torch.Generator().manual_seed(0), dtype=F64)
    return X @ X.mT + 0.5 * torch.eye(size, dtype=F64)


def spread_out(parts: Tensor) -> Tensor:
    return torch.stack([torch.block_diag(*element) for element in parts])


CASES = [(6, 1, 3, 0.0), (6, 1, 9, 0.1), (3, 4, 5, 0.0), (3, 2, 11, 1e-3), (4, 3, 0, 0.0)]


@pytest.mark.parametrize("groups, size, k, low", CASES)
def test_block_saddle(groups: int, size: int, k: int, low: float) -> None:
    n = groups * size
    parts = blocks(4, groups, size)
    g = torch.Generator().manual_seed(1)
    A = torch.randn(4, k, n, generator=g, dtype=F64)
    D = low * (1 + torch.rand(4, k, generator=g, dtype=F64))
    kkt = BlockSaddle(parts, A, D)
    assert kkt.correct_inertia.all()
    right = torch.randn(4, n + k, 2, generator=g, dtype=F64)
    z = torch.cat(kkt.solve(right[:, :n], right[:, n:]), 1)
    K = torch.cat([torch.cat([spread_out(parts), A.mT], 2), torch.cat([A, -torch.diag_embed(D)], 2)], 1)
    np.testing.assert_allclose(z.numpy(), np.linalg.solve(K.numpy(), right.numpy()), rtol=1e-9, atol=1e-10)


def test_block_saddle_says_where_it_cannot() -> None:
    parts = blocks(3, 4, 1)
    parts[0, 2] = -1.0
    A = torch.ones(3, 2, 4, dtype=F64)
    A[:2, 1] = torch.arange(4.0, dtype=F64)
    assert BlockSaddle(parts, A).correct_inertia.tolist() == [False, True, False]


def test_arrow() -> None:
    g = torch.Generator().manual_seed(2)
    c, groups, size = 6, 5, 3
    J = torch.randn(2, 60, c + groups * size, generator=g, dtype=F64)
    owner = torch.arange(60) % groups
    mask = torch.cat([torch.ones(60, c), torch.nn.functional.one_hot(owner, groups).repeat_interleave(size, 1)], 1).to(F64)
    M = (J * mask).mT @ (J * mask)
    E = M[:, c:, :c].reshape(2, groups, size, c)
    parts = [slice(c + i * size, c + (i + 1) * size) for i in range(groups)]
    P = torch.stack([M[:, part, part] for part in parts], 1)
    right = torch.randn(2, c + groups * size, generator=g, dtype=F64)
    arrow = Arrow(M[:, :c, :c], E, P)
    assert arrow.positive.all()
    x, w = arrow.solve(right[:, :c], right[:, c:].reshape(2, groups, size))
    z = torch.cat([x, w.flatten(1)], 1)
    expected = np.linalg.solve(M.numpy(), right.numpy()[..., None])[..., 0]
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-8, atol=1e-10)

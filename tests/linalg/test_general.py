"""Systems without symmetry, dense: solutions, transposes, units, and which matrices count as singular."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddn_cvx.linalg.general import GeneralFactor

f64 = torch.float64


def matrices(batch: int, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n, n, generator=generator, dtype=f64) + 2 * n**0.5 * torch.eye(n, dtype=f64)


def size(J: Tensor) -> Tensor:
    return J.abs().amax(-1)


@pytest.mark.parametrize("n", [1, 4, 200])
@pytest.mark.parametrize("transpose", [False, True])
def test_solutions(n: int, transpose: bool) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # where batched LU breaks
    try:
        J, r = matrices(4, n), torch.ones(4, n, 3, dtype=f64)
        factor = GeneralFactor(J, size(J))
        x = factor.solve(r, transpose)
        assert torch.allclose((J.mT if transpose else J) @ x, r, atol=1e-12) and not factor.singular.any()
    finally:
        torch.set_num_threads(threads)


def test_single_precision() -> None:
    J, r = matrices(3, 5).float(), torch.ones(3, 5, 1)
    assert torch.allclose(J @ GeneralFactor(J, size(J)).solve(r), r, atol=1e-5)


def test_units_of_the_rows_do_not_matter() -> None:
    J, unit, r = matrices(2, 3), torch.tensor([1e-12, 1.0, 1e12], dtype=f64).reshape(3, 1), torch.ones(2, 3, 1, dtype=f64)
    plain, scaled = GeneralFactor(J, size(J)), GeneralFactor(unit * J, size(unit * J))
    assert not scaled.singular.any()
    assert torch.allclose(scaled.solve(unit * r), plain.solve(r), rtol=1e-10)
    assert torch.allclose(unit * scaled.solve(r, transpose=True), plain.solve(r, transpose=True), rtol=1e-10)


def test_just_the_singular_ones_get_the_pseudo_inverse() -> None:
    J = matrices(3, 4)
    J[1, 2] = J[1, 0] + J[1, 1]
    J[2] = 0
    scale = torch.ones(3, 4, dtype=f64)
    factor, r = GeneralFactor(J, scale), torch.ones(3, 4, 2, dtype=f64)
    assert factor.singular.tolist() == [False, True, True]
    inverse = torch.linalg.pinv(J)
    assert torch.allclose(factor.solve(r), inverse @ r, atol=1e-10)
    assert torch.allclose(factor.solve(r, transpose=True), inverse.mT @ r, atol=1e-10)


def test_small_against_the_scale_is_singular() -> None:
    J = 1e-9 * torch.eye(2, dtype=f64).unsqueeze(0)
    assert not GeneralFactor(J, size(J)).singular.any()
    assert GeneralFactor(J, torch.ones(1, 2, dtype=f64)).singular.all()


def test_elements_that_do_not_matter_get_zeros() -> None:
    J, r = matrices(3, 2), torch.ones(3, 2, 1, dtype=f64)
    J[0, 0, 0] = torch.nan
    x = GeneralFactor(J, torch.ones(3, 2, dtype=f64), torch.tensor([True, True, False])).solve(r)
    assert (x[[0, 2]] == 0).all() and torch.allclose(J[1] @ x[1], r[1])


def test_empty() -> None:
    J = torch.zeros(0, 3, 3, dtype=f64)
    assert GeneralFactor(J, J[:, 0]).solve(J[:, :, :1]).shape == (0, 3, 1)

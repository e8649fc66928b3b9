"""The number type of eight lanes against numpy, and that no lane sees another."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from ddn_cvx.kernels.dense import cholesky
from ddn_cvx.kernels.eigen import descending, eigen, least
from ddn_cvx.kernels.elementary import exp, log
from ddn_cvx.kernels.lanes import LANES, anywhere, in_lanes, where


def aligned(*shape: int) -> np.ndarray:
    """Zeros (..., LANES) that begin at a multiple of a register."""
    size = int(np.prod(shape)) * LANES
    memory = np.zeros(size + LANES)
    skip = (-memory.ctypes.data // 8) % LANES
    return memory[skip : skip + size].reshape(*shape, LANES)


@numba.njit
def elementary(x: Any, out: Any, which: int) -> None:
    a, b = in_lanes(x), in_lanes(out)
    for i in range(a.shape[0]):
        b[i] = exp(a[i]) if which else log(a[i])


@numba.njit
def decompose(X: Any, values: Any, rows: Any, smallest: Any, other: Any, work: Any, k: int) -> None:
    A, V, first = in_lanes(X).reshape(k, k), in_lanes(rows).reshape(k, k), in_lanes(smallest)
    eigen(A, in_lanes(values), V)
    descending(in_lanes(values), V)
    scratch = in_lanes(work)
    first[0] = least(in_lanes(other).reshape(k, k), scratch[:k], scratch[k:])


@numba.njit
def choose(x: Any, y: Any, out: Any) -> bool:
    a, b, c = in_lanes(x), in_lanes(y), in_lanes(out)
    total = 0.0
    for i in range(a.shape[0]):
        positive = (a[i] > 0.0) & ~(b[i] >= 1)
        total += where(positive, max(a[i], b[i]), -abs(min(a[i], 0.5)))
        c[i] = total / 2
    return anywhere(a[0] > 1e9)


@numba.njit
def factor(x: Any, good: Any, k: int) -> None:
    flags = in_lanes(good)
    flags[0] = where(cholesky(in_lanes(x).reshape(k, k), 0.0), 1.0, 0.0)


def of(function: Any, x: np.ndarray) -> np.ndarray:
    given, out = aligned(len(x) // LANES), aligned(len(x) // LANES)
    given.flat[:] = x
    elementary(given, out, function is np.exp)
    return out.ravel()


@pytest.mark.parametrize("function", [np.exp, np.log])
def test_exponential_and_logarithm_are_good_to_two_units_in_the_last_place(function: Any) -> None:
    rng = np.random.default_rng(0)
    wide, near = rng.uniform(-745, 709.7, 80_000), rng.standard_normal(80_000)
    x = (
        np.concatenate([wide, near, 1e-10 * near])
        if function is np.exp
        else np.exp(np.concatenate([wide, near, 1e-10 * near]))
    )
    expected = function(x)
    assert (np.abs(of(function, x) - expected) <= 2 * np.spacing(np.abs(expected))).all()
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, -1.0, 1.0, 5e-324, 709.79, -745.2, -746.0, 1e3, -1e3, 1e300, 1e-310, 2.0]
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(of(function, np.array(edges)), function(edges), rtol=1e-15)


def test_masks_comparisons_and_conversions() -> None:
    rng = np.random.default_rng(1)
    x, y, out = aligned(5), aligned(5), aligned(5)
    x[:], y[:] = rng.standard_normal((2, 5, LANES))
    y[2] = 3.0
    assert not choose(x, y, out)
    picked = np.where((x > 0) & ~(y >= 1), np.maximum(x, y), -np.abs(np.minimum(x, 0.5)))
    np.testing.assert_allclose(out, np.cumsum(picked, 0) / 2, rtol=1e-14)
    x[0, 3] = 1e10
    assert choose(x, y, out)


def symmetric(k: int, seed: int) -> np.ndarray:
    """Eight matrices: generic, of low rank, with equal eigenvalues, of any size, and zero."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((LANES, k, k))
    X += X.transpose(0, 2, 1)
    low = rng.standard_normal((k, 2))
    X[1], X[2], X[3], X[4] = low @ low.T, np.eye(k), 0.0, np.diag(np.arange(k) - 2.0)
    X[5] *= 1e8
    X[6] *= 1e-8
    return X


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_eigenvalues_and_vectors(k: int) -> None:
    given = symmetric(k, k)
    X, other, values, rows, smallest, work = (
        aligned(k, k),
        aligned(k, k),
        aligned(k),
        aligned(k, k),
        aligned(1),
        aligned(4 * k),
    )
    X[:] = other[:] = given.transpose(1, 2, 0)
    decompose(X.reshape(-1, LANES), values, rows.reshape(-1, LANES), smallest, other.reshape(-1, LANES), work, k)
    for lane in range(LANES):
        size = np.abs(given[lane]).max() + 1e-300
        V, d = rows[..., lane], values[:, lane]
        assert (np.diff(d) <= 0).all()
        np.testing.assert_allclose(V.T @ (d[:, None] * V) / size, given[lane] / size, atol=1e-13)
        np.testing.assert_allclose(V @ V.T, np.eye(k), atol=1e-13)
        true = np.linalg.eigvalsh(given[lane])[0]
        assert -0.01 * size <= smallest[0, lane] - true <= 1e-13 * size


def test_a_lane_does_not_see_the_others() -> None:
    k, rng = 6, np.random.default_rng(3)
    root = rng.standard_normal((LANES, k, k))
    given = (root @ root.transpose(0, 2, 1) + np.eye(k)).transpose(1, 2, 0)
    whole, spoilt, good, bad = aligned(k, k), aligned(k, k), aligned(1), aligned(1)
    whole[:] = spoilt[:] = given
    spoilt[..., 2], spoilt[0, 0, 5] = np.nan, -1.0
    factor(whole.reshape(-1, LANES), good, k)
    factor(spoilt.reshape(-1, LANES), bad, k)
    left = [0, 1, 3, 4, 6, 7]
    assert (good == 1.0).all() and bad[0].tolist() == [1, 1, 0, 1, 1, 0, 1, 1]
    assert (whole[..., left] == spoilt[..., left]).all()
    lower = np.tril(whole[..., 0])
    np.testing.assert_allclose(lower @ lower.T, given[..., 0], rtol=1e-12, atol=1e-12)

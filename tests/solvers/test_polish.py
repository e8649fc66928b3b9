"""Polishing from points that are close to a solution but on the wrong side of a constraint."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.optimize import nnls

from ddn_cvx.cones import Product
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.instance import Instance
from ddn_cvx.solvers.polish import polish


@pytest.mark.parametrize("which", ["dense", "sparse", "krylov"])
@pytest.mark.parametrize("seed", range(2))
def test_between_two_active_sets_whole_steps_find_the_solution(
    seed: int, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ill-conditioned least squares with x >= 0: a whole step changes the active set and raises the residual before the next
    one is exact, and shorter ones end at the boundary of the two."""
    rng = np.random.default_rng(seed)
    n, batch, decades = (12, 50, 2) if which != "krylov" else (12, 10, 1)
    if which != "dense":
        monkeypatch.setattr("ddn_cvx.program.conic.DENSE_LIMIT", 0)
        monkeypatch.setattr("ddn_cvx.program.conic.has_sparse_factor", lambda *_: which == "sparse")
        monkeypatch.setattr("ddn_cvx.program.conic.COMPILED_LIMIT", 0)
    M = rng.normal(size=(batch, n, n)) * 10.0 ** rng.uniform(-decades, decades, (batch, 1, n))
    some = np.where(rng.uniform(size=(batch, n, 1)) < 0.5, 10.0 ** rng.uniform(-7, 0, (batch, n, 1)), 0.0)
    target = (M @ some)[..., 0] + 0.1 * rng.normal(size=(batch, n))
    exact = np.stack([nnls(*pair, maxiter=1000)[0] for pair in zip(M, target, strict=True)])
    P, q = M.transpose(0, 2, 1) @ M, -(M.transpose(0, 2, 1) @ target[..., None])[..., 0]
    upper, bounds = Pattern.of(sp.csc_array(np.triu(np.ones((n, n))))), Pattern.of(-sp.eye_array(n, format="csc"))
    program = ConicProgram(upper, bounds, Product(nonneg=n))
    numbers = P[:, upper.rows, upper.cols], q, -np.ones((batch, n)), np.zeros((batch, n))
    instance = Instance(program, ConicData(*map(torch.as_tensor, numbers)))
    y = (P @ exact[..., None])[..., 0] + q
    v = y - exact + 1e-2 * rng.uniform(-1, 1, (batch, n)) * np.abs(y - exact).max(1, keepdims=True)
    point, _ = polish(instance, instance.at(*map(torch.as_tensor, (exact, v))), torch.ones(batch, dtype=torch.bool), 10)
    np.testing.assert_allclose(point.x.numpy(), exact, rtol=0.0, atol=1e-8)

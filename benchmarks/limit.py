"""The time below which an interior-point method for dense quadratic programs cannot get, as far as linear algebra goes.

Each iteration assembles and factorises the condensed matrix of a program with n variables, p equalities and m inequalities:

    P + G' W G              m n^2             half of a matrix product, the result being symmetric
    its Cholesky factor     n^3 / 3
    L^{-1} A'               n^2 p             equalities, as a Schur complement
    A (.)^{-1} A'           n p^2
    its Cholesky factor     p^3 / 3

and the backward pass does so once. Dividing by the rates at which this machine multiplies and factorises batches of such
matrices gives the limit; on a CPU the rate of one thread is counted once for each processor. The number of iterations is
what Clarabel needs for the same numbers. A method that is not of this kind, such as an active-set method that starts at the
right set, can be faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from benchmarks.problems import Row
from ddn_cvx.kernels.jit import processors

COUNTED = 4
"""Instances whose iterations are counted."""
LARGEST = 2**22
"""Entries of the batch of matrices with which the rates are measured, at most; at least one matrix."""
SECONDS = 0.05
"""For which each rate is measured."""


@dataclass(frozen=True)
class Operations:
    """Of one iteration for one instance, in additions and multiplications."""

    products: float
    factors: float

    @staticmethod
    def of(n: int, p: int, m: int) -> Operations:
        return Operations(m * n**2 + n**2 * p + n * p**2, (n**3 + p**3) / 3)


def measure(row: Row, device: torch.device, seed: int) -> dict[str, float]:
    """The limit of a row of a curve, with what it was computed from: operations a second, and iterations."""
    assert row.curve is not None
    n, p, m = row.curve.sizes
    operations, iterations = Operations.of(n, p, m), count_iterations(row, seed)
    batch = int(np.clip(LARGEST // max(n * n, m * n), 1, row.batch))
    a, b = (torch.rand(batch, *shape, dtype=torch.float64, device=device) for shape in ((n, m), (m, n)))
    spd = a @ a.mT + torch.eye(n, dtype=torch.float64, device=device)
    products = 2 * batch * n * n * m / _seconds(lambda: torch.bmm(a, b), device)
    factors = batch * n**3 / 3 / _seconds(lambda: torch.linalg.cholesky_ex(spd), device)
    return {
        "seconds": seconds(operations, row.batch, iterations, products, factors, device.type == "cpu"),
        "iterations": iterations,
        "product_rate": products,
        "factor_rate": factors,
    }


def seconds(operations: Operations, batch: int, iterations: float, products: float, factors: float, share: bool) -> float:
    """Of a batch, at rates in operations a second; with ``share`` each processor has that rate."""
    workers = min(batch, processors()) if share else 1
    return batch * (iterations + 1) * (operations.products / products + operations.factors / factors) / workers


def count_iterations(row: Row, seed: int) -> float:
    """The mean number of Clarabel's iterations, at its default tolerance, over the first instances of the row."""
    import clarabel

    declared = row.declare()
    assert declared.quadratic is not None
    values = [torch.from_numpy(v[:COUNTED]) for v in row.values([seed, 0])]
    settings: Any = clarabel.DefaultSettings()
    settings.verbose = False
    counts = []
    for P, q, A, b, G, h in zip(*(t.numpy() for t in declared.quadratic(*values)), strict=True):
        cones = [clarabel.ZeroConeT(b.size)] * bool(b.size) + [clarabel.NonnegativeConeT(h.size)] * bool(h.size)
        rows, sides = sp.csc_matrix(np.concatenate([A, G])), np.concatenate([b, h])
        counts.append(clarabel.DefaultSolver(sp.triu(P, format="csc"), q, rows, sides, cones, settings).solve().iterations)
    return float(np.mean(counts))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The least time of one call, by one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    least, end = float("inf"), perf_counter() + SECONDS
    try:
        while perf_counter() < end:
            start = perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            least = min(least, perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return least

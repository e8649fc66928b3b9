"""Random quadratic programs for the kernels, and a check of their solutions that shares nothing with them."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ddn_cvx.kernels.structure import Structure

Array = NDArray[np.float64]


class Program:
    """``min 1/2 x'Px + q'x  s.t.  Ax + s = b`` with dense numbers, as the kernels want it."""

    def __init__(self, P: Array, q: Array, A: Array, b: Array, zero: int):
        self.P, self.q, self.A, self.b, self.zero = P, q, A, b, zero
        upper, whole = sp.csc_array(np.triu(P)), sp.csc_array(A)
        for matrix in (upper, whole):
            matrix.sort_indices()
        columns = [np.repeat(np.arange(m.shape[1]), np.diff(m.indptr)) for m in (upper, whole)]
        self.structure = Structure.of((upper.indices, columns[0]), (whole.indices, columns[1]), len(q), len(b), zero)
        self.values = upper.data[None].copy(), q[None].copy(), whole.data[None].copy(), b[None].copy()

    def violation(self, x: Array, y: Array, s: Array) -> float:
        """The largest violation of the optimality conditions, next to the size of their terms."""
        size = 1 + max(np.abs(t).max(initial=0.0) for t in (self.P @ x, self.q, self.A.T @ y, self.b, x, y))
        free = self.zero
        parts = [
            self.P @ x + self.q + self.A.T @ y,
            self.A @ x + s - self.b,
            s[:free],
            np.minimum(s[free:], 0),
            np.minimum(y[free:], 0),
            np.minimum(s[free:], y[free:]),
        ]
        return max(float(np.abs(part).max(initial=0.0)) for part in parts) / size


def random_program(seed: int, n: int, equalities: int, inequalities: int, bounds: int, rank: int | None = None) -> Program:
    """Feasible by construction, with about half of the inequalities tight at the feasible point."""
    rng = np.random.default_rng(seed)
    F = rng.standard_normal((n if rank is None else rank, n))
    point = rng.standard_normal(n)
    rows = [rng.standard_normal((equalities + inequalities, n))]
    for _ in range(bounds):
        row = np.zeros((1, n))
        row[0, rng.integers(n)] = rng.choice([-2.0, -1.0, 0.5, 1.0])
        rows.append(row)
    A = np.concatenate(rows)
    slack = rng.random(len(A)) * rng.integers(0, 2, len(A))
    slack[:equalities] = 0
    regular = 0.0 if rank is not None else 0.1
    return Program(F.T @ F + regular * np.eye(n), 3 * rng.standard_normal(n), A, A @ point + slack, equalities)

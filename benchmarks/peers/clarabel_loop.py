"""A loop over Clarabel's own interface with new numbers for a kept solver object, in one thread a processor, and backwards
one dense system for each instance: what a careful user of Clarabel would write by hand for linear constraints."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.peers import Peer, Unsuitable, package_version
from benchmarks.peers.conic_form import ConicPeer
from benchmarks.problems import Declaration
from ddn_cvx.kernels.jit import processors

SETTINGS = {"1e-8": 1e-8, "1e-12": 1e-12}
"""Tolerance of each column; the first is Clarabel's default."""


class Loop(ConicPeer):
    """Forward by Clarabel; backward by the optimality conditions with the active rows as equations."""

    def __init__(self, declared: Declaration, tolerance: float):
        super().__init__(declared)
        if not self.program.cones.is_polyhedral:
            raise Unsuitable("linear constraints only: its backward pass is written for those")
        self.tolerance = tolerance
        self.threads = processors()
        self._pool = ThreadPoolExecutor(self.threads)
        self._solvers: list[Any] = []

    def forward(self, *arrays: Any) -> Any:
        self._data = arrays
        if not self._solvers:
            self._solvers = [self._solver() for _ in range(self.threads)]
        count = len(arrays[1])
        parts = [range(k, count, self.threads) for k in range(self.threads)]
        solved = list(self._pool.map(self._solve, self._solvers, parts))
        x, z, s = (np.empty((count, k)) for k in (self.program.n, self.program.m, self.program.m))
        for part, answers in zip(parts, solved, strict=True):
            for i, answer in zip(part, answers, strict=True):
                x[i], z[i], s[i] = answer
        self._point = x, z, s
        return x

    def _solve(self, solver: Any, part: range) -> list[tuple[Any, ...]]:
        answers = []
        P, q, A, b = self._data
        for i in part:
            solver.update(P=P[i].tolist(), q=q[i].tolist(), A=A[i].tolist(), b=b[i].tolist())
            found = solver.solve()
            answers.append((found.x, found.z, found.s))
        return answers

    def _solver(self) -> Any:
        import clarabel

        settings: Any = clarabel.DefaultSettings()
        settings.verbose = settings.presolve_enable = False
        settings.equilibrate_enable = False  # it would scale all instances as the first one asks for
        settings.tol_feas = settings.tol_gap_abs = settings.tol_gap_rel = self.tolerance
        settings.max_threads = 1
        P, A = (
            sp.csc_matrix((values[0], pattern.rows, pattern.indptr), shape=pattern.shape)
            for values, pattern in ((self._data[0], self.program.P), (self._data[2], self.program.A))
        )
        zero, rest = self.program.cones.zero, self.program.m - self.program.cones.zero
        cones = [clarabel.ZeroConeT(zero)] * bool(zero) + [clarabel.NonnegativeConeT(rest)] * bool(rest)
        return clarabel.DefaultSolver(P, self._data[1][0], A, self._data[3][0], cones, settings)

    def backward(self, cotangent: Any) -> list[Any]:
        (x, z, s), program = self._point, self.program
        n, m, count = program.n, program.m, len(x)
        active = (np.arange(m) < program.cones.zero) | (z > s)
        K = np.zeros((count, n + m, n + m))
        i, j, k, column = program.P.rows, program.P.cols, program.A.rows, program.A.cols
        K[:, i, j] = K[:, j, i] = self._data[0]
        K[:, n + k, column] = K[:, column, n + k] = self._data[2] * active[:, k]
        rows = np.arange(n, n + m)
        K[:, rows, rows] = ~active
        w = np.linalg.solve(K, np.concatenate([cotangent, np.zeros((count, m))], 1)[:, :, None])[:, :, 0]
        u, t = w[:, :n], w[:, n:] * active
        # A diagonal entry of the upper triangle is there once, any other stands for two.
        grad_P = -np.where(i == j, u[:, i] * x[:, j], u[:, i] * x[:, j] + u[:, j] * x[:, i])
        return [grad_P, -u, -(z[:, k] * active[:, k] * u[:, column] + t[:, k] * x[:, column]), t]


def peers() -> list[Peer]:
    """One column for each tolerance; raises ``ImportError`` without Clarabel."""
    import clarabel  # noqa: F401  (to see that it can be imported)

    version = package_version("clarabel")
    return [
        Peer(
            f"Clarabel loop ({name})",
            "clarabel",
            version,
            f"tolerance {name}, numpy backwards",
            partial(Loop, tolerance=tol),
        )
        for name, tol in SETTINGS.items()
    ]

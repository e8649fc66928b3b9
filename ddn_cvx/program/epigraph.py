"""A quadratic objective as a linear one and a second-order cone, for solvers that know no quadratic
objective.

    minimise q'x + t   subject to   1/2 |F x|^2 <= t,   where  F'F = P

and ``1/2 |F x|^2 <= t`` is ``(t + 1/2, t - 1/2, F x)`` in the second-order cone. At a solution ``t = 1/2
x'Px`` and the cone's multiplier is ``(t + 1/2, 1/2 - t, -F x)``; the multipliers of the other rows are those
of the original program.

F is a square root by eigenvalues, so that a singular P needs no care; it is as large as the set of variables
that P touches.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.conic import ConicData, ConicProgram

ROUNDING = 1e-9
"""An eigenvalue of P below minus this, relative to the largest, means that P is not positive semidefinite."""


class Epigraph:
    """Between a conic program and its epigraph form, which has one variable and one second-order cone more.

    Attributes
    ----------
    full : ConicProgram
        The program with a quadratic objective, n variables and m rows.
    program : ConicProgram
        The program with a linear objective; its first n variables are those of ``full``.
    kept : ndarray
        The rows of ``program`` that are the rows of ``full``, ``(m,)``.
    """

    def __init__(self, full: ConicProgram):
        self.full = full
        n, m, cones = full.n, full.m, full.cones
        self.support = np.union1d(full.P.rows, full.P.cols)
        k = len(self.support)
        self.first = first = cones.zero + cones.nonneg + sum(cones.soc)
        self.kept = np.concatenate([np.arange(first), np.arange(first + k + 2, m + k + 2)])
        rows = [self.kept[full.A.rows], np.array([first, first + 1]), np.repeat(first + 2 + np.arange(k), k)]
        cols = [full.A.cols, np.array([n, n]), np.tile(self.support, k)]
        i, j = np.concatenate(rows), np.concatenate(cols)
        # One more than the entry's number, so that no stored value is zero.
        numbered = sp.csc_array((np.arange(1, len(i) + 1), (i, j)), shape=(m + k + 2, n + 1))
        numbered.sort_indices()
        self._entries = torch.as_tensor(numbered.data - 1)
        extended = replace(cones, soc=(*cones.soc, k + 2))
        self.program = ConicProgram(Pattern.of(sp.csc_array((n + 1, n + 1))), Pattern.of(numbered), extended)

    def factor(self, data: ConicData) -> Tensor:
        """F with ``F'F = P`` on the variables that P touches, ``(B, k, k)``; NaN where P is not positive
        semidefinite or not finite."""
        full, support = self.full, torch.as_tensor(self.support)
        finite = data.P.isfinite().all(-1)
        P, _ = full.dense(data._replace(P=torch.where(finite[:, None], data.P, 0.0)))
        eigenvalues, vectors = torch.linalg.eigh(P[:, support[:, None], support])
        floor = -ROUNDING * eigenvalues.abs().amax(-1)
        valid = finite & (eigenvalues[:, 0] >= floor)
        F = eigenvalues.clamp(min=0).sqrt()[:, :, None] * vectors.mT
        return torch.where(valid[:, None, None], F, float("nan"))

    def lift(self, data: ConicData) -> ConicData:
        """Data of ``program``; an element whose P has no factor gets NaN."""
        one = data.q.new_ones(data.q.shape[0], 1)
        F = self.factor(data).flatten(1)
        A = torch.cat([data.A, -one, -one, -F], 1)[:, self._entries]
        cone = torch.cat([one / 2, -one / 2, torch.zeros_like(data.q[:, self.support])], 1)
        b = torch.cat([data.b[:, : self.first], cone, data.b[:, self.first :]], 1)
        return ConicData(data.P[:, :0], torch.cat([data.q, one], 1), A, b)

    def point(self, data: ConicData, x: Tensor, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The primal, dual and slack vectors of ``program`` at a solution of ``full``."""
        Fx = (self.factor(data) @ x[:, self.support, None]).squeeze(-1)
        t = 0.5 * Fx.square().sum(-1, keepdim=True)
        slack = torch.cat([t + 0.5, t - 0.5, Fx], 1)
        dual = torch.cat([t + 0.5, 0.5 - t, -Fx], 1)
        y = torch.cat([y[:, : self.first], dual, y[:, self.first :]], 1)
        s = torch.cat([s[:, : self.first], slack, s[:, self.first :]], 1)
        return torch.cat([x, t], 1), y, s

    def embed(self, x: Tensor, y: Tensor, s: Tensor) -> list[Tensor]:
        """Vectors of ``full`` among those of ``program``, with zeros elsewhere."""
        out = [t.new_zeros(t.shape[0], size) for t, size in ((x, self.program.n), (y, self.program.m), (s, self.program.m))]
        out[0][:, : self.full.n], out[1][:, self.kept], out[2][:, self.kept] = x, y, s
        return out

"""Ruiz equilibration of a batch of conic programs by powers of two.

The program in ``x = D x'``, ``s' = E s`` with the objective times c,

    P' = c D P D,   q' = c D q,   A' = E A D,   b' = E b,

has entries of size about one (Ruiz, 2001; the cost factor as in OSQP, Stellato et al., 2020). A cone that is
not a product of half-lines or lines must keep its shape: all its rows share one factor. All factors are
powers of two, so scaling and unscaling round nothing, and they are found from the binary exponents of the
entries alone, each element for itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.program.conic import ConicData, ConicProgram

Floats = NDArray[np.float64]
Exponents = NDArray[np.int16]

SWEEPS = 10
LARGEST = 13  # no factor leaves [2^-13, 2^13], about [1e-4, 1e4]
EMPTY = -9000  # the exponent given to zero; an entry this small has no say


class Scaled(NamedTuple):
    """Scaled data, and the factors that lead back: ``x = D x'``, ``y = E y' / c``, ``s = s' / E``."""

    P: Floats
    q: Floats
    A: Floats
    b: Floats
    D: Floats
    E: Floats
    c: Floats


class Equilibration:
    """The structure of one program, prepared for scaling batches of it."""

    def __init__(self, program: ConicProgram):
        n, rows = program.n, program.cones.rows_alike
        self.n, self.groups = n, n + int(rows.max(initial=-1)) + 1
        self.row_group = n + rows
        # Every entry of P and A sits in the row of one group and the column of another.
        self.i = np.concatenate([program.P.rows, self.row_group[program.A.rows]])
        self.j = np.concatenate([program.P.cols, program.A.cols])
        self.nnz_P = program.P.nnz
        both = np.concatenate([self.i, self.j])
        order = np.argsort(both, kind="stable")
        self.order = order % max(len(self.i), 1)
        self.present, self.starts = np.unique(both[order], return_index=True)

    def __call__(self, data: ConicData) -> Scaled:
        """Scale ``(B, ...)`` data; an element's factors depend on that element only."""
        P, q, A, b = (values.numpy() for values in data)
        d, c = self._exponents(_exponent(np.concatenate([P, A], 1)), _exponent(q))
        factor, cost = np.exp2(d), np.exp2(c)
        D, E = factor[:, : self.n], factor[:, self.row_group]
        pair = factor[:, self.i] * factor[:, self.j]
        return Scaled(P * pair[:, : self.nnz_P] * cost, q * D * cost, A * pair[:, self.nnz_P :], b * E, D, E, cost)

    def _exponents(self, matrix: Exponents, q: Exponents) -> tuple[Exponents, Exponents]:
        """Exponents of the factors of all groups ``(B, groups)`` and of the cost ``(B, 1)``."""
        d = np.zeros((len(q), self.groups), np.int16)
        c = np.zeros((len(q), 1), np.int16)
        for _ in range(SWEEPS):
            step = np.clip(d - (self._largest(matrix) >> 1), -LARGEST, LARGEST) - d
            matrix += step[:, self.i] + step[:, self.j]
            q += step[:, : self.n]
            d += step
            cost = np.maximum(_row_max(matrix[:, : self.nnz_P]), _row_max(q))
            turn = np.clip(c - np.where(cost > EMPTY // 2, cost, 0), -LARGEST, LARGEST) - c
            matrix[:, : self.nnz_P] += turn
            q += turn
            c += turn
            if not step.any() and not turn.any():
                break
        return d, c

    def _largest(self, matrix: Exponents) -> Exponents:
        """The largest exponent in each group ``(B, groups)``; 0 for a group of zeros."""
        out = np.zeros((len(matrix), self.groups), np.int16)
        if len(self.present):
            largest = np.maximum.reduceat(matrix[:, self.order], self.starts, axis=1)
            out[:, self.present] = np.where(largest > EMPTY // 2, largest, 0)
        return out


def _exponent(values: Floats) -> Exponents:
    """e with ``2^(e-1) <= |value| < 2^e``."""
    return np.where(values == 0, EMPTY, np.frexp(values)[1]).astype(np.int16)


def _row_max(exponents: Exponents) -> Exponents:
    return exponents.max(1, keepdims=True, initial=EMPTY)

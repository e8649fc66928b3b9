"""Eliminate variables that an equality defines: ``x_E = c - M x_R``.

Canonical forms of ``sum_squares(A x - b)`` carry an auxiliary variable ``r`` with ``r = A x - b``. Substituting it away
leaves a program of half the size with the quadratic term ``A'A``. A column may go when it appears in exactly one row of
A, that row is an equality, and the coefficient there is a constant; columns with different such rows go together,
because none of them appears in another's row.

The substitution and its inverse are ordinary torch, so their derivatives need no further thought.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.cones import Product
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.conic import ConicData, ConicProgram


def removable(program: ConicProgram, constant: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns that can be eliminated and the rows that define them.

    ``constant`` (nnz(A),) holds each entry's value where it does not depend on a parameter, NaN where it does.
    """
    columns, rows, taken = [], [], set()
    indptr, a_rows = program.A.indptr, program.A.rows
    for column in range(program.n):
        start, stop = indptr[column], indptr[column + 1]
        if stop - start != 1:
            continue
        row, value = int(a_rows[start]), constant[start]
        if row < program.cones.zero and row not in taken and np.isfinite(value) and abs(value) > 1e-8:
            columns.append(column)
            rows.append(row)
            taken.add(row)
    return np.array(columns, np.int64), np.array(rows, np.int64)


class Elimination:
    """Between a conic program and the smaller one without the columns ``columns`` and the rows ``rows``.

    Attributes
    ----------
    full, reduced : ConicProgram
        The programs before and after.
    """

    def __init__(self, full: ConicProgram, columns: NDArray[np.int64], rows: NDArray[np.int64]):
        self.full = full
        n, m = full.n, full.m
        self.kept = np.setdiff1d(np.arange(n), columns)
        self.kept_rows = np.setdiff1d(np.arange(m), rows)
        self.columns, self.rows = columns, rows
        a_rows, a_cols = full.A.rows, full.A.cols
        new_col = np.full(n, -1)
        new_col[self.kept] = np.arange(len(self.kept))
        position = np.full(m, -1)
        position[rows] = np.arange(len(rows))
        defining = position[a_rows] >= 0
        is_pivot = defining & (new_col[a_cols] < 0)
        in_M = defining & ~is_pivot
        self.pivot = np.empty(len(rows), np.int64)
        self.pivot[position[a_rows[is_pivot]]] = np.flatnonzero(is_pivot)
        self.M_entries = np.flatnonzero(in_M)
        self.M_rows, self.M_cols = position[a_rows[in_M]], new_col[a_cols[in_M]]
        self.A_entries = np.flatnonzero(~defining)
        new_row = np.full(m, -1)
        new_row[self.kept_rows] = np.arange(len(self.kept_rows))
        remaining = sp.csc_array(
            (np.arange(1, len(self.A_entries) + 1), (new_row[a_rows[~defining]], new_col[a_cols[~defining]])),
            shape=(len(self.kept_rows), len(self.kept)),
        )
        remaining.sort_indices()
        self.A_entries = self.A_entries[remaining.data - 1]
        self.P_pattern = self._quadratic_pattern()
        old = full.cones
        cones = Product(old.zero - len(rows), old.nonneg, old.soc, old.psd, old.exp, old.power)
        self.reduced = ConicProgram(self.P_pattern, Pattern.of(remaining), cones)

    def _quadratic_pattern(self) -> Pattern:
        """Upper triangle of the pattern of ``T'PT`` with ``T = [I; -M]``."""
        n, e, r = self.full.n, len(self.columns), len(self.kept)
        upper = self.full.P.matrix(np.ones(self.full.P.nnz))
        M = sp.csr_array((np.ones(len(self.M_rows)), (self.M_rows, self.M_cols)), shape=(e, r))
        embed = sp.csr_array((np.ones(r), (self.kept, np.arange(r))), shape=(n, r))
        define = sp.csr_array((np.ones(e), (self.columns, np.arange(e))), shape=(n, e))
        T = embed + define @ M
        self.touched = bool((abs(upper) + abs(upper.T))[self.columns].nnz)
        return Pattern.of(sp.triu(T.T @ (upper + upper.T) @ T))

    def _substitution(self, data: ConicData) -> tuple[Tensor, Tensor]:
        """``(M, c)`` with shapes (B, e, r) and (B, e)."""
        pivot = data.A[:, self.pivot]
        M = data.q.new_zeros(data.q.shape[0], len(self.columns) * len(self.kept))
        slots = torch.as_tensor(self.M_rows * len(self.kept) + self.M_cols, device=M.device)
        scaled = data.A[:, self.M_entries] / pivot[:, self.M_rows]
        M = M.index_copy(1, slots, scaled)
        return M.view(-1, len(self.columns), len(self.kept)), data.b[:, self.rows] / pivot

    def reduce(self, data: ConicData) -> tuple[ConicData, Tensor]:
        """The reduced program's data and the constant to add to its objective, ``(B,)``."""
        M, c = self._substitution(data)
        q_E, q_R = data.q[:, self.columns], data.q[:, self.kept]
        q = q_R - _times(M.mT, q_E)
        constant = (q_E * c).sum(-1)
        P_values = data.P.new_zeros(data.P.shape[0], 0)
        if self.P_pattern.nnz:
            P_RR, P_RE, P_EE = self._blocks(data.P)
            PM = P_EE @ M
            P = P_RR - P_RE @ M - M.mT @ P_RE.mT + M.mT @ PM
            q = q + _times(P_RE, c) - _times(PM.mT, c)
            constant = constant + 0.5 * (c * _times(P_EE, c)).sum(-1)
            P_values = P[:, self.P_pattern.rows, self.P_pattern.cols]
        elif self.touched:
            _, _, P_EE = self._blocks(data.P)
            constant = constant + 0.5 * (c * _times(P_EE, c)).sum(-1)
        return ConicData(P_values, q, data.A[:, self.A_entries], data.b[:, self.kept_rows]), constant

    def _blocks(self, P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = self.full.n
        rows, cols, _, _ = self.full.index(P.device)
        flat = P.new_zeros(P.shape[0], n * n).index_copy(1, rows * n + cols, P)
        whole = flat.index_copy(1, cols * n + rows, P).view(-1, n, n)
        R, E = torch.as_tensor(self.kept, device=P.device), torch.as_tensor(self.columns, device=P.device)
        return (
            whole.index_select(1, R).index_select(2, R),
            whole.index_select(1, R).index_select(2, E),
            whole.index_select(1, E).index_select(2, E),
        )

    def expand(self, x: Tensor, y: Tensor, data: ConicData) -> tuple[Tensor, Tensor]:
        """The full primal ``(B, n)`` and dual ``(B, m)`` from the reduced ones; the multipliers of the eliminated
        rows follow from stationarity in the eliminated variables, ``a y = -(P x + q)``."""
        M, c = self._substitution(data)
        x_E = c - _times(M, x)
        order = np.argsort(np.concatenate([self.kept, self.columns]))
        x_full = torch.cat([x, x_E], -1)[:, order]
        gradient = self.full.P_times(data.P, x_full) + data.q
        y_E = -gradient[:, self.columns] / data.A[:, self.pivot]
        order = np.argsort(np.concatenate([self.kept_rows, self.rows]))
        return x_full, torch.cat([y, y_E], -1)[:, order]


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)

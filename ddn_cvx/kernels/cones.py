"""Cones other than half-lines, one block of rows after the other: projections and the eigenvectors of their derivatives.

The formulas, and the choice at kinks, are those of ``ddn_cvx.cones``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.kernels.eigen import eigen
from ddn_cvx.kernels.envelope import ordering
from ddn_cvx.kernels.exponential import CURVED, FLAT, INSIDE, frame
from ddn_cvx.kernels.jit import inner

Integers = NDArray[np.int64]

SECOND_ORDER, SEMIDEFINITE, EXPONENTIAL = range(3)
ROOT = 2.0**0.5


class Cones(NamedTuple):
    """The cones below the inequalities, and how the columns of A meet them."""

    linear: int
    """Rows above the first block: equalities and inequalities."""
    kind: Integers
    """``(k,)``, one of the constants above."""
    starts: Integers
    """First row of each block, and the end of the last, ``(k + 1,)``."""
    order: Integers
    """Order of the matrix for a semidefinite block, else the number of rows, ``(k,)``."""
    degree: int
    """What ``s'y`` is divided by for the barrier parameter."""
    row_starts: Integers
    """Row i has the entries ``entries[row_starts[i] : row_starts[i + 1]]`` of A's values."""
    entries: Integers
    place: Integers
    """For each of these, the position of its column among the columns of its block."""
    col_starts: Integers
    """The columns of block k are ``cols[col_starts[k] : col_starts[k + 1]]``."""
    cols: Integers
    thin: NDArray[np.bool_]
    """Blocks with so few entries that pairs of entries are fewer than pairs of columns times rows, ``(k,)``."""
    rank: Integers
    """The order in which variables are eliminated, ``(n,)``."""
    first: Integers
    """Where the row of each rank begins in the factor, as a rank, ``(n,)``."""
    row_reach: Integers
    """Lowest and highest rank among the columns of each row, ``(m, 2)``; -1 for an empty one."""
    block_reach: Integers
    """The same for each block, ``(k, 2)``."""
    visible: NDArray[np.bool_]
    """Variables that must be unique; the others are auxiliary, ``(n,)``."""
    tallest: int
    """Most rows, largest matrix order and most columns of a block."""
    widest_matrix: int
    widest: int

    @staticmethod
    def of(
        P: tuple[Integers, Integers],
        A: tuple[Integers, Integers],
        shape: tuple[int, int],
        linear: int,
        blocks: Sequence[tuple[int, int, int]],
        visible: NDArray[np.bool_],
    ) -> Cones:
        """From the stored entries of P and of A, and kind, first row and order of each block."""
        m, n = shape
        kind, starts, order = (np.array([block[i] for block in blocks], np.int64) for i in range(3))
        starts = np.append(starts, m)
        starts[0] = linear
        rows, columns = (np.asarray(t, np.int64) for t in A)
        entries = np.lexsort((columns, rows)).astype(np.int64)
        row_starts = np.searchsorted(rows[entries], np.arange(m + 1)).astype(np.int64)
        place, cols, col_starts, thin = np.zeros(len(entries), np.int64), [], [0], []
        adjacent = np.zeros((n, n), bool)
        adjacent[P[0], P[1]] = adjacent[P[1], P[0]] = True
        for k in range(len(blocks)):
            inside = slice(row_starts[starts[k]], row_starts[starts[k + 1]])
            mine, place[inside] = np.unique(columns[entries[inside]], return_inverse=True)
            counts = np.diff(row_starts[starts[k] : starts[k + 1] + 1])
            pairs = (counts**2).sum() if kind[k] == SECOND_ORDER else counts.sum() ** 2
            height, width = len(counts), len(mine)
            dense = height * width**2 + (0 if kind[k] == SECOND_ORDER else height**2 * width)
            thin.append(bool(4 * pairs <= dense))
            cols.append(mine)
            col_starts.append(col_starts[-1] + width)
            adjacent[np.ix_(mine, mine)] = True
        for i in range(linear):
            mine = columns[entries[row_starts[i] : row_starts[i + 1]]]
            adjacent[np.ix_(mine, mine)] = True
        rank, first = ordering(adjacent) if blocks else (np.arange(n), np.zeros(n, np.int64))
        heights = np.diff(starts)
        row_reach = [_reach(rank[columns[entries[row_starts[i] : row_starts[i + 1]]]]) for i in range(m)]
        return Cones(
            linear,
            kind,
            starts,
            order,
            int(sum(DEGREE[code] or size for code, size in zip(kind, order, strict=True))),
            row_starts,
            entries,
            place,
            np.array(col_starts, np.int64),
            np.concatenate(cols).astype(np.int64) if cols else np.zeros(0, np.int64),
            np.array(thin, bool),
            rank,
            first,
            np.array(row_reach, np.int64).reshape(m, 2),
            np.array([_reach(rank[mine]) for mine in cols], np.int64).reshape(len(blocks), 2),
            visible,
            int(heights.max(initial=1)) if len(blocks) else 1,
            int(order[kind == SEMIDEFINITE].max(initial=1)),
            int(np.diff(col_starts).max(initial=1)),
        )


def _reach(ranks: Integers) -> tuple[int, int]:
    return (int(ranks.min()), int(ranks.max())) if len(ranks) else (-1, -1)


DEGREE = {SECOND_ORDER: 1, SEMIDEFINITE: 0, EXPONENTIAL: 3}


@inner
def to_matrix(v: Any, X: Any) -> None:
    """The symmetric matrix X (k, k) of the svec v: upper triangle column by column, off-diagonal entries times root two."""
    row = 0
    for j in range(X.shape[0]):
        for i in range(j):
            X[i, j] = X[j, i] = v[row] * (1.0 / ROOT)
            row += 1
        X[j, j] = v[row]
        row += 1


@inner
def to_vector(X: Any, v: Any) -> None:
    """The inverse of ``to_matrix``; the mean of the two triangles."""
    row = 0
    for j in range(X.shape[0]):
        for i in range(j):
            v[row] = (X[i, j] + X[j, i]) * (0.5 * ROOT)
            row += 1
        v[row] = X[j, j]
        row += 1


@inner
def project_dual(cones: Any, v: Any, y: Any) -> None:
    """``y`` is the projection of v onto the dual cone in the rows of the blocks; NaN stays NaN."""
    kind, starts, order = cones.kind, cones.starts, cones.order
    axes = np.empty(11)
    for k in range(kind.shape[0]):
        a, b = starts[k], starts[k + 1]
        if kind[k] == SECOND_ORDER:
            total = 0.0
            for i in range(a + 1, b):
                total += v[i] * v[i]
            n = total**0.5
            if n <= -v[a]:
                for i in range(a, b):
                    y[i] = 0.0
            elif n < v[a]:
                for i in range(a, b):
                    y[i] = v[i]
            else:
                y[a] = 0.5 * (v[a] + n)
                for i in range(a + 1, b):
                    y[i] = y[a] * (v[i] / n)
        elif kind[k] == SEMIDEFINITE:
            project_matrix(v[a:b], order[k], y[a:b])
        else:
            region = frame(-v[a], -v[a + 1], -v[a + 2], axes)
            for i in range(3):
                if region == CURVED:
                    y[a + i] = v[a + i] + axes[9] * axes[i]
                elif region == INSIDE or (region == FLAT and (i == 0 or v[a + i] <= 0.0)):
                    y[a + i] = v[a + i] * 0.0
                else:
                    y[a + i] = v[a + i]


@inner
def project_matrix(v: Any, k: int, y: Any) -> None:
    X, rows, values = np.empty((k, k)), np.empty((k, k)), np.empty(k)
    to_matrix(v, X)
    good = eigen(X, values, rows, True)
    assemble(values, rows, X)
    to_vector(X, y)
    if not good:
        for i in range(y.shape[0]):
            y[i] = np.nan


@inner
def assemble(values: Any, rows: Any, X: Any) -> None:
    """``X = rows' diag(max(values, 0)) rows``."""
    k = values.shape[0]
    for i in range(k):
        for j in range(k):
            X[i, j] = 0.0
    for e in range(k):
        if values[e] > 0.0:
            for i in range(k):
                factor = values[e] * rows[e, i]
                for j in range(k):
                    X[i, j] += factor * rows[e, j]

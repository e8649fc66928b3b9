"""What the kernels for curved cones need to know of a program, in one array of integers, and their scratch space in another.

A function that is handed two arrays instead of forty compiles many times faster. The first cells of a table are single
numbers, the next ones say where its sections begin, and where those of the scratch space do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.kernels.envelope import ordering
from ddn_cvx.kernels.jit import inner, lean, view
from ddn_cvx.kernels.lanes import LANES
from ddn_cvx.kernels.structure import Structure

Integers = NDArray[np.int64]

SECOND_ORDER, SEMIDEFINITE, EXPONENTIAL = range(3)

# Single numbers: sizes; rows above the first block; blocks; the number that s'y is divided by for the barrier parameter;
# most rows and largest matrix order of a block; whether runs in the columns of A are long.
N, M, ZERO, LINEAR, BLOCKS, DEGREE, TALLEST, MATRIX, RUNS = range(9)

# Sections of the table: stored entries of P's upper triangle and of A, where runs of entries of A below each other begin,
# and their first rows and columns; the entries of A row by row, and the places of their columns among those of their
# block; kind, first row and order of each block, its columns, and whether its entries are few; the order in which
# variables are eliminated and where their rows begin; the lowest and highest rank among the columns of each row and block;
# variables that must be unique; where variables and equalities stand in the matrix of the interior-point method, and where
# its rows begin; where the products, the scaling and the rows of each block are kept.
(
    P_ROWS, P_COLS, A_ROWS, A_COLS, RUN_STARTS, RUN_ROWS, RUN_COLS, ROW_STARTS, ENTRIES, PLACE, KIND, STARTS, ORDER,
    COL_STARTS, COLS, THIN, RANK, FIRST, ROW_LOW, ROW_HIGH, BLOCK_LOW, BLOCK_HIGH, VISIBLE, OWN_PLACE, OWN_FIRST, OWN_ROW,
    KEPT_STARTS, BLOCK_STARTS, LOCAL_STARTS,
) = range(9, 38)  # fmt: skip
SECTIONS = 39

# Sections of the scratch space of integers: where variables and held rows stand in the KKT matrix, and where its rows begin;
# the rows of ``spectrum``.
(
    J_PLACE, J_BY_RANK, J_AFTER, J_FIRST, J_ROW, J_BLOCK, J_INDEX, J_W_BLOCK, J_W_INDEX, J_COUNTS,
) = range(SECTIONS, SECTIONS + 10)  # fmt: skip
INTEGERS = SECTIONS + 11

# Sections of the scratch space of numbers.
(
    W_K, W_SIGN, W_SIDE, W_SCALE, W_LIFT, W_TOPS, W_SIDES, W_SLACK, W_WEIGHT, W_ACROSS, W_AXIS, W_U, W_LOCAL,
    W_BLOCK, W_KEPT, W_POINT, W_INVERSE, W_ETA, W_R, W_R_INVERSE, W_VALUES, W_X, W_Y, W_Z, W_P, W_Q, W_A, W_B,
    W_OTHER, W_EIGEN, W_NUMBERS, W_IDLE, W_LIVE, W_LOW, W_OMEGA, W_CHANGE,
) = range(INTEGERS, INTEGERS + 36)  # fmt: skip
HEADER = INTEGERS + 37

LONG = 4
"""Entries a run must have on average for loops over runs to be faster than one loop over all."""
TOPS, SIDES = 16, 20
"""Vectors of n and of m numbers."""


def table(structure: Structure, blocks: Sequence[tuple[int, int, int]], linear: int, visible: NDArray[np.bool_]) -> Integers:
    """The table of a program with cones: kind, first row and order of each block, below ``linear`` other rows."""
    n, m, zero = structure.n, structure.m, structure.zero
    kind, starts, order = (np.array([block[i] for block in blocks], np.int64) for i in range(3))
    starts = np.append(starts, m)
    rows, columns = structure.A_rows, structure.A_cols
    entries = np.lexsort((columns, rows))
    row_starts = np.searchsorted(rows[entries], np.arange(m + 1))
    place, cols, thin = np.zeros(len(entries), np.int64), [], []
    adjacent = np.zeros((n, n), bool)
    adjacent[structure.P_rows, structure.P_cols] = adjacent[structure.P_cols, structure.P_rows] = True
    for k in range(len(blocks)):
        inside = slice(row_starts[starts[k]], row_starts[starts[k + 1]])
        mine, place[inside] = np.unique(columns[entries[inside]], return_inverse=True)
        counts = np.diff(row_starts[starts[k] : starts[k + 1] + 1])
        height, width, round_one = len(counts), len(mine), kind[k] == SECOND_ORDER
        pairs = (counts**2).sum() if round_one else counts.sum() ** 2
        thin.append(4 * pairs <= height * width**2 + (0 if round_one else height**2 * width))
        cols.append(mine)
        adjacent[np.ix_(mine, mine)] = True
    for i in range(linear):
        mine = columns[entries[row_starts[i] : row_starts[i + 1]]]
        adjacent[np.ix_(mine, mine)] = True
    rank, first = ordering(adjacent)
    row_reach = [_reach(rank[columns[entries[row_starts[i] : row_starts[i + 1]]]]) for i in range(m)]
    block_reach = [_reach(rank[mine]) for mine in cols]
    widths = np.array([len(mine) for mine in cols])
    heights, matrix = np.diff(starts), int(order[kind == SEMIDEFINITE].max(initial=3))
    tallest = int(heights.max(initial=1))
    thick = ~np.array(thin, bool)
    kept, local = np.where((kind == SECOND_ORDER) & thick, widths**2, 0), np.where(thick, heights * widths, 0)
    formed = np.where(kind == SECOND_ORDER, 0, heights**2)
    breaks = (np.diff(rows) != 1) | (np.diff(columns) != 0)
    runs = np.concatenate([[0], 1 + np.flatnonzero(breaks), [len(rows)]])
    degree = int(np.choose(kind, [np.ones_like(order), order, np.full_like(order, 3)]).sum())
    sections = [
        structure.P_rows, structure.P_cols, rows, columns, runs, rows[runs[:-1]], columns[runs[:-1]], row_starts,
        entries, place, kind, starts, order, np.cumsum([0, *widths]), np.concatenate(cols), np.array(thin), rank, first,
        *np.array(row_reach).reshape(m, 2).T, *np.array(block_reach).T, visible,
        *_own_places(rank, first, row_reach[:zero]), np.cumsum([0, *kept]), np.cumsum([0, *formed]),
        np.cumsum([0, *local]),
    ]  # fmt: skip
    vectors = np.choose(kind, [np.ones_like(heights), heights, np.full_like(heights, 2)])
    held, k = linear + int((heights + vectors).sum()), len(blocks)
    whole = n + held
    integers = [n, n, n, whole, held, held, held, m, m, 2]
    numbers = [
        whole * whole, whole, whole, held, held, TOPS * n, SIDES * m, held, m, k, m, m * tallest, local.sum(),
        formed.sum(), kept.sum(), m, m, k, *(k * matrix**2,) * 2, k * matrix, *(matrix**2,) * 3,
        len(structure.P_rows), n, len(rows), m, whole, max(4 * matrix, 11), 2, n, *(held,) * 4,
    ]  # fmt: skip
    sizes = [len(section) for section in sections]
    single = [n, m, zero, linear, k, degree, tallest, matrix, len(rows) >= LONG * (len(runs) - 1)]
    offsets = [np.cumsum([HEADER, *sizes]), np.cumsum([0, *integers]), np.cumsum([0, *numbers])]
    return np.concatenate([np.asarray(part, np.int64) for part in (single, *offsets, *sections)])


def _reach(ranks: Integers) -> tuple[int, int]:
    return (int(ranks.min()), int(ranks.max())) if len(ranks) else (-1, -1)


def _own_places(rank: Integers, first: Integers, reach: Sequence[tuple[int, int]]) -> tuple[Integers, Integers, Integers]:
    """Where variables and equalities stand, each equality right after its last variable, and where their rows begin."""
    low, high = np.array(reach, np.int64).reshape(-1, 2).clip(0).T
    by_rank = np.arange(len(rank)) + (high < np.arange(len(rank))[:, None]).sum(1)
    rows = by_rank[high] + 1 + np.array([(high[:i] == high[i]).sum() for i in range(len(high))], np.int64)
    starts = np.zeros(len(rank) + len(high), np.int64)
    starts[by_rank], starts[rows] = by_rank[first], by_rank[low]
    return by_rank[rank], starts, rows


@inner
def workspace(T: Any) -> Any:
    """Scratch space of numbers (., LANES), to be seen by ``lanes.in_lanes``, and of integers. The matrix, which is most of
    it, is not cleared."""
    size = T[HEADER - 1]
    memory = np.empty((size + 1) * LANES)
    skip = (-memory.ctypes.data // 8) % LANES
    numbers = memory[skip : skip + size * LANES].reshape(size, LANES)
    numbers[T[W_K + 1] :] = 0.0
    return numbers, np.zeros(T[INTEGERS - 1], np.int64)


@lean
def load(values: Any, start: int, stop: int, raw: Any, at: int) -> None:
    """Elements ``start .. stop - 1`` into the lanes, the last one again into those that are left."""
    for lane in range(LANES):
        given = values[min(start + lane, stop - 1)]
        for e in range(given.shape[0]):
            raw[at + e, lane] = given[e]


@lean
def load_program(T: Any, P: Any, q: Any, A: Any, b: Any, start: int, stop: int, raw: Any) -> None:
    """The data of these elements."""
    load(P, start, stop, raw, T[W_P])
    load(q, start, stop, raw, T[W_Q])
    load(A, start, stop, raw, T[W_A])
    load(b, start, stop, raw, T[W_B])


@lean
def store(raw: Any, at: int, start: int, stop: int, out: Any) -> None:
    """What the lanes hold from ``at`` on, for elements ``start .. stop - 1``."""
    for k in range(start, stop):
        for e in range(out.shape[1]):
            out[k, e] = raw[at + e, k - start]


@view
def part(T: Any, code: int) -> Any:
    """A section of the table."""
    return T[T[code] : T[code + 1]]


@view
def space(T: Any, W: Any, code: int) -> Any:
    """A section of the scratch space."""
    return W[T[code] : T[code + 1]]


@view
def top(T: Any, W: Any, k: int) -> Any:
    """Vector k of n numbers."""
    start = T[W_TOPS] + k * T[N]
    return W[start : start + T[N]]


@view
def side(T: Any, W: Any, k: int) -> Any:
    """Vector k of m numbers."""
    start = T[W_SIDES] + k * T[M]
    return W[start : start + T[M]]


@view
def matrix(T: Any, W: Any, code: int, rows: int, columns: int) -> Any:
    """The beginning of a section as a matrix."""
    start = T[code]
    return W[start : start + rows * columns].reshape(rows, columns)


@lean
def add_P(T: Any, P: Any, factor: Any, x: Any, out: Any) -> None:
    """``out <- out + factor P x``."""
    rows, cols = part(T, P_ROWS), part(T, P_COLS)
    for k in range(P.shape[0]):
        i, j, value = rows[k], cols[k], factor * P[k]
        out[i] += value * x[j]
        if i != j:
            out[j] += value * x[i]


@lean
def add_A(T: Any, A: Any, factor: float, x: Any, out: Any) -> None:
    """``out <- out + factor A x``."""
    if T[RUNS]:
        rows, cols, starts = part(T, RUN_ROWS), part(T, RUN_COLS), part(T, RUN_STARTS)
        for j in range(rows.shape[0]):
            start, first, value = starts[j], rows[j], factor * x[cols[j]]
            for k in range(starts[j + 1] - start):
                out[first + k] += value * A[start + k]
        return
    rows, cols = part(T, A_ROWS), part(T, A_COLS)
    for k in range(A.shape[0]):
        out[rows[k]] += factor * A[k] * x[cols[k]]


@lean
def add_At(T: Any, A: Any, factor: float, y: Any, out: Any) -> None:
    """``out <- out + factor A' y``."""
    if T[RUNS]:
        rows, cols, starts = part(T, RUN_ROWS), part(T, RUN_COLS), part(T, RUN_STARTS)
        for j in range(rows.shape[0]):
            start, first, total = starts[j], rows[j], 0.0
            for k in range(starts[j + 1] - start):
                total += A[start + k] * y[first + k]
            out[cols[j]] += factor * total
        return
    rows, cols = part(T, A_ROWS), part(T, A_COLS)
    for k in range(A.shape[0]):
        out[cols[k]] += factor * A[k] * y[rows[k]]

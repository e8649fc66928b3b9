"""What kernels need to know of a program with equalities and inequalities, and products with its stored entries."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.kernels.jit import lean

Integers = NDArray[np.int64]

LONG = 8
"""Entries a column must have on average for loops over columns to be faster than one loop over all."""

FULL = 4
"""Dense rows are taken as such if one in so many of their entries is stored."""


class Structure(NamedTuple):
    """``min 1/2 x'Px + q'x  s.t.  Ax + s = b``, with ``s = 0`` in the first ``zero`` rows and ``s >= 0`` below."""

    n: int
    m: int
    zero: int
    P_rows: Integers
    """Rows and columns of the stored entries of P's upper triangle, and of A's."""
    P_cols: Integers
    P_starts: Integers
    """Where each column of P begins, ``(n + 1,)``."""
    A_rows: Integers
    A_cols: Integers
    A_starts: Integers
    A_ends: Integers
    """Where the entries of each column of A that follow each other without holes end, ``(n,)``."""
    bound: Integers
    """For each row of A: the position among A's values of its entry if it is an inequality with a single one, else -1."""
    general: Integers
    """The rows of inequalities that are not bounds."""
    is_full: bool
    """Whether the rows that are not bounds have many of their entries stored, so that they are best taken as dense ones."""
    P_runs: bool
    """Whether the stored entries of each column of P are many and without holes, the last one on the diagonal."""
    A_runs: bool
    """Whether these are many for A: dense rows come first, bounds behind them."""
    separable: bool
    """Whether P is diagonal, with all of its diagonal stored, and every inequality is a bound."""

    @staticmethod
    def of(P: tuple[Integers, Integers], A: tuple[Integers, Integers], n: int, m: int, zero: int) -> Structure:
        """From the rows and columns of the stored entries of P's upper triangle and of A, column after column."""
        rows = A[0]
        position = np.full(m, -1)
        position[rows] = np.arange(len(rows))
        single = (np.bincount(rows, minlength=m) == 1) & (np.arange(m) >= zero)
        bound = np.where(single, position, -1)
        general = np.flatnonzero(~single & (np.arange(m) >= zero))
        is_full = FULL * (len(rows) - single.sum()) >= n * (m - single.sum())
        separable = len(P[0]) == n and bool((P[0] == P[1]).all() and single[zero:].all())
        P_rows, P_cols, A_rows, A_cols = (np.ascontiguousarray(t, np.int64) for t in (*P, *A))
        P_starts, A_starts = (np.searchsorted(t, np.arange(n + 1)) for t in (P_cols, A_cols))
        P_runs = _has_runs(P_rows, P_starts) and bool((P_rows[P_starts[1:] - 1] == np.arange(n)).all())
        breaks = np.append(np.flatnonzero(np.diff(A_rows) != 1) + 1, len(A_rows))
        following = np.searchsorted(breaks, A_starts[:-1], side="right").clip(max=len(breaks) - 1)
        A_ends = np.minimum(breaks[following], A_starts[1:])
        A_runs = bool((A_ends - A_starts[:-1]).mean() >= LONG)
        return Structure(
            n,
            m,
            zero,
            P_rows,
            P_cols,
            P_starts,
            A_rows,
            A_cols,
            A_starts,
            A_ends,
            bound,
            general,
            bool(is_full),
            P_runs,
            A_runs,
            separable,
        )


def _has_runs(rows: Integers, starts: Integers) -> bool:
    counts = np.diff(starts)
    if not counts.size or counts.min() == 0 or counts.mean() < LONG:
        return False
    return bool((rows[starts[1:] - 1] - rows[starts[:-1]] == counts - 1).all())


@lean
def dense_P(structure: Any, P: Any, out: Any) -> None:
    """Both triangles of P, ``(n, n)``."""
    P_cols, P_rows = structure.P_cols, structure.P_rows
    out[:] = 0.0
    for k in range(P.shape[0]):
        i, j = P_rows[k], P_cols[k]
        out[i, j] = P[k]
        out[j, i] = P[k]


@lean
def dense_A(structure: Any, A: Any, out: Any) -> None:
    """As many of the first rows of A as ``out`` (r, n) has."""
    A_cols, A_rows = structure.A_cols, structure.A_rows
    out[:] = 0.0
    for k in range(A.shape[0]):
        if A_rows[k] < out.shape[0]:
            out[A_rows[k], A_cols[k]] = A[k]


@lean
def add_P(structure: Any, P: Any, factor: float, x: Any, out: Any) -> None:
    """``out <- out + factor P x``."""
    rows, cols, starts = structure.P_rows, structure.P_cols, structure.P_starts
    if structure.P_runs:
        for j in range(structure.n):
            start, stop = starts[j], starts[j + 1] - 1  # the diagonal entry is the last of its column
            out[j] += factor * (P[stop] * x[j] + _run_dot(P, start, stop, x, rows[start]))
            _run_add(P, start, stop, factor * x[j], out, rows[start])
        return
    for k in range(P.shape[0]):
        i, j, value = rows[k], cols[k], factor * P[k]
        out[i] += value * x[j]
        if i != j:
            out[j] += value * x[i]


@lean
def add_A(structure: Any, A: Any, factor: float, x: Any, out: Any) -> None:
    """``out <- out + factor A x``."""
    rows, cols, starts, ends = structure.A_rows, structure.A_cols, structure.A_starts, structure.A_ends
    if structure.A_runs:
        for j in range(structure.n):
            start, end = starts[j], ends[j]
            if end > start:
                _run_add(A, start, end, factor * x[j], out, rows[start])
            for k in range(end, starts[j + 1]):
                out[rows[k]] += factor * A[k] * x[j]
        return
    for k in range(A.shape[0]):
        out[rows[k]] += factor * A[k] * x[cols[k]]


@lean
def add_At(structure: Any, A: Any, factor: float, y: Any, out: Any) -> None:
    """``out <- out + factor A' y``."""
    rows, cols, starts, ends = structure.A_rows, structure.A_cols, structure.A_starts, structure.A_ends
    if structure.A_runs:
        for j in range(structure.n):
            start, end, total = starts[j], ends[j], 0.0
            if end > start:
                total = _run_dot(A, start, end, y, rows[start])
            for k in range(end, starts[j + 1]):
                total += A[k] * y[rows[k]]
            out[j] += factor * total
        return
    for k in range(A.shape[0]):
        out[cols[k]] += factor * A[k] * y[rows[k]]


@lean
def _run_add(values: Any, start: int, stop: int, factor: float, out: Any, first: int) -> None:
    for k in range(stop - start):
        out[first + k] += factor * values[start + k]


@lean
def _run_dot(values: Any, start: int, stop: int, x: Any, first: int) -> float:
    total = 0.0
    for k in range(stop - start):
        total += values[start + k] * x[first + k]
    return total

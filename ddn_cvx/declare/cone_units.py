"""Units for the rows of programs with curved cones and for their auxiliary variables, chosen once from the coefficients.

A point of a curved cone and its multiplier are one vector ``y - s``. In rows that are 1e8 times as large s is too, and y is
1e-8 times as large, so it is lost to rounding. A cone times a number is that cone: each block of rows is divided by its
largest coefficient of a declared variable, and an auxiliary variable (an epigraph) gets the unit that makes its own
coefficients in such blocks ordinary. Programs of half-lines only need none of this.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.cones import Product
from ddn_cvx.linalg.pattern import Pattern

ORDINARY = 16.0
"""What is between this and its reciprocal is left as it is."""


def cone_units(
    cones: Product, A: Pattern, entries: NDArray[np.float64], visible: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factors for the rows ``(m,)`` and the columns ``(n,)`` of A: powers of two, so that nothing is rounded.

    Parameters
    ----------
    cones : Product
        Whose rows they are.
    A : Pattern
        ``(m, n)``.
    entries : array (nnz(A),)
        The size of each entry of A, parameters counted as 1.
    visible : array of bool (n,)
        The variables that somebody declared, whose units are given.
    """
    (m, n), half_lines = A.shape, cones.zero + cones.nonneg
    columns = np.ones(n)
    if m == half_lines:
        return np.ones(m), columns
    block = np.arange(m)  # each half-line is its own
    for curved in cones.blocks():
        if curved.rows.start >= half_lines:
            block[curved.rows] = curved.rows.start
    rows, cols = block[A.rows], A.cols
    factors, known, done = np.ones(m), visible.copy(), np.zeros(m, bool)
    while not done[rows].all():
        # Blocks with a variable whose unit is known; what is tied to none takes its units as they come.
        seen = known[cols] & ~done[rows]
        seen = seen if seen.any() else ~done[rows]
        sizes, new = _largest(rows[seen], entries[seen] * columns[cols[seen]], m)
        factors[new] = _inverse(sizes[new])
        done |= new
        tied = done[rows] & ~known[cols] & (rows >= half_lines)
        sizes, new = _largest(cols[tied], entries[tied] * factors[rows[tied]], n)
        columns[new] = _inverse(sizes[new])
        known |= new
    return factors[block], columns


def _largest(
    place: NDArray[np.int64], sizes: NDArray[np.float64], length: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The largest size at each place, and where there is any."""
    largest, met = np.zeros(length), np.zeros(length, bool)
    np.maximum.at(largest, place, sizes)
    met[place] = True
    return largest, met


def _inverse(size: NDArray[np.float64]) -> NDArray[np.float64]:
    """The power of two next to ``1 / size``, or one where that is ordinary."""
    extreme = (size > 0) & ((size > ORDINARY) | (size < 1 / ORDINARY))
    return np.asarray(2.0 ** -np.rint(np.log2(np.where(extreme, size, 1.0))))

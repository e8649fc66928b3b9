"""Factors of small dense symmetric indefinite matrices, with their inertia.

Bunch and Kaufman's method (Mathematics of Computation 31, 1977): ``P'KP = U'DU`` with U unit upper triangular and D made of
blocks of one and two rows. Only the upper triangle is read and written, row by row; zeros in a pivot row cost nothing.
"""

from __future__ import annotations

from typing import Any

from ddn_cvx.kernels.jit import lean

_ALPHA = 0.6403882032022076  # (1 + sqrt 17) / 8 bounds the growth of entries


@lean
def factor(K: Any, size: int, pivots: Any) -> tuple[int, int]:
    """Factor the leading ``size`` rows of K in place; returns how many eigenvalues are positive and negative.

    ``pivots`` (size,) int64: the row that was swapped with row k, or minus one minus it for both rows of a block of two.
    The factor may be used only if the two counts add up to ``size``.
    """
    positive, negative, k = 0, 0, 0
    while k < size:
        here = K[k]
        diagonal, column, other = abs(here[k]), 0.0, k
        for i in range(k + 1, size):
            if abs(here[i]) > column:
                column, other = abs(here[i]), i
        if not (diagonal > 1e-280 or column > 1e-280):  # zero or NaN
            return positive, negative
        swap, double = k, False
        if diagonal < _ALPHA * column:
            row = 0.0
            for j in range(k, other):
                row = max(row, abs(K[j, other]))
            for j in range(other + 1, size):
                row = max(row, abs(K[other, j]))
            if diagonal * row < _ALPHA * column * column:
                swap = other
                double = abs(K[other, other]) < _ALPHA * row
        last = k + 1 if double else k
        if swap != last:
            _exchange(K, size, k, last, swap)
        if double:
            _eliminate_two(K, size, k)
            pivots[k], pivots[k + 1] = -1 - swap, -1 - swap
            positive, negative, k = positive + 1, negative + 1, k + 2
        else:
            inverse = 1.0 / here[k]
            for i in range(k + 1, size):
                entry = here[i]
                if entry != 0.0:
                    weight, row_i = entry * inverse, K[i]
                    for j in range(i, size):
                        row_i[j] -= weight * here[j]
                    here[i] = weight
            pivots[k] = swap
            if here[k] > 0.0:
                positive += 1
            else:
                negative += 1
            k += 1
    return positive, negative


@lean
def _exchange(K: Any, size: int, k: int, a: int, b: int) -> None:
    """Swap the rows and columns a < b of what is left from row k on."""
    for j in range(b + 1, size):
        K[a, j], K[b, j] = K[b, j], K[a, j]
    for j in range(a + 1, b):
        K[a, j], K[j, b] = K[j, b], K[a, j]
    K[a, a], K[b, b] = K[b, b], K[a, a]
    if a > k:
        K[k, a], K[k, b] = K[k, b], K[k, a]


@lean
def _eliminate_two(K: Any, size: int, k: int) -> None:
    """Eliminate with the block of rows k and k + 1, which has one eigenvalue of each sign."""
    one, two = K[k], K[k + 1]
    off = one[k + 1]
    a, b = two[k + 1] / off, one[k] / off
    scale = 1.0 / (a * b - 1.0) / off
    for i in range(k + 2, size):
        if one[i] == 0.0 and two[i] == 0.0:
            continue
        u, v = scale * (a * one[i] - two[i]), scale * (b * two[i] - one[i])
        row = K[i]
        for j in range(i, size):
            row[j] -= u * one[j] + v * two[j]
        one[i], two[i] = u, v


@lean
def solve(K: Any, size: int, pivots: Any, x: Any) -> None:
    """``x <- K^-1 x`` by the factor."""
    k = 0
    while k < size:
        row = K[k]
        if pivots[k] >= 0:
            swap = pivots[k]
            x[k], x[swap] = x[swap], x[k]
            a = x[k]
            for i in range(k + 1, size):
                x[i] -= a * row[i]
            x[k] = a / row[k]
            k += 1
        else:
            swap, next_row = -1 - pivots[k], K[k + 1]
            x[k + 1], x[swap] = x[swap], x[k + 1]
            a, b = x[k], x[k + 1]
            for i in range(k + 2, size):
                x[i] -= a * row[i] + b * next_row[i]
            off = row[k + 1]
            low, high = next_row[k + 1] / off, row[k] / off
            scale = 1.0 / (low * high - 1.0)
            a, b = a / off, b / off
            x[k], x[k + 1] = scale * (low * a - b), scale * (high * b - a)
            k += 2
    k = size - 1
    while k >= 0:
        row = K[k]
        a = x[k]
        for i in range(k + 1, size):
            a -= row[i] * x[i]
        x[k] = a
        if pivots[k] >= 0:
            swap = pivots[k]
            x[k], x[swap] = x[swap], x[k]
            k -= 1
        else:
            row = K[k - 1]
            a = x[k - 1]
            for i in range(k + 1, size):
                a -= row[i] * x[i]
            x[k - 1] = a
            swap = -1 - pivots[k]
            x[k], x[swap] = x[swap], x[k]
            k -= 2

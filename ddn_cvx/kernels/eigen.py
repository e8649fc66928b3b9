"""Eigenvalues and eigenvectors of small symmetric matrices of lanes, by methods that go the same way through every matrix:
Jacobi's rotations (Golub & Van Loan, "Matrix Computations", 8.5), and Laguerre's iteration for the least one alone."""

from __future__ import annotations

import math
from typing import Any

from ddn_cvx.kernels.dense import add, dot, largest
from ddn_cvx.kernels.jit import lean
from ddn_cvx.kernels.lanes import anywhere, where

SWEEPS = 30
"""Rounds of rotations at most; six are usual."""
LAGUERRE = 6
"""Steps to the least eigenvalue, each of which triples the digits."""


@lean
def eigen(X: Any, values: Any, rows: Any) -> None:
    """``X = rows' diag(values) rows`` for the lower triangle of X (k, k), which is destroyed. Small eigenvalues of positive
    definite matrices are as accurate, next to their size, as large ones."""
    k, size = X.shape[0], 0.0
    for i in range(k):
        size = max(size, largest(X[i, : i + 1]))
        for j in range(k):
            rows[i, j] = 1.0 if i == j else 0.0
    for _ in range(SWEEPS):
        busy = False
        for q in range(1, k):
            for p in range(q):
                a, low, high = X[q, p], X[p, p], X[q, q]
                turns = (a * a > 1e-32 * abs(low * high)) & (abs(a) > 1e-17 * size)
                if anywhere(turns):
                    busy = True
                    ratio = (high - low) / (2.0 * a)
                    t = where(ratio >= 0.0, 1.0, -1.0) / (abs(ratio) + math.sqrt(ratio * ratio + 1.0))
                    t = where(turns, t, 0.0)
                    c = 1.0 / math.sqrt(t * t + 1.0)
                    _rotate(X, rows, p, q, c, t * c)
                    X[p, p], X[q, q], X[q, p] = low - t * a, high + t * a, where(turns, 0.0, a)
        if not busy:
            break
    for i in range(k):
        values[i] = X[i, i]


@lean
def _rotate(X: Any, rows: Any, p: int, q: int, c: Any, s: Any) -> None:
    """All but what both rows share."""
    k, one, two = X.shape[0], X[p], X[q]
    for i in range(p):
        one[i], two[i] = c * one[i] - s * two[i], s * one[i] + c * two[i]
    for i in range(p + 1, q):
        X[i, p], two[i] = c * X[i, p] - s * two[i], s * X[i, p] + c * two[i]
    for i in range(q + 1, k):
        line = X[i]
        line[p], line[q] = c * line[p] - s * line[q], s * line[p] + c * line[q]
    one, two = rows[p], rows[q]
    for i in range(k):
        one[i], two[i] = c * one[i] - s * two[i], s * one[i] + c * two[i]


@lean
def descending(values: Any, rows: Any) -> None:
    """Sort the eigenvalues, and their vectors with them."""
    k = values.shape[0]
    for last in range(k - 1, 0, -1):
        for i in range(last):
            swaps = values[i] < values[i + 1]
            if anywhere(swaps):
                one, two = values[i], values[i + 1]
                values[i], values[i + 1] = where(swaps, two, one), where(swaps, one, two)
                for j in range(k):
                    a, b = rows[i, j], rows[i + 1, j]
                    rows[i, j], rows[i + 1, j] = where(swaps, b, a), where(swaps, a, b)


@lean
def least(X: Any, values: Any, work: Any) -> Any:
    """The least eigenvalue for the lower triangle of X (k, k), which is destroyed, or a number slightly below; ``values``
    (k,) and ``work`` (3k,) are scratch.

    Laguerre's iteration from below never passes it: with ``G`` and ``H`` the sums of the first and of the second powers of
    ``1 / (eigenvalue - x)``, x moves by ``k / (G + sqrt((k - 1) (k H - G^2)))``.
    """
    k = X.shape[0]
    beside = work[:k]
    _tridiagonal(X, values, beside, work[k : 2 * k], work[2 * k : 3 * k])
    x, before = values[0] - abs(beside[0]), abs(beside[0])
    for i in range(1, k):
        after = abs(beside[i])
        x = min(x, values[i] - before - after)
        before = after
    for _ in range(LAGUERRE):
        G, H, t, u, w, below = 0.0, 0.0, 0.0, 0.0, 0.0, True
        for i in range(k):  # pivots of X - x, and their derivatives next to them
            pivot = values[i] - x - t
            below = below & (pivot > 0.0)
            inverse = 1.0 / pivot
            u, w = (1.0 + t * u) * inverse, t * (w + 2.0 * u * u) * inverse
            G += u
            H += w + u * u
            t = beside[i] * beside[i] * inverse
        step = k / (G + math.sqrt(max((k - 1.0) * (k * H - G * G), 0.0)))
        x += where(below & (step > 0.0), step, 0.0)
    return x


@lean
def _tridiagonal(X: Any, diagonal: Any, beside: Any, v: Any, p: Any) -> None:
    """Householder's form with the same eigenvalues."""
    k = X.shape[0]
    for i in range(k):
        for j in range(i):
            X[j, i] = X[i, j]
    for i in range(k - 1):
        length = 0.0
        for j in range(i + 1, k):
            v[j] = X[i, j]
            length += v[j] * v[j]
        if i == k - 2:
            beside[i] = v[i + 1]
            continue
        rest = length - v[i + 1] * v[i + 1]
        done = rest <= 1e-300
        root = math.sqrt(length)
        alpha = where(v[i + 1] > 0.0, -root, root)
        beside[i] = where(done, v[i + 1], alpha)
        v[i + 1] -= alpha
        beta = where(done, 0.0, 2.0 / (rest + v[i + 1] * v[i + 1]))
        tail, other = v[i + 1 :], p[i + 1 :]
        half = 0.0
        for j in range(i + 1, k):
            p[j] = beta * dot(X[j, i + 1 :], tail)
            half += p[j] * v[j]
        half *= 0.5 * beta
        for j in range(i + 1, k):
            p[j] -= half * v[j]
        for j in range(i + 1, k):
            add(X[j, i + 1 :], -v[j], other)
            add(X[j, i + 1 :], -p[j], tail)
    for i in range(k):
        diagonal[i] = X[i, i]
    beside[k - 1] = 0.0

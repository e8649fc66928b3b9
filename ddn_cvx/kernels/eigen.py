"""Eigenvalues and eigenvectors of small symmetric matrices: Householder's tridiagonal form and implicit QL steps
(Martin & Wilkinson, 1968), with eigenvectors as contiguous rows. For lanes: Jacobi's rotations, and Laguerre's iteration for
the least eigenvalue alone, which take the same way through every matrix."""

from __future__ import annotations

import math
from typing import Any

from ddn_cvx.kernels.dense import add, dot
from ddn_cvx.kernels.jit import lean
from ddn_cvx.kernels.lanes import anywhere, where

STEPS = 60
"""QL steps for one eigenvalue at most; two are usual."""
SWEEPS = 30
"""Rounds of rotations at most; six are usual."""
LAGUERRE = 6
"""Steps to the least eigenvalue, each of which triples the digits."""


@lean
def eigen(X: Any, values: Any, rows: Any, work: Any, wanted: bool) -> bool:
    """``X = rows' diag(values) rows`` for the lower triangle of X (k, k), which is destroyed; ``rows`` are left alone unless
    ``wanted``, and ``work`` (3k,) is scratch. False where there is a number that is not finite."""
    k = X.shape[0]
    beside = work[:k]
    if wanted:
        for i in range(k):
            for j in range(k):
                rows[i, j] = 1.0 if i == j else 0.0
    _tridiagonal(X, values, beside, rows, work[k : 2 * k], work[2 * k : 3 * k], wanted)
    return _ql(values, beside, rows, wanted)


@lean
def _tridiagonal(X: Any, diagonal: Any, beside: Any, rows: Any, v: Any, p: Any, wanted: bool) -> None:
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
        for j in range(i + 1, k):
            p[j] -= 0.5 * beta * half * v[j]
        for j in range(i + 1, k):
            add(X[j, i + 1 :], -v[j], other)
            add(X[j, i + 1 :], -p[j], tail)
        if wanted:  # rows <- (I - beta v v') rows
            for j in range(k):
                p[j] = 0.0
            for j in range(i + 1, k):
                add(p, beta * v[j], rows[j])
            for j in range(i + 1, k):
                add(rows[j], -v[j], p)
    for i in range(k):
        diagonal[i] = X[i, i]
    beside[k - 1] = 0.0


@lean
def _ql(d: Any, e: Any, rows: Any, wanted: bool) -> bool:
    k = d.shape[0]
    for low in range(k):
        for step in range(STEPS + 1):
            high = low
            while high < k - 1:
                size = abs(d[high]) + abs(d[high + 1])
                if not abs(e[high]) > 1e-16 * size:
                    break
                high += 1
            if high == low:
                break
            if step == STEPS:
                return False
            g = (d[low + 1] - d[low]) / (2.0 * e[low])
            r = (g * g + 1.0) ** 0.5
            g = d[high] - d[low] + e[low] / (g + (r if g >= 0.0 else -r))
            s, c, p = 1.0, 1.0, 0.0
            whole = True
            for i in range(high - 1, low - 1, -1):
                f, b = s * e[i], c * e[i]
                r = (f * f + g * g) ** 0.5
                e[i + 1] = r
                if r == 0.0:
                    d[i + 1] -= p
                    e[high] = 0.0
                    whole = False
                    break
                s, c = f / r, g / r
                g = d[i + 1] - p
                r = (d[i] - g) * s + 2.0 * c * b
                p = s * r
                d[i + 1] = g + p
                g = c * r - b
                if wanted:
                    for j in range(k):
                        one, two = rows[i, j], rows[i + 1, j]
                        rows[i + 1, j] = s * one + c * two
                        rows[i, j] = c * one - s * two
            if whole:
                d[low] -= p
                e[low] = g
                e[high] = 0.0
    total = 0.0
    for i in range(k):
        total += d[i] * 0.0
    return total == 0.0


@lean
def least(X: Any, values: Any, work: Any) -> Any:
    """The least eigenvalue for the lower triangle of X (k, k), which is destroyed, or a number slightly below; ``values``
    (k,) and ``work`` (3k,) are scratch.

    Laguerre's iteration from below never passes it: with ``G`` and ``H`` the sums of the first and of the second powers of
    ``1 / (eigenvalue - x)``, x moves by ``k / (G + sqrt((k - 1) (k H - G^2)))``.
    """
    k = X.shape[0]
    beside = work[:k]
    _tridiagonal(X, values, beside, X, work[k : 2 * k], work[2 * k : 3 * k], False)
    x, before = values[0] - abs(beside[0]), abs(beside[0])
    for i in range(1, k):
        after = abs(beside[i])
        x = min(x, values[i] - before - after)
        before = after
    x -= 1e-300
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
def jacobi(X: Any, values: Any, rows: Any) -> None:
    """``X = rows' diag(values) rows`` for positive definite X (k, k), whose lower triangle is destroyed. Small eigenvalues
    are as accurate, next to their size, as large ones."""
    k = X.shape[0]
    for i in range(k):
        for j in range(k):
            rows[i, j] = 1.0 if i == j else 0.0
    for _ in range(SWEEPS):
        busy = False
        for q in range(1, k):
            for p in range(q):
                a, low, high = X[q, p], X[p, p], X[q, q]
                turns = a * a > 1e-32 * abs(low * high)
                if anywhere(turns):
                    busy = True
                    ratio = (high - low) / (2.0 * a)
                    t = where(ratio >= 0.0, 1.0, -1.0) / (abs(ratio) + math.sqrt(ratio * ratio + 1.0))
                    t = where(turns, t, 0.0)
                    c = 1.0 / math.sqrt(t * t + 1.0)
                    s = t * c
                    X[p, p], X[q, q], X[q, p] = low - t * a, high + t * a, where(turns, 0.0, a)
                    one, two = X[p], X[q]
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
        if not busy:
            break
    for i in range(k):
        values[i] = X[i, i]

"""Eigenvalues and eigenvectors of small symmetric matrices: Householder's tridiagonal form and implicit QL steps
(Martin & Wilkinson, 1968), with eigenvectors as contiguous rows."""

from __future__ import annotations

from typing import Any

from ddn_cvx.kernels.dense import add, dot
from ddn_cvx.kernels.jit import lean

STEPS = 60
"""QL steps for one eigenvalue at most; two are usual."""


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
        rest = length - v[i + 1] * v[i + 1]
        if rest <= 1e-300 or i == k - 2:
            beside[i] = v[i + 1]
            continue
        alpha = -(length**0.5) if v[i + 1] > 0.0 else length**0.5
        beside[i] = alpha
        v[i + 1] -= alpha
        beta = 2.0 / (rest + v[i + 1] * v[i + 1])
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

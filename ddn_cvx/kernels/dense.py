"""Cholesky factors and triangular systems of small dense matrices, row by row in contiguous memory; of numbers or lanes."""

from __future__ import annotations

import math
from typing import Any

from ddn_cvx.kernels.jit import lean
from ddn_cvx.kernels.lanes import anywhere, where


@lean
def cholesky(M: Any, tolerance: float) -> Any:
    """``L L' = M`` in place of the lower triangle; False where a pivot is below ``tolerance`` of its diagonal entry."""
    n, good = M.shape[0], True
    for j in range(n):
        pivot = M[j, j]
        for k in range(j):
            pivot -= M[j, k] * M[j, k]
        good = good & (pivot > tolerance * M[j, j])
        if not anywhere(good):
            return good
        root = math.sqrt(pivot)
        M[j, j] = root
        inverse = 1.0 / root
        i = j + 1
        while i + 3 < n:  # four rows at a time share the loads of row j
            a, b, c, d = M[i, j], M[i + 1, j], M[i + 2, j], M[i + 3, j]
            for k in range(j):
                m = M[j, k]
                a -= M[i, k] * m
                b -= M[i + 1, k] * m
                c -= M[i + 2, k] * m
                d -= M[i + 3, k] * m
            M[i, j], M[i + 1, j], M[i + 2, j], M[i + 3, j] = a * inverse, b * inverse, c * inverse, d * inverse
            i += 4
        while i < n:
            a = M[i, j]
            for k in range(j):
                a -= M[i, k] * M[j, k]
            M[i, j] = a * inverse
            i += 1
    return good


@lean
def lower(L: Any, z: Any) -> None:
    """``z <- L^-1 z``."""
    for i in range(L.shape[0]):
        a = z[i]
        for k in range(i):
            a -= L[i, k] * z[k]
        z[i] = a / L[i, i]


@lean
def lower_transposed(L: Any, z: Any) -> None:
    """``z <- L^-T z``."""
    for i in range(L.shape[0] - 1, -1, -1):
        a = z[i] / L[i, i]
        z[i] = a
        for k in range(i):
            z[k] -= a * L[i, k]


@lean
def dot(a: Any, b: Any) -> Any:
    """``a'b``."""
    total = 0.0
    for k in range(a.shape[0]):
        total += a[k] * b[k]
    return total


@lean
def add(x: Any, factor: Any, y: Any) -> None:
    """``x <- x + factor y``."""
    for k in range(x.shape[0]):
        x[k] += factor * y[k]


@lean
def copy(source: Any, out: Any) -> None:
    """``out <- source``; numba takes seconds to compile the assignment of a slice."""
    for k in range(source.shape[0]):
        out[k] = source[k]


@lean
def fill(out: Any, value: float) -> None:
    """``out <- value``."""
    for k in range(out.shape[0]):
        out[k] = value


@lean
def rows_times(M: Any, x: Any, out: Any) -> None:
    """``out = M x``, four rows at a time."""
    n, i = M.shape[0], 0
    while i + 3 < n:
        a, b, c, d = 0.0, 0.0, 0.0, 0.0
        for k in range(M.shape[1]):
            value = x[k]
            a += M[i, k] * value
            b += M[i + 1, k] * value
            c += M[i + 2, k] * value
            d += M[i + 3, k] * value
        out[i], out[i + 1], out[i + 2], out[i + 3] = a, b, c, d
        i += 4
    while i < n:
        out[i] = dot(M[i], x)
        i += 1


@lean
def add_rows(x: Any, factors: Any, M: Any) -> None:
    """``x <- x + M' factors``, four rows at a time."""
    n, i = M.shape[0], 0
    while i + 3 < n:
        a, b, c, d = factors[i], factors[i + 1], factors[i + 2], factors[i + 3]
        for k in range(M.shape[1]):
            x[k] += a * M[i, k] + b * M[i + 1, k] + c * M[i + 2, k] + d * M[i + 3, k]
        i += 4
    while i < n:
        add(x, factors[i], M[i])
        i += 1


@lean
def largest(t: Any) -> Any:
    """The largest absolute value; NaN if there is one."""
    size = 0.0
    for k in range(t.shape[0]):
        a = abs(t[k])
        size = where((a > size) | (a != a), a, size)
    return size


@lean
def is_finite(t: Any) -> bool:
    """Whether there is neither NaN nor infinity."""
    total = 0.0
    for k in range(t.shape[0]):
        total += t[k] * 0.0
    return total == 0.0

"""Symmetric factors ``K = L S L'`` of quasi-definite matrices with an envelope, S the signs of the pivots.

Row i is stored from column ``first[i]`` to the diagonal; a factor fills nothing outside of that envelope. Variables that
belong to one cone only are eliminated first, by minimum degree and in postorder, so that the envelope of a program with
many small cones is a small part of the matrix, and that of a dense one all of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.kernels.jit import lean
from ddn_cvx.kernels.lanes import anywhere

Integers = NDArray[np.int64]


def ordering(adjacent: NDArray[np.bool_]) -> tuple[Integers, Integers]:
    """``rank`` (n,) of each variable, and ``first`` (n,): where the row of a rank begins, for the symmetric pattern
    ``adjacent`` (n, n)."""
    n = len(adjacent)
    given = np.arange(n)
    found = _postorder(adjacent.copy()) if n and adjacent.mean() < 0.5 else given
    starts = [_first(adjacent, order) for order in (given, found)]
    order, first = (given, starts[0]) if _cost(starts[0]) <= 1.2 * _cost(starts[1]) else (found, starts[1])
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    return rank, first


def _first(adjacent: NDArray[np.bool_], order: Integers) -> Integers:
    """Where each row of the envelope begins, once rows and columns are in this order."""
    permuted = adjacent[np.ix_(order, order)] | np.eye(len(order), dtype=bool)
    return np.asarray(permuted.argmax(1), np.int64)


def _cost(first: Integers) -> float:
    return float(((np.arange(len(first)) - first + 1.0) ** 2).sum())


def _postorder(adjacent: NDArray[np.bool_]) -> Integers:
    """Minimum degree, then a postorder of the elimination tree; fills in ``adjacent``."""
    n = len(adjacent)
    np.fill_diagonal(adjacent, False)
    degree, left = adjacent.sum(1), np.ones(n, bool)
    eliminated: list[int] = []
    later: list[NDArray[Any]] = []
    for _ in range(n):
        variable = int(np.where(left, degree, n + 1).argmin())
        left[variable] = False
        neighbours = np.flatnonzero(adjacent[variable] & left)
        eliminated.append(variable)
        later.append(neighbours)
        adjacent[np.ix_(neighbours, neighbours)] = True
        adjacent[neighbours, neighbours] = False
        degree[neighbours] = adjacent[neighbours][:, left].sum(1)
    position = np.empty(n, np.int64)
    position[eliminated] = np.arange(n)
    children: list[list[int]] = [[] for _ in range(n + 1)]
    for k, after in enumerate(later):
        children[int(position[after].min()) if len(after) else n].append(k)
    order, stack = [], [(n, False)]
    while stack:
        node, seen = stack.pop()
        if seen:
            order.append(node)
            continue
        stack.append((node, True))
        stack += [(child, False) for child in reversed(children[node])]
    return np.asarray(eliminated, np.int64)[order[:-1]]


@lean
def clear(K: Any, first: Any) -> None:
    """Zeros, also where ``factor`` looks beyond the envelope: it takes four rows and two columns at a time."""
    n = first.shape[0]
    for i in range(n):
        low = first[i]
        for j in range(max(i - 3, 0), min(i + 4, n)):
            low = min(low, first[j])
        for k in range(max(low - 1, 0), i + 1):
            K[i, k] = 0.0


@lean
def factor(K: Any, first: Any, sign: Any, tolerance: float, row: Any, other: Any) -> Any:
    """``L S L' = K`` in place of the lower triangle; False where a pivot has the wrong sign or is below ``tolerance`` of
    the terms it is the sum of. ``row`` and ``other`` are scratch of the order of K."""
    n, j, good = first.shape[0], 0, True
    while j < n:
        good = good & _pivot(K, j, first[j], sign, tolerance, row)
        if not anywhere(good):
            return good
        start, inverse = first[j], sign[j] / K[j, j]
        paired = j + 1 < n and first[j + 1] <= j
        if paired:
            total = K[j + 1, j]
            for k in range(max(start, first[j + 1]), j):
                total -= K[j + 1, k] * row[k]
            K[j + 1, j] = total * inverse
            good = good & _pivot(K, j + 1, first[j + 1], sign, tolerance, other)
            if not anywhere(good):
                return good
            for k in range(min(start, first[j + 1]), max(start, first[j + 1])):
                if k < start:
                    row[k] = 0.0
                else:
                    other[k] = 0.0
            start = min(start, first[j + 1])
        second = sign[j + 1] / K[j + 1, j + 1] if paired else 0.0
        i = j + 2 if paired else j + 1
        while i < n:
            if i + 3 < n:  # four rows at a time share the loads of the row or of two
                low = min(min(first[i], first[i + 1]), min(first[i + 2], first[i + 3]))
                if low <= j + (1 if paired else 0):
                    low = max(low, start)
                    r0, r1, r2, r3 = K[i], K[i + 1], K[i + 2], K[i + 3]
                    a, b, c, d = r0[j], r1[j], r2[j], r3[j]
                    if paired:
                        e, f, g, h = r0[j + 1], r1[j + 1], r2[j + 1], r3[j + 1]
                        for k in range(low, j):
                            m, p = row[k], other[k]
                            a -= r0[k] * m
                            b -= r1[k] * m
                            c -= r2[k] * m
                            d -= r3[k] * m
                            e -= r0[k] * p
                            f -= r1[k] * p
                            g -= r2[k] * p
                            h -= r3[k] * p
                        a, b, c, d = a * inverse, b * inverse, c * inverse, d * inverse
                        p = other[j]
                        r0[j + 1], r1[j + 1] = (e - a * p) * second, (f - b * p) * second
                        r2[j + 1], r3[j + 1] = (g - c * p) * second, (h - d * p) * second
                        r0[j], r1[j], r2[j], r3[j] = a, b, c, d
                    else:
                        for k in range(low, j):
                            m = row[k]
                            a -= r0[k] * m
                            b -= r1[k] * m
                            c -= r2[k] * m
                            d -= r3[k] * m
                        r0[j], r1[j], r2[j], r3[j] = a * inverse, b * inverse, c * inverse, d * inverse
                i += 4
                continue
            low = max(first[i], start)
            if low <= j:
                a = K[i, j]
                for k in range(low, j):
                    a -= K[i, k] * row[k]
                K[i, j] = a * inverse
            if paired and low <= j + 1:
                a = K[i, j + 1]
                for k in range(low, j + 1):
                    a -= K[i, k] * other[k]
                K[i, j + 1] = a * second
            i += 1
        j += 2 if paired else 1
    return good


@lean
def _pivot(K: Any, j: int, start: int, sign: Any, tolerance: float, row: Any) -> Any:
    """The pivot of row j in place, and ``row = SK`` left of it."""
    diagonal = K[j, j] * sign[j]
    pivot, size = diagonal, abs(diagonal)
    for k in range(start, j):
        value = sign[k] * K[j, k]
        row[k] = value
        square = sign[j] * value * K[j, k]
        pivot -= square
        size += max(-square, 0.0)
    K[j, j] = math.sqrt(pivot)
    return pivot > tolerance * size


@lean
def solve(L: Any, first: Any, sign: Any, z: Any) -> None:
    """``z <- K^-1 z``."""
    n = first.shape[0]
    for i in range(n):
        a = z[i]
        for k in range(first[i], i):
            a -= L[i, k] * z[k]
        z[i] = a / L[i, i]
    for i in range(n):
        z[i] *= sign[i]
    for i in range(n - 1, -1, -1):
        a = z[i] / L[i, i]
        z[i] = a
        for k in range(first[i], i):
            z[k] -= a * L[i, k]

"""Symmetric factors ``K = L S L'`` of quasi-definite matrices with an envelope, S the signs of the pivots.

Row i is stored from column ``first[i]`` to the diagonal; a factor fills nothing outside of that envelope. Variables that
belong to one cone only are eliminated first, by minimum degree and in postorder, so that the envelope of a program with
many small cones is a small part of the matrix, and that of a dense one all of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.kernels.jit import inner

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
    later: list[NDArray[np.bool_]] = []
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
    for k, neighbours in enumerate(later):
        children[int(position[neighbours].min()) if len(neighbours) else n].append(k)
    order, stack = [], [(n, False)]
    while stack:
        node, seen = stack.pop()
        if seen:
            order.append(node)
            continue
        stack.append((node, True))
        stack += [(child, False) for child in reversed(children[node])]
    return np.asarray(eliminated, np.int64)[order[:-1]]


@inner
def factor(K: Any, first: Any, sign: Any, tolerance: float, row: Any) -> bool:
    """``L S L' = K`` in place of the lower triangle; False where a pivot has the wrong sign or is below ``tolerance`` of
    the terms it is the sum of. ``row`` is scratch of the order of K."""
    n = first.shape[0]
    for j in range(n):
        start = first[j]
        diagonal = K[j, j] * sign[j]
        pivot, size = diagonal, abs(diagonal)
        for k in range(start, j):
            value = sign[k] * K[j, k]
            row[k] = value
            square = sign[j] * value * K[j, k]
            pivot -= square
            size += max(-square, 0.0)
        if not pivot > tolerance * size:
            return False
        root = pivot**0.5
        K[j, j] = root
        inverse = sign[j] / root
        i = j + 1
        while i + 3 < n:  # four rows at a time share the loads of row j
            low = min(min(first[i], first[i + 1]), min(first[i + 2], first[i + 3]))
            if low <= j:
                low = max(low, start)
                a, b, c, d = K[i, j], K[i + 1, j], K[i + 2, j], K[i + 3, j]
                for k in range(low, j):
                    m = row[k]
                    a -= K[i, k] * m
                    b -= K[i + 1, k] * m
                    c -= K[i + 2, k] * m
                    d -= K[i + 3, k] * m
                K[i, j], K[i + 1, j], K[i + 2, j], K[i + 3, j] = a * inverse, b * inverse, c * inverse, d * inverse
            i += 4
        while i < n:
            if first[i] <= j:
                a = K[i, j]
                for k in range(max(first[i], start), j):
                    a -= K[i, k] * row[k]
                K[i, j] = a * inverse
            i += 1
    return True


@inner
def solve(L: Any, first: Any, sign: Any, z: Any) -> None:
    """``z <- K^-1 z``."""
    n = first.shape[0]
    for i in range(n):
        a = z[i]
        for k in range(first[i], i):
            a -= L[i, k] * z[k]
        z[i] = a / L[i, i]
    # L S w = z was solved without the signs: they commute with nothing but are applied here, once
    for i in range(n):
        z[i] *= sign[i]
    for i in range(n - 1, -1, -1):
        a = z[i] / L[i, i]
        z[i] = a
        for k in range(first[i], i):
            z[k] -= a * L[i, k]

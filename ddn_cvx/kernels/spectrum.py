"""A point ``v``, its projection onto the dual cone, and the eigenvectors of the projection's derivative D that count.

``D = U diag(lambda) U'``. Rows with ``lambda = 0`` are inactive; those of large lambda become rows of the KKT matrix
(``held``), those of small lambda are condensed into its upper left with the weight ``lambda / (1 - lambda)``
(``weighed``). The eigenvectors of a second-order cone across its axis share one value and need not be formed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.kernels.cones import EXPONENTIAL, ROOT, SECOND_ORDER, assemble, to_matrix, to_vector
from ddn_cvx.kernels.dense import add, dot, fill
from ddn_cvx.kernels.eigen import eigen
from ddn_cvx.kernels.exponential import CURVED, FLAT, INSIDE, frame
from ddn_cvx.kernels.jit import inner

HELD = 1e-3
"""Rows with ``1 - lambda`` below this are held."""

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class Spectrum(NamedTuple):
    """Space for the rows of one instance; ``U`` has a row for each that is not a unit vector."""

    block: Integers
    """``(m,)``: the block of a held row, or -1 for a unit vector."""
    index: Integers
    """``(m,)``: its row of U, or which unit vector it is."""
    slack: Floats
    """``(m,)``: ``(1 - lambda) / lambda`` of a held row."""
    weighed_block: Integers
    weighed_index: Integers
    weight: Floats
    """``(m,)``: ``lambda / (1 - lambda)`` of a weighed row."""
    across: Floats
    """``(k,)``: the weight of what is across the axis of a second-order cone, or zero."""
    axis: Floats
    """``(m,)``: the axis, without its first entry."""
    U: Floats
    counts: Integers
    """Held rows, weighed rows and rows of U."""


@inner
def spectrum(structure: Any) -> Any:
    """Space for a program of this structure."""
    m, cones = structure.m, structure.cones
    return Spectrum(
        np.empty(m, np.int64),
        np.empty(m, np.int64),
        np.empty(m),
        np.empty(m, np.int64),
        np.empty(m, np.int64),
        np.empty(m),
        np.zeros(cones.kind.shape[0]),
        np.zeros(m),
        np.empty((m, cones.tallest)),
        np.zeros(3, np.int64),
    )


@inner
def decompose(structure: Any, v: Any, y: Any, s: Any, found: Any) -> bool:
    """Fill in the projection y, ``s = y - v`` and the rows; False where a row is almost but not quite held."""
    cones = structure.cones
    kind, starts, order = cones.kind, cones.starts, cones.order
    fill(found.across, 0.0)
    for i in range(3):
        found.counts[i] = 0
    for i in range(cones.linear):
        y[i] = v[i] if i < structure.zero or not v[i] <= 0.0 else 0.0
        if y[i] != 0.0 or i < structure.zero:
            _unit(found, i)
    good = True
    for k in range(kind.shape[0]):
        a, b = starts[k], starts[k + 1]
        if kind[k] == SECOND_ORDER:
            good = _second_order(found, k, a, b, v, y) and good
        elif kind[k] == EXPONENTIAL:
            _exponential(found, k, a, v, y)
        else:
            good = _semidefinite(found, k, order[k], v[a:b], y[a:b], a) and good
    for i in range(structure.m):
        s[i] = y[i] - v[i]
    return good


@inner
def _unit(found: Any, i: int) -> None:
    count = found.counts[0]
    found.block[count], found.index[count], found.slack[count] = -1, i, 0.0
    found.counts[0] = count + 1


@inner
def _row(found: Any, k: int, value: float) -> int:
    """A row for the eigenvalue ``value`` > 0 of block k; returns which row of U to fill."""
    count, at = found.counts, found.counts[2]
    count[2] = at + 1
    if 1.0 - value < HELD:
        found.block[count[0]], found.index[count[0]] = k, at
        found.slack[count[0]] = (1.0 - value) / value
        count[0] += 1
    else:
        found.weighed_block[count[1]], found.weighed_index[count[1]] = k, at
        found.weight[count[1]] = value / (1.0 - value)
        count[1] += 1
    return at


@inner
def _second_order(found: Any, k: int, a: int, b: int, v: Any, y: Any) -> bool:
    total = 0.0
    for i in range(a + 1, b):
        total += v[i] * v[i]
    n = total**0.5
    if n <= -v[a]:
        for i in range(a, b):
            y[i] = 0.0
        return True
    if n < v[a]:
        for i in range(a, b):
            y[i] = v[i]
            _unit(found, i)
        return True
    half = 0.5 * (v[a] + n)
    at = _row(found, k, 1.0)
    found.U[at, 0] = 1.0 / ROOT
    y[a] = half
    for i in range(a + 1, b):
        e = v[i] / n
        found.axis[i] = e
        found.U[at, i - a] = e / ROOT
        y[i] = half * e
    rest = 0.5 * (1.0 - v[a] / n)  # one minus the value across
    found.across[k] = half / n / rest
    return rest > 1e-7


@inner
def _exponential(found: Any, k: int, a: int, v: Any, y: Any) -> None:
    axes = np.empty(11)
    region = frame(-v[a], -v[a + 1], -v[a + 2], axes)
    for i in range(3):
        if region == CURVED:
            y[a + i] = v[a + i] + axes[9] * axes[i]
        elif region == INSIDE or (region == FLAT and (i == 0 or v[a + i] <= 0.0)):
            y[a + i] = 0.0
        else:
            y[a + i] = v[a + i]
            _unit(found, a + i)
    if region == CURVED:
        at = _row(found, k, 1.0)
        for i in range(3):
            found.U[at, i] = axes[3 + i]
        if axes[10] < 1.0:
            at = _row(found, k, 1.0 - axes[10])
            for i in range(3):
                found.U[at, i] = axes[6 + i]


@inner
def _semidefinite(found: Any, k: int, order: int, v: Any, y: Any, start: int) -> bool:
    X, rows, values = np.empty((order, order)), np.empty((order, order)), np.empty(order)
    to_matrix(v, X)
    good = eigen(X, values, rows, True)
    assemble(values, rows, X)
    to_vector(X, y)
    positive = 0
    for i in range(order):
        positive += values[i] > 0.0
    if positive == order:
        for i in range(v.shape[0]):
            _unit(found, start + i)
        return good
    for i in range(order):
        for j in range(i + 1):
            total = max(values[i], 0.0) + max(values[j], 0.0)
            if total > 0.0:
                at = _row(found, k, total / (abs(values[i]) + abs(values[j])))
                for p in range(order):
                    for q in range(order):
                        X[p, q] = rows[i, p] * rows[j, q] if i == j else (0.5 * ROOT) * (
                            rows[i, p] * rows[j, q] + rows[j, p] * rows[i, q]
                        )
                to_vector(X, found.U[at, : v.shape[0]])
    return good


@inner
def weigh(structure: Any, found: Any, t: Any, out: Any) -> None:
    """``out = Q t`` with ``Q = sum of weight u u'`` over the weighed rows."""
    starts, across, axis = structure.cones.starts, found.across, found.axis
    fill(out, 0.0)
    for k in range(across.shape[0]):
        if across[k] != 0.0:
            inside = slice(starts[k] + 1, starts[k + 1])
            along = dot(axis[inside], t[inside])
            add(out[inside], across[k], t[inside])
            add(out[inside], -across[k] * along, axis[inside])
    for r in range(found.counts[1]):
        k = found.weighed_block[r]
        a, b = starts[k], starts[k + 1]
        u = found.U[found.weighed_index[r], : b - a]
        add(out[a:b], found.weight[r] * dot(u, t[a:b]), u)


@inner
def component(structure: Any, found: Any, r: int, t: Any) -> float:
    """``u't`` for the held row r."""
    k = found.block[r]
    if k < 0:
        return float(t[found.index[r]])
    a, b = structure.cones.starts[k], structure.cones.starts[k + 1]
    return dot(found.U[found.index[r], : b - a], t[a:b])


@inner
def add_component(structure: Any, found: Any, r: int, factor: float, out: Any) -> None:
    """``out <- out + factor u`` for the held row r."""
    k = found.block[r]
    if k < 0:
        out[found.index[r]] += factor
    else:
        a, b = structure.cones.starts[k], structure.cones.starts[k + 1]
        add(out[a:b], factor, found.U[found.index[r], : b - a])

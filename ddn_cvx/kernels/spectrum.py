"""A point ``v``, its projection onto the dual cone, and the eigenvectors of the projection's derivative D that count.

``D = U diag(lambda) U'``. Rows with ``lambda = 0`` are inactive; those of large lambda become rows of the KKT matrix
(``held``), those of small lambda are condensed into its upper left with the weight ``lambda / (1 - lambda)``
(``weighed``). The eigenvectors of a second-order cone across its axis share one value and need not be formed.

Eight points lie side by side (``kernels.lanes``). A row is there if one of them has it, and does nothing in the others.
"""

from __future__ import annotations

import math
from typing import Any

from ddn_cvx.kernels import table as cell
from ddn_cvx.kernels.dense import add, dot, fill
from ddn_cvx.kernels.eigen import descending, eigen
from ddn_cvx.kernels.exponential import CURVED, FLAT, INSIDE, frame
from ddn_cvx.kernels.jit import jit, lean, view
from ddn_cvx.kernels.lanes import LANES, anywhere, in_lanes, where
from ddn_cvx.kernels.svec import ROOT, assemble, to_matrix, to_vector
from ddn_cvx.kernels.table import load, matrix, part, side, space, store, workspace

HELD = 1e-3
"""Rows with ``1 - lambda`` below this are held."""

# The rows, in the scratch space: ``J_COUNTS`` are the numbers of held and of weighed rows. A held row has a block, or -1 for
# a unit vector, an index into U, or of the unit vector, a slack ``(1 - lambda) / lambda``, and is live, one, or not, zero; a
# weighed one a block, an index into U, and a weight. A second-order cone has a weight across its axis, and the axis.


@lean
def decompose(T: Any, v: Any, y: Any, s: Any, W: Any, J: Any) -> Any:
    """Fill in the projection y, ``s = y - v`` and the rows; False where a row is almost but not quite held."""
    kind, starts, order, counts = part(T, cell.KIND), part(T, cell.STARTS), part(T, cell.ORDER), space(T, J, cell.J_COUNTS)
    fill(space(T, W, cell.W_ACROSS), 0.0)
    fill(counts, 0)
    for i in range(T[cell.LINEAR]):
        active = (v[i] > 0.0) | (i < T[cell.ZERO])
        y[i] = where(active | (v[i] != v[i]), v[i], 0.0)
        _unit(T, W, J, i, active)
    good = v[0] == v[0]
    for k in range(T[cell.BLOCKS]):
        a, b = starts[k], starts[k + 1]
        if kind[k] == cell.SECOND_ORDER:
            good = good & _second_order(T, W, J, k, a, b, v, y)
        elif kind[k] == cell.EXPONENTIAL:
            _exponential(T, W, J, k, a, v, y)
        else:
            _semidefinite(T, W, J, k, order[k], v[a:b], y[a:b])
    for i in range(T[cell.M]):
        s[i] = y[i] - v[i]
    return good


@lean
def _unit(T: Any, W: Any, J: Any, i: int, active: Any) -> None:
    """The unit vector i is held where it is active."""
    if anywhere(active):
        count = J[T[cell.J_COUNTS]]
        J[T[cell.J_BLOCK] + count], J[T[cell.J_INDEX] + count] = -1, i
        W[T[cell.W_SLACK] + count], W[T[cell.W_LIVE] + count] = 0.0, where(active, 1.0, 0.0)
        J[T[cell.J_COUNTS]] = count + 1


@lean
def _row(T: Any, W: Any, J: Any, k: int, at: int, value: Any) -> None:
    """Row ``at`` of U belongs to the eigenvalue ``value`` of block k, if that is positive."""
    count = space(T, J, cell.J_COUNTS)
    held = 1.0 - value < HELD
    weighed = (value > 0.0) & ~held
    if anywhere(held):
        J[T[cell.J_BLOCK] + count[0]], J[T[cell.J_INDEX] + count[0]] = k, at
        W[T[cell.W_SLACK] + count[0]], W[T[cell.W_LIVE] + count[0]] = (
            where(held, (1.0 - value) / value, 0.0),
            where(held, 1.0, 0.0),
        )
        count[0] += 1
    if anywhere(weighed):
        J[T[cell.J_W_BLOCK] + count[1]], J[T[cell.J_W_INDEX] + count[1]] = k, at
        W[T[cell.W_WEIGHT] + count[1]] = where(weighed, value / (1.0 - value), 0.0)
        count[1] += 1


@view
def vector(T: Any, W: Any, at: int) -> Any:
    """A row of U."""
    start = T[cell.W_U] + at * T[cell.TALLEST]
    return W[start : start + T[cell.TALLEST]]


@lean
def _second_order(T: Any, W: Any, J: Any, k: int, a: int, b: int, v: Any, y: Any) -> Any:
    total = 0.0
    for i in range(a + 1, b):
        total += v[i] * v[i]
    n = math.sqrt(total)
    nothing = n <= -v[a]
    inside = ~nothing & (n < v[a])
    curved = ~nothing & ~inside
    inverse, half = where(curved, 1.0 / n, 0.0), 0.5 * (v[a] + n)
    u, axis = vector(T, W, a), space(T, W, cell.W_AXIS)
    u[0] = 1.0 / ROOT
    y[a] = where(inside, v[a], where(curved, half, 0.0))
    for i in range(a + 1, b):
        e = v[i] * inverse
        axis[i] = e
        u[i - a] = e * (1.0 / ROOT)
        y[i] = where(inside, v[i], where(curved, half * e, 0.0))
    for i in range(a, b):
        _unit(T, W, J, i, inside)
    _row(T, W, J, k, a, where(curved, 1.0, 0.0))
    rest = 0.5 * (1.0 - v[a] * inverse)  # one minus the value across
    W[T[cell.W_ACROSS] + k] = where(curved, half * inverse / rest, 0.0)
    return ~curved | (rest > 1e-7)


@lean
def _exponential(T: Any, W: Any, J: Any, k: int, a: int, v: Any, y: Any) -> None:
    axes = space(T, W, cell.W_EIGEN)
    region = frame(-v[a], -v[a + 1], -v[a + 2], axes)
    curved, inside, flat = region == CURVED, region == INSIDE, region == FLAT
    for i in range(3):
        active = ~curved & ~inside & ~(flat & ((v[a + i] <= 0.0) | (i == 0)))
        y[a + i] = where(curved, v[a + i] + axes[9] * axes[i], where(active, v[a + i], 0.0))
        _unit(T, W, J, a + i, active)
    for r in range(2):
        u = vector(T, W, a + r)
        for i in range(3):
            u[i] = where(curved, axes[3 + 3 * r + i], 0.0)
        _row(T, W, J, k, a + r, where(curved, 1.0 - axes[10] if r else 1.0, 0.0))


@lean
def _semidefinite(T: Any, W: Any, J: Any, k: int, order: int, v: Any, y: Any) -> None:
    X, rows, at = matrix(T, W, cell.W_X, order, order), matrix(T, W, cell.W_Y, order, order), T[T[cell.STARTS] + k]
    values = space(T, W, cell.W_EIGEN)[:order]
    to_matrix(v, X)
    eigen(X, values, rows)
    descending(values, rows)
    assemble(values, rows, X)
    to_vector(X, y)
    for i in range(order):
        for j in range(i + 1):
            total = max(values[i], 0.0) + max(values[j], 0.0)
            some = total > 0.0
            if anywhere(some):
                _pair(rows[i], rows[j], 0.5 if i == j else 0.5 * ROOT, vector(T, W, at))
                _row(T, W, J, k, at, where(some, total / (abs(values[i]) + abs(values[j])), 0.0))
            at += 1


@lean
def _pair(one: Any, two: Any, scale: float, u: Any) -> None:
    """svec of ``scale (one two' + two one')``."""
    at = 0
    for p in range(one.shape[0]):
        a, b = scale * ROOT * one[p], scale * ROOT * two[p]
        for q in range(p):
            u[at] = a * two[q] + b * one[q]
            at += 1
        u[at] = 2.0 * scale * one[p] * two[p]
        at += 1


@jit
def project(first: int, last: int, T: Any, v: Any, y: Any, s: Any) -> None:
    """y and s alone for the elements ``first .. last - 1`` of v (B, m); NaN where v has one in a cone's rows."""
    raw, J = workspace(T)
    W = in_lanes(raw)
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        load(v, start, stop, raw, T[cell.W_SIDES])
        decompose(T, side(T, W, 0), side(T, W, 1), side(T, W, 2), W, J)
        store(raw, T[cell.W_SIDES] + T[cell.M], start, stop, y)
        store(raw, T[cell.W_SIDES] + 2 * T[cell.M], start, stop, s)


@jit
def split(first: int, last: int, T: Any, raw_y: Any, raw_s: Any, v: Any, y: Any, s: Any) -> None:
    """The same with ``v = raw_y - raw_s``, which is filled in."""
    for k in range(first, last):
        for i in range(v.shape[1]):
            v[k, i] = raw_y[k, i] - raw_s[k, i]
    project(first, last, T, v, y, s)


@lean
def weigh(T: Any, W: Any, J: Any, t: Any, out: Any) -> None:
    """``out = Q t`` with ``Q = sum of weight u u'`` over the weighed rows."""
    starts, across, axis = part(T, cell.STARTS), space(T, W, cell.W_ACROSS), space(T, W, cell.W_AXIS)
    fill(out, 0.0)
    for k in range(T[cell.BLOCKS]):
        if anywhere(across[k] != 0.0):
            a, b, along = starts[k] + 1, starts[k + 1], 0.0
            for i in range(a, b):
                along += axis[i] * t[i]
            for i in range(a, b):
                out[i] = across[k] * (t[i] - along * axis[i])
    for r in range(J[T[cell.J_COUNTS] + 1]):
        k = J[T[cell.J_W_BLOCK] + r]
        a, b = starts[k], starts[k + 1]
        u = vector(T, W, J[T[cell.J_W_INDEX] + r])[: b - a]
        add(out[a:b], W[T[cell.W_WEIGHT] + r] * dot(u, t[a:b]), u)


@lean
def component(T: Any, W: Any, J: Any, r: int, t: Any) -> Any:
    """``u't`` for the held row r."""
    k, at, live = J[T[cell.J_BLOCK] + r], J[T[cell.J_INDEX] + r], W[T[cell.W_LIVE] + r]
    if k < 0:
        return live * t[at]
    a, b = T[T[cell.STARTS] + k], T[T[cell.STARTS] + k + 1]
    return live * dot(vector(T, W, at)[: b - a], t[a:b])


@lean
def add_component(T: Any, W: Any, J: Any, r: int, factor: Any, out: Any) -> None:
    """``out <- out + factor u`` for the held row r."""
    k, at = J[T[cell.J_BLOCK] + r], J[T[cell.J_INDEX] + r]
    if k < 0:
        out[at] += factor
    else:
        a, b = T[T[cell.STARTS] + k], T[T[cell.STARTS] + k + 1]
        add(out[a:b], factor, vector(T, W, at)[: b - a])

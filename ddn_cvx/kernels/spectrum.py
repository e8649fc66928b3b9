"""A point ``v``, its projection onto the dual cone, and the eigenvectors of the projection's derivative D that count.

``D = U diag(lambda) U'``. Rows with ``lambda = 0`` are inactive; those of large lambda become rows of the KKT matrix
(``held``), those of small lambda are condensed into its upper left with the weight ``lambda / (1 - lambda)``
(``weighed``). The eigenvectors of a second-order cone across its axis share one value and need not be formed.
"""

from __future__ import annotations

from typing import Any

from ddn_cvx.kernels.cones import ROOT, assemble, to_matrix, to_vector
from ddn_cvx.kernels.dense import add, dot, fill
from ddn_cvx.kernels.eigen import eigen
from ddn_cvx.kernels.exponential import CURVED, FLAT, INSIDE, frame
from ddn_cvx.kernels.jit import jit, lean, view
from ddn_cvx.kernels.table import (
    BLOCKS,
    EXPONENTIAL,
    J_BLOCK,
    J_COUNTS,
    J_INDEX,
    J_W_BLOCK,
    J_W_INDEX,
    KIND,
    LINEAR,
    ORDER,
    SECOND_ORDER,
    STARTS,
    TALLEST,
    W_ACROSS,
    W_AXIS,
    W_EIGEN,
    W_SLACK,
    W_U,
    W_WEIGHT,
    W_X,
    W_Y,
    ZERO,
    M,
    matrix,
    part,
    space,
    workspace,
)  # fmt: skip

HELD = 1e-3
"""Rows with ``1 - lambda`` below this are held."""

# The rows, in the scratch space: ``J_COUNTS`` are the numbers of held rows, of weighed rows and of rows of U. A held row has
# a block, or -1 for a unit vector, an index into U, or of the unit vector, and a slack ``(1 - lambda) / lambda``; a weighed
# one a block, an index into U, and a weight. A second-order cone has a weight across its axis, and the axis.


@lean
def decompose(T: Any, v: Any, y: Any, s: Any, W: Any, J: Any) -> bool:
    """Fill in the projection y, ``s = y - v`` and the rows; False where a row is almost but not quite held."""
    kind, starts, order, counts = part(T, KIND), part(T, STARTS), part(T, ORDER), space(T, J, J_COUNTS)
    fill(space(T, W, W_ACROSS), 0.0)
    fill(counts, 0)
    for i in range(T[LINEAR]):
        y[i] = v[i] if i < T[ZERO] or not v[i] <= 0.0 else 0.0
        if y[i] != 0.0 or i < T[ZERO]:
            _unit(T, W, J, i)
    good = True
    for k in range(T[BLOCKS]):
        a, b = starts[k], starts[k + 1]
        if kind[k] == SECOND_ORDER:
            good = _second_order(T, W, J, k, a, b, v, y) and good
        elif kind[k] == EXPONENTIAL:
            _exponential(T, W, J, k, a, v, y)
        else:
            good = _semidefinite(T, W, J, k, order[k], v[a:b], y[a:b], a) and good
    for i in range(T[M]):
        s[i] = y[i] - v[i]
    return good


@lean
def _unit(T: Any, W: Any, J: Any, i: int) -> None:
    count = J[T[J_COUNTS]]
    J[T[J_BLOCK] + count], J[T[J_INDEX] + count], W[T[W_SLACK] + count] = -1, i, 0.0
    J[T[J_COUNTS]] = count + 1


@lean
def _row(T: Any, W: Any, J: Any, k: int, value: float) -> int:
    """The index of the row of U to fill for the eigenvalue ``value`` > 0 of block k."""
    count = space(T, J, J_COUNTS)
    at = count[2]
    count[2] = at + 1
    if 1.0 - value < HELD:
        J[T[J_BLOCK] + count[0]], J[T[J_INDEX] + count[0]] = k, at
        W[T[W_SLACK] + count[0]] = (1.0 - value) / value
        count[0] += 1
    else:
        J[T[J_W_BLOCK] + count[1]], J[T[J_W_INDEX] + count[1]] = k, at
        W[T[W_WEIGHT] + count[1]] = value / (1.0 - value)
        count[1] += 1
    return int(at)


@view
def vector(T: Any, W: Any, at: int) -> Any:
    """A row of U."""
    start = T[W_U] + at * T[TALLEST]
    return W[start : start + T[TALLEST]]


@lean
def _second_order(T: Any, W: Any, J: Any, k: int, a: int, b: int, v: Any, y: Any) -> bool:
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
            _unit(T, W, J, i)
        return True
    half = 0.5 * (v[a] + n)
    u, axis = vector(T, W, _row(T, W, J, k, 1.0)), space(T, W, W_AXIS)
    u[0] = 1.0 / ROOT
    y[a] = half
    for i in range(a + 1, b):
        e = v[i] / n
        axis[i] = e
        u[i - a] = e / ROOT
        y[i] = half * e
    rest = 0.5 * (1.0 - v[a] / n)  # one minus the value across
    W[T[W_ACROSS] + k] = half / n / rest
    return rest > 1e-7


@lean
def _exponential(T: Any, W: Any, J: Any, k: int, a: int, v: Any, y: Any) -> None:
    axes = space(T, W, W_EIGEN)
    region = frame(-v[a], -v[a + 1], -v[a + 2], axes)
    for i in range(3):
        if region == CURVED:
            y[a + i] = v[a + i] + axes[9] * axes[i]
        elif region == INSIDE or (region == FLAT and (i == 0 or v[a + i] <= 0.0)):
            y[a + i] = 0.0
        else:
            y[a + i] = v[a + i]
            _unit(T, W, J, a + i)
    if region == CURVED:
        u = vector(T, W, _row(T, W, J, k, 1.0))
        for i in range(3):
            u[i] = axes[3 + i]
        if axes[10] < 1.0:
            u = vector(T, W, _row(T, W, J, k, 1.0 - axes[10]))
            for i in range(3):
                u[i] = axes[6 + i]


@lean
def _semidefinite(T: Any, W: Any, J: Any, k: int, order: int, v: Any, y: Any, start: int) -> bool:
    X, rows = matrix(T, W, W_X, order, order), matrix(T, W, W_Y, order, order)
    work, values = space(T, W, W_EIGEN), space(T, W, W_EIGEN)[3 * order :][:order]
    to_matrix(v, X)
    good = eigen(X, values, rows, work, True)
    assemble(values, rows, X)
    to_vector(X, y)
    positive = 0
    for i in range(order):
        positive += values[i] > 0.0
    if positive == order:
        for i in range(v.shape[0]):
            _unit(T, W, J, start + i)
        return good
    for i in range(order):
        for j in range(i + 1):
            total = max(values[i], 0.0) + max(values[j], 0.0)
            if total > 0.0:
                u = vector(T, W, _row(T, W, J, k, total / (abs(values[i]) + abs(values[j]))))
                at, scale = 0, 0.5 if i == j else 0.5 * ROOT
                for p in range(order):
                    for q in range(p + 1):
                        value = scale * (rows[i, p] * rows[j, q] + rows[j, p] * rows[i, q])
                        u[at] = value if p == q else ROOT * value
                        at += 1
    return good


@jit
def project(first: int, last: int, T: Any, v: Any, y: Any, s: Any) -> None:
    """y and s alone for the elements ``first .. last - 1`` of v (B, m); NaN where v has one in a cone's rows."""
    W, J = workspace(T)
    for k in range(first, last):
        decompose(T, v[k], y[k], s[k], W, J)


@lean
def weigh(T: Any, W: Any, J: Any, t: Any, out: Any) -> None:
    """``out = Q t`` with ``Q = sum of weight u u'`` over the weighed rows."""
    starts, across, axis = part(T, STARTS), space(T, W, W_ACROSS), space(T, W, W_AXIS)
    fill(out, 0.0)
    for k in range(T[BLOCKS]):
        if across[k] != 0.0:
            a, b, along = starts[k] + 1, starts[k + 1], 0.0
            for i in range(a, b):
                along += axis[i] * t[i]
            for i in range(a, b):
                out[i] = across[k] * (t[i] - along * axis[i])
    for r in range(J[T[J_COUNTS] + 1]):
        k = J[T[J_W_BLOCK] + r]
        a, b = starts[k], starts[k + 1]
        u = vector(T, W, J[T[J_W_INDEX] + r])[: b - a]
        add(out[a:b], W[T[W_WEIGHT] + r] * dot(u, t[a:b]), u)


@lean
def component(T: Any, W: Any, J: Any, r: int, t: Any) -> float:
    """``u't`` for the held row r."""
    k, at = J[T[J_BLOCK] + r], J[T[J_INDEX] + r]
    if k < 0:
        return float(t[at])
    a, b = T[T[STARTS] + k], T[T[STARTS] + k + 1]
    return dot(vector(T, W, at)[: b - a], t[a:b])


@lean
def add_component(T: Any, W: Any, J: Any, r: int, factor: float, out: Any) -> None:
    """``out <- out + factor u`` for the held row r."""
    k, at = J[T[J_BLOCK] + r], J[T[J_INDEX] + r]
    if k < 0:
        out[at] += factor
    else:
        a, b = T[T[STARTS] + k], T[T[STARTS] + k + 1]
        add(out[a:b], factor, vector(T, W, at)[: b - a])

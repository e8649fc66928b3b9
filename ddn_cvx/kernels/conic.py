"""A primal-dual interior-point method for small conic programs, eight instances side by side (``kernels.lanes``).

The homogeneous embedding that keeps the quadratic objective (Goulart & Chen, "Clarabel", 2024): with ``xi = x / tau``

    Px + A'z + q tau = 0,   Ax + s - b tau = 0,   x'Px / tau + q'x + b'z + kappa = 0,   s in K, z in K*, tau, kappa >= 0,

Mehrotra's predictor and corrector, Nesterov and Todd's scaling for symmetric cones and that of ``exponential_scaling`` for
the others. A step condenses the cones, ``P + A'H^-1 A``, and factors what is left with the equalities in an envelope; the
part of a large second-order cone that does not change with its scaling is multiplied out once.

The answer is good to the accuracy asked for; what is then left is for Newton's method (``conic_newton.polish``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddn_cvx.kernels import envelope, table as cell
from ddn_cvx.kernels.conic_kkt import (
    add_outer,
    add_pairs,
    add_products,
    local_products,
    local_rows,
    multiply_out,
    put,
    row_of,
)
from ddn_cvx.kernels.dense import add, copy, dot, fill, is_finite, largest
from ddn_cvx.kernels.jit import jit, lean
from ddn_cvx.kernels.lanes import LANES, anywhere, in_lanes, where
from ddn_cvx.kernels.scaling import formed, inverse_block, inverse_times, length, shift, unit, update
from ddn_cvx.kernels.status import INVALID
from ddn_cvx.kernels.table import add_A, add_At, add_P, load_program, matrix, part, side, space, store, top, workspace

LIMIT = 100
"""Iterations after which an element gives up."""
PROXIMAL = 1e-10
"""What is added to the diagonal, next to the scaled data."""
REFINEMENTS = 2
PRECISE = 0.01
"""Residual of a step, next to the goal, that is not refined."""
ROUGH = 1e-8
"""Steps towards goals above this are not checked as long as the residual gets smaller as they should make it."""
LEFT = 0.01
"""Part of the way to the boundary that a step leaves."""
PASSES = 2
"""Equilibrations of rows and columns."""
X, S, Y = 10, 11, 12
"""Where the point is kept, among the vectors of n and of m numbers."""


@jit
def solve(
    first: int,
    last: int,
    T: Any,
    P: Any,
    q: Any,
    A: Any,
    b: Any,
    x: Any,
    y: Any,
    s: Any,
    errors: Any,
    status: Any,
    iterations: Any,
    goal: float,
) -> None:
    """Fill in x (B, n), y (B, m), s (B, m), relative residuals ``errors`` (B,), at most ``goal`` unless no more progress was
    made, and iterations (B,).

    Elements without a point have infinite errors; nothing is said of infeasible and unbounded ones. ``status`` (B,) is
    set for those that hold numbers that are not finite.
    """
    raw, _ = workspace(T)
    W = in_lanes(raw)
    for k in range(first, last):
        if not (is_finite(P[k]) and is_finite(q[k]) and is_finite(A[k]) and is_finite(b[k])):
            status[k] = INVALID
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        load_program(T, P, q, A, b, start, stop, raw)
        _equilibrate(T, W)
        multiply_out(T, space(T, W, cell.W_A), W)
        _iterate(T, W, goal)
        store(raw, T[cell.W_TOPS] + X * T[cell.N], start, stop, x)
        store(raw, T[cell.W_SIDES] + Y * T[cell.M], start, stop, y)
        store(raw, T[cell.W_SIDES] + S * T[cell.M], start, stop, s)
        for k in range(start, stop):
            errors[k], iterations[k] = raw[T[cell.W_NUMBERS], k - start], int(raw[T[cell.W_NUMBERS] + 1, k - start])


@lean
def _equilibrate(T: Any, W: Any) -> None:
    """Rows and columns of about the same size, the rows of a cone by one factor, and an objective of about one."""
    P, q, A, b = space(T, W, cell.W_P), space(T, W, cell.W_Q), space(T, W, cell.W_A), space(T, W, cell.W_B)
    A_rows, A_cols, P_rows, P_cols = part(T, cell.A_ROWS), part(T, cell.A_COLS), part(T, cell.P_ROWS), part(T, cell.P_COLS)
    above, beside, columns, rows, starts = top(T, W, 14), side(T, W, 16), top(T, W, 15), side(T, W, 17), part(T, cell.STARTS)
    fill(columns, 1.0)
    fill(rows, 1.0)
    for _ in range(PASSES):
        fill(above, 0.0)
        fill(beside, 0.0)
        for e in range(P.shape[0]):
            size = abs(P[e])
            above[P_rows[e]] = max(above[P_rows[e]], size)
            above[P_cols[e]] = max(above[P_cols[e]], size)
        for e in range(A.shape[0]):
            size = abs(A[e])
            above[A_cols[e]], beside[A_rows[e]] = max(above[A_cols[e]], size), max(beside[A_rows[e]], size)
        for k in range(T[cell.BLOCKS]):
            fill(beside[starts[k] : starts[k + 1]], largest(beside[starts[k] : starts[k + 1]]))
        for j in range(T[cell.N]):
            above[j] = where(above[j] > 0.0, 1.0 / math.sqrt(above[j]), 1.0)
            columns[j] *= above[j]
        for i in range(T[cell.M]):
            beside[i] = where(beside[i] > 0.0, 1.0 / math.sqrt(beside[i]), 1.0)
            rows[i] *= beside[i]
        for e in range(P.shape[0]):
            P[e] *= above[P_rows[e]] * above[P_cols[e]]
        for e in range(A.shape[0]):
            A[e] *= beside[A_rows[e]] * above[A_cols[e]]
    for j in range(T[cell.N]):
        q[j] *= columns[j]
    for i in range(T[cell.M]):
        b[i] *= rows[i]
    size = max(largest(q), largest(P))
    scale = where(size > 0.0, 1.0 / size, 1.0)
    for j in range(T[cell.N]):
        q[j] *= scale
    for e in range(P.shape[0]):
        P[e] *= scale
    space(T, W, cell.W_NUMBERS)[0] = scale


@lean
def _iterate(T: Any, W: Any, goal: float) -> None:
    """Steps until the residuals and the gap are at most ``goal``; leaves the point of the program as given, what they are,
    infinite if there is no point, and the number of steps. A lane that is done stays as it is."""
    P, q, A, b = space(T, W, cell.W_P), space(T, W, cell.W_Q), space(T, W, cell.W_A), space(T, W, cell.W_B)
    numbers = space(T, W, cell.W_NUMBERS)
    rx, Px, Aty, x1, x2, dx, g, x = (
        top(T, W, 0), top(T, W, 1), top(T, W, 2), top(T, W, 3), top(T, W, 4), top(T, W, 5), top(T, W, 6), top(T, W, X),
    )  # fmt: skip
    rz, Ax, z2, dz, ds, right, moved, Ax2, Adx, s, z = (
        side(T, W, 0), side(T, W, 1), side(T, W, 2), side(T, W, 3), side(T, W, 4), side(T, W, 5), side(T, W, 6),
        side(T, W, 9), side(T, W, 10), side(T, W, S), side(T, W, Y),
    )  # fmt: skip
    n, m, zero = T[cell.N], T[cell.M], T[cell.ZERO]
    degree = T[cell.DEGREE] + T[cell.LINEAR] - zero + 1
    columns, rows, scale = top(T, W, 15), side(T, W, 17), numbers[0]
    fill(x, 0.0)
    unit(T, s, z)
    tau, kappa, best, expected, found, stalled, steps = 1.0, 1.0, np.inf, np.inf, np.inf, 0.0, 0.0
    alive, refined = True, goal < ROUGH
    for iteration in range(LIMIT + 1):
        fill(Px, 0.0)
        fill(Aty, 0.0)
        fill(Ax, 0.0)
        add_P(T, P, 1.0, x, Px)
        add_At(T, A, 1.0, z, Aty)
        add_A(T, A, 1.0, x, Ax)
        over = 1.0 / tau
        for j in range(n):
            rx[j] = Px[j] + Aty[j] + tau * q[j]
            g[j] = 2.0 * Px[j] * over + q[j]
        for i in range(m):
            rz[i] = Ax[i] + s[i] - tau * b[i]
        quadratic, linear, dual = dot(x, Px) * over, dot(q, x), dot(b, z)
        rt = quadratic + linear + dual + kappa
        mu = (dot(s[zero:], z[zero:]) + tau * kappa) / degree
        terms = max(abs(quadratic), max(abs(linear), abs(dual)))
        above = tau + max(tau * largest(q), max(largest(Px), largest(Aty)))
        below = tau + max(tau * largest(b), max(largest(Ax), largest(s)))
        size = largest(rx)
        error = max(abs(rt - kappa) / (tau + terms), max(size / above, largest(rz) / below))
        has_point = (error == error) & (tau > 0.0)
        found = where(alive, where(has_point, error, np.inf), found)
        alive = alive & has_point & (error > goal)
        if iteration == LIMIT or not anywhere(alive):
            break
        stalled = where(error < 0.9 * best, 0.0, stalled + 1.0)
        best = min(best, error)
        alive = alive & (stalled < 10.0) & (tau >= 1e-9 * max(kappa, 1.0))
        alive = alive & update(T, W, s, z, mu)
        alive = alive & _factor(T, W)
        if not anywhere(alive):
            break
        refined = refined | (size > expected + PRECISE * goal)
        steps = where(alive, steps + 1.0, steps)
        for j in range(n):
            x1[j] = -q[j]
        precise = where(refined & alive, PRECISE * goal, np.inf)
        _direction(T, W, x1, b, x2, z2, Ax2, precise)
        for j in range(n):
            x1[j] = -rx[j]
        for i in range(m):
            right[i] = s[i] - rz[i] if i >= zero else -rz[i]
        below = dot(g, x2) + dot(b, z2) - kappa * over - quadratic * over
        sigma, dtau, dkappa, step, aim = 0.0, 0.0, 0.0, 0.0, 1.0
        for corrector in (False, True):
            aim = 1.0 - sigma
            target = kappa * tau
            if corrector:
                shift(T, W, z, ds, dz, sigma * mu, moved)
                for i in range(m):
                    right[i] = (s[i] + moved[i] if i >= zero else 0.0) - aim * rz[i]
                for j in range(n):
                    x1[j] = -aim * rx[j]
                target += dkappa * dtau - sigma * mu
            _direction(T, W, x1, right, dx, dz, Adx, where(corrector, precise, np.inf))
            dtau = (target * over - aim * rt - dot(g, dx) - dot(b, dz)) / below
            add(dx, dtau, x2)
            add(dz, dtau, z2)
            dkappa = -(target + kappa * dtau) * over
            for i in range(m):
                ds[i] = dtau * (b[i] - Ax2[i]) - Adx[i] - aim * rz[i] if i >= zero else 0.0
            step = where(alive, 1.0 / (1.0 - LEFT) if corrector else 1.0, 0.0)
            step = where(-tau > step * dtau, -tau / dtau, step)
            step = where(-kappa > step * dkappa, -kappa / dkappa, step)
            step = length(T, W, s, z, ds, dz, step)
            rest = 1.0 - min(step, 1.0)
            sigma = rest * rest * rest
        step *= 1.0 - LEFT
        alive = alive & (step > 1e-9)
        expected = (1.0 - step * aim) * size
        for j in range(n):
            x[j] = where(alive, x[j] + step * dx[j], x[j])
        for i in range(m):
            z[i], s[i] = where(alive, z[i] + step * dz[i], z[i]), where(alive, s[i] + step * ds[i], s[i])
        tau, kappa = where(alive, tau + step * dtau, tau), where(alive, kappa + step * dkappa, kappa)
    over = 1.0 / tau
    for j in range(n):
        x[j] *= columns[j] * over
    for i in range(m):
        s[i] *= over / rows[i]
        z[i] *= rows[i] * over / scale
    numbers[0], numbers[1] = found, steps


@lean
def _factor(T: Any, W: Any) -> Any:
    """``[[P + A'H^-1 A, E'], [E, 0]]`` with a small multiple of the identity, in place."""
    P, A, inverse, entries = space(T, W, cell.W_P), space(T, W, cell.W_A), space(T, W, cell.W_INVERSE), part(T, cell.ENTRIES)
    place, rows = part(T, cell.OWN_PLACE), part(T, cell.OWN_ROW)
    row_starts, A_cols = part(T, cell.ROW_STARTS), part(T, cell.A_COLS)
    P_rows, P_cols, sign, kind = part(T, cell.P_ROWS), part(T, cell.P_COLS), space(T, W, cell.W_SIGN), part(T, cell.KIND)
    whole = T[cell.N] + T[cell.ZERO]
    K, begin = matrix(T, W, cell.W_K, whole, whole), part(T, cell.OWN_FIRST)
    envelope.clear(K, begin)
    fill(sign[:whole], 1.0)
    for e in range(P.shape[0]):
        put(K, place[P_rows[e]], place[P_cols[e]], P[e])
    for i in range(T[cell.ZERO]):
        at = rows[i]
        for e in range(row_starts[i], row_starts[i + 1]):
            K[at, place[A_cols[entries[e]]]] = A[entries[e]]
        K[at, at], sign[at] = -PROXIMAL, -1.0
    for i in range(T[cell.ZERO], T[cell.LINEAR]):
        add_pairs(T, A, i, inverse[i], place, K)
    for k in range(T[cell.BLOCKS]):
        if kind[k] == cell.SECOND_ORDER:
            _add_second_order(T, A, W, k, K)
        else:
            _add_block(T, A, W, k, K)
    for j in range(T[cell.N]):
        at = place[j]
        K[at, at] += PROXIMAL + 1e-14 * K[at, at]
    return envelope.factor(K, begin, sign[:whole], 0.0, space(T, W, cell.W_SIDE), space(T, W, cell.W_OTHER))


@lean
def _add_second_order(T: Any, A: Any, W: Any, k: int, K: Any) -> None:
    """``(A'A - 2 a a' + 2 g g') / eta^2`` with a the first row and ``g = A'Jw``."""
    place, w = part(T, cell.OWN_PLACE), space(T, W, cell.W_INVERSE)
    g, cols = top(T, W, 7), part(T, cell.COLS)[T[T[cell.COL_STARTS] + k] :]
    a, b, weight = T[T[cell.STARTS] + k], T[T[cell.STARTS] + k + 1], 1.0 / (W[T[cell.W_ETA] + k] * W[T[cell.W_ETA] + k])
    w[a] = -w[a]
    width = row_of(T, A, W, k, w[a:b], g)
    w[a] = -w[a]
    if T[T[cell.THIN] + k]:
        for i in range(a, b):
            add_pairs(T, A, i, -weight if i == a else weight, place, K)
        add_outer(g, 2.0 * weight, cols, width, place, K)
        return
    head = local_rows(T, W, k)[0]
    add_products(local_products(T, W, k), weight, g, 2.0 * weight, head, -weight, cols, place, K)


@lean
def _add_block(T: Any, A: Any, W: Any, k: int, K: Any) -> None:
    """``A'H^-1 A`` for a block whose ``H^-1`` is formed."""
    place, times, cols = part(T, cell.OWN_PLACE), top(T, W, 7), part(T, cell.COLS)[T[T[cell.COL_STARTS] + k] :]
    a, b = T[T[cell.STARTS] + k], T[T[cell.STARTS] + k + 1]
    entries, row_starts = part(T, cell.ENTRIES), part(T, cell.ROW_STARTS)
    A_rows, A_cols = part(T, cell.A_ROWS), part(T, cell.A_COLS)
    block = formed(T, W, k)
    inverse_block(T, W, k, T[T[cell.KIND] + k], T[T[cell.ORDER] + k])
    if T[T[cell.THIN] + k]:
        for e in range(row_starts[a], row_starts[b]):
            row, column, value = A_rows[entries[e]] - a, A_cols[entries[e]], A[entries[e]]
            at = place[column]
            K[at, at] += value * value * block[row, row]
            for f in range(row_starts[a], e):
                other = place[A_cols[entries[f]]]
                product = value * A[entries[f]] * block[row, A_rows[entries[f]] - a]
                put(K, at, other, 2.0 * product if at == other else product)
        return
    local = local_rows(T, W, k)
    height, width = local.shape
    for i in range(height):
        fill(times[:width], 0.0)
        for p in range(height):
            add(times[:width], block[i, p], local[p])
        for j in range(width):
            value, at = local[i, j], place[cols[j]]
            if anywhere(value != 0.0):
                for p in range(width):
                    other = place[cols[p]]
                    if other <= at:
                        K[at, other] += value * times[p]


@lean
def _direction(T: Any, W: Any, above: Any, right: Any, dx: Any, dz: Any, Adx: Any, precise: Any) -> None:
    """``P dx + A'dz = above, A dx - H dz = right``; what is lost where H is small shows in the first line,
    and is found again where it is more than ``precise``."""
    P, A, place, rows = space(T, W, cell.W_P), space(T, W, cell.W_A), part(T, cell.OWN_PLACE), part(T, cell.OWN_ROW)
    z, sign, left, step = space(T, W, cell.W_SIDE), space(T, W, cell.W_SIGN), top(T, W, 8), top(T, W, 9)
    missing, moved = side(T, W, 7), side(T, W, 8)
    whole = T[cell.N] + T[cell.ZERO]
    copy(above, left)
    copy(right, missing)
    fill(dx, 0.0)
    fill(dz, 0.0)
    fill(Adx, 0.0)
    wanting = precise == precise
    for attempt in range(1 + REFINEMENTS):
        copy(left, step)
        if attempt == 0:
            inverse_times(T, W, missing, moved)
            add_At(T, A, 1.0, moved, step)
        for j in range(T[cell.N]):
            z[place[j]] = step[j]
        for i in range(T[cell.ZERO]):
            z[rows[i]] = missing[i]
        envelope.solve(matrix(T, W, cell.W_K, whole, whole), part(T, cell.OWN_FIRST), sign[:whole], z)
        for j in range(T[cell.N]):
            step[j] = where(wanting, z[place[j]], 0.0)
            dx[j] += step[j]
        fill(moved, 0.0)
        add_A(T, A, 1.0, step, moved)
        for i in range(T[cell.M]):
            Adx[i] += moved[i]
            moved[i] -= missing[i] if attempt == 0 else 0.0
        inverse_times(T, W, moved, moved)
        for i in range(T[cell.ZERO]):
            moved[i] = where(wanting, z[rows[i]], 0.0)
        add(dz, 1.0, moved)
        wanting = wanting & (precise < np.inf)
        if attempt == REFINEMENTS or not anywhere(wanting):
            break
        copy(above, left)
        add_P(T, P, -1.0, dx, left)
        add_At(T, A, -1.0, dz, left)
        wanting = wanting & (largest(left) > precise)
        if not anywhere(wanting):
            break
        for i in range(T[cell.M]):
            missing[i] = right[i] - Adx[i]

"""A primal-dual interior-point method for small conic programs, one instance at a time.

The homogeneous embedding that keeps the quadratic objective (Goulart & Chen, "Clarabel", 2024): with ``xi = x / tau``

    Px + A'z + q tau = 0,   Ax + s - b tau = 0,   x'Px / tau + q'x + b'z + kappa = 0,   s in K, z in K*, tau, kappa >= 0,

Mehrotra's predictor and corrector, Nesterov and Todd's scaling for symmetric cones and that of ``exponential_scaling`` for
the others. A step condenses the cones, ``P + A'H^-1 A``, and factors what is left with the equalities in an envelope; the
part of a large second-order cone that does not change with its scaling is multiplied out once.

The answer is good to the accuracy asked for; what is then left is for Newton's method (``conic_newton.polish``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels import envelope
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
from ddn_cvx.kernels.scaling import formed, inverse_block, inverse_times, length, shift, unit, update
from ddn_cvx.kernels.table import (
    A_COLS,
    A_ROWS,
    BLOCKS,
    COL_STARTS,
    COLS,
    DEGREE,
    ENTRIES,
    KIND,
    LINEAR,
    ORDER,
    OWN_FIRST,
    OWN_PLACE,
    OWN_ROW,
    P_COLS,
    P_ROWS,
    ROW_STARTS,
    SECOND_ORDER,
    STARTS,
    THIN,
    W_A,
    W_B,
    W_ETA,
    W_INVERSE,
    W_K,
    W_OTHER,
    W_P,
    W_Q,
    W_SIDE,
    W_SIGN,
    ZERO,
    M,
    N,
    add_A,
    add_At,
    add_P,
    matrix,
    part,
    side,
    space,
    top,
    workspace,
)  # fmt: skip

SOLVED, BROKEN, INVALID = 0, 5, 6

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
    W, _ = workspace(T)
    pair = np.empty(3)
    for k in range(first, last):
        errors[k] = np.inf
        if not (is_finite(P[k]) and is_finite(q[k]) and is_finite(A[k]) and is_finite(b[k])):
            status[k] = INVALID
            continue
        _equilibrate(T, P[k], q[k], A[k], b[k], W, pair)
        fill(x[k], 0.0)
        unit(T, s[k], y[k])
        pair[0] = pair[1] = 1.0
        multiply_out(T, space(T, W, W_A), W)
        errors[k], iterations[k] = _iterate(T, W, x[k], s[k], y[k], pair, goal)
        columns, rows = top(T, W, 15), side(T, W, 17)
        for j in range(T[N]):
            x[k, j] *= columns[j] / pair[0]
        for i in range(T[M]):
            s[k, i] /= rows[i] * pair[0]
            y[k, i] *= rows[i] / (pair[2] * pair[0])


@lean
def _equilibrate(T: Any, P: Any, q: Any, A: Any, b: Any, W: Any, pair: Any) -> None:
    """Rows and columns of about the same size, the rows of a cone by one factor, and an objective of about one."""
    new_P, new_q, new_A, new_b = space(T, W, W_P), space(T, W, W_Q), space(T, W, W_A), space(T, W, W_B)
    A_rows, A_cols, P_rows, P_cols = part(T, A_ROWS), part(T, A_COLS), part(T, P_ROWS), part(T, P_COLS)
    above, beside, columns, rows, starts = top(T, W, 14), side(T, W, 16), top(T, W, 15), side(T, W, 17), part(T, STARTS)
    fill(columns, 1.0)
    fill(rows, 1.0)
    copy(P, new_P)
    copy(A, new_A)
    for _ in range(PASSES):
        fill(above, 0.0)
        fill(beside, 0.0)
        for e in range(P.shape[0]):
            size = abs(new_P[e])
            above[P_rows[e]], above[P_cols[e]] = max(above[P_rows[e]], size), max(above[P_cols[e]], size)
        for e in range(A.shape[0]):
            size = abs(new_A[e])
            above[A_cols[e]], beside[A_rows[e]] = max(above[A_cols[e]], size), max(beside[A_rows[e]], size)
        for k in range(T[BLOCKS]):
            fill(beside[starts[k] : starts[k + 1]], largest(beside[starts[k] : starts[k + 1]]))
        for j in range(T[N]):
            above[j] = above[j] ** -0.5 if above[j] > 0.0 else 1.0
            columns[j] *= above[j]
        for i in range(T[M]):
            beside[i] = beside[i] ** -0.5 if beside[i] > 0.0 else 1.0
            rows[i] *= beside[i]
        for e in range(P.shape[0]):
            new_P[e] *= above[P_rows[e]] * above[P_cols[e]]
        for e in range(A.shape[0]):
            new_A[e] *= beside[A_rows[e]] * above[A_cols[e]]
    for j in range(T[N]):
        new_q[j] = q[j] * columns[j]
    for i in range(T[M]):
        new_b[i] = b[i] * rows[i]
    size = max(largest(new_q), largest(new_P))
    pair[2] = 1.0 / size if size > 0.0 else 1.0
    for j in range(T[N]):
        new_q[j] *= pair[2]
    for e in range(P.shape[0]):
        new_P[e] *= pair[2]


@lean
def _iterate(T: Any, W: Any, x: Any, s: Any, z: Any, pair: Any, goal: float) -> tuple[float, int]:
    """Steps until the residuals and the gap are at most ``goal``; returns what they are, infinite if there is no point, and
    the number of steps. ``pair`` is tau and kappa."""
    P, q, A, b = space(T, W, W_P), space(T, W, W_Q), space(T, W, W_A), space(T, W, W_B)
    rx, Px, Aty, x1, x2, dx, g = (
        top(T, W, 0), top(T, W, 1), top(T, W, 2), top(T, W, 3), top(T, W, 4), top(T, W, 5), top(T, W, 6),
    )  # fmt: skip
    rz, Ax, z2, dz, ds, right, moved, Ax2, Adx = (
        side(T, W, 0), side(T, W, 1), side(T, W, 2), side(T, W, 3), side(T, W, 4), side(T, W, 5), side(T, W, 6),
        side(T, W, 9), side(T, W, 10),
    )  # fmt: skip
    n, m, zero = T[N], T[M], T[ZERO]
    degree = T[DEGREE] + T[LINEAR] - zero + 1
    best, stalled, iteration, expected = np.inf, 0, 0, np.inf
    refined = goal < ROUGH
    while True:
        tau, kappa = pair[0], pair[1]
        fill(Px, 0.0)
        fill(Aty, 0.0)
        fill(Ax, 0.0)
        add_P(T, P, 1.0, x, Px)
        add_At(T, A, 1.0, z, Aty)
        add_A(T, A, 1.0, x, Ax)
        for j in range(n):
            rx[j] = Px[j] + Aty[j] + tau * q[j]
            g[j] = 2.0 * Px[j] / tau + q[j]
        for i in range(m):
            rz[i] = Ax[i] + s[i] - tau * b[i]
        quadratic, linear, dual = dot(x, Px) / tau, dot(q, x), dot(b, z)
        rt = quadratic + linear + dual + kappa
        mu = (dot(s[zero:], z[zero:]) + tau * kappa) / degree
        terms = max(abs(quadratic), max(abs(linear), abs(dual)))
        above = tau + max(tau * largest(q), max(largest(Px), largest(Aty)))
        below = tau + max(tau * largest(b), max(largest(Ax), largest(s)))
        error = max(abs(rt - kappa) / (tau + terms), max(largest(rx) / above, largest(rz) / below))
        if error != error or not tau > 0.0:
            return np.inf, iteration
        if error <= goal or iteration >= LIMIT:
            return float(error), iteration
        stalled = 0 if error < 0.9 * best else stalled + 1
        best = min(best, error)
        if stalled >= 10 or tau < 1e-9 * max(1.0, kappa):
            return float(error), iteration
        if not update(T, W, s, z, mu) or not _factor(T, W):
            return float(error), iteration
        refined = refined or largest(rx) > expected + PRECISE * goal
        iteration += 1
        for j in range(n):
            x1[j] = -q[j]
        _direction(T, W, x1, b, x2, z2, Ax2, PRECISE * goal if refined else np.inf)
        for j in range(n):
            x1[j] = -rx[j]
        for i in range(m):
            right[i] = s[i] - rz[i] if i >= zero else -rz[i]
        below = dot(g, x2) + dot(b, z2) - kappa / tau - quadratic / tau
        sigma, dtau, dkappa, step = 0.0, 0.0, 0.0, 0.0
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
            _direction(T, W, x1, right, dx, dz, Adx, PRECISE * goal if refined and corrector else np.inf)
            dtau = (target / tau - aim * rt - dot(g, dx) - dot(b, dz)) / below
            add(dx, dtau, x2)
            add(dz, dtau, z2)
            dkappa = -(target + kappa * dtau) / tau
            for i in range(m):
                ds[i] = dtau * (b[i] - Ax2[i]) - Adx[i] - aim * rz[i] if i >= zero else 0.0
            step = 1.0 / (1.0 - LEFT) if corrector else 1.0
            if dtau < 0.0:
                step = min(step, -tau / dtau)
            if dkappa < 0.0:
                step = min(step, -kappa / dkappa)
            step = length(T, W, s, z, ds, dz, step)
            sigma = (1.0 - min(step, 1.0)) ** 3
        step *= 1.0 - LEFT
        if not step > 1e-9:
            return float(error), iteration
        expected = (1.0 - step * aim) * largest(rx)
        add(x, step, dx)
        add(z, step, dz)
        add(s, step, ds)
        pair[0] += step * dtau
        pair[1] += step * dkappa


@lean
def _factor(T: Any, W: Any) -> bool:
    """``[[P + A'H^-1 A, E'], [E, 0]]`` with a small multiple of the identity, in place."""
    P, A, inverse, entries = space(T, W, W_P), space(T, W, W_A), space(T, W, W_INVERSE), part(T, ENTRIES)
    place, rows, row_starts, A_cols = part(T, OWN_PLACE), part(T, OWN_ROW), part(T, ROW_STARTS), part(T, A_COLS)
    P_rows, P_cols, sign, kind = part(T, P_ROWS), part(T, P_COLS), space(T, W, W_SIGN), part(T, KIND)
    whole = T[N] + T[ZERO]
    K = matrix(T, W, W_K, whole, whole)
    for i in range(whole):
        fill(K[i, : i + 1], 0.0)
        sign[i] = 1.0
    for e in range(P.shape[0]):
        put(K, place[P_rows[e]], place[P_cols[e]], P[e])
    for i in range(T[ZERO]):
        at = rows[i]
        for e in range(row_starts[i], row_starts[i + 1]):
            K[at, place[A_cols[entries[e]]]] = A[entries[e]]
        K[at, at], sign[at] = -PROXIMAL, -1.0
    for i in range(T[ZERO], T[LINEAR]):
        add_pairs(T, A, i, inverse[i], place, K)
    for k in range(T[BLOCKS]):
        if kind[k] == SECOND_ORDER:
            _add_second_order(T, A, W, k, K)
        else:
            _add_block(T, A, W, k, K)
    for j in range(T[N]):
        at = place[j]
        K[at, at] += PROXIMAL + 1e-14 * K[at, at]
    return envelope.factor(K, part(T, OWN_FIRST), sign[:whole], 0.0, space(T, W, W_SIDE), space(T, W, W_OTHER))


@lean
def _add_second_order(T: Any, A: Any, W: Any, k: int, K: Any) -> None:
    """``(A'A - 2 a a' + 2 g g') / eta^2`` with a the first row and ``g = A'Jw``."""
    place, w, g, cols = part(T, OWN_PLACE), space(T, W, W_INVERSE), top(T, W, 7), part(T, COLS)[T[T[COL_STARTS] + k] :]
    a, b, weight = T[T[STARTS] + k], T[T[STARTS] + k + 1], W[T[W_ETA] + k] ** -2
    w[a] = -w[a]
    width = row_of(T, A, W, k, w[a:b], g)
    w[a] = -w[a]
    if T[T[THIN] + k]:
        for i in range(a, b):
            add_pairs(T, A, i, -weight if i == a else weight, place, K)
        add_outer(g, 2.0 * weight, cols, width, place, K)
        return
    head = local_rows(T, W, k)[0]
    add_products(local_products(T, W, k), weight, g, 2.0 * weight, head, -weight, cols, place, K)


@lean
def _add_block(T: Any, A: Any, W: Any, k: int, K: Any) -> None:
    """``A'H^-1 A`` for a block whose ``H^-1`` is formed."""
    place, times, cols = part(T, OWN_PLACE), top(T, W, 7), part(T, COLS)[T[T[COL_STARTS] + k] :]
    a, b, entries, row_starts = T[T[STARTS] + k], T[T[STARTS] + k + 1], part(T, ENTRIES), part(T, ROW_STARTS)
    A_rows, A_cols = part(T, A_ROWS), part(T, A_COLS)
    block = formed(T, W, k)
    inverse_block(T, W, k, T[T[KIND] + k], T[T[ORDER] + k])
    if T[T[THIN] + k]:
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
            if value != 0.0:
                for p in range(width):
                    other = place[cols[p]]
                    if other <= at:
                        K[at, other] += value * times[p]


@lean
def _direction(T: Any, W: Any, above: Any, right: Any, dx: Any, dz: Any, Adx: Any, precise: float) -> None:
    """``P dx + A'dz = above, A dx - H dz = right``; what is lost where H is small shows in the first line,
    and is found again where it is more than ``precise``."""
    P, A, place, rows = space(T, W, W_P), space(T, W, W_A), part(T, OWN_PLACE), part(T, OWN_ROW)
    z, sign, left, step = space(T, W, W_SIDE), space(T, W, W_SIGN), top(T, W, 8), top(T, W, 9)
    missing, moved = side(T, W, 7), side(T, W, 8)
    whole = T[N] + T[ZERO]
    copy(above, left)
    copy(right, missing)
    fill(dx, 0.0)
    fill(dz, 0.0)
    fill(Adx, 0.0)
    for attempt in range(1 + REFINEMENTS):
        copy(left, step)
        if attempt == 0:
            inverse_times(T, W, missing, moved)
            add_At(T, A, 1.0, moved, step)
        for j in range(T[N]):
            z[place[j]] = step[j]
        for i in range(T[ZERO]):
            z[rows[i]] = missing[i]
        envelope.solve(matrix(T, W, W_K, whole, whole), part(T, OWN_FIRST), sign[:whole], z)
        for j in range(T[N]):
            step[j] = z[place[j]]
            dx[j] += step[j]
        fill(moved, 0.0)
        add_A(T, A, 1.0, step, moved)
        for i in range(T[M]):
            Adx[i] += moved[i]
            moved[i] -= missing[i] if attempt == 0 else 0.0
        inverse_times(T, W, moved, moved)
        for i in range(T[ZERO]):
            moved[i] = z[rows[i]]
        add(dz, 1.0, moved)
        if precise == np.inf or attempt == REFINEMENTS:
            break
        copy(above, left)
        add_P(T, P, -1.0, dx, left)
        add_At(T, A, -1.0, dz, left)
        if largest(left) <= precise:
            break
        for i in range(T[M]):
            missing[i] = right[i] - Adx[i]

"""A primal-dual interior-point method for small conic programs, one instance at a time.

The homogeneous embedding that keeps the quadratic objective (Goulart & Chen, "Clarabel", 2024): with ``xi = x / tau``

    Px + A'z + q tau = 0,   Ax + s - b tau = 0,   x'Px / tau + q'x + b'z + kappa = 0,   s in K, z in K*, tau, kappa >= 0,

Mehrotra's predictor and corrector, Nesterov and Todd's scaling for symmetric cones and that of ``exponential_scaling`` for
the others. A step condenses the cones, ``P + A'H^-1 A``, and factors what is left with the equalities in an envelope; the
part of a large second-order cone that does not change with its scaling is multiplied out once.

From a moderate accuracy on, Newton's method on the optimality conditions takes over (``conic_kkt.polish``); where it does
not get there, as close to a kink, the interior-point method goes on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels import conic_kkt, envelope
from ddn_cvx.kernels.conic_kkt import add_pairs, gather, products
from ddn_cvx.kernels.cones import SECOND_ORDER
from ddn_cvx.kernels.dense import add, copy, dot, fill, is_finite, largest
from ddn_cvx.kernels.jit import inner, jit
from ddn_cvx.kernels.scaling import inverse_block, inverse_times, length, scaling, shift, unit, update
from ddn_cvx.kernels.spectrum import spectrum
from ddn_cvx.kernels.structure import add_A, add_At, add_P

SOLVED, BROKEN, INVALID = 0, 5, 6

LIMIT = 100
"""Iterations after which an element gives up."""
GOALS = (1e-8, 1e-12)
"""Relative residuals and gap at which Newton's method is tried."""
POLISHED = 1e-12
"""Relative residual of a point that needs no further improvement."""
ACCEPTED = 1e-7
"""Relative residual of a point that is worth returning."""
PROXIMAL = 1e-10
"""What is added to the diagonal, next to the scaled data."""
LEFT = 0.01
"""Part of the way to the boundary that a step leaves."""
PASSES = 2
"""Equilibrations of rows and columns."""


@jit
def solve(
    first: int,
    last: int,
    structure: Any,
    P: Any,
    q: Any,
    A: Any,
    b: Any,
    x: Any,
    y: Any,
    s: Any,
    status: Any,
    iterations: Any,
) -> None:
    """Fill in x (B, n), y (B, m), s (B, m), status (B,) and iterations (B,) for the elements ``first .. last - 1``.

    An element that is not solved has NaN; nothing is said of infeasible and unbounded ones.
    """
    n, m = structure.n, structure.m
    work, kkt = _workspace(structure, P.shape[1], A.shape[1]), conic_kkt.workspace(structure)
    space = np.empty((5, n)), np.empty((5, m))
    point_x, point_v, point_y, point_s = np.empty(n), np.empty(m), np.empty(m), np.empty(m)
    for k in range(first, last):
        fill(x[k], np.nan)
        fill(y[k], np.nan)
        fill(s[k], np.nan)
        status[k], iterations[k] = BROKEN, 0
        if not (is_finite(P[k]) and is_finite(q[k]) and is_finite(A[k]) and is_finite(b[k])):
            status[k] = INVALID
            continue
        _equilibrate(structure, P[k], q[k], A[k], b[k], work)
        _start(structure, work)
        best = ACCEPTED
        for goal in GOALS:
            reached, iterations[k] = _iterate(structure, work, goal, iterations[k])
            if not reached < np.inf:
                break
            _take_out(structure, work, point_x, point_y, point_s)
            for i in range(m):
                point_v[i] = point_y[i] - point_s[i]
            own = conic_kkt.residual(
                structure, P[k], q[k], A[k], b[k], point_x, point_y, point_s, space[0][3], space[1][3], space[0][4], space[1][4]
            )
            if max(own, reached) < best:
                best, status[k] = max(own, reached), SOLVED
                copy(point_x, x[k])
                copy(point_y, y[k])
                copy(point_s, s[k])
            error = conic_kkt.polish(
                structure, P[k], q[k], A[k], b[k], point_x, point_v, point_y, point_s, kkt, space
            )
            if error < best:
                best, status[k] = error, SOLVED
                copy(point_x, x[k])
                copy(point_y, y[k])
                copy(point_s, s[k])
            if best <= POLISHED or reached > goal:
                break


@inner
def _workspace(structure: Any, P_size: int, A_size: int) -> Any:
    n, m, cones = structure.n, structure.m, structure.cones
    starts = np.zeros(cones.kind.shape[0] + 1, np.int64)
    for k in range(cones.kind.shape[0]):
        width = cones.col_starts[k + 1] - cones.col_starts[k]
        wanted = cones.kind[k] == SECOND_ORDER and not cones.thin[k]
        starts[k + 1] = starts[k] + (width * width if wanted else 0)
    whole = n + structure.zero
    columns, places, sign = np.empty((3, n), np.int64), np.empty((2, whole), np.int64), np.empty(whole)
    rows = spectrum(structure)
    for i in range(structure.zero):
        rows.block[i], rows.index[i] = -1, i
    rows.counts[0] = structure.zero
    possible = conic_kkt.arrange(structure, rows, columns, places, sign)
    data = np.empty(P_size), np.empty(n), np.empty(A_size), np.empty(m)
    scales = np.empty(n), np.empty(m), np.empty(1)
    state = np.empty(n), np.empty(m), np.empty(m), np.empty(2)
    return (
        data,
        scales,
        state,
        (np.empty((whole, whole)), columns[0], places, sign, np.empty((2, whole)), possible),
        (starts, np.empty(starts[-1])),
        scaling(structure),
        np.empty((12, n)),
        np.empty((14, m)),
        (np.empty((cones.tallest, cones.widest)), np.empty((cones.widest, cones.widest))),
        np.empty((cones.tallest, cones.tallest)),
    )


@inner
def _equilibrate(structure: Any, P: Any, q: Any, A: Any, b: Any, work: Any) -> None:
    """Rows and columns of about the same size, the rows of a cone by one factor, and an objective of about one."""
    data, scales, tops, sides = work[0], work[1], work[6], work[7]
    new_P, new_q, new_A, new_b = data
    columns, rows, objective = scales
    cones, n, m = structure.cones, structure.n, structure.m
    A_rows, A_cols, P_rows, P_cols = structure.A_rows, structure.A_cols, structure.P_rows, structure.P_cols
    above, beside = tops[0], sides[0]
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
        for k in range(cones.kind.shape[0]):
            size = largest(beside[cones.starts[k] : cones.starts[k + 1]])
            fill(beside[cones.starts[k] : cones.starts[k + 1]], size)
        for j in range(n):
            above[j] = above[j] ** -0.5 if above[j] > 0.0 else 1.0
            columns[j] *= above[j]
        for i in range(m):
            beside[i] = beside[i] ** -0.5 if beside[i] > 0.0 else 1.0
            rows[i] *= beside[i]
        for e in range(P.shape[0]):
            new_P[e] *= above[P_rows[e]] * above[P_cols[e]]
        for e in range(A.shape[0]):
            new_A[e] *= beside[A_rows[e]] * above[A_cols[e]]
    for j in range(n):
        new_q[j] = q[j] * columns[j]
    for i in range(m):
        new_b[i] = b[i] * rows[i]
    size = max(largest(new_q), largest(new_P))
    objective[0] = 1.0 / size if size > 0.0 else 1.0
    for j in range(n):
        new_q[j] *= objective[0]
    for e in range(P.shape[0]):
        new_P[e] *= objective[0]


@inner
def _take_out(structure: Any, work: Any, x: Any, y: Any, s: Any) -> None:
    """The point in the units of the program."""
    (columns, rows, objective), (inner_x, inner_s, inner_z, pair) = work[1], work[2]
    for j in range(structure.n):
        x[j] = inner_x[j] * columns[j] / pair[0]
    for i in range(structure.m):
        s[i] = inner_s[i] / (rows[i] * pair[0])
        y[i] = inner_z[i] * rows[i] / (objective[0] * pair[0])


@inner
def _start(structure: Any, work: Any) -> None:
    """x = 0, the centres of the cones, tau = kappa = 1."""
    x, s, z, pair = work[2]
    fill(x, 0.0)
    unit(structure, s, z)
    pair[0] = pair[1] = 1.0
    _multiply_out(structure, work)


@inner
def _multiply_out(structure: Any, work: Any) -> None:
    """The part of ``A'H^-1 A`` that does not change with the scaling of a second-order cone, but for a factor."""
    cones, A = structure.cones, work[0][2]
    starts, kept = work[4]
    local, gram = work[8]
    for k in range(cones.kind.shape[0]):
        if starts[k + 1] > starts[k]:
            width = cones.col_starts[k + 1] - cones.col_starts[k]
            gather(structure, A, k, local)
            products(local, 1, cones.starts[k + 1] - cones.starts[k], width, gram)
            at = starts[k]
            for i in range(width):
                for j in range(i + 1):
                    kept[at + i * width + j] = gram[i, j] - local[0, i] * local[0, j]


@inner
def _iterate(structure: Any, work: Any, goal: float, iteration: int) -> tuple[float, int]:
    """Steps until the residuals and the gap are at most ``goal``; returns what they are, infinite if there is no point."""
    (P, q, A, b), (x, s, z, pair), scaled, tops, sides = work[0], work[2], work[5], work[6], work[7]
    rx, Px, Aty, x1, x2, dx, g = tops[0], tops[1], tops[2], tops[3], tops[4], tops[5], tops[6]
    rz, Ax, z1, z2, dz, ds, right = sides[0], sides[1], sides[2], sides[3], sides[4], sides[5], sides[6]
    moved = sides[7]
    n, m, zero = structure.n, structure.m, structure.zero
    degree = structure.cones.degree + structure.cones.linear - zero + 1
    best, stalled, error = np.inf, 0, np.inf
    while True:
        tau, kappa = pair[0], pair[1]
        fill(Px, 0.0)
        fill(Aty, 0.0)
        fill(Ax, 0.0)
        add_P(structure, P, 1.0, x, Px)
        add_At(structure, A, 1.0, z, Aty)
        add_A(structure, A, 1.0, x, Ax)
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
            return error, iteration
        stalled = 0 if error < 0.9 * best else stalled + 1
        best = min(best, error)
        if stalled >= 10 or tau < 1e-9 * max(1.0, kappa):
            return error, iteration
        if not update(structure, s, z, mu, scaled) or not _factor(structure, work):
            return error, iteration
        iteration += 1
        for j in range(n):
            x1[j] = -q[j]
        _direction(structure, work, x1, b, x2, z2)
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
                shift(structure, scaled, z, ds, dz, sigma * mu, moved, sides[8], sides[9])
                for i in range(m):
                    right[i] = (s[i] + moved[i] if i >= zero else 0.0) - aim * rz[i]
                for j in range(n):
                    x1[j] = -aim * rx[j]
                target += dkappa * dtau - sigma * mu
            _direction(structure, work, x1, right, dx, dz)
            dtau = (target / tau - aim * rt - dot(g, dx) - dot(b, dz)) / below
            add(dx, dtau, x2)
            add(dz, dtau, z2)
            dkappa = -(target + kappa * dtau) / tau
            fill(ds, 0.0)
            add_A(structure, A, -1.0, dx, ds)
            for i in range(m):
                ds[i] = ds[i] + dtau * b[i] - aim * rz[i] if i >= zero else 0.0
            step = 1.0 / (1.0 - LEFT) if corrector else 1.0
            if dtau < 0.0:
                step = min(step, -tau / dtau)
            if dkappa < 0.0:
                step = min(step, -kappa / dkappa)
            step = length(structure, scaled, s, z, ds, dz, step, sides[8])
            sigma = (1.0 - min(step, 1.0)) ** 3
        step *= 1.0 - LEFT
        if not step > 1e-9:
            return error, iteration
        add(x, step, dx)
        add(z, step, dz)
        add(s, step, ds)
        pair[0] += step * dtau
        pair[1] += step * dkappa


@inner
def _factor(structure: Any, work: Any) -> bool:
    """``[[P + A'H^-1 A, E'], [E, 0]]`` with a small multiple of the identity, in place."""
    P, _, A, _ = work[0]
    K, place, places, sign, wholes, possible = work[3]
    if not possible:
        return False
    scaled, cones, n, zero = work[5], structure.cones, structure.n, structure.zero
    P_rows, P_cols, A_cols, entries, row_starts = (
        structure.P_rows,
        structure.P_cols,
        structure.A_cols,
        cones.entries,
        cones.row_starts,
    )
    for i in range(K.shape[0]):
        fill(K[i, : i + 1], 0.0)
    for e in range(P.shape[0]):
        conic_kkt.put(K, place[P_rows[e]], place[P_cols[e]], P[e])
    for i in range(zero):
        at = places[1, i]
        for e in range(row_starts[i], row_starts[i + 1]):
            K[at, place[A_cols[entries[e]]]] = A[entries[e]]
        K[at, at] = -PROXIMAL
    for i in range(zero, cones.linear):
        add_pairs(structure, A, i, scaled.inverse[i], place, K)
    for k in range(cones.kind.shape[0]):
        if cones.kind[k] == SECOND_ORDER:
            _add_second_order(structure, work, k)
        else:
            _add_block(structure, work, k)
    for j in range(n):
        at = place[j]
        K[at, at] += PROXIMAL + 1e-14 * K[at, at]
    return envelope.factor(K, places[0], sign, 0.0, wholes[0])


@inner
def _add_second_order(structure: Any, work: Any, k: int) -> None:
    """``(A'A - 2 a a' + 2 g g') / eta^2`` with a the first row and ``g = A'Jw``."""
    A, K, place, scaled, cones = work[0][2], work[3][0], work[3][1], work[5], structure.cones
    starts, kept = work[4]
    g = work[6][7]
    a, b, c = cones.starts[k], cones.starts[k + 1], cones.col_starts[k]
    width, weight = cones.col_starts[k + 1] - c, scaled.eta[k] ** -2
    entries, places, row_starts, cols, A_rows = cones.entries, cones.place, cones.row_starts, cones.cols, structure.A_rows
    fill(g[:width], 0.0)
    for e in range(row_starts[a], row_starts[b]):
        i = A_rows[entries[e]]
        g[places[e]] += (scaled.inverse[i] if i == a else -scaled.inverse[i]) * A[entries[e]]
    if cones.thin[k]:
        for i in range(a, b):
            add_pairs(structure, A, i, -weight if i == a else weight, place, K)
        for i in range(width):
            for j in range(i + 1):
                conic_kkt.put(K, place[cols[c + i]], place[cols[c + j]], 2.0 * weight * g[i] * g[j])
        return
    for i in range(width):
        row = kept[starts[k] + i * width : starts[k] + (i + 1) * width]
        at, twice = place[cols[c + i]], 2.0 * g[i]
        for j in range(i + 1):
            conic_kkt.put(K, at, place[cols[c + j]], weight * (row[j] + twice * g[j]))


@inner
def _add_block(structure: Any, work: Any, k: int) -> None:
    """``A'H^-1 A`` for a block whose ``H^-1`` is formed."""
    A, K, place, scaled, cones, block = work[0][2], work[3][0], work[3][1], work[5], structure.cones, work[9]
    local, _ = work[8]
    a, b, c = cones.starts[k], cones.starts[k + 1], cones.col_starts[k]
    entries, row_starts, cols, A_rows, A_cols = cones.entries, cones.row_starts, cones.cols, structure.A_rows, structure.A_cols
    inverse_block(scaled, k, cones.kind[k], cones.order[k], block)
    if cones.thin[k]:
        for e in range(row_starts[a], row_starts[b]):
            row, column, value = A_rows[entries[e]] - a, A_cols[entries[e]], A[entries[e]]
            conic_kkt.put(K, place[column], place[column], value * value * block[row, row])
            for f in range(row_starts[a], e):
                other = A_cols[entries[f]]
                product = value * A[entries[f]] * block[row, A_rows[entries[f]] - a]
                conic_kkt.put(K, place[column], place[other], 2.0 * product if column == other else product)
        return
    width, height, times = cones.col_starts[k + 1] - c, b - a, work[6][7]
    gather(structure, A, k, local)
    for i in range(height):
        fill(times[:width], 0.0)
        for p in range(height):
            add(times[:width], block[i, p], local[p])
        for j in range(width):
            value = local[i, j]
            if value != 0.0:
                at = place[cols[c + j]]
                for p in range(width):
                    other = place[cols[c + p]]
                    if other <= at:
                        K[at, other] += value * times[p]


@inner
def _direction(structure: Any, work: Any, top: Any, right: Any, dx: Any, dz: Any) -> None:
    """``P dx + A'dz = top, A dx - H dz = right``."""
    A, scaled = work[0][2], work[5]
    K, place, places, sign, wholes, _ = work[3]
    side, moved = wholes[1], work[7][10]
    n, m, zero = structure.n, structure.m, structure.zero
    copy(top, dx)
    inverse_times(structure, scaled, right, moved)
    add_At(structure, A, 1.0, moved, dx)
    for j in range(n):
        side[place[j]] = dx[j]
    for i in range(zero):
        side[places[1, i]] = right[i]
    envelope.solve(K, places[0], sign, side)
    for j in range(n):
        dx[j] = side[place[j]]
    for i in range(m):
        moved[i] = -right[i]
    add_A(structure, A, 1.0, dx, moved)
    inverse_times(structure, scaled, moved, dz)
    for i in range(zero):
        dz[i] = side[places[1, i]]

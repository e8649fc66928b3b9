"""Mehrotra's predictor-corrector method (1992) for convex quadratic and linear programs, one instance at a time.

    minimise  1/2 x'Px + q'x   subject to   Ex = e,   Gx + s = h,   s >= 0

A step eliminates slacks and multipliers of the inequalities: ``H = P + delta I + G'WG`` with ``W = z / s`` has a Cholesky
factor, and the equalities the Schur complement ``E H^-1 E'``. Bounds add to the diagonal of H only. The small delta makes
every system solvable; the residuals are the true ones, so it costs no accuracy. Rows have their largest entry scaled to
one, and small units are taken out (``program.units``).

Close to the solution Newton's method on the active constraints, where these can be told, gives it up to rounding and spares
the last iterations. Elsewhere the answer is good to about 1e-9.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels import kkt, kkt_once
from ddn_cvx.kernels.dense import add, cholesky, copy, dot, fill, is_finite, largest, lower, lower_transposed, rows_times
from ddn_cvx.kernels.jit import jit, lean
from ddn_cvx.kernels.optimality import units
from ddn_cvx.kernels.status import BROKEN, INVALID, SOLVED
from ddn_cvx.kernels.structure import add_A, add_At, add_P, dense_A, dense_P

LIMIT = 60
"""Iterations after which an element gives up."""
TOLERANCE = 1e-10
"""Relative residuals and complementarity of a solution."""
ACCEPTED = 1e-8
"""The same where no progress is made any more."""
EARLY = 1e-6
"""The same from which the active constraints are tried, and again after each two digits more."""
EXACT = 1e-14
"""The same of a point that Newton's method need not improve any more, and ..."""
REACHED = 5e-14
"""... of one that it has to reach."""
NEWTON = 4
"""Newton steps at most."""
PROXIMAL = 1e-10
"""delta, next to the largest entries of the scaled data."""
LEFT = 0.01
"""Part of the way to the boundary that a step leaves."""


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
    n, m, zero = structure.n, structure.m, structure.zero
    H, quadratic, rows = np.empty((n, n)), np.empty((n, n)), np.empty((m, n))
    V, S = np.empty((zero, n)), np.empty((zero, zero))
    scaled, size, right, linear, entries = np.empty(A.shape[1]), np.empty(m), np.empty(m), np.empty(n), np.empty(P.shape[1])
    vectors, sides = np.empty((4, n)), np.empty((8, m))
    newton = np.empty((6, n)), np.empty((8, m)), np.empty(n, np.bool_), np.empty(3 * n * n), kkt.workspace(structure)
    for k in range(first, last):
        if not (is_finite(P[k]) and is_finite(q[k]) and is_finite(A[k]) and is_finite(b[k])):
            status[k], iterations[k] = INVALID, 0
        else:
            beta, gamma = units(P[k], q[k], b[k])
            _scale(structure, A[k], b[k], scaled, right, size)
            for i in range(m):
                right[i] /= beta
            for j in range(n):
                linear[j] = q[k, j] / gamma
            for t in range(len(entries)):
                entries[t] = P[k, t] * (beta / gamma)
            dense_A(structure, scaled, rows)
            dense_P(structure, entries, quadratic)
            work = H, quadratic, rows, V, S, vectors, sides
            solved, iterations[k] = _iterate(structure, entries, linear, scaled, right, x[k], y[k], s[k], work, newton)
            status[k] = SOLVED if solved and is_finite(x[k]) and is_finite(y[k]) else BROKEN
            for j in range(n):
                x[k, j] *= beta
            for i in range(m):
                y[k, i], s[k, i] = y[k, i] / size[i] * gamma, s[k, i] * size[i] * beta
            fill(s[k, :zero], 0.0)
        if status[k] != SOLVED:
            fill(x[k], np.nan)
            fill(y[k], np.nan)
            fill(s[k], np.nan)


@lean
def _scale(structure: Any, A: Any, b: Any, scaled: Any, right: Any, size: Any) -> None:
    """Divide rows by their largest entry, ``size`` (m,); one for empty ones."""
    rows = structure.A_rows
    fill(size, 0.0)
    for k in range(A.shape[0]):
        size[rows[k]] = max(size[rows[k]], abs(A[k]))
    for i in range(structure.m):
        size[i] = size[i] if size[i] > 0.0 else 1.0
        right[i] = b[i] / size[i]
    for k in range(A.shape[0]):
        scaled[k] = A[k] / size[rows[k]]


@lean
def _iterate(
    structure: Any, P: Any, q: Any, A: Any, b: Any, x: Any, y: Any, s: Any, work: Any, newton: Any
) -> tuple[bool, int]:
    _, _, _, _, _, vectors, sides = work
    rx, dx = vectors[0], vectors[1]
    rz, dy, ds, rc, weight = sides[0], sides[1], sides[2], sides[3], sides[4]
    m, zero = structure.m, structure.zero
    inequalities = m - zero
    # The start: the nearest thing to feasible, and slacks and multipliers that are at least about one.
    fill(x, 0.0)
    fill(y, 0.0)
    fill(weight, 1.0)
    if not _factor(structure, A, weight, P, work):
        return False, 0
    copy(q, rx)
    for i in range(m):
        rz[i] = -b[i]
    fill(rc, 0.0)
    fill(s, 1.0)
    _direction(structure, A, weight, s, work, rx, rz, rc, dx, dy)
    copy(dx, x)
    for i in range(m):
        y[i] = dy[i]
    copy(b, s)
    _add_A(structure, A, work[2], -1.0, x, s)
    low_s, low_y = 0.0, 0.0
    for i in range(zero, m):
        low_s, low_y = min(low_s, s[i]), min(low_y, y[i])
    for i in range(zero, m):
        s[i] += 1.0 - low_s if low_s < 0.0 or s[i] < 1e-3 else 0.0
        y[i] += 1.0 - low_y if low_y < 0.0 or y[i] < 1e-3 else 0.0
    best, stalled, goal = np.inf, 0, EARLY
    for iteration in range(LIMIT):
        fill(s[:zero], 0.0)
        error = _residuals(structure, P, q, A, b, x, y, s, work, ds)
        mu = dot(s[zero:], y[zero:]) / inequalities if inequalities else 0.0
        if error <= goal:
            goal = 0.01 * error
            if _finish(structure, P, q, A, b, x, y, s, work, newton):
                return True, iteration
        if error <= TOLERANCE:
            return True, iteration
        stalled = 0 if error < 0.9 * best else stalled + 1
        best = min(best, error)
        if stalled >= 6 or not error < np.inf:
            return error <= ACCEPTED, iteration
        for i in range(zero, m):
            weight[i] = y[i] / s[i]
        if not _factor(structure, A, weight, P, work):
            return error <= ACCEPTED, iteration
        # the predictor aims at complementarity, the corrector at a part sigma of the mean product
        for i in range(zero, m):
            rc[i] = s[i] * y[i]
        _direction(structure, A, weight, s, work, rx, rz, rc, dx, dy)
        _slack(structure, A, work[2], dx, rz, ds)
        step = min(_length(s, ds, zero), _length(y, dy, zero))
        if inequalities:
            ahead = 0.0
            for i in range(zero, m):
                ahead += (s[i] + step * ds[i]) * (y[i] + step * dy[i])
            sigma = (ahead / inequalities / mu) ** 3 if mu > 0.0 else 0.0
            for i in range(zero, m):
                rc[i] = s[i] * y[i] + ds[i] * dy[i] - sigma * mu
            _direction(structure, A, weight, s, work, rx, rz, rc, dx, dy)
            _slack(structure, A, work[2], dx, rz, ds)
        primal, dual = _length(s, ds, zero), _length(y, dy, zero)
        primal, dual = min(1.0, (1.0 - LEFT) * primal), min(1.0, (1.0 - LEFT) * dual)
        if P.shape[0]:
            primal = dual = min(primal, dual)
        add(x, primal, dx)
        for i in range(m):
            y[i] += dual * dy[i]
            s[i] += primal * ds[i]
    return False, LIMIT


@lean
def _finish(structure: Any, P: Any, q: Any, A: Any, b: Any, x: Any, y: Any, s: Any, work: Any, newton: Any) -> bool:
    """Newton's method on ``Px + q + A'y = 0``, ``Ax + s = b`` with ``y, s`` the positive and negative part of ``v = y - s``;
    where it does not get to the end, the point stays as it is."""
    tops, lows, fixed, factors, scratch = newton
    top, at, step, residual, v, new_y, new_s = tops[0], tops[4], tops[5], lows[0], lows[1], lows[2], lows[3]
    own = work[0], work[1], work[2], work[3], work[4], tops, lows
    zero, m = structure.zero, structure.m
    copy(x, at)
    for i in range(m):
        v[i] = y[i] - s[i]
    before, known, free, general = np.inf, False, 0, 0
    for _ in range(NEWTON):
        for i in range(m):
            new_y[i], new_s[i] = (v[i], 0.0) if i < zero or v[i] > 0.0 else (0.0, -v[i])
        error = _residuals(structure, P, q, A, b, at, new_y, new_s, own, lows[7])
        if error <= EXACT or not error < 0.5 * before:
            break
        before = error
        if not known:
            free, general, healthy = kkt.sizes(structure, v, A, fixed)
            if not healthy:
                return False
        for j in range(structure.n):
            top[j] = -top[j]
        for i in range(m):
            residual[i] = -residual[i]
        sizes = free, general
        if not kkt_once.newton(structure, P, A, v, sizes, known, factors, scratch, top, residual, step, lows[4:7]):
            return False
        add(at, 1.0, step)
        known = True
        for i in range(m):
            was = v[i] > 0.0
            v[i] += lows[4, i]
            known = known and (i < zero or (v[i] > 0.0) == was)
    if not error <= REACHED:
        return False
    copy(at, x)
    copy(new_y, y)
    copy(new_s, s)
    return True


@lean
def _residuals(structure: Any, P: Any, q: Any, A: Any, b: Any, x: Any, y: Any, s: Any, work: Any, Ax: Any) -> float:
    """``rx = Px + q + A'y``, ``rz = Ax + s - b``; returns the largest of them and of the gap, relative."""
    _, _, rows, _, _, vectors, sides = work
    rx, rz, Px, Aty = vectors[0], sides[0], vectors[2], vectors[3]
    fill(Px, 0.0)
    fill(Aty, 0.0)
    fill(Ax, 0.0)
    add_P(structure, P, 1.0, x, Px)
    _add_At(structure, A, rows, 1.0, y, Aty)
    _add_A(structure, A, rows, 1.0, x, Ax)
    for j in range(structure.n):
        rx[j] = Px[j] + q[j] + Aty[j]
    for i in range(structure.m):
        rz[i] = Ax[i] + s[i] - b[i]
    quadratic, linear, dual = dot(x, Px), dot(q, x), dot(b, y)
    gap = abs(quadratic + linear + dual) / (1.0 + max(abs(linear), max(abs(dual), abs(quadratic))))
    top = largest(rx) / (1.0 + max(largest(q), max(largest(Px), largest(Aty))))
    low = largest(rz) / (1.0 + max(largest(b), max(largest(Ax), largest(s))))
    error = max(gap, max(top, low))
    return error if gap == gap and top == top and low == low else np.inf


@lean
def _factor(structure: Any, A: Any, weight: Any, P: Any, work: Any) -> bool:
    H, quadratic, rows, V, S, _, _ = work
    bound, A_cols = structure.bound, structure.A_cols
    n, zero = structure.n, structure.zero
    size = 1.0
    for j in range(n):
        copy(quadratic[j], H[j])
        size = max(size, quadratic[j, j])
    for i in range(zero, structure.m):
        entry = bound[i]
        if entry >= 0:
            j = A_cols[entry]
            H[j, j] += weight[i] * A[entry] * A[entry]
    _add_squares(structure.general, weight, rows, H)
    for j in range(n):
        H[j, j] += PROXIMAL * size + 1e-14 * H[j, j]
    if not cholesky(H, 0.0):
        return False
    for i in range(zero):
        copy(rows[i], V[i])
        lower(H, V[i])
    for i in range(zero):
        rows_times(V[: i + 1], V[i], S[i])
        S[i, i] += 1e-14 * S[i, i] + 1e-300
    return cholesky(S, 0.0)


@lean
def _add_squares(those: Any, weight: Any, rows: Any, H: Any) -> None:
    """``H <- H + sum weight_i row_i row_i'``, lower triangle; four rows at a time share the loads and stores of H."""
    t, count = 0, those.shape[0]
    while t + 3 < count:
        i, ii, iii, iv = those[t], those[t + 1], those[t + 2], those[t + 3]
        for j in range(H.shape[0]):
            a, b = weight[i] * rows[i, j], weight[ii] * rows[ii, j]
            c, d = weight[iii] * rows[iii, j], weight[iv] * rows[iv, j]
            if a != 0.0 or b != 0.0 or c != 0.0 or d != 0.0:
                for k in range(j + 1):
                    H[j, k] += a * rows[i, k] + b * rows[ii, k] + c * rows[iii, k] + d * rows[iv, k]
        t += 4
    while t < count:
        i = those[t]
        for j in range(H.shape[0]):
            a = weight[i] * rows[i, j]
            if a != 0.0:
                add(H[j, : j + 1], a, rows[i, : j + 1])
        t += 1


@lean
def _add_A(structure: Any, A: Any, rows: Any, factor: float, x: Any, out: Any) -> None:
    """``out <- out + factor A x``, with dense rows where most entries are stored."""
    if not structure.is_full:
        add_A(structure, A, factor, x, out)
        return
    bound, A_cols = structure.bound, structure.A_cols
    for i in range(structure.m):
        entry = bound[i]
        if entry >= 0:
            out[i] += factor * A[entry] * x[A_cols[entry]]
        else:
            out[i] += factor * dot(rows[i], x)


@lean
def _add_At(structure: Any, A: Any, rows: Any, factor: float, y: Any, out: Any) -> None:
    """``out <- out + factor A' y``, likewise."""
    if not structure.is_full:
        add_At(structure, A, factor, y, out)
        return
    bound, A_cols = structure.bound, structure.A_cols
    for i in range(structure.m):
        entry = bound[i]
        if entry >= 0:
            out[A_cols[entry]] += factor * A[entry] * y[i]
        else:
            add(out, factor * y[i], rows[i])


@lean
def _direction(structure: Any, A: Any, weight: Any, s: Any, work: Any, rx: Any, rz: Any, rc: Any, dx: Any, dy: Any) -> None:
    """The Newton step for residuals rx, rz and ``s ds' y dy' = -rc``; dy holds both kinds of multipliers."""
    H, _, rows, V, S, _, sides = work
    moved, multiplier = sides[5], sides[6]
    m, zero = structure.m, structure.zero
    for i in range(m):
        moved[i] = weight[i] * rz[i] - rc[i] / s[i] if i >= zero else 0.0
    for j in range(structure.n):
        dx[j] = -rx[j]
    _add_At(structure, A, rows, -1.0, moved, dx)
    lower(H, dx)
    if zero:
        rows_times(V, dx, multiplier)
        for i in range(zero):
            multiplier[i] += rz[i]
        lower(S, multiplier[:zero])
        lower_transposed(S, multiplier[:zero])
        for i in range(zero):
            add(dx, -multiplier[i], V[i])
    lower_transposed(H, dx)
    fill(dy, 0.0)
    _add_A(structure, A, rows, 1.0, dx, dy)
    for i in range(m):
        dy[i] = weight[i] * dy[i] + moved[i] if i >= zero else multiplier[i]


@lean
def _slack(structure: Any, A: Any, rows: Any, dx: Any, rz: Any, ds: Any) -> None:
    """``ds = -rz - G dx``; zero for equalities."""
    fill(ds, 0.0)
    _add_A(structure, A, rows, -1.0, dx, ds)
    for i in range(structure.m):
        ds[i] = ds[i] - rz[i] if i >= structure.zero else 0.0


@lean
def _length(t: Any, dt: Any, zero: int) -> float:
    """The longest step that keeps t nonnegative; at most one over ``1 - LEFT``."""
    step = 1.0 / (1.0 - LEFT)
    for i in range(zero, t.shape[0]):
        if dt[i] < 0.0 and -t[i] > step * dt[i]:
            step = -t[i] / dt[i]
    return step

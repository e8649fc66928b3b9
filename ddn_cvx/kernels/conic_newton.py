"""Derivatives at solutions of small programs with any cones, and Newton's method that makes them exact up to rounding; eight
instances side by side (``kernels.lanes``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels import table as cell
from ddn_cvx.kernels.conic_kkt import multiply_out, prepare, solve_reduced
from ddn_cvx.kernels.dense import add, copy, fill, largest
from ddn_cvx.kernels.jit import jit, lean
from ddn_cvx.kernels.lanes import LANES, anywhere, in_lanes, where
from ddn_cvx.kernels.spectrum import decompose
from ddn_cvx.kernels.table import add_A, add_At, add_P, load, load_program, side, space, store, top, workspace

GOAL = 3e-14
"""Relative residual at which Newton's method has nothing left to gain."""
NEWTON_STEPS = 12
HALVINGS = 8
X, Y, S = 10, 15, 16
"""Where the point is kept, among the vectors of n and of m numbers."""


@jit
def reverse_once(
    first: int, last: int, T: Any, P: Any, A: Any, v: Any, ok: Any, g: Any, h: Any, u: Any, w: Any, healthy: Any
) -> None:
    """``J' (u, w) = (g, h)`` for one right-hand side, g (B, n), h (B, m), without keeping the factors.

    Says in ``healthy`` (B,) which elements it has solved; those that are not ``ok`` get zeros.
    """
    raw, J = workspace(T)
    W = in_lanes(raw)
    n, m, tops, sides = T[cell.N], T[cell.M], T[cell.W_TOPS], T[cell.W_SIDES]
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        load(P, start, stop, raw, T[cell.W_P])
        load(A, start, stop, raw, T[cell.W_A])
        load(v, start, stop, raw, sides + 10 * m)
        load(g, start, stop, raw, tops + 4 * n)
        load(h, start, stop, raw, sides + 11 * m)
        good = _reverse(T, W, J)
        space(T, W, cell.W_NUMBERS)[0] = where(good, 1.0, 0.0)
        store(raw, tops + X * n, start, stop, u)
        store(raw, sides + Y * m, start, stop, w)
        for k in range(start, stop):
            healthy[k] = not ok[k] or raw[T[cell.W_NUMBERS], k - start] == 1.0
            if not (ok[k] and healthy[k]):
                fill(u[k], 0.0)
                fill(w[k], 0.0)


@lean
def _reverse(T: Any, W: Any, J: Any) -> Any:
    P, A, v, right, h = space(T, W, cell.W_P), space(T, W, cell.W_A), side(T, W, 10), top(T, W, 4), side(T, W, 11)
    multiply_out(T, A, W)
    good = decompose(T, v, side(T, W, 6), side(T, W, 7), W, J)
    good = good & prepare(T, P, A, W, J)
    add_At(T, A, 1.0, h, right)
    solve_reduced(T, P, A, W, J, right, h, top(T, W, X), side(T, W, Y), good)
    add(side(T, W, Y), -1.0, h)
    return good


@jit
def polish(first: int, last: int, T: Any, P: Any, q: Any, A: Any, b: Any, x: Any, y: Any, s: Any, errors: Any) -> None:
    """Newton's method from (x, y - s), in place, where that lowers the error: relative residuals, ``errors`` (B,), which
    are infinite for elements without a point."""
    raw, J = workspace(T)
    W = in_lanes(raw)
    n, m, tops, sides = T[cell.N], T[cell.M], T[cell.W_TOPS], T[cell.W_SIDES]
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        load_program(T, P, q, A, b, start, stop, raw)
        load(x, start, stop, raw, tops + X * n)
        load(y, start, stop, raw, sides + Y * m)
        load(s, start, stop, raw, sides + S * m)
        for lane in range(LANES):
            raw[T[cell.W_NUMBERS], lane] = errors[min(start + lane, stop - 1)]
        _polish(T, W, J)
        store(raw, tops + X * n, start, stop, x)
        store(raw, sides + Y * m, start, stop, y)
        store(raw, sides + S * m, start, stop, s)
        for k in range(start, stop):
            errors[k] = raw[T[cell.W_NUMBERS], k - start]


@lean
def _polish(T: Any, W: Any, J: Any) -> None:
    """A lane that is done stays where it is."""
    n, m, given = T[cell.N], T[cell.M], space(T, W, cell.W_NUMBERS)[0]
    P, A, x, y, s = space(T, W, cell.W_P), space(T, W, cell.W_A), top(T, W, X), side(T, W, Y), side(T, W, S)
    r, a, point, trial_point, above = top(T, W, 4), top(T, W, 5), top(T, W, 6), top(T, W, 7), top(T, W, 8)
    t, c, v, trial_v, below = side(T, W, 8), side(T, W, 9), side(T, W, 10), side(T, W, 11), side(T, W, 12)
    y_new, s_new, y_kept = side(T, W, 6), side(T, W, 7), side(T, W, 14)
    copy(x, point)
    for i in range(m):
        v[i] = y[i] - s[i]
    alive = decompose(T, v, y_new, s_new, W, J) & (given < np.inf)
    copy(y_new, y_kept)
    multiply_out(T, A, W)
    error, refined = _residual(T, W, point, y_new, s_new, above, below), alive & (given < 0.0)
    for _ in range(NEWTON_STEPS):
        alive = alive & (error > GOAL)
        if not anywhere(alive):
            break
        alive = alive & prepare(T, P, A, W, J)
        if not anywhere(alive):
            break
        for j in range(n):
            r[j] = -above[j]
        for i in range(m):
            t[i] = -below[i]
        solve_reduced(T, P, A, W, J, r, t, a, c, refined & alive)
        add_A(T, A, 1.0, a, c)
        for i in range(m):
            c[i] -= t[i]
        length, trial, searching, good = where(alive, 1.0, 0.0), error, alive, alive
        for _ in range(HALVINGS):
            for j in range(n):
                trial_point[j] = where(alive, point[j] + length * a[j], point[j])
            for i in range(m):
                trial_v[i] = where(alive, v[i] + length * c[i], v[i])
            good = decompose(T, trial_v, y_new, s_new, W, J)
            trial = _residual(T, W, trial_point, y_new, s_new, above, below)
            # below 1e-11 rounding is in the way, not a wrong active set
            searching = searching & ~(trial < error) & (error >= 1e-11)
            if not anywhere(searching):
                break
            length = where(searching, 0.5 * length, length)
        alive = alive & (trial < error)
        _copy_where(alive, trial_point, point)
        _copy_where(alive, trial_v, v)
        _copy_where(alive, y_new, y_kept)
        stalled = (trial > 0.1 * error) & (error < 1e-12)
        refined = trial > 0.01 * error  # a step that is not exact is as good while there are more to come
        error = where(alive, trial, error)
        alive = alive & good & ~stalled
    better = (error < given) & (given < np.inf)
    _copy_where(better, point, x)
    _copy_where(better, y_kept, y)
    for i in range(m):
        s[i] = where(better, y[i] - v[i], s[i])
    space(T, W, cell.W_NUMBERS)[0] = where(better, error, given)


@lean
def _copy_where(condition: Any, source: Any, out: Any) -> None:
    """``out <- source`` where the condition holds."""
    for k in range(source.shape[0]):
        out[k] = where(condition, source[k], out[k])


@lean
def _residual(T: Any, W: Any, x: Any, y: Any, s: Any, above: Any, below: Any) -> Any:
    """``above = Px + q + A'y`` and ``below = Ax + s - b``; the larger of the two, relative to their terms."""
    P, q, A, b = space(T, W, cell.W_P), space(T, W, cell.W_Q), space(T, W, cell.W_A), space(T, W, cell.W_B)
    Px, Ax = top(T, W, 9), side(T, W, 13)
    fill(Px, 0.0)
    fill(Ax, 0.0)
    fill(above, 0.0)
    add_P(T, P, 1.0, x, Px)
    add_At(T, A, 1.0, y, above)
    add_A(T, A, 1.0, x, Ax)
    dual = 1.0 + max(largest(q), max(largest(Px), largest(above)))
    primal = 1.0 + max(largest(b), max(largest(Ax), largest(s)))
    for j in range(T[cell.N]):
        above[j] += Px[j] + q[j]
    for i in range(T[cell.M]):
        below[i] = Ax[i] + s[i] - b[i]
    error = max(largest(above) / dual, largest(below) / primal)
    return where(error == error, error, np.inf)

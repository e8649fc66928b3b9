"""Derivatives at solutions of small programs with any cones, and Newton's method that makes them exact up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels.conic_kkt import multiply_out, prepare, solve_reduced
from ddn_cvx.kernels.dense import add, copy, fill, largest
from ddn_cvx.kernels.jit import jit, lean
from ddn_cvx.kernels.spectrum import decompose
from ddn_cvx.kernels.table import M, N, add_A, add_At, add_P, side, top, workspace

GOAL = 3e-14
"""Relative residual at which Newton's method has nothing left to gain."""
NEWTON_STEPS = 12
HALVINGS = 8


@jit
def reverse_once(
    first: int, last: int, T: Any, P: Any, A: Any, v: Any, ok: Any, g: Any, h: Any, u: Any, w: Any, healthy: Any
) -> None:
    """``J' (u, w) = (g, h)`` for one right-hand side, g (B, n), h (B, m), without keeping the factors.

    Says in ``healthy`` (B,) which elements it has solved; those that are not ``ok`` get zeros.
    """
    W, J = workspace(T)
    right, y, s = top(T, W, 4), side(T, W, 6), side(T, W, 7)
    for k in range(first, last):
        fill(u[k], 0.0)
        fill(w[k], 0.0)
        healthy[k] = True
        if not ok[k]:
            continue
        multiply_out(T, A[k], W)
        healthy[k] = decompose(T, v[k], y, s, W, J) and prepare(T, P[k], A[k], W, J)
        if healthy[k]:
            copy(g[k], right)
            add_At(T, A[k], 1.0, h[k], right)
            solve_reduced(T, P[k], A[k], W, J, right, h[k], u[k], w[k], True)
            add(w[k], -1.0, h[k])


@jit
def polish(first: int, last: int, T: Any, P: Any, q: Any, A: Any, b: Any, x: Any, y: Any, s: Any, errors: Any) -> None:
    """Newton's method from (x, y - s), in place, where that lowers the error: relative residuals, ``errors`` (B,), which
    are infinite for elements without a point."""
    W, J = workspace(T)
    for k in range(first, last):
        if errors[k] < np.inf:
            errors[k] = _polish(T, P[k], q[k], A[k], b[k], x[k], y[k], s[k], W, J, errors[k])


@lean
def _polish(T: Any, P: Any, q: Any, A: Any, b: Any, x: Any, y: Any, s: Any, W: Any, J: Any, given: float) -> float:
    n, m = T[N], T[M]
    r, a, point, trial_point, above = top(T, W, 4), top(T, W, 5), top(T, W, 6), top(T, W, 7), top(T, W, 8)
    t, c, v, trial_v, below = side(T, W, 8), side(T, W, 9), side(T, W, 10), side(T, W, 11), side(T, W, 12)
    y_new, s_new, y_kept = side(T, W, 6), side(T, W, 7), side(T, W, 14)
    copy(x, point)
    for i in range(m):
        v[i] = y[i] - s[i]
    good, refined = decompose(T, v, y_new, s_new, W, J), False
    copy(y_new, y_kept)
    multiply_out(T, A, W)
    error = residual(T, P, q, A, b, point, y_new, s_new, above, below, W)
    for _ in range(NEWTON_STEPS):
        if error <= GOAL or not good or not prepare(T, P, A, W, J):
            break
        for j in range(n):
            r[j] = -above[j]
        for i in range(m):
            t[i] = -below[i]
        solve_reduced(T, P, A, W, J, r, t, a, c, refined)
        add_A(T, A, 1.0, a, c)
        length, trial, better = 1.0, np.inf, False
        for i in range(m):
            c[i] -= t[i]
        for _ in range(HALVINGS):
            for j in range(n):
                trial_point[j] = point[j] + length * a[j]
            for i in range(m):
                trial_v[i] = v[i] + length * c[i]
            good = decompose(T, trial_v, y_new, s_new, W, J)
            trial = residual(T, P, q, A, b, trial_point, y_new, s_new, above, below, W)
            better = trial < error
            if better or error < 1e-11:  # rounding is in the way, not a wrong active set
                break
            length *= 0.5
        if not better:
            break
        copy(trial_point, point)
        copy(trial_v, v)
        copy(y_new, y_kept)
        stalled = trial > 0.1 * error and error < 1e-12
        refined, error = trial > 0.01 * error, trial  # a step that is not exact is as good while there are more to come
        if stalled:
            break
    if not error < given:
        return given
    copy(point, x)
    copy(y_kept, y)
    for i in range(m):
        s[i] = y[i] - v[i]
    return error


@lean
def residual(T: Any, P: Any, q: Any, A: Any, b: Any, x: Any, y: Any, s: Any, above: Any, below: Any, W: Any) -> float:
    """``above = Px + q + A'y`` and ``below = Ax + s - b``; the larger of the two, relative to their terms."""
    Px, Ax = top(T, W, 9), side(T, W, 13)
    fill(Px, 0.0)
    fill(Ax, 0.0)
    fill(above, 0.0)
    add_P(T, P, 1.0, x, Px)
    add_At(T, A, 1.0, y, above)
    add_A(T, A, 1.0, x, Ax)
    dual = 1.0 + max(largest(q), max(largest(Px), largest(above)))
    primal = 1.0 + max(largest(b), max(largest(Ax), largest(s)))
    for j in range(T[N]):
        above[j] += Px[j] + q[j]
    for i in range(T[M]):
        below[i] = Ax[i] + s[i] - b[i]
    error = max(largest(above) / dual, largest(below) / primal)
    return error if error == error else np.inf

"""The Newton step of the interior-point method for nonlinear programs, for one lane.

With ``W = V / T`` and A the Jacobian of the slack rows ``a(y) + t = 0`` (g, and ``-sigma (y - bound)`` for bounds), the step solves

    [ H + A'WA + delta I    Jh'     ] (dy, dlam) = - (grad f + Jh'lam + A'(mu/t + W (a + t)), h)
    [ Jh                   -delta_c ]

and then ``dt = -(a + t) - A dy``, ``dv = mu/t - v - W dt``. delta is raised until the matrix has the inertia of a minimum: n
positive eigenvalues and p negative ones. delta_c is always there and tiny, so that dependent rows do no harm; the refinement
uses the residual of the system without it and before condensation.

The step is affine in the barrier parameter, which is chosen once both parts of it are known (``free_barrier``): Nocedal,
Wächter & Waltz, SIAM Journal on Optimization 19, 2009.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels.indefinite import factor, solve
from ddn_cvx.kernels.jit import lean
from ddn_cvx.kernels.nonlinear_lane import (
    DLAM,
    DLAM_AFFINE,
    DLAM_CENTRAL,
    DT,
    DT_AFFINE,
    DT_CENTRAL,
    DV,
    DV_AFFINE,
    DV_CENTRAL,
    DY,
    DY_AFFINE,
    DY_CENTRAL,
    FORCED,
    FREE,
    GRADIENT,
    LAM,
    ROWS,
    SHIFT,
    SIGMA,
    SLOPE,
    T,
    V,
    pull,
    push,
)

FIRST_SHIFT, LEAST_SHIFT, LARGEST_SHIFT = 1e-4, 1e-12, 1e12
DUAL_SHIFT = 1e-10
"""delta_c, next to the squares of the entries of a row of Jh."""

_SIGMAS = np.array([1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 10.0])


@lean
def assemble(tape: Any, layout: Any, lane: Any, shift: float) -> None:
    """The upper triangle of the condensed matrix."""
    n, p, m = layout.n, layout.p, layout.m
    x, c, K = lane.x, lane.c, lane.K
    free = x[FREE]
    for j in range(n + p):
        for k in range(j, n + p):
            K[j, k] = 0.0
    for k in range(len(lane.hessian)):
        row, col = tape.hess_row[k], tape.hess_col[k]
        K[col, row] += lane.hessian[k] * free[row] * free[col]
    start, column, J = layout.jg_start, layout.jg_col, lane.jg
    for row in range(m):
        weight = c[V, row] / c[T, row]
        for a in range(start[row], start[row + 1]):
            i = column[a]
            value = weight * J[a] * free[i]
            for b in range(a, start[row + 1]):
                K[i, column[b]] += value * J[b] * free[column[b]]
    for k in range(m, lane.count[ROWS]):
        j = lane.column[k]
        K[j, j] += c[V, k] / c[T, k]
    for j in range(n):
        K[j, j] += shift + 1.0 - free[j]
    add_rows(layout.jh_start, layout.jh_col, lane.jh, free, n, K)


@lean
def add_rows(start: Any, column: Any, J: Any, free: Any, n: int, K: Any) -> None:
    """The columns from n on: J', and -delta_c on the diagonal."""
    for row in range(len(start) - 1):
        size = 0.0
        for k in range(start[row], start[row + 1]):
            j = column[k]
            K[j, n + row] = J[k] * free[j]
            size = max(size, J[k] * J[k] * free[j])
        K[n + row, n + row] = -DUAL_SHIFT * min(size, 1.0) - 1e-16


@lean
def factorise(tape: Any, layout: Any, lane: Any) -> bool:
    """A factor with the inertia of a minimum, with as little ``SHIFT`` as is found to do; False if there is none."""
    n, size, number = layout.n, layout.n + layout.p, lane.number
    last, shift = number[SHIFT], number[FORCED]
    while shift < LARGEST_SHIFT:
        assemble(tape, layout, lane, shift)
        positive, negative = factor(lane.K, size, lane.pivots)
        if positive == n and positive + negative == size:
            number[SHIFT] = shift
            return True
        if shift == 0.0:
            shift = FIRST_SHIFT if last == 0.0 else max(LEAST_SHIFT, last / 3.0)
        else:
            shift *= 100.0 if last == 0.0 else 8.0
    return False


@lean
def direction(
    layout: Any, lane: Any, base: float, mu: float, h: Any, g: Any, right: Any, dy: Any, dlam: Any, dt: Any, dv: Any
) -> None:
    """``base`` times the step for the barrier parameter zero plus mu times what it adds to that; h (p,) and g (m,) are the
    residuals of the constraints."""
    n, p, m, rows = layout.n, layout.p, layout.m, lane.count[ROWS]
    x, c = lane.x, lane.c
    for j in range(n):
        right[j] = -base * x[GRADIENT, j]
    pull(layout.jh_start, layout.jh_col, lane.jh, lane.e[LAM], -base, right)
    for k in range(m):
        dv[k] = (mu + base * c[V, k] * g[k]) / c[T, k]
    pull(layout.jg_start, layout.jg_col, lane.jg, dv, -1.0, right)
    for k in range(m, rows):
        right[lane.column[k]] += c[SIGMA, k] * mu / c[T, k]
    for j in range(n):
        right[j] *= x[FREE, j]
    for k in range(p):
        right[n + k] = -base * h[k]
    solve(lane.K, n + p, lane.pivots, right)
    for j in range(n):
        dy[j] = right[j]
    for k in range(p):
        dlam[k] = right[n + k]
    for k in range(m):
        dt[k] = -base * g[k] - push(layout.jg_start, layout.jg_col, lane.jg, k, dy)
    for k in range(m, rows):
        dt[k] = c[SIGMA, k] * dy[lane.column[k]]
    for k in range(rows):
        dv[k] = (mu - c[V, k] * dt[k]) / c[T, k] - base * c[V, k]


@lean
def combine(layout: Any, lane: Any, mu: float) -> None:
    """The step for a barrier parameter from its two parts."""
    x, e, c = lane.x, lane.e, lane.c
    for j in range(layout.n):
        x[DY, j] = x[DY_AFFINE, j] + mu * x[DY_CENTRAL, j]
    for k in range(layout.p):
        e[DLAM, k] = e[DLAM_AFFINE, k] + mu * e[DLAM_CENTRAL, k]
    for k in range(lane.count[ROWS]):
        c[DT, k] = c[DT_AFFINE, k] + mu * c[DT_CENTRAL, k]
        c[DV, k] = c[DV_AFFINE, k] + mu * c[DV_CENTRAL, k]


@lean
def refine(tape: Any, layout: Any, lane: Any, h: Any, right: Any, dy: Any, dlam: Any, dt: Any, dv: Any) -> None:
    """One refinement of a step; ``SLOPE`` holds the gradient of the Lagrangian."""
    n, p, m, rows = layout.n, layout.p, layout.m, lane.count[ROWS]
    x, c, shift = lane.x, lane.c, lane.number[SHIFT]
    for j in range(n):
        right[j] = -x[SLOPE, j] - shift * dy[j]
    times_hessian(tape, lane, dy, -1.0, right)
    pull(layout.jh_start, layout.jh_col, lane.jh, dlam, -1.0, right)
    pull(layout.jg_start, layout.jg_col, lane.jg, dv, -1.0, right)
    for k in range(m, rows):
        right[lane.column[k]] += c[SIGMA, k] * dv[k]
    for j in range(n):
        right[j] *= x[FREE, j]
    for k in range(p):
        right[n + k] = -h[k] - push(layout.jh_start, layout.jh_col, lane.jh, k, dy)
    solve(lane.K, n + p, lane.pivots, right)
    for j in range(n):
        dy[j] += right[j]
    for k in range(p):
        dlam[k] += right[n + k]
    for k in range(rows):
        if k < m:
            fewer = push(layout.jg_start, layout.jg_col, lane.jg, k, right)
        else:
            fewer = -c[SIGMA, k] * right[lane.column[k]]
        dt[k] -= fewer
        dv[k] += c[V, k] / c[T, k] * fewer


@lean
def times_hessian(tape: Any, lane: Any, d: Any, factor: float, out: Any) -> None:
    """``out <- out + factor H d``."""
    for k in range(len(lane.hessian)):
        i, j, value = tape.hess_row[k], tape.hess_col[k], factor * lane.hessian[k]
        out[i] += value * d[j]
        if i != j:
            out[j] += value * d[i]


@lean
def longest(t: Any, dt: Any, rows: int, fraction: float) -> float:
    """The longest step, at most 1, that leaves ``t + step dt >= (1 - fraction) t``."""
    worst = fraction
    for k in range(rows):
        worst = max(worst, -dt[k] / t[k])
    return fraction / worst


@lean
def free_barrier(lane: Any, mean: float, dual: float, primal: float, least: float) -> float:
    """The multiple of the mean product for which Newton's model of the optimality conditions promises the smallest error.

    ``dual`` and ``primal`` are the mean squares of those residuals, which a step of length a multiplies by (1 - a)^2.
    """
    c, rows = lane.c, lane.count[ROWS]
    best, chosen = np.inf, mean
    for sigma in _SIGMAS:
        mu = max(sigma * mean, least)
        fraction = max(0.99, 1.0 - mu)
        worst_t, worst_v = fraction, fraction
        for k in range(rows):
            worst_t = max(worst_t, -(c[DT_AFFINE, k] + mu * c[DT_CENTRAL, k]) / c[T, k])
            worst_v = max(worst_v, -(c[DV_AFFINE, k] + mu * c[DV_CENTRAL, k]) / c[V, k])
        a, b = fraction / worst_t, fraction / worst_v
        total = 0.0
        for k in range(rows):
            t = c[T, k] + a * (c[DT_AFFINE, k] + mu * c[DT_CENTRAL, k])
            v = c[V, k] + b * (c[DV_AFFINE, k] + mu * c[DV_CENTRAL, k])
            total += t * v * t * v
        quality = (1.0 - b) ** 2 * dual + (1.0 - a) ** 2 * primal + total / rows
        if quality < best:
            best, chosen = quality, mu
    return chosen

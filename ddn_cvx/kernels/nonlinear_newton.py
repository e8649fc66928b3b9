"""The Newton step of the interior-point method for nonlinear programs, for one lane.

With ``W = V / T`` and A the Jacobian of the rows ``a(y) + t = 0`` (g, and ``-sigma (y - bound)`` for bounds), it solves

    [ H + A'WA + delta I    Jh'     ] (dy, dlam) = - (grad f + Jh'lam + A'(mu/t + W (a + t)), h)
    [ Jh                   -delta_c ]

and then ``dt = -(a + t) - A dy``, ``dv = mu/t - v - W dt``. delta is raised until the matrix has the inertia of a minimum: n
positive eigenvalues and p negative ones. delta_c is always there and tiny, so that dependent rows do no harm; the refinement
uses the residual of the system without it and before condensation.

The step is affine in the barrier parameter, which may be chosen once both parts of it are known.
"""

from __future__ import annotations

from typing import Any

from ddn_cvx.kernels import nonlinear_rows as at
from ddn_cvx.kernels.indefinite import factor, solve
from ddn_cvx.kernels.jit import lean
from ddn_cvx.kernels.nonlinear_lane import pull, push

FIRST_SHIFT, LEAST_SHIFT, LARGEST_SHIFT = 1e-2, 1e-12, 1e12
DUAL_SHIFT = 1e-10
"""delta_c, next to the squares of the entries of a row of Jh."""


@lean
def assemble(tape: Any, layout: Any, lane: Any, shift: float) -> None:
    """The upper triangle of the condensed matrix."""
    n, p, m = layout.n, layout.p, layout.m
    x, c, K = lane.x, lane.c, lane.K
    free = x[at.FREE]
    for j in range(n + p):
        for k in range(j, n + p):
            K[j, k] = 0.0
    for k in range(len(lane.hessian)):
        row, col = tape.hess_row[k], tape.hess_col[k]
        K[col, row] += lane.hessian[k] * free[row] * free[col]
    start, column, J = layout.jg_start, layout.jg_col, lane.jg
    for row in range(m):
        weight = c[at.V, row] / c[at.T, row]
        for a in range(start[row], start[row + 1]):
            i = column[a]
            value = weight * J[a] * free[i]
            for b in range(a, start[row + 1]):
                K[i, column[b]] += value * J[b] * free[column[b]]
    for k in range(m, lane.count[at.ROWS]):
        j = lane.column[k]
        K[j, j] += c[at.V, k] / c[at.T, k]
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
    last, shift = number[at.SHIFT], number[at.FORCED]
    while shift < LARGEST_SHIFT:
        assemble(tape, layout, lane, shift)
        positive, negative = factor(lane.K, size, lane.pivots)
        if positive == n and positive + negative == size:
            number[at.SHIFT] = shift
            return True
        if shift == 0.0:
            shift = FIRST_SHIFT if last == 0.0 else max(LEAST_SHIFT, last / 3.0)
        else:
            shift *= 10.0 if last == 0.0 else 4.0
    return False


@lean
def direction(layout: Any, lane: Any, part: int, base: float, mu: float, h: Any, g: Any, right: Any) -> None:
    """Into the rows of ``part``: ``base`` times the step for the barrier parameter zero, plus what mu adds to it.

    h (p,) and g (m,) are the residuals of the constraints.
    """
    n, p, m, rows = layout.n, layout.p, layout.m, lane.count[at.ROWS]
    x, c = lane.x, lane.c
    dy, dlam, dt, dv = x[at.DY + part], lane.e[at.DLAM + part], c[at.DT + part], c[at.DV + part]
    for j in range(n):
        right[j] = -base * x[at.GRADIENT, j]
    pull(layout.jh_start, layout.jh_col, lane.jh, lane.e[at.LAM], -base, right)
    for k in range(m):
        dv[k] = (mu + base * c[at.V, k] * g[k]) / c[at.T, k]
    pull(layout.jg_start, layout.jg_col, lane.jg, dv, -1.0, right)
    for k in range(m, rows):
        right[lane.column[k]] += c[at.SIGMA, k] * mu / c[at.T, k]
    for j in range(n):
        right[j] *= x[at.FREE, j]
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
        dt[k] = c[at.SIGMA, k] * dy[lane.column[k]]
    for k in range(rows):
        dv[k] = (mu - c[at.V, k] * dt[k]) / c[at.T, k] - base * c[at.V, k]


@lean
def combine(layout: Any, lane: Any, mu: float) -> None:
    """The step for a barrier parameter from its two parts."""
    x, e, c = lane.x, lane.e, lane.c
    for j in range(layout.n):
        x[at.DY, j] = x[at.DY_AFFINE, j] + mu * x[at.DY_CENTRAL, j]
    for k in range(layout.p):
        e[at.DLAM, k] = e[at.DLAM_AFFINE, k] + mu * e[at.DLAM_CENTRAL, k]
    for k in range(lane.count[at.ROWS]):
        c[at.DT, k] = c[at.DT_AFFINE, k] + mu * c[at.DT_CENTRAL, k]
        c[at.DV, k] = c[at.DV_AFFINE, k] + mu * c[at.DV_CENTRAL, k]


@lean
def refine(tape: Any, layout: Any, lane: Any, part: int, h: Any, right: Any) -> None:
    """One refinement of a step; ``SLOPE`` holds the gradient of the Lagrangian."""
    n, p, m, rows = layout.n, layout.p, layout.m, lane.count[at.ROWS]
    x, c, shift = lane.x, lane.c, lane.number[at.SHIFT]
    dy, dlam, dt, dv = x[at.DY + part], lane.e[at.DLAM + part], c[at.DT + part], c[at.DV + part]
    for j in range(n):
        right[j] = -x[at.SLOPE, j] - shift * dy[j]
    times_hessian(tape, lane, dy, -1.0, right)
    pull(layout.jh_start, layout.jh_col, lane.jh, dlam, -1.0, right)
    pull(layout.jg_start, layout.jg_col, lane.jg, dv, -1.0, right)
    for k in range(m, rows):
        right[lane.column[k]] += c[at.SIGMA, k] * dv[k]
    for j in range(n):
        right[j] *= x[at.FREE, j]
    for k in range(p):
        right[n + k] = -h[k] - push(layout.jh_start, layout.jh_col, lane.jh, k, dy)
    solve(lane.K, n + p, lane.pivots, right)
    for j in range(n):
        dy[j] += right[j]
    for k in range(p):
        dlam[k] += right[n + k]
    for k in range(rows):
        bound = k >= m
        fewer = -c[at.SIGMA, k] * right[lane.column[k]] if bound else push(layout.jg_start, layout.jg_col, lane.jg, k, right)
        dt[k] -= fewer
        dv[k] += c[at.V, k] / c[at.T, k] * fewer


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

"""Newton's method on the active constraints, for one lane: from an interior point's accuracy to that of rounding.

Rows whose multiplier exceeds their slack are taken as equalities, an active bound fixes its variable; what is left is an
equality-constrained program. A step is worth trying only if its matrix has the inertia of a minimum.
"""

from __future__ import annotations

from typing import Any

from ddn_cvx.kernels import nonlinear_rows as at
from ddn_cvx.kernels.indefinite import factor, solve
from ddn_cvx.kernels.jit import lean
from ddn_cvx.kernels.nonlinear_lane import LARGE_GRADIENT, lagrangian_slope, pull
from ddn_cvx.kernels.nonlinear_newton import DUAL_SHIFT, add_rows, times_hessian


@lean
def guess(lane: Any) -> None:
    """Drop the multipliers of the rows that look inactive."""
    for k in range(lane.count[at.ROWS]):
        if lane.c[at.V, k] <= lane.c[at.T, k]:
            lane.c[at.V, k] = 0.0


@lean
def step(tape: Any, layout: Any, lane: Any, right: Any) -> bool:
    """Put the trial point where the step on the active rows (V > 0) leads; False if it leads nowhere."""
    n, p, m = layout.n, layout.p, layout.m
    x, e, c, K = lane.x, lane.e, lane.c, lane.K
    loose, dy = x[at.DY_AFFINE], x[at.DY]
    for j in range(n):
        loose[j], dy[j], right[j] = x[at.FREE, j], 0.0, 0.0
    for k in range(m, lane.count[at.ROWS]):
        if c[at.V, k] > 0.0:
            j = lane.column[k]
            if loose[j] == 0.0:
                return False
            loose[j], dy[j] = 0.0, c[at.BOUND, k] - x[at.Y, j]
    size = n + p
    for k in range(m):
        size += c[at.V, k] > 0.0
    for i in range(size):
        for j in range(i, size):
            K[i, j] = 0.0
    for k in range(len(lane.hessian)):
        i, j = tape.hess_row[k], tape.hess_col[k]
        K[j, i] += lane.hessian[k] * loose[i] * loose[j]
    for j in range(n):
        K[j, j] += 1.0 - loose[j]
    add_rows(layout.jh_start, layout.jh_col, lane.jh, loose, n, K)
    times_hessian(tape, lane, dy, -1.0, right)
    for j in range(n):
        right[j] -= x[at.GRADIENT, j]
    pull(layout.jh_start, layout.jh_col, lane.jh, e[at.LAM], -1.0, right)
    pull(layout.jg_start, layout.jg_col, lane.jg, c[at.V], -1.0, right)
    for j in range(n):
        right[j] *= loose[j]
    for k in range(p):
        right[n + k] = -e[at.H, k]
        for i in range(layout.jh_start[k], layout.jh_start[k + 1]):
            right[n + k] -= lane.jh[i] * dy[layout.jh_col[i]]
    row = n + p
    for k in range(m):
        if c[at.V, k] > 0.0:
            right[row], largest = -c[at.G, k], 0.0
            for i in range(layout.jg_start[k], layout.jg_start[k + 1]):
                j, value = layout.jg_col[i], lane.jg[i]
                K[j, row] = value * loose[j]
                right[row] -= value * dy[j]
                largest = max(largest, value * value * loose[j])
            K[row, row] = -DUAL_SHIFT * min(largest, 1.0) - 1e-16
            row += 1
    positive, negative = factor(K, size, lane.pivots)
    if positive != n or positive + negative != size:
        return False
    solve(K, size, lane.pivots, right)
    for j in range(n):
        x[at.TRIAL_Y, j] = x[at.Y, j] + (right[j] if loose[j] > 0.0 else dy[j])
    for k in range(p):
        e[at.TRIAL_LAM, k] = e[at.LAM, k] + right[n + k]
    row = n + p
    for k in range(m):
        c[at.TRIAL_V, k] = 0.0
        if c[at.V, k] > 0.0:
            c[at.TRIAL_V, k] = max(0.0, c[at.V, k] + right[row])
            row += 1
    for k in range(m, lane.count[at.ROWS]):
        c[at.TRIAL_V, k] = c[at.V, k]
    return True


@lean
def settle(layout: Any, lane: Any) -> None:
    """Multipliers of active bounds from the gradient of the Lagrangian."""
    c = lane.c
    lagrangian_slope(layout, lane)
    for k in range(layout.m, lane.count[at.ROWS]):
        if c[at.V, k] > 0.0:
            j = lane.column[k]
            v = max(0.0, c[at.V, k] + c[at.SIGMA, k] * lane.x[at.SLOPE, j])
            lane.x[at.SLOPE, j] += c[at.SIGMA, k] * (c[at.V, k] - v)
            c[at.V, k] = v


@lean
def error(layout: Any, lane: Any) -> float:
    """The largest violation of the optimality conditions of the functions as given, relative to the sizes of what should
    cancel; ``SLOPE`` holds the gradient of the Lagrangian. Complementarity is ``min(multiplier, distance)``."""
    x, e, c, number = lane.x, lane.e, lane.c, lane.number
    inverse = 1.0 / number[at.SCALE_F]
    size = x[at.DY_CENTRAL]
    for j in range(layout.n):
        size[j] = abs(x[at.GRADIENT, j])
    worst = _rows_error(layout.jh_start, layout.jh_col, lane.jh, e[at.SCALE_H], e[at.LAM], e[at.H], size, inverse, False)
    other = _rows_error(layout.jg_start, layout.jg_col, lane.jg, c[at.SCALE_G], c[at.V], c[at.G], size, inverse, True)
    worst = max(worst, other)
    for k in range(layout.m, lane.count[at.ROWS]):
        distance = c[at.SIGMA, k] * (x[at.Y, lane.column[k]] - c[at.BOUND, k])
        worst = max(worst, abs(min(c[at.V, k] * inverse, distance)))
    largest, slope = 0.0, 0.0
    for j in range(layout.n):
        largest = max(largest, size[j])
        slope = max(slope, abs(x[at.SLOPE, j]))
    return max(worst, slope * inverse / (1.0 + largest * inverse))


@lean
def _rows_error(
    start: Any, column: Any, J: Any, scale: Any, w: Any, values: Any, size: Any, inverse: float, inequality: bool
) -> float:
    """The largest error of some constraints, next to their gradients if these are large; adds ``|w J|`` to ``size``."""
    worst = 0.0
    for row in range(len(start) - 1):
        largest = 0.0
        for k in range(start[row], start[row + 1]):
            largest = max(largest, abs(J[k]))
            size[column[k]] += abs(w[row] * J[k])
        unit = 1.0 / scale[row]
        wrong = values[row] * unit / max(1.0, largest * unit / LARGE_GRADIENT)
        if inequality:
            wrong = min(w[row] * scale[row] * inverse, -wrong)
        worst = max(worst, abs(wrong))
    return worst

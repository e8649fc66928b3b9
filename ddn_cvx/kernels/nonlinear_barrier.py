"""How far an iterate is from optimality, and the barrier parameter that follows from it, for one lane.

The parameter is free as long as the optimality conditions come nearer: that multiple of the mean product of slacks and
multipliers is taken for which Newton's model promises most (Nocedal, Wächter & Waltz, SIAM J. Optimization 19, 2009).
Where they do not come nearer it falls monotonically, as each barrier problem is solved.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels import nonlinear_rows as at
from ddn_cvx.kernels.jit import lean
from ddn_cvx.kernels.nonlinear_lane import MEMORY, lagrangian_slope

_SIGMAS = np.array([1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 10.0])


@lean
def residuals(layout: Any, lane: Any) -> tuple[float, float]:
    """The largest entries of the dual residual, which is left in ``SLOPE``, relative, and of the primal one."""
    e, c = lane.e, lane.c
    lagrangian_slope(layout, lane)
    dual, primal, sizes = 0.0, 0.0, 0.0
    for j in range(layout.n):
        dual = max(dual, abs(lane.x[at.SLOPE, j]))
    for k in range(layout.p):
        primal = max(primal, abs(e[at.H, k]))
        sizes += abs(e[at.LAM, k])
    for k in range(layout.m):
        primal = max(primal, abs(c[at.G, k] + c[at.T, k]))
    for k in range(lane.count[at.ROWS]):
        sizes += c[at.V, k]
    return dual / max(1.0, sizes / (100.0 * max(1, layout.p + lane.count[at.ROWS]))), primal


@lean
def barrier_error(lane: Any, dual: float, primal: float, mu: float) -> float:
    """The error of the optimality conditions of the barrier problem for mu."""
    c, rows = lane.c, lane.count[at.ROWS]
    worst, sizes = 0.0, 0.0
    for k in range(rows):
        worst = max(worst, abs(c[at.T, k] * c[at.V, k] - mu))
        sizes += c[at.V, k]
    return max(max(dual, primal), worst / max(1.0, sizes / (100.0 * max(1, rows))))


@lean
def mean(lane: Any) -> float:
    total, rows = 0.0, lane.count[at.ROWS]
    for k in range(rows):
        total += lane.c[at.T, k] * lane.c[at.V, k]
    return total / rows


@lean
def squares(layout: Any, lane: Any) -> tuple[float, float]:
    """Mean squares of the dual and the primal residual."""
    dual, primal = 0.0, 0.0
    for j in range(layout.n):
        dual += lane.x[at.SLOPE, j] ** 2
    for k in range(layout.p):
        primal += lane.e[at.H, k] ** 2
    for k in range(layout.m):
        primal += (lane.c[at.G, k] + lane.c[at.T, k]) ** 2
    return dual / layout.n, primal / max(1, layout.p + layout.m)


@lean
def choose_mode(layout: Any, options: Any, lane: Any, dual: float, primal: float) -> None:
    """Whether the barrier parameter is free, and what it is if not."""
    number, count, c = lane.number, lane.count, lane.c
    dual_square, primal_square = squares(layout, lane)
    merit, rows = 0.0, count[at.ROWS]
    for k in range(rows):
        merit += (c[at.T, k] * c[at.V, k]) ** 2
    merit = merit / rows + dual_square + primal_square
    reference = np.inf if count[at.MERITS] == 0 else 0.0
    for k in range(min(count[at.MERITS], MEMORY)):
        reference = max(reference, lane.merits[k])
    if merit <= 0.9999 * reference:
        lane.merits[count[at.MERITS] % MEMORY] = merit
        count[at.MERITS] += 1
        count[at.FIXED_MODE] = 0
        return
    least = options.tolerance / 10.0
    if not count[at.FIXED_MODE]:
        count[at.FIXED_MODE] = 1
        number[at.MU] = max(0.8 * mean(lane), least)
        count[at.ENTRIES] = 0
        return
    for _ in range(2):
        mu = number[at.MU]
        if mu > least and barrier_error(lane, dual, primal, mu) <= 10.0 * mu:
            number[at.MU] = max(least, min(0.1 * mu, mu**1.8))
            count[at.ENTRIES] = 0


@lean
def free_barrier(lane: Any, mean: float, dual: float, primal: float, least: float) -> float:
    """The multiple of the mean product for which Newton's model of the optimality conditions promises the smallest error.

    ``dual`` and ``primal`` are the mean squares of those residuals, which a step of length a multiplies by (1 - a)^2.
    """
    c, rows = lane.c, lane.count[at.ROWS]
    best, chosen = np.inf, mean
    for sigma in _SIGMAS:
        mu = max(sigma * mean, least)
        fraction = max(0.99, 1.0 - mu)
        worst_t, worst_v = fraction, fraction
        for k in range(rows):
            worst_t = max(worst_t, -(c[at.DT_AFFINE, k] + mu * c[at.DT_CENTRAL, k]) / c[at.T, k])
            worst_v = max(worst_v, -(c[at.DV_AFFINE, k] + mu * c[at.DV_CENTRAL, k]) / c[at.V, k])
        a, b = fraction / worst_t, fraction / worst_v
        total = 0.0
        for k in range(rows):
            t = c[at.T, k] + a * (c[at.DT_AFFINE, k] + mu * c[at.DT_CENTRAL, k])
            v = c[at.V, k] + b * (c[at.DV_AFFINE, k] + mu * c[at.DV_CENTRAL, k])
            total += t * v * t * v
        quality = (1.0 - b) ** 2 * dual + (1.0 - a) ** 2 * primal + total / rows
        if quality < best:
            best, chosen = quality, mu
    return chosen

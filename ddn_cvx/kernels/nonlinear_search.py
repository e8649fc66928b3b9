"""The filter line search of the interior-point method for nonlinear programs, for one lane (Wächter & Biegler 2006, section 2.3).

A trial point is taken when it improves the violation ``theta = |h|_1 + |g + t|_1`` or the barrier function
``phi = f - mu sum(log t)`` over the iterate and over all pairs in the filter.
"""

from __future__ import annotations

import math
from typing import Any

from ddn_cvx.kernels.jit import lean
from ddn_cvx.kernels.nonlinear_lane import (
    CAPACITY,
    DESCENT,
    DT,
    DV,
    DY,
    ENTRIES,
    FRACTION,
    GRADIENT,
    LAM,
    LEAST_THETA,
    LENGTH,
    LONGEST,
    LONGEST_V,
    MOST_THETA,
    MU,
    PHI,
    ROWS,
    THETA,
    TRIAL_F,
    TRIAL_G,
    TRIAL_H,
    TRIAL_LAM,
    TRIAL_T,
    TRIAL_V,
    TRIAL_Y,
    F,
    G,
    H,
    T,
    V,
    Y,
)
from ddn_cvx.kernels.nonlinear_newton import longest

_THETA_MARGIN, _PHI_MARGIN, _ARMIJO = 1e-5, 1e-8, 1e-4
_ROUNDING = 2e-15
_KEPT = 1e10  # factor by which a multiplier may differ from mu / t


@lean
def measures(layout: Any, lane: Any, f: int, h: int, g: int, t: int) -> tuple[float, float]:
    """theta and phi, from the given rows of a lane."""
    e, c = lane.e, lane.c
    theta, logs = 0.0, 0.0
    for k in range(layout.p):
        theta += abs(e[h, k])
    for k in range(layout.m):
        theta += abs(c[g, k] + c[t, k])
    for k in range(lane.count[ROWS]):
        logs += math.log(c[t, k])
    return theta, lane.number[f] - lane.number[MU] * logs


@lean
def prepare(layout: Any, lane: Any) -> None:
    """Before a search along the step: how far it may go, and what a trial point is compared with."""
    x, c, number, rows = lane.x, lane.c, lane.number, lane.count[ROWS]
    mu = number[MU]
    fraction = max(0.99, 1.0 - mu)
    number[FRACTION] = fraction
    number[LONGEST] = number[LENGTH] = longest(c[T], c[DT], rows, fraction)
    number[LONGEST_V] = longest(c[V], c[DV], rows, fraction)
    number[THETA], number[PHI] = measures(layout, lane, F, H, G, T)
    slope = 0.0
    for j in range(layout.n):
        slope += x[GRADIENT, j] * x[DY, j]
    for k in range(rows):
        slope -= mu * c[DT, k] / c[T, k]
    number[DESCENT] = slope
    if number[MOST_THETA] == 0.0:
        number[LEAST_THETA], number[MOST_THETA] = 1e-4 * max(1.0, number[THETA]), 1e4 * max(1.0, number[THETA])


@lean
def go(layout: Any, lane: Any, length: float, dy: Any, dlam: Any, dt: Any, dv: Any, longest_v: float) -> None:
    """The trial point at a length along a step."""
    x, e, c, mu = lane.x, lane.e, lane.c, lane.number[MU]
    for j in range(layout.n):
        x[TRIAL_Y, j] = x[Y, j] + length * dy[j]
    for k in range(layout.p):
        e[TRIAL_LAM, k] = e[LAM, k] + length * dlam[k]
    for k in range(lane.count[ROWS]):
        t = c[T, k] + length * dt[k]
        c[TRIAL_T, k] = t
        v = c[V, k] + longest_v * dv[k]
        c[TRIAL_V, k] = min(max(v, mu / (t * _KEPT)), mu / t * _KEPT)


@lean
def passes(layout: Any, lane: Any, length: float) -> bool:
    """Whether the trial point is taken; if so, the filter is kept up."""
    number = lane.number
    theta, phi = measures(layout, lane, TRIAL_F, TRIAL_H, TRIAL_G, TRIAL_T)
    old_theta, old_phi, slope = number[THETA], number[PHI], number[DESCENT]
    rounding = _ROUNDING * max(1.0, abs(old_phi))
    if not (theta <= number[MOST_THETA] and abs(phi) * 0.0 == 0.0):
        return False
    switch = slope < 0.0 and length * (-slope) ** 2.3 > old_theta**1.1 and old_theta <= number[LEAST_THETA]
    if switch:
        if not phi <= old_phi + _ARMIJO * length * slope + rounding:
            return False
    elif not (theta <= (1.0 - _THETA_MARGIN) * old_theta or phi <= old_phi - _PHI_MARGIN * old_theta + rounding):
        return False
    entries = lane.count[ENTRIES]
    for k in range(min(entries, CAPACITY)):
        if theta > lane.filter[0, k] and phi - rounding > lane.filter[1, k]:
            return False
    if not switch:
        slot = entries % CAPACITY
        lane.filter[0, slot] = (1.0 - _THETA_MARGIN) * old_theta
        lane.filter[1, slot] = old_phi - _PHI_MARGIN * old_theta
        lane.count[ENTRIES] = entries + 1
    return True

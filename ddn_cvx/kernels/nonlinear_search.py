"""The filter line search of the interior-point method for nonlinear programs, for one lane.

It is that of Wächter & Biegler (2006, section 2.3). A trial point is taken when it improves the violation
``theta = |h|_1 + |g + t|_1`` or the barrier function ``phi = f - mu sum(log t)`` over the iterate and over all pairs in the
filter.
"""

from __future__ import annotations

import math
from typing import Any

from ddn_cvx.kernels import nonlinear_rows as at
from ddn_cvx.kernels.jit import lean
from ddn_cvx.kernels.nonlinear_lane import CAPACITY
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
    for k in range(lane.count[at.ROWS]):
        logs += math.log(c[t, k])
    return theta, lane.number[f] - lane.number[at.MU] * logs


@lean
def prepare(layout: Any, lane: Any) -> None:
    """Before a search along the step: how far it may go, and what a trial point is compared with."""
    x, c, number, rows = lane.x, lane.c, lane.number, lane.count[at.ROWS]
    mu = number[at.MU]
    fraction = max(0.99, 1.0 - mu)
    number[at.FRACTION] = fraction
    number[at.LONGEST] = number[at.LENGTH] = longest(c[at.T], c[at.DT], rows, fraction)
    number[at.LONGEST_V] = longest(c[at.V], c[at.DV], rows, fraction)
    number[at.THETA], number[at.PHI] = measures(layout, lane, at.F, at.H, at.G, at.T)
    slope = 0.0
    for j in range(layout.n):
        slope += x[at.GRADIENT, j] * x[at.DY, j]
    for k in range(rows):
        slope -= mu * c[at.DT, k] / c[at.T, k]
    number[at.DESCENT] = slope
    if number[at.MOST_THETA] == 0.0:
        number[at.LEAST_THETA], number[at.MOST_THETA] = 1e-4 * max(1.0, number[at.THETA]), 1e4 * max(1.0, number[at.THETA])


@lean
def go(layout: Any, lane: Any, part: int, length: float, longest_v: float) -> None:
    """The trial point at a length along a step, another one for v."""
    x, e, c, mu = lane.x, lane.e, lane.c, lane.number[at.MU]
    dy, dlam, dt, dv = x[at.DY + part], e[at.DLAM + part], c[at.DT + part], c[at.DV + part]
    for j in range(layout.n):
        x[at.TRIAL_Y, j] = x[at.Y, j] + length * dy[j]
    for k in range(layout.p):
        e[at.TRIAL_LAM, k] = e[at.LAM, k] + length * dlam[k]
    for k in range(lane.count[at.ROWS]):
        t = c[at.T, k] + length * dt[k]
        c[at.TRIAL_T, k] = t
        v = c[at.V, k] + longest_v * dv[k]
        c[at.TRIAL_V, k] = min(max(v, mu / (t * _KEPT)), mu / t * _KEPT)


@lean
def passes(layout: Any, lane: Any, length: float) -> bool:
    """Whether the trial point is taken; if so, the filter is kept up."""
    number = lane.number
    theta, phi = measures(layout, lane, at.TRIAL_F, at.TRIAL_H, at.TRIAL_G, at.TRIAL_T)
    old_theta, old_phi, slope = number[at.THETA], number[at.PHI], number[at.DESCENT]
    rounding = _ROUNDING * max(1.0, abs(old_phi))
    if not (theta <= number[at.MOST_THETA] and abs(phi) * 0.0 == 0.0):
        return False
    switch = slope < 0.0 and length * (-slope) ** 2.3 > old_theta**1.1 and old_theta <= number[at.LEAST_THETA]
    if switch:
        if not phi <= old_phi + _ARMIJO * length * slope + rounding:
            return False
    elif not (theta <= (1.0 - _THETA_MARGIN) * old_theta or phi <= old_phi - _PHI_MARGIN * old_theta + rounding):
        return False
    entries = lane.count[at.ENTRIES]
    for k in range(min(entries, CAPACITY)):
        if theta > lane.filter[0, k] and phi - rounding > lane.filter[1, k]:
            return False
    if not switch:
        slot = entries % CAPACITY
        lane.filter[0, slot] = (1.0 - _THETA_MARGIN) * old_theta
        lane.filter[1, slot] = old_phi - _PHI_MARGIN * old_theta
        lane.count[at.ENTRIES] = entries + 1
    return True

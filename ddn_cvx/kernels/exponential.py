"""The projection onto the exponential cone, and the barrier of its dual: ``cones.exponential`` one cone at a time.

The barrier of the dual cone is ``-log(v - u + u log(-u / w)) - log(-u) - log w`` at ``(u, v, w)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels.jit import lean

STEPS = 40
"""Newton steps for the ratio at most; few points need more than eight."""
SETTLED = 1e-10
"""A step this small is the last one: Newton's method doubles the digits."""
NEGLIGIBLE = 1e-60
"""Positive x and y are taken at least this large, relative to the largest coordinate."""

INSIDE, FLAT, POLAR, CURVED = range(4)


@lean
def frame(x: float, y: float, z: float, out: Any) -> int:
    """The region in which (x, y, z) lies.

    If that is CURVED, ``out`` (11,) holds the unit vectors p, n, w along the projection, along what it takes away, and
    across, the length of the projection, and the share of w that the derivative keeps.
    """
    size = max(abs(x), max(abs(y), abs(z)))
    size = 1.0 if size == 0.0 else size
    x, y, z = x / size, y / size, z / size
    x = max(x, NEGLIGIBLE) if x > 0.0 else x
    y = max(y, NEGLIGIBLE) if y > 0.0 else y
    if (y > 0.0 and y * np.exp(x / y) <= z) or (y == 0.0 and x <= 0.0 and z >= 0.0):
        return INSIDE
    if x <= 0.0 and y <= 0.0:
        return FLAT
    if x > 0.0 and x * np.exp((y - x) / x) < -z:
        return POLAR
    rho = _ratio(x, y, z)
    E, X = np.exp(-max(rho, 0.0)), np.exp(min(rho, 0.0))
    a = (rho * E, E, X)
    c = (X, (1.0 - rho) * X, -E)
    a_size = (a[0] * a[0] + a[1] * a[1] + a[2] * a[2]) ** 0.5
    c_size = (c[0] * c[0] + c[1] * c[1] + c[2] * c[2]) ** 0.5
    for i in range(3):
        out[i], out[3 + i] = a[i] / a_size, c[i] / c_size
    out[6] = out[4] * out[2] - out[5] * out[1]
    out[7] = out[5] * out[0] - out[3] * out[2]
    out[8] = out[3] * out[1] - out[4] * out[0]
    r = max(out[0] * x + out[1] * y + out[2] * z, 0.0)
    d = max(out[3] * x + out[4] * y + out[5] * z, 0.0)
    k, m = c_size**3 * E, a_size**3 * X
    out[9] = r * size
    out[10] = r * k / max(r * k + d * m, 1e-300)
    return CURVED


@lean
def _ratio(x: float, y: float, z: float) -> float:
    """The root rho of ``alpha e^rho - beta e^-rho = z``; ``cones.exponential`` explains the unknown and the symmetry."""
    if x > 0.0 and y > 0.0:
        lower, span = 1.0 - y / x, y / x + x / y - 1.0
        logs = np.log(x), np.log(abs(z))
        swap = _mismatch(np.log(0.5 * span), x, y, logs, z >= 0.0, lower, span, 0.0)[0] < 0.0
    else:
        swap = x <= 0.0
    shift = 0.0
    if swap:
        x, y, z, shift = y, x, -z, -1.0
    lower = 1.0 - y / x
    span = y / x + x / y - 1.0 if y > 0.0 else np.inf
    log_x = np.log(x)
    beyond = 6.0 - log_x + 2.0 * np.log(1.0 + abs(lower)) + max(-lower, 0.0)
    high = np.log(min(0.5 * span, beyond))
    low, theta, logs = -700.0, high, (log_x, np.log(abs(z)))
    for _ in range(STEPS):
        value, slope = _mismatch(theta, x, y, logs, z >= 0.0, lower, span, shift)
        if value <= 0.0:
            low = theta
        if value >= 0.0:
            high = theta
        step = -value / slope
        inside = np.log(abs(1.0 + step))
        new = theta + (inside if step > -1.0 else min(step, inside))
        if not (new >= low and new <= high):
            new = 0.5 * (low + high)
        moved = abs(new - theta)
        theta = new
        if moved <= SETTLED * (1.0 + abs(theta)):
            break
    rho = lower + np.exp(theta)
    return 1.0 - rho if swap else rho


@lean
def _mismatch(
    theta: float, x: float, y: float, logs: Any, above: bool, lower: float, span: float, shift: float
) -> tuple[float, float]:
    """And its slope; ``logs`` of x and of z."""
    step = np.exp(theta)
    rho = lower + step
    q = rho * (rho - 1.0) + 1.0
    beta = y * (span - step) if y > 0.0 else x - rho * y
    up, up_slope = logs[0] + theta + rho + shift, 1.0 + step
    down, down_slope = np.log(beta) - rho - shift, -step * (y / beta + 1.0)
    rest, rest_slope = logs[1] + np.log(q), step * (2.0 * rho - 1.0) / q
    part, part_slope = (down, down_slope) if above else (up, up_slope)
    ratio = np.exp(-abs(part - rest))
    share = (1.0 if part >= rest else ratio) / (1.0 + ratio)
    both = max(part, rest) + np.log(1.0 + ratio)
    both_slope = share * part_slope + (1.0 - share) * rest_slope
    if above:
        return up - both, up_slope - both_slope
    return both - down, both_slope - down_slope

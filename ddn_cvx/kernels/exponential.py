"""The projection onto the exponential cone, of lanes: ``cones.exponential`` one cone at a time."""

from __future__ import annotations

import math
from typing import Any

from ddn_cvx.kernels.elementary import exp, log
from ddn_cvx.kernels.jit import lean
from ddn_cvx.kernels.lanes import anywhere, where

STEPS = 40
"""Newton steps for the ratio at most; few points need more than eight."""
SETTLED = 1e-10
"""A step this small is the last one: Newton's method doubles the digits."""
NEGLIGIBLE = 1e-60
"""Positive x and y are taken at least this large, relative to the largest coordinate."""

INSIDE, FLAT, POLAR, CURVED = range(4)


@lean
def frame(x: Any, y: Any, z: Any, out: Any) -> Any:
    """The region in which (x, y, z) lies.

    Where that is CURVED, ``out`` (11,) holds the unit vectors p, n, w along the projection, along what it takes away, and
    across, the length of the projection, and the share of w that the derivative keeps.
    """
    size = max(abs(x), max(abs(y), abs(z)))
    size = where(size == 0.0, 1.0, size)
    x, y, z = x / size, y / size, z / size
    x, y = where(x > 0.0, max(x, NEGLIGIBLE), x), where(y > 0.0, max(y, NEGLIGIBLE), y)
    polar = (x > 0.0) & (x * exp((y - x) / x) < -z)
    flat = (x <= 0.0) & (y <= 0.0)
    inside = ((y > 0.0) & (y * exp(x / y) <= z)) | ((y == 0.0) & (x <= 0.0) & (z >= 0.0))
    region = where(inside, float(INSIDE), where(flat, float(FLAT), where(polar, float(POLAR), float(CURVED))))
    curved = region == float(CURVED)
    if anywhere(curved):
        _axes(x, y, z, _ratio(x, y, z, curved), size, out)
    return region


@lean
def _axes(x: Any, y: Any, z: Any, rho: Any, size: Any, out: Any) -> None:
    E, X = exp(-max(rho, 0.0)), exp(min(rho, 0.0))
    a = (rho * E, E, X)
    c = (X, (1.0 - rho) * X, -E)
    a_size = math.sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2])
    c_size = math.sqrt(c[0] * c[0] + c[1] * c[1] + c[2] * c[2])
    for i in range(3):
        out[i], out[3 + i] = a[i] / a_size, c[i] / c_size
    out[6] = out[4] * out[2] - out[5] * out[1]
    out[7] = out[5] * out[0] - out[3] * out[2]
    out[8] = out[3] * out[1] - out[4] * out[0]
    r = max(out[0] * x + out[1] * y + out[2] * z, 0.0)
    d = max(out[3] * x + out[4] * y + out[5] * z, 0.0)
    k, m = c_size * c_size * c_size * E, a_size * a_size * a_size * X
    out[9] = r * size
    out[10] = r * k / max(r * k + d * m, 1e-300)


@lean
def _ratio(x: Any, y: Any, z: Any, wanted: Any) -> Any:
    """The root rho of ``alpha e^rho - beta e^-rho = z``; ``cones.exponential`` explains the unknown and the symmetry."""
    both, above = (x > 0.0) & (y > 0.0), z >= 0.0
    lower, span, log_z = 1.0 - y / x, y / x + x / y - 1.0, log(abs(z))
    middle, _ = _mismatch(log(0.5 * span), x, y, log(x), log_z, above, lower, span, 0.0)
    swap = (both & (middle < 0.0)) | (~both & (x <= 0.0))
    x, y, z, shift = where(swap, y, x), where(swap, x, y), where(swap, -z, z), where(swap, -1.0, 0.0)
    above, lower, log_x = z >= 0.0, 1.0 - y / x, log(x)
    span = where(y > 0.0, y / x + x / y - 1.0, math.inf)
    beyond = 6.0 - log_x + 2.0 * log(1.0 + abs(lower)) + max(-lower, 0.0)
    high = log(min(0.5 * span, beyond))
    low, theta = where(wanted, -700.0, 0.0), high
    wanted = wanted & (theta == theta)
    for _ in range(STEPS):
        value, slope = _mismatch(theta, x, y, log_x, log_z, above, lower, span, shift)
        low, high = where(value <= 0.0, theta, low), where(value >= 0.0, theta, high)
        step = -value / slope
        inside = log(abs(1.0 + step))
        new = theta + where(step > -1.0, inside, min(step, inside))
        new = where((new >= low) & (new <= high), new, 0.5 * (low + high))
        moved = abs(new - theta)
        theta = where(wanted, new, theta)
        wanted = wanted & (moved > SETTLED * (1.0 + abs(theta)))
        if not anywhere(wanted):
            break
    rho = lower + exp(theta)
    return where(swap, 1.0 - rho, rho)


@lean
def _mismatch(theta: Any, x: Any, y: Any, log_x: Any, log_z: Any, above: Any, lower: Any, span: Any, shift: Any) -> Any:
    """And its slope; the logarithms of x and of the size of z are given."""
    step = exp(theta)
    rho = lower + step
    q = rho * (rho - 1.0) + 1.0
    beta = where(y > 0.0, y * (span - step), x - rho * y)
    up, up_slope = log_x + theta + rho + shift, 1.0 + step
    down, down_slope = log(beta) - rho - shift, -step * (y / beta + 1.0)
    rest, rest_slope = log_z + log(q), step * (2.0 * rho - 1.0) / q
    part, part_slope = where(above, down, up), where(above, down_slope, up_slope)
    ratio = exp(-abs(part - rest))
    share = where(part >= rest, 1.0, ratio) / (1.0 + ratio)
    both = max(part, rest) + log(1.0 + ratio)
    both_slope = share * part_slope + (1.0 - share) * rest_slope
    return where(above, up - both, both - down), where(above, up_slope - both_slope, both_slope - down_slope)

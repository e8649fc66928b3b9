"""The scaling of an exponential cone for the interior-point method, of lanes.

With the barrier ``f*(z) = -log(v - u - u log(-w / u)) - log(-u) - log w`` of the dual cone at ``z = (u, v, w)``, its
conjugate f, and the shadows ``s~ = -grad f*(z)``, ``z~ = -grad f(s)``, the matrix H maps z to s and z~ to s~ and is close
to the barrier's Hessian (Dahl & Andersen, "A primal-dual interior-point algorithm for nonsymmetric exponential-cone
optimization", 2022; the rank-one terms as in Goulart & Chen, "Clarabel", 2024). Where s and z are central already, H is a
multiple of the Hessian.
"""

from __future__ import annotations

import math
from typing import Any

from ddn_cvx.kernels.elementary import log
from ddn_cvx.kernels.jit import lean
from ddn_cvx.kernels.lanes import anywhere, where

OMEGA_STEPS = 3
"""Steps of fourth order from a guess that has two digits."""


@lean
def centre(x: Any) -> None:
    """The point that is its own shadow, for s and for z."""
    x[0], x[1], x[2] = -1.051383945322714, 0.556409619469370, 1.258967884768947


@lean
def _in_primal(x: Any, y: Any, z: Any) -> Any:
    return (y > 0.0) & (z > 0.0) & (y * log(z / y) - x > 0.0)


@lean
def _in_dual(u: Any, v: Any, w: Any) -> Any:
    return (u < 0.0) & (w > 0.0) & (v - u - u * log(-w / u) > 0.0)


@lean
def inside(s: Any, ds: Any, z: Any, dz: Any, step: Any) -> Any:
    """Whether both points are inside their cones after the step."""
    return _in_primal(s[0] + step * ds[0], s[1] + step * ds[1], s[2] + step * ds[2]) & _in_dual(
        z[0] + step * dz[0], z[1] + step * dz[1], z[2] + step * dz[2]
    )


@lean
def _gradient(z: Any, ratio: Any) -> Any:
    """Of f*; ``ratio`` is log(-w / u)."""
    c = 1.0 / (-z[0] * ratio - z[0] + z[1])
    return c * ratio - 1.0 / z[0], -c, (c * z[0] - 1.0) / z[2]


@lean
def _hessian(z: Any, ratio: Any) -> Any:
    """The lower triangle, row by row."""
    r = 1.0 / (-z[0] * ratio - z[0] + z[1])
    u, w, k = 1.0 / z[0], 1.0 / z[2], r * z[0]
    return (
        u * u - r * u + (ratio * r) * (ratio * r),
        -ratio * r * r,
        r * r,
        (z[1] - z[0]) * r * r * w,
        -k * r * w,
        (1.0 - k + k * k) * w * w,
    )


@lean
def _primal_gradient(s: Any) -> Any:
    """Of f, by the Wright omega function."""
    given = log(s[1] / s[2])
    x = 1.0 - s[0] / s[1] - given
    omega = where(x > 3.0, max(x - log(x), 0.5), 1.0 + 0.5 * (x - 1.0))
    for _ in range(OMEGA_STEPS):  # Fritsch, Shafer & Crowley
        rest = x - omega - log(omega)
        one = omega + 1.0
        t = one * (one + 2.0 / 3.0 * rest)
        omega *= 1.0 + rest / one * (t - 0.5 * rest) / (t - rest)
    g = 1.0 / ((omega - 1.0) * s[1])
    return g, g + g * (log(omega) + given) - 1.0 / s[1], omega / ((1.0 - omega) * s[2])


@lean
def update(s: Any, z: Any, mu: Any, H: Any, inverse: Any) -> Any:
    """H and its inverse; False where s or z is outside."""
    good = _in_primal(s[0], s[1], s[2]) & _in_dual(z[0], z[1], z[2])
    ratio = log(-z[2] / z[0])
    D = _hessian(z, ratio)
    product = s[0] * z[0] + s[1] * z[1] + s[2] * z[2]
    g, p = _gradient(z, ratio), _primal_gradient(s)
    own, shadow = product / 3.0, (g[0] * p[0] + g[1] * p[1] + g[2] * p[2]) / 3.0
    a = (s[0] + own * g[0], s[1] + own * g[1], s[2] + own * g[2])
    b = (z[0] + own * p[0], z[1] + own * p[1], z[2] + own * p[2])
    Hp = _product(D, p)
    distance = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    curvature = Hp[0] * p[0] + Hp[1] * p[1] + Hp[2] * p[2] - 3.0 * shadow * shadow
    apart = (own * shadow - 1.0 > 1e-8) & (curvature > 1e-15) & (distance > 0.0)
    h = (Hp[0] - shadow * g[0], Hp[1] - shadow * g[1], Hp[2] - shadow * g[2])
    c = (z[1] * p[2] - z[2] * p[1], z[2] * p[0] - z[0] * p[2], z[0] * p[1] - z[1] * p[0])
    third, bent, along, across, total = 1.0 / 3.0, 1.0 / curvature, 1.0 / product, 1.0 / distance, 0.0
    for i in range(3):
        for j in range(i + 1):
            H[i, j] = D[i * (i + 1) // 2 + j]
            rest = H[i, j] - third * g[i] * g[j] - bent * h[i] * h[j]
            total += (1.0 if i == j else 2.0) * rest * rest
    t = own * math.sqrt(total) / (c[0] * c[0] + c[1] * c[1] + c[2] * c[2])
    for i in range(3):
        for j in range(i + 1):
            near = along * s[i] * s[j] + across * a[i] * a[j] + t * c[i] * c[j]
            H[i, j] = where(apart, near, mu * H[i, j])
    usable = _invert(H, inverse)
    if anywhere(good & apart & ~usable):
        for i in range(3):
            for j in range(i + 1):
                H[i, j] = where(usable, H[i, j], mu * D[i * (i + 1) // 2 + j])
        usable = _invert(H, inverse)
    return good & usable


@lean
def _product(D: Any, p: Any) -> Any:
    return (
        D[0] * p[0] + D[1] * p[1] + D[3] * p[2],
        D[1] * p[0] + D[2] * p[1] + D[4] * p[2],
        D[3] * p[0] + D[4] * p[1] + D[5] * p[2],
    )


@lean
def _invert(H: Any, inverse: Any) -> Any:
    """By Cholesky's factor, of the lower triangle; False where there is none."""
    a = 1.0 / math.sqrt(H[0, 0])
    d, e = a * H[1, 0], a * H[2, 0]
    b = 1.0 / math.sqrt(H[1, 1] - d * d)
    f = b * (H[2, 1] - d * e)
    c = 1.0 / math.sqrt(H[2, 2] - e * e - f * f)
    # L^-1 is [[a, 0, 0], [d, b, 0], [e, f, c]]
    d, e, f = -a * b * d, a * c * (b * d * f - e), -b * c * f
    inverse[0, 0] = a * a + d * d + e * e
    inverse[0, 1] = inverse[1, 0] = b * d + e * f
    inverse[1, 1] = b * b + f * f
    inverse[0, 2] = inverse[2, 0] = c * e
    inverse[1, 2] = inverse[2, 1] = c * f
    inverse[2, 2] = c * c
    return (a < math.inf) & (b < math.inf) & (c < math.inf)


@lean
def shift(z: Any, ds: Any, dz: Any, target: Any, H: Any, out: Any) -> None:
    """``target grad f* - 1/2 D^3 f*[(D^2 f*)^-1 ds, dz]``; H (3, 3) is scratch."""
    ratio = log(-z[2] / z[0])
    g, D = _gradient(z, ratio), _hessian(z, ratio)
    for i in range(3):
        for j in range(i + 1):
            H[i, j] = D[i * (i + 1) // 2 + j]
    good = _invert(H, H)
    u = _product((H[0, 0], H[1, 0], H[1, 1], H[2, 0], H[2, 1], H[2, 2]), (ds[0], ds[1], ds[2]))
    i0, i2, ir = 1.0 / z[0], 1.0 / z[2], 1.0 / (-z[0] * ratio - z[0] + z[1])
    dl = dz[2] * i2 - dz[0] * i0
    dr = (dz[1] - dz[0] - dz[0] * ratio - z[0] * dl) * ir
    square, tail = ir * ir, 2.0 * dr + dz[2] * i2
    H00 = i0 * (ir * (dr + dz[0] * i0) - 2.0 * dz[0] * i0 * i0) + 2.0 * ratio * square * (dl - ratio * dr)
    H01 = (2.0 * ratio * dr - dl) * square
    H11 = -2.0 * dr * square
    H02 = (dz[1] - dz[0] - (z[1] - z[0]) * tail) * square * i2
    H12 = (z[0] * tail - dz[0]) * square * i2
    k = z[0] * ir
    dk = dz[0] * ir - k * dr
    H22 = (dk * (2.0 * k - 1.0) - 2.0 * (1.0 - k + k * k) * dz[2] * i2) * i2 * i2
    out[0] = target * g[0] - where(good, 0.5 * (H00 * u[0] + H01 * u[1] + H02 * u[2]), 0.0)
    out[1] = target * g[1] - where(good, 0.5 * (H01 * u[0] + H11 * u[1] + H12 * u[2]), 0.0)
    out[2] = target * g[2] - where(good, 0.5 * (H02 * u[0] + H12 * u[1] + H22 * u[2]), 0.0)

"""The scaling of an exponential cone for the interior-point method.

With the barrier ``f*(z) = -log(v - u - u log(-w / u)) - log(-u) - log w`` of the dual cone at ``z = (u, v, w)``, its
conjugate f, and the shadows ``s~ = -grad f*(z)``, ``z~ = -grad f(s)``, the matrix H maps z to s and z~ to s~ and is close
to the barrier's Hessian (Dahl & Andersen, "A primal-dual interior-point algorithm for nonsymmetric exponential-cone
optimization", 2022; the rank-one terms as in Goulart & Chen, "Clarabel", 2024). Where s and z are central already, H is a
multiple of the Hessian.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels.jit import lean

Triple = tuple[float, float, float]


@lean
def centre(x: Any) -> None:
    """The point that is its own shadow, for s and for z."""
    x[0], x[1], x[2] = -1.051383945322714, 0.556409619469370, 1.258967884768947


@lean
def _in_primal(x: float, y: float, z: float) -> bool:
    return y > 0.0 and z > 0.0 and y * np.log(z / y) - x > 0.0


@lean
def _in_dual(u: float, v: float, w: float) -> bool:
    return u < 0.0 and w > 0.0 and v - u - u * np.log(-w / u) > 0.0


@lean
def inside(s: Any, ds: Any, z: Any, dz: Any, step: float) -> bool:
    """Whether both points are inside their cones after the step."""
    return _in_primal(s[0] + step * ds[0], s[1] + step * ds[1], s[2] + step * ds[2]) and _in_dual(
        z[0] + step * dz[0], z[1] + step * dz[1], z[2] + step * dz[2]
    )


@lean
def _gradient(z: Any, ratio: float) -> Triple:
    """Of f*; ``ratio`` is log(-w / u)."""
    c = 1.0 / (-z[0] * ratio - z[0] + z[1])
    return c * ratio - 1.0 / z[0], -c, (c * z[0] - 1.0) / z[2]


@lean
def _hessian(z: Any, ratio: float, H: Any) -> None:
    r = -z[0] * ratio - z[0] + z[1]
    H[0, 0] = 1.0 / (z[0] * z[0]) - 1.0 / (r * z[0]) + (ratio / r) ** 2
    H[0, 1] = H[1, 0] = -ratio / (r * r)
    H[1, 1] = 1.0 / (r * r)
    H[0, 2] = H[2, 0] = (z[1] - z[0]) / (r * r * z[2])
    H[1, 2] = H[2, 1] = -z[0] / (r * r * z[2])
    H[2, 2] = (1.0 - z[0] / r + (z[0] / r) ** 2) / (z[2] * z[2])


@lean
def _primal_gradient(s: Any) -> Triple:
    """Of f, by the Wright omega function."""
    given = np.log(s[1] / s[2])
    x = 1.0 - s[0] / s[1] - given
    omega = max(x - np.log(x), 0.5) if x > 3.0 else 1.0 + 0.5 * (x - 1.0)
    for _ in range(4):  # Fritsch, Shafer & Crowley, of fourth order
        rest = x - omega - np.log(omega)
        one = omega + 1.0
        t = one * (one + 2.0 / 3.0 * rest)
        omega *= 1.0 + rest / one * (t - 0.5 * rest) / (t - rest)
        if abs(rest) < 1e-5:
            break
    g = 1.0 / ((omega - 1.0) * s[1])
    return g, g + g * (np.log(omega) + given) - 1.0 / s[1], omega / ((1.0 - omega) * s[2])


@lean
def update(s: Any, z: Any, mu: float, H: Any, inverse: Any) -> bool:
    """H and its inverse; False where s or z is outside."""
    if not (_in_primal(s[0], s[1], s[2]) and _in_dual(z[0], z[1], z[2])):
        return False
    ratio = np.log(-z[2] / z[0])
    _hessian(z, ratio, H)
    product = s[0] * z[0] + s[1] * z[1] + s[2] * z[2]
    g, p = _gradient(z, ratio), _primal_gradient(s)
    own, shadow = product / 3.0, (g[0] * p[0] + g[1] * p[1] + g[2] * p[2]) / 3.0
    a = (s[0] + own * g[0], s[1] + own * g[1], s[2] + own * g[2])
    b = (z[0] + own * p[0], z[1] + own * p[1], z[2] + own * p[2])
    Hp = _product(H, p)
    distance = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    curvature = Hp[0] * p[0] + Hp[1] * p[1] + Hp[2] * p[2] - 3.0 * shadow * shadow
    if own * shadow - 1.0 > 1e-8 and curvature > 1e-15 and distance > 0.0:
        total = 0.0
        h = (Hp[0] - shadow * g[0], Hp[1] - shadow * g[1], Hp[2] - shadow * g[2])
        for i in range(3):
            for j in range(3):
                total += (H[i, j] - g[i] * g[j] / 3.0 - h[i] * h[j] / curvature) ** 2
        c = (z[1] * p[2] - z[2] * p[1], z[2] * p[0] - z[0] * p[2], z[0] * p[1] - z[1] * p[0])
        t = own * total**0.5 / (c[0] * c[0] + c[1] * c[1] + c[2] * c[2])
        for i in range(3):
            for j in range(3):
                H[i, j] = s[i] * s[j] / product + a[i] * a[j] / distance + t * c[i] * c[j]
        if _invert(H, inverse):
            return True
        _hessian(z, ratio, H)
    for i in range(3):
        for j in range(3):
            H[i, j] *= mu
    return _invert(H, inverse)


@lean
def _product(H: Any, p: Triple) -> Triple:
    return (
        H[0, 0] * p[0] + H[0, 1] * p[1] + H[0, 2] * p[2],
        H[1, 0] * p[0] + H[1, 1] * p[1] + H[1, 2] * p[2],
        H[2, 0] * p[0] + H[2, 1] * p[1] + H[2, 2] * p[2],
    )


@lean
def _invert(H: Any, inverse: Any) -> bool:
    """By Cholesky's factor; False where there is none."""
    a = H[0, 0]
    if not a > 0.0:
        return False
    a = 1.0 / a**0.5
    d, e = a * H[1, 0], a * H[2, 0]
    b = H[1, 1] - d * d
    if not b > 0.0:
        return False
    b = 1.0 / b**0.5
    f = b * (H[2, 1] - d * e)
    c = H[2, 2] - e * e - f * f
    if not c > 0.0:
        return False
    c = 1.0 / c**0.5
    # L^-1 is [[a, 0, 0], [d, b, 0], [e, f, c]]
    d, e, f = -a * b * d, a * c * (b * d * f - e), -b * c * f
    inverse[0, 0] = a * a + d * d + e * e
    inverse[0, 1] = inverse[1, 0] = b * d + e * f
    inverse[1, 1] = b * b + f * f
    inverse[0, 2] = inverse[2, 0] = c * e
    inverse[1, 2] = inverse[2, 1] = c * f
    inverse[2, 2] = c * c
    return True


@lean
def shift(z: Any, ds: Any, dz: Any, target: float, H: Any, out: Any) -> None:
    """``target grad f* - 1/2 D^3 f*[(D^2 f*)^-1 ds, dz]``; H (3, 3) is scratch."""
    ratio = np.log(-z[2] / z[0])
    g = _gradient(z, ratio)
    for i in range(3):
        out[i] = target * g[i]
    _hessian(z, ratio, H)
    if not _invert(H, H):
        return
    u = _product(H, (ds[0], ds[1], ds[2]))
    r = -z[0] * ratio - z[0] + z[1]
    dl = dz[2] / z[2] - dz[0] / z[0]
    dr = dz[1] - dz[0] - dz[0] * ratio - z[0] * dl
    rr, tail = r * r, 2.0 * dr / r + dz[2] / z[2]
    H00 = -2.0 * dz[0] / z[0] ** 3 + (dr / r + dz[0] / z[0]) / (r * z[0]) + 2.0 * ratio / rr * (dl - ratio * dr / r)
    H01 = (2.0 * ratio * dr / r - dl) / rr
    H11 = -2.0 * dr / (rr * r)
    H02 = (dz[1] - dz[0] - (z[1] - z[0]) * tail) / (rr * z[2])
    H12 = (z[0] * tail - dz[0]) / (rr * z[2])
    k = z[0] / r
    dk = (dz[0] - k * dr) / r
    H22 = (dk * (2.0 * k - 1.0) - 2.0 * (1.0 - k + k * k) * dz[2] / z[2]) / (z[2] * z[2])
    out[0] -= 0.5 * (H00 * u[0] + H01 * u[1] + H02 * u[2])
    out[1] -= 0.5 * (H01 * u[0] + H11 * u[1] + H12 * u[2])
    out[2] -= 0.5 * (H02 * u[0] + H12 * u[1] + H22 * u[2])

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

from ddn_cvx.kernels.dense import cholesky, lower, lower_transposed
from ddn_cvx.kernels.jit import inner


@inner
def centre(x: Any) -> None:
    """The point that is its own shadow, for s and for z."""
    x[0], x[1], x[2] = -1.051383945322714, 0.556409619469370, 1.258967884768947


@inner
def _in_primal(x: float, y: float, z: float) -> bool:
    return y > 0.0 and z > 0.0 and y * np.log(z / y) - x > 0.0


@inner
def _in_dual(u: float, v: float, w: float) -> bool:
    return u < 0.0 and w > 0.0 and v - u - u * np.log(-w / u) > 0.0


@inner
def inside(s: Any, ds: Any, z: Any, dz: Any, step: float) -> bool:
    """Whether both points are inside their cones after the step."""
    return _in_primal(s[0] + step * ds[0], s[1] + step * ds[1], s[2] + step * ds[2]) and _in_dual(
        z[0] + step * dz[0], z[1] + step * dz[1], z[2] + step * dz[2]
    )


@inner
def _gradient(z: Any) -> tuple[float, float, float]:
    """Of f*."""
    ratio = np.log(-z[2] / z[0])
    c = 1.0 / (-z[0] * ratio - z[0] + z[1])
    return c * ratio - 1.0 / z[0], -c, (c * z[0] - 1.0) / z[2]


@inner
def _hessian(z: Any, H: Any) -> None:
    ratio = np.log(-z[2] / z[0])
    r = -z[0] * ratio - z[0] + z[1]
    H[0, 0] = 1.0 / (z[0] * z[0]) - 1.0 / (r * z[0]) + (ratio / r) ** 2
    H[0, 1] = H[1, 0] = -ratio / (r * r)
    H[1, 1] = 1.0 / (r * r)
    H[0, 2] = H[2, 0] = (z[1] - z[0]) / (r * r * z[2])
    H[1, 2] = H[2, 1] = -z[0] / (r * r * z[2])
    H[2, 2] = (1.0 - z[0] / r + (z[0] / r) ** 2) / (z[2] * z[2])


@inner
def _primal_gradient(s: Any) -> tuple[float, float, float]:
    """Of f, by the Wright omega function."""
    x = 1.0 - s[0] / s[1] - np.log(s[1] / s[2])
    omega = max(x - np.log(x), 0.5) if x > 3.0 else 1.0 + 0.5 * (x - 1.0)
    for _ in range(4):  # Fritsch, Shafer & Crowley, of fourth order
        rest = x - omega - np.log(omega)
        one = omega + 1.0
        t = one * (one + 2.0 / 3.0 * rest)
        omega *= 1.0 + rest / one * (t - 0.5 * rest) / (t - rest)
    g = 1.0 / ((omega - 1.0) * s[1])
    return g, g + g * np.log(omega * s[1] / s[2]) - 1.0 / s[1], omega / ((1.0 - omega) * s[2])


@inner
def update(s: Any, z: Any, mu: float, H: Any, inverse: Any) -> bool:
    """H and its inverse; False where s or z is outside."""
    if not (_in_primal(s[0], s[1], s[2]) and _in_dual(z[0], z[1], z[2])):
        return False
    _hessian(z, H)
    product = s[0] * z[0] + s[1] * z[1] + s[2] * z[2]
    g, p = _gradient(z), _primal_gradient(s)
    own, shadow = product / 3.0, (g[0] * p[0] + g[1] * p[1] + g[2] * p[2]) / 3.0
    a, b = np.empty(3), np.empty(3)
    Hp = np.empty(3)
    for i in range(3):
        a[i], b[i] = s[i] + own * g[i], z[i] + own * p[i]
        Hp[i] = H[i, 0] * p[0] + H[i, 1] * p[1] + H[i, 2] * p[2]
    distance = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    curvature = Hp[0] * p[0] + Hp[1] * p[1] + Hp[2] * p[2] - 3.0 * shadow * shadow
    if own * shadow - 1.0 > 1e-8 and curvature > 1e-15 and distance > 0.0:
        total = 0.0
        for i in range(3):
            Hp[i] -= shadow * g[i]
        for i in range(3):
            for j in range(3):
                total += (H[i, j] - g[i] * g[j] / 3.0 - Hp[i] * Hp[j] / curvature) ** 2
        t = own * total**0.5
        Hp[0], Hp[1], Hp[2] = z[1] * p[2] - z[2] * p[1], z[2] * p[0] - z[0] * p[2], z[0] * p[1] - z[1] * p[0]
        norm = Hp[0] * Hp[0] + Hp[1] * Hp[1] + Hp[2] * Hp[2]
        for i in range(3):
            for j in range(3):
                H[i, j] = s[i] * s[j] / product + a[i] * a[j] / distance + t / norm * Hp[i] * Hp[j]
        if _invert(H, inverse):
            return True
        _hessian(z, H)
    for i in range(3):
        for j in range(3):
            H[i, j] *= mu
    return _invert(H, inverse)


@inner
def _invert(H: Any, inverse: Any) -> bool:
    L, e = np.empty((3, 3)), np.empty(3)
    for i in range(3):
        for j in range(i + 1):
            L[i, j] = H[i, j]
    if not cholesky(L, 0.0):
        return False
    for i in range(3):
        for j in range(3):
            e[j] = 1.0 if i == j else 0.0
        lower(L, e)
        lower_transposed(L, e)
        for j in range(3):
            inverse[i, j] = e[j]
    return True


@inner
def times(M: Any, x: Any, out: Any) -> None:
    """``out = M x``; out may be x."""
    a, b, c = x[0], x[1], x[2]
    for i in range(3):
        out[i] = M[i, 0] * a + M[i, 1] * b + M[i, 2] * c


@inner
def shift(z: Any, ds: Any, dz: Any, target: float, out: Any) -> None:
    """``target grad f* - 1/2 D^3 f*[(D^2 f*)^-1 ds, dz]``."""
    H, u = np.empty((3, 3)), np.empty(3)
    _hessian(z, H)
    g = _gradient(z)
    for i in range(3):
        u[i], out[i] = ds[i], target * g[i]
    if not cholesky(H, 0.0):
        return
    lower(H, u)
    lower_transposed(H, u)
    ratio = np.log(-z[2] / z[0])
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

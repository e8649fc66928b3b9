"""``exp`` and ``log`` of lanes, without branches, as good as the last two bits.

The reductions are Cody and Waite's; the polynomials are Taylor's for the exponential function and that of fdlibm
(Sun Microsystems, 1993) for the logarithm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np

from ddn_cvx.kernels.lanes import exponent, power_of_two, rounded, where

# Not ``lean``: here the order of operations matters.
_exactly: Callable[..., Any] = partial(
    numba.njit, no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False, nogil=True, error_model="numpy",
    fastmath={"contract"},
)  # fmt: skip

_HIGH, _LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
"""log 2, the first with 32 bits."""
_NORMAL = 2.2250738585072014e-308


@_exactly
def exp(x: Any) -> Any:
    """The exponential function."""
    bounded = min(max(x, -760.0), 720.0)
    n = rounded(bounded * 1.44269504088896338700)
    r = (bounded - n * _HIGH) - n * _LOW
    p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0
    p = (p * r + 1.0 / 39916800.0) * r + 1.0 / 3628800.0
    p = (p * r + 1.0 / 362880.0) * r + 1.0 / 40320.0
    p = (p * r + 1.0 / 5040.0) * r + 1.0 / 720.0
    p = (p * r + 1.0 / 120.0) * r + 1.0 / 24.0
    p = (p * r + 1.0 / 6.0) * r + 0.5
    p = (p * r) * r + r + 1.0
    half = rounded(0.5 * n)
    return where(x == x, p * power_of_two(half) * power_of_two(n - half), x)


@_exactly
def log(x: Any) -> Any:
    """The natural logarithm; NaN of negative numbers."""
    tiny = x < _NORMAL
    normal = where(tiny, x * 18014398509481984.0, x)
    k = exponent(normal)
    m = normal * (0.5 * power_of_two(1.0 - k))
    high = m > 1.41421356237309504880
    m, k = where(high, 0.5 * m, m), where(high, k + 1.0, k) - where(tiny, 54.0, 0.0)
    f = m - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    odd = 2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)
    even = 3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01)
    R = w * even + z * (6.666666666666735130e-01 + w * odd)
    half = 0.5 * f * f
    value = k * _HIGH - ((half - (s * (half + R) + k * _LOW)) - f)
    value = where(x == np.inf, x, where(x == 0.0, -np.inf, value))
    return where(x >= 0.0, value, np.nan)

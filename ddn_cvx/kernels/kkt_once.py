"""Systems of ``kernels.kkt`` that are solved once, so that their factors need not be kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels.dense import fill
from ddn_cvx.kernels.jit import jit, lean
from ddn_cvx.kernels.kkt import begin, factorise, reduced, reverse_one, sizes, workspace
from ddn_cvx.kernels.structure import add_A


@jit
def reverse(
    first: int, last: int, structure: Any, P: Any, A: Any, v: Any, ok: Any, g: Any, h: Any, u: Any, w: Any, healthy: Any
) -> None:
    """``J' (u, w) = (g, h)`` for one right-hand side, g (B, n), h (B, m), without keeping the factors.

    Says in ``healthy`` (B,) which elements it has solved; those that are not ``ok`` get zeros.
    """
    n = structure.n
    scratch = workspace(structure)
    work = np.empty(n, np.bool_), np.empty(structure.m), np.empty(3 * n * n)
    _reverse_all(first, last, structure, P, A, v, ok, g, h, u, w, healthy, scratch, work)


@lean
def _reverse_all(
    first: int,
    last: int,
    structure: Any,
    P: Any,
    A: Any,
    v: Any,
    ok: Any,
    g: Any,
    h: Any,
    u: Any,
    w: Any,
    healthy: Any,
    scratch: Any,
    work: Any,
) -> None:
    fixed, weights, factors = work
    for k in range(first, last):
        fill(u[k], 0.0)
        fill(w[k], 0.0)
        healthy[k] = True
        if not ok[k]:
            continue
        free, general, healthy[k] = sizes(structure, v[k], A[k], fixed)
        if healthy[k]:
            fill(weights, 0.0)
            parts = begin(structure, v[k], free, general, 0, factors, scratch)
            healthy[k] = factorise(structure, P[k], A[k], parts, weights)
            if healthy[k]:
                reverse_one(structure, P[k], A[k], weights, parts, scratch, g[k], h[k], u[k], w[k])


@lean
def newton(
    structure: Any,
    P: Any,
    A: Any,
    v: Any,
    counts: tuple[int, int],
    known: bool,
    factors: Any,
    scratch: Any,
    r: Any,
    t: Any,
    a: Any,
    lows: Any,
) -> bool:
    """``J (a, c) = (r, t)`` for one element, by the factors alone: refinement is for those who take further steps.

    The factors are ``known`` if the last call had the same active rows. c is the first row of ``lows`` (3, m), then comes
    scratch space, and what belongs to the factors. False where a pivot is too small.
    """
    c, low, weights = lows[0], lows[1], lows[2]
    parts = begin(structure, v, counts[0], counts[1], 0, factors, scratch)
    if not known:
        fill(weights, 0.0)
        if not factorise(structure, P, A, parts, weights):
            return False
    for i in range(structure.m):
        low[i] = t[i] if parts[1][i] > -2 else 0.0
    reduced(structure, P, A, weights, parts, scratch, r, low, a, c)
    for i in range(structure.m):
        c[i] -= t[i]
    add_A(structure, A, 1.0, a, c)
    return True

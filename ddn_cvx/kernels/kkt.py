"""Factors of the reduced KKT system of a program with equalities and inequalities, one instance at a time.

At a point with active rows N (equalities, and inequalities with ``v > 0``) the Jacobian J of the residual, and J', reduce
to ``[[P, N'], [N, 0]]`` (``linalg.kkt`` derives it for all cones). An active bound fixes its variable and leaves the
system; what remains has the factors

    M = L L'      M = P, or P + N'RN where that is not positive definite (R makes the rows about as large as P)
    W = L^-1 N'   S = W'W,   S = T T'

and every solution is refined on the data as given. Elements for which a pivot is small are left to a method that can
tell what is singular.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels.dense import add, add_rows, cholesky, copy, dot, fill, largest, lower, lower_transposed, rows_times
from ddn_cvx.kernels.jit import inner, jit, lean, view
from ddn_cvx.kernels.structure import add_A, add_At, add_P

PIVOT = 1e-10
"""The smallest pivot, next to its diagonal entry, of a factor that is good enough."""
REFINEMENTS = 3
"""Steps of refinement at most; one is usual."""
GOOD = 1e-8
"""Residual, relative to the right-hand side, from which one step of refinement reaches what rounding allows."""


@jit
def count(structure: Any, v: Any, A: Any, ok: Any, free: Any, general: Any, start: Any, healthy: Any) -> int:
    """Numbers of free variables and of active rows that are no bounds, and where the factors start, ``(B,)`` each;
    returns how many numbers all factors have together. Elements not ``ok`` have none.

    A variable that two active bounds fix, and an active bound on nothing, make an element unhealthy.
    """
    total = 0
    fixed = np.empty(structure.n, np.bool_)
    for k in range(v.shape[0]):
        free[k], general[k], start[k], healthy[k] = 0, 0, total, False
        if ok[k]:
            free[k], general[k], healthy[k] = sizes(structure, v[k], A[k], fixed)
        if healthy[k]:
            f, g = free[k], general[k]
            total += f * f + g * f + g * g
    return total


@lean
def sizes(structure: Any, v: Any, A: Any, fixed: Any) -> tuple[int, int, bool]:
    """The same for one element: free variables, active rows that are no bounds, and whether it is healthy."""
    A_cols, bound = structure.A_cols, structure.bound
    fill(fixed, False)
    free, general = structure.n, 0
    for i in range(structure.m):
        if i >= structure.zero and not v[i] > 0.0:
            continue
        entry = bound[i]
        if entry < 0:
            general += 1
            continue
        j = A_cols[entry]
        if fixed[j] or A[entry] == 0.0:
            return free, general, False
        fixed[j] = True
        free -= 1
    return free, general, general <= free


@lean
def _partition(structure: Any, v: Any, place: Any, order: Any) -> None:
    """``place`` (n,): the position of a variable among the free ones, or minus one minus the row that fixes it;
    ``order`` (m,): the position of a row among the active ones that are no bounds, -1 for an active bound, else -2."""
    A_cols, bound = structure.A_cols, structure.bound
    fill(place, 0)
    rows = 0
    for i in range(structure.m):
        order[i] = -2
        if i < structure.zero or v[i] > 0.0:
            entry = bound[i]
            if entry < 0:
                order[i] = rows
                rows += 1
            else:
                order[i] = -1
                place[A_cols[entry]] = -1 - i
    free = 0
    for j in range(structure.n):
        if place[j] == 0:
            place[j] = free
            free += 1


@jit
def factor(
    first: int,
    last: int,
    structure: Any,
    P: Any,
    A: Any,
    v: Any,
    free: Any,
    general: Any,
    start: Any,
    factors: Any,
    weights: Any,
    healthy: Any,
) -> None:
    """Factor the healthy elements; element k's L, W' and T follow each other in ``factors`` from ``start[k]`` on.

    ``weights`` (B, m) holds R where M needed it, zeros elsewhere.
    """
    scratch = workspace(structure)
    for k in range(first, last):
        fill(weights[k], 0.0)
        if healthy[k]:
            parts = begin(structure, v[k], free[k], general[k], start[k], factors, scratch)
            healthy[k] = factorise(structure, P[k], A[k], parts, weights[k])


@lean
def factorise(structure: Any, P: Any, A: Any, parts: Any, weights: Any) -> bool:
    place, order, L, W, T = parts
    _gather_P(structure, P, place, L)
    _gather_A(structure, A, place, order, W)
    if not cholesky(L, PIVOT):
        _augment(structure, P, place, order, W, L, weights)
        if not cholesky(L, PIVOT):
            return False
    for i in range(W.shape[0]):
        lower(L, W[i])
    for i in range(W.shape[0]):
        rows_times(W[: i + 1], W[i], T[i])
    return cholesky(T, PIVOT)


@view
def _views(factors: Any, start: int, f: int, g: int) -> Any:
    """L (f, f), W' (g, f) and T (g, g) of one element."""
    a, b, c = start + f * f, start + f * f + g * f, start + f * f + g * f + g * g
    return factors[start:a].reshape(f, f), factors[a:b].reshape(g, f), factors[b:c].reshape(g, g)


@lean
def _gather_P(structure: Any, P: Any, place: Any, out: Any) -> None:
    P_cols, P_rows = structure.P_cols, structure.P_rows
    out[:] = 0.0
    for k in range(P.shape[0]):
        i, j = place[P_rows[k]], place[P_cols[k]]
        if i >= 0 and j >= 0:
            out[max(i, j), min(i, j)] = P[k]


@lean
def _gather_A(structure: Any, A: Any, place: Any, order: Any, out: Any) -> None:
    A_cols, A_rows = structure.A_cols, structure.A_rows
    out[:] = 0.0
    for k in range(A.shape[0]):
        i, j = order[A_rows[k]], place[A_cols[k]]
        if i >= 0 and j >= 0:
            out[i, j] = A[k]


@lean
def _augment(structure: Any, P: Any, place: Any, order: Any, N: Any, out: Any, weights: Any) -> None:
    """``P + N'RN`` with rows of the size of P's diagonal, or of one where P is zero."""
    _gather_P(structure, P, place, out)
    size = 0.0
    for i in range(out.shape[0]):
        size = max(size, out[i, i])
    size = size if size > 0.0 else 1.0
    for row in range(structure.m):
        r = order[row]
        if r < 0:
            continue
        length = dot(N[r], N[r])
        weights[row] = size / length if length > 0.0 else 0.0
        for i in range(out.shape[0]):
            if N[r, i] != 0.0:
                add(out[i, : i + 1], weights[row] * N[r, i], N[r, : i + 1])


@jit
def forward(
    first: int,
    last: int,
    structure: Any,
    P: Any,
    A: Any,
    v: Any,
    free: Any,
    general: Any,
    start: Any,
    factors: Any,
    weights: Any,
    healthy: Any,
    r: Any,
    t: Any,
    a: Any,
    c: Any,
) -> None:
    """``J (a, c) = (r, t)`` for r (B, k, n), t (B, k, m): healthy elements, each right-hand side a contiguous row."""
    scratch = workspace(structure)
    low = np.empty(structure.m)
    for k in range(first, last):
        if not healthy[k]:
            continue
        parts = begin(structure, v[k], free[k], general[k], start[k], factors, scratch)
        for column in range(r.shape[1]):
            for i in range(structure.m):
                low[i] = t[k, column, i] if parts[1][i] > -2 else 0.0
            _solve(structure, P[k], A[k], weights[k], parts, scratch, r[k, column], low, a[k, column], c[k, column])
            for i in range(structure.m):
                c[k, column, i] -= t[k, column, i]
            add_A(structure, A[k], 1.0, a[k, column], c[k, column])


@jit
def reverse(
    first: int,
    last: int,
    structure: Any,
    P: Any,
    A: Any,
    v: Any,
    free: Any,
    general: Any,
    start: Any,
    factors: Any,
    weights: Any,
    healthy: Any,
    g: Any,
    h: Any,
    u: Any,
    w: Any,
) -> None:
    """``J' (u, w) = (g, h)``, shaped as in ``forward``."""
    scratch = workspace(structure)
    for k in range(first, last):
        if healthy[k]:
            parts = begin(structure, v[k], free[k], general[k], start[k], factors, scratch)
            for column in range(g.shape[1]):
                reverse_one(
                    structure, P[k], A[k], weights[k], parts, scratch, g[k, column], h[k, column], u[k, column], w[k, column]
                )


@lean
def reverse_one(
    structure: Any, P: Any, A: Any, weights: Any, parts: Any, scratch: Any, g: Any, h: Any, u: Any, w: Any
) -> None:
    order, top, low = parts[1], scratch[2][5], scratch[3][3]
    copy(g, top)
    add_At(structure, A, 1.0, h, top)
    for i in range(structure.m):
        low[i] = h[i] if order[i] > -2 else 0.0
    _solve(structure, P, A, weights, parts, scratch, top, low, u, w)
    for i in range(structure.m):
        w[i] -= h[i]


@inner
def workspace(structure: Any) -> Any:
    """Scratch space for the solution of one system."""
    n, m = structure.n, structure.m
    return (
        np.empty(n, np.int64),
        np.empty(m, np.int64),
        np.empty((6, n)),
        np.empty((4, m)),
    )


@view
def begin(structure: Any, v: Any, f: int, g: int, start: int, factors: Any, scratch: Any) -> Any:
    place, order, _, _ = scratch
    _partition(structure, v, place, order)
    L, W, T = _views(factors, start, f, g)
    return place, order, L, W, T


@lean
def _solve(
    structure: Any, P: Any, A: Any, weights: Any, parts: Any, scratch: Any, top: Any, low: Any, u: Any, omega: Any
) -> None:
    """``P u + N'omega = top, N u = low`` on the active rows; omega is zero on the others, and so must be ``low``."""
    _, order, _, _, _ = parts
    _, _, tops, lows = scratch
    r, du, t, dw = tops[0], tops[1], lows[0], lows[1]
    fill(u, 0.0)
    fill(omega, 0.0)
    copy(top, r)
    copy(low, t)
    size = max(largest(top), largest(low))
    error = size
    for step in range(1 + REFINEMENTS):
        reduced(structure, P, A, weights, parts, scratch, r, t, du, dw)
        add(u, 1.0, du)
        add(omega, 1.0, dw)
        if step == REFINEMENTS or error <= GOOD * size:
            break
        copy(top, r)
        copy(low, t)
        add_P(structure, P, -1.0, u, r)
        add_At(structure, A, -1.0, omega, r)
        add_A(structure, A, -1.0, u, t)
        for i in range(structure.m):
            if order[i] == -2:
                t[i] = 0.0
        error = max(largest(r), largest(t))


@lean
def reduced(
    structure: Any, P: Any, A: Any, weights: Any, parts: Any, scratch: Any, top: Any, low: Any, u: Any, omega: Any
) -> None:
    """The same by the factors alone."""
    bound = structure.bound
    place, order, L, W, T = parts
    _, _, tops, lows = scratch
    rest, z, inner = tops[2], tops[3], lows[2]
    n, m = structure.n, structure.m
    fill(u, 0.0)
    fill(omega, 0.0)
    copy(top, rest)
    fixed = L.shape[0] < n
    copy(low, inner)
    if fixed:  # active bounds give their variables at once
        for j in range(n):
            if place[j] < 0:
                row = -1 - place[j]
                u[j] = low[row] / A[bound[row]]
        add_P(structure, P, -1.0, u, rest)
        add_A(structure, A, -1.0, u, inner)
    f, g = L.shape[0], T.shape[0]
    if f:
        for i in range(m):
            if weights[i] != 0.0:
                omega[i] = weights[i] * inner[i]
        add_At(structure, A, 1.0, omega, rest)
        fill(omega, 0.0)
        for j in range(n):
            if place[j] >= 0:
                z[place[j]] = rest[j]
        lower(L, z[:f])
        if g:
            multiplier = tops[4]
            rows_times(W, z[:f], multiplier)
            for i in range(m):
                if order[i] >= 0:
                    multiplier[order[i]] -= inner[i]
            lower(T, multiplier[:g])
            lower_transposed(T, multiplier[:g])
            for i in range(m):
                if order[i] >= 0:
                    omega[i] = multiplier[order[i]]
            for i in range(g):
                multiplier[i] = -multiplier[i]
            add_rows(z[:f], multiplier, W)
        lower_transposed(L, z[:f])
        for j in range(n):
            if place[j] >= 0:
                u[j] = z[place[j]]
    if fixed:  # and their multipliers balance what is left
        copy(top, rest)
        add_P(structure, P, -1.0, u, rest)
        add_At(structure, A, -1.0, omega, rest)
        for j in range(n):
            if place[j] < 0:
                row = -1 - place[j]
                omega[row] = rest[j] / A[bound[row]]

"""The primal-dual active-set method for separable strictly convex quadratic programs with bounds and equalities.

P is diagonal and positive, and every inequality is a bound ``a x_j <= b``. A guess of the active bounds gives x and the
multipliers in closed form, but for the equalities' own system; each bound then joins or leaves by the sign of
``y - c s`` (Hintermüller, Ito & Kunisch, 2003: Newton's method on the optimality conditions). A guess that repeats is
the solution, exactly. That takes a handful of rounds of n operations each; on the projection onto the simplex it is the
method of Michelot (1986). Convergence is not certain: what has not repeated soon is left to another method.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels.dense import add, cholesky, copy, dot, fill, is_finite, lower, lower_transposed, rows_times
from ddn_cvx.kernels.jit import inner, jit, lean
from ddn_cvx.kernels.status import INVALID, LIMIT, SOLVED
from ddn_cvx.kernels.structure import add_At, dense_A

ROUNDS = 30
"""Guesses before another method takes over."""
INDEPENDENT = 1e-10
"""Pivots of the equalities' system below this part of their diagonal entry mean that the guess leaves them dependent."""


@jit
def solve(
    first: int,
    last: int,
    structure: Any,
    P: Any,
    q: Any,
    A: Any,
    b: Any,
    x: Any,
    y: Any,
    s: Any,
    status: Any,
    iterations: Any,
) -> None:
    """Fill in x (B, n), y (B, m), s (B, m), status (B,) and iterations (B,) for the elements ``first .. last - 1``.

    An element that is not solved has NaN; LIMIT are those that another method may solve.
    """
    scratch, E = _workspace(structure), np.empty((structure.zero, structure.n))
    _solve_all(first, last, structure, (P, q, A, b), (x, y, s, status, iterations), E, scratch)


@lean
def _solve_all(first: int, last: int, structure: Any, data: Any, out: Any, E: Any, scratch: Any) -> None:
    (P, q, A, b), (x, y, s, status, iterations) = data, out
    for k in range(first, last):
        iterations[k] = 0
        status[k] = INVALID
        if is_finite(P[k]) and is_finite(q[k]) and is_finite(A[k]) and is_finite(b[k]):
            dense_A(structure, A[k], E)
            iterations[k] = _solve(structure, P[k], q[k], A[k], b[k], E, x[k], y[k], s[k], scratch)
            status[k] = SOLVED if iterations[k] > 0 else LIMIT
        if status[k] != SOLVED:
            fill(x[k], np.nan)
            fill(y[k], np.nan)
            fill(s[k], np.nan)


@lean
def _solve(structure: Any, diagonal: Any, q: Any, A: Any, b: Any, E: Any, x: Any, y: Any, s: Any, scratch: Any) -> int:
    """Fill in x (n,), y and s (m,); returns the number of rounds, 0 where the method has not converged.

    ``diagonal`` (n,) is that of P, and the equalities are the rows of E (zero, n).
    """
    A_cols, bound = structure.A_cols, structure.bound
    n, m, zero = structure.n, structure.m, structure.zero
    fixed, S, multiplier, top = scratch
    fill(fixed, -1)
    for j in range(n):
        if not diagonal[j] > 0.0:
            return 0
    for i in range(zero, m):
        if A[bound[i]] == 0.0:
            return 0
    for rounds in range(1, ROUNDS + 1):
        # x = top - E'multiplier / diagonal where it is free
        for j in range(n):
            row = fixed[j]
            top[j] = (-q[j] / diagonal[j] if row < 0 else b[row] / A[bound[row]]) + 0.0  # no negative zeros
        if zero:
            for i in range(zero):
                total = -b[i]
                for j in range(n):
                    total += E[i, j] * top[j]
                multiplier[i] = total
                for k in range(i + 1):
                    total = 0.0
                    for j in range(n):
                        if fixed[j] < 0:
                            total += E[i, j] * E[k, j] / diagonal[j]
                    S[i, k] = total
            if not cholesky(S, INDEPENDENT):
                return 0
            lower(S, multiplier)
            lower_transposed(S, multiplier)
        for j in range(n):
            pull = 0.0
            for i in range(zero):
                pull += E[i, j] * multiplier[i]
            x[j] = top[j] if fixed[j] >= 0 else top[j] - pull / diagonal[j]
            top[j] = diagonal[j] * x[j] + q[j] + pull  # what the multiplier of an active bound cancels
        same = True
        for j in range(n):
            row = fixed[j]
            if row >= 0 and not -top[j] / A[bound[row]] > 0.0:
                fixed[j] = -1
                same = False
        for i in range(zero, m):
            entry = bound[i]
            j = A_cols[entry]
            s[i] = b[i] - A[entry] * x[j]
            if fixed[j] != i and s[i] < 0.0:
                fixed[j] = i
                same = False
        if same:
            fill(y, 0.0)
            copy(multiplier, y)
            fill(s[:zero], 0.0)
            for j in range(n):
                if fixed[j] >= 0:
                    y[fixed[j]], s[fixed[j]] = -top[j] / A[bound[fixed[j]]], 0.0
            return rounds
    return 0


@jit
def reverse(
    first: int, last: int, structure: Any, P: Any, A: Any, v: Any, ok: Any, g: Any, h: Any, u: Any, w: Any, healthy: Any
) -> None:
    """``J' (u, w) = (g, h)`` as in ``kkt_once.reverse``: the diagonal P leaves no system but that of the equalities."""
    n, m, zero = structure.n, structure.m, structure.zero
    scratch, E, vectors = _workspace(structure), np.empty((zero, n)), (np.empty((4, n)), np.empty((2, m)))
    _reverse_all(first, last, structure, (P, A, v, ok), (g, h), (u, w, healthy), E, scratch, vectors)


@lean
def _reverse_all(
    first: int, last: int, structure: Any, point: Any, given: Any, out: Any, E: Any, scratch: Any, vectors: Any
) -> None:
    (P, A, v, ok), (g, h), (u, w, healthy) = point, given, out
    for k in range(first, last):
        fill(u[k], 0.0)
        fill(w[k], 0.0)
        healthy[k] = True
        if ok[k]:
            dense_A(structure, A[k], E)
            healthy[k] = _reverse(structure, P[k], A[k], v[k], g[k], h[k], u[k], w[k], E, scratch, vectors)


@lean
def _reverse(
    structure: Any, diagonal: Any, A: Any, v: Any, g: Any, h: Any, u: Any, w: Any, E: Any, scratch: Any, more: Any
) -> bool:
    """The same for one element, where u and w are zero; False where a pivot is small."""
    A_cols, bound = structure.A_cols, structure.bound
    n, m, zero = structure.n, structure.m, structure.zero
    fixed, S, multiplier, _ = scratch
    right, rest, du, pull = more[0][0], more[0][1], more[0][2], more[0][3]
    low, left = more[1][0], more[1][1]
    fill(fixed, -1)
    for i in range(m):
        low[i] = h[i] if i < zero or v[i] > 0.0 else 0.0
        if i >= zero and v[i] > 0.0:
            j = A_cols[bound[i]]
            if fixed[j] >= 0 or A[bound[i]] == 0.0:
                return False
            fixed[j] = i
    for j in range(n):
        if not diagonal[j] > 0.0:
            return False
    for i in range(zero):
        for k in range(i + 1):
            total = 0.0
            for j in range(n):
                if fixed[j] < 0:
                    total += E[i, j] * E[k, j] / diagonal[j]
            S[i, k] = total
    if not cholesky(S, INDEPENDENT):
        return False
    copy(g, right)
    add_At(structure, A, 1.0, h, right)
    # P u + N'w = right and N u = low on the active rows N, and once more for what rounding has left of them
    copy(right, rest)
    copy(low, left)
    for step in range(2):
        for j in range(n):
            du[j] = rest[j] / diagonal[j] if fixed[j] < 0 else left[fixed[j]] / A[bound[fixed[j]]]
        rows_times(E, du, multiplier)
        for i in range(zero):
            multiplier[i] -= left[i]
        lower(S, multiplier)
        lower_transposed(S, multiplier)
        fill(pull, 0.0)
        for i in range(zero):
            add(pull, multiplier[i], E[i])
            w[i] += multiplier[i]
        for j in range(n):
            if fixed[j] < 0:
                du[j] -= pull[j] / diagonal[j]
            else:
                w[fixed[j]] += (rest[j] - diagonal[j] * du[j] - pull[j]) / A[bound[fixed[j]]]
            u[j] += du[j]
        if step == 0:
            for j in range(n):
                rest[j] = right[j] - diagonal[j] * u[j]
            add_At(structure, A, -1.0, w, rest)
            copy(low, left)
            for i in range(zero):
                left[i] -= dot(E[i], u)
            for j in range(n):
                if fixed[j] >= 0:
                    left[fixed[j]] -= A[bound[fixed[j]]] * u[j]
    for i in range(m):
        w[i] -= h[i]
    return True


@inner
def _workspace(structure: Any) -> Any:
    zero = structure.zero
    return np.empty(structure.n, np.int64), np.empty((zero, zero)), np.empty(zero), np.empty(structure.n)

"""A dual active-set method for strictly convex quadratic programs (Goldfarb & Idnani, 1983).

From the minimiser without constraints, one violated constraint after the other joins the active set; multipliers stay
nonnegative throughout. With ``P = LL'`` the state is ``J = L^-T Q`` and the triangle R with ``J'N = [R; 0]`` for the
normals N of the active constraints: ``J'PJ = I``, so that every step costs n^2 operations. J is kept by columns, each
contiguous, and a joining constraint turns the trailing ones by a Householder reflection.

The answer is exact up to rounding; two steps of refinement on the data as given take away what the updates left.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels.dense import add, add_rows, cholesky, copy, dot, fill, is_finite, largest, rows_times
from ddn_cvx.kernels.jit import jit, lean
from ddn_cvx.kernels.status import BROKEN, INFEASIBLE, INVALID, LIMIT, SOLVED
from ddn_cvx.kernels.structure import add_A, add_At, add_P, dense_A, dense_P

CONVEX = 1e-11
"""A pivot of P below this part of its diagonal entry means that P is not positive definite enough."""
VIOLATED = 1e-11
"""How much of the size of its terms a constraint must be violated by to join."""
DEPENDENT = 1e-20
"""Squared part of a normal outside the span of the active ones below which it is dependent on them."""
TOLERABLE = 1e-9
"""A constraint that depends on the active ones may be violated by this much, relative: rounding, not infeasibility."""


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

    An element that is not solved has NaN. BROKEN are those whose P is not positive definite.
    """
    n, m = structure.n, structure.m
    matrices = np.empty((n, n)), np.empty((n, n)), np.empty((n, n)), np.empty((m, n))
    work = np.empty((4, n)), np.empty(m), np.empty(n, np.int64), np.empty(m, np.int64)
    out = x, y, s, status, iterations
    _solve(first, last, structure, (P, q, A, b), out, matrices, work)


@lean
def _solve(first: int, last: int, structure: Any, data: Any, out: Any, matrices: Any, work: Any) -> None:
    (P, q, A, b), (x, y, s, status, iterations), (L, JT, RT, rows) = data, out, matrices
    vectors, size, active, where = work
    d, z, r, u = vectors[0], vectors[1], vectors[2], vectors[3]
    for k in range(first, last):
        fill(x[k], np.nan)
        fill(y[k], np.nan)
        fill(s[k], np.nan)
        iterations[k] = 0
        if not (is_finite(P[k]) and is_finite(q[k]) and is_finite(A[k]) and is_finite(b[k])):
            status[k] = INVALID
            continue
        dense_A(structure, A[k], rows)
        dense_P(structure, P[k], L)
        if not cholesky(L, CONVEX):
            status[k] = BROKEN
            continue
        _invert(L, JT)
        for i in range(structure.m):
            size[i] = dot(rows[i], rows[i]) ** 0.5
        status[k], iterations[k], count = _iterate(
            structure, JT, RT, rows, size, A[k], q[k], b[k], x[k], d, z, r, u, active, where
        )
        if status[k] == SOLVED:
            _finish(structure, JT, RT, rows, P[k], q[k], A[k], b[k], x[k], y[k], s[k], d, z, r, u, active, where, count)
            if not _is_feasible(structure, size, b[k], x[k], y[k], s[k]):
                status[k] = BROKEN
        if status[k] != SOLVED:
            fill(x[k], np.nan)
            fill(y[k], np.nan)
            fill(s[k], np.nan)


@lean
def _invert(L: Any, JT: Any) -> None:
    """``JT = L^-1``, so that its rows are the columns of ``J = L^-T``."""
    n = L.shape[0]
    for i in range(n):
        fill(JT[i], 0.0)
        inverse = 1.0 / L[i, i]
        for k in range(i):
            factor = -L[i, k] * inverse
            for j in range(k + 1):
                JT[i, j] += factor * JT[k, j]
        JT[i, i] = inverse


@lean
def _iterate(
    structure: Any,
    JT: Any,
    RT: Any,
    rows: Any,
    size: Any,
    A: Any,
    q: Any,
    b: Any,
    x: Any,
    d: Any,
    z: Any,
    r: Any,
    u: Any,
    active: Any,
    where: Any,
) -> tuple[int, int, int]:
    """The active set, its multipliers u and x; returns status, number of changes and of active constraints."""
    A_cols, bound = structure.A_cols, structure.bound
    n, m, zero = structure.n, structure.m, structure.zero
    fill(x, 0.0)
    for i in range(n):
        add(x, -dot(JT[i, : i + 1], q[: i + 1]), JT[i])
    fill(where, -1)
    count, changes, equality = 0, 0, 0
    limit = 10 * (n + m) + 20
    while True:
        # The next constraint: the equalities in their order, then the inequality that is violated most.
        if equality < zero:
            new, excess = equality, dot(rows[equality], x) - b[equality]
            equality += 1
        else:
            length = dot(x, x) ** 0.5
            new, excess, worst = -1, 0.0, 0.0
            for i in range(zero, m):
                if where[i] != -1:
                    continue
                entry = bound[i]
                over = (A[entry] * x[A_cols[entry]] if entry >= 0 else dot(rows[i], x)) - b[i]
                part = over / (abs(b[i]) + size[i] * length + 1e-300)
                if over > 0.0 and part > VIOLATED and over > worst * size[i]:
                    new, excess, worst = i, over, over / (size[i] + 1e-300)
            if new == -1:
                return SOLVED, changes, count
        multiplier = 0.0
        while True:
            changes += 1
            if changes > limit:
                return LIMIT, changes, count
            inside, outside = _direction(structure, JT, RT, rows, A, new, count, d, z, r)
            independent = count < n and outside > DEPENDENT * (inside + outside)
            full = excess / outside if independent else np.inf
            step, drop = full, -1
            if new >= zero:
                for j in range(count):
                    if r[j] > 0.0 and active[j] >= zero and u[j] < step * r[j]:
                        step, drop = u[j] / r[j], j
            if step == np.inf:
                where[new] = -2  # dependent on the active ones: satisfied by them, or not to be satisfied
                if abs(excess) > TOLERABLE * (abs(b[new]) + size[new] * dot(x, x) ** 0.5 + 1e-300):
                    return _contradiction(b, active, r, new, zero, count), changes, count
                break
            if independent:
                add(x, -step, z)
                excess -= step * outside
            for j in range(count):
                u[j] -= step * r[j]
            multiplier += step
            if drop == -1:
                _join(JT, RT, d, z, count, outside)
                u[count], active[count], where[new] = multiplier, new, count
                count += 1
                break
            where[active[drop]] = -1
            count -= 1
            _leave(JT, RT, u, active, drop, count)
            for j in range(drop, count):
                where[active[j]] = j


@lean
def _contradiction(b: Any, active: Any, r: Any, new: int, zero: int, count: int) -> int:
    """INFEASIBLE if row ``new``, a combination r of active ones, contradicts their right-hand sides; else LIMIT: after many
    degenerate steps x may violate what can be satisfied."""
    implied, length = 0.0, abs(b[new])
    for j in range(count):
        implied += r[j] * b[active[j]]
        length += abs(r[j] * b[active[j]])
    gap = abs(implied - b[new]) if new < zero else implied - b[new]
    return INFEASIBLE if gap > TOLERABLE * length else LIMIT


@lean
def _direction(
    structure: Any, JT: Any, RT: Any, rows: Any, A: Any, new: int, count: int, d: Any, z: Any, r: Any
) -> tuple[float, float]:
    """``d = J'a``, the step z of x and r of the multipliers; returns the squared lengths of d's two parts."""
    A_cols = structure.A_cols
    n = JT.shape[0]
    entry = structure.bound[new]
    if entry >= 0:
        column, value = A_cols[entry], A[entry]
        for i in range(n):
            d[i] = JT[i, column] * value
    else:
        rows_times(JT, rows[new], d)
    inside, outside = dot(d[:count], d[:count]), dot(d[count:], d[count:])
    fill(z, 0.0)
    add_rows(z, d[count:], JT[count:])
    copy(d[:count], r)
    for k in range(count - 1, -1, -1):
        r[k] /= RT[k, k]
        add(r[:k], -r[k], RT[k, :k])
    return inside, outside


@lean
def _join(JT: Any, RT: Any, d: Any, z: Any, count: int, outside: float) -> None:
    """Append a column to R; the reflection needs ``z = J2 d2``, which the step has computed."""
    copy(d[:count], RT[count])
    length = outside**0.5
    sign = 1.0 if d[count] >= 0.0 else -1.0
    RT[count, count] = -sign * length
    add(z, sign * length, JT[count])
    d[count] += sign * length
    scale = -1.0 / (length * abs(d[count]))  # 2 over the squared length of the reflection's normal
    for i in range(count, JT.shape[0]):
        add(JT[i], scale * d[i], z)


@lean
def _leave(JT: Any, RT: Any, u: Any, active: Any, drop: int, count: int) -> None:
    """Remove column ``drop`` of R, of which ``count`` remain, and make it a triangle again by Givens rotations."""
    for j in range(drop, count):
        copy(RT[j + 1, : j + 2], RT[j])
        u[j], active[j] = u[j + 1], active[j + 1]
    for j in range(drop, count):
        a, b = RT[j, j], RT[j, j + 1]
        length = np.hypot(a, b)
        c, s = a / length, b / length
        for k in range(j, count):
            a, b = RT[k, j], RT[k, j + 1]
            RT[k, j], RT[k, j + 1] = c * a + s * b, c * b - s * a
        for k in range(JT.shape[1]):
            a, b = JT[j, k], JT[j + 1, k]
            JT[j, k], JT[j + 1, k] = c * a + s * b, c * b - s * a


@lean
def _finish(
    structure: Any,
    JT: Any,
    RT: Any,
    rows: Any,
    P: Any,
    q: Any,
    A: Any,
    b: Any,
    x: Any,
    y: Any,
    s: Any,
    d: Any,
    z: Any,
    r: Any,
    u: Any,
    active: Any,
    where: Any,
    count: int,
) -> None:
    """Refine x and u on the active set, and write y and s, whatever their signs."""
    m, zero = structure.m, structure.zero
    fill(y, 0.0)
    for j in range(count):
        y[active[j]] = u[j]
    for _ in range(2):
        # P dx + N du = top and N'dx = low; with dx = J w, J'PJ = I and J'N = [R; 0]
        fill(z, 0.0)
        add(z, -1.0, q)
        add_P(structure, P, -1.0, x, z)
        add_At(structure, A, -1.0, y, z)
        rows_times(JT, z, d)
        for j in range(count):  # R'w1 = low
            low = b[active[j]] - dot(rows[active[j]], x)
            for k in range(j):
                low -= RT[j, k] * r[k]
            r[j] = low / RT[j, j]
        for j in range(count):
            u[j] = d[j] - r[j]
            d[j] = r[j]
        for k in range(count - 1, -1, -1):  # R du = J1'top - w1
            u[k] /= RT[k, k]
            add(u[:k], -u[k], RT[k, :k])
        add_rows(x, d, JT)
        for j in range(count):
            y[active[j]] += u[j]
    copy(b, s)
    add_A(structure, A, -1.0, x, s)
    s[:zero] = 0.0
    for i in range(zero, m):
        if where[i] >= 0:
            s[i] = 0.0


@lean
def _is_feasible(structure: Any, size: Any, b: Any, x: Any, y: Any, s: Any) -> bool:
    """Whether signs are right up to rounding, which is then taken away; finite numbers only."""
    length, largest_y = dot(x, x) ** 0.5, largest(y)
    if not (is_finite(x) and is_finite(y)):
        return False
    for i in range(structure.zero, structure.m):
        if s[i] < -TOLERABLE * (abs(b[i]) + size[i] * length) or y[i] < -TOLERABLE * largest_y:
            return False
        y[i] = max(y[i], 0.0)
        s[i] = max(s[i], 0.0)
    return True

"""The reduced KKT system of a small program with any cones at a point.

With the eigenvectors U of the projection's derivative (``kernels.spectrum``; ``linalg.kkt`` derives the system), held rows
N and the weighed rows' ``Q``, both J and J' reduce to

    [ P + A'QA   N' ] (u, omega) = (top + A'Qt, U_N't)          J (a, c) = (r, t):  top = r, a = u, c = Aa + z - t
    [ N         -D  ]                                           J'(u, w) = (g, h):  top = g + A'h, t = h, w = z - h

with ``z = Q (Au - t) + U_N omega``. Where P + A'QA is singular, as for every linear objective, held rows are added to it:
with ``e = 1 / (1 + RD)``, ``N'eR`` times the second line goes to the first, and the second is scaled by e. Solutions are
refined on the data as given. Elements with a small pivot are left to a method that can tell what is singular.
"""

from __future__ import annotations

from typing import Any

from ddn_cvx.kernels import table as cell
from ddn_cvx.kernels.dense import add, add_rows, copy, dot, fill, largest
from ddn_cvx.kernels.envelope import clear, factor, solve
from ddn_cvx.kernels.jit import lean, view
from ddn_cvx.kernels.lanes import anywhere, where
from ddn_cvx.kernels.spectrum import add_component, component, vector, weigh
from ddn_cvx.kernels.table import add_A, add_At, add_P, matrix, part, side, space, top

PIVOT = 1e-10
"""The smallest pivot, next to the terms it is the sum of, of a factor that is good enough."""
NOISE = 1e-16
"""A diagonal entry below this, next to the squares of A's entries, is nothing but rounding."""
REFINEMENTS = 3
EXACT = 1e-14
"""Residual, relative to the right-hand side, that is as good as none."""
GOOD = 1e-8
"""Residual, relative to the right-hand side, from which one step of refinement reaches what rounding allows."""


@lean
def prepare(T: Any, P: Any, A: Any, W: Any, J: Any) -> Any:
    """Assemble and factor the matrix for the spectrum that is there; False for elements with a small pivot."""
    place, sign = space(T, J, cell.J_PLACE), space(T, W, cell.W_SIGN)
    idle, visible = space(T, W, cell.W_IDLE), part(T, cell.VISIBLE)
    n = T[cell.N]
    whole = n + J[T[cell.J_COUNTS]]
    _arrange(T, W, J)
    K, first = matrix(T, W, cell.W_K, whole, whole), space(T, J, cell.J_FIRST)[:whole]
    clear(K, first)
    P_rows, P_cols = part(T, cell.P_ROWS), part(T, cell.P_COLS)
    for e in range(P.shape[0]):
        put(K, place[P_rows[e]], place[P_cols[e]], P[e])
    _add_weighed(T, A, W, J, K)
    size = 0.0
    for j in range(n):
        size = max(size, K[place[j], place[j]])
    _add_held(T, A, W, J, K, where(size > 0.0, size, 1.0))
    most = largest(A)
    floor, good = NOISE * most * most, size == size
    for j in range(n):
        at = place[j]
        alone = (K[at, at] == 0.0) & (visible[j] == 0)
        idle[j], K[at, at] = where(alone, 1.0, 0.0), where(alone, 1.0, K[at, at])
        good = good & (alone | (K[at, at] > floor))
    return good & factor(K, first, sign[:whole], PIVOT, space(T, W, cell.W_SIDE), space(T, W, cell.W_OTHER))


@lean
def put(K: Any, i: int, j: int, value: Any) -> None:
    """Add to an entry of the lower triangle."""
    if i >= j:
        K[i, j] += value
    else:
        K[j, i] += value


@lean
def _reach(T: Any, J: Any, r: int) -> tuple[int, int]:
    """The lowest and the highest rank that the held row r meets; of an empty one, which ``factor`` refuses, the first."""
    k, at = J[T[cell.J_BLOCK] + r], J[T[cell.J_INDEX] + r]
    if k < 0:
        return max(T[T[cell.ROW_LOW] + at], 0), max(T[T[cell.ROW_HIGH] + at], 0)
    return max(T[T[cell.BLOCK_LOW] + k], 0), max(T[T[cell.BLOCK_HIGH] + k], 0)


@lean
def _arrange(T: Any, W: Any, J: Any) -> None:
    """Where variables and held rows go, each row right after its last variable, and where their rows begin."""
    place, by_rank = space(T, J, cell.J_PLACE), space(T, J, cell.J_BY_RANK)
    after, first = space(T, J, cell.J_AFTER), space(T, J, cell.J_FIRST)
    sign, rank, start, held = space(T, W, cell.W_SIGN), part(T, cell.RANK), part(T, cell.FIRST), J[T[cell.J_COUNTS]]
    fill(after, 0)
    for r in range(held):
        after[_reach(T, J, r)[1]] += 1
    position = 0
    for j in range(T[cell.N]):
        by_rank[j] = position
        position += 1 + after[j]
        after[j] = by_rank[j] + 1
    for j in range(T[cell.N]):
        place[j] = by_rank[rank[j]]
        first[by_rank[j]] = by_rank[start[j]]
        sign[by_rank[j]] = 1.0
    for r in range(held):
        low, last = _reach(T, J, r)
        at = after[last]
        J[T[cell.J_ROW] + r], first[at], sign[at] = at, by_rank[low], -1.0
        after[last] = at + 1


@lean
def row_of(T: Any, A: Any, W: Any, k: int, u: Any, row: Any) -> int:
    """``row = u'A`` on the columns of block k, u on its rows; returns how many columns."""
    a, b = T[T[cell.STARTS] + k], T[T[cell.STARTS] + k + 1]
    rows, entries = part(T, cell.A_ROWS), part(T, cell.ENTRIES)
    places, row_starts = part(T, cell.PLACE), part(T, cell.ROW_STARTS)
    width = T[T[cell.COL_STARTS] + k + 1] - T[T[cell.COL_STARTS] + k]
    fill(row[:width], 0.0)
    if T[T[cell.THIN] + k]:
        for e in range(row_starts[a], row_starts[b]):
            row[places[e]] += u[rows[entries[e]] - a] * A[entries[e]]
    else:
        add_rows(row[:width], u, local_rows(T, W, k))
    return int(width)


@lean
def _add_weighed(T: Any, A: Any, W: Any, J: Any, K: Any) -> None:
    """``A'QA``."""
    place, row, starts, axis = space(T, J, cell.J_PLACE), top(T, W, 0), part(T, cell.STARTS), space(T, W, cell.W_AXIS)
    for k in range(T[cell.BLOCKS]):
        weight = W[T[cell.W_ACROSS] + k]
        if not anywhere(weight != 0.0):
            continue
        a, b = starts[k], starts[k + 1]
        axis[a] = 0.0
        width = row_of(T, A, W, k, axis[a:b], row)
        cols = part(T, cell.COLS)[T[T[cell.COL_STARTS] + k] :]
        if T[T[cell.THIN] + k]:
            for i in range(a + 1, b):
                add_pairs(T, A, i, weight, place, K)
            add_outer(row, -weight, cols, width, place, K)
        else:
            add_products(local_products(T, W, k), weight, row, -weight, row, 0.0, cols, place, K)
    for r in range(J[T[cell.J_COUNTS] + 1]):
        k = J[T[cell.J_W_BLOCK] + r]
        width = row_of(T, A, W, k, vector(T, W, J[T[cell.J_W_INDEX] + r]), row)
        add_outer(row, W[T[cell.W_WEIGHT] + r], part(T, cell.COLS)[T[T[cell.COL_STARTS] + k] :], width, place, K)


@lean
def add_outer(row: Any, factor: Any, cols: Any, width: int, place: Any, K: Any) -> None:
    """``K <- K + factor row row'`` for a row on the columns ``cols``."""
    first, run = place[cols[0]] if width else 0, _adjacent(place, cols, width)
    for i in range(width):
        if anywhere(row[i] != 0.0):
            at, value = place[cols[i]], factor * row[i]
            together = min(i + 1, run) if at >= first + min(i, run - 1) else 0
            out = K[at, first : first + together]
            for j in range(together):
                out[j] += value * row[j]
            for j in range(together, i + 1):
                put(K, at, place[cols[j]], value * row[j])


@lean
def _adjacent(place: Any, cols: Any, width: int) -> int:
    """How many of the columns, from the first on, stand next to each other."""
    run = min(1, width)
    while run < width and place[cols[run]] == place[cols[run - 1]] + 1:
        run += 1
    return run


@lean
def add_products(gram: Any, weight: Any, a: Any, alpha: Any, b: Any, beta: Any, cols: Any, place: Any, K: Any) -> None:
    """``K <- K + weight gram + alpha a a' + beta b b'``, on the columns ``cols``."""
    width = gram.shape[0]
    first, run = place[cols[0]] if width else 0, _adjacent(place, cols, width)
    for i in range(width):
        at, line, u, v = place[cols[i]], gram[i], alpha * a[i], beta * b[i]
        together = min(i + 1, run) if at >= first + min(i, run - 1) else 0
        out = K[at, first : first + together]
        for j in range(together):
            out[j] += weight * line[j] + u * a[j] + v * b[j]
        for j in range(together, i + 1):
            put(K, at, place[cols[j]], weight * line[j] + u * a[j] + v * b[j])


@lean
def add_pairs(T: Any, A: Any, i: int, weight: Any, place: Any, K: Any) -> None:
    """``K <- K + weight a a'`` for the row a of A with index i."""
    entries, cols = part(T, cell.ENTRIES), part(T, cell.A_COLS)
    start, stop = T[T[cell.ROW_STARTS] + i], T[T[cell.ROW_STARTS] + i + 1]
    for e in range(start, stop):
        at, value = place[cols[entries[e]]], weight * A[entries[e]]
        for f in range(start, e + 1):
            put(K, at, place[cols[entries[f]]], value * A[entries[f]])


@view
def local_rows(T: Any, W: Any, k: int) -> Any:
    """The rows of block k on its own columns, of blocks with many entries (``multiply_out``)."""
    start, width = T[cell.W_LOCAL] + T[T[cell.LOCAL_STARTS] + k], T[T[cell.COL_STARTS] + k + 1] - T[T[cell.COL_STARTS] + k]
    height = T[T[cell.STARTS] + k + 1] - T[T[cell.STARTS] + k]
    return W[start : start + height * width].reshape(height, width)


@view
def local_products(T: Any, W: Any, k: int) -> Any:
    """The lower triangle of ``R'R`` for all but the first of these rows, of second-order cones (``multiply_out``)."""
    start, width = T[cell.W_KEPT] + T[T[cell.KEPT_STARTS] + k], T[T[cell.COL_STARTS] + k + 1] - T[T[cell.COL_STARTS] + k]
    return W[start : start + width * width].reshape(width, width)


@lean
def multiply_out(T: Any, A: Any, W: Any) -> None:
    """What does not change while A does not."""
    rows, entries = part(T, cell.A_ROWS), part(T, cell.ENTRIES)
    places, row_starts = part(T, cell.PLACE), part(T, cell.ROW_STARTS)
    for k in range(T[cell.BLOCKS]):
        if not T[T[cell.THIN] + k]:
            a, b, local = T[T[cell.STARTS] + k], T[T[cell.STARTS] + k + 1], local_rows(T, W, k)
            for i in range(b - a):
                fill(local[i], 0.0)
            for e in range(row_starts[a], row_starts[b]):
                local[rows[entries[e]] - a, places[e]] = A[entries[e]]
            if T[T[cell.KIND] + k] == cell.SECOND_ORDER:
                _products(local, local_products(T, W, k))


@lean
def _products(local: Any, gram: Any) -> None:
    width, r = local.shape[1], 1
    for i in range(width):
        fill(gram[i], 0.0)
    while r < local.shape[0]:  # four rows at a time
        left = local.shape[0] - r
        one, two, three, four = (
            local[r],
            local[r + (1 if left > 1 else 0)],
            local[r + (2 if left > 2 else 0)],
            local[r + (3 if left > 3 else 0)],
        )
        for i in range(width):
            a, b, c, d = one[i], two[i], three[i], four[i]
            b, c, d = b if left > 1 else 0.0, c if left > 2 else 0.0, d if left > 3 else 0.0
            out = gram[i]
            for j in range(i + 1):
                out[j] += a * one[j] + b * two[j] + c * three[j] + d * four[j]
        r += 4


@lean
def _add_held(T: Any, A: Any, W: Any, J: Any, K: Any, size: Any) -> None:
    """The held rows, with their multiple that goes to the upper left; ``W_SCALE`` and ``W_LIFT`` keep e and eR."""
    place, row, entries, A_cols = space(T, J, cell.J_PLACE), top(T, W, 0), part(T, cell.ENTRIES), part(T, cell.A_COLS)
    row_starts = part(T, cell.ROW_STARTS)
    for r in range(J[T[cell.J_COUNTS]]):
        k, index, at, slack = J[T[cell.J_BLOCK] + r], J[T[cell.J_INDEX] + r], J[T[cell.J_ROW] + r], W[T[cell.W_SLACK] + r]
        live = W[T[cell.W_LIVE] + r]
        length, start, stop, width = 0.0, 0, 0, 0
        if k < 0:
            start, stop = row_starts[index], row_starts[index + 1]
            for e in range(start, stop):
                length += A[entries[e]] * A[entries[e]]
        else:
            width = row_of(T, A, W, k, vector(T, W, index), row)
            length = dot(row[:width], row[:width])
        R = where(length > 0.0, live + live * size / length, 0.0)
        scale = live / (1.0 + R * slack)
        W[T[cell.W_SCALE] + r], W[T[cell.W_LIFT] + r] = scale, R * scale
        K[at, at] = live - 1.0 - scale * slack  # a row that is not live gives its unknown, zero, and nothing else
        if k < 0:
            for e in range(start, stop):
                K[at, place[A_cols[entries[e]]]] = live * A[entries[e]]
            add_pairs(T, A, index, R, place, K)
        else:
            cols = part(T, cell.COLS)[T[T[cell.COL_STARTS] + k] :]
            for j in range(width):
                K[at, place[cols[j]]] = scale * row[j]
            add_outer(row, R * scale, cols, width, place, K)


@lean
def solve_reduced(T: Any, P: Any, A: Any, W: Any, J: Any, right: Any, t: Any, u: Any, z: Any, refined: Any) -> None:
    """u and z for ``right`` (n,), the first line without what t adds to it, and ``t`` (m,)."""
    r, du, slack = top(T, W, 1), top(T, W, 2), space(T, W, cell.W_SLACK)
    rest, dz, low, omega = side(T, W, 0), side(T, W, 1), space(T, W, cell.W_LOW), space(T, W, cell.W_OMEGA)
    change = space(T, W, cell.W_CHANGE)
    held = J[T[cell.J_COUNTS]]
    fill(u, 0.0)
    fill(z, 0.0)
    fill(omega, 0.0)
    copy(right, r)
    copy(t, rest)
    for h in range(held):
        low[h] = component(T, W, J, h, t)
    size = max(largest(right), largest(t))
    error, wanting = size, size == size
    for step in range(1 + REFINEMENTS):
        # the weighed rows see t in the first pass only: from then on their equations hold, in z
        _once(T, A, W, J, r, rest, low, du, dz, change)
        now = where(wanting, 1.0, 0.0)
        add(u, now, du)
        add(z, now, dz)
        add(omega, now, change)
        wanting = wanting & refined & (error > GOOD * size)
        if step == REFINEMENTS or not anywhere(wanting):
            break
        fill(rest, 0.0)
        copy(right, r)
        add_P(T, P, -1.0, u, r)
        add_At(T, A, -1.0, z, r)
        copy(t, dz)
        add_A(T, A, -1.0, u, dz)
        for h in range(held):
            low[h] = component(T, W, J, h, dz) + slack[h] * omega[h]
        error = max(largest(r), largest(low[:held]))
        wanting = wanting & (error > EXACT * size)
        if not anywhere(wanting):
            break


@lean
def _once(T: Any, A: Any, W: Any, J: Any, r: Any, t: Any, low: Any, u: Any, z: Any, omega: Any) -> None:
    n, held = T[cell.N], J[T[cell.J_COUNTS]]
    whole = n + held
    place, rows = space(T, J, cell.J_PLACE), space(T, J, cell.J_ROW)
    idle, right = space(T, W, cell.W_IDLE), space(T, W, cell.W_SIDE)
    scale, lift, given, above = space(T, W, cell.W_SCALE), space(T, W, cell.W_LIFT), side(T, W, 5), top(T, W, 3)
    weigh(T, W, J, t, given)
    for h in range(held):
        add_component(T, W, J, h, lift[h] * low[h], given)
    copy(r, above)
    add_At(T, A, 1.0, given, above)
    for j in range(n):
        right[place[j]] = where(idle[j] > 0.0, 0.0, above[j])
    for h in range(held):
        right[rows[h]] = scale[h] * low[h]
    solve(matrix(T, W, cell.W_K, whole, whole), space(T, J, cell.J_FIRST)[:whole], space(T, W, cell.W_SIGN)[:whole], right)
    for j in range(n):
        u[j] = right[place[j]]
    for i in range(T[cell.M]):
        given[i] = -t[i]
    add_A(T, A, 1.0, u, given)
    weigh(T, W, J, given, z)
    for h in range(held):
        omega[h] = right[rows[h]]
        add_component(T, W, J, h, omega[h], z)

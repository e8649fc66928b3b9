"""The reduced KKT system of a small program with any cones at a point, and Newton's method on its residual.

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

import numpy as np

from ddn_cvx.kernels.dense import add, copy, dot, fill, largest
from ddn_cvx.kernels.envelope import factor, solve
from ddn_cvx.kernels.jit import inner, jit
from ddn_cvx.kernels.spectrum import add_component, component, decompose, spectrum, weigh
from ddn_cvx.kernels.structure import add_A, add_At, add_P

PIVOT = 1e-10
"""The smallest pivot, next to the terms it is the sum of, of a factor that is good enough."""
REFINEMENTS = 3
GOOD = 1e-8
"""Residual, relative to the right-hand side, from which one step of refinement reaches what rounding allows."""
GOAL = 1e-14
"""Relative residual at which Newton's method has nothing left to gain."""
NEWTON_STEPS = 12
HALVINGS = 8


@inner
def workspace(structure: Any) -> Any:
    """Space for the solution of systems of this structure."""
    n, m, cones = structure.n, structure.m, structure.cones
    whole = n + m
    return (
        spectrum(structure),
        np.empty(whole * whole),
        np.empty((6, n)),
        np.empty((7, m)),
        np.empty((4, whole)),
        np.empty((3, n), np.int64),
        np.empty((3, whole), np.int64),
        np.empty(n, np.bool_),
        np.empty((cones.tallest, cones.widest)),
        np.empty((cones.widest, cones.widest)),
    )


@inner
def prepare(structure: Any, P: Any, A: Any, work: Any) -> bool:
    """Assemble and factor the matrix for the spectrum that is there; False for elements with a small pivot."""
    found, memory, _, _, wholes, columns, places, idle, _, _ = work
    cones, n = structure.cones, structure.n
    place, first, sign = columns[0], places[0], wholes[0]
    held = found.counts[0]
    whole = n + held
    if not arrange(structure, found, columns, places, sign):
        return False
    K = memory[: whole * whole].reshape(whole, whole)
    for i in range(whole):
        fill(K[i, : i + 1], 0.0)
    P_rows, P_cols = structure.P_rows, structure.P_cols
    for e in range(P.shape[0]):
        put(K, place[P_rows[e]], place[P_cols[e]], P[e])
    _add_weighed(structure, A, work, K)
    size = 0.0
    for j in range(n):
        size = max(size, K[place[j], place[j]])
    _add_held(structure, A, work, K, size if size > 0.0 else 1.0)
    visible = cones.visible
    for j in range(n):
        idle[j] = not visible[j] and K[place[j], place[j]] == 0.0
        if idle[j]:
            K[place[j], place[j]] = 1.0
    return factor(K, first[:whole], sign[:whole], PIVOT, wholes[1])


@inner
def put(K: Any, i: int, j: int, value: float) -> None:
    if i >= j:
        K[i, j] += value
    else:
        K[j, i] += value


@inner
def arrange(structure: Any, found: Any, columns: Any, places: Any, sign: Any) -> bool:
    """Where variables (``columns[0]``) and held rows (``places[1]``) go, each row right after its last variable, and where
    their rows begin (``places[0]``)."""
    cones, n, held = structure.cones, structure.n, found.counts[0]
    place, by_rank, after = columns[0], columns[1], columns[2]
    first, row_place = places[0], places[1]
    rank, start, row_reach, block_reach = cones.rank, cones.first, cones.row_reach, cones.block_reach
    fill(after, 0)
    for r in range(held):
        k = found.block[r]
        last = row_reach[found.index[r], 1] if k < 0 else block_reach[k, 1]
        if last < 0:
            return False
        after[last] += 1
    position = 0
    for j in range(n):
        by_rank[j] = position
        position += 1 + after[j]
        after[j] = by_rank[j] + 1
    for j in range(n):
        place[j] = by_rank[rank[j]]
        first[by_rank[j]] = by_rank[start[j]]
        sign[by_rank[j]] = 1.0
    for r in range(held):
        k = found.block[r]
        low = row_reach[found.index[r], 0] if k < 0 else block_reach[k, 0]
        last = row_reach[found.index[r], 1] if k < 0 else block_reach[k, 1]
        row_place[r] = after[last]
        first[after[last]] = by_rank[low]
        sign[after[last]] = -1.0
        after[last] += 1
    return True


@inner
def _add_weighed(structure: Any, A: Any, work: Any, K: Any) -> None:
    """``A'QA``."""
    found, _, tops, _, _, columns, _, _, local, gram = work
    cones, place, row = structure.cones, columns[0], tops[0]
    starts, col_starts, cols, entries, row_starts = cones.starts, cones.col_starts, cones.cols, cones.entries, cones.row_starts
    places, thin = cones.place, cones.thin
    for k in range(found.across.shape[0]):
        weight = found.across[k]
        if weight == 0.0:
            continue
        a, b, c = starts[k], starts[k + 1], col_starts[k]
        width = col_starts[k + 1] - c
        fill(row[:width], 0.0)
        for e in range(row_starts[a + 1], row_starts[b]):
            row[places[e]] += found.axis[_row_of(structure, entries[e])] * A[entries[e]]
        if thin[k]:
            for i in range(a + 1, b):
                add_pairs(structure, A, i, weight, place, K)
            _add_outer(row, -weight, cols, c, width, place, K)
        else:
            gather(structure, A, k, local)
            products(local, 1, b - a, width, gram)
            for i in range(width):
                for j in range(i + 1):
                    put(K, place[cols[c + i]], place[cols[c + j]], weight * (gram[i, j] - row[i] * row[j]))
    for r in range(found.counts[1]):
        k = found.weighed_block[r]
        a, b, c = starts[k], starts[k + 1], col_starts[k]
        width = col_starts[k + 1] - c
        u = found.U[found.weighed_index[r]]
        fill(row[:width], 0.0)
        for e in range(row_starts[a], row_starts[b]):
            row[places[e]] += u[_row_of(structure, entries[e]) - a] * A[entries[e]]
        _add_outer(row, found.weight[r], cols, c, width, place, K)


@inner
def _row_of(structure: Any, entry: int) -> int:
    return int(structure.A_rows[entry])


@inner
def _add_outer(row: Any, factor: float, cols: Any, start: int, width: int, place: Any, K: Any) -> None:
    for i in range(width):
        if row[i] != 0.0:
            at, value = place[cols[start + i]], factor * row[i]
            for j in range(i + 1):
                put(K, at, place[cols[start + j]], value * row[j])


@inner
def add_pairs(structure: Any, A: Any, i: int, weight: float, place: Any, K: Any) -> None:
    """``K <- K + weight a a'`` for the row a of A with index i."""
    cones, A_cols = structure.cones, structure.A_cols
    entries = cones.entries
    for e in range(cones.row_starts[i], cones.row_starts[i + 1]):
        at, value = place[A_cols[entries[e]]], weight * A[entries[e]]
        for f in range(cones.row_starts[i], e + 1):
            put(K, at, place[A_cols[entries[f]]], value * A[entries[f]])


@inner
def gather(structure: Any, A: Any, k: int, local: Any) -> None:
    """The rows of block k on its own columns."""
    cones, A_rows = structure.cones, structure.A_rows
    a, b = cones.starts[k], cones.starts[k + 1]
    entries, places = cones.entries, cones.place
    width = cones.col_starts[k + 1] - cones.col_starts[k]
    for i in range(b - a):
        fill(local[i, :width], 0.0)
    for e in range(cones.row_starts[a], cones.row_starts[b]):
        local[A_rows[entries[e]] - a, places[e]] = A[entries[e]]


@inner
def products(local: Any, start: int, stop: int, width: int, gram: Any) -> None:
    """The lower triangle of ``R'R`` for the rows R from ``start`` to ``stop``, four rows and two columns at a time."""
    for i in range(width):
        fill(gram[i, : i + 1], 0.0)
    r = start
    while r + 3 < stop:
        one, two, three, four = local[r], local[r + 1], local[r + 2], local[r + 3]
        for i in range(width):
            a, b, c, d = one[i], two[i], three[i], four[i]
            out = gram[i]
            for j in range(i + 1):
                out[j] += a * one[j] + b * two[j] + c * three[j] + d * four[j]
        r += 4
    while r < stop:
        one = local[r]
        for i in range(width):
            add(gram[i, : i + 1], one[i], one)
        r += 1


@inner
def _add_held(structure: Any, A: Any, work: Any, K: Any, size: float) -> None:
    """The held rows, with their multiple that goes to the upper left; ``wholes[2]`` and ``wholes[3]`` keep e and eR."""
    found, _, tops, _, wholes, columns, places, _, _, _ = work
    cones, place, row_place, row = structure.cones, columns[0], places[1], tops[0]
    starts, col_starts, cols, entries, row_starts = cones.starts, cones.col_starts, cones.cols, cones.entries, cones.row_starts
    local, A_cols = cones.place, structure.A_cols
    scale, lift = wholes[2], wholes[3]
    for r in range(found.counts[0]):
        k, at = found.block[r], row_place[r]
        length = 0.0
        if k < 0:
            i = found.index[r]
            for e in range(row_starts[i], row_starts[i + 1]):
                length += A[entries[e]] * A[entries[e]]
        else:
            a, b, c = starts[k], starts[k + 1], col_starts[k]
            width = col_starts[k + 1] - c
            u = found.U[found.index[r]]
            fill(row[:width], 0.0)
            for e in range(row_starts[a], row_starts[b]):
                row[local[e]] += u[_row_of(structure, entries[e]) - a] * A[entries[e]]
            length = dot(row[:width], row[:width])
        R = size / length if length > 0.0 else 0.0
        scale[r] = 1.0 / (1.0 + R * found.slack[r])
        lift[r] = R * scale[r]
        K[at, at] = -scale[r] * found.slack[r]
        if k < 0:
            for e in range(row_starts[i], row_starts[i + 1]):
                K[at, place[A_cols[entries[e]]]] = A[entries[e]]
            add_pairs(structure, A, i, R, place, K)
        else:
            for j in range(width):
                K[at, place[cols[c + j]]] = scale[r] * row[j]
            _add_outer(row, lift[r], cols, c, width, place, K)


@inner
def solve_reduced(structure: Any, P: Any, A: Any, work: Any, top: Any, t: Any, u: Any, z: Any) -> None:
    """u and z for ``top`` (n,) and ``t`` (m,), refined."""
    found, _, tops, lows, _, _, _, _, _, _ = work
    r, du = tops[1], tops[2]
    rest, dz, low, omega, change = lows[0], lows[1], lows[2], lows[3], lows[4]
    held = found.counts[0]
    fill(u, 0.0)
    fill(z, 0.0)
    fill(omega, 0.0)
    copy(top, r)
    copy(t, rest)
    for h in range(held):
        low[h] = component(structure, found, h, t)
    size = max(largest(top), largest(t))
    error = size
    for step in range(1 + REFINEMENTS):
        # the weighed rows see t in the first pass only: then their equations hold, and z carries what they say
        _once(structure, A, work, r, rest, low, du, dz, change)
        add(u, 1.0, du)
        add(z, 1.0, dz)
        add(omega, 1.0, change)
        if step == REFINEMENTS or error <= GOOD * size:
            break
        fill(rest, 0.0)
        copy(top, r)
        add_P(structure, P, -1.0, u, r)
        add_At(structure, A, -1.0, z, r)
        copy(t, dz)
        add_A(structure, A, -1.0, u, dz)
        for h in range(held):
            low[h] = component(structure, found, h, dz) + found.slack[h] * omega[h]
        error = max(largest(r), largest(low[:held]))


@inner
def _once(structure: Any, A: Any, work: Any, r: Any, t: Any, low: Any, u: Any, z: Any, omega: Any) -> None:
    found, memory, tops, lows, wholes, columns, places, idle, _, _ = work
    n, held = structure.n, found.counts[0]
    whole = n + held
    K = memory[: whole * whole].reshape(whole, whole)
    place, first, row_place = columns[0], places[0], places[1]
    sign, side, scale, lift = wholes[0], wholes[1], wholes[2], wholes[3]
    given, whole_top = lows[5], tops[3]
    weigh(structure, found, t, given)
    for h in range(held):
        add_component(structure, found, h, lift[h] * low[h], given)
    copy(r, whole_top)
    add_At(structure, A, 1.0, given, whole_top)
    for j in range(n):
        side[place[j]] = 0.0 if idle[j] else whole_top[j]
    for h in range(held):
        side[row_place[h]] = scale[h] * low[h]
    solve(K, first[:whole], sign[:whole], side)
    for j in range(n):
        u[j] = side[place[j]]
    for i in range(structure.m):
        given[i] = -t[i]
    add_A(structure, A, 1.0, u, given)
    weigh(structure, found, given, z)
    for h in range(held):
        omega[h] = side[row_place[h]]
        add_component(structure, found, h, omega[h], z)


@jit
def reverse_once(
    first: int, last: int, structure: Any, P: Any, A: Any, v: Any, ok: Any, g: Any, h: Any, u: Any, w: Any, healthy: Any
) -> None:
    """``J' (u, w) = (g, h)`` for one right-hand side, g (B, n), h (B, m), without keeping the factors.

    Says in ``healthy`` (B,) which elements it has solved; those that are not ``ok`` get zeros.
    """
    work = workspace(structure)
    top, t = work[2][4], work[3][6]
    y, s = np.empty(structure.m), np.empty(structure.m)
    for k in range(first, last):
        fill(u[k], 0.0)
        fill(w[k], 0.0)
        healthy[k] = True
        if not ok[k]:
            continue
        healthy[k] = decompose(structure, v[k], y, s, work[0]) and prepare(structure, P[k], A[k], work)
        if healthy[k]:
            copy(g[k], top)
            add_At(structure, A[k], 1.0, h[k], top)
            copy(h[k], t)
            solve_reduced(structure, P[k], A[k], work, top, t, u[k], w[k])
            add(w[k], -1.0, h[k])


@inner
def polish(structure: Any, P: Any, q: Any, A: Any, b: Any, x: Any, v: Any, y: Any, s: Any, work: Any, space: Any) -> float:
    """Newton's method from (x, v), in place, with y and s at the point it ends at; returns the relative residual there."""
    n, m = structure.n, structure.m
    tops, lows = space
    r, a, x_trial, top = tops[0], tops[1], tops[2], tops[3]
    t, c, v_trial, low = lows[0], lows[1], lows[2], lows[3]
    good = decompose(structure, v, y, s, work[0])
    error = residual(structure, P, q, A, b, x, y, s, top, low, tops[4], lows[4])
    for _ in range(NEWTON_STEPS):
        if error <= GOAL or not good or not prepare(structure, P, A, work):
            break
        for j in range(n):
            r[j] = -top[j]
        for i in range(m):
            t[i] = -low[i]
        solve_reduced(structure, P, A, work, r, t, a, c)
        add_A(structure, A, 1.0, a, c)
        for i in range(m):
            c[i] -= t[i]
        length, better = 1.0, False
        for _ in range(HALVINGS):
            for j in range(n):
                x_trial[j] = x[j] + length * a[j]
            for i in range(m):
                v_trial[i] = v[i] + length * c[i]
            good = decompose(structure, v_trial, y, s, work[0])
            trial = residual(structure, P, q, A, b, x_trial, y, s, top, low, tops[4], lows[4])
            if trial < error:
                better = True
                break
            if error < 1e-11:
                break
            length *= 0.5
        if not better:
            decompose(structure, v, y, s, work[0])
            break
        copy(x_trial, x)
        copy(v_trial, v)
        stalled = trial > 0.1 * error and error < 1e-12
        error = trial
        if stalled:
            break
    return error


@inner
def residual(
    structure: Any, P: Any, q: Any, A: Any, b: Any, x: Any, y: Any, s: Any, top: Any, low: Any, Px: Any, Ax: Any
) -> float:
    """``top = Px + q + A'y`` and ``low = Ax + s - b``; the larger of the two, relative to their terms."""
    fill(Px, 0.0)
    fill(Ax, 0.0)
    fill(top, 0.0)
    add_P(structure, P, 1.0, x, Px)
    add_At(structure, A, 1.0, y, top)
    add_A(structure, A, 1.0, x, Ax)
    above = 1.0 + max(largest(q), max(largest(Px), largest(top)))
    below = 1.0 + max(largest(b), max(largest(Ax), largest(s)))
    for j in range(structure.n):
        top[j] += Px[j] + q[j]
    for i in range(structure.m):
        low[i] = Ax[i] + s[i] - b[i]
    error = max(largest(top) / above, largest(low) / below)
    return error if error == error else np.inf

"""From parameters to problem data, eliminated variables substituted, and the same way back for gradients.

``program.elimination`` derives the formulas: with ``W = M D`` for the quadratic terms D of the eliminated variables

    P = P0 + W M'  at the stored entries,        q = q0 - M pull,        pull = q_E + D c,

where P0, q0, A, b, M (r, e), c and q_E are affine in the parameters u. The gradient with respect to P is of rank two at
a solution, ``-(u x' + x u')``, and is never formed: all of the way back costs as much as there are stored entries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.kernels.dense import add, copy, dot, fill, is_finite
from ddn_cvx.kernels.jit import jit, lean
from ddn_cvx.kernels.optimality import project
from ddn_cvx.kernels.structure import Integers


class Substitution(NamedTuple):
    """The affine map in compressed sparse rows, and where ``W M'`` goes."""

    indptr: Integers
    indices: Integers
    values: NDArray[np.float64]
    offset: NDArray[np.float64]
    stops: Integers
    """Ends of the sections P0, q0, A, b, M, c and q_E."""
    kept: int
    """Rows r of M."""
    eliminated: int
    """Columns e of M."""
    D: NDArray[np.float64]
    """Quadratic terms of the eliminated variables, ``(e, e)``."""
    is_diagonal: bool
    rows: Integers
    """Row and column of an entry of ``W M'``, and its place among the stored entries of P."""
    cols: Integers
    places: Integers
    is_gather: bool
    """Whether every row of the map has at most one entry: then ``factor`` times entry ``source`` of u is all of it."""
    source: Integers
    factor: NDArray[np.float64]


@jit
def bind(first: int, last: int, sub: Any, u: Any, P: Any, q: Any, A: Any, b: Any, finite: Any) -> None:
    """The data of the elements ``first .. last - 1`` for u (B, k); ``finite`` (B,) says whether they are numbers.

    Elements whose parameters are not finite get the data of zero parameters.
    """
    e = sub.eliminated
    work = np.empty(sub.offset.shape[0]), np.empty((sub.kept, e)), np.empty(e), np.empty(e), np.zeros(u.shape[1])
    _bind(first, last, sub, u, P, q, A, b, finite, work)


@lean
def _bind(first: int, last: int, sub: Any, u: Any, P: Any, q: Any, A: Any, b: Any, finite: Any, work: Any) -> None:
    sections, W, pull, spare, zeros = work
    a, e = sub.stops, sub.eliminated
    for k in range(first, last):
        good = is_finite(u[k])
        _affine(sub, u[k] if good else zeros, 0, sections)
        copy(sections[: a[0]], P[k])
        copy(sections[a[0] : a[1]], q[k])
        copy(sections[a[1] : a[2]], A[k])
        copy(sections[a[2] : a[3]], b[k])
        if e:
            M = sections[a[3] : a[4]].reshape(sub.kept, e)
            _pull(sub, sections, pull, spare)
            _weigh(sub, M, W, spare)
            _add_products(sub, W, M, P[k])
            for j in range(sub.kept):
                q[k, j] -= dot(M[j], pull)
        finite[k] = good and is_finite(P[k]) and is_finite(q[k]) and is_finite(A[k]) and is_finite(b[k])


@jit
def pull_back(
    first: int,
    last: int,
    sub: Any,
    structure: Any,
    u: Any,
    x: Any,
    v: Any,
    ok: Any,
    g: Any,
    h: Any,
    ends: Any,
    out: Any,
) -> None:
    """The gradient with respect to the parameters, zero where not ``ok``. It comes in pieces, of which ``ends`` are the ends
    within the k parameters: ``out`` (B k,) holds one piece (B, size) after the other.

    ``(g, h)`` solves ``J'(g, h) = `` cotangents of ``(x, v)`` (``adjoint.implicit``), g (B, n), h (B, m).
    """
    work = np.empty(sub.offset.shape[0]), np.empty(u.shape[1]), np.empty((5, sub.eliminated)), np.empty((2, v.shape[1]))
    _pull_back(first, last, sub, structure, u, x, v, ok, g, h, ends, out, work)


@lean
def _pull_back(
    first: int,
    last: int,
    sub: Any,
    structure: Any,
    u: Any,
    x: Any,
    v: Any,
    ok: Any,
    g: Any,
    h: Any,
    ends: Any,
    out: Any,
    work: Any,
) -> None:
    A_rows, A_starts, P_cols, P_rows = structure.A_rows, structure.A_starts, structure.P_cols, structure.P_rows
    factor, source, indices, indptr, values = sub.factor, sub.source, sub.indices, sub.indptr, sub.values
    sections, row, those, both = work
    pull, Mx, Mg, back, spare, y, s = those[0], those[1], those[2], those[3], those[4], both[0], both[1]
    a, e, batch = sub.stops, sub.eliminated, u.shape[0]
    for k in range(first, last):
        fill(row, 0.0)
        if not ok[k]:
            _deal(row, ends, k, batch, out)
            continue
        project(structure, v[k], y, s)
        if e:
            _affine(sub, u[k], a[3], sections)  # of M, c and q_E
            M = sections[a[3] : a[4]].reshape(sub.kept, e)
            _pull(sub, sections, pull, spare)
            fill(Mx, 0.0)
            fill(Mg, 0.0)
            for j in range(sub.kept):
                add(Mx, x[k, j], M[j])
                add(Mg, g[k, j], M[j])
            copy(Mg, back)
            _times_D(sub, Mx, spare)
            _times_D(sub, Mg, spare)
            for j in range(sub.kept):
                for i in range(e):
                    M[j, i] = g[k, j] * (pull[i] - Mx[i]) - x[k, j] * Mg[i]
            copy(back, sections[a[5] :])
            copy(Mg, sections[a[4] :])
        for t in range(a[0]):
            i, j = P_rows[t], P_cols[t]
            sections[t] = -g[k, i] * x[k, j] if i == j else -(g[k, i] * x[k, j] + g[k, j] * x[k, i])
        for j in range(a[0], a[1]):
            sections[j] = -g[k, j - a[0]]
        for j in range(structure.n):
            for t in range(A_starts[j], A_starts[j + 1]):
                i = A_rows[t]
                sections[a[1] + t] = -(y[i] * g[k, j] + h[k, i] * x[k, j])
        for i in range(a[2], a[3]):
            sections[i] = h[k, i - a[2]]
        if sub.is_gather:
            for t in range(a[6]):
                row[source[t]] += factor[t] * sections[t]
        else:
            for t in range(a[6]):
                for place in range(indptr[t], indptr[t + 1]):
                    row[indices[place]] += values[place] * sections[t]
        _deal(row, ends, k, batch, out)


@lean
def _deal(row: Any, ends: Any, k: int, batch: int, out: Any) -> None:
    """The pieces of a row to where element k of each of them is."""
    start = 0
    for stop in ends:
        size = stop - start
        place = batch * start + k * size
        for j in range(size):
            out[place + j] = row[start + j]
        start = stop


@lean
def _affine(sub: Any, u: Any, start: int, out: Any) -> None:
    """The sections from ``start`` on."""
    factor, source, indices, indptr, offset, values = sub.factor, sub.source, sub.indices, sub.indptr, sub.offset, sub.values
    if sub.is_gather:
        for t in range(start, out.shape[0]):
            out[t] = offset[t] + factor[t] * u[source[t]]
        return
    for t in range(start, out.shape[0]):
        total = offset[t]
        for place in range(indptr[t], indptr[t + 1]):
            total += values[place] * u[indices[place]]
        out[t] = total


@lean
def _add_products(sub: Any, W: Any, M: Any, P: Any) -> None:
    """``W M'`` at its places in P; four entries of a column at a time."""
    rows, cols, places = sub.rows, sub.cols, sub.places
    t, total = 0, places.shape[0]
    while t < total:
        j = cols[t]
        if t + 3 < total and cols[t + 3] == j:
            first, second, third, fourth = rows[t], rows[t + 1], rows[t + 2], rows[t + 3]
            a, b, c, d = 0.0, 0.0, 0.0, 0.0
            for e in range(M.shape[1]):
                value = M[j, e]
                a += W[first, e] * value
                b += W[second, e] * value
                c += W[third, e] * value
                d += W[fourth, e] * value
            P[places[t]] += a
            P[places[t + 1]] += b
            P[places[t + 2]] += c
            P[places[t + 3]] += d
            t += 4
        else:
            P[places[t]] += dot(W[rows[t]], M[j])
            t += 1


@lean
def _pull(sub: Any, sections: Any, out: Any, spare: Any) -> None:
    a = sub.stops
    copy(sections[a[4] : a[5]], out)
    _times_D(sub, out, spare)
    for i in range(out.shape[0]):
        out[i] += sections[a[5] + i]


@lean
def _weigh(sub: Any, M: Any, out: Any, spare: Any) -> None:
    """``M D``."""
    for j in range(M.shape[0]):
        copy(M[j], out[j])
        _times_D(sub, out[j], spare)


@lean
def _times_D(sub: Any, t: Any, spare: Any) -> None:
    """``t <- D t``; D is symmetric."""
    D = sub.D
    e = t.shape[0]
    if sub.is_diagonal:
        for i in range(e):
            t[i] *= D[i, i]
    else:
        copy(t, spare)
        for i in range(e):
            t[i] = dot(D[i], spare)

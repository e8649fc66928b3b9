"""The optimality conditions of programs with equalities and inequalities at candidate solutions.

The same measures as ``program.instance`` takes with torch for all cones, in one pass over the stored entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels.dense import copy, dot, fill, largest
from ddn_cvx.kernels.jit import jit, lean
from ddn_cvx.kernels.structure import add_A, add_At, add_P

SMALL, SMALLEST = 2.0**-10, 2.0**-300
"""Units of more than the first are one, and none is below the second (``program.units``)."""


@lean
def unit(size: float) -> float:
    """The power of two next to a small size, else one."""
    return 2.0 ** np.rint(np.log2(max(size, SMALLEST))) if 0.0 < size < SMALL else 1.0


@lean
def units(P: Any, q: Any, b: Any) -> tuple[float, float]:
    """The units of x and of the objective's gradient."""
    size_P, size_q = largest(P), largest(q)
    primal = unit(max(largest(b), size_q / size_P if size_P > 0.0 else 0.0))
    return primal, unit(max(size_q, primal * size_P))


@lean
def project(structure: Any, v: Any, y: Any, s: Any) -> None:
    """``y`` is the projection of v onto the dual cone, ``s = y - v``; NaN stays NaN."""
    copy(v, y)
    fill(s, 0.0)
    for i in range(structure.zero, structure.m):
        if v[i] < 0.0:
            y[i], s[i] = 0.0, -v[i]


@jit
def measure(
    first: int,
    last: int,
    structure: Any,
    P: Any,
    q: Any,
    A: Any,
    b: Any,
    x: Any,
    v: Any,
    y: Any,
    s: Any,
    top: Any,
    low: Any,
    measures: Any,
    projects: bool,
    raw_y: Any,
    raw_s: Any,
) -> None:
    """``top = Px + q + A'y``, ``low = Ax + s - b``, and as ``measures`` (B, 6) the relative primal and dual residuals, the
    gap, the worst of them, the worst of the two residuals once rows and columns are scaled (``Instance.hidden``), and the
    objective.

    With ``projects``, y and s are computed from v first, and v is ``raw_y - raw_s`` if these are (B, m) and not (0, m);
    distances from the cones are not measured otherwise.
    """
    n, m = structure.n, structure.m
    work = np.empty(n), np.empty(n), np.empty(m), (np.empty(m), np.empty(n), np.empty(m), np.empty(n))
    data, point, given = (P, q, A, b), (x, v, y, s), (raw_y, raw_s)
    _measure(first, last, structure, data, point, top, low, measures, projects, given, work)


@lean
def _measure(
    first: int,
    last: int,
    structure: Any,
    data: Any,
    point: Any,
    top: Any,
    low: Any,
    measures: Any,
    projects: bool,
    given: Any,
    work: Any,
) -> None:
    (P, q, A, b), (x, v, y, s), (raw_y, raw_s), (Px, Aty, Ax, sizes) = data, point, given, work
    n, m = structure.n, structure.m
    for k in range(first, last):
        if len(raw_y):
            for i in range(m):
                v[k, i] = raw_y[k, i] - raw_s[k, i]
        if projects:
            project(structure, v[k], y[k], s[k])
        fill(Px, 0.0)
        fill(Aty, 0.0)
        fill(Ax, 0.0)
        add_P(structure, P[k], 1.0, x[k], Px)
        add_At(structure, A[k], 1.0, y[k], Aty)
        add_A(structure, A[k], 1.0, x[k], Ax)
        for j in range(n):
            top[k, j] = Px[j] + q[k, j] + Aty[j]
        for i in range(m):
            low[k, i] = Ax[i] + s[k, i] - b[k, i]
        beta, gamma = units(P[k], q[k], b[k])
        primal = _larger(largest(Ax), _larger(largest(s[k]), largest(b[k])))
        dual = _larger(largest(Px), _larger(largest(Aty), largest(q[k])))
        terms = dot(Px, x[k]), dot(q[k], x[k]), dot(b[k], y[k])
        size = _larger(abs(terms[0]), _larger(abs(terms[1]), abs(terms[2])))
        measures[k, 0] = largest(low[k]) / (beta + primal)
        measures[k, 1] = largest(top[k]) / (gamma + dual)
        measures[k, 2] = abs(terms[0] + terms[1] + terms[2]) / (beta * gamma + size)
        worst = _larger(measures[k, 0], _larger(measures[k, 1], measures[k, 2]))
        measures[k, 3] = np.inf if worst != worst else worst
        terms_of_equations = q[k], Px, Aty, top[k], b[k], Ax, s[k], low[k]
        measures[k, 4] = _hidden(structure, P[k], A[k], terms_of_equations, sizes, beta, gamma)
        measures[k, 5] = 0.5 * terms[0] + terms[1]


@lean
def _hidden(structure: Any, P: Any, A: Any, terms: Any, sizes: Any, beta: float, gamma: float) -> float:
    q, Px, Aty, top, b, Ax, s, low = terms
    # inverse sizes of rows and columns, first as they are, then of those of the matrix with the others' scaled
    rows, columns, scaled_rows, scaled_columns = sizes
    fill(scaled_columns, 1.0)
    fill(scaled_rows, 1.0)
    _inverse_sizes(structure, P, A, scaled_rows, scaled_columns, rows, columns)
    _inverse_sizes(structure, P, A, rows, columns, scaled_rows, scaled_columns)
    worst = 0.0
    for scale in (rows, scaled_rows):
        worst = _larger(worst, _scaled(b, Ax, s, low, scale, beta))
    for scale in (columns, scaled_columns):
        worst = _larger(worst, _scaled(q, Px, Aty, top, scale, gamma))
    return worst


@lean
def _larger(a: float, b: float) -> float:
    return b if b > a or b != b else a


@lean
def _scaled(given: Any, first: Any, second: Any, residual: Any, sizes: Any, unit: float) -> float:
    """The residual next to the terms it is the sum of, all times ``sizes``."""
    a, b, c, r = 0.0, 0.0, 0.0, 0.0
    for i in range(sizes.shape[0]):
        inverse = sizes[i]
        a, b = _larger(a, abs(given[i]) * inverse), _larger(b, abs(first[i]) * inverse)
        c, r = _larger(c, abs(second[i]) * inverse), _larger(r, abs(residual[i]) * inverse)
    floor = min(a, unit) if a > 0.0 else unit
    return r / (floor + _larger(a, _larger(b, c)))


@lean
def _inverse_sizes(structure: Any, P: Any, A: Any, scale_rows: Any, scale_columns: Any, rows: Any, columns: Any) -> None:
    """One over the largest entry in each row of A with its columns scaled, and in each column of P and of A with its
    rows scaled; one for empty ones."""
    A_rows, A_starts, P_rows, P_starts = structure.A_rows, structure.A_starts, structure.P_rows, structure.P_starts
    fill(rows, 0.0)
    fill(columns, 0.0)
    for j in range(structure.n):
        largest, scale = 0.0, scale_columns[j]
        for k in range(A_starts[j], A_starts[j + 1]):
            i, size = A_rows[k], abs(A[k])
            rows[i] = max(rows[i], size * scale)
            largest = max(largest, size * scale_rows[i])
        for k in range(P_starts[j], P_starts[j + 1]):
            i, size = P_rows[k], abs(P[k])
            columns[i] = max(columns[i], size)
            largest = max(largest, size)
        columns[j] = max(columns[j], largest)
    for sizes in (rows, columns):
        for i in range(sizes.shape[0]):
            sizes[i] = 1.0 / sizes[i] if sizes[i] > 0.0 else 1.0

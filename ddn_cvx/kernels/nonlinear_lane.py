"""What the interior-point method for nonlinear programs keeps of an instance while it works on it: a lane.

    minimise  f(y)   subject to  h(y) = 0,   g(y) + t = 0,   sigma_k (y_j(k) - bound_k) = t_k,   t > 0

Slacks t belong to the inequalities first, then to the finite bounds; their multipliers are v. A variable whose bounds
coincide is fixed there. Functions are scaled at the start by powers of two so that no gradient exceeds 100 (Wächter &
Biegler 2006, section 3.8); multipliers in a lane are those of the scaled functions.

Lanes lie side by side, so that the tape evaluates the functions of all of them at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.kernels import nonlinear_rows as at
from ddn_cvx.kernels.jit import inner, lean
from ddn_cvx.kernels.tape import Tape

Integers = NDArray[np.int64]

CAPACITY = 24
"""Pairs that a filter holds; the oldest gives way."""
MEMORY = 4
"""Values of the merit that a free iteration is compared with."""

LARGE_GRADIENT = 100.0
"""What the scales bring all gradients below."""
_INSIDE = 1e-2  # part of its interval, or of its size, by which a variable starts inside a bound


class Layout(NamedTuple):
    """Where the tape leaves what the method reads; Jacobians row by row."""

    n: int
    p: int
    m: int
    jh_start: Integers
    """``(p + 1,)``."""
    jh_col: Integers
    jh_slot: Integers
    jg_start: Integers
    jg_col: Integers
    jg_slot: Integers

    @staticmethod
    def of(tape: Tape) -> Layout:
        """For a tape."""
        p, m = len(tape.h), len(tape.g)
        return Layout(
            len(tape.gradient),
            p,
            m,
            *_by_rows(tape.jh_row, tape.jh_col, tape.jh_slot, p),
            *_by_rows(tape.jg_row, tape.jg_col, tape.jg_slot, m),
        )


def _by_rows(row: Integers, col: Integers, slot: Integers, rows: int) -> tuple[Integers, Integers, Integers]:
    order = np.lexsort((col, row))
    return np.searchsorted(row[order], np.arange(rows + 1)), col[order], slot[order]


class Lane(NamedTuple):
    """One lane; ``Bank`` has the same fields with a dimension for the lanes in front."""

    x: Any
    e: Any
    c: Any
    number: Any
    count: Any
    column: Any
    """Variable of a bound, ``(m + 2n,)`` int64, unused below m."""
    jh: Any
    """Entries of the Jacobians and of the Hessian, scaled."""
    jg: Any
    hessian: Any
    filter: Any
    """``(2, CAPACITY)``: violations and values of the barrier function."""
    merits: Any
    """``(MEMORY,)``."""
    K: Any
    pivots: Any


@inner
def bank(tape: Any, layout: Any, lanes: int) -> Any:
    """Space for some lanes."""
    n, p, m = layout.n, layout.p, layout.m
    size = n + p + m
    return Lane(
        np.zeros((lanes, at.X_ROWS, n)),
        np.zeros((lanes, at.E_ROWS, p)),
        np.zeros((lanes, at.C_ROWS, m + 2 * n)),
        np.zeros((lanes, at.NUMBERS)),
        np.zeros((lanes, at.COUNTS), np.int64),
        np.zeros((lanes, m + 2 * n), np.int64),
        np.zeros((lanes, len(layout.jh_slot))),
        np.zeros((lanes, len(layout.jg_slot))),
        np.zeros((lanes, len(tape.hess_slot))),
        np.zeros((lanes, 2, CAPACITY)),
        np.zeros((lanes, MEMORY)),
        np.zeros((lanes, size, size)),
        np.zeros((lanes, size), np.int64),
    )


@lean
def lane_of(all_: Any, i: int) -> Any:
    """One lane of a bank."""
    return Lane(
        all_.x[i],
        all_.e[i],
        all_.c[i],
        all_.number[i],
        all_.count[i],
        all_.column[i],
        all_.jh[i],
        all_.jg[i],
        all_.hessian[i],
        all_.filter[i],
        all_.merits[i],
        all_.K[i],
        all_.pivots[i],
    )


@lean
def begin(layout: Any, lane: Any, start: Any, lower: Any, upper: Any) -> bool:
    """Note the bounds, and move the start inside them; False if they cross."""
    n, m = layout.n, layout.m
    x, c, column = lane.x, lane.c, lane.column
    rows = m
    for j in range(n):
        low, high = lower[j], upper[j]
        if not low <= high:
            return False
        width = high - low
        y = start[j]
        x[at.FREE, j] = 1.0 if width > 0.0 else 0.0
        if width > 0.0:
            if low > -np.inf:
                c[at.SIGMA, rows], c[at.BOUND, rows], column[rows] = 1.0, low, j
                y = max(y, low + _INSIDE * min(max(abs(low), 1.0), width))
                rows += 1
            if high < np.inf:
                c[at.SIGMA, rows], c[at.BOUND, rows], column[rows] = -1.0, high, j
                y = min(y, high - _INSIDE * min(max(abs(high), 1.0), width))
                rows += 1
        else:
            y = low
        x[at.TRIAL_Y, j] = y
    for k in range(m):
        c[at.SCALE_G, k], c[at.TRIAL_V, k] = 1.0, 0.0
    for i in range(layout.p):
        lane.e[at.SCALE_H, i], lane.e[at.TRIAL_LAM, i] = 1.0, 0.0
    lane.number[:] = 0.0
    lane.number[at.SCALE_F] = 1.0
    lane.count[:] = 0
    lane.count[at.ROWS] = rows
    return True


@lean
def show(layout: Any, lanes: Any, work: Any, i: int) -> None:
    """Put the trial point of lane i where the tape reads it."""
    lane = lane_of(lanes, i)
    n, p, m = layout.n, layout.p, layout.m
    inverse = 1.0 / lane.number[at.SCALE_F]
    for j in range(n):
        work[j, i] = lane.x[at.TRIAL_Y, j]
    for k in range(p):
        work[n + k, i] = lane.e[at.TRIAL_LAM, k] * lane.e[at.SCALE_H, k] * inverse
    for k in range(m):
        work[n + p + k, i] = lane.c[at.TRIAL_V, k] * lane.c[at.SCALE_G, k] * inverse


@lean
def read_values(tape: Any, lane: Any, work: Any, i: int) -> bool:
    """Scaled f, h and g at the trial point; whether they are finite."""
    number, e, c = lane.number, lane.e, lane.c
    number[at.TRIAL_F] = work[tape.f[0], i] * number[at.SCALE_F]
    total = number[at.TRIAL_F] * 0.0
    for k in range(len(tape.h)):
        value = work[tape.h[k], i] * e[at.SCALE_H, k]
        e[at.TRIAL_H, k] = value
        total += value * 0.0
    for k in range(len(tape.g)):
        value = work[tape.g[k], i] * c[at.SCALE_G, k]
        c[at.TRIAL_G, k] = value
        total += value * 0.0
    return total == 0.0


@lean
def read_derivatives(tape: Any, layout: Any, lane: Any, work: Any, i: int) -> bool:
    """Scaled derivatives at the trial point, if they are finite; whether they are."""
    scale, total = lane.number[at.SCALE_F], 0.0
    for slots in (tape.gradient, tape.hess_slot, layout.jh_slot, layout.jg_slot):
        for slot in slots:
            total += work[slot, i] * 0.0
    if total != 0.0:
        return False
    for j in range(layout.n):
        lane.x[at.GRADIENT, j] = work[tape.gradient[j], i] * scale
    for k in range(len(tape.hess_slot)):
        lane.hessian[k] = work[tape.hess_slot[k], i] * scale
    _read_rows(layout.jh_start, layout.jh_slot, lane.e[at.SCALE_H], work, i, lane.jh)
    _read_rows(layout.jg_start, layout.jg_slot, lane.c[at.SCALE_G], work, i, lane.jg)
    return True


@lean
def _read_rows(start: Any, slot: Any, scale: Any, work: Any, i: int, out: Any) -> None:
    for row in range(len(start) - 1):
        for k in range(start[row], start[row + 1]):
            out[k] = work[slot[k], i] * scale[row]


@lean
def rescale(layout: Any, lane: Any) -> None:
    """Set the scales by the derivatives that were read with scales of one, and apply them to what was read."""
    number, e, c = lane.number, lane.e, lane.c
    scale = _scale(lane.x[at.GRADIENT], 0, layout.n)
    number[at.SCALE_F] = scale
    number[at.TRIAL_F] *= scale
    for j in range(layout.n):
        lane.x[at.GRADIENT, j] *= scale
    for row in range(layout.p):
        scale = _scale(lane.jh, layout.jh_start[row], layout.jh_start[row + 1])
        e[at.SCALE_H, row] = scale
        e[at.TRIAL_H, row] *= scale
        for k in range(layout.jh_start[row], layout.jh_start[row + 1]):
            lane.jh[k] *= scale
    for row in range(layout.m):
        scale = _scale(lane.jg, layout.jg_start[row], layout.jg_start[row + 1])
        c[at.SCALE_G, row] = scale
        c[at.TRIAL_G, row] *= scale
        for k in range(layout.jg_start[row], layout.jg_start[row + 1]):
            lane.jg[k] *= scale


@lean
def _scale(entries: Any, first: int, last: int) -> float:
    """The power of two, at most 1, that brings the largest entry below 100."""
    largest = 0.0
    for k in range(first, last):
        largest = max(largest, abs(entries[k]))
    scale = 1.0
    while scale * largest > LARGE_GRADIENT and scale > 1e-8:
        scale *= 0.5
    return scale


@lean
def accept(layout: Any, lane: Any) -> None:
    """The trial point becomes the iterate."""
    x, e, c = lane.x, lane.e, lane.c
    lane.number[at.F] = lane.number[at.TRIAL_F]
    for j in range(layout.n):
        x[at.Y, j] = x[at.TRIAL_Y, j]
    for k in range(layout.p):
        e[at.LAM, k], e[at.H, k] = e[at.TRIAL_LAM, k], e[at.TRIAL_H, k]
    for k in range(layout.m):
        c[at.G, k] = c[at.TRIAL_G, k]
    for k in range(lane.count[at.ROWS]):
        c[at.T, k], c[at.V, k] = c[at.TRIAL_T, k], c[at.TRIAL_V, k]


@lean
def save(layout: Any, lane: Any) -> None:
    """Remember the iterate, to come back to it."""
    _shift(layout, lane, at.Y, at.LAM, at.T, at.V, at.SAVED_Y, at.SAVED_LAM, at.SAVED_T, at.SAVED_V)


@lean
def go_back(layout: Any, lane: Any) -> None:
    """What was saved becomes the trial point."""
    _shift(layout, lane, at.SAVED_Y, at.SAVED_LAM, at.SAVED_T, at.SAVED_V, at.TRIAL_Y, at.TRIAL_LAM, at.TRIAL_T, at.TRIAL_V)


@lean
def _shift(layout: Any, lane: Any, y: int, lam: int, t: int, v: int, to_y: int, to_lam: int, to_t: int, to_v: int) -> None:
    x, e, c = lane.x, lane.e, lane.c
    for j in range(layout.n):
        x[to_y, j] = x[y, j]
    for k in range(layout.p):
        e[to_lam, k] = e[lam, k]
    for k in range(lane.count[at.ROWS]):
        c[to_t, k], c[to_v, k] = c[t, k], c[v, k]


@lean
def pull(start: Any, column: Any, J: Any, w: Any, factor: float, out: Any) -> None:
    """``out <- out + factor J'w``."""
    for row in range(len(start) - 1):
        a = factor * w[row]
        if a != 0.0:
            for k in range(start[row], start[row + 1]):
                out[column[k]] += a * J[k]


@lean
def push(start: Any, column: Any, J: Any, row: int, d: Any) -> float:
    """A row of ``J d``."""
    total = 0.0
    for k in range(start[row], start[row + 1]):
        total += J[k] * d[column[k]]
    return total


@lean
def lagrangian_slope(layout: Any, lane: Any) -> None:
    """The gradient of the Lagrangian, bounds included, zero for fixed variables."""
    x, c = lane.x, lane.c
    slope = x[at.SLOPE]
    for j in range(layout.n):
        slope[j] = x[at.GRADIENT, j]
    pull(layout.jh_start, layout.jh_col, lane.jh, lane.e[at.LAM], 1.0, slope)
    pull(layout.jg_start, layout.jg_col, lane.jg, c[at.V], 1.0, slope)
    for k in range(layout.m, lane.count[at.ROWS]):
        slope[lane.column[k]] -= c[at.SIGMA, k] * c[at.V, k]
    for j in range(layout.n):
        slope[j] *= x[at.FREE, j]

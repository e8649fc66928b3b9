"""A primal-dual interior-point method for small nonlinear programs, one instance after another without Python.

The method is that of IPOPT (Wächter & Biegler, Mathematical Programming 106, 2006): a filter line search with a second-order
correction and inertia correction. The barrier parameter is free as long as the optimality conditions come nearer (Nocedal,
Wächter & Waltz 2009), and falls monotonically where they do not. As soon as the active constraints show, Newton's method on
them takes over.

``LANES`` instances go side by side, each in a state of its own: in every round the tape evaluates the functions at the
trial points of all lanes, and then each lane judges its own and sets out the next one. A lane that is done takes the next
instance. What is computed for an instance depends on it alone, to the last bit.

Feasibility restoration, proofs of infeasibility and ways out of saddle points are not here: an instance that would need them
ends with a status other than SOLVED.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels import nonlinear_phases as phase, nonlinear_rows as at
from ddn_cvx.kernels.jit import jit, lean
from ddn_cvx.kernels.nonlinear_lane import bank, begin, lane_of, pull, show
from ddn_cvx.kernels.status import BROKEN
from ddn_cvx.kernels.tape import LANES, run


@jit
def solve_batch(
    first: int,
    last: int,
    tape: Any,
    layout: Any,
    options: Any,
    theta: Any,
    start: Any,
    lower: Any,
    upper: Any,
    warm: bool,
    y: Any,
    lam: Any,
    mu: Any,
    z: Any,
    status: Any,
    iterations: Any,
) -> None:
    """Fill in y (B, n), lam (B, p), mu (B, m), z (B, n), status (B,) and iterations (B,) for elements ``first .. last - 1``.

    ``theta`` (B, t), ``start``, ``lower`` and ``upper`` (B, n). With ``warm`` the multipliers are those to start from.
    """
    work, alone = np.empty((tape.slots, LANES)), np.empty((tape.slots, 1))
    for slot in range(tape.slots):
        alone[slot, 0] = tape.constants[slot]
        for i in range(LANES):
            work[slot, i] = tape.constants[slot]
    lanes, right = bank(tape, layout, LANES), np.empty(layout.n + layout.p + layout.m)
    element = np.full(LANES, -1)
    following, busy = first, 0
    while following < last or busy:
        for i in range(LANES):
            while element[i] < 0 and following < last:
                k, following = following, following + 1
                status[k], iterations[k] = BROKEN, 0
                if _load(tape, layout, lanes, i, k, start, lower, upper, theta, alone, work):
                    element[i] = k
                    busy += 1
            if element[i] >= 0:
                show(layout, lanes, work, i)
        for code in (tape.values, tape.first, tape.second):  # one call to compile
            run(code, work)
        for i in range(LANES):
            if element[i] < 0:
                continue
            then = phase.judge(tape, layout, lanes, i, work, warm)
            while then < phase.WAIT:
                if then == phase.ITERATE:
                    then = phase.iterate(tape, layout, options, lanes, i)
                elif then == phase.STEP:
                    then = phase.step(tape, layout, options, lanes, i, right)
                elif then == phase.SHORTEN:
                    then = phase.shorten(tape, layout, options, lanes, i, right)
                elif then == phase.POLISH:
                    then = phase.polish(tape, layout, lanes, i, right)
                elif then == phase.CHECK:
                    then = phase.check(layout, options, lanes, i)
                elif then == phase.REFIT:
                    then = phase.refit(layout, lanes, i, right)
                else:
                    then = phase.initialise(layout, options, lanes, i, warm, lam, mu, z)
            if then != phase.WAIT:
                k = element[i]
                status[k] = then
                _store(layout, lanes, i, k, y, lam, mu, z, iterations)
                element[i] = -1
                busy -= 1


@lean
def _load(
    tape: Any,
    layout: Any,
    lanes: Any,
    i: int,
    k: int,
    start: Any,
    lower: Any,
    upper: Any,
    theta: Any,
    alone: Any,
    work: Any,
) -> bool:
    """Element k into lane i, with what is computed from its parameters alone; False if its bounds cross."""
    lane = lane_of(lanes, i)
    if not begin(layout, lane, start[k], lower[k], upper[k]):
        return False
    lane.count[at.ELEMENT] = k
    base = layout.n + layout.p + layout.m
    for j in range(theta.shape[1]):
        alone[base + j, 0] = work[base + j, i] = theta[k, j]
    run(tape.prologue, alone)
    for j in range(len(tape.prologue)):
        slot = tape.prologue[j, 1]
        work[slot, i] = alone[slot, 0]
    return True


@lean
def _store(
    layout: Any, lanes: Any, i: int, k: int, all_y: Any, all_lam: Any, all_mu: Any, all_z: Any, iterations: Any
) -> None:
    """The iterate of lane i, in terms of the functions as given, is the answer of element k."""
    lane = lane_of(lanes, i)
    y, lam, mu, z = all_y[k], all_lam[k], all_mu[k], all_z[k]
    iterations[k] = lane.count[at.ITERATION]
    x, e, c = lane.x, lane.e, lane.c
    inverse = 1.0 / lane.number[at.SCALE_F]
    slope = x[at.SLOPE]
    for j in range(layout.n):
        y[j], z[j], slope[j] = x[at.Y, j], 0.0, x[at.GRADIENT, j]
    for row in range(layout.p):
        lam[row] = e[at.LAM, row] * e[at.SCALE_H, row] * inverse
    for row in range(layout.m):
        mu[row] = c[at.V, row] * c[at.SCALE_G, row] * inverse
    for row in range(layout.m, lane.count[at.ROWS]):
        z[lane.column[row]] -= c[at.SIGMA, row] * c[at.V, row] * inverse
    pull(layout.jh_start, layout.jh_col, lane.jh, e[at.LAM], 1.0, slope)
    pull(layout.jg_start, layout.jg_col, lane.jg, c[at.V], 1.0, slope)
    for j in range(layout.n):
        if x[at.FREE, j] == 0.0:
            z[j] = -slope[j] * inverse

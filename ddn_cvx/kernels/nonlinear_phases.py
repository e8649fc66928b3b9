"""What happens in a lane between two evaluations of its functions, one phase after another.

``judge`` looks at the trial point that was evaluated and names the phase that follows; each phase names the next one, until
one of them has set out a new trial point (``WAIT``) or the instance is at its end (a status, which is not negative).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels import nonlinear_polish as polishing, nonlinear_rows as at
from ddn_cvx.kernels.indefinite import factor, solve
from ddn_cvx.kernels.jit import lean
from ddn_cvx.kernels.nonlinear_barrier import barrier_error, choose_mode, free_barrier, mean, residuals, squares
from ddn_cvx.kernels.nonlinear_lane import (
    accept,
    go_back,
    lane_of,
    pull,
    read_derivatives,
    read_values,
    rescale,
    save,
)
from ddn_cvx.kernels.nonlinear_newton import add_rows, assemble, combine, direction, factorise, longest, refine
from ddn_cvx.kernels.nonlinear_search import go, measures, passes, prepare
from ddn_cvx.kernels.status import BROKEN, LIMIT, SOLVED

WAIT, INITIALISE, REFIT, ITERATE, STEP, SHORTEN, POLISH, CHECK = range(-1, -9, -1)

# what the trial point of a lane is
_START, _READY, _TRIAL, _CORRECTED, _FORCED, _POLISHED = range(6)

_POLISH_FROM = 1e-4
"""Error from which the active constraints are tried."""
_ACCURATE = 1e-12
"""Error that is not polished any further."""
_POLISHES = 6
_STALLED = 8
"""Iterations without progress after which an element ends."""
_ALMOST = 1e-5
"""Error that counts as no progress only below this."""
_HALVINGS, _TROUBLES = 24, 8
_SHORT, _CRAWLED = 0.05, 6
"""This many steps of less than this part of Newton's are as bad as none."""
_LARGEST_MULTIPLIER = 1e3
_RUNAWAY, _RESETS = 1e4, 5
"""Multipliers this much larger than the gradient are set anew, a few times."""
_NEGATIVE = 1e-7
"""Curvature below minus this, next to the largest, is a way down."""


@lean
def judge(tape: Any, layout: Any, lanes: Any, i: int, work: Any, warm: bool) -> int:
    """Read what the tape found at the trial point; whether the point is taken."""
    lane = lane_of(lanes, i)
    count, number = lane.count, lane.number
    state = count[at.STATE]
    finite = read_values(tape, lane, work, i)
    if state in (_TRIAL, _CORRECTED):
        length = number[at.LENGTH]
        if finite and passes(layout, lane, length) and read_derivatives(tape, layout, lane, work, i):
            number[at.FORCED] = 0.0
            count[at.CRAWLED] = count[at.CRAWLED] + 1 if length < _SHORT * number[at.LONGEST] else 0
            accept(layout, lane)
            return ITERATE
        if not finite:
            count[at.STATE] = _CORRECTED  # it shows no way to a correction
        return SHORTEN
    if not (finite and read_derivatives(tape, layout, lane, work, i)):
        return BROKEN if state in (_START, _READY) else _return(layout, lane)
    if state == _START:
        rescale(layout, lane)
        return INITIALISE
    accept(layout, lane)
    if state == _POLISHED:
        return CHECK
    if state == _FORCED:
        dual, primal = residuals(layout, lane)
        if not barrier_error(lane, dual, primal, number[at.MU]) <= 0.9 * number[at.ERROR]:
            return _return(layout, lane)
        number[at.FORCED] = 0.0
    elif warm and number[at.POLISHED] == 0.0:
        number[at.POLISHED] = np.inf
        return POLISH
    return ITERATE


@lean
def _return(layout: Any, lane: Any) -> int:
    """Back to the iterate that was saved."""
    go_back(layout, lane)
    lane.count[at.STATE] = _READY
    return WAIT


@lean
def initialise(layout: Any, options: Any, lanes: Any, i: int, warm: bool, lam: Any, mu: Any, z: Any) -> int:
    """Slacks and multipliers at the start, which stays the trial point; lam, mu and z ``(B, ...)`` are used if warm."""
    lane = lane_of(lanes, i)
    x, e, c, number = lane.x, lane.e, lane.c, lane.number
    k_all, m, scale = lane.count[at.ELEMENT], layout.m, number[at.SCALE_F]
    barrier = options.warm_barrier if warm else options.barrier
    number[at.MU], number[at.BEST], number[at.POLISH_AT] = barrier, np.inf, _POLISH_FROM
    accept(layout, lane)  # for the values; slacks and multipliers follow
    for k in range(lane.count[at.ROWS]):
        if k < m:
            t, given = max(-c[at.G, k], 1e-2), mu[k_all, k] * scale / c[at.SCALE_G, k]
        else:
            j = lane.column[k]
            t, given = c[at.SIGMA, k] * (x[at.Y, j] - c[at.BOUND, k]), -c[at.SIGMA, k] * z[k_all, j] * scale
        c[at.TRIAL_T, k], c[at.TRIAL_V, k] = t, max(barrier / t, given) if warm else barrier / t
    if warm:
        for k in range(layout.p):
            e[at.TRIAL_LAM, k] = lam[k_all, k] * scale / e[at.SCALE_H, k]
    lane.count[at.STATE] = _READY
    lane.count[at.FIXED_MODE] = lane.count[at.ROWS] == 0
    return REFIT if layout.p and not warm else WAIT


@lean
def refit(layout: Any, lanes: Any, i: int, right: Any) -> int:
    """At the trial point, which is the iterate: lam of least ``|grad L|``, zero where they are large."""
    lane = lane_of(lanes, i)
    n, p, K, c = layout.n, layout.p, lane.K, lane.c
    for j in range(n + p):
        for k in range(j, n + p):
            K[j, k] = 0.0
    for j in range(n):
        K[j, j] = 1.0
        right[j] = -lane.x[at.GRADIENT, j]
    add_rows(layout.jh_start, layout.jh_col, lane.jh, lane.x[at.FREE], n, K)
    pull(layout.jg_start, layout.jg_col, lane.jg, c[at.TRIAL_V], -1.0, right)
    for k in range(layout.m, lane.count[at.ROWS]):
        right[lane.column[k]] += c[at.SIGMA, k] * c[at.TRIAL_V, k]
    for j in range(n):
        right[j] *= lane.x[at.FREE, j]
    for k in range(p):
        right[n + k] = 0.0
    positive, negative = factor(K, n + p, lane.pivots)
    largest = np.inf
    if positive + negative == n + p:
        solve(K, n + p, lane.pivots, right)
        largest = 0.0
        for k in range(p):
            largest = max(largest, abs(right[n + k]))
    for k in range(p):
        lane.e[at.TRIAL_LAM, k] = right[n + k] if largest <= _LARGEST_MULTIPLIER else 0.0
    lane.count[at.STATE] = _READY
    return WAIT


@lean
def iterate(tape: Any, layout: Any, options: Any, lanes: Any, i: int) -> int:
    """Stop at the iterate, or polish it, or step on from it."""
    lane = lane_of(lanes, i)
    count, number = lane.count, lane.number
    dual, primal = residuals(layout, lane)
    number[at.DUAL], number[at.PRIMAL] = dual, primal
    error = barrier_error(lane, dual, primal, 0.0)
    if not error < np.inf:
        return BROKEN
    if count[at.RESETS] < _RESETS and _runaway(layout, lane):
        count[at.RESETS] += 1
        save(layout, lane)
        go_back(layout, lane)
        return REFIT
    if error < number[at.POLISH_AT] and number[at.SHIFT] == 0.0:
        number[at.POLISHED] = error
        return POLISH
    count[at.WAITED] = 0 if error < 0.9 * number[at.BEST] or error > _ALMOST else count[at.WAITED] + 1
    number[at.BEST] = min(number[at.BEST], error)
    stalled = count[at.WAITED] > _STALLED
    if error <= options.tolerance or (stalled and error <= options.solved_tolerance):
        return SOLVED if _is_minimum(tape, layout, lane) else BROKEN
    if stalled or count[at.ITERATION] >= options.max_iterations:
        return LIMIT
    count[at.ITERATION] += 1
    if count[at.ROWS]:
        choose_mode(layout, options, lane, dual, primal)
    return STEP


@lean
def _runaway(layout: Any, lane: Any) -> bool:
    """Whether multipliers of equalities dwarf the gradient, as after a step where the rows of Jh were nearly dependent."""
    slope, largest = 1.0, 0.0
    for j in range(layout.n):
        slope = max(slope, abs(lane.x[at.GRADIENT, j]))
    for k in range(layout.p):
        largest = max(largest, abs(lane.e[at.LAM, k]))
    return largest > _RUNAWAY * slope


@lean
def _is_minimum(tape: Any, layout: Any, lane: Any) -> bool:
    """Whether the functions as given are optimal here, and curved upwards, or hardly downwards, along the constraints."""
    if not polishing.error(layout, lane) <= 1e-7:
        return False
    size = 0.0
    for k in range(len(lane.hessian)):
        size = max(size, abs(lane.hessian[k]))
    assemble(tape, layout, lane, _NEGATIVE * size + 1e-14)
    positive, negative = factor(lane.K, layout.n + layout.p, lane.pivots)
    return positive == layout.n and negative == layout.p


@lean
def step(tape: Any, layout: Any, options: Any, lanes: Any, i: int, right: Any) -> int:
    """Set out along the Newton step from the iterate, whose derivatives are known."""
    lane = lane_of(lanes, i)
    c, number, count = lane.c, lane.number, lane.count
    if not factorise(tape, layout, lane):
        return BROKEN
    h, g = lane.e[at.H], c[at.SECOND_G]
    for k in range(layout.m):
        g[k] = c[at.G, k] + c[at.T, k]
    for part in (at.AFFINE, at.CENTRAL):
        base = 1.0 if part == at.AFFINE else 0.0
        direction(layout, lane, part, base, 1.0 - base, h, g, right)
    if not count[at.FIXED_MODE]:
        dual, primal = squares(layout, lane)
        number[at.MU] = free_barrier(lane, mean(lane), dual, primal, options.tolerance / 10.0)
        count[at.ENTRIES] = 0
    combine(layout, lane, number[at.MU])
    if number[at.MU] < 1e-3:
        refine(tape, layout, lane, at.WHOLE, h, right)
    number[at.ERROR] = barrier_error(lane, number[at.DUAL], number[at.PRIMAL], number[at.MU])
    prepare(layout, lane)
    go(layout, lane, at.WHOLE, number[at.LENGTH], number[at.LONGEST_V])
    count[at.STATE], count[at.HALVINGS] = _TRIAL, 0
    return WAIT


@lean
def shorten(tape: Any, layout: Any, options: Any, lanes: Any, i: int, right: Any) -> int:
    """After a trial point that was refused: the second-order correction, a shorter step, or another direction."""
    lane = lane_of(lanes, i)
    number, count = lane.number, lane.count
    if count[at.STATE] == _TRIAL and count[at.HALVINGS] == 0:
        theta, _ = measures(layout, lane, at.TRIAL_F, at.TRIAL_H, at.TRIAL_G, at.TRIAL_T)
        if number[at.THETA] <= theta < np.inf and layout.p + layout.m > 0:
            return _correct(tape, layout, lane, right)
    count[at.HALVINGS] += 1
    if count[at.HALVINGS] <= _HALVINGS and count[at.CRAWLED] <= _CRAWLED:
        number[at.LENGTH] = number[at.LONGEST] * 0.5 ** count[at.HALVINGS]
        go(layout, lane, at.WHOLE, number[at.LENGTH], number[at.LONGEST_V])
        count[at.STATE] = _TRIAL
        return WAIT
    count[at.TROUBLE] += 1
    count[at.CRAWLED] = count[at.ENTRIES] = 0
    number[at.MOST_THETA] = 0.0
    if count[at.TROUBLE] > _TROUBLES:
        return BROKEN
    if count[at.ROWS] and not count[at.FIXED_MODE]:
        count[at.FIXED_MODE] = 1
        number[at.MU] = max(0.8 * mean(lane), options.tolerance / 10.0)
        return STEP
    # the full step if it brings optimality nearer, else another one, with more regularisation
    number[at.FORCED] = max(1e-3, 10.0 * number[at.SHIFT])
    save(layout, lane)
    go(layout, lane, at.WHOLE, number[at.LONGEST], number[at.LONGEST_V])
    count[at.STATE] = _FORCED
    return WAIT


@lean
def _correct(tape: Any, layout: Any, lane: Any, right: Any) -> int:
    """Set out along the step with the constraints linearised from their values at the end of the full one."""
    e, c, number, rows = lane.e, lane.c, lane.number, lane.count[at.ROWS]
    length, fraction = number[at.LENGTH], number[at.FRACTION]
    for k in range(layout.p):
        e[at.SECOND_H, k] = length * e[at.H, k] + e[at.TRIAL_H, k]
    for k in range(layout.m):
        c[at.SECOND_G, k] = length * (c[at.G, k] + c[at.T, k]) + c[at.TRIAL_G, k] + c[at.TRIAL_T, k]
    direction(layout, lane, at.SECOND, 1.0, number[at.MU], e[at.SECOND_H], c[at.SECOND_G], right)
    refine(tape, layout, lane, at.SECOND, e[at.SECOND_H], right)
    number[at.LENGTH] = longest(c[at.T], c[at.DT_SECOND], rows, fraction)
    go(layout, lane, at.SECOND, number[at.LENGTH], longest(c[at.V], c[at.DV_SECOND], rows, fraction))
    lane.count[at.STATE] = _CORRECTED
    return WAIT


@lean
def polish(tape: Any, layout: Any, lanes: Any, i: int, right: Any) -> int:
    """Set out for a step on the active constraints; if there is none, nothing is changed."""
    lane = lane_of(lanes, i)
    count, number, first = lane.count, lane.number, lane.count[at.STATE] != _POLISHED
    if first:
        save(layout, lane)
        polishing.guess(lane)
        count[at.HALVINGS] = 0
    if polishing.step(tape, layout, lane, right):
        count[at.STATE] = _POLISHED
        return WAIT
    if number[at.POLISHED] < np.inf:
        number[at.POLISH_AT] = 1e-2 * min(number[at.POLISH_AT], number[at.POLISHED])
    if not first:
        return _return(layout, lane)
    for k in range(count[at.ROWS]):
        lane.c[at.V, k] = lane.c[at.SAVED_V, k]
    return ITERATE


@lean
def check(layout: Any, options: Any, lanes: Any, i: int) -> int:
    """After a step on the active constraints: done, or another one, or back to the interior."""
    lane = lane_of(lanes, i)
    number, count = lane.number, lane.count
    polishing.settle(layout, lane)
    error = polishing.error(layout, lane)
    count[at.HALVINGS] += 1
    done, before = count[at.HALVINGS], number[at.POLISHED]
    if error <= options.tolerance and (error <= _ACCURATE or done >= _POLISHES - 2):
        return SOLVED
    if (error <= 0.1 * before or error <= options.tolerance) and done < _POLISHES:
        number[at.POLISHED] = error
        return POLISH
    if before < np.inf:
        number[at.POLISH_AT] = 1e-2 * min(number[at.POLISH_AT], before)
    return _return(layout, lane)

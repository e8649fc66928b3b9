"""A primal-dual interior-point method for small nonlinear programs, one instance after another without Python.

The method is that of IPOPT (Wächter & Biegler, Mathematical Programming 106, 2006): a filter line search with a second-order
correction and inertia correction. The barrier parameter is free as long as the optimality conditions come nearer (Nocedal,
Wächter & Waltz 2009), and falls monotonically where they do not. As soon as the active constraints show, Newton's method on
them takes over.

``LANES`` instances go side by side, each in a state of its own: in every round the tape evaluates the functions at the trial
points of all lanes, and then each lane judges its own and sets out the next one. A lane that is done takes the next instance.
What is computed for an instance depends on it alone, to the last bit.

Feasibility restoration, proofs of infeasibility and ways out of saddle points are not here: an instance that would need them
ends with a status other than SOLVED.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddn_cvx.kernels import nonlinear_polish as polishing
from ddn_cvx.kernels.indefinite import factor, solve
from ddn_cvx.kernels.jit import jit, lean
from ddn_cvx.kernels.nonlinear_lane import (
    BEST,
    BOUND,
    CRAWLED,
    DLAM,
    DLAM_AFFINE,
    DLAM_CENTRAL,
    DLAM_SECOND,
    DT,
    DT_AFFINE,
    DT_CENTRAL,
    DT_SECOND,
    DV,
    DV_AFFINE,
    DV_CENTRAL,
    DV_SECOND,
    DY,
    DY_AFFINE,
    DY_CENTRAL,
    DY_SECOND,
    ELEMENT,
    ENTRIES,
    ERROR,
    FIXED_MODE,
    FORCED,
    FRACTION,
    FREE,
    GRADIENT,
    HALVINGS,
    ITERATION,
    LAM,
    LENGTH,
    LONGEST,
    LONGEST_V,
    MEMORY,
    MERITS,
    MOST_THETA,
    MU,
    POLISH_AT,
    POLISHED,
    ROWS,
    SAVED_V,
    SCALE_F,
    SCALE_G,
    SCALE_H,
    SECOND_G,
    SECOND_H,
    SHIFT,
    SIGMA,
    SLOPE,
    STATE,
    THETA,
    TRIAL_F,
    TRIAL_G,
    TRIAL_H,
    TRIAL_LAM,
    TRIAL_T,
    TRIAL_V,
    TROUBLE,
    WAITED,
    G,
    H,
    T,
    V,
    Y,
    accept,
    bank,
    begin,
    go_back,
    lagrangian_slope,
    lane_of,
    pull,
    read_derivatives,
    read_values,
    rescale,
    save,
    show,
)
from ddn_cvx.kernels.nonlinear_newton import add_rows, assemble, combine, direction, factorise, free_barrier, longest, refine
from ddn_cvx.kernels.nonlinear_search import go, measures, passes, prepare
from ddn_cvx.kernels.tape import LANES, run

SOLVED, LIMIT, BROKEN = 0, 4, 5
_GOING = -1

# what a lane's trial point is
_START, _READY, _TRIAL, _CORRECTED, _FORCED, _POLISHED = range(6)

_POLISH_FROM = 1e-4
"""Error from which the active constraints are tried."""
_ACCURATE = 1e-12
_POLISH_STEPS = 6


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
    warm: Any,
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
    _solve(
        first,
        last,
        tape,
        layout,
        options,
        theta,
        start,
        lower,
        upper,
        warm,
        y,
        lam,
        mu,
        z,
        status,
        iterations,
        work,
        alone,
        lanes,
        right,
    )


@lean
def _solve(
    first: int,
    last: int,
    tape: Any,
    layout: Any,
    options: Any,
    theta: Any,
    start: Any,
    lower: Any,
    upper: Any,
    warm: Any,
    y: Any,
    lam: Any,
    mu: Any,
    z: Any,
    status: Any,
    iterations: Any,
    work: Any,
    alone: Any,
    lanes: Any,
    right: Any,
) -> None:
    for i in range(LANES):
        lanes.count[i, ELEMENT] = -1
    following, busy = first, 0
    while following < last or busy:
        for i in range(LANES):
            lane = lane_of(lanes, i)
            while lane.count[ELEMENT] < 0 and following < last:
                k, following = following, following + 1
                status[k], iterations[k] = BROKEN, 0
                if begin(layout, lane, start[k], lower[k], upper[k]):
                    lane.count[ELEMENT] = k
                    _load(tape, layout, theta[k], alone, work, i)
                    busy += 1
            if lane.count[ELEMENT] >= 0:
                show(layout, lane, work, i)
        run(tape.values, work)
        run(tape.first, work)
        run(tape.second, work)
        for i in range(LANES):
            k = lanes.count[i, ELEMENT]
            if k >= 0:
                lane = lane_of(lanes, i)
                code = _advance(tape, layout, options, lane, work, i, right, warm, lam, mu, z)
                if code != _GOING:
                    status[k], iterations[k] = code, lane.count[ITERATION]
                    _store(layout, lane, y[k], lam[k], mu[k], z[k])
                    lane.count[ELEMENT] = -1
                    busy -= 1


@lean
def _load(tape: Any, layout: Any, theta: Any, alone: Any, work: Any, i: int) -> None:
    """Parameters, and what is computed from them alone, into a lane of the tape's workspace."""
    base = layout.n + layout.p + layout.m
    for k in range(len(theta)):
        alone[base + k, 0] = work[base + k, i] = theta[k]
    run(tape.prologue, alone)
    for k in range(len(tape.prologue)):
        slot = tape.prologue[k, 1]
        work[slot, i] = alone[slot, 0]


@lean
def _store(layout: Any, lane: Any, y: Any, lam: Any, mu: Any, z: Any) -> None:
    """The iterate, in terms of the functions as given."""
    x, e, c = lane.x, lane.e, lane.c
    inverse = 1.0 / lane.number[SCALE_F]
    slope = x[SLOPE]
    for j in range(layout.n):
        y[j], z[j], slope[j] = x[Y, j], 0.0, x[GRADIENT, j]
    for k in range(layout.p):
        lam[k] = e[LAM, k] * e[SCALE_H, k] * inverse
    for k in range(layout.m):
        mu[k] = c[V, k] * c[SCALE_G, k] * inverse
    for k in range(layout.m, lane.count[ROWS]):
        z[lane.column[k]] -= c[SIGMA, k] * c[V, k] * inverse
    pull(layout.jh_start, layout.jh_col, lane.jh, e[LAM], 1.0, slope)
    pull(layout.jg_start, layout.jg_col, lane.jg, c[V], 1.0, slope)
    for j in range(layout.n):
        if x[FREE, j] == 0.0:
            z[j] = -slope[j] * inverse


@lean
def _advance(
    tape: Any, layout: Any, options: Any, lane: Any, work: Any, i: int, right: Any, warm: bool, lam: Any, mu: Any, z: Any
) -> int:
    """Judge the trial point that was evaluated, and set out the next one."""
    count, number = lane.count, lane.number
    state = count[STATE]
    finite = read_values(tape, lane, work, i)
    if state == _TRIAL or state == _CORRECTED:
        length = number[LENGTH]
        if finite and passes(layout, lane, length) and read_derivatives(tape, layout, lane, work, i):
            number[FORCED] = 0.0
            count[CRAWLED] = count[CRAWLED] + 1 if length < 0.05 * number[LONGEST] else 0
            accept(layout, lane)
            return _iterate(tape, layout, options, lane, right)
        return _shorten(tape, layout, options, lane, right, finite)
    if not (finite and read_derivatives(tape, layout, lane, work, i)):
        if state == _START or state == _READY:
            return BROKEN
        return _return(layout, lane)
    if state == _START:
        rescale(layout, lane)
        k = count[ELEMENT]
        _initialise(layout, options, lane, right, warm, lam[k], mu[k], z[k])
        count[STATE] = _READY
        return _GOING
    accept(layout, lane)
    if state == _POLISHED:
        return _judge_polish(tape, layout, options, lane, right)
    if state == _FORCED:
        dual, primal = _residuals(layout, lane)
        if not _barrier_error(lane, dual, primal, number[MU]) <= 0.9 * number[ERROR]:
            return _return(layout, lane)
        number[FORCED] = 0.0
    elif warm and number[POLISHED] == 0.0 and _polish(tape, layout, lane, right, np.inf):
        return _GOING
    return _iterate(tape, layout, options, lane, right)


@lean
def _polish(tape: Any, layout: Any, lane: Any, right: Any, error: float) -> bool:
    """Set out for a step on the active constraints; if there is none, nothing is changed."""
    c = lane.c
    save(layout, lane)
    lane.number[POLISHED] = error
    polishing.guess(lane)
    if polishing.step(tape, layout, lane, right):
        lane.count[STATE], lane.count[HALVINGS] = _POLISHED, 0
        return True
    for k in range(lane.count[ROWS]):
        c[V, k] = c[SAVED_V, k]
    return False


@lean
def _return(layout: Any, lane: Any) -> int:
    """Back to the iterate that was saved."""
    go_back(layout, lane)
    lane.count[STATE] = _READY
    return _GOING


@lean
def _initialise(layout: Any, options: Any, lane: Any, right: Any, warm: bool, lam: Any, mu: Any, z: Any) -> None:
    """Slacks and multipliers at the start, which stays the trial point."""
    x, e, c, number = lane.x, lane.e, lane.c, lane.number
    n, p, m, rows = layout.n, layout.p, layout.m, lane.count[ROWS]
    barrier = options.warm_barrier if warm else options.barrier
    number[MU], number[BEST] = barrier, np.inf
    number[POLISH_AT] = _POLISH_FROM
    accept(layout, lane)  # for the values; slacks and multipliers follow
    for k in range(rows):
        distance = -c[G, k] if k < m else c[SIGMA, k] * (x[Y, lane.column[k]] - c[BOUND, k])
        t = max(distance, 1e-2) if k < m else distance
        v = barrier / t
        if warm:
            given = mu[k] * number[SCALE_F] / c[SCALE_G, k] if k < m else -c[SIGMA, k] * z[lane.column[k]] * number[SCALE_F]
            v = max(v, given)
        c[TRIAL_T, k], c[TRIAL_V, k] = t, v
    if warm:
        for k in range(p):
            e[TRIAL_LAM, k] = lam[k] * number[SCALE_F] / e[SCALE_H, k]
    elif p:
        _least_squares(layout, lane, right)


@lean
def _least_squares(layout: Any, lane: Any, right: Any) -> None:
    """Multipliers lam of least ``|grad L|``, zero where they are large."""
    n, p, K = layout.n, layout.p, lane.K
    c = lane.c
    for i in range(n + p):
        for j in range(i, n + p):
            K[i, j] = 0.0
    for j in range(n):
        K[j, j] = 1.0
        right[j] = -lane.x[GRADIENT, j]
    add_rows(layout.jh_start, layout.jh_col, lane.jh, lane.x[FREE], n, K)
    pull(layout.jg_start, layout.jg_col, lane.jg, c[TRIAL_V], -1.0, right)
    for k in range(layout.m, lane.count[ROWS]):
        right[lane.column[k]] += c[SIGMA, k] * c[TRIAL_V, k]
    for j in range(n):
        right[j] *= lane.x[FREE, j]
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
        lane.e[TRIAL_LAM, k] = right[n + k] if largest <= 1e3 else 0.0


@lean
def _residuals(layout: Any, lane: Any) -> tuple[float, float]:
    """The largest entries of the dual residual, which is left in ``SLOPE``, relative, and of the primal one."""
    e, c = lane.e, lane.c
    lagrangian_slope(layout, lane)
    dual, primal, sizes = 0.0, 0.0, 0.0
    for j in range(layout.n):
        dual = max(dual, abs(lane.x[SLOPE, j]))
    for k in range(layout.p):
        primal = max(primal, abs(e[H, k]))
        sizes += abs(e[LAM, k])
    for k in range(layout.m):
        primal = max(primal, abs(c[G, k] + c[T, k]))
    for k in range(lane.count[ROWS]):
        sizes += c[V, k]
    return dual / max(1.0, sizes / (100.0 * max(1, layout.p + lane.count[ROWS]))), primal


@lean
def _barrier_error(lane: Any, dual: float, primal: float, mu: float) -> float:
    """The error of the optimality conditions of the barrier problem for mu."""
    c, rows = lane.c, lane.count[ROWS]
    worst, sizes = 0.0, 0.0
    for k in range(rows):
        worst = max(worst, abs(c[T, k] * c[V, k] - mu))
        sizes += c[V, k]
    return max(max(dual, primal), worst / max(1.0, sizes / (100.0 * max(1, rows))))


@lean
def _iterate(tape: Any, layout: Any, options: Any, lane: Any, right: Any) -> int:
    """Stop at the iterate, or polish it, or step on from it."""
    count, number = lane.count, lane.number
    dual, primal = _residuals(layout, lane)
    error = _barrier_error(lane, dual, primal, 0.0)
    if not error < np.inf:
        return BROKEN
    if error < number[POLISH_AT] and number[SHIFT] == 0.0:
        if _polish(tape, layout, lane, right, error):
            return _GOING
        number[POLISH_AT] = 1e-2 * error
    count[WAITED] = 0 if error < 0.9 * number[BEST] or error > 1e-5 else count[WAITED] + 1
    number[BEST] = min(number[BEST], error)
    if error <= options.tolerance or (count[WAITED] > 8 and error <= options.solved_tolerance):
        return SOLVED if _is_minimum(tape, layout, lane) else BROKEN
    if count[ITERATION] >= options.max_iterations or count[WAITED] > 8:
        return LIMIT
    count[ITERATION] += 1
    if count[ROWS]:
        _choose_mode(layout, options, lane, dual, primal)
    return _step(tape, layout, options, lane, right, dual, primal)


@lean
def _is_minimum(tape: Any, layout: Any, lane: Any) -> bool:
    """Whether the functions as given are optimal here, and curved upwards, or hardly downwards, along the constraints."""
    if not polishing.error(layout, lane) <= 1e-7:
        return False
    size = 0.0
    for k in range(len(lane.hessian)):
        size = max(size, abs(lane.hessian[k]))
    assemble(tape, layout, lane, 1e-7 * size + 1e-14)
    positive, negative = factor(lane.K, layout.n + layout.p, lane.pivots)
    return positive == layout.n and negative == layout.p


@lean
def _step(tape: Any, layout: Any, options: Any, lane: Any, right: Any, dual: float, primal: float) -> int:
    """Set out along the Newton step from the iterate, whose derivatives are known."""
    x, e, c, number, count = lane.x, lane.e, lane.c, lane.number, lane.count
    rows = count[ROWS]
    mean, dual_square, primal_square = 0.0, 0.0, 0.0
    if not factorise(tape, layout, lane):
        return BROKEN
    residual = c[SECOND_G]
    for k in range(layout.m):
        residual[k] = c[G, k] + c[T, k]
    h = e[H]
    if rows:
        direction(layout, lane, 1.0, 0.0, h, residual, right, x[DY_AFFINE], e[DLAM_AFFINE], c[DT_AFFINE], c[DV_AFFINE])
        direction(layout, lane, 0.0, 1.0, h, residual, right, x[DY_CENTRAL], e[DLAM_CENTRAL], c[DT_CENTRAL], c[DV_CENTRAL])
        if not count[FIXED_MODE]:
            mean = _mean(lane)
            dual_square, primal_square = _squares(layout, lane)
            number[MU] = free_barrier(lane, mean, dual_square, primal_square, options.tolerance / 10.0)
            count[ENTRIES] = 0
        combine(layout, lane, number[MU])
    else:
        direction(layout, lane, 1.0, 0.0, h, residual, right, x[DY], e[DLAM], c[DT], c[DV])
    if number[MU] < 1e-3:
        refine(tape, layout, lane, h, right, x[DY], e[DLAM], c[DT], c[DV])
    number[ERROR] = _barrier_error(lane, dual, primal, number[MU])
    prepare(layout, lane)
    go(layout, lane, number[LENGTH], x[DY], e[DLAM], c[DT], c[DV], number[LONGEST_V])
    count[STATE], count[HALVINGS] = _TRIAL, 0
    return _GOING


@lean
def _mean(lane: Any) -> float:
    total, rows = 0.0, lane.count[ROWS]
    for k in range(rows):
        total += lane.c[T, k] * lane.c[V, k]
    return total / rows


@lean
def _squares(layout: Any, lane: Any) -> tuple[float, float]:
    """Mean squares of the dual and the primal residual."""
    dual, primal = 0.0, 0.0
    for j in range(layout.n):
        dual += lane.x[SLOPE, j] ** 2
    for k in range(layout.p):
        primal += lane.e[H, k] ** 2
    for k in range(layout.m):
        primal += (lane.c[G, k] + lane.c[T, k]) ** 2
    return dual / layout.n, primal / max(1, layout.p + layout.m)


@lean
def _choose_mode(layout: Any, options: Any, lane: Any, dual: float, primal: float) -> None:
    """Whether the barrier parameter is free, and what it is if not."""
    number, count, c = lane.number, lane.count, lane.c
    dual_square, primal_square = _squares(layout, lane)
    merit, rows = 0.0, count[ROWS]
    for k in range(rows):
        merit += (c[T, k] * c[V, k]) ** 2
    merit = merit / rows + dual_square + primal_square
    reference = np.inf if count[MERITS] == 0 else 0.0
    for k in range(min(count[MERITS], MEMORY)):
        reference = max(reference, lane.merits[k])
    if merit <= 0.9999 * reference:
        lane.merits[count[MERITS] % MEMORY] = merit
        count[MERITS] += 1
        count[FIXED_MODE] = 0
        return
    least = options.tolerance / 10.0
    if not count[FIXED_MODE]:
        count[FIXED_MODE] = 1
        number[MU] = max(0.8 * _mean(lane), least)
        count[ENTRIES] = 0
        return
    for _ in range(2):
        mu = number[MU]
        if mu > least and _barrier_error(lane, dual, primal, mu) <= 10.0 * mu:
            number[MU] = max(least, min(0.1 * mu, mu**1.8))
            count[ENTRIES] = 0


@lean
def _shorten(tape: Any, layout: Any, options: Any, lane: Any, right: Any, finite: bool) -> int:
    """After a trial point that was refused: the second-order correction, a shorter step, or another direction."""
    x, e, c, number, count = lane.x, lane.e, lane.c, lane.number, lane.count
    if count[STATE] == _TRIAL and count[HALVINGS] == 0 and finite:
        theta, _ = measures(layout, lane, TRIAL_F, TRIAL_H, TRIAL_G, TRIAL_T)
        if theta >= number[THETA] and theta < np.inf and layout.p + layout.m > 0:
            length = number[LENGTH]
            for k in range(layout.p):
                e[SECOND_H, k] = length * e[H, k] + e[TRIAL_H, k]
            for k in range(layout.m):
                c[SECOND_G, k] = length * (c[G, k] + c[T, k]) + c[TRIAL_G, k] + c[TRIAL_T, k]
            dy, dlam, dt, dv = x[DY_SECOND], e[DLAM_SECOND], c[DT_SECOND], c[DV_SECOND]
            direction(layout, lane, 1.0, number[MU], e[SECOND_H], c[SECOND_G], right, dy, dlam, dt, dv)
            refine(tape, layout, lane, e[SECOND_H], right, dy, dlam, dt, dv)
            rows, fraction = count[ROWS], number[FRACTION]
            number[LENGTH] = longest(c[T], dt, rows, fraction)
            go(layout, lane, number[LENGTH], dy, dlam, dt, dv, longest(c[V], dv, rows, fraction))
            count[STATE] = _CORRECTED
            return _GOING
    count[HALVINGS] += 1
    if count[HALVINGS] > 24 or count[CRAWLED] > 6:
        return _trouble(tape, layout, options, lane, right)
    number[LENGTH] = number[LONGEST] * 0.5 ** count[HALVINGS]
    go(layout, lane, number[LENGTH], x[DY], e[DLAM], c[DT], c[DV], number[LONGEST_V])
    count[STATE] = _TRIAL
    return _GOING


@lean
def _trouble(tape: Any, layout: Any, options: Any, lane: Any, right: Any) -> int:
    """No step along the direction will do."""
    x, e, c, number, count = lane.x, lane.e, lane.c, lane.number, lane.count
    count[TROUBLE] += 1
    count[CRAWLED] = count[ENTRIES] = 0
    number[MOST_THETA] = 0.0
    if count[TROUBLE] > 8:
        return BROKEN
    if count[ROWS] and not count[FIXED_MODE]:
        count[FIXED_MODE] = 1
        number[MU] = max(0.8 * _mean(lane), options.tolerance / 10.0)
        dual, primal = _residuals(layout, lane)
        return _step(tape, layout, options, lane, right, dual, primal)
    number[FORCED] = max(1e-3, 10.0 * number[SHIFT])
    save(layout, lane)
    go(layout, lane, number[LONGEST], x[DY], e[DLAM], c[DT], c[DV], number[LONGEST_V])
    count[STATE] = _FORCED
    return _GOING


@lean
def _judge_polish(tape: Any, layout: Any, options: Any, lane: Any, right: Any) -> int:
    """Done, or another step on the active constraints, or back to the interior."""
    number, count = lane.number, lane.count
    polishing.settle(layout, lane)
    error = polishing.error(layout, lane)
    count[HALVINGS] += 1
    if error <= options.tolerance and (error <= _ACCURATE or count[HALVINGS] >= _POLISH_STEPS - 2):
        return SOLVED
    better = error <= 0.1 * number[POLISHED] or error <= options.tolerance
    if better and count[HALVINGS] < _POLISH_STEPS:
        number[POLISHED] = error
        if polishing.step(tape, layout, lane, right):
            return _GOING
    number[POLISH_AT] = min(number[POLISH_AT], number[POLISHED]) * 1e-2
    return _return(layout, lane)

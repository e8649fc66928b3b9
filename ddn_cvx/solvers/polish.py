"""Newton's method on the optimality conditions: from a solver's accuracy to machine accuracy.

The residual F is semismooth and its Newton step needs the same factor as the derivative, so a step or two cost little
and bring an interior-point solution (1e-8) or a first-order one (1e-5) to about 1e-12 wherever the solution is regular.
A step is kept only for the elements whose residual it lowers, after at most six halvings. With linear constraints that may
end between two active sets, where a whole step is uphill and the next one exact: what is stuck there is given whole steps
(Hintermüller, Ito & Kunisch, 2002, "The primal-dual active set strategy as a semismooth Newton method").
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.program.conic import ConicProgram
from ddn_cvx.program.factor import KKT, factorise
from ddn_cvx.program.instance import Instance, Point, choose

GOAL = 1e-13
"""Relative residual at which nothing is left to gain."""
FAIR = 1e-10
"""Residual from which on a step that does not help is not shortened: rounding is in the way, not a wrong active set."""
STUCK = 1e-8
"""Residual from which on whole steps are tried in the end."""
MAX_HALVINGS = 7


def polish(instance: Instance, point: Point, ok: Tensor, steps: int) -> tuple[Point, KKT | None]:
    """At most ``steps`` Newton steps from ``point``; elements not ``ok`` stay where they are.

    Returns the last point, and the factor there when it is already known.
    """
    program = instance.program
    factor: KKT | None = None
    factor_v: Tensor | None = None
    size = point.residuals.of_equations
    for _ in range(steps):
        waiting = ok & (size > GOAL)
        if not bool(waiting.any()):
            break
        if factor is None or factor_v is None or not _same_face(program, factor_v, point.v):
            factor = None  # a large one goes before the next is made
            factor, factor_v = factorise(program, instance.data.P, instance.data.A, point.v, ok, instance.dense), point.v
        a, c = (step.squeeze(-1) for step in factor.forward(-point.top.unsqueeze(-1), -point.low.unsqueeze(-1)))
        start, missed, before = point, waiting, size
        for halvings in range(MAX_HALVINGS):
            length = 0.5**halvings
            trial = instance.at(start.x + length * a, start.v + length * c)
            trial_size = trial.residuals.of_equations
            better = missed & (trial_size < size)
            point = choose(better, trial, point)
            size = torch.where(better, trial_size, size)
            # Each element for itself: what one returns must not depend on how long its batch mates take.
            missed = missed & ~better & (size > FAIR)
            if not bool(missed.any()):
                break
        if bool((size == before).all()):
            break
    stuck = ok & (size > STUCK)
    if program.cones.is_polyhedral and bool(stuck.any()):
        factor = None
        return _whole_steps(instance, point, stuck, steps), None
    return point, factor if factor_v is not None and _same_face(program, factor_v, point.v) else None


def _whole_steps(instance: Instance, point: Point, stuck: Tensor, steps: int) -> Point:
    """The best point on the way of Newton's method without a line search, for the elements that are stuck."""
    best = trial = point
    for _ in range(steps):
        factor = factorise(instance.program, instance.data.P, instance.data.A, trial.v, stuck, instance.dense)
        a, c = (step.squeeze(-1) for step in factor.forward(-trial.top.unsqueeze(-1), -trial.low.unsqueeze(-1)))
        step = stuck & (trial.residuals.of_equations > GOAL)
        trial = choose(step, instance.at(trial.x + a, trial.v + c), trial)
        best = choose(step & (trial.residuals.of_equations < best.residuals.of_equations), trial, best)
        if bool((trial.residuals.of_equations[stuck] <= FAIR).all()):
            break
        del factor
    return best


def _same_face(program: ConicProgram, old: Tensor, new: Tensor) -> bool:
    """Whether the derivative of the projection is the same at both points, so that a factor can be kept."""
    return old is new or (program.cones.is_polyhedral and bool(((old > 0) == (new > 0)).all()))

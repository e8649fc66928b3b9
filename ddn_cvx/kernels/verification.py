"""A problem as it was declared, at candidate solutions: objective and violation of polynomial constraints.

Everything is a sum of products of two numbers that are there already, ``z_r = sum factor z_a z_b``: constants (one among
them), parameters, the variables of the program, and then the rows r, in an order in which each needs earlier ones only.
Products whose places advance evenly come as runs, for a row of a matrix times a vector is one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.kernels.dense import copy, dot
from ddn_cvx.kernels.jit import Task, jit, lean

Integers = NDArray[np.int64]


class Plan(NamedTuple):
    """What to compute. Places are those in ``[constants | parameters | variables | rows]``."""

    constants: NDArray[np.float64]
    starts: Integers
    """Where the runs of each row begin, ``(rows + 1,)``."""
    factors: NDArray[np.float64]
    runs: Integers
    """First place and step of one operand and of the other, and number of products, ``(runs, 5)``."""
    objective: int
    """The place of the declared objective."""
    sign: float
    """Times the sum of the value of the program ..."""
    constant: int
    """... and what is here should be the same."""
    left: Integers
    """Places of what should be equal, for the first ``equalities``, and of what should be at most ``right``."""
    right: Integers
    equalities: int

    def task(self, u: Any, x: Any, measures: Any, found: Any) -> Task:
        """``verify`` for a batch."""
        return Task(verify, 2 * (u.shape[1] + len(self.runs)), (self, u, x, measures, found))


@jit
def verify(first: int, last: int, plan: Any, u: Any, x: Any, measures: Any, found: Any) -> None:
    """As ``found`` (B, 2) the objective and the largest relative violation, infinite where it is not a number, for
    parameters u (B, k) and variables x (B, n); ``measures`` (B, 6) end with the value of the program."""
    z = np.empty(len(plan.constants) + u.shape[1] + x.shape[1] + len(plan.starts) - 1)
    _verify(first, last, plan, u, x, measures, found, z)


@lean
def _verify(first: int, last: int, plan: Any, u: Any, x: Any, measures: Any, found: Any, z: Any) -> None:
    starts, factors, runs, left, right = plan.starts, plan.factors, plan.runs, plan.left, plan.right
    given, before = len(plan.constants), len(plan.constants) + u.shape[1]
    rows = before + x.shape[1]
    copy(plan.constants, z)
    for k in range(first, last):
        copy(u[k], z[given:])
        copy(x[k], z[before:])
        for row in range(len(starts) - 1):
            total = 0.0
            for run in range(starts[row], starts[row + 1]):
                total += factors[run] * _product(z, runs[run, 0], runs[run, 1], runs[run, 2], runs[run, 3], runs[run, 4])
            z[rows + row] = total
        found[k, 0] = z[plan.objective]
        worst = _violation(z[plan.objective], plan.sign * (measures[k, 5] + z[plan.constant]), True)
        for i in range(len(left)):
            excess = _violation(z[left[i]], z[right[i]], i < plan.equalities)
            worst = excess if excess > worst or excess != excess else worst
        found[k, 1] = np.inf if worst != worst else worst


@lean
def _product(z: Any, a: int, step_a: int, b: int, step_b: int, count: int) -> float:
    if step_a == 1 and step_b == 1:
        return dot(z[a : a + count], z[b : b + count])
    total = 0.0
    for i in range(count):
        total += z[a + i * step_a] * z[b + i * step_b]
    return total


@lean
def _violation(left: float, right: float, equality: bool) -> float:
    excess = left - right
    if equality:
        excess = abs(excess)
    elif excess < 0.0:
        excess = 0.0
    return excess / (1.0 + abs(left) + abs(right))

"""A problem as it was declared, at candidate solutions: objective and violation of the constraints.

Everything is computed from numbers that are there already: constants (one among them), parameters, the variables of the
program, and then the rows r, in an order in which each needs earlier ones only. A row is a sum of products,
``z_r = sum factor z_a z_b``, or an operation of ``kernels.tape``. Products whose places advance evenly come as runs, for a
row of a matrix times a vector is one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.kernels.dense import cholesky, copy, dot
from ddn_cvx.kernels.jit import Task, jit, lean
from ddn_cvx.kernels.tape import run

Integers = NDArray[np.int64]

SUM = -1
"""In the place of an operation: a sum of products."""


class Plan(NamedTuple):
    """What to compute. Places are those in ``[constants | parameters | variables | rows]``."""

    constants: NDArray[np.float64]
    starts: Integers
    """Where the runs of each row begin, ``(rows + 1,)``."""
    operations: NDArray[np.int32]
    """``(rows, 4)`` as in ``kernels.tape``; ``SUM`` for sums of products."""
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
    orders: Integers
    """Orders of the matrices that should be semidefinite, ..."""
    entries: Integers
    """... and the places of their entries, row by row."""
    work: float
    """Operations for one element."""

    def task(self, u: Any, x: Any, measures: Any, found: Any, tolerance: float) -> Task:
        """``verify`` for a batch."""
        return Task(verify, self.work, (self, u, x, measures, found, tolerance))


@jit
def verify(first: int, last: int, plan: Any, u: Any, x: Any, measures: Any, found: Any, tolerance: float) -> None:
    """As ``found`` (B, 2) the objective and the largest relative violation, infinite where it is not a number, for
    parameters u (B, k) and variables x (B, n); ``measures`` (B, 6) end with the value of the program. A matrix counts as
    semidefinite if ``tolerance`` of its size on the diagonal makes it so."""
    z = np.empty((len(plan.constants) + u.shape[1] + x.shape[1] + len(plan.starts) - 1, 1))
    order = 0
    for size in plan.orders:
        order = max(order, size)
    _verify(first, last, plan, u, x, measures, found, tolerance, z, z[:, 0], np.empty((order, order)))


@lean
def _verify(
    first: int,
    last: int,
    plan: Any,
    u: Any,
    x: Any,
    measures: Any,
    found: Any,
    tolerance: float,
    column: Any,
    z: Any,
    M: Any,
) -> None:
    starts, operations, factors, runs = plan.starts, plan.operations, plan.factors, plan.runs
    left, right = plan.left, plan.right
    given, before = len(plan.constants), len(plan.constants) + u.shape[1]
    rows = before + x.shape[1]
    copy(plan.constants, z)
    for k in range(first, last):
        copy(u[k], z[given:])
        copy(x[k], z[before:])
        for row in range(len(starts) - 1):
            if operations[row, 0] != SUM:
                run(operations[row : row + 1], column)
                continue
            total = 0.0
            for r in range(starts[row], starts[row + 1]):
                total += factors[r] * _product(z, runs[r, 0], runs[r, 1], runs[r, 2], runs[r, 3], runs[r, 4])
            z[rows + row] = total
        found[k, 0] = z[plan.objective]
        worst = _violation(z[plan.objective], plan.sign * (measures[k, 5] + z[plan.constant]), True)
        for i in range(len(left)):
            excess = _violation(z[left[i]], z[right[i]], i < plan.equalities)
            worst = excess if excess > worst or excess != excess else worst
        start = 0
        for order in plan.orders:
            if not _is_semidefinite(z, plan.entries[start : start + order * order], M[:order, :order], tolerance):
                worst = np.inf
            start += order * order
        found[k, 1] = np.inf if worst != worst else worst


@lean
def _is_semidefinite(z: Any, places: Any, M: Any, tolerance: float) -> Any:
    """Whether the symmetric part is, but for the tolerance."""
    order, size = M.shape[0], 0.0
    for i in range(order):
        for j in range(i + 1):
            M[i, j] = 0.5 * (z[places[i * order + j]] + z[places[j * order + i]])
            size = max(size, abs(M[i, j]))
    for i in range(order):
        M[i, i] += tolerance * (1.0 + size)
    return cholesky(M, 0.0)


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

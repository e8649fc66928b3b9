"""What is measured: each ``Row`` declares one problem as users of cvxpylayers write it, and draws its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cvxpy
import numpy as np

from benchmarks.reference import Answer, Array, project_simplex, quadratic_program

cp: Any = cvxpy  # cvxpy's star imports are invisible to type checkers


@dataclass(frozen=True)
class Declaration:
    """A cvxpy problem, its parameters in the order of the layer's arguments, and the variable that the layer returns."""

    problem: Any
    parameters: list[Any]
    variable: Any


@dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    A row without ``draw`` measures the construction of the layer; any other row one forward and backward pass.
    """

    name: str
    declare: Callable[[], Declaration]
    batch: int = 0
    size: int = 0
    """Entries of the variable."""
    draw: Callable[[np.random.Generator], list[Array]] | None = None
    """Parameter values of ONE instance."""
    reference: Callable[[list[Array], Array], Answer] | None = None
    """The solution of one instance, and the gradient for a cotangent of it."""

    def values(self, seed: list[int]) -> list[Array]:
        """Parameter values of a batch, ``(batch, *shape)`` each."""
        assert self.draw is not None
        generator = np.random.default_rng(seed)
        instances = [self.draw(generator) for _ in range(self.batch)]
        return [np.stack(values) for values in zip(*instances, strict=True)]


def simplex(n: int, batch: int) -> Row:
    """Projection of a standard normal vector onto the probability simplex."""

    def declare() -> Declaration:
        x, p = cp.Variable(n), cp.Parameter(n)
        return Declaration(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0]), [p], x)

    return Row(
        f"simplex-{n}-batch-{batch}",
        declare,
        batch,
        n,
        lambda generator: [generator.standard_normal(n)],
        lambda values, g: project_simplex(values[0], g),
    )


def qp(n: int, equalities: int, inequalities: int, batch: int) -> Row:
    """A dense strictly feasible QP, every coefficient a parameter; some inequalities are active."""

    def declare() -> Declaration:
        x, Q, p = cp.Variable(n), cp.Parameter((n, n)), cp.Parameter(n)
        parameters, constraints = [Q, p], []
        if equalities:
            A, b = cp.Parameter((equalities, n)), cp.Parameter(equalities)
            parameters += [A, b]
            constraints.append(A @ x == b)
        if inequalities:
            G, h = cp.Parameter((inequalities, n)), cp.Parameter(inequalities)
            parameters += [G, h]
            constraints.append(G @ x <= h)
        objective = cp.Minimize(0.5 * cp.sum_squares(Q @ x) + p @ x)
        return Declaration(cp.Problem(objective, constraints), parameters, x)

    def draw(generator: np.random.Generator) -> list[Array]:
        normal = generator.standard_normal
        feasible = normal(n)
        values = [np.eye(n) + normal((n, n)) / np.sqrt(n), normal(n)]
        if equalities:
            A = normal((equalities, n))
            values += [A, A @ feasible]
        if inequalities:
            G = normal((inequalities, n))
            values += [G, G @ feasible + generator.random(inequalities)]
        return values

    reference = partial(quadratic_program, equalities=equalities, inequalities=inequalities)
    return Row(f"qp-{n}-{equalities}-{inequalities}-batch-{batch}", declare, batch, n, draw, reference)


def dense_parameter(m: int, n: int) -> Row:
    """Construction of nonnegative least squares with the whole matrix a parameter."""

    def declare() -> Declaration:
        x, A, b = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m)
        return Declaration(cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0]), [A, b], x)

    return Row(f"construct-{m}x{n}", declare)


SUITES: dict[str, list[Row]] = {
    "convex": [
        simplex(10, 128),
        simplex(50, 128),
        qp(10, 3, 5, 128),
        qp(50, 10, 50, 64),
        qp(128, 0, 128, 4),
        simplex(10, 1),
        simplex(50, 1),
        qp(10, 3, 5, 1),
        qp(50, 10, 50, 1),
        qp(128, 0, 128, 1),
        dense_parameter(400, 400),
    ],
}

"""What is measured: each ``Row`` declares one problem as users of cvxpylayers write it, and draws its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import cvxpy
import numpy as np
import torch
from torch import Tensor

from benchmarks.reference import Answer, Array, linear_program, project_orthant, project_simplex, quadratic_program

cp: Any = cvxpy  # cvxpy's star imports are invisible to type checkers


class Quadratic(NamedTuple):
    """``min 1/2 x'Px + q'x  s.t.  Ax = b, Gx <= h``, for packages that take nothing else; batch first, rows may be none."""

    P: Tensor
    q: Tensor
    A: Tensor
    b: Tensor
    G: Tensor
    h: Tensor


@dataclass(frozen=True)
class Declaration:
    """A cvxpy problem, its parameters in the order of the layer's arguments, and the variable that the layer returns."""

    problem: Any
    parameters: list[Any]
    variable: Any
    quadratic: Callable[..., Quadratic] | None = None
    """The same problem as a quadratic program: a differentiable function of the parameters ``(batch, *shape)``."""


@dataclass(frozen=True)
class Target:
    """How many times faster than others we mean to be."""

    cvxpylayers: float
    others: float


@dataclass(frozen=True)
class Curve:
    """A row's place in a picture: the curve it belongs to, the quantity that grows along it, and its value here."""

    name: str
    axis: str
    value: int
    sizes: tuple[int, int, int]
    """Variables, equalities and inequalities of the quadratic program, from which its operations are counted."""


@dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    A row without ``draw`` measures the construction of the layer; any other row one forward and backward pass.
    """

    name: str
    declare: Callable[[], Declaration]
    batch: int = 0
    shape: tuple[int, ...] = ()
    """Of the variable."""
    draw: Callable[[np.random.Generator], list[Array]] | None = None
    """Parameter values of ONE instance."""
    reference: Callable[[list[Array], Array], Answer] | None = None
    """The solution of one instance, and the gradient for a cotangent of it."""
    target: Target | None = None
    curve: Curve | None = None

    def values(self, seed: list[int]) -> list[Array]:
        """Parameter values of a batch, ``(batch, *shape)`` each."""
        assert self.draw is not None
        generator = np.random.default_rng(seed)
        instances = [self.draw(generator) for _ in range(self.batch)]
        return [np.stack(values) for values in zip(*instances, strict=True)]


def _shared(t: Tensor, batch: int) -> Tensor:
    return t.expand(batch, *t.shape)


def _eye(p: Tensor, scale: float = 1.0) -> Tensor:
    """A multiple of the identity for each row of ``p``, ``(batch, n, n)``."""
    return _shared(scale * torch.eye(p.shape[-1], dtype=p.dtype, device=p.device), len(p))


def simplex(n: int, batch: int, target: Target | None = None, box: bool = False) -> Row:
    """Projection of a standard normal vector onto the probability simplex.

    With ``box`` the implied bounds ``x <= 1`` are declared too, which is how sparsemax layers are usually written.
    """

    def declare() -> Declaration:
        x, p = cp.Variable(n), cp.Parameter(n)
        constraints = [cp.sum(x) == 1, x >= 0, *([x <= 1] if box else [])]
        return Declaration(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), constraints), [p], x, quadratic)

    def quadratic(p: Tensor) -> Quadratic:
        G, h = -_eye(p), torch.zeros_like(p)
        if box:
            G, h = torch.cat((G, -G), 1), torch.cat((h, h + 1), 1)
        return Quadratic(_eye(p, 2.0), -2 * p, p.new_ones(len(p), 1, n), p.new_ones(len(p), 1), G, h)

    return Row(
        f"{'sparsemax' if box else 'simplex'}-{n}-batch-{batch}",
        declare,
        batch,
        (n,),
        lambda generator: [generator.standard_normal(n)],
        lambda values, g: project_simplex(values[0], g),
        target,
    )


def relu(n: int, batch: int, target: Target | None = None) -> Row:
    """Projection of a standard normal vector onto the nonnegative orthant."""

    def declare() -> Declaration:
        x, p = cp.Variable(n), cp.Parameter(n)
        return Declaration(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), [p], x, quadratic)

    def quadratic(p: Tensor) -> Quadratic:
        nothing = p.new_zeros(len(p), 0)
        return Quadratic(_eye(p, 2.0), -2 * p, p.new_zeros(len(p), 0, n), nothing, -_eye(p), torch.zeros_like(p))

    return Row(
        f"relu-{n}-batch-{batch}",
        declare,
        batch,
        (n,),
        lambda generator: [generator.standard_normal(n)],
        lambda values, g: project_orthant(values[0], g),
        target,
    )


def qp(
    n: int, equalities: int, inequalities: int, batch: int, target: Target | None = None, curve: Curve | None = None
) -> Row:
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
        return Declaration(cp.Problem(objective, constraints), parameters, x, quadratic)

    def quadratic(Q: Tensor, p: Tensor, *rows: Tensor) -> Quadratic:
        none = [p.new_zeros(len(p), 0, n), p.new_zeros(len(p), 0)]
        A, b = rows[:2] if equalities else none
        G, h = rows[-2:] if inequalities else none
        return Quadratic(Q.mT @ Q, p, A, b, G, h)

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
    return Row(f"qp-{n}-{equalities}-{inequalities}-batch-{batch}", declare, batch, (n,), draw, reference, target, curve)


def lp(n: int, inequalities: int, batch: int, target: Target | None = None) -> Row:
    """A dense LP in the box ``|x| <= 1``: the solution is a vertex, where some of the rows and some of the bounds meet."""

    def declare() -> Declaration:
        x, c = cp.Variable(n), cp.Parameter(n)
        G, h = cp.Parameter((inequalities, n)), cp.Parameter(inequalities)
        problem = cp.Problem(cp.Minimize(c @ x), [G @ x <= h, x >= -1, x <= 1])
        return Declaration(problem, [c, G, h], x, quadratic)

    def quadratic(c: Tensor, G: Tensor, h: Tensor) -> Quadratic:
        one = _eye(c)
        rows, sides = torch.cat((G, one, -one), 1), torch.cat((h, torch.ones_like(c), torch.ones_like(c)), 1)
        return Quadratic(_eye(c, 0.0), c, c.new_zeros(len(c), 0, n), c.new_zeros(len(c), 0), rows, sides)

    def draw(generator: np.random.Generator) -> list[Array]:
        G = generator.standard_normal((inequalities, n))
        inside = generator.uniform(-0.5, 0.5, n)
        return [generator.standard_normal(n), G, G @ inside + generator.random(inequalities)]

    return Row(f"lp-{n}-{inequalities}-box-batch-{batch}", declare, batch, (n,), draw, linear_program, target)


def dense_parameter(m: int, n: int) -> Row:
    """Construction of nonnegative least squares with the whole matrix a parameter."""

    def declare() -> Declaration:
        x, A, b = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m)
        return Declaration(cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0]), [A, b], x)

    return Row(f"construct-{m}x{n}", declare)

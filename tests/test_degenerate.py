"""Degenerate points of convex programs: what the layer answers, which flag it raises, which derivative it returns.

A catalogue, read case by case, which is why the module is long. Each case gives its solution in closed form as a function
of the parameters. Its derivative must be a convex combination of the derivatives of that closed form at points around (an
element of the generalised Jacobian); where there is only one, it is the classical one. Where the solution is not unique, or
the minimum norm gives something else, the derivative expected is written down. Each case has its row in the how-to page on
degenerate points, held here to say the same flag.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cvxpy
import numpy as np
import pytest
import torch
from scipy.optimize import nnls

import ddn_cvx as ddn
from ddn_cvx.solution import Regularity

cp: Any = cvxpy  # cvxpy's star imports are invisible to type checkers
Array: TypeAlias = Any
REGULAR, KINK = Regularity.REGULAR, Regularity.WEAKLY_ACTIVE
DEPENDENT, VALLEY = Regularity.RANK_DEFICIENT, Regularity.SINGULAR_HESSIAN


@dataclass(frozen=True, eq=False)
class Case:
    """A problem in one variable, values for its parameters, and what is true of it."""

    name: str
    declare: Callable[..., tuple[Any, Any]]
    given: dict[str, Array]
    solution: Callable[..., Array]
    """Closed form, NaN where there is none."""
    flag: Regularity
    derivative: Array | None
    """Where the closed form does not tell it."""
    value: float | None
    """The optimal value, where the solution is not unique."""
    accuracy: float
    """Of the answer, next to its largest entry."""

    def build(self) -> tuple[Any, list[Any], Any]:
        """Fresh cvxpy objects: the problem, its parameters with their values, its variable."""
        parameters = {
            k: cp.Parameter(np.shape(v), name=k, symmetric=np.ndim(v) == 2, value=v) for k, v in self.given.items()
        }
        problem, variable = self.declare(**parameters)
        return problem, list(parameters.values()), variable

    @property
    def values(self) -> list[torch.Tensor]:
        return [torch.tensor(v, dtype=torch.float64) for v in self.given.values()]

    def directions(self) -> list[list[Array]]:
        """A basis of the parameters; symmetric matrices stay symmetric."""
        basis = []
        for i, value in enumerate(self.given.values()):
            for k in np.ndindex(np.shape(value)):
                if k != tuple(sorted(k)):
                    continue
                unit = [np.zeros(np.shape(v)) for v in self.given.values()]
                unit[i][k] = unit[i][k[::-1]] = 1.0
                basis.append(unit)
        return basis


CASES: dict[str, Case] = {}


def case(
    solution: Callable[..., Array], flag: Regularity = REGULAR, derivative: Array | None = None, value: float | None = None,
    accuracy: float = 1e-9, **given: Array,
) -> Callable[[Callable[..., tuple[Any, Any]]], Callable[..., tuple[Any, Any]]]:  # fmt: skip
    """Register the decorated declaration, which receives its parameters by name."""

    def register(declare: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
        values = {name: np.asarray(value, dtype=float) for name, value in given.items()}
        name = declare.__name__.replace("_", " ")
        CASES[name] = Case(name, declare, values, solution, flag, derivative, value, accuracy)
        return declare

    return register


def minimise(objective: Any, *constraints: Any) -> cvxpy.Problem:
    return cvxpy.Problem(cvxpy.Minimize(objective), list(constraints))


def near(x: Any, p: Any) -> Any:
    return 0.5 * cp.sum_squares(x - p)


def root(excess: Callable[[float], float], low: float = -50.0, high: float = 50.0) -> float:
    """Where a decreasing function crosses zero."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low + high) / 2


def onto_simplex(p: Array, total: float = 1.0) -> Array:
    return np.maximum(p - root(lambda t: np.maximum(p - t, 0).sum() - total), 0) if total >= 0 else np.full(p.shape, np.nan)


def psd_part(s: Array) -> Array:
    values, vectors = np.linalg.eigh(s)
    return vectors * np.maximum(values, 0) @ vectors.T


def onto_second_order_cone(p: Array) -> Array:
    t, z = p[0], p[1:]
    r = np.linalg.norm(z)
    if r <= t:
        return p
    return np.zeros_like(p) if r <= -t else (r + t) / 2 * np.concatenate([[1.0], z / r])


# Vertices of linear programs.


@case(lambda c, total: total * (np.arange(3) == np.argmin(c)), c=[2, 1, 3], total=1)
def vertex(c: Any, total: Any) -> Any:
    x = cp.Variable(3, nonneg=True)
    return minimise(c @ x, cp.sum(x) == total), x


# With equal costs every point of an edge is a solution: nothing is invented along the edge.
@case(
    lambda c, total: np.full(3, np.nan), VALLEY, c=[1, 1, 2], total=1, value=1,
    derivative=[[0, 0, 0, 0.5], [0, 0, 0, 0.5], [0, 0, 0, 0]],
)  # fmt: skip
def edge_of_solutions(c: Any, total: Any) -> Any:
    x = cp.Variable(3, nonneg=True)
    return minimise(c @ x, cp.sum(x) == total), x


# The three right-hand sides hold at one point together. How it moves if they do not is a compromise of least squares.
@case(
    lambda h: np.array([min(h[0], h[2] - h[1]), h[1]]), DEPENDENT, h=[1, 1, 2],
    derivative=np.linalg.pinv([[1, 0], [0, 1], [1, 1]]),
)  # fmt: skip
def vertex_of_too_many_constraints(h: Any) -> Any:
    x = cp.Variable(2)
    return minimise(-x[0] - 1.5 * x[1], np.array([[1, 0], [0, 1], [1, 1]]) @ x <= h), x


# Ties.


@case(lambda p: np.max(p), DEPENDENT, p=[1, 1, 0])
def tie_for_the_maximum(p: Any) -> Any:
    t = cp.Variable()
    return minimise(t, p <= t), t


@case(lambda p: p - onto_simplex(p), p=[1, 1, -1])
def proximal_maximum_at_a_tie(p: Any) -> Any:
    x = cp.Variable(3)
    return minimise(cp.max(x) + near(x, p)), x


@case(lambda p: p - onto_simplex(p), KINK, p=[1, 0, -1])
def proximal_maximum_where_a_tie_begins(p: Any) -> Any:
    x = cp.Variable(3)
    return minimise(cp.max(x) + near(x, p)), x


def two_largest(p: Array) -> Array:
    return p - np.clip(p - root(lambda t: np.clip(p - t, 0, 1).sum() - 2), 0, 1)


@case(two_largest, p=[3, 0.5, 0.4, -2])
def proximal_sum_of_largest_at_a_tie(p: Any) -> Any:
    x = cp.Variable(4)
    return minimise(cp.sum_largest(x, 2) + near(x, p)), x


@case(two_largest, KINK, p=[3, 1, 0, -2])
def proximal_sum_of_largest_where_a_tie_begins(p: Any) -> Any:
    x = cp.Variable(4)
    return minimise(cp.sum_largest(x, 2) + near(x, p)), x


@case(lambda p: np.sign(p) * np.maximum(np.abs(p) - 1, 0), p=[2, 0.3, -0.5])
def proximal_norm1_at_zeros(p: Any) -> Any:
    x = cp.Variable(3)
    return minimise(cp.norm1(x) + near(x, p)), x


@case(lambda p: np.sign(p) * np.maximum(np.abs(p) - 1, 0), KINK, p=[1, -1, 3])
def proximal_norm1_at_the_threshold(p: Any) -> Any:
    x = cp.Variable(3)
    return minimise(cp.norm1(x) + near(x, p)), x


@case(lambda p: np.median(p), p=[3, 1, 2])
def median(p: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.norm1(x - p)), x


@case(lambda p: np.median(p), DEPENDENT, p=[1, 1, 2, 0, 1])
def median_at_a_tie(p: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.norm1(x - p)), x


# Every point between 1 and 2 is a median. The norm is smallest over all canonical variables: x, and the two distances.
@case(lambda p: np.nan, VALLEY, p=[1, 2], value=1, derivative=[[1 / 3, 1 / 3]])
def median_of_an_even_number(p: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.norm1(x - p)), x


# Constraints that are active without a force (test_weakly_active.py has the rules to choose from).


@case(lambda p, low: np.maximum(p, low), KINK, p=[1, 0, -1], low=[0, 0, 0])
def bound_without_a_force(p: Any, low: Any) -> Any:
    x = cp.Variable(3)
    return minimise(near(x, p), x >= low), x


# Constraints that say the same.


@case(lambda p, total: p + (total - p.sum()) / 3, DEPENDENT, p=[1, 2, -1], total=1)
def redundant_equalities(p: Any, total: Any) -> Any:
    x = cp.Variable(3)
    return minimise(near(x, p), cp.sum(x) == total, 2 * cp.sum(x) == 2 * total), x


# A solver with an active set puts all of the force on one of two equal constraints; the other has none.
@case(lambda p, high: np.minimum(p, high), KINK, p=[1, 2, -1], high=[0, 1, 2])
def duplicated_inequalities(p: Any, high: Any) -> Any:
    x = cp.Variable(3)
    return minimise(near(x, p), x <= high, x <= high), x


@case(lambda p, total: p + (total - p.sum()) / 3, KINK, p=[1, 2, -1], total=1)
def inequality_implied_by_an_equality(p: Any, total: Any) -> Any:
    x = cp.Variable(3)
    return minimise(near(x, p), cp.sum(x) == total, cp.sum(x) <= total), x


@case(lambda p, r: r * p / np.linalg.norm(p), DEPENDENT, p=[3, 4], r=1)
def duplicated_ball(p: Any, r: Any) -> Any:
    x = cp.Variable(2)
    return minimise(near(x, p), cp.norm(x, 2) <= r, cp.norm(x, 2) <= r), x


# Hessians without full rank.


@case(lambda p: np.full(2, np.nan), VALLEY, p=1.5, value=0, derivative=[[0.5], [0.5]])
def valley(p: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.square(cp.sum(x) - p)), x


@case(lambda p: np.full(2, p), p=1.5)
def valley_closed_by_a_constraint(p: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.square(x[0] - p), x[0] == x[1]), x


@case(lambda b: np.full(2, np.nan), VALLEY, b=[1, 1, 2], value=4.2, derivative=np.linalg.pinv([[1, 2], [2, 4], [0, 0]]))
def rank_deficient_least_squares(b: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum_squares(np.array([[1, 2], [2, 4], [0, 0]]) @ x - b)), x


# No interior, and the boundary of feasibility.


@case(onto_simplex, KINK, p=[1, 2], total=0)
def simplex_of_size_zero(p: Any, total: Any) -> Any:
    x = cp.Variable(2, nonneg=True)
    return minimise(near(x, p), cp.sum(x) <= total), x


@case(lambda p, b: np.clip(p, *b) if b[0] <= b[1] else np.nan, KINK, p=2, b=[1, 1])
def interval_of_length_zero(p: Any, b: Any) -> Any:
    x = cp.Variable()
    return minimise(near(x, p), x >= b[0], x <= b[1]), x


# No point is inside the next three sets. They are empty for some values near by, and the derivative towards the others does
# not follow from the optimality conditions, or is infinite: the minimum norm takes the constraints for equations.
@case(lambda p, r: np.zeros(2), DEPENDENT, p=[3, 4], r=0, derivative=np.zeros((2, 3)))
def ball_of_radius_zero(p: Any, r: Any) -> Any:
    x = cp.Variable(2)
    return minimise(near(x, p), cp.norm(x, 2) <= r), x


@case(lambda p, r: 0.0, DEPENDENT, p=1, r=0, accuracy=1e-6, derivative=[[0, 0]])
def square_below_zero(p: Any, r: Any) -> Any:
    x = cp.Variable()
    return minimise(near(x, p), cp.square(x) <= r), x


@case(lambda c: c / 2, DEPENDENT, c=[1.2, 1.6], accuracy=1e-5, derivative=np.eye(2) / 2)
def balls_that_touch(c: Any) -> Any:
    x = cp.Variable(2)
    return minimise(near(x, [5, 1]), cp.norm(x, 2) <= 1, cp.norm(x - c, 2) <= 1), x


@case(lambda p: np.diag([max(p[0], 0), 0]), DEPENDENT, p=[1, 2])
def semidefinite_face(p: Any) -> Any:
    x = cp.Variable((2, 2), PSD=True)
    return minimise(near(cp.diag(x), p), x[1, 1] == 0), x


# Eigenvalues that coincide.


@case(psd_part, s=np.diag([2.0, 2.0, -1.0]))
def semidefinite_part_with_a_double_eigenvalue(s: Any) -> Any:
    x = cp.Variable((3, 3), symmetric=True)
    return minimise(near(x, s), x >> 0), x


@case(lambda s: np.linalg.eigvalsh(s)[-1], DEPENDENT, s=np.diag([2.0, 2.0, 1.0]))
def double_largest_eigenvalue(s: Any) -> Any:
    t = cp.Variable()
    return minimise(t, t * np.eye(3) - s >> 0), t


# Boundaries and apexes of cones.


@case(psd_part, KINK, s=np.zeros((2, 2)))
def zero_matrix(s: Any) -> Any:
    x = cp.Variable((2, 2), symmetric=True)
    return minimise(near(x, s), x >> 0), x


@case(psd_part, s=np.diag([-1.0, -2.0]))
def zero_matrix_with_a_force(s: Any) -> Any:
    x = cp.Variable((2, 2), symmetric=True)
    return minimise(near(x, s), x >> 0), x


@case(onto_second_order_cone, KINK, p=[0, 0, 0])
def apex_of_the_second_order_cone(p: Any) -> Any:
    x = cp.Variable(3)
    return minimise(near(x, p), cp.SOC(x[0], x[1:])), x


@case(onto_second_order_cone, p=[-2, 1, 0])
def apex_of_the_second_order_cone_with_a_force(p: Any) -> Any:
    x = cp.Variable(3)
    return minimise(near(x, p), cp.SOC(x[0], x[1:])), x


@case(onto_second_order_cone, KINK, p=[-5, 3, 4])
def polar_boundary_of_the_second_order_cone(p: Any) -> Any:
    x = cp.Variable(3)
    return minimise(near(x, p), cp.SOC(x[0], x[1:])), x


def shrunk(p: Array) -> Array:
    return p * max(0, 1 - 1 / np.linalg.norm(p)) if p.any() else p


@case(shrunk, KINK, p=[0.6, 0.8])
def proximal_norm_at_the_threshold(p: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.norm(x, 2) + near(x, p)), x


@case(lambda p: np.zeros(3), p=[1, -1, -2])
def apex_of_the_exponential_cone_with_a_force(p: Any) -> Any:
    x = cp.Variable(3)
    return minimise(near(x, p), cp.ExpCone(x[0], x[1], x[2])), x


@case(lambda p: np.array([p[0], 0, 0]), p=[-1, -1, -2])
def edge_of_the_exponential_cone(p: Any) -> Any:
    x = cp.Variable(3)
    return minimise(near(x, p), cp.ExpCone(x[0], x[1], x[2])), x


@case(lambda p: np.array([p[0], 0, p[2]]), p=[-1, -1, 2])
def flat_face_of_the_exponential_cone(p: Any) -> Any:
    x = cp.Variable(3)
    return minimise(near(x, p), cp.ExpCone(x[0], x[1], x[2])), x


@case(lambda p: np.zeros(3), p=[-1, -1, 0.1])
def apex_of_the_power_cone_with_a_force(p: Any) -> Any:
    x = cp.Variable(3)
    return minimise(near(x, p), cp.PowCone3D(x[0], x[1], x[2], 0.3)), x


# Scales far from one, one at a time (test_scales.py has more of them). The solution is regular, with a force of 1.2 on one
# bound: slacks and multipliers are measured in their own units.


def scaled(name: str, objective: float = 1, row: float = 1, unit: float = 1) -> None:
    def declare(p: Any, total: Any) -> Any:
        x = cp.Variable(3)
        return minimise(objective * near(unit * x, p), row * unit * cp.sum(x) == row * total, unit * x >= 0), x

    given = {"p": np.array([0.9, 0.5, -1]), "total": np.array(1.0)}
    CASES[name] = Case(name, declare, given, lambda p, total: onto_simplex(p, total) / unit, REGULAR, None, None, 1e-9)


scaled("objective times 1e-8", objective=1e-8)
scaled("objective times 1e8", objective=1e8)
scaled("row times 1e-8", row=1e-8)
scaled("row times 1e8", row=1e8)
scaled("variables in units of 1e-8", unit=1e-8)
scaled("variables in units of 1e8", unit=1e8)


# What a layer makes of a case.


def jacobian(of: Case, layer: ddn.DeclarativeLayer) -> Array:
    """Columns over ``of.directions()``."""
    parts = torch.autograd.functional.jacobian(layer, tuple(of.values))
    size = int(np.prod(parts[0].shape[: parts[0].ndim - of.values[0].ndim]))
    flat = np.concatenate([np.asarray(part.reshape(size, -1)) for part in parts], axis=1)
    return np.stack([flat @ np.concatenate([d.reshape(-1) for d in unit]) for unit in of.directions()], axis=1)


def jacobians_around(of: Case, count: int = 60, step: float = 1e-4) -> Array:
    """Central differences of the closed form at points around where it has a solution, ``(count, outputs, directions)``."""
    rng, found = np.random.default_rng(0), []
    basis, values = of.directions(), list(of.given.values())

    def at(weights: Array) -> Array:
        shifted = [v + sum(w * unit[i] for w, unit in zip(weights, basis, strict=True)) for i, v in enumerate(values)]
        return np.ravel(of.solution(*shifted))

    for _ in range(count):
        away = rng.normal(size=len(basis))
        h = 1e-3 * step
        columns = [(at(step * away + h * e) - at(step * away - h * e)) / (2 * h) for e in np.eye(len(basis))]
        found.append(np.stack(columns, axis=1))
    return np.stack([j for j in found if np.isfinite(j).all()])


def distance_to_hull(point: Array, corners: Array) -> float:
    """From a matrix to the convex hull of others, by nonnegative least squares."""
    weight = 1e3
    flat = corners.reshape(len(corners), -1).T
    rows = np.vstack([flat, np.full((1, len(corners)), weight)])
    weights, _ = nnls(rows, np.append(point.reshape(-1), weight))
    return float(np.abs(flat @ weights - point.reshape(-1)).max())


@pytest.mark.parametrize("of", CASES.values(), ids=lambda of: of.name)
def test_answer_flag_and_derivative(of: Case) -> None:
    problem, parameters, variable = of.build()
    layer = ddn.DeclarativeLayer(problem, parameters, variable)
    solution = layer.solve(*of.values)
    x = solution.outputs[0].detach().numpy()
    if of.value is not None:
        variable.value = x
        assert problem.objective.value == pytest.approx(of.value, abs=1e-9)
        assert max((c.violation().max() for c in problem.constraints), default=0.0) < 1e-9
    else:
        known = np.asarray(of.solution(*of.given.values()))
        assert x.shape == known.shape
        assert np.abs(x - known).max() <= of.accuracy * (np.abs(known).max() or 1)
    # Where there is no multiplier, whether the one that a solver ends with looks like zero is open.
    open_flags = KINK if of.accuracy > 1e-9 else REGULAR
    assert [found | open_flags for found in solution.regularities] == [of.flag | open_flags]
    found = jacobian(of, layer)
    if of.derivative is not None:
        np.testing.assert_allclose(found, of.derivative, rtol=0, atol=1e-5)
    else:
        around = jacobians_around(of)
        size = np.abs(around).max()
        assert distance_to_hull(found, around) <= 1e-5 * size + 1e-12
        if of.flag is REGULAR:
            assert np.ptp(around, axis=0).max() <= 1e-2 * size + 1e-12  # the one derivative there is


def test_the_page_has_a_row_for_each() -> None:
    page = (Path(__file__).parents[1] / "docs/how-to/degenerate-points.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    flags = {row[0].lower(): row[2] for row in rows if len(row) == 4}
    names = {of.name: " and ".join(f"`{name}`" for name in (of.flag.name or "").split("|")) for of in CASES.values()}
    assert {name: flags.get(name) for name in names} == names

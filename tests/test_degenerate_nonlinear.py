"""Degenerate points of nonlinear programs: what the layer answers, its flag or status, and its derivative.

A catalogue like ``test_degenerate.py``, of problems in torch and of cvxpy problems that are not convex. Each case gives its
solution in closed form as a function of one vector of parameters. Every row of the derivative is a cotangent of its own,
which chooses a side of a kink, and must be a convex combination of rows of the derivatives of the closed form at points
around; where the derivative does not follow from the closed form, the one expected is written down. Each case has its row
in the how-to page on degenerate points.
"""

from __future__ import annotations

import math
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
from ddn_cvx.solution import Regularity, Status

cp: Any = cvxpy  # cvxpy's star imports are invisible to type checkers
Array: TypeAlias = Any
REGULAR, KINK = Regularity.REGULAR, Regularity.WEAKLY_ACTIVE
DEPENDENT, VALLEY = Regularity.RANK_DEFICIENT, Regularity.SINGULAR_HESSIAN
INFINITE = "infinite"
"""The true derivative is: what is returned is large."""
OPEN = "open"
"""Nothing is promised."""


@dataclass(frozen=True, eq=False)
class Case:
    """A problem, values for its parameters, and what is true of it."""

    name: str
    layer: Callable[[], Any]
    p: torch.Tensor
    solution: Callable[[Array], Array] | None
    """Closed form; None if the solution is not unique, or there is none."""
    says: Regularity | Status
    """The flags of an answer, or the status without one."""
    derivative: Array | str | None
    """Where the closed form does not tell it."""
    value: float | None
    """The optimal value, where the solution is not unique."""
    accuracy: float
    """Of the answer, next to its largest entry or one."""


CASES: dict[str, Case] = {}


def case(
    solution: Callable[[Array], Array] | None, says: Regularity | Status = REGULAR, derivative: Array | str | None = None,
    value: float | None = None, accuracy: float = 1e-9, *, p: Array, name: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # fmt: skip
    """Register the decorated declaration: of a cvxpy problem if it takes a parameter, else of one in torch."""

    def register(declare: Callable[..., Any]) -> Callable[..., Any]:
        values = torch.tensor(p, dtype=torch.float64)
        shape = tuple(values.shape)

        def layer() -> Any:
            if declare.__code__.co_argcount:
                parameter = cp.Parameter(shape)
                problem, variable = declare(parameter)
                return ddn.DeclarativeLayer(problem, [parameter], variable, on_failure="nan")
            return ddn.DeclarativeLayer(declare(), on_failure="nan")

        title = name or declare.__name__.replace("_", " ")
        CASES[title] = Case(title, layer, values, solution, says, derivative, value, accuracy)
        return declare

    return register


def problem(n: Any, objective: Any, equality: Any = None, inequality: Any = None, p: Any = 2, **options: Any) -> Any:
    """In ``n`` variables, and ``p`` parameters (``()``: a number)."""
    shape = (p,) if isinstance(p, int) else p
    return ddn.TorchProblem(n, objective, equality, inequality, parameters=[shape], **options)


def minimise(objective: Any, *constraints: Any) -> Any:
    return cp.Problem(cp.Minimize(objective), list(constraints))


def near(y: Any, p: Any) -> Any:
    return 0.5 * ((y - p) ** 2).sum()


def square(y: Any) -> Any:
    return (y * y).sum()


def onto_sphere(p: Array) -> Array:
    return p / np.linalg.norm(p)


def onto_ball(p: Array) -> Array:
    return p / max(1.0, float(np.linalg.norm(p)))


def out_of_ball(p: Array) -> Array:
    return p / min(1.0, float(np.linalg.norm(p)))


# Active without a force.


@case(onto_ball, KINK, p=[0.6, 0.8])
def edge_of_a_disc() -> Any:
    return problem(2, near, None, lambda y, p: square(y) - 1)


@case(out_of_ball, KINK, p=[0.6, 0.8])
def edge_of_a_hole() -> Any:
    return problem(2, near, None, lambda y, p: 1 - square(y), initial=1.0)


@case(lambda p: np.maximum(p, 1.0) ** (1 / 3), KINK, p=1.0)
def bound_of_a_quartic_without_a_force() -> Any:
    return problem((), lambda y, p: 0.25 * y**4 - p * y, p=(), lower=1.0, initial=2.0)


# Constraints whose gradients are dependent (LICQ fails), and multipliers exist.


@case(onto_ball, DEPENDENT, p=[3, 4])
def disc_twice() -> Any:
    return problem(2, near, None, lambda y, p: torch.stack([square(y) - 1, 3 * square(y) - 3]))


@case(onto_sphere, DEPENDENT, p=[3, 4])
def circle_twice() -> Any:
    return problem(2, near, lambda y, p: torch.stack([square(y) - 1, 3 * square(y) - 3]), initial=0.5)


@case(onto_sphere, DEPENDENT, p=[3, 4])
def circle_and_a_function_of_it() -> Any:
    return problem(2, near, lambda y, p: torch.stack([square(y) - 1, square(y).exp() - math.e]), initial=0.5)


@case(onto_sphere, DEPENDENT, p=[3, 4])
def circle_and_disc() -> Any:
    return problem(2, near, lambda y, p: square(y) - 1, lambda y, p: square(y) - 1, initial=0.5)


# The cube between two numbers that agree. Only their common motion keeps the set from being empty or fat.
@case(lambda p: np.cbrt(p[1]), DEPENDENT, [1 / 6, 1 / 6], p=[1, 1])
def interval_of_length_zero_of_a_cube() -> Any:
    return problem(
        (), lambda y, p: 0.5 * (y - 2) ** 2, None, lambda y, p: torch.stack([p[0] - y**3, y**3 - p[1]]), initial=0.5
    )


# One feasible point, or constraints without a slope at their only points (MFCQ fails), mostly without multipliers.


@case(lambda p: np.array([0.5, 0.5]) + np.array([0.5, -0.5]) * (p[0] - p[1]), VALLEY, OPEN, accuracy=1e-6, p=[3, 4])
def square_of_an_equality() -> Any:
    return problem(2, near, lambda y, p: (y.sum() - 1) ** 2, initial=0.3)


@case(lambda p: np.zeros(2), DEPENDENT, accuracy=1e-6, p=[0, 1])
def curves_that_touch() -> Any:
    return problem(2, near, lambda y, p: torch.stack([y[1], y[1] - y[0] ** 2]), initial=0.5)


@case(lambda p: np.zeros(2), DEPENDENT, OPEN, accuracy=1e-6, p=0.0)
def curves_that_touch_and_part() -> Any:
    return problem(
        2, lambda y, p: near(y, 1) + 0 * p, lambda y, p: torch.stack([y[1], y[1] - y[0] ** 2 + p]), p=(), initial=0.5
    )


@case(lambda p: p / 2, DEPENDENT, OPEN, accuracy=1e-4, p=[1.2, 1.6])
def discs_that_touch() -> Any:
    return problem(
        2,
        lambda y, p: 0.5 * (y[0] - 5) ** 2 + 0.5 * (y[1] - 1) ** 2,
        None,
        lambda y, p: torch.stack([square(y) - 1, square(y - p) - 1]),
        initial=0.3,
    )


@case(lambda p: np.zeros(2), DEPENDENT, accuracy=1e-5, p=[1, 1])
def parabolas_back_to_back() -> Any:
    return problem(2, near, None, lambda y, p: torch.stack([y[0] ** 2 - y[1], y[0] ** 2 + y[1]]), initial=0.5)


@case(lambda p: 0.0 * p, KINK, accuracy=1e-7, p=1.0)
def square_not_above_zero() -> Any:
    return problem((), near, None, lambda y, p: y**2, p=(), initial=0.5)


@case(lambda p: math.pi / 2 + 0 * p, KINK, accuracy=1e-7, p=1.0)
def only_angle_with_sine_one() -> Any:
    return problem((), near, None, lambda y, p: 1 - y.sin(), p=(), lower=0.0, upper=3.0, initial=1.0)


@case(None, Status.SADDLE_POINT, p=0.0)
def tip_of_a_cusp() -> Any:
    return problem(
        2, lambda y, p: -y[0] + 0 * p, None, lambda y, p: torch.stack([-y[1], y[1] - (1 - y[0]) ** 3]), p=(), initial=0.3
    )


# No strict minimum.


@case(None, VALLEY, [[0.5**1.5], [0.5**1.5]], value=0, p=1.0)
def circle_of_minima() -> Any:
    return problem(2, lambda y, p: (square(y) - p) ** 2, p=(), initial=0.3)


@case(None, VALLEY, np.zeros((2, 2)), value=0.5, p=[0, 0])
def circle_around_the_point() -> Any:
    return problem(2, near, lambda y, p: square(y) - 1, initial=0.5)


@case(lambda p: np.array([p, p]) / 2, VALLEY, accuracy=1e-4, p=1.0)
def flat_along_a_line() -> Any:
    return problem(2, lambda y, p: (y[0] - y[1]) ** 4 + 0 * p, lambda y, p: y.sum() - p, p=())


@case(lambda p: np.array([p, p]), VALLEY, accuracy=1e-4, p=1.0)
def flat_in_one_of_two_directions() -> Any:
    return problem(2, lambda y, p: (y[0] - p) ** 2 + (y[1] - p) ** 4, p=())


@case(lambda p: np.array([np.cbrt(p / 4), 1]), VALLEY, INFINITE, accuracy=1e-4, p=0.0)
def flat_and_pushed() -> Any:
    return problem(2, lambda y, p: y[0] ** 4 - p * y[0] + (y[1] - 1) ** 2, p=(), initial=1.0)


# Starts that are stationary, and stationary points that are no minima.


@case(None, Status.SADDLE_POINT, p=1.0)
def start_at_a_maximum() -> Any:
    return problem((), lambda y, p: 0.25 * y**4 - 0.5 * p * y**2, p=())


@case(None, Status.SADDLE_POINT, p=2.0)
def start_at_a_saddle() -> Any:
    return problem(2, lambda y, p: y[0] ** 2 - p * y[1] ** 2 + y[1] ** 4, p=())


@case(onto_sphere, p=[3, 4])
def start_at_the_centre() -> Any:
    return problem(2, near, lambda y, p: square(y) - 1)


@case(onto_sphere, p=[3, 4])
def start_at_the_farthest_point() -> Any:
    return problem(2, near, lambda y, p: square(y) - 1, initial=lambda p: -p / p.norm())


@case(None, Status.SADDLE_POINT, p=1.0)
def inflection() -> Any:
    return problem((), lambda y, p: p * y**3, p=(), lower=-1.0)


@case(None, Status.SADDLE_POINT, p=1.0)
def steep_inflection() -> Any:
    return problem((), lambda y, p: 1e8 * p * y**3, p=(), lower=-1.0, initial=1.0)


# Kinks of functions in torch.


@case(lambda p: p - 1, p=2.0)
def absolute_value_beside_its_kink() -> Any:
    return problem((), lambda y, p: y.abs() + near(y, p), p=())


@case(None, Status.NUMERICAL_ERROR, p=0.4)
def absolute_value_at_its_kink() -> Any:
    return problem((), lambda y, p: y.abs() + near(y, p), p=())


# Here torch's subgradients balance, and the Hessian sees neither side.
@case(None, Status.INACCURATE, p=0.0)
def absolute_value_in_the_middle_of_its_kink() -> Any:
    return problem((), lambda y, p: y.abs() + near(y, p), p=())


@case(None, Status.INACCURATE, p=[1, 1])
def maximum_at_a_tie() -> Any:
    return problem(2, lambda y, p: torch.maximum(y[0], y[1]) + near(y, p))


@case(None, Status.INACCURATE, p=[2, 0])
def corner_of_a_diamond() -> Any:
    return problem(2, near, None, lambda y, p: y.abs().sum() - 1)


@case(lambda p: 0.0 * p, p=-1.0)
def kink_behind_a_bound() -> Any:
    return problem((), lambda y, p: y.abs() + near(y, p), p=(), lower=0.0)


# Scales far from one.


def bent(p: Array) -> Array:
    """On the unit circle, nearest to p with the fourth powers added."""

    def slope(angle: float) -> float:
        c, s = math.cos(angle), math.sin(angle)
        return p[0] * s - p[1] * c + 0.4 * (s**3 * c - c**3 * s)

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return np.array([math.cos(low), math.sin(low)])


def scaled(name: str, objective: float = 1, row: float = 1, unit: float = 1) -> None:
    def cost(y: Any, p: Any) -> Any:
        return objective * (near(unit * y, p) + 0.1 * ((unit * y) ** 4).sum())

    def circle(y: Any, p: Any) -> Any:
        return row * (square(unit * y) - 1)

    def away(y: Any, p: Any) -> Any:
        return objective * near(unit * y, p)

    start = 0.5 / unit
    case(lambda p: bent(p) / unit, p=[3, 4], name=f"circle, {name}")(lambda: problem(2, cost, circle, initial=start))
    # Variables that are tiny next to one make a small force of a constraint's.
    lost = unit > 1e3
    case(lambda p: bent(p) / unit, KINK if lost else REGULAR, OPEN if lost else None, p=[3, 4], name=f"disc, {name}")(
        lambda: problem(2, cost, None, circle, initial=start)
    )
    case(lambda p: onto_ball(p) / unit, KINK, p=[0.6, 0.8], name=f"edge of a disc, {name}")(
        lambda: problem(2, away, None, circle, initial=start)
    )


scaled("objective times 1e-8", objective=1e-8)
scaled("objective times 1e8", objective=1e8)
scaled("row times 1e-8", row=1e-8)
scaled("row times 1e8", row=1e8)
scaled("objective times 1e8 and row times 1e-8", objective=1e8, row=1e-8)
scaled("variables in units of 1e-8", unit=1e-8)
scaled("variables in units of 1e8", unit=1e8)


# Nothing feasible, nothing lowest.


@case(None, Status.INFEASIBLE, p=[3, 4])
def square_below_zero_by_one() -> Any:
    return problem(2, near, None, lambda y, p: square(y) + 1, initial=0.5)


@case(None, Status.INFEASIBLE, p=[3, 4])
def square_equal_to_minus_one() -> Any:
    return problem(2, near, lambda y, p: square(y) + 1, initial=0.5)


@case(None, Status.INFEASIBLE, p=[3, 4])
def discs_apart() -> Any:
    return problem(2, near, None, lambda y, p: torch.stack([square(y) - 1, square(y - p) - 1]), initial=0.5)


@case(None, Status.INFEASIBLE, p=1.0)
def bounds_that_cross() -> Any:
    return problem((), near, p=(), lower=1.0, upper=0.0)


@case(None, Status.INACCURATE, p=1.0)
def square_below_zero_by_little() -> Any:
    return problem((), near, None, lambda y, p: y**2 + 1e-10, p=(), initial=0.5)


@case(None, Status.UNBOUNDED, p=1.0)
def cube_without_a_bound() -> Any:
    return problem((), lambda y, p: p * y**3, p=(), initial=-0.5)


@case(None, Status.UNBOUNDED, p=1.0)
def along_a_hyperbola() -> Any:
    return problem(2, lambda y, p: p * y[0], lambda y, p: y[0] * y[1] - 1, p=(), initial=-0.5)


@case(None, Status.INACCURATE, p=1.0)
def infimum_at_infinity() -> Any:
    return problem((), lambda y, p: p * (-y).exp(), p=())


@case(None, Status.INACCURATE, p=1.0)
def infimum_at_infinity_beside_a_bound() -> Any:
    return problem(2, lambda y, p: p * (-y[0]).exp() + y[1], None, lambda y, p: -y[1], p=(), initial=1.0)


@case(None, Status.INACCURATE, p=1.0)
def epigraph_of_the_inverse() -> Any:
    return problem(2, lambda y, p: y[1], None, lambda y, p: p / y[0] - y[1], p=(), lower=0.0, initial=1.0)


@case(None, Status.INACCURATE, p=1.0)
def branch_of_a_hyperbola() -> Any:
    return problem(2, lambda y, p: p * y[0], lambda y, p: y[0] * y[1] - 1, p=(), lower=0.0, initial=1.0)


@case(None, Status.UNBOUNDED, p=1.0)
def behind_a_hyperbola() -> Any:
    return problem(2, lambda y, p: p * y[0], None, lambda y, p: 1 - y[0] * y[1], p=(), lower=0.0, initial=1.0)


@case(None, Status.UNBOUNDED, p=1.0)
def square_over_a_variable() -> Any:
    return problem(2, lambda y, p: y[0] ** 2 / y[1], lambda y, p: y[0] - p, p=(), lower=torch.tensor([-9, 0.1]), initial=1.0)


@case(lambda p: 1e12 * p, p=1.0)
def far_away() -> Any:
    return problem((), lambda y, p: 0.5e-12 * y**2 - p * y, p=())


# Problems in cvxpy syntax that are not convex.


@case(out_of_ball, KINK, p=[0.6, 0.8])
def edge_of_a_hole_in_cvxpy(p: Any) -> Any:
    y = cp.Variable(2)
    return minimise(0.5 * cp.sum_squares(y - p), cp.sum_squares(y) >= 1), y


@case(onto_sphere, DEPENDENT, p=[3, 4])
def circle_twice_in_cvxpy(p: Any) -> Any:
    y = cp.Variable(2)
    return minimise(0.5 * cp.sum_squares(y - p), cp.sum_squares(y) == 1, 3 * cp.sum_squares(y) == 3), y


@case(None, VALLEY, OPEN, value=0, p=1.0)
def circle_of_minima_in_cvxpy(p: Any) -> Any:
    y = cp.Variable(2)
    return minimise(cp.square(cp.sum_squares(y) - p)), y


@case(np.sqrt, p=4.0)
def absolute_value_at_its_kink_in_cvxpy(p: Any) -> Any:
    y = cp.Variable(value=1.0)
    return minimise(cp.abs(cp.square(y) - p) + 0.1 * cp.square(y - 1)), y


@case(None, Status.SADDLE_POINT, p=1.0)
def start_at_a_maximum_in_cvxpy(p: Any) -> Any:
    y = cp.Variable(value=0.0)
    return minimise(cp.power(y, 4) - p * cp.square(y)), y


@case(lambda p: np.zeros(2), DEPENDENT, accuracy=1e-5, p=[1, 1])
def parabolas_back_to_back_in_cvxpy(p: Any) -> Any:
    y = cp.Variable(2)
    return minimise(
        0.5 * cp.sum_squares(y - p) - 0.1 * cp.square(y[0]), cp.square(y[0]) <= y[1], cp.square(y[0]) <= -y[1]
    ), y


@case(onto_sphere, p=[3, 4])
def circle_times_1e8_in_cvxpy(p: Any) -> Any:
    y = cp.Variable(2)
    return minimise(1e-8 * cp.sum_squares(y - p), 1e8 * cp.sum_squares(y) == 1e8), y


@case(None, Status.INFEASIBLE, p=[3, 4])
def square_equal_to_minus_one_in_cvxpy(p: Any) -> Any:
    y = cp.Variable(2)
    return minimise(cp.sum_squares(y - p), cp.sum_squares(y) == -1), y


@case(None, Status.UNBOUNDED, p=1.0)
def saddle_without_a_bound_in_cvxpy(p: Any) -> Any:
    y = cp.Variable(2)
    return minimise(p * y[0] * y[1]), y


# What a layer makes of a case.


def derivatives_around(of: Case, count: int = 40, step: float = 1e-4) -> Array:
    """Central differences of the closed form at points around, ``(count, outputs, parameters)``."""
    assert of.solution is not None
    rng, at = np.random.default_rng(0), of.p.reshape(-1).numpy()
    found = []
    for _ in range(count):
        there = at + step * rng.normal(size=at.size)
        moves = [
            np.ravel(of.solution((there + s * e).reshape(of.p.shape)))
            for e in np.eye(at.size) * 1e-3 * step
            for s in (1, -1)
        ]
        found.append(np.stack(moves[::2], 1) / (2e-3 * step) - np.stack(moves[1::2], 1) / (2e-3 * step))
    return np.stack(found)


def distance_to_hull(point: Array, corners: Array) -> float:
    """From a row to the convex hull of others, by nonnegative least squares, relative to the largest."""
    size = max(float(np.abs(corners).max()), 1e-300)
    rows = np.vstack([corners.T / size, np.full((1, len(corners)), 1e3)])
    weights, _ = nnls(rows, np.append(point / size, 1e3))
    return float(np.abs(corners.T @ weights - point).max()) / size


@pytest.mark.parametrize("of", CASES.values(), ids=lambda of: of.name)
def test_answer_flag_and_derivative(of: Case) -> None:
    p = of.p.clone().requires_grad_()
    solution = of.layer().solve(p)
    y = solution.outputs[0]
    rows = [torch.autograd.grad(entry, p, retain_graph=True)[0].reshape(-1).numpy() for entry in y.reshape(-1)]
    found = np.stack(rows)
    if isinstance(of.says, Status):
        assert solution.statuses == [of.says]
        assert y.isnan().all() and not found.any()
        return
    assert solution.statuses == [Status.SOLVED]
    assert solution.regularities == [of.says]
    if of.solution is None:
        assert float(solution.value) == pytest.approx(of.value, abs=1e-9)
    else:
        known = np.asarray(of.solution(of.p.numpy()))
        size = max(1.0, float(np.abs(known).max())) if of.accuracy > 1e-9 else float(np.abs(known).max())
        assert np.abs(y.detach().numpy() - known).max() <= of.accuracy * size
    if isinstance(of.derivative, str):
        assert np.isfinite(found).all() and (of.derivative == OPEN or np.abs(found).max() > 1e5)
    elif of.derivative is not None:
        np.testing.assert_allclose(found, np.reshape(of.derivative, found.shape), rtol=0, atol=1e-5)
    else:
        around = derivatives_around(of)
        for k, row in enumerate(found):
            assert distance_to_hull(row, around[:, k]) <= 2e-5 or np.abs(around).max() + np.abs(found).max() < 1e-4
        if of.says is REGULAR:
            assert np.ptp(around, axis=0).max() <= 1e-2 * np.abs(around).max()  # the one derivative there is


@pytest.mark.parametrize("matrices", [True, False])
def test_an_element_on_a_kink_fails_alone(matrices: bool) -> None:
    node = problem((), lambda y, p: y.abs() + near(y, p), p=(), matrices=matrices)
    p = torch.tensor([2.0, 0.0, -3.0], dtype=torch.float64, requires_grad=True)
    solution = ddn.DeclarativeLayer(node, on_failure="nan").solve(p)
    assert solution.statuses == [Status.SOLVED, Status.INACCURATE, Status.SOLVED]
    solution.outputs[0].nansum().backward()
    assert p.grad is not None and p.grad.tolist() == pytest.approx([1.0, 0.0, 1.0])


@pytest.mark.parametrize("name", ["disc twice", "circle twice in cvxpy", "bounds that cross"])
def test_empty_batch(name: str) -> None:
    of = CASES[name]
    p = torch.empty(0, *of.p.shape, dtype=torch.float64, requires_grad=True)
    solution = of.layer().solve(p)
    solution.outputs[0].sum().backward()
    assert p.grad is not None and p.grad.shape == p.shape
    assert solution.statuses == [] and solution.regularities == [] and len(solution.value) == 0


def test_the_page_has_a_row_for_each() -> None:
    page = (Path(__file__).parents[1] / "docs/how-to/degenerate-points.md").read_text(encoding="utf-8")
    part = page.partition("## All of them, nonlinear")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("| ")]
    says = {row[0].lower(): row[2] for row in rows if len(row) == 4}
    known = {of.name: " and ".join(f"`{name}`" for name in str(of.says.name).split("|")) for of in CASES.values()}
    assert {name.lower(): says.get(name.lower()) for name in known} == {name.lower(): v for name, v in known.items()}

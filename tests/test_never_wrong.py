"""Never silently wrong: hostile problems, every forward solver, and no finite answer that is not right.

Each case declares a problem, gives the values of its parameters and says what is true of it: the optimal value, or that
there is none. An answer is right if it satisfies the constraints by cvxpy's own account and reaches that value; where the
problem is scaled so badly that this says little, the solution itself is known. A solver may give up. It may not be wrong,
and whatever happens to one element of a batch must not touch the others.

The module is long for one reason: it is a catalogue, read case by case.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

import cvxpy
import numpy as np
import pytest
import torch
from torch import Tensor
from zoo import maximise, minimise

import ddn_cvx as ddn
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import Solver
from ddn_cvx.solvers.registry import SOLVERS as BUILT_IN, resolve

cp: Any = cvxpy  # cvxpy's star imports are invisible to type checkers
Array: TypeAlias = Any
INFEASIBLE, UNBOUNDED, INADMISSIBLE = np.inf, -np.inf, np.nan
TOLERANCE = 1e-5

# With limits that keep hopeless solves short; all else is as users get it.
SOLVERS: dict[str, dict[str, Any]] = {
    "auto": {}, "interior_point": {}, "conic_interior_point": {}, "clarabel": {}, "scs": {"max_iters": 4000}, "ecos": {},
    "diffcp": {"max_iterations": 4000},
    "osqp": {"max_iter": 4000}, "piqp": {}, "daqp": {}, "highs": {}, "qoco": {}, "cvxopt": {},
}  # fmt: skip


@dataclass(frozen=True)
class Given:
    """The value of a parameter and the attributes it is declared with."""

    value: Array
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Case:
    """A problem, values for its parameters, and what is true of it."""

    name: str
    declare: Callable[..., Any]
    given: Mapping[str, Given]
    best: float
    """The optimal value (the bound where it is only approached), or why there is none: one of the three constants above."""
    solution: list[Array] | None
    """The values of the variables, where the objective alone says little."""
    gp: bool

    def build(self) -> tuple[Any, list[Any]]:
        """Fresh cvxpy objects: the problem and its parameters."""
        parameters = {k: cp.Parameter(np.shape(g.value), name=k, **g.attributes) for k, g in self.given.items()}
        return self.declare(**parameters), list(parameters.values())

    def values(self) -> list[Tensor]:
        """One instance, without a batch dimension."""
        given = [np.asarray(g.value) for g in self.given.values()]
        return [torch.tensor(v, dtype=torch.complex128 if np.iscomplexobj(v) else torch.float64) for v in given]


CASES: dict[str, Case] = {}


def case(
    best: float, solution: list[Any] | None = None, gp: bool = False, **given: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated declaration, which receives its parameters by name."""

    def register(declare: Callable[..., Any]) -> Callable[..., Any]:
        known = {k: g if isinstance(g, Given) else Given(g) for k, g in given.items()}
        CASES[declare.__name__] = Case(declare.__name__, declare, known, best, solution, gp)
        return declare

    return register


# Infeasible.


@case(INFEASIBLE, b=[1, -1])
def crossed_bounds(b: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.square(x), x >= b[0], x <= b[1])


@case(INFEASIBLE, b=[1 + 1e-5, 1])
def barely_crossed_bounds(b: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.square(x), x >= b[0], x <= b[1])


@case(INFEASIBLE, low=[1, 0], high=[-1, 1])
def contradictory_declared_bounds(low: Any, high: Any) -> Any:
    return minimise(cp.sum(cp.Variable(2, bounds=[low, high])))


@case(INFEASIBLE, total=[1, 2])
def inconsistent_duplicates(total: Any) -> Any:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(x), cp.sum(x) == total[0], cp.sum(x) == total[1])


@case(INFEASIBLE, total=[1, 1.0001])
def barely_inconsistent_duplicates(total: Any) -> Any:
    x = cp.Variable(3)
    return minimise(cp.sum(x), cp.sum(x) == total[0], cp.sum(x) == total[1], x >= 0)


@case(INFEASIBLE, a=[[1, 0], [0, 1], [1, 1]], b=[1, 1, 0])
def overdetermined_equalities(a: Any, b: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum_squares(x), a @ x == b)


@case(INFEASIBLE, total=-1)
def empty_polyhedron(total: Any) -> Any:
    x = cp.Variable(3, nonneg=True)
    return minimise(cp.sum(x), cp.sum(x) <= total)


@case(INFEASIBLE, a=[0, 0])
def zero_row_equality(a: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum_squares(x), a @ x == 1)


@case(INFEASIBLE, a=[0, 0])
def zero_row_inequality(a: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum_squares(x - 1), a @ x <= -1)


@case(INFEASIBLE, p=-1)
def constraint_on_the_parameter(p: Any) -> Any:
    return minimise(cp.square(cp.Variable()), p >= 0)


@case(INFEASIBLE, b=[1, -1])
def infeasible_and_unbounded(b: Any) -> Any:
    x, y = cp.Variable(), cp.Variable()
    return minimise(-x, y >= b[0], y <= b[1])


@case(INFEASIBLE, b=1e-8)
def infeasible_in_a_small_row(b: Any) -> Any:
    x = cp.Variable(2, nonneg=True)
    return minimise(cp.sum_squares(x - 1), b * (x[0] + x[1]) <= -b)


@case(INFEASIBLE, r=-1)
def negative_radius(r: Any) -> Any:
    x = cp.Variable(3)
    return minimise(cp.sum(x), cp.norm(x, 2) <= r)


@case(INFEASIBLE, centre=[3, 0])
def disjoint_balls(centre: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum_squares(x), cp.norm(x, 2) <= 1, cp.norm(x - centre, 2) <= 1)


@case(INFEASIBLE, p=Given(np.array([2, 2j]), {"complex": True}))
def complex_infeasible(p: Any) -> Any:
    x = cp.Variable(2, complex=True)
    return minimise(cp.norm(x, 2), x == p, cp.abs(x) <= 1)


@case(INFEASIBLE, trace=-1)
def semidefinite_with_negative_trace(trace: Any) -> Any:
    x = cp.Variable((3, 3), PSD=True)
    return minimise(x[0, 1], cp.trace(x) == trace)


@case(INFEASIBLE, corner=1)
def semidefinite_corner(corner: Any) -> Any:
    """[[x, 1], [1, 0]] is never semidefinite, but nearly so for large x."""
    x = cp.Variable((2, 2), symmetric=True)
    return minimise(x[0, 0], x >> 0, x[0, 1] == corner, x[1, 1] == 0)


@case(INFEASIBLE, p=-0.5)
def negative_exponential(p: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.square(x), cp.exp(x) <= p)


@case(INFEASIBLE, p=0.5)
def logarithm_above_its_bound(p: Any) -> Any:
    x = cp.Variable()
    return minimise(x, cp.log(x) >= 0, x <= p)


@case(INFEASIBLE, p=-1)
def logarithm_of_a_negative_number(p: Any) -> Any:
    x = cp.Variable()
    return maximise(cp.log(x), x == p)


@case(INFEASIBLE, b=1)
def power_above_its_bound(b: Any) -> Any:
    x = cp.Variable(2)
    return minimise(x[0], cp.geo_mean(x, [0.3, 0.7], approx=False) >= 2 * b, cp.sum(x) <= b)


@case(INFEASIBLE, t=0)
def quadratic_over_zero(t: Any) -> Any:
    x, y = cp.Variable(2), cp.Variable()
    return minimise(cp.quad_over_lin(x, y), x == 1, y == t)


@case(INFEASIBLE, gp=True, b=Given(2, {"pos": True}))
def geometric_infeasible(b: Any) -> Any:
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    return minimise(x / y, x * y <= 1, x >= b, y >= b)


# Unbounded.


@case(UNBOUNDED, c=[-1, 0])
def linear_ray(c: Any) -> Any:
    x = cp.Variable(2, nonneg=True)
    return minimise(c @ x, x[1] <= 1)


@case(UNBOUNDED, c=[1, -2])
def linear_without_constraints(c: Any) -> Any:
    return minimise(c @ cp.Variable(2))


@case(UNBOUNDED, c=[1, 1e-3])
def quadratic_with_a_ray(c: Any) -> Any:
    x = cp.Variable(2)
    return maximise(c @ x - cp.square(x[0]))


@case(UNBOUNDED, slope=-1.001)
def norm_with_a_ray(slope: Any) -> Any:
    x = cp.Variable(3)
    return minimise(cp.norm(x, 2) + slope * x[0])


@case(UNBOUNDED, s=Given([[-1, 0], [0, 1]], {"symmetric": True}))
def semidefinite_ray(s: Any) -> Any:
    x = cp.Variable((2, 2), PSD=True)
    return minimise(cp.trace(s @ x))


@case(UNBOUNDED, c=1)
def unbounded_logarithm(c: Any) -> Any:
    x = cp.Variable()
    return maximise(cp.log(x) + c)


@case(UNBOUNDED, price=[1, 0])
def power_with_a_free_good(price: Any) -> Any:
    x = cp.Variable(2)
    return maximise(cp.geo_mean(x, [0.3, 0.7], approx=False), price @ x <= 1)


@case(UNBOUNDED, gp=True, c=Given(1, {"pos": True}))
def geometric_unbounded(c: Any) -> Any:
    """Its infimum is zero, but no positive number reaches it."""
    x = cp.Variable(pos=True)
    return minimise(c * x)


# Inadmissible values.


@case(INADMISSIBLE, p=[1, np.nan])
def nan_in_the_objective(p: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum_squares(x - p), x >= 0)


@case(INADMISSIBLE, a=[[1, np.nan], [0, 1]], b=[1, 1])
def nan_in_the_matrix(a: Any, b: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum_squares(x), a @ x == b)


@case(INADMISSIBLE, high=[1, np.inf])
def infinite_bound(high: Any) -> Any:
    x = cp.Variable(2)
    return minimise(-x[0], x <= high)


@case(INADMISSIBLE, p=[-np.inf, 1], w=0)
def zero_times_infinity(p: Any, w: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum_squares(x) + w * (p @ x))


@case(INADMISSIBLE, p=1e200, q=1e200)
def overflowing_product(p: Any, q: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.square(x - 1), p * q * x <= 1)


@case(INADMISSIBLE, p=1000)
def overflowing_exponential(p: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.square(x - 1), cp.exp(p) * x <= 1)


@case(INADMISSIBLE, p=0)
def division_by_zero(p: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.square(x - 1), x / p <= 1)


@case(INADMISSIBLE, p=0)
def logarithm_of_zero(p: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.square(x), cp.log(p) <= x)


@case(INADMISSIBLE, w=Given(-1, {"nonneg": True}))
def negative_weight(w: Any) -> Any:
    x = cp.Variable(2)
    return minimise(w * cp.sum_squares(x) + cp.sum(x), x >= -1, x <= 1)


@case(INADMISSIBLE, s=Given([[1, 2], [2, 1]], {"PSD": True}))
def indefinite_matrix(s: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.quad_form(x, s), cp.sum(x) == 1)


@case(INADMISSIBLE, s=Given([[1, 2], [2, 1]], {"NSD": True}))
def indefinite_hessian(s: Any) -> Any:
    x = cp.Variable(2)
    return maximise(cp.quad_form(x, s), cp.norm(x, 2) <= 1)


@case(INADMISSIBLE, s=Given([[1, 5], [0, 1]], {"symmetric": True}))
def unsymmetric_matrix(s: Any) -> Any:
    x = cp.Variable((2, 2), symmetric=True)
    return minimise(cp.sum_squares(x - s), x >> 0)


@case(INADMISSIBLE, s=Given(np.array([[1, 1j], [1j, 1]]), {"hermitian": True}))
def matrix_that_is_not_hermitian(s: Any) -> Any:
    x = cp.Variable((2, 2), hermitian=True)
    return minimise(cp.sum_squares(x - s), x >> 0)


@case(INADMISSIBLE, d=Given([[1, 3], [3, 1]], {"diag": True}))
def matrix_that_is_not_diagonal(d: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum_squares(d @ x - 1))


@case(INADMISSIBLE, d=Given([[1, 3], [3, 1]], {"sparsity": ([0, 1], [0, 1])}))
def value_off_the_sparsity_pattern(d: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum(x), d @ x >= 1)


@case(INADMISSIBLE, p=Given(np.array([1 + 1j, 1j]), {"imag": True}))
def real_part_of_an_imaginary_parameter(p: Any) -> Any:
    x = cp.Variable(2, complex=True)
    return minimise(cp.sum_squares(x - p))


@case(INADMISSIBLE, p=np.array([1j, 1]))
def complex_value_of_a_real_parameter(p: Any) -> Any:
    return minimise(cp.sum_squares(cp.Variable(2) - p))


@case(INADMISSIBLE, p=Given(2, {"bounds": [0, 1]}))
def parameter_beyond_its_bounds(p: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.square(x), x >= p)


@case(INADMISSIBLE, gp=True, a=Given(-1, {"pos": True}))
def geometric_negative(a: Any) -> Any:
    x = cp.Variable(pos=True)
    return minimise(a * x + 1 / x)


@case(INADMISSIBLE, gp=True, a=Given(0, {"pos": True}))
def geometric_zero(a: Any) -> Any:
    x = cp.Variable(pos=True)
    return minimise(a * x + 1 / x)


# Solvable, but degenerate.


@case(1 / 3, total=[1, 2])
def redundant_equalities(total: Any) -> Any:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(x), cp.sum(x) == total[0], 2 * cp.sum(x) == total[1])


@case(0, a=[[1, 2], [2, 4]], b=[1, 2])
def rank_deficient_least_squares(a: Any, b: Any) -> Any:
    return minimise(cp.sum_squares(a @ cp.Variable(2) - b))


@case(1, c=[1, 1, 2])
def edge_of_solutions(c: Any) -> Any:
    x = cp.Variable(3, nonneg=True)
    return minimise(c @ x, cp.sum(x) == 1)


@case(0, b=[0, 1])
def nothing_to_minimise(b: Any) -> Any:
    x = cp.Variable(2)
    return minimise(0, x >= b[0], cp.sum(x) <= b[1])


@case(5, p=[1, 2])
def empty_interior(p: Any) -> Any:
    x = cp.Variable(2, nonneg=True)
    return minimise(cp.sum_squares(x - p), cp.sum(x) <= 0)


@case(5, p=[1, 2], r=0)
def ball_of_radius_zero(p: Any, r: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum_squares(x - p), cp.norm(x, 2) <= r)


@case(0, p=[1, -2, 3])
def apex_of_the_second_order_cone(p: Any) -> Any:
    return minimise(cp.norm(cp.Variable(3) - p, 2))


@case(0, corner=0)
def semidefinite_face(corner: Any) -> Any:
    """A zero on the diagonal empties its row: no interior, and no multiplier either."""
    x = cp.Variable((2, 2), PSD=True)
    return minimise(x[0, 1], x[1, 1] == corner, x[0, 0] <= 1)


@case(0, p=1)
def semidefinite_duality_gap(p: Any) -> Any:
    """The zero in the corner forces y = 0; the dual, and points that are nearly feasible, say y = -1."""
    y, t = cp.Variable(), cp.Variable()
    return minimise(y, cp.bmat([[0, y, 0], [y, t, 0], [0, 0, y + p]]) >> 0)


@case(0, p=0)
def unattained_exponential(p: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.exp(x), x <= p)


@case(0, p=1)
def unattained_reciprocal(p: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.inv_pos(x), x >= p)


@case(np.log(2), q=[0.5, 0.5])
def entropy_on_the_boundary(q: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum(cp.kl_div(x, q)), cp.sum(x) == 1, x[1] == 0)


@case(0, p=0)
def power_cone_with_zero(p: Any) -> Any:
    x, y, z = cp.Variable(), cp.Variable(), cp.Variable()
    return maximise(z, cp.PowCone3D(x, y, z, 0.5), x <= p, y <= 1)


@case(1, p=2)
def multiplier_of_no_meaning(p: Any) -> Any:
    """Both constraints are tight and only one is needed."""
    x = cp.Variable()
    return minimise(cp.square(x - p), x <= 1, cp.square(x) <= 1)


# Solvable, but badly scaled. The objective says little here, so the solution is given.

TINY, HUGE = 1e-8, 1e8
SKEWED = np.array([TINY, 1, HUGE])


@case(0, [SKEWED], d=SKEWED)
def scaled_rows(d: Any) -> Any:
    x = cp.Variable(3)
    return minimise(0, cp.multiply(1 / SKEWED, x) == d / SKEWED)


@case(-3, [np.ones(3)], d=SKEWED)
def scaled_inequalities(d: Any) -> Any:
    x = cp.Variable(3)
    return minimise(-cp.sum(x), cp.multiply(d, x) <= d)


@case(-3, [1 / SKEWED], d=SKEWED)
def scaled_columns(d: Any) -> Any:
    x = cp.Variable(3)
    return minimise(-d @ x, cp.multiply(d, x) <= 1)


@case(-TINY, [np.array([0.8, 0.6])], c=[-0.8 * TINY, -0.6 * TINY])
def tiny_linear_objective(c: Any) -> Any:
    x = cp.Variable(2)
    return minimise(c @ x, cp.norm(x, 2) <= 1)


@case(-2 * TINY, [np.array([0, 1.0])], c=[-TINY, -2 * TINY])
def tiny_linear_program(c: Any) -> Any:
    x = cp.Variable(2, nonneg=True)
    return minimise(c @ x, cp.sum(x) <= 1)


@case(-HUGE, [np.array([0.8, 0.6])], c=[-0.8 * HUGE, -0.6 * HUGE])
def huge_linear_objective(c: Any) -> Any:
    x = cp.Variable(2)
    return minimise(c @ x, cp.norm(x, 2) <= 1)


@case(TINY * 2 / 9, [np.array([2 / 3, 1 / 3])], w=Given(TINY, {"nonneg": True}))
def tiny_quadratic_objective(w: Any) -> Any:
    x = cp.Variable(2)
    return minimise(w * (cp.square(x[0] - 1) + 2 * cp.square(x[1] - 0.5) + 1 / 18), cp.sum(x) == 1, x >= 0)


@case(HUGE / 3, [np.full(3, 1 / 3)], w=Given(HUGE, {"nonneg": True}))
def huge_quadratic_objective(w: Any) -> Any:
    x = cp.Variable(3)
    return minimise(w * cp.sum_squares(x), cp.sum(x) == 1)


@case(-1, [np.array(1.0)], w=Given(1e-12, {"nonneg": True}))
def vanishing_quadratic_term(w: Any) -> Any:
    x = cp.Variable()
    return minimise(w * cp.square(x) - x, x <= 1)


@case(0.5, [np.array([1.0, 0.5, 0.5])], w=Given([HUGE, 1, 1], {"nonneg": True}))
def mixed_curvature(w: Any) -> Any:
    x = cp.Variable(3)
    return minimise(w[0] * cp.square(x[0] - 1) + w[1:] @ cp.square(x[1:]), cp.sum(x) == 2)


@case(HUGE**2 / 3, [np.full(3, HUGE / 3)], total=HUGE)
def huge_right_hand_side(total: Any) -> Any:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(x), cp.sum(x) == total, x >= 0)


@case(TINY**2 / 3, [np.full(3, TINY / 3)], total=TINY)
def tiny_right_hand_side(total: Any) -> Any:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(x), cp.sum(x) == total, x >= 0)


@case(-TINY, [np.array([TINY, 0])], h=TINY)
def tiny_linear_program_set(h: Any) -> Any:
    x = cp.Variable(2, nonneg=True)
    return minimise(-x[0], cp.sum(x) <= h)


@case(0, [np.array([1e200, -1e200])], p=[1e200, -1e200])
def overflowing_square(p: Any) -> Any:
    return minimise(cp.sum_squares(cp.Variable(2) - p))


@case(0, [np.array([1e-310, 0])], p=[1e-310, 0])
def subnormal_number(p: Any) -> Any:
    return minimise(cp.sum_squares(cp.Variable(2) - p))


@case(HUGE, [np.array([HUGE, TINY])], a=[TINY, HUGE])
def reciprocal_scales(a: Any) -> Any:
    x = cp.Variable(2)
    return minimise(x[0], a[0] * x[0] >= 1, a[1] * x[1] == 1)


# Nothing, or next to nothing.


@case(0)
def no_parameters() -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum_squares(x), x >= -1)


@case(4, p=2)
def no_variables(p: Any) -> Any:
    return minimise(cp.square(p))


@case(4, p=2)
def square_of_a_parameter(p: Any) -> Any:
    """cvxpy takes its value for a constant, whatever it is when the problem is read."""
    return minimise(cp.square(cp.Variable() - p) + cp.square(p))


@case(INFEASIBLE, p=2)
def no_variables_and_infeasible(p: Any) -> Any:
    return minimise(cp.square(p), p <= 1)


@case(1, p=np.zeros(0), q=1)
def empty_parameter(p: Any, q: Any) -> Any:
    x = cp.Variable()
    return minimise(cp.square(x) + cp.sum(p), x >= q)


@case(1, q=1)
def empty_variable(q: Any) -> Any:
    x, y = cp.Variable(), cp.Variable(0)
    return minimise(cp.square(x) + cp.sum(y), x >= q)


@case(1, q=1)
def empty_constraint(q: Any) -> Any:
    x = cp.Variable(2)
    return minimise(cp.sum_squares(x), x[0] == q, x[:0] >= 5)


@case(0, w=Given(0, {"nonneg": True}))
def objective_times_zero(w: Any) -> Any:
    x = cp.Variable(2)
    return minimise(w * cp.sum_squares(x - 1), cp.norm(x, 2) <= 1)


# What a layer makes of a case.


@dataclass(frozen=True)
class Outcome:
    """What one solver made of one case, in the two modes of failure."""

    raised: str
    """`right`, `wrong`, or `refused` with an error."""
    reported: str
    """`right`, `wrong`, or `failed` with a status and NaN."""
    gradient: bool
    """Finite where solved, zero where not."""
    note: str = ""


def is_right(case: Case, outputs: tuple[Tensor, ...]) -> bool:
    """Judged by cvxpy, from the declaration alone."""
    problem, parameters = case.build()
    found = [output.numpy() for output in outputs]
    if not np.isfinite(case.best) or not all(np.isfinite(x).all() for x in found):
        return False
    if case.solution is not None:
        return all(_near(x, known) for x, known in zip(found, case.solution, strict=True))
    for parameter, value in zip(parameters, case.values(), strict=True):
        parameter.value = value.numpy()
    for variable, x in zip(problem.variables(), found, strict=True):
        variable.save_value(x)
        if x.size and not np.allclose(x, variable.project(x), rtol=TOLERANCE, atol=TOLERANCE):
            return False
    for constraint in problem.constraints:
        size = max([0, *(np.max(np.abs(arg.value)) for arg in constraint.args if arg.size)])
        if constraint.size and np.max(constraint.violation()) > TOLERANCE * (1 + size):
            return False
    return bool(abs(problem.objective.value - case.best) <= TOLERANCE * (1 + abs(case.best)))


def _near(x: Array, known: Array) -> bool:
    """Every entry, however small; zeros next to the largest entry."""
    return np.allclose(x, known, rtol=TOLERANCE, atol=0 if known.all() else TOLERANCE * np.max(np.abs(known)))


@cache
def forward_solver(name: str) -> Solver | None:
    """None if it is not installed."""
    return resolve(name, SOLVERS[name]) if name in BUILT_IN or name.upper() in cp.installed_solvers() else None


@cache
def outcomes(case: Case) -> dict[str, Outcome]:
    """By solver; solvers that do not take the problem are left out."""
    problem, parameters = case.build()
    read = ddn.DeclarativeLayer(problem, parameters, problem.variables(), gp=case.gp)
    found = {}
    for name in SOLVERS:
        solver = forward_solver(name)
        if solver is not None and solver.unsupported(read.node.program) is None:
            layer = read.with_solver(solver)
            found[name] = Outcome(_raised(case, layer), *_reported(case, layer))
    return found


def _raised(case: Case, layer: ddn.DeclarativeLayer) -> str:
    try:
        outputs = layer(*case.values())
    except (ddn.SolverError, ddn.InputError):
        return "refused"
    return "right" if is_right(case, outputs) else "wrong"


def _reported(case: Case, layer: ddn.DeclarativeLayer) -> tuple[str, bool, str]:
    values = [value.requires_grad_() for value in case.values()]
    try:
        solution = layer.solve(*values)
    except ddn.InputError as error:
        return "refused", True, str(error)
    status, outputs = Status(int(solution.status)), solution.outputs
    gradients = []
    if any(output.requires_grad for output in outputs):
        # The square of NaN sends NaN back: it must not arrive.
        loss = sum((output.abs() ** 2).sum() for output in outputs)
        gradients = [g for g in torch.autograd.grad(loss, values, allow_unused=True) if g is not None]
    if status == Status.SOLVED:
        verdict = "right" if is_right(case, tuple(output.detach() for output in outputs)) else "wrong"
        return verdict, all(bool(g.isfinite().all()) for g in gradients), str(outputs)
    blank = all(bool(output.isnan().all()) for output in outputs) and bool(solution.value.isnan())
    return "failed" if blank else "wrong", all(bool((g == 0).all()) for g in gradients), status.name


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_no_solver_is_silently_wrong(case: Case) -> None:
    found = outcomes(case)
    assert {name: outcome for name, outcome in found.items() if "wrong" in (outcome.raised, outcome.reported)} == {}
    assert {name: outcome for name, outcome in found.items() if not outcome.gradient} == {}


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_diagnosis(case: Case) -> None:
    """A status may be vague. It may not say what is not so."""
    found = outcomes(case)
    invalid = [o for o in found.values() if o.reported == "refused" or o.note == Status.INVALID_DATA.name]
    assert len(invalid) == (len(found) if np.isnan(case.best) else 0)
    trusted = {found[name].note for name in ("auto", "clarabel") if name in found}
    assert Status.INFEASIBLE.name not in trusted or case.best == INFEASIBLE
    assert Status.UNBOUNDED.name not in trusted or case.best == UNBOUNDED


# No multiplier exists, no point is best, or the scales are too far apart for 16 digits.
TOO_HARD = {"semidefinite_duality_gap", "unattained_reciprocal", "scaled_inequalities", "overflowing_square"}


def test_what_can_be_solved_is_solved_by_default() -> None:
    solvable = {name for name, case in CASES.items() if np.isfinite(case.best)}
    assert {name for name in solvable if outcomes(CASES[name])["auto"].reported != "right"} <= TOO_HARD


def test_count(capsys: pytest.CaptureFixture[str]) -> None:
    every = [outcome for case in CASES.values() for outcome in outcomes(case).values()]
    tally = Counter(verdict for outcome in every for verdict in (outcome.raised, outcome.reported))
    with capsys.disabled():
        print(f"\n{len(CASES)} hostile cases, {len(every)} pairs of case and solver, each in two modes: {dict(tally)}")
    assert len(CASES) >= 45
    assert tally["wrong"] == 0
    assert tally["right"] > len(every) / 2  # refusing everything is no art


# Degenerate multipliers, and nothing to solve.


@pytest.mark.parametrize("name", SOLVERS)
def test_multipliers_of_redundant_constraints(name: str) -> None:
    """They are not unique, but they balance the gradient of the objective."""
    x, p = cp.Variable(2), cp.Parameter(2)
    rows = [cp.sum(x) == 1, 2 * cp.sum(x) == 2, x <= 0.75, x <= 0.75, cp.sum(x) <= 1]
    problem = minimise(cp.sum_squares(x - p), *rows)
    solver = forward_solver(name)
    if solver is None:
        pytest.skip(f"{name} is not installed")
    outputs = [x, *(row.dual_variables[0] for row in rows)]
    layer = ddn.DeclarativeLayer(problem, [p], outputs, solver=solver, on_failure="nan")
    target = torch.tensor([1.5, -0.5], dtype=torch.float64)
    point, first, second, high, again, below = layer(target)
    if not point.isnan().any():
        assert point.tolist() == pytest.approx([0.75, 0.25], abs=1e-6)
        balance = 2 * (point - target) + first + 2 * second + high + again + below
        assert balance.abs().max() < 1e-5
        assert min(high.min(), again.min(), below) > -1e-6


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("batch", [(0,), (2, 0)], ids=str)
def test_empty_batch(name: str, batch: tuple[int, ...]) -> None:
    x, p, w = cp.Variable(2), cp.Parameter(2), cp.Parameter(nonneg=True)
    solver = forward_solver(name)
    if solver is None:
        pytest.skip(f"{name} is not installed")
    layer = ddn.DeclarativeLayer(minimise(w * cp.sum_squares(x - p), x >= 0), [p, w], x, solver=solver)
    weight = torch.tensor(1.0, requires_grad=True)
    out = layer(torch.zeros(*batch, 2), weight)
    assert out.shape == (*batch, 2)
    out.sum().backward()
    assert weight.grad == 0


# One element of a batch and the others.


@dataclass(frozen=True)
class Family:
    """A problem, how to draw its batched parameters, the value of one that is shared, and elements that have no solution."""

    build: Callable[[], tuple[Any, list[Any], list[Any]]]
    """Problem, parameters (the shared one last) and outputs."""
    draw: Callable[[np.random.Generator, int], list[Array]]
    shared: Array
    poison: dict[str, list[Any]]
    """What to write over an element of each batched parameter; None leaves it."""


def _dense_quadratic() -> tuple[Any, list[Any], list[Any]]:
    x, w, c, h, g = cp.Variable(12), cp.Parameter(nonneg=True), cp.Parameter(12), cp.Parameter(32), cp.Parameter((32, 12))
    limit = g @ x <= h
    return minimise(w * cp.sum_squares(x) + c @ x, limit), [w, c, h, g], [x, limit.dual_variables[0]]


def _linear() -> tuple[Any, list[Any], list[Any]]:
    x, c, b, a = cp.Variable(4, nonneg=True), cp.Parameter(4), cp.Parameter(), cp.Parameter(3)
    budget = a @ x[:3] <= b
    return minimise(c @ x, budget), [c, b, a], [x, budget.dual_variables[0]]


def _curved() -> tuple[Any, list[Any], list[Any]]:
    x, w, c, r, s = cp.Variable(4), cp.Parameter(nonneg=True), cp.Parameter(4), cp.Parameter(), cp.Parameter((2, 2))
    ball = cp.norm(s @ x[:2], 2) <= r
    return minimise(w * cp.sum_squares(x) + c @ x, ball, cp.exp(x[2]) <= 1 + r), [w, c, r, s], [x, ball.dual_variables[0]]


_ROWS = np.abs(np.random.default_rng(1).standard_normal((30, 12))) * (np.arange(12) > 0)
_PAIR = np.eye(12)[[0, 0]] * [[1], [-1]]  # x_0 <= h_30 and -x_0 <= h_31
_FREE = np.arange(12.0) > 0  # against all other rows, and so unbounded where nothing curves

FAMILIES = {
    "dense quadratic": Family(
        _dense_quadratic,
        lambda rng, n: [rng.uniform(0.5, 1, n), 2 * rng.standard_normal((n, 12)), rng.uniform(0.2, 1, (n, 32))],
        np.vstack([_ROWS, _PAIR]),
        {
            "nan": [None, np.nan, None],
            "infeasible": [None, None, -1],
            "unbounded": [0, _FREE, None],
            "inadmissible": [-1, None, None],
            "badly scaled": [1e-9, 1e6, 1e7],
        },
    ),
    "linear": Family(
        _linear,
        lambda rng, n: [np.array([0, 0, 0, 5]) + rng.standard_normal((n, 4)), rng.uniform(1, 2, n)],
        np.array([1.0, 2, 1.5]),
        {
            "infinite": [None, np.inf],
            "infeasible": [None, -1],
            "unbounded": [[1, 1, 1, -1], None],
            "badly scaled": [[1e-9, 1, -1e9, 1], 1e-9],
        },
    ),
    "curved": Family(
        _curved,
        lambda rng, n: [rng.uniform(0.5, 1, n), 3 * rng.standard_normal((n, 4)), rng.uniform(0.5, 1, n)],
        np.array([[1, 0.5], [0, 2]]),
        {
            "nan": [np.nan, None, None],
            "infeasible": [None, None, -2],
            "unbounded": [0, [0, 0, 0, 1], None],
            "badly scaled": [1e-9, 1e5, 1e-7],
        },
    ),
}


def _run(layer: ddn.DeclarativeLayer, batched: list[Array], shared: Array) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Which elements are solved, the outputs, and the gradients of a loss that is NaN wherever an output is."""
    leaves = [torch.tensor(v, requires_grad=True) for v in (*batched, shared)]
    outputs = layer(*leaves)
    loss = sum(((output + 1) ** 2).sum() for output in outputs)
    return ~outputs[0].isnan().any(-1), [o.detach() for o in outputs], list(torch.autograd.grad(loss, leaves))


def _layer(family: Family, name: str) -> ddn.DeclarativeLayer:
    problem, parameters, outputs = family.build()
    layer = ddn.DeclarativeLayer(problem, parameters, outputs, on_failure="nan")
    solver = ddn.SCS(eps_abs=1e-4, eps_rel=1e-4) if name == "loose" else forward_solver(name)
    assert solver is not None
    if solver.unsupported(layer.node.program) is not None:
        pytest.skip(f"{name} does not take it")
    return layer.with_solver(solver)


BATCHED = pytest.mark.parametrize("name", ["auto", "interior_point", "conic_interior_point", "clarabel"])
OF_EACH = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


@pytest.mark.parametrize("name", ["auto", "interior_point", "conic_interior_point", "clarabel", "loose"])
@OF_EACH
def test_elements_do_not_depend_on_each_other(family: Family, name: str) -> None:
    """Among others an element is to the last bit what it is among copies of itself, however much is left to polish."""
    layer, count = _layer(family, name), 9
    batch = family.draw(np.random.default_rng(2), count)
    _, expected, wanted = _run(layer, batch, family.shared)
    for k in range(count):
        _, found, gradients = _run(layer, [value[[k] * count] for value in batch], family.shared)
        for one, other in zip([*found, *gradients[:-1]], [*expected, *wanted[:-1]], strict=True):
            assert torch.equal(one.nan_to_num(9.0), other[[k] * count].nan_to_num(9.0))


@BATCHED
@OF_EACH
def test_failed_elements_leave_the_others_alone(family: Family, name: str) -> None:
    layer, count = _layer(family, name), 9
    clean = family.draw(np.random.default_rng(2), count)
    polluted = [value.copy() for value in clean]
    for position, element in enumerate(family.poison.values(), start=1):
        for value, poison in zip(polluted, element, strict=True):
            if poison is not None:
                value[position] = poison
    touched = torch.zeros(count, dtype=torch.bool)
    touched[1 : 1 + len(family.poison)] = True
    ok, expected, wanted = _run(layer, clean, family.shared)
    assert ok.all()
    ok, found, gradients = _run(layer, polluted, family.shared)
    assert ok[~touched].all()
    hopeless = [k for k, kind in enumerate(family.poison, start=1) if kind != "badly scaled"]
    assert not ok[hopeless].any()
    for output, known in zip(found, expected, strict=True):
        assert torch.equal(output[~touched], known[~touched])
        assert output[~ok].isnan().all() and not output[ok].isnan().any()
    for gradient, known in zip(gradients[:-1], wanted[:-1], strict=True):
        assert torch.equal(gradient[~touched], known[~touched])
        assert (gradient[~ok] == 0).all() and gradient.isfinite().all()
    _, _, only = _run(layer, [value[ok.numpy()] for value in polluted], family.shared)
    torch.testing.assert_close(gradients[-1], only[-1], rtol=1e-12, atol=1e-12)

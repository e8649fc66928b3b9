"""Which constraints have no force does not depend on the units of the objective or of a row: flags and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx.cones import Product
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.cone_units import ConeUnits
from ddn_cvx.program.conic import ConicProgram
from ddn_cvx.solution import Regularity

cp: Any = cvxpy  # cvxpy's star imports are invisible to type checkers
REGULAR, KINK = Regularity.REGULAR, Regularity.WEAKLY_ACTIVE
WEIGHT = {"inactive": 0.0, "active": 1.0, "average": 0.5, "descent": 0.0}
"""How much of the derivative with the constraint that has no force."""
X, P = cp.Variable(3), cp.Parameter(3)
PLANE = np.eye(3) - 1 / 3
UNIT = np.array([0.6, 0.0, 0.8])
KEPT = np.diag([1.0, 1.0, 0.0])

# constraints for a factor, the parameter, the flag, and the derivative without and with the constraint that has no force
CASES: dict[str, tuple[Callable[[float], list[Any]], Any, Regularity, Any, Any]] = {
    "bounds": (lambda r: [r * X >= 0], [1.0, 0.5, -1.0], REGULAR, KEPT, KEPT),
    "bound without a force": (lambda r: [r * X >= 0], [1.0, 0.0, -1.0], KINK, KEPT, np.diag([1.0, 0.0, 0.0])),
    "half-space": (lambda r: [r * cp.sum(X) <= r], [1.0, 1.0, 0.5], REGULAR, PLANE, PLANE),
    "half-space with slack": (lambda r: [r * cp.sum(X) <= r], [0.3, 0.4, 0.1], REGULAR, np.eye(3), np.eye(3)),
    "half-space without a force": (lambda r: [r * cp.sum(X) <= r], [0.5, 0.75, -0.25], KINK, np.eye(3), PLANE),
    "half-space at the origin": (lambda r: [r * cp.sum(X) <= 0], [0.0, 0.0, 0.0], KINK, np.eye(3), PLANE),
    "far bound": (lambda r: [r * X >= 0, X <= 1e8], [1.0, 0.5, -1.0], REGULAR, KEPT, KEPT),
}
ONTO_BALL = np.eye(3) - np.outer(UNIT, UNIT)


def onto_curve() -> Any:
    """The derivative of the projection onto ``exp(x0) <= x1`` at (1, 0, x2), by Newton's method on its one equation."""
    t = 0.0
    for _ in range(50):
        t -= (t - 1 + np.exp(2 * t)) / (1 + 2 * np.exp(2 * t))
    slope = np.array([1.0, np.exp(t)])
    out = np.eye(3)
    out[:2, :2] = np.outer(slope, slope) / (1 + 2 * np.exp(2 * t))
    return out


CURVE = onto_curve()
MATRIX = cp.bmat([[X[0], X[1]], [X[1], X[2]]])
BOUNDARY = np.diag([1.0, 0.5, 0.0])
"""On ``x2 = x1**2 / x0`` the second derivative in x1 of ``|x - p|**2 / 2`` is ``1 - 2 p2 / p0`` at p = (2, 0, -1)."""


CURVED: dict[str, tuple[Callable[[float], list[Any]], Any, Regularity, Any, Any]] = {
    "ball": (lambda r: [cp.norm(r * X) <= r], 2 * UNIT, REGULAR, ONTO_BALL / 2, ONTO_BALL / 2),
    "ball as a cone": (lambda r: [cp.SOC(cp.Constant(r), r * X)], 2 * UNIT, REGULAR, ONTO_BALL / 2, ONTO_BALL / 2),
    "ball without a force": (lambda r: [cp.norm(r * X) <= r], UNIT, KINK, np.eye(3), ONTO_BALL),
    "semidefinite": (lambda r: [r * MATRIX >> 0], [2.0, 0.0, -1.0], REGULAR, BOUNDARY, BOUNDARY),
    "exponential": (lambda r: [cp.ExpCone(r * X[0], cp.Constant(r), r * X[1])], [1.0, 0.0, 1.0], REGULAR, CURVE, CURVE),
}
SCALES = [1e-8, 1e-4, 1.0, 1e4, 1e8]


def found(constraints: Any, at: Any, objective: float, rule: Any, dtype: torch.dtype) -> tuple[Regularity, Tensor]:
    problem = cp.Problem(cp.Minimize(objective * 0.5 * cp.sum_squares(X - P)), constraints)
    layer = ddn.DeclarativeLayer(problem, [P], X, adjoint=ddn.Implicit(rule))
    value = torch.tensor(at, dtype=dtype)
    return layer.solve(value).regularities[0], torch.autograd.functional.jacobian(layer, value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rule", WEIGHT)
@pytest.mark.parametrize("name", [*CASES, *CURVED])
def test_flag_and_derivative_in_any_units(name: str, rule: str, dtype: torch.dtype) -> None:
    build, at, flag, without, with_ = (CASES | CURVED)[name]
    if name in CURVED and flag and rule == "descent":
        pytest.skip("either side will do, and which one is up to rounding")
    expected = (1 - WEIGHT[rule]) * without + WEIGHT[rule] * with_
    pairs = {(1.0, s) for s in SCALES} | {(s, 1.0) for s in SCALES} | {(1e-8, 1e8), (1e8, 1e-8), (1e8, 1e8), (1e-8, 1e-8)}
    for objective, row in sorted(pairs):
        if name == "exponential" and objective == 1e-8:
            continue  # flagged without need: the multiplier is a 1e-8 of the slack, and has eight digits in a sum with it
        regularity, jacobian = found(build(row), at, objective, rule, dtype)
        assert regularity == flag, f"objective times {objective}, row times {row}"
        np.testing.assert_allclose(jacobian, expected, rtol=0, atol=1e-5, err_msg=f"{objective}, {row}")


def test_under_vmap() -> None:
    """The sizes are those of each instance, also where the derivative is taken under ``vmap``."""
    problem = cp.Problem(cp.Minimize(1e8 * 0.5 * cp.sum_squares(X - P)), [X >= 0])
    layer = ddn.DeclarativeLayer(problem, [P], X, adjoint=ddn.Implicit("active"))
    at = torch.tensor([[1.0, 0.0, -1.0], [1.0, 0.5, -1.0]], dtype=torch.float64)
    slopes = torch.func.vmap(torch.func.grad(lambda p: layer(p).sum()))(at)
    torch.testing.assert_close(slopes, torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64))
    forward = torch.func.vmap(lambda p: torch.func.jvp(layer, (p,), (torch.ones_like(p),))[1])(at)
    torch.testing.assert_close(forward, slopes)


@pytest.mark.parametrize("solver", [None, "clarabel", "conic_interior_point", "first_order", "scs"])
@pytest.mark.parametrize("row", [1e-8, 1.0, 1e8])
def test_multipliers_are_those_of_the_rows_as_declared(row: float, solver: str | None) -> None:
    """A force of one on ``r |x| <= r`` and on the last row of ``r M >= 0``: multipliers of 1 / r."""
    for name, form in (("ball", [1.0]), ("semidefinite", [[0.0, 0.0], [0.0, 1.0]])):
        build, at, *_ = CURVED[name]
        problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X - P)), build(row))
        found = ddn.DeclarativeLayer(problem, [P], X, solver=solver).solve(torch.tensor(at, dtype=torch.float64))
        np.testing.assert_allclose(row * found.dual[0][0], form, atol=1e-6, err_msg=name)


FACTOR, ROWS = cp.Parameter(nonneg=True), cp.Parameter((3, 3))
PARAMETRIC: dict[str, tuple[list[Any], Any, Any]] = {
    "ball": ([cp.norm(ROWS @ X) <= FACTOR], 2 * UNIT, ONTO_BALL / 2),
    "semidefinite": ([FACTOR * MATRIX >> 0], [2.0, 0.0, -1.0], BOUNDARY),
    "exponential": ([cp.ExpCone(FACTOR * X[0], FACTOR, FACTOR * X[1])], [1.0, 0.0, 1.0], CURVE),
}


def of_parameters(name: str, solver: str | None) -> tuple[ddn.DeclarativeLayer, Callable[[Tensor], list[Tensor]], Any, Any]:
    """A layer for p and a factor of its rows, what to give it for factors r (B,), the point, and the derivative there."""
    constraints, at, slope = PARAMETRIC[name]
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X - P)), constraints)
    known = [P, FACTOR, ROWS] if name == "ball" else [P, FACTOR]
    eye = torch.eye(3, dtype=torch.float64)

    def rest(r: Tensor) -> list[Tensor]:
        return [r, r[..., None, None] * eye] if name == "ball" else [r]

    layer = ddn.DeclarativeLayer(problem, known, X, solver=solver)
    return layer, rest, torch.tensor(at, dtype=torch.float64), torch.as_tensor(slope)


@pytest.mark.parametrize("solver", [None, "clarabel", "conic_interior_point"])
@pytest.mark.parametrize("name", PARAMETRIC)
def test_rows_whose_units_come_from_parameters(name: str, solver: str | None) -> None:
    """In one batch: each element has units of its own."""
    layer, rest, at, slope = of_parameters(name, solver)
    r = torch.tensor([1e-7, 1e-5, 1e-3, 1.0, 1e3, 1e5, 1e7], dtype=torch.float64)
    assert layer.solve(at.expand(7, 3), *rest(r)).regularities == [REGULAR] * 7
    jacobian = torch.autograd.functional.jacobian(lambda p: layer(p, *rest(r)).sum(0), at.repeat(7, 1)).movedim(0, 1)
    torch.testing.assert_close(jacobian, slope.expand(7, 3, 3), rtol=0, atol=1e-9)
    each = torch.func.vmap(lambda p, r: torch.func.jacrev(lambda p: layer(p, *rest(r)))(p))(at.expand(7, 3), r)
    torch.testing.assert_close(each, slope.expand(7, 3, 3), rtol=0, atol=1e-9)
    forth = torch.func.vmap(torch.func.jacfwd(lambda p, r: layer(p, *rest(r))))(at.expand(7, 3), r)
    torch.testing.assert_close(forth, slope.expand(7, 3, 3), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PARAMETRIC)
def test_second_derivatives_in_any_units(name: str) -> None:
    """Those at factor one, with which there are no units, are checked by finite differences elsewhere."""
    layer, rest, at, _ = of_parameters(name, None)

    def curvature(r: float) -> Tensor:
        factor = torch.tensor(r, dtype=torch.float64)
        return torch.autograd.functional.hessian(lambda p: (layer(p, *rest(factor)) ** 3).sum(), at)

    for r in (1e-6, 1e6):
        torch.testing.assert_close(curvature(r), curvature(1.0), rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", [None, "clarabel"])
@pytest.mark.parametrize("row", [1e-6, 1.0, 1e6])
def test_multipliers_of_rows_whose_units_come_from_parameters(row: float, solver: str | None) -> None:
    """As reported, and as an output: a force of one, so 1 / r; and its derivative, -1 / r**2."""
    constraint = FACTOR * MATRIX >> 0
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X - P)), [constraint])
    layer = ddn.DeclarativeLayer(problem, [P, FACTOR], [X, constraint.dual_variables[0]], solver=solver)
    at, r = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64), torch.tensor(row, dtype=torch.float64, requires_grad=True)
    force = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(row * layer.solve(at, r.detach()).dual[0][0], force, rtol=0, atol=1e-8)
    _, multiplier = layer(at, r)
    torch.testing.assert_close(row * multiplier, force, rtol=0, atol=1e-8)
    (slope,) = torch.autograd.grad(multiplier[1, 1], r)
    assert abs(row**2 * float(slope) + 1) < 1e-7


def test_units_of_rows_and_of_auxiliary_variables() -> None:
    """Visible x0, epigraphs t1 and t2: ``(t1, 1e6 x0)`` and ``(t2, 1e-3 t1)`` in cones, ``t2 <= b``."""
    entries = sp.csc_array(np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1e6, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1e-3, 0.0]]))
    pattern = Pattern.of(entries)
    sizes = np.asarray(entries[pattern.rows, pattern.cols]).ravel()

    def units(cones: Product) -> tuple[Any, Any]:
        program = ConicProgram(Pattern.of(sp.csc_array((3, 3))), pattern, cones)
        found = ConeUnits(program, np.array([True, False, False]), 16.0).of(torch.from_numpy(sizes)[None])
        return found[0][0].numpy(), found[1][0].numpy()

    rows, columns = units(Product(zero=0, nonneg=1, soc=(2, 2)))
    scaled = rows[:, None] * entries.toarray() * columns
    np.testing.assert_allclose(np.log2(np.append(rows, columns)) % 1, 0)  # powers of two
    assert columns[0] == 1 and rows[1] == rows[2] and rows[3] == rows[4]
    assert (np.abs(np.log2(scaled[scaled > 0])) <= 4).all()
    rows, columns = units(Product(zero=1, nonneg=4))
    assert (rows == 1).all() and (columns == 1).all()

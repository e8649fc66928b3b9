"""Cone programs where a constraint is active without a force: which derivative ``Implicit(weakly_active=...)`` returns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cvxpy as cp
import pytest
import torch
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace

F64 = torch.float64
P, X = cp.Parameter(3), cp.Variable(3)
M, S = cp.Parameter((3, 3), symmetric=True), cp.Variable((3, 3), symmetric=True)


def project(variable: cp.Variable, parameter: cp.Parameter, *constraints: Any, **options: Any) -> ddn.DeclarativeLayer:
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(variable - parameter)), list(constraints))
    return ddn.DeclarativeLayer(problem, [parameter], variable, **options)


def jacobian(layer: ddn.DeclarativeLayer, at: Tensor) -> Tensor:
    found: Tensor = torch.autograd.functional.jacobian(layer, at)
    return found.reshape(at.numel(), at.numel())


UNIT = torch.tensor([0.6, 0.0, 0.8], dtype=F64)
RANK_ONE = torch.diag(torch.tensor([2.0, 0.0, -1.0], dtype=F64))
# constraints, a point on the kink, and a direction towards where they hold
CASES: dict[str, tuple[Any, Any, list[Any], Tensor, Tensor]] = {
    "half-lines": (X, P, [X >= 0], torch.tensor([1.0, 0.0, -1.0]), torch.ones(3)),
    "ball": (X, P, [cp.norm(X) <= 1], UNIT, -UNIT),
    "second-order cone": (X, P, [cp.SOC(X[0], X[1:])], torch.tensor([5.0, 3.0, 4.0]), torch.tensor([1.0, 0.0, 0.0])),
    "exponential cone": (X, P, [cp.ExpCone(X[0], X[1], X[2])], torch.tensor([0.0, 1, 1]), torch.tensor([-1.0, 0.5, 1])),
    "power cone": (X, P, [cp.PowCone3D(X[0], X[1], X[2], 0.3)], torch.tensor([1.0, 1, 1]), torch.tensor([1.0, 1, 0])),
    "semidefinite": (S, M, [S >> 0], RANK_ONE, torch.eye(3)),
}


@pytest.mark.parametrize("name", CASES)
def test_each_side_is_the_derivative_next_to_the_kink(name: str) -> None:
    """The constraint does not matter a little inside, and holds with a force a little outside."""
    variable, parameter, constraints, kink, inwards = CASES[name]
    kink, inwards = kink.to(F64), inwards.to(F64)

    def on(rule: Any) -> Tensor:
        return jacobian(project(variable, parameter, *constraints, adjoint=ddn.Implicit(rule)), kink)

    plain = project(variable, parameter, *constraints)
    inside, outside = (jacobian(plain, kink + step * inwards) for step in (1e-5, -1e-5))
    assert (inside - outside).abs().max() > 0.1  # it is a kink
    torch.testing.assert_close(on("inactive"), inside, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(on("active"), outside, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(on("average"), 0.5 * (inside + outside), rtol=0.0, atol=1e-4)
    assert ddn.Regularity.WEAKLY_ACTIVE in plain.solve(kink).regularities[0]


@pytest.mark.parametrize("rule, slope", [("inactive", 1.0), ("active", 0.0), ("average", 0.5), ("descent", 1.0)])
def test_all_modes_agree_and_regular_elements_are_left_alone(rule: Any, slope: float) -> None:
    x, p = cp.Variable(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.square(x - p) + cp.power(x, 2) / 2), [x >= 0])
    layer = ddn.DeclarativeLayer(problem, [p], x, adjoint=ddn.Implicit(rule))
    at = torch.tensor([-1.0, 0.0, 1.0], dtype=F64)
    expected = torch.tensor([0.0, slope, 1.0], dtype=F64) * 2 / 3
    given = at.clone().requires_grad_()
    (reverse,) = torch.autograd.grad(layer(given).sum(), given, create_graph=True)
    torch.testing.assert_close(reverse.detach(), expected, rtol=0.0, atol=1e-9)
    _, forward = torch.func.jvp(layer, (at,), (torch.ones_like(at),))
    torch.testing.assert_close(forward, expected, rtol=0.0, atol=1e-9)
    mapped = torch.func.vmap(torch.func.grad(layer))(at)
    torch.testing.assert_close(mapped, expected, rtol=0.0, atol=1e-9)
    # the solution is piecewise linear: no second derivative on either side
    cube = layer(given) ** 3
    (first,) = torch.autograd.grad(cube.sum(), given, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), given)
    torch.testing.assert_close(second, 6 * layer(at) * expected**2, rtol=0.0, atol=1e-8)


class _Blurred(Solver):
    """Answers ``min |x - p|² / 2, x >= 0`` with x and its multiplier both above zero where x is 6e-5."""

    name = "blurred"

    def unsupported(self, program: ConicProgram) -> str | None:
        return None

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        raw = RawSolution.empty(program, len(data.q), data.q)
        x = torch.clamp(-data.q, min=6e-5)
        y = data.P * x + data.q
        return replace(raw, x=x, y=y, s=x.clone(), status=torch.zeros_like(raw.status))


def test_an_active_set_that_stays_open_is_flagged() -> None:
    """Without polishing nothing tells whether the constraint is active."""
    x, p = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p) / 2), [x >= 0])
    value = torch.tensor([2e-5, 1.0], dtype=torch.float64)
    open_ = ddn.DeclarativeLayer(problem, [p], x, solver=_Blurred(), polish_steps=0).solve(value)
    assert open_.statuses == [Status.SOLVED] and ddn.Regularity.WEAKLY_ACTIVE in open_.regularities[0]
    assert ddn.DeclarativeLayer(problem, [p], x, solver=_Blurred()).solve(value).regularities == [ddn.Regularity.REGULAR]

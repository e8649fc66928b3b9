"""The conformance checks accept what is right and reject what is not: each is shown a deliberate fault."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cvxpy as cp
import pytest
import torch
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx.cones import Nonnegative, SecondOrder
from ddn_cvx.testing import check_cone, check_layer, check_solver


def layer(**options: object) -> ddn.DeclarativeLayer:
    x, p = cp.Variable(3), cp.Parameter(3)
    return ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm(x) <= 1]), [p], x, **options)


POINT = torch.tensor([[1.0, 2.0, -0.5], [0.3, -0.1, 0.2]], dtype=torch.float64)


def test_check_layer_accepts_a_right_layer() -> None:
    check_layer(layer(), POINT)


def test_check_layer_rejects_a_wrong_gradient() -> None:
    class Doubled(ddn.Implicit):
        def attach(self, solve, data, extra):  # type: ignore[no-untyped-def]
            x, v, ok = super().attach(solve, data, extra)
            return 2 * x - x.detach(), v, ok

    with pytest.raises((AssertionError, RuntimeError)):
        check_layer(layer(adjoint=Doubled()), POINT)


def test_check_layer_rejects_a_failed_solve() -> None:
    x, p = cp.Variable(), cp.Parameter()
    infeasible = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.square(x)), [x >= p + 1, x <= p]), [p], x)
    with pytest.raises(AssertionError, match="not solved"):
        check_layer(infeasible, torch.zeros(2, dtype=torch.float64))


def sphere(**options: object) -> ddn.TorchProblem:
    w = torch.tensor([1.0, 0.8, 1.2], dtype=torch.float64, requires_grad=True)
    return ddn.TorchProblem(
        {"y": (3,), "t": ()},
        lambda v, x: ((v["y"] - w * x) ** 2).sum() + (v["t"] - x[0]) ** 2,
        lambda v, x: (v["y"] ** 2).sum() - 1,
        initial={"y": 0.5},
        **options,
    )


@pytest.mark.parametrize("parameters", [None, [(3,)]])
def test_check_layer_accepts_a_right_nonlinear_layer(parameters: object) -> None:
    check_layer(ddn.DeclarativeLayer(sphere(parameters=parameters)), POINT)


def test_check_layer_rejects_an_inexact_derivative_of_a_nonlinear_layer() -> None:
    for adjoint in (ddn.Approximate(), ddn.Approximate("identity_hessian")):
        with pytest.raises(RuntimeError, match="Jacobian mismatch"):
            check_layer(ddn.DeclarativeLayer(sphere(), adjoint=adjoint), POINT, second_order=False)


def test_check_cone() -> None:
    v = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_cone(SecondOrder(4), v)
    check_cone(Nonnegative(4), v)

    class Shrunk(SecondOrder):
        def project(self, v: Tensor) -> Tensor:
            return 0.9 * super().project(v)

    with pytest.raises(AssertionError):
        check_cone(Shrunk(4), v)


# ECOS and diffcp read a quadratic objective as a second-order cone, which costs digits before the polish.
@pytest.mark.parametrize(
    ("solver", "tolerance"),
    [(s, 1e-6) for s in (ddn.Clarabel(), ddn.SCS(), ddn.InteriorPoint(), ddn.ConicInteriorPoint(), ddn.Auto())]
    + [(s, 1e-4) for s in (ddn.ECOS(), ddn.Diffcp())],
)
def test_check_solver(solver: ddn.solvers.base.Solver, tolerance: float) -> None:
    check_solver(solver, tolerance)


def test_check_solver_rejects_a_wrong_answer() -> None:
    @dataclass(frozen=True)
    class Sloppy(ddn.Clarabel):
        def solve(self, program, data, workspace, warm=None):  # type: ignore[no-untyped-def]
            raw = super().solve(program, data, workspace, warm)
            return replace(raw, x=raw.x + 1e-3)

    with pytest.raises(AssertionError, match="KKT residual"):
        check_solver(Sloppy())

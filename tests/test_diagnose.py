"""``layer.diagnose()``: what is special is named, and what is not is left alone."""

from __future__ import annotations

import cvxpy as cp
import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx import DeclarativeLayer, Regularity, Status

F64 = torch.float64


def simplex(**options: object) -> DeclarativeLayer:
    y, x = cp.Variable(3), cp.Parameter(3, name="x")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y - x)), [cp.sum(y) == 1, y >= 0])
    return DeclarativeLayer(problem, [x], y, **options)  # type: ignore[arg-type]


def test_well_posed() -> None:
    report = simplex().diagnose(torch.tensor([1.0, 0.5, -1.0]))
    assert report.healthy and report.advice == [[]]
    assert report.active.tolist() == [[False, False, True]]
    assert 1 < report.condition.item() < 100
    assert report.gradient_error.item() < 1e-8
    assert float(report.solution.dual[1][0][2]) == pytest.approx(2.5)
    assert "SOLVED" in str(report) and "1 of 3" in str(report) and "nothing" in str(report)
    assert simplex().diagnose(x=torch.tensor([[1.0, 0.5, -1.0]] * 2)).advice == [[], []]


def test_weakly_active() -> None:
    report = simplex().diagnose(torch.tensor([[2.0, 1.0, -3.0], [1.0, 0.5, -1.0]], dtype=F64))
    assert report.kink.tolist() == [True, False]
    assert "a kink" in report.advice[0][0] and report.advice[1] == []
    assert "WEAKLY_ACTIVE" in str(report)


def test_degenerate_linear_programs() -> None:
    y, c = cp.Variable(2), cp.Parameter(2)
    layer = DeclarativeLayer(cp.Problem(cp.Minimize(c @ y), [cp.sum(y) == 1, y >= 0]), [c], y)
    report = layer.diagnose(torch.tensor([[1.0, 2.0], [1.0, 1.0]], dtype=F64))
    assert report.advice[0] == [] and report.condition[0] < 100
    assert report.solution.regularities[1] != Regularity.REGULAR and report.advice[1]
    twice = cp.Problem(cp.Minimize(cp.sum_squares(y - c)), [y[0] + y[1] == 1, 2 * y[0] + 2 * y[1] == 2])
    report = DeclarativeLayer(twice, [c], y).diagnose(torch.tensor([1.0, 2.0], dtype=F64))
    assert any("redundant" in line for line in report.advice[0])
    assert torch.isinf(report.condition).all()
    assert report.gradient_error.item() < 1e-6


def test_infeasible_element() -> None:
    y, x = cp.Variable(1), cp.Parameter(1)
    layer = DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(y)), [y >= x, y <= 1]), [x], y)
    report = layer.diagnose(torch.tensor([[0.5], [2.0]], dtype=F64))
    assert report.solution.statuses == [Status.SOLVED, Status.INFEASIBLE]
    assert report.advice == [[], [Status.INFEASIBLE.remedy]]
    assert report.condition[1].isnan() and report.gradient_error[1].isnan() and report.gradient_error[0] < 1e-8
    assert layer.on_failure == "raise"


def test_curved_cone() -> None:
    y, x = cp.Variable(2), cp.Parameter(2)
    ball = DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(y - x)), [cp.norm(y) <= 1]), [x], y)
    assert ball.diagnose(torch.tensor([3.0, 4.0], dtype=F64)).healthy


def test_blocks_of_a_large_hessian() -> None:
    """``cosh(y) - x y`` for each variable, neighbours coupled in pairs: blocks of two."""
    n = 400

    def objective(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y.cosh() - x * y).sum() + 0.5 * (y[::2] * y[1::2]).sum()

    layer = DeclarativeLayer(ddn.TorchProblem((n,), objective, lower=0.0, parameters=[(n,)]))
    x = torch.cat((-torch.ones(n // 2, dtype=F64), torch.linspace(0.5, 1, n // 2, dtype=F64)))
    report, y = layer.diagnose(x), layer(x)
    assert report.active.shape == (1, n) and int(report.active.sum()) == int((y == 0).sum()) == n // 2
    free = y[n // 2 :].cosh().reshape(-1, 2)
    blocks = torch.diag_embed(free) + 0.5 * torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    values = torch.linalg.svdvals(blocks / blocks.abs().amax(-1, keepdim=True))
    assert report.condition.item() == pytest.approx(float(values.max() / values.min()), rel=1e-6)


def test_nonlinear_equations_and_differential_equations() -> None:
    node = ddn.TorchProblem(
        (3,), lambda y, x: ((y - x) ** 2).sum(), equality=lambda y, x: y.sum() - 1, lower=0.0, parameters=[(3,)]
    )
    points = torch.tensor([[0.5, 0.3, 0.1], [2.0, 0.5, -3.0]], dtype=F64)
    report = DeclarativeLayer(node).diagnose(points)
    assert report.healthy and report.active.sum(-1).tolist() == [0, 2]
    inexact = DeclarativeLayer(node, adjoint=ddn.Approximate()).diagnose(points[:1])
    assert "not that of the answers" in inexact.advice[0][0]
    root = DeclarativeLayer(ddn.Root((2,), lambda y, x: y**3 - x, initial=lambda x: torch.ones_like(x), parameters=[(2,)]))
    report = root.diagnose(torch.tensor([8.0, 27.0], dtype=F64))
    assert report.healthy and report.condition.item() == pytest.approx(1.0) and report.active.shape == (1, 0)
    pytest.importorskip("torchdiffeq")
    flow = DeclarativeLayer(ddn.ODE((2,), lambda t, y: -y, span=(0.0, 1.0)))
    report = flow.diagnose(torch.ones(2, 2, dtype=F64))
    assert report.healthy and report.condition.isnan().all() and report.gradient_error.max() < 1e-5

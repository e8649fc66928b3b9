"""The method of multipliers: small problems with known answers, and one too large for matrices."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import Tensor

from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solution import Status
from ddn_cvx.solvers.augmented_lagrangian import AugmentedLagrangian
from tests.hock_schittkowski import PROBLEMS
from tests.optimality import optimality_error

F64 = torch.float64
SOLVER = AugmentedLagrangian()


@pytest.mark.parametrize("number", [6, 7, 12, 14, 28, 29, 35, 39, 42, 43, 48, 53, 65, 71, 76, 78, 79, 113])
def test_published_optimum(number: int) -> None:
    problem = next(p for p in PROBLEMS if p.number == number)
    theta = Theta((torch.tensor([problem.nominal], dtype=F64),), (True,))
    node = problem.program()
    point = SOLVER.solve(node, theta, torch.tensor([problem.start], dtype=F64))
    assert point.status.item() == Status.SOLVED
    assert float(node.values(point.y, theta)[0]) == pytest.approx(problem.optimum, rel=1e-6, abs=1e-6)
    assert float(optimality_error(node, theta, point)) < 1e-5


def test_the_last_step_is_newton_s() -> None:
    """From a loose tolerance to full accuracy, for equalities."""
    problem = next(p for p in PROBLEMS if p.number == 79)
    theta, start = problem.batch(5, torch.Generator().manual_seed(0))
    node = problem.program()
    point = AugmentedLagrangian(tolerance=1e-4).solve(node, theta, start)
    assert float(optimality_error(node, theta, point).max()) < 1e-7


def test_each_element_by_itself() -> None:
    """A feasible, an infeasible and an undefined element."""

    def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        t = theta.tensors[0]
        f = y.square().sum(-1) * torch.where(t[:, 1] > 0, 1.0, torch.nan)
        return f, (y[:, :1] ** 2 + t[:, :1]), y[:, :0]

    theta = Theta((torch.tensor([[-4.0, 1.0], [1.0, 1.0], [-4.0, -1.0]], dtype=F64),), (True,))
    point = SOLVER.solve(NonlinearProgram(2, 1, 0, evaluate), theta, torch.ones(3, 2, dtype=F64))
    assert point.status.tolist() == [Status.SOLVED, Status.INFEASIBLE, Status.NUMERICAL_ERROR]
    torch.testing.assert_close(point.y[0], torch.tensor([2.0, 0.0], dtype=F64), atol=1e-8, rtol=0)
    torch.testing.assert_close(point.lam[0], torch.tensor([-1.0], dtype=F64), atol=1e-7, rtol=0)


@pytest.mark.parametrize("weight", [1.0, 20.0, 1000.0])
def test_a_concave_objective_waits_for_the_penalty(weight: float) -> None:
    """``-weight y^2`` between -1 and 1: the augmented Lagrangian has no minimum before the penalty exceeds twice the
    weight."""

    def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        return -weight * y.square().sum(-1), y[:, :0], y[:, :0]

    ends = torch.tensor([-1.0, -1.0], dtype=F64), torch.tensor([1.0, 1.0], dtype=F64)
    node = NonlinearProgram(2, 0, 0, evaluate, lambda theta: ends)
    point = SOLVER.solve(node, Theta((), ()), torch.tensor([[0.3, -0.2]], dtype=F64))
    assert point.status.tolist() == [Status.SOLVED]
    torch.testing.assert_close(point.y, torch.tensor([[1.0, -1.0]], dtype=F64), atol=1e-7, rtol=0)
    torch.testing.assert_close(point.z, 2 * weight * point.y, atol=1e-6 * weight, rtol=0)


def test_without_a_bound() -> None:
    """A direction in which the objective falls for ever is no reason to call the constraints infeasible."""

    def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        t = theta.tensors[0]
        return -t[:, 0] * y[:, 0] - t[:, 1] * y[:, 0].square(), y[:, 1:] - 1, y[:, :0]

    theta = Theta((torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=F64),), (True,))
    start = torch.tensor([[0.0, 0.0], [0.5, 0.0]], dtype=F64)
    line, parabola = SOLVER.solve(NonlinearProgram(2, 1, 0, evaluate), theta, start).status.tolist()
    assert line not in (Status.SOLVED, Status.INFEASIBLE) and parabola == Status.UNBOUNDED


def test_banded_equalities_of_ten_thousand_variables() -> None:
    """A discretised boundary-value control problem: 10^4 variables, 5000 nonlinear equations in three neighbours each.

    A matrix of this order alone would take 0.8 GB; the test allows a quarter of that.
    """
    half = 5000

    def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        u, v = y[:, :half], y[:, half:]
        edge = torch.nn.functional.pad(u, (1, 1))
        h = 2 * u - edge[:, :-2] - edge[:, 2:] + 0.1 * u**3 + u - v - theta.tensors[0]
        target = torch.sin(torch.arange(half, dtype=F64) / 300)
        return ((u - target) ** 2).sum(-1) + 0.1 * v.square().sum(-1), h, y[:, :0]

    node = NonlinearProgram(2 * half, half, 0, evaluate)
    theta = Theta((torch.full((1, 1), 0.2, dtype=F64),), (True,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    point = SOLVER.solve(node, theta, torch.zeros(1, 2 * half, dtype=F64))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert point.status.item() == Status.SOLVED
    slope = node.gradient(point.y, theta, point.lam, point.mu)
    assert float(slope.abs().max()) < 1e-8
    assert float(node.values(point.y, theta)[1].abs().max()) < 1e-8
    assert grown < 200

"""What the default solver picks, and its second chances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solution import Status
from ddn_cvx.solvers.newton import Newton
from ddn_cvx.solvers.nonlinear_auto import NonlinearAuto
from tests.hock_schittkowski import PROBLEMS

F64 = torch.float64


def empty(n: int, p: int) -> NonlinearProgram:
    def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        return (y - 1).square().sum(-1), y[:, :p], y[:, :0]

    return NonlinearProgram(n, p, 0, evaluate)


CASES = [(5, 0, "Newton"), (3000, 0, "NewtonKrylov"), (5, 2, "NonlinearInteriorPoint"), (3000, 1, "AugmentedLagrangian")]


@pytest.mark.parametrize("n, p, name", CASES)
def test_choice(n: int, p: int, name: str) -> None:
    node = empty(n, p)
    assert NonlinearAuto().explain(node).startswith(f"{name} for n = {n}")
    point = NonlinearAuto().solve(node, Theta((torch.zeros(2, 1, dtype=F64),), (True,)), torch.zeros(2, n, dtype=F64))
    assert point.status.tolist() == [Status.SOLVED] * 2
    torch.testing.assert_close(point.y[:, p:], torch.ones(2, n - p, dtype=F64))


@pytest.mark.parametrize("number", [1, 6, 38, 71, 100])
def test_hock_schittkowski(number: int) -> None:
    problem = next(p for p in PROBLEMS if p.number == number)
    theta, start = problem.batch(32, torch.Generator().manual_seed(0))
    assert (NonlinearAuto().solve(problem.program(), theta, start).status == Status.SOLVED).all()


def test_second_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first solver stops early the second one's answer counts."""
    monkeypatch.setattr(NonlinearAuto, "pick", lambda self, program: (Newton(max_iterations=2), Newton(), "test"))
    problem = next(p for p in PROBLEMS if p.number == 38)
    node = NonlinearProgram(4, 0, 0, lambda y, theta: problem.evaluate(y, theta.tensors[0]))
    theta, start = problem.batch(6, torch.Generator().manual_seed(0))
    point = NonlinearAuto().solve(node, theta, start)
    assert point.status.tolist() == [Status.SOLVED] * 6
    assert float(node.first(point.y, theta).gradient.abs().max()) < 1e-6

"""Newton's method, its Krylov form and L-BFGS against known minima and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from ddn_cvx.errors import InputError
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solution import Status
from ddn_cvx.solvers.lbfgs import LBFGS
from ddn_cvx.solvers.newton import Newton, NewtonKrylov
from ddn_cvx.solvers.nonlinear_base import NonlinearSolver

F64 = torch.float64
EMPTY = torch.zeros(1, 0, dtype=F64)
SOLVERS = [Newton(), NewtonKrylov(), LBFGS()]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)


def unconstrained(n: int, f) -> NonlinearProgram:
    return NonlinearProgram(n, 0, 0, lambda y, theta: (f(y, *theta.tensors), y[:, :0], y[:, :0]))


def rosenbrock(y: Tensor, t: Tensor) -> Tensor:
    return (100 * (y[:, 1:] - y[:, :-1] ** 2) ** 2 + (t - y[:, :-1]) ** 2).sum(-1)


@each_solver
def test_rosenbrock_batch(solver: NonlinearSolver) -> None:
    g = torch.Generator().manual_seed(0)
    theta = Theta((1 + 0.1 * torch.rand(40, 1, generator=g, dtype=F64),), (True,))
    start = torch.randn(40, 2, generator=g, dtype=F64) * 3
    point = solver.solve(unconstrained(2, rosenbrock), theta, start)
    assert point.status.tolist() == [Status.SOLVED] * 40
    t = theta.tensors[0]
    torch.testing.assert_close(point.y, torch.cat((t, t**2), 1), rtol=1e-5, atol=1e-5)
    alone = solver.solve(unconstrained(2, rosenbrock), theta.take(torch.tensor([7])), start[7:8])
    torch.testing.assert_close(alone.y, point.y[7:8], rtol=1e-6, atol=1e-6)


@each_solver
def test_against_scipy(solver: NonlinearSolver) -> None:
    """Logistic regression with a ridge, n = 12."""
    g = torch.Generator().manual_seed(1)
    X, c = torch.randn(6, 50, 12, generator=g, dtype=F64), torch.sign(torch.randn(6, 50, generator=g, dtype=F64))

    def f(y: Tensor, X: Tensor, c: Tensor) -> Tensor:
        margin = c * (X @ y.unsqueeze(-1)).squeeze(-1)
        return torch.nn.functional.softplus(-margin).sum(-1) + 0.05 * y.square().sum(-1)

    point = solver.solve(unconstrained(12, f), Theta((X, c), (True, True)), torch.zeros(6, 12, dtype=F64))
    assert point.status.tolist() == [Status.SOLVED] * 6
    for y, one_X, one_c in zip(point.y, X, c, strict=True):

        def value(v: np.ndarray, one_X: Tensor = one_X, one_c: Tensor = one_c) -> float:
            return float(f(torch.from_numpy(v)[None], one_X[None], one_c[None]))

        expected = scipy.optimize.minimize(value, np.zeros(12), method="BFGS", options={"gtol": 1e-6}).fun
        assert value(y.numpy()) <= expected + 1e-9


@each_solver
def test_unbounded_and_nan(solver: NonlinearSolver) -> None:
    def f(y: Tensor, t: Tensor) -> Tensor:
        square = y.square().sum(-1)
        return torch.where(t[:, 0] > 0, t[:, 0] * square, torch.where(t[:, 0] < 0, -square, torch.nan))

    theta = Theta((torch.tensor([[1.0], [-1.0], [0.0]], dtype=F64),), (True,))
    point = solver.solve(unconstrained(3, f), theta, torch.ones(3, 3, dtype=F64))
    assert point.status.tolist() == [Status.SOLVED, Status.UNBOUNDED, Status.NUMERICAL_ERROR]


def test_newton_leaves_the_neighbourhood_of_a_saddle() -> None:
    well = unconstrained(2, lambda y, t: y[:, 0] ** 4 - y[:, 0] ** 2 + y[:, 1] ** 2)
    point = Newton().solve(well, Theta((EMPTY,), (True,)), torch.tensor([[1e-6, 1.0]], dtype=F64))
    assert float(point.y[0, 0]) == pytest.approx(0.5**0.5, rel=1e-9)
    assert point.iterations.item() < 30


def test_newton_turns_away_from_saddles() -> None:
    """Wells in ten dimensions from next to their centre: Newton's own direction would lead back to it."""
    scales = torch.logspace(-2, 2, 10, dtype=F64)
    wells = unconstrained(10, lambda y, t: (scales * (y**4 - y**2)).sum(-1))
    start = 1e-2 * torch.cos(torch.arange(50, dtype=F64)).reshape(5, 10)
    point = Newton().solve(wells, Theta((EMPTY.repeat(5, 1),), (True,)), start)
    torch.testing.assert_close(point.y.abs(), torch.full((5, 10), 0.5**0.5, dtype=F64), rtol=1e-6, atol=0)
    assert int(point.iterations.max()) < 25


@pytest.mark.parametrize("solver", [NewtonKrylov(), LBFGS()], ids=lambda solver: solver.name)
def test_one_hundred_thousand_variables(solver: NonlinearSolver) -> None:
    """A nonconvex chain; the answer is judged by its gradient."""
    n = 100_000

    def f(y: Tensor, t: Tensor) -> Tensor:
        return ((y[:, 1:] - y[:, :-1]) ** 2).sum(-1) + (0.25 * (y**2 - 1) ** 2).sum(-1) - (t * y).sum(-1)

    target = torch.sin(torch.arange(n, dtype=F64) / 50).unsqueeze(0)
    chain, theta = unconstrained(n, f), Theta((target,), (True,))
    point = solver.solve(chain, theta, 0.1 * target)
    assert point.status.tolist() == [Status.SOLVED]
    assert float(chain.first(point.y, theta).gradient.abs().max()) < 1e-7


def test_constraints_are_refused_and_options_checked() -> None:
    constrained = NonlinearProgram(2, 1, 0, lambda y, theta: (y.sum(-1), y[:, :1], y[:, :0]))
    assert all("without constraints" in str(solver.unsupported(constrained)) for solver in SOLVERS)
    with pytest.raises(InputError, match="memory"):
        LBFGS(memory=0)

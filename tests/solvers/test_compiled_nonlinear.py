"""The compiled interior-point method for nonlinear programs, against published optima, closed forms and scipy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import ddn_cvx as ddn
from benchmarks.nonlinear import M, N, P, evaluate, instances
from ddn_cvx.errors import DeclarationError
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solution import Status
from ddn_cvx.solvers.compiled_nonlinear import CompiledInteriorPoint
from ddn_cvx.solvers.nonlinear_auto import NonlinearAuto
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint
from ddn_cvx.solvers.nonlinear_interior_point import NonlinearInteriorPoint
from tests.hock_schittkowski import PROBLEMS, Problem
from tests.optimality import optimality_error

F64 = torch.float64
SOLVER = CompiledInteriorPoint(threads=1)

each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: f"HS{problem.number}")


def program(n: int, f: Callable, h: Callable | None = None, g: Callable | None = None, box=None) -> NonlinearProgram:
    """From functions of ``(y, t)`` on batches, ``h`` and ``g`` returning lists of columns."""

    def values(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        t = theta.tensors[0]
        rows = [torch.stack(r(y, t), -1) if r else y[:, :0] for r in (h, g)]
        return f(y, t), rows[0], rows[1]

    probe, t = torch.ones(1, n, dtype=F64), torch.ones(1, 2, dtype=F64)
    _, some_h, some_g = values(probe, Theta((t,), (True,)))
    bounds = None if box is None else (lambda theta: box(theta.tensors[0]))
    return NonlinearProgram(n, some_h.shape[1], some_g.shape[1], values, bounds)


def solve(node: NonlinearProgram, start: list, t: list | None = None, solver=SOLVER, warm=None) -> NonlinearPoint:
    y = torch.tensor(start, dtype=F64)
    tensor = torch.ones(len(y), 2, dtype=F64) if t is None else torch.tensor(t, dtype=F64)
    return solver.solve(node, Theta((tensor,), (True,)), y, warm)


@cache
def published() -> dict[int, tuple[int, float, float]]:
    """Status, value and error of the optimality conditions, from the published start."""
    found = {}
    for problem in PROBLEMS:
        theta = Theta((torch.tensor([problem.nominal], dtype=F64),), (True,))
        node = problem.program()
        point = SOLVER.solve(node, theta, torch.tensor([problem.start], dtype=F64))
        value, error = node.values(point.y, theta)[0], optimality_error(node, theta, point)
        found[problem.number] = int(point.status), float(value), float(error)
    return found


def test_published_optima_from_published_starts() -> None:
    """The kernel by itself, without a second chance."""
    right = 0
    for problem in PROBLEMS:
        status, value, error = published()[problem.number]
        if status == Status.SOLVED:
            assert value == pytest.approx(problem.optimum, rel=2e-8, abs=1e-8), problem.number
            assert error < 1e-9, problem.number
            right += 1
    assert right >= 55  # all 58 where this was written


@each_problem
def test_perturbed_batches(problem: Problem) -> None:
    node = problem.program()
    theta, start = problem.batch(16, torch.Generator().manual_seed(0))
    point = SOLVER.solve(node, theta, start)
    solved = point.status == Status.SOLVED
    assert solved.double().mean() >= 0.9
    assert float(optimality_error(node, theta.take(solved), point.take(solved)).max()) < 1e-9
    assert not (point.mu < 0).any()


def test_against_scipy() -> None:
    data = instances(4, seed=3)
    node, theta = NonlinearProgram(N, P, M, evaluate), Theta((data.q, data.b, data.d), (True,) * 3)
    point = SOLVER.solve(node, theta, data.start)
    assert point.status.tolist() == [0] * 4
    for k in range(4):

        def at(y: np.ndarray, part: int, k: int = k) -> np.ndarray:
            some = theta.take(torch.tensor([k]))
            return node.values(torch.from_numpy(y)[None], some)[part][0].numpy()

        rows = [
            {"type": "eq", "fun": lambda y: at(y, 1)},
            {"type": "ineq", "fun": lambda y: -at(y, 2)},
        ]
        close = point.y[k].numpy() + 1e-2 * np.sin(np.arange(N))
        reference = scipy.optimize.minimize(at, close, (0,), "SLSQP", constraints=rows, options={"ftol": 1e-14})
        np.testing.assert_allclose(point.y[k].numpy(), reference.x, atol=2e-6)


def test_multipliers_of_bounds_and_fixed_variables() -> None:
    """min |y - c|^2 / 2 in a box: y is c clipped, and z = c - y."""
    c = torch.tensor([3.0, -2.0, 0.25, 7.0], dtype=F64)
    low, high = torch.tensor([-1.0, -1.0, -1.0, 2.0], dtype=F64), torch.tensor([1.0, torch.inf, 1.0, 2.0], dtype=F64)
    node = program(4, lambda y, t: 0.5 * (y - c * t[:, :1]).square().sum(-1), box=lambda t: (low, high))
    point = solve(node, [[0.0] * 4, [9.0, 0.0, -4.0, 2.0]])
    assert point.status.tolist() == [0, 0]
    torch.testing.assert_close(point.y, c.clamp(low, high).expand(2, -1), rtol=0, atol=1e-14)
    torch.testing.assert_close(point.z, (c - c.clamp(low, high)).expand(2, -1), rtol=0, atol=1e-12)


def test_dependent_equalities_do_no_harm() -> None:
    node = program(2, lambda y, t: y.square().sum(-1), h=lambda y, t: [y.sum(-1) - 2, 3 * y.sum(-1) - 6])
    point = solve(node, [[5.0, -4.0]])
    assert point.status.tolist() == [0]
    torch.testing.assert_close(point.y, torch.ones(1, 2, dtype=F64))


def test_a_saddle_point_or_maximum_is_not_called_solved() -> None:
    """(0, 0) is stationary for both, and a minimum for neither; from beside it the minimum is found."""
    saddle = program(2, lambda y, t: y[:, 0] ** 2 - y[:, 1] ** 2 + y[:, 1] ** 4)
    point = solve(saddle, [[0.0, 0.0], [0.3, 0.1]])
    assert point.status[0] != Status.SOLVED
    assert point.status[1] == Status.SOLVED
    torch.testing.assert_close(point.y[1].abs(), torch.tensor([0.0, 0.5**0.5], dtype=F64), rtol=0, atol=1e-9)
    top = program(1, lambda y, t: -y[:, 0].square(), g=lambda y, t: [y[:, 0] - 1, -1 - y[:, 0]])
    assert solve(top, [[0.0]]).status[0] != Status.SOLVED
    auto = solve(top, [[0.0], [0.2]], solver=NonlinearAuto())
    assert auto.status.tolist() == [0, 0]
    torch.testing.assert_close(auto.y.abs(), torch.ones(2, 1, dtype=F64))


def test_infeasible_and_unbounded_are_never_solved_and_auto_says_which() -> None:
    apart = program(2, lambda y, t: y.square().sum(-1), h=lambda y, t: [y.square().sum(-1) + 1])
    falls = program(1, lambda y, t: -y[:, 0], g=lambda y, t: [-y[:, 0]])
    for node, start, verdict in ((apart, [[0.3, 1.0]], Status.INFEASIBLE), (falls, [[0.5]], Status.UNBOUNDED)):
        assert solve(node, start).status[0] in (Status.ITERATION_LIMIT, Status.NUMERICAL_ERROR)
        assert solve(node, start, solver=NonlinearAuto()).status[0] == verdict


def test_steps_stay_where_the_function_is_defined() -> None:
    node = program(1, lambda y, t: y[:, 0] - torch.log(y[:, 0]))
    point = solve(node, [[20.0], [1e-3]])
    assert point.status.tolist() == [0, 0]
    torch.testing.assert_close(point.y, torch.ones(2, 1, dtype=F64))


def test_warm_start_needs_no_iteration_where_the_active_set_is_right() -> None:
    data = instances(32)
    node, theta = NonlinearProgram(N, P, M, evaluate), Theta((data.q, data.b, data.d), (True,) * 3)
    cold = SOLVER.solve(node, theta, data.start)
    moved = Theta((data.q + 1e-4, data.b, data.d), (True,) * 3)
    warm = SOLVER.solve(node, moved, data.start, cold)
    assert (warm.status == 0).all()
    assert (warm.iterations == 0).double().mean() > 0.8
    assert float(optimality_error(node, moved, warm).max()) < 1e-9


def test_float32_in_float32_out() -> None:
    problem = next(p for p in PROBLEMS if p.number == 71)
    theta = Theta((torch.tensor([problem.nominal]),), (True,))
    point = SOLVER.solve(problem.program(), theta, torch.tensor([problem.start], dtype=torch.float32))
    assert point.status.tolist() == [0]
    assert {t.dtype for t in (point.y, point.lam, point.mu, point.z)} == {torch.float32}
    exact = torch.tensor([1.0, 4.74299963, 3.82114998, 1.37940829])
    torch.testing.assert_close(point.y[0], exact, rtol=1e-6, atol=1e-6)


def test_what_it_cannot_take() -> None:
    wide = program(201, lambda y, t: y.square().sum(-1))
    assert "201" in str(SOLVER.unsupported(wide))
    untraceable = program(1, lambda y, t: torch.special.i0(y[:, 0]) - y[:, 0])
    with pytest.raises(DeclarationError, match="nonlinear_interior_point"):
        solve(untraceable, [[1.0]])
    assert solve(untraceable, [[1.0]], solver=NonlinearAuto()).status.tolist() == [0]


def test_same_optimum_as_in_torch_and_gradients_through_the_layer() -> None:
    data = instances(24)
    node, theta = NonlinearProgram(N, P, M, evaluate), Theta((data.q, data.b, data.d), (True,) * 3)
    point, torch_point = SOLVER.solve(node, theta, data.start), NonlinearInteriorPoint().solve(node, theta, data.start)
    assert (point.status == 0).all()
    close = (node.values(point.y, theta)[0] - node.values(torch_point.y, theta)[0]).abs() < 1e-6
    assert close.double().mean() > 0.8  # a nonconvex program has several

    layer = ddn.DeclarativeLayer(
        ddn.TorchProblem(
            variable=2,
            objective=lambda y, x: (y - x).square().sum() + torch.sin(y).prod(),
            equality=lambda y, x: (y.square().sum() - 1).unsqueeze(0),
        ),
        solver="compiled_interior_point",
    )
    x = torch.tensor([[2.0, 0.7]], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-6)

"""Solvers of equations on classical systems, in batches of easy, hard and impossible elements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ddn_cvx import InputError, Status
from ddn_cvx.program import root as root_program
from ddn_cvx.program.nonlinear import Theta
from ddn_cvx.program.root import RootProgram
from ddn_cvx.solvers.anderson import Anderson
from ddn_cvx.solvers.broyden import Broyden
from ddn_cvx.solvers.root_auto import RootAuto
from ddn_cvx.solvers.root_base import RootSolver
from ddn_cvx.solvers.root_newton import RootNewton

f64 = torch.float64
NOTHING = Theta((), ())


def program(n: int, F: Callable[[Tensor], Tensor], is_map: bool = False) -> RootProgram:
    return RootProgram(n, lambda y, theta: F(y), is_map)


def rosenbrock(y: Tensor) -> Tensor:
    return torch.stack([10 * (y[:, 1] - y[:, 0] ** 2), 1 - y[:, 0]], 1)


def brown_almost_linear(y: Tensor) -> Tensor:
    n = y.shape[1]
    return torch.cat([y[:, :-1] + y.sum(1, keepdim=True) - (n + 1), y.prod(1, keepdim=True) - 1], 1)


def broyden_tridiagonal(y: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(y, (1, 1))
    return (3 - 2 * y) * y - padded[:, :-2] - 2 * padded[:, 2:] + 1


def helical_valley(y: Tensor) -> Tensor:
    angle = torch.atan2(y[:, 1], y[:, 0]) / (2 * torch.pi)
    return torch.stack([10 * (y[:, 2] - 10 * angle), 10 * (torch.hypot(y[:, 0], y[:, 1]) - 1), y[:, 2]], 1)


# More, Garbow & Hillstrom, "Testing unconstrained optimization software", 1981: their starts
CLASSICAL = {
    "Rosenbrock": (rosenbrock, [-1.2, 1.0]),
    "helical valley": (helical_valley, [-1.0, 0.0, 0.0]),
    "Brown almost linear": (brown_almost_linear, [0.5] * 5),
    "Broyden tridiagonal": (broyden_tridiagonal, [-1.0] * 10),
}


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("case", CLASSICAL)
def test_newton_from_the_published_starts(case: str, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_program, "DENSE_LIMIT", 128 if dense else 0)
    F, start = CLASSICAL[case]
    points = torch.tensor([start, [1.1 * s + 0.01 for s in start]], dtype=f64)
    point = RootNewton().solve(program(len(start), F), NOTHING, points)
    assert point.status.tolist() == [Status.SOLVED] * 2 and F(point.y).abs().max() < 1e-8


def test_many_unknowns_by_products() -> None:
    start = -torch.ones(2, 3000, dtype=f64)
    point = RootNewton().solve(program(3000, broyden_tridiagonal), NOTHING, start)
    assert point.status.tolist() == [Status.SOLVED] * 2 and broyden_tridiagonal(point.y).abs().max() < 1e-8


@pytest.mark.parametrize("solver", [Anderson(), Broyden(), RootNewton(), RootAuto()])
@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_slow_contractions(solver: RootSolver, dtype: torch.dtype) -> None:
    """y = A y + b with eigenvalues up to 0.99: the plain iteration would take thousands of steps."""
    A = torch.diag(torch.linspace(-0.9, 0.99, 20, dtype=dtype))
    b = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=f64).to(dtype)
    root = RootProgram(20, lambda y, theta: y @ A + theta.tensors[0] - y, is_map=True)
    point = solver.solve(root, Theta((b,), (True,)), torch.zeros_like(b))
    assert point.status.tolist() == [Status.SOLVED] * 3 and point.y.dtype == dtype and point.iterations.max() <= 200
    assert torch.allclose(point.y, b / (1 - A.diagonal()), rtol=0.0, atol=0.5 if dtype == torch.float32 else 1e-5)


def test_elements_stop_when_they_are_done() -> None:
    """How many rows are evaluated falls as elements finish, and the last one is as right as alone."""
    rates = torch.tensor([0.1] * 15 + [0.999], dtype=f64).unsqueeze(-1)
    sizes: list[int] = []

    def equations(y: Tensor, theta: Theta) -> Tensor:
        sizes.append(len(y))
        return torch.tanh(theta.tensors[0] * y) + 1 - y

    def solve(rates: Tensor):
        root = RootProgram(1, equations, is_map=True)
        return Anderson(memory=1).solve(root, Theta((rates,), (True,)), torch.zeros_like(rates))

    whole = solve(rates)
    assert sizes[0] == 16 and sizes[-1] < 16 and len(set(whole.iterations.tolist())) > 1
    assert torch.allclose(solve(rates[-1:]).y, whole.y[-1:], atol=1e-12)


@pytest.mark.parametrize("solver", [Broyden(), RootNewton()])
def test_impossible_elements_do_not_disturb_the_others(solver: RootSolver) -> None:
    target = torch.tensor([[4.0], [-1.0], [9.0], [torch.nan]], dtype=f64)
    root = RootProgram(1, lambda y, theta: y * y - theta.tensors[0], is_map=False)
    point = solver.solve(root, Theta((target,), (True,)), torch.ones_like(target))
    status = [Status(s) for s in point.status.tolist()]
    assert status[0] == status[2] == Status.SOLVED and Status.SOLVED not in (status[1], status[3])
    assert torch.allclose(point.y[[0, 2], 0], torch.tensor([2.0, 3.0], dtype=f64))


def test_newton_knows_a_least_distance() -> None:
    """y^2 + 1 has none, and (y_1 + y_2 - 1, y_1 + y_2 + 1) neither."""
    for F in (lambda y: y * y + 1, lambda y: torch.cat([y.sum(1, True) - 1, y.sum(1, True) + 1], 1)):
        n = 1 if F(torch.zeros(1, 1)).shape[1] == 1 else 2
        point = RootNewton().solve(program(n, F), NOTHING, torch.full((1, n), 0.7, dtype=f64))
        assert point.status.tolist() == [Status.INFEASIBLE] and point.iterations.max() < (50 if n == 1 else 5)


def test_a_poor_start_is_damped() -> None:
    """arctan diverges under undamped Newton steps from 3."""
    point = RootNewton().solve(program(1, torch.atan), NOTHING, torch.full((1, 1), 3.0, dtype=f64))
    assert point.status.tolist() == [Status.SOLVED] and point.y.abs().max() < 1e-9


def cubic(y: Tensor, theta: Theta) -> Tensor:
    """From zero Newton goes to -1, where ``|F|`` has a local minimum for parameters above 2/3; the root is above 2."""
    return y**3 - 3 * y - 3 * theta.tensors[0]


@pytest.mark.parametrize("is_map", [False, True])
def test_other_starts_find_roots_behind_a_ridge(is_map: bool) -> None:
    target = torch.tensor([[1.0], [2.0], [0.2]], dtype=f64)
    roots = [min(np.roots([1.0, 0.0, -3.0, -3 * float(t)]), key=lambda z: abs(z.imag)).real for t in target[:2]]
    theta, start, program = Theta((target,), (True,)), torch.zeros_like(target), RootProgram(1, cubic, is_map)
    alone = RootNewton().solve(program, theta, start)
    assert alone.status.tolist() == [Status.INFEASIBLE, Status.INFEASIBLE, Status.SOLVED]
    point = RootAuto().solve(program, theta, start)
    assert point.status.tolist() == [Status.SOLVED] * 3
    torch.testing.assert_close(point.y[:2, 0], torch.tensor(roots, dtype=f64))
    for k in range(3):
        some = Theta((target[k : k + 1],), (True,))
        torch.testing.assert_close(RootAuto().solve(program, some, start[k : k + 1]).y[0], point.y[k])


@pytest.mark.parametrize("is_map", [False, True])
def test_where_no_start_leads_to_a_root_the_verdict_on_the_given_one_stays(is_map: bool) -> None:
    """The first of the other starts is beyond 2.5, where there is no number."""

    def equations(y: Tensor, theta: Theta) -> Tensor:
        return y * y - theta.tensors[0] + 0 * (2.5 - y).sqrt()

    target = torch.tensor([[4.0], [-1.0]], dtype=f64)
    point = RootAuto().solve(RootProgram(1, equations, is_map), Theta((target,), (True,)), torch.ones_like(target))
    assert point.status.tolist() == [Status.SOLVED, Status.INFEASIBLE]


def test_many_unknowns_are_not_tried_from_other_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_program, "DENSE_LIMIT", 2)
    sizes: list[int] = []

    def equations(y: Tensor, theta: Theta) -> Tensor:
        sizes.append(len(y))
        return y * y + 1

    for n, tried in ((2, True), (3, False)):
        sizes.clear()
        point = RootAuto().solve(RootProgram(n, equations, False), NOTHING, torch.ones(100, n, dtype=f64))
        assert Status.SOLVED not in point.status.tolist()
        assert (800 in sizes) is tried


def test_limits_and_options() -> None:
    root = program(2, rosenbrock)
    start = torch.tensor([[-1.2, 1.0]], dtype=f64)
    assert RootNewton(max_iterations=1).solve(root, NOTHING, start).status.tolist() == [Status.ITERATION_LIMIT]
    for kind in (Anderson, Broyden, RootNewton):
        with pytest.raises(InputError, match="'tolerance' of"):
            kind(tolerance=0)
    assert "FixedPoint" in Anderson().unsupported(root)
    assert "newton_krylov" in Broyden().unsupported(program(500, torch.atan))

"""The interior-point method for nonlinear programs, against published optima and by what it says when there is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ddn_cvx.errors import InputError
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solution import Status
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint
from ddn_cvx.solvers.nonlinear_interior_point import NonlinearInteriorPoint
from tests.hock_schittkowski import PROBLEMS, Problem
from tests.optimality import optimality_error

F64 = torch.float64
SOLVER = NonlinearInteriorPoint()

each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: f"HS{problem.number}")


def nominal(problem: Problem) -> tuple[Theta, Tensor]:
    t, start = torch.tensor([problem.nominal], dtype=F64), torch.tensor([problem.start], dtype=F64)
    return Theta((t,), (True,)), start


def program(n: int, f: Callable, h: Callable | None = None, g: Callable | None = None, box=None) -> NonlinearProgram:
    """From functions of ``(y, t)`` on batches, ``h`` and ``g`` returning lists of columns."""

    def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        t = theta.tensors[0]
        rows = [torch.stack(r(y, t), -1) if r else y[:, :0] for r in (h, g)]
        return f(y, t), rows[0], rows[1]

    probe, t = torch.ones(1, n, dtype=F64), torch.ones(1, 4, dtype=F64)
    _, some_h, some_g = evaluate(probe, Theta((t,), (True,)))
    bounds = None if box is None else (lambda theta: box(theta.tensors[0]))
    return NonlinearProgram(n, some_h.shape[1], some_g.shape[1], evaluate, bounds)


def solve(program: NonlinearProgram, start: list, t: list | None = None, **options) -> NonlinearPoint:
    y = torch.tensor(start, dtype=F64)
    tensor = torch.ones(len(y), 4, dtype=F64) if t is None else torch.tensor(t, dtype=F64)
    return NonlinearInteriorPoint(**options).solve(program, Theta((tensor,), (True,)), y)


@each_problem
def test_published_optimum_from_published_start(problem: Problem) -> None:
    theta, start = nominal(problem)
    point = SOLVER.solve(problem.program(), theta, start)
    value = problem.program().values(point.y, theta)[0]
    assert point.status.tolist() == [Status.SOLVED]
    assert float(value) == pytest.approx(problem.optimum, rel=2e-8, abs=1e-8)
    assert float(optimality_error(problem.program(), theta, point)) < 1e-9
    assert float(point.mu.min()) >= 0 if problem.program().m else True


@each_problem
def test_batch_of_256_perturbed_parameters(problem: Problem) -> None:
    theta, start = problem.batch(256, torch.Generator().manual_seed(0))
    point = SOLVER.solve(problem.program(), theta, start)
    solved = point.status == Status.SOLVED
    assert solved.float().mean() >= 0.95
    assert set(point.status[~solved].tolist()) <= {int(status) for status in Status}
    assert float(optimality_error(problem.program(), theta.take(solved), point.take(solved)).max()) < 1e-8


def test_an_element_does_not_depend_on_its_batch_mates() -> None:
    problem = next(p for p in PROBLEMS if p.number == 71)
    theta, start = problem.batch(16, torch.Generator().manual_seed(1))
    together = SOLVER.solve(problem.program(), theta, start)
    alone = SOLVER.solve(problem.program(), theta.take(torch.tensor([5])), start[5:6])
    torch.testing.assert_close(together.y[5:6], alone.y, rtol=0, atol=1e-12)
    torch.testing.assert_close(together.lam[5:6], alone.lam, rtol=0, atol=1e-11)
    assert together.iterations[5] == alone.iterations[0]


def test_finished_elements_are_no_longer_evaluated() -> None:
    """One element starts far away; the others must not pay for it."""
    sizes = []

    def f(y: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(y))
        return 100 * (y[:, 1] - y[:, 0] ** 2) ** 2 + (1 - y[:, 0]) ** 2

    rosenbrock = program(2, f)
    sizes.clear()
    solve(rosenbrock, [[1.01, 1.0]] * 63 + [[-50.0, 40.0]])
    assert sizes.count(1) > sizes.count(64) > 0


def infeasible_programs() -> dict[str, tuple[NonlinearProgram, list]]:
    def norm2(y: Tensor, t: Tensor) -> Tensor:
        return y.square().sum(-1)

    return {
        "two equalities": (program(2, norm2, h=lambda y, t: [y[:, 0], y[:, 0] - 1]), [[3.0, 1.0]]),
        "circle and line": (program(2, norm2, h=lambda y, t: [y.square().sum(-1) - 1, y[:, 0] - 2]), [[0.3, 1.0]]),
        "two half-spaces": (program(2, norm2, g=lambda y, t: [y[:, 0], 1 - y[:, 0]]), [[3.0, 1.0]]),
        "inequality and bound": (
            program(1, norm2, g=lambda y, t: [1 + y[:, 0] ** 2 - 0.5], box=lambda t: (-t[:, :1], t[:, :1])),
            [[0.7]],
        ),
        "negative square": (program(1, norm2, h=lambda y, t: [y[:, 0] ** 2 + 1]), [[2.0]]),
        "crossed bounds": (program(1, norm2, box=lambda t: (t[:, :1], -t[:, :1])), [[0.0]]),
    }


@pytest.mark.parametrize("name", infeasible_programs())
def test_infeasible(name: str) -> None:
    node, start = infeasible_programs()[name]
    assert solve(node, start).status.tolist() == [Status.INFEASIBLE]


def behind_a_ridge() -> dict[str, tuple[NonlinearProgram, list, list]]:
    """Programs where the violation has a local minimum at or near the start, which is no solution; with the solution."""
    root = max(np.roots([1.0, 0.0, -3.0, -6.0]), key=lambda z: -abs(z.imag)).real

    def norm2(y: Tensor, t: Tensor) -> Tensor:
        return (y - t[:, : y.shape[1]]).square().sum(-1)

    def negative(y: Tensor, t: Tensor) -> list[Tensor]:
        return [y[:, k] + 0.1 for k in range(y.shape[1])]

    def box(t: Tensor) -> tuple[Tensor, Tensor]:
        return -5 * t[:, :1], 9 * t[:, :1]

    product = program(2, norm2, lambda y, t: [y[:, 0] * y[:, 1] - 4], negative)
    logarithm = program(1, lambda y, t: y[:, 0].log() ** 2, g=lambda y, t: [y[:, 0] - 0.5])
    narrow = program(1, lambda y, t: -((y[:, 0] - 1.7) * (2.2 - y[:, 0])).log(), g=lambda y, t: [y[:, 0] - 9])
    bounded = program(1, norm2, lambda y, t: [(y[:, 0] + 3) * (y[:, 0] ** 2 + 1)], box=box)
    return {
        "the other root": (program(1, norm2, lambda y, t: [y[:, 0] ** 2 - 2], negative), [[1.0]], [-(2**0.5)]),
        "cubic": (program(1, norm2, lambda y, t: [y[:, 0] ** 3 - 3 * y[:, 0] - 6]), [[0.0]], [root]),
        "the other branch": (product, [[2.0, 1.9]], [-2.0, -2.0]),
        "outside of the domain": (logarithm, [[-1.0]], [0.5]),
        "outside of a narrow domain": (narrow, [[1.0]], [1.95]),
        "with bounds": (bounded, [[8.0]], [-3.0]),
    }


@pytest.mark.parametrize("name", behind_a_ridge())
def test_feasible_points_behind_a_ridge_are_found(name: str) -> None:
    node, start, solution = behind_a_ridge()[name]
    point = solve(node, start)
    assert point.status.tolist() == [Status.SOLVED]
    torch.testing.assert_close(point.y, torch.tensor([solution], dtype=F64), rtol=1e-7, atol=1e-7)


def test_the_search_for_a_feasible_point_does_not_depend_on_batch_mates() -> None:
    node = program(2, lambda y, t: (y * y).sum(-1), lambda y, t: [y[:, 0] ** 2 - t[:, 0]], lambda y, t: [y[:, 0] + 0.1])
    start, numbers = [[1.0, 0.3], [1.0, 0.3], [1.0, 0.3]], [[2.0] * 4, [-1.0] * 4, [3.0] * 4]
    together = solve(node, start, numbers)
    assert together.status.tolist() == [Status.SOLVED, Status.INFEASIBLE, Status.SOLVED]
    for k in range(3):
        alone = solve(node, start[k : k + 1], numbers[k : k + 1])
        torch.testing.assert_close(alone.y[0], together.y[k], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "node",
    [
        program(1, lambda y, t: -y[:, 0]),
        program(2, lambda y, t: -(y**2).sum(-1), h=lambda y, t: [y[:, 0] - y[:, 1]]),
        program(1, lambda y, t: -y[:, 0], box=lambda t: (0 * t[:, :1], t[:, :1] * torch.inf)),
        program(2, lambda y, t: y[:, 0], g=lambda y, t: [y[:, 0] + y[:, 1]]),
        program(1, lambda y, t: (y[:, 0] - 1) ** 3),
    ],
    ids=["line", "parabola on a line", "bounded below", "linear", "cubic"],
)
def test_unbounded(node: NonlinearProgram) -> None:
    assert solve(node, [[0.5] * node.n]).status.tolist() == [Status.UNBOUNDED]


def test_nan_from_the_function_is_one_element_s_own() -> None:
    def f(y: Tensor, t: Tensor) -> Tensor:
        return torch.where(t[:, 0] < 0, torch.nan, 1.0) * (y - t[:, :1]).square().sum(-1)

    node = program(2, f, g=lambda y, t: [y.sum(-1) - 1])
    t = [[3.0] * 4, [-1.0] * 4, [2.0] * 4]
    point = solve(node, [[0.0, 0.0]] * 3, t)
    assert point.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]
    torch.testing.assert_close(point.y[::2], torch.full((2, 2), 0.5, dtype=F64))


def test_steps_stay_where_the_function_is_defined() -> None:
    """log y with a start that Newton's full step leaves for negative y."""
    node = program(1, lambda y, t: y[:, 0] - torch.log(y[:, 0]))
    point = solve(node, [[20.0], [1e-3]])
    assert point.status.tolist() == [Status.SOLVED] * 2
    torch.testing.assert_close(point.y, torch.ones(2, 1, dtype=F64))


def test_redundant_rows_fixed_variables_and_bounds_of_some_elements() -> None:
    def box(t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack((t[:, 0], t[:, 1], t[:, 2]), -1), torch.full_like(t[:, :3], torch.inf).index_copy(
            1, torch.tensor([0]), t[:, :1]
        )

    node = program(3, lambda y, t: (y - 2).square().sum(-1), h=lambda y, t: [y.sum(-1) - 3, 2 * y.sum(-1) - 6], box=box)
    inf = float("inf")
    point = solve(node, [[0.0, 0.0, 0.0]] * 2, [[0.5, -inf, -inf, 0], [1.5, 1.2, -inf, 0]])
    assert point.status.tolist() == [Status.SOLVED] * 2
    torch.testing.assert_close(point.y, torch.tensor([[0.5, 1.25, 1.25], [1.5, 1.2, 0.3]], dtype=F64), atol=1e-9, rtol=0)
    slope = 2 * (point.y - 2) + point.z + point.lam.matmul(torch.tensor([[1.0] * 3, [2.0] * 3], dtype=F64))
    assert float(slope.abs().max()) < 1e-8
    assert point.z[1, 1] < 0  # a lower bound pushes up


def test_second_order_correction() -> None:
    """Maratos' example: near the solution on a circle full steps raise both objective and violation."""
    node = program(2, lambda y, t: 2 * (y.square().sum(-1) - 1) - y[:, 0], h=lambda y, t: [y.square().sum(-1) - 1])
    angles = torch.linspace(0.1, 0.8, 20, dtype=F64)
    point = solve(node, torch.stack((angles.cos(), angles.sin()), -1).tolist())
    torch.testing.assert_close(point.y, torch.tensor([[1.0, 0.0]], dtype=F64).expand(20, 2), atol=1e-9, rtol=0)
    assert int(point.iterations.max()) <= 6


def test_saddle_points_are_left() -> None:
    """Both starts satisfy the first-order conditions and are no minima."""
    well = program(2, lambda y, t: y[:, 0] ** 4 - y[:, 0] ** 2 + y[:, 1] ** 2)
    point = solve(well, [[0.0, 0.0]])
    assert abs(float(point.y[0, 0])) == pytest.approx(0.5**0.5)
    circle = program(2, lambda y, t: y[:, 0], h=lambda y, t: [y.square().sum(-1) - 1])
    point = solve(circle, [[1.0, 0.0]])
    torch.testing.assert_close(point.y, torch.tensor([[-1.0, 0.0]], dtype=F64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("objective", [0.0, 1.0])
@pytest.mark.parametrize("power", [1, 2])
def test_start_in_the_centre_of_a_sphere(objective: float, power: int) -> None:
    """The constraint's gradient vanishes at the start, which is as far from feasible as can be and yet stationary."""
    node = program(
        3,
        lambda y, t: objective * (y - t[:, :3]).square().sum(-1),
        h=lambda y, t: [y.norm(dim=-1) - 1 if power == 1 else y.square().sum(-1) - 1],
    )
    point = solve(node, [[0.0, 0.0, 0.0]] * 2, [[1.0, 2.0, 2.0, 0], [-0.3, 0.4, 0.0, 0]])
    assert point.status.tolist() == [Status.SOLVED] * 2
    torch.testing.assert_close(point.y.norm(dim=-1), torch.ones(2, dtype=F64))
    if objective:
        expected = torch.tensor([[1 / 3, 2 / 3, 2 / 3], [-0.6, 0.8, 0.0]], dtype=F64)
        torch.testing.assert_close(point.y, expected, atol=1e-8, rtol=0)


def test_no_constraint_qualification() -> None:
    """HS13: no multipliers exist at the solution (1, 0); where an answer is given, it is near."""
    node = program(
        2,
        lambda y, t: (y[:, 0] - 2) ** 2 + y[:, 1] ** 2,
        g=lambda y, t: [y[:, 1] - (1 - y[:, 0]) ** 3],
        box=lambda t: (0 * t[:, :2], torch.inf * t[:, :2]),
    )
    point = solve(node, [[-2.0, -2.0]])
    if point.status.item() <= Status.INACCURATE:
        torch.testing.assert_close(point.y, torch.tensor([[1.0, 0.0]], dtype=F64), atol=2e-2, rtol=0)


def test_degenerate_vertex() -> None:
    """Three constraints meet in a vertex of the plane; and a weakly active bound."""
    node = program(2, lambda y, t: -y.sum(-1), g=lambda y, t: [y[:, 0] - 1, y[:, 1] - 1, y.sum(-1) - 2])
    point = solve(node, [[0.0, 0.0]])
    assert point.status.item() == Status.SOLVED
    torch.testing.assert_close(point.y, torch.ones(1, 2, dtype=F64), atol=1e-8, rtol=0)
    weak = program(1, lambda y, t: y[:, 0] ** 2, box=lambda t: (0 * t[:, :1], t[:, :1]))
    assert abs(float(solve(weak, [[0.5]]).y)) < 1e-4


def test_warm_start_is_recognised_and_improved() -> None:
    problem = next(p for p in PROBLEMS if p.number == 71)
    theta, start = problem.batch(8, torch.Generator().manual_seed(2))
    node = problem.program()
    cold = SOLVER.solve(node, theta, start)
    again = SOLVER.solve(node, theta, start, warm=cold)
    assert again.iterations.tolist() == [0] * 8
    torch.testing.assert_close(again.y, cold.y, rtol=1e-12, atol=1e-12)
    near = Theta((theta.tensors[0] * 1.001,), (True,))
    moved = SOLVER.solve(node, near, start, warm=cold)
    assert moved.status.tolist() == [Status.SOLVED] * 8
    torch.testing.assert_close(moved.y, SOLVER.solve(node, near, start).y, rtol=1e-9, atol=1e-9)
    assert moved.iterations.sum() < cold.iterations.sum() / 4
    far = Theta((theta.tensors[0].flip(0) * 1.1,), (True,))
    assert (SOLVER.solve(node, far, start, warm=cold).status == Status.SOLVED).all()


@each_problem
def test_float32(problem: Problem) -> None:
    lower, upper = (bound.float() for bound in problem.bounds())
    node = problem.program()
    if node.has_bounds:
        node = NonlinearProgram(
            node.n, node.p, node.m, lambda y, theta: problem.evaluate(y, theta.tensors[0]), lambda theta: (lower, upper)
        )
    theta = Theta((torch.tensor([problem.nominal]),), (True,))
    point = SOLVER.solve(node, theta, torch.tensor([problem.start], dtype=torch.float32))
    assert point.y.dtype == point.lam.dtype == point.z.dtype == torch.float32
    assert point.status.item() == Status.SOLVED
    assert float(node.values(point.y, theta)[0]) == pytest.approx(problem.optimum, rel=2e-3, abs=2e-3)


def test_iteration_limit_and_empty_batch() -> None:
    rosenbrock = next(p for p in PROBLEMS if p.number == 1)
    theta, start = nominal(rosenbrock)
    short = NonlinearInteriorPoint(max_iterations=2).solve(rosenbrock.program(), theta, start)
    assert short.status.tolist() == [Status.ITERATION_LIMIT]
    empty = SOLVER.solve(rosenbrock.program(), theta.take(torch.tensor([], dtype=torch.int64)), start[:0])
    assert empty.y.shape == (0, 2)


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="tolerance"):
        NonlinearInteriorPoint(tolerance=-1.0)


@each_problem
@pytest.mark.parametrize("where", ["zero", "random"])
def test_other_starts(problem: Problem, where: str) -> None:
    """From zero, which is where a layer starts, and from points of size three, most of them infeasible."""
    generator = torch.Generator().manual_seed(1)
    theta, start = problem.batch(16, generator)
    start = torch.zeros_like(start) if where == "zero" else 3 * torch.randn(start.shape, generator=generator, dtype=F64)
    point = SOLVER.solve(problem.program(), theta, start)
    solved = point.status == Status.SOLVED
    # the equations of HS77 have a valley of local infeasibility, a = 0 and d < 0, which ends some searches
    assert solved.float().mean() >= (0.75 if problem.number == 77 else 0.9)
    assert float(optimality_error(problem.program(), theta.take(solved), point.take(solved)).max()) < 1e-7

"""The worked examples of the page "Extend it": a cone, two solvers, an adjoint and a node, none of them in the package."""

from __future__ import annotations

import copy
import doctest
import importlib.util
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx.cones import Product, SecondOrder
from ddn_cvx.declare import canonical
from ddn_cvx.extend import Field, Integrator, Solver, register
from ddn_cvx.testing import check_cone, check_layer, check_node, check_solver

FILES = sorted((Path(__file__).parents[1] / "docs" / "how-to" / "extending").glob("*.py"))


def load(path: Path) -> ModuleType:
    name = f"extending_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


box_cone, finite_differences, linprog, slsqp, soft_sort = map(load, FILES)
BOX = box_cone.Box(lower=(-1.0, 0.0, 1.0, -2.0), upper=(1.0, 2.0, 3.0, -1.0))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def away_from_kinks(number: int, margin: float = 0.02) -> Tensor:
    v = 2.0 * normal(40 * number, BOX.dim)
    return v[BOX.margin(v) > margin][:number]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_docstrings_of_the_examples(path: Path) -> None:
    assert doctest.testmod(load(path), raise_on_error=False).failed == 0


# ---------------------------------------------------------------- the cone


def test_box_projection_is_that_of_cvxpy() -> None:
    points = 2.0 * normal(12, BOX.dim, seed=1)
    for point, found in zip(points, BOX.project(points), strict=True):
        s = cp.Variable(BOX.dim)
        inside = [s[0] >= 0, s[1:] >= np.array(BOX.lower) * s[0], s[1:] <= np.array(BOX.upper) * s[0]]
        cp.Problem(cp.Minimize(cp.sum_squares(s - point.numpy())), inside).solve(solver="CLARABEL", tol_gap_abs=1e-12)
        assert np.allclose(found.numpy(), s.value, atol=1e-6)


def test_box_keeps_the_contract_of_cones() -> None:
    v = away_from_kinks(60)
    check_cone(BOX, v)
    torch.autograd.gradcheck(BOX.project, v[:6].clone().requires_grad_())
    zero = torch.zeros(BOX.dim, dtype=torch.float64)
    assert torch.equal(BOX.derivative(zero, v[0]), v[0]), "the identity at the apex"
    assert bool(BOX.project(torch.stack((v[0], v[0] * torch.nan)))[1].isnan().all())


def test_box_kinks_are_where_the_margin_says() -> None:
    """The derivative is constant within the margin of a point."""
    v, far = away_from_kinks(60), 0.0
    for seed in range(8):
        step = torch.nn.functional.normalize(normal(*v.shape, seed=seed), dim=-1) * BOX.margin(v).unsqueeze(-1)
        h = normal(*v.shape, seed=99)
        near = (BOX.derivative(v + 0.3 * step, h) - BOX.derivative(v, h)).abs().amax(-1)
        far = max(far, float((BOX.derivative(v + 30 * step, h) - BOX.derivative(v, h)).abs().max()))
        assert float(near.max()) < 1e-12
    assert far > 0.1


def test_box_centre_is_inside_both_cones_and_barrier_blows_up_at_the_boundary() -> None:
    K = Product(others=(BOX,))
    e = BOX.centre
    ball = e + 0.01 * torch.nn.functional.normalize(normal(200, BOX.dim), dim=-1)
    assert float(K.distance(ball).max()) == 0.0 and float(K.dual_distance(ball).max()) < 1e-15
    s = e.clone().requires_grad_()
    (slope,) = torch.autograd.grad(BOX.barrier(s), s)
    assert float(-slope @ e) == pytest.approx(BOX.degree), "a logarithmically homogeneous barrier of this degree"
    assert float(BOX.barrier(torch.tensor([1.0, 1.0 - 1e-12, 1.0, 2.0, -1.5]))) > 20


def clipped(cone: object, n: int) -> ddn.DeclarativeLayer:
    x, p = cp.Variable(n), cp.Parameter(n)
    inside = ddn.InCone(cp.hstack([1, x]), cone)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [inside])
    return ddn.DeclarativeLayer(problem, [p], [x, inside.dual_variables[0]])


def test_box_in_a_declared_problem_clips() -> None:
    layer, p = clipped(BOX, 4), 3.0 * normal(5, 4)
    x, y = layer(p)
    assert torch.allclose(x, p.clamp(torch.tensor(BOX.lower), torch.tensor(BOX.upper)), atol=1e-9)
    assert float((y[:, 1:] + 2 * (p - x)).abs().max()) < 1e-6, "2 (x - p) = y, the multiplier"
    assert "a Box cone of 5 rows" in str(layer.explain()) and layer.explain().solver == "FirstOrder"
    check_layer(layer, p[:1], second_order=False)


def test_columns_rows_in_between_and_the_answer_of_cvxpy() -> None:
    """Cones that cvxpy does not know stand between those that it knows; the answers are those of their inequalities."""
    lower, upper = np.array(BOX.lower), np.array(BOX.upper)
    s, p = cp.Variable((5, 2)), cp.Parameter((5, 2))
    others = [cp.SOC(3, s[:, 0]), cp.sum(s) == 1, s[1, 1] <= 0.2]

    def problem(*inside: cp.Constraint) -> cp.Problem:
        return cp.Problem(cp.Minimize(cp.sum_squares(s - p)), [others[0], *inside, *others[1:]])

    asked = [others[0].dual_variables[0], others[1].dual_variables[0], others[2].dual_variables[0]]
    box = ddn.DeclarativeLayer(problem(ddn.InCone(s, BOX)), [p], [s, *asked])
    t = s[:1]
    linear = [t >= 0, s[1:] >= lower[:, None] @ t, s[1:] <= upper[:, None] @ t]
    known = ddn.DeclarativeLayer(problem(*linear), [p], [s, *asked])
    points = normal(3, 5, 2, seed=4).requires_grad_()
    for found, right in zip(box(points), known(points), strict=True):
        assert torch.allclose(found, right, atol=1e-7)
    weights = normal(5, 2, seed=5)
    (found,), (right,) = (torch.autograd.grad((layer(points)[0] * weights).sum(), points) for layer in (box, known))
    assert torch.allclose(found, right, atol=1e-6)


def test_smoothed_asks_the_barrier() -> None:
    """At a corner of the box the central path of the inequalities and that of the cone are the same."""
    x, p = cp.Variable(2), cp.Parameter(2)
    objective = cp.Minimize(p @ x)
    square = box_cone.Box(lower=(-1.0, -1.0), upper=(1.0, 1.0))
    adjoint = ddn.Smoothed(1e-2)
    in_cone = ddn.DeclarativeLayer(cp.Problem(objective, [ddn.InCone(cp.hstack([1, x]), square)]), [p], x, adjoint=adjoint)
    in_rows = ddn.DeclarativeLayer(cp.Problem(objective, [x >= -1, x <= 1]), [p], x, adjoint=adjoint)
    prices = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    (found,), (right,) = (torch.autograd.grad(layer(prices).sum(), prices) for layer in (in_cone, in_rows))
    assert torch.allclose(found, right, rtol=1e-6) and float(found.abs().min()) > 1e-3


def test_a_cone_that_cvxpy_knows_gives_the_same_answer_as_its_own_constraint() -> None:
    p = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64)
    x, _ = clipped(SecondOrder(3), 2)(p)
    assert torch.allclose(x, torch.tensor([[0.6, 0.8], [0.3, 0.4]], dtype=torch.float64))


def test_curved_cone_has_second_derivatives_and_its_layer_is_copied() -> None:
    layer, p = clipped(SecondOrder(3), 2), torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    found = torch.func.hessian(lambda q: layer(q)[0].sum())(p[0])
    right = torch.func.hessian(lambda q: (q / q.norm()).sum())(p[0])
    assert torch.allclose(found, right, atol=1e-6)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.compile(layer, backend="eager")):
        assert torch.equal(other(p)[0], layer(p)[0])


def test_what_does_not_take_the_cone_says_so() -> None:
    layer, p = clipped(BOX, 4), normal(4)
    for solver in ("clarabel", "scs", "ecos", "mehrotra", "interior_point", "conic_interior_point"):
        with pytest.raises(ddn.DeclarationError, match="no Box cones; FirstOrder"):
            layer.with_solver(solver)
    x = cp.Variable(5)
    with pytest.raises(ddn.DeclarationError, match="5 rows takes"):
        ddn.InCone(x[:4], BOX)
    with pytest.raises(ddn.DeclarationError, match="affine"):
        ddn.InCone(cp.square(x), BOX)
    with pytest.raises(ddn.DeclarationError, match="Cone object"):
        ddn.InCone(x, "box")  # type: ignore[arg-type]
    saddle = cp.Problem(cp.Minimize(cp.sum_squares(x)), [cp.sum_squares(x) == 1, ddn.InCone(x, BOX)])
    with pytest.raises(ddn.DeclarationError, match="not supported"):
        ddn.DeclarativeLayer(saddle)
    with pytest.raises(ddn.DifferentiationError, match="no Box cones"):
        other = copy.copy(layer)
        other.adjoint = ddn.DiffcpAdjoint()
        torch.autograd.grad(other(p.requires_grad_())[0].sum(), p)


def test_a_cone_that_got_lost_on_the_way_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimality conditions know only what has arrived; the check of the problem as declared knows the rest."""

    def losing(problem: cp.Problem) -> cp.Problem:
        return cp.Problem(problem.objective, [c for c in problem.constraints if not isinstance(c, ddn.InCone)])

    monkeypatch.setattr(canonical, "_stand_in", losing)
    x, p = cp.Variable(4), cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [ddn.InCone(cp.hstack([1, x]), BOX)])
    layer = ddn.DeclarativeLayer(problem, [p], x)
    points = torch.tensor([[0.0, 0.5, 2.0, -1.5], [0.0, 0.5, 4.0, -1.5]])
    assert layer.solve(points).statuses == [ddn.Status.SOLVED, ddn.Status.INACCURATE]


# ---------------------------------------------------------------- the solvers


def transport(solver: object) -> ddn.DeclarativeLayer:
    plan, cost = cp.Variable((3, 3), nonneg=True), cp.Parameter((3, 3))
    marginals = [cp.sum(plan, 0) == 1, cp.sum(plan, 1) == 1]
    problem = cp.Problem(cp.Minimize(cp.sum(cp.multiply(cost, plan))), marginals)
    return ddn.DeclarativeLayer(problem, [cost], plan, solver=solver)


def test_linprog_assigns_like_the_hungarian_method() -> None:
    from scipy.optimize import linear_sum_assignment

    check_solver(linprog.Linprog())
    cost = normal(4, 3, 3)
    for solver in (linprog.Linprog(), "linprog"):
        plans = transport(solver)(cost)
        for one, plan in zip(cost.numpy(), plans.numpy(), strict=True):
            assert np.allclose(plan, np.eye(3)[linear_sum_assignment(one)[1]], atol=1e-8)


def test_linprog_gives_multipliers_and_says_what_is_infeasible() -> None:
    x, c, b = cp.Variable(2, nonneg=True), cp.Parameter(2), cp.Parameter()
    budget = cp.sum(x) <= b
    problem = cp.Problem(cp.Minimize(c @ x), [budget, x[0] - x[1] == 0.5])
    layer = ddn.DeclarativeLayer(problem, [c, b], [x, budget.dual_variables[0]], solver="linprog", polish_steps=0)
    prices, room = torch.tensor([-1.0, -2.0]), torch.tensor([1.5, 0.1])
    out, price = ddn.DeclarativeLayer.forward(layer, prices, room[:1])
    assert torch.allclose(out, torch.tensor([[1.0, 0.5]])) and torch.allclose(price, torch.tensor([1.5]))
    assert layer.solve(prices, room).statuses == [ddn.Status.SOLVED, ddn.Status.INFEASIBLE]
    assert layer.with_solver("linprog", max_iterations=7).solver == linprog.Linprog(max_iterations=7)
    quadratic = cp.Problem(cp.Minimize(cp.sum_squares(x) + c @ x), [budget])
    with pytest.raises(ddn.DeclarationError, match="linear objectives"):
        ddn.DeclarativeLayer(quadratic, [c, b], x, solver="linprog")


def test_slsqp_finds_the_sphere_and_passes_check_layer() -> None:
    sphere = ddn.TorchProblem(
        (3,),
        objective=lambda y, x: ((y - x) ** 2).sum(),
        equality=lambda y, x: (y * y).sum() - 1,
        inequality=lambda y, x: y[0] - 0.5,
        lower=-0.9,
        initial=0.3,
        parameters=[(3,)],
    )
    x = torch.tensor([[0.3, 2.0, 1.0], [3.0, 1.0, 2.0], [-0.5, 0.3, 0.9]], dtype=torch.float64)
    layer = ddn.DeclarativeLayer(sphere, solver=slsqp.SLSQP())
    assert torch.allclose(layer(x), ddn.DeclarativeLayer(sphere)(x), atol=1e-8)
    free = torch.nn.functional.normalize(x[0], dim=0)
    assert torch.allclose(layer(x)[0], free, atol=1e-9)
    assert torch.allclose(layer(x)[1, 1:], 0.75**0.5 * torch.nn.functional.normalize(x[1, 1:], dim=0), atol=1e-9)
    check_layer(layer, x[1:])
    assert ddn.DeclarativeLayer(sphere, solver="slsqp", solver_options={"max_iterations": 1}).solve(x).statuses[1] in (
        ddn.Status.ITERATION_LIMIT,
        ddn.Status.SOLVED,  # by polishing
    )


@dataclass(frozen=True)
class RungeKutta(Integrator):
    """The classical method of fourth order with equal steps."""

    steps: int = 50
    """From one time to the next (default 50)."""

    def error(self, dtype: torch.dtype) -> float:
        return self.steps**-4.0

    def integrate(self, field: Field, state: tuple[Tensor, ...], backwards: bool = False) -> tuple[Tensor, ...]:
        h = -1.0 / self.steps if backwards else 1.0 / self.steps

        def moved(by: float, slopes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(y + by * k for y, k in zip(state, slopes, strict=True))

        for i in range(self.steps):
            s = torch.as_tensor(float(backwards) + i * h, dtype=state[0].dtype)
            a = field(s, state)
            b = field(s + h / 2, moved(h / 2, a))
            c = field(s + h / 2, moved(h / 2, b))
            d = field(s + h, moved(h, c))
            state = moved(h / 6, tuple(a + 2 * b + 2 * c + d for a, b, c, d in zip(a, b, c, d, strict=True)))
        return state


def test_integrator_of_ones_own_solves_and_differentiates() -> None:
    decay = ddn.ODE((), lambda t, y, rate: -rate * y, span=(0.0, 2.0), parameters=[()])
    layer = ddn.DeclarativeLayer(decay, solver=RungeKutta())
    y0, rate = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([0.5, 0.2], dtype=torch.float64)
    rate.requires_grad_()
    assert torch.allclose(layer(y0, rate), y0 * torch.exp(-2 * rate), rtol=1e-7)
    (found,) = torch.autograd.grad(layer(y0, rate).sum(), rate)
    assert torch.allclose(found, -2 * y0 * torch.exp(-2 * rate), rtol=1e-6)
    assert layer.explain(batch=2).solver == "RungeKutta" and "steps=50" in str(layer.explain(batch=2))
    with pytest.raises(ddn.InputError, match="belong into the solver object"):
        ddn.DeclarativeLayer(decay, solver=RungeKutta(), solver_options={"rtol": 1e-3})
    with pytest.raises(ddn.InputError, match="cone program"):
        ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.square(cp.Variable()))), solver=RungeKutta())


def test_names_are_registered_once() -> None:
    @dataclass(frozen=True)
    class Other(linprog.Linprog):  # type: ignore[misc, name-defined]
        name: ClassVar[str] = "scs"

    with pytest.raises(ddn.InputError, match="that of SCS"):
        register(Other)
    assert Solver.known["scs"] is ddn.SCS
    with pytest.raises(ddn.InputError, match=r"nonlinear problem.*slsqp"):
        ddn.DeclarativeLayer(ddn.TorchProblem((1,), lambda y, x: (y - x).square().sum()), solver="linprog")


# ---------------------------------------------------------------- the adjoint


def test_finite_differences_agree_with_the_implicit_derivative() -> None:
    n, x = 3, cp.Variable(3)
    A, b = cp.Parameter((2, n)), cp.Parameter(2)
    conic = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + 0.1 * cp.sum_squares(x)), [cp.norm(x) <= 1, x[0] >= 0.2])
    weight = torch.nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
    torch_problem = ddn.TorchProblem(
        (n,),
        objective=lambda y, A, b: (A @ y - b).square().sum() + weight * (y**4).sum(),
        equality=lambda y, A, b: y.sum() - 1,
        lower=0.0,
        parameters=[(2, n), (2,)],
    )
    inputs = normal(3, 2, n, seed=2).requires_grad_(), normal(2, seed=3).requires_grad_()
    weights = normal(3, n, seed=4)
    for make in (
        lambda adjoint: ddn.DeclarativeLayer(conic, [A, b], x, adjoint=adjoint),
        lambda adjoint: ddn.DeclarativeLayer(torch_problem, adjoint=adjoint),
    ):
        leaves = [*inputs, *make(None).parameters()]
        loss = [(make(adjoint)(*inputs) * weights).sum() for adjoint in (None, finite_differences.FiniteDifferences())]
        right, found = (torch.autograd.grad(one, leaves) for one in loss)
        assert torch.allclose(*loss, rtol=1e-12)
        for one, other in zip(found, right, strict=True):
            assert torch.allclose(one, other, atol=1e-5) and float(other.abs().max()) > 1e-2


def test_finite_differences_of_failed_elements_are_zero() -> None:
    x, p = cp.Variable(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.square(x - p)), [x <= p, x >= 1])
    adjoint = finite_differences.FiniteDifferences()
    layer = ddn.DeclarativeLayer(problem, [p], x, adjoint=adjoint, on_failure="nan")
    points = torch.tensor([3.0, 0.0], dtype=torch.float64, requires_grad=True)
    out = layer(points)
    (slope,) = torch.autograd.grad(out[0], points)
    assert out.isnan().tolist() == [False, True] and torch.allclose(slope, torch.tensor([1.0, 0.0], dtype=torch.float64))
    with pytest.raises(ddn.DeclarationError, match="FiniteDifferences cannot differentiate a fixed point"):
        ddn.DeclarativeLayer(ddn.FixedPoint((1,), lambda y, x: 0.5 * y + x), adjoint=adjoint)(torch.ones(2, 1))


# ---------------------------------------------------------------- the node


def test_soft_sort_is_a_node_like_all_others() -> None:
    (entry,) = soft_sort.ENTRIES
    inputs = entry.sample(3, torch.Generator().manual_seed(0))
    assert entry.reference is not None
    check_node(entry.build(), *inputs, reference=entry.reference(*inputs))
    hard = soft_sort.SoftSort(6, width=1e-3)(inputs[0])
    assert torch.allclose(hard, inputs[0].sort(-1, descending=True).values)
    soft = soft_sort.SoftSort(6, width=1e4)(inputs[0])
    assert torch.allclose(soft, inputs[0].mean(-1, keepdim=True).expand(-1, 6), atol=1e-3)
    with pytest.raises(ddn.DeclarationError, match="positive"):
        soft_sort.SoftSort(3, width=0.0)

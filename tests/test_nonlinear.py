"""Nonlinear layers: points that are not regular, failures, batches, and every kind of derivative."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import ddn_cvx as ddn
from ddn_cvx import DeclarativeLayer, Implicit, Regularity, Status, TorchProblem

f64 = torch.float64


def distance(y: Tensor, x: Tensor) -> Tensor:
    return ((y - x) ** 2).sum()


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def mixed(**options: object) -> DeclarativeLayer:
    """Nonlinear in everything, with equality, inequality, bounds that depend on the input, and two inputs."""
    node = TorchProblem(
        3,
        lambda y, x, s: ((y - x) ** 2).sum() + 0.3 * torch.cos(y).sum() + s * (y[0] * y[1]) ** 2,
        lambda y, x, s: (y * y).sum() - 1 - s,
        lambda y, x, s: y[2] - y[0] * y[1] - 0.2,
        lower=-0.4,
        upper=lambda x, s: 0.8 + 0.1 * s + 0.1 * x,
        parameters=[(3,), ()],
        initial=0.5,
    )
    return DeclarativeLayer(node, **options)


MIXED = (
    torch.tensor([[1.0, 0.5, -0.3], [0.2, -0.9, 0.4], [0.6, 0.6, 0.9], [0.1, 0.7, -2.0]], dtype=f64),
    torch.tensor([0.3, 0.1, 0.5, 0.2], dtype=f64),
)


# ------------------------------------------------------------------ derivatives


def test_mixed_against_scipy() -> None:
    """The optimum and its derivative from SLSQP at tight tolerance."""

    def solve(x: np.ndarray, s: float, start: np.ndarray) -> np.ndarray:
        result = scipy.optimize.minimize(
            lambda y: ((y - x) ** 2).sum() + 0.3 * np.cos(y).sum() + s * (y[0] * y[1]) ** 2,
            start,
            method="SLSQP",
            bounds=list(zip(np.full(3, -0.4), 0.8 + 0.1 * s + 0.1 * x, strict=True)),
            constraints=[
                {"type": "eq", "fun": lambda y: (y * y).sum() - 1 - s},
                {"type": "ineq", "fun": lambda y: -(y[2] - y[0] * y[1] - 0.2)},
            ],
            options={"ftol": 1e-15, "maxiter": 500},
        )
        return result.x

    layer, (x, s) = mixed(), MIXED
    y = layer(x, s)
    jacobian = vmap(jacrev(layer))(x, s)
    for i in range(len(x)):
        at = solve(x[i].numpy(), float(s[i]), y[i].numpy())
        np.testing.assert_allclose(y[i].numpy(), at, atol=1e-6)
        for k in range(3):
            step = 1e-3 * np.eye(3)[k]
            ahead, behind = (solve(x[i].numpy() + d, float(s[i]), at) for d in (step, -step))
            np.testing.assert_allclose(jacobian[i, :, k].numpy(), (ahead - behind) / 2e-3, atol=2e-3)


def test_gradients_of_both_orders() -> None:
    layer = mixed()
    inputs = tuple(t.clone().requires_grad_() for t in MIXED)
    assert layer.solve(*inputs).regularities == [Regularity.REGULAR] * 4
    assert torch.autograd.gradcheck(layer, inputs, atol=1e-6)
    assert torch.autograd.gradgradcheck(layer, inputs, atol=1e-5)


def test_forward_mode_agrees_with_reverse_mode() -> None:
    layer, tangents = mixed(), (points(4, 3, seed=1), points(4, seed=2))
    out, moved = jvp(layer, MIXED, tangents)
    cotangent = points(4, 3, seed=3)
    pulled = vjp(layer, *MIXED)[1](cotangent)
    right = sum(float((a * b).sum()) for a, b in zip(pulled, tangents, strict=True))
    assert out.shape == (4, 3) and float((cotangent * moved).sum()) == pytest.approx(right, rel=1e-10)


def test_transforms_are_the_loop() -> None:
    layer, (x, s) = mixed(), MIXED
    assert torch.allclose(vmap(layer)(x, s), layer(x, s), atol=1e-12)
    assert torch.allclose(vmap(layer, (0, None))(x, s[0]), layer(x, s[0]), atol=1e-12)
    loop = torch.stack([jacrev(layer)(a, b) for a, b in zip(x, s, strict=True)])
    assert torch.allclose(vmap(jacrev(layer))(x, s), loop, atol=1e-10)
    assert torch.allclose(vmap(jacfwd(layer))(x, s), loop, atol=1e-10)
    second = vmap(hessian(lambda x, s: (layer(x, s) ** 3).sum()))(x, s)
    loop = torch.stack([jacrev(grad(lambda x, s: (layer(x, s) ** 3).sum()))(a, b) for a, b in zip(x, s, strict=True)])
    assert torch.allclose(second, loop, atol=1e-9)


def test_shared_inputs_get_the_sum() -> None:
    layer, (x, s) = mixed(), MIXED
    shared, each = s[0].clone().requires_grad_(), s[0].repeat(4).requires_grad_()
    layer(x, shared).sum().backward()
    layer(x, each).sum().backward()
    assert torch.allclose(shared.grad, each.grad.sum())


def test_an_element_does_not_depend_on_its_batch() -> None:
    layer, (x, s) = mixed(), MIXED
    whole = layer(x, s)
    for i in range(4):
        assert torch.allclose(layer(x[i], s[i]), whole[i], rtol=0, atol=1e-12)


def test_threads_share_a_layer() -> None:
    layer, found = mixed(), {}

    def work(k: int) -> None:
        found[k] = [grad(lambda x: layer(x, MIXED[1][k]).sum())(MIXED[0][k]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(2):
        expected = grad(lambda x, k=k: layer(x, MIXED[1][k]).sum())(MIXED[0][k])
        assert all(torch.allclose(one, expected) for one in found[k])


def test_a_layer_inside_a_layer() -> None:
    """Bilevel: the objective of one problem holds the solution of another, conic or not."""
    w = torch.tensor(0.1, dtype=f64, requires_grad=True)
    inner = DeclarativeLayer(TorchProblem((), lambda y, x: (y - x) ** 2 + w * y**4, parameters=[()]))
    outer = DeclarativeLayer(TorchProblem((), lambda y, x: (inner(y) - x) ** 2 + 0.01 * y**2, parameters=[()]))
    assert [id(p) for p in outer.parameters()] == [id(w)]
    x, step = torch.tensor([1.0, 0.5], dtype=f64), 1e-4
    y = outer(x)
    # 2 (u - x) u' + 0.02 y = 0 with the inner solution y = u + 2 w u^3, so u' = 1 / (1 + 6 w u^2)
    u = inner(y.detach())
    assert torch.allclose(y, u + 0.2 * u**3)
    assert ((u - x) / (1 + 0.6 * u**2) + 0.01 * y).abs().max() < 1e-9
    slope = (outer(x + step) - outer(x - step)) / (2 * step)
    assert torch.allclose(vmap(jacrev(outer))(x), slope, atol=1e-6)
    (found,) = torch.autograd.grad(y.sum(), w)
    with torch.no_grad():
        w += step
        ahead = outer(x).sum()
        w -= 2 * step
        behind = outer(x).sum()
    assert float(found) == pytest.approx(float((ahead - behind) / (2 * step)), rel=1e-6)


def test_inference_mode() -> None:
    layer, net = mixed(), torch.nn.Linear(3, 3)
    expected = layer(*MIXED)
    with torch.inference_mode():
        x, s = (t.clone() for t in MIXED)
        assert torch.equal(layer(x, s), expected) and not layer(x, s).requires_grad
        assert layer.solve(x, s).statuses == [Status.SOLVED] * 4
        learned = DeclarativeLayer(TorchProblem(3, lambda y, x: distance(y, net(x)), parameters=[(3,)]))
        assert torch.allclose(learned(x.float()), net(x.float()), atol=1e-6)
    with torch.no_grad():
        assert torch.equal(layer(*MIXED), expected)


# ------------------------------------------------------------------ points that are not regular


def relu(**options: object) -> DeclarativeLayer:
    return DeclarativeLayer(TorchProblem((), distance, lower=0.0, parameters=[()]), **options)


def relu_by_inequality(**options: object) -> DeclarativeLayer:
    return DeclarativeLayer(TorchProblem((), distance, inequality=lambda y, x: -y, parameters=[()]), **options)


@pytest.mark.parametrize("make", [relu, relu_by_inequality])
@pytest.mark.parametrize(
    ("rule", "down", "up"), [("descent", 0.0, 1.0), ("inactive", 1.0, 1.0), ("active", 0.0, 0.0), ("average", 0.5, 0.5)]
)
def test_weakly_active(make: object, rule: str, down: float, up: float) -> None:
    """At the kink of the ReLU: ``down`` is the derivative for a loss that pulls y down, against the bound."""
    layer = make(adjoint=Implicit(weakly_active=rule))
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=f64)
    regular, kink = Regularity.REGULAR, Regularity.WEAKLY_ACTIVE
    assert layer.solve(x).regularities == [regular, kink, regular]
    assert grad(lambda x: layer(x).sum())(x).tolist() == pytest.approx([0.0, down, 1.0])
    assert grad(lambda x: -layer(x).sum())(x).tolist() == pytest.approx([0.0, -up, -1.0])
    assert vmap(jacrev(layer))(x).tolist() == pytest.approx([0.0, down, 1.0])


def test_forward_mode_at_a_kink_is_the_directional_derivative() -> None:
    for layer in (relu(), relu_by_inequality()):
        x = torch.zeros(2, dtype=f64)
        assert jvp(layer, (x,), (torch.tensor([1.0, -1.0], dtype=f64),))[1].tolist() == [1.0, 0.0]


def test_several_kinks_are_decided_each_for_itself() -> None:
    layer = DeclarativeLayer(TorchProblem(3, distance, lower=0.0))
    x = torch.zeros(1, 3, dtype=f64)
    loss = torch.tensor([1.0, -1.0, -2.0], dtype=f64)
    assert grad(lambda x: (layer(x) * loss).sum())(x).tolist() == [[0.0, -1.0, -2.0]]


@pytest.mark.parametrize(
    "rows",
    [
        lambda y, x: torch.stack([y.sum() - 1, 2 * y.sum() - 2]),
        lambda y, x: torch.stack([y.sum() - 1, y.sum() ** 2 - 1, y.sum() ** 3 - 1, (y.sum() - 1) * 5]),
    ],
    ids=["redundant", "more rows than variables"],
)
def test_dependent_constraints_do_no_harm(rows: object) -> None:
    layer = DeclarativeLayer(TorchProblem(2, distance, rows, initial=0.3, parameters=[(2,)]))
    x = points(3, 2)
    solution = layer.solve(x)
    assert solution.regularities == [Regularity.RANK_DEFICIENT] * 3
    assert torch.allclose(solution.outputs[0], x + (1 - x.sum(-1, keepdim=True)) / 2)
    half = torch.tensor([[0.5, -0.5], [-0.5, 0.5]], dtype=f64).expand(3, 2, 2)
    assert torch.allclose(vmap(jacrev(layer))(x), half, atol=1e-8)
    with pytest.raises(ddn.DifferentiationError, match="singular"):
        hessian(lambda x: (layer(x) ** 2).sum())(x)


def test_determined_by_constraints() -> None:
    """As many independent rows as variables: nothing is left to minimise."""
    layer = DeclarativeLayer(
        TorchProblem(2, lambda y, x: (y**4).sum(), lambda y, x: torch.stack([y[0] - x[0], y[1] ** 3 - x[1]]))
    )
    x = torch.tensor([[1.0, 8.0], [-2.0, 1.0]], dtype=f64)
    assert torch.allclose(layer(x), torch.tensor([[1.0, 2.0], [-2.0, 1.0]], dtype=f64))
    expected = torch.tensor([[1.0, 1 / 12], [1.0, 1 / 3]], dtype=f64)
    assert torch.allclose(grad(lambda x: layer(x).sum())(x), expected)


def test_valley() -> None:
    """Of all solutions the derivative picks the motion of least norm."""
    layer = DeclarativeLayer(TorchProblem(2, lambda y, x: (y.sum() - x) ** 2, parameters=[()]))
    x = torch.tensor([1.0, 3.0], dtype=f64)
    solution = layer.solve(x)
    assert solution.regularities == [Regularity.SINGULAR_HESSIAN] * 2
    assert torch.allclose(solution.outputs[0].sum(-1), x)
    assert torch.allclose(vmap(jacrev(layer))(x), torch.full((2, 2), 0.5, dtype=f64))


def test_vertex() -> None:
    layer = DeclarativeLayer(TorchProblem(3, lambda y, c: c @ y, lambda y, c: y.sum() - 1, lower=0.0))
    c = torch.tensor([[2.0, 1.0, 3.0]], dtype=f64)
    solution = layer.solve(c)
    assert solution.regularities == [Regularity.REGULAR]
    assert torch.allclose(solution.outputs[0], torch.tensor([[0.0, 1.0, 0.0]], dtype=f64), atol=1e-12)
    assert not grad(lambda c: (layer(c) * c).sum() - (layer(c.detach()) * c).sum())(c).any()


def test_non_smooth_objectives_by_their_epigraph() -> None:
    """|y| + (y - x)^2 / 2 is soft thresholding; at its kink only the epigraph form satisfies the conditions."""
    x = torch.tensor([2.0, 0.4, -3.0], dtype=f64)
    raw = DeclarativeLayer(TorchProblem((), lambda y, x: y.abs() + 0.5 * (y - x) ** 2, parameters=[()]), on_failure="nan")
    assert raw.solve(x).status[1] != int(Status.SOLVED)
    epigraph = TorchProblem(
        {"y": (), "t": ()},
        lambda v, x: v["t"] + 0.5 * (v["y"] - x) ** 2,
        inequality=lambda v, x: torch.stack([v["y"] - v["t"], -v["y"] - v["t"]]),
        parameters=[()],
    )
    layer = DeclarativeLayer(epigraph)
    assert torch.allclose(layer(x)["y"], torch.tensor([1.0, 0.0, -2.0], dtype=f64), atol=1e-12)
    assert grad(lambda x: layer(x)["y"].sum())(x).tolist() == pytest.approx([1.0, 0.0, 1.0])


# ------------------------------------------------------------------ failures

FAILURES = {
    "infeasible": (
        lambda: TorchProblem(2, distance, inequality=lambda y, x: torch.stack([y[0] - x[0] + 1, x[0] + 1 - y[0]])),
        {Status.INFEASIBLE},
    ),
    "nonlinear infeasible": (
        lambda: TorchProblem(2, distance, lambda y, x: (y * y).sum() + 1, initial=0.5),
        {Status.INFEASIBLE, Status.NUMERICAL_ERROR},
    ),
    "contradicting bounds": (lambda: TorchProblem(2, distance, lower=1.0, upper=lambda x: x * 0), {Status.INFEASIBLE}),
    "unbounded": (lambda: TorchProblem(2, lambda y, x: (x * y).sum()), {Status.UNBOUNDED}),
    "nan": (
        lambda: TorchProblem(2, lambda y, x: distance(y, x) * (-x[0].abs()).sqrt()),
        {Status.NUMERICAL_ERROR, Status.INVALID_DATA},
    ),
    "infinite curvature": (
        lambda: TorchProblem(2, lambda y, x: (y - x).abs().pow(1.5).sum()),
        {Status.INACCURATE, Status.ITERATION_LIMIT, Status.NUMERICAL_ERROR},
    ),
    "nan bound": (lambda: TorchProblem(2, distance, lower=lambda x: x.abs().neg().sqrt()), {Status.INVALID_DATA}),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_have_a_status(case: str) -> None:
    make, expected = FAILURES[case]
    x = points(2, 2)
    solution = DeclarativeLayer(make()).solve(x)
    assert set(solution.statuses) <= expected, solution.statuses
    assert torch.isnan(solution.outputs[0]).all() and torch.isnan(solution.value).all()
    with pytest.raises(ddn.SolverError, match="2 of 2 batch elements"):
        DeclarativeLayer(make())(x)


def test_a_solution_without_multipliers_is_not_taken_for_granted() -> None:
    """The only feasible point is where the gradient of the constraint vanishes: close to it, or a status."""
    node = TorchProblem(2, lambda y, x: (y - 1 - x.abs()).pow(2).sum(), lambda y, x: (y * y).sum(), initial=0.5)
    solution = DeclarativeLayer(node).solve(points(2, 2))
    for status, y in zip(solution.statuses, solution.outputs[0], strict=True):
        assert status != Status.SOLVED or y.abs().max() < 1e-5


@pytest.mark.parametrize("solve", [None, lambda x: x.clamp(-1, 1)])
def test_failed_elements_are_nan_with_zero_gradient_and_harm_no_other(solve: object) -> None:
    def cost(y: Tensor, x: Tensor) -> Tensor:
        return distance(y, x) + 0.0 * torch.log(4 - x[0])  # NaN for the second element

    w = torch.ones(2, dtype=f64, requires_grad=True)
    node = TorchProblem(2, lambda y, x: cost(y, x * w), lower=-1.0, upper=1.0, solve=solve, parameters=[(2,)])
    layer = DeclarativeLayer(node, on_failure="nan")
    x = torch.tensor([[0.1, 0.2], [5.0, 0.2], [0.3, torch.nan], [0.5, -3.0]], dtype=f64, requires_grad=True)
    out = layer(x)
    assert torch.isnan(out[[1, 2]]).all()
    assert torch.allclose(out[[0, 3]], torch.tensor([[0.1, 0.2], [0.5, -1.0]], dtype=f64))
    (gx, gw) = torch.autograd.grad(out.nansum(), (x, w))
    assert gx.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    assert torch.allclose(gw, torch.tensor([0.6, 0.2], dtype=f64))
    alone = layer(x[[0, 3]])
    assert torch.equal(alone, out[[0, 3]])
    with pytest.raises(ddn.SolverError, match=r"(?s)2 of 4.*'x' holds NaN"):
        DeclarativeLayer(node)(x)


def test_failures_inside_transforms() -> None:
    layer = DeclarativeLayer(TorchProblem((), distance, lower=0.0, upper=lambda x: x, parameters=[()]), on_failure="nan")
    x = torch.tensor([1.0, -1.0, 2.0], dtype=f64)
    assert torch.isnan(vmap(layer)(x)).tolist() == [False, True, False]
    assert vmap(grad(lambda x: layer(x).nansum()))(x).tolist() == [1.0, 0.0, 1.0]


def test_saddle_points_of_our_own_solver_are_noticed() -> None:
    """Started on the ridge, where the gradient along it vanishes: either a minimum or a status."""
    node = TorchProblem(2, lambda y, x: y[0] ** 2 - y[1] ** 2 + 0.25 * y[1] ** 4 + 0 * x.sum(), initial=0.0)
    solution = DeclarativeLayer(node).solve(points(2, 1))
    for status, y in zip(solution.statuses, solution.outputs[0], strict=True):
        assert status == Status.SADDLE_POINT or torch.allclose(y.abs(), torch.tensor([0.0, 2.0**0.5], dtype=f64))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_units_of_objective_and_constraints_do_not_matter(scale: float) -> None:
    """A wrong answer is found out whatever the units, and a right one accepted."""

    def node(shift: float) -> TorchProblem:
        return TorchProblem(
            2,
            lambda y, x: scale * distance(y, x),
            lambda y, x: (y.sum() - 1) / scale,
            solve=lambda x: x + (1 - x.sum(-1, keepdim=True)) / 2 + shift * torch.tensor([1.0, -1.0]),
        )

    x = points(3, 2)
    assert DeclarativeLayer(node(0.0), polish_steps=0).solve(x).statuses == [Status.SOLVED] * 3
    assert DeclarativeLayer(node(1e-4), polish_steps=0).solve(x).statuses == [Status.INACCURATE] * 3
    assert torch.allclose(DeclarativeLayer(node(1e-4))(x), DeclarativeLayer(node(0.0))(x), atol=1e-12)


# ------------------------------------------------------------------ many variables


def difference(layer: DeclarativeLayer, x: Tensor, d: Tensor, step: float = 1e-4) -> float:
    with torch.no_grad():
        ahead, behind = (layer(x + s * step * d).sin().sum() for s in (1, -1))
    return float((ahead - behind) / (2 * step))


def test_a_hundred_thousand_variables_without_matrices() -> None:
    n = 100_000
    node = TorchProblem(
        n, lambda y, x: distance(y, x) + 0.1 * (y.diff() ** 2).sum() + 0.05 * (y**4).sum(), parameters=[(n,)]
    )
    layer, x, d = DeclarativeLayer(node), points(n), points(n, seed=1)
    found = float((grad(lambda x: layer(x).sin().sum())(x) * d).sum())
    assert found == pytest.approx(difference(layer, x, d), rel=1e-6)


def test_ten_thousand_variables_with_banded_equalities() -> None:
    n = 10_000
    node = TorchProblem(
        n,
        lambda y, x: ((y - 1) ** 2).sum() + 0.1 * (y**4).sum(),
        lambda y, x: y[1:-1] * y[2:] - 0.5 * y[:-2] - x[1:-1],
        parameters=[(n,)],
        initial=1.0,
    )
    layer, x, d = DeclarativeLayer(node), 0.5 + 0.05 * points(n), points(n, seed=1)
    solution = layer.solve(x)
    assert solution.statuses == [Status.SOLVED] and float(solution.primal_residual) < 1e-10
    found = float((grad(lambda x: layer(x).sin().sum())(x) * d).sum())
    assert found == pytest.approx(difference(layer, x, d), rel=1e-6)


def test_products_give_the_same_derivatives_as_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    def both() -> list[Tensor]:
        layer = mixed()
        x, s = (t.clone().requires_grad_() for t in MIXED)
        first = torch.autograd.grad((layer(x, s) ** 3).sum(), (x, s), create_graph=True)
        return [*first, *torch.autograd.grad(first[0].sin().sum(), (x, s)), vmap(jacrev(layer))(*MIXED)]

    expected = both()
    monkeypatch.setattr("ddn_cvx.program.nonlinear.DENSE_LIMIT", 0)
    for one, other in zip(both(), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_huge_slope_does_not_hide_a_violation() -> None:
    """At y = 1e-6 the constraint 1/y <= 1 is violated by a million, and its linearisation vanishes 1e-6 away."""
    node = TorchProblem(
        1, lambda y, x: y.sum() - x.sum(), inequality=lambda y, x: 1 / y - 1, lower=1e-9, solve=lambda x: 0 * x + 1e-9
    )
    for polish_steps in (0, 10):
        solution = DeclarativeLayer(node, polish_steps=polish_steps).solve(torch.ones(1, 1, dtype=f64))
        assert solution.statuses == [Status.INACCURATE]


def test_polishing_stays_where_it_is() -> None:
    """A wrong point next to one solution is not replaced by another solution far away."""
    node = TorchProblem(1, lambda y, x: -(y**2).sum() + 0 * x.sum(), lower=-1.0, upper=3.0, solve=lambda x: 0 * x - 0.5)
    assert DeclarativeLayer(node).solve(torch.ones(1, 1, dtype=f64)).statuses != [Status.SOLVED]


def test_infinite_curvature_does_not_hide_a_slope() -> None:
    """y^1.5 + y falls towards negative y at zero, where its second derivative is infinite."""
    node = TorchProblem(1, lambda y, x: (y**1.5 + y).sum() + 0 * x.sum(), solve=torch.zeros_like)
    solution = DeclarativeLayer(node).solve(torch.ones(1, 1, dtype=f64))
    assert solution.statuses == [Status.INACCURATE]


@pytest.mark.parametrize(
    "objective, options",
    [
        (lambda y, x: y[0] ** 3 + y[1] ** 2 + 0 * x.sum(), {"initial": 1.0}),  # an inflection
        (lambda y, x: y[0] ** 4 - y[1] ** 4 + 0 * x.sum(), {"lower": -1.0, "upper": 1.0}),  # flat, and falling
        (lambda y, x: (y[0] + y[1]) ** 2 - (y[0] - y[1]) ** 4 + 0 * x.sum(), {"lower": -1.0, "upper": 1.0}),
    ],
)
def test_what_falls_along_a_flat_direction_is_no_minimum(objective, options) -> None:
    layer = DeclarativeLayer(TorchProblem((2,), objective, **options))
    assert layer.solve(torch.zeros(1, 1, dtype=torch.float64)).statuses != [Status.SOLVED]


def test_flat_minima_are_minima() -> None:
    for objective in (
        lambda y, x: y[0] ** 4 + y[1] ** 2 + 0 * x.sum(),
        lambda y, x: (y[0] - x[0]) ** 2 + 0 * y[1],
        lambda y, x: (y[0] + y[1] - x[0]) ** 2 + (y[0] - y[1]) ** 6,
    ):
        layer = DeclarativeLayer(TorchProblem((2,), objective, initial=0.7))
        assert layer.solve(torch.ones(1, 1, dtype=torch.float64)).statuses == [Status.SOLVED]


@pytest.mark.parametrize(
    "upper", [0.1, [0.1, 0.1], np.full(2, 0.1), lambda x: [0.1, 0.1]], ids=["number", "list", "array", "function"]
)
def test_bounds_are_not_rounded_to_single_precision(upper: object) -> None:
    layer = DeclarativeLayer(TorchProblem(2, distance, upper=upper, parameters=[(2,)]))
    assert layer(torch.ones(2, dtype=f64)).tolist() == [0.1, 0.1]


def test_tensors_in_a_list_of_bounds_have_their_derivatives() -> None:
    bound = torch.tensor(0.1, dtype=f64, requires_grad=True)
    captured = DeclarativeLayer(TorchProblem(2, distance, upper=[bound, 0.2], parameters=[(2,)]))
    assert torch.autograd.grad(captured(torch.ones(2, dtype=f64)).sum(), bound)[0] == 1
    given = DeclarativeLayer(TorchProblem(2, lambda y, x: distance(y, 1.0), upper=lambda x: [x, 0.2], parameters=[()]))
    assert jacrev(given)(bound.detach()).tolist() == [1.0, 0.0]


def test_bounds_that_are_no_numbers_are_named() -> None:
    layer = DeclarativeLayer(TorchProblem(2, distance, lower="small", parameters=[(2,)]))
    with pytest.raises(ddn.DeclarationError, match="lower must be a number, a tensor or a list of these, got 'small'"):
        layer(torch.ones(2, dtype=f64))

"""The adjoint objects beside the exact one, on conic and on nonlinear programs, against answers of their own."""

from __future__ import annotations

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

import ddn_cvx as ddn
from ddn_cvx import LPGD, Approximate, DeclarativeLayer, DifferentiationError, Implicit, Smoothed, TorchProblem, Unrolled

f64 = torch.float64
COSTS = torch.tensor([2.0, 1.0, 3.0], dtype=f64)


def assignment(kind: str, **options: object) -> DeclarativeLayer:
    """The cheapest of three: a linear program with its solution at a vertex."""
    if kind == "nonlinear":
        node = TorchProblem(3, lambda y, c: c @ y, lambda y, c: y.sum() - 1, lower=0.0, parameters=[(3,)])
        return DeclarativeLayer(node, **options)
    y, c = cp.Variable(3), cp.Parameter(3)
    return DeclarativeLayer(cp.Problem(cp.Minimize(c @ y), [cp.sum(y) == 1, y >= 0]), [c], y, **options)


def regression(kind: str, **options: object) -> DeclarativeLayer:
    """min |A y - b|^2 + |y|^2 / 10  s.t.  sum(y) = 1, y >= -0.2, y_1 <= 0.3."""
    if kind == "nonlinear":
        node = TorchProblem(
            3,
            lambda y, A, b: ((A @ y - b) ** 2).sum() + 0.1 * (y * y).sum(),
            lambda y, A, b: y.sum() - 1,
            lambda y, A, b: y[0] - 0.3,
            lower=-0.2,
            parameters=[(4, 3), (4,)],
        )
        return DeclarativeLayer(node, **options)
    y, A, b = cp.Variable(3), cp.Parameter((4, 3)), cp.Parameter(4)
    cost = cp.sum_squares(A @ y - b) + 0.1 * cp.sum_squares(y)
    return DeclarativeLayer(cp.Problem(cp.Minimize(cost), [cp.sum(y) == 1, y >= -0.2, y[0] <= 0.3]), [A, b], y, **options)


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 4, 3, generator=generator, dtype=f64), torch.randn(5, 4, generator=generator, dtype=f64)


def gradients(layer: DeclarativeLayer, *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    out = layer(*leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=f64)
    return torch.autograd.grad((out * weights).sum(), leaves)


KINDS = ["conic", "nonlinear"]


# ------------------------------------------------------------------ Smoothed


def barrier_solution(c: np.ndarray, width: float) -> np.ndarray:
    """argmin c'y - width Σ log y  s.t.  Σ y = 1, by the one equation its multiplier satisfies."""
    nu = brentq(lambda nu: (width / (c - nu)).sum() - 1, c.min() - 10, c.min() - 1e-9, xtol=1e-14)
    return width / (c - nu)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [0.5, 0.01])
def test_smoothed_vertex_is_the_derivative_of_the_barrier_problem(kind: str, width: float) -> None:
    layer = assignment(kind, adjoint=Smoothed(width))
    assert torch.allclose(layer(COSTS), torch.tensor([0.0, 1.0, 0.0], dtype=f64))
    c, step = COSTS.numpy(), 1e-5
    columns = [
        (barrier_solution(c + step * e, width) - barrier_solution(c - step * e, width)) / (2 * step) for e in np.eye(3)
    ]
    expected = torch.as_tensor(np.stack(columns, 1))
    assert expected.abs().max() > 1e-3
    for jacobian in (jacrev(layer)(COSTS), jacfwd(layer)(COSTS)):
        assert torch.allclose(jacobian, expected, rtol=1e-5, atol=1e-8)
    assert not jacrev(assignment(kind))(COSTS).any()


@pytest.mark.parametrize("kind", KINDS)
def test_smoothed_tends_to_exact(kind: str) -> None:
    exact = gradients(regression(kind), *data())
    errors = []
    for width in (1e-3, 1e-5, 1e-7):
        found = gradients(regression(kind, adjoint=Smoothed(width)), *data())
        errors.append(max(float((a - b).abs().max()) for a, b in zip(found, exact, strict=True)))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5


def test_a_point_off_the_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The residual alone says too little of small slacks; here it is not asked."""
    monkeypatch.setattr("ddn_cvx.adjoint.smoothed.STEPS", 0)
    monkeypatch.setattr("ddn_cvx.adjoint.smoothed.REACHED", math.inf)
    with pytest.raises(DifferentiationError, match="not reached"):
        jacrev(assignment("conic", adjoint=Smoothed(0.5)))(COSTS)


def test_smoothed_kink_is_in_between() -> None:
    relu = DeclarativeLayer(TorchProblem((), lambda y, x: (y - x) ** 2, lower=0.0, parameters=[()]), adjoint=Smoothed(0.02))
    x = torch.tensor([-1.0, -0.1, 0.0, 0.1, 1.0], dtype=f64)
    # 2 (y - x) = 0.02 / y, so y = x/2 + sqrt(x^2/4 + 0.01)
    expected = 0.5 + 0.25 * x / (x * x / 4 + 0.01).sqrt()
    assert torch.allclose(vmap(jacrev(relu))(x), expected)
    assert torch.allclose(relu(x), x.clamp(min=0), atol=1e-12)


# ------------------------------------------------------------------ LPGD


@pytest.mark.parametrize("kind", KINDS)
def test_lpgd_tends_to_exact(kind: str) -> None:
    exact = gradients(regression(kind), *data())

    def error(adjoint: LPGD) -> float:
        found = gradients(regression(kind, adjoint=adjoint), *data())
        return max(float((a - b).abs().max()) for a, b in zip(found, exact, strict=True))

    assert error(LPGD(1e-6)) < 1e-4
    assert error(LPGD(1e-3, two_sided=True)) < 1e-2 * error(LPGD(1e-3)) or error(LPGD(1e-3, two_sided=True)) < 1e-8


@pytest.mark.parametrize("adjoint", [LPGD(1e-4, two_sided=True), Smoothed(1e-7), Unrolled(1)], ids=str)
def test_bounds_that_depend_on_inputs(adjoint: ddn.adjoint.base.Adjoint) -> None:
    node = TorchProblem(
        3,
        lambda y, x: ((y - x) ** 2).sum() + (y**4).sum(),
        lambda y, x: y.sum() - 1,
        lower=lambda x: -0.1 * x.abs() - 0.1,
        upper=lambda x: 0.4 + 0.1 * x,
        parameters=[(3,)],
    )
    x = torch.tensor([[1.0, 0.5, -2.0], [0.4, 0.3, 0.2]], dtype=f64)
    exact = vmap(jacrev(DeclarativeLayer(node)))(x)
    assert torch.allclose(vmap(jacrev(DeclarativeLayer(node, adjoint=adjoint)))(x), exact, atol=1e-5)


@pytest.mark.parametrize("adjoint", [Unrolled(1), Smoothed(1e-8)], ids=str)
def test_multipliers_of_conic_programs(adjoint: ddn.adjoint.base.Adjoint) -> None:
    y, p = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y - p)), [cp.sum(y) == 1, y >= 0.1])
    duals = [c.dual_variables[0] for c in problem.constraints]
    point = torch.tensor([1.5, 0.2], dtype=f64)
    exact = jacrev(DeclarativeLayer(problem, [p], duals))(point)
    found = jacrev(DeclarativeLayer(problem, [p], duals, adjoint=adjoint))(point)
    assert exact[0].abs().max() > 1 and exact[1].abs().max() > 1
    for a, b in zip(found, exact, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_lpgd_looks_beyond_the_vertex(kind: str) -> None:
    """With the loss weighted so much that the cheapest changes from 1 to 0, the gradient is the difference of the two."""
    layer = assignment(kind, adjoint=LPGD(tau=5.0))
    c = COSTS.clone().requires_grad_()
    (found,) = torch.autograd.grad((layer(c) * torch.tensor([-1.0, 1.0, 0.0])).sum(), c)
    assert torch.allclose(found, torch.tensor([1.0, -1.0, 0.0], dtype=f64) / 5, atol=1e-9)


def test_lpgd_on_other_cones() -> None:
    y, p = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y - p)), [cp.norm(y) <= 0.5])
    points = torch.tensor([[1.0, 2.0, -1.0], [0.1, 0.2, 0.1]], dtype=f64)
    exact = vmap(jacrev(DeclarativeLayer(problem, [p], y)))(points)
    found = vmap(jacrev(DeclarativeLayer(problem, [p], y, adjoint=LPGD(1e-4, two_sided=True))))(points)
    assert torch.allclose(found, exact, atol=1e-7)


def test_lpgd_refuses_what_it_has_not() -> None:
    y, c = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(c @ y), [cp.sum(y) == 1, y >= 0])
    layer = DeclarativeLayer(problem, [c], [y, problem.constraints[0].dual_variables[0]], adjoint=LPGD())
    x = COSTS.clone().requires_grad_()
    with pytest.raises(DifferentiationError, match="none of multipliers"):
        layer(x)[1].sum().backward()
    (first,) = torch.autograd.grad(layer(x)[0].pow(2).sum(), x, create_graph=True)
    with pytest.raises(DifferentiationError, match="first derivatives"):
        first.sum().backward()
    with pytest.raises(DifferentiationError, match="no forward mode"):
        jvp(lambda c: layer(c)[0], (COSTS,), (COSTS,))


# ------------------------------------------------------------------ Unrolled


@pytest.mark.parametrize("kind", KINDS)
def test_unrolled_is_exact(kind: str) -> None:
    for one, other in zip(
        gradients(regression(kind, adjoint=Unrolled(1)), *data()), gradients(regression(kind), *data()), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-10)


def curved(**options: object) -> DeclarativeLayer:
    def cost(y: Tensor, x: Tensor) -> Tensor:
        return ((y - x) ** 2).sum() + (y**4).sum()

    node = TorchProblem(2, cost, lambda y, x: y.prod() - 0.1, parameters=[(2,)], initial=1.0)
    return DeclarativeLayer(node, **options)


@pytest.mark.parametrize("adjoint", [Unrolled(2), Implicit()])
def test_third_derivatives(adjoint: ddn.adjoint.base.Adjoint) -> None:
    layer, x = curved(adjoint=adjoint), torch.tensor([1.0, 0.4], dtype=f64)

    def loss(x: Tensor) -> Tensor:
        return (layer(x) ** 3).sum()

    d, step = torch.tensor([0.3, -1.0], dtype=f64), 1e-4
    exact = curved()
    reference = [hessian(lambda x: (exact(x) ** 3).sum())(x + s * step * d) for s in (1, -1)]
    expected = (reference[0] - reference[1]) / (2 * step)
    assert torch.allclose(hessian(loss)(x), (reference[0] + reference[1]) / 2, atol=1e-5)
    found = jacrev(lambda x: (hessian(loss)(x) * d).sum(-1))(x)  # the third derivative is symmetric in its slots
    assert torch.allclose(found, expected, atol=1e-5)


def nested(kind: str) -> tuple[DeclarativeLayer, Tensor]:
    """One layer for every custom function there is, and a point where it is smooth."""
    point = torch.tensor([1.0, 2.0, 0.5], dtype=f64)
    y, p = cp.Variable(3), cp.Parameter(3)
    if kind == "root":
        return DeclarativeLayer(ddn.Root(3, lambda y, x: y**3 + y - x, parameters=[(3,)])), point
    if kind == "ode":
        node = ddn.ODE(3, lambda t, y, x: -y * x, span=(0.0, 1.0), initial=lambda x: x, parameters=[(3,)])
        return DeclarativeLayer(node), point
    if kind == "eigenvalues":
        matrix, top = cp.Parameter((3, 3), symmetric=True), cp.Variable()
        cost = cp.square(top - cp.lambda_max(matrix)) + cp.exp(top)
        return DeclarativeLayer(cp.Problem(cp.Minimize(cost)), [matrix], top), torch.diag(point) + 0.3
    cost, options = cp.sum_squares(y - p), {"adjoint": Unrolled(2)} if kind == "unrolled" else {}
    constraint = {"exponential": cp.sum(cp.exp(y)) <= 2, "sphere": cp.sum_squares(y) == 1}.get(kind, cp.norm(y) <= 1)
    return DeclarativeLayer(cp.Problem(cp.Minimize(cost), [constraint]), [p], y, **options), point


@pytest.mark.parametrize("kind", ["ball", "exponential", "sphere", "unrolled", "eigenvalues", "root", "ode"])
def test_modes_may_be_nested_in_any_order(kind: str) -> None:
    """torch keeps forward mode off while it runs a forward rule, and what moves in an outer mode stands still there."""
    layer, point = nested(kind)

    def loss(x: Tensor) -> Tensor:
        return (layer(x * x) ** 3).sum()

    step = 1e-5 * torch.eye(point.numel(), dtype=f64).reshape(-1, *point.shape)
    slope = jacrev(loss)
    expected = torch.stack([(slope(point + d) - slope(point - d)) / 2e-5 for d in step]).reshape(*point.shape, *point.shape)
    for second in (jacfwd(jacfwd(loss)), jacfwd(jacrev(loss)), jacrev(jacfwd(loss)), jacrev(jacrev(loss))):
        assert torch.allclose(second(point), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["ball", "sphere", "unrolled", "root", "ode"])
def test_cotangents_may_move_in_two_forward_modes(kind: str) -> None:
    """The pull-back is linear: that of ``t² g`` has the second derivative 2 J'g in t."""
    layer, point = nested(kind)
    _, pull = torch.func.vjp(layer, point)
    g, one = torch.tensor([1.0, -0.5, 0.3], dtype=f64), torch.ones((), dtype=f64)

    def once(t: Tensor) -> Tensor:
        return jvp(lambda t: pull(t * t * g)[0], (t,), (one,))[1]

    assert torch.allclose(jvp(once, (1.5 * one,), (one,))[1], 2 * jacrev(layer)(point).mT @ g)


def test_projections_may_be_nested_thrice() -> None:
    def product(v: Tensor) -> Tensor:
        return ddn.cones.SecondOrder(3).project(v * v).prod()

    point = torch.tensor([0.3, -0.5, 1.2], dtype=f64)
    assert torch.allclose(jacfwd(jacfwd(jacfwd(product)))(point), jacrev(jacrev(jacrev(product)))(point))


# ------------------------------------------------------------------ Approximate


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_constraints_leave_the_unconstrained_derivative(kind: str) -> None:
    A, b = data()
    layer = regression(kind, adjoint=Approximate("ignore_constraints"))
    H = 2 * A.mT @ A + 0.2 * torch.eye(3, dtype=f64)
    expected = torch.cholesky_solve(2 * A.mT, torch.linalg.cholesky(H))  # dy/db without constraints
    assert torch.allclose(vmap(jacrev(layer, 1))(A, b), expected)
    assert torch.allclose(vmap(jacfwd(layer, 1))(A, b), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_identity_hessian_projects(kind: str) -> None:
    """Projection onto the simplex has H = 2 I: the approximation is twice the exact derivative."""
    if kind == "nonlinear":
        node = TorchProblem(3, lambda y, x: ((y - x) ** 2).sum(), lambda y, x: y.sum() - 1, lower=0.0, parameters=[(3,)])
        make = lambda **options: DeclarativeLayer(node, **options)  # noqa: E731  # the two branches read alike
    else:
        y, x = cp.Variable(3), cp.Parameter(3)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(y - x)), [cp.sum(y) == 1, y >= 0])
        make = lambda **options: DeclarativeLayer(problem, [x], y, **options)  # noqa: E731
    point = torch.tensor([0.9, 0.5, -1.0], dtype=f64)
    found = jacrev(make(adjoint=Approximate("identity_hessian")))(point)
    assert torch.allclose(found, 2 * jacrev(make())(point), atol=1e-9)


INEXACT = [Approximate("ignore_constraints"), Approximate("identity_hessian"), Smoothed(0.1)]


@pytest.mark.parametrize("adjoint", INEXACT, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_of_approximations_are_refused(kind: str, adjoint: ddn.adjoint.base.Adjoint) -> None:
    layer, (A, b) = regression(kind, adjoint=adjoint), data()
    with pytest.raises(DifferentiationError, match="first derivatives only"):
        hessian(lambda b: (layer(A[0], b) ** 2).sum())(b[0])


def test_approximations_form_matrices() -> None:
    node = TorchProblem(1200, lambda y, x: ((y - x) ** 2).sum(), parameters=[(1200,)])
    for adjoint in INEXACT:
        with pytest.raises(ddn.DeclarationError, match="1200 is too much"):
            DeclarativeLayer(node, adjoint=adjoint)(torch.zeros(1200))


@pytest.mark.parametrize("adjoint", [*INEXACT, LPGD(1e-3), Unrolled(1)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_failed_elements_have_no_gradient_and_harm_no_other(kind: str, adjoint: ddn.adjoint.base.Adjoint) -> None:
    A, b = data()
    layer = regression(kind, adjoint=adjoint, on_failure="nan")
    clean = gradients(layer, A, b)
    bad = b.clone()
    bad[2] = torch.nan
    leaves = [A.clone().requires_grad_(), bad.requires_grad_()]
    out = layer(*leaves)
    assert torch.isnan(out[2]).all() and torch.isfinite(out[[0, 1, 3, 4]]).all()
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=f64)
    found = torch.autograd.grad((out * weights).nansum(), leaves)
    for one, other in zip(found, clean, strict=True):
        assert not one[2].any()
        assert torch.allclose(one[[0, 1, 3, 4]], other[[0, 1, 3, 4]], atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Smoothed(0.0), "width must be a positive number"),
        (lambda: LPGD(-1.0), "tau must be a positive number"),
        (lambda: Unrolled(0), "steps must be a whole number of at least 1"),
        (lambda: Approximate("none"), "mode must be one of"),
        (lambda: Implicit("sometimes"), "weakly_active must be one of"),
    ],
)
def test_options_are_checked(make: object, message: str) -> None:
    with pytest.raises(ddn.InputError, match=message):
        make()

"""Problems in cvxpy syntax that are not DCP: known solutions and gradients, duals, batches, errors.

Convex problems that are read as if they were not must give what the cone program gives, dual variables and gradients
included: this covers every kind of constraint, attribute and non-smooth atom.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx.declare.cvxpy_nonconvex import NonconvexProblem
from ddn_cvx.testing import check_layer

D = torch.float64
pytestmark = pytest.mark.filterwarnings(r"ignore:\s*Explicitly invoking .NonPos")


def rand(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- against the cone programs of convex problems

N = 3
x, t, z, w = cp.Variable(N, name="x"), cp.Variable(name="t"), cp.Variable(N, name="z"), cp.Variable(N, name="w")
p, M, P, P2 = cp.Parameter(N), cp.Parameter((3, 3)), cp.Parameter((3, 2)), cp.Parameter((2, 3))
X, X2, T = cp.Variable((3, 2)), cp.Variable((2, 3)), cp.Variable(2)
S, PSD, NSD = cp.Variable((3, 3), symmetric=True), cp.Variable((3, 3), PSD=True), cp.Variable((3, 3), NSD=True)
DIAG, SPARSE = cp.Variable((3, 3), diag=True), cp.Variable((3, 3), sparsity=((0, 1, 2), (1, 1, 0)))
BOX, POSITIVE = cp.Variable(N, bounds=[-0.1, 0.2]), cp.Variable(N, nonneg=True)
near = cp.sum_squares(x - p)
weights = np.array([[0.2, 0.5], [0.3, 0.25], [0.5, 0.25]])
chain = np.array([[1.0, 2, 0], [0, 1, -1]])

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # NonPos is deprecated
    NONPOS = cp.NonPos(cp.sum(x) - 1)

CONVEX: dict[str, tuple[cp.Expression, list[cp.Constraint], cp.Parameter]] = {
    "equality": (near, [cp.sum(x) == 1], p),
    "zero": (near, [cp.Zero(cp.sum(x) - 1)], p),
    "inequalities": (near, [x >= 0, cp.sum(x) <= 1, x[0] <= 0.2], p),
    "a bound twice": (near, [x >= 0.3, x[0] >= 0.4, x[1:] <= 0.5], p),
    "a looser bound": (cp.sum_squares(POSITIVE - p), [POSITIVE >= -1, POSITIVE <= 0.5], p),
    "nonneg": (near, [cp.NonNeg(2 * x - 0.1), NONPOS], p),
    "broadcast": (cp.sum_squares(X - P), [cp.reshape(cp.Constant([0.1, 0.2]), (1, 2), order="C") >= X], P),
    "bounded by parameters": (near, [x <= cp.abs(p) - 0.2, x >= -2], p),
    "second order": (near + cp.square(t - 0.3), [cp.SOC(t, x)], p),
    "ball": (near, [cp.SOC(cp.Constant(0.5), x)], p),
    "cones in columns": (cp.sum_squares(X - P) + cp.sum_squares(T - 0.3), [cp.SOC(T, X, axis=0)], P),
    "cones in rows": (cp.sum_squares(X2 - P2) + cp.sum_squares(T - 0.3), [cp.SOC(T, X2, axis=1)], P2),
    "balls in rows": (cp.sum_squares(X2 - P2), [cp.SOC(cp.Constant([0.4, 0.6]), X2, axis=1)], P2),
    "norm": (near, [cp.norm(x) <= 0.5], p),
    "norm below": (near + cp.square(t - 0.2), [cp.norm(x) <= t + 0.1], p),
    "norms of columns": (cp.sum_squares(X - P), [cp.norm(X, axis=0) <= 0.5], P),
    "largest": (near, [cp.max(x) <= 0.1, cp.min(x) >= -0.2], p),
    "largest of columns": (cp.sum_squares(X - P), [cp.max(X, axis=0) <= cp.Constant([0.1, 0.2])], P),
    "norm inf": (near, [cp.norm(x, "inf") <= 0.4], p),
    "norm one": (near, [cp.norm1(x) <= 0.4], p),
    "pieces": (near, [cp.maximum(x, -x, 0.5 * x) <= 0.4, cp.minimum(x, 0.1 + x / 2) >= -0.3], p),
    "absolute": (near, [cp.abs(x) <= 0.4], p),
    "lasso": (near + 0.5 * cp.norm1(x), [], p),
    "norms": (near + 0.5 * cp.norm(x) + cp.norm(x, "inf"), [], p),
    "shrunk to the apex": (near + 10 * cp.norm(x), [], p),
    "sorted": (near + cp.max(x) + cp.sum_largest(x, 2), [], p),
    "fit": (cp.sum(cp.abs(chain @ x - 1)) + near, [], p),
    "semidefinite": (cp.sum_squares(S - M), [S >> 0], M),
    "semidefinite and bounded": (cp.sum_squares(S - M), [S - 0.1 * np.eye(3) >> 0, S[0, 0] <= 1], M),
    "PSD variable": (cp.sum_squares(PSD - M), [cp.trace(PSD) <= 1], M),
    "NSD variable": (cp.sum_squares(NSD - M), [cp.trace(NSD) >= -1], M),
    "diagonal variable": (cp.sum_squares(DIAG - M), [cp.trace(DIAG) == 1], M),
    "sparse variable": (cp.sum_squares(SPARSE - M), [cp.sum(SPARSE) == 1], M),
    "bounds": (near + cp.sum_squares(BOX - x), [], p),
    "exponential": (near + cp.sum_squares(z - 1) + cp.sum_squares(w - 0.5), [cp.ExpCone(x, w, z)], p),
    "power": (near + cp.sum_squares(z - 0.3) + cp.sum_squares(w - 0.5), [cp.PowCone3D(z, w, x + 2, 0.3)], p),
    "powers": (cp.sum_squares(X - cp.square(P)) + cp.sum_squares(T - 1.5), [cp.PowConeND(X, T, weights)], P),
    "maximised": (-near, [x >= 0, cp.sum(x) == 1], p),
    "logarithms": (-cp.sum(cp.log(x)) + near, [cp.sum(x) <= 2], p),
    "logarithms of sums": (-cp.sum(cp.log(chain @ x + 1)) + near, [cp.sum(x) <= 2], p),
    "entropy": (cp.sum(cp.entr(x)) - near, [cp.sum(x) == 1], p),
    "roots": (near - cp.sum(cp.sqrt(x + 1)) + cp.sum(cp.inv_pos(x)), [], p),
    "divergence": (near + cp.sum(cp.kl_div(x, z)) + cp.sum(cp.rel_entr(z, x + 1)), [z <= 2], p),
    "over": (near + cp.quad_over_lin(z - p, t + 1) + cp.square(t), [], p),
    "log sum exp": (cp.log_sum_exp(x) + near, [x >= p - 0.1], p),
}  # fmt: skip


def as_nonconvex(problem: cp.Problem, *arguments: object, **options: object) -> ddn.DeclarativeLayer:
    """The layer that a problem would have if it were not DCP."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cp.Problem, "is_dcp", lambda self: False)
        layer = ddn.DeclarativeLayer(problem, *arguments, **options)
    assert isinstance(layer.node, NonconvexProblem)
    return layer


@pytest.mark.parametrize("name", CONVEX)
def test_agrees_with_the_cone_program(name: str) -> None:
    objective, constraints, parameter = CONVEX[name]
    problem = cp.Problem((cp.Minimize if objective.is_convex() else cp.Maximize)(objective), constraints)
    outputs = [*problem.variables(), *(d for c in constraints for d in c.dual_variables)]
    value = rand(3, 4, *parameter.shape)
    given = [value.clone().requires_grad_() for _ in range(2)]
    layers = ddn.DeclarativeLayer(problem, [parameter], outputs), as_nonconvex(problem, [parameter], outputs)
    found = [layer(v) for layer, v in zip(layers, given, strict=True)]
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    cotangents = [rand(7 + k, *v.shape) for k, v in enumerate(found[0])]
    for values in found:
        sum((v * c).sum() for v, c in zip(values, cotangents, strict=True)).backward()
    torch.testing.assert_close(given[1].grad, given[0].grad, rtol=1e-5, atol=1e-5)
    solutions = [layer.solve(value) for layer in layers]
    torch.testing.assert_close(solutions[1].value, solutions[0].value, rtol=1e-7, atol=1e-7)
    for expected, got in zip(solutions[0].dual, solutions[1].dual, strict=True):
        for one, other in zip(expected, got, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- known solutions

y = cp.Variable(3, name="y")
a = cp.Parameter(3, name="a")
A = cp.Parameter((3, 3), symmetric=True, name="A")
r = cp.Parameter(pos=True, name="r")


def test_projection_onto_the_sphere_is_what_it_says() -> None:
    on_sphere = cp.sum_squares(y) == 1
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y - a)), [on_sphere])
    layer = ddn.DeclarativeLayer(problem, [a], [y, on_sphere.dual_variables[0]])
    value = rand(0, 2, 4, 3)
    point, multiplier = layer(value)
    length = value.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(point, value / length)
    torch.testing.assert_close(multiplier, length.squeeze(-1) - 1)
    check_layer(layer, value[0, :1])
    jacobian = torch.func.jacrev(lambda v: layer(v)[0])(value[0, 0])
    unit = point[0, 0]
    torch.testing.assert_close(jacobian, (torch.eye(3, dtype=D) - torch.outer(unit, unit)) / length[0, 0])


def test_bare_output_keywords_broadcasting_dtypes_and_empty_batches() -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y - a)), [cp.sum_squares(y) == cp.square(r)])
    layer = ddn.DeclarativeLayer(problem, [a, r], y)
    value, radius = rand(1, 3), torch.tensor([1.0, 2.0, 3.0], dtype=D, requires_grad=True)
    out = layer(r=radius, a=value)
    torch.testing.assert_close(out, radius[:, None] * value / value.norm())
    out.sum().backward()
    torch.testing.assert_close(radius.grad, (value / value.norm()).sum().expand(3))
    assert layer(value.float(), torch.tensor(1.0)).dtype == torch.float32
    assert layer(value, torch.ones(2, 0, dtype=D)).shape == (2, 0, 3)
    assert layer.solve(value.expand(0, 3), radius.detach()[:0]).outputs[0].shape == (0, 3)
    (from_list,) = ddn.DeclarativeLayer(problem, [a, r], [y])(value, radius)
    torch.testing.assert_close(from_list, out)
    with pytest.raises(ddn.InputError, match=r"'a' must have shape \(\*batch, 3\), got \(2,\)"):
        layer(torch.zeros(2, dtype=D), radius)
    with pytest.raises(ddn.InputError, match=r"Expected 2 parameters \(a, r\), got 1"):
        layer(value)
    assert "not convex" in repr(layer)


def test_copies_and_pickles_solve_the_same_problem() -> None:
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(y - a)), [cp.sum_squares(y) == 1]), [a], y)
    value = rand(2, 2, 3)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.with_solver("nonlinear_interior_point")):
        torch.testing.assert_close(other(value), layer(value))


def test_eigenvectors() -> None:
    problem = cp.Problem(cp.Maximize(cp.quad_form(y, A)), [cp.sum_squares(y) == 1])
    layer = ddn.DeclarativeLayer(problem, [A], y)
    matrix = rand(4, 5, 3, 3)
    matrix = (matrix + matrix.mT).requires_grad_()
    point, solution = layer(matrix), layer.solve(matrix)
    values, vectors = torch.linalg.eigh(matrix)
    torch.testing.assert_close(solution.value, values[:, -1].detach())
    sign = (point * vectors[..., -1]).sum(-1, keepdim=True).sign().detach()
    torch.testing.assert_close(point, sign * vectors[..., -1])
    weight = rand(5, 5, 3)
    (got,) = torch.autograd.grad((point * weight).sum(), matrix)
    (expected,) = torch.autograd.grad((sign * vectors[..., -1] * weight).sum(), matrix)
    torch.testing.assert_close(got, (expected + expected.mT) / 2)


def test_several_eigenvectors_up_to_rotation() -> None:
    W, big = cp.Variable((4, 2)), cp.Parameter((4, 4), symmetric=True)
    problem = cp.Problem(cp.Maximize(cp.sum(cp.multiply(W, big @ W))), [np.eye(2) == W.T @ W])
    matrix = rand(6, 3, 4, 4)
    matrix = matrix + matrix.mT
    solution = ddn.DeclarativeLayer(problem, [big], W).solve(matrix)
    torch.testing.assert_close(solution.value, torch.linalg.eigvalsh(matrix)[:, -2:].sum(-1))


def test_trust_region_subproblem() -> None:
    inside = cp.sum_squares(y) <= cp.square(r)
    problem = cp.Problem(cp.Minimize(cp.quad_form(y, A) + a @ y), [inside])
    layer = ddn.DeclarativeLayer(problem, [A, a, r], [y, inside.dual_variables[0]])
    matrix = rand(8, 3, 3, 3)
    matrix, slope, radius = (matrix + matrix.mT)[:2], rand(9, 2, 3), torch.tensor(1.3, dtype=D)
    point, multiplier = layer(matrix, slope, radius)
    # Necessary and sufficient for the global minimum (Moré & Sorensen, 1983): A + μI is semidefinite.
    shifted = matrix + multiplier[:, None, None] * torch.eye(3, dtype=D)
    torch.testing.assert_close(2 * (shifted @ point[..., None]).squeeze(-1), -slope)
    assert bool((torch.linalg.eigvalsh(shifted)[:, 0] > 0).all())
    check_layer(layer, matrix[:1], slope[:1], radius, second_order=False)


def test_rosenbrock_on_a_disk() -> None:
    v, radius = cp.Variable(2), cp.Parameter(nonneg=True)
    valley = cp.square(1 - v[0]) + 100 * cp.square(v[1] - cp.square(v[0]))
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(valley), [cp.sum_squares(v) <= radius]), [radius], v)
    values = torch.tensor([0.5, 1.0, 1.5, 3.0], dtype=D)

    def expected(value: float) -> np.ndarray:
        found = scipy.optimize.minimize(
            lambda s: (1 - s[0]) ** 2 + 100 * (s[1] - s[0] ** 2) ** 2, [0.5, 0.5], method="SLSQP",
            constraints={"type": "ineq", "fun": lambda s: value - s @ s}, options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        return found.x

    torch.testing.assert_close(
        layer(values), torch.tensor(np.array([expected(float(v)) for v in values])), rtol=1e-5, atol=1e-5
    )
    check_layer(layer, values[:2], second_order=False)


def test_geometric_and_bilinear() -> None:
    u, cost = cp.Variable(2, pos=True), cp.Parameter(pos=True)
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(u[0] + cost * u[1]), [u[0] * u[1] >= 2]), [cost], u)
    value = torch.tensor([0.5, 1.0, 3.0], dtype=D)
    torch.testing.assert_close(layer(value), torch.stack([(2 * value).sqrt(), (2 / value).sqrt()], -1))
    check_layer(layer, value)


HS: dict[int, Callable[[cp.Variable], tuple[cp.Expression, list[cp.Constraint], tuple[float, ...], float]]] = {
    # objective, constraints, published start and published optimum (Hock & Schittkowski, 1981)
    1: lambda v: (100 * (v[1] - v[0] ** 2) ** 2 + (1 - v[0]) ** 2, [v[1] >= -1.5], (-2, 1), 0.0),
    6: lambda v: ((1 - v[0]) ** 2, [10 * (v[1] - v[0] ** 2) == 0], (-1.2, 1), 0.0),
    7: lambda v: (cp.log(1 + v[0] ** 2) - v[1], [(1 + v[0] ** 2) ** 2 + v[1] ** 2 == 4], (2, 2), -(3**0.5)),
    12: lambda v: (0.5 * v[0] ** 2 + v[1] ** 2 - v[0] * v[1] - 7 * v[0] - 7 * v[1], [4 * v[0] ** 2 + v[1] ** 2 <= 25],
                   (0, 0), -30.0),
    22: lambda v: ((v[0] - 2) ** 2 + (v[1] - 1) ** 2, [v[0] + v[1] <= 2, v[0] * v[0] <= v[1]], (2, 2), 1.0),
    26: lambda v: ((v[0] - v[1]) ** 2 + (v[1] - v[2]) ** 4, [(1 + v[1] ** 2) * v[0] + v[2] ** 4 == 3], (-2.6, 2, 2), 0.0),
    29: lambda v: (-v[0] * v[1] * v[2], [v[0] ** 2 + 2 * v[1] ** 2 + 4 * v[2] ** 2 <= 48], (1, 1, 1), -16 * 2**0.5),
    35: lambda v: (9 - 8 * v[0] - 6 * v[1] - 4 * v[2] + 2 * v[0] ** 2 + 2 * v[1] ** 2 + v[2] ** 2 + 2 * v[0] * v[1]
                   + 2 * v[0] * v[2], [v[0] + v[1] + 2 * v[2] <= 3, v >= 0], (0.5, 0.5, 0.5), 1 / 9),
    39: lambda v: (-v[0], [v[1] - v[0] ** 3 - v[2] ** 2 == 0, v[0] ** 2 - v[1] - v[3] ** 2 == 0], (2, 2, 2, 2), -1.0),
    40: lambda v: (-cp.prod(v), [v[0] ** 3 + v[1] ** 2 == 1, v[0] ** 2 * v[3] == v[2], v[3] ** 2 == v[1]],
                   (0.8, 0.8, 0.8, 0.8), -0.25),
    43: lambda v: (v[0] ** 2 + v[1] ** 2 + 2 * v[2] ** 2 + v[3] ** 2 - 5 * v[0] - 5 * v[1] - 21 * v[2] + 7 * v[3],
                   [8 - cp.sum_squares(v) - v[0] + v[1] - v[2] + v[3] >= 0, 10 - v[0] ** 2 - 2 * v[1] ** 2 - v[2] ** 2
                    - 2 * v[3] ** 2 + v[0] + v[3] >= 0, 5 - 2 * v[0] ** 2 - v[1] ** 2 - v[2] ** 2 - 2 * v[0] + v[1]
                    + v[3] + 0 * cp.nlp.sin(v[0]) >= 0], (0, 0, 0, 0), -44.0),
    71: lambda v: (v[0] * v[3] * cp.sum(v[:3]) + v[2], [cp.prod(v) >= 25, cp.sum_squares(v) == 40, v >= 1, v <= 5],
                   (1, 5, 5, 1), 17.0140173),
}  # fmt: skip


@pytest.mark.parametrize("number", HS)
def test_hock_schittkowski_in_cvxpy(number: int) -> None:
    """The published optimum from the published start, with a parameter that shifts the objective."""
    shift = cp.Parameter()
    size = {1: 2, 6: 2, 7: 2, 12: 2, 22: 2, 26: 3, 29: 3, 35: 3}.get(number, 4)
    v = cp.Variable(size)
    objective, constraints, start, optimum = HS[number](v)
    v.value = np.array(start, dtype=float)
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(objective + shift), constraints), [shift], v)
    assert isinstance(layer.node, NonconvexProblem)
    solution = layer.solve(torch.tensor([0.0, 2.0], dtype=D))
    assert solution.statuses == [ddn.Status.SOLVED] * 2
    torch.testing.assert_close(solution.value, torch.tensor([optimum, optimum + 2], dtype=D), rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- gradients


def nonconvex_problems() -> Iterator[tuple[str, cp.Expression, list[cp.Constraint], list[cp.Parameter], list[Tensor]]]:
    net = cp.Constant(np.random.default_rng(0).normal(size=(5, 3)))
    value = rand(11, 1, 3)
    yield "waves", cp.sum(cp.nlp.sin(y)) + cp.sum_squares(y - a), [], [a], [value]
    yield "a net", cp.sum_squares(cp.nlp.tanh(net @ y) - 1) + 0.1 * cp.sum_squares(y - a), [cp.norm1(y) <= 0.3], [a], [value]
    yield "outside a ball", cp.sum_squares(y - a), [cp.norm(y) >= 2, y[0] >= 0], [a], [value]
    yield "on a sphere", cp.sum_squares(y - a), [cp.norm(y) == 2], [a], [value]
    yield "concave", cp.sum_squares(y - a) - cp.norm1(y), [cp.sum(y) == 0.3, y <= 5, y >= -5], [a], [value]
    yield "robust", cp.sum(cp.abs(cp.square(y) - a)) + 0.3 * cp.sum_squares(y - 1), [], [a], [value.abs() + 0.2]
    yield "entropy", cp.sum(cp.multiply(a, y)) - cp.sum(cp.entr(y)) + cp.prod(y), [cp.sum(y) == 1], [a], [value]
    yield "nested domain", cp.sum_squares(y - a) - cp.sum(cp.log(cp.log(1 + cp.square(y)))), [], [a], [value]
    yield "roots", cp.sum(cp.sqrt(y)) + cp.sum_squares(y - a), [y >= 0.1], [a], [value]
    yield (
        "fraction",
        (y[0] - r) ** 2 / (1 + y[1] ** 2) + cp.sum_squares(y[1:]) / 4 + (y[1] - 1) * y[0],
        [y >= 0.1],
        [r],
        [torch.tensor([1.0, 3.0], dtype=D)],
    )
    yield "parameters anywhere", cp.sum_squares(cp.multiply(y, cp.exp(a)) - r) + r * cp.prod(y), [
        cp.quad_form(y, A) + 3 * cp.sum_squares(y) <= r * cp.square(r), y <= cp.square(r)
    ], [a, A, r], [value, torch.diag_embed(rand(12, 3)) / 4, torch.tensor(1.1, dtype=D)]  # fmt: skip


@pytest.mark.parametrize("case", list(nonconvex_problems()), ids=lambda case: case[0])
def test_derivatives_of_first_and_second_order(case: tuple) -> None:
    _, objective, constraints, parameters, values = case
    problem = cp.Problem(cp.Minimize(objective), constraints)
    assert not problem.is_dcp()
    check_layer(ddn.DeclarativeLayer(problem, parameters, y), *values, second_order=len(parameters) == 1)


def test_gradient_against_differences_of_scipy() -> None:
    problem = cp.Problem(
        cp.Minimize(cp.exp(y[0] * y[1]) + cp.sum_squares(y - a)), [cp.sum_squares(y) == 2, y[2] >= y[0] * y[1]]
    )
    layer = ddn.DeclarativeLayer(problem, [a], y)
    value = torch.tensor([0.9, 0.7, -0.2], dtype=D, requires_grad=True)
    point = layer(value)

    def solved(at: np.ndarray) -> np.ndarray:
        return scipy.optimize.minimize(
            lambda s: np.exp(s[0] * s[1]) + ((s - at) ** 2).sum(), point.detach().numpy(), method="SLSQP",
            constraints=[{"type": "eq", "fun": lambda s: s @ s - 2}, {"type": "ineq", "fun": lambda s: s[2] - s[0] * s[1]}],
            options={"ftol": 1e-16, "maxiter": 300},
        ).x  # fmt: skip

    base, step = value.detach().numpy(), 1e-4
    np.testing.assert_allclose(point.detach().numpy(), solved(base), atol=1e-6)
    jacobian = torch.stack([torch.autograd.grad(point[k], value, retain_graph=True)[0] for k in range(3)])
    differences = np.stack([(solved(base + step * e) - solved(base - step * e)) / (2 * step) for e in np.eye(3)], 1)
    np.testing.assert_allclose(jacobian.numpy(), differences, atol=1e-4)


@pytest.mark.parametrize(
    "adjoint", [ddn.Smoothed(1e-8), ddn.LPGD(1e-5), ddn.Unrolled(6), ddn.Approximate("ignore_constraints")]
)
def test_other_adjoints(adjoint: object) -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y - a) + 0.1 * cp.prod(y)), [y >= -10, cp.sum(cp.nlp.sinh(y)) <= 50])
    value = rand(13, 2, 3).requires_grad_()
    gradients = []
    for one in (adjoint, ddn.Implicit()):
        out = ddn.DeclarativeLayer(problem, [a], y, adjoint=one)(value)
        gradients.append(torch.autograd.grad((out * rand(14, 2, 3)).sum(), value)[0])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_an_inactive_constraint_that_is_not_smooth_leaves_derivatives_alone() -> None:
    """The variable that bounds the norm is then not unique, but nobody declared it: both orders are as without."""
    wave = cp.sum(cp.nlp.sin(y)) + cp.sum_squares(y - a)
    value = rand(18, 2, 3)
    slopes, bends = [], []
    for constraints in ([], [cp.norm1(y) <= 100]):
        layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(wave), constraints), [a], y)
        given = value.clone().requires_grad_()
        (slope,) = torch.autograd.grad(layer(given), given, rand(19, 2, 3), create_graph=True)
        slopes.append(slope.detach())
        bends.append(torch.autograd.grad(slope, given, rand(20, 2, 3))[0])
        assert layer.solve(value).regularity.tolist() == [0, 0]
    torch.testing.assert_close(*slopes)
    torch.testing.assert_close(*bends)


def test_a_valley_of_declared_variables_is_one() -> None:
    """Next to an inactive norm."""
    valley = cp.Problem(cp.Minimize(cp.sum_squares(y[0] * y[1] - a[0])), [cp.norm1(y) <= 100])
    solution = ddn.DeclarativeLayer(valley, [a], y).solve(rand(18, 2, 3))
    assert solution.regularity.tolist() == [int(ddn.Regularity.SINGULAR_HESSIAN)] * 2


def test_symmetric_parameters_share_their_gradient() -> None:
    """Whichever triangle the expression reads."""
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum(cp.nlp.sin(y)) + cp.sum_squares(y - A[0]))), [A], y)
    matrix = rand(15, 3, 3)
    matrix = (matrix + matrix.T).requires_grad_()
    layer(matrix).sum().backward()
    assert bool(matrix.grad[0, 1:].abs().min() > 0)
    torch.testing.assert_close(matrix.grad, matrix.grad.T)


# ---------------------------------------------------------------- starting points, failures, errors


def test_starts_from_the_value_of_the_variable() -> None:
    s = cp.Variable()
    for start, expected in ((None, 1.0), (-0.5, -1.0), (2.0, 1.0)):
        s.value = start
        layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.square(cp.square(s) - r))), [r], s)
        torch.testing.assert_close(layer(torch.tensor(1.0, dtype=D)), torch.tensor(expected, dtype=D))


def test_starts_inside_bounds_and_domains() -> None:
    v = cp.Variable(3, bounds=[np.array([-np.inf, 2.0, 3.0]), np.array([-4.0, np.inf, 3.5])])
    node = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum(cp.nlp.sin(v - a)))), [a], v).node
    assert isinstance(node, NonconvexProblem)
    theta = node.theta([torch.zeros(1, 3, dtype=D)], torch.device("cpu"))
    start = node.start(theta, (), torch.zeros(1, 3, dtype=D))[0]
    assert -5.5 < start[0] < -4.5 and 2.5 < start[1] < 3.5 and 3.1 < start[2] < 3.4
    matrix = cp.Variable((3, 3), symmetric=True)  # log_det has no value at the first starting point
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Maximize(cp.log_det(matrix) - r * cp.trace(matrix @ matrix))), [r], matrix)
    torch.testing.assert_close(layer(torch.tensor(0.5, dtype=D)), torch.eye(3, dtype=D))
    theta = layer.node.theta([torch.ones(1, dtype=D)], torch.device("cpu"))
    assert layer.node.start(theta, (), torch.zeros(1, 6, dtype=D)).tolist() == [[1.0, 0.0, 1.0, 0.0, 0.0, 1.0]]


def test_only_the_failed_element_fails() -> None:
    s, floor = cp.Variable(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.power(s, 4) - s * s), [cp.square(s) == floor])
    layer = ddn.DeclarativeLayer(problem, [floor], s, on_failure="nan")
    value = torch.tensor([4.0, -1.0, torch.nan, 9.0], dtype=D, requires_grad=True)
    out = layer(value)
    torch.testing.assert_close(out[[0, 3]].abs(), torch.tensor([2.0, 3.0], dtype=D))
    assert bool(out[[1, 2]].isnan().all())
    out.nansum().backward()
    torch.testing.assert_close(value.grad, torch.tensor([0.25, 0.0, 0.0, 1 / 6], dtype=D) * torch.tensor([1, 0, 0, 1.0]))
    assert layer.solve(value.detach()).statuses[1:3] == [ddn.Status.INFEASIBLE, ddn.Status.INVALID_DATA]
    with pytest.raises(ddn.SolverError, match="INFEASIBLE at"):
        ddn.DeclarativeLayer(problem, [floor], s)(value)


def test_duals_of_failed_elements_do_no_harm() -> None:
    s, level = cp.Variable(2, name="s"), cp.Parameter()
    cone = cp.ExpCone(s[0] - level, s[1], cp.Constant(2.0))
    problem = cp.Problem(cp.Maximize(cp.sum(cp.nlp.tanh(s))), [cone, s <= 3, cp.square(s[0]) <= level])
    layer = ddn.DeclarativeLayer(problem, [level], [s, *cone.dual_variables], on_failure="nan")
    value = torch.tensor([2.0, -1.0], dtype=D, requires_grad=True)
    outputs = layer(value)
    assert all(bool(out[0].isfinite().all()) and bool(out[1].isnan().all()) for out in outputs)
    sum(out.nansum() for out in outputs).backward()
    assert value.grad is not None and value.grad[1] == 0 and bool(value.grad.isfinite().all())


def test_attributes_of_parameters_are_checked() -> None:
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(y)), [cp.sum_squares(y - 1) == r]), [r], y)
    assert layer.solve(torch.tensor([1.0, -1.0], dtype=D)).statuses == [ddn.Status.SOLVED, ddn.Status.INVALID_DATA]


@pytest.mark.parametrize("attribute", [{"symmetric": True}, {"diag": True}, {"sparsity": ((0, 1, 2), (0, 1, 2))}], ids=str)
def test_parameters_without_their_structure_are_refused(attribute: dict[str, object]) -> None:
    """As in convex problems; what finite differences leave outside is not there."""
    given = cp.Parameter((3, 3), **attribute)
    objective = cp.sum_squares(y - cp.diag(given))
    bent = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(objective), [cp.sum_squares(y) == 1]), [given], y, on_failure="nan")
    convex = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(objective)), [given], y, on_failure="nan")
    value = torch.diag_embed(torch.tensor([[3.0, 0.0, 4.0]] * 3, dtype=D))
    value[1, 0, 1], value[2, 0, 1] = 1e-6, 0.5
    value.requires_grad_()
    expected = [ddn.Status.SOLVED, ddn.Status.SOLVED, ddn.Status.INVALID_DATA]
    assert bent.solve(value).statuses == convex.solve(value).statuses == expected
    out = bent(value)
    out.nansum().backward()
    torch.testing.assert_close(out[:2], torch.tensor([[0.6, 0.0, 0.8]] * 2, dtype=D), atol=1e-9, rtol=0)
    assert value.grad is not None and value.grad[0].any() and not value.grad[2].any() and bool(value.grad.isfinite().all())


@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo])
def test_sparse_parameters(layout: torch.layout) -> None:
    """In a function, a bound, a norm and its dual: as if it were dense."""
    places = (0, 0, 1, 2), (0, 2, 1, 0)
    entries = torch.tensor([[1.0, 2.0, -1.5, 0.7], [0.3, 1.0, 1.0, -2.0]], dtype=D, requires_grad=True)
    results = []
    for given in (cp.Parameter((3, 3), sparsity=places), cp.Parameter((3, 3))):
        cone = cp.norm(given @ y - 1) <= 2
        problem = cp.Problem(cp.Minimize(cp.sum_squares(y - 2) + cp.sum(cp.nlp.sin(y))), [cone, y <= 2 + given[0]])
        value = torch.zeros(2, 9, dtype=D).index_copy(1, torch.tensor([0, 2, 4, 6]), entries).reshape(2, 3, 3)
        sparse = given.sparse_idx is not None and layout != torch.strided
        outputs = ddn.DeclarativeLayer(problem, [given], [y, cone.dual_variables[0]])(value.to_sparse() if sparse else value)
        results.append((*outputs, *torch.autograd.grad(sum(out.sum() for out in outputs), entries)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)
    assert bool(results[0][1].abs().min() > 1e-3)


def test_the_answer_is_checked_as_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y - a) + cp.prod(y)), [cp.norm1(y) <= 0.5])
    value = rand(17, 2, 3)
    monkeypatch.setattr("ddn_cvx.declare.smooth_form_atoms.pieces", lambda atom: [atom.args[0]])  # half of the pieces
    assert ddn.Status.SOLVED not in ddn.DeclarativeLayer(problem, [a], y).solve(value).statuses


ERRORS: dict[str, tuple[Callable[[], cp.Problem], str]] = {
    "integer": (lambda: cp.Problem(cp.Minimize(cp.nlp.sin(cp.Variable(integer=True, name="k")))), "'k' is integer"),
    "boolean": (lambda: cp.Problem(cp.Minimize(cp.nlp.sin(cp.Variable(boolean=True, name="k")))), "'k' is boolean"),
    "complex": (
        lambda: cp.Problem(cp.Maximize(cp.abs(cp.Variable(complex=True, name="k")))),
        "'k' is complex.*real and imag",
    ),
    "hermitian": (
        lambda: cp.Problem(cp.Maximize(cp.norm(cp.Variable((2, 2), hermitian=True, name="k"), "fro"))),
        "'k' is herm",
    ),
    "steps": (lambda: cp.Problem(cp.Minimize(cp.sum(cp.ceil(y)) * y[0])), r"atom ceil is a step.*cp\.nlp\.tanh"),
    "signs": (lambda: cp.Problem(cp.Minimize(cp.sign(y[0]) * y[0])), "atom sign is a step"),
    "support": (
        lambda: cp.Problem(cp.Maximize(cp.suppfunc(z, [cp.norm(z) <= 1])(y))),
        "SuppFuncAtom.*declare the maximisation as constraints",
    ),
    "indicator": (lambda: cp.Problem(cp.Maximize(cp.transforms.indicator([y >= 0]) * y[0])), "indicator"),
    "sets": (lambda: cp.Problem(cp.Minimize(cp.nlp.sin(y[0])), [cp.FiniteSet(y[0], [1, 2])]), "FiniteSet.*not supported"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_declared_is_named(name: str) -> None:
    make, message = ERRORS[name]
    with pytest.raises(ddn.DeclarationError, match=message):
        ddn.DeclarativeLayer(make())


def test_arguments_are_checked_as_for_convex_problems() -> None:
    problem = cp.Problem(cp.Minimize(cp.nlp.sin(y[0]) + cp.sum_squares(y - a)))
    with pytest.raises(ddn.DeclarationError, match="missing: a"):
        ddn.DeclarativeLayer(problem, [], y)
    with pytest.raises(ddn.DeclarationError, match=r"'stranger'.*neither"):
        ddn.DeclarativeLayer(problem, [a], cp.Variable(name="stranger"))


def test_apex_that_is_no_minimum_is_refused() -> None:
    """Two norms: with a wrong w the apex is stationary in the smooth form, and a solver may end there."""
    objective, _, parameter = CONVEX["norms"]
    layer = as_nonconvex(cp.Problem(cp.Minimize(objective)), [parameter], [x])
    value = torch.tensor([[-0.6137, 0.0462, -1.3683]], dtype=torch.float64)
    right = layer.solve(value)
    assert right.statuses == [ddn.Status.SOLVED] and float(right.value) < 1.6

    class Trapped(ddn.NonlinearInteriorPoint):
        """Ends in the apex, with multipliers that make it stationary."""

        def solve(self, program, theta, start, warm=None):
            return ddn.CompiledInteriorPoint().solve(program, theta, start, warm)

    assert layer.with_solver(Trapped()).solve(value).statuses == [ddn.Status.SADDLE_POINT]

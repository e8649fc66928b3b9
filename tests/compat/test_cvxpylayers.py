"""Old code runs after changing one import: answers and errors next to those of cvxpylayers, where it is installed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx.compat import CvxpyLayer

# numpy's complaint about cvxpylayers' own code.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SERIAL = {"n_jobs_forward": 1, "n_jobs_backward": 1}  # the pools of cvxpylayers stay open after an error
TIGHT = {"tol_feas": 1e-11, "tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11}
CLARABEL = {"solve_method": "Clarabel", **TIGHT}

Case = tuple[cp.Problem, list[cp.Parameter], list[cp.Variable], list[Tensor]]

CASES: dict[str, Callable[[], Case]] = {}


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    CASES[build.__name__] = build
    return build


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@case
def least_squares() -> Case:
    A, b, x = cp.Parameter((8, 4)), cp.Parameter(8), cp.Variable(4)
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + cp.sum_squares(x))), [A, b], [x], [rand(8, 4), rand(8)]


@case
def least_squares_batched() -> Case:
    problem, parameters, variables, _ = least_squares()
    return problem, parameters, variables, [rand(3, 8, 4), rand(3, 8)]


@case
def least_squares_shared() -> Case:
    problem, parameters, variables, _ = least_squares()
    return problem, parameters, variables, [rand(8, 4), rand(3, 8)]


@case
def several_right_hand_sides() -> Case:
    A, B, X = cp.Parameter((6, 3)), cp.Parameter((6, 2)), cp.Variable((3, 2))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ X - B) + 0.1 * cp.sum_squares(X)))
    return problem, [A, B], [X], [rand(2, 6, 3), rand(6, 2)]


@case
def logistic_regression() -> Case:
    X, weight, a = cp.Parameter((6, 2)), cp.Parameter(1, nonneg=True), cp.Variable((2, 1))
    labels = np.array([[1.0], [0.0], [1.0], [1.0], [0.0], [0.0]])
    scores = X @ a
    softplus = cp.log_sum_exp(cp.hstack([np.zeros((6, 1)), scores]), axis=1, keepdims=True)
    loss = cp.sum(softplus - cp.multiply(labels, scores))
    problem = cp.Problem(cp.Minimize(loss + weight * cp.sum_squares(a)))
    return problem, [X, weight], [a], [rand(6, 2), torch.tensor([0.3], dtype=torch.float64)]


@case
def entropy_maximisation() -> Case:
    x, A, b, F, g = cp.Variable(5), cp.Parameter((2, 5)), cp.Parameter(2), cp.Parameter((2, 5)), cp.Parameter(2)
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(x)) - 0.01 * cp.sum_squares(x)), [A @ x == b, F @ x <= g])
    inside = torch.tensor([0.2, 0.5, 0.4, 0.9, 0.3], dtype=torch.float64)
    A_value, F_value = rand(2, 5, seed=1), rand(2, 5, seed=2)
    slack = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return problem, [A, b, F, g], [x], [A_value, A_value @ inside, F_value, F_value @ inside + slack]


@case
def limited_multi_label() -> Case:
    x, y = cp.Parameter(4), cp.Variable(4)
    problem = cp.Problem(cp.Minimize(-x @ y - cp.sum(cp.entr(y)) - cp.sum(cp.entr(1 - y))), [cp.sum(y) == 2])
    return problem, [x], [y], [torch.tensor([[1.0, -1.0, -1.0, -1.0], [0.5, 2.0, -0.3, 0.1]], dtype=torch.float64)]


@case
def semidefinite() -> Case:
    C, X = cp.Parameter((3, 3), symmetric=True), cp.Variable((3, 3), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X)), [X >> 0, cp.trace(X) == 1])
    return problem, [C], [X], [torch.tensor([[2.0, 0.5, 0.1], [0.5, 3.0, 0.2], [0.1, 0.2, 1.5]], dtype=torch.float64)]


@case
def second_order_cone() -> Case:
    c, r, x = cp.Parameter(3), cp.Parameter(), cp.Variable(3)
    problem = cp.Problem(cp.Minimize(c @ x + 0.1 * cp.norm(x - 1)), [cp.norm(x) <= r, cp.sum(x) == 0.2])
    return problem, [c, r], [x], [rand(2, 3), torch.tensor(1.5, dtype=torch.float64)]


@case
def equality() -> Case:
    b, x = cp.Parameter(5), cp.Variable(5)
    return cp.Problem(cp.Minimize(cp.sum_squares(x)), [np.eye(5) @ x == b]), [b], [x], [rand(5)]


@case
def scalars() -> Case:
    p, w, x, y = cp.Parameter(), cp.Parameter(nonneg=True), cp.Variable(), cp.Variable((1, 1))
    problem = cp.Problem(cp.Minimize(cp.square(x - p) + w * cp.sum_squares(y - 1) + cp.abs(x)), [y[0, 0] <= x])
    return problem, [p, w], [x, y], [torch.tensor([0.4, 2.0], dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)]


@case
def duals() -> Case:
    c, x = cp.Parameter(3), cp.Variable(3)
    equal, above = cp.sum(x) == 1, x >= 0
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + c @ x), [equal, above])
    outputs = [equal.dual_variables[0], x, above.dual_variables[0]]
    return problem, [c], outputs, [torch.tensor([[0.3, 3.0, -1.0], [1.0, 1.2, 1.1]], dtype=torch.float64)]


@case
def geometric() -> Case:
    x, y, z = cp.Variable(pos=True), cp.Variable(pos=True), cp.Variable(pos=True)
    a, b, c = cp.Parameter(pos=True), cp.Parameter(pos=True), cp.Parameter()
    problem = cp.Problem(cp.Minimize(1 / (x * y * z)), [a * (x * y + x * z + y * z) <= b, x >= y**c])
    values = [[2.0, 1.5, 2.5], [1.0, 1.2, 0.8], [0.5, 0.6, 0.4]]
    return problem, [a, b, c], [x, y, z], [torch.tensor(v, dtype=torch.float64) for v in values]


def layer_of(name: str, kind: Any = CvxpyLayer, **options: Any) -> tuple[Any, list[Tensor]]:
    problem, parameters, variables, values = CASES[name]()
    return kind(problem, parameters, variables, gp=name == "geometric", **options), values


def outputs_and_gradients(layer: Any, values: list[Tensor], **options: Any) -> list[Tensor]:
    leaves = [v.clone().requires_grad_() for v in values]
    outputs = layer(*leaves, **options)
    assert isinstance(outputs, tuple)
    loss = sum((out * rand(*out.shape, seed=k)).sum() for k, out in enumerate(outputs))
    return [*(out.detach() for out in outputs), *torch.autograd.grad(loss, leaves)]


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_cvxpylayers(name: str) -> None:
    peer = pytest.importorskip("cvxpylayers.torch").CvxpyLayer
    ours = outputs_and_gradients(*layer_of(name))
    theirs = outputs_and_gradients(*layer_of(name, peer), solver_args={**SERIAL, **CLARABEL, "mode": "dense"})
    if name == "semidefinite":
        # cvxpylayers puts all of the gradient into the upper triangle.
        theirs[-1] = (theirs[-1] + theirs[-1].mT) / 2
    for our, their in zip(ours, theirs, strict=True):
        assert our.shape == their.shape
        # Theirs are good to five digits: a quadratic objective becomes a second-order cone there.
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    layer, values = layer_of(name)
    assert torch.autograd.gradcheck(layer, tuple(v.requires_grad_() for v in values), atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("name", ["least_squares", "least_squares_batched", "least_squares_shared"])
def test_closed_form_of_the_gradient(name: str) -> None:
    def ridge(A: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        factor = torch.linalg.cholesky(A.mT @ A + torch.eye(4))
        return (torch.cholesky_solve(A.mT @ b[..., None], factor)[..., 0],)

    layer, values = layer_of(name)
    for our, exact in zip(outputs_and_gradients(layer, values), outputs_and_gradients(ridge, values), strict=True):
        torch.testing.assert_close(our, exact, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("options", [{}, *({"solve_method": m, "eps": 1e-10} for m in ("SCS", "ECOS", "Clarabel"))], ids=str)
def test_closed_forms(options: dict[str, Any]) -> None:
    layer, (A, b) = layer_of("least_squares")
    (x,) = layer(A, b, solver_args=options)
    expected = np.linalg.solve((A.mT @ A).numpy() + np.eye(4), (A.mT @ b).numpy())
    np.testing.assert_allclose(x, expected, atol=1e-9)

    layer, (scores,) = layer_of("limited_multi_label")
    (y,) = layer(scores, solver_args=options)
    for row, answer in zip(scores.numpy(), y.numpy(), strict=True):
        shift = brentq(lambda nu, row=row: (1 / (1 + np.exp(-row - nu))).sum() - 2, -20, 20, xtol=1e-14)
        np.testing.assert_allclose(answer, 1 / (1 + np.exp(-row - shift)), atol=1e-8)


def test_semidefinite_closed_form() -> None:
    layer, (C,) = layer_of("semidefinite")
    least = np.linalg.eigh(C.numpy())[1][:, 0]
    np.testing.assert_allclose(layer(C)[0], np.outer(least, least), atol=1e-8)


def test_geometric_program_is_solved_as_by_cvxpy() -> None:
    problem, parameters, variables, values = geometric()
    outputs = CvxpyLayer(problem, parameters, variables, gp=True)(*values)
    for i in range(3):
        for parameter, value in zip(parameters, values, strict=True):
            parameter.value = float(value[i])
        problem.solve(cp.CLARABEL, gp=True, **TIGHT)
        for variable, out in zip(variables, outputs, strict=True):
            assert out.shape == (3,)
            assert float(out[i]) == pytest.approx(float(variable.value), abs=1e-6)


def test_products_of_parameters_are_more_than_cvxpylayers_takes() -> None:
    p, q, x = cp.Parameter(), cp.Parameter(), cp.Variable()
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.square(x - p * q))), [p, q], [x])
    torch.testing.assert_close(layer(torch.tensor(2.0), torch.tensor([3.0, -1.0]))[0], torch.tensor([6.0, -2.0]))


# ---------------------------------------------------------------- conventions of a call


def quadratic(**options: Any) -> CvxpyLayer:
    """The projection onto the nonnegative orthant."""
    p, x = cp.Parameter(3), cp.Variable(3)
    return CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), [p], [x], **options)


POINT = torch.tensor([1.0, -2.0, 3.0])
PROJECTED = torch.tensor([1.0, 0.0, 3.0])


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_a_batch_keeps_its_dimension(batch: int) -> None:
    points = rand(batch, 3).requires_grad_()
    (x,) = quadratic()(points)
    torch.testing.assert_close(x, points.clamp(min=0))
    x.sum().backward()
    torch.testing.assert_close(points.grad, (points > 0).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_the_outputs_is_that_of_the_inputs(dtype: torch.dtype) -> None:
    (x,) = quadratic()(POINT.to(dtype))
    torch.testing.assert_close(x, PROJECTED.to(dtype))


def test_no_gradient_where_none_is_asked_for() -> None:
    layer = quadratic()
    assert not layer(POINT)[0].requires_grad
    with torch.no_grad():
        assert not layer(POINT.clone().requires_grad_())[0].requires_grad
    assert layer(POINT.clone().requires_grad_())[0].requires_grad


def test_arguments_by_position_are_in_the_order_of_cvxpylayers() -> None:
    problem, parameters, variables, values = geometric()
    layer = CvxpyLayer(problem, tuple(parameters), tuple(variables), "CLARABEL", True, False, "SCIPY", {"eps": 1e-12})
    assert layer.layer.solver == ddn.Clarabel(tol_feas=1e-12, tol_gap_abs=1e-12, tol_gap_rel=1e-12)
    assert len(layer(*values)) == 3


def test_layers_are_copied_and_pickled() -> None:
    layer = quadratic(solver="SCS")
    layer(POINT, warm_start=True)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(copied(POINT)[0], PROJECTED)


def test_state_of_cvxpylayers_loads() -> None:
    model = torch.nn.Sequential(quadratic(), torch.nn.Linear(3, 1))
    state = model.state_dict()
    saved = {**state, "0.P": torch.zeros(2), "0.q": torch.zeros(2), "0.A": torch.zeros(2)}
    model.load_state_dict(saved)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**state, "0.B": torch.zeros(2)})


# ---------------------------------------------------------------- errors


@pytest.fixture(params=["ours", "cvxpylayers"])
def kind(request: pytest.FixtureRequest) -> Any:
    """This layer and, to show that an old ``pytest.raises(..., match=...)`` still holds, cvxpylayers' own."""
    return CvxpyLayer if request.param == "ours" else pytest.importorskip("cvxpylayers.torch").CvxpyLayer


def declare(kind: Any, objective: str, parameters: str, variables: str, gp: bool = False) -> Any:
    """A layer from expressions in the names below."""
    names: dict[str, Any] = {"x": cp.Variable(2), "y": cp.Variable(2), "p": cp.Parameter(2), "q": cp.Parameter(2), "cp": cp}
    goal, given, wanted = (eval(text, names) for text in (objective, parameters, variables))
    return kind(cp.Problem(cp.Minimize(goal)), given, wanted, gp=gp)


@pytest.mark.parametrize(
    "declaration, message",
    [
        (("cp.sum_squares(x - p - q)", "[p]", "[x]"), "must exactly match problem.parameters"),
        (("cp.sum_squares(x - p)", "[p, q]", "[x]"), "must exactly match problem.parameters"),
        (("cp.sum_squares(x - p)", "[p]", "[x, y]"), "must be a subset of problem.variables"),
        (("cp.sum_squares(x - p)", "{p}", "[x]"), "parameters must be provided as a list or tuple"),
        (("cp.sum_squares(x - p)", "[p]", "x"), "variables must be provided as a list or tuple"),
        (("cp.sum(cp.sqrt(x)) + cp.sum(p)", "[p]", "[x]"), "Problem must be DPP"),
        (("cp.sum(cp.multiply(p, cp.square(x)))", "[p]", "[x]"), "Problem must be DPP"),
        (("cp.sum(x - p)", "[p]", "[x]", True), "Problem must be DPP for geometric programming"),
    ],
    ids=str,
)
def test_errors_of_the_declaration(kind: Any, declaration: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        declare(kind, *declaration)


@pytest.mark.parametrize(
    "shapes, message",
    [
        ([(8, 4)], "A tensor must be provided for each CVXPY parameter.*received 1 tensors, expected 2"),
        ([(8, 4), (8,), (8,)], "A tensor must be provided for each CVXPY parameter.*received 3 tensors, expected 2"),
        ([(8, 4), (7,)], "Invalid parameter shape for parameter 1"),
        ([(4, 8), (8,)], "Invalid parameter shape for parameter 0"),
        ([(5, 8, 4), (5, 16)], "Invalid parameter shape for parameter 1"),
        ([(5, 8, 4), (5, 5, 8)], "Invalid parameter dimensionality for parameter 1"),
        ([(4,), (8,)], "Invalid parameter dimensionality for parameter 0"),
        ([(5, 8, 4), (3, 8)], "Inconsistent batch sizes"),
        ([(1, 8, 4), (3, 8)], "Inconsistent batch sizes"),
    ],
    ids=str,
)
def test_errors_of_a_call(kind: Any, shapes: list[tuple[int, ...]], message: str) -> None:
    layer, _ = layer_of("least_squares", kind)
    with pytest.raises(ValueError, match=message):
        layer(*(rand(*shape) for shape in shapes))


@pytest.mark.parametrize("infeasible", [True, False])
def test_errors_of_the_solver_are_those_of_diffcp(kind: Any, infeasible: bool) -> None:
    diffcp = pytest.importorskip("diffcp")
    x, p = cp.Variable(1), cp.Parameter(1)
    problem = cp.Problem(cp.Minimize(p @ x), [x >= 1, x <= -1] if infeasible else [x <= 1])
    layer = kind(problem, [p], [x])
    with pytest.raises(diffcp.SolverError):
        layer(torch.ones(1, dtype=torch.float64, requires_grad=True), solver_args=SERIAL)


def test_errors_of_the_solver_name_the_elements() -> None:
    x, p = cp.Variable(), cp.Parameter()
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.square(x)), [x >= p, x <= 1]), [p], [x])
    with pytest.raises(ddn.SolverError, match="INFEASIBLE at") as caught:
        layer(torch.tensor([0.0, 2.0, 0.5, 3.0]))
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert error.indices == ((1,), (3,))
        assert error.status == (ddn.Status.INFEASIBLE,) * 2
        assert str(error) == str(caught.value)
        assert isinstance(error, type(caught.value))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: quadratic(canon_backend="ABACUS"), "Unknown backend: ABACUS"),
        (lambda: quadratic()([1.0, 2.0, 3.0]), "Expected a torch.Tensor for parameter 0.*got list"),
        (lambda: quadratic()(None), "Expected a torch.Tensor for parameter 0.*got NoneType"),
        (lambda: quadratic()(POINT.long()), "floating-point dtype"),
        (lambda: CvxpyLayer("min x", [], []), "problem must be a cvxpy.Problem"),
    ],
)
def test_other_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

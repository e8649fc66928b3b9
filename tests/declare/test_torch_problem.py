"""Problems as torch functions: what may be declared, how inputs reach the functions, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx import DeclarationError, DeclarativeLayer, InputError, Status, TorchProblem

f64 = torch.float64


def distance(y: Tensor, x: Tensor) -> Tensor:
    return ((y - x) ** 2).sum()


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def on_sphere(y: Tensor, x: Tensor) -> Tensor:
    return (y * y).sum() - 1


def test_sphere_projection_is_normalisation() -> None:
    x = points(5, 3)
    layer = DeclarativeLayer(TorchProblem(3, distance, on_sphere, initial=lambda x: x))
    assert torch.allclose(layer(x), torch.nn.functional.normalize(x, dim=-1), atol=1e-12)


@pytest.mark.parametrize("variable", [3, (3,), torch.Size([3])])
def test_shapes_of_a_variable(variable: object) -> None:
    layer = DeclarativeLayer(TorchProblem(variable, distance))
    x = points(2, 3)
    assert torch.allclose(layer(x), x)


def test_matrix_and_scalar_variables() -> None:
    x = points(4, 2, 3)
    assert torch.allclose(DeclarativeLayer(TorchProblem((2, 3), distance))(x), x)
    assert torch.allclose(DeclarativeLayer(TorchProblem((), distance))(x[:, 0, 0]), x[:, 0, 0])


def test_several_variables_are_a_dict() -> None:
    problem = TorchProblem(
        {"a": (2,), "b": ()},
        lambda v, x: distance(v["a"], x) + (v["b"] - v["a"].sum()) ** 2,
        lower={"b": 0.5},
        parameters=[(2,)],
    )
    x = torch.tensor([[1.0, 2.0], [-3.0, 1.0]], dtype=f64)
    layer = DeclarativeLayer(problem)
    out = layer(x)
    # the second element: minimise |a - x|^2 + (1/2 - sum a)^2, whose solution moves both entries by -(sum - 1/2) / 3
    expected = torch.stack([x[0], x[1] + 2.5 / 3])
    assert set(out) == {"a", "b"} and out["b"].shape == (2,)
    assert torch.allclose(out["a"], expected) and torch.allclose(out["b"], torch.tensor([3.0, 0.5], dtype=f64))
    assert set(layer.solve(x).primal) == {"a", "b"}


def test_declared_inputs_broadcast_and_share() -> None:
    layer = DeclarativeLayer(TorchProblem(2, lambda y, x, c: c * distance(y, x) + (y**2).sum(), parameters=[(2,), ()]))
    x, c = points(4, 1, 2), torch.tensor([1.0, 2.0, 3.0], dtype=f64)
    assert torch.allclose(layer(x, c), x * (c / (1 + c)).unsqueeze(-1))
    shared = torch.tensor(2.0, dtype=f64, requires_grad=True)
    layer(x, shared).sum().backward()
    assert torch.allclose(shared.grad, (x / 9).sum())  # d/dc c/(1+c) = 1/(1+c)^2, summed over the batch


def test_inputs_without_declaration_have_the_batch_first() -> None:
    layer = DeclarativeLayer(TorchProblem(2, lambda y, x, c: c * distance(y, x) + (y**2).sum()))
    x, c = points(3, 2), torch.tensor([1.0, 2.0, 3.0], dtype=f64)
    assert torch.allclose(layer(x, c), x * (c / (1 + c)).unsqueeze(-1))
    assert torch.allclose(layer(c=c, x=x), layer(x, c))


def test_nested_inputs() -> None:
    problem = TorchProblem(2, lambda y, p, q: distance(y, p["u"] * p["v"][0] + q), parameters=[{"u": (2,), "v": [()]}, (2,)])
    u, v, q = points(3, 2), torch.tensor(2.0, dtype=f64), points(2, seed=1)
    layer = DeclarativeLayer(problem)
    assert torch.allclose(layer({"u": u, "v": [v]}, q), 2 * u + q)
    with pytest.raises(InputError, match="'p' must be nested as declared"):
        layer({"u": u}, q)


def test_named_inputs_reach_the_functions_that_name_them() -> None:
    problem = TorchProblem(
        2, lambda y, a: distance(y, a), equality=lambda y, b: y.sum() - b, parameters={"a": (2,), "b": ()}
    )
    layer = DeclarativeLayer(problem)
    a, b = points(3, 2), torch.tensor(1.0, dtype=f64)
    expected = a + (b - a.sum(-1, keepdim=True)) / 2
    assert torch.allclose(layer(b=b, a=a), expected) and torch.allclose(layer(a, b), expected)


def test_functions_of_a_batch() -> None:
    def cost(y: Tensor, x: Tensor) -> Tensor:
        return ((y - x) ** 2).flatten(1).sum(1)

    def rows(y: Tensor, x: Tensor) -> Tensor:
        return y.sum(-1) - 1

    x = points(3, 2, 2)
    batched = DeclarativeLayer(TorchProblem((2, 2), cost, rows, batched=True))
    single = DeclarativeLayer(TorchProblem((2, 2), distance, rows))
    assert torch.allclose(batched(x), single(x))
    assert torch.allclose(batched(x), x + (1 - x.sum(-1, keepdim=True)) / 2)


def test_constraints_may_be_lists_of_any_shape() -> None:
    problem = TorchProblem(
        4, distance, equality=lambda y, x: [y[0] - 1, {"b": y[1:3].reshape(1, 2)}], inequality=lambda y, x: (y[3],)
    )
    solution = DeclarativeLayer(problem).solve(torch.tensor([[5.0, 5.0, 5.0, 5.0]], dtype=f64))
    assert torch.allclose(solution.outputs[0], torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=f64), atol=1e-12)
    assert solution.dual[0][0].shape == (1, 3) and solution.dual[1][0].shape == (1, 1)
    assert torch.allclose(solution.dual[1][0], torch.tensor([[10.0]], dtype=f64))


def test_maximise() -> None:
    layer = DeclarativeLayer(TorchProblem(2, lambda y, x: 3 - distance(y, x), maximise=True))
    x = points(2, 2)
    assert torch.allclose(layer(x), x) and torch.allclose(layer.solve(x).value, torch.full((2,), 3.0, dtype=f64))


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (-0.5, 0.25),
        (torch.full((3,), -0.5), torch.full((3,), 0.25)),
        (lambda x: -0.5 + 0 * x, lambda x: 0.25),
        (-0.5, None),
    ],
)
def test_bounds(lower: object, upper: object) -> None:
    x = points(6, 3)
    layer = DeclarativeLayer(TorchProblem(3, distance, lower=lower, upper=upper))
    expected = x.clamp(-0.5, None if upper is None else 0.25)
    assert torch.allclose(layer(x), expected, atol=1e-12)


def test_bounds_that_depend_on_inputs_have_gradients() -> None:
    layer = DeclarativeLayer(TorchProblem(2, lambda y, x, b: distance(y, x), upper=lambda x, b: b, parameters=[(2,), ()]))
    b = torch.tensor(0.3, dtype=f64, requires_grad=True)
    layer(torch.tensor([[1.0, 0.0], [2.0, 3.0]], dtype=f64), b).sum().backward()
    assert torch.allclose(b.grad, torch.tensor(3.0, dtype=f64))


def test_the_initial_point_decides_between_local_minima() -> None:
    well = lambda y, x: ((y**2 - 1) ** 2).sum() + 0.01 * (x * y).sum()  # noqa: E731  # one line of mathematics
    x = torch.ones(2, 1, dtype=f64)
    right = DeclarativeLayer(TorchProblem(1, well, initial=0.8))(x)
    left = DeclarativeLayer(TorchProblem(1, well, initial=lambda x: -0.8 * x))(x)
    assert bool((right > 0.9).all()) and bool((left < -0.9).all())


def test_empty_batches_and_no_inputs() -> None:
    layer = DeclarativeLayer(TorchProblem(2, distance, inequality=lambda y, x: y.sum() - 1, parameters=[(2,)]))
    x = torch.zeros(0, 2, dtype=f64, requires_grad=True)
    out = layer(x)
    assert out.shape == (0, 2) and layer.solve(x).statuses == []
    out.sum().backward()
    assert x.grad.shape == (0, 2)
    fixed = DeclarativeLayer(TorchProblem(2, lambda y: ((y - 1) ** 2).sum()))
    assert torch.allclose(fixed(), torch.ones(2))


def test_dtype_and_leading_dimensions() -> None:
    layer = DeclarativeLayer(TorchProblem(2, distance, on_sphere, parameters=[(2,)], initial=lambda x: x))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = points(2, 3, 2).to(dtype)
        out = layer(x)
        assert out.dtype == dtype and out.shape == (2, 3, 2)
        assert torch.allclose(out.double(), torch.nn.functional.normalize(x.double(), dim=-1), atol=1e-2)


# ------------------------------------------------------------------ the user's own solver


def test_closed_form_solver_is_differentiated_without_looking_inside() -> None:
    def solve(x: Tensor) -> Tensor:
        assert not x.requires_grad and x.shape == (4, 3)
        return torch.nn.functional.normalize(x, dim=-1)

    x = points(4, 3).requires_grad_()
    layer = DeclarativeLayer(TorchProblem(3, distance, on_sphere, solve=solve))
    weights = points(4, 3, seed=1)
    (found,) = torch.autograd.grad((layer(x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((torch.nn.functional.normalize(x, dim=-1) * weights).sum(), x)
    assert torch.allclose(found, expected, atol=1e-12)


def test_multipliers_are_recovered_from_the_point() -> None:
    """Minimise |y - x|^2 over the simplex: multipliers from the closed-form solution alone."""

    def solve(x: Tensor) -> Tensor:
        ordered = x.sort(-1, descending=True).values
        count = torch.arange(1, x.shape[-1] + 1)
        shift = (ordered.cumsum(-1) - 1) / count
        last = (ordered > shift).sum(-1, keepdim=True) - 1
        return (x - shift.gather(-1, last)).clamp(min=0)

    x = torch.tensor([[0.9, 0.5, -1.0, 0.1], [0.2, 0.3, 0.1, 0.2]], dtype=f64)
    own = DeclarativeLayer(TorchProblem(4, distance, lambda y, x: y.sum() - 1, lower=0.0, solve=solve)).solve(x)
    ours = DeclarativeLayer(TorchProblem(4, distance, lambda y, x: y.sum() - 1, lower=0.0)).solve(x)
    for a, b in ((own.y, ours.y), (own.outputs[0], ours.outputs[0])):
        assert torch.allclose(a, b, atol=1e-9)
    assert own.statuses == [Status.SOLVED] * 2


def test_recovered_multipliers_have_the_right_signs() -> None:
    """y <= 1 and y >= 1 hold together: least squares alone would give one of them a negative multiplier."""
    node = TorchProblem(
        1, distance, inequality=lambda y, x: torch.cat([y - 1, 1 - y]), solve=torch.ones_like, parameters=[(1,)]
    )
    for x, expected in ((3.0, [4.0, 0.0]), (-1.0, [0.0, 4.0])):
        solution = DeclarativeLayer(node, polish_steps=0).solve(torch.tensor([x], dtype=f64))
        assert solution.statuses == [Status.SOLVED]
        assert solution.dual[1][0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("solve", "status"),
    [
        (lambda x: -torch.nn.functional.normalize(x, dim=-1), Status.SADDLE_POINT),  # the farthest point
        (lambda x: torch.nn.functional.normalize(x.roll(1, -1), dim=-1), Status.INACCURATE),
        (lambda x: x, Status.INACCURATE),  # not on the sphere
        (lambda x: torch.full_like(x, torch.nan), Status.NUMERICAL_ERROR),
    ],
)
def test_wrong_answers_are_found_out(solve: object, status: Status) -> None:
    x = torch.tensor([[3.0, 0.2], [0.1, -2.0]], dtype=f64)
    layer = DeclarativeLayer(TorchProblem(2, distance, on_sphere, solve=solve), polish_steps=0)
    solution = layer.solve(x)
    assert solution.statuses == [status] * 2 and torch.isnan(solution.outputs[0]).all()
    with pytest.raises(ddn.SolverError, match=status.name):
        layer(x)


def test_saddle_points_may_be_asked_for() -> None:
    problem = TorchProblem(
        2, lambda y, x: y[0] * y[1] + (x * y).sum(), solve=lambda x: -x.flip(-1), stationary=True, parameters=[(2,)]
    )
    x = points(3, 2).requires_grad_()
    layer = DeclarativeLayer(problem)
    assert torch.allclose(layer(x), -x.flip(-1))
    assert torch.allclose(torch.func.jacrev(layer)(x[0]), -torch.eye(2, dtype=f64).flip(0))


# ------------------------------------------------------------------ what is refused


class Old(torch.autograd.Function):
    """Written as before torch 2.0."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        return g * 2 * ctx.saved_tensors[0]


REFUSED = {
    "objective of the wrong shape": (lambda: TorchProblem(2, lambda y, x: y - x), "objective must return a scalar"),
    "objective of a batch": (
        lambda: TorchProblem(2, lambda y, x: distance(y, x), batched=True),
        r"objective must return shape \(2,\)",
    ),
    "equality of a batch": (
        lambda: TorchProblem(2, lambda y, x: ((y - x) ** 2).sum(-1), lambda y, x: y.sum(), batched=True),
        r"equality must return shape \(2, ...\)",
    ),
    "mixed inputs": (
        lambda: TorchProblem(2, lambda y, x: ((y - x.mean(0)) ** 2).sum(-1), batched=True),
        "objective mixes the elements of the batch",
    ),
    "mixed variables": (
        lambda: TorchProblem(2, lambda y, x: ((y - x) ** 2).sum(-1), lambda y, x: y - y.mean(0), batched=True),
        "equality mixes the elements of the batch",
    ),
    "old function": (lambda: TorchProblem(2, lambda y, x: Old.apply(y - x).sum(-1), batched=True), "needs setup_context"),
    "not a tensor": (lambda: TorchProblem(2, distance, lambda y, x: 0.0), "equality must return a torch.Tensor, got float"),
    "integers": (lambda: TorchProblem(2, distance, lambda y, x: y > 0), "equality must return real floating-point"),
    "constant": (lambda: TorchProblem(2, lambda y, x: x.sum()), "objective does not depend on the variable"),
    "detached": (lambda: TorchProblem(2, distance, lambda y, x: y.detach()), "equality does not depend"),
    "steps": (lambda: TorchProblem(2, lambda y, x: torch.floor(y - x).sum()), "through floor alone"),
    "item": (lambda: TorchProblem(2, lambda y, x: y.sum() * y[0].item()), "cannot be evaluated(?s:.*)batched=True"),
    "bound": (lambda: TorchProblem(2, distance, lower=torch.zeros(3)), r"lower must broadcast to shape \(2,\)"),
    "bound of a stranger": (lambda: TorchProblem({"a": (2,)}, lambda v, x: distance(v["a"], x), lower={"c": 0}), "got c"),
    "solve": (lambda: TorchProblem(2, distance, solve=lambda x: x[:, 0]), r"solve must return shape \(2, 2\), got \(2,\)"),
    "another name": (
        lambda: TorchProblem(2, lambda y, a: distance(y, a), lambda y, b, c=1: y.sum() - b, parameters={"a": (2,)}),
        "takes 'b', and the inputs are a; name the same in parameters=",
    ),
    "solve of some": (
        lambda: TorchProblem({"a": (2,), "b": (2,)}, lambda v, x: distance(v["a"], v["b"]), solve=lambda x: {"a": x}),
        "solve must name the variables a, b; got a",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_the_first_call(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(DeclarationError, match=message):
        DeclarativeLayer(make())(points(2, 2))


DECLARATIONS = {
    "objective": (lambda: TorchProblem(2, 3.0), "objective must be callable, got float"),
    "equality": (lambda: TorchProblem(2, distance, equality=1), "equality must be callable"),
    "variable": (lambda: TorchProblem("y", distance), "must have a shape"),
    "empty variable": (lambda: TorchProblem((0,), distance), "at least one entry"),
    "single parameter": (lambda: TorchProblem(2, distance, parameters=(2,)), "A single input is"),
    "parameter": (lambda: TorchProblem(2, distance, parameters=["x"]), "'x' must be a shape"),
}


@pytest.mark.parametrize("case", DECLARATIONS)
def test_refused_at_once(case: str) -> None:
    make, message = DECLARATIONS[case]
    with pytest.raises(DeclarationError, match=message):
        make()


INPUTS = {
    "count": (lambda layer: layer(points(2)), r"Expected 2 parameters \(x, c\), got 1; missing: c"),
    "too many": (lambda layer: layer(*[points(2)] * 3), "Expected 2 parameters"),
    "name": (lambda layer: layer(points(2), d=points(1)), "Unknown parameter 'd'"),
    "twice": (lambda layer: layer(points(2), points(1)[0], x=points(2)), "given twice"),
    "shape": (lambda layer: layer(points(3), points(1)[0]), r"'x' must have shape \(\*batch, 2\), got \(3,\)"),
    "number": (lambda layer: layer(points(2), 1.0), "'c' must be a torch.Tensor, got float"),
    "integer": (lambda layer: layer(points(2), torch.tensor(1)), "floating-point dtype"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_bad_inputs(case: str) -> None:
    call, message = INPUTS[case]
    problem = TorchProblem(2, lambda y, x, c: c * distance(y, x) + (y**2).sum(), parameters=[(2,), ()])
    with pytest.raises(InputError, match=message):
        call(DeclarativeLayer(problem))


def test_inputs_need_a_batch_dimension_unless_declared() -> None:
    with pytest.raises(InputError, match="dimension 0 is the batch"):
        DeclarativeLayer(TorchProblem(2, distance))(torch.tensor(1.0))


def test_arguments_of_convex_problems_are_refused() -> None:
    problem = TorchProblem(2, distance)
    for options in ({"parameters": []}, {"variables": []}, {"gp": True}):
        with pytest.raises(DeclarationError, match="declares its own"):
            DeclarativeLayer(problem, **options)
    for options, message in (
        ({"solver": ddn.Clarabel()}, "NonlinearSolver"),
        ({"solver": "newtn"}, "did you mean 'newton'"),
        ({"solver": "newton", "solver_options": {"max_iteration": 3}}, "did you mean 'max_iterations'"),
        ({"solver": ddn.NonlinearInteriorPoint(), "solver_options": {"barrier": 3}}, "belong into the solver object"),
    ):
        with pytest.raises(InputError, match=message):
            DeclarativeLayer(problem, **options)
    assert torch.allclose(DeclarativeLayer(problem, solver="Newton")(points(1, 2)), points(1, 2))
    assert torch.allclose(DeclarativeLayer(problem).with_solver("lbfgs")(points(1, 2)), points(1, 2))
    with pytest.raises(DeclarationError, match=r"'newton' cannot take this problem.*without constraints"):
        DeclarativeLayer(TorchProblem(2, distance, on_sphere), solver="newton")(points(1, 2))
    with pytest.raises(DeclarationError, match="DiffcpAdjoint"):
        DeclarativeLayer(problem, adjoint=ddn.DiffcpAdjoint())(points(1, 2))


def test_functions_of_a_batch_without_inputs() -> None:
    """A layer without inputs is a batch of one, whatever else its functions refer to."""
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    held = TorchProblem(2, lambda y: ((y - 3) ** 2).sum(-1), upper=lambda: w[None], parameters=[], batched=True)
    found = DeclarativeLayer(held)()
    found.sum().backward()
    assert (
        found.tolist() == pytest.approx([1.0, 2.0]) and w.grad is not None and w.grad.tolist() == pytest.approx([1.0, 1.0])
    )
    plain = TorchProblem(
        2, lambda y: (y**4 - 2 * y**2).sum(-1), initial=lambda: -torch.ones(1, 2), parameters=[], batched=True
    )
    assert DeclarativeLayer(plain)().tolist() == pytest.approx([-1.0, -1.0])
    root = ddn.Root(2, lambda y: y**2 - w, initial=lambda: -torch.ones(1, 2), parameters=[], batched=True)
    assert DeclarativeLayer(root)().tolist() == pytest.approx([-1.0, -(2.0**0.5)])


# ------------------------------------------------------------------ least squares


def test_the_least_squares_method_by_name() -> None:
    """It takes the residual of the problem; ``LPGD``, whose perturbed objective is no sum of losses, goes elsewhere."""
    fit = TorchProblem(2, residual=lambda y, x: torch.cat((y - x, 0.5 * y.prod()[None])), parameters=[(2,)])
    x = points(1, 2)[0]
    y = DeclarativeLayer(fit)(x)
    named = DeclarativeLayer(fit, solver="least_squares", solver_options={"max_iterations": 50}, adjoint=ddn.LPGD(1e-5))
    torch.testing.assert_close(named(x), y, rtol=1e-9, atol=1e-9)
    exact, near = (torch.func.jacrev(layer)(x) for layer in (DeclarativeLayer(fit), named))
    torch.testing.assert_close(near, exact, rtol=1e-3, atol=1e-4)
    with pytest.raises(DeclarationError, match=r"'least_squares' cannot take this problem.*sum of losses of residuals"):
        DeclarativeLayer(TorchProblem(2, distance), solver="least_squares")(points(1, 2))


def test_residuals_are_a_least_squares_problem() -> None:
    """Fit ``a exp(-b t)``; the derivative with respect to the data is that of the same objective written out."""
    t = torch.linspace(0, 2, 7, dtype=f64)

    def residual(v: dict[str, Tensor], data: Tensor) -> Tensor:
        return v["a"] * torch.exp(-v["b"] * t) - data

    shapes = {"a": (), "b": ()}
    fit = DeclarativeLayer(TorchProblem(shapes, residual=residual, initial=1.0, parameters=[(7,)]))
    same = DeclarativeLayer(
        TorchProblem(shapes, lambda v, data: 0.5 * residual(v, data).square().sum(), initial=1.0, parameters=[(7,)])
    )
    data = (2 * torch.exp(-0.7 * t) + 0.05 * points(4, 7)).requires_grad_()
    program = fit.node.program(fit.node.theta([data.detach()], data.device), fit.node.arguments.match([data], {})[2])
    assert "LeastSquares" in ddn.NonlinearAuto().explain(program)
    one, other = fit(data), same(data)
    assert (one["a"] - 2).abs().max() < 0.2 and torch.allclose(fit.solve(data).value, same.solve(data).value)
    for key in shapes:
        assert torch.allclose(one[key], other[key])
        gradients = [torch.autograd.grad(out[key].sum(), data, retain_graph=True)[0] for out in (one, other)]
        assert torch.allclose(*gradients, atol=1e-10)


def test_robust_residuals_ignore_outliers() -> None:
    x = torch.tensor([[1.0, 1.1, 0.9, 50.0], [0.0, 0.1, -0.1, 0.0]], dtype=f64)
    mean, welsch = (
        DeclarativeLayer(TorchProblem((), residual=lambda y, x: y - x, loss=loss, initial=lambda x: x.median()))
        for loss in (None, ddn.RobustLoss("welsch", width=1.0))
    )
    assert torch.allclose(mean(x), x.mean(-1))
    assert torch.allclose(welsch(x), torch.tensor([1.0, 0.0], dtype=f64), atol=1e-6)
    influence = torch.func.jacrev(lambda row: welsch(row.unsqueeze(0)).squeeze(0))(x[0])
    assert abs(float(influence[3])) < 1e-12 and influence[:3].sum() == pytest.approx(1.0)


def test_what_residuals_exclude() -> None:
    residual = torch.sub
    for options, message in (
        ({}, "either an objective or a residual"),
        ({"objective": distance, "residual": residual}, "either an objective or a residual"),
        ({"objective": distance, "loss": ddn.RobustLoss()}, "loss is for residuals"),
        ({"residual": residual, "maximise": True}, "drop maximise"),
    ):
        with pytest.raises(DeclarationError, match=message):
            TorchProblem(2, **options)


def test_functions_are_evaluated_inside_their_domain() -> None:
    """log det needs a positive definite matrix; the start has one, and zero has not."""

    def cost(Y: Tensor, S: Tensor) -> Tensor:
        return (Y * S).sum() - 2 * torch.linalg.cholesky(Y).diagonal().log().sum()

    def inverse(S: Tensor) -> Tensor:
        return torch.cholesky_inverse(torch.linalg.cholesky(S))

    node = TorchProblem(
        (2, 2), cost, lambda Y, S: Y[0, 1] - Y[1, 0], initial=torch.eye(2), solve=inverse, parameters=[(2, 2)]
    )
    S = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=f64, requires_grad=True)
    layer = DeclarativeLayer(node)
    symmetric = lambda S: layer(S + S.T)  # noqa: E731  # one line of mathematics
    assert torch.allclose(layer(S), inverse(S))
    found = torch.autograd.functional.jacobian(symmetric, S / 2)
    assert torch.allclose(found, torch.autograd.functional.jacobian(lambda S: inverse(S + S.T), S / 2), atol=1e-9)

"""Fixed points and roots as layers: closed forms, derivatives of every order and mode, weights, failures."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import ddn_cvx as ddn
import ddn_cvx.program.root as root_program
from ddn_cvx import DeclarationError, DeclarativeLayer, FixedPoint, InputError, Regularity, Root, Status
from ddn_cvx.testing import check_layer

f64 = torch.float64
SOLVERS = ["auto", "anderson", "broyden", "newton_krylov"]


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def contraction(n: int, norm: float = 0.8) -> Tensor:
    W = points(n, n, seed=7)
    return norm * W / torch.linalg.matrix_norm(W, 2)


@pytest.fixture(params=["matrices", "products"])
def linear_algebra(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "products":
        monkeypatch.setattr(root_program, "DENSE_LIMIT", 0)
    return request.param


# ------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("batch", [(), (1,), (7,), (2, 3)])
def test_affine_maps(solver: str, batch: tuple[int, ...], linear_algebra: str) -> None:
    A = contraction(5)
    layer = DeclarativeLayer(FixedPoint(5, lambda y, b: A @ y + b, parameters=[(5,)]), solver=solver)
    b = points(*batch, 5).requires_grad_()
    y = layer(b)
    inverse = torch.linalg.inv(torch.eye(5, dtype=f64) - A)
    assert torch.allclose(y, b @ inverse.mT, atol=1e-8)
    (slope,) = torch.autograd.grad(y.sum(), b)
    assert torch.allclose(slope, inverse.sum(0).expand_as(b), atol=1e-8)


def test_square_roots_by_newton() -> None:
    x = torch.tensor([4.0, 9.0, 1e-4, 1e6], dtype=f64, requires_grad=True)
    layer = DeclarativeLayer(Root((), lambda y, x: y * y - x, initial=1.0))
    y = layer(x)
    assert torch.allclose(y, x.sqrt(), rtol=1e-12)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(slope, 0.5 / x.sqrt(), rtol=1e-10)


@pytest.mark.parametrize("solver", ["auto", "broyden"])
def test_units_of_the_equations_do_not_matter(solver: str) -> None:
    """One equation in micrometres, one in kilometres; small residuals of the first are no solution."""
    scale = torch.tensor([1e-9, 1e9], dtype=f64)
    layer = DeclarativeLayer(Root(2, lambda y, x: scale * (y**3 - x), initial=1.0), solver=solver)
    x = torch.tensor([[8.0, 27.0], [2.0, 3.0]], dtype=f64)
    assert torch.allclose(layer(x), x ** (1 / 3), rtol=1e-9)


def test_keplers_equation() -> None:
    """E - e sin E = M; dE/dM = 1 / (1 - e cos E), dE/de = sin E / (1 - e cos E)."""
    M, e = torch.linspace(0.1, 6.0, 12, dtype=f64), torch.linspace(0.0, 0.95, 12, dtype=f64)
    M.requires_grad_(), e.requires_grad_()
    layer = DeclarativeLayer(Root((), lambda E, M, e: E - e * torch.sin(E) - M, initial=lambda M, e: M))
    E = layer(M, e)
    assert torch.allclose(E - e * E.sin(), M, atol=1e-12)
    dM, de = torch.autograd.grad(E.sum(), (M, e))
    assert torch.allclose(dM, 1 / (1 - e * E.cos())) and torch.allclose(de, E.sin() / (1 - e * E.cos()))


def test_several_unknowns_and_equations_in_any_shape() -> None:
    """The intersection of a line with a circle, with its unknowns by name."""
    layer = DeclarativeLayer(
        Root(
            {"u": (), "v": (1,)},
            lambda y, r: {"circle": y["u"] ** 2 + y["v"][0] ** 2 - r**2, "line": [y["u"] - y["v"]]},
            initial={"u": 1.0, "v": 2.0},
        )
    )
    r = torch.tensor([1.0, 3.0], dtype=f64)
    out = layer(r)
    assert torch.allclose(out["u"], r / 2**0.5) and torch.allclose(out["v"], (r / 2**0.5).unsqueeze(-1))
    assert set(layer.solve(r).primal) == {"u", "v"}


# ------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("solver", SOLVERS)
def test_derivatives_of_every_mode(solver: str, linear_algebra: str) -> None:
    W = contraction(3, 0.9).requires_grad_()
    layer = DeclarativeLayer(FixedPoint(3, lambda y, x, c: torch.tanh(W @ y + x) * c, parameters=[(3,), ()]), solver=solver)
    check_layer(layer, points(4, 3), torch.tensor(0.8, dtype=f64))
    x, c = points(2, 3), torch.tensor(0.7, dtype=f64)
    reverse, forward = torch.func.jacrev(layer, (0, 1))(x, c), torch.func.jacfwd(layer, (0, 1))(x, c)
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(reverse, forward, strict=True))
    whole = layer(x.expand(4, 2, 3), c)
    assert torch.allclose(torch.vmap(layer, (0, None))(x.expand(4, 2, 3), c), whole, atol=1e-8)
    loss = lambda x: layer(x, c).sin().sum()  # noqa: E731  # one line of mathematics
    H = torch.func.hessian(loss)(x)
    assert torch.allclose(H, torch.autograd.functional.hessian(loss, x), atol=1e-7)
    per_sample = torch.func.vmap(torch.func.grad(lambda x: layer(x, c).sin().sum()))(x)
    assert torch.allclose(per_sample, torch.func.grad(loss)(x), atol=1e-8)


@pytest.mark.parametrize("order", ["matrices", "products"])
def test_roots_have_exact_derivatives(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if order == "products":
        monkeypatch.setattr(root_program, "DENSE_LIMIT", 0)

    def equations(y: Tensor, x: Tensor) -> Tensor:
        return torch.stack([y[0] ** 3 + y[1] - x[0], y[1] ** 3 - y[0] + x[1]])

    check_layer(DeclarativeLayer(Root(2, equations, initial=0.5)), points(3, 2))


class Cell(nn.Module):
    """One layer of a deep equilibrium model on ``(B, n)``."""

    def __init__(self, n: int, dtype: torch.dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.inner = nn.Linear(n, n, bias=False, dtype=dtype)
        self.outer = nn.Linear(n, n, dtype=dtype)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=dtype) / n)
            self.inner.weight.mul_(0.8 / torch.linalg.matrix_norm(self.inner.weight, 2))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(y) + self.outer(x))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("n", [6, 150])
def test_deep_equilibrium_models_match_the_unrolled_network(n: int, batched: bool) -> None:
    cell = Cell(n, f64)
    layer = DeclarativeLayer(FixedPoint(n, cell, batched=batched))
    assert {id(p) for p in layer.parameters()} == {id(p) for p in cell.parameters()}
    x = points(4, n).requires_grad_()
    weights = (x, *cell.parameters())
    found = torch.autograd.grad(layer(x).square().sum(), weights)
    y = torch.zeros_like(x)
    for _ in range(150):
        y = cell(y, x)
    expected = torch.autograd.grad(y.square().sum(), weights)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)


def test_single_precision_throughout() -> None:
    cell = Cell(40, torch.float32)
    layer = DeclarativeLayer(FixedPoint(40, cell, dtype=torch.float32, batched=True))
    x = points(5, 40).float().requires_grad_()
    solution = layer.solve(x)
    assert solution.statuses == [Status.SOLVED] * 5 and solution.outputs[0].dtype == torch.float32
    found = torch.autograd.grad(layer(x).square().sum(), (x, cell.inner.weight))
    precise = copy.deepcopy(cell).double()
    expected_layer = DeclarativeLayer(FixedPoint(40, precise, batched=True))
    wide = x.detach().double().requires_grad_()
    expected = torch.autograd.grad(expected_layer(wide).square().sum(), (wide, precise.inner.weight))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-3, atol=1e-4)


def test_memory_does_not_depend_on_iterations() -> None:
    """What autograd keeps for the backward pass, in tensors: the same for a slow and a fast contraction."""

    def kept(norm: float) -> tuple[int, int]:
        A = contraction(200, norm).requires_grad_()
        layer = DeclarativeLayer(FixedPoint(200, lambda y, b: A @ y + b), solver=ddn.Anderson(memory=1))
        layer(points(2, 200))  # the function is looked at once
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            layer(points(2, 200).requires_grad_())
        return sum(sizes), int(layer.solve(points(2, 200)).iterations.max())

    (fast, few), (slow, many) = kept(0.1), kept(0.9)
    assert many > 2 * few and fast == slow


def test_layers_inside_maps_and_maps_inside_problems() -> None:
    inner = DeclarativeLayer(ddn.TorchProblem(2, lambda y, x: ((y - x) ** 2).sum() + 0.1 * (y**4).sum(), parameters=[(2,)]))
    x = points(2, 2).requires_grad_()
    layers = [DeclarativeLayer(FixedPoint(2, lambda y, x: 0.5 * inner(y + x), batched=batched)) for batched in (False, True)]
    assert torch.allclose(layers[0](x), layers[1](x))
    for layer in layers:
        torch.autograd.gradcheck(layer, x)
    equilibrium = DeclarativeLayer(FixedPoint(2, lambda y, x: 0.5 * torch.tanh(y) + x, parameters=[(2,)]))
    fitted = DeclarativeLayer(ddn.TorchProblem(2, lambda y, x: ((equilibrium(y) - x) ** 2).sum()))
    y = fitted(x)
    assert torch.allclose(y, x - 0.5 * torch.tanh(x), atol=1e-8)  # the input whose equilibrium is x
    torch.autograd.gradcheck(fitted, x)


# ------------------------------------------------------------------ batches


def test_empty_batches_and_no_inputs() -> None:
    layer = DeclarativeLayer(FixedPoint(2, lambda y, x: 0.5 * y + x, parameters=[(2,)]))
    x = torch.zeros(0, 2, dtype=f64, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert out.shape == (0, 2) and x.grad.shape == (0, 2) and layer.solve(x).statuses == []
    w = torch.tensor(2.0, dtype=f64, requires_grad=True)
    fixed = DeclarativeLayer(FixedPoint(2, lambda y: 0.5 * y + w))
    fixed().sum().backward()
    assert torch.allclose(fixed(), torch.full((2,), 4.0, dtype=f64)) and torch.allclose(w.grad, torch.tensor(4.0, dtype=f64))
    assert [id(p) for p in fixed.parameters()] == [id(w)]


def test_elements_do_not_depend_on_their_batch(linear_algebra: str) -> None:
    W = contraction(3, 0.95)
    layer = DeclarativeLayer(FixedPoint(3, lambda y, x: torch.tanh(W @ y) * x[0] + x), on_failure="nan")
    x = torch.cat([points(6, 3), torch.full((1, 3), torch.nan, dtype=f64), 50 * points(3, 3)])
    whole = layer(x)
    for i in range(len(x)):
        assert torch.allclose(layer(x[i : i + 1])[0], whole[i], rtol=1e-9, atol=1e-9, equal_nan=True)


def test_copies_and_pickles() -> None:
    layer = DeclarativeLayer(FixedPoint(6, Cell(6, f64)))
    x = points(2, 6)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x)) and torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


def test_inference_mode() -> None:
    layer = DeclarativeLayer(Root((), lambda y, x: y * y - x, initial=1.0))
    with torch.inference_mode():
        assert torch.allclose(layer(torch.tensor([4.0])), torch.tensor([2.0]))


# ------------------------------------------------------------------ never silently wrong


def test_failures_have_a_status_and_leave_the_others_alone() -> None:
    layer = DeclarativeLayer(Root((), lambda y, x: y * y - x, initial=1.0), on_failure="nan")
    x = torch.tensor([4.0, -1.0, torch.nan, 9.0], dtype=f64, requires_grad=True)
    assert layer.solve(x).statuses == [Status.SOLVED, Status.INFEASIBLE, Status.INVALID_DATA, Status.SOLVED]
    y = layer(x)
    assert torch.allclose(y, torch.tensor([2.0, torch.nan, torch.nan, 3.0], dtype=f64), equal_nan=True)
    y[[0, 3]].sum().backward()
    assert torch.allclose(x.grad, torch.tensor([0.25, 0.0, 0.0, 1 / 6], dtype=f64))
    with pytest.raises(ddn.SolverError, match=r"INFEASIBLE at \(1,\)"):
        layer.on_failure = "raise"
        layer(x)


@pytest.mark.parametrize("solver", ["anderson", "broyden", "auto"])
@pytest.mark.parametrize(
    "map",
    [
        lambda y, x: y + x,  # a translation has no fixed point
        lambda y, x: y * y + x * x + 1,  # neither has y^2 + 2
        lambda y, x: torch.log(-y.abs() - x.abs()),  # NaN everywhere
        lambda y, x: torch.exp(y) + x,
    ],
)
def test_maps_without_fixed_point(map: object, solver: str) -> None:
    layer = DeclarativeLayer(FixedPoint(1, map), solver=solver)
    solution = layer.solve(torch.ones(2, 1, dtype=f64))
    assert all(s != Status.SOLVED for s in solution.statuses) and solution.outputs[0].isnan().all()


def test_small_residuals_in_small_units_are_no_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_program, "DENSE_LIMIT", 0)
    node = Root(2, lambda y, x: 1e-9 * (y**3 - x), initial=1.0)
    x = torch.full((2, 2), 8.0, dtype=f64)
    rough = DeclarativeLayer(node, solver=ddn.RootNewton(max_iterations=1)).solve(x)
    assert rough.statuses == [Status.ITERATION_LIMIT] * 2
    assert torch.allclose(DeclarativeLayer(node)(x), torch.full_like(x, 2.0), rtol=1e-8)


def test_a_small_drift_is_no_fixed_point() -> None:
    solution = DeclarativeLayer(FixedPoint(1, lambda y, x: y + x)).solve(torch.full((1, 1), 1e-9, dtype=f64))
    assert solution.statuses != [Status.SOLVED]


def test_expansions_are_solved_by_newton() -> None:
    """y = -3 y + x repels the plain iteration."""
    layer = DeclarativeLayer(FixedPoint(2, lambda y, x: -3 * y + 0.1 * torch.sin(y) + x))
    x = points(3, 2)
    y = layer(x)
    assert torch.allclose(-3 * y + 0.1 * y.sin() + x, y, atol=1e-10)


def test_singular_jacobians_are_flagged(linear_algebra: str) -> None:
    """The first unknown keeps its value whatever it is: y = y, and y = y^2 / 2 + x."""
    layer = DeclarativeLayer(FixedPoint(2, lambda y, x: torch.cat([y[:1], 0.5 * y[1:] ** 2 + x])), solver="anderson")
    x = torch.full((2, 1), 0.1, dtype=f64, requires_grad=True)
    solution = layer.solve(x)
    assert solution.regularities == [Regularity.SINGULAR_JACOBIAN] * 2
    expected = 1 / (1 - 0.2) ** 0.5  # y = 1 - sqrt(1 - 2 x)
    (slope,) = torch.autograd.grad(layer(x)[:, 1].sum(), x)
    assert torch.allclose(slope, torch.full_like(x, expected), atol=1e-8)
    if linear_algebra == "matrices":
        (slope,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)  # the minimum-norm derivative
        assert torch.allclose(slope, torch.full_like(x, expected))
        with pytest.raises(ddn.DifferentiationError, match="singular"):
            slope.sum().backward()


def test_a_backward_system_without_solution_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_program, "DENSE_LIMIT", 0)
    layer = DeclarativeLayer(FixedPoint(2, lambda y, x: torch.cat([y[:1] + 0 * x, 0.5 * y[1:] + x])), solver="anderson")
    x = torch.ones(1, 1, dtype=f64, requires_grad=True)
    with pytest.raises(ddn.DifferentiationError, match="could not be solved for 1 batch element"):
        layer(x)[:, 0].sum().backward()


def test_double_roots_are_flagged() -> None:
    layer = DeclarativeLayer(Root((), lambda y, x: (y - 1) ** 2 * x, initial=3.0), on_failure="nan")
    solution = layer.solve(torch.ones(1, dtype=f64))
    solved = solution.statuses == [Status.SOLVED]
    assert not solved or solution.regularities == [Regularity.SINGULAR_JACOBIAN]


class Hidden:
    """Holds a tensor where it cannot be found without running the code."""

    def __getattr__(self, name: str) -> Tensor:
        return torch.ones(2, dtype=f64, requires_grad=True)


REFUSED = {
    "map of the wrong shape": (lambda: FixedPoint(2, lambda y, x: y.sum()), r"map must return shape \(2,\)"),
    "map of another name": (lambda: FixedPoint({"a": (2,)}, lambda v, x: {"b": v["a"]}), "variables a; got b"),
    "too few equations": (lambda: Root(2, lambda y, x: y[0] - x[0]), "as many equations as there are unknowns, 2, got 1"),
    "constant": (lambda: Root(2, lambda y, x: x), "function does not depend on the variable"),
    "not a tensor": (lambda: Root(1, lambda y, x: 0.0), "function must return a torch.Tensor, got float"),
    "item": (lambda: FixedPoint(2, lambda y, x: y * y[0].item()), "cannot be evaluated(?s:.*)batched=True"),
    "mixes": (lambda: FixedPoint(2, lambda y, x: 0.1 * y.mean(0) + x, batched=True), "mixes the elements of the batch"),
    "hidden": (lambda: FixedPoint(2, lambda y, x: 0.1 * y * Hidden().w + x), "requires grad and was not found"),
    "initial": (lambda: Root(2, lambda y, x: y - x, initial=torch.zeros(3)), r"initial must broadcast to shape \(2,\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_the_first_call(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(DeclarationError, match=message):
        DeclarativeLayer(make())(points(2, 2))


def test_refused_at_once() -> None:
    with pytest.raises(DeclarationError, match="map must be callable, got float"):
        FixedPoint(2, 3.0)
    with pytest.raises(DeclarationError, match="dtype must be"):
        FixedPoint(2, lambda y: y, dtype=torch.bfloat16)
    node = FixedPoint(2, lambda y, x: 0.5 * y + x)
    with pytest.raises(DeclarationError, match="A FixedPoint declares its own parameters"):
        DeclarativeLayer(node, [])
    with pytest.raises(InputError, match="did you mean 'anderson'"):
        DeclarativeLayer(node, solver="andersen")
    with pytest.raises(InputError, match="no option 'memry'"):
        DeclarativeLayer(node, solver="anderson", solver_options={"memry": 3})
    with pytest.raises(InputError, match="RootSolver object"):
        DeclarativeLayer(node, solver=ddn.NonlinearInteriorPoint())
    with pytest.raises(DeclarationError, match="use adjoint=Implicit"):
        DeclarativeLayer(node, adjoint=ddn.LPGD())(points(1, 2))
    with pytest.raises(DeclarationError, match="it iterates a map"):
        DeclarativeLayer(Root(2, lambda y, x: y - x), solver="anderson")(points(1, 2))


def test_large_jacobians_are_solved_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddn_cvx.adjoint.root._KRYLOV_NUMBERS", 600)
    A = contraction(100, 0.5)
    J = torch.func.jacrev(DeclarativeLayer(FixedPoint(100, lambda y, b: A @ y + b)))(points(2, 100))
    assert torch.allclose(J[0, :, 0], torch.linalg.inv(torch.eye(100, dtype=f64) - A), atol=1e-9) and (J[0, :, 1] == 0).all()


@pytest.mark.parametrize("n", [3, 100])
def test_solutions_at_infinity_are_none(n: int) -> None:
    """Whether the Jacobian is formed or not; what is merely far away is found."""
    x = torch.ones(n, dtype=f64)
    for node in (FixedPoint(n, lambda y, x: y + 1e-3 * x), Root(n, lambda y, x: (-y).exp() * x, initial=0.3)):
        solution = DeclarativeLayer(node, on_failure="nan").solve(x[None])
        assert solution.statuses != [Status.SOLVED] and bool(solution.x.isnan().all())
    for node in (FixedPoint(n, lambda y, x: 0.5 * y + 1e9 * x), Root(n, lambda y, x: 0.5 * y - 1e9 * x)):
        solution = DeclarativeLayer(node).solve(x[None])
        assert torch.allclose(solution.x, 2e9 * x) and solution.regularities == [Regularity.REGULAR]

"""``torch.compile`` of models with layers inside: one graph, the numbers of the eager model, no compilation per step."""

from __future__ import annotations

import copy
import gc
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import cvxpy as cp
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from ddn_cvx import ODE, DeclarativeLayer, FixedPoint, Root, SolverError, TorchProblem
from ddn_cvx.compat import CvxpyLayer
from ddn_cvx.custom_op import LAYERS, RUNS

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    # torch 2.6 says this of its own settings when inductor looks for a kernel that it has compiled before.
    pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles_inline_module_allowlist:UserWarning"),
]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def projection(**options: Any) -> DeclarativeLayer:
    """Onto the simplex of three numbers."""
    x, p = cp.Variable(3), cp.Parameter(3, name="p")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    return DeclarativeLayer(problem, [p], x, **options)


def several() -> DeclarativeLayer:
    """Two parameters, one of them a matrix; two variables and a multiplier."""
    x, t, A, b = cp.Variable(2), cp.Variable(), cp.Parameter((3, 2)), cp.Parameter(3)
    fit = cp.sum_squares(A @ x - b) + cp.square(t)
    low = t >= cp.sum(x) + 1
    return DeclarativeLayer(cp.Problem(cp.Minimize(fit), [low]), [A, b], [x, t, low.dual_variables[0]])


def cone() -> DeclarativeLayer:
    x, p = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm(x) <= 1])
    return DeclarativeLayer(problem, [p], [x])


def sphere() -> DeclarativeLayer:
    y, p = cp.Variable(3, value=[1.0, 1.0, 1.0]), cp.Parameter(3)
    return DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(y - p)), [cp.sum_squares(y) == 1]), [p], y)


def in_torch() -> DeclarativeLayer:
    """A dict of variables, an input in a dict, and a weight that the functions capture."""
    weight = nn.Linear(3, 2).double()

    def objective(y: dict[str, Tensor], x: dict[str, Tensor]) -> Tensor:
        return (y["u"] - weight(x["p"])).square().sum() + (y["v"] - y["u"].sum()).square() + y["v"].square()

    problem = TorchProblem({"u": (2,), "v": ()}, objective, parameters=[{"p": (3,)}], lower=-0.3)
    return DeclarativeLayer(problem)


def fixed_point() -> DeclarativeLayer:
    cell = nn.Linear(3, 3).double()
    with torch.no_grad():
        cell.weight.mul_(0.4)
    return DeclarativeLayer(FixedPoint((3,), lambda y, x: torch.tanh(cell(y) + x)))


def root() -> DeclarativeLayer:
    scale = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    return DeclarativeLayer(Root((3,), lambda y, x: y + scale * y**3 - x))


def ode() -> DeclarativeLayer:
    field = nn.Linear(3, 3).double()
    return DeclarativeLayer(ODE((3,), lambda t, y: torch.tanh(field(y)), times=[0.0, 0.5, 1.0]))


class Owner(nn.Module):
    """A layer whose function is a method of the module that holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3).double()
        self.layer = DeclarativeLayer(TorchProblem(3, self.cost))

    def cost(self, y: Tensor, x: Tensor) -> Tensor:
        return (y - self.inner(x)).square().sum()

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class Nested(nn.Module):
    """Passes a dict of the input."""

    def __init__(self, layer: DeclarativeLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer({"p": x})


class Two(nn.Module):
    """A matrix and a vector from one input; the matrix is shared by the batch."""

    def __init__(self, layer: DeclarativeLayer):
        super().__init__()
        self.layer = layer
        self.matrix = nn.Parameter(torch.eye(3, 2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Any:
        return self.layer(self.matrix, x)


def total(out: Any) -> Tensor:
    """A loss that sees every entry of every output."""
    parts = out.values() if isinstance(out, dict) else [out] if isinstance(out, Tensor) else out
    return sum((torch.sin(3 * p) * torch.arange(1, p.numel() + 1).reshape(p.shape)).sum() for p in parts)  # type: ignore[return-value]  # not empty


def step(model: Callable[[Tensor], Any], owner: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs and all gradients of one training step."""
    x = x.clone().requires_grad_()
    out = model(x)
    owner.zero_grad()
    total(out).backward()
    parts = list(out.values()) if isinstance(out, dict) else [out] if isinstance(out, Tensor) else list(out)
    assert x.grad is not None
    return [*(p.detach() for p in parts), x.grad, *(p.grad for p in owner.parameters() if p.grad is not None)]


def inputs(batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, 3, dtype=dtype, generator=torch.Generator().manual_seed(batch))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "qp": projection,
    "several": lambda: Two(several()),
    "cone": cone,
    "sphere": sphere,
    "torch": lambda: Nested(in_torch()),
    "owner": Owner,
    "fixed_point": fixed_point,
    "root": root,
    "ode": ode,
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_with_the_numbers_of_eager(kind: str) -> None:
    if kind == "ode":
        pytest.importorskip("torchdiffeq")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3).double(), nn.Tanh(), KINDS[kind]())
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for batch in (5, 7, 2, 9, 5):
        expected = step(model, model, inputs(batch))
        found = step(compiled, model, inputs(batch))
        assert len(found) == len(expected) >= 4
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert counter.frame_count <= 2  # the second is for batches of any size
    assert not RUNS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inductor(dtype: torch.dtype) -> None:
    """Code that reuses memory: activations before and after the layer are not kept for its sake."""
    backend = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), projection(), nn.ReLU(), cone_first(), nn.Linear(3, 2)).to(dtype)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for batch in (4, 6):
        found, expected = (step(f, model, inputs(batch, dtype)) for f in (compiled, model))
        assert found[0].dtype == dtype
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-6)


def cone_first() -> nn.Module:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = cone()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]

    return First()


def test_training_steps() -> None:
    """Weights before and after the layer move exactly as in eager mode, without a compilation after the first step."""
    torch.manual_seed(2)
    eager = nn.Sequential(nn.Linear(3, 3), projection(), nn.Linear(3, 1)).double()
    twin = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    for model, call in ((eager, eager), (twin, torch.compile(twin, fullgraph=True, backend=counter))):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for k in range(4):
            optimiser.zero_grad()
            call(inputs(6) + k).square().sum().backward()
            optimiser.step()
    for a, b in zip(eager.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


def test_leading_dimensions_and_names() -> None:
    layer = projection()
    for shape in ((3,), (2, 4, 3), (0, 3)):
        p = torch.rand(shape, dtype=torch.float64)
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(p=p), layer(p))


def test_shared_parameters_are_summed_over_the_batch() -> None:
    model = Two(several())
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    found, expected = (step(f, model, x) for f in (torch.compile(model, fullgraph=True, backend="aot_eager"), model))
    assert found[0].shape == (2, 4, 2) and found[1].shape == (2, 4)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_without_gradients_nothing_is_kept() -> None:
    layer = projection()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        first = compiled(inputs(3).requires_grad_())
        assert not RUNS and not first.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(compiled(inputs(3)), first)
    kept = compiled(inputs(3).requires_grad_())
    assert len(RUNS) == 1
    del kept
    gc.collect()
    assert not RUNS


@pytest.mark.parametrize("kind", ["cone", "sphere", "torch", "fixed_point", "root"])
def test_inference_mode(kind: str) -> None:
    torch.manual_seed(0)
    model = KINDS[kind]()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(inputs(3))
    with torch.inference_mode():
        torch.testing.assert_close(compiled(inputs(3)), expected)


def test_backward_twice_through_one_call() -> None:
    layer = projection()
    x = inputs(3).requires_grad_()
    out = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    (first,) = torch.autograd.grad(out[:, 0].sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(out[:, 0].sum(), x)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, torch.autograd.grad(layer(x)[:, 0].sum(), x)[0])


def test_activations_that_were_moved_elsewhere() -> None:
    """The number of the run comes back as a copy, which keeps no run: the layer is computed once more."""
    layer, x = projection(), inputs(3).requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        out = compiled(x)
    gc.collect()
    assert not RUNS
    torch.testing.assert_close(torch.autograd.grad(total(out), x)[0], torch.autograd.grad(total(layer(x)), x)[0])


def numbers(layer: nn.Module) -> list[int]:
    """Under which the operator finds a layer."""
    return [number for number, one in LAYERS.items() if one is layer]


def test_copies_are_layers_of_their_own() -> None:
    layer = projection()
    doubled = copy.deepcopy(layer)
    other = layer.with_solver("clarabel")
    copied = copy.copy(layer)
    for one in (layer, doubled, other, copied):
        assert len(numbers(one)) == 1
    seen: list[str] = []
    other.register_forward_hook(lambda *_: seen.append("hook"))
    x = inputs(3)
    torch.testing.assert_close(torch.compile(other, fullgraph=True, backend="aot_eager")(x), layer(x))
    torch.testing.assert_close(torch.compile(doubled, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_the_registry_keeps_no_layer() -> None:
    layer = projection()
    (number,) = numbers(layer)
    del layer
    gc.collect()
    assert number not in LAYERS


def test_failures_come_through() -> None:
    x, p = cp.Variable(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.square(x)), [x >= p, x <= 1])
    p_values = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    loud, quiet = (DeclarativeLayer(problem, [p], x, on_failure=mode) for mode in ("raise", "nan"))
    compiled = torch.compile(loud, fullgraph=True, backend="aot_eager")
    with pytest.raises(SolverError, match=r"INFEASIBLE at \(1,\)") as caught:
        compiled(p_values)
    assert caught.value.indices == ((1,),)
    torch.testing.assert_close(compiled(p_values.detach()[:1] + 0.1), torch.tensor([0.6], dtype=torch.float64))
    out = torch.compile(quiet, fullgraph=True, backend="aot_eager")(p_values)
    (grad,) = torch.autograd.grad(out[0], p_values)
    assert out.isnan().tolist() == [False, True] and grad.tolist() == pytest.approx([1.0, 0.0])


def test_wrong_arguments_are_named() -> None:
    compiled = torch.compile(projection(), backend="aot_eager")
    with pytest.raises(ValueError, match=r"'p' must have shape \(\*batch, 3\), got \(2, 4\)|\(batch.*3\)"):
        compiled(torch.zeros(2, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="Expected 1 parameters"):
        compiled()


def test_second_derivatives_are_refused() -> None:
    layer = projection()
    x = inputs(2).requires_grad_()
    out = torch.compile(layer, fullgraph=True, backend="eager")(x)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()
    out = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(torch.autograd.grad(out.square().sum(), x, create_graph=True)[0].sum(), x)


def test_replaced_weights() -> None:
    """``functional_call`` hands over other weights than the layer has."""
    layer = fixed_point()
    other = {name: (0.5 * p).detach().requires_grad_() for name, p in layer.named_parameters()}
    x = inputs(4)

    def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(layer, weights, (x,))
        return found

    found, expected = torch.compile(call, fullgraph=True, backend="aot_eager")(other, x), call(other, x)
    torch.testing.assert_close(found, expected)
    pairs = zip(*(torch.autograd.grad(total(y), list(other.values())) for y in (found, expected)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)
        assert a.abs().max() > 1e-3


def test_solve_and_results_of_unknown_shape_run_outside() -> None:
    """A graph break, not an error."""
    pytest.importorskip("torchdiffeq")
    layer = DeclarativeLayer(ODE((), lambda t, y, T: -y, times=lambda T: torch.stack([0 * T, T / 2, T])))
    y, end = torch.ones(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert torch.compile(layer, backend="aot_eager")(y, end).shape == (2, 3)

    solver = projection()

    def status(p: Tensor) -> Tensor:
        return solver.solve(2 * p).status + 1

    assert torch.compile(status, backend="aot_eager")(inputs(2)).tolist() == [1, 1]


def test_layer_of_cvxpylayers() -> None:
    x, p = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    layer = CvxpyLayer(problem, [p], [x])
    (found,) = torch.compile(layer, fullgraph=True, backend="aot_eager")(inputs(4))
    torch.testing.assert_close(found, projection()(inputs(4)))


def test_no_parameters() -> None:
    x = cp.Variable(2)
    layer = DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 1))), [], x)
    assert torch.compile(layer, fullgraph=True, backend="aot_eager")().tolist() == pytest.approx([1.0, 1.0])
    weight = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    node = DeclarativeLayer(TorchProblem((2,), lambda y: (y - weight).square().sum()))
    out = torch.compile(node, fullgraph=True, backend="aot_eager")()
    assert torch.autograd.grad(out[1], weight)[0].tolist() == pytest.approx([0.0, 1.0])

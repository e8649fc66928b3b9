"""Weights and captured tensors: every one gets its gradient and is a parameter of the layer, or the layer refuses."""

from __future__ import annotations

import copy
import functools
import io

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from ddn_cvx import DeclarationError, DeclarativeLayer, TorchProblem

f64 = torch.float64
GLOBAL = torch.tensor([1.0, 2.0], dtype=f64, requires_grad=True)


def quadratic(y: Tensor, target: Tensor) -> Tensor:
    return ((y - target) ** 2).sum()


def by_global(y: Tensor, x: Tensor) -> Tensor:
    return quadratic(y, GLOBAL * x)


def helper(x: Tensor) -> Tensor:
    return GLOBAL * x


def by_helper(y: Tensor, x: Tensor) -> Tensor:
    return quadratic(y, helper(x))


def by_default(y: Tensor, x: Tensor, *, w: Tensor = GLOBAL) -> Tensor:
    return quadratic(y, w * x)


class Box:
    def __init__(self, w: Tensor):
        self.inner = {"list": [w]}

    def cost(self, y: Tensor, x: Tensor) -> Tensor:
        return quadratic(y, self.inner["list"][0] * x)

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        return self.cost(y, x)


class Cost(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=f64))
        self.register_buffer("offset", torch.zeros(2))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return quadratic(y, self.w * x + self.offset)


def with_weight(w: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return quadratic(y, w * x)


def closure(w: Tensor):
    return lambda y, x: quadratic(y, w * x)


def inner_function(y: Tensor, x: Tensor) -> Tensor:
    def target() -> Tensor:
        return GLOBAL * x

    return quadratic(y, target())


WAYS = {
    "closure": closure(GLOBAL),
    "global": by_global,
    "helper": by_helper,
    "default": by_default,
    "inner function": inner_function,
    "partial": functools.partial(with_weight, GLOBAL),
    "bound method": Box(GLOBAL).cost,
    "callable object": Box(GLOBAL),
    "stacked": lambda y, x: quadratic(y, torch.stack([GLOBAL[0] * x[0], GLOBAL[1] * x[1]])),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batched", [False, True])
def test_captured_tensor_gets_its_gradient(way: str, batched: bool) -> None:
    if batched and way == "stacked":
        pytest.skip("indexes one instance")
    function = WAYS[way]
    objective = (lambda y, x: vmap(function)(y, x)) if batched else function
    layer = DeclarativeLayer(TorchProblem(2, objective, batched=batched))
    assert [id(p) for p in layer.parameters()] == [id(GLOBAL)]
    x = torch.tensor([[3.0, 4.0], [5.0, 6.0]], dtype=f64)
    GLOBAL.grad = None
    out = layer(x)
    assert torch.allclose(out, GLOBAL * x)
    out.sum().backward()
    assert torch.allclose(GLOBAL.grad, x.sum(0))


def test_every_function_is_looked_through() -> None:
    a, b, c, d = (torch.tensor(v, dtype=f64, requires_grad=True) for v in (0.5, 1.0, -1.0, 2.0))
    problem = TorchProblem(
        3,
        lambda y, x: quadratic(y, a * x),
        equality=lambda y, x: y[0] - b,
        inequality=lambda y, x: y[1] - c,
        lower=lambda x: d,
        upper=torch.tensor([5.0, 5.0, 5.0]),
    )
    layer = DeclarativeLayer(problem)
    assert {id(p) for p in layer.parameters()} == {id(a), id(b), id(c), id(d)}
    solution = layer.solve(torch.tensor([[1.0, 1.0, 1.0]], dtype=f64))
    assert solution.statuses[0].name == "INFEASIBLE"  # y_1 <= -1 and y_1 >= 2
    with torch.no_grad():
        d -= 5
    out = layer(torch.tensor([[1.0, 1.0, 1.0]], dtype=f64))
    assert torch.allclose(out, torch.tensor([[1.0, -1.0, 0.5]], dtype=f64))
    out.sum().backward()
    assert [float(t.grad) for t in (a, b, c, d)] == pytest.approx([1.0, 1.0, 1.0, 0.0])


def test_weights_of_modules() -> None:
    cost, net = Cost(), nn.Linear(2, 2)
    layer = DeclarativeLayer(TorchProblem(2, cost, equality=lambda y, x: y.sum() - net(x)[0], parameters=[(2,)]))
    assert {name for name, _ in layer.named_parameters()} == {
        "captured.objective.w",
        "captured.net.weight",
        "captured.net.bias",
    }
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    layer(x).pow(2).sum().backward()
    target = cost.w * x
    level = net(x)[:, :1]
    expected = torch.autograd.grad(
        (target + (level - target.sum(-1, keepdim=True)) / 2).pow(2).sum(), [cost.w, net.weight, net.bias]
    )
    for found, wanted in zip((cost.w.grad, net.weight.grad, net.bias.grad), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert "captured.objective.offset" in layer.state_dict()


def test_results_of_computations_are_followed_to_their_source() -> None:
    source = torch.tensor([0.0, 1.0], dtype=f64, requires_grad=True)
    w = source.exp()
    layer = DeclarativeLayer(TorchProblem(2, lambda y, x: quadratic(y, w * x)))
    assert not list(layer.parameters())
    x = torch.tensor([[3.0, 4.0]], dtype=f64)
    layer(x).sum().backward()
    assert torch.allclose(source.grad, source.exp() * x[0])


def test_captured_tensors_train() -> None:
    w = torch.zeros(2, requires_grad=True)
    layer = DeclarativeLayer(TorchProblem(2, lambda y, x: quadratic(y, w * x), equality=lambda y, x: y.sum() - 1))
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.5)
    x, target = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.8, 0.2]])
    for _ in range(100):
        optimiser.zero_grad()
        loss = ((layer(x) - target) ** 2).sum()
        loss.backward()
        optimiser.step()
    assert loss.item() < 1e-10


def test_copies_have_their_own_weights() -> None:
    for function in (Cost(), closure(torch.tensor([1.0, 2.0], dtype=f64, requires_grad=True))):
        layer = DeclarativeLayer(TorchProblem(2, function))
        x = torch.tensor([[3.0, 4.0]], dtype=f64)
        layer(x)
        twin = copy.deepcopy(layer)
        with torch.no_grad():
            for p in twin.parameters():
                p *= 2
        assert torch.allclose(layer(x), torch.tensor([[3.0, 8.0]], dtype=f64))
        twin(x).sum().backward()
        assert torch.allclose(twin(x), torch.tensor([[6.0, 16.0]], dtype=f64))
        assert all(p.grad is None for p in layer.parameters())
        assert torch.allclose(next(twin.parameters()).grad, x[0])


def test_files() -> None:
    layer = DeclarativeLayer(TorchProblem(2, Cost(), parameters=[(2,)]))
    x = torch.tensor([3.0, 4.0], dtype=f64)
    expected = layer(x)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), expected)
    other = DeclarativeLayer(TorchProblem(2, Cost(), parameters=[(2,)]))
    with torch.no_grad():
        next(layer.parameters()).mul_(3)
    other.load_state_dict(layer.state_dict())
    assert torch.allclose(other(x), 3 * expected)


def test_functional_calls_and_ensembles() -> None:
    layer = DeclarativeLayer(TorchProblem(2, Cost()))
    x = torch.tensor([[3.0, 4.0], [1.0, 1.0]], dtype=f64)
    name = "captured.objective.w"
    w = torch.tensor([[1.0, 1.0], [2.0, 5.0], [0.0, 1.0]], dtype=f64)

    def loss(w: Tensor) -> Tensor:
        return (functional_call(layer, {name: w}, (x,)) ** 2).sum()

    assert torch.allclose(vmap(lambda w: functional_call(layer, {name: w}, (x,)))(w), w.unsqueeze(1) * x)
    assert torch.allclose(vmap(grad(loss))(w), 2 * w * (x**2).sum(0))
    assert torch.allclose(torch.func.hessian(loss)(w[0]), torch.diag(2 * (x**2).sum(0)))
    assert torch.allclose(jvp(loss, (w[0],), (w[1],))[1], (2 * w[0] * w[1] * (x**2).sum(0)).sum())


class Owner(nn.Module):
    """A module whose layers' functions are its own methods: it holds the layers, and they capture it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=f64))
        self.first = DeclarativeLayer(TorchProblem(2, self.cost))
        self.second = DeclarativeLayer(TorchProblem(2, lambda y, x: self.cost(y, -x)))

    def cost(self, y: Tensor, x: Tensor) -> Tensor:
        return quadratic(y, self.w * x)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) - self.second(x)


def test_a_module_whose_layers_capture_it_is_no_part_of_itself() -> None:
    owner, x = Owner(), torch.tensor([[3.0, 4.0]], dtype=f64)
    net = nn.Sequential(owner)
    assert "cost" not in repr(net) and not net.eval().training and net.train().training
    assert dict(net.to(f64).named_parameters(remove_duplicate=False)).keys() == net.state_dict().keys() == {"0.w"}
    net(x).sum().backward()
    assert torch.allclose(owner.w.grad, 2 * x[0])
    assert torch.allclose(functional_call(net, {"0.w": torch.ones(2, dtype=f64)}, (x,)), 2 * x)
    twin = copy.deepcopy(net)
    twin.load_state_dict({"0.w": torch.zeros(2, dtype=f64)})
    assert torch.equal(twin(x), torch.zeros(1, 2, dtype=f64)) and torch.allclose(net(x), 2 * x * owner.w)


def test_float32_weights_and_constants_meet_float64_variables() -> None:
    A = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    net = nn.Linear(2, 2, bias=False)
    layer = DeclarativeLayer(TorchProblem(2, lambda y, x: quadratic(A @ y, net(x))))
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    out = layer(x)
    assert out.dtype == torch.float32
    assert torch.allclose(out, net(x) / torch.tensor([2.0, 4.0]), atol=1e-6)


class Hiding:
    """Hands out a tensor that no attribute holds."""

    __slots__ = ("_get",)

    def __init__(self, w: Tensor):
        self._get = iter([w] * 1000).__next__

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        return quadratic(y, self._get() * x)


def test_a_dependence_that_cannot_be_followed_is_an_error() -> None:
    w = torch.ones(2, dtype=f64, requires_grad=True)
    layer = DeclarativeLayer(TorchProblem(2, Hiding(w)))
    assert not list(layer.parameters())
    with pytest.raises(DeclarationError, match="was not found among"):
        layer(torch.ones(1, 2))
    without = DeclarativeLayer(TorchProblem(2, Hiding(w.detach())))
    assert torch.allclose(without(torch.ones(1, 2)), torch.ones(1, 2))


def test_a_constant_that_starts_to_require_grad_is_noticed() -> None:
    w = torch.ones(2, dtype=f64)
    layer = DeclarativeLayer(TorchProblem(2, lambda y, x: quadratic(y, w * x)))
    assert torch.allclose(layer(torch.ones(1, 2)), torch.ones(1, 2))
    w.requires_grad_()
    with pytest.raises(DeclarationError, match="was not found among"):
        layer(torch.ones(1, 2))
    assert list(DeclarativeLayer(TorchProblem(2, lambda y, x: quadratic(y, w * x))).parameters()) == [w]


def test_without_inputs_the_weights_say_what_comes_out() -> None:
    for dtype in (torch.float32, torch.float64):
        w = torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)
        out = DeclarativeLayer(TorchProblem(2, lambda y, w=w: quadratic(y, w)))()
        assert out.dtype == dtype and torch.allclose(out, w)


class Answering:
    """Stands for a function of a compiled library, which has an attribute of every name, and no tensors."""

    @property
    def __dict__(self) -> object:
        return object()

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        return quadratic(y, x)


def test_an_object_that_answers_to_every_name_is_passed_by() -> None:
    layer = DeclarativeLayer(TorchProblem(2, Answering()))
    assert torch.allclose(layer(torch.ones(1, 2)), torch.ones(1, 2))

"""Initial value problems as layers: closed forms, the adjoint equation, per-element ends, failures."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

import ddn_cvx as ddn
from ddn_cvx import ODE, DeclarationError, DeclarativeLayer, DifferentiationError, InputError, SolverError, Status, Unrolled

pytest.importorskip("torchdiffeq")
f64 = torch.float64


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def flow(A: Tensor, T: Tensor, y0: Tensor) -> Tensor:
    return (torch.matrix_exp(A * T.reshape(-1, 1, 1)) @ y0.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("adjoint", [ddn.Implicit(), Unrolled()])
@pytest.mark.parametrize("batched", [False, True])
def test_linear_systems_with_an_end_for_each_element(batched: bool, adjoint: ddn.Implicit | Unrolled) -> None:
    """Against the matrix exponential: initial states, captured matrix, end times, one of them in the past."""
    A = points(3, 3).requires_grad_()
    node = ODE(
        3,
        lambda t, y, T: y @ A.mT if batched else A @ y,
        span=lambda T: torch.stack([torch.zeros_like(T), T], -1),
        batched=batched,
    )
    layer = DeclarativeLayer(node, adjoint=adjoint)
    assert [id(p) for p in layer.parameters()] == [id(A)]
    y0, T = points(4, 3, seed=1).requires_grad_(), torch.tensor([0.5, 1.0, 1.5, -1.0], dtype=f64, requires_grad=True)
    out, expected, v = layer(y0, T), flow(A, T, y0), points(4, 3, seed=2)
    assert torch.allclose(out, expected, atol=1e-7)
    found = torch.autograd.grad((out * v).sum(), (y0, T, A))
    for a, b in zip(found, torch.autograd.grad((expected * v).sum(), (y0, T, A)), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
def test_harmonic_oscillator_at_several_times(method: str) -> None:
    """Two states by name, a frequency for each element, and a phase that all share."""
    times = torch.linspace(0.0, 3.0, 7, dtype=f64)
    node = ODE(
        {"x": (), "v": ()},
        lambda t, s, w: {"x": s["v"], "v": -(w**2) * s["x"]},
        times=times,
        parameters=[()],
    )
    layer = DeclarativeLayer(node, solver=method, solver_options={"rtol": 1e-7, "atol": 1e-7})
    w = torch.tensor([1.0, 2.0], dtype=f64, requires_grad=True)
    x0, v0 = torch.tensor(1.0, dtype=f64, requires_grad=True), torch.zeros(2, dtype=f64)
    out = layer({"x": x0, "v": v0}, w)
    angle = w.unsqueeze(-1) * times
    assert torch.allclose(out["x"], x0 * angle.cos(), atol=1e-5)
    assert torch.allclose(out["v"], -x0 * w.unsqueeze(-1) * angle.sin(), atol=1e-5)
    found = torch.autograd.grad(out["x"].square().sum(), (w, x0))
    for a, b in zip(found, torch.autograd.grad((x0 * angle.cos()).square().sum(), (w, x0)), strict=True):
        assert torch.allclose(a, b, atol=1e-3)


def test_time_enters_the_dynamics_and_both_ends_have_gradients() -> None:
    """y(T) = y0 + T^2 - S^2 for dy/dt = 2 t."""
    node = ODE((), lambda t, y, S, T: 2 * t + 0 * y, span=lambda S, T: (S, T))
    ends = torch.tensor([[0.0, 1.0], [0.5, 2.0]], dtype=f64, requires_grad=True)
    y = DeclarativeLayer(node)(torch.zeros(2, dtype=f64), ends[:, 0], ends[:, 1])
    assert torch.allclose(y, ends[:, 1] ** 2 - ends[:, 0] ** 2)
    (slope,) = torch.autograd.grad(y.sum(), ends)
    assert torch.allclose(slope, torch.tensor([[0.0, 2.0], [-1.0, 4.0]], dtype=f64), atol=1e-7)


def test_second_derivatives_by_the_steps() -> None:
    node = ODE((), lambda t, y, r: r * y * (1 - y), span=(0.0, 1.0))
    layer = DeclarativeLayer(node, adjoint=Unrolled())
    y0, r = torch.tensor([0.2, 0.6], dtype=f64, requires_grad=True), torch.tensor([1.0, 2.0], dtype=f64, requires_grad=True)

    def logistic(y0: Tensor, r: Tensor) -> Tensor:
        return 1 / (1 + (1 / y0 - 1) * torch.exp(-r))

    assert torch.allclose(layer(y0, r), logistic(y0, r), atol=1e-8)
    torch.autograd.gradcheck(layer, (y0, r), atol=1e-5)
    found = torch.autograd.functional.hessian(lambda a, b: layer(a, b).sum(), (y0, r))
    expected = torch.autograd.functional.hessian(lambda a, b: logistic(a, b).sum(), (y0, r))
    for row, other in zip(found, expected, strict=True):
        for a, b in zip(row, other, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    with pytest.raises(DifferentiationError, match="not inside torch"):
        torch.func.jvp(lambda y: layer(y, r.detach()), (y0.detach(),), (torch.ones(2, dtype=f64),))


def test_forward_mode_and_second_derivatives() -> None:
    """Against the matrix exponential: initial state, end time and captured matrix, in every mixture of the modes."""
    A = 0.7 * points(2, 2)
    captured = A.clone().requires_grad_()
    layer = DeclarativeLayer(ODE(2, lambda t, y, T: captured @ y, span=lambda T: (0.0, T), parameters=[()]))
    name, y0, T, v = (
        next(iter(dict(layer.named_parameters()))),
        points(3, 2, seed=1),
        torch.tensor([0.5, 1.0, -1.0]),
        points(3, 2, seed=2),
    )
    T = T.to(f64)

    def ours(y0: Tensor, T: Tensor, A: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {name: A}, (y0, T))

    def exact(y0: Tensor, T: Tensor, A: Tensor) -> Tensor:
        return flow(A, T, y0)

    inputs, motion = (y0, T, A), (points(3, 2, seed=3), points(3, seed=4), points(2, 2, seed=5))
    pushed, expected = (torch.func.jvp(f, inputs, motion)[1] for f in (ours, exact))
    assert torch.allclose(pushed, expected, atol=1e-6)

    def slopes(f: object) -> object:
        return torch.func.grad(lambda *x: (f(*x).sin() * v).sum(), (0, 1, 2))

    def change(f: object) -> object:
        return lambda *x: torch.func.jvp(f, x, motion)[1].sin().sum()

    for second in (
        lambda f: torch.func.jvp(slopes(f), inputs, motion)[1],
        lambda f: torch.func.vjp(slopes(f), *inputs)[1](motion),
        lambda f: torch.func.grad(change(f), (0, 1, 2))(*inputs),
    ):
        for a, b in zip(second(ours), second(exact), strict=True):
            assert torch.allclose(a, b, atol=1e-5), (a - b).abs().max()


def test_derivatives_of_third_order_and_mapped_ones() -> None:
    """The logistic function has a closed form; the third derivative is the adjoint of the adjoint of the adjoint."""

    def logistic(y0: Tensor, r: Tensor) -> Tensor:
        return 1 / (1 + (1 / y0 - 1) * torch.exp(-r))

    layer = DeclarativeLayer(ODE((), lambda t, y, r: r * y * (1 - y), span=(0.0, 1.0), parameters=[()]))
    y0, r = torch.tensor([0.2, 0.6], dtype=f64), torch.tensor([1.0, 2.0], dtype=f64)

    def third(f: object, y: Tensor, r: Tensor) -> Tensor:
        y, r = y.clone().requires_grad_(), r.clone().requires_grad_()
        (one,) = torch.autograd.grad(f(y, r).sum(), r, create_graph=True)
        (two,) = torch.autograd.grad(one.sum(), y, create_graph=True)
        return torch.stack(torch.autograd.grad(two.sum(), (y, r)))

    assert torch.allclose(third(layer, y0, r), third(logistic, y0, r), atol=1e-5)
    bend, expected = (torch.func.vmap(torch.func.hessian(f))(y0, r) for f in (layer, logistic))
    assert torch.allclose(bend, expected, atol=1e-6)


def test_no_derivatives_of_higher_order_where_there_is_no_end() -> None:
    """The others have theirs."""
    node = ODE((), lambda t, y: y * y, span=(0.0, 1.0))
    layer = DeclarativeLayer(node, on_failure="nan", solver_options={"max_steps": 300})
    y0 = torch.tensor([0.5, 2.0], dtype=f64, requires_grad=True)  # y0 / (1 - y0), infinite on the way for the second
    (slope,) = torch.autograd.grad(layer(y0).nansum(), y0, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), y0)
    assert torch.allclose(bend, torch.tensor([16.0, 0.0], dtype=f64), atol=1e-5)


def test_function_transforms() -> None:
    A = points(2, 2).requires_grad_()
    layer = DeclarativeLayer(ODE(2, lambda t, y: A @ y, span=(0.0, 1.0), parameters=[]))
    y0 = points(3, 2, seed=1)
    expected = torch.matrix_exp(A.detach())
    assert torch.allclose(torch.func.jacrev(layer)(y0[0]), expected, atol=1e-6)
    assert torch.allclose(torch.func.vmap(torch.func.jacrev(layer))(y0), expected.expand(3, 2, 2), atol=1e-6)
    weights = dict(layer.named_parameters())

    def loss(weights: dict[str, Tensor], y: Tensor) -> Tensor:
        return torch.func.functional_call(layer, weights, (y,)).sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, y0)
    for i in range(3):
        (alone,) = torch.autograd.grad((torch.matrix_exp(A) @ y0[i]).sum(), A)
        assert torch.allclose(next(iter(each.values()))[i], alone, atol=1e-6)
    pairs = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, torch.stack([y0, y0.flip(0)]))
    assert torch.allclose(next(iter(pairs.values())), sum(each.values()).sum(0).expand(2, 2, 2), atol=1e-6)


class Field(nn.Module):
    """A neural differential equation."""

    def __init__(self, n: int, dtype: torch.dtype):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n + 1, 8, dtype=dtype), nn.Tanh(), nn.Linear(8, n, dtype=dtype))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, t.reshape(-1, 1)], 1))


def test_neural_differential_equations() -> None:
    torch.manual_seed(0)
    field = Field(2, f64)
    node = ODE(2, field, span=(0.0, 1.0), batched=True)
    exact, steps = DeclarativeLayer(node), DeclarativeLayer(node, adjoint=Unrolled())
    assert {id(p) for p in exact.parameters()} == {id(p) for p in field.parameters()}
    y0 = points(5, 2).requires_grad_()
    leaves = (y0, *field.parameters())
    found, expected = (torch.autograd.grad(layer(y0).square().sum(), leaves) for layer in (exact, steps))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_single_precision() -> None:
    torch.manual_seed(0)
    layer = DeclarativeLayer(ODE(2, Field(2, torch.float32), span=(0.0, 1.0), batched=True, dtype=torch.float32))
    y0 = points(5, 2).float().requires_grad_()
    out = layer(y0)
    out.sum().backward()
    assert out.dtype == torch.float32 and y0.grad.isfinite().all()


def test_batches_of_any_size() -> None:
    layer = DeclarativeLayer(ODE(2, lambda t, y, a: -a * y, span=(0.0, 1.0), parameters=[()]))
    a = torch.tensor(0.5, dtype=f64)
    for batch in ((), (0,), (1,), (2, 3)):
        y0 = points(*batch, 2)
        assert torch.allclose(layer(y0, a), y0 * torch.exp(-a), atol=1e-8)
    empty = torch.zeros(0, 2, dtype=f64, requires_grad=True)
    layer(empty, a).sum().backward()
    assert empty.grad.shape == (0, 2) and layer.solve(empty, a).statuses == []
    fixed = DeclarativeLayer(ODE(1, lambda t, y: -y, span=(0.0, 1.0), initial=1.0))
    assert torch.allclose(fixed(), torch.exp(-torch.ones(1)))
    stated = DeclarativeLayer(ODE(1, lambda t, y, a: -a * y, span=(0.0, 1.0), initial=lambda a: 2 * a, parameters={"a": ()}))
    assert torch.allclose(stated(a=a), 2 * a * torch.exp(-a), atol=1e-8)


def test_errors_do_not_drown_in_a_large_batch() -> None:
    """One fast element among many slow ones is as exact as alone."""
    layer = DeclarativeLayer(ODE((), lambda t, y, w: torch.cos(w * t) * w + 0 * y, span=(0.0, 1.0)))
    w = torch.cat([torch.zeros(500, dtype=f64), torch.tensor([50.0], dtype=f64)])
    y = layer(torch.zeros(501, dtype=f64), w)
    assert torch.allclose(y[-1], torch.sin(w[-1]), atol=1e-7)
    assert torch.allclose(y[-1:], layer(torch.zeros(1, dtype=f64), w[-1:]), rtol=0.0, atol=1e-14)


def test_failures_have_a_status_and_leave_the_others_alone() -> None:
    """dy/dt = y^2 is infinite at t = 1 / y0."""
    node = ODE((), lambda t, y: y * y, span=(0.0, 1.0))
    layer = DeclarativeLayer(node, solver=ddn.Torchdiffeq(rtol=1e-7, atol=1e-7), on_failure="nan")
    y0 = torch.tensor([0.5, 1.5, 2.0, -1.0, torch.nan], dtype=f64, requires_grad=True)
    solution = layer.solve(y0)
    bad = Status.NUMERICAL_ERROR
    assert solution.statuses == [Status.SOLVED, bad, bad, Status.SOLVED, Status.INVALID_DATA]
    y = layer(y0)
    expected = torch.tensor([1.0, torch.nan, torch.nan, -0.5, torch.nan], dtype=f64)
    assert torch.allclose(y, expected, equal_nan=True, atol=1e-5)
    y[[0, 3]].sum().backward()
    assert torch.allclose(y0.grad, torch.tensor([4.0, 0.0, 0.0, 0.25, 0.0], dtype=f64), atol=1e-4)
    with pytest.raises(SolverError, match=r"NUMERICAL_ERROR at \(1,\), \(2,\)"):
        DeclarativeLayer(node, solver=layer.solver)(y0)


def test_too_many_steps_and_nan_from_the_function() -> None:
    fast = ODE((), lambda t, y: torch.cos(100 * t) + 0 * y, span=(0.0, 1.0))
    quick = DeclarativeLayer(fast, solver=ddn.Torchdiffeq(max_steps=5))
    assert quick.solve(torch.zeros(2, dtype=f64)).statuses == [Status.ITERATION_LIMIT] * 2
    root = DeclarativeLayer(ODE((), lambda t, y: -torch.log(y), span=(0.0, 1.0)), on_failure="nan")
    assert root.solve(torch.tensor([-1.0, 1.0], dtype=f64)).statuses == [Status.NUMERICAL_ERROR, Status.SOLVED]


@pytest.mark.parametrize("rate", [40.0, 400.0])
def test_dynamics_that_forget_are_an_error_not_a_wrong_gradient(rate: float) -> None:
    coarse = ddn.Torchdiffeq(rtol=1e-6, atol=1e-6)
    layer = DeclarativeLayer(ODE((), lambda t, y: -rate * (y - torch.sin(t)), span=(0.0, 1.0)), solver=coarse)
    y0 = torch.tensor([1.0], dtype=f64, requires_grad=True)
    with pytest.raises(DifferentiationError, match="forget where they started"):
        layer(y0).sum().backward()
    exact = DeclarativeLayer(layer.node, adjoint=Unrolled(), solver=coarse)
    assert float(torch.autograd.grad(exact(y0).sum(), y0)[0].abs()) < 1e-3


REFUSED = {
    "shape": (lambda: ODE(2, lambda t, y: y.sum(), span=(0.0, 1.0)), r"dynamics must return shape \(2,\)"),
    "initial shape": (lambda: ODE(3, lambda t, y: y, span=(0.0, 1.0)), r"initial must return shape \(2, 3\)"),
    "no numbers": (lambda: ODE(2, lambda t, y: y, span="ab"), "span must be a number, a tensor or a list"),
    "table": (lambda: ODE(2, lambda t, y: y, times=torch.zeros(2, 2)), "times must be times one after the other"),
    "three ends": (lambda: ODE(2, lambda t, y: y, span=lambda: torch.zeros(3)), "span must be two times"),
    "item": (lambda: ODE(2, lambda t, y: y * t.item(), span=(0.0, 1.0)), "cannot be evaluated"),
    "mixes": (lambda: ODE(2, lambda t, y: y - y.mean(0), span=(0.0, 1.0), batched=True), "mixes the elements"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_the_first_call(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(DeclarationError, match=message):
        DeclarativeLayer(make())(points(2, 2))


def test_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeclarationError, match="either span"):
        ODE(2, lambda t, y: y)
    with pytest.raises(DeclarationError, match="span must be two times"):
        ODE(2, lambda t, y: y, span=(0.0, 1.0, 2.0))
    node = ODE(2, lambda t, y: y, span=(0.0, 1.0))
    with pytest.raises(InputError, match="method must be one of dopri5"):
        DeclarativeLayer(node, solver="euler")
    with pytest.raises(InputError, match="no option 'rtl'"):
        DeclarativeLayer(node, solver_options={"rtl": 1})
    with pytest.raises(InputError, match="rtol"):
        DeclarativeLayer(node, solver_options={"rtol": -1})
    with pytest.raises(DeclarationError, match="use adjoint=Implicit"):
        DeclarativeLayer(node, adjoint=ddn.LPGD())(points(1, 2))
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(InputError, match=r'pip install "ddn_cvx\[ode\]"'):
        DeclarativeLayer(node)


@pytest.mark.parametrize("adjoint", [None, Unrolled()])
@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 0.5, 1.0)])
def test_a_batch_without_any_answer(adjoint: Unrolled | None, times: tuple[float, ...]) -> None:
    w = torch.tensor(1e200, dtype=f64, requires_grad=True)
    layer = DeclarativeLayer(ODE((), lambda t, y, x: w * x, times=times, initial=0.0), adjoint=adjoint, on_failure="nan")
    for x, status in (torch.nan, Status.INVALID_DATA), (1e200, Status.NUMERICAL_ERROR):
        values = torch.full((2,), x, dtype=f64, requires_grad=True)
        assert layer.solve(values).statuses == [status] * 2
        y = layer(values)
        assert y.shape == (2, len(times)) and bool(y[:, 1:].isnan().all())
        # As in training, where failed elements are left out of the loss.
        assert all(g.count_nonzero() == 0 for g in torch.autograd.grad(y[:, 1:].nan_to_num().sum(), (values, w)))


@pytest.mark.parametrize("adjoint", [ddn.Implicit(), Unrolled()])
@pytest.mark.parametrize("name", ["span", "times"])
def test_a_tensor_among_the_times_has_its_derivative(name: str, adjoint: ddn.Implicit | Unrolled) -> None:
    end = torch.tensor(0.1, dtype=f64, requires_grad=True)
    layer = DeclarativeLayer(ODE((), lambda t, y: -y, parameters=[], **{name: (0.0, end)}), adjoint=adjoint)
    assert [id(p) for p in layer.parameters()] == [id(end)]
    found = layer(torch.ones((), dtype=f64))
    last = found if name == "span" else found[-1]
    assert torch.allclose(torch.autograd.grad(last, end)[0], -torch.exp(-end.detach()), atol=1e-8)


@pytest.mark.parametrize("span", [(0.0, 0.1), [0.0, 0.1], lambda: [0.0, 0.1]], ids=["tuple", "list", "function"])
def test_times_are_not_rounded_to_single_precision(span: object) -> None:
    layer = DeclarativeLayer(ODE((), lambda t, y: 0 * y + 1, span=span, parameters=[]))
    assert abs(float(layer(torch.zeros((), dtype=f64))) - 0.1) < 1e-14

"""What calls do alike, for each kind of problem in torch functions: each of these has the answer ``min(x, limit)``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from ddn_cvx import ODE, DeclarativeLayer, FixedPoint, InputError, Root, TorchProblem
from ddn_cvx.solution import Status

KINDS: dict[str, Callable[..., Any]] = {
    "problem": lambda w, **more: TorchProblem((), lambda y, *x: (y - w(*x)) ** 2, **more),
    "root": lambda w, **more: Root((), lambda y, *x: y - w(*x), **more),
    "fixed point": lambda w, **more: FixedPoint((), lambda y, *x: 0.5 * y + 0.5 * w(*x), **more),
    "ode": lambda w, **more: ODE((), lambda t, y, *x: w(*x) + 0.0 * y, span=(0.0, 1.0), initial=0.0, **more),
}
without_integrator = pytest.mark.skipif(find_spec("torchdiffeq") is None, reason="needs torchdiffeq")
each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=k, marks=[without_integrator] if k == "ode" else []) for k, kind in KINDS.items()]
)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_inputs_the_answer_has_the_dtype_of_the_weights(kind: Callable[..., Any], dtype: torch.dtype) -> None:
    w = torch.tensor(0.75, dtype=dtype, requires_grad=True)
    y = DeclarativeLayer(kind(lambda: w, parameters=[]))()
    assert y.dtype == dtype and y.item() == pytest.approx(0.75, abs=1e-6)
    y.backward()
    assert w.grad is not None and w.grad.dtype == dtype and w.grad.item() == pytest.approx(1.0, abs=1e-6)


@each_kind
def test_numbers_that_are_not_finite(kind: Callable[..., Any]) -> None:
    def solve(x: list[float], limit: float) -> Any:
        edge = torch.tensor(limit, dtype=torch.float64, requires_grad=True)
        layer = DeclarativeLayer(kind(lambda x: torch.minimum(x, edge)), on_failure="nan")
        return layer.solve(torch.tensor(x, dtype=torch.float64))

    nan, inf = float("nan"), float("inf")
    # Weights that the functions capture may be infinite, an input may not; and each element stands for itself.
    solution = solve([1.0, nan, 2.0, inf], inf)
    assert solution.statuses == [Status.SOLVED, Status.INVALID_DATA, Status.SOLVED, Status.INVALID_DATA]
    expected = torch.tensor([1.0, nan, 2.0, nan], dtype=torch.float64)
    assert torch.allclose(solution.outputs[0], expected, atol=1e-6, equal_nan=True)
    assert solve([1.0, 2.0], nan).statuses == [Status.INVALID_DATA] * 2


@each_kind
def test_inference_mode_is_left_and_restored(kind: Callable[..., Any]) -> None:
    layer = DeclarativeLayer(kind(lambda x: x))
    with torch.inference_mode():
        y = layer(torch.tensor([0.25, 0.5]))
        assert torch.is_inference_mode_enabled()
    assert torch.allclose(y, torch.tensor([0.25, 0.5])) and not y.requires_grad


@each_kind
def test_a_report_needs_numbers(kind: Callable[..., Any]) -> None:
    layer = DeclarativeLayer(kind(lambda x: x, parameters=[()]))

    def value(x: Tensor) -> Tensor:
        return layer.solve(x).outputs[0]

    with pytest.raises(InputError, match="real tensors"):
        vmap(value)(torch.ones(3, 2))

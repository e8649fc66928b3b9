"""What a call allocates is freed with its result, without waiting for the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx import call, nonlinear_call, root_call


def projection(*constraints: Callable[[Any], Any], **options: Any) -> ddn.DeclarativeLayer:
    x, p = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [c(x) for c in constraints])
    return ddn.DeclarativeLayer(problem, [p], x, **options)


def plane(x: Any) -> Any:
    return cp.sum(x) == 1


def node(**options: Any) -> ddn.DeclarativeLayer:
    return ddn.DeclarativeLayer(
        ddn.TorchProblem((3,), lambda y, x: ((y - x) ** 2).sum() + (y**4).sum(), lambda y, x: y.sum() - 1), **options
    )


LAYERS = {
    "compiled": lambda: projection(plane, lambda x: x >= 0),
    "in torch": lambda: projection(lambda x: cp.norm(x) <= 1),
    "diffcp": lambda: projection(lambda x: cp.norm(x) <= 1, adjoint=ddn.DiffcpAdjoint()),
    "nonconvex": lambda: projection(lambda x: cp.sum_squares(x) == 1),
    "smoothed": lambda: projection(plane, lambda x: x >= 0, adjoint=ddn.Smoothed(0.1)),
    "lpgd": lambda: projection(plane, adjoint=ddn.LPGD(0.1)),
    "torch functions": node,
    "unrolled": lambda: node(adjoint=ddn.Unrolled(2)),
    "fixed point": lambda: ddn.DeclarativeLayer(ddn.FixedPoint((3,), lambda z, x: torch.tanh(0.5 * z + x))),
    "root": lambda: ddn.DeclarativeLayer(ddn.Root((3,), lambda z, x: z**3 + z - x)),
}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_call_is_freed_with_its_result(name: str, backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LAYERS[name]()
    layer(torch.full((2, 3), 0.3, dtype=torch.float64, requires_grad=True)).sum().backward()  # kept for good
    calls: list[Any] = []
    for kind in (call.Call, nonlinear_call.NonlinearCall, root_call.RootCall):
        original = kind.__init__

        def remember(self: Any, *args: Any, original: Any = original, **named: Any) -> None:
            calls.append(weakref.ref(self))
            original(self, *args, **named)

        monkeypatch.setattr(kind, "__init__", remember)
    gc.disable()
    try:
        for _ in range(2):
            x = torch.full((2, 3), 0.3, dtype=torch.float64, requires_grad=True)
            y = layer(x)
            if backward:
                y.square().sum().backward()
            del x, y
        assert calls and not any(reference() is not None for reference in calls)
    finally:
        gc.enable()

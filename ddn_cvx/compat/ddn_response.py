"""What makes the answer of a node of ``compat.ddn`` a differentiable function of its inputs: its own ``gradient`` if it has
one, else a ``TorchProblem`` whose last input is the answer that the node's solver gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ddn_cvx.declare.torch_problem import TorchProblem
from ddn_cvx.errors import DeclarationError
from ddn_cvx.layer import DeclarativeLayer

TOLERANCE = 1e-6
"""Accepted relative residual of the optimality conditions, or ``eps`` of the node where that is larger."""


class Response:
    """``(xs, y) -> y`` with the derivative of the optimality conditions of a node, an ``AbstractDeclarativeNode``."""

    def __init__(self, node: Any, on_failure: Literal["raise", "nan"], stationary: bool):
        self.node, self.on_failure, self.stationary = node, on_failure, stationary
        self.layers: dict[Any, DeclarativeLayer] = {}

    def __call__(self, xs: Sequence[Any], y: Tensor) -> Tensor:
        own = [k for k, x in enumerate(xs) if isinstance(x, Tensor) and x.ndim and len(x) == len(y)]
        lost = [k for k, x in enumerate(xs) if isinstance(x, Tensor) and x.requires_grad and k not in own]
        if lost:
            raise DeclarationError(
                f"Input {lost[0]} requires grad and has shape {tuple(xs[lost[0]].shape)}, without the batch of {len(y)} in "
                "front; expand it to one row for each element."
            )
        others = {k: x for k, x in enumerate(xs) if k not in own}
        whole = {k: xs[k] for k in own if not xs[k].is_floating_point()}
        tensors = [xs[k].to(y.dtype) if k in whole else xs[k] for k in own]
        gamma = getattr(self.node, "gamma", None)
        if gamma:  # around an answer of the node itself, not of the damped one
            with torch.no_grad():
                y = self._layer(y, own, others, whole, 0.0)(*(t.detach() for t in tensors), y)
        return self._layer(y, own, others, whole, gamma or 0.0)(*tensors, y)

    def _layer(
        self, y: Tensor, own: list[int], others: dict[int, Any], whole: dict[int, Tensor], gamma: float
    ) -> DeclarativeLayer:
        key = (tuple(y.shape[1:]), tuple(own), gamma)
        if others or whole or key not in self.layers:
            problem = _problem(self.node, tuple(y.shape[1:]), own, others, whole, gamma, self.stationary)
            layer = DeclarativeLayer(
                problem, on_failure=self.on_failure, tolerance=max(TOLERANCE, getattr(self.node, "eps", 0.0))
            )
            if others or whole:  # they may be others next time
                return layer
            self.layers[key] = layer
        return self.layers[key]


def _problem(
    node: Any,
    shape: tuple[int, ...],
    own: list[int],
    others: dict[int, Any],
    whole: dict[int, Tensor],
    gamma: float,
    stationary: bool,
) -> TorchProblem:
    """The node as a problem whose inputs are those with a batch, and then the answer of its solver."""

    def arguments(tensors: Sequence[Tensor]) -> list[Any]:
        found = {k: _like(whole[k], t) if k in whole else t for k, t in zip(own, tensors, strict=True)}
        return [(found | others)[k] for k in range(len(own) + len(others))]

    def objective(y: Tensor, *tensors: Tensor) -> Tensor:
        value = node.objective(*arguments(tensors[:-1]), y=y)
        return value + 0.5 * gamma * (y - tensors[-1]).square().flatten(1).sum(1).reshape(value.shape) if gamma else value

    def constraint(name: str) -> Any:
        function = getattr(node, name, None)
        return function and (lambda y, *tensors: function(*arguments(tensors[:-1]), y=y))

    if not math.prod(shape):
        raise DeclarationError(f"solve of {type(node).__name__} must return at least one number for each element.")
    return TorchProblem(
        variable=shape,
        objective=objective,
        equality=constraint("equality_constraints"),
        inequality=constraint("inequality_constraints"),
        solve=lambda *tensors: tensors[-1],
        batched=True,
        stationary=stationary,
    )


class OwnGradient(torch.autograd.Function):
    """A node with its own ``gradient``."""

    @staticmethod
    def forward(ctx: Any, node: Any, *inputs: Any) -> Tensor:
        y, ctx.context = node.solve(*(x.detach() if isinstance(x, Tensor) else x for x in inputs))
        ctx.node, ctx.places = node, [k for k, x in enumerate(inputs) if isinstance(x, Tensor)]
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(y, *(inputs[k] for k in ctx.places))
        return y.detach().clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        y, *tensors = ctx.saved_tensors
        inputs = list(ctx.others)
        for place, tensor in zip(ctx.places, tensors, strict=True):
            inputs[place] = tensor
        with torch.enable_grad():
            found = ctx.node.gradient(*inputs, y=y.detach().requires_grad_(), v=v, ctx=ctx.context)
        return (None, *found)


def answer(node: Any, xs: Sequence[Any]) -> Tensor:
    """What the solver of a node returns, ``(b, ...)``; a constant for autograd."""
    with torch.no_grad():
        found = node.solve(*(x.detach() if isinstance(x, Tensor) else x for x in xs))
    y = found[0] if isinstance(found, tuple) else found
    if not isinstance(y, Tensor) or not y.ndim:
        name = type(node).__name__
        raise DeclarationError(f"solve of {name} must return (y, ctx) with y of shape (b, ...), got {found!r}.")
    return y.detach()


def _like(whole: Tensor, values: Tensor) -> Tensor:
    """Integers or truth values again, none of which was not among those given."""
    if not whole.numel():
        return values.to(whole.dtype)
    given = whole.to(values.dtype)
    return values.clamp(given.amin(), given.amax()).to(whole.dtype)

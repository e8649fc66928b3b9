"""How a curved cone becomes differentiable: its closed forms for Π, DΠ and D²Π, tied together by one autograd Function.

Because Π = ∇φ, the n-th derivative tensor of Π, applied to n directions, is differentiated by appending one more direction and, in
each direction, by replacing that direction (the tensor is symmetric). So one rule serves every order, every cone and both
modes, and no cone has to protect the gradient of an unused branch: the closed forms are never traced by autograd.

Whatever is costly and shared by the three closed forms (an eigendecomposition, the root of a scalar equation) is the cone's
``factor``; it is computed once in the forward pass and kept for the backward passes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor

from ddn_cvx.errors import DifferentiationError
from ddn_cvx.cones.base import Cone


@dataclass(frozen=True)
class Curved(Cone):
    """A cone given by closed forms on plain tensors.

    ``factor(v)`` returns tensors whose leading dimensions are those of v; ``value``, ``first`` and ``second`` are Π(v), DΠ(v)h and
    D²Π(v)[a, b], all arguments already of one shape ``(*batch, dim)``, followed by the factor.
    """

    @abstractmethod
    def factor(self, v: Tensor) -> tuple[Tensor, ...]: ...

    @abstractmethod
    def value(self, v: Tensor, *factor: Tensor) -> Tensor: ...

    @abstractmethod
    def first(self, v: Tensor, h: Tensor, *factor: Tensor) -> Tensor: ...

    @abstractmethod
    def second(self, v: Tensor, a: Tensor, b: Tensor, *factor: Tensor) -> Tensor: ...

    @final
    def project(self, v: Tensor) -> Tensor:
        return _derivative_tensor(self, v)

    @final
    def derivative(self, v: Tensor, h: Tensor) -> Tensor:
        return _derivative_tensor(self, v, h)

    @final
    def curvature(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return _derivative_tensor(self, v, a, b)


def _derivative_tensor(cone: Curved, v: Tensor, *directions: Tensor) -> Tensor:
    factor: tuple[Tensor, ...] = _apply(_Factor, cone, v.detach())
    shape = torch.broadcast_shapes(v.shape, *(d.shape for d in directions))
    factor = tuple(f.expand(*shape[:-1], *f.shape[v.ndim - 1 :]) for f in factor)
    points = (t.expand(shape) for t in (v, *directions))
    return cast(Tensor, _apply(_DerivativeTensor, cone, len(directions), *points, *factor))


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    return function.apply(*args)


class _DerivativeTensor(torch.autograd.Function):
    """(cone, order, v, *directions, *factor) ↦ D^order Π(v)[directions]."""

    @staticmethod
    def forward(cone: Curved, order: int, *tensors: Tensor) -> Tensor:
        if order > 2:
            raise DifferentiationError(
                f"{type(cone).__name__}.project offers derivatives up to the second, and order {order} was asked for: "
                "a third derivative with respect to v went through it. Detach v, or differentiate once less."
            )
        if order < 2:
            return cone.first(*tensors) if order else cone.value(*tensors)
        v, a, b, *factor = tensors
        curvature = cone.second(v, a, b, *factor)
        # D²Π is of degree −1: where it exceeds the range of the dtype, v is a kink to working precision.
        bad_input = (v.isnan() | a.isnan() | b.isnan()).any(-1, keepdim=True)
        return torch.where(curvature.isfinite() | bad_input, curvature, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.cone, ctx.order, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (g,), (v, *rest), n = grad_outputs, ctx.saved_tensors, ctx.order
        directions, factor = rest[:n], rest[n:]
        grads: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if g is not None and ctx.needs_input_grad[2]:
            grads[2] = _apply(_DerivativeTensor, ctx.cone, n + 1, v, *directions, g, *factor)
        for i in range(n):
            if g is not None and ctx.needs_input_grad[3 + i]:
                others = (*directions[:i], g, *directions[i + 1 :])
                grads[3 + i] = _apply(_DerivativeTensor, ctx.cone, n, v, *others, *factor)
        return tuple(grads)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        (v, *rest), n = ctx.saved_tensors, ctx.order
        directions, factor = rest[:n], rest[n:]
        tangents = grad_inputs[2 : 3 + n]
        terms = [
            _apply(_DerivativeTensor, ctx.cone, n, v, *directions[:i], t, *directions[i + 1 :], *factor)
            for i, t in enumerate(tangents[1:])
            if t is not None
        ]
        if tangents[0] is not None:
            terms.append(_apply(_DerivativeTensor, ctx.cone, n + 1, v, *directions, tangents[0], *factor))
        return sum(terms[1:], start=terms[0]) if terms else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        cone, order, *tensors = args
        return _apply(_DerivativeTensor, cone, order, *_batch_first(info, in_dims[2:], tensors)), 0


class _Factor(torch.autograd.Function):
    """(cone, v) ↦ cone.factor(v), a constant for autograd, computed on plain tensors also under ``torch.func``."""

    @staticmethod
    def forward(cone: Curved, v: Tensor) -> tuple[Tensor, ...]:
        return cone.factor(v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*output)
        ctx.length = len(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return (None,) * ctx.length

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        cone, v = args
        factor = _apply(_Factor, cone, *_batch_first(info, in_dims[1:], [v]))
        return factor, (0,) * len(factor)


def _batch_first(info: Any, in_dims: tuple[Any, ...], tensors: list[Tensor]) -> list[Tensor]:
    return [
        t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip(tensors, in_dims, strict=True)
    ]


def newton(
    equation: Callable[[Tensor], tuple[Tensor, Tensor]],
    low: Tensor,
    high: Tensor,
    start: Tensor,
    iterations: int,
    of_logarithm: bool = False,
) -> Tensor:
    """The root of an increasing scalar equation in [low, high], elementwise, by Newton steps that bisection replaces when
    they leave the bracket. The number of iterations is fixed, so nothing waits for the device.

    ``equation`` returns value and slope at x. With ``of_logarithm``, x = log t and the step is Newton's in t, which is exact
    near a root t* of the form t − t*; should it lead below t = 0, Newton's in x, or in t again but only its length, if shorter.
    """
    x = start
    for _ in range(iterations):
        value, slope = equation(x)
        low, high = torch.where(value <= 0, x, low), torch.where(value >= 0, x, high)
        change = -value / slope
        if of_logarithm:
            in_t = (1 + change).abs().log()
            change = torch.where(change > -1, in_t, torch.minimum(change, in_t))
        step = x + change
        x = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
    return x

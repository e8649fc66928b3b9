"""How a curved cone becomes differentiable: closed forms for Π, DΠ and D²Π, tied together by one autograd Function.

Because Π = ∇φ, the n-th derivative of Π is a symmetric tensor, applied to n directions. To differentiate the result in
v is to append a direction; in a direction, to replace it. This one rule serves every order, every cone, and reverse and
forward mode; no cone has to protect the gradients of a branch that is not taken, for reverse mode never traces the closed
forms. Orders beyond the second come from the second in forward mode, for cones whose factor may be differentiated: a node
inside the objective of another asks for the third.

Whatever is costly and shared by the closed forms (an eigendecomposition, the root of a scalar equation) is the cone's
``factor``; it is computed once in the forward pass and kept for the backward passes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor

from ddn_cvx.cones.base import Cone
from ddn_cvx.errors import DifferentiationError
from ddn_cvx.forward_mode import forward_rule


@dataclass(frozen=True)
class Curved(Cone):
    """A cone given by closed forms on plain tensors.

    Of ``value``, ``first`` and ``second`` all arguments are already of one shape ``(*batch, dim)``, followed by the factor.
    """

    smooth_factor: ClassVar[bool] = False
    """Whether forward mode may go through ``factor``."""

    @abstractmethod
    def factor(self, v: Tensor) -> tuple[Tensor, ...]:
        """What the closed forms share: tensors whose leading dimensions are those of v."""

    @abstractmethod
    def value(self, v: Tensor, *factor: Tensor) -> Tensor:
        """Π(v)."""

    @abstractmethod
    def first(self, v: Tensor, h: Tensor, *factor: Tensor) -> Tensor:
        """DΠ(v) h."""

    @abstractmethod
    def second(self, v: Tensor, a: Tensor, b: Tensor, *factor: Tensor) -> Tensor:
        """D²Π(v)[a, b]."""

    @final
    def project(self, v: Tensor) -> Tensor:
        return _evaluate(self, v)

    @final
    def derivative(self, v: Tensor, h: Tensor) -> Tensor:
        return _evaluate(self, v, h)

    @final
    def curvature(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return _evaluate(self, v, a, b)


def _evaluate(cone: Curved, v: Tensor, *directions: Tensor) -> Tensor:
    factor: tuple[Tensor, ...] = _apply(_Factor, cone, v.detach())
    shape = torch.broadcast_shapes(v.shape, *(d.shape for d in directions))
    factor = tuple(f.expand(*shape[:-1], *f.shape[v.ndim - 1 :]) for f in factor)
    points = (t.expand(shape) for t in (v, *directions))
    return cast(Tensor, _apply(_DerivativeTensor, cone, len(directions), *points, *factor))


def _higher(cone: Curved, v: Tensor, *directions: Tensor) -> Tensor:
    """The second derivative along the first two directions, differentiated along the others."""

    def lower(u: Tensor) -> Tensor:
        *others, _ = directions
        return _higher(cone, u, *others) if len(others) > 2 else cone.second(u, *others, *cone.factor(u))

    return cast(Tensor, torch.func.jvp(lower, (v.contiguous(),), (directions[-1].contiguous(),))[1])


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    return function.apply(*args)


class _DerivativeTensor(torch.autograd.Function):
    """(cone, n, v, *directions, *factor) ↦ the n-th derivative of Π at v, applied to n directions."""

    @staticmethod
    def forward(cone: Curved, order: int, *tensors: Tensor) -> Tensor:
        if order > 2 and not cone.smooth_factor:
            raise DifferentiationError(
                f"{type(cone).__name__}.project has a first and a second derivative, and derivative {order} was asked "
                "for. Detach its argument, or differentiate once less."
            )
        if order < 2:
            return cone.first(*tensors) if order else cone.value(*tensors)
        points, factor = tensors[: 1 + order], tensors[1 + order :]
        curvature = cone.second(*points, *factor) if order == 2 else _higher(cone, *points)
        # D²Π is of degree −1 in v: where it exceeds the range of the dtype, v is a kink to working precision.
        bad_input = torch.stack(points).isnan().any(0).any(-1, keepdim=True)
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
                replaced = (*directions[:i], g, *directions[i + 1 :])
                grads[3 + i] = _apply(_DerivativeTensor, ctx.cone, n, v, *replaced, *factor)
        return tuple(grads)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: tuple[Tensor, ...], *grad_inputs: Any) -> Any:
        (v, *rest), n = saved, ctx.order
        directions, factor = rest[:n], rest[n:]
        dv, *tangents = grad_inputs[2 : 3 + n]
        terms = [
            _apply(_DerivativeTensor, ctx.cone, n, v, *directions[:i], t, *directions[i + 1 :], *factor)
            for i, t in enumerate(tangents)
            if t is not None
        ]
        if dv is not None:
            terms.append(_apply(_DerivativeTensor, ctx.cone, n + 1, v, *directions, dv, *factor))
        return sum(terms[1:], start=terms[0]) if terms else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        cone, order, *tensors = args
        return _apply(_DerivativeTensor, cone, order, *_batch_first(info, in_dims[2:], tensors)), 0


class _Factor(torch.autograd.Function):
    """(cone, v) ↦ cone.factor(v): a constant for autograd, computed on plain tensors also under ``torch.func``."""

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
        t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims, strict=True)
    ]


def largest(v: Tensor) -> Tensor:
    """The largest absolute coordinate of v in float64, ``(*batch, 1)``, and 1 for v = 0: what homogeneous maps divide by."""
    size = v.double().abs().amax(-1, keepdim=True)
    return torch.where(size == 0, 1.0, size)


def eigh(X: Tensor) -> tuple[Tensor, Tensor]:
    """``torch.linalg.eigh`` with NaN eigenvalues for a matrix that has NaN or inf, for which LAPACK refuses the batch."""
    finite = X.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    values, vectors = torch.linalg.eigh(torch.where(finite, X, 0.0))
    return torch.where(finite.squeeze(-1), values, torch.nan), vectors


def newton(
    equation: Callable[[Tensor], tuple[Tensor, Tensor]],
    low: Tensor,
    high: Tensor,
    start: Tensor,
    iterations: int,
    two_sided: bool = False,
) -> Tensor:
    """The root of an increasing scalar equation in [low, high], elementwise, by Newton steps that bisection replaces where
    they leave the bracket. The number of iterations is fixed, so nothing waits for the device.

    ``equation`` returns value and slope at x = log t; if ``two_sided``, at x = −log t where x > 0 (a logit). The step is
    Newton's in t, exact where the equation is like t − t*. If that leads to t < 0, only its size |t| counts, or Newton's
    step in x if this goes further.
    """
    x = start
    for _ in range(iterations):
        value, slope = equation(x)
        low, high = torch.where(value <= 0, x, low), torch.where(value >= 0, x, high)
        side = torch.where(x > 0, -1, 1) if two_sided else 1
        step = -side * value / slope
        in_t = (1 + step).abs().log()
        x_new = x + side * torch.where(step > -1, in_t, torch.minimum(step, in_t))
        x = torch.where((x_new >= low) & (x_new <= high), x_new, (low + high) / 2)
    return x

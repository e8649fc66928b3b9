"""The adjoint of one stretch of an initial value problem: ``dy/ds = F(s, y; θ)`` from s = 0 to 1.

For a cotangent g of y(1) the adjoint equation, from s = 1 back to 0,

    da/ds = -J'a,   a(1) = g,        grad y(0) = a(0),   grad θ = ∫ (dF/dθ)'a ds

is integrated together with y itself (Pontryagin; Chen et al. 2018), so no step of the forward pass is kept. That y comes
back to where it started is checked: where the dynamics forget their past it does not, and the answer would be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from ddn_cvx.adjoint.kkt_solve import Flags, apply, merge, unflatten
from ddn_cvx.errors import DifferentiationError
from ddn_cvx.program.nonlinear import Theta

_DRIFT = 1e3
"""How many times the tolerance of a step the state may be off after the way back."""


class Flow(Protocol):
    """The opaque forward computation, called with physical (unwrapped) tensors."""

    drift: float
    """What is accepted, relative, of the difference between y(0) and where the way back ends."""

    def forth(self, y: Tensor, ok: Tensor, theta: Theta) -> tuple[Tensor, Tensor]:
        """``y(1) (B, n)`` and which elements have one; zeros for the others, and for those not ``ok``."""

    def back(self, y: Tensor, g: Tensor, theta: Theta) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """``y(0)``, ``a(0)`` and the gradients of the tensors of θ, from ``y = y(1)`` and ``g = a(1)``."""


@dataclass(frozen=True)
class Rule:
    """What does not change between the pieces of one derivative."""

    flow: Flow
    flags: Flags


def stretch(flow: Flow, y: Tensor, ok: Tensor, theta: Theta) -> tuple[Tensor, Tensor]:
    """``y(0), ok -> y(1), ok``, differentiable in y and θ."""
    end, good = apply(_Stretch, Rule(flow, theta.batched), ok, y, *theta.tensors)
    return end, good


class _Stretch(torch.autograd.Function):
    @staticmethod
    def forward(rule: Rule, ok: Tensor, y: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return rule.flow.forth(y.detach(), ok, Theta(tuple(t.detach() for t in tensors), rule.flags))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.rule, _, *tensors = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = apply(_Back, ctx.rule, grads[0], *ctx.saved_tensors)
        return (None, None, *found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse("Forward mode", "use reverse mode")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], rule: Rule, ok: Tensor, y: Tensor, *tensors: Tensor) -> Any:
        size, batch = info.batch_size, len(ok) if in_dims[1] is None else ok.movedim(in_dims[1], 0).shape[1]
        flat, flags = merge(size, batch, (ok, y, *tensors), in_dims[1:], (True, True, *rule.flags))
        out = apply(_Stretch, Rule(rule.flow, flags[2:]), *flat)
        return tuple(unflatten(t, size) for t in out), (0, 0)


class _Back(torch.autograd.Function):
    """``(g, y(1), ok, y(0), θ) -> gradients of y(0) and θ``."""

    @staticmethod
    def forward(rule: Rule, g: Tensor, end: Tensor, ok: Tensor, start: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        theta = Theta(tuple(t.detach() for t in tensors), rule.flags)
        slopes = [torch.zeros_like(t) for t in theta.tensors]
        rows = torch.nonzero(ok).flatten()
        a = torch.zeros_like(start)
        if len(rows):
            begin, found, pieces = rule.flow.back(end[rows], g[rows], theta.take(rows))
            off = (begin - start[rows]).abs().amax(-1) / (1 + start[rows].abs().amax(-1))
            bad = int((~(off <= rule.flow.drift)).sum())
            if bad:
                raise DifferentiationError(
                    f"The adjoint equation could not be integrated back for {bad} batch element(s): the dynamics forget "
                    "where they started. Use adjoint=Unrolled(), or more times= in between, or a smaller rtol."
                )
            a = a.index_copy(0, rows, found)
            slopes = [
                t.index_copy(0, rows, piece) if own else piece
                for t, piece, own in zip(slopes, pieces, rule.flags, strict=True)
            ]
        return (a, *slopes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept: there is no second derivative."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        _refuse("A second derivative", "use adjoint=Unrolled()")

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse("Forward mode", "use reverse mode")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], rule: Rule, *tensors: Tensor) -> Any:
        size = info.batch_size
        batch = tensors[0].shape[0] if in_dims[1] is None else tensors[0].movedim(in_dims[1], 0).shape[1]
        # What the batch shares gets a gradient for each element of the mapped dimension, so it is no longer shared.
        wide, dims = list(tensors), list(in_dims[1:])
        for k, own in enumerate(rule.flags, start=4):
            if not own:
                place = 0 if dims[k] is None else 1
                moved = wide[k] if dims[k] is None else wide[k].movedim(dims[k], 0)
                wide[k] = moved.unsqueeze(place).expand(*moved.shape[:place], batch, *moved.shape[place:])
                dims[k] = None if dims[k] is None else 0
        flat, _ = merge(size, batch, tuple(wide), tuple(dims), (True,) * len(wide))
        a, *slopes = (unflatten(t, size) for t in apply(_Back, Rule(rule.flow, (True,) * len(rule.flags)), *flat))
        return (a, *(s if own else s.sum(1) for s, own in zip(slopes, rule.flags, strict=True))), (0,) * (1 + len(slopes))


def _refuse(what: str, instead: str) -> NoReturn:
    raise DifferentiationError(f"{what} of an ODE is not available by its adjoint equation; {instead}.")


def drift(rtol: float, atol: float) -> float:
    """What the way back may be off, for these tolerances of a step."""
    return _DRIFT * (rtol + atol)

"""Derivatives of one stretch of an initial value problem, ``dz/ds = F(s, z; θ)`` from s = 0 to 1, by further ones.

For a cotangent g of z(1) the adjoint equation, from s = 1 back to 0,

    da/ds = -J'a,   a(1) = g,        grad z(0) = a(0),   grad θ = ∫ (dF/dθ)'a ds

is integrated together with z itself (Pontryagin; Chen et al. 2018), so no step of the forward pass is kept. That z comes
back to where it started is checked: where the dynamics forget their past it does not, and the answer would be wrong.
Forward mode integrates the sensitivity equation ``dż/ds = J ż + (dF/dθ) θ̇`` next to z.

Both are again initial value problems, with integrals ``q(1) = ∫ Q(s, z; θ) ds`` beside the state, and are differentiated in
the same two ways: derivatives of any order and mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import vjp

from ddn_cvx.adjoint.transforms import Flags, apply, merge, unflatten
from ddn_cvx.errors import DifferentiationError
from ddn_cvx.forward_mode import forward_rule
from ddn_cvx.program.nonlinear import Theta

_DRIFT = 1e3
"""How many times the tolerance of a step the state may be off after the way back."""
Rates = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""``(s, state) -> d state / ds``."""


class Flow(Protocol):
    """The opaque computations, called with physical (unwrapped) tensors."""

    drift: float
    """What is accepted, relative, of the difference between z(0) and where the way back ends."""

    def forth(self, y: Tensor, ok: Tensor, theta: Theta) -> tuple[Tensor, Tensor]:
        """``y(1) (B, n)`` and which elements have one; zeros for the others, and for those not ``ok``."""

    def slope(self, s: Tensor, y: Tensor, theta: Theta) -> Tensor:
        """``F (B, n)``; plain torch, also inside ``torch.func`` transforms."""

    def integrate(self, rates: Rates, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The state at s = 1; the error of its first tensor is controlled."""


class Field(Protocol):
    """The right-hand side of a problem: of the state ``z (B, k)``, and of the integrals."""

    def rates(self, s: Tensor, z: Tensor, theta: Theta) -> tuple[Tensor, ...]:
        """``F, *Q``; plain torch."""

    def integrals(self, theta: Theta) -> tuple[Tensor, ...]:
        """Tensors of the shapes of the integrals."""

    def own(self, flags: Flags) -> Flags:
        """Which integrals every element has for itself, if it does so with the tensors of θ that ``flags`` says."""

    def scale(self, z: Tensor, theta: Theta) -> Tensor:
        """Units ``(B, k)`` in which the accuracy of z is judged."""


@dataclass(frozen=True)
class Onwards:
    """The problem as it was declared."""

    flow: Flow

    def rates(self, s: Tensor, z: Tensor, theta: Theta) -> tuple[Tensor, ...]:
        return (self.flow.slope(s, z, theta),)

    def integrals(self, theta: Theta) -> tuple[Tensor, ...]:
        return ()

    def own(self, flags: Flags) -> Flags:
        return ()

    def scale(self, z: Tensor, theta: Theta) -> Tensor:
        return torch.ones_like(z)


@dataclass(frozen=True)
class WayBack:
    """The way back of ``of`` with its cotangents: state ``(z, a)``, θ followed by the cotangents γ of the integrals,

    ``d/ds (z, a) = (-F, J'a + (dQ/dz)'γ)``, integrals ``∫ (dF/dθ)'a + (dQ/dθ)'γ ds``, s being counted from the end.
    """

    of: Field
    count: int
    """Tensors of θ."""

    def rates(self, s: Tensor, z: Tensor, theta: Theta) -> tuple[Tensor, ...]:
        y, a = z.chunk(2, 1)
        leaves, flags = theta.tensors[: self.count], theta.batched[: self.count]

        def forth(y: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
            return self.of.rates(1 - s, y, Theta(leaves, flags))

        (F, *_), pull = vjp(forth, y, *leaves)[:2]
        da, *slopes = pull((a, *theta.tensors[self.count :]))
        return (torch.cat((-F, da), 1), *slopes)

    def integrals(self, theta: Theta) -> tuple[Tensor, ...]:
        return theta.tensors[: self.count]

    def own(self, flags: Flags) -> Flags:
        return flags[: self.count]

    def scale(self, z: Tensor, theta: Theta) -> Tensor:
        return _two_scales(self.of, self.count, z, theta)


@dataclass(frozen=True)
class Tangent:
    """``of`` with its derivative along a motion: state ``(z, ż)``, θ followed by θ̇, the integrals followed by theirs."""

    of: Field
    count: int

    def rates(self, s: Tensor, z: Tensor, theta: Theta) -> tuple[Tensor, ...]:
        y, motion = z.chunk(2, 1)
        leaves, flags = theta.tensors[: self.count], theta.batched[: self.count]

        def forth(y: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
            return self.of.rates(s, y, Theta(leaves, flags))

        out, pull = vjp(forth, y, *leaves)[:2]
        # pull is linear in its argument: its own transpose is the derivative along the motion
        _, push = vjp(lambda *w: pull(w), *(torch.zeros_like(t) for t in out))[:2]
        moved = push((motion, *theta.tensors[self.count :]))
        return (torch.cat((out[0], moved[0]), 1), *out[1:], *moved[1:])

    def integrals(self, theta: Theta) -> tuple[Tensor, ...]:
        return 2 * self.of.integrals(Theta(theta.tensors[: self.count], theta.batched[: self.count]))

    def own(self, flags: Flags) -> Flags:
        return 2 * self.of.own(flags[: self.count])

    def scale(self, z: Tensor, theta: Theta) -> Tensor:
        return _two_scales(self.of, self.count, z, theta)


def _two_scales(of: Field, count: int, z: Tensor, theta: Theta) -> Tensor:
    """The second half of the state, and what drives it, enter linearly: they count relative to their size."""
    first, second = z.chunk(2, 1)
    units = of.scale(first, Theta(theta.tensors[:count], theta.batched[:count]))
    size = (second / units).abs().amax(-1, keepdim=True)
    for t, own in zip(theta.tensors[count:], theta.batched[count:], strict=True):
        if t.numel():
            size = torch.maximum(size, t.abs().reshape(len(t), -1).amax(-1, keepdim=True) if own else t.abs().amax())
    return torch.cat((units, units * torch.where(size > 0, size, 1.0)), 1)


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
        ctx.save_for_forward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        end, ok, start, *tensors = ctx.saved_tensors
        field = Onwards(ctx.rule.flow)
        return (None, None, *_pulled(ctx.rule, field, ok, start, end, tensors, grads[:1]))

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: tuple[Tensor, ...], *tangents: Any) -> tuple[Tensor, None]:
        _, ok, start, *tensors = saved
        (moved,) = _pushed(ctx.rule, Onwards(ctx.rule.flow), ok, start, tensors, tangents[2:])
        return moved, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], rule: Rule, ok: Tensor, y: Tensor, *tensors: Tensor) -> Any:
        size, batch = info.batch_size, len(ok) if in_dims[1] is None else ok.movedim(in_dims[1], 0).shape[1]
        flat, flags = merge(size, batch, (ok, y, *tensors), in_dims[1:], (True, True, *rule.flags))
        out = apply(_Stretch, Rule(rule.flow, flags[2:]), *flat)
        return tuple(unflatten(t, size) for t in out), (0, 0)


class _Path(torch.autograd.Function):
    """``z(0), θ -> z(1), q(1)`` of a field; zeros for elements that are not ``ok``. If ``known`` (B, .) is not empty, the
    first entries of z(1) should come out like it."""

    @staticmethod
    def forward(rule: Rule, field: Field, ok: Tensor, known: Tensor, z: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        theta = Theta(tuple(t.detach() for t in tensors), rule.flags)
        rows = torch.nonzero(ok).flatten()
        whole = [torch.zeros_like(t) for t in (z, *field.integrals(theta))]
        if not len(rows):
            return tuple(whole)
        some, start = theta.take(rows), z.detach()[rows]
        scale = field.scale(start, some)

        def rates(s: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            F, *Q = field.rates(s, scale * state[0], some)
            return (F / scale, *Q)

        end, *q = rule.flow.integrate(rates, (start / scale, *(torch.zeros_like(t) for t in field.integrals(some))))
        expected = known.detach()[rows] / scale[:, : known.shape[1]]
        _require_return(end[:, : known.shape[1]], expected, rule.flow.drift)
        own = (True, *field.own(rule.flags))
        pairs = zip(whole, (scale * end, *q), own, strict=True)
        return tuple(w.index_copy(0, rows, part) if o else part for w, part, o in pairs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.rule, ctx.field, ok, _, *tensors = inputs
        ctx.save_for_backward(output[0], ok, *tensors)
        ctx.save_for_forward(output[0], ok, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        end, ok, start, *tensors = ctx.saved_tensors
        return (None, None, None, None, *_pulled(ctx.rule, ctx.field, ok, start, end, tensors, grads))

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: tuple[Tensor, ...], *tangents: Any) -> tuple[Tensor, ...]:
        _, ok, start, *tensors = saved
        return _pushed(ctx.rule, ctx.field, ok, start, tensors, tangents[4:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], rule: Rule, field: Field, *tensors: Tensor) -> Any:
        size, dims = info.batch_size, list(in_dims[2:])
        batch = tensors[2].shape[0] if dims[2] is None else tensors[2].movedim(dims[2], 0).shape[1]
        # What the batch shares has an integral for each element of the mapped dimension, so it is no longer shared.
        wide = list(tensors)
        for k, own in enumerate(rule.flags, start=3):
            if not own:
                place = 0 if dims[k] is None else 1
                moved = wide[k] if dims[k] is None else wide[k].movedim(dims[k], 0)
                wide[k] = moved.unsqueeze(place).expand(*moved.shape[:place], batch, *moved.shape[place:])
                dims[k] = None if dims[k] is None else 0
        flat, flags = merge(size, batch, tuple(wide), tuple(dims), (True,) * len(wide))
        z, *q = (unflatten(t, size) for t in apply(_Path, Rule(rule.flow, flags[3:]), field, *flat))
        q = [t if own else t.sum(1) for t, own in zip(q, field.own(rule.flags), strict=True)]
        return (z, *q), (0,) * (1 + len(q))


def _pulled(
    rule: Rule, field: Field, ok: Tensor, start: Tensor, end: Tensor, tensors: list[Tensor], grads: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Gradients of z(0) and of the tensors of θ, for cotangents of ``(z(1), *q(1))``."""
    back, flags = WayBack(field, len(tensors)), (*rule.flags, *field.own(rule.flags))
    z = torch.cat((end, grads[0]), 1)
    found, *slopes = apply(_Path, Rule(rule.flow, flags), back, ok, start, z, *tensors, *grads[1:])
    return (found[:, start.shape[1] :], *slopes)


def _pushed(
    rule: Rule, field: Field, ok: Tensor, start: Tensor, tensors: list[Tensor], tangents: tuple[Any, ...]
) -> tuple[Tensor, ...]:
    """Tangents of ``(z(1), *q(1))``, for those of z(0) and of the tensors of θ."""
    motion = [torch.zeros_like(t) if d is None else d for t, d in zip((start, *tensors), tangents, strict=True)]
    along, z = Tangent(field, len(tensors)), torch.cat((start, motion[0]), 1)
    wider = Rule(rule.flow, 2 * rule.flags)
    found, *q = apply(_Path, wider, along, ok, start[:, :0], z, *tensors, *motion[1:])
    return (found[:, start.shape[1] :], *q[len(q) // 2 :])


def _require_return(found: Tensor, expected: Tensor, drift: float) -> None:
    if not found.shape[1]:
        return
    off = (found - expected).abs().amax(-1) / (1 + expected.abs().amax(-1))
    bad = int((~(off <= drift)).sum())
    if bad:
        raise DifferentiationError(
            f"The adjoint equation could not be integrated back for {bad} batch element(s): the dynamics forget "
            "where they started. Use adjoint=Unrolled(), or more times= in between, or a smaller rtol."
        )


def drift(error: float) -> float:
    """What the way back may be off, for these tolerances of a step."""
    return _DRIFT * error

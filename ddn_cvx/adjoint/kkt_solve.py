"""Solving with the KKT matrix of a nonlinear program, as a differentiable function of everything K is made of.

K is symmetric, and so is its derivative: ``a' dK b`` is the third derivative of the Lagrangian along a, b and the change,
two reverse passes and one more. So reverse and forward mode of any order need only further solves with the same factor.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.func import grad

from ddn_cvx.adjoint.base import Adjoint
from ddn_cvx.adjoint.implicit import WeaklyActive
from ddn_cvx.adjoint.transforms import (
    Flags,
    apply,
    from_columns,
    merge,
    refuse_second_derivatives,
    refuse_singular,
    remember_signature,
    stacked,
    to_columns,
    unflatten,
)
from ddn_cvx.errors import DeclarationError
from ddn_cvx.forward_mode import forward_rule
from ddn_cvx.program.active_kkt import Factors
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.program.optimality import Active, State

Parts = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of w or of a right-hand side: ``(B, n), (B, p), (B, m), (B, n)``, possibly with columns ``(B, ., k)``."""


class Solved(NamedTuple):
    """A solved batch; elements that are not ``ok`` hold zeros."""

    state: State
    """Where the conditions are linearised."""
    active: Active
    ok: Tensor
    answer: State
    """What the layer returns; the same for an exact derivative."""


class Solves(Protocol):
    """Where the KKT matrix comes from: ``program.active_kkt.Factors``, or something in its place."""

    def at(self, theta: Theta, state: State, active: Active, ok: Tensor) -> Any:
        """An object with ``solve(top, h, g, z)``."""


class NonlinearSolve(Protocol):
    """The opaque forward computation, called with physical (unwrapped) tensors."""

    @property
    def program(self) -> NonlinearProgram:
        """The program that is linearised."""

    @property
    def factors(self) -> Solves:
        """Its KKT matrices."""

    @property
    def inexact(self) -> str | None:
        """Why there are no second derivatives, and derivatives of the variables only; None if all is exact."""

    def __call__(self, theta: Theta, batch: int) -> Solved:
        """Solve ``batch`` elements."""

    def perturbed(self, theta: Theta, push: Tensor, start: State) -> tuple[State, Tensor]:
        """The solution of the same problem with ``push . y`` added to the objective, and which elements have one."""

    @property
    def kinks(self) -> bool:
        """Whether some element solved so far has a weakly active constraint."""

    @property
    def failures(self) -> bool:
        """Whether some element so far was not solved."""


class NonlinearAdjoint(Adjoint):
    """An adjoint for nonlinear problems, too."""

    @abstractmethod
    def attach_nonlinear(self, solve: NonlinearSolve, theta: Theta, batch: int) -> Solved:
        """Run ``solve(theta, batch)`` and return its result as a differentiable function of ``theta``."""


@dataclass(frozen=True)
class Rule:
    """What does not change between the pieces of one derivative."""

    solve: NonlinearSolve
    flags: Flags
    kink: WeaklyActive

    @property
    def program(self) -> NonlinearProgram:
        """The program."""
        return self.solve.program


def lagrangian_slope(program: NonlinearProgram, theta: Theta, at: tuple[Tensor, ...], w: tuple[Tensor, ...]) -> Tensor:
    """The derivative of ``Σ L`` along ``w`` in ``(y, λ, μ)``."""
    y, lam, mu = at

    def lagrangian(y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        f, h, g = program.values(y, theta)
        return f.sum() + (lam * h).sum() + (mu * g).sum(), (h, g)

    slope, (h, g) = grad(lagrangian, has_aux=True)(y)
    return (w[0] * slope).sum() + (w[1] * h).sum() + (w[2] * g).sum()


class LinearSolve(torch.autograd.Function):
    """``K (u, t) = right`` for k columns, differentiable in the right-hand side and in ``(y, λ, μ, θ)``, on which K depends.

    K is symmetric; so is its derivative, ``a' dK b`` being the third derivative of L along a, b and the change.
    """

    @staticmethod
    def forward(rule: Rule, *tensors: Tensor) -> tuple[Tensor, ...]:
        theta, (y, lam, mu, g, box, ok), right = _split(rule, tuple(t.detach() for t in tensors))
        kkt = rule.solve.factors.at(theta, State(y, lam, mu, torch.zeros_like(y)), Active(g, box), ok)
        return kkt.solve(*right)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.rule, *tensors = inputs
        ctx.save_for_backward(*tensors[:-4], *output)
        ctx.save_for_forward(*tensors[:-4], *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rule: Rule = ctx.rule
        theta, at, first = _split(rule, ctx.saved_tensors)
        other = cast(Parts, apply(LinearSolve, rule, *theta.tensors, *at, *grads))
        places = [k for k, needed in enumerate(ctx.needs_input_grad[1:-7]) if needed]
        found: list[Tensor | None] = [None] * (len(theta.tensors) + 6)
        if places:
            _require_exact(rule)
            leaves = [*theta.tensors, *at[:3]]
            slopes = grad(_third(rule, places, leaves, first), 1)(other[:3], [leaves[k] for k in places])
            for k, slope in zip(places, slopes, strict=True):
                found[k] = -slope
        return (None, *found, *other)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: tuple[Tensor, ...], *tangents: Any) -> tuple[Tensor, ...]:
        rule: Rule = ctx.rule
        theta, at, first = _split(rule, saved)
        leaves = [*theta.tensors, *at[:3]]
        moving = [k for k, t in enumerate(tangents[1 : 1 + len(leaves)]) if t is not None]
        right = [torch.zeros_like(f) if t is None else t for f, t in zip(first, tangents[-4:], strict=True)]
        if moving:
            _require_exact(rule)
            third = _third(rule, moving, leaves, first)

            def paired(weights: tuple[Tensor, ...]) -> Tensor:
                slopes = grad(third, 1)(weights, [leaves[k] for k in moving])
                pairs = zip(slopes, (tangents[1 + k] for k in moving), strict=True)
                return cast(Tensor, sum((s * t).sum() for s, t in pairs))

            bend = grad(paired)(tuple(torch.zeros_like(f) for f in first[:3]))
            right = [*(r - b for r, b in zip(right[:3], bend, strict=True)), right[3]]
        return apply(LinearSolve, rule, *theta.tensors, *at, *right)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], rule: Rule, *tensors: Tensor) -> Any:
        size, dims = info.batch_size, in_dims[1:]
        if all(d is None for d in dims[:-4]):
            # One factor, many right-hand sides: the mapped dimension becomes columns.
            wide = [to_columns(t, d, size) for t, d in zip(tensors[-4:], dims[-4:], strict=True)]
            out = apply(LinearSolve, rule, *tensors[:-4], *wide)
            return tuple(from_columns(o, size) for o in out), (0,) * 4
        own = (*rule.flags, *(True,) * 10)
        batch = tensors[-1].shape[0] if dims[-1] is None else tensors[-1].movedim(dims[-1], 0).shape[1]
        flat, flags = merge(size, batch, tensors, dims, own)
        out = apply(LinearSolve, Rule(rule.solve, flags[: len(rule.flags)], rule.kink), *flat)
        return tuple(unflatten(o, size) for o in out), (0,) * 4


def _split(rule: Rule, tensors: tuple[Tensor, ...]) -> tuple[Theta, tuple[Tensor, ...], Parts]:
    k = len(rule.flags)
    return Theta(tuple(tensors[:k]), rule.flags), tuple(tensors[k : k + 6]), cast(Parts, tuple(tensors[k + 6 :]))


def _third(rule: Rule, places: list[int], leaves: list[Tensor], first: Parts) -> Any:
    """``(a, values) -> Σ a' K b`` with ``b = first``; ``values`` take the places of some of ``leaves = (*θ, y, λ, μ)``."""
    columns = first[0].shape[-1]
    b = tuple(stacked(t) for t in first[:3])

    def third(a: tuple[Tensor, ...], values: list[Tensor]) -> Tensor:
        new = list(leaves)
        for place, value in zip(places, values, strict=True):
            new[place] = value
        theta = Theta(tuple(new[:-3]), rule.flags)
        theta = theta if columns == 1 else theta.tile(columns)
        at = tuple(t if columns == 1 else t.repeat(columns, 1) for t in new[-3:])

        def along(at: tuple[Tensor, ...]) -> Tensor:
            return lagrangian_slope(rule.program, theta, at, b)

        return cast(Tensor, sum((stacked(s) * t).sum() for s, t in zip(a, grad(along)(at), strict=True)))

    return third


def require_dense(program: NonlinearProgram, name: str) -> None:
    """Refuse programs too large for matrices.

    Raises
    ------
    DeclarationError
    """
    if not program.is_dense:
        size = f"n + p + m = {program.n + program.p + program.m}"
        raise DeclarationError(f"{name}() forms matrices, and {size} is too much for that; use adjoint=Implicit().")


def _require_exact(rule: Rule) -> None:
    if rule.solve.inexact is not None:
        refuse_second_derivatives(rule.solve.inexact)
    kkt = cast(Factors, rule.solve.factors).last
    refuse_singular(0 if kkt is None else int(kkt.singular.any.sum()))


remember_signature(LinearSolve.forward)

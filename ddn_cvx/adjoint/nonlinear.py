"""Implicit differentiation of a nonlinear program: the one opaque map ``θ -> (y, λ, μ, z)`` and its derivatives.

At a regular solution the conditions ``grad_y L + z = 0, h = 0, g_a = 0, y_b = bound_b`` (a, b: what is active) determine
``w = (y, λ, μ_a, z_b)`` as a function of θ (Gould, Hartley & Campbell, "Deep declarative networks", 2021, propositions
4.5 and 4.6). For a cotangent v one symmetric system ``K (u, t) = v`` (``program.active_kkt``) gives

    grad_θ = - d/dθ [ u . grad_y L  +  t_h . h  +  t_g . g  +  t_z . (y - bound) ]

which is one reverse pass through the user's functions; neither the Jacobian of the solution nor the mixed derivatives are
formed. Solving with K is itself a differentiable function of (y, λ, μ, θ), so second derivatives are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import grad

from ddn_cvx.adjoint.implicit import WeaklyActive
from ddn_cvx.adjoint.kkt_solve import LinearSolve, NonlinearSolve, Parts, Rule, Solved, lagrangian_slope
from ddn_cvx.adjoint.transforms import apply, merge, remember_signature, unflatten
from ddn_cvx.forward_mode import forward_rule
from ddn_cvx.linalg.blocks import per_element
from ddn_cvx.linalg.elements import take
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.program.optimality import Active, State


def solution_map(solve: NonlinearSolve, theta: Theta, batch: int, kink: WeaklyActive) -> Solved:
    """``solve(theta)`` as a differentiable function of ``theta``."""
    some = theta.tensors[0] if theta.tensors else None
    carrier = torch.empty(batch, device=None if some is None else some.device)
    out = apply(_SolutionMap, Rule(solve, theta.batched, kink), carrier, *theta.tensors)
    answer = State(*out[:4])
    return Solved(answer, Active(*out[4:6]), out[6], answer)


class _SolutionMap(torch.autograd.Function):
    """``θ -> (y, λ, μ, z, active.g, active.box, ok)``; the first tensor only carries the size of the batch.

    Where the derivative is not exact z has none, and the point of linearisation follows as four further outputs.
    """

    @staticmethod
    def forward(rule: Rule, carrier: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        solved = rule.solve(Theta(tuple(t.detach() for t in tensors), rule.flags), len(carrier))
        further = () if rule.solve.inexact is None else tuple(t.clone() for t in solved.state)
        # New tensors: what the solve remembers must not refer to this node, which refers to the solve.
        return tuple(t.detach() for t in (*solved.answer, *solved.active, solved.ok, *further))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.rule, _, *tensors = inputs
        ctx.mark_non_differentiable(*output[4 if ctx.rule.solve.inexact is None else 3 :])
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rule: Rule = ctx.rule
        at = At.of(rule, ctx.saved_tensors)
        asked = grads[:4] if rule.solve.inexact is None else (*grads[:2], at.padded(grads[2]), torch.zeros_like(at.state.y))
        right = tuple(at.where_ok(g).unsqueeze(-1) for g in asked)
        w = _respond(at, cast(Parts, right), None)
        wanted = [k for k, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        found: list[Tensor | None] = [None] * len(at.tensors)
        if wanted:
            slopes = _slopes(rule, at.safe(), w, wanted)
            for k, slope in zip(wanted, slopes, strict=True):
                found[k] = at.clean(slope, rule.flags[k])
        return (None, None, *found)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: tuple[Tensor, ...], *tangents: Any) -> tuple[Any, ...]:
        rule: Rule = ctx.rule
        at = At.of(rule, saved)
        safe = at.safe()
        moving = [k for k, t in enumerate(tangents[2:]) if t is not None]
        moves = [tangents[2 + k] for k in moving]

        def paired(weights: Parts) -> Tensor:
            def inner(*some: Tensor) -> Tensor:
                return _weighted(rule, safe.replaced(moving, some), weights)

            slopes = grad(inner, tuple(range(len(moving))))(*(safe.tensors[k] for k in moving))
            return cast(Tensor, sum((s * m).sum() for s, m in zip(slopes, moves, strict=True)))

        # paired is linear in the weights: its gradient is the motion of the conditions.
        y, lam, mu, _ = at.state
        zero: Parts = (torch.zeros_like(y), torch.zeros_like(lam), torch.zeros_like(mu), torch.zeros_like(y))
        motion = grad(paired)(zero) if moving else zero
        right = cast(Parts, tuple(-at.where_ok(t).unsqueeze(-1) for t in motion))
        w = _respond(at, right, right)
        if rule.solve.inexact is None:
            return (*w, *(None,) * 3)
        return (*w[:2], w[2][:, : at.inequalities], *(None,) * 8)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], rule: Rule, carrier: Tensor, *tensors: Tensor) -> Any:
        size = info.batch_size
        flat, flags = merge(size, len(carrier), tensors, in_dims[2:], rule.flags)
        wide = carrier.new_empty(size * len(carrier))
        outputs = apply(_SolutionMap, Rule(rule.solve, flags, rule.kink), wide, *flat)
        return tuple(unflatten(t, size) for t in outputs), (0,) * len(outputs)


@dataclass(frozen=True)
class At:
    """A solved batch with its parameters."""

    rule: Rule
    tensors: tuple[Tensor, ...]
    state: State
    active: Active
    ok: Tensor
    inequalities: int
    """Of the program as declared; where it is linearised there may be more."""

    @staticmethod
    def of(rule: Rule, saved: tuple[Tensor, ...]) -> At:
        k = len(rule.flags)
        state = saved[k : k + 4] if rule.solve.inexact is None else saved[k + 7 :]
        inequalities = saved[k + 2].shape[1]
        return At(rule, tuple(saved[:k]), State(*state), Active(*saved[k + 4 : k + 6]), saved[k + 6], inequalities)

    @property
    def theta(self) -> Theta:
        return Theta(self.tensors, self.rule.flags)

    def replaced(self, places: list[int], values: tuple[Tensor, ...]) -> At:
        """With other parameters in some places."""
        tensors = list(self.tensors)
        for place, value in zip(places, values, strict=True):
            tensors[place] = value
        return At(self.rule, tuple(tensors), self.state, self.active, self.ok, self.inequalities)

    def padded(self, mu: Tensor) -> Tensor:
        """With zeros for the inequalities that were not declared."""
        return torch.nn.functional.pad(mu, (0, self.state.mu.shape[1] - self.inequalities))

    def where_ok(self, tensor: Tensor) -> Tensor:
        if not self.rule.solve.failures:
            return tensor
        return torch.where(per_element(self.ok, tensor), tensor, 0.0)

    def clean(self, slope: Tensor, own: bool) -> Tensor:
        """A gradient without the rows of failed elements."""
        if not self.rule.solve.failures:
            return slope
        return self.where_ok(slope) if own else torch.where(self.ok.any(), slope, 0.0)

    def safe(self) -> At:
        """With failed elements replaced by a good one: zero times the user's functions there would be NaN."""
        if not self.rule.solve.failures:
            return self
        order = torch.arange(len(self.ok), device=self.ok.device)
        rows = torch.where(self.ok, order, self.ok.to(torch.int64).argmax())
        state = take(self.state, rows)
        active = take(self.active, rows)
        tensors = tuple(t[rows] if own else t for t, own in zip(self.tensors, self.rule.flags, strict=True))
        return At(self.rule, tensors, state, active, self.ok, self.inequalities)


def _weighted(rule: Rule, at: At, w: Parts) -> Tensor:
    """``Σ w_y . grad_y L + w_h . h + w_g . g - w_z . bound``, a number; plain torch."""
    y, lam, mu, _ = at.state
    total = lagrangian_slope(rule.program, at.theta, (y, lam, mu), w[:3])
    return total - _weighted_bounds(rule, at, w) if rule.program.has_bounds else total


def _weighted_bounds(rule: Rule, at: At, w: Parts) -> Tensor:
    lower, upper = rule.program.bounds(at.theta, at.state.y)
    side = at.active.box
    return (w[3] * torch.where(side > 0, upper, torch.where(side < 0, lower, 0.0))).sum()


def _slopes(rule: Rule, at: At, w: Parts, wanted: list[int]) -> Sequence[Tensor]:
    """Minus the derivatives of ``_weighted`` with respect to some of the parameters."""
    program, (y, lam, mu, _) = rule.program, at.state
    known = None if torch.is_grad_enabled() else program.pulled(y, at.theta, lam, mu, *w[:3])
    if known is not None and not program.has_bounds:
        return [-known[k] for k in wanted]

    def paired(*some: Tensor) -> Tensor:
        there = at.replaced(wanted, some)
        return _weighted_bounds(rule, there, w) if known is not None else -_weighted(rule, there, w)

    found = grad(paired, tuple(range(len(wanted))))(*(at.tensors[k] for k in wanted))
    return found if known is None else [slope - known[k] for slope, k in zip(found, wanted, strict=True)]


def _respond(at: At, right: Parts, motion: Parts | None) -> Parts:
    """``K w = right``, with one column, for the element of the generalised Jacobian that is asked for.

    "descent": reverse mode treats a weakly active constraint as inactive where descent of the loss leaves it, and as
    active where descent would cross it; forward mode, which knows where the parameters go (``motion``), follows the
    constraint or leaves it accordingly.
    """
    kink = at.rule.kink if at.rule.solve.kinks else "inactive"
    if kink == "active":
        return squeezed(columns(at, at.active.all, right))
    free = columns(at, at.active.strong, right)
    if kink == "inactive":
        return squeezed(free)
    if kink == "average":
        tight = columns(at, at.active.all, right)
        return squeezed(cast(Parts, tuple(0.5 * (a + b) for a, b in zip(free, tight, strict=True))))
    safe, u = at.safe(), at.where_ok(free[0].detach().squeeze(-1))
    push_g, push_box = _push(at.rule.program, safe, u), u
    if motion is None:
        push_g, push_box = -push_g, -push_box
    else:  # the right-hand side is minus the motion of the conditions
        push_g, push_box = push_g - motion[2].squeeze(-1), push_box - motion[3].squeeze(-1)
    side = at.active.box.sign()
    strong = at.active.strong
    g = torch.where((at.active.g == 0.5) & (push_g > 0), 1.0, strong.g)
    box = torch.where((at.active.box.abs() == 0.5) & (push_box * side > 0), side, strong.box)
    return squeezed(columns(at, Active(g, box), right))


def _push(program: NonlinearProgram, at: At, v: Tensor) -> Tensor:
    """``Jg v`` by two reverse passes."""

    def pulled(w: Tensor) -> Tensor:
        return (v * grad(lambda y: (w * program.values(y, at.theta)[2]).sum())(at.state.y)).sum()

    return grad(pulled)(torch.zeros_like(at.state.mu))


def squeezed(parts: Parts) -> Parts:
    return cast(Parts, tuple(t.squeeze(-1) for t in parts))


def columns(at: At, active: Active, right: Parts) -> Parts:
    y, lam, mu, _ = at.state
    out = apply(LinearSolve, at.rule, *at.tensors, y, lam, mu, active.g.detach(), active.box.detach(), at.ok, *right)
    return cast(Parts, out)


remember_signature(_SolutionMap.forward)

"""Implicit differentiation of ``F(y; θ) = 0``: the one opaque map ``θ -> y`` and its derivatives.

At a root with ``J = dF/dy`` invertible, ``J dy = -dF`` (implicit function theorem). For a cotangent v one system
``J'w = v`` gives ``grad_θ = -d/dθ [w . F]``: one reverse pass through the user's function, whatever the forward pass did.
For a fixed point ``-J = I - df/dy``, the adjoint of a deep equilibrium model (Bai, Kolter & Koltun 2019, theorem 1).
Solving with J is itself a differentiable function of (y, θ), so second derivatives are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.func import grad

from ddn_cvx.adjoint.transforms import Flags, apply, from_columns, merge, remember_signature, stacked, to_columns, unflatten
from ddn_cvx.errors import DifferentiationError
from ddn_cvx.forward_mode import forward_rule
from ddn_cvx.linalg.blocks import per_element
from ddn_cvx.linalg.general import GeneralFactor
from ddn_cvx.linalg.gmres import gmres
from ddn_cvx.program.nonlinear import Theta
from ddn_cvx.program.root import RootProgram

_KRYLOV_NUMBERS = 2**22  # in as many right-hand sides as are solved at once; their Krylov spaces hold fifty times that


class RootSolved(NamedTuple):
    """A solved batch; elements that are not ``ok`` hold zeros."""

    y: Tensor
    scale: Tensor
    """What the rows of J are compared with, ``(B, n)``."""
    ok: Tensor


class RootSolve(Protocol):
    """The opaque forward computation, called with physical (unwrapped) tensors."""

    program: RootProgram
    singular: int
    """How many elements of the latest linear solve had a singular Jacobian."""

    def __call__(self, theta: Theta, batch: int) -> RootSolved:
        """Solve ``batch`` elements."""

    def factor(self, y: Tensor) -> GeneralFactor | None:
        """The factor of the Jacobian at ``y``, if it is still known."""


@dataclass(frozen=True)
class Rule:
    """What does not change between the pieces of one derivative."""

    solve: RootSolve
    flags: Flags
    transpose: bool = False


def root_map(solve: RootSolve, theta: Theta, batch: int) -> RootSolved:
    """``solve(theta)`` as a differentiable function of ``theta``."""
    some = theta.tensors[0] if theta.tensors else None
    carrier = torch.empty(batch, device=None if some is None else some.device)
    return RootSolved(*apply(_RootMap, Rule(solve, theta.batched), carrier, *theta.tensors))


class _RootMap(torch.autograd.Function):
    """``θ -> (y, scale, ok)``; the first tensor only carries the size of the batch."""

    @staticmethod
    def forward(rule: Rule, carrier: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        solved = rule.solve(Theta(tuple(t.detach() for t in tensors), rule.flags), len(carrier))
        # New tensors: what the solve remembers must not refer to this node, which refers to the solve.
        return tuple(t.detach() for t in solved)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.rule, _, *tensors = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rule: Rule = ctx.rule
        tensors, y, scale, ok = _split(rule, ctx.saved_tensors)
        w = _where(ok, _solved(rule, True, tensors, y, scale, ok, _where(ok, grads[0])))
        tensors, y = _safe(rule, tensors, y, ok)
        wanted = [k for k, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        found: list[Tensor | None] = [None] * len(tensors)
        if wanted:
            slopes = grad(lambda some: -(w * _residual(rule, _replaced(tensors, wanted, some), y)).sum())(
                [tensors[k] for k in wanted]
            )
            for k, slope in zip(wanted, slopes, strict=True):
                found[k] = _where(ok, slope) if rule.flags[k] else torch.where(ok.any(), slope, 0.0)
        return (None, None, *found)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: tuple[Tensor, ...], *tangents: Any) -> tuple[Any, ...]:
        rule: Rule = ctx.rule
        tensors, y, scale, ok = _split(rule, saved)
        moving = [k for k, t in enumerate(tangents[2:]) if t is not None]
        motion = torch.zeros_like(y)
        if moving:
            safe, at = _safe(rule, tensors, y, ok)

            def paired(w: Tensor) -> Tensor:
                slopes = grad(lambda some: (w * _residual(rule, _replaced(safe, moving, some), at)).sum())(
                    [safe[k] for k in moving]
                )
                return cast(Tensor, sum((s * tangents[2 + k]).sum() for s, k in zip(slopes, moving, strict=True)))

            motion = grad(paired)(motion)
        return (_solved(rule, False, tensors, y, scale, ok, -_where(ok, motion)), None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], rule: Rule, carrier: Tensor, *tensors: Tensor) -> Any:
        size = info.batch_size
        flat, flags = merge(size, len(carrier), tensors, in_dims[2:], rule.flags)
        wide = carrier.new_empty(size * len(carrier))
        outputs = apply(_RootMap, Rule(rule.solve, flags), wide, *flat)
        return tuple(unflatten(t, size) for t in outputs), (0,) * len(outputs)


class _JacobianSolve(torch.autograd.Function):
    """``J x = r``, or ``J'x = r``, for k columns ``(B, n, k)``; differentiable in r and in all that J depends on."""

    @staticmethod
    def forward(rule: Rule, *tensors: Tensor) -> Tensor:
        theta, y, scale, ok, right = _unpacked(rule, tuple(t.detach() for t in tensors))
        safe, at = _safe(rule, theta, y, ok)
        program = rule.solve.program
        if program.is_dense:
            factor = rule.solve.factor(y)
            if factor is None:
                factor = GeneralFactor(program.linearise(at, Theta(safe, rule.flags)).matrix(), scale, ok)
            rule.solve.singular = int(factor.singular.sum())
            return factor.solve(right, rule.transpose)
        rule.solve.singular = 0
        width = max(1, _KRYLOV_NUMBERS // max(1, y.numel()))
        return torch.cat([_by_products(rule, Theta(safe, rule.flags), at, ok, r) for r in right.split(width, -1)], -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rule, *tensors = inputs
        ctx.save_for_backward(*tensors[:-1], output)
        ctx.save_for_forward(*tensors[:-1], output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        rule: Rule = ctx.rule
        tensors, y, scale, ok, x = _unpacked(rule, ctx.saved_tensors)
        other = apply(_JacobianSolve, Rule(rule.solve, rule.flags, not rule.transpose), *tensors, y, scale, ok, grad_output)
        places = [k for k, needed in enumerate(ctx.needs_input_grad[1:-3]) if needed]
        found: list[Tensor | None] = [None] * (len(tensors) + 1)
        if places:
            _require_regular(rule)
            leaves = [*tensors, y]
            slopes = grad(_bilinear(rule, places, leaves, ok, x), 1)(other, [leaves[k] for k in places])
            for k, slope in zip(places, slopes, strict=True):
                found[k] = -slope
        return (None, *found, None, None, _first(other))

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: tuple[Tensor, ...], *tangents: Any) -> Tensor:
        rule: Rule = ctx.rule
        tensors, y, scale, ok, x = _unpacked(rule, saved)
        leaves = [*tensors, y]
        moving = [k for k, t in enumerate(tangents[1 : 1 + len(leaves)]) if t is not None]
        right = torch.zeros_like(x) if tangents[-1] is None else tangents[-1]
        if moving:
            _require_regular(rule)
            bilinear = _bilinear(rule, moving, leaves, ok, x)

            def paired(a: Tensor) -> Tensor:
                slopes = grad(bilinear, 1)(a, [leaves[k] for k in moving])
                return cast(Tensor, sum((s * tangents[1 + k]).sum() for s, k in zip(slopes, moving, strict=True)))

            right = right - grad(paired)(torch.zeros_like(x))
        return _first(apply(_JacobianSolve, rule, *tensors, y, scale, ok, right))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], rule: Rule, *tensors: Tensor) -> Any:
        size, dims = info.batch_size, in_dims[1:]
        if all(d is None for d in dims[:-1]):
            # One Jacobian, many right-hand sides: the mapped dimension becomes columns.
            wide = to_columns(tensors[-1], dims[-1], size)
            out = _first(apply(_JacobianSolve, rule, *tensors[:-1], wide))
            return from_columns(out, size), 0
        batch = tensors[-1].shape[0] if dims[-1] is None else tensors[-1].movedim(dims[-1], 0).shape[1]
        flat, flags = merge(size, batch, tensors, dims, (*rule.flags, *(True,) * 4))
        merged = Rule(rule.solve, flags[: len(rule.flags)], rule.transpose)
        return unflatten(_first(apply(_JacobianSolve, merged, *flat)), size), 0


def _solved(
    rule: Rule, transpose: bool, tensors: tuple[Tensor, ...], y: Tensor, scale: Tensor, ok: Tensor, right: Tensor
) -> Tensor:
    found = apply(_JacobianSolve, Rule(rule.solve, rule.flags, transpose), *tensors, y, scale, ok, right.unsqueeze(-1))
    return _first(found).squeeze(-1)


def _by_products(rule: Rule, theta: Theta, y: Tensor, ok: Tensor, right: Tensor) -> Tensor:
    """``(B, n, k) -> (B, n, k)`` by GMRES.

    Raises
    ------
    DifferentiationError
        It does not converge.
    """
    columns = right.shape[-1]
    linear = rule.solve.program.linearise(y.repeat(columns, 1), theta.tile(columns))
    eps = torch.finfo(y.dtype).eps
    found = gmres(linear.pull if rule.transpose else linear.push, stacked(right), 1e3 * eps)
    poor = int((~(found.residual <= eps**0.4) & ok.repeat(columns)).sum())
    if poor:
        raise DifferentiationError(
            f"The linear system of the derivative could not be solved for {poor} batch element(s): the Jacobian of the "
            "equations is singular or nearly so (see Solution.regularity). Make the map a contraction, or the root a "
            'simple one; on_failure="nan" does not help, because the points themselves are solutions.'
        )
    return found.x.unflatten(0, (columns, len(y))).movedim(0, -1)


def _first(found: Any) -> Tensor:
    """``apply`` is declared to return a tuple, but a function of one output returns it bare."""
    assert isinstance(found, Tensor)
    return found


def _bilinear(rule: Rule, places: list[int], leaves: list[Tensor], ok: Tensor, x: Tensor) -> Any:
    """``(a, values) -> Σ a' J x`` (transposed: ``Σ x' J a``); ``values`` take the places of some of ``leaves = (*θ, y)``."""

    def bilinear(a: Tensor, values: list[Tensor]) -> Tensor:
        new = _replaced(tuple(leaves), places, values)
        tensors, y = _safe(rule, new[:-1], new[-1], ok)
        columns = x.shape[-1]
        theta, y = Theta(tensors, rule.flags).tile(columns), y.repeat(columns, 1)
        rows, along = (stacked(x), stacked(a)) if rule.transpose else (stacked(a), stacked(x))

        def weighted(y: Tensor) -> Tensor:
            return (rows * rule.solve.program.residual(y, theta)).sum()

        return (grad(weighted)(y) * along).sum()

    return bilinear


def _residual(rule: Rule, tensors: tuple[Tensor, ...], y: Tensor) -> Tensor:
    return rule.solve.program.residual(y, Theta(tensors, rule.flags))


def _split(rule: Rule, saved: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    k = len(rule.flags)
    return tuple(saved[:k]), saved[k], saved[k + 1], saved[k + 2]


def _unpacked(rule: Rule, saved: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor, Tensor]:
    return (*_split(rule, saved), saved[-1])


def _replaced(tensors: tuple[Tensor, ...], places: list[int], values: Any) -> tuple[Tensor, ...]:
    new = list(tensors)
    for place, value in zip(places, values, strict=True):
        new[place] = value
    return tuple(new)


def _where(ok: Tensor, tensor: Tensor) -> Tensor:
    return torch.where(per_element(ok, tensor), tensor, 0.0)


def _safe(rule: Rule, tensors: tuple[Tensor, ...], y: Tensor, ok: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """With failed elements replaced by a good one: zero times the user's function there would be NaN."""
    rows = torch.where(ok, torch.arange(len(ok), device=ok.device), ok.to(torch.int64).argmax())
    return tuple(t[rows] if own else t for t, own in zip(tensors, rule.flags, strict=True)), y[rows]


def _require_regular(rule: Rule) -> None:
    if rule.solve.singular:
        raise DifferentiationError(
            f"Second derivatives are not available at {rule.solve.singular} batch element(s) where the Jacobian of the "
            "equations is singular (see Solution.regularity)."
        )


remember_signature(_RootMap.forward)
remember_signature(_JacobianSolve.forward)

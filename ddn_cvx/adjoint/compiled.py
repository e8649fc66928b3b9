"""The implicit derivative of small programs, from parameters to solution in compiled code.

The mathematics is that of ``adjoint.implicit``. Between the parameters and the solution nothing of the size of the
problem data is seen by autograd: the gradient goes from the KKT system straight to the parameters. A derivative of the
derivative is asked from the map in torch, at the solution that is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from ddn_cvx.adjoint.base import Adjoint, Solve
from ddn_cvx.adjoint.implicit import Implicit
from ddn_cvx.kernels import conic_newton, kkt_once, separable, spectrum, substitution
from ddn_cvx.kernels.jit import Task, sweep
from ddn_cvx.kernels.lanes import LANES
from ddn_cvx.kernels.memory import empty
from ddn_cvx.program.base import Binding
from ddn_cvx.program.conic import ConicData

Array = NDArray[np.float64]
_DEFAULT = Implicit()


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether these are ordinary CPU tensors: no ``torch.func`` transform, no forward mode."""
    if torch._C._are_functorch_transforms_active() or not all(t.is_cpu for t in tensors):
        return False
    # Outside of forward mode, which has levels from zero on, there is no tangent to look for.
    return forward_ad._current_level < 0 or all(forward_ad.unpack_dual(t).tangent is None for t in tensors)


def attach(
    adjoint: Adjoint, solve: SolveParameters, binding: Binding, pieces: Sequence[Tensor], extra: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run ``solve(data, finite, parameters, *extra)`` with what ``binding.bind(pieces)`` gives, and return its
    ``(x, v, ok)`` as differentiable functions of the pieces: compiled if the adjoint is the default one."""
    if adjoint == _DEFAULT and are_plain(pieces) and binding.compiled is not None:
        u, ends = _joined(pieces)
        if binding.is_ordinary(u):
            out = _CompiledMap.apply(solve, binding, adjoint, extra, u, ends, *pieces)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return cast(tuple[Tensor, Tensor, Tensor], out)
    return _in_torch(adjoint, solve, binding, pieces, extra)


def _in_torch(
    adjoint: Adjoint, solve: Solve, binding: Binding, pieces: Sequence[Tensor], extra: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    bound = binding.bind(pieces)
    return adjoint.attach(solve, bound.data, (bound.finite, bound.parameters, *extra))


class SolveParameters(Solve, Protocol):
    """A solve that knows the compiled map from parameters to data, ``binding.compiled``."""

    def from_parameters(self, u: Array, *extra: Tensor) -> tuple[ConicData, tuple[Tensor, Tensor, Tensor]]:
        """The data for parameter vectors u (B, k), and ``(x, v, ok)``."""


class _Known:
    """A solve whose answer is there already."""

    def __init__(self, solve: Solve, answer: tuple[Tensor, Tensor, Tensor]):
        self.program, self.factors, self.again, self.answer = solve.program, solve.factors, solve.again, answer

    def __call__(self, data: ConicData, *extra: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, v, ok = self.answer
        return x.clone(), v.clone(), ok.clone()


class _CompiledMap(torch.autograd.Function):
    """``pieces -> (x, v, ok)``. Without ``setup_context``, for which torch binds the arguments of every call anew; arrays
    are numpy's, for torch would start threads for large ones that then stand in the way of the kernels'."""

    @staticmethod
    def forward(
        ctx: Any,
        solve: SolveParameters,
        binding: Binding,
        adjoint: Adjoint,
        extra: tuple[Tensor, ...],
        u: Array,
        ends: list[int],
        *pieces: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        data, (x, v, ok) = solve.from_parameters(u, *extra)
        ctx.binding, ctx.solve, ctx.adjoint, ctx.u, ctx.ends, ctx.data = binding, solve, adjoint, u, ends, data
        ctx.save_for_backward(x, v, ok, *pieces)
        ctx.mark_non_differentiable(ok)
        ctx.differentiated = False
        # New tensors: what the solve remembers must not refer to this node, which refers to the solve.
        return x.detach(), v.detach(), ok.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, v, ok, *pieces = ctx.saved_tensors
        needed = ctx.needs_input_grad[6:]
        if torch.is_grad_enabled():
            with torch.enable_grad():
                known = _Known(ctx.solve, (x.detach(), v.detach(), ok))
                again = _in_torch(ctx.adjoint, known, ctx.binding, pieces, (ok,))
                wanted = [piece for piece, need in zip(pieces, needed, strict=True) if need]
                found = iter(torch.autograd.grad(again[:2], wanted, grads[:2], create_graph=True))
            gradients = [next(found) if need else None for need in needed]
        else:
            whole, start, gradients, whole_wanted = pull_back(ctx, x, v, ok, *grads[:2]), 0, [], all(needed)
            for piece, need in zip(pieces, needed, strict=True):
                stop = start + piece.numel()
                # A part of the whole keeps all of its memory: a copy, unless all of it is wanted.
                part = whole[start:stop] if whole_wanted else whole[start:stop].copy()
                gradients.append(torch.from_numpy(part.reshape(piece.shape)) if need else None)
                start = stop
        return (None, None, None, None, None, None, *gradients)


def _joined(pieces: Sequence[Tensor]) -> tuple[Array, list[int]]:
    """The parameter vectors ``(B, k)``, and where in k each piece ends."""
    parts = [_rows(piece.detach().numpy()) for piece in pieces]
    ends = [*accumulate(part.shape[1] for part in parts)]
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0]), ends
    return np.concatenate(parts, axis=1, out=empty(len(parts[0]), ends[-1])), ends


def _rows(array: Array) -> Array:
    """``(B, size)``."""
    return array if array.ndim == 2 else array.reshape(len(array), math.prod(array.shape[1:]))


def pull_back(ctx: Any, x: Tensor, v: Tensor, ok: Tensor, gx: Tensor, gv: Tensor) -> Array:
    """The gradient with respect to the parameters, piece after piece: ``J'(g, h) = (gx, gv)``, and from there back.

    The system is solved with factors that are not kept, unless there are some or this is not the first time. With curved
    cones, and for separable programs, it is done anew every time: with kept factors gradients differ by rounding.
    """
    binding, data, batch = ctx.binding, ctx.data, len(ctx.u)
    substituted, structure, curved = binding.compiled, binding.program.structure, binding.program.curved
    key = data.P, data.A, v, ok
    values = [t.numpy() for t in key]
    y = values[2]
    g, h, healthy = np.empty(gx.shape), np.empty(gv.shape), np.zeros(batch, np.bool_)
    projection = []
    if curved is not None:  # the way back is handed y in place of v, and nothing to project
        y, s = np.empty_like(y), np.empty_like(y)
        projection = [Task(spectrum.project, 100 * structure.m, (curved, values[2], y, s), LANES)]
    out, ends = empty(ctx.u.size), np.array(ctx.ends, np.int64)
    rows = structure if curved is None else structure._replace(zero=structure.m)
    arrays = ctx.u, x.numpy(), y, values[3], g, h, ends, out
    back = Task(substitution.pull_back, 10 * len(substituted.offset), (substituted, rows, *arrays))
    if curved is not None or structure.separable or (not ctx.differentiated and not ctx.solve.factors.holds(*key)):
        ctx.differentiated = True
        cotangent = [t.contiguous().numpy() for t in (gx, gv)]
        size = structure.n + structure.m
        work = 20 * size if structure.separable else structure.n**3 / 3 + 10 * size**2
        reverse = separable.reverse if structure.separable else kkt_once.reverse
        kernel, known, grain = (reverse, structure, 1) if curved is None else (conic_newton.reverse_once, curved, LANES)
        sweep(batch, [*projection, Task(kernel, work, (known, *values, *cotangent, g, h, healthy), grain), back])
        if healthy.all():
            return out
    found = ctx.solve.factors.at(*key).reverse(gx.unsqueeze(-1), gv.unsqueeze(-1))
    # An element's gradient must not depend on whether others are healthy.
    for whole, other in zip((g, h), found, strict=True):
        whole[~healthy] = other.squeeze(-1).numpy()[~healthy]
    sweep(batch, [back])
    return out

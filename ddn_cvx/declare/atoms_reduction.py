"""Torch rules of the atoms that reduce, or run, along axes: sums, extrema, norms, means, cumulative sums.

At ties ``max``, ``min`` and ``norm_inf`` share the derivative equally, and ``sum_largest``, ``dotsort`` and ``cummax`` give
it to the entries that the sort picked: subgradients of these convex functions. The norms have the subgradient 0 at 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cvxpy.expressions.constants.constant import Constant
from torch import Tensor

from ddn_cvx.declare.atoms_base import Node, align, aligned, lines, reduced_axes, reshaped, restored, rule, squared, two_norm

AXES = ("axis", "keepdims")


def _reduction(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda node, x: restored(node, function(lines(node, x)))


for _name, _function in {
    "Sum": lambda x: x.sum(-1),
    "Prod": lambda x: x.prod(-1),
    "max": lambda x: x.amax(-1),
    "min": lambda x: x.amin(-1),
    "norm1": lambda x: x.abs().sum(-1),
    "norm_inf": lambda x: x.abs().amax(-1),
    "log_sum_exp": lambda x: x.logsumexp(-1),
}.items():
    rule(_name, reads=AXES)(_reduction(_function))


def _quad_over_lin(atom: Any) -> dict[str, Any]:
    divisor = atom.args[1]
    one = isinstance(divisor, Constant) and divisor.is_scalar() and divisor.value == 1
    return {"axis": atom.axis, "keepdims": atom.keepdims, "sum_of_squares": one}


@rule("quad_over_lin", reads=_quad_over_lin)
def quad_over_lin(node: Node, x: Tensor, y: Tensor) -> Tensor:
    """``Σ|x|²/y`` along the axes."""
    total = restored(node, squared(lines(node, x)).sum(-1))
    if node.sum_of_squares:
        return total
    return total / align(reshaped(y, len(node.arg_shapes[1]), ()), 0, len(node.shape))


@rule("Pnorm", "PnormApprox", reads=lambda atom: {"p": float(atom.p), "axis": atom.axis, "keepdims": atom.keepdims})
def pnorm(node: Node, x: Tensor) -> Tensor:
    """``(Σ|xᵢ|ᵖ)^(1/p)``; for ``p < 1`` it is -inf where an entry is negative, for ``p < 0`` it is 0 where one is zero."""
    x, p = lines(node, x), node.p
    if p == 2:
        return restored(node, two_norm(x))
    if p < 1:
        out = x.pow(p).sum(-1).pow(1 / p)
        return restored(node, torch.where((x < 0).any(-1), -torch.inf, out))
    # An entry at zero is left out of the sum: |x|ᵖ has derivative 0 there, but autograd's second one is 0 · inf for p < 2.
    size = x.abs()
    zero = size == 0
    total = torch.where(zero, 0.0, torch.where(zero, 1.0, size).pow(p)).sum(-1)
    nothing = total == 0
    return restored(node, torch.where(nothing, 0.0, torch.where(nothing, 1.0, total).pow(1 / p)))


def _top_weights(atom: Any) -> dict[str, Any]:
    """1 for each of the k largest entries, and the fraction of the next one if k is not an integer."""
    node = Node(arg_shapes=(atom.args[0].shape,), axis=atom.axis)
    length = int(np.prod([atom.args[0].shape[a] for a in reduced_axes(node)]))
    weights = np.clip(float(atom.k) - np.arange(length), 0.0, 1.0)
    return {"axis": atom.axis, "keepdims": atom.keepdims, "weights": weights[weights > 0]}


@rule("sum_largest", reads=_top_weights)
def sum_largest(node: Node, x: Tensor, weights: Tensor) -> Tensor:
    largest = lines(node, x).topk(weights.shape[-1], dim=-1).values
    return restored(node, (largest * weights).sum(-1))


@rule("dotsort")
def dotsort(node: Node, x: Tensor, w: Tensor) -> Tensor:
    """The inner product of sorted ``x`` and sorted ``w``, the latter padded with zeros to the size of ``x``."""
    x, w = (reshaped(v, len(s), (int(np.prod(s)),)) for v, s in zip((x, w), node.arg_shapes, strict=True))
    padded = torch.nn.functional.pad(w, (0, x.shape[-1] - w.shape[-1]))
    return (x.sort(dim=-1).values * padded.sort(dim=-1).values).sum(-1)


def _mean_weights(atom: Any) -> dict[str, Any]:
    # cvxpy 1.9.0 has means of all entries only, and takes those of weight zero out of the argument itself.
    axis, keepdims = getattr(atom, "axis", None), getattr(atom, "keepdims", False)
    read = {"axis": axis, "keepdims": keepdims, "weights": np.array([float(w) for w in atom.w])}
    taken = np.asarray(getattr(atom, "_keep", True))
    return read if taken.all() else {**read, "taken": np.flatnonzero(taken).astype(np.int64)}


@rule("GeoMean", "GeoMeanApprox", reads=_mean_weights)
def geo_mean(node: Node, x: Tensor, weights: Tensor, taken: Tensor | None = None) -> Tensor:
    """``Π xᵢ^wᵢ`` over the entries with positive weight, weights in Fortran order."""
    x = lines(node, x, order="F")
    x = x if taken is None else x.index_select(-1, taken)
    return restored(node, (x.log() * weights).sum(-1).exp())


@rule("dist_ratio")
def dist_ratio(node: Node, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``‖x - a‖ / ‖x - b‖``."""
    x, a, b = aligned(node, x, a, b)
    ndim = max(map(len, node.arg_shapes))
    above, below = (reshaped(d, ndim, (int(np.prod(d.shape[d.ndim - ndim :])),)) for d in (x - a, x - b))
    return two_norm(above) / two_norm(below)


def _running(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(node: Node, x: Tensor) -> Tensor:
        ndim = len(node.arg_shapes[0])
        if node.axis is None or ndim == 0:
            return reshaped(function(reshaped(x, ndim, (int(np.prod(node.arg_shapes[0])),))), 1, node.shape)
        dim = int(node.axis) % ndim - ndim
        return function(x.movedim(dim, -1)).movedim(-1, dim)

    return run


for _name, _function in {
    "cummax": lambda x: x.cummax(-1).values,
    "cumprod": lambda x: x.cumprod(-1),
    "cumsum": lambda x: x.cumsum(-1),
}.items():
    rule(_name, reads=("axis",))(_running(_function))

"""What every torch rule of a cvxpy atom shares: the registry, and the arithmetic of shapes with leading batch dimensions.

An array of cvxpy shape ``shape`` is a tensor ``(*batch, *shape)``; the number of batch dimensions is only known when the
rule runs, so the helpers below count dimensions from the right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from cvxpy.expressions.constants.constant import Constant
from torch import Tensor

from ddn_cvx.errors import DeclarationError


class Node(SimpleNamespace):
    """What a rule knows of its atom: ``shape``, ``arg_shapes`` (of all operands) and the attributes that the rule reads."""


Rule = Callable[..., Tensor]
Reader = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """A rule and what it reads from the atom at compile time."""

    function: Rule
    reads: Reader


RULES: dict[str, Entry] = {}

UNSUPPORTED: dict[str, str] = {
    "SuppFuncAtom": "its value is itself an optimisation problem; declare the maximisation as constraints instead",
    "LogicExpression": "it is the base class of Not, And, Or and Xor and has no value",
    "_NaryLogicExpression": "it is the base class of And, Or and Xor and has no value",
}


def rule(*names: str, reads: Sequence[str] | Reader = ()) -> Callable[[Rule], Rule]:
    """Register ``function(node, *operands) -> Tensor`` as the torch rule of the atom classes called ``names``.

    Parameters
    ----------
    names : str
        Class names. Subclasses are not implied: ``log1p`` derives from ``log`` and is another function.
    reads : sequence of str or callable
        The attributes which the rule needs, or a function of the atom that returns them in a dictionary. A value that is a
        numpy array or a cvxpy expression (the exponent of ``power`` may be a Parameter) becomes a further operand, in
        order; anything else is an attribute of ``node``. The key ``"args"`` replaces ``atom.args``.
    """
    reader = reads if callable(reads) else _attributes(reads)

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = Entry(function, reader)
        return function

    return register


def _attributes(names: Sequence[str]) -> Reader:
    return lambda atom: {name: getattr(atom, name) for name in names}


def scalar(name: str) -> Reader:
    """Read an attribute that is a scalar Constant or Parameter: a float, or a further operand."""

    def read(atom: Any) -> dict[str, Any]:
        value = getattr(atom, name)
        return {name: float(value.value) if isinstance(value, Constant) else value}

    return read


def align(x: Tensor, ndim: int, target: int) -> Tensor:
    """``(*batch, *shape)`` with ``ndim`` dimensions in ``shape`` to ``(*batch, *ones, *shape)`` with ``target`` of them."""
    if ndim == target:
        return x
    return x[(..., *(None,) * (target - ndim), *(slice(None),) * ndim)]


def aligned(node: Node, *operands: Tensor) -> list[Tensor]:
    """All operands with as many trailing dimensions as the longest has, ready for torch broadcasting."""
    target = max(len(shape) for shape in node.arg_shapes)
    return [align(x, len(shape), target) for x, shape in zip(operands, node.arg_shapes, strict=True)]


def reshaped(x: Tensor, ndim: int, shape: tuple[int, ...]) -> Tensor:
    """Reshape the last ``ndim`` dimensions in C order."""
    return x.reshape(x.shape[: x.ndim - ndim] + shape)


def reshaped_fortran(x: Tensor, ndim: int, shape: tuple[int, ...]) -> Tensor:
    """Reshape the last ``ndim`` dimensions in Fortran order, the order of cvxpy."""
    return reversed_axes(reshaped(reversed_axes(x, ndim), ndim, shape[::-1]), len(shape))


def reversed_axes(x: Tensor, ndim: int) -> Tensor:
    """Reverse the order of the last ``ndim`` dimensions."""
    batch = x.ndim - ndim
    return x.permute((*range(batch), *reversed(range(batch, x.ndim))))


def same_batch(operands: Sequence[Tensor], ndim: int) -> list[Tensor]:
    """Expand the batch dimensions, all but the last ``ndim``, to their common shape."""
    batch = np.broadcast_shapes(*(x.shape[: x.ndim - ndim] for x in operands))
    return [x.expand(batch + x.shape[x.ndim - ndim :]) for x in operands]


def same_dtype(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both real or both complex, as products and triangular solves want them."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def reduced_axes(node: Node) -> list[int]:
    """The axes along which the atom reduces, ascending and nonnegative."""
    ndim = len(node.arg_shapes[0])
    if node.axis is None or ndim == 0:
        return list(range(ndim))
    return sorted(int(a) % ndim for a in (node.axis if isinstance(node.axis, (tuple, list)) else [node.axis]))


def lines(node: Node, x: Tensor, order: str = "C") -> Tensor:
    """Merge the axes along which the atom reduces into one last dimension: ``(*batch, *kept, length)``."""
    shape = node.arg_shapes[0]
    batch = x.ndim - len(shape)
    if len(shape) == 1:
        return x
    axes = reduced_axes(node)
    kept = [a for a in range(len(shape)) if a not in axes]
    moved = x.permute((*range(batch), *(batch + a for a in (*kept, *(axes if order == "C" else axes[::-1])))))
    return reshaped(moved, len(axes), (math.prod(shape[a] for a in axes),))


def restored(node: Node, y: Tensor) -> Tensor:
    """Put back the axes of length one that ``keepdims`` asks for, once the last dimension of :func:`lines` is reduced."""
    return reshaped(y, len(node.arg_shapes[0]) - len(reduced_axes(node)), node.shape) if node.keepdims else y


def real_product(x: Tensor, y: Tensor) -> Tensor:
    """``Re(conj(x) y)`` elementwise."""
    return x.real * y.real + x.imag * y.imag if x.is_complex() and y.is_complex() else x.real * y.real


def squared(x: Tensor) -> Tensor:
    """``|x|²``, real and smooth also for complex ``x``."""
    return real_product(x, x)


def two_norm(x: Tensor) -> Tensor:
    """Euclidean norm over the last dimension; at zero the (sub)gradient 0 and the Hessian 0 are taken."""
    square = squared(x).sum(-1)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def symmetrised(a: Tensor) -> Tensor:
    """``(A + Aᴴ)/2``."""
    return (a + a.mH) / 2


def no_rule(name: str, expression: object) -> DeclarationError:
    """The error for an atom that has no torch rule."""
    text = str(expression)
    text = text if len(text) <= 160 else text[:157] + "..."
    reason = UNSUPPORTED.get(name, "write the expression with other atoms")
    return DeclarationError(f"The atom {name} in {text!r} has no torch rule: {reason}.")

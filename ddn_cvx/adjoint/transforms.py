"""What every derivative needs that is an ``autograd.Function``: mapped dimensions moved into the batch and back, and errors
where a wrong number would be returned.
"""

from __future__ import annotations

import inspect
from typing import Any, Never, cast

from torch import Tensor

from ddn_cvx.errors import DifferentiationError

Flags = tuple[bool, ...]
"""For each tensor, whether it has a batch dimension of its own or is shared."""


def apply(function: Any, *args: Any) -> tuple[Tensor, ...]:
    """``function.apply``, which torch leaves untyped."""
    return cast(tuple[Tensor, ...], function.apply(*args))


def remember_signature(function: Any) -> None:
    """torch binds the arguments of every call through ``inspect``, which looks here before it takes the function apart."""
    function.__signature__ = inspect.signature(function)


def flatten(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Move a vmapped dimension into the batch: (V, B, ...) -> (V * B, ...)."""
    moved = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.reshape(size * moved.shape[1], *moved.shape[2:])


def unflatten(tensor: Tensor, size: int) -> Tensor:
    """(V * B, ...) -> (V, B, ...)."""
    return tensor.reshape(size, tensor.shape[0] // size if size else 0, *tensor.shape[1:])


def merge(
    size: int, batch: int, tensors: tuple[Tensor, ...], dims: tuple[Any, ...], own: Flags
) -> tuple[list[Tensor], Flags]:
    """Move a vmapped dimension into the batch: (V, B, ...) -> (V * B, ...); what is shared stays so unless it is mapped."""
    flat = []
    for tensor, dim, is_own in zip(tensors, dims, own, strict=True):
        if is_own:
            flat.append(flatten(tensor, dim, size))
        elif dim is None:
            flat.append(tensor)
        else:
            moved = tensor.movedim(dim, 0).unsqueeze(1)
            flat.append(flatten(moved.expand(size, batch, *moved.shape[2:]), 0, size))
    return flat, tuple(o or d is not None for o, d in zip(own, dims, strict=True))


def to_columns(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Move a vmapped dimension into the columns: (V, B, n, k) -> (B, n, k * V)."""
    moved = tensor.unsqueeze(-1).expand(*tensor.shape, size) if dim is None else tensor.movedim(dim, -1)
    return moved.flatten(2)


def from_columns(tensor: Tensor, size: int) -> Tensor:
    """(B, n, k * V) -> (V, B, n, k)."""
    return tensor.unflatten(2, (tensor.shape[2] // max(size, 1), size)).movedim(-1, 0)


def stacked(columns: Tensor) -> Tensor:
    """(B, n, k) -> (k * B, n)."""
    return columns.movedim(2, 0).flatten(0, 1)


def refuse_second_derivatives(reason: str) -> Never:
    """Raise where a derivative that is not exact would be differentiated again."""
    raise DifferentiationError(f"Second derivatives are not available: {reason}; use adjoint=Implicit().")


def refuse_singular(count: int) -> None:
    """Raise if there are batch elements, ``count`` of them, whose KKT system is singular: the minimum-norm derivative is
    not differentiable."""
    if count:
        raise DifferentiationError(
            f"Second derivatives are not available at {count} batch element(s) whose KKT system is singular "
            "(a valley of solutions or dependent active constraints; see Solution.regularity). "
            "Add a small quadratic term to the objective, or drop the redundant constraints."
        )

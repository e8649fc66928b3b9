"""Symmetric matrices that are dense, ``(B, n, n)``, or made of equal diagonal blocks, ``(B, g, s, s)`` with ``n = g s``."""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(H: Tensor) -> bool:
    """Whether ``H`` holds all entries, not blocks only."""
    return H.ndim == 3


def to_dense(H: Tensor) -> Tensor:
    """``(B, n, n)``."""
    if is_dense(H):
        return H
    batch, groups, size, _ = H.shape
    whole = H.new_zeros(batch, groups, size, groups, size)
    whole.diagonal(dim1=1, dim2=3).copy_(H.permute(0, 2, 3, 1))
    return whole.reshape(batch, groups * size, groups * size)


def times(H: Tensor, x: Tensor) -> Tensor:
    """``H x``, x ``(B, n, r)``."""
    if is_dense(H):
        return H @ x
    parts = x.reshape(*H.shape[:3], x.shape[-1])
    return (parts * H if H.shape[-1] == 1 else H @ parts).reshape(x.shape)


def row_sizes(H: Tensor) -> Tensor:
    """The largest entry of each row, ``(B, n)``."""
    if not H.shape[-1]:
        return H.new_zeros(H.shape[:-1]).flatten(1)
    return torch.maximum(H.amax(-1), -H.amin(-1)).flatten(1)


def per_element(t: Tensor, like: Tensor) -> Tensor:
    """One value of each element ``(B,)`` with as many dimensions as ``like``."""
    return t.reshape(-1, *(1,) * (like.ndim - 1))


def keep(H: Tensor, free: Tensor) -> Tensor:
    """``H`` with zeros in the rows and columns where ``free`` (B, n) is zero, else one."""
    free = free.reshape(H.shape[:-1])
    return H * free.unsqueeze(-1) * free.unsqueeze(-2)


def add_to_diagonal(H: Tensor, d: Tensor) -> None:
    """In place; d ``(B, n)``."""
    diagonal = H.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(d.reshape(diagonal.shape))


def identity_where(wrong: Tensor, H: Tensor) -> Tensor:
    """``H`` with the identity in the elements that are ``wrong`` (B,) bool."""
    return torch.where(per_element(wrong, H), torch.eye(H.shape[-1], dtype=H.dtype, device=H.device), H)

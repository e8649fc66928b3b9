"""Named tuples of tensors with the batch first: some of its elements, others in their place, a choice for each."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from ddn_cvx.linalg.blocks import per_element

T = TypeVar("T", bound=tuple[Tensor, ...])


def take(parts: T, rows: Tensor) -> T:
    """The elements ``rows``, indices (k,) or a mask (B,)."""
    return type(parts)(*(t[rows] for t in parts))


def put(parts: T, rows: Tensor, others: T) -> T:
    """With ``others`` in the place of the elements ``rows`` (k,)."""
    return type(parts)(*(t.index_copy(0, rows, new) for t, new in zip(parts, others, strict=True)))


def choose(where: Tensor, yes: T, no: T) -> T:
    """``yes`` for the elements ``where`` (B,) bool, ``no`` elsewhere."""
    return type(yes)(*(torch.where(per_element(where, a), a, b) for a, b in zip(yes, no, strict=True)))

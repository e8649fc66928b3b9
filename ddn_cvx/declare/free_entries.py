"""The free entries of variables: a symmetric, diagonal or sparse variable has fewer than entries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class _Segment:
    """One variable in the vector of all."""

    key: int
    shape: tuple[int, ...]
    start: int
    length: int
    full: Tensor | None
    """For each entry of the array the free entry that it is, ``length`` where it is zero; None if all are free."""
    first: Tensor | None
    """For each free entry a place in the array, flattened in C order."""


class FreeEntries:
    """``y`` (B, n) holds the free entries of some variables, one variable after another.

    Parameters
    ----------
    variables : sequence of cvxpy.Variable
        Real. Of a symmetric (PSD, NSD) one the lower triangle is free, of a diagonal one the diagonal, of a sparse one
        its pattern, of any other all entries, in C order.
    """

    def __init__(self, variables: Sequence[cp.Variable]):
        self._segments: list[_Segment] = []
        self.n = 0
        for variable in variables:
            full = _pattern(variable)
            length = variable.size if full is None else int(full.max(initial=-1)) + 1
            parts: tuple[Tensor | None, Tensor | None] = (None, None)
            if full is not None:
                free, first = np.unique(full, return_index=True)
                first = first[free >= 0]
                parts = torch.from_numpy(np.where(full < 0, length, full)), torch.from_numpy(first)
            self._segments.append(_Segment(variable.id, tuple(variable.shape), self.n, length, *parts))
            self.n += length

    def unpack(self, y: Tensor) -> dict[int, Tensor]:
        """``(B, n)`` -> ``(B, *shape)`` by the variable's id."""
        found = {}
        for s in self._segments:
            part = y[:, s.start : s.start + s.length]
            if s.full is not None:
                padded = torch.cat((part, part.new_zeros(len(part), 1)), 1)
                part = padded.index_select(1, s.full.to(y.device))
            found[s.key] = part.reshape(len(y), *s.shape)
        return found

    def pack(self, values: Mapping[int, Tensor]) -> Tensor:
        """``(B, *shape)`` by the variable's id -> ``(B, n)``; of equal entries one is taken."""
        parts = []
        for s in self._segments:
            value = values[s.key]
            flat = value.reshape(len(value), math.prod(s.shape))
            parts.append(flat if s.first is None else flat.index_select(1, s.first.to(flat.device)))
        return torch.cat(parts, 1)


def is_free(variable: cp.Variable) -> bool:
    """Whether all entries are."""
    return _pattern(variable) is None


def _pattern(variable: cp.Variable) -> NDArray[np.int64] | None:
    """For each entry in C order the free entry that it is, or -1; None if every entry is its own."""
    a = variable.attributes
    pattern = np.full(variable.shape, -1, dtype=np.int64)
    if a["diag"]:
        np.fill_diagonal(pattern, np.arange(variable.shape[0]))
    elif a["sparsity"]:
        pattern[variable.sparse_idx] = np.arange(len(variable.sparse_idx[0]))
    elif variable.ndim == 2 and variable.size > 1 and (a["symmetric"] or a["PSD"] or a["NSD"]):
        rows, cols = np.tril_indices(variable.shape[0])
        pattern[rows, cols] = pattern[cols, rows] = np.arange(len(rows))
    else:
        return None
    return pattern.reshape(-1)

"""Products with a batch of sparse matrices of one pattern, and with their transposes.

The batch is one block-diagonal matrix, so that a product is one call whatever the batch: scipy's on the CPU, where it is
many times faster than torch's own, and the device's sparse library elsewhere. Where all elements share their values there is
one matrix, which multiplies all vectors at once. Memory is that of the values and, in 32 bits, of their places.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.linalg.pattern import Pattern

Floats = NDArray[np.float64]
Index = NDArray[np.integer[Any]]


class Products:
    """``x -> M x`` and ``y -> M'y`` for matrices ``M`` (r, c) of one pattern.

    Parameters
    ----------
    pattern : Pattern
    values : Tensor (B, nnz)
        Values of the pattern; not differentiated.
    """

    def __init__(self, pattern: Pattern, values: Tensor):
        self.pattern, self.batch = pattern, values.shape[0]
        self.shared = self.batch == 1 or bool((values == values[:1]).all())
        self._values = values[:1] if self.shared else values
        rows, cols = pattern.shape
        if values.device.type == "cpu":
            data, index, start = _stacked(self._values.numpy(), pattern.rows, pattern.indptr, rows)
            # Compressed columns: scipy reads the same arrays as the rows of the transpose.
            self._columns = sp.csc_array((data, index, start), shape=(len(self._values) * rows, len(self._values) * cols))
        else:
            order = np.lexsort((pattern.cols, pattern.rows))
            start = np.append(0, np.cumsum(np.bincount(pattern.rows, minlength=rows)))
            self._by_row = self._compressed(self._values[:, torch.as_tensor(order)], pattern.cols[order], start, rows, cols)
            self._by_column = self._compressed(self._values, pattern.rows, pattern.indptr, cols, rows)

    def __call__(self, x: Tensor) -> Tensor:
        """``M x``, (B, c) -> (B, r)."""
        return self._apply(x, self.pattern.shape[0], False)

    def transposed(self, y: Tensor) -> Tensor:
        """``M'y``, (B, r) -> (B, c)."""
        return self._apply(y, self.pattern.shape[1], True)

    def _apply(self, x: Tensor, size: int, transposed: bool) -> Tensor:
        if not self.pattern.nnz or not self.batch:
            return x.new_zeros(x.shape[0], size)
        if x.device.type == "cpu":
            matrix = self._columns.T if transposed else self._columns
            if self.shared:
                return torch.from_numpy(np.ascontiguousarray((matrix @ x.numpy().T).T))
            return torch.from_numpy(matrix @ x.contiguous().numpy().ravel()).view(-1, size)
        other = self._by_column if transposed else self._by_row
        if self.shared:
            return (other @ x.mT).mT.contiguous()
        return (other @ x.reshape(-1)).view(-1, size)

    def _compressed(self, values: Tensor, index: Index, start: Index, rows: int, cols: int) -> Tensor:
        """A torch matrix in compressed rows, one block an element."""
        _, stacked, starts = _stacked(np.empty((len(values), 0)), index, start, cols)
        count = len(values)
        with torch.sparse.check_sparse_tensor_invariants(enable=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls this layout a beta
            return torch.sparse_csr_tensor(
                torch.as_tensor(starts, device=values.device),
                torch.as_tensor(stacked, device=values.device),
                values.reshape(-1),
                size=(count * rows, count * cols),
            )


def _stacked(values: Floats, index: Index, start: Index, length: int) -> tuple[Floats, Index, Index]:
    """Values, indices and starts of block-diagonal compressed columns (or rows) with ``length`` rows (columns) a block."""
    count, nnz = len(values), len(index)
    kind: Any = np.int32 if max(count * max(nnz, length), len(start) * count) < 2**31 else np.int64
    shift = np.arange(count, dtype=kind)[:, None]
    stacked = (index.astype(kind) + shift * length).ravel()
    starts = np.append((start[:-1].astype(kind) + shift * nnz).ravel(), kind(count * nnz))
    return values.ravel(), stacked, starts


def symmetric(pattern: Pattern) -> tuple[Pattern, NDArray[np.int64]]:
    """The pattern with both triangles of a symmetric matrix whose upper one is ``pattern``, and which value of the upper
    triangle each entry has."""
    numbered = sp.coo_array(pattern.matrix(np.arange(1.0, pattern.nnz + 1)))
    rows, cols = (index.astype(np.int64) for index in numbered.coords)
    off = rows != cols
    data = np.append(numbered.data, numbered.data[off])
    whole = sp.csc_array((data, (np.append(rows, cols[off]), np.append(cols, rows[off]))), shape=pattern.shape)
    whole.sort_indices()
    found = Pattern(pattern.shape, whole.indptr.astype(np.int64), whole.indices.astype(np.int64))
    return found, whole.data.astype(np.int64) - 1

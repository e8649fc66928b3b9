"""The sparsity pattern shared by all instances of a program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Pattern:
    """A sparsity pattern in compressed sparse column order."""

    shape: tuple[int, int]
    indptr: NDArray[np.int64]
    rows: NDArray[np.int64]

    @staticmethod
    def of(matrix: sp.sparray) -> Pattern:
        csc = sp.csc_array(matrix)
        csc.sort_indices()
        return Pattern(csc.shape, csc.indptr.astype(np.int64), csc.indices.astype(np.int64))

    @property
    def cols(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(self.shape[1]), np.diff(self.indptr))

    @property
    def nnz(self) -> int:
        return len(self.rows)

    def matrix(self, values: NDArray[np.float64]) -> sp.csc_array:
        """The scipy matrix with these ``values`` (nnz,)."""
        return sp.csc_array((values, self.rows, self.indptr), shape=self.shape)

"""Constraint rows in the order another convention wants: a selection of rows and its sparsity pattern.

SCS and diffcp order a product of cones as this package does, except inside a PSD block: they stack the LOWER
triangle column by column, which is a permutation of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ddn_cvx.cones import Product
from ddn_cvx.linalg.pattern import Pattern


@dataclass(frozen=True, eq=False)
class RowOrder:
    """Row ``k`` of the new matrix is row ``rows[k]`` of the old one; rows that are not listed are left
    out."""

    rows: NDArray[np.int64]
    pattern: Pattern
    """Of the new matrix, ``(len(rows), n)``."""
    entries: NDArray[np.int64]
    """``values[entries]`` are the new matrix's values, in the order of ``pattern``."""

    @staticmethod
    def of(old: Pattern, rows: NDArray[np.int64]) -> RowOrder:
        position = np.full(old.shape[0], -1)
        position[rows] = np.arange(len(rows))
        kept = np.flatnonzero(position[old.rows] >= 0)
        shape = (len(rows), old.shape[1])
        # One more than the entry's number, so that no stored value is zero.
        numbered = sp.csc_array((kept + 1, (position[old.rows[kept]], old.cols[kept])), shape=shape)
        numbered.sort_indices()
        return RowOrder(rows, Pattern.of(numbered), np.asarray(numbered.data - 1, np.int64))


def scs_rows(cones: Product) -> NDArray[np.int64]:
    """This package's row for each row of SCS, ``(m,)``."""
    linear = cones.zero + cones.nonneg + sum(cones.soc)
    blocks, start = [np.arange(linear)], linear
    for k in cones.psd:
        column, row = np.triu_indices(k)  # entry (row, column) of the lower triangle, column by column
        blocks.append(start + row * (row + 1) // 2 + column)
        start += k * (k + 1) // 2
    blocks.append(np.arange(start, start + 3 * (cones.exp + len(cones.power))))
    return np.concatenate(blocks)


def scs_cones(cones: Product) -> dict[str, Any]:
    """The dictionary of cones that SCS and diffcp read; power cones must be three-dimensional."""
    present = {
        "z": cones.zero,
        "l": cones.nonneg,
        "q": list(cones.soc),
        "s": list(cones.psd),
        "ep": cones.exp,
        "p": [alpha[0] for alpha in cones.power],
    }
    return {key: size for key, size in present.items() if size}

"""How many entries the factor of a sparse symmetric matrix has, without computing it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.kernels.jit import jit


@jit
def count(indptr: NDArray[np.int64], rows: NDArray[np.int64], limit: int) -> int:
    """Entries below the diagonal of L with ``L D L' = K`` in the given order, from the strict upper triangle of K in
    compressed columns; -1 once there are more than ``limit``.

    Row i of L holds the columns on the paths from the entries of column i of K up the elimination tree (Liu, 1990).
    """
    n = len(indptr) - 1
    parent, mark = np.full(n, -1), np.full(n, -1)
    found = 0
    for i in range(n):
        mark[i] = i
        for place in range(indptr[i], indptr[i + 1]):
            j = rows[place]
            while mark[j] != i:
                if parent[j] < 0:
                    parent[j] = i
                found += 1
                if found > limit:
                    return -1
                mark[j] = i
                j = parent[j]
    return found

"""Whether the KKT matrix of a large program has a sparse factor, from its structure alone.

Between a program whose constraints are local, where a factor costs little more than the matrix, and one of the same size
whose entries lie at random, where it is as good as dense, no count of entries tells. So the matrix is ordered, by what is
cheapest first, and the entries of its factor are counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spl
from numpy.typing import NDArray
from scipy.sparse.csgraph import reverse_cuthill_mckee

from ddn_cvx.cones import Product
from ddn_cvx.kernels import fill
from ddn_cvx.linalg.pattern import Pattern

GROWTH = 20
"""A factor may have this many times the entries of its matrix."""
ALWAYS = 4_000_000
"""And this many in any case."""


def has_sparse_factor(P: Pattern, A: Pattern, cones: Product) -> bool:
    """Whether ``[[P, A'], [A, -D]]`` has, D with a dense block for each curved cone."""
    limit = GROWTH * (P.nnz + A.nnz + sum(A.shape)) + ALWAYS
    K = _pattern(P, A, cones, limit)
    return K is not None and sparse_order(K, limit) is not None


def sparse_order(K: sp.csc_array, limit: int) -> NDArray[np.int64] | None:
    """An order of rows and columns in which the factor of a symmetric K, of which only the pattern counts, has at most
    ``limit`` entries; None if no order that is tried has."""
    # What is on the diagonal does not count, and makes every matrix one that can be factorised.
    heavy = sp.csr_array((np.ones(K.nnz), K.indices, K.indptr), shape=K.shape) + 1e3 * sp.eye_array(K.shape[0])
    for order in (_by_degree, _by_width, _by_columns):
        place = order(heavy).astype(np.int64)
        upper = sp.csc_array(sp.triu(heavy[place][:, place], 1))
        if fill.count(upper.indptr.astype(np.int64), upper.indices.astype(np.int64), limit) >= 0:
            return place
    return None


def _by_degree(matrix: sp.csr_array) -> Any:
    return np.argsort(np.diff(matrix.indptr), kind="stable")


def _by_width(matrix: sp.csr_array) -> Any:
    return reverse_cuthill_mckee(matrix, symmetric_mode=True)


def _by_columns(matrix: sp.csr_array) -> Any:
    """COLAMD, by way of an incomplete factorisation that drops everything."""
    return np.argsort(spl.spilu(sp.csc_array(matrix), drop_tol=0.5, fill_factor=1, diag_pivot_thresh=0.0).perm_c)


def _pattern(P: Pattern, A: Pattern, cones: Product, limit: int) -> sp.csc_array | None:
    """The pattern of K; None if the blocks of the curved cones alone have too many entries."""
    ones = sp.csr_array(A.matrix(np.ones(A.nnz)))
    m = A.shape[0]
    curved = [rows for kind, rows, _ in cones.blocks() if kind not in ("zero", "nonneg")]
    if curved:
        if sum((rows.stop - rows.start) ** 2 for rows in curved) > limit:
            return None
        # Every row of a cone has all columns that its other rows have.
        cone, linear = np.arange(m), cones.zero + cones.nonneg
        for rows in curved:
            cone[rows] = rows.start
        member = sp.csr_array((np.ones(m), (np.arange(m), cone)), shape=(m, m))
        counts = np.diff((member.T @ ones).tocsr().indptr)
        if int(counts[cone[linear:]].sum()) > limit:
            return None
        ones = member @ (member.T @ ones)
        block = member @ member.T
    else:
        block = sp.eye_array(m)
    upper = P.matrix(np.ones(P.nnz))
    return sp.csc_array(sp.block_array([[upper + upper.T, ones.T], [ones, block]]))

"""Symmetric matrices as vectors (svec), and from their eigenvectors; of numbers or lanes."""

from __future__ import annotations

from typing import Any

from ddn_cvx.kernels.jit import lean

ROOT = 2.0**0.5


@lean
def to_matrix(v: Any, X: Any) -> None:
    """The symmetric matrix X (k, k) of the svec v: upper triangle column by column, off-diagonal entries times root two."""
    row = 0
    for j in range(X.shape[0]):
        for i in range(j):
            X[i, j] = X[j, i] = v[row] * (1.0 / ROOT)
            row += 1
        X[j, j] = v[row]
        row += 1


@lean
def to_vector(X: Any, v: Any) -> None:
    """The inverse of ``to_matrix``; the mean of the two triangles."""
    row = 0
    for j in range(X.shape[0]):
        for i in range(j):
            v[row] = (X[i, j] + X[j, i]) * (0.5 * ROOT)
            row += 1
        v[row] = X[j, j]
        row += 1


@lean
def assemble(values: Any, rows: Any, X: Any) -> None:
    """``X = rows' diag(max(values, 0)) rows``: the projection onto the semidefinite cone."""
    k = values.shape[0]
    for i in range(k):
        for j in range(k):
            X[i, j] = 0.0
    for e in range(k):
        for i in range(k):
            factor = max(values[e], 0.0) * rows[e, i]
            for j in range(k):
                X[i, j] += factor * rows[e, j]

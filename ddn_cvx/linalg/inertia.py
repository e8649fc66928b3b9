"""Whether the symmetric matrices of a large batch, given by their upper triangles, are positive semidefinite.

Where a factor is sparse its pivots tell: by Sylvester's law there are as many negative ones as eigenvalues. Elsewhere a
hundred steps of Lanczos's method give an eigenvalue from above: a negative one is proof, and one that is small and was not
found is missed.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spl
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.linalg.fill import ALWAYS, GROWTH, sparse_order
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.linalg.products import Products, symmetric

STEPS = 100


class Definiteness:
    """The test for one pattern, of an upper triangle."""

    def __init__(self, pattern: Pattern):
        self.pattern = pattern
        self.whole, self.which = symmetric(pattern)
        self.is_diagonal = bool((pattern.rows == pattern.cols).all())
        self.order: NDArray[np.int64] | None = None
        if not self.is_diagonal:
            n = pattern.shape[0]
            self.order = sparse_order(self.whole.matrix(np.ones(self.whole.nnz)), GROWTH * (self.whole.nnz + n) + ALWAYS)

    def __call__(self, values: Tensor, shift: Tensor) -> Tensor:
        """Whether ``P + shift I`` is positive definite, ``(B,)`` bool, for values (B, nnz) and shifts (B,)."""
        if self.is_diagonal:
            return (values + shift.unsqueeze(1) > 0).all(1)
        whole = values[:, torch.as_tensor(self.which, device=values.device)]
        if self.order is None:
            return _least_ritz_value(Products(self.whole, whole), self.pattern.shape[0], whole) > -shift
        found = [self._has_positive_pivots(*pair) for pair in zip(whole.cpu().numpy(), shift.tolist(), strict=True)]
        return torch.tensor(found, dtype=torch.bool, device=values.device)

    def _has_positive_pivots(self, values: NDArray[np.float64], shift: float) -> bool:
        matrix = sp.csr_array(self.whole.matrix(values) + shift * sp.eye_array(self.pattern.shape[0]))
        ordered = sp.csc_array(matrix[self.order][:, self.order])
        if not (ordered.diagonal() > 0).all():
            return False
        try:
            factor = spl.splu(ordered, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        except RuntimeError:  # a pivot that is zero
            return False
        # Pivots are taken from the diagonal unless they are zero.
        return bool((factor.perm_r == factor.perm_c).all() and (factor.U.diagonal() > 0).all())


def _least_ritz_value(times: Products, n: int, like: Tensor) -> Tensor:
    """The least eigenvalue of each matrix on a Krylov space, ``(B,)``; the basis is kept orthogonal."""
    start = torch.cos(torch.arange(1.0, n + 1, dtype=like.dtype, device=like.device) ** 2).expand(len(like), n)
    basis = [start / start.norm(dim=1, keepdim=True)]
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    for _ in range(min(STEPS, n)):
        w = times(basis[-1])
        alphas.append((w * basis[-1]).sum(1))
        V = torch.stack(basis, 1)
        for _ in range(2):
            w = w - (V.mT @ (V @ w.unsqueeze(-1))).squeeze(-1)
        betas.append(w.norm(dim=1))
        # An exhausted space goes on from zero, which changes no eigenvalue of interest by adding zeros.
        basis.append(w / betas[-1].clamp(min=1e-300).unsqueeze(1))
    T = torch.diag_embed(torch.stack(alphas, 1))
    if len(betas) > 1:
        off = torch.diag_embed(torch.stack(betas[:-1], 1), 1)
        T = T + off + off.mT
    return torch.linalg.eigvalsh(T)[:, 0]

"""The cone of positive semidefinite matrices in svec coordinates, its own dual.

With X = V diag(λ) Vᵀ: Π(X) = V diag(λ⁺) Vᵀ, and DΠ(X)[H] = V (B ∘ VᵀHV) Vᵀ where B_ij is the first divided difference of
max(·, 0) at λ_i, λ_j (Malick, Sendov, "Clarke generalized Jacobian of the projection onto the cone of positive
semidefinite matrices", Set-Valued Anal. 14, 2006); the second derivative takes the second divided differences (Higham,
"Functions of Matrices", 2008, chapter 3). Both are written without differences of eigenvalues, so that ties cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from ddn_cvx.checks import is_whole
from ddn_cvx.cones.base import Spectrum
from ddn_cvx.cones.curved import Curved, eigh
from ddn_cvx.errors import DeclarationError

ROOT = sqrt(2)


@dataclass(frozen=True)
class PSD(Curved):
    """Positive semidefinite matrices of order ``order``; kinks where an eigenvalue is zero.

    Rows: the upper triangle column by column, (0,0), (0,1), (1,1), (0,2), …, off-diagonal entries times √2, so that the
    inner product of vectors is that of matrices. On a CUDA device ``eigh`` itself waits for the device.
    """

    dim: int = field(init=False)
    order: int = 1
    _place: Tensor = field(init=False, repr=False, compare=False)
    _row: Tensor = field(init=False, repr=False, compare=False)
    _column: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_whole(self.order, 1):
            raise DeclarationError(f"PSD: order must be a whole number of at least 1, got {self.order!r}.")
        column, row = torch.tril_indices(self.order, self.order)
        place = torch.empty(self.order, self.order, dtype=torch.int64)
        place[row, column] = place[column, row] = torch.arange(len(row))
        for name, value in {"dim": len(row), "_place": place.flatten(), "_row": row, "_column": column}.items():
            object.__setattr__(self, name, value)

    @property
    def degree(self) -> int:
        return self.order

    @property
    def centre(self) -> Tensor:
        """The identity."""
        return self.svec(torch.eye(self.order, dtype=torch.float64))

    def barrier(self, s: Tensor) -> Tensor:
        """-log det S."""
        L, info = torch.linalg.cholesky_ex(self.mat(s))
        pivots = L.diagonal(dim1=-2, dim2=-1)
        return -2 * torch.where((info == 0).unsqueeze(-1), pivots, torch.nan).log().sum(-1)

    def mat(self, v: Tensor) -> Tensor:
        """``(*batch, dim)`` → symmetric ``(*batch, order, order)``."""
        place = self._place.to(v.device, non_blocking=True)
        X = v.index_select(-1, place).reshape(*v.shape[:-1], self.order, self.order)
        return _scale_off_diagonal(X, 1 / ROOT)

    def svec(self, X: Tensor) -> Tensor:
        """Symmetric ``(*batch, order, order)`` → ``(*batch, dim)``, the inverse of ``mat``."""
        return self._upper(_scale_off_diagonal(X, ROOT))

    def _upper(self, X: Tensor) -> Tensor:
        row, column = (index.to(X.device, non_blocking=True) for index in (self._row, self._column))
        return X[..., row, column]

    def factor(self, v: Tensor) -> tuple[Tensor, ...]:
        return eigh(self.mat(v))

    def value(self, v: Tensor, *factor: Tensor) -> Tensor:
        values, V = factor
        return self.svec((V * values.clamp_min(0).unsqueeze(-2)) @ V.mT)

    def first(self, v: Tensor, h: Tensor, *factor: Tensor) -> Tensor:
        values, V = factor
        return self.svec(V @ (_first_differences(values) * (V.mT @ self.mat(h) @ V)) @ V.mT)

    def second(self, v: Tensor, a: Tensor, b: Tensor, *factor: Tensor) -> Tensor:
        """D²Π[A, B] = V (R + Rᵀ) Vᵀ with R_ij = Σ_k f(λ_i, λ_k, λ_j) A_ik B_kj, A and B in the eigenbasis.

        The second divided difference f of max(·, 0) vanishes on three eigenvalues of one sign. Otherwise one of them,
        λ_o, is alone with its sign, and f = |λ_o| K_op K_oq where K_op is 1 / (|λ_o| + |λ_p|) for opposite signs and 0 for
        equal ones. So f is a sum over which of i, k, j is the odd one, and each term of R is a product of matrices.
        """
        values, V = factor
        size, negative = values.abs(), values < 0
        opposite = negative.unsqueeze(-1) != negative.unsqueeze(-2)
        K = torch.where(opposite, 1 / (size.unsqueeze(-1) + size.unsqueeze(-2)), 0.0)
        A, B = V.mT @ self.mat(a) @ V, V.mT @ self.mat(b) @ V
        KA, KB, row, column = K * A, K * B, size.unsqueeze(-1), size.unsqueeze(-2)
        R = row * K * (KA @ B) + (KA * column) @ KB + (A @ KB) * K * column
        return self.svec(V @ (R + R.mT) @ V.mT)

    def spectrum(self, v: Tensor) -> Spectrum:
        values, V = self.factor(v.detach())
        return _Congruence(self._upper(_first_differences(values)), self, V)

    def margin(self, v: Tensor) -> Tensor:
        values, _ = self.factor(v.detach())
        return values.abs().amin(-1)


def _first_differences(values: Tensor) -> Tensor:
    """(λ_i⁺ − λ_j⁺) / (λ_i − λ_j), and 1 at λ_i = λ_j = 0."""
    positive, size = values.clamp_min(0), values.abs()
    total = size.unsqueeze(-1) + size.unsqueeze(-2)
    share = (positive.unsqueeze(-1) + positive.unsqueeze(-2)) / total
    return torch.where(total == 0, 1.0, share)


def _scale_off_diagonal(X: Tensor, factor: float) -> Tensor:
    diagonal = torch.eye(X.shape[-1], dtype=torch.bool, device=X.device)
    return torch.where(diagonal, X, factor * X)


@dataclass(frozen=True, eq=False)
class _Congruence(Spectrum):
    """U maps svec(H) to svec(V H Vᵀ); it is orthogonal because V is, and never formed."""

    cone: PSD
    V: Tensor

    @property
    def is_diagonal(self) -> bool:
        return False

    def rotate(self, columns: Tensor) -> Tensor:
        V = self.V.unsqueeze(-3)
        return self.cone.svec(V.mT @ self.cone.mat(columns.mT) @ V).mT

    def unrotate(self, columns: Tensor) -> Tensor:
        V = self.V.unsqueeze(-3)
        return self.cone.svec(V @ self.cone.mat(columns.mT) @ V.mT).mT

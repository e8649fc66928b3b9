r"""The cone of positive semidefinite matrices in svec coordinates, its own dual.

With X = mat(v) = V diag(λ) Vᵀ: Π(X) = V diag(λ⁺) Vᵀ, and with H̃ = VᵀHV
DΠ(X)[H] = V (B ∘ H̃) Vᵀ, B_ij the first divided difference of max(·, 0) at λ_i, λ_j
(Malick, Sendov, "Clarke generalized Jacobian of the projection onto the cone of positive semidefinite matrices", Set-Valued Anal. 14,
2006); second derivatives take the second divided differences (Higham, "Functions of Matrices", 2008, ch. 3). Both are written
without differences of eigenvalues, so ties cost no accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddn_cvx.errors import DeclarationError
from ddn_cvx.cones.base import Spectrum
from ddn_cvx.cones.curved import Curved


@dataclass(frozen=True)
class PSD(Curved):
    """Positive semidefinite matrices of order ``order``; kinks where an eigenvalue is zero.

    Rows: the upper triangle column by column, (0,0), (0,1), (1,1), (0,2), …, off-diagonal entries times √2, so that the inner
    product of vectors is that of matrices. On a CUDA device ``eigh`` itself waits for the device.
    """

    dim: int = field(init=False)
    order: int = 1
    _place: Tensor = field(init=False, repr=False, compare=False)
    _weight: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.order < 1:
            raise DeclarationError(f"PSD: order must be at least 1, and {self.order} came.")
        i = torch.arange(self.order)
        small, large = torch.minimum(i[:, None], i), torch.maximum(i[:, None], i)
        object.__setattr__(self, "dim", self.order * (self.order + 1) // 2)
        object.__setattr__(self, "_place", large * (large + 1) // 2 + small)
        object.__setattr__(self, "_weight", torch.where(small == large, 1.0, 0.5**0.5).double())

    def mat(self, v: Tensor) -> Tensor:
        """``(*batch, dim)`` → symmetric ``(*batch, order, order)``."""
        return v[..., self._place.to(v.device, non_blocking=True)] * self._weight.to(v, non_blocking=True)

    def svec(self, X: Tensor) -> Tensor:
        """Symmetric ``(*batch, order, order)`` → ``(*batch, dim)``, the inverse of ``mat``."""
        j, i = torch.tril_indices(self.order, self.order, device=X.device)
        return X[..., i, j] * torch.where(i == j, 1.0, 2**0.5).to(X.dtype)

    def factor(self, v: Tensor) -> tuple[Tensor, ...]:
        # LAPACK refuses a whole batch for one NaN: such an element is decomposed as zero and gets NaN eigenvalues.
        finite = v.isfinite().all(-1, keepdim=True)
        values, vectors = torch.linalg.eigh(self.mat(torch.where(finite, v, 0.0)))
        return torch.where(finite, values, torch.nan), vectors

    def value(self, v: Tensor, *factor: Tensor) -> Tensor:
        values, V = factor
        return self.svec((V * values.clamp_min(0).unsqueeze(-2)) @ V.mT)

    def first(self, v: Tensor, h: Tensor, *factor: Tensor) -> Tensor:
        values, V = factor
        return self.svec(V @ (_first_differences(values) * (V.mT @ self.mat(h) @ V)) @ V.mT)

    def second(self, v: Tensor, a: Tensor, b: Tensor, *factor: Tensor) -> Tensor:
        r"""D²Π[A, B] = V (R + Rᵀ) Vᵀ with R_ij = Σ_k f(λ_i, λ_k, λ_j) Ã_ik B̃_kj.

        The second divided difference f of max(·, 0) vanishes on three eigenvalues of one sign. Otherwise one of them, λ_o, is alone with
        its sign, and f = |λ_o| K_op K_oq with K_op = 1 / (|λ_o| + |λ_p|) for opposite signs and 0 for equal ones. So f is the sum over
        which of i, k, j is the odd one out, and each term is a matrix product.
        """
        values, V = factor
        size = values.abs()
        opposite = (values < 0).unsqueeze(-1) != (values < 0).unsqueeze(-2)
        K = torch.where(opposite, 1 / (size.unsqueeze(-1) + size.unsqueeze(-2)), 0.0)
        A, B = V.mT @ self.mat(a) @ V, V.mT @ self.mat(b) @ V
        KA, KB = K * A, K * B
        R = size.unsqueeze(-1) * K * (KA @ B) + (KA * size.unsqueeze(-2)) @ KB + (A @ KB) * K * size.unsqueeze(-2)
        return self.svec(V @ (R + R.mT) @ V.mT)

    def spectrum(self, v: Tensor) -> Spectrum:
        values, V = self.factor(v)
        j, i = torch.tril_indices(self.order, self.order, device=v.device)
        return _Congruence(_first_differences(values)[..., i, j], self, V)

    def margin(self, v: Tensor) -> Tensor:
        return self.factor(v)[0].abs().amin(-1)


def _first_differences(values: Tensor) -> Tensor:
    """(λ_i⁺ − λ_j⁺) / (λ_i − λ_j), and 1 at λ_i = λ_j = 0."""
    positive, size = values.clamp_min(0), values.abs()
    total = size.unsqueeze(-1) + size.unsqueeze(-2)
    share = (positive.unsqueeze(-1) + positive.unsqueeze(-2)) / total
    return torch.where(total == 0, 1.0, share)


@dataclass(frozen=True)
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

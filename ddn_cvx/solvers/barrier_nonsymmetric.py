"""Cones that are not their own duals: the scaling, the third-order correction and the way to the boundary they share.

Only ``f*`` has a closed form here, on the dual cone; the gradient of f at a slack is the solution of an equation in one
variable.  With shadows ``s~ = -∇f*(z)``, ``z~ = -∇f(s)`` and ``μ = s'z / ν``, the scaling of Tunçel (2001) and Dahl &
Andersen (2021) is the quasi-Newton update of ``H0 = μ ∇²f*(z)`` with ``Hz = s`` and ``Hz~ = s~``:

    H = s s' / s'z + δs δs' / δs'δz + H0 - H0 V (V'H0 V)^-1 V'H0,      δs = s - μ s~,   δz = z - μ z~,   V = [z, δz].

Close to the boundary the condition of H is that of 1 / μ², and entries of H would be all rounding.  Therefore H is never
formed: ``∇²f*(z) = JJ'`` and ``H = KK'`` are products of known matrices, and their Cholesky factors are found from J and
K by orthogonalising rows.  Next to the central path, where δs is rounding, H is H0 itself.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ddn_cvx.solvers.barrier import Barrier, Scaling


@dataclass(frozen=True, eq=False)
class _Factor(Scaling):
    """``H = LL'``, ``W = L'``; both matrices ``(B, 1, number, dim, dim)``."""

    L: Tensor
    inverse: Tensor
    hessian_inverse: Tensor
    """Of the Cholesky factor of ``∇²f*(z)``."""

    def down(self, v: Tensor) -> Tensor:
        return _times(self.inverse, v)

    def up(self, v: Tensor) -> Tensor:
        return _times(self.inverse.mT, v, upper=True)

    def back(self, v: Tensor) -> Tensor:
        return _times(self.L, v)


@dataclass(frozen=True, eq=False)
class Nonsymmetric(Barrier):
    """A cone known by the conjugate of its barrier."""

    measured = False

    @abstractmethod
    def gradient(self, z: Tensor) -> Tensor:
        """``∇f*(z)``."""

    @abstractmethod
    def hessian_root(self, z: Tensor) -> Tensor:
        """J with ``JJ' = ∇²f*(z)``, ``(..., dim, k)`` in the place of ``(..., dim)``."""

    @abstractmethod
    def third(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``∇³f*(z)[a, b]``."""

    @abstractmethod
    def primal_gradient(self, s: Tensor) -> Tensor:
        """``∇f(s)``."""

    def scaling(self, s: Tensor, z: Tensor) -> Scaling:
        shadow_s, shadow_z = -self.gradient(z), -self.primal_gradient(s)
        sz = _dot(s, z)
        mu = sz * (self.number / self.degree)
        delta_s, delta_z = s - mu * shadow_s, z - mu * shadow_z
        dsz = _dot(delta_s, delta_z)
        hessian = _triangle(self.hessian_root(z))
        L0 = mu.sqrt().unsqueeze(-1) * hessian
        # L0 on what is orthogonal to L0'z and L0'δz.
        first = _unit(_times(L0.mT, z, upper=True))
        second = _times(L0.mT, delta_z, upper=True)
        second = _unit(second - first * _dot(first, second))
        rest = L0
        for q in (first, second):
            rest = rest - (rest * q.unsqueeze(-2)).sum(-1, keepdim=True) * q.unsqueeze(-2)
        K = torch.cat((torch.stack((s / sz.sqrt(), delta_s / dsz.sqrt()), -1), rest), -1)
        L = _triangle(K)
        eps = torch.finfo(s.dtype).eps
        curved = (dsz > eps**0.75 * sz).unsqueeze(-1) & L.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        L = torch.where(curved, L, L0)
        return _Factor(L, _inverse(L), _inverse(hessian))

    def target(self, W: Scaling, s: Tensor, z: Tensor, centring: Tensor, ds: Tensor, dz: Tensor) -> Tensor:
        assert isinstance(W, _Factor)
        inverse = W.hessian_inverse
        b = _times(inverse.mT, _times(inverse, ds), upper=True)
        return s + centring * self.gradient(z) - self.third(z, dz, b) / 2


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _times(L: Tensor, v: Tensor, upper: bool = False) -> Tensor:
    """A triangular matrix times a vector: a few long products, rather than many of three by three."""
    entries, out = v.unbind(-1), []
    for i in range(len(entries)):
        columns = range(i, len(entries)) if upper else range(i + 1)
        total = L[..., i, i] * entries[i]
        for j in columns:
            total = total if j == i else torch.addcmul(total, L[..., i, j], entries[j])
        out.append(total)
    return torch.stack(out, -1)


def _unit(v: Tensor) -> Tensor:
    return v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)


def _triangle(J: Tensor) -> Tensor:
    """The Cholesky factor of ``JJ'`` by the modified Gram–Schmidt process, row by row for all cones at once."""
    columns = []
    for i in range(J.shape[-2]):
        norm = torch.linalg.vector_norm(J[..., i, :], dim=-1, keepdim=True)
        q = J[..., i, :] / norm
        below = J[..., i + 1 :, :]
        along = (below * q.unsqueeze(-2)).sum(-1)
        columns.append(torch.cat((torch.zeros_like(J[..., :i, 0]), norm, along), -1))
        J = torch.cat((J[..., : i + 1, :], below - along.unsqueeze(-1) * q.unsqueeze(-2)), -2)
    return torch.stack(columns, -1)


def _inverse(L: Tensor) -> Tensor:
    """Of a lower triangular matrix."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand_as(L)
    rows: list[Tensor] = []
    for i in range(L.shape[-1]):
        known = eye[..., i, :]
        for j in range(i):
            known = known - L[..., i, j, None] * rows[j]
        rows.append(known / L[..., i, i, None])
    return torch.stack(rows, -2)

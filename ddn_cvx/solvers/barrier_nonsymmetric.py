"""Cones that are not their own duals: the scaling, the third-order correction and the way to the boundary they share.

Only ``f*`` has a closed form here, on the dual cone; the gradient of f at a slack is the solution of an equation in one
variable.  With shadows ``s~ = -∇f*(z)``, ``z~ = -∇f(s)`` and ``μ = s'z / ν``, ``μ~ = s~'z~ / ν >= 1 / μ``, the scaling of Tunçel
(2001) and Dahl & Andersen (2021) is the quasi-Newton update of ``μ ∇²f*(z)`` with ``Hz = s`` and ``Hz~ = s~``.  Its rank is
three in three dimensions,

    H = s s' / s'z + δs δs' / δs'δz + t a a',      δs = s - μ s~,   δz = z - μ z~,

with a orthogonal to z and z~.  Where s and z are on the central path, or next to rounding, H is ``μ ∇²f*(z)`` itself.
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

    def down(self, v: Tensor) -> Tensor:
        return (self.inverse * v.unsqueeze(-2)).sum(-1)

    def up(self, v: Tensor) -> Tensor:
        return (self.inverse.mT * v.unsqueeze(-2)).sum(-1)

    def back(self, v: Tensor) -> Tensor:
        return (self.L * v.unsqueeze(-2)).sum(-1)


@dataclass(frozen=True, eq=False)
class Nonsymmetric(Barrier):
    """A cone known by the conjugate of its barrier."""

    symmetric = False
    measured = False

    @abstractmethod
    def gradient(self, z: Tensor) -> Tensor:
        """``∇f*(z)``."""

    @abstractmethod
    def hessian(self, z: Tensor) -> Tensor:
        """``∇²f*(z)``, with two dimensions in the place of the last one."""

    @abstractmethod
    def third(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``∇³f*(z)[a, b]``."""

    @abstractmethod
    def primal_gradient(self, s: Tensor) -> Tensor:
        """``∇f(s)``."""

    def scaling(self, s: Tensor, z: Tensor) -> Scaling:
        shadow_s, hessian, nu = -self.gradient(z), self.hessian(z), self.degree / self.number
        shadow_z = -self.primal_gradient(s)
        mu = _dot(s, z) / nu
        H = mu.unsqueeze(-1) * hessian
        delta_s, delta_z = s - mu * shadow_s, z - mu * shadow_z
        H, kept = _secant(mu.unsqueeze(-1) * hessian, s, z, delta_s, delta_z)
        L = _cholesky(H)
        kept &= (L.diagonal(dim1=-2, dim2=-1) > 0).all(-1, keepdim=True).unsqueeze(-1)
        L = torch.where(kept, L, _cholesky(hessian) * mu.sqrt().unsqueeze(-1))
        return _Factor(L, _inverse(L))

    def target(self, W: Scaling, s: Tensor, z: Tensor, centring: Tensor, ds: Tensor, dz: Tensor) -> Tensor:
        L = _cholesky(self.hessian(z))
        inverse = _inverse(L)
        b = (inverse.mT * (inverse * ds.unsqueeze(-2)).sum(-1).unsqueeze(-2)).sum(-1)
        return s + centring * self.gradient(z) - self.third(z, dz, b) / 2


def _secant(H: Tensor, s: Tensor, z: Tensor, delta_s: Tensor, delta_z: Tensor) -> tuple[Tensor, Tensor]:
    """The update of H that maps z to s and δz to δs, which is orthogonal to z, and where that is well defined."""
    V = torch.stack((z, delta_z), -1)
    HV = H @ V
    D = V.mT @ HV
    det, sz, dsz = _det(D)[..., None, None], _dot(s, z).unsqueeze(-1), _dot(delta_s, delta_z).unsqueeze(-1)
    eps = torch.finfo(H.dtype).eps
    good = (dsz > eps**0.75 * sz) & (det > eps**0.75 * (D[..., 0, 0] * D[..., 1, 1])[..., None, None])
    new = H + _outer(s) / sz + _outer(delta_s) / dsz - HV @ _adjugate(D) @ HV.mT / det
    return torch.where(good, (new + new.mT) / 2, H), good


def _outer(v: Tensor) -> Tensor:
    return v.unsqueeze(-1) * v.unsqueeze(-2)


def _det(M: Tensor) -> Tensor:
    return M[..., 0, 0] * M[..., 1, 1] - M[..., 0, 1] * M[..., 1, 0]


def _adjugate(M: Tensor) -> Tensor:
    off = -(M[..., 0, 1] + M[..., 1, 0]) / 2
    return torch.stack((torch.stack((M[..., 1, 1], off), -1), torch.stack((off, M[..., 0, 0]), -1)), -2)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _cholesky(H: Tensor) -> Tensor:
    """Column by column for all cones at once: there may be thousands, of a few rows each."""
    L = torch.zeros_like(H)
    for j in range(H.shape[-1]):
        column = H[..., j:, j] - (L[..., j:, :j] * L[..., j : j + 1, :j]).sum(-1)
        L[..., j:, j] = column / column[..., :1].sqrt()
    return L


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

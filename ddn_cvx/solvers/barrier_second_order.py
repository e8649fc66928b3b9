"""The second-order cone ``{(t, u) : |u| <= t}``: ``f*(z) = -log(z'Jz) / 2``, J = diag(1, -1, ..., -1).

The scaling is ``W = η [[w0, w1'], [w1, I + w1 w1' / (1 + w0)]]`` with ``w'Jw = 1`` (Vandenberghe, 2010, section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddn_cvx.solvers.barrier import Barrier, Scaling


@dataclass(frozen=True, eq=False)
class _Hyperbolic(Scaling):
    eta: Tensor
    w0: Tensor
    w1: Tensor

    def _apply(self, v: Tensor, sign: float) -> Tensor:
        """``W v / η`` (sign 1) or ``η W^-1 v`` (sign -1)."""
        v0, v1 = v[..., :1], v[..., 1:]
        along = (self.w1 * v1).sum(-1, keepdim=True).mul_(sign)
        top = torch.addcmul(along, self.w0, v0)
        slope = (v0 + along / (1 + self.w0)).mul_(sign)
        return torch.cat((top, torch.addcmul(v1, self.w1, slope)), -1)

    def down(self, v: Tensor) -> Tensor:
        return self._apply(v, -1.0) / self.eta

    def up(self, v: Tensor) -> Tensor:
        return self._apply(v, -1.0) / self.eta

    def back(self, v: Tensor) -> Tensor:
        return self._apply(v, 1.0) * self.eta


@dataclass(frozen=True, eq=False)
class SecondOrder(Barrier):
    """``number`` second-order cones of ``dim`` rows."""

    def centre(self, like: Tensor) -> Tensor:
        e = like.new_zeros(self.number, self.dim)
        e[:, 0] = 1
        return e

    def scaling(self, s: Tensor, z: Tensor) -> Scaling:
        size_s, size_z = _size(s), _size(z)
        s, z = s / size_s, z / size_z
        gamma = ((1 + (s * z).sum(-1, keepdim=True)) / 2).sqrt()
        w1 = (s[..., 1:] - z[..., 1:]) / (2 * gamma)
        w0 = (1 + (w1 * w1).sum(-1, keepdim=True)).sqrt()
        return _Hyperbolic((size_s / size_z).sqrt(), w0, w1)

    def target(self, W: Scaling, s: Tensor, z: Tensor, centring: Tensor, ds: Tensor, dz: Tensor) -> Tensor:
        # In scaled coordinates: W' (λ \ (λ∘λ + (W^-T Δs)∘(W Δz) - σμ e)); W is symmetric.
        scaled, a, b = W.down(s), W.down(ds), W.back(dz)
        product = torch.cat(
            ((a * b).sum(-1, keepdim=True) - centring, a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:]), -1
        )
        l0, l1, p0, p1 = scaled[..., :1], scaled[..., 1:], product[..., :1], product[..., 1:]
        along = (l1 * p1).sum(-1, keepdim=True)
        top = (l0 * p0 - along) / _size(scaled).square()
        return s + W.back(torch.cat((top, (p1 - top * l1) / l0), -1))

    def reach(self, s: Tensor, ds: Tensor) -> Tensor:
        size = _size(s)
        s0, s1, d0, d1 = s[..., :1] / size, s[..., 1:] / size, ds[..., :1] / size, ds[..., 1:] / size
        r0 = s0 * d0 - (s1 * d1).sum(-1, keepdim=True)
        r1 = d1 - (r0 + d0) / (s0 + 1) * s1
        return (torch.linalg.vector_norm(r1, dim=-1, keepdim=True) - r0).flatten(1).amax(1, keepdim=True)


def _size(v: Tensor) -> Tensor:
    """``sqrt(v'Jv)``, by the product that loses least."""
    norm = torch.linalg.vector_norm(v[..., 1:], dim=-1, keepdim=True)
    v0 = v[..., :1]
    return ((v0 - norm) * (v0 + norm)).sqrt()

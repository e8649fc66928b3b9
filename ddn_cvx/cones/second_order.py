r"""The second-order cone {(t, z) : ‖z‖ ≤ t}, its own dual.

With n = ‖z‖ and e = z/n the eigenvalues of v in the Jordan algebra are t ± n, and for |t| < n
Π(v) = ½(t + n) (1, e); DΠ has the eigenvectors (1, e), (1, −e) and (0, e⊥) with values 1, 0 and ½(1 + t/n)
(Fukushima, Luo, Tseng, "Smoothing functions for second-order-cone complementarity problems", SIAM J. Optim. 12, 2002).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddn_cvx.errors import DeclarationError
from ddn_cvx.cones.base import Diagonal, Spectrum
from ddn_cvx.cones.curved import Curved


@dataclass(frozen=True)
class SecondOrder(Curved):
    """{(t, z) ∈ R × R^(dim−1) : ‖z‖ ≤ t}; kinks where ‖z‖ = |t|."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise DeclarationError(f"SecondOrder: dim must be at least 1 row, and {self.dim} came.")

    def factor(self, v: Tensor) -> tuple[Tensor, ...]:
        return (torch.linalg.vector_norm(v[..., 1:], dim=-1, keepdim=True),)

    def value(self, v: Tensor, *factor: Tensor) -> Tensor:
        t, n, e = self._polar(v, *factor)
        half = (t + n) / 2
        return _pieces(t, n, v, torch.cat([half, half * e], dim=-1))

    def first(self, v: Tensor, h: Tensor, *factor: Tensor) -> Tensor:
        t, n, e = self._polar(v, *factor)
        h0, h1 = h[..., :1], h[..., 1:]
        along = (e * h1).sum(-1, keepdim=True)
        outside = torch.cat([h0 + along, (h0 + along) * e + (1 + t / n) * (h1 - along * e)], dim=-1) / 2
        return _pieces(t, n, h, outside)

    def second(self, v: Tensor, a: Tensor, b: Tensor, *factor: Tensor) -> Tensor:
        t, n, e = self._polar(v, *factor)
        slope = t / n
        a_along, b_along = ((e * d[..., 1:]).sum(-1, keepdim=True) for d in (a, b))
        a_across, b_across = a[..., 1:] - a_along * e, b[..., 1:] - b_along * e
        dot = (a_across * b_across).sum(-1, keepdim=True)
        z_part = (b[..., :1] - slope * b_along) * a_across + (a[..., :1] - slope * a_along) * b_across - slope * dot * e
        return _pieces(t, n, torch.zeros_like(a), torch.cat([dot, z_part], dim=-1) / (2 * n))

    def spectrum(self, v: Tensor) -> Spectrum:
        if self.dim == 1:
            return Diagonal((v >= 0).to(v.dtype))
        t, n, e = self._polar(v, *self.factor(v))
        e = torch.where(n > 0, e, torch.eye(1, self.dim - 1, dtype=v.dtype, device=v.device))
        outside = torch.cat([torch.ones_like(n), torch.zeros_like(n), ((1 + t / n) / 2).expand(*n.shape[:-1], self.dim - 2)], -1)
        sign = torch.where(e[..., :1] < 0, -1.0, 1.0)
        mirror = torch.cat([e[..., :1] + sign, e[..., 1:]], dim=-1)
        mirror = mirror / torch.linalg.vector_norm(mirror, dim=-1, keepdim=True)
        return _Mirrored(_pieces(t, n, torch.ones_like(v), outside), mirror.unsqueeze(-1), -sign.unsqueeze(-1))

    def margin(self, v: Tensor) -> Tensor:
        (n,) = self.factor(v)
        return (n.squeeze(-1) - v[..., 0].abs()).abs()

    def _polar(self, v: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return v[..., :1], n, v[..., 1:] / n


def _pieces(t: Tensor, n: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """``inside`` on K, zero in the interior of −K, ``outside`` elsewhere."""
    return torch.where(n <= t, inside, torch.where(n < -t, 0.0, outside))


@dataclass(frozen=True)
class _Mirrored(Spectrum):
    """A Householder reflection turns e = z/‖z‖ into ``sign`` times the first axis of z, then (1, ±e)/√2 are turned by 45°."""

    mirror: Tensor
    sign: Tensor

    @property
    def is_diagonal(self) -> bool:
        return False

    def rotate(self, columns: Tensor) -> Tensor:
        t, z = columns[..., :1, :], self._reflect(columns[..., 1:, :])
        along = self.sign * z[..., :1, :]
        return torch.cat([(t + along) * 0.5**0.5, (t - along) * 0.5**0.5, z[..., 1:, :]], dim=-2)

    def unrotate(self, columns: Tensor) -> Tensor:
        plus, minus = columns[..., :1, :], columns[..., 1:2, :]
        z = torch.cat([self.sign * (plus - minus) * 0.5**0.5, columns[..., 2:, :]], dim=-2)
        return torch.cat([(plus + minus) * 0.5**0.5, self._reflect(z)], dim=-2)

    def _reflect(self, z: Tensor) -> Tensor:
        return z - 2 * self.mirror * (self.mirror.mT @ z)

"""The second-order cone {(t, z) : ‖z‖ ≤ t}, its own dual.

With n = ‖z‖ and e = z/n, the eigenvalues of v = (t, z) in the Jordan algebra of the cone are t ± n. For |t| < n,
Π(v) = ½(t + n) (1, e), and DΠ(v) has the eigenvectors (1, e), (1, −e) and (0, e⊥) with values 1, 0 and ½(1 + t/n)
(Fukushima, Luo, Tseng, "Smoothing functions for second-order-cone complementarity problems", SIAM J. Optim. 12, 2002).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from ddn_cvx.checks import is_whole
from ddn_cvx.cones.base import Diagonal, Spectrum
from ddn_cvx.cones.curved import Curved
from ddn_cvx.errors import DeclarationError

HALF_ROOT = sqrt(0.5)


@dataclass(frozen=True)
class SecondOrder(Curved):
    """{(t, z) ∈ R × R^(dim−1) : ‖z‖ ≤ t}; kinks where ``‖z‖ = |t|``."""

    smooth_factor: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not is_whole(self.dim, 1):
            raise DeclarationError(f"SecondOrder: dim must be a whole number of at least 1, got {self.dim!r}.")

    @property
    def degree(self) -> int:
        """1: the gap is that of the cone, of which the barrier has two."""
        return 1

    @property
    def centre(self) -> Tensor:
        return torch.eye(1, self.dim, dtype=torch.float64)[0]

    def barrier(self, s: Tensor) -> Tensor:
        """-log(t² - ‖z‖²)."""
        gap = s[..., 0].square() - s[..., 1:].square().sum(-1)
        return -torch.where(s[..., 0] > 0, gap, torch.nan).log()

    def factor(self, v: Tensor) -> tuple[Tensor, ...]:
        norm = torch.linalg.vector_norm(v[..., 1:], dim=-1, keepdim=True, dtype=torch.float64)
        return (norm.to(v.dtype),)

    def value(self, v: Tensor, *factor: Tensor) -> Tensor:
        t, n, e = _parts(v, *factor)
        half = (t + n) / 2
        return _pieces(t, n, v, torch.cat([half, half * e], dim=-1))

    def first(self, v: Tensor, h: Tensor, *factor: Tensor) -> Tensor:
        t, n, e = _parts(v, *factor)
        along = (e * h[..., 1:]).sum(-1, keepdim=True)
        both = h[..., :1] + along
        across = h[..., 1:] - along * e
        return _pieces(t, n, h, torch.cat([both, both * e + (1 + t / n) * across], dim=-1) / 2)

    def second(self, v: Tensor, a: Tensor, b: Tensor, *factor: Tensor) -> Tensor:
        t, n, e = _parts(v, *factor)
        slope = t / n
        a_along, b_along = ((e * d[..., 1:]).sum(-1, keepdim=True) for d in (a, b))
        a_across, b_across = a[..., 1:] - a_along * e, b[..., 1:] - b_along * e
        dot = (a_across * b_across).sum(-1, keepdim=True)
        z_part = (b[..., :1] - slope * b_along) * a_across + (a[..., :1] - slope * a_along) * b_across
        outside = torch.cat([dot, z_part - slope * dot * e], dim=-1) / (2 * n)
        return _pieces(t, n, torch.zeros_like(a), outside)

    def spectrum(self, v: Tensor) -> Spectrum:
        if self.dim == 1:
            return Diagonal((v >= 0).to(v.dtype))
        v = v.detach()
        t, n, e = _parts(v, *self.factor(v))
        one, many = torch.ones_like(n), torch.ones_like(v[..., 2:])
        values = _pieces(t, n, torch.ones_like(v), torch.cat([one, 0 * one, (1 + t / n) / 2 * many], dim=-1))
        e = torch.where(n > 0, e, torch.eye(1, self.dim - 1, dtype=v.dtype, device=v.device)[0])
        sign = torch.where(e[..., :1] < 0, -one, one)
        mirror = torch.cat([e[..., :1] + sign, e[..., 1:]], dim=-1)
        mirror = mirror / torch.linalg.vector_norm(mirror, dim=-1, keepdim=True)
        return _Mirrored(values, mirror.unsqueeze(-1), -sign.unsqueeze(-1))

    def margin(self, v: Tensor) -> Tensor:
        v = v.detach()
        (n,) = self.factor(v)
        return (n.squeeze(-1) - v[..., 0].abs()).abs()


def _parts(v: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """t, n and e; for z = 0, where e is NaN, v lies in K or in −K and e is not used."""
    return v[..., :1], n, v[..., 1:] / n


def _pieces(t: Tensor, n: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """``inside`` on K, zero in the interior of −K, ``outside`` elsewhere."""
    return torch.where(n <= t, inside, torch.where(n < -t, 0.0, outside))


@dataclass(frozen=True, eq=False)
class _Mirrored(Spectrum):
    """U: turn the first two axes by 45°, then reflect z so that its first axis becomes ``sign`` e (Householder)."""

    mirror: Tensor
    sign: Tensor

    @property
    def is_diagonal(self) -> bool:
        return False

    def rotate(self, columns: Tensor) -> Tensor:
        t, z = columns[..., :1, :], self._reflect(columns[..., 1:, :])
        along = self.sign * z[..., :1, :]
        return torch.cat([(t + along) * HALF_ROOT, (t - along) * HALF_ROOT, z[..., 1:, :]], dim=-2)

    def unrotate(self, columns: Tensor) -> Tensor:
        plus, minus = columns[..., :1, :], columns[..., 1:2, :]
        z = torch.cat([self.sign * (plus - minus) * HALF_ROOT, columns[..., 2:, :]], dim=-2)
        return torch.cat([(plus + minus) * HALF_ROOT, self._reflect(z)], dim=-2)

    def _reflect(self, z: Tensor) -> Tensor:
        # An elementwise product and a sum: far faster than a product of matrices for many cones of few rows.
        return z - 2 * self.mirror * (self.mirror * z).sum(-2, keepdim=True)

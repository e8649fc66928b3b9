"""The zero cone {0}, whose dual is the whole space: the cone of equality constraints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddn_cvx.cones.base import Cone, Diagonal


@dataclass(frozen=True)
class Zero(Cone):
    """{0} in R^dim. Π = 0 everywhere, hence no kinks: the margin is +inf."""

    @property
    def degree(self) -> int:
        return 0

    @property
    def centre(self) -> Tensor:
        return torch.zeros(self.dim, dtype=torch.float64)

    def barrier(self, s: Tensor) -> Tensor:
        """Zero: the rows of s are equations, not variables."""
        return s.new_zeros(s.shape[:-1])

    def project(self, v: Tensor) -> Tensor:
        return torch.where(v.isnan(), v, 0.0)

    def derivative(self, v: Tensor, h: Tensor) -> Tensor:
        return torch.where(v.isnan() | h.isnan(), torch.nan, 0 * h)

    def spectrum(self, v: Tensor) -> Diagonal:
        return Diagonal(torch.zeros_like(v))

    def curvature(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.zeros(torch.broadcast_shapes(v.shape, a.shape, b.shape), dtype=v.dtype, device=v.device)

    def margin(self, v: Tensor) -> Tensor:
        return torch.full_like(v.detach()[..., 0], torch.inf)

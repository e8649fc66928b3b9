"""The nonnegative orthant, its own dual: the cone of linear inequalities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddn_cvx.cones.base import Cone, Diagonal


@dataclass(frozen=True)
class Nonnegative(Cone):
    """{v ∈ R^dim : v ≥ 0}. Π(v) = max(v, 0); kinks where some v_i = 0, with derivative 1 there."""

    @property
    def degree(self) -> int:
        return self.dim

    @property
    def centre(self) -> Tensor:
        return torch.ones(self.dim, dtype=torch.float64)

    def barrier(self, s: Tensor) -> Tensor:
        """-Σ log s_i."""
        return -s.log().sum(-1)

    def project(self, v: Tensor) -> Tensor:
        return torch.where(v < 0, 0.0, v)

    def derivative(self, v: Tensor, h: Tensor) -> Tensor:
        return torch.where(v < 0, 0.0, h)

    def spectrum(self, v: Tensor) -> Diagonal:
        return Diagonal((v >= 0).to(v.dtype))

    def curvature(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.zeros(torch.broadcast_shapes(v.shape, a.shape, b.shape), dtype=v.dtype, device=v.device)

    def margin(self, v: Tensor) -> Tensor:
        return v.detach().abs().amin(-1)

"""The box cone {(t, z) : t lower <= z <= t upper, t >= 0}, the perspective of a box.

Π(v) lies over one t, the root of an increasing, piecewise linear function: with t known,
every z_i is clipped to [t l_i, t u_i], and the coordinates that are clipped to c_i t
(c_i = l_i or u_i) pull at t. So

    t = (v_t + Σ c_i z_i) / (1 + Σ c_i²)     over the clipped i,

Π(v) = 0 where this is negative, and between its kinks Π is the orthogonal projection onto
the span of (1, c) and of the coordinates that are not clipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddn_cvx.extend import Cone, Dense, Spectrum


@dataclass(frozen=True)
class Box(Cone):
    """Finite bounds ``lower < upper``, one pair for each row after the first."""

    dim: int = field(init=False)
    lower: tuple[float, ...] = (-1.0,)
    upper: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        pairs = zip(self.lower, self.upper, strict=True)
        if not all(lower < upper for lower, upper in pairs):
            raise ValueError(f"Box: {self.lower} must be below {self.upper} in each row.")
        object.__setattr__(self, "dim", len(self.lower) + 1)

    @property
    def degree(self) -> int:
        return 2 * len(self.lower)

    @property
    def centre(self) -> Tensor:
        """Over t = 1 the middle of each interval, moved towards zero where the interval holds
        it: the dual cone is that of the (τ, w) with τ >= -w'z for all z in the box."""
        lower, upper = torch.tensor([self.lower, self.upper], dtype=torch.float64)
        middle = (lower + upper) / 2
        near = (
            0.5
            * middle
            / (1 + (middle.abs() * torch.maximum(lower.abs(), upper.abs())).sum())
        )
        return torch.cat(
            [
                torch.ones(1, dtype=torch.float64),
                torch.where((lower <= 0) & (upper >= 0), near, middle),
            ]
        )

    def barrier(self, s: Tensor) -> Tensor:
        t, z, lower, upper = self._parts(s)
        return -((t * upper - z).log() + (z - t * lower).log()).sum(-1)

    def project(self, v: Tensor) -> Tensor:
        t, _, low, high = self._root(v)
        lower, upper = self._bounds(v)
        z = torch.where(high, t * upper, torch.where(low, t * lower, v[..., 1:]))
        return torch.where(t < 0, 0.0, torch.cat([t, z], -1))

    def derivative(self, v: Tensor, h: Tensor) -> Tensor:
        t, c, low, high = self._root(v.detach())
        dt = (h[..., :1] + (c * h[..., 1:]).sum(-1, keepdim=True)) / (
            1 + c.square().sum(-1, keepdim=True)
        )
        dz = torch.where(low | high, c * dt, h[..., 1:])
        return torch.where(t < 0, 0.0, torch.cat([dt, dz], -1))

    def curvature(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Zero: the cone is polyhedral."""
        return torch.zeros(
            torch.broadcast_shapes(v.shape, a.shape, b.shape),
            dtype=v.dtype,
            device=v.device,
        )

    def spectrum(self, v: Tensor) -> Spectrum:
        columns = torch.eye(self.dim, dtype=v.dtype, device=v.device)
        return Dense(*torch.linalg.eigh(self.derivative(v.detach().unsqueeze(-2), columns)))

    def margin(self, v: Tensor) -> Tensor:
        v = v.detach()
        t, _, _, _ = self._root(v)
        lower, upper = self._bounds(v)
        to_kinks = (
            torch.cat([v[..., 1:] - t * lower, v[..., 1:] - t * upper], -1).abs().amin(-1)
        )
        return torch.where(t[..., 0] < 0, -t[..., 0], torch.minimum(to_kinks, t[..., 0]))

    def _bounds(self, like: Tensor) -> Tensor:
        return torch.tensor([self.lower, self.upper], dtype=like.dtype, device=like.device)

    def _parts(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return v[..., :1], v[..., 1:], *self._bounds(v)

    def _root(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """t ``(*batch, 1)``, negative inside the polar cone; c; and which coordinates are
        clipped from below and from above."""
        with torch.no_grad():
            v_t, z, lower, upper = self._parts(v)
            # The slope bends where z_i = t c_i: between which two of these points is it zero?
            points = (
                torch.cat([z / lower, z / upper], -1).nan_to_num(0.0, 0.0, 0.0).clamp(min=0.0)
            )
            t = points.unsqueeze(-1)
            clipped = torch.minimum(torch.maximum(z.unsqueeze(-2), t * lower), t * upper)
            c = torch.where(clipped < z.unsqueeze(-2), upper, lower)
            slope = points - v_t + (c * (clipped - z.unsqueeze(-2))).sum(-1)
            before = torch.where(slope <= 0, points, 0.0).amax(-1, keepdim=True)
            after = torch.where(slope > 0, points, torch.inf).amin(-1, keepdim=True)
            between = torch.where(after.isfinite(), (before + after) / 2, before + 1)
            inside = ((z >= v_t * lower) & (z <= v_t * upper)).all(-1, keepdim=True) & (
                v_t >= 0
            )  # the boundary, too
            low, high = (z < between * lower) & ~inside, (z > between * upper) & ~inside
            c = torch.where(high, upper, torch.where(low, lower, 0.0))
        t = (v[..., :1] + (c * v[..., 1:]).sum(-1, keepdim=True)) / (
            1 + c.square().sum(-1, keepdim=True)
        )
        return t, c, low, high

"""The half-line: ``f*(z) = -log z``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddn_cvx.solvers.barrier import Barrier, Scaling


@dataclass(frozen=True, eq=False)
class _Diagonal(Scaling):
    """``W = sqrt(s / z)``."""

    w: Tensor
    inverse: Tensor

    def down(self, v: Tensor) -> Tensor:
        return v * self.inverse

    def up(self, v: Tensor) -> Tensor:
        return v * self.inverse

    def back(self, v: Tensor) -> Tensor:
        return v * self.w


@dataclass(frozen=True, eq=False)
class Nonnegative(Barrier):
    """``number`` half-lines."""

    def centre(self, like: Tensor) -> Tensor:
        return like.new_ones(self.number, 1)

    def scaling(self, s: Tensor, z: Tensor) -> Scaling:
        w = (s / z).sqrt()
        return _Diagonal(w, w.reciprocal())

    def target(self, W: Scaling, s: Tensor, z: Tensor, centring: Tensor, ds: Tensor, dz: Tensor) -> Tensor:
        return s + (ds * dz - centring) / z

    def reach(self, s: Tensor, ds: Tensor) -> Tensor:
        return torch.div(ds, s).neg_().flatten(1).amax(1, keepdim=True)

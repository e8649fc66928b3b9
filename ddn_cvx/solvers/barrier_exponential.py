"""The exponential cone ``{(x, y, z) : y exp(x / y) <= z, y > 0}``.

On the dual cone, with ``ψ = z2 - z1 - z1 log(-z3 / z1)``,  ``f*(z) = -log ψ - log(-z1) - log z3`` (Goulart & Chen, 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddn_cvx.solvers.barrier_nonsymmetric import Nonsymmetric

_CENTRE = (-1.051383945322714, 0.556409619469370, 1.258967884768947)
_STEPS = 5  # of Newton's method for Wright's function; from the start below the fourth is at rounding


@dataclass(frozen=True, eq=False)
class Exponential(Nonsymmetric):
    """``number`` exponential cones."""

    def centre(self, like: Tensor) -> Tensor:
        return like.new_tensor(_CENTRE).expand(self.number, 3)

    def gradient(self, z: Tensor) -> Tensor:
        z1, z2, z3 = z.unbind(-1)
        ratio = (-z3 / z1).log()
        psi = z2 - z1 - z1 * ratio
        return torch.stack((ratio / psi - 1 / z1, -1 / psi, (z1 / psi - 1) / z3), -1)

    def hessian_root(self, z: Tensor) -> Tensor:
        z1, z2, z3 = z.unbind(-1)
        ratio, zero = (-z3 / z1).log(), torch.zeros_like(z1)
        psi = z2 - z1 - z1 * ratio
        bend = -(-1 / (z1 * psi)).sqrt()
        slope = torch.stack((-ratio / psi, 1 / psi, -z1 / z3 / psi), -1)
        curve = torch.stack((bend, zero, -bend * z1 / z3), -1)
        own = torch.stack((torch.stack((1 / z1, zero, zero), -1), torch.stack((zero, zero, 1 / z3), -1)), -1)
        return torch.cat((slope.unsqueeze(-1), curve.unsqueeze(-1), own), -1)

    def third(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        z1, z2, z3 = z.unbind(-1)
        ratio, t = (-z3 / z1).log(), z1 / z3
        psi = (z2 - z1 - z1 * ratio).unsqueeze(-1)
        slope = torch.stack((-ratio, torch.ones_like(t), -t), -1)

        def second(v: Tensor) -> Tensor:
            e = v[..., 0] / z1 - v[..., 2] / z3
            return torch.stack((e, torch.zeros_like(e), -t * e), -1)

        a1, a3, b1, b3 = a[..., 0] / z1, a[..., 2] / z3, b[..., 0] / z1, b[..., 2] / z3
        mixed = torch.stack((a3 * b3 - a1 * b1, torch.zeros_like(a1), t * (a1 * b3 + a3 * b1 - 2 * a3 * b3)), -1)
        alone = torch.stack((a1 * b1 / z1, torch.zeros_like(a1), a3 * b3 / z3), -1)
        second_a, second_b = second(a), second(b)
        along_a, along_b = (_dot(slope, v) / psi for v in (a, b))
        bent = second_a * along_b + second_b * along_a + slope * (_dot(a, second_b) / psi - 2 * along_a * along_b)
        return (bent - mixed) / psi - 2 * alone

    def primal_gradient(self, s: Tensor) -> Tensor:
        s1, s2, s3 = s.unbind(-1)
        t = (s3 / s2).log() - s1 / s2  # positive inside; ω + log ω = 1 + t for Wright's ω = 1 + u
        u = torch.where(t < 1, t * (0.5 + t / 16), t - (1 + t.clamp(min=1)).log() * 0.9)
        for _ in range(_STEPS):
            u = u - (u + u.log1p() - t) * (1 + u) / (2 + u)
        g1 = 1 / (u * s2)
        g2 = g1 * (1 + ((1 + u) * s2 / s3).log()) - 1 / s2
        return torch.stack((g1, g2, -(1 + u) / (u * s3)), -1)

    def inside(self, s: Tensor, z: Tensor) -> Tensor:
        s1, s2, s3 = s.unbind(-1)
        z1, z2, z3 = z.unbind(-1)
        primal = (s2 > 0) & (s3 > 0) & (s2 * (s3 / s2).log() - s1 > 0)
        dual = (z1 < 0) & (z3 > 0) & (z2 - z1 - z1 * (-z3 / z1).log() > 0)
        return (primal & dual).flatten(-2).all(-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)

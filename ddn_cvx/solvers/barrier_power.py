"""The power cone ``{(x, w) : prod x_i^α_i >= |w|, x >= 0}`` in d + 1 dimensions, ``Σ α = 1``.

On the dual cone, with ``φ = prod (u_i / α_i)^(2 α_i)`` and ``ψ = φ - w²``,

    f*(u, w) = -log ψ - Σ (1 - α_i) log u_i        (Goulart & Chen, 2024; of degree d + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from ddn_cvx.solvers.barrier_nonsymmetric import Nonsymmetric

_STEPS = 12  # of Newton's method for the gradient of f: two past convergence at distances of 1e-12 from the boundary


@dataclass(frozen=True, eq=False)
class Power(Nonsymmetric):
    """``number`` power cones with exponents ``alpha (number, dim - 1)``."""

    alpha: Tensor

    def centre(self, like: Tensor) -> Tensor:
        return torch.cat(((1 + self.alpha).sqrt(), torch.zeros_like(self.alpha[:, :1])), 1)

    def gradient(self, z: Tensor) -> Tensor:
        u, w, root, psi = self._parts(z)
        return torch.cat((-(2 * self.alpha * root * root / psi + 1 - self.alpha) / u, 2 * w / psi), -1)

    def hessian_root(self, z: Tensor) -> Tensor:
        # f* = -log(root - w) - log(root + w) - Σ (1 - α) log u with the concave root = prod (u / α)^α.
        u, w, root, _ = self._parts(z)
        slope, one, size = root * self.alpha / u, torch.ones_like(w), self.alpha.sqrt()
        up, down = torch.cat((slope, -one), -1) / (root - w), torch.cat((slope, one), -1) / (root + w)
        bend = (size / u).unsqueeze(-1) * (
            torch.eye(self.dim - 1, dtype=u.dtype, device=u.device) - size.unsqueeze(-1) * size.unsqueeze(-2)
        )
        bend = bend * (2 / ((1 - w / root) * (1 + w / root))).sqrt().unsqueeze(-1)
        own = torch.diag_embed((1 - self.alpha).sqrt() / u)
        flat = torch.nn.functional.pad(torch.cat((bend, own), -1), (0, 0, 0, 1))
        return torch.cat((up.unsqueeze(-1), down.unsqueeze(-1), flat), -1)

    def third(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        u, w, root, psi = self._parts(z)
        p, phi = 2 * self.alpha / u, root * root
        au, aw, bu, bw = a[..., :-1], a[..., -1:], b[..., :-1], b[..., -1:]
        pa, pb, ra, rb = _sum(p * au), _sum(p * bu), au / u, bu / u
        slope = torch.cat((phi * p, -2 * w), -1) / psi
        second_a = torch.cat((phi * p * (pa - ra), -2 * aw), -1) / psi
        second_b = torch.cat((phi * p * (pb - rb), -2 * bw), -1) / psi
        cubic = p * (pa * pb - ra * pb - rb * pa - _sum(p * au * rb) + 2 * ra * rb) * phi / psi
        along_a, along_b = _sum(slope * a), _sum(slope * b)
        bent = second_a * along_b + second_b * along_a + slope * (_sum(a * second_b) - 2 * along_a * along_b)
        alone = cubic + 2 * (1 - self.alpha) * ra * rb / u
        return bent - torch.cat((alone, torch.zeros_like(aw)), -1)

    def primal_gradient(self, s: Tensor) -> Tensor:
        x, w = s[..., :-1], s[..., -1:]
        size, d = w.abs(), self.dim - 1
        c = 1 + 1 / self.alpha
        # -∇f(s) = ((1 + α + α t) / x, -t / w) where v = 1 / t is the root of a decreasing convex function.
        tiny = torch.finfo(s.dtype).tiny
        depth = (2 * (_sum(self.alpha * x.log()) - size.clamp(min=tiny).log())).clamp(max=600.0)
        far = (depth + log(2) - _sum(2 * self.alpha * c.log())).clamp(max=80.0).exp()
        v = torch.maximum(depth / (2 * d), 0.2 * far)
        for _ in range(_STEPS):
            value = depth + (2 * v).log1p() - _sum(2 * self.alpha * (c * v).log1p())
            slope = 2 / (1 + 2 * v) - _sum(2 * self.alpha * c / (1 + c * v))
            v = torch.maximum(v - value / slope, v / 16)
        t = 1 / v
        return torch.cat((-(1 + self.alpha + self.alpha * t) / x, torch.where(size > tiny, t / w, 0.0)), -1)

    def inside(self, s: Tensor, z: Tensor) -> Tensor:
        found = None
        for v, unit in ((s, 1.0), (z, self.alpha)):
            x, w = v[..., :-1] / unit, v[..., -1].abs()
            ok = (x > 0).all(-1) & ((self.alpha * x.log()).sum(-1) > w.log())
            found = ok if found is None else found & ok
        assert found is not None
        return found.flatten(-2).all(-1)

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``u``, ``w``, the root of ``φ``, and ``ψ``."""
        u, w = z[..., :-1], z[..., -1:]
        root = _sum(self.alpha * (u / self.alpha).log()).exp()
        return u, w, root, (root - w) * (root + w)


def _sum(v: Tensor) -> Tensor:
    return v.sum(-1, keepdim=True)

r"""The exponential cone, by one scalar equation for the projection and a moving frame for its derivatives.

The curved part of the boundary of K consists of the rays a(ρ) = (ρ, 1, e^ρ), and c(ρ) = (1, 1 − ρ, −e^−ρ) is the
ray of the polar cone that is orthogonal to a(ρ). Outside K, the polar cone and the flat faces, v = αa(ρ) + βc(ρ) with
α, β > 0 for exactly one ρ, the root of an increasing function, and Π(v) = αa (Friberg, "Projection onto the
exponential cone: a univariate root-finding problem", Optim. Methods Softw. 38, 2023).

Derivatives, in the orthonormal frame p = a/|a|, n = c/|c|, w = n × p that moves with ρ: Π moves freely along p, not at
all along n, and along w by a share λ that the curvature of the boundary sets,

    DΠ = ppᵀ + λwwᵀ,    λ = rk/N,    N = rk + dm,    r = |Π(v)|,  d = |v − Π(v)|,  k = |c|³E,  m = |a|³X.

Differentiating once more, with dp = (λ/r) w wᵀdv, dn = ((1 − λ)/d) w wᵀdv, dρ = (|a|²|c|²/N) wᵀdv, and ⊙ the sum over
the three orders of the factors,

    D²Π = λ(1 − λ) (p⊙w⊙w / r − n⊙w⊙w / d + (log k/m)′ |a|²|c|²/N w⊗w⊗w).

Nothing overflows because a is divided by e^max(ρ, 0) and c by e^max(−ρ, 0), which leaves the frame as it is:
a = (ρE, E, X), c = (X, (1 − ρ)X, −E) with E = e^−max(ρ, 0), X = e^min(ρ, 0). All is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import e, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.cones.base import Dense, Spectrum
from ddn_cvx.cones.curved import Curved, largest, newton

ITERATIONS = 16
"""Newton steps; 14 reach rounding level on points whose coordinates differ by up to sixty orders of magnitude."""
NEGLIGIBLE = 1e-60
"""Positive x and y are taken at least this large, relative to the largest coordinate."""

INSIDE, FLAT, POLAR, CURVED = range(4)


@dataclass(frozen=True)
class Exponential(Curved):
    """closure{(x, y, z) : y exp(x/y) ≤ z, y > 0}, of three rows.

    Kinks: the boundaries of K and of its polar cone; the boundary of the region x, y ≤ 0, where Π(v) = (x, 0, max(z, 0));
    and, in this region, z = 0.
    """

    dim: int = field(default=3, init=False)

    @property
    def degree(self) -> int:
        return 3

    @property
    def centre(self) -> Tensor:
        return torch.tensor([-1.0, 0.5, 1.25], dtype=torch.float64)

    def barrier(self, s: Tensor) -> Tensor:
        """-log(y log(z/y) - x) - log y - log z."""
        x, y, z = s.unbind(-1)
        return -(y * (z.log() - y.log()) - x).log() - y.log() - z.log()

    def factor(self, v: Tensor) -> tuple[Tensor, ...]:
        """The ratio ρ = x/y of Π(v), and in which of the four regions v lies."""
        x, y, z = (v.double() / largest(v)).split(1, dim=-1)
        x, y = (torch.where(t > 0, t.clamp_min(NEGLIGIBLE), t) for t in (x, y))
        region = torch.where(_inside(y - x, x, -z, strictly=True), POLAR, CURVED)
        region = torch.where((x <= 0) & (y <= 0), FLAT, region)
        region = torch.where(_inside(x, y, z, strictly=False), INSIDE, region)
        return _ratio(x, y, z), region

    def value(self, v: Tensor, *factor: Tensor) -> Tensor:
        rho, region = factor
        f = _frame(v, rho)
        return _pieces(region, v, torch.where(_kept(v), v, 0.0), (f.r * f.p).to(v.dtype))

    def first(self, v: Tensor, h: Tensor, *factor: Tensor) -> Tensor:
        rho, region = factor
        f = _frame(v, rho)
        curved = _dot(f.p, h) * f.p + f.share * _dot(f.w, h) * f.w
        return _pieces(region, h, torch.where(_kept(v), h, 0.0), curved.to(h.dtype))

    def second(self, v: Tensor, a: Tensor, b: Tensor, *factor: Tensor) -> Tensor:
        rho, region = factor
        f = _frame(v, rho)
        (ap, bp), (an, bn), (aw, bw) = ((_dot(axis, a), _dot(axis, b)) for axis in (f.p, f.n, f.w))
        along_w = f.by_p * (ap * bw + aw * bp) + f.by_n * (an * bw + aw * bn) + f.by_w * aw * bw
        curved = along_w * f.w + aw * bw * (f.by_p * f.p + f.by_n * f.n)
        zero = torch.zeros_like(a)
        return _pieces(region, zero, zero, curved.to(a.dtype))

    def spectrum(self, v: Tensor) -> Spectrum:
        v = v.detach()
        rho, region = self.factor(v)
        f = _frame(v, rho)
        one = torch.ones_like(rho)
        values = _pieces(region, one, _kept(v).double(), torch.cat([one, 0 * one, f.share], dim=-1))
        identity = torch.eye(3, dtype=f.p.dtype, device=v.device)
        basis = torch.where((region == CURVED).unsqueeze(-1), torch.stack([f.p, f.n, f.w], dim=-1), identity)
        return Dense(values.to(v.dtype), basis.to(v.dtype))

    def margin(self, v: Tensor) -> Tensor:
        """Exact outside K and its polar cone, a lower bound of the distance to the boundary inside them."""
        v = v.detach()
        rho, region = self.factor(v)
        size = largest(v)
        w = v.double() / size
        x, y, z = w.split(1, dim=-1)
        f = _frame(w, rho)
        to_flat = torch.hypot(x.clamp_min(0), y.clamp_min(0))
        curved = torch.minimum(torch.minimum(f.r, f.d), to_flat)
        # A linear map of norm (1 + √5)/2 takes the polar cone to K.
        polar = _depth(y - x, x, -z) / (0.5 + sqrt(1.25))
        margin = _pieces(region, _depth(x, y, z), w.abs().amin(-1, keepdim=True), curved, polar)
        return (size * margin).squeeze(-1).to(v.dtype)


class _Frame(NamedTuple):
    """The frame, r = |Π(v)|, d = |v − Π(v)|, λ (``share``), and the coefficients of p⊙w⊙w, n⊙w⊙w and w⊗w⊗w in D²Π."""

    p: Tensor
    n: Tensor
    w: Tensor
    r: Tensor
    d: Tensor
    share: Tensor
    by_p: Tensor
    by_n: Tensor
    by_w: Tensor


def _frame(v: Tensor, rho: Tensor) -> _Frame:
    v = v.double()
    E, X = torch.exp(-rho.clamp_min(0)), torch.exp(rho.clamp_max(0))
    a = torch.cat([rho * E, E, X], dim=-1)
    c = torch.cat([X, (1 - rho) * X, -E], dim=-1)
    a_size, c_size = (torch.linalg.vector_norm(t, dim=-1, keepdim=True) for t in (a, c))
    p, n = a / a_size, c / c_size
    r, d = (_dot(axis, v).clamp_min(0) for axis in (p, n))
    k, m = c_size**3 * E, a_size**3 * X
    N = (r * k + d * m).clamp_min(torch.finfo(v.dtype).tiny)
    log_slope = 2 - 3 * (E * E + (1 - rho) * X * X) / c_size**2 - 3 * (X * X + rho * E * E) / a_size**2
    by_p, by_n = (k / N) * (m / N) * d, -(k / N) * (m / N) * r
    by_w = by_p * (r / N) * log_slope * (a_size * c_size) ** 2
    return _Frame(p, n, torch.linalg.cross(n, p), r, d, r * k / N, by_p, by_n, by_w)


def _ratio(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """ρ with αe^ρ − βe^−ρ = z, where αq = (ρ − 1)x + y, βq = x − ρy, q = ρ² − ρ + 1.

    α vanishes at ρ = 1 − y/x, the lower end of the bracket if x > 0, and β at ρ = x/y, the upper end if y > 0. The
    distance of the root from an end may be far below the spacing of floating-point numbers at ρ, so its logarithm θ is
    the unknown. By the symmetry (x, y, z, ρ) → (y, x, −z, 1 − ρ), which exchanges α and β and multiplies e^ρ by e, the
    root is always sought from the lower end, in the lower half of the bracket.
    """
    lower, span = _bracket(x, y)
    middle, _ = _mismatch((span / 2).log(), x, y, z, lower, span, torch.zeros_like(x))
    swap = torch.where((x > 0) & (y > 0), middle < 0, x <= 0)
    x, y, z = torch.where(swap, y, x), torch.where(swap, x, y), torch.where(swap, -z, z)
    shift = torch.where(swap, -1.0, 0.0)
    lower, span = _bracket(x, y)
    # With |x|, |y|, |z| ≤ 1, beyond this distance from the end αe^ρ alone exceeds |z| + βe^−ρ.
    beyond = 6 - x.log() + 2 * lower.abs().log1p() + (-lower).clamp_min(0)
    high = torch.minimum(span / 2, beyond).log()
    low = torch.full_like(high, -700.0)
    theta = newton(lambda theta: _mismatch(theta, x, y, z, lower, span, shift), low, high, high, ITERATIONS)
    rho = lower + theta.exp()
    return torch.where(swap, 1 - rho, rho)


def _bracket(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Lower end and length of the interval where α, β > 0, for x > 0; for y ≤ 0 it has no upper end."""
    ratio = y / x
    return 1 - ratio, torch.where(y > 0, ratio + 1 / ratio - 1, torch.inf)


def _mismatch(
    theta: Tensor, x: Tensor, y: Tensor, z: Tensor, lower: Tensor, span: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """log αe^ρ − log(z + βe^−ρ) if z ≥ 0, else log(αe^ρ − z) − log βe^−ρ, and its derivative in θ = log(ρ − lower)."""
    step = theta.exp()
    rho = lower + step
    q = rho * (rho - 1) + 1
    beta = torch.where(y > 0, y * (span - step), x - rho * y)
    up, up_slope = x.log() + theta + rho + shift, 1 + step
    down, down_slope = beta.log() - rho - shift, -step * (y / beta + 1)
    rest, rest_slope = z.abs().log() + q.log(), step * (2 * rho - 1) / q
    above = z >= 0
    part, part_slope = torch.where(above, down, up), torch.where(above, down_slope, up_slope)
    share = torch.sigmoid(part - rest)
    both, both_slope = torch.logaddexp(part, rest), share * part_slope + (1 - share) * rest_slope
    return torch.where(above, up - both, both - down), torch.where(above, up_slope - both_slope, both_slope - down_slope)


def _inside(x: Tensor, y: Tensor, z: Tensor, strictly: bool) -> Tensor:
    top = y * torch.exp(x / y)
    if strictly:
        return (y > 0) & (top < z)
    return torch.where(y > 0, top <= z, (y == 0) & (x <= 0) & (z >= 0))


def _depth(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """A lower bound of the distance from a point of K to the boundary.

    K consists of the points with y ≥ 0 and y log(z/y) ≥ x, is convex, and contains the directions −x and z. So it contains a
    ball whose radius follows from how far one can go along x, along −z, and along ±y; the latter is bounded by chords of
    the concave function y log(z/y) − x, to y = 0 and to a point where it is negative.
    """
    along_x = y * (z / y).log() - x
    along_z = z - y * torch.exp(x / y)
    beyond = e * z + (-x).clamp_min(0)
    up = (beyond - y) * along_x / (along_x + x - beyond * (z / beyond).log())
    down = y * along_x / (along_x + x.clamp_min(0))
    depth = (along_x**-2 + along_z**-2 + torch.minimum(up, down) ** -2) ** -0.5
    return torch.where((y > 0) & (z > 0) & (along_x > 0) & (along_z > 0), depth, 0.0)


def _kept(v: Tensor) -> Tensor:
    """On the flat region: which coordinates Π keeps; the other ones become zero."""
    return torch.cat([torch.ones_like(v[..., :1], dtype=torch.bool), ~(v[..., 1:] < 0)], dim=-1)


def _pieces(region: Tensor, inside: Tensor, flat: Tensor, curved: Tensor, polar: float | Tensor = 0.0) -> Tensor:
    outside = torch.where(region == POLAR, polar, curved)
    return torch.where(region == INSIDE, inside, torch.where(region == FLAT, flat, outside))


def _dot(axis: Tensor, v: Tensor) -> Tensor:
    return (axis * v).sum(-1, keepdim=True)

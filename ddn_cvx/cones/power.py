r"""The power cone {(x, z) ∈ R^d₊ × R : ∏ x_i^α_i ≥ |z|}, of three dimensions (d = 2) or more.

Outside K and its polar cone, Π(v) = (p, r sign z) with p_i² − x_i p_i = α_i s, s = r(|z| − r) and r = ∏ p_i^α_i in
(0, |z|): one scalar equation for r (Hien, "Differential properties of Euclidean projection onto power cone", Math.
Methods Oper. Res. 82, 2015). The unknown here is the logit u of τ = r/|z|, so that neither τ nor 1 − τ cancels.

Differentiate these equations along h = (h_x, h_z). With g_i = 2p_i − x_i, π_i = p_i/g_i, e_i = α_i/g_i, the relative
change η = sign(z) h_z/|z|, and the means σ = Σα_i(1 − π_i), 1 − σ = Σα_iπ_i, the logarithmic derivatives are

    ς = s′/s = ((1 − 2τ) e·h_x + η) / W,    ϱ = r′/r = ((1 − τ) e·h_x + ση) / W,    W = (1 − τ)(1 − σ) + τσ,
    p_i′/p_i = h_i/g_i + (1 − π_i) ς,

hence DΠ h = (π_i h_i + e_i s ς, sign(z) r ϱ), and by the same rules D²Π. All is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.cones.base import Dense, Spectrum
from ddn_cvx.cones.curved import Curved, eigh, largest, newton
from ddn_cvx.errors import DeclarationError

ITERATIONS = 22
"""Newton steps; 20 reach rounding level for exponents down to 1e-3 and coordinates of any relative size."""
LOGIT_BOUND = 200.0
"""τ and 1 − τ are taken at least e^−200."""
NEGLIGIBLE = 1e-100
"""|z| is taken at least this large, relative to the largest coordinate."""
ZERO = 1e-60
"""What stands for x_i = 0 in the derivatives: a zero counts as nonnegative."""

INSIDE, POLAR, CURVED = range(3)


@dataclass(frozen=True)
class Power(Curved):
    """``{(x, z) : ∏ x_i^α_i ≥ |z|, x ≥ 0}``.

    ``alphas`` holds tuples of one length d, each positive and of sum 1. With one tuple, v is ``(*batch, d + 1)``; with
    several, one for each of the cones stacked in the dimension before the last, ``(*batch, count, d + 1)``.
    Kinks: the boundaries of K and of its polar cone, and z = x_i = 0. At z = 0, for x of both signs, Π has one
    derivative but no second one unless the α_i of the negative x_i sum to ½; D²Π is zero there.
    """

    dim: int = field(init=False)
    alphas: tuple[tuple[float, ...], ...] = ((0.5, 0.5),)
    _exponents: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lengths = {len(alpha) for alpha in self.alphas}
        if len(lengths) != 1 or lengths == {0}:
            raise DeclarationError(
                f"Power: alphas must be nonempty tuples of one length, got lengths {sorted(lengths)}; "
                "stack cones of different dimensions separately."
            )
        for alpha in self.alphas:
            if min(alpha) <= 0 or abs(sum(alpha) - 1) > 1e-6:
                raise DeclarationError(
                    f"Power: exponents must be positive with sum 1, got {alpha}; divide them by their sum."
                )
        exponents = torch.tensor(self.alphas, dtype=torch.float64)
        exponents = exponents / exponents.sum(-1, keepdim=True)
        object.__setattr__(self, "dim", lengths.pop() + 1)
        # A single cone needs no dimension for the stack.
        object.__setattr__(self, "_exponents", exponents[0] if len(self.alphas) == 1 else exponents)

    @property
    def degree(self) -> int:
        return self.dim

    @property
    def centre(self) -> Tensor:
        """(1, …, 1, 0)."""
        return torch.ones(self.dim, dtype=torch.float64).index_fill(0, torch.tensor(self.dim - 1), 0.0)

    def barrier(self, s: Tensor) -> Tensor:
        """-log(∏ x_i^2α_i - z²) - Σ (1 - α_i) log x_i."""
        x, z = s[..., :-1], s[..., -1]
        alpha = self._exponents.to(s)
        return -((2 * alpha * x.log()).sum(-1).exp() - z * z).log() - ((1 - alpha) * x.log()).sum(-1)

    def factor(self, v: Tensor) -> tuple[Tensor, ...]:
        """The logit u of r/|z|, and in which of the three regions v lies."""
        alpha, x, z = self._split(v)
        log_z = v.double()[..., -1:].abs().log() - largest(v).log()
        inside = (x >= 0).all(-1, keepdim=True) & (_mean(alpha, x.log()) >= log_z)
        polar = (x < 0).all(-1, keepdim=True) & (_mean(alpha, (-x / alpha).log()) > log_z)
        region = torch.where(inside, INSIDE, torch.where(polar, POLAR, CURVED))

        def mismatch(u: Tensor) -> tuple[Tensor, Tensor]:
            at = _state(alpha, x, z, u)
            return (z * at.tau).log() - _mean(alpha, at.p.log()), at.W

        bound = torch.full_like(z, LOGIT_BOUND)
        return newton(mismatch, -bound, bound, torch.zeros_like(z), ITERATIONS, two_sided=True), region

    def value(self, v: Tensor, *factor: Tensor) -> Tensor:
        logit, region = factor
        projection, _ = self._rays(v, logit)
        return _pieces(region, v, (largest(v) * projection).to(v.dtype))

    def first(self, v: Tensor, h: Tensor, *factor: Tensor) -> Tensor:
        logit, region = factor
        alpha, x, z = self._split(v)
        at, sign, h = _state(alpha, x, z, logit), _sign(v), h.double()
        along = _logarithmic(at, h, sign / z)
        z_part = sign * z * at.tau * along.r
        curved = torch.cat([at.share * h[..., :-1] + at.e * at.s * along.s, z_part], dim=-1)
        return _pieces(region, h, curved).to(v.dtype)

    def second(self, v: Tensor, a: Tensor, b: Tensor, *factor: Tensor) -> Tensor:
        logit, region = factor
        alpha, x, z = self._split(v)
        at, sign, size = _state(alpha, x, z, logit), _sign(v), largest(v)
        a, b = a.double(), b.double()
        ax, az, bx, bz = a[..., :-1], a[..., -1:], b[..., :-1], b[..., -1:]
        A, B = _logarithmic(at, a, sign / z), _logarithmic(at, b, sign / z)

        # d_ is the derivative along b, of p, g, e and s the logarithmic one.
        d_p = bx / at.g + at.co_share * B.s
        d_g = 2 * at.share * d_p - bx / at.g
        d_share = at.share * (d_p - d_g)
        d_tau = at.tau * at.co_tau * (2 * B.r - B.s)
        d_sigma = -_mean(alpha, d_share)
        d_W = d_tau * (at.sigma - at.co_sigma) + (at.tau - at.co_tau) * d_sigma
        d_eh = -(at.e * d_g * ax).sum(-1, keepdim=True)
        eta, d_eta = sign * az / z, -(az / z) * (bz / z)
        d_s = (-2 * d_tau * A.eh + (at.co_tau - at.tau) * d_eh + d_eta - d_W * A.s) / at.W
        d_r = (-d_tau * A.eh + at.co_tau * d_eh + d_sigma * eta + at.sigma * d_eta - d_W * A.r) / at.W
        x_part = d_share * ax + at.e * at.s * (d_s + A.s * (B.s - d_g))
        z_part = sign * z * at.tau * (d_r + A.r * B.r)

        # At z = 0, Π is even or odd in z and only the mixed terms ∂τ/∂x_i remain.
        tau_x = at.tau * at.co_tau * at.e / at.W
        even = torch.cat([tau_x * az * bz, (tau_x * (ax * bz + bx * az)).sum(-1, keepdim=True)], dim=-1)
        curved = torch.where(z > NEGLIGIBLE, torch.cat([x_part, z_part], dim=-1), even) / size
        return _pieces(region, torch.zeros_like(a), curved).to(v.dtype)

    def spectrum(self, v: Tensor) -> Spectrum:
        v = v.detach()
        logit, region = self.factor(v)
        if self.dim == 3:
            p, n = (_unit(ray) for ray in self._rays(v, logit))
            w = torch.linalg.cross(p, n)
            share = (w * self.first(v.double(), w, logit, region)).sum(-1, keepdim=True)
            values = torch.cat([torch.ones_like(share), 0 * share, share], dim=-1)
            basis = torch.stack([p, n, w], dim=-1)
        else:
            columns = torch.eye(self.dim, dtype=torch.float64, device=v.device)
            columns = columns.view(self.dim, *[1] * (v.ndim - 1), self.dim)
            values, basis = eigh(self.first(v.double(), columns, logit, region).movedim(0, -1))
        values = _pieces(region, torch.ones_like(values), values.clamp(0, 1))
        identity = torch.eye(self.dim, dtype=torch.float64, device=v.device)
        basis = torch.where((region == CURVED).unsqueeze(-1), basis, identity)
        return Dense(values.to(v.dtype), basis.to(v.dtype))

    def margin(self, v: Tensor) -> Tensor:
        """Exact outside K and its polar cone, a lower bound of the distance to the boundary inside them.

        K is convex and contains the directions x_i, so it contains a ball whose radius follows from how far one can go
        along −x_i and ±z; the polar cone is of the same form in −x_i/α_i.
        """
        v = v.detach()
        logit, region = self.factor(v)
        alpha, x, _ = self._split(v)
        z = v.double()[..., -1:] / largest(v)
        mean = _mean(alpha, torch.where(region == POLAR, -x / alpha, x).log()).exp()
        along_z = (mean - z.abs()).clamp_min(0)
        along_x = x.abs() * (1 - (z.abs() / mean) ** (1 / alpha)).clamp_min(0)
        inside = (1 / torch.cat([along_x, along_z], dim=-1) ** 2).sum(-1, keepdim=True) ** -0.5
        sizes = [torch.linalg.vector_norm(ray, dim=-1, keepdim=True) for ray in self._rays(v, logit)]
        curved = torch.cat([*sizes, torch.hypot(x, z)], dim=-1).amin(-1, keepdim=True)
        margin = torch.where(region == CURVED, curved, torch.where(mean > 0, inside, 0.0))
        return (largest(v) * margin).squeeze(-1).to(v.dtype)

    def _split(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """α, x and |z| of v divided by its largest coordinate."""
        v = v.double() / largest(v)
        return self._exponents.to(v.device, non_blocking=True), v[..., :-1], v[..., -1:].abs().clamp_min(NEGLIGIBLE)

    def _rays(self, v: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
        """Π(v) and v − Π(v), outside K and its polar cone, for v divided by its largest coordinate."""
        alpha, x, z = self._split(v)
        at = _state(alpha, x, z, logit)
        signed = _sign(v) * z
        return torch.cat([at.p, signed * at.tau], dim=-1), torch.cat([-at.co_p, signed * at.co_tau], dim=-1)


class _State(NamedTuple):
    """The quantities of the module's derivation, free of cancellation: ``co_p`` is p − x, and other ``co_t`` are 1 − t."""

    tau: Tensor
    co_tau: Tensor
    s: Tensor
    g: Tensor
    e: Tensor
    p: Tensor
    co_p: Tensor
    share: Tensor
    co_share: Tensor
    sigma: Tensor
    co_sigma: Tensor
    W: Tensor


def _state(alpha: Tensor, x: Tensor, z: Tensor, logit: Tensor) -> _State:
    x = torch.where(x == 0, ZERO, x)
    tau, co_tau = torch.sigmoid(logit), torch.sigmoid(-logit)
    s = z * z * tau * co_tau
    g = torch.sqrt(x * x + 4 * alpha * s)
    large = (x.abs() + g) / 2
    small = alpha * s / large
    p, co_p = torch.where(x > 0, large, small), torch.where(x > 0, small, large)
    share, co_share = p / g, co_p / g
    sigma, co_sigma = _mean(alpha, co_share), _mean(alpha, share)
    W = co_tau * co_sigma + tau * sigma
    return _State(tau, co_tau, s, g, alpha / g, p, co_p, share, co_share, sigma, co_sigma, W)


class _Logarithmic(NamedTuple):
    """Along one direction h: e·h_x, s′/s and r′/r."""

    eh: Tensor
    s: Tensor
    r: Tensor


def _logarithmic(at: _State, h: Tensor, per_z: Tensor) -> _Logarithmic:
    eh, eta = (at.e * h[..., :-1]).sum(-1, keepdim=True), h[..., -1:] * per_z
    s = ((at.co_tau - at.tau) * eh + eta) / at.W
    return _Logarithmic(eh, s, (at.co_tau * eh + at.sigma * eta) / at.W)


def _mean(alpha: Tensor, t: Tensor) -> Tensor:
    return (alpha * t).sum(-1, keepdim=True)


def _unit(ray: Tensor) -> Tensor:
    ray = ray / ray.abs().amax(-1, keepdim=True)
    unit: Tensor = ray / torch.linalg.vector_norm(ray, dim=-1, keepdim=True)
    return unit


def _sign(v: Tensor) -> Tensor:
    one = torch.ones_like(v[..., -1:], dtype=torch.float64)
    return torch.where(v[..., -1:] < 0, -one, one)


def _pieces(region: Tensor, inside: Tensor, curved: Tensor) -> Tensor:
    return torch.where(region == INSIDE, inside, torch.where(region == POLAR, 0.0, curved))

"""Cones to test and points whose projection is known by construction: v = p + n with p in K, n in its polar, p ⟂ n."""

import torch
from torch import Tensor

from ddn_cvx.cones import PSD, Cone, Exponential, Nonnegative, Power, SecondOrder, Zero

F64 = torch.float64
SKEW = (0.1, 0.2, 0.3, 0.15, 0.25)

FLAT = [Zero(3), Nonnegative(3)]
CURVED = [
    SecondOrder(1),
    SecondOrder(2),
    SecondOrder(5),
    PSD(order=1),
    PSD(order=3),
    Exponential(),
    Power(),
    Power(alphas=((0.3, 0.7),)),
    Power(alphas=((0.2, 0.3, 0.5),)),
    Power(alphas=(SKEW,)),
    Power(alphas=((0.3, 0.7), (0.5, 0.5), (0.95, 0.05))),
]
CONES = FLAT + CURVED


def name(cone: Cone) -> str:
    return f"{type(cone).__name__}{cone.dim}" + (f"x{len(cone.alphas)}" if isinstance(cone, Power) else "")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shape(cone: Cone, count: int) -> tuple[int, ...]:
    stack = (len(cone.alphas),) if isinstance(cone, Power) and len(cone.alphas) > 1 else ()
    return (count, *stack, cone.dim)


def sample(cone: Cone, count: int, seed: int = 0) -> Tensor:
    return torch.randn(shape(cone, count), generator=generator(seed), dtype=F64)


def smooth(cone: Cone, count: int, margin: float = 0.1, seed: int = 0) -> Tensor:
    """Random points at least ``margin`` from the kinks."""
    v = sample(cone, 40 * count, seed)
    far = cone.margin(v) > margin
    return v[far.all(-1) if far.ndim > 1 else far][:count]


def matrix(cone: Cone, v: Tensor) -> Tensor:
    """DΠ(v), column by column."""
    columns = torch.eye(cone.dim, dtype=v.dtype).view(cone.dim, *[1] * (v.ndim - 1), cone.dim)
    return cone.derivative(v, columns).movedim(0, -1)


def exponential_rays(rho: Tensor) -> tuple[Tensor, Tensor]:
    """Boundary rays of K, and the orthogonal ones of its polar, divided by e^|ρ| where they would overflow."""
    small, large = torch.exp(-rho.clamp_min(0)), torch.exp(rho.clamp_max(0))
    return torch.stack([rho * small, small, large], -1), torch.stack([large, (1 - rho) * large, -small], -1)


def power_rays(alpha: Tensor, x: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """The boundary point over x > 0, and the outward normal there."""
    r = (alpha * x.log()).sum(-1, keepdim=True).exp()
    return torch.cat([x, sign * r], -1), torch.cat([-alpha * r / x, sign], -1)


def known(cone: Cone, count: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(p, n) of sizes that differ by up to ``spread`` orders of magnitude."""
    g = generator(seed)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=g, dtype=F64)

    alpha, beta = (10 ** (-spread * uniform(count, 1)) for _ in range(2))
    if isinstance(cone, SecondOrder):
        e = torch.randn(count, cone.dim - 1, generator=g, dtype=F64)
        e = e / e.norm(dim=-1, keepdim=True)
        one = torch.ones(count, 1, dtype=F64)
        return alpha * torch.cat([one, e], -1), beta * torch.cat([-one, e], -1)
    if isinstance(cone, PSD):
        V, _ = torch.linalg.qr(torch.randn(count, cone.order, cone.order, generator=g, dtype=F64))
        values = 10 ** (-spread * uniform(count, cone.order))
        positive = torch.arange(cone.order) < cone.order / 2
        return cone.svec((V * (values * positive).unsqueeze(-2)) @ V.mT), cone.svec(
            (V * (-values * ~positive).unsqueeze(-2)) @ V.mT
        )
    if isinstance(cone, Exponential):
        bound = 3 + 20 * spread
        a, c = exponential_rays(bound * (2 * uniform(count) - 1))
        return alpha * a, beta * c
    assert isinstance(cone, Power)
    exponents = torch.tensor(cone.alphas[0], dtype=F64)
    x = 10 ** (-spread * uniform(count, cone.dim - 1)) * (0.1 + uniform(count, cone.dim - 1))
    p, n = power_rays(exponents, x, (uniform(count, 1) - 0.5).sign())
    return p, beta * n


def contains(cone: Cone, s: Tensor, slack: float, dual: bool = False) -> bool:
    """Whether every s (*, dim) is in K or K*, from the definitions, after a shift of size ``slack`` to the inside."""
    if isinstance(cone, Zero):
        return dual or bool((s.abs() <= slack).all())
    if isinstance(cone, Nonnegative):
        return bool((s >= -slack).all())
    if isinstance(cone, SecondOrder):
        return bool((s[..., 1:].norm(dim=-1) <= s[..., 0] + slack).all())
    if isinstance(cone, PSD):
        return bool((torch.linalg.eigvalsh(cone.mat(s)) >= -slack).all())
    if isinstance(cone, Exponential):
        # K* consists of the points with nonnegative product with every ray of K, and conversely.
        a, c = exponential_rays(torch.linspace(-60, 60, 2401, dtype=F64))
        corners = torch.tensor([[-1.0, 0, 0], [0, 0, 1]] if dual else [[0.0, 1, 0], [0, 0, 1]], dtype=F64)
        rays = torch.cat([a if dual else -c, corners])
        return bool((s @ (rays / rays.norm(dim=-1, keepdim=True)).mT >= -slack).all())
    assert isinstance(cone, Power)
    alpha = torch.tensor(cone.alphas, dtype=F64).squeeze(0)
    x = s[..., :-1] + slack
    mean = (alpha * (x / alpha if dual else x).log()).sum(-1).exp()
    return bool((x >= 0).all() and (s[..., -1].abs() <= mean + slack).all())

"""Where the projection is not differentiable: the derivative that is returned, the margin, and that all stays finite."""

import itertools

import pytest
import torch
from cone_points import CONES, CURVED, F64, exponential_rays, generator, known, matrix, name, power_rays, sample
from torch import Tensor

from ddn_cvx.cones import PSD, Cone, Exponential, Nonnegative, Power, SecondOrder


def ray(*p: float) -> list[list[float]]:
    """The projection onto a line."""
    t = torch.tensor(p, dtype=F64)
    return (torch.outer(t, t) / (t @ t)).tolist()


def diagonal(*values: float) -> list[list[float]]:
    return torch.diag(torch.tensor(values)).tolist()


# cone, a kink, the projection there, the derivative that counts zeros as nonnegative
KINKS = [
    (Nonnegative(3), [0.0, 1, -1], [0.0, 1, 0], diagonal(1, 1, 0)),
    (SecondOrder(1), [0.0], [0.0], diagonal(1)),
    (SecondOrder(3), [0.0, 0, 0], [0.0, 0, 0], diagonal(1, 1, 1)),
    (SecondOrder(3), [5.0, 3, 4], [5.0, 3, 4], diagonal(1, 1, 1)),
    (SecondOrder(3), [-5.0, 3, 4], [0.0, 0, 0], ray(5, 3, 4)),
    (PSD(order=2), [0.0, 0, 0], [0.0, 0, 0], diagonal(1, 1, 1)),
    (PSD(order=2), [1.0, 0, 0], [1.0, 0, 0], diagonal(1, 1, 1)),
    (PSD(order=2), [0.0, 0, -1], [0.0, 0, 0], diagonal(1, 0, 0)),
    (PSD(order=3), [1.0, 0, 0, 0, 0, -1], [1.0, 0, 0, 0, 0, 0], diagonal(1, 1, 1, 0.5, 0, 0)),
    (Exponential(), [0.0, 0, 0], [0.0, 0, 0], diagonal(1, 1, 1)),
    (Exponential(), [0.0, 1, 1], [0.0, 1, 1], diagonal(1, 1, 1)),
    (Exponential(), [-1.0, 0, 2], [-1.0, 0, 2], diagonal(1, 1, 1)),
    (Exponential(), [1.0, 1, -1], [0.0, 0, 0], ray(0, 1, 1)),
    (Exponential(), [-1.0, -1, 0], [-1.0, 0, 0], diagonal(1, 0, 1)),
    (Exponential(), [-1.0, 0, -1], [-1.0, 0, 0], diagonal(1, 1, 0)),
    (Exponential(), [0.0, -1, -1], [0.0, 0, 0], diagonal(1, 0, 0)),
    (Exponential(), [0.0, -1, 1], [0.0, 0, 1], diagonal(1, 0, 1)),
    (Power(), [0.0, 0, 0], [0.0, 0, 0], diagonal(1, 1, 1)),
    (Power(), [1.0, 1, -1], [1.0, 1, -1], diagonal(1, 1, 1)),
    (Power(), [0.0, 2, 0], [0.0, 2, 0], diagonal(1, 1, 1)),
    (Power(), [-0.5, -0.5, 1], [0.0, 0, 0], ray(1, 1, 1)),
    (Power(alphas=((0.2, 0.5, 0.3),)), [0.0, 1, -1, 0], [0.0, 1, 0, 0], diagonal(1, 1, 0, 1)),
    (Power(alphas=((0.2, 0.2, 0.6),)), [0.0, 1, -1, 0], [0.0, 1, 0, 0], diagonal(1, 1, 0, 0)),
]


@pytest.mark.parametrize("cone, kink, projection, derivative", KINKS, ids=lambda x: name(x) if isinstance(x, Cone) else "")
def test_choice_at_kinks(cone: Cone, kink: list, projection: list, derivative: list) -> None:
    v = torch.tensor(kink, dtype=F64, requires_grad=True)
    D = torch.tensor(derivative, dtype=F64)
    torch.testing.assert_close(cone.project(v).detach(), torch.tensor(projection, dtype=F64), rtol=0, atol=1e-15)
    torch.testing.assert_close(matrix(cone, v.detach()), D, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.functional.jacobian(cone.project, v), D, rtol=0, atol=1e-12)
    spectrum = cone.spectrum(v.detach())
    U = spectrum.unrotate(torch.eye(cone.dim, dtype=F64))
    torch.testing.assert_close(U @ torch.diag(spectrum.values) @ U.mT, D, rtol=0, atol=1e-12)
    assert cone.margin(v.detach()).min() <= 1e-15
    h = torch.randn(cone.dim, dtype=F64, generator=generator(0))
    assert cone.curvature(v.detach(), h, h).isfinite().all()


@pytest.mark.parametrize("cone", [c for c in CURVED if not isinstance(c, Power) or len(c.alphas) == 1], ids=name)
def test_margin(cone: Cone) -> None:
    """Zero on the boundaries of K and of its polar, positive elsewhere, and never more than the distance to them."""
    v = sample(cone, 500)
    margin = cone.margin(v)
    assert (margin > 0).all()
    if cone.dim > 1:
        p, n = known(cone, 500, 0.0)
        for boundary in (p, n):
            torch.testing.assert_close(cone.margin(boundary), torch.zeros(500, dtype=F64), rtol=0, atol=1e-12)
        slack = 1 + 1e-9 if not isinstance(cone, SecondOrder) else 2**0.5 + 1e-9
        assert (margin <= slack * distance_to_rays(v, torch.cat([p, n]))).all()


def distance_to_rays(v: Tensor, rays: Tensor) -> Tensor:
    rays = rays / rays.norm(dim=-1, keepdim=True)
    along = (v @ rays.mT).clamp_min(0).unsqueeze(-1)
    return (v.unsqueeze(-2) - along * rays).norm(dim=-1).amin(-1)


@pytest.mark.parametrize("cone", [Exponential(), Power(), Power(alphas=((0.05, 0.95),))], ids=name)
def test_margin_is_a_distance_up_to_a_factor(cone: Exponential | Power) -> None:
    grid = torch.linspace(-1, 1, 2001, dtype=F64)
    v = sample(cone, 2000)
    v[::2, 0] *= 0.2
    v = v[cone.margin(v) > 0.02]
    p = cone.project(v)
    inside, polar = v[(p == v).all(-1)], v[(p == 0).all(-1)]
    if isinstance(cone, Exponential):
        rays = exponential_rays(torch.sinh(8 * grid))
        # The flat faces y = 0, x <= 0 of K and x = 0, y <= 0 of its polar.
        faces = [torch.hypot(w[:, i].clamp_min(0), w[:, 1 - i]) for i, w in enumerate((inside, polar))]
    else:
        x = torch.stack([torch.sigmoid(60 * grid), torch.sigmoid(-60 * grid)], dim=-1).repeat(2, 1)
        sign = torch.ones(len(x), 1, dtype=F64)
        sign[: len(grid)] = -1
        rays = power_rays(torch.tensor(cone.alphas[0], dtype=F64), x, sign)
        faces = [w.norm(dim=-1) for w in (inside, polar)]
    for w, curved, face in zip((inside, polar), rays, faces, strict=True):
        distance = torch.minimum(distance_to_rays(w, curved), face)
        assert len(w) > 30
        assert (distance < (6 if isinstance(cone, Exponential) else 2) * cone.margin(w)).all()


@pytest.mark.parametrize("cone", [Exponential(), Power(), Power(alphas=((0.2, 0.3, 0.5),))], ids=name)
def test_no_kink_within_the_margin(cone: Exponential | Power) -> None:
    v = sample(cone, 2000)
    step = torch.randn(v.shape, generator=generator(5), dtype=F64)
    step = 0.999 * cone.margin(v).unsqueeze(-1) * step / step.norm(dim=-1, keepdim=True)
    _, region = cone.factor(v)
    _, near = cone.factor(v + step)
    assert torch.equal(region, near)
    assert len(region.unique()) == (4 if isinstance(cone, Exponential) else 3)


def test_margin_of_the_flat_face() -> None:
    """On x, y <= 0 the kinks are the three coordinate planes; beside it, its boundary."""
    v = torch.tensor([[-1.0, -2, 0.25], [-0.5, -2, -3], [-1, -0.125, 4]], dtype=F64)
    torch.testing.assert_close(Exponential().margin(v), torch.tensor([0.25, 0.5, 0.125], dtype=F64), rtol=0, atol=0)
    beside = torch.tensor([[1e-3, -1.0, 1.0], [-1.0, 1e-3, -1.0]], dtype=F64)
    assert (Exponential().margin(beside) <= 1e-3).all()


def awkward(cone: Cone) -> Tensor:
    values = [-1.0, 0.0, 1.0, -2.0, 1e-20, -1e-8, 1e8] if cone.dim < 4 else [-1.0, 0.0, 1.0, 1e-20]
    grid = torch.tensor(list(itertools.islice(itertools.product(values, repeat=cone.dim), 4096)), dtype=F64)
    return torch.cat([grid, 1e-300 * grid[:100], 1e150 * grid[:100]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cone", [c for c in CONES if not isinstance(c, Power) or len(c.alphas) == 1], ids=name)
def test_finite_everywhere(cone: Cone, dtype: torch.dtype) -> None:
    v = awkward(cone)
    v = (v if dtype == torch.float64 else v[:-200]).to(dtype).requires_grad_()
    h, a = (torch.randn(v.shape, generator=generator(i), dtype=dtype) for i in range(2))
    (first,) = torch.autograd.grad((h * cone.project(v)).sum(), v)
    spectrum = cone.spectrum(v.detach())
    for result in (cone.project(v), first, spectrum.values, cone.curvature(v, h, a)):
        assert result.isfinite().all()
    assert ((spectrum.values >= 0) & (spectrum.values <= 1)).all()
    assert (cone.margin(v) >= 0).all()
    rebuilt = spectrum.unrotate(spectrum.values.unsqueeze(-1) * spectrum.rotate(h.unsqueeze(-1))).squeeze(-1)
    torch.testing.assert_close(rebuilt, first, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("cone", CONES, ids=name)
def test_nan_stays_where_it_is(cone: Cone) -> None:
    v, h = sample(cone, 3), sample(cone, 3, 1)
    bad = v.clone()
    bad[1].view(-1)[-1] = torch.nan
    functions = [cone.project, cone.margin, lambda v: cone.spectrum(v).values]
    functions += [lambda v: cone.derivative(v, h), lambda v: cone.curvature(v, h, h)]
    for f in functions:
        assert torch.equal(f(bad)[[0, 2]], f(v)[[0, 2]])
    assert cone.project(bad)[1].isnan().any()
    assert cone not in CURVED or cone.curvature(bad, h, h)[1].isnan().any()
    assert not cone.project(v).isnan().any()

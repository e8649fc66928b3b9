"""First and second derivatives against finite differences, their structure, and autograd in all its modes."""

import itertools

import pytest
import torch
from cone_points import CONES, CURVED, F64, generator, matrix, name, sample, smooth
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

from ddn_cvx.cones import PSD, Cone, Exponential, Power, SecondOrder
from ddn_cvx.errors import DifferentiationError

AUTOGRAD = [
    SecondOrder(2),
    SecondOrder(4),
    PSD(order=2),
    Exponential(),
    Power(alphas=((0.3, 0.7), (0.6, 0.4))),
    Power(alphas=((0.2, 0.3, 0.5),)),
]


def difference(f, v: torch.Tensor, h: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    return (f(v + step * h) - f(v - step * h)) / (2 * step)


def directions(v: torch.Tensor, count: int) -> list[torch.Tensor]:
    return [torch.randn(v.shape, generator=generator(10 + i), dtype=v.dtype) for i in range(count)]


@pytest.mark.parametrize("cone", CONES, ids=name)
def test_derivative_is_that_of_the_projection(cone: Cone) -> None:
    v = smooth(cone, 60)
    (h,) = directions(v, 1)
    torch.testing.assert_close(cone.derivative(v, h), difference(cone.project, v, h), rtol=0, atol=2e-8)


@pytest.mark.parametrize("cone", CONES, ids=name)
def test_curvature_is_that_of_the_derivative(cone: Cone) -> None:
    v = smooth(cone, 60)
    a, b, c = directions(v, 3)
    T = cone.curvature(v, a, b)
    torch.testing.assert_close(T, difference(lambda v: cone.derivative(v, a), v, b), rtol=0, atol=1e-7)
    for x, y, z in itertools.permutations((a, b, c)):
        torch.testing.assert_close((cone.curvature(v, x, y) * z).sum(-1), (T * c).sum(-1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cone", CURVED, ids=name)
def test_homogeneity(cone: Cone) -> None:
    """Π has degree 1, so DΠ(v) v = Π(v) and D²Π(v)[v, ·] = 0."""
    v = sample(cone, 100)
    (h,) = directions(v, 1)
    torch.testing.assert_close(cone.derivative(v, v), cone.project(v), rtol=0, atol=1e-13)
    size = cone.curvature(v, h, h).abs().amax(-1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(cone.curvature(v, v, h) / size, torch.zeros_like(v), rtol=0, atol=1e-10)


@pytest.mark.parametrize("cone", CONES, ids=name)
def test_spectrum(cone: Cone) -> None:
    v = sample(cone, 100)
    spectrum = cone.spectrum(v)
    D, eye = matrix(cone, v), torch.eye(cone.dim, dtype=F64).expand(*v.shape, cone.dim)
    torch.testing.assert_close(D, D.mT, rtol=0, atol=1e-13)
    U = spectrum.unrotate(eye)
    torch.testing.assert_close(U.mT @ U, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(U @ torch.diag_embed(spectrum.values) @ U.mT, D, rtol=0, atol=1e-13)
    assert ((spectrum.values >= 0) & (spectrum.values <= 1)).all()
    columns = torch.randn(*v.shape, 7, generator=generator(3), dtype=F64)
    torch.testing.assert_close(spectrum.rotate(columns), U.mT @ columns, rtol=0, atol=1e-12)
    torch.testing.assert_close(spectrum.unrotate(columns), U @ columns, rtol=0, atol=1e-12)
    if spectrum.is_diagonal:
        assert spectrum.rotate(columns) is columns
        assert spectrum.unrotate(columns) is columns
    assert spectrum.rotate(columns[..., :0]).shape[-1] == 0


def test_psd_ties() -> None:
    """Equal eigenvalues of either sign are not kinks: everything is as exact as elsewhere."""
    cone = PSD(order=5)
    V, _ = torch.linalg.qr(torch.randn(20, 5, 5, generator=generator(0), dtype=F64))
    for values in ([1.0, 1, 1, 1, 1], [-2.0, -2, 1, 1, 1], [-1.0, -1, -1, -1, 1], [-0.3, -0.3, 1, 1, 5]):
        v = cone.svec((V * torch.tensor(values, dtype=F64)) @ V.mT)
        a, b = directions(v, 2)
        torch.testing.assert_close(cone.derivative(v, a), difference(cone.project, v, a), rtol=0, atol=1e-8)
        expected = difference(lambda v, a=a: cone.derivative(v, a), v, b)
        torch.testing.assert_close(cone.curvature(v, a, b), expected, rtol=0, atol=1e-7)


def test_power_at_z_zero() -> None:
    """For x of both signs Π is differentiable at z = 0; twice if the exponents of the negative x sum to ½."""
    x = torch.tensor([[1.0, -0.7], [-2.0, 0.3]], dtype=F64)
    v = torch.cat([x, torch.zeros(2, 1, dtype=F64)], -1)
    h, a = directions(v, 2)
    half = Power()
    torch.testing.assert_close(half.derivative(v, h), difference(half.project, v, h, 1e-7), rtol=0, atol=1e-6)
    expected = difference(lambda v: half.derivative(v, h), v, a, 1e-6)
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(half.curvature(v, h, a), expected, rtol=0, atol=1e-5)
    # Otherwise p_z/z tends to 1 or 0 with z, as the negative exponents sum to less or to more than ½.
    skew = Power(alphas=((0.3, 0.7),))
    limit = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0, 0, 0]], [[0.0, 0, 0], [0, 1, 0], [0, 0, 1]]], dtype=F64)
    torch.testing.assert_close(matrix(skew, v), limit, rtol=0, atol=1e-12)
    torch.testing.assert_close(skew.curvature(v, h, a), torch.zeros_like(v), rtol=0, atol=1e-80)
    assert (skew.margin(v) > 0.1).all()


@pytest.mark.parametrize("cone", AUTOGRAD, ids=name)
def test_autograd(cone: Cone) -> None:
    v = smooth(cone, 2, 0.2).requires_grad_()
    h, a = (d.requires_grad_() for d in directions(v, 2))
    assert gradcheck(cone.project, (v,), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(cone.project, (v,), check_fwd_over_rev=True)
    assert gradcheck(cone.derivative, (v, h), check_forward_ad=True, check_batched_grad=True)
    assert gradcheck(lambda h, a: cone.curvature(v.detach(), h, a), (h, a), check_forward_ad=True)


@pytest.mark.parametrize("cone", AUTOGRAD, ids=name)
def test_func_transforms(cone: Cone) -> None:
    v = smooth(cone, 3, 0.2)
    h, w = directions(v, 2)
    one = v[0]
    # DΠ(v) applied to every basis tensor of the shape of v; jacobians have the output's dimensions first.
    basis = torch.eye(one.numel(), dtype=F64).view(-1, *one.shape)
    D = cone.derivative(one, basis).movedim(0, -1).reshape(*one.shape, *one.shape)
    torch.testing.assert_close(jacrev(cone.project)(one), D, rtol=0, atol=1e-13)
    torch.testing.assert_close(jacfwd(cone.project)(one), D, rtol=0, atol=1e-13)

    def loss(v: torch.Tensor) -> torch.Tensor:
        return (w[0] * cone.project(v)).sum()

    H = hessian(loss)(one)
    torch.testing.assert_close(torch.tensordot(H, h[0], one.ndim), cone.curvature(one, w[0], h[0]))
    for outer, inner in itertools.product((jacfwd, jacrev), repeat=2):
        torch.testing.assert_close(outer(inner(loss))(one), H, rtol=0, atol=1e-12)
    torch.testing.assert_close(vmap(hessian(loss))(v)[0], H, rtol=0, atol=1e-12)
    torch.testing.assert_close(vmap(cone.project, in_dims=1, out_dims=1)(v.movedim(0, 1)), cone.project(v).movedim(0, 1))
    torch.testing.assert_close(vmap(vmap(cone.project))(v.expand(2, *v.shape)), cone.project(v).expand(2, *v.shape))
    _, tangent = jvp(lambda h: cone.derivative(one, h), (h[0],), (h[1],))
    torch.testing.assert_close(tangent, cone.derivative(one, h[1]))


@pytest.mark.parametrize("cone", AUTOGRAD, ids=name)
def test_broadcasting(cone: Cone) -> None:
    """One point and many directions, with gradients summed over what was broadcast."""
    v = smooth(cone, 1, 0.2)[0].requires_grad_()
    h = torch.randn(4, *v.shape, generator=generator(0), dtype=F64)
    together = cone.derivative(v, h)
    torch.testing.assert_close(together, torch.stack([cone.derivative(v, row) for row in h]))
    torch.testing.assert_close(vmap(cone.derivative, (None, 0))(v, h), together)
    (gradient,) = torch.autograd.grad((together**2).sum(), v)
    expected = sum(2 * cone.curvature(v, row, cone.derivative(v, row)) for row in h)
    torch.testing.assert_close(gradient, expected.detach())
    assert cone.project(v[None][:0]).shape == (0, *v.shape)


def test_third_derivatives() -> None:
    cone = SecondOrder(4)
    v = smooth(cone, 20)
    a, b, c = directions(v, 3)
    T = jvp(lambda v: cone.curvature(v, a, b), (v,), (c,))[1]
    torch.testing.assert_close(T, difference(lambda v: cone.curvature(v, a, b), v, c), rtol=1e-6, atol=1e-6)
    short = [t[:3].clone().requires_grad_() for t in (v, a, b)]
    assert gradgradcheck(cone.curvature, short)


def test_third_derivatives_are_refused() -> None:
    for cone in (c for c in AUTOGRAD if not isinstance(c, SecondOrder)):
        v = smooth(cone, 1)[0].requires_grad_()
        for _ in range(2):
            (v2,) = torch.autograd.grad(cone.project(v).sin().sum(), v, create_graph=True)
            (v3,) = torch.autograd.grad(v2.sin().sum(), v, create_graph=True)
        with pytest.raises(DifferentiationError, match="differentiate once less"):
            torch.autograd.grad(v3.sum(), v)


def test_the_factor_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One eigendecomposition for the projection and all its derivatives."""
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda X: calls.append(X.shape) or eigh(X))
    v = torch.randn(7, 6, generator=generator(0), dtype=F64, requires_grad=True)
    (g,) = torch.autograd.grad((PSD(order=3).project(v) ** 2).sum(), v, create_graph=True)
    g.sum().backward()
    assert calls == [(7, 3, 3)]

"""Projections against answers that this package did not compute."""

import math
import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from cone_points import CURVED, F64, FLAT, contains, known, name, sample
from hypothesis import given, settings, strategies as st

from ddn_cvx.cones import PSD, Cone, Exponential, Nonnegative, Power, SecondOrder, Zero
from ddn_cvx.errors import DeclarationError

SINGLE = [cone for cone in CURVED if not (isinstance(cone, Power) and len(cone.alphas) > 1)]


@pytest.mark.parametrize("spread", [0.0, 2.0, 8.0])
@pytest.mark.parametrize("cone", [c for c in SINGLE if c.dim > 1], ids=name)
def test_known_by_construction(cone: Cone, spread: float) -> None:
    p, n = known(cone, 2000, spread)
    v = p + n
    size = v.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(cone.project(v) / size, p / size, rtol=0, atol=1e-13)
    torch.testing.assert_close(cone.project(p) / size, p / size, rtol=0, atol=1e-13)
    torch.testing.assert_close(cone.project(n) / size, torch.zeros_like(n), rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("cone", CURVED, ids=name)
def test_scales(cone: Cone, scale: float) -> None:
    v, a, b = (sample(cone, 100, seed) for seed in range(3))
    torch.testing.assert_close(cone.project(scale * v), scale * cone.project(v), rtol=1e-12, atol=1e-12 * scale)
    torch.testing.assert_close(cone.derivative(scale * v, a), cone.derivative(v, a), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(cone.margin(scale * v), scale * cone.margin(v), rtol=1e-9, atol=0)
    curvature = cone.curvature(v, a, b)
    size = curvature.abs().amax(-1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(scale * cone.curvature(scale * v, a, b) / size, curvature / size, rtol=0, atol=1e-8)


def cvxpy_constraints(cone: Cone, s: cp.Variable) -> list[cp.Constraint]:
    """Each row of s in the cone."""
    match cone:
        case Zero():
            return [s == 0]
        case Nonnegative():
            return [s >= 0]
        case SecondOrder():
            return [cp.SOC(s[:, 0], s[:, 1:].T)] if cone.dim > 1 else [s >= 0]
        case PSD():
            weights = [(i, j, 1.0 if i == j else math.sqrt(0.5)) for j in range(cone.order) for i in range(j + 1)]
            place = {(i, j): (k, w) for k, (i, j, w) in enumerate(weights)}
            at = [[place[min(i, j), max(i, j)] for j in range(cone.order)] for i in range(cone.order)]
            return [cp.bmat([[w * row[k] for k, w in line] for line in at]) >> 0 for row in s]
        case Exponential():
            return [cp.ExpCone(s[:, 0], s[:, 1], s[:, 2])]
        case _:
            assert isinstance(cone, Power)
            alpha = np.array(cone.alphas[0])
            if cone.dim == 3:
                return [cp.PowCone3D(s[:, 0], s[:, 1], s[:, 2], alpha[0])]
            return [cp.PowConeND(s[:, :-1].T, s[:, -1], np.tile(alpha[:, None], (1, s.shape[0])))]


@pytest.mark.parametrize("cone", FLAT + SINGLE, ids=name)
def test_against_cvxpy(cone: Cone) -> None:
    v = 2 * sample(cone, 12)
    s = cp.Variable(tuple(v.shape))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(s - v.numpy())), cvxpy_constraints(cone, s))
    errors = []
    # Near its limits Clarabel stops early, warns, and returns its last point; which tolerance does it depends on the cone.
    for tolerance in (1e-9, 1e-11):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            problem.solve(solver=cp.CLARABEL, tol_gap_abs=tolerance, tol_gap_rel=tolerance, tol_feas=tolerance)
        errors.append(np.abs(cone.project(v).numpy() - s.value).max())
    assert min(errors) < 5e-7


def test_closed_forms() -> None:
    """Cones that are other cones in disguise."""
    v = torch.randn(500, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    # |z| <= x: a second-order cone of two rows, and a power cone with one exponent.
    torch.testing.assert_close(Power(alphas=((1.0,),)).project(v), SecondOrder(2).project(v), rtol=0, atol=1e-13)
    # 2 x 2 PSD matrices: a second-order cone after the rotation (x + y, x - y, 2 z) / sqrt 2.
    v = torch.randn(500, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    r = math.sqrt(0.5)
    rotation = torch.tensor([[r, 0, r], [r, 0, -r], [0, 1, 0]], dtype=F64)
    torch.testing.assert_close(
        PSD(order=2).project(v), SecondOrder(3).project(v @ rotation.mT) @ rotation, rtol=0, atol=1e-13
    )
    # A diagonal matrix: the orthant.
    diagonal = torch.randn(50, 4, dtype=F64, generator=torch.Generator().manual_seed(2))
    cone = PSD(order=4)
    torch.testing.assert_close(
        cone.project(cone.svec(torch.diag_embed(diagonal))),
        cone.svec(torch.diag_embed(diagonal.clamp_min(0))),
        rtol=0,
        atol=1e-13,
    )
    # sqrt(x1 x2) >= |z| at x1 = x2 = x stays there: minimise 2 (p - x)^2 + (q - |z|)^2 over |q| <= p.
    x, z = torch.tensor([-1.0, -1.0, 0.5, 2.0], dtype=F64), torch.tensor([1.5, -3.0, -1.0, 1.0], dtype=F64)
    r = torch.tensor([0.0, 1 / 3, 2 / 3], dtype=F64)
    p = torch.cat([torch.stack([r, r, z[:3].sign() * r], -1), torch.tensor([[2.0, 2, 1]], dtype=F64)])
    torch.testing.assert_close(Power().project(torch.stack([x, x, z], -1)), p, rtol=0, atol=1e-15)


def test_exponential_faces() -> None:
    """x, y <= 0 is projected onto the face {(x, 0, z) : x <= 0 <= z}; (0, 0, z > 0) and (x < 0, 0, 0) are extreme rays."""
    v = torch.tensor([[-2.0, -1, 3], [-2, -1, -3], [0, -1, 2], [-1, 0, -1], [0, 0, 5], [-4, 0, 0], [0, 0, -1]], dtype=F64)
    p = torch.tensor([[-2.0, 0, 3], [-2, 0, 0], [0, 0, 2], [-1, 0, 0], [0, 0, 5], [-4, 0, 0], [0, 0, 0]], dtype=F64)
    assert torch.equal(Exponential().project(v), p)


def test_svec() -> None:
    """Upper triangle column by column, off-diagonals times sqrt 2; the inner product of matrices."""
    X = torch.tensor([[1.0, 2, 4], [2, 3, 5], [4, 5, 6]], dtype=F64)
    r = math.sqrt(2)
    cone = PSD(order=3)
    torch.testing.assert_close(cone.svec(X), torch.tensor([1, 2 * r, 3, 4 * r, 5 * r, 6], dtype=F64), rtol=0, atol=1e-15)
    torch.testing.assert_close(cone.mat(cone.svec(X)), X, rtol=0, atol=1e-15)


def scaled_points(dim: int) -> st.SearchStrategy[torch.Tensor]:
    """Zeros, equal entries, and entries of very different sizes."""
    number = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.integers(-999, 999).map(lambda k: k / 1000))
    size = st.sampled_from([1e-8, 1e-3, 1.0, 1.0, 1.0, 1e3, 1e8])
    entry = st.builds(lambda x, factor: x * factor, number, size)
    return st.lists(entry, min_size=dim, max_size=dim).map(lambda v: torch.tensor(v, dtype=F64))


@pytest.mark.parametrize("cone", FLAT + SINGLE, ids=name)
def test_moreau(cone: Cone) -> None:
    """p in K, p - v in K*, p orthogonal to p - v: these define the projection."""

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(scaled_points(cone.dim))
    def check(v: torch.Tensor) -> None:
        p = cone.project(v)
        q, size = p - v, float(v.abs().max())
        slack = 2e-14 * size
        assert contains(cone, p, slack)
        assert contains(cone, q, slack, dual=True)
        assert (p @ q).abs() <= 1e-14 * size**2

    check()


@pytest.mark.parametrize("cone", CURVED, ids=name)
def test_float32(cone: Cone) -> None:
    v, h = sample(cone, 200).float(), sample(cone, 200, 1).float()
    p = cone.project(v)
    assert p.dtype == torch.float32
    torch.testing.assert_close(p.double(), cone.project(v.double()), rtol=0, atol=5e-6)
    far = cone.margin(v) > 0.05
    D = cone.derivative(v, h)
    assert D.dtype == cone.curvature(v, h, h).dtype == cone.spectrum(v).values.dtype == torch.float32
    torch.testing.assert_close(D[far].double(), cone.derivative(v.double(), h.double())[far], rtol=0, atol=1e-4)


@pytest.mark.parametrize("tiny", [1e-20, 1e-70, 1e-200, 1e-300])
@pytest.mark.parametrize("cone", [SecondOrder(3), Exponential(), Power(), Power(alphas=((0.02, 0.98),))], ids=name)
def test_negligible_coordinates(cone: Cone, tiny: float) -> None:
    """A projection is nonexpansive: a coordinate that hardly differs from zero hardly changes it."""
    v = sample(cone, 300)
    for i in range(3):
        near, zero = v.clone(), v.clone()
        near[:, i], zero[:, i] = tiny, 0.0
        torch.testing.assert_close(cone.project(near), cone.project(zero), rtol=0, atol=1e-13 + 2 * tiny)
        assert contains(cone, cone.project(near), 1e-13)
        assert contains(cone, cone.project(near) - near, 1e-13, dual=True)


def test_tiny_float32() -> None:
    """Squares of these entries underflow in float32."""
    v = sample(SecondOrder(4), 100).float()
    torch.testing.assert_close(SecondOrder(4).project(1e-22 * v), 1e-22 * SecondOrder(4).project(v), rtol=1e-5, atol=1e-27)


def test_skew_exponents_and_many_factors() -> None:
    """Exponents down to 1e-3, and twelve factors."""
    for seed, d in enumerate((2, 12)):
        g = torch.Generator().manual_seed(seed)
        alpha = torch.rand(d, generator=g, dtype=F64) ** 3 + 1e-3
        cone = Power(alphas=(tuple((alpha / alpha.sum()).tolist()),))
        p, n = known(cone, 500, 3.0, seed)
        size = (p + n).abs().amax(-1, keepdim=True)
        torch.testing.assert_close(cone.project(p + n) / size, p / size, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SecondOrder(0),
        lambda: PSD(order=0),
        lambda: Power(alphas=()),
        lambda: Power(alphas=((0.5, 0.5), (1.0,))),
        lambda: Power(alphas=((0.5, 0.4),)),
        lambda: Power(alphas=((1.5, -0.5),)),
    ],
)
def test_impossible_cones(make) -> None:
    with pytest.raises(DeclarationError, match="must be"):
        make()

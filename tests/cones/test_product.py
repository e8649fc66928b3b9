"""Products of cones: block by block, primal and dual, however the blocks are ordered."""

import copy
import pickle

import pytest
import torch
from cone_points import F64, contains, generator
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacrev, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from ddn_cvx.cones import PSD, Cone, Exponential, Nonnegative, Power, Product, SecondOrder, Zero
from ddn_cvx.errors import DeclarationError, InputError

SORTED = Product(2, 3, (3, 3, 4), (2, 2, 3), 2, ((0.5, 0.5), (0.3, 0.7)))
SHUFFLED = Product(1, 2, (3, 1, 4, 3), (3, 1, 3), 1, ((0.3, 0.7), (0.2, 0.3, 0.5), (0.6, 0.4)))
FLAT = [Product(nonneg=4), Product(zero=2, nonneg=3), Product(zero=3)]
PRODUCTS = [SORTED, SHUFFLED, *FLAT, Product(soc=(3, 3)), Product(0, 2, (3,))]
EMPTY = Product()


def name(K: Product) -> str:
    return f"{K.zero}-{K.nonneg}-{K.soc}-{K.psd}-{K.exp}-{len(K.power)}"


def cones(K: Product) -> list[Cone]:
    """Every cone by itself, in row order; zero and nonnegative rows one by one."""
    found: list[Cone] = [Zero(1)] * K.zero + [Nonnegative(1)] * K.nonneg
    found += [SecondOrder(k) for k in K.soc] + [PSD(order=k) for k in K.psd]
    return [*found, *[Exponential()] * K.exp, *[Power(alphas=(alpha,)) for alpha in K.power]]


def by_block(K: Product, f, *tensors: Tensor) -> list[Tensor]:
    sizes = [cone.dim for cone in cones(K)]
    return [f(cone, *parts) for cone, *parts in zip(cones(K), *(t.split(sizes, -1) for t in tensors), strict=True)]


def sample(K: Product, *batch: int, seed: int = 0) -> Tensor:
    return torch.randn(*batch, K.size, generator=generator(seed), dtype=F64)


def smooth(K: Product, count: int) -> Tensor:
    v = sample(K, 4000)
    return v[(K.dual_margin(v) > 0.05).all(-1)][:count]


@pytest.mark.parametrize("K", PRODUCTS, ids=name)
def test_blockwise(K: Product) -> None:
    v, a, b = (sample(K, 6, seed=seed) for seed in range(3))
    for got, f in (
        (K.project(v), lambda cone, v, a, b: cone.project(v)),
        (K.project_dual(v), lambda cone, v, a, b: v + cone.project(-v)),
        (K.dual_derivative(v, a), lambda cone, v, a, b: a - cone.derivative(-v, a)),
        (K.dual_curvature(v, a, b), lambda cone, v, a, b: cone.curvature(-v, a, b)),
    ):
        torch.testing.assert_close(got, torch.cat(by_block(K, f, v, a, b), -1), rtol=0, atol=1e-13)
    margins = torch.stack(by_block(K, lambda cone, v: cone.margin(-v), v)[K.zero :], -1) if K.zero < K.size else v[:, :0]
    torch.testing.assert_close(K.dual_margin(v), margins, rtol=0, atol=1e-13)
    assert K.size == sum(cone.dim for cone in cones(K))


@pytest.mark.parametrize("K", PRODUCTS, ids=name)
def test_moreau(K: Product) -> None:
    """v = Π_K(v) − Π_K*(−v), the two parts orthogonal and in K and K*; Π_K* is the projection onto the dual cone."""
    v = 3 * sample(K, 200)
    s, y = K.project(v), K.project_dual(-v)
    torch.testing.assert_close(s - y, v, rtol=0, atol=1e-14)
    torch.testing.assert_close((s * y).sum(-1), torch.zeros(200, dtype=F64), rtol=0, atol=1e-12)
    assert all(by_block(K, lambda cone, s: contains(cone, s, 1e-13), s))
    assert all(by_block(K, lambda cone, y: contains(cone, y, 1e-13, dual=True), y))
    assert (s @ y.mT >= -1e-12).all()
    torch.testing.assert_close(K.project_dual(y), y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("K", PRODUCTS, ids=name)
def test_dual_derivatives_by_differences(K: Product) -> None:
    v, e = smooth(K, 10), 1e-6
    a, b = torch.randn(2, *v.shape, generator=generator(1), dtype=F64)
    first = (K.project_dual(v + e * a) - K.project_dual(v - e * a)) / (2 * e)
    torch.testing.assert_close(K.dual_derivative(v, a), first, rtol=0, atol=1e-7)
    second = (K.dual_derivative(v + e * b, a) - K.dual_derivative(v - e * b, a)) / (2 * e)
    torch.testing.assert_close(K.dual_curvature(v, a, b), second, rtol=0, atol=1e-6)


@pytest.mark.parametrize("K", PRODUCTS, ids=name)
def test_dual_spectrum(K: Product) -> None:
    v = sample(K, 2, 3)
    spectrum = K.dual_spectrum(v)
    eye = torch.eye(K.size, dtype=F64).expand(2, 3, K.size, K.size)
    D = K.dual_derivative(v.unsqueeze(-2), eye)
    U = spectrum.unrotate(eye)
    torch.testing.assert_close(U @ torch.diag_embed(spectrum.values) @ U.mT, D, rtol=0, atol=1e-13)
    torch.testing.assert_close(U.mT @ U, eye, rtol=0, atol=1e-13)
    columns = torch.randn(2, 3, K.size, 5, generator=generator(4), dtype=F64)
    torch.testing.assert_close(spectrum.rotate(columns), U.mT @ columns, rtol=0, atol=1e-12)
    assert ((spectrum.values >= 0) & (spectrum.values <= 1)).all()
    outside = torch.ones(K.size, K.size, dtype=torch.bool)
    for block in K.blocks():
        outside[block.rows, block.rows] = False
    assert not (U.abs() > 0)[..., outside].any()
    assert spectrum.is_diagonal == K.is_polyhedral
    if K.is_polyhedral:
        assert spectrum.rotate(columns) is columns
        assert spectrum.unrotate(columns) is columns


def test_distances() -> None:
    K = Product(1, 2, (3,), (2,))
    s = torch.tensor([[0.5, 1, -2, 5, 3, 4, 1, 0, 1], [0, 1, 2, 0, 3, 4, -3, 0, 1], [0, 0, 0, 5, 3, 4, 1, 0, 0]], dtype=F64)
    # |s| of the zero row, the negative part, |z|/√2 for t = 0, the negative eigenvalue
    torch.testing.assert_close(K.distance(s), torch.tensor([2, 12.5**0.5, 0], dtype=F64), rtol=0, atol=1e-14)
    y = torch.tensor([[7.0, 1, -2, 5, 3, 4, 1, 0, 1]], dtype=F64)
    torch.testing.assert_close(K.dual_distance(y), torch.tensor([2.0], dtype=F64), rtol=0, atol=1e-14)
    for K in PRODUCTS:
        v = sample(K, 20)
        torch.testing.assert_close(K.distance(K.project(v)), torch.zeros(20, dtype=F64), rtol=0, atol=1e-13)
        torch.testing.assert_close(K.dual_distance(K.project_dual(v)), torch.zeros(20, dtype=F64), rtol=0, atol=1e-13)
        blocks = by_block(K, lambda cone, v: (v - cone.project(v)).norm(dim=-1), v)
        torch.testing.assert_close(K.distance(v), torch.stack(blocks).amax(0))


def test_kinks_are_inactive() -> None:
    """A row that is tight and without force has derivative 0 on the dual side; a zero row is always free."""
    K = Product(zero=1, nonneg=3)
    v = torch.tensor([0.0, 0.0, 1.0, -1.0], dtype=F64, requires_grad=True)
    expected = torch.tensor([1.0, 0, 1, 0], dtype=F64)
    assert torch.equal(K.dual_spectrum(v).values, expected)
    assert torch.equal(K.dual_derivative(v, torch.ones(4, dtype=F64)).detach(), expected)
    (gradient,) = torch.autograd.grad(K.project_dual(v).sum(), v)
    assert torch.equal(gradient, expected)
    assert torch.equal(K.dual_margin(v), torch.tensor([0.0, 1, 1], dtype=F64))
    mixed = Product(1, 3, (3,))
    v = torch.tensor([0.0, 0.0, 1.0, -1.0, 0, 0, 0], dtype=F64)
    assert torch.equal(mixed.dual_spectrum(v).values, torch.tensor([1.0, 0, 1, 0, 0, 0, 0], dtype=F64))


def test_structure() -> None:
    blocks = SHUFFLED.blocks()
    assert [block.kind for block in blocks] == ["zero", "nonneg", *["soc"] * 4, *["psd"] * 3, "exp", *["power"] * 3]
    assert [block.rows.start for block in blocks[1:]] == [block.rows.stop for block in blocks[:-1]]
    assert [block.extra for block in blocks] == [1, 2, 3, 1, 4, 3, 3, 1, 3, 3, *SHUFFLED.power]
    assert blocks[-1].rows.stop == SHUFFLED.size == 1 + 2 + 11 + 13 + 3 + 10
    assert SHUFFLED.degree == 2 + 4 + 7 + 3 + 10
    assert Product(2, 3).is_polyhedral
    assert not Product(soc=(1,)).is_polyhedral


def test_value_semantics() -> None:
    same = Product(1, 2, [3, 1, 4, 3], [3, 1, 3], 1, [[0.3, 0.7], [0.2, 0.3, 0.5], [0.6, 0.4]])  # type: ignore[arg-type]
    assert same == SHUFFLED
    assert hash(same) == hash(SHUFFLED)
    assert SORTED != SHUFFLED
    v = sample(SHUFFLED, 3)
    for other in (pickle.loads(pickle.dumps(SHUFFLED)), copy.deepcopy(SHUFFLED)):
        assert other == SHUFFLED
        assert torch.equal(other.project_dual(v), SHUFFLED.project_dual(v))
    with pytest.raises(AttributeError):
        SHUFFLED.zero = 2  # type: ignore[misc]


@pytest.mark.parametrize("batch", [(), (0,), (2,), (2, 0, 3)])
@pytest.mark.parametrize("K", [EMPTY, *PRODUCTS], ids=name)
def test_shapes(K: Product, batch: tuple[int, ...]) -> None:
    v = sample(K, *batch)
    for result in (K.project(v), K.project_dual(v), K.dual_derivative(v, v), K.dual_curvature(v, v, v)):
        assert result.shape == v.shape
    spectrum = K.dual_spectrum(v)
    assert spectrum.values.shape == v.shape
    for k in (0, 2):
        columns = torch.zeros(*batch, K.size, k, dtype=F64)
        assert spectrum.rotate(columns).shape == spectrum.unrotate(columns).shape == columns.shape
    assert K.distance(v).shape == K.dual_distance(v).shape == batch
    assert K.dual_margin(v).shape == (*batch, len(cones(K)) - K.zero)


def test_errors() -> None:
    counts = [dict(zero=-1), dict(nonneg=-2), dict(exp=-1), dict(zero=0.5)]
    for bad in (*counts, dict(soc=(0,)), dict(psd=(0,)), dict(soc=(3, 2.5)), dict(power=((0.5, 0.6),))):
        with pytest.raises(DeclarationError, match="must be"):
            Product(**bad)
    for K in (SORTED, Product(2, 3)):
        v, wrong = sample(K, 2), torch.zeros(2, K.size + 1, dtype=F64)
        for call in (K.project, K.project_dual, K.dual_spectrum, K.dual_margin, K.distance, K.dual_distance):
            with pytest.raises(InputError, match=rf"{K.size} rows.*got shape \(2, {K.size + 1}\)"):
                call(wrong)
        with pytest.raises(InputError):
            K.dual_derivative(wrong, v)
        with pytest.raises(InputError):
            K.dual_curvature(v, v, wrong)


def test_nan_stays_in_its_element() -> None:
    for K in (SORTED, SHUFFLED, Product(1, 2)):
        v = sample(K, 3)
        bad = v.clone()
        bad[1] = torch.nan
        for f in (K.project, K.project_dual, K.distance, K.dual_distance, K.dual_margin):
            assert f(bad)[1].isnan().all()
            assert torch.equal(f(bad)[[0, 2]], f(v)[[0, 2]])


@pytest.mark.parametrize("K", [Product(1, 2, (3, 2, 3), (2,), 1, ((0.3, 0.7),)), Product(zero=1, nonneg=3)], ids=name)
def test_autograd(K: Product) -> None:
    v = smooth(K, 1).requires_grad_()
    h = sample(K, 1, seed=1).requires_grad_()
    assert gradcheck(K.project_dual, (v,), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(K.project_dual, (v,), check_fwd_over_rev=True, fast_mode=True)
    assert gradcheck(K.dual_derivative, (v, h), check_forward_ad=True, fast_mode=True)
    assert gradcheck(K.project, (v,), fast_mode=True)


@pytest.mark.parametrize("K", [SORTED, SHUFFLED, Product(zero=1, nonneg=3)], ids=name)
def test_func_transforms(K: Product) -> None:
    v, w = smooth(K, 4), sample(K, seed=1)
    torch.testing.assert_close(vmap(K.project_dual)(v), K.project_dual(v))
    torch.testing.assert_close(vmap(K.dual_derivative, (None, 0))(v[0], v), K.dual_derivative(v[0], v))
    D = K.dual_derivative(v.unsqueeze(1), torch.eye(K.size, dtype=F64))
    torch.testing.assert_close(vmap(jacrev(K.project_dual))(v), D)
    H = vmap(hessian(lambda v: K.project_dual(v) @ w))(v)
    torch.testing.assert_close(H @ w, K.dual_curvature(v, w.expand_as(v), w))
    torch.testing.assert_close(vmap(lambda v: K.dual_margin(v))(v), K.dual_margin(v))


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("K", [Product(nonneg=4), Product(zero=2, nonneg=3)], ids=name)
def test_polyhedral_cones_are_cheap(K: Product) -> None:
    v = sample(K, 5)
    for call in (K.project_dual, lambda v: K.dual_derivative(v, v), K.dual_spectrum):
        with Count() as count:
            call(v)
        assert len(count.names) <= 6
        assert not any("cat" in op or "index" in op or "gather" in op for op in count.names)


def test_equal_cones_are_one_call() -> None:
    few, many = Product(soc=(3, 4) * 2, exp=1), Product(soc=(3, 4) * 20, exp=30)
    counts = []
    for K in (few, many):
        with Count() as count:
            K.project_dual(sample(K, 2))
        counts.append(len(count.names))
    assert counts[0] == counts[1]


def test_float32() -> None:
    for K in (SORTED, SHUFFLED, Product(1, 2)):
        v = sample(K, 50).float()
        y = K.project_dual(v)
        assert y.dtype == K.dual_spectrum(v).values.dtype == K.dual_margin(v).dtype == K.distance(v).dtype == torch.float32
        torch.testing.assert_close(y.double(), K.project_dual(v.double()), rtol=0, atol=5e-6)

"""Node classes as they are written for the DDN reference implementation, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddn_cvx import DeclarationError, SolverError
from ddn_cvx.compat.ddn import (
    AbstractDeclarativeNode,
    AbstractNode,
    DeclarativeFunction,
    DeclarativeLayer,
    EqConstDeclarativeNode,
    GeneralConstDeclarativeNode,
    IneqConstDeclarativeNode,
    LinEqConstDeclarativeNode,
    NonUniqueDeclarativeNode,
)

f64 = torch.float64


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def squared(x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (y - x).square().sum(-1)


class WeightedMean(AbstractDeclarativeNode):
    """argmin_y sum_i w_i (y - x_i)^2, for a batch of matrices."""

    def objective(self, x, w, y):
        return (w * (y.unsqueeze(-1) - x).square()).sum((-2, -1))

    def solve(self, x, w):
        return (w * x).sum(-1) / w.sum(-1), None


class PseudoHuberMean(AbstractDeclarativeNode):
    """Solved by an optimiser that stops early, with the scale as a further input that may have a gradient."""

    def objective(self, x, alpha, y):
        z = y - x
        return (alpha**2 * (torch.sqrt(1 + (z / alpha) ** 2) - 1)).sum(-1)

    def solve(self, x, alpha):
        y = x.detach().mean(-1, keepdim=True).clone().requires_grad_()
        with torch.enable_grad():
            optimiser = torch.optim.LBFGS([y], max_iter=30)

            def closure():
                optimiser.zero_grad()
                loss = self.objective(x.detach(), alpha.detach(), y).sum()
                loss.backward()
                return loss

            optimiser.step(closure)
        return y.detach(), {"unused": None}


class OnSphere(EqConstDeclarativeNode):
    def objective(self, x, y):
        return squared(x, y)

    def equality_constraints(self, x, y):
        return y.square().sum(-1) - 1

    def solve(self, x):
        return x / x.norm(dim=-1, keepdim=True), None


class OnSphereOfRadius(OnSphere):
    def objective(self, x, r, y):
        return squared(x, y)

    def equality_constraints(self, x, r, y):
        return y.square().sum(-1, keepdim=True) - r**2

    def solve(self, x, r):
        return r * x / x.norm(dim=-1, keepdim=True), {"nu": None}


class OnBall(IneqConstDeclarativeNode):
    def objective(self, x, y):
        return squared(x, y)

    def inequality_constraints(self, x, y):
        return y.square().sum(-1) - 1

    def solve(self, x):
        return x / x.norm(dim=-1, keepdim=True).clamp(min=1.0), None


class OnPlane(LinEqConstDeclarativeNode):
    """argmin 1/2 (y - x)' Q (y - x)  s.t.  A y = d."""

    def __init__(self, Q, A, d):
        super().__init__()
        self.Q, self.A, self.d = Q, A, d

    def objective(self, x, y):
        r = y - x
        return 0.5 * torch.einsum("bm,mn,bn->b", r, self.Q, r)

    def linear_constraint_parameters(self, y):
        return self.A, self.d

    def solve(self, x):
        inverse = torch.linalg.inv(self.Q)
        gain = inverse @ self.A.T @ torch.linalg.inv(self.A @ inverse @ self.A.T)
        return x - (x @ self.A.T - self.d) @ gain.T, None


def check(node, *xs: Tensor) -> None:
    layer = DeclarativeLayer(node)
    assert torch.allclose(layer(*xs), node.solve(*xs)[0], atol=1e-6)
    torch.autograd.gradcheck(layer, xs)
    torch.autograd.gradgradcheck(layer, xs)


def test_unconstrained_with_several_inputs() -> None:
    check(WeightedMean(), points(3, 2, 4).requires_grad_(), points(3, 2, 4, seed=1).abs().requires_grad_())


def test_rough_answers_are_polished_and_every_input_has_a_gradient() -> None:
    x, alpha = points(3, 5).requires_grad_(), torch.full((3, 1), 0.7, dtype=f64, requires_grad=True)
    y = DeclarativeLayer(PseudoHuberMean())(x, alpha)
    z = (y - x) / alpha
    assert (z / torch.sqrt(1 + z**2)).sum(-1).abs().max() < 1e-12
    torch.autograd.gradcheck(DeclarativeLayer(PseudoHuberMean()), (x, alpha))
    (slope,) = torch.autograd.grad(y.sum(), alpha)
    assert bool((slope != 0).all())


def test_equality_constraints() -> None:
    check(OnSphere(), points(4, 3).requires_grad_())
    check(OnSphereOfRadius(), points(4, 3).requires_grad_(), torch.full((4, 1), 2.0, dtype=f64, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_inequalities_active_and_not_in_one_batch(dtype: torch.dtype) -> None:
    x = torch.cat([0.1 * points(5, 3), 5 * points(20, 3, seed=1)]).to(dtype).requires_grad_()
    assert {True, False} == {bool(n > 1) for n in x.norm(dim=-1)}
    v = points(25, 3, seed=2).to(dtype)
    (found,) = torch.autograd.grad(DeclarativeLayer(OnBall())(x), x, v)
    (expected,) = torch.autograd.grad(x / x.norm(dim=-1, keepdim=True).clamp(min=1.0), x, v)
    assert torch.allclose(found, expected, atol=1e-5 if dtype == torch.float32 else 1e-10)


def test_linear_equality_gradients_stay_in_the_plane() -> None:
    A, d = points(2, 4), points(2, seed=1)
    factor = points(4, 4, seed=2)
    Q = factor @ factor.T + torch.eye(4, dtype=f64)
    node, x = OnPlane(Q, A, d), points(3, 4, seed=3).requires_grad_()
    (found,) = node.gradient(x)
    inverse = torch.linalg.inv(Q)
    projection = torch.eye(4, dtype=f64) - inverse @ A.T @ torch.linalg.inv(A @ inverse @ A.T) @ A
    assert torch.allclose(found, projection.sum(0).expand(3, 4), atol=1e-10)
    assert torch.allclose(node.jacobian(x)[0], projection.expand(3, 4, 4), atol=1e-10)
    check(node, x)


def test_redundant_constraints_do_no_harm() -> None:
    A = points(1, 4).repeat(2, 1)
    node, x = OnPlane(torch.eye(4, dtype=f64), A, torch.zeros(2, dtype=f64)), points(3, 4, seed=3).requires_grad_()
    node.solve = lambda x: (x - (x @ A[0]).unsqueeze(-1) * A[0] / A[0].dot(A[0]), None)
    a = A[0] / A[0].norm()
    (found,) = torch.autograd.grad(DeclarativeLayer(node)(x).sum(), x)
    assert torch.allclose(found, (1 - a.sum() * a).expand(3, 4), atol=1e-10)


def test_captured_weights_are_parameters() -> None:
    A = points(1, 4).requires_grad_()
    layer = DeclarativeLayer(OnPlane(torch.eye(4, dtype=f64), A, torch.ones(1, dtype=f64)))
    assert any(p is A for p in layer.parameters())
    layer(points(2, 4)).square().sum().backward()
    a, x = A.detach().clone().requires_grad_(), points(2, 4)
    closed = x - ((x @ a.T - 1) @ a) / a.square().sum()
    (expected,) = torch.autograd.grad(closed.square().sum(), a)
    assert torch.allclose(A.grad, expected, atol=1e-10)


def test_gradient_and_jacobian_methods() -> None:
    node, x = OnSphere(), points(3, 4).requires_grad_()
    y = torch.nn.functional.normalize(x, dim=-1)
    eye = torch.eye(4, dtype=f64)
    expected = (eye - y.unsqueeze(-1) * y.unsqueeze(-2)) / x.norm(dim=-1).reshape(-1, 1, 1)
    assert torch.allclose(node.jacobian(x, y=y.detach())[0], expected, atol=1e-10)
    v = points(3, 4, seed=1)
    assert torch.allclose(node.gradient(x, y=y.detach(), v=v)[0], (v.unsqueeze(1) @ expected).squeeze(1), atol=1e-10)
    assert node.gradient(x.detach()) == (None,)
    assert torch.equal(DeclarativeFunction.apply(node, x), DeclarativeLayer(node)(x))


def test_a_node_with_its_own_gradient_is_used_as_it_is() -> None:
    class Own(OnSphere):
        def gradient(self, x, y=None, v=None, ctx=None):
            return (7.0 * v,)

    class Plain(AbstractNode):
        def solve(self, x, scale):
            return scale * x, None

        def gradient(self, x, scale, y=None, v=None, ctx=None):
            return scale * v, None

    x = points(3, 4).requires_grad_()
    (found,) = torch.autograd.grad(DeclarativeLayer(Own())(x).sum(), x)
    assert torch.equal(found, torch.full_like(x, 7.0))
    (found,) = torch.autograd.grad(DeclarativeLayer(Plain())(x, 3.0).sum(), x)
    assert torch.equal(found, torch.full_like(x, 3.0))
    node = Own()
    node.gradient = super(Own, node).gradient  # how the reference's own tests reach the generic one
    torch.autograd.gradcheck(DeclarativeLayer(node), x)


def test_inputs_that_are_no_batch_of_numbers() -> None:
    """An integer label for each element, a number, None, and a tensor shared by all."""

    class Shifted(AbstractDeclarativeNode):
        def objective(self, x, label, power, nothing, shared, y):
            assert label.dtype == torch.int64 and nothing is None
            return (y - x - shared.to(y.dtype)[label]).pow(power).sum(-1)

        def solve(self, x, label, power, nothing, shared):
            return x + shared[label], None

    x, label, shared = points(3, 2).requires_grad_(), torch.tensor([20, 0, 7]), points(21, 2, seed=1)
    layer = DeclarativeLayer(Shifted())
    y = layer(x, label, 2, None, shared)
    assert torch.allclose(y, x + shared[label])
    (found,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(found, torch.ones_like(x))
    assert torch.allclose(layer(x, label, 2, None, 2 * shared), x + 2 * shared[label])
    with pytest.raises(DeclarationError, match="Input 4 requires grad"):
        layer(x, label, 2, None, shared.requires_grad_())


def test_optional_inputs() -> None:
    class Scaled(AbstractDeclarativeNode):
        def objective(self, x, scale=1.0, *, y):
            return squared(scale * x, y)

        def solve(self, x, scale=1.0):
            return scale * x, None

    layer, x = DeclarativeLayer(Scaled()), points(3, 2).requires_grad_()
    for scale in (None, 3.0, 5.0):
        y = layer(x) if scale is None else layer(x, scale)
        (found,) = torch.autograd.grad(y.sum(), x)
        assert torch.allclose(found, torch.full_like(x, 1.0 if scale is None else scale))


def test_valleys_and_damping() -> None:
    """argmin (y_1 + y_2 - x)^2: the pseudo-inverse gives 1/2 for each, damping 2 / (4 + gamma)."""

    class Valley(NonUniqueDeclarativeNode):
        def objective(self, x, y):
            return (y.sum(-1) - x[:, 0]) ** 2

        def solve(self, x):
            return torch.cat([x, torch.zeros_like(x)], -1), None

    x = points(3, 1).requires_grad_()
    (found,) = Valley().gradient(x, v=torch.tensor([[1.0, 0.0]], dtype=f64).expand(3, 2))
    assert torch.allclose(found, torch.full_like(x, 0.5))
    (damped,) = Valley(gamma=1.0).gradient(x, v=torch.tensor([[1.0, 0.0]], dtype=f64).expand(3, 2))
    assert torch.allclose(damped, torch.full_like(x, 2 / 5))
    y = DeclarativeLayer(Valley(gamma=1.0))(x)
    assert torch.allclose(y, torch.cat([x, torch.zeros_like(x)], -1))


def test_wrong_answers_of_a_node_are_found_out() -> None:
    class Wrong(OnSphere):
        def solve(self, x):
            return -x / x.norm(dim=-1, keepdim=True), None

    x = points(3, 4).requires_grad_()
    with pytest.raises(SolverError, match="SADDLE_POINT"):
        DeclarativeLayer(Wrong())(x)
    assert DeclarativeLayer(Wrong(), on_failure="nan")(x).isnan().all()
    assert torch.allclose(DeclarativeLayer(Wrong(), stationary=True)(x), -torch.nn.functional.normalize(x, dim=-1))


def test_what_a_node_lacks_is_named() -> None:
    with pytest.raises(NotImplementedError, match="must define solve"):
        DeclarativeLayer(AbstractDeclarativeNode())(points(2, 3))
    with pytest.raises(DeclarationError, match="EqConstDeclarativeNode must define objective"):
        node = EqConstDeclarativeNode()
        node.solve = lambda x: (x, None)
        DeclarativeLayer(node)(points(2, 3))


def test_both_kinds_of_constraints() -> None:
    """argmin |y - x|^2 on the plane sum y = 1 with y_1 >= 0."""

    class Half(GeneralConstDeclarativeNode):
        def objective(self, x, y):
            return squared(x, y)

        def eq_constraints(self, x, y):
            return y.sum(-1) - 1

        def ineq_constraints(self, x, y):
            return -y[:, :1]

        def solve(self, x):
            y = x + (1 - x.sum(-1, keepdim=True)) / 3
            rest = x[:, 1:] + (1 - x[:, 1:].sum(-1, keepdim=True)) / 2
            return torch.where(y[:, :1] >= 0, y, torch.cat([torch.zeros_like(rest[:, :1]), rest], -1)), None

    x = 2 * points(8, 3)
    y = Half().solve(x)[0]
    assert {True, False} == {bool(v == 0) for v in y[:, 0]}
    check(Half(), x.requires_grad_())


def test_empty_and_single_batches() -> None:
    layer = DeclarativeLayer(OnSphere())
    assert layer(points(0, 3)).shape == (0, 3) and layer(points(1, 3)).shape == (1, 3)

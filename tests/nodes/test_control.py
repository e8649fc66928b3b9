"""Controllers: the gradient by hand, limits, learned dynamics, and input that is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx.nodes import LinearMPC, NonlinearMPC
from ddn_cvx.nodes.control import ENTRIES, GRAVITY, STEP, cart_pole, pendulum, riccati, upright


def test_nonlinear_controller_of_a_linear_system_is_riccati() -> None:
    """The same numbers by the quadratic program, the nonlinear program and the recursion, derivatives included."""
    x0, A, B, Q, R = ENTRIES[0].sample(3, torch.Generator().manual_seed(4))
    A, B, Q, R = A[:1], B[:1], Q[:1], R[:1]

    def dynamics(x: torch.Tensor, u: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return x @ theta.view(3, 3).mT + u @ B[0].mT

    def cost(x: torch.Tensor, u: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return 0.5 * ((x @ Q[0] * x).sum() + (u @ R[0] * u).sum())

    weight = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for solve in (
        lambda a: riccati(x0, a, B, Q, R, 4)[0],
        lambda a: LinearMPC(3, 2, 4)(x0, a, B, Q, R)[0],
        lambda a: NonlinearMPC(dynamics, cost, 3, 2, 4, 9)(x0, a.flatten(1))[0],
    ):
        a = A.clone().requires_grad_()
        actions = solve(a)
        gradients.append((actions.detach(), *torch.autograd.grad((weight * actions).sum(), a)))
    for actions, gradient in gradients[1:]:
        assert torch.allclose(actions, gradients[0][0], rtol=1e-8, atol=1e-9)
        assert torch.allclose(gradient, gradients[0][1], rtol=1e-6, atol=1e-8)


def accelerations(
    lagrangian: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], q: torch.Tensor, v: torch.Tensor, force: torch.Tensor
) -> torch.Tensor:
    """From ``d/dt dL/dv = dL/dq + force``."""
    momentum = torch.func.grad(lagrangian, 1)
    drift = torch.func.jvp(lambda q: momentum(q, v), (q,), (v,))[1]
    inertia = torch.func.jacfwd(momentum, 1)(q, v)
    return torch.linalg.inv(inertia) @ (torch.func.grad(lagrangian)(q, v) + force - drift)


def test_models_follow_from_their_energies() -> None:
    """A point on a rod without mass, and a cart with a uniform pole; potential energies are those of heights."""
    torch.manual_seed(0)
    mass, length, cart, half = torch.tensor([1.3, 0.7, 2.0, 0.4], dtype=torch.float64)

    def point(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (0.5 * mass * (length * v).square() - mass * GRAVITY * length * q.cos()).sum()

    def pole_on_cart(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        across, up = v[0] + half * q[1].cos() * v[1], -half * q[1].sin() * v[1]
        kinetic = 0.5 * cart * v[0] ** 2 + 0.5 * mass * (across**2 + up**2 + half**2 / 3 * v[1] ** 2)
        return kinetic - mass * GRAVITY * half * q[1].cos()

    for model, lagrangian, theta, n in (
        (pendulum, point, torch.stack((mass, length)), 1),
        (cart_pole, pole_on_cart, torch.stack((cart, mass, half)), 2),
    ):
        q, v, u = (torch.randn(n, dtype=torch.float64) for _ in range(3))
        force = torch.zeros_like(u)
        force[0] = u[0]
        faster = v + STEP * accelerations(lagrangian, q, v, force)
        right = torch.stack((q + STEP * faster, faster), -1).flatten()
        assert torch.allclose(model(torch.stack((q, v), -1).flatten(), u[:1], theta), right, atol=1e-12)


def test_action_at_its_limit_has_no_gradient() -> None:
    x0 = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
    one = torch.eye(1, dtype=torch.float64)
    actions, _ = LinearMPC(1, 1, 1, limit=0.5)(x0, one, one, one, one)
    (gradient,) = torch.autograd.grad(actions.sum(), x0)
    assert actions.item() == pytest.approx(-0.5) and gradient.abs().item() < 1e-9


def test_weights_of_a_learned_model_get_gradients() -> None:
    model = torch.nn.Linear(3, 2, dtype=torch.float64)
    node = NonlinearMPC(lambda x, u, theta: model(torch.cat((x, u), -1)), upright, 2, 1, 3, 1)
    x0, theta = torch.ones(2, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    node(x0, theta)[0].sum().backward()
    slope = model.weight.grad[0, 0].item()
    with torch.no_grad():
        model.weight[0, 0] += 1e-5
        high = node(x0, theta)[0].sum()
        model.weight[0, 0] -= 2e-5
        low = node(x0, theta)[0].sum()
    assert slope == pytest.approx((high - low).item() / 2e-5, rel=1e-5)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_sizes_below_one_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ddn.DeclarationError, match="at least 1"):
        LinearMPC(*sizes)


def test_limit_of_zero_is_refused() -> None:
    with pytest.raises(ddn.DeclarationError, match="limit must be above 0"):
        NonlinearMPC(lambda x, u, p: x + u, upright, 1, 1, 1, 1, limit=0.0)


def test_matrix_of_another_shape_is_refused() -> None:
    one = torch.eye(1)
    with pytest.raises(ddn.InputError, match="Q must be"):
        LinearMPC(1, 1, 1)(torch.ones(1), one, one, torch.eye(2), one)


def test_only_the_symmetric_parts_of_the_costs_matter() -> None:
    x0, A, B, Q, R = ENTRIES[0].sample(2, torch.Generator().manual_seed(0))
    skew, turn = torch.zeros(3, 3, dtype=x0.dtype), torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=x0.dtype)
    skew[0, 2], skew[2, 0] = 0.7, -0.7
    node = LinearMPC(3, 2, 4)
    inputs = [t.requires_grad_() for t in (Q + skew, R + turn)]
    actions, _ = node(x0, A, B, *inputs)
    assert torch.allclose(actions, node(x0, A, B, Q, R)[0], atol=1e-10)
    for slope in torch.autograd.grad(actions.square().sum(), inputs):
        assert torch.allclose(slope, slope.mT, atol=1e-12) and slope.abs().max() > 1e-3


def test_indefinite_cost_is_refused() -> None:
    one = torch.eye(1)
    with pytest.raises(ddn.DeclarativeError):
        LinearMPC(1, 1, 1)(torch.ones(1), one, one, -one, one)

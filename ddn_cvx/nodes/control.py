"""Model-predictive control: the best actions over a horizon, differentiable in the model and in the cost.

    minimise    sum_t c(x_t+1, u_t; theta)
    subject to  x_t+1 = f(x_t, u_t; theta),   x_0 given,   |u_t| <= limit,      t = 0 .. T - 1

Amos, Jimenez, Sacks, Boots & Kolter (NeurIPS 2018). Linear dynamics with a quadratic cost are a quadratic program; any
others are written out over the horizon (direct transcription) as a nonlinear program in the actions and the states.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import cvxpy as cp
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, TorchProblem
from ddn_cvx.nodes.checks import check_shapes
from ddn_cvx.nodes.entry import Entry

Model = Callable[[Tensor, Tensor, Tensor], Tensor]
STEP, GRAVITY = 0.05, 9.81


class LinearMPC(nn.Module):
    """``(x0 (*batch, n), A (*batch, n, n), B (*batch, n, m), Q (*batch, n, n), R (*batch, m, m))`` -> the actions
    ``(*batch, T, m)`` and the states after them ``(*batch, T, n)``.

    Dynamics ``x_t+1 = A x_t + B u_t``, cost ``1/2 sum x_t+1'Q x_t+1 + u_t'R u_t``; only the symmetric parts of Q (positive
    semidefinite) and R (positive definite) matter. Matrices without batch dimensions are shared.

    Parameters
    ----------
    states, actions, horizon : int
        n, m and T.
    limit : float, optional
        Largest magnitude of an action. Without it the node is the linear-quadratic regulator.

    Raises
    ------
    DeclarationError
        A size below one, or a limit that is not above zero.
    InputError
        An input of another shape.
    SolverError
        Q or R is not positive semidefinite.

    Examples
    --------
    >>> one = torch.eye(1)
    >>> actions, states = LinearMPC(1, 1, 1)(torch.tensor([3.0]), one, one, one, one)
    >>> actions, states
    (tensor([[-1.5000]]), tensor([[1.5000]]))
    """

    def __init__(self, states: int, actions: int, horizon: int, limit: float | None = None):
        super().__init__()
        _check(states, actions, horizon, limit)
        self.states, self.actions = states, actions
        u, x = cp.Variable((horizon, actions)), cp.Variable((horizon, states))
        x0, A = cp.Parameter(states, name="x0"), cp.Parameter((states, states), name="A")
        B = cp.Parameter((states, actions), name="B")
        Q, R = (cp.Parameter((k, k), name=name, PSD=True) for name, k in (("Q", states), ("R", actions)))
        before = [x0, *(x[t] for t in range(horizon - 1))]
        follows = [x[t] == A @ before[t] + B @ u[t] for t in range(horizon)]
        within = [] if limit is None else [u <= limit, u >= -limit]
        cost = sum(0.5 * cp.quad_form(x[t], Q) + 0.5 * cp.quad_form(u[t], R) for t in range(horizon))
        self.layer = DeclarativeLayer(cp.Problem(cp.Minimize(cost), follows + within), [x0, A, B, Q, R], [u, x])

    def forward(self, x0: Tensor, A: Tensor, B: Tensor, Q: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
        """The actions and the states that follow, in the dtype of x0."""
        n, m = self.states, self.actions
        check_shapes(x0=(x0, (n,)), A=(A, (n, n)), B=(B, (n, m)), Q=(Q, (n, n)), R=(R, (m, m)))
        actions, states = self.layer(x0, A, B, 0.5 * (Q + Q.mT), 0.5 * (R + R.mT))
        return actions, states


class NonlinearMPC(nn.Module):
    """``(x0 (*batch, n), theta (*batch, k))`` -> the actions ``(*batch, T, m)`` and the states after them
    ``(*batch, T, n)``.

    Where the problem has several minima, the one that the interior-point method finds from the plan of no action and no
    state.

    Parameters
    ----------
    dynamics : callable
        ``dynamics(x (T, n), u (T, m), theta (k,)) -> (T, n)``, the states one step later, row by row. It may be a module:
        its weights are parameters of the node.
    cost : callable
        ``cost(x (T, n), u (T, m), theta (k,))``, a scalar or one number a row: of the actions u, and the states x *after*
        them.
    states, actions, horizon, parameters : int
        n, m, T and k.
    limit : float, optional
        Largest magnitude of an action.

    Raises
    ------
    DeclarationError
        A size below one, a limit that is not above zero, or functions that return something else.
    InputError
        An input of another shape.
    SolverError
        No minimum was found.

    Examples
    --------
    >>> node = NonlinearMPC(lambda x, u, g: x + g * x**3 + u, lambda x, u, g: x**2 + u**2, 1, 1, 1, 1)
    >>> node(torch.tensor([1.0]), torch.tensor([2.0]))
    (tensor([[-1.5000]]), tensor([[1.5000]]))
    """

    def __init__(
        self,
        dynamics: Model,
        cost: Model,
        states: int,
        actions: int,
        horizon: int,
        parameters: int,
        limit: float | None = None,
    ):
        super().__init__()
        _check(states, actions, horizon, limit)

        def objective(plan: dict[str, Tensor], x0: Tensor, theta: Tensor) -> Tensor:
            return cost(plan["x"], plan["u"], theta).sum()

        def follows(plan: dict[str, Tensor], x0: Tensor, theta: Tensor) -> Tensor:
            before = torch.cat((x0.unsqueeze(0), plan["x"][:-1]))
            return plan["x"] - dynamics(before, plan["u"], theta)

        self.layer = DeclarativeLayer(
            TorchProblem(
                {"u": (horizon, actions), "x": (horizon, states)},
                objective,
                follows,
                lower=None if limit is None else {"u": -limit},
                upper=None if limit is None else {"u": limit},
                parameters={"x0": (states,), "theta": (parameters,)},
            )
        )

    def forward(self, x0: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The actions and the states that follow, in the dtype of x0."""
        plan = self.layer(x0, theta)
        return plan["u"], plan["x"]


def _check(states: int, actions: int, horizon: int, limit: float | None) -> None:
    for name, size in (("states", states), ("actions", actions), ("horizon", horizon)):
        if size < 1:
            raise DeclarationError(f"{name} must be at least 1, got {size!r}.")
    if limit is not None and not limit > 0:
        raise DeclarationError(f"limit must be above 0, got {limit!r}; None is for actions without a limit.")


# ---------------------------------------------------------------- two models to control


def pendulum(x: Tensor, u: Tensor, theta: Tensor) -> Tensor:
    """A pendulum standing up, by one step of semi-implicit Euler.

    ``x (..., 2)``: angle from the top, rad, and its rate; ``u (..., 1)``: torque, N m; ``theta (2,)``: mass, kg, and length,
    m.
    """
    mass, length = theta[0], theta[1]
    acceleration = GRAVITY / length * x[..., 0].sin() + u[..., 0] / (mass * length * length)
    rate = x[..., 1] + STEP * acceleration
    return torch.stack((x[..., 0] + STEP * rate, rate), -1)


def cart_pole(x: Tensor, u: Tensor, theta: Tensor) -> Tensor:
    """A pole on a cart (Barto, Sutton & Anderson 1983), by one step of semi-implicit Euler.

    ``x (..., 4)``: place, m, velocity, angle of the pole from the top, rad, and its rate; ``u (..., 1)``: force on the cart,
    N; ``theta (3,)``: mass of the cart, mass of the pole, kg, and half its length, m.
    """
    cart, pole, half = theta[0], theta[1], theta[2]
    total, sine, cosine = cart + pole, x[..., 2].sin(), x[..., 2].cos()
    push = (u[..., 0] + pole * half * x[..., 3].square() * sine) / total
    turning = (GRAVITY * sine - cosine * push) / (half * (4 / 3 - pole * cosine.square() / total))
    velocity = x[..., 1] + STEP * (push - pole * half * turning * cosine / total)
    rate = x[..., 3] + STEP * turning
    return torch.stack((x[..., 0] + STEP * velocity, velocity, x[..., 2] + STEP * rate, rate), -1)


def upright(x: Tensor, u: Tensor, theta: Tensor, price: float = 0.05) -> Tensor:
    """Half the squared state, angles and places ten times their rates, and the price of the actions; row by row."""
    even = x[..., 0::2].square().sum(-1) + 0.1 * x[..., 1::2].square().sum(-1)
    return 0.5 * even + 0.5 * price * u.square().sum(-1)


# ---------------------------------------------------------------- the catalogue's entries

_USUAL = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.9, 0.2], [0.1, 0.0, 0.8]], dtype=torch.float64)


def _sample_linear(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Three states, two actions, costs that are positive definite."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)

    half, price = normal(3, 3), 0.3 * normal(2, 2)
    Q, R = half @ half.mT + torch.eye(3, dtype=half.dtype), price @ price.mT + torch.eye(2, dtype=half.dtype)
    return 2 * normal(3), _USUAL + 0.1 * normal(3, 3), 0.5 * normal(3, 2), Q, R


def riccati(x0: Tensor, A: Tensor, B: Tensor, Q: Tensor, R: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """The regulator by its recursion: gains backwards, states forwards; all matrices ``(B, ., .)``."""
    value, gains = Q, []
    for _ in range(horizon):
        factor = torch.linalg.cholesky(R + B.mT @ value @ B)
        gains.append(-torch.cholesky_solve(B.mT @ value @ A, factor))
        closed = A + B @ gains[-1]
        value = Q + closed.mT @ value @ closed + gains[-1].mT @ R @ gains[-1]
    x, states, actions = x0.unsqueeze(-1), [], []
    for gain in reversed(gains):
        actions.append(gain @ x)
        x = A @ x + B @ actions[-1]
        states.append(x)
    return torch.stack(actions, 1).squeeze(-1), torch.stack(states, 1).squeeze(-1)


def _bounded(x0: Tensor, A: Tensor, B: Tensor, Q: Tensor, R: Tensor, horizon: int, limit: float) -> tuple[Tensor, Tensor]:
    """States eliminated, and bounded least squares by scipy's active-set method."""
    import numpy as np
    from scipy.optimize import lsq_linear

    actions, states = [], []
    for start, a, b, q, r in zip(*(t.numpy() for t in (x0, A, B, Q, R)), strict=True):
        n, m = b.shape
        powers = [np.linalg.matrix_power(a, k) for k in range(horizon + 1)]
        drift = np.concatenate([powers[t + 1] @ start for t in range(horizon)])
        zero = np.zeros((n, m))
        rows = [[powers[t - k] @ b if k <= t else zero for k in range(horizon)] for t in range(horizon)]
        effect = np.block(rows)
        root = np.kron(np.eye(horizon), np.linalg.cholesky(q).T)
        matrix = np.vstack((root @ effect, np.kron(np.eye(horizon), np.linalg.cholesky(r).T)))
        wanted = np.concatenate((-root @ drift, np.zeros(horizon * m)))
        found = lsq_linear(matrix, wanted, (-limit, limit), method="bvls", tol=1e-14).x
        actions.append(torch.from_numpy(found.reshape(horizon, m)))
        states.append(torch.from_numpy((effect @ found + drift).reshape(horizon, n)))
    return torch.stack(actions), torch.stack(states)


def _sample_pendulum(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x0 = torch.randn(batch, 2, generator=generator, dtype=torch.float64) * 0.5
    return x0, torch.tensor([1.0, 0.6], dtype=x0.dtype) * (
        1 + 0.2 * torch.rand(batch, 2, generator=generator, dtype=x0.dtype)
    )


def _sample_cart(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x0 = torch.randn(batch, 4, generator=generator, dtype=torch.float64) * 0.2
    usual = torch.tensor([1.0, 0.2, 0.5], dtype=x0.dtype)
    return x0, usual * (1 + 0.2 * torch.rand(batch, 3, generator=generator, dtype=x0.dtype))


def shooting(model: Model, x0: Tensor, theta: Tensor, horizon: int, limit: float | None) -> tuple[Tensor, Tensor]:
    """The actions alone as variables, by scipy's sequential quadratic programming with the simulation's gradient."""
    import numpy as np
    from scipy.optimize import minimize

    def simulate(u: Tensor, start: Tensor, p: Tensor) -> Tensor:
        x, states = start, []
        for action in u:
            x = model(x, action, p)
            states.append(x)
        return torch.stack(states)

    actions, states = [], []
    for start, p in zip(x0, theta, strict=True):

        def cost(u: np.ndarray, start: Tensor = start, p: Tensor = p) -> tuple[float, np.ndarray]:
            at = torch.from_numpy(u).unsqueeze(-1).requires_grad_()
            value = upright(simulate(at, start, p), at, p).sum()
            return value.item(), torch.autograd.grad(value, at)[0].squeeze(-1).numpy()

        bounds = None if limit is None else [(-limit, limit)] * horizon
        found = minimize(cost, np.zeros(horizon), jac=True, method="SLSQP", bounds=bounds, options={"ftol": 1e-15})
        actions.append(torch.from_numpy(found.x).unsqueeze(-1))
        states.append(simulate(actions[-1], start, p))
    return torch.stack(actions), torch.stack(states)


_AMOS = "Amos, Jimenez, Sacks, Boots & Kolter, NeurIPS 2018"


def _entry(name: str, title: str, **parts: Any) -> Entry:
    tags = frozenset({"control"})
    return Entry(name=name, title=title, source=_AMOS, example="14_model_predictive_control", tags=tags, **parts)


ENTRIES = (
    _entry(
        "lqr",
        "linear-quadratic regulator",
        kind="conic",
        build=partial(LinearMPC, 3, 2, 4),
        sample=_sample_linear,
        reference=partial(riccati, horizon=4),
    ),
    _entry(
        "linear-mpc",
        "model-predictive control of a linear system with limited actions",
        kind="conic",
        build=partial(LinearMPC, 3, 2, 4, limit=1.0),
        sample=_sample_linear,
        reference=partial(_bounded, horizon=4, limit=1.0),
    ),
    _entry(
        "pendulum-mpc",
        "model-predictive control of a pendulum with limited torque",
        kind="nonlinear",
        build=partial(NonlinearMPC, pendulum, upright, 2, 1, 6, 2, limit=2.0),
        sample=_sample_pendulum,
        reference=partial(shooting, pendulum, horizon=6, limit=2.0),
        tolerance=1e-6,
    ),
    _entry(
        "cart-pole-mpc",
        "model-predictive control of a pole on a cart",
        kind="nonlinear",
        build=partial(NonlinearMPC, cart_pole, upright, 4, 1, 5, 3),
        sample=_sample_cart,
        reference=partial(shooting, cart_pole, horizon=5, limit=None),
        tolerance=1e-6,
    ),
)

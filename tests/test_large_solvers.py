"""Your own solver for problems too large for matrices: multipliers, checks and derivatives from products alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx import Status

F64 = torch.float64
N = 1500


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def half_square(y: Tensor, x: Tensor) -> Tensor:
    return 0.5 * ((y - x) ** 2).sum(-1)


def onto_simplex(x: Tensor) -> Tensor:
    """By sorting (Held, Wolfe & Crowder 1974)."""
    ordered = x.sort(dim=-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    level = (ordered.cumsum(-1) - 1) / count
    last = (ordered > level).sum(-1, keepdim=True) - 1
    return (x - level.gather(-1, last)).clamp(min=0)


def layer(solve: object, *constraints: object, **options: object) -> ddn.DeclarativeLayer:
    problem = ddn.TorchProblem((N,), half_square, *constraints, solve=solve, batched=True, **options)
    return ddn.DeclarativeLayer(problem, on_failure="nan")


def total(y: Tensor, x: Tensor) -> Tensor:
    return y.sum(-1, keepdim=True) - 1


@pytest.mark.parametrize("bounded", [True, False])
def test_projection_onto_the_simplex(bounded: bool) -> None:
    """The signs as bounds, or as inequalities; the derivative of the closed form is known where the support is."""
    sign = {"lower": 0.0} if bounded else {"inequality": lambda y, x: -y}
    node, x, v = layer(onto_simplex, total, **sign), points(2, N).requires_grad_(), points(2, N, seed=1)
    y = node(x)
    on = (y > 0).to(F64)
    assert ((on.sum(-1) > 1) & (on.sum(-1) < N)).all()
    (found,) = torch.autograd.grad(y, x, v)
    expected = on * (v - ((on * v).sum(-1) / on.sum(-1)).unsqueeze(-1))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-8)
    assert node.solve(x).statuses == [Status.SOLVED] * 2


def sphere(y: Tensor, x: Tensor) -> Tensor:
    return (y * y).sum(-1, keepdim=True) - 1


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


CASES = {
    "the nearest point": (lambda x: unit(x), Status.SOLVED),
    "the farthest point": (lambda x: -unit(x), Status.SADDLE_POINT),
    "off the sphere": (lambda x: 1.01 * unit(x), Status.INACCURATE),
    "not stationary": (lambda x: unit(x + 0.1), Status.INACCURATE),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_solver_returns_is_checked(name: str) -> None:
    solve, status = CASES[name]
    assert layer(solve, sphere).solve(points(2, N)).statuses == [status] * 2


def test_a_saddle_point_without_constraints_is_found() -> None:
    """One direction of three thousand bends down, by a tenth of what the others bend up."""

    def objective(y: Tensor, x: Tensor) -> Tensor:
        along = (unit(x) * y).sum(-1)
        return 0.5 * (y * y).sum(-1) - 0.55 * along**2 + along**4

    problem = ddn.TorchProblem((2 * N,), objective, solve=torch.zeros_like, batched=True)
    solution = ddn.DeclarativeLayer(problem, on_failure="nan").solve(points(2, 2 * N))
    assert solution.statuses == [Status.SADDLE_POINT] * 2


def test_a_wrong_sign_of_a_multiplier_is_no_solution() -> None:
    """On the hyperplane although the half-space lets go."""
    node = layer(lambda x: x - (x.sum(-1, keepdim=True) - 1) / N, None, lambda y, x: y.sum(-1, keepdim=True) - 1)
    x = points(2, N)
    sides = x.sum(-1) > 1
    assert sides.tolist() in ([True, False], [False, True])
    expected = [Status.SOLVED if outside else Status.INACCURATE for outside in sides.tolist()]
    assert node.solve(x).statuses == expected

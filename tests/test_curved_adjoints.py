"""``Smoothed`` and ``Unrolled`` for programs over second-order, semidefinite, exponential and power cones."""

from __future__ import annotations

import math
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx import DifferentiationError, Implicit, Smoothed, Unrolled

F64 = torch.float64
X, P = cp.Variable(3), cp.Parameter(3)
S, M = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
T = cp.Variable()
near = cp.sum_squares(X - P)
POINT = torch.tensor([1.0, -0.5, 2.0], dtype=F64)
MATRIX = torch.tensor([[1.0, 0.3, -0.2], [0.3, -1.0, 0.4], [-0.2, 0.4, 0.5]], dtype=F64)

# Regular solutions, with equalities and inequalities next to the cone.
PROGRAMS: dict[str, tuple[cp.Problem, cp.Parameter, cp.Variable, Tensor]] = {
    "second-order": (cp.Problem(cp.Minimize(near + X[0]), [cp.norm(X) <= 1, X[1] <= 0.1]), P, X, POINT),
    "norm": (cp.Problem(cp.Minimize(near + cp.norm(X - 1)), [cp.sum(X) == 1]), P, X, POINT),
    "semidefinite": (cp.Problem(cp.Minimize(cp.sum_squares(S - M)), [S >> 0, cp.trace(S) == 1]), M, S, MATRIX),
    "exponential": (cp.Problem(cp.Minimize(near + cp.log_sum_exp(X)), [X >= -0.1]), P, X, POINT),
    "power": (cp.Problem(cp.Minimize(near), [cp.PowCone3D(X[0], X[1], X[2], 0.3)]), P, X, POINT + 0.7),
}


def layer(name: str, adjoint: ddn.adjoint.base.Adjoint) -> tuple[ddn.DeclarativeLayer, Tensor]:
    problem, parameter, variable, value = PROGRAMS[name]
    return ddn.DeclarativeLayer(problem, [parameter], variable, adjoint=adjoint), value


def loss(node: ddn.DeclarativeLayer) -> Callable[[Tensor], Tensor]:
    def of(value: Tensor) -> Tensor:
        y: Tensor = node(value)
        weights = torch.arange(1.0, y.shape[-1] + 1, dtype=F64)
        return (y.sin() * weights).sum()

    return of


@pytest.mark.parametrize("name", PROGRAMS)
def test_newton_steps_have_the_derivatives_of_the_solution(name: str) -> None:
    """One step to first order, two to second."""
    exact, value = layer(name, Implicit())
    for steps in (1, 2):
        node, _ = layer(name, Unrolled(steps))
        torch.testing.assert_close(node(value), exact(value), rtol=0.0, atol=1e-9)
        slope, expected = (torch.func.grad(loss(f))(value) for f in (node, exact))
        torch.testing.assert_close(slope, expected, rtol=0.0, atol=1e-7)
    d = torch.linspace(-1.0, 1.0, value.numel(), dtype=F64).reshape(value.shape)
    bend, expected = (torch.func.jvp(torch.func.grad(loss(f)), (value,), (d,))[1] for f in (node, exact))
    torch.testing.assert_close(bend, expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_narrow_path_is_the_solution(name: str) -> None:
    (exact, value), (node, _) = layer(name, Implicit()), layer(name, Smoothed(1e-6))
    batch = torch.stack((value, 1.1 * value))
    assert torch.equal(node(batch), exact(batch))
    slope, expected = (torch.func.grad(loss(f))(batch) for f in (node, exact))
    torch.testing.assert_close(slope, expected, rtol=0.0, atol=1e-4)


def ball(c: Tensor, width: float) -> Tensor:
    """``min c'x - width log(1 - |x|²)``."""
    length = c.norm()
    return -((width**2 + length**2).sqrt() - width) / length * c / length


def spectraplex(C: Tensor, width: float) -> Tensor:
    """``min tr CX - width log det X, tr X = 1``: ``X = width (C + lam I)^-1``."""
    values, vectors = np.linalg.eigh(C.numpy())
    lam = brentq(lambda lam: width * (1 / (values + lam)).sum() - 1, 1e-9 - values[0], 10.0, xtol=1e-15, rtol=1e-14)
    return torch.from_numpy(vectors * (width / (values + lam)) @ vectors.T)


def logarithm(p: Tensor, width: float) -> Tensor:
    """``min p t - x - width (log(log t - x) + log t)``."""
    return ((1 + width) / p).log() - width


def power(p: Tensor, width: float) -> Tensor:
    """``min p t - x - width (log(t^1.2 - x²) + 0.4 log t)``."""

    def slope(x: float) -> float:  # at the best t for this x
        t = (x * x + 2 * width * x) ** (1 / 1.2)
        return float(p) - 0.6 * t**0.2 / x - 0.4 * width / t

    return torch.tensor(brentq(slope, 1e-6, 1e3, xtol=1e-15, rtol=1e-14), dtype=F64)


c, C, p = cp.Parameter(3), M, cp.Parameter()
PATHS = {
    "second-order": (cp.Problem(cp.Minimize(c @ X), [cp.SOC(1, X)]), c, X, POINT, ball),
    "semidefinite": (cp.Problem(cp.Minimize(cp.trace(C @ S)), [S >> 0, cp.trace(S) == 1]), C, S, MATRIX, spectraplex),
    "exponential": (cp.Problem(cp.Minimize(p * T - X[0]), [cp.ExpCone(X[0], 1, T), X[1:] == 0]), p, X[0], 0.8, logarithm),
    "power": (cp.Problem(cp.Minimize(p * T - X[0]), [cp.PowCone3D(T, 1, X[0], 0.6), X[1:] == 0]), p, X[0], 0.8, power),
}


@pytest.mark.parametrize("width", [0.3, 0.01])
@pytest.mark.parametrize("name", PATHS)
def test_the_derivative_is_that_of_the_path(name: str, width: float) -> None:
    """Against central differences of its closed form."""
    problem, parameter, output, value, path = PATHS[name]
    value = torch.as_tensor(value, dtype=F64)
    variable = X if output is not S else S
    node = ddn.DeclarativeLayer(problem, [parameter], variable, adjoint=Smoothed(width))
    d = torch.linspace(0.5, 1.0, value.numel(), dtype=F64).reshape(value.shape)
    d = d if d.ndim < 2 else d + d.T
    h = 1e-5
    expected = (path(value + h * d, width) - path(value - h * d, width)) / (2 * h)
    _, found = torch.func.jvp(node, (value,), (d,))
    found = found if expected.ndim else found[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    _, pull = torch.func.vjp(node, value)
    weights = torch.cos(torch.arange(node(value).numel(), dtype=F64)).reshape(node(value).shape)
    (pulled,) = pull(weights)
    moved = torch.func.jvp(node, (value,), (d,))[1]
    torch.testing.assert_close((pulled * d).sum(), (weights * moved).sum(), rtol=1e-8, atol=1e-9)


def test_failed_elements_have_no_gradient_and_harm_no_other() -> None:
    for adjoint in (Smoothed(0.01), Unrolled(1)):
        problem, parameter, variable, value = PROGRAMS["second-order"]
        node = ddn.DeclarativeLayer(problem, [parameter], variable, adjoint=adjoint, on_failure="nan")
        bad = torch.stack((value, torch.full_like(value, math.nan), -value)).requires_grad_()
        (found,) = torch.autograd.grad(node(bad).nansum(), bad)
        assert not found[1].any()
        alone = torch.func.grad(lambda x, node=node: node(x).sum())(torch.stack((value, -value)))
        torch.testing.assert_close(found[[0, 2]], alone, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("name", ["semidefinite", "exponential", "second-order"])
def test_a_width_lost_in_rounding_is_refused(name: str) -> None:
    """The curvature of a barrier at 1e-9 from a curved boundary is all rounding."""
    node, value = layer(name, Smoothed(1e-9))
    with pytest.raises(DifferentiationError, match="larger width"):
        torch.func.grad(loss(node))(value)


def test_smoothed_has_first_derivatives_only() -> None:
    node, value = layer("second-order", Smoothed())
    with pytest.raises(DifferentiationError, match="first derivatives only"):
        torch.func.hessian(loss(node))(value)


@pytest.mark.parametrize("name", PROGRAMS)
def test_unrolling_leaves_the_checked_answer_alone(name: str) -> None:
    """Bit for bit: a Newton step of rounding errors may lead away from it."""
    (exact, value), (node, _) = layer(name, Implicit()), layer(name, Unrolled())
    assert torch.equal(exact(value), node(value))

"""Gradients of nonlinear layers against finite differences of problems solved again, on Hock–Schittkowski problems."""

from __future__ import annotations

import pytest
import torch
from hock_schittkowski import PROBLEMS, Problem
from torch import Tensor

from ddn_cvx import DeclarativeLayer, Status, TorchProblem

f64 = torch.float64
BATCH = 3


def layer_for(problem: Problem, **options: object) -> DeclarativeLayer:
    """Inputs: the parameters, and where to start."""
    lower, upper = problem.bounds()
    t = torch.tensor(problem.nominal, dtype=f64)
    _, h, g = problem.evaluate(torch.tensor(problem.start, dtype=f64), t)
    node = TorchProblem(
        problem.n,
        lambda y, t, start: problem.evaluate(y, t)[0],
        (lambda y, t, start: problem.evaluate(y, t)[1]) if len(h) else None,
        (lambda y, t, start: problem.evaluate(y, t)[2]) if len(g) else None,
        lower=None if problem.lower is None else lower,
        upper=None if problem.upper is None else upper,
        initial=lambda t, start: start,
        parameters=[t.shape, (problem.n,)],
    )
    return DeclarativeLayer(node, **options)


def differences(layer: DeclarativeLayer, t: Tensor, y: Tensor, direction: Tensor, step: float) -> Tensor:
    """Central differences of fourth order along ``direction``; every point is solved for anew, from ``y``, since some of the
    problems have several solutions."""
    points = torch.stack([t + k * step * direction for k in (-2, -1, 1, 2)])
    y = layer(points, y)
    return (y[0] - 8 * y[1] + 8 * y[2] - y[3]) / (12 * step)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"HS{p.number}")
def test_gradient(problem: Problem) -> None:
    generator = torch.Generator().manual_seed(problem.number)
    theta, start = problem.batch(BATCH, generator)
    t = theta.tensors[0].requires_grad_()
    layer = layer_for(problem)
    solution = layer.solve(t, start)
    assert solution.statuses == [Status.SOLVED] * BATCH
    if any(solution.regularities):
        pytest.skip(f"not regular: {solution.regularities}")
    y = solution.outputs[0]
    weights = torch.randn(y.shape, generator=generator, dtype=f64)
    direction = torch.randn(t.shape, generator=generator, dtype=f64) * t.detach().abs()
    (gradient,) = torch.autograd.grad((y * weights).sum(), t)
    found = (gradient * direction).sum(-1)
    moved = (differences(layer, t.detach(), y.detach(), direction, step=1e-4) * weights).sum(-1)
    scale = (gradient.abs() * direction.abs()).sum(-1)
    assert bool(((found - moved).abs() <= 1e-6 * scale.clamp(min=1e-6)).all()), (found, moved)

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


@pytest.mark.parametrize("seed", range(12))
def test_random_problems(seed: int) -> None:
    """Quartic and trigonometric objectives, quadratic equalities, saturating inequalities, bounds that move."""
    generator = torch.Generator().manual_seed(seed)
    n, p, m, k = 2 + seed % 5, seed % 2, seed % 4, 1 + seed % 3

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=f64)

    Q, T, a, W, E, e, G, c = (
        randn(n, n),
        randn(n, k),
        randn(n),
        randn(n, n),
        randn(n, n) / 2,
        randn(k),
        randn(m, n),
        randn(m, k),
    )

    def cost(y: Tensor, x: Tensor, start: Tensor) -> Tensor:
        bent = 0.3 * (y @ (W @ y)) * torch.tanh(x.sum())
        return 0.5 * ((Q @ y - T @ x) ** 2).sum() + torch.cos(y + a).sum() + 0.1 * (y**4).sum() + bent

    node = TorchProblem(
        n,
        cost,
        (lambda y, x, start: y @ (E @ y) + y[0] - 0.3 * (e @ x)) if p else None,
        (lambda y, x, start: torch.tanh(G @ y) - 0.3 - 0.2 * (c @ x).cos()) if m else None,
        lower=(lambda x, start: -1.0 - 0.1 * x.sum() ** 2) if seed % 3 else None,
        upper=0.9 if seed % 3 else None,
        initial=lambda x, start: start,
        parameters=[(k,), (n,)],
    )
    layer, x = DeclarativeLayer(node, on_failure="nan"), randn(6, k)
    solution = layer.solve(x, torch.full((n,), 0.1, dtype=f64))
    y = solution.outputs[0].detach()
    weights, d, step = randn(6, n), randn(6, k), 1e-5
    ahead, behind = (layer(x + s * step * d, y.nan_to_num()) for s in (1, -1))
    # Where another local minimum is reached the difference says nothing.
    usable = (solution.status == 0) & (solution.regularity == 0) & ((ahead - behind).abs().amax(-1) < 1e-2)
    assert int(usable.sum()) >= 4
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((layer(leaf, y.nan_to_num()) * weights).nansum(), leaf)
    found, expected = (gradient * d).sum(-1)[usable], ((ahead - behind) / (2 * step) * weights).sum(-1)[usable]
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"HS{p.number}")
def test_a_lying_solver_is_put_right_or_found_out(problem: Problem) -> None:
    """Points beside the solution, by a hundredth and by nothing: never another answer with the status SOLVED."""
    generator = torch.Generator().manual_seed(problem.number)
    theta, start = problem.batch(BATCH, generator)
    t = theta.tensors[0]
    y = layer_for(problem)(t, start)
    lower, upper = problem.bounds()
    beside = y + 0.01 * torch.randn(y.shape, generator=generator, dtype=f64) * (1 + y.abs())
    told = {"solution": y, "lie": beside.clamp(lower, upper)}
    honest = layer_for(problem).node
    for kind, answer in told.items():
        node = TorchProblem(
            problem.n,
            honest.functions["objective"],
            honest.functions.get("equality"),
            honest.functions.get("inequality"),
            lower=honest.fields["lower"],
            upper=honest.fields["upper"],
            solve=lambda t, start, answer=answer: answer,
            parameters=[t.shape[1:], (problem.n,)],
        )
        solution = DeclarativeLayer(node).solve(t, start)
        solved = solution.status == int(Status.SOLVED)
        assert bool(solved.all()) or kind == "lie"
        assert torch.allclose(solution.outputs[0][solved], y[solved], rtol=1e-4, atol=1e-4)


def test_products_and_matrices_give_the_same_derivatives() -> None:
    """``matrices=`` says which of them are used, whatever the size; with equalities, active and inactive inequalities."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, generator=generator, dtype=f64).requires_grad_()
    found = []
    for matrices in (True, False):
        node = TorchProblem(
            (5,),
            lambda y, x: (y - x).square().sum() + 0.1 * (y**4).sum(),
            lambda y, x: y[:3].square().sum() - 1,
            lambda y, x: torch.stack((y[4] - 0.1, -y[3] - 9)),
            parameters=[(5,)],
            initial=lambda x: x,
            matrices=matrices,
        )
        layer = DeclarativeLayer(node)
        assert ("products" in str(layer.explain(x))) != matrices
        y = layer(x)
        (slope,) = torch.autograd.grad((y * torch.arange(5.0, dtype=f64)).sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.square().sum(), x)
        found.append((y, slope, bend))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)

"""One sweep of kernels from parameters to checks says what the same things say one by one."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor
from zoo import ZOO, Entry

import ddn_cvx as ddn
from ddn_cvx.call import Call
from ddn_cvx.declare.cvxpy_convex import ConvexProblem
from ddn_cvx.errors import SolverError
from ddn_cvx.inputs import gather
from ddn_cvx.kernels.jit import sweep
from ddn_cvx.program.instance import Instance
from ddn_cvx.program.substituted import Substituted
from ddn_cvx.solution import Status

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def quadratic() -> tuple[ddn.DeclarativeLayer, list[Tensor]]:
    x, F, q = cp.Variable(6), cp.Parameter((6, 6)), cp.Parameter(6)
    A, b, G, h = cp.Parameter((2, 6)), cp.Parameter(2), cp.Parameter((5, 6)), cp.Parameter(5)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(F @ x) + q @ x), [A @ x == b, G @ x <= h])
    values = [randn(7, 6, 6), randn(7, 6, seed=1), randn(7, 2, 6, seed=2), randn(7, 2, seed=3), randn(7, 5, 6, seed=4)]
    return ddn.DeclarativeLayer(problem, [F, q, A, b, G, h], x), [*values, 2.0 + randn(7, 5, seed=5).abs()]


def simplex() -> tuple[ddn.DeclarativeLayer, list[Tensor]]:
    x, p = cp.Variable(9), cp.Parameter(9)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0, x <= 0.5])
    return ddn.DeclarativeLayer(problem, [p], x), [randn(7, 9)]


def linear() -> tuple[ddn.DeclarativeLayer, list[Tensor]]:
    x, c, G, h = cp.Variable(8), cp.Parameter(8), cp.Parameter((6, 8)), cp.Parameter(6)
    problem = cp.Problem(cp.Minimize(c @ x), [G @ x <= h, x >= -1, x <= 1])
    return ddn.DeclarativeLayer(problem, [c, G, h], x), [randn(7, 8), randn(7, 6, 8, seed=1), randn(7, 6, seed=2).abs()]


def maximised() -> tuple[ddn.DeclarativeLayer, list[Tensor]]:
    """With a part of the objective that has no variable in it."""
    x, p = cp.Variable(9), cp.Parameter(9)
    return ddn.DeclarativeLayer(cp.Problem(cp.Maximize(-cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0]), [p], x), [
        randn(7, 9)
    ]


def in_cones() -> tuple[ddn.DeclarativeLayer, list[Tensor]]:
    """A linear objective over the intersection of balls."""
    x, p, F = cp.Variable(4), cp.Parameter(4), cp.Parameter((3, 4))
    problem = cp.Problem(cp.Minimize(p @ x), [cp.norm(x) <= 1, cp.norm(F @ x - 0.1) <= 1 + x[0], cp.SOC(2 + x[1], x[2:])])
    return ddn.DeclarativeLayer(problem, [p, F], x), [randn(7, 4), randn(7, 3, 4, seed=1)]


def semidefinite() -> tuple[ddn.DeclarativeLayer, list[Tensor]]:
    X, C = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3))
    return ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [X >> 0, cp.trace(X) == 1]), [C], X), [
        randn(7, 3, 3)
    ]


def exponential() -> tuple[ddn.DeclarativeLayer, list[Tensor]]:
    w, X, c = cp.Variable(3), cp.Parameter((6, 3)), cp.Parameter(3)
    loss = cp.sum(cp.logistic(X @ w)) - cp.sum(cp.entr(w + 4)) + c @ w + cp.sum_squares(w)
    return ddn.DeclarativeLayer(cp.Problem(cp.Minimize(loss), [cp.max(w) <= 3]), [X, c], w), [
        randn(7, 6, 3),
        randn(7, 3, seed=1),
    ]


PROBLEMS = [quadratic, simplex, linear, maximised, in_cones, semidefinite, exponential]


def gradients(layer: ddn.DeclarativeLayer, values: list[Tensor]) -> list[Tensor]:
    leaves = [v.clone().requires_grad_() for v in values]
    out = layer(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, randn(*out.shape[1:], seed=9).expand_as(out))]


def step_by_step(self: Call, substituted: Substituted, u: object) -> None:
    sweep(len(substituted.finite), [substituted.task])


@pytest.mark.parametrize("make", PROBLEMS)
def test_a_sweep_is_taken_and_says_the_same(
    make: Callable[[], tuple[ddn.DeclarativeLayer, list[Tensor]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, values = make()
    with monkeypatch.context() as patch:
        patch.setattr(Call, "_conclude", lambda *_: pytest.fail("what is finished needs no more"))
        whole, report = gradients(layer, values), layer.solve(*values)
    alone = [gradients(layer, [v[k : k + 1] for v in values]) for k in range(7)]
    for k, parts in enumerate(zip(*alone, strict=True)):
        assert torch.equal(torch.cat(parts), whole[k]), "an element depends on its batch mates"
    monkeypatch.setattr(Call, "_sweep", step_by_step)
    for found, wanted in zip(whole, gradients(layer, values), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-12)
    steps = layer.solve(*values)
    assert torch.equal(report.status, steps.status) and bool((report.status == int(Status.SOLVED)).all())
    for name in ("value", "x", "y", "s"):
        assert torch.allclose(getattr(report, name), getattr(steps, name), rtol=1e-10, atol=1e-12), name
    assert float(torch.stack((report.primal_residual, report.dual_residual, report.gap)).max()) < 1e-12


@pytest.mark.parametrize(("make", "bad"), [(linear, -100.0), (linear, torch.nan), (simplex, torch.nan)])
def test_elements_that_fail_leave_others_alone(
    make: Callable[[], tuple[ddn.DeclarativeLayer, list[Tensor]]], bad: float
) -> None:
    """Infeasible ones, and those that are not finite: the kernels solve these with zeros in their place."""
    layer, values = make()
    fine = gradients(layer, values)
    values = [v.clone() for v in values]
    values[-1][3] = bad
    with pytest.raises(SolverError):
        layer(*values)
    layer.on_failure = "nan"
    found = gradients(layer, values)
    others = torch.arange(7) != 3
    assert bool(found[0][3].isnan().all()) and not any(g[3].any() for g in found[1:])
    for a, b in zip(found, fine, strict=True):
        assert torch.equal(a[others], b[others])


def test_curvature_that_varies_is_looked_at() -> None:
    x, P, q = cp.Variable(2), cp.Parameter((2, 2), PSD=True), cp.Parameter(2)
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x), [x >= -1, x <= 1]), [P, q], x)
    matrices, q_value = torch.diag_embed(torch.tensor([[1.0, 2.0], [1.0, -2.0]], dtype=F64)), randn(2, 2)
    layer(matrices[:1], q_value[:1])
    with pytest.raises(SolverError, match="1 of 2"):
        layer(matrices, q_value)


def tensors(entry: Entry, batch: int) -> list[Tensor]:
    drawn = [entry.sample(np.random.default_rng(seed)) for seed in range(batch)]
    return [torch.from_numpy(np.stack([np.asarray(v, float) for v in values])) for values in zip(*drawn, strict=True)]


def test_compiled_checks_say_what_torch_says() -> None:
    """At points that are no solutions, where there is something to say."""
    planned = []
    for entry in ZOO.values():
        problem, parameters, outputs = entry.build()
        node = ddn.DeclarativeLayer(problem, parameters, outputs, gp="gp" in entry.tags).node
        assert isinstance(node, ConvexProblem)
        if node.plan is None:
            continue
        planned.append(entry)
        values, program = gather(node.parameters, tensors(entry, 3), {}).values, node.program
        pieces = node.pieces(values)
        data, u, _ = vars(node.bind(pieces)).values()
        point = Instance(program, data).at(randn(3, program.n), randn(3, program.m, seed=1))
        compiled = node.inspect(values, u, point, 1e-6)
        node.__dict__["plan"] = None
        for found, wanted in zip(compiled, node.inspect(values, u, point, 1e-6), strict=True):
            assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9, equal_nan=True), entry.name
        del node.__dict__["plan"]
        lost = node.inspect(values, u, point._replace(x=torch.full_like(point.x, torch.nan)), 1e-6)[1]
        assert bool((lost == torch.inf).all()), entry.name
    assert len([entry for entry in planned if "qp" in entry.tags or "lp" in entry.tags]) >= 20
    counts = [len([entry for entry in planned if cone in entry.tags]) for cone in ("soc", "psd", "exp")]
    assert counts[0] >= 8 and counts[1] >= 5 and counts[2] >= 9
    assert not any("gp" in entry.tags for entry in planned)


def test_small_numbers_are_taken_out_where_the_kernel_minds_them() -> None:
    """The projection onto a tiny ball, next to one onto a large ball."""
    x, p, radius = cp.Variable(3), cp.Parameter(3), cp.Parameter(nonneg=True)
    ball = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm(x) <= radius]), [p, radius], x)
    for size in (torch.tensor([1e-9], dtype=F64), torch.tensor([1e-9, 1.0, 1e-5], dtype=F64)):
        points = size.unsqueeze(1) * (1.0 + randn(len(size), 3).abs())
        found, wanted = ball(points, size), size.unsqueeze(1) * points / points.norm(dim=1, keepdim=True)
        assert bool(((found - wanted).abs().amax(1) <= 1e-7 * size).all())


def test_parameters_are_found_again_in_another_process() -> None:
    layer, _ = simplex()
    spec = layer.node.parameters[0]
    assert pickle.loads(pickle.dumps(spec)) == spec and "_hash" not in str(spec.__reduce__())

"""What a layer says of a random nonlinear program, held against its optimality conditions, put together from nothing but
autograd, against differences of their solution by scipy, and against scipy's own search for a feasible point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from convex_verdict import Verdict
from nonlinear_cases import NonlinearCase
from scipy.linalg import null_space
from scipy.optimize import least_squares, lsq_linear, root
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

import ddn_cvx as ddn
from ddn_cvx.solution import Regularity, Status

TOUCHING = 1e-5
"""Slack up to which an inequality counts as active."""
FORCED = 1e-3
"""Multiplier from which on it certainly is."""
STARTS = 12
"""From which a feasible point is looked for where the layer says that there is none."""


@dataclass(frozen=True)
class Conditions:
    """``grad f + J'm = 0`` and ``c = 0`` for the equalities and the active inequalities of one instance."""

    objective: Callable[[Tensor, Tensor], Tensor]
    rows: Callable[[Tensor, Tensor], Tensor]
    """All constraints, inequalities (bounds included) after the equalities."""
    equalities: int

    @staticmethod
    def of(case: NonlinearCase) -> Conditions:
        """From the functions of the case."""
        objective, equality, inequality = case.functions()
        edge = torch.ones(case.n, dtype=torch.float64)

        def rows(y: Tensor, p: Tensor) -> Tensor:
            parts = [f(y, p) for f in (equality, inequality) if f is not None]
            if case.box:
                parts += [y - 2.0 * edge, -1.5 * edge - y]
            return torch.cat(parts) if parts else y[:0]

        count = 0 if equality is None else len(equality(edge, edge))
        return Conditions(objective, rows, count)

    def slopes(
        self, y: Tensor, p: Tensor, m: Tensor, active: Tensor
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """``(grad f, J, c, grad² L)`` of the active rows."""
        f = jacobian(lambda y: self.objective(y, p), y).numpy()
        J = jacobian(lambda y: self.rows(y, p)[active], y).numpy() if bool(active.any()) else np.zeros((0, len(y)))
        H = hessian(lambda y: self.objective(y, p) + m @ self.rows(y, p)[active], y).numpy()
        return f, J, self.rows(y, p)[active].numpy(), H


def judge_nonlinear(case: NonlinearCase) -> Verdict:
    """Solve, differentiate, compare."""
    verdict = Verdict()
    layer = ddn.DeclarativeLayer(case.build(), solver=case.solver, on_failure="nan")
    p = case.value().requires_grad_()
    solution = layer.solve(p)
    (out,) = solution.outputs
    if out.shape != p.shape:
        verdict.wrong.append(f"the output is {tuple(out.shape)}")
        return verdict
    weights = torch.from_numpy(np.random.default_rng(case.seed + 2).normal(size=case.n))
    if out.numel() and out.requires_grad:
        (torch.nan_to_num(out) @ weights).sum().backward()
        if p.grad is None or not bool(p.grad.isfinite().all()):
            verdict.wrong.append("the gradient is not finite")
            return verdict
    conditions = Conditions.of(case)
    flat = [t.detach().reshape(-1, case.n) for t in (p, out, p.grad if p.grad is not None else torch.zeros_like(p))]
    for i, (status, regularity) in enumerate(zip(solution.statuses, solution.regularities, strict=True)):
        one = tuple(t[i] for t in flat)
        if status is not Status.SOLVED:
            where = _feasible(conditions, one[0]) if status is Status.INFEASIBLE else None
            verdict.counts[f"gave up: {status.name}" + (", a feasible point is elsewhere" if where else "")] += 1
            if where == 0:
                verdict.wrong.append(f"element {i}: INFEASIBLE, scipy finds a feasible point from the same start")
            if not bool(one[1].isnan().all()):
                verdict.wrong.append(f"element {i}: {status.name} but the output is {one[1].tolist()}")
            continue
        _check(verdict, case, conditions, i, regularity, *one, weights)
    return verdict


def _feasible(conditions: Conditions, p: Tensor) -> int | None:
    """Of some starts, of which the first is the layer's own, the first from which scipy finds a feasible point."""

    def violation(y: np.ndarray) -> np.ndarray:
        c = conditions.rows(torch.from_numpy(y), p).numpy().copy()
        c[conditions.equalities :] = c[conditions.equalities :].clip(min=0)
        return c

    starts = np.random.default_rng(0).normal(size=(STARTS, len(p)))
    starts[0] = 0.0
    found = (least_squares(violation, start, xtol=1e-15, ftol=1e-15, gtol=1e-15).fun for start in starts)
    return next((k for k, left in enumerate(found) if np.abs(left).max() < 1e-9), None)


def _check(
    verdict: Verdict, case: NonlinearCase, conditions: Conditions, i: int, regularity: Regularity, p: Tensor, y: Tensor,
    slope: Tensor, weights: Tensor,
) -> None:  # fmt: skip
    c, k = conditions.rows(y, p).detach(), conditions.equalities
    violation = max([0.0, *c[:k].abs().tolist(), *c[k:].tolist()])
    if not violation <= 1e-6 * (1 + float(y.abs().max())):
        verdict.wrong.append(f"element {i}: SOLVED, violation {violation:.1e}")
        return
    active = (torch.arange(len(c)) < k) | (c > -TOUCHING)
    f, J, _, _ = conditions.slopes(y, p, torch.zeros(int(active.sum()), dtype=torch.float64), active)
    m, left = np.zeros(0), f
    if len(J):
        signs = np.where(np.flatnonzero(active.numpy()) < k, -np.inf, 0.0)
        m = lsq_linear(J.T, -f, bounds=(signs, np.full(len(signs), np.inf)), method="bvls", tol=1e-14).x
        left = f + J.T @ m
    size = 1 + np.abs(f).max() + np.abs(m).max(initial=0)
    if not np.abs(left).max() <= 3e-5 * size:
        verdict.wrong.append(f"element {i}: SOLVED, gradient of the Lagrangian {np.abs(left).max():.1e}")
        return
    H = conditions.slopes(y, p, torch.from_numpy(m), active)[3]
    strong = (np.flatnonzero(active.numpy()) < k) | (m > FORCED)
    tangent = null_space(J[strong]) if strong.any() else np.eye(case.n)
    if strong.all() and tangent.size:
        least = np.linalg.eigvalsh(tangent.T @ H @ tangent)[0]
        if least < -1e-5 * (1 + np.abs(H).max()):
            verdict.wrong.append(f"element {i}: SOLVED at a saddle point, curvature {least:.1e}")
            return
    verdict.counts["answer agrees"] += 1
    if regularity or not strong.all():
        verdict.counts["gradient finite, not compared"] += 1
        return
    rng = np.random.default_rng(case.seed + 3)
    d = torch.from_numpy(rng.normal(size=case.n))
    start = np.concatenate((y.numpy(), m))

    def moved(h: float) -> np.ndarray | None:
        """The solution for ``p + h d`` with the same constraints active."""

        def equations(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            at, m = torch.from_numpy(z[: case.n].copy()), torch.from_numpy(z[case.n :].copy())
            f, J, c, H = conditions.slopes(at, p + h * d, m, active)
            K = np.block([[H, J.T], [J, np.zeros((len(J), len(J)))]])
            return np.concatenate((f + J.T @ m.numpy(), c)), K

        found = root(equations, start, jac=True, tol=1e-12)
        return found.x[: case.n] if np.abs(found.fun).max() < 1e-9 * size else None

    ends = [moved(h) for h in (1e-4, -1e-4, 5e-5, -5e-5)]
    if any(end is None for end in ends):
        verdict.counts["gradient finite, differences do not settle"] += 1
        return
    wide, narrow = ((a - b) @ weights.numpy() / h for a, b, h in ((*ends[:2], 2e-4), (*ends[2:], 1e-4)))
    theirs, ours, doubt = narrow, float(slope @ d), abs(wide - narrow)
    if not doubt <= 1e-2 * (1 + abs(theirs)):
        verdict.counts["gradient finite, differences do not settle"] += 1
    elif not abs(ours - theirs) <= 1e-3 * (1 + abs(theirs)) + 3 * doubt:
        verdict.wrong.append(f"element {i}: derivative {ours:.6g}, by differences {theirs:.6g} +- {doubt:.1g}")
    else:
        verdict.counts["gradient agrees"] += 1

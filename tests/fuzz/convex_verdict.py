"""What a layer says of a random convex program, held against cvxpy with Clarabel to the last digits and its differences."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import cvxpy
import numpy as np
import torch
from convex_cases import Case, Draw

import ddn_cvx as ddn
from ddn_cvx.solution import Regularity, Status

cp: Any = cvxpy
ADJOINTS: dict[str, ddn.adjoint.base.Adjoint] = {
    "implicit": ddn.Implicit(),
    "unrolled": ddn.Unrolled(),
    "diffcp": ddn.DiffcpAdjoint(mode="dense"),
    "lpgd": ddn.LPGD(tau=1e-5, two_sided=True),
    "smoothed": ddn.Smoothed(width=1e-6),
    "approximate": ddn.Approximate(),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "scs": {"max_iters": 4000},
    "diffcp": {"max_iterations": 4000},
    "first_order": {"max_iterations": 4000},
}
TIGHT = (1e-11, 1e-9)  # the second where the first is beyond Clarabel
FAR = 1e10
"""Where no bounded case has its solution."""
PRECISION = {"float64": 1e-5, "float32": 2e-3}


@dataclass
class Verdict:
    """Counts of what happened to the elements of a case, and what was wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """cvxpy's own answer."""

    status: str
    value: float
    x: np.ndarray | None


def reference(problem: Any, d: Draw, values: list[np.ndarray]) -> Reference:
    """Solve one instance with Clarabel, tightly."""
    for parameter, value in zip(d.parameters, values, strict=True):
        parameter.value = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of inaccurate answers, which the status tells
        for tolerance in TIGHT:
            try:
                problem.solve(
                    solver="CLARABEL", tol_gap_abs=tolerance, tol_gap_rel=tolerance, tol_feas=tolerance, max_iter=300
                )
            except BaseException as error:  # a failed assertion inside Clarabel is no Exception
                if isinstance(error, cp.SolverError) or type(error).__name__ == "PanicException":
                    return Reference("failed", np.nan, None)
                raise
            if problem.status in (cp.OPTIMAL, cp.INFEASIBLE, cp.UNBOUNDED):
                break
    x = None if d.x.value is None else np.array(d.x.value)
    value = float(problem.value) if problem.value is not None else np.nan
    # Clarabel may end beside the domain of a root, and where an unbounded problem is still finite
    if problem.status == cp.OPTIMAL and (np.isnan(value) or x is None or np.abs(x).max() > FAR):
        return Reference("failed", np.nan, None)
    return Reference(problem.status, value, x)


def judge(case: Case) -> Verdict:
    """Solve, differentiate, compare."""
    verdict = Verdict()
    problem, d = case.build()
    if not problem.is_dpp():
        verdict.counts["rewritten"] += 1
    try:
        layer = ddn.DeclarativeLayer(
            problem, d.parameters, [d.x], solver=case.solver, solver_options=OPTIONS.get(case.solver),
            adjoint=ADJOINTS[case.adjoint], on_failure="nan",
        )  # fmt: skip
    except ddn.DeclarationError as error:
        assert str(error)
        verdict.counts["refused: solver or declaration"] += 1
        return verdict
    dtype = getattr(torch, case.dtype)
    values = case.values(d)
    tensors = [torch.tensor(v, dtype=dtype).requires_grad_() for v in values]
    try:
        solution = layer.solve(*tensors)
    except (ddn.DeclarationError, ddn.DifferentiationError) as error:
        assert str(error)
        verdict.counts["refused: adjoint"] += 1
        return verdict
    (out,) = solution.outputs
    if out.shape != (*case.shape, case.n) or out.dtype != dtype:
        verdict.wrong.append(f"the output is {tuple(out.shape)} {out.dtype}")
        return verdict
    flat = [np.asarray(t.detach().double()).reshape(-1, *p.shape) for t, p in zip(tensors, d.parameters, strict=True)]
    answers = out.detach().double().reshape(-1, case.n).numpy()
    references = []
    for i, status in enumerate(solution.statuses):
        right = reference(problem, d, [v[i] for v in flat])
        references.append(right)
        value = float(solution.value.reshape(-1)[i])
        _compare(verdict, case, problem, d, status, value, answers[i], right, solution.regularities[i])
    if len(references):
        _differentiate(verdict, case, problem, d, tensors, flat, solution, out, references)
    return verdict


def _compare(
    verdict: Verdict, case: Case, problem: Any, d: Draw, status: Status, value: float, x: np.ndarray, right: Reference,
    regularity: Regularity,
) -> None:  # fmt: skip
    """One element's answer."""
    allowed = PRECISION[case.dtype]
    trusted = right.status in (cp.OPTIMAL, cp.INFEASIBLE, cp.UNBOUNDED)
    if status is not Status.SOLVED:
        if not np.isnan(x).all():
            verdict.wrong.append(f"{status.name} but the output is finite: {x}")
        contradicts = {Status.INFEASIBLE: cp.INFEASIBLE, Status.UNBOUNDED: cp.UNBOUNDED}.get(status)
        if contradicts is not None and right.status == cp.OPTIMAL:
            verdict.wrong.append(f"{status.name} where cvxpy finds {right.value:.9g}")
        elif contradicts is not None and trusted:
            verdict.counts["no solution, as cvxpy says"] += 1
        else:
            verdict.counts[f"gave up ({case.solver}): {status.name}" + ("" if trusted else ", as the reference")] += 1
        return
    if not np.isfinite(x).all():
        verdict.wrong.append(f"SOLVED but the output is {x}")
        return
    d.x.value = x
    scale = 1 + max(np.abs(x).max(), abs(value))
    violation = max([_violation(c) for c in problem.constraints], default=0.0)
    if not violation <= allowed * scale:
        verdict.wrong.append(f"SOLVED but a constraint is violated by {violation:.1e}")
    if right.status == cp.OPTIMAL:
        error = (value - right.value) / (1 + abs(right.value)) / max(1, case.scale) ** 0.5
        if not abs(error) <= allowed:
            verdict.wrong.append(f"the value is {value:.9g}, cvxpy's {right.value:.9g}")
        apart = np.abs(x - right.x).max() / scale
        if not regularity & Regularity.SINGULAR_HESSIAN and case.scale >= 1 and not apart <= 30 * allowed**0.5 * 0.1:
            verdict.wrong.append(f"said to be unique, {x} is {apart:.1e} from cvxpy's {right.x}")
        verdict.counts["answer agrees"] += 1
    elif right.status == cp.UNBOUNDED:
        verdict.wrong.append(f"SOLVED with value {value:.9g} where cvxpy says unbounded")
    elif right.status == cp.INFEASIBLE and violation > 1e-7 * scale:
        verdict.wrong.append(f"SOLVED with violation {violation:.1e} where cvxpy says infeasible")
    else:
        verdict.counts["solved, reference failed"] += 1


def _violation(constraint: Any) -> float:
    """How far the variable's value is from where the constraint holds; beside the domain of its functions, where cvxpy says
    infinity, how far from the domain."""
    violation = float(np.max(constraint.violation()))
    if violation < np.inf:
        return violation
    edges = [edge for part in constraint.args for edge in part.domain]
    return max((float(np.max(edge.violation())) for edge in edges), default=np.inf)


def _differentiate(
    verdict: Verdict, case: Case, problem: Any, d: Draw, tensors: list[torch.Tensor], flat: list[np.ndarray],
    solution: ddn.Solution, out: torch.Tensor, references: list[Reference],
) -> None:  # fmt: skip
    """A directional derivative of every element, the first regular one held against differences."""
    rng = np.random.default_rng(case.seed + 2)
    cotangent = rng.normal(size=case.n)
    try:
        (torch.nan_to_num(out) @ torch.as_tensor(cotangent, dtype=out.dtype)).sum().backward()
    except ddn.DifferentiationError as error:
        assert str(error)
        verdict.counts["refused: derivative"] += 1
        return
    gradients = [np.asarray(t.grad.double()).reshape(-1, *p.shape) for t, p in zip(tensors, d.parameters, strict=True)]
    if not all(np.isfinite(g).all() for g in gradients):
        verdict.wrong.append("the gradient is not finite")
        return
    solved = [status is Status.SOLVED for status in solution.statuses]
    for g in gradients:
        if g[[not s for s in solved]].any():
            verdict.wrong.append("an element without a solution has a gradient")
    regular = [i for i, r in enumerate(solution.regularities) if solved[i] and r == Regularity.REGULAR]
    regular = [i for i in regular if references[i].status == cp.OPTIMAL]
    blunt = case.adjoint == "smoothed" and case.scale < 1  # its width is in units of the objective
    if not regular or case.adjoint == "approximate" or case.dtype == "float32" or blunt:
        verdict.counts["gradient finite, not compared"] += 1
        return
    i = regular[0]
    tangent = []
    for parameter, value in zip(d.parameters, flat, strict=True):
        t = rng.normal(size=value[i].shape)
        tangent.append((t + t.T) / 2 if parameter.attributes["symmetric"] else t)
    ours = sum(float((g[i] * t).sum()) for g, t in zip(gradients, tangent, strict=True))

    in_units = problem * (1 / case.scale)  # Clarabel's tolerances are absolute: a small objective leaves x inexact

    def quotient(h: float) -> float:
        ends = []
        for sign in (1, -1):
            moved = reference(in_units, d, [v[i] + sign * h * t for v, t in zip(flat, tangent, strict=True)])
            if moved.status != cp.OPTIMAL or moved.x is None:
                return np.nan
            ends.append(float(moved.x @ cotangent))
        return (ends[0] - ends[1]) / (2 * h)

    wide, narrow, tiny = quotient(1e-3), quotient(5e-4), quotient(1e-4)
    # Richardson; a kink nearby may look settled to two steps
    theirs, doubt = (4 * narrow - wide) / 3, max(abs(narrow - wide), abs(tiny - narrow))
    if not doubt <= 1e-2 * (1 + abs(theirs)):
        verdict.counts["gradient finite, differences do not settle"] += 1
        return
    slack = {"lpgd": 3e-2, "smoothed": 3e-2}.get(case.adjoint, 2e-3)
    if not abs(ours - theirs) <= slack * (1 + abs(theirs)) + 3 * doubt:
        verdict.wrong.append(f"derivative {ours:.6g} of element {i}, by differences {theirs:.6g} +- {doubt:.1g}")
    else:
        verdict.counts["gradient agrees"] += 1

"""Evaluate the problem AS DECLARED at a candidate solution: objective value and constraint violation.

The optimality conditions are checked on the canonical program; this check is independent of how cvxpy got there. A
constraint that was lost or distorted between the declaration and the solver shows up here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import torch
from cvxpy.constraints.constraint import Constraint
from cvxpy.expressions.leaf import Leaf
from torch import Tensor

from ddn_cvx.declare.atoms import compile_expression

Values = Mapping[int, Tensor]
Evaluator = Callable[[Values], Tensor]


class AsDeclared:
    """The declared objective and constraints as functions of parameter and variable values.

    Parameters
    ----------
    problem : cvxpy.Problem
        As the user wrote it.
    """

    def __init__(self, problem: cp.Problem):
        leaves = [*problem.parameters(), *problem.variables()]
        self.objective = _compile(problem.objective.args[0], leaves)
        declared = [*problem.constraints, *(c for v in problem.variables() for c in implied(v))]
        self.constraints = [_compile_constraint(c, leaves) for c in declared]
        self.parameters = [[_compile_constraint(c, [p]) for c in implied(p)] for p in problem.parameters()]

    def __call__(self, values: Values, tolerance: float) -> tuple[Tensor, Tensor]:
        """Objective ``(B,)`` and largest relative violation ``(B,)`` for values by leaf id, each ``(B, *shape)``.

        Positive semidefiniteness is tested by factorising with ``tolerance`` added to the diagonal: its violation is 0
        or inf.
        """
        objective = self.objective(values).real
        if objective.ndim > 1:
            objective = objective.flatten(1).sum(1)
        for value in values.values():
            objective = objective.expand(value.shape[0])
        return objective, _worst(self.constraints, values, tolerance, objective)

    def admissible(self, values: Values, like: Tensor) -> Tensor:
        """Whether the parameters have the attributes they were declared with, ``(B,)`` bool.

        The tolerance (1e-4 relative) lets finite differences step out of the set a little; symmetric parameters
        are symmetrised anyway.
        """
        good = torch.ones_like(like, dtype=torch.bool)
        for constraints in self.parameters:
            good = good & (_worst(constraints, values, 1e-4, like) <= 1e-4)
        return good


Compiled = tuple[str, list[Evaluator], object]


def _worst(constraints: list[Compiled], values: Values, tolerance: float, like: Tensor) -> Tensor:
    worst = torch.zeros_like(like)
    for kind, evaluators, extra in constraints:
        args = [evaluate(values) for evaluate in evaluators]
        worst = torch.maximum(worst, _largest(_VIOLATION[kind](args, extra, tolerance), worst))
    return worst


def _compile_constraint(constraint: Constraint, leaves: Sequence[Leaf]) -> Compiled:
    elementwise = isinstance(constraint, (cp.constraints.Equality, cp.constraints.Inequality))
    ndim = max(arg.ndim for arg in constraint.args) if elementwise else None
    evaluators = [_compile(arg, leaves, ndim) for arg in constraint.args]
    return type(constraint).__name__, evaluators, _extra(constraint)


@dataclass(frozen=True)
class _Aligned:
    """An expression's evaluator whose result is ``(B or 1, *ones, *expr.shape)`` with ``ndim`` trailing dimensions, so
    that the sides of a constraint broadcast as cvxpy broadcasts them."""

    evaluate: Evaluator
    own: int
    ndim: int

    def __call__(self, values: Values) -> Tensor:
        out = self.evaluate(values)
        if out.ndim == self.own:
            out = out.unsqueeze(0)
        split = out.ndim - self.own
        return out.reshape(*out.shape[:split], *(1,) * (self.ndim - self.own), *out.shape[split:])


def _compile(expr: cp.Expression, leaves: Sequence[Leaf], ndim: int | None = None) -> Evaluator:
    own = expr.ndim
    return _Aligned(compile_expression(expr, leaves, numeric_fallback=True), own, own if ndim is None else ndim)


def _largest(violation: Tensor, like: Tensor) -> Tensor:
    """The largest entry of each element; NaN counts as infinite."""
    if violation.numel() == 0:
        return torch.zeros_like(like)
    return torch.nan_to_num(violation.flatten(1).amax(1) if violation.ndim > 1 else violation, nan=torch.inf)


def _relative(excess: Tensor, *sizes: Tensor) -> Tensor:
    return excess / (1.0 + sum(size.abs() for size in sizes))


def _equality(args: list[Tensor], extra: object, tolerance: float) -> Tensor:
    left, right = args if len(args) == 2 else (args[0], torch.zeros_like(args[0]))
    return _relative((left - right).abs(), left, right)


def _inequality(args: list[Tensor], extra: object, tolerance: float) -> Tensor:
    left, right = args if len(args) == 2 else (args[0], torch.zeros_like(args[0]))
    return _relative((left.real - right.real).clamp(min=0), left, right)


def _nonneg(args: list[Tensor], extra: object, tolerance: float) -> Tensor:
    return _relative((-args[0]).clamp(min=0), args[0])


def _second_order(args: list[Tensor], extra: object, tolerance: float) -> Tensor:
    t, x = args
    axis = extra
    norm = x.abs() if x.ndim == 1 or axis is None else torch.linalg.vector_norm(x, dim=1 if axis == 0 else -1)
    t = t.reshape(norm.shape)
    return _relative((norm - t).clamp(min=0), t, norm)


def _semidefinite(args: list[Tensor], extra: object, tolerance: float) -> Tensor:
    X = args[0]
    X = 0.5 * (X + X.mH)
    scale = 1 + X.abs().amax((-2, -1))
    eye = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    _, info = torch.linalg.cholesky_ex(X + (tolerance * scale)[..., None, None] * eye)
    return torch.where(info == 0, 0.0, torch.inf).to(scale.dtype)


def _exponential(args: list[Tensor], extra: object, tolerance: float) -> Tensor:
    """``y exp(x / y) <= z`` in the form ``x <= y log(z / y)``, whichever of the two is better scaled."""
    x, y, z = args
    scale = 1 + x.abs() + y.abs() + z.abs()
    safe_y, safe_z = y.clamp(min=1e-300), z.clamp(min=1e-300)
    direct = (safe_y * torch.exp((x / safe_y).clamp(max=700.0)) - z).clamp(min=0)
    logarithmic = (x - safe_y * torch.log(safe_z / safe_y)).clamp(min=0)
    boundary = torch.maximum(x, torch.zeros_like(x)) + (-z).clamp(min=0)
    interior = torch.where(y > 0, torch.minimum(direct, logarithmic), boundary)
    return torch.maximum(torch.minimum(interior, boundary + y.abs()), (-y).clamp(min=0)) / scale


def _power(args: list[Tensor], alpha: object, tolerance: float) -> Tensor:
    """``prod x_i^alpha_i >= |z|``; the three-dimensional cone gives ``x, y, z``, the other a matrix and a vector."""
    weights = torch.as_tensor(alpha, dtype=args[0].dtype, device=args[0].device)
    if len(args) == 3:
        x, y, z = args
        mean = x.clamp(min=0) ** weights * y.clamp(min=0) ** (1 - weights)
        low = torch.minimum(x, y)
        scale = 1 + x.abs() + y.abs() + z.abs()
    else:
        W, z = args
        if W.ndim == 2:
            W, weights = W.unsqueeze(-1), weights.reshape(-1, 1)
        mean = (W.clamp(min=0) ** weights).prod(1)
        low, scale = W.amin(1), 1 + W.abs().amax(1)
        mean, low, scale = mean.reshape(z.shape), low.reshape(z.shape), scale.reshape(z.shape)
    return torch.maximum((z.abs() - mean).clamp(min=0), (-low).clamp(min=0)) / scale


_VIOLATION: dict[str, Callable[[list[Tensor], object, float], Tensor]] = {
    "Equality": _equality,
    "Zero": _equality,
    "Inequality": _inequality,
    "NonPos": _inequality,
    "NonNeg": _nonneg,
    "SOC": _second_order,
    "PSD": _semidefinite,
    "ExpCone": _exponential,
    "PowCone3D": _power,
    "PowConeND": _power,
}

CONSTRAINTS = frozenset(_VIOLATION)
"""Names of the constraint classes that can be declared."""


def _extra(constraint: Constraint) -> object:
    """What the check needs beside the arguments: the axis of an SOC, the exponents of a power cone."""
    if hasattr(constraint, "alpha"):
        alpha = constraint.alpha.value
        return alpha if getattr(constraint, "axis", 0) == 0 else alpha.T
    return getattr(constraint, "axis", None)


def implied(leaf: Leaf) -> list[Constraint]:
    """The constraints that a leaf's attributes stand for."""
    a, found = leaf.attributes, []
    if a["nonneg"] or a["pos"]:
        found.append(leaf >= 0)
    if a["nonpos"] or a["neg"]:
        found.append(leaf <= 0)
    if a["PSD"]:
        found.append(leaf >> 0)
    if a["NSD"]:
        found.append(leaf << 0)
    if a["bounds"] is not None:
        lower, upper = a["bounds"]
        found += [leaf >= lower, leaf <= upper]
    if leaf.ndim == 2 and (a["symmetric"] or a["PSD"] or a["NSD"]):
        found.append(leaf == leaf.T)
    if a["hermitian"]:
        found.append(leaf == leaf.H)
    if a["diag"] or a["sparsity"]:
        outside = np.ones(leaf.shape)
        outside[leaf.sparse_idx if a["sparsity"] else np.diag_indices(leaf.shape[0])] = 0
        found.append(cp.multiply(outside, leaf) == 0)
    if a["imag"]:
        found.append(cp.real(leaf) == 0)
    return found

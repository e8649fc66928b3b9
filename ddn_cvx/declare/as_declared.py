"""Evaluate the problem AS DECLARED at a candidate solution: objective value and constraint violation.

The optimality conditions are checked on the canonical program; this check is independent of how cvxpy got there. A
constraint that was lost or distorted between the declaration and the solver shows up here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from cvxpy.constraints.constraint import Constraint
from cvxpy.expressions.leaf import Leaf
from torch import Tensor

from ddn_cvx.declare.atoms import compile_expressions, is_compact
from ddn_cvx.declare.atoms_base import two_norm
from ddn_cvx.declare.domains import closed
from ddn_cvx.declare.in_cone import InCone

Values = Mapping[int, Tensor]
Pair = tuple[Tensor, Tensor]


class AsDeclared:
    """The declared objective and constraints as functions of parameter and variable values.

    Parameters
    ----------
    problem : cvxpy.Problem
        As the user wrote it.
    """

    def __init__(self, problem: cp.Problem):
        leaves = [*problem.parameters(), *problem.variables()]
        declared = [*problem.constraints, *(c for v in problem.variables() for c in implied(v))]
        objective, domain = closed(problem.objective.args[0])
        self.checks = _Checks([*declared, *domain], leaves, objective)
        # Of a sparse parameter its entries are checked.
        pairs = [(p.id, _entries(p) if is_compact(p) else p) for p in problem.parameters()]
        self.parameters = [(key, p.id, _Checks(implied(p), [p])) for key, p in pairs if implied(p)]

    def __call__(self, values: Values, expected: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """Objective ``(B,)`` and largest relative violation ``(B,)`` for values by leaf id, each ``(B, *shape)``; an
        objective other than ``expected`` (B,) counts as a violation.

        Positive semidefiniteness is tested by factorising with ``tolerance`` added to the diagonal: its violation is 0
        or inf.
        """
        batch = expected.shape[0]
        objective, args = self.evaluate(values, batch)
        return objective, self.checks.worst(args, tolerance, batch, [(objective.unsqueeze(1), expected.unsqueeze(1))])

    def evaluate(self, values: Values, batch: int) -> tuple[Tensor, list[Tensor]]:
        """The objective ``(B,)``, and the arguments of the constraints one after the other."""
        (objective,), args = self.checks.evaluate(values)
        objective = objective.real
        if objective.ndim > 1:
            objective = objective.flatten(1).sum(1)
        return objective.expand(batch), args

    def admissible(self, values: Values, like: Tensor) -> Tensor:
        """Whether the parameters have the attributes they were declared with, ``(B,)`` bool.

        The tolerance (1e-4 relative) lets finite differences step out of the set a little; symmetric parameters
        are symmetrised anyway.
        """
        good = torch.ones_like(like, dtype=torch.bool)
        for key, leaf, checks in self.parameters:
            _, args = checks.evaluate({leaf: values[key]})
            good = good & (checks.worst(args, 1e-4, like.shape[0]) <= 1e-4)
        return good


class _Checks:
    """Constraints, and further expressions first, that are evaluated together."""

    def __init__(self, declared: Sequence[Constraint], leaves: Sequence[Leaf], *first: cp.Expression):
        sides = {id(c): [closed(arg) for arg in c.args] for c in declared}
        constraints = [*declared, *(c for pairs in sides.values() for _, domain in pairs for c in domain)]
        self.kinds = [(type(c).__name__, len(c.args), _extra(c)) for c in constraints]
        expressions, self.number = list(first), len(first)
        # Dimensions of each expression, and of what it is aligned with: sides of a constraint broadcast as cvxpy's do.
        self.ndims = [(e.ndim, e.ndim) for e in expressions]
        for constraint in constraints:
            elementwise = isinstance(constraint, (cp.constraints.Equality, cp.constraints.Inequality))
            widest = max(arg.ndim for arg in constraint.args)
            expressions += [arg for arg, _ in sides[id(constraint)]] if id(constraint) in sides else constraint.args
            self.ndims += [(arg.ndim, widest if elementwise else arg.ndim) for arg in constraint.args]
        self._evaluate = compile_expressions(expressions, leaves, numeric_fallback=True, compact=True).every

    def evaluate(self, values: Values) -> tuple[list[Tensor], list[Tensor]]:
        """The further expressions, and the arguments of the constraints one after the other."""
        pairs = zip(self._evaluate(values), self.ndims, strict=True)
        found = [_aligned(value, own, ndim) for value, (own, ndim) in pairs]
        return found[: self.number], found[self.number :]

    def worst(self, args: list[Tensor], tolerance: float, batch: int, equal: Sequence[Pair] = ()) -> Tensor:
        """The largest violation of the constraints and of the equalities ``equal``, ``(B,)``; NaN counts as infinite."""
        equalities, inequalities, others = self.sides(args, batch)
        equalities += equal
        found = [_flat(_VIOLATION[kind](these, extra, tolerance), batch) for kind, these, extra in others]
        if equalities or inequalities:
            found.append(_elementwise(equalities, inequalities))
        whole = torch.cat(found, 1) if len(found) > 1 else found[0]
        return torch.nan_to_num(whole.amax(1), torch.inf, torch.inf) if whole.shape[1] else whole.new_zeros(batch)

    def sides(self, args: list[Tensor], batch: int) -> tuple[list[Pair], list[Pair], list[tuple[str, list[Tensor], object]]]:
        """Pairs ``(B, size)`` of what should be equal, and of what should be at most the other; and other constraints."""
        rest = iter(args)
        pairs: dict[str, list[Pair]] = {"Equality": [], "Inequality": []}
        others: list[tuple[str, list[Tensor], object]] = []
        for kind, count, extra in self.kinds:
            these = [next(rest) for _ in range(count)]
            if kind == "SOC":
                kind, these = "Inequality", _second_order(these, extra)
            if kind in pairs and not (these[0].is_complex() or these[1].is_complex()):
                left, right = these if these[0].shape == these[1].shape else torch.broadcast_tensors(*these)
                pairs[kind].append((_flat(left, batch), _flat(right, batch)))
            else:
                others.append((kind, these, extra))
        return pairs["Equality"], pairs["Inequality"], others


def _flat(t: Tensor, batch: int) -> Tensor:
    """``(B, size)``."""
    t = t if t.ndim == 2 else t.flatten(1) if t.ndim > 2 else t.unsqueeze(1)
    return t if t.shape[0] == batch else t.expand(batch, -1)


def _elementwise(equalities: list[Pair], inequalities: list[Pair]) -> Tensor:
    """Violations of ``left = right`` and ``left <= right`` for all pairs of ``(B, size)`` at once, relative."""
    left, right = (torch.cat([pair[side] for pair in (*equalities, *inequalities)], 1) for side in (0, 1))
    number = sum(pair[0].shape[1] for pair in equalities)
    excess = left - right
    excess = torch.cat((excess[:, :number].abs(), excess[:, number:].clamp(min=0)), 1)
    return _relative(excess, left, right)


def _aligned(out: Tensor, own: int, ndim: int) -> Tensor:
    """``(B or 1, *ones, *shape)`` with ``ndim`` trailing dimensions, of which the expression has ``own``."""
    if out.ndim == own:
        out = out.unsqueeze(0)
    if own == ndim:
        return out
    split = out.ndim - own
    return out.reshape(*out.shape[:split], *(1,) * (ndim - own), *out.shape[split:])


def _relative(excess: Tensor, *sizes: Tensor) -> Tensor:
    size = sizes[0].abs() + 1.0
    for other in sizes[1:]:
        size = size + other.abs()
    return excess / size


def _equality(args: list[Tensor], extra: object, tolerance: float) -> Tensor:
    left, right = args if len(args) == 2 else (args[0], torch.zeros_like(args[0]))
    return _relative((left - right).abs(), left, right)


def _inequality(args: list[Tensor], extra: object, tolerance: float) -> Tensor:
    left, right = args if len(args) == 2 else (args[0], torch.zeros_like(args[0]))
    return _relative((left.real - right.real).clamp(min=0), left, right)


def _nonneg(args: list[Tensor], extra: object, tolerance: float) -> Tensor:
    return _relative((-args[0]).clamp(min=0), args[0])


def _second_order(args: list[Tensor], axis: object) -> list[Tensor]:
    """What should be at most the other."""
    t, x = args
    norm = x.abs() if x.ndim == 1 or axis is None else two_norm(x.movedim(1, -1) if axis == 0 else x)
    return [norm, t.reshape(t.shape[0], *norm.shape[1:])]


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
        mean, low, scale = (t.reshape(t.shape[0], *z.shape[1:]) for t in (mean, low, scale))
    return torch.maximum((z.abs() - mean).clamp(min=0), (-low).clamp(min=0)) / scale


def _other_cone(args: list[Tensor], cone: Any, tolerance: float) -> Tensor:
    """The distance of each column from the cone."""
    columns = args[0].unsqueeze(-1) if args[0].ndim == 2 else args[0]
    s = columns.mT
    return torch.linalg.vector_norm(s - cone.project(s), dim=-1) / (1 + s.abs().amax(-1))


_VIOLATION: dict[str, Callable[[list[Tensor], Any, float], Tensor]] = {
    "Equality": _equality,
    "Zero": _equality,
    "Inequality": _inequality,
    "NonPos": _inequality,
    "NonNeg": _nonneg,
    "PSD": _semidefinite,
    "ExpCone": _exponential,
    "PowCone3D": _power,
    "PowConeND": _power,
    "InCone": _other_cone,
}

CONSTRAINTS = frozenset({*_VIOLATION, "SOC"})
"""Names of the constraint classes that can be declared."""


def _extra(constraint: Constraint) -> object:
    """What the check needs beside the arguments: the axis of an SOC, the exponents of a power cone, any other cone."""
    if isinstance(constraint, InCone):
        return constraint.cone
    if hasattr(constraint, "alpha"):
        alpha = constraint.alpha.value
        return alpha if getattr(constraint, "axis", 0) == 0 else alpha.T
    return getattr(constraint, "axis", None)


def _entries(parameter: cp.Parameter) -> cp.Parameter:
    """The entries of a sparse parameter as a vector with the same attributes."""
    where, bounds = parameter.sparse_idx, parameter.attributes["bounds"]
    if bounds is not None:
        bounds = [b.data if sp.issparse(b) else b if np.ndim(b) == 0 else b[where] for b in bounds]
    signs = {name: parameter.attributes[name] for name in ("nonneg", "nonpos")}
    return cp.Parameter(len(where[0]), bounds=bounds, **signs)


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

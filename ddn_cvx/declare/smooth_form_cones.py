"""Constraints of cvxpy as smooth equalities and inequalities, and their dual variables from the new multipliers.

* second-order cone: ``x = t w, |w| <= 1, t >= 0``, which is regular at the apex, too (``w`` is then not unique; with a
  wrong ``w`` the apex is stationary in this form although no multiplier in the dual cone makes it so);
* positive semidefinite cone: ``X = L L'`` with ``L`` lower triangular (Burer & Monteiro, 2003, at full rank);
* exponential cone: ``y exp(x/y) <= z, y >= 0``; its face ``y = 0`` is approached, never reached;
* power cones: ``|z| <= prod x_i^alpha_i, x >= 0``; likewise the faces ``x_i = 0``.

Dual variables have cvxpy's signs. With a cone ``K`` and ``k(y) in K`` the Lagrangian is ``f - dual . k``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.constraints.constraint import Constraint
from cvxpy.expressions.expression import Expression

from ddn_cvx.declare.smooth_form import Smoother, SmoothProblem, named
from ddn_cvx.errors import DeclarationError


def smooth(problem: cp.Problem) -> SmoothProblem:
    """The problem in smooth form.

    Raises
    ------
    DeclarationError
        An atom or constraint has no smooth form.
    """
    smoother = Smoother(problem)
    sense = -1 if isinstance(problem.objective, cp.Maximize) else 1
    for constraint in problem.constraints:
        duals = CONSTRAINTS[type(constraint).__name__](smoother, constraint)
        if duals is not None:
            pairs = zip(constraint.dual_variables, duals, strict=True)
            smoother.found.duals.update({declared.id: dual for declared, dual in pairs})
    for variable in problem.variables():
        if variable.attributes["PSD"] or variable.attributes["NSD"]:
            _gram(smoother, variable if variable.attributes["PSD"] else -variable)
    smoother.found.objective = smoother.expression(smoother.found.objective, sense)
    return smoother.found


Duals = list[Expression] | None


def _equality(smoother: Smoother, constraint: Constraint) -> Duals:
    left, right = constraint.args if len(constraint.args) == 2 else (constraint.args[0], cp.Constant(0.0))
    gap = smoother.expression(left, 0) - smoother.expression(right, 0)
    if not gap.is_complex():
        return [smoother.zero(gap)]
    smoother.zero(cp.real(gap))
    smoother.zero(cp.imag(gap))
    return None


def _inequality(smoother: Smoother, constraint: Constraint) -> Duals:
    return [smoother.below(*constraint.args)]


def _nonpositive(smoother: Smoother, constraint: Constraint) -> Duals:
    return [smoother.below(constraint.args[0], cp.Constant(np.zeros(constraint.args[0].shape)))]


def _nonnegative(smoother: Smoother, constraint: Constraint) -> Duals:
    return [smoother.below(cp.Constant(np.zeros(constraint.args[0].shape)), constraint.args[0])]


def _second_order(smoother: Smoother, constraint: Any) -> Duals:
    t, x = (smoother.expression(arg, sense) for arg, sense in zip(constraint.args, (-1, 0), strict=True))
    axis = 0 if x.ndim < 2 else constraint.axis
    radius = cp.reshape(t, () if x.ndim < 2 else (x.shape[1 - axis],), order="C")
    if x.ndim == 0:
        x = cp.reshape(x, (1,), order="C")

    def spread(per_cone: Expression) -> Expression:
        if x.ndim < 2:
            return per_cone
        return cp.broadcast_to(per_cone if axis == 0 else cp.reshape(per_cone, (-1, 1), order="C"), x.shape)

    if not t.variables():
        square = cp.sum(cp.square(x), axis=axis) - cp.multiply(radius, cp.abs(radius))
        weight = 2 * smoother.nonpositive(square)
        return [cp.multiply(weight, radius), -cp.multiply(spread(weight), x)]
    w = smoother.auxiliary(x.shape, x / cp.sqrt(1 + cp.sum_squares(x)))
    force = smoother.zero(x - cp.multiply(spread(radius), w))
    smoother.nonpositive(cp.sum(cp.square(w), axis=axis) - 1)
    push = smoother.below(cp.Constant(np.zeros(radius.shape)), radius)
    pull = cp.sum(cp.multiply(force, w), axis=axis) + push
    smoother.found.cones.append((pull, cp.norm(force, axis=axis)))
    return [pull, -force]


def _semidefinite(smoother: Smoother, constraint: Constraint) -> Duals:
    x = smoother.expression(constraint.args[0], 0)
    if x.is_complex():
        raise DeclarationError(
            f"{named(constraint)} is on a complex matrix, for which a problem that is not DCP has no parametrisation. "
            "Write it for the real matrix [[Re, -Im], [Im, Re]]."
        )
    return [_gram(smoother, x)]


def _gram(smoother: Smoother, x: Expression) -> Expression:
    """``X = L L'`` for the symmetric part of X; the multiplier of ``X >= 0``."""
    n = x.shape[0]
    rows, cols = np.tril_indices(n)
    factor = smoother.auxiliary((n, n), cp.Constant(np.eye(n)), sparsity=(rows, cols)) if n > 1 else None
    product = cp.square(smoother.auxiliary((1, 1), cp.Constant([[1.0]]))) if factor is None else factor @ factor.T
    force = smoother.zero(((x + x.T) / 2 - product)[rows, cols])
    # Half of it above, half below the diagonal.
    places = np.concatenate((rows * n + cols, cols * n + rows)), np.tile(np.arange(len(rows)), 2)
    halves = sp.coo_array((np.full(2 * len(rows), 0.5), places), shape=(n * n, len(rows))).toarray()
    return -cp.reshape(cp.Constant(halves) @ force, (n, n), order="C")


def _exponential(smoother: Smoother, constraint: Any) -> Duals:
    x, z = (smoother.expression(constraint.args[k], sense) for k, sense in ((0, 1), (2, -1)))
    y = smoother.inside(constraint.args[1], 0)
    grown = cp.exp(x / y)
    force = smoother.nonpositive(cp.multiply(y, grown) - z)
    push = cp.multiply(force, grown)
    return [-push, -cp.multiply(push, 1 - x / y), force]


def _power(smoother: Smoother, constraint: Any) -> Duals:
    """``x, y, z`` with ``x^alpha y^(1 - alpha) >= |z|``."""
    x, y = (smoother.inside(arg, -1) for arg in constraint.args[:2])
    z, alpha = smoother.expression(constraint.args[2], 0), constraint.alpha
    mean = cp.exp(cp.multiply(alpha, cp.log(x)) + cp.multiply(1 - alpha, cp.log(y)))
    above, below = smoother.nonpositive(z - mean), smoother.nonpositive(-z - mean)
    pull = cp.multiply(above + below, mean)
    return [cp.multiply(alpha, pull) / x, cp.multiply(1 - alpha, pull) / y, below - above]


def _power_nd(smoother: Smoother, constraint: Any) -> Duals:
    """A matrix W and a vector z with ``prod W_i^alpha_i >= |z|`` along an axis."""
    W = smoother.inside(constraint.args[0], -1)
    z, alpha, axis = smoother.expression(constraint.args[1], 0), constraint.alpha, constraint.axis
    mean = cp.reshape(cp.exp(cp.sum(cp.multiply(alpha, cp.log(W)), axis=axis if W.ndim > 1 else 0)), z.shape, order="C")
    above, below = smoother.nonpositive(z - mean), smoother.nonpositive(-z - mean)
    pull = cp.multiply(above + below, mean)
    if W.ndim > 1:
        kept = (1, W.shape[1]) if axis == 0 else (W.shape[0], 1)
        pull = cp.broadcast_to(cp.reshape(pull, kept, order="C"), W.shape)
    return [cp.multiply(alpha, pull) / W, below - above]


CONSTRAINTS: dict[str, Callable[[Smoother, Any], Duals]] = {
    "Equality": _equality,
    "Zero": _equality,
    "Inequality": _inequality,
    "NonPos": _nonpositive,
    "NonNeg": _nonnegative,
    "SOC": _second_order,
    "PSD": _semidefinite,
    "ExpCone": _exponential,
    "PowCone3D": _power,
    "PowConeND": _power_nd,
}
"""By the name of the constraint's class: adds the smooth form, returns the dual variables."""

"""Rewrite any problem of cvxpy's atoms as ``minimise f  s.t.  h = 0, g <= 0, lower <= y <= upper`` with smooth functions.

* An atom that is the largest of several pieces (``max``, ``abs``, ``norm1`` ...) becomes a fresh variable above all
  pieces, where the problem only gains from making it small; likewise the Euclidean norm, by its second-order cone. In
  any other place it is evaluated as it is.
* An argument that must stay in an interval (of ``log``, ``sqrt`` ...) becomes a bounded variable, tied by an equality.
* Cones become smooth equalities and inequalities (:mod:`ddn_cvx.declare.smooth_form_cones`).

The multipliers of the constraints as declared are expressions of the new multipliers, written in cvxpy as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.atoms.atom import Atom
from cvxpy.constraints.constraint import Constraint
from cvxpy.expressions.expression import Expression
from cvxpy.expressions.leaf import Leaf
from numpy.typing import NDArray

from ddn_cvx.declare import smooth_form_atoms as atoms
from ddn_cvx.declare.atoms_base import no_rule
from ddn_cvx.declare.free_entries import is_free
from ddn_cvx.errors import DeclarationError


@dataclass(frozen=True)
class Row:
    """An expression that is to be zero, or at most zero."""

    expression: Expression
    multiplier: cp.Variable
    """Stands for its multiplier in expressions."""


@dataclass(frozen=True)
class Bound:
    """``side * (entries - value) <= 0`` for entries of a variable."""

    variable: cp.Variable
    places: NDArray[np.int64]
    """Of the entries in the variable, in C order."""
    side: int
    """1 for an upper bound, -1 for a lower one."""
    value: Expression
    """Of parameters only; broadcasts to the shape of ``places``."""
    multiplier: cp.Variable | None
    """None where the bound was not declared as a constraint."""


@dataclass(frozen=True)
class Auxiliary:
    """A variable that was not declared, and where it starts."""

    variable: cp.Variable
    initial: Expression


@dataclass
class SmoothProblem:
    """A problem in smooth form."""

    objective: Expression
    """To be minimised or maximised, as declared."""
    variables: list[cp.Variable]
    auxiliaries: list[Auxiliary] = field(default_factory=list)
    equalities: list[Row] = field(default_factory=list)
    inequalities: list[Row] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)
    duals: dict[int, Expression] = field(default_factory=dict)
    """By the id of a declared dual variable."""
    cones: list[tuple[Expression, Expression]] = field(default_factory=list)
    """Of each ``x = t w, |w| <= 1, t >= 0``: the dual of t, and the length of that of x, which must not be larger."""


class Smoother:
    """Collects the smooth form while expressions are rewritten."""

    def __init__(self, problem: cp.Problem):
        self.found = SmoothProblem(problem.objective.args[0], problem.variables())
        self._memo: dict[tuple[int, int], tuple[Expression, Expression]] = {}
        self._kept: dict[tuple[int, float, float], tuple[Expression, Expression]] = {}
        for variable in self.found.variables:
            self._attributes(variable)

    def _attributes(self, variable: cp.Variable) -> None:
        a = variable.attributes
        everywhere = np.arange(variable.size).reshape(variable.shape)
        if a["nonneg"] or a["pos"]:
            self._bound(variable, everywhere, -1, cp.Constant(0.0))
        if a["nonpos"] or a["neg"]:
            self._bound(variable, everywhere, 1, cp.Constant(0.0))
        if a["bounds"] is not None:
            for side, value in zip((-1, 1), a["bounds"], strict=True):
                self._bound(variable, everywhere, side, Expression.cast_to_const(value))

    # ---------------------------------------------------------------- what a rewrite may add

    def auxiliary(self, shape: tuple[int, ...], initial: Expression, **attributes: Any) -> cp.Variable:
        """A fresh variable."""
        variable = cp.Variable(shape, **attributes)
        self.found.auxiliaries.append(Auxiliary(variable, initial))
        return variable

    def zero(self, expression: Expression) -> cp.Variable:
        """Demand ``expression == 0``; the multiplier."""
        return self._row(self.found.equalities, expression)

    def nonpositive(self, expression: Expression) -> cp.Variable:
        """Demand ``expression <= 0``; the multiplier."""
        return self._row(self.found.inequalities, expression)

    @staticmethod
    def _row(rows: list[Row], expression: Expression) -> cp.Variable:
        rows.append(Row(expression, cp.Variable(expression.shape)))
        return rows[-1].multiplier

    def _bound(self, variable: cp.Variable, places: NDArray[np.int64], side: int, value: Expression) -> None:
        self.found.bounds.append(Bound(variable, places, side, value, None))

    def inside(self, declared: Expression, sense: int, lower: float = 0.0, upper: float = math.inf) -> Expression:
        """The expression, kept between ``lower`` and ``upper`` by bounds on a variable."""
        expr = self.expression(declared, sense)
        if not expr.variables() or (lower == 0.0 and upper == math.inf and isinstance(expr, Atom) and expr.is_nonneg()):
            return expr
        key = (id(declared), lower, upper)
        if key not in self._kept:
            chosen = atoms.selection(expr)
            if chosen is None or not is_free(chosen[0]):
                kept: Expression = self.auxiliary(expr.shape, declared)
                self.zero(expr - kept)
                chosen = kept, np.arange(kept.size).reshape(kept.shape)
            else:
                kept = expr
            for side, value in ((-1, lower), (1, upper)):
                if math.isfinite(value):
                    self._bound(*chosen, side, cp.Constant(value))
            self._kept[key] = (declared, kept)
        return self._kept[key][1]

    # ---------------------------------------------------------------- expressions

    def expression(self, expr: Expression, sense: int) -> Expression:
        """A smooth expression in the place of ``expr``.

        ``sense`` is 1 where making the expression smaller never hurts (it is minimised, or bounded from above), -1
        where making it larger never hurts, 0 where its exact value counts.
        """
        if not expr.variables() or isinstance(expr, Leaf):
            return expr
        key = (id(expr), sense)
        if key not in self._memo:
            self._memo[key] = (expr, self._rewritten(expr, sense))
        return self._memo[key][1]

    def _rewritten(self, expr: Expression, sense: int) -> Expression:
        kind = atoms.name(expr)
        if kind in atoms.STEPS:
            raise DeclarationError(
                f"Expression {str(expr)[:120]!r}: the atom {kind} is a step: its derivative is zero, and no "
                "solver can follow it. Replace it by a smooth function such as cp.nlp.tanh, or evaluate it in torch "
                "and pass its value as a parameter."
            )
        if not isinstance(expr, Atom):
            raise no_rule(kind, expr)
        if kind == "abs" and not expr.args[0].is_complex() and (expr.args[0].is_nonneg() or expr.args[0].is_nonpos()):
            return self.expression(expr.args[0] if expr.args[0].is_nonneg() else -expr.args[0], sense)
        if sense == 1 and not expr.args[0].is_complex():
            hull = self._least(expr)
            if hull is not None:
                return hull
        if sense == -1 and kind in atoms.FLIPPED:
            return -self.expression(self._flipped(expr), 1)
        return self._rebuilt(expr, sense)

    def _least(self, expr: Any) -> Expression | None:
        """A variable above a non-smooth convex atom, or an expression of such; None for other atoms."""
        kind = atoms.name(expr)
        x = expr.args[0]
        if kind == "norm1":
            return self.expression(cp.sum(cp.abs(x), **atoms.axes(expr)), 1)
        if kind == "sum_largest":  # the least value over q of  k q + sum of what is above q
            q = self.auxiliary(expr.shape, cp.max(x, **atoms.axes(expr)))
            above = cp.sum(cp.maximum(x - atoms.along(expr, q), 0), **atoms.axes(expr))
            return self.expression(above, 1) + float(expr.k) * q
        if kind in atoms.HULLS or _is_euclidean(expr):
            top = self.auxiliary(expr.shape, expr)
            self.below(expr, top)
            return top
        return None

    @staticmethod
    def _flipped(expr: Any) -> Expression:
        negated = [-arg for arg in expr.args]
        kind = atoms.name(expr)
        return cp.maximum(*negated) if kind == "minimum" else cp.max(negated[0], **atoms.axes(expr))

    def _rebuilt(self, expr: Any, sense: int) -> Expression:
        limits = {k: (lower, upper) for k, lower, upper in atoms.domain(expr)}
        args = []
        for k, arg in enumerate(expr.args):
            direction = sense and sense * (int(expr.is_incr(k)) or -int(expr.is_decr(k)))
            args.append(self.inside(arg, direction, *limits[k]) if k in limits else self.expression(arg, direction))
        return expr if all(a is b for a, b in zip(args, expr.args, strict=True)) else expr.copy(args)

    # ---------------------------------------------------------------- inequalities

    def below(self, low: Expression, top: Expression) -> Expression:
        """Demand ``low <= top``; the multiplier, in the common shape of both."""
        shape = np.broadcast_shapes(low.shape, top.shape)
        if atoms.name(low) in atoms.HULLS and low.shape == shape and not low.args[0].is_complex():
            return self._each(low, [(piece, atoms.along(low, top)) for piece in atoms.pieces(low)])
        if atoms.name(top) in atoms.FLIPPED and top.shape == shape:
            pieces = list(top.args)
            return self._each(top, [(atoms.along(top, low), piece) for piece in pieces])
        if _is_euclidean(low) and low.shape == top.shape:
            return self._norm(low, top)
        bound = self._as_bound(low, top)
        if bound is not None:
            return bound
        return self.nonpositive(self.expression(low, 1) - self.expression(top, -1))

    def _each(self, atom: Any, pairs: list[tuple[Expression, Expression]]) -> Expression:
        multipliers = [self.below(low, top) for low, top in pairs]
        if atoms.name(atom) in ("max", "min", "norm_inf"):
            multipliers = [cp.sum(m, **atoms.axes(atom)) for m in multipliers]
        return sum(multipliers[1:], start=multipliers[0])

    def _as_bound(self, low: Expression, top: Expression) -> cp.Variable | None:
        """The multiplier, where one side consists of entries of a variable that are not bounded there yet."""
        for entries, value, side in ((low, top, 1), (top, low, -1)):
            chosen = atoms.selection(entries)
            if chosen is None or value.variables() or entries.shape != np.broadcast_shapes(low.shape, top.shape):
                continue
            variable, places = chosen
            same = [b for b in self.found.bounds if b.variable is variable and b.side == side and b.multiplier is not None]
            if is_free(variable) and not any(np.isin(places, b.places).any() for b in same):
                multiplier = cp.Variable(places.shape)
                self.found.bounds.append(Bound(variable, places, side, value, multiplier))
                return multiplier
        return None

    def _norm(self, low: Any, top: Expression) -> Expression:
        """``|x| <= top``: squared where the top is not a variable, else ``x = top w`` with ``|w| <= 1``.

        The second form is regular at the apex, too, where the square has no slope.
        """
        x = self.expression(low.args[0], 0)
        if not top.variables():
            square = cp.sum(cp.square(x), **atoms.axes(low))
            return 2 * cp.multiply(top, self.nonpositive(square - cp.multiply(top, cp.abs(top))))
        t = self.expression(top, -1)
        w = self.auxiliary(x.shape, cp.multiply(low.args[0], atoms.along(low, 1 / (1 + low))))
        force = self.zero(x - cp.multiply(atoms.along(low, t), w))
        self.nonpositive(cp.sum(cp.square(w), **atoms.axes(low)) - 1)
        push = self.below(cp.Constant(np.zeros(t.shape)), t)
        pull = cp.sum(cp.multiply(force, w), **atoms.axes(low)) + push
        self.found.cones.append((pull, low.copy([force])))
        return pull


def _is_euclidean(expr: Any) -> bool:
    return atoms.name(expr) in ("Pnorm", "PnormApprox") and expr.p == 2 and bool(expr.variables())


def named(constraint: Constraint) -> str:
    """A constraint for a message."""
    return f"Constraint {str(constraint)[:120]!r} ({type(constraint).__name__})"

"""Make a convex problem that is not DPP into an equivalent one that is.

Disciplined parametrised programming (Agrawal et al., 2019) wants the problem data to be affine in the parameters. Three
exact rewrites bring most convex problems there:

* **lift**: a subexpression of parameters only (``exp(p)``, ``p * q``, ``B.T @ B``) becomes a fresh parameter whose
  value is computed in torch;
* **unfold**: ``kron``, ``conv`` and ``x / p`` become matrix or elementwise products with a (lifted) parameter;
* **name**: in a product of a parameter with an expression that holds parameters itself, that expression becomes a fresh
  variable, tied by an equality when affine and by an epigraph inequality when convex or concave.

The gradient flows through the torch evaluation of the lifted parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.affine.binary_operators import DivExpression, MulExpression, multiply
from cvxpy.atoms.affine.conv import conv, convolve
from cvxpy.atoms.affine.kron import kron
from cvxpy.atoms.quad_form import QuadForm
from cvxpy.atoms.quad_over_lin import quad_over_lin
from cvxpy.constraints.constraint import Constraint
from cvxpy.expressions.expression import Expression
from cvxpy.utilities import scopes

_PRODUCTS = (MulExpression, multiply)
_BILINEAR = (kron, conv, convolve)


@dataclass
class Rewrite:
    """The rewritten problem and where its new parameters come from."""

    problem: cp.Problem
    lifted: list[tuple[cp.Parameter, Expression]]
    """Fresh parameters and the parameter-only expressions that give their values."""


def to_dpp(problem: cp.Problem, gp: bool = False) -> Rewrite:
    """An equivalent problem with parameter-affine data; the constraints keep their order (new ones follow).

    A geometric program (``gp``) only needs the first rewrite: products are affine in logarithms already.
    """
    rewriter = _Rewriter(gp)
    objective = type(problem.objective)(rewriter.expression(problem.objective.args[0]))
    constraints = [rewriter.constraint(c) for c in problem.constraints]
    return Rewrite(cp.Problem(objective, constraints + rewriter.constraints), rewriter.lifted)


def has_constant_curvature(expr: Expression) -> bool:
    """Whether a part of the expression depends on parameters only, and not in an affine way.

    cvxpy calls it DPP, but reads a square of parameters in an objective as the number that it is at the time.
    """
    if not expr.parameters():
        return False
    if expr.variables():
        return any(has_constant_curvature(arg) for arg in expr.args)
    with scopes.dpp_scope():
        return not expr.is_affine()


@dataclass
class _Rewriter:
    gp: bool
    lifted: list[tuple[cp.Parameter, Expression]] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)
    _memo: dict[int, Expression] = field(default_factory=dict)

    def constraint(self, constraint: Constraint) -> Constraint:
        new = [self.expression(arg) for arg in constraint.args]
        if all(a is b for a, b in zip(new, constraint.args, strict=True)):
            return constraint
        return constraint.copy(new)

    def expression(self, expr: Expression) -> Expression:
        if id(expr) not in self._memo:
            self._memo[id(expr)] = self._rewrite(expr)
        return self._memo[id(expr)]

    def _rewrite(self, expr: Expression) -> Expression:
        if not expr.parameters() or isinstance(expr, cp.Parameter):
            return expr
        if not expr.variables():
            return self.lift(expr)
        if self.gp:
            return self._rebuilt(expr)
        if isinstance(expr, DivExpression) and not expr.args[1].variables() and expr.args[1].parameters():
            reciprocal = self.lift(cp.power(expr.args[1], -1) if expr.args[1].is_nonneg() else 1 / expr.args[1])
            return self._product(multiply(self.expression(expr.args[0]), reciprocal))
        if isinstance(expr, QuadForm):
            definite = "PSD" if expr.is_convex() else "NSD"
            return QuadForm(self.expression(expr.args[0]), self.lift(expr.args[1], definite))
        if isinstance(expr, quad_over_lin) and not expr.args[1].variables() and expr.args[1].parameters():
            squares = expr.copy([self.expression(expr.args[0]), cp.Constant(1.0)])
            return self._product(multiply(self.lift(cp.power(expr.args[1], -1)), squares))
        rebuilt = self._rebuilt(expr)
        if isinstance(rebuilt, _BILINEAR):
            return self._unfold(rebuilt)
        if isinstance(rebuilt, _PRODUCTS):
            return self._product(rebuilt)
        return rebuilt

    def _rebuilt(self, expr: Expression) -> Expression:
        args = [self.expression(arg) for arg in expr.args]
        return expr if all(a is b for a, b in zip(args, expr.args, strict=True)) else expr.copy(args)

    def lift(self, expr: Expression, definite: str | None = None) -> Expression:
        """A fresh parameter for a parameter-only expression; parameter-affine ones stay as they are.

        ``definite`` is "PSD" or "NSD" where the convexity of the context implies it.
        """
        if isinstance(expr, cp.Parameter) or not expr.parameters():
            return expr
        if self.gp:
            return self._fresh(expr, {"pos": True})
        with scopes.dpp_scope():
            if expr.is_affine() and definite is None:
                return expr
        if definite is not None:
            return self._fresh(expr, {definite: True})
        square = expr.ndim == 2 and expr.shape[0] == expr.shape[1] and expr.shape[0] > 1
        if square and (expr.is_psd() or expr.is_nsd()):
            attributes = {"PSD": True} if expr.is_psd() else {"NSD": True}
        elif expr.is_complex():
            attributes = {"hermitian": True} if square and expr.is_hermitian() else {"complex": True}
        elif expr.is_nonneg() or expr.is_nonpos():
            attributes = {"nonneg": True} if expr.is_nonneg() else {"nonpos": True}
        else:
            attributes = {"symmetric": True} if square and expr.is_symmetric() else {}
        return self._fresh(expr, attributes)

    def _fresh(self, expr: Expression, attributes: dict[str, bool]) -> cp.Parameter:
        parameter = cp.Parameter(expr.shape, **attributes)
        self.lifted.append((parameter, expr))
        return parameter

    def _product(self, expr: Expression) -> Expression:
        """A product in which one factor holds parameters only and the other holds none."""
        left, right = expr.args
        if not left.parameters() or not right.parameters():
            return expr
        if left.variables():
            left, right, swapped = right, left, True
        else:
            swapped = False
        if isinstance(right, QuadForm) and left.size == 1:
            definite = "PSD" if expr.is_convex() else "NSD"
            return QuadForm(right.args[0], self.lift(left * right.args[1], definite))
        named = self._name(right)
        factors = [named, left] if swapped else [left, named]
        return expr.copy(factors)

    def _name(self, expr: Expression) -> Expression:
        """An equal expression without parameters, through fresh variables."""
        if not expr.parameters():
            return expr
        if expr.is_affine():
            attributes = {"complex": True} if expr.is_complex() else {}
            fresh = cp.Variable(expr.shape, **attributes)
            self.constraints.append(fresh == expr)
            return fresh
        args = [self._name(arg) if arg.variables() else arg for arg in expr.args]
        rebuilt = expr.copy(args)
        if not rebuilt.parameters():
            return rebuilt
        fresh = cp.Variable(expr.shape, nonneg=expr.is_nonneg(), nonpos=expr.is_nonpos())
        self.constraints.append(fresh >= expr if expr.is_convex() else fresh <= expr)
        return fresh

    def _unfold(self, expr: Expression) -> Expression:
        """A bilinear atom of a parameter and a variable as a matrix product, ``vec(f(p, x)) = T(p) vec(x)``."""
        first, second = expr.args
        parameter_first = not first.variables()
        parameter, variable = (first, second) if parameter_first else (second, first)
        if not parameter.parameters():
            return expr
        size = parameter.size * variable.size
        columns = []
        for k in range(size):
            p, v = np.zeros(parameter.size), np.zeros(variable.size)
            p[k % parameter.size], v[k // parameter.size] = 1.0, 1.0
            values = [p.reshape(parameter.shape, order="F"), v.reshape(variable.shape, order="F")]
            out = np.asarray(expr.numeric(values if parameter_first else values[::-1]))
            columns.append(sp.csc_array(out.reshape(-1, 1, order="F")))
        tensor = sp.hstack(columns, format="csc")
        coo = tensor.tocoo()
        rows = coo.row + expr.size * (coo.col // parameter.size)
        shape = (expr.size * variable.size, parameter.size)
        T = sp.csc_array((coo.data, (rows, coo.col % parameter.size)), shape)
        matrix = cp.reshape(cp.Constant(T) @ cp.vec(parameter, order="F"), (expr.size, variable.size), order="F")
        product = self._product(matrix @ cp.vec(variable, order="F"))
        return cp.reshape(product, expr.shape, order="F")

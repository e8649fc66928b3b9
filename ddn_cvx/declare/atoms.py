"""From a cvxpy expression to a batched torch function.

``compile_expression(expr, leaves)`` walks the expression once and writes a flat list of steps in topological order, each
one a small torch rule (:mod:`ddn_cvx.declare.atoms_base` holds the registry, the other ``atoms_*`` modules the rules).
Constant sub-expressions are folded, a sub-expression that occurs twice is evaluated once, and calling the result is a loop
over the list.

Values follow ``expr.value`` of cvxpy: ``nan`` or an infinity outside the domain of an atom, no check of signs or curvature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.atom import Atom
from cvxpy.expressions.constants.constant import Constant
from cvxpy.expressions.expression import Expression
from cvxpy.expressions.leaf import Leaf

from ddn_cvx.declare.atoms_base import RULES, Node, no_rule
from ddn_cvx.declare.atoms_evaluator import Array, Evaluator, Input, Step
from ddn_cvx.declare.atoms_numeric import NUMERIC, has_numeric
from ddn_cvx.errors import DeclarationError


def compile_expression(expr: Expression, leaves: Sequence[Leaf], numeric_fallback: bool = False) -> Evaluator:
    """Translate a cvxpy expression into a batched torch function.

    Parameters
    ----------
    expr : cvxpy.Expression
        Any expression of atoms; it need not be DCP.
    leaves : sequence of cvxpy.Variable or cvxpy.Parameter
        The inputs. Every variable and parameter of ``expr`` must be among them; leaves which it does not use are welcome.
    numeric_fallback : bool
        Evaluate atoms without a torch rule by their own ``numeric``, one batch element at a time in numpy. The result of
        an evaluator that needed it has no gradient: use it to check constraints.

    Returns
    -------
    Evaluator
        ``evaluate({leaf.id: (*batch, *leaf.shape), …}) -> (*batch, *expr.shape)``.

    Raises
    ------
    DeclarationError
        An atom has no torch rule, or a variable or parameter of ``expr`` is not among ``leaves``.
    """
    return compile_expressions([expr], leaves, numeric_fallback)


def compile_expressions(
    expressions: Sequence[Expression], leaves: Sequence[Leaf], numeric_fallback: bool = False
) -> Evaluator:
    """The same for several expressions at once, which share what they have in common: see ``Evaluator.every``."""
    return _Compiler(leaves, numeric_fallback).compile(expressions)


Reference = tuple[str, int]  # ("input", "constant" or "step", its number)


class _Compiler:
    """Post-order walk of expressions."""

    def __init__(self, leaves: Sequence[Leaf], numeric_fallback: bool):
        self.leaves = {
            leaf.id: Input(leaf.id, f"{type(leaf).__name__} {leaf.name()!r}", tuple(leaf.shape)) for leaf in leaves
        }
        self.numeric_fallback = numeric_fallback
        self.inputs: list[Input] = []
        self.constants: list[Array] = []
        self.steps: list[tuple[str, Node, list[Reference]]] = []
        # None stands for a constant, folded only where a step needs it. The item is kept next to its reference, so that
        # its id stays its own.
        self.known: dict[int, tuple[object, Reference | None]] = {}
        self.folded: dict[int, Reference] = {}

    def compile(self, expressions: Sequence[Expression]) -> Evaluator:
        outputs = [self.operand(expr) for expr in expressions]
        first = {"input": 0, "constant": len(self.inputs), "step": len(self.inputs) + len(self.constants)}

        def slot(reference: Reference) -> int:
            return first[reference[0]] + reference[1]

        steps = [Step(name, node, tuple(map(slot, operands))) for name, node, operands in self.steps]
        shapes = [tuple(expr.shape) for expr in expressions]
        return Evaluator(list(self.leaves.values()), self.inputs, self.constants, steps, list(map(slot, outputs)), shapes)

    def operand(self, item: Expression | Array) -> Reference:
        """The reference of an expression or array, folding it if it is constant."""
        return self.visit(item) or self.fold(item)

    def visit(self, item: Expression | Array) -> Reference | None:
        if id(item) not in self.known:
            self.known[id(item)] = (item, self.reference(item))
        return self.known[id(item)][1]

    def reference(self, item: Expression | Array) -> Reference | None:
        if isinstance(item, (np.ndarray, Constant)):
            return None
        if isinstance(item, Leaf):
            return self.input(item)
        if not isinstance(item, Atom):
            raise no_rule(type(item).__name__, item)
        return self.atom(item)

    def input(self, leaf: Leaf) -> Reference:
        if leaf.id not in self.leaves:
            raise DeclarationError(
                f"The expression uses the {type(leaf).__name__.lower()} {leaf.name()!r}, which is not among the leaves to "
                f"evaluate it from ({', '.join(known.name for known in self.leaves.values()) or 'none'}). Add it to them."
            )
        self.inputs.append(self.leaves[leaf.id])
        return "input", len(self.inputs) - 1

    def atom(self, atom: Atom) -> Reference | None:
        name = type(atom).__name__
        items: list[Expression | Array] = list(atom.args)
        attributes: dict[str, Any] = {}
        if name in RULES:
            attributes = dict(RULES[name].reads(atom))
            items = [*attributes.pop("args", items), *_further_operands(attributes)]
        if all([self.visit(item) is None for item in items]):
            return None
        if name not in RULES:
            if not (self.numeric_fallback and has_numeric(atom)):
                raise no_rule(name, atom)
            name, attributes = NUMERIC, {"atom": atom}
        node = Node(shape=tuple(atom.shape), arg_shapes=tuple(tuple(item.shape) for item in items), **attributes)
        self.steps.append((name, node, [self.operand(item) for item in items]))
        return "step", len(self.steps) - 1

    def fold(self, item: Expression | Array) -> Reference:
        if id(item) not in self.folded:
            self.constants.append(item if isinstance(item, np.ndarray) else _value(item))
            self.folded[id(item)] = ("constant", len(self.constants) - 1)
        return self.folded[id(item)]


def _further_operands(attributes: dict[str, Any]) -> Iterator[Expression | Array]:
    """Move arrays and expressions out of ``attributes``, leaving None."""
    for key, value in attributes.items():
        if isinstance(value, (np.ndarray, Expression)):
            attributes[key] = None
            yield value


def _value(expr: Expression) -> Array:
    """The value of a constant expression as a dense array of floats, in the declared shape."""
    value = expr.value
    dense = value.toarray() if sp.issparse(value) else np.asarray(value)
    return np.array(dense, dtype=np.complex128 if np.iscomplexobj(dense) else np.float64, order="C").reshape(expr.shape)

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
from cvxpy.expressions.constants.parameter import Parameter
from cvxpy.expressions.expression import Expression
from cvxpy.expressions.leaf import Leaf

from ddn_cvx.declare.atoms_affine import SCATTER
from ddn_cvx.declare.atoms_base import RULES, Node, no_rule
from ddn_cvx.declare.atoms_evaluator import Array, Evaluator, Input, Step
from ddn_cvx.declare.atoms_numeric import NUMERIC, has_numeric
from ddn_cvx.errors import DeclarationError
from ddn_cvx.program.base import ParameterSpec


def is_compact(leaf: Leaf) -> bool:
    """Whether a leaf is a real parameter declared with a sparsity pattern, of which only the entries need be known."""
    return isinstance(leaf, Parameter) and leaf.sparse_idx is not None and leaf.ndim > 0 and not leaf.is_complex()


def specify(parameter: Parameter) -> ParameterSpec:
    """What a layer has to know of a parameter."""
    entries = None
    if is_compact(parameter):
        entries = np.ravel_multi_index(parameter.sparse_idx, parameter.shape).astype(np.int64)
    return ParameterSpec(parameter.name(), tuple(parameter.shape), parameter.is_complex(), entries)


def compile_expression(
    expr: Expression, leaves: Sequence[Leaf], numeric_fallback: bool = False, compact: bool = False
) -> Evaluator:
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
    compact : bool
        Values of sparse parameters are their entries ``(*batch, nnz)`` in the order of ``leaf.sparse_idx``. Products with
        such a matrix are sparse; elsewhere it is filled up with zeros.

    Returns
    -------
    Evaluator
        ``evaluate({leaf.id: (*batch, *leaf.shape), …}) -> (*batch, *expr.shape)``.

    Raises
    ------
    DeclarationError
        An atom has no torch rule, or a variable or parameter of ``expr`` is not among ``leaves``.
    """
    return compile_expressions([expr], leaves, numeric_fallback, compact)


def compile_expressions(
    expressions: Sequence[Expression], leaves: Sequence[Leaf], numeric_fallback: bool = False, compact: bool = False
) -> Evaluator:
    """The same for several expressions at once, which share what they have in common: see ``Evaluator.every``."""
    return _Compiler(leaves, numeric_fallback, compact).compile(expressions)


Reference = tuple[str, int]  # ("input", "constant" or "step", its number)


class _Compiler:
    """Post-order walk of expressions."""

    def __init__(self, leaves: Sequence[Leaf], numeric_fallback: bool, compact: bool):
        self.compact = {leaf.id: len(leaf.sparse_idx[0]) for leaf in leaves if compact and is_compact(leaf)}
        self.leaves = {
            leaf.id: Input(
                leaf.id,
                f"{type(leaf).__name__} {leaf.name()!r}",
                (self.compact[leaf.id],) if leaf.id in self.compact else tuple(leaf.shape),
            )
            for leaf in leaves
        }
        self.numeric_fallback = numeric_fallback
        self.inputs: list[Input] = []
        self.positions: dict[int, int] = {}
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
        if isinstance(item, Leaf) and item.id in self.compact:
            place = np.ravel_multi_index(item.sparse_idx, item.shape).astype(np.int64)
            node = Node(shape=tuple(item.shape), arg_shapes=((len(place),), (len(place),)))
            self.steps.append((SCATTER, node, [self.input(item), self.fold(place)]))
            return "step", len(self.steps) - 1
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
        if leaf.id not in self.positions:
            self.positions[leaf.id] = len(self.inputs)
            self.inputs.append(self.leaves[leaf.id])
        return "input", self.positions[leaf.id]

    def atom(self, atom: Atom) -> Reference | None:
        name = type(atom).__name__
        items: list[Expression | Array] = list(atom.args)
        attributes: dict[str, Any] = {}
        product = self.sparse_product(atom) if name == "MulExpression" and self.compact else None
        if product is not None:
            return product
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

    def sparse_product(self, atom: Atom) -> Reference | None:
        """The product of a sparse parameter, or its transpose, and another expression; None if it is none."""
        for side, matrix, other in (("left", *atom.args), ("right", *reversed(atom.args))):
            turned = type(matrix).__name__ == "transpose"
            leaf = matrix.args[0] if turned else matrix
            if isinstance(leaf, Leaf) and leaf.id in self.compact and leaf.ndim == 2 and other.ndim <= 2:
                rows, cols = (index.astype(np.int64) for index in leaf.sparse_idx[:: -1 if turned else 1])
                into, out = (rows, cols) if side == "left" else (cols, rows)
                operands = [self.operand(other), self.fold(into), self.fold(out), self.input(leaf)]
                shapes = (tuple(other.shape), *((len(rows),),) * 3)
                self.steps.append(("MulExpression", Node(shape=tuple(atom.shape), arg_shapes=shapes, sparse=side), operands))
                return "step", len(self.steps) - 1
        return None

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

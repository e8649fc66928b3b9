"""From a cvxpy expression to a batched torch function.

``compile_expression(expr, leaves)`` walks the expression once and writes a flat list of steps in topological order, each
one a small torch rule (:mod:`ddn_cvx.declare.atoms_base` holds the registry, the other ``atoms_*`` modules the rules).
Constant sub-expressions are folded, a sub-expression that occurs twice is evaluated once, and calling the result is a loop
over the list.

Values follow ``expr.value`` of cvxpy: ``nan`` or an infinity outside the domain of an atom, no check of signs or curvature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from cvxpy.atoms.atom import Atom
from cvxpy.atoms.suppfunc import SuppFuncAtom
from cvxpy.expressions.constants.constant import Constant
from cvxpy.expressions.expression import Expression
from cvxpy.expressions.leaf import Leaf
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.declare import (
    atoms_affine,
    atoms_elementwise,
    atoms_matrix,
    atoms_reduction,
    atoms_spectral,
)
from ddn_cvx.declare.atoms_base import RULES, Node, Rule, no_rule, rule
from ddn_cvx.errors import DeclarationError, InputError

# Importing these modules fills RULES.
FAMILIES = (atoms_affine, atoms_elementwise, atoms_matrix, atoms_reduction, atoms_spectral)

NUMERIC = "numeric"  # the name under which the fallback to Atom.numeric is registered

Array = NDArray[Any]


def compile_expression(expr: Expression, leaves: Sequence[Leaf], numeric_fallback: bool = False) -> Evaluator:
    """Translate a cvxpy expression into a batched torch function.

    Parameters
    ----------
    expr : cvxpy.Expression
        Any expression of atoms; it need not be DCP.
    leaves : sequence of cvxpy.Variable or cvxpy.Parameter
        The inputs. Every variable and parameter of ``expr`` must be among them; leaves which it does not use are welcome.
    numeric_fallback : bool
        Evaluate atoms without a torch rule by their own ``numeric``, one batch element at a time in numpy. The result of an
        evaluator that needed it has no gradient: use it to check constraints.

    Returns
    -------
    Evaluator
        ``evaluate({leaf.id: (*batch, *leaf.shape), …}) -> (*batch, *expr.shape)``.

    Raises
    ------
    DeclarationError
        An atom has no torch rule, or a variable or parameter of ``expr`` is not among ``leaves``.
    """
    return _Compiler(leaves, numeric_fallback).compile(expr)


@dataclass(frozen=True)
class Input:
    """A leaf that the expression uses: what to look up, and what to expect there."""

    id: int
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One atom: the name of its rule, what the rule knows of it, and the slots that hold its operands."""

    name: str
    node: Node
    operands: tuple[int, ...]


class Evaluator:
    """A compiled expression. It can be pickled and copied, and holds no cvxpy object (but for atoms left to ``numeric``).

    Attributes
    ----------
    shape : tuple of int
        The shape of the expression.
    differentiable : bool
        False if some atom is evaluated in numpy.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        accepted: Sequence[int],
        constants: Sequence[Array],
        steps: Sequence[Step],
        output: int,
        shape: tuple[int, ...],
    ):
        self.shape = shape
        self.differentiable = all(step.name != NUMERIC for step in steps)
        self._inputs = tuple(inputs)
        self._accepted = tuple(accepted)
        self._constants = tuple(constants)
        self._steps = tuple(steps)
        self._output = output
        self._prepare()

    def _prepare(self) -> None:
        self._calls: list[tuple[Rule, Node, tuple[int, ...]]] = [
            (RULES[step.name].function, step.node, step.operands) for step in self._steps
        ]
        self._cache: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_calls", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    def __call__(self, values: Mapping[int, Tensor]) -> Tensor:
        """Evaluate at ``values[leaf.id]`` of shape ``(*batch, *leaf.shape)``; the batch dimensions broadcast.

        Returns ``(*batch, *expr.shape)`` with the batch dimensions of the leaves that the expression depends on (none if
        it is constant), in the precision and on the device of the values.

        Raises
        ------
        InputError
            A leaf is missing, or has another shape than declared, or is not a float32 or float64 (or complex) tensor.
        """
        if not self.differentiable:
            with torch.no_grad():
                return self._run({key: value.detach() for key, value in values.items()})
        return self._run(values)

    def _run(self, values: Mapping[int, Tensor]) -> Tensor:
        dtype, device = self._precision(values)
        slots = [self._read(leaf, values, dtype) for leaf in self._inputs]
        slots.extend(self.constants(dtype, device))
        for function, node, operands in self._calls:
            slots.append(function(node, *[slots[i] for i in operands]))
        out = slots[self._output]
        # A constant is handed out as a copy: writing into it must not change the cache.
        return out.clone() if not self._steps and not self._inputs else out

    def constants(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """The constants of the expression in a real precision on a device; made once and kept."""
        key = (dtype, device)
        if key in self._cache:
            return self._cache[key]
        # An inference tensor in the cache could not be used under autograd later.
        with torch.inference_mode(False):
            made = [_tensor(value, dtype).to(device) for value in self._constants]
        # A copy to the device made inside a torch.func transform belongs to that transform and must not outlive it.
        if not any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in made):
            self._cache[key] = made
        return made

    def _precision(self, values: Mapping[int, Tensor]) -> tuple[torch.dtype, torch.device]:
        given = [values[i] for i in self._accepted if i in values]
        if not given:
            return torch.get_default_dtype(), torch.device("cpu")
        dtype = given[0].dtype
        for value in given[1:]:
            dtype = torch.promote_types(dtype, value.dtype)
        return dtype.to_real(), given[0].device

    @staticmethod
    def _read(leaf: Input, values: Mapping[int, Tensor], dtype: torch.dtype) -> Tensor:
        if leaf.id not in values:
            raise InputError(
                f"No value for {leaf.name}: expected a tensor of shape (*batch, {_text(leaf.shape)}) at its id."
            )
        value = values[leaf.id]
        if not isinstance(value, Tensor):
            raise InputError(f"The value of {leaf.name} is a {type(value).__name__}; expected a torch.Tensor.")
        if value.ndim < len(leaf.shape) or value.shape[value.ndim - len(leaf.shape) :] != leaf.shape:
            raise InputError(
                f"The value of {leaf.name} has shape {tuple(value.shape)}; expected (*batch, {_text(leaf.shape)}). "
                "Give the declared shape, after any batch dimensions."
            )
        if value.dtype.to_real() not in (torch.float32, torch.float64):
            raise InputError(
                f"The value of {leaf.name} has dtype {value.dtype}; expected float32 or float64 (or complex). "
                "Convert it with .to()."
            )
        return value.to(dtype.to_complex() if value.is_complex() else dtype)


class _Compiler:
    """Post-order walk of one expression. A reference is ``(kind, number)``; None stands for a constant not yet folded."""

    Reference = tuple[str, int]

    def __init__(self, leaves: Sequence[Leaf], numeric_fallback: bool):
        self.leaves = {leaf.id: leaf for leaf in leaves}
        self.numeric_fallback = numeric_fallback
        self.inputs: list[Input] = []
        self.constants: list[Array] = []
        self.steps: list[tuple[str, Node, list[_Compiler.Reference]]] = []
        # The expression is kept next to its reference, so that its id stays its own.
        self.known: dict[int, tuple[object, _Compiler.Reference | None]] = {}
        self.folded: dict[int, _Compiler.Reference] = {}

    def compile(self, expr: Expression) -> Evaluator:
        output = self.operand(expr)
        first = {"input": 0, "constant": len(self.inputs), "step": len(self.inputs) + len(self.constants)}
        steps = [
            Step(name, node, tuple(first[kind] + number for kind, number in operands)) for name, node, operands in self.steps
        ]
        return Evaluator(
            self.inputs, list(self.leaves), self.constants, steps, first[output[0]] + output[1], tuple(expr.shape)
        )

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
            kind = type(leaf).__name__.lower()
            raise DeclarationError(
                f"The expression uses the {kind} {leaf.name()!r}, which is not among the leaves to evaluate it from "
                f"({', '.join(repr(known.name()) for known in self.leaves.values()) or 'none'}). Add it to them."
            )
        self.inputs.append(Input(leaf.id, f"{type(leaf).__name__} {leaf.name()!r}", tuple(leaf.shape)))
        return "input", len(self.inputs) - 1

    def atom(self, atom: Atom) -> Reference | None:
        name = type(atom).__name__
        items: list[Expression | Array] = list(atom.args)
        attributes: dict[str, Any] = {}
        if name in RULES:
            attributes = dict(RULES[name].reads(atom))
            items = list(attributes.pop("args", items)) + list(_further_operands(attributes))
        if all([self.visit(item) is None for item in items]):
            return None
        if name not in RULES:
            if not (self.numeric_fallback and (hasattr(atom, "numeric") or isinstance(atom, SuppFuncAtom))):
                raise no_rule(name, atom)
            name, attributes = NUMERIC, {"atom": atom}
        shapes = tuple(tuple(item.shape) for item in items)
        node = Node(shape=tuple(atom.shape), arg_shapes=shapes, **attributes)
        self.steps.append((name, node, [self.operand(item) for item in items]))
        return "step", len(self.steps) - 1

    def fold(self, item: Expression | Array) -> Reference:
        if id(item) not in self.folded:
            value = item if isinstance(item, np.ndarray) else _value(item)
            self.constants.append(value)
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


def _tensor(value: Array, dtype: torch.dtype) -> Tensor:
    """A constant in the given real precision. Integer arrays are indices and stay integers."""
    kinds: dict[str, type] = {"i": np.int64, "f": np.float64, "c": np.complex128}
    if dtype == torch.float32:
        kinds |= {"f": np.float32, "c": np.complex64}
    return torch.from_numpy(value.astype(kinds[value.dtype.kind], copy=False))


def _text(shape: tuple[int, ...]) -> str:
    return ", ".join(str(d) for d in shape) if shape else "no further dimension"


@rule(NUMERIC)
def numeric(node: Node, *operands: Tensor) -> Tensor:
    """``Atom.numeric`` for each element of the batch, in numpy."""
    shapes = node.arg_shapes
    batch = np.broadcast_shapes(*(x.shape[: x.ndim - len(s)] for x, s in zip(operands, shapes, strict=True)))
    flat = [x.expand(batch + s).reshape(-1, *s).cpu().numpy() for x, s in zip(operands, shapes, strict=True)]
    values = [np.reshape(_numeric(node.atom, list(map(np.array, row))), node.shape) for row in zip(*flat, strict=True)]
    out = torch.as_tensor(np.array(values).reshape(batch + node.shape))
    like = operands[0].dtype
    return out.to(device=operands[0].device, dtype=like.to_complex() if out.is_complex() else like.to_real())


def _numeric(atom: Any, values: list[Array]) -> Any:
    # A support function has no numeric: its value is the optimum of a problem, which it solves at its argument.
    return SuppFuncAtom(Constant(values[0]), atom._parent).value if isinstance(atom, SuppFuncAtom) else atom.numeric(values)

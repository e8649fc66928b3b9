"""A compiled expression: a flat list of steps over slots, first the inputs, then the constants, then one result a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.declare import (
    atoms_affine,
    atoms_elementwise,
    atoms_matrix,
    atoms_numeric,
    atoms_reduction,
    atoms_spectral,
)
from ddn_cvx.declare.atoms_base import RULES, Node, Rule
from ddn_cvx.declare.atoms_numeric import NUMERIC
from ddn_cvx.errors import InputError

# Importing these modules fills RULES.
FAMILIES = (atoms_affine, atoms_elementwise, atoms_matrix, atoms_numeric, atoms_reduction, atoms_spectral)

Array = NDArray[Any]


@dataclass(frozen=True)
class Input:
    """A leaf: where to find its value, and what to expect there."""

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

    Parameters
    ----------
    leaves : sequence of Input
        All leaves whose values may be given; they decide the precision.
    inputs : sequence of Input
        Those of them which the expression uses, in the order of the first slots.
    constants : sequence of numpy arrays
        What the next slots hold.
    steps : sequence of Step
        In topological order, one further slot each.
    outputs : sequence of int
        The slots of the results.
    shapes : sequence of tuples of int
        The shapes of the expressions.

    Attributes
    ----------
    shape : tuple of int
        The shape of the first expression.
    dependent : tuple of bool
        Whether each expression depends on an input.
    differentiable : bool
        False if some atom is evaluated in numpy.
    """

    def __init__(
        self,
        leaves: Sequence[Input],
        inputs: Sequence[Input],
        constants: Sequence[Array],
        steps: Sequence[Step],
        outputs: Sequence[int],
        shapes: Sequence[tuple[int, ...]],
    ):
        self.shape = shapes[0]
        # A step has an operand that is not constant: those that have none are folded into a constant.
        first, last = len(inputs), len(inputs) + len(constants)
        self.dependent = tuple(not first <= out < last for out in outputs)
        self.differentiable = all(step.name != NUMERIC for step in steps)
        self._leaves = tuple(leaves)
        self._inputs = tuple(inputs)
        self._constants = tuple(constants)
        self._steps = tuple(steps)
        self._outputs = tuple(outputs)
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
        it is constant), in the highest precision and on the device of the values.

        Raises
        ------
        InputError
            A leaf is missing, or has another shape than declared, or is not a float32 or float64 (or complex) tensor.
        """
        return self.every(values)[0]

    def every(self, values: Mapping[int, Tensor]) -> list[Tensor]:
        """The same for all expressions that were compiled together."""
        if self.differentiable:
            return self._run(values)
        with torch.no_grad():
            return self._run({key: value.detach() for key, value in values.items()})

    def _run(self, values: Mapping[int, Tensor]) -> list[Tensor]:
        dtype, device = self._precision(values)
        slots = [_read(leaf, values, dtype) for leaf in self._inputs]
        slots.extend(self._on(dtype, device))
        for function, node, operands in self._calls:
            slots.append(function(node, *[slots[i] for i in operands]))
        # A constant is handed out as a copy: writing into it must not change the cache.
        pairs = zip(self._outputs, self.dependent, strict=True)
        return [slots[out] if dependent else slots[out].clone() for out, dependent in pairs]

    def _on(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """The constants in a real precision on a device; made once and kept."""
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
        if values and all(isinstance(value, Tensor) and value.dtype == torch.float64 for value in values.values()):
            return torch.float64, next(iter(values.values())).device
        given = [(leaf.name, values[leaf.id]) for leaf in self._leaves if leaf.id in values]
        for name, value in given:
            if not isinstance(value, Tensor):
                raise InputError(f"The value of {name} is a {type(value).__name__}; expected a torch.Tensor.")
            if value.dtype.to_real() not in (torch.float32, torch.float64):
                raise InputError(
                    f"The value of {name} has dtype {value.dtype}; expected float32 or float64 (or complex). "
                    "Convert it with .to()."
                )
        if not given:
            return torch.get_default_dtype(), torch.device("cpu")
        return reduce(torch.promote_types, [value.dtype.to_real() for _, value in given]), given[0][1].device


def _read(leaf: Input, values: Mapping[int, Tensor], dtype: torch.dtype) -> Tensor:
    if leaf.id not in values:
        raise InputError(f"No value for {leaf.name}: expected a tensor of shape {_expected(leaf)} under its id.")
    value = values[leaf.id]
    if value.ndim < len(leaf.shape) or value.shape[value.ndim - len(leaf.shape) :] != leaf.shape:
        raise InputError(
            f"The value of {leaf.name} has shape {tuple(value.shape)}; expected {_expected(leaf)}. "
            "Give the declared shape, after any batch dimensions."
        )
    wanted = dtype.to_complex() if value.is_complex() else dtype
    return value if value.dtype == wanted else value.to(wanted)


def _expected(leaf: Input) -> str:
    return f"(*batch{''.join(f', {d}' for d in leaf.shape)})"


def _tensor(value: Array, dtype: torch.dtype) -> Tensor:
    """A constant in the given real precision. Integer arrays are indices and stay integers."""
    kinds: dict[str, type] = {"i": np.int64, "f": np.float64, "c": np.complex128}
    if dtype == torch.float32:
        kinds |= {"f": np.float32, "c": np.complex64}
    return torch.from_numpy(value.astype(kinds[value.dtype.kind], copy=False))

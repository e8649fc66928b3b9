"""The inputs of declared functions: named, nested as the user likes, flattened to a list of tensors for the layer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from typing_extensions import TypeVar

from ddn_cvx.errors import DeclarationError, InputError
from ddn_cvx.program.base import ParameterSpec

Shape = tuple[int, ...]
V_co = TypeVar("V_co", bound=int | Shape | Mapping[str, Shape], covariant=True, default=Any)
"""How the variable is declared, for type checkers: the output is a tensor, or for a mapping a dict of tensors."""


def is_shape(value: object) -> bool:
    """A tuple (or ``torch.Size``) of nonnegative integers, ``()`` included."""
    return isinstance(value, tuple) and all(isinstance(k, int) and not isinstance(k, bool) and k >= 0 for k in value)


ONE_INSTANCE: ContextVar[bool] = ContextVar("one_instance", default=False)
"""Whether a declared function of one instance is running."""


class Arguments:
    """How the arguments of a call reach the functions.

    Parameters
    ----------
    parameters : None, sequence, mapping or "batched"
        Shapes of one instance, nested in dicts, lists and tuples as the functions expect them. A mapping names the inputs,
        and each function then takes those that it names. None: dimension 0 of every input is the batch, and calls from
        where an instance is likelier are refused; ``"batched"``: it is the batch wherever the call comes from.
    function : callable
        The one whose signature names the inputs when ``parameters`` does not.
    skip : int
        Leading arguments of ``function`` that are not inputs.
    """

    def __init__(self, parameters: Sequence[Any] | Mapping[str, Any] | None, function: Callable[..., Any], skip: int = 1):
        self.by_name = isinstance(parameters, Mapping)
        self.names = [str(k) for k in parameters] if isinstance(parameters, Mapping) else _names(function, skip)
        self.declared: list[tuple[list[ParameterSpec], Any]] | None = None
        self._batched = isinstance(parameters, str) and parameters == "batched"
        if parameters is None or self._batched:
            return
        if isinstance(parameters, str | Tensor) or not isinstance(parameters, Sequence | Mapping) or is_shape(parameters):
            raise DeclarationError(
                "parameters must be a list of shapes such as [(3,), (2, 3)], a dict of them, or 'batched'; "
                f"got {parameters!r}. A single input is [shape]."
            )
        values = list(parameters.values()) if isinstance(parameters, Mapping) else list(parameters)
        self.names = [self._name(k) for k in range(len(values))]
        self.declared = [shapes_of(name, tree) for name, tree in zip(self.names, values, strict=True)]

    @property
    def specs(self) -> tuple[ParameterSpec, ...]:
        """The declared inputs, flat; none if they were not declared."""
        return tuple(spec for specs, _ in self.declared or () for spec in specs)

    def _name(self, k: int) -> str:
        return self.names[k] if k < len(self.names) else f"input{k}"

    def match(self, args: Sequence[Any], named: Mapping[str, Any]) -> tuple[list[ParameterSpec], list[Tensor], Any]:
        """The specifications and tensors of a call, flat, and what puts them together again.

        Raises
        ------
        InputError
            Wrong count, name or nesting.
        DeclarationError
            Inputs of undeclared shapes in a function of one instance, or mapped by ``torch.func.vmap``: their first
            dimension need not be a batch there.
        """
        names = self.names if self.declared is not None else [self._name(k) for k in range(len(args))]
        trees = dict(zip(names, args, strict=False))
        if self.declared is not None and len(args) > len(names):
            raise InputError(f"Expected {len(names)} parameters ({', '.join(names)}), got {len(args)}.")
        for name, value in named.items():
            if name in trees:
                raise InputError(f"Parameter {name!r} was given twice, by position and by name.")
            if name not in self.names:
                raise InputError(f"Unknown parameter {name!r}; the parameters are {', '.join(self.names)}.")
            trees[name] = value
        order = [name for name in (self.names if named or self.declared is not None else names) if name in trees]
        if self.declared is not None and len(order) < len(names):
            missing = ", ".join(name for name in names if name not in trees)
            raise InputError(f"Expected {len(names)} parameters ({', '.join(names)}), got {len(order)}; missing: {missing}.")
        specs: list[ParameterSpec] = []
        tensors: list[Tensor] = []
        layout = []
        for k, name in enumerate(order):
            leaves, tree = pytree.tree_flatten(trees[name])
            if self.declared is None:
                inner = ONE_INSTANCE.get() and any(getattr(leaf, "ndim", 0) for leaf in leaves)
                if not self._batched and (inner or any(map(_is_mapped, leaves))):
                    place = "a function of one instance of another node" if inner else "torch.func.vmap"
                    raise DeclarationError(
                        f"A node whose input shapes are not declared got {name!r} inside {place}, where it would take the "
                        "first dimension for a batch; declare it with parameters=[shape, ...], or with "
                        "parameters='batched' if that is what it is."
                    )
                found = [_undeclared(_label(name, i, len(leaves)), leaf) for i, leaf in enumerate(leaves)]
            else:
                found, template = self.declared[k]
                expected = pytree.tree_structure(template)
                if tree != expected:
                    raise InputError(f"Parameter {name!r} must be nested as declared, {expected}; got {tree}.")
            specs += found
            tensors += leaves
            layout.append((name, tree))
        return specs, tensors, tuple(layout)

    def call(self, function: Callable[..., Any], first: Sequence[Any], tensors: Sequence[Tensor], layout: Any) -> Any:
        """``function(*first, inputs)`` with the inputs as they were nested."""
        trees, position = {}, 0
        for name, tree in layout:
            trees[name] = pytree.tree_unflatten(list(tensors[position : position + tree.num_leaves]), tree)
            position += tree.num_leaves
        if self.by_name:
            return function(*first, **{name: trees[name] for name in _accepted(function, len(first), trees)})
        return function(*first, *trees.values())


def variables_of(variable: Any) -> dict[str, Shape]:
    """The shape of each variable by name; a single one is called "y".

    Raises
    ------
    DeclarationError
    """
    given = variable if isinstance(variable, Mapping) else {"y": variable}
    shapes = {str(k): (v,) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in given.items()}
    for name, shape in shapes.items():
        if not is_shape(shape):
            raise DeclarationError(f"variable {name!r} must have a shape such as (3,) or (), got {shape!r}.")
    if not sum(math.prod(s) for s in shapes.values()):
        raise DeclarationError("variable must have at least one entry.")
    return {k: tuple(s) for k, s in shapes.items()}


def count_inputs(layout: Any) -> int:
    """How many tensors the inputs have in all."""
    return sum(tree.num_leaves for _, tree in layout)


def require_tensor(value: Any, name: str) -> None:
    """Refuse what a function of this name may not return.

    Raises
    ------
    DeclarationError
    """
    if not isinstance(value, Tensor):
        raise DeclarationError(f"{name} must return a torch.Tensor, got {type(value).__name__}.")
    if value.is_complex() or not value.is_floating_point():
        raise DeclarationError(f"{name} must return real floating-point numbers, got {value.dtype}.")


def shapes_of(name: str, tree: Any) -> tuple[list[ParameterSpec], Any]:
    """The shapes in a tree, and the tree with zeros in their place."""
    leaves, spec = pytree.tree_flatten(tree, is_leaf=is_shape)
    for leaf in leaves:
        if not is_shape(leaf):
            raise DeclarationError(
                f"parameters: {name!r} must be a shape, a tuple of integers such as (3,) or (), or dicts and lists of "
                f"them; got {leaf!r}."
            )
    specs = [ParameterSpec(_label(name, i, len(leaves)), tuple(s), False) for i, s in enumerate(leaves)]
    return specs, pytree.tree_unflatten([0] * len(leaves), spec)


def _is_mapped(value: Any) -> bool:
    """Whether ``torch.func.vmap`` has taken a dimension off a tensor."""
    functorch = torch._C._functorch
    while isinstance(value, Tensor) and functorch.is_functorch_wrapped_tensor(value):
        if functorch.is_batchedtensor(value):
            return True
        value = functorch.get_unwrapped(value)
    return False


def _undeclared(name: str, value: Any) -> ParameterSpec:
    if isinstance(value, Tensor) and value.ndim:
        return ParameterSpec(name, tuple(value.shape[1:]), False)
    got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(
        f"Parameter {name!r} must be a torch.Tensor whose dimension 0 is the batch, got {got}. "
        "Declare parameters=[shape, ...] to pass instances without a batch dimension."
    )


def _label(name: str, i: int, count: int) -> str:
    return name if count == 1 else f"{name}[{i}]"


def _names(function: Callable[..., Any], skip: int) -> list[str]:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # builtins have none
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in found if p.kind in positional][skip:]


def _accepted(function: Callable[..., Any], skip: int, names: Mapping[str, Any]) -> list[str]:
    """Of the named inputs those that a function takes.

    Raises
    ------
    DeclarationError
        It needs others.
    """
    target = getattr(function, "forward", function)
    try:
        found = list(inspect.signature(target).parameters.values())[skip:]
    except (TypeError, ValueError):
        return list(names)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [p.name for p in found if p.default is p.empty and p.kind not in several and p.name not in names]
    if missing:
        raise DeclarationError(
            f"A function of the problem takes {', '.join(map(repr, missing))}, and the inputs are {', '.join(names)}; "
            "name the same in parameters=."
        )
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found):
        return list(names)
    own = [p.name for p in found]
    return [name for name in names if name in own]

"""What the functions of a declaration refer to besides their arguments: weights of modules and captured tensors.

They are found by walking the functions (closures, globals they name, defaults, partial arguments, the objects that bound
methods belong to), and are then treated as further parameters of the problem. While a function runs, a
``TorchFunctionMode`` puts the values to differentiate with respect to in the place of the captured ones, by whatever
path the function reaches them. What has not been found shows itself, because its result requires grad although
none of the arguments does; that is an error, never a gradient dropped.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DEPTH = 6
"""How far attributes and containers are followed."""


_STAND_INS: ContextVar[Mapping[int, list[Tensor]] | None] = ContextVar("stand-ins for captured tensors", default=None)


class _Originals:
    """The tensors that functions refer to; a copy of the layer has the same functions, so it shares them."""

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = tuple(tensors)

    def __deepcopy__(self, memo: dict[int, object]) -> _Originals:
        return self


class Captured(nn.Module):
    """The tensors and modules that some functions capture, as a module: what requires grad is one of its parameters.

    Parameters
    ----------
    functions : mapping of name -> callable, tensor or anything that holds them
    """

    _held: dict[str, nn.Module | None]

    def __init__(self, functions: Mapping[str, object]):
        super().__init__()
        found = _Walk()
        for name, function in functions.items():
            found.visit(function, name, 0)
        self._paths: list[str | None] = []
        tensors = []
        for name, module in found.modules:
            registered = self._unused(name)
            self.add_module(registered, module)
            held = [*module.named_parameters(), *module.named_buffers()]
            for path, tensor in held:
                if tensor.is_floating_point():
                    tensors.append(tensor)
                    self._paths.append(f"{registered}.{path}")
        known = {id(t) for t in tensors}
        for name, tensor in found.tensors:
            if id(tensor) not in known and not _is_constant(tensor):
                known.add(id(tensor))
                tensors.append(tensor)
                self._paths.append(self._register(name, tensor))
        self._originals = _Originals(tensors)

    @property
    def _modules(self) -> dict[str, nn.Module | None]:
        """Without modules of which this one is a part, as where the functions are methods of the module that has the layer:
        as a part of its own part it would send ``train``, ``to`` and ``state_dict`` round for ever."""
        owners = {name for name, module in self._held.items() if module is not None and _is_part(self, module)}
        return {name: module for name, module in self._held.items() if name not in owners} if owners else self._held

    @_modules.setter
    def _modules(self, held: dict[str, nn.Module | None]) -> None:
        # Under both names: nn.Module looks for the first, and compilers take the first for the property above.
        self.__dict__.update(_modules=held, _held=held)

    def _register(self, name: str, tensor: Tensor) -> str | None:
        """The name under which a tensor becomes a parameter; None for a constant or the result of a computation."""
        if not (tensor.requires_grad and tensor.is_leaf):
            return None
        registered = self._unused(name)
        # A captured tensor stays the tensor it is, so that its owner sees the gradient: no new nn.Parameter.
        self._parameters[registered] = tensor  # type: ignore[assignment]  # a plain leaf serves as well
        return registered

    def _unused(self, name: str) -> str:
        name = name.replace(".", "_")
        taken = {*self._parameters, *self._modules, *self.__dict__, *dir(nn.Module)}
        return next(n for n in (name, *(f"{name}_{k}" for k in range(1, len(taken) + 2))) if n not in taken)

    def current(self) -> list[Tensor]:
        """Their values now, which ``torch.func.functional_call`` or a copy of the layer may have replaced."""
        pairs = zip(self._paths, self._originals.tensors, strict=True)
        return [original if path is None else self._lookup(path) for path, original in pairs]

    def values(self) -> list[Tensor]:
        """What a call is a function of: their values now, or what stands in for them."""
        return (_STAND_INS.get() or {}).get(id(self)) or self.current()

    @contextmanager
    def standing_in(self, values: Sequence[Tensor]) -> Iterator[None]:
        """While this context lasts, calls use these values in the place of the captured ones."""
        token = _STAND_INS.set({**(_STAND_INS.get() or {}), id(self): list(values)})
        try:
            yield
        finally:
            _STAND_INS.reset(token)

    def _lookup(self, path: str) -> Tensor:
        first, *rest = path.split(".")
        found: Any = self._held[first] if rest else getattr(self, first)
        for name in rest:
            found = getattr(found, name)
        return found

    def keys(self, current: Sequence[Tensor]) -> dict[int, int]:
        """``id`` of a tensor a function may meet -> its place in ``current``."""
        places = {id(t): k for k, t in enumerate(self._originals.tensors)}
        return places | {id(t): k for k, t in enumerate(current)}


def _is_part(module: nn.Module, of: nn.Module) -> bool:
    """Whether ``module`` is somewhere in ``of``."""
    left, seen = [of], {id(of)}
    while left:
        holder = left.pop()
        parts = holder._held if isinstance(holder, Captured) else holder._modules
        inside = [part for part in parts.values() if part is not None and id(part) not in seen]
        if any(part is module for part in inside):
            return True
        seen.update(map(id, inside))
        left += inside
    return False


def _is_constant(tensor: Tensor) -> bool:
    """In double precision and without gradient: it can be used as it is, which saves a look at every operation. Should it
    require grad later, that is noticed as a dependence that was not followed."""
    return tensor.dtype == torch.float64 and not tensor.requires_grad


class Substitute(TorchFunctionMode):
    """Replaces the tensors with the given ids by ``values`` in every torch call of the thread."""

    def __init__(self, places: dict[int, int], values: Sequence[Tensor]):
        super().__init__()
        self.values = {key: values[place] for key, place in places.items()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func`` with the replaced arguments."""
        new = tuple(self._replace(a) for a in args)
        return func(*new, **{k: self._replace(v) for k, v in kwargs.items()}) if kwargs else func(*new)

    def _replace(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.values.get(id(value), value)
        if type(value) in (list, tuple):
            return type(value)(self._replace(v) for v in value)
        return value


class _Walk:
    """Everything that can be reached from a function without running it."""

    def __init__(self) -> None:
        self.tensors: list[tuple[str, Tensor]] = []
        self.modules: list[tuple[str, nn.Module]] = []
        self._seen: dict[int, object] = {}

    def visit(self, value: object, name: str, depth: int) -> None:
        """Record ``value`` if it is a tensor or a module, else look inside."""
        if id(value) in self._seen or depth > DEPTH or isinstance(value, type | str | bytes | int | float | torch.device):
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            if value.is_floating_point():
                self.tensors.append((name, value))
        elif isinstance(value, nn.Module):
            self._module(value, name, depth)
        else:
            for inner, label in _inside(value, name):
                self.visit(inner, label, depth + 1)

    def _module(self, module: nn.Module, name: str, depth: int) -> None:
        self.modules.append((name, module))
        for part in module.modules():
            self._seen[id(part)] = part
            for held in (*part._parameters.values(), *part._buffers.values()):
                self._seen[id(held)] = held
            for label, attribute in part.__dict__.items():
                if not label.startswith("_"):
                    self.visit(attribute, label, depth + 1)
            self.visit(type(part).forward, "forward", depth + 1)


def _inside(value: object, name: str) -> Iterator[tuple[object, str]]:
    if isinstance(value, types.FunctionType):
        yield from _function(value)
    elif isinstance(value, types.MethodType):
        yield value.__self__, name
        yield value.__func__, name
    elif isinstance(value, functools.partial):
        yield value.func, name
        yield from ((a, f"{name}_{k}") for k, a in enumerate(value.args))
        yield from ((a, k) for k, a in value.keywords.items())
    elif isinstance(value, dict):
        yield from ((v, str(k)) for k, v in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((v, f"{name}_{k}") for k, v in enumerate(value))
    elif not _foreign(type(value)):
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict):  # objects of foreign languages answer to every name
            yield from ((v, k) for k, v in held.items())
        yield from ((getattr(value, k, None), k) for k in getattr(type(value), "__slots__", ()))
        yield type(value).__dict__.get("__call__"), name


def _function(function: types.FunctionType) -> Iterator[tuple[object, str]]:
    if _foreign(function):
        return
    code = function.__code__
    for label, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield cell.cell_contents, label
        except ValueError:  # a name that has no value yet
            continue
    loaded, attributes = _names(code)
    for label in sorted(loaded & function.__globals__.keys()):
        value = function.__globals__[label]
        if isinstance(value, types.ModuleType):
            inner = [(n, value.__dict__[n]) for n in sorted(attributes & value.__dict__.keys())]
            yield from ((v, n) for n, v in inner if isinstance(v, Tensor | nn.Module))
        else:
            yield value, label
    yield from ((v, "default") for v in function.__defaults__ or ())
    yield from ((v, k) for k, v in (function.__kwdefaults__ or {}).items())


def _names(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The globals and the attributes that a function reads, functions written inside it included."""
    loaded, attributes = set(), set()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            loaded.add(str(step.argval))
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(str(step.argval))
        elif isinstance(step.argval, types.CodeType):
            inner_loaded, inner_attributes = _names(step.argval)
            loaded |= inner_loaded
            attributes |= inner_attributes
    return loaded, attributes


def _foreign(thing: Any) -> bool:
    """Part of Python or of torch, which hold nothing of the user's."""
    package = (getattr(thing, "__module__", None) or "").split(".")[0]
    return package in ("builtins", "torch", "numpy", "scipy", "functools", "math")

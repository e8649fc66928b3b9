"""Functions of a variable and of the inputs of a layer: what fixed points, roots and differential equations have alike, and
below it what they share with ``TorchProblem``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ddn_cvx.declare.arguments import ONE_INSTANCE, Arguments, Shape, count_inputs, require_tensor, variables_of
from ddn_cvx.declare.capture import Captured, Substitute
from ddn_cvx.errors import DeclarationError
from ddn_cvx.program.base import ParameterSpec
from ddn_cvx.program.nonlinear import Theta

Function = Callable[..., Any]
Value = float | Tensor | Mapping[str, Any] | Function


class Functions:
    """The variable, the inputs, and the functions of both.

    Parameters
    ----------
    variable : int, tuple of int, or dict of name -> tuple
    functions : mapping of name -> callable
        The first one names the inputs.
    parameters : None, sequence or mapping of shapes
    batched : bool
        The functions take and return a batch.
    dtype : torch.dtype
        In which everything is computed.
    skip : int
        Arguments of the first function before the inputs.
    held : mapping
        Further values that may capture tensors.

    Attributes
    ----------
    hidden : int
        How many of the first inputs the functions do not get.
    """

    hidden = 0

    def __init__(
        self,
        variable: int | Shape | Mapping[str, Shape],
        functions: Mapping[str, Function],
        parameters: Sequence[Any] | Mapping[str, Any] | None,
        batched: bool,
        dtype: torch.dtype,
        skip: int = 1,
        held: Mapping[str, Any] | None = None,
    ):
        for name, function in functions.items():
            if not callable(function):
                raise DeclarationError(f"{name} must be callable, got {type(function).__name__}.")
        if dtype not in (torch.float32, torch.float64):
            raise DeclarationError(f"dtype must be torch.float64 or torch.float32, got {dtype}.")
        self.bare = not isinstance(variable, Mapping)
        self.shapes = variables_of(variable)
        self.n = sum(math.prod(s) for s in self.shapes.values())
        first = next(iter(functions.values()))
        self.arguments = Arguments(parameters, getattr(first, "forward", first), skip)
        self.functions, self.batched, self.dtype = dict(functions), batched, dtype
        self.captured = Captured({**functions, **(held or {})})
        self._probed: set[Any] = set()

    def theta(self, values: Sequence[Tensor], device: torch.device) -> Theta:
        """The inputs ``(B, *shape)`` and everything captured; differentiable."""
        own = [v.to(self.dtype) for v in values]
        shared = [t.to(device=device, dtype=self.dtype) for t in self.captured.values()]
        return Theta((*own, *shared), (True,) * len(own) + (False,) * len(shared))

    def unpack(self, y: Tensor) -> dict[str, Tensor]:
        """``(*batch, n)`` -> ``(*batch, *shape)`` by name."""
        return unpack(self.shapes, y)

    def given(self, y: Tensor) -> Any:
        """The variable as the functions get it."""
        variable = self.unpack(y)
        return next(iter(variable.values())) if self.bare else variable

    def evaluate(
        self, name: str, first: Sequence[Tensor], y: Tensor, theta: Theta, layout: Any, like_variable: bool
    ) -> Tensor:
        """``function(*first, y, *inputs)`` for the batch, as ``(B, n)``.

        ``like_variable`` says that the result has the names and shapes of the variable; else it has n numbers.

        Raises
        ------
        DeclarationError
            The function cannot be evaluated, or returns something else.
        """
        count = len(first)

        def one(*tensors: Tensor) -> Tensor:
            *before, y = tensors[: count + 1]
            inputs = tensors[count + 1 :]
            with self.substitute(inputs):
                value = self.call(self.functions[name], (*before, self.given(y)), inputs, layout)
                lead = tuple(y.shape[:-1])
                return self.pack(value, name, lead) if like_variable else self._stack(value, name, lead)

        own = (*(t.ndim > 0 for t in first), True, *theta.batched)
        return self.over_batch(one, (*first, y, *theta.tensors), own)

    def probe(self, name: str, evaluate: Callable[[Tensor, Theta], Tensor], theta: Theta, layout: Any) -> None:
        """Run a function of the batch once for inputs of each shape.

        Raises
        ------
        DeclarationError
            It cannot be evaluated, does not depend on the variable, or mixes the elements of the batch.
        """
        key = (name, str(layout), tuple(t.shape[own:] for t, own in zip(theta.tensors, theta.batched, strict=True)))
        if key in self._probed:
            return
        device = theta.tensors[0].device if theta.tensors else None
        alone = theta.detach().take(torch.zeros(1, dtype=torch.int64, device=device))
        other = [1.1 * t + 0.01 if own else t for t, own in zip(alone.tensors, alone.batched, strict=True)]
        pairs = zip(alone.tensors, other, alone.batched, strict=True)
        both = Theta(tuple(torch.cat((a, b)) if own else a for a, b, own in pairs), alone.batched)
        y = torch.tensor([[0.5], [0.7]], dtype=self.dtype, device=device).expand(2, self.n)
        with torch.enable_grad():
            point = y[:1].clone().requires_grad_()
            try:
                found = evaluate(point, alone)
                torch.func.grad(lambda y: evaluate(y, alone).sum())(point.detach())
            except RuntimeError as error:
                raise DeclarationError(
                    f"{name} cannot be evaluated: {error}\nA function of one instance is vmapped: write it without .item(), "
                    ".numpy(), data-dependent control flow and in-place writes, or write it for a batch and pass "
                    "batched=True. An autograd.Function needs setup_context."
                ) from error
        if not found.requires_grad:
            raise DeclarationError(
                f"{name} does not depend on the variable. Compute it from its first argument by differentiable torch "
                "operations, without .detach(), .item() or numpy."
            )
        close = dict(rtol=1e-6, atol=1e-9) if self.dtype == torch.float64 else dict(rtol=1e-3, atol=1e-5)
        if self.batched and not torch.allclose(evaluate(y, both)[:1], found, equal_nan=True, **close):
            raise DeclarationError(f"{name} mixes the elements of the batch: each may only depend on its own row.")
        self._probed.add(key)

    def over_batch(self, function: Function, tensors: Sequence[Tensor], own: Sequence[bool]) -> Tensor:
        """``function`` of a batch, of which some tensors are shared."""
        found: Tensor = over_batch(function, tensors, own, self.captured, self.batched)
        return found

    def substitute(self, tensors: Sequence[Tensor]) -> Any:
        """While this context lasts, the last of ``tensors`` stand for what the functions capture."""
        return substitute(self.captured, tensors)

    def value(self, given: Value | None, name: str, theta: Theta, layout: Any, batch: int) -> Tensor:
        """A number, a tensor, a dict or a function of the inputs, as the variable of each element, ``(B, n)``."""
        device = theta.tensors[0].device if theta.tensors else None
        if given is None:
            return torch.zeros(batch, self.n, dtype=self.dtype, device=device)
        function = given if callable(given) else None

        def one(*tensors: Tensor) -> Tensor:
            lead = (batch,) if self.batched else ()
            with self.substitute(tensors):
                if function is None:
                    return self._broadcast(given, name, device, ())
                return self._broadcast(self.call(function, (), tensors, layout), name, device, lead)

        found = one(*theta.tensors) if function is None else self.over_batch(one, theta.tensors, theta.batched)
        return found.expand(batch, self.n)

    def call(self, function: Function, first: Sequence[Any], tensors: Sequence[Tensor], layout: Any) -> Any:
        """``function(*first, inputs)`` with the inputs as they were nested, without the hidden ones."""
        own = tensors[count_inputs(layout[: self.hidden]) : count_inputs(layout)]
        return self.arguments.call(function, first, own, layout[self.hidden :])

    def pack(self, value: Any, name: str, lead: tuple[int, ...]) -> Tensor:
        """A value with the names and shapes of the variable, flat."""
        parts = []
        for key, part in self._by_variable(value, name).items():
            require_tensor(part, name)
            expected = (*lead, *self.shapes[key])
            if tuple(part.shape) != expected:
                raise DeclarationError(f"{name} must return shape {expected}, like the variable, got {tuple(part.shape)}.")
            parts.append(part.reshape(*lead, math.prod(self.shapes[key])).to(self.dtype))
        return torch.cat(parts, -1)

    def _stack(self, value: Any, name: str, lead: tuple[int, ...]) -> Tensor:
        parts = flat(pytree.tree_leaves(value), name, lead, self.dtype)
        count = sum(p.shape[-1] for p in parts)
        if count != self.n:
            raise DeclarationError(f"{name} must return as many equations as there are unknowns, {self.n}, got {count}.")
        return torch.cat(parts, -1)

    def _broadcast(self, value: Any, name: str, device: torch.device | None, lead: tuple[int, ...]) -> Tensor:
        if not self.bare and not isinstance(value, Mapping | Tensor):
            value = dict.fromkeys(self.shapes, value)
        return broadcast(self._by_variable(value, name), self.shapes, name, lead, self.dtype, device)

    def _by_variable(self, value: Any, name: str) -> dict[str, Any]:
        if self.bare:
            return {"y": value}
        if not isinstance(value, Mapping) or set(value) != set(self.shapes):
            got = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise DeclarationError(f"{name} must be a dict with the variables {', '.join(self.shapes)}; got {got}.")
        return {k: value[k] for k in self.shapes}


class OfFunctions:
    """A problem that is stated by ``functions``: what a layer asks of it."""

    functions: Functions

    @property
    def arguments(self) -> Arguments:
        """The inputs of the layer."""
        return self.functions.arguments

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """The declared inputs, flat; none if they were not declared."""
        return self.arguments.specs

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of the variables, by name."""
        return self.functions.shapes

    @property
    def bare(self) -> bool:
        """Whether there is one variable, without a name."""
        return self.functions.bare

    @property
    def captured(self) -> Captured:
        """What the functions refer to besides their arguments."""
        return self.functions.captured


def unpack(shapes: Mapping[str, Shape], y: Tensor) -> dict[str, Tensor]:
    """``(*batch, n)`` -> ``(*batch, *shape)`` by name."""
    parts = y.split([math.prod(s) for s in shapes.values()], dim=-1)
    return {k: p.reshape((*y.shape[:-1], *s)) for (k, s), p in zip(shapes.items(), parts, strict=True)}


def over_batch(function: Function, tensors: Sequence[Tensor], own: Sequence[bool], captured: Captured, batched: bool) -> Any:
    """``function`` of a batch, of which some tensors are shared; the last of them are what was captured.

    Raises
    ------
    DeclarationError
        A function of a batch captures something that has a batch dimension itself.
    """
    if not batched:
        token = ONE_INSTANCE.set(True)
        try:
            return torch.vmap(function, tuple(0 if b else None for b in own))(*tensors) if any(own) else function(*tensors)
        finally:
            ONE_INSTANCE.reset(token)
    if any(own[len(own) - len(captured.current()) :]):
        raise DeclarationError(
            "Captured weights with a batch dimension (torch.func.vmap over them) need functions of one instance; "
            "drop batched=True."
        )
    return function(*tensors)


def substitute(captured: Captured, tensors: Sequence[Tensor]) -> Any:
    """While this context lasts, the last of ``tensors`` stand for what the functions capture."""
    current = captured.current()
    return Substitute(captured.keys(current), tensors[len(tensors) - len(current) :]) if current else nullcontext()


def flat(leaves: Sequence[Any], name: str, lead: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """What a function returned, ``(*lead, k)`` each.

    Raises
    ------
    DeclarationError
        Something else than tensors with these leading dimensions.
    """
    parts = []
    for leaf in leaves:
        require_tensor(leaf, name)
        if tuple(leaf.shape[: len(lead)]) != lead:
            raise DeclarationError(f"{name} must return shape ({lead[0]}, ...) for a batch, got {tuple(leaf.shape)}.")
        parts.append(leaf.reshape(*lead, math.prod(leaf.shape[len(lead) :])).to(dtype))
    return parts


def broadcast(
    values: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    name: str,
    lead: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | None,
) -> Tensor:
    """A value for each variable, broadcast to its shape, ``(*lead, n)``.

    Raises
    ------
    DeclarationError
        One does not broadcast.
    """
    parts = []
    for key, part in values.items():
        shape = (*lead, *shapes[key])
        tensor = numbers(part, name, dtype, device)
        try:
            parts.append(tensor.expand(shape).reshape(*lead, math.prod(shapes[key])))
        except RuntimeError:
            got = tuple(tensor.shape)
            raise DeclarationError(f"{name} must broadcast to shape {shape} of the variable, got {got}.") from None
    return torch.cat(parts, -1)


def numbers(value: Any, name: str, dtype: torch.dtype, device: torch.device | None, dim: int = 0) -> Tensor:
    """A number, a tensor, or a list of these along ``dim``, as a tensor: numbers are rounded once, to ``dtype``, and tensors
    keep their derivatives.

    Raises
    ------
    DeclarationError
        It is something else.
    """
    try:
        if isinstance(value, Tensor):
            return value.to(device=device, dtype=dtype)
        if isinstance(value, list | tuple) and any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)):
            parts = [numbers(part, name, dtype, device, dim) for part in value]
            return torch.stack(torch.broadcast_tensors(*parts), dim)
        return torch.as_tensor(value, dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DeclarationError(f"{name} must be a number, a tensor or a list of these, got {value!r}: {error}") from error

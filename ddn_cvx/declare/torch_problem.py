"""An optimisation problem written as plain torch functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ddn_cvx.declare.arguments import Arguments, Shape, is_shape
from ddn_cvx.declare.capture import Captured, Substitute
from ddn_cvx.errors import DeclarationError
from ddn_cvx.program.base import ParameterSpec
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta

STEPS = {"round", "floor", "ceil", "trunc", "sign"}
"""Operations with a zero derivative."""
Function = Callable[..., Any]
Bounds = float | Tensor | Mapping[str, Any] | Function


class TorchProblem:
    """``minimise objective  s.t.  equality = 0,  inequality <= 0,  lower <= y <= upper``, in torch.

    The functions take the variable first, then the inputs of the layer: ``objective(y, *inputs)``. They are written for one
    instance and vmapped, or with ``batched=True`` for a whole batch. They may be ``nn.Module`` objects and may refer to
    other tensors: whatever requires grad becomes a parameter of the layer.

    Parameters
    ----------
    variable : tuple of int, int, or dict of name -> tuple
        Shape of the variable, ``(*shape)`` without the batch. A dict declares several, which the functions get as a dict and
        the layer returns as one.
    objective : callable
        Returns a scalar (batched: ``(B,)``).
    equality, inequality : callable, optional
        Return a tensor of any shape, or lists or dicts of tensors (batched: leading dimension B).
    lower, upper : number, tensor, dict, or callable of the inputs, optional
        Bounds that broadcast to the variable's shape; infinite where there is none. Differentiable.
    initial : number, tensor, dict, or callable of the inputs, optional
        Where the solver starts. Default: zero, moved inside the bounds.
    solve : callable, optional
        Your own solver: ``solve(*inputs)`` gets the whole batch, ``(B, *shape)`` float64 each and detached, and returns the
        variable ``(B, *shape)``. NaN in an element means that it has no solution. What it returns is polished, checked
        and differentiated like any other answer.
    parameters : list or dict of shapes, optional
        Shapes of one instance of each input, possibly nested; inputs then have any leading batch dimensions, and those
        without are shared. With a dict every function takes the inputs that it names. Default: dimension 0 of every
        input is the batch.
    batched : bool
        The functions take and return a batch. Each element may only depend on its own row.
    maximise : bool
        Maximise the objective.
    stationary : bool
        Accept any stationary point, also saddle points and maxima, for which ``solve`` may be asked.

    Raises
    ------
    DeclarationError
        An argument is not what it has to be.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> node = ddn.TorchProblem(
    ...     variable=(2,), objective=lambda y, x: ((y - x) ** 2).sum(), equality=lambda y, x: (y * y).sum() - 1
    ... )
    >>> ddn.DeclarativeLayer(node)(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    def __init__(
        self,
        variable: int | Shape | Mapping[str, Shape],
        objective: Function,
        equality: Function | None = None,
        inequality: Function | None = None,
        *,
        lower: Bounds | None = None,
        upper: Bounds | None = None,
        initial: Bounds | None = None,
        solve: Function | None = None,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        batched: bool = False,
        maximise: bool = False,
        stationary: bool = False,
    ):
        functions = {"objective": objective, "equality": equality, "inequality": inequality, "solve": solve}
        for name, function in functions.items():
            if not callable(function) and (function is not None or name == "objective"):
                raise DeclarationError(f"{name} must be callable, got {type(function).__name__}.")
        self.bare = not isinstance(variable, Mapping)
        self.shapes = _variables(variable)
        self.n = sum(math.prod(s) for s in self.shapes.values())
        self.arguments = Arguments(parameters, getattr(objective, "forward", objective))
        self.batched, self.sign, self.stationary = batched, -1.0 if maximise else 1.0, stationary
        self.functions: dict[str, Function] = {k: v for k, v in functions.items() if v is not None}
        self.fields = {"lower": lower, "upper": upper, "initial": initial}
        self.captured = Captured({**functions, "lower": lower, "upper": upper})
        self._programs: dict[Any, NonlinearProgram] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Programs refer to this very object and are built again."""
        return {**self.__dict__, "_programs": {}}

    # ---------------------------------------------------------------- what a call needs

    def theta(self, values: Sequence[Tensor], device: torch.device) -> Theta:
        """The inputs ``(B, *shape)`` and everything captured, in double precision; differentiable."""
        shared = [t.to(device=device, dtype=torch.float64) for t in self.captured.current()]
        return Theta((*values, *shared), (True,) * len(values) + (False,) * len(shared))

    def program(self, theta: Theta, layout: Any) -> NonlinearProgram:
        """The program for inputs of these shapes.

        Raises
        ------
        DeclarationError
            A function does not return what it has to.
        """
        key = (str(layout), tuple(t.shape[own:] for t, own in zip(theta.tensors, theta.batched, strict=True)))
        if key not in self._programs:
            self._programs[key] = self._build(theta, layout)
        return self._programs[key]

    def start(self, theta: Theta, layout: Any, like: Tensor) -> Tensor | None:
        """The declared initial point ``(B, n)``, if there is one."""
        return None if self.fields["initial"] is None else self._field("initial", 0.0, theta, layout, like).expand_as(like)

    def solve(self, theta: Theta, layout: Any, like: Tensor) -> Tensor:
        """The answer of the user's own solver, ``(B, n)``."""
        count = _inputs(layout)
        with torch.no_grad(), self._substitute(theta.tensors):
            answer = self.arguments.call(self.functions["solve"], (), theta.tensors[:count], layout)
        return self._pack(answer, "solve", like)

    def unpack(self, y: Tensor) -> dict[str, Tensor]:
        """``(*batch, n)`` -> ``(*batch, *shape)`` by name."""
        parts = y.split([math.prod(s) for s in self.shapes.values()], dim=-1)
        return {k: p.reshape((*y.shape[:-1], *s)) for (k, s), p in zip(self.shapes.items(), parts, strict=True)}

    # ---------------------------------------------------------------- plain torch

    def _build(self, theta: Theta, layout: Any) -> NonlinearProgram:
        def one(y: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            variable = self.unpack(y)
            first = next(iter(variable.values())) if self.bare else variable
            inputs = tensors[: _inputs(layout)]
            with self._substitute(tensors):
                found = {
                    name: self.arguments.call(function, (first,), inputs, layout)
                    for name, function in self.functions.items()
                    if name != "solve"
                }
                f = self._scalar(found["objective"], y)
                h, g = (self._stack(found.get(name), name, y) for name in ("equality", "inequality"))
            return self.sign * f, h, g

        def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
            return self._over_batch(one, (y, *theta.tensors), (True, *theta.batched))

        def box(theta: Theta) -> tuple[Tensor, Tensor]:
            like = theta.tensors[0] if theta.tensors else torch.zeros((), dtype=torch.float64)
            lower = self._field("lower", -torch.inf, theta, layout, like)
            return lower, self._field("upper", torch.inf, theta, layout, like)

        h, g = self._probe(evaluate, theta)
        bounded = self.fields["lower"] is not None or self.fields["upper"] is not None
        return NonlinearProgram(self.n, h.shape[1], g.shape[1], evaluate, box if bounded else None)

    def _probe(self, evaluate: Any, theta: Theta) -> tuple[Tensor, Tensor]:
        """Run the functions once: shapes, and dependence on the variable."""
        own = [t for t, batched in zip(theta.tensors, theta.batched, strict=True) if batched]
        count = min(len(own[0]), 2) if own else 1
        device = theta.tensors[0].device if theta.tensors else None
        few = theta.detach().take(torch.arange(count, device=device))
        with torch.enable_grad():
            y = torch.full((count, self.n), 0.5, dtype=torch.float64, device=device).requires_grad_()
            try:
                f, h, g = evaluate(y, few)
                torch.func.grad(lambda y: sum(t.sum() for t in evaluate(y, few)))(y.detach())
            except RuntimeError as error:
                raise DeclarationError(
                    f"The functions of the problem cannot be evaluated: {error}\nFunctions of one instance are vmapped: "
                    "write them without .item(), .numpy(), data-dependent control flow and in-place writes, or write them "
                    "for a batch and pass batched=True. An autograd.Function needs setup_context."
                ) from error
            for name, value in (("objective", f), ("equality", h), ("inequality", g)):
                if value.numel():
                    _require_derivative(name, value, y)
        if self.batched:
            self._require_independent(evaluate, few)
        return h, g

    def _require_independent(self, evaluate: Any, theta: Theta) -> None:
        """Two different rows together must give what they give alone."""
        row = theta.take(torch.zeros(1, dtype=torch.int64))
        other = Theta(
            tuple(t * 1.1 + 0.01 if own else t for t, own in zip(row.tensors, row.batched, strict=True)), row.batched
        )
        pairs = zip(row.tensors, other.tensors, row.batched, strict=True)
        both = Theta(tuple(torch.cat((a, b)) if own else a for a, b, own in pairs), row.batched)
        y = torch.tensor([[0.5], [0.7]], dtype=torch.float64, device=row.tensors[0].device if row.tensors else None)
        y = y.expand(2, self.n)
        together, alone = evaluate(y, both), evaluate(y[:1], row)
        for name, a, b in zip(("objective", "equality", "inequality"), together, alone, strict=True):
            if not torch.allclose(a[:1], b, rtol=1e-6, atol=1e-9, equal_nan=True):
                raise DeclarationError(f"{name} mixes the elements of the batch: each may only depend on its own row.")

    def _over_batch(self, function: Function, tensors: Sequence[Tensor], own: Sequence[bool]) -> Any:
        if not self.batched:
            return torch.vmap(function, tuple(0 if b else None for b in own))(*tensors)
        count = len(tensors) - len(self.captured.current())
        if any(own[count:]):
            raise DeclarationError(
                "Captured weights with a batch dimension (torch.func.vmap over them) need functions of one instance; "
                "drop batched=True."
            )
        return function(*tensors)

    def _substitute(self, tensors: Sequence[Tensor]) -> Any:
        current = self.captured.current()
        if not current:
            return nullcontext()
        return Substitute(self.captured.keys(current), tensors[len(tensors) - len(current) :])

    def _scalar(self, value: Any, y: Tensor) -> Tensor:
        _require_tensor(value, "objective")
        expected = tuple(y.shape[:-1])
        if value.numel() != math.prod(expected) or (self.batched and tuple(value.shape[:1]) != expected):
            what = f"shape {expected}, one number for each element" if self.batched else "a scalar"
            raise DeclarationError(f"objective must return {what}, got shape {tuple(value.shape)}.")
        return value.reshape(expected).to(torch.float64)

    def _stack(self, value: Any, name: str, y: Tensor) -> Tensor:
        """Whatever a constraint returns, as ``(r,)``, or ``(B, r)`` when batched."""
        lead = tuple(y.shape[:-1])
        parts = []
        for leaf in pytree.tree_leaves(value):
            if leaf is None:
                continue
            _require_tensor(leaf, name)
            if tuple(leaf.shape[: len(lead)]) != lead:
                raise DeclarationError(f"{name} must return shape ({lead[0]}, ...) for a batch, got {tuple(leaf.shape)}.")
            parts.append(leaf.reshape(*lead, math.prod(leaf.shape[len(lead) :])).to(torch.float64))
        if not parts:
            return y.new_zeros(*lead, 0)
        return torch.cat(parts, -1)

    def _field(self, name: str, otherwise: float, theta: Theta, layout: Any, like: Tensor) -> Tensor:
        """A bound or the initial point, ``(n,)`` or ``(B, n)``."""
        given = self.fields[name]
        if given is None:
            return torch.full((self.n,), otherwise, dtype=torch.float64, device=like.device)
        if not callable(given):
            with self._substitute(theta.tensors):
                return self._pack_constant(given, name, otherwise, like.device)

        def one(*tensors: Tensor) -> Tensor:
            with self._substitute(tensors):
                value = self.arguments.call(given, (), tensors[: _inputs(layout)], layout)
                if self.batched:
                    return self._pack_constant(value, name, otherwise, like.device, (len(tensors[0]),))
                return self._pack_constant(value, name, otherwise, like.device)

        found: Tensor = self._over_batch(one, theta.tensors, theta.batched) if any(theta.batched) else one(*theta.tensors)
        return found

    def _pack_constant(
        self, value: Any, name: str, otherwise: float, device: torch.device, lead: tuple[int, ...] = ()
    ) -> Tensor:
        """A value for each variable, broadcast to its shape; ``otherwise`` for variables without one."""
        parts = []
        for key, part in self._by_variable(value, name, otherwise).items():
            shape = (*lead, *self.shapes[key])
            tensor = torch.as_tensor(part, dtype=torch.float64, device=device)
            try:
                parts.append(tensor.expand(shape).reshape(*lead, math.prod(self.shapes[key])))
            except RuntimeError:
                got = tuple(tensor.shape)
                raise DeclarationError(f"{name} must broadcast to shape {shape} of the variable, got {got}.") from None
        return torch.cat(parts, -1)

    def _pack(self, value: Any, name: str, like: Tensor) -> Tensor:
        """What ``solve`` returned, ``(B, n)``."""
        parts = []
        for key, part in self._by_variable(value, name, None).items():
            tensor = torch.as_tensor(part, dtype=torch.float64, device=like.device).detach()
            expected = (len(like), *self.shapes[key])
            if tuple(tensor.shape) != expected:
                raise DeclarationError(f"{name} must return shape {expected}, got {tuple(tensor.shape)}.")
            parts.append(tensor.reshape(len(like), -1))
        return torch.cat(parts, -1)

    def _by_variable(self, value: Any, name: str, otherwise: float | None) -> dict[str, Any]:
        if self.bare:
            return {"y": value}
        if not isinstance(value, Mapping):
            if otherwise is not None and not isinstance(value, Tensor):
                return dict.fromkeys(self.shapes, value)
            raise DeclarationError(f"{name} must be a dict with the names of the variables, got {type(value).__name__}.")
        unknown = [str(k) for k in value if k not in self.shapes]
        missing = [k for k in self.shapes if k not in value]
        if unknown or (missing and otherwise is None):
            raise DeclarationError(
                f"{name} must name the variables {', '.join(self.shapes)}; got {', '.join(map(str, value))}."
            )
        return {k: value.get(k, otherwise) for k in self.shapes}

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """The declared inputs, flat; none if they were not declared."""
        return tuple(spec for specs, _ in self.arguments.declared or () for spec in specs)


def _variables(variable: Any) -> dict[str, Shape]:
    given = variable if isinstance(variable, Mapping) else {"y": variable}
    shapes = {str(k): (v,) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in given.items()}
    for name, shape in shapes.items():
        if not is_shape(shape):
            raise DeclarationError(f"variable {name!r} must have a shape such as (3,) or (), got {shape!r}.")
    if not sum(math.prod(s) for s in shapes.values()):
        raise DeclarationError("variable must have at least one entry.")
    return {k: tuple(s) for k, s in shapes.items()}


def _require_derivative(name: str, value: Tensor, y: Tensor) -> None:
    """Refuse what does not depend on the variable, or only through steps, whose derivative is zero wherever it exists."""
    hint = "Compute it from its first argument by differentiable torch operations, without .detach(), .item() or numpy."
    if not value.requires_grad:
        raise DeclarationError(f"{name} does not depend on the variable. {hint}")
    (slope,) = torch.autograd.grad(value.sum(), y, retain_graph=True, materialize_grads=True)
    steps = sorted(_operations(value) & STEPS)
    if steps and not bool(slope.any()):
        raise DeclarationError(
            f"{name} has no derivative: it depends on the variable through {', '.join(steps)} alone. {hint}"
        )


def _operations(value: Tensor) -> set[str]:
    """The names of the operations that a result comes from."""
    found: dict[Any, str] = {}
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = node.name().removesuffix("0").removesuffix("Backward").lower()
            waiting += [inner for inner, _ in node.next_functions]
    return set(found.values())


def _inputs(layout: Any) -> int:
    return sum(tree.num_leaves for _, tree in layout)


def _require_tensor(value: Any, name: str) -> None:
    if not isinstance(value, Tensor):
        raise DeclarationError(f"{name} must return a torch.Tensor, got {type(value).__name__}.")
    if value.is_complex() or not value.is_floating_point():
        raise DeclarationError(f"{name} must return real floating-point numbers, got {value.dtype}.")

"""An optimisation problem written as plain torch functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ddn_cvx.declare.arguments import Arguments, V_co, count_inputs, require_tensor, variables_of
from ddn_cvx.declare.capture import Captured
from ddn_cvx.declare.functions import broadcast, flat, over_batch, substitute, unpack
from ddn_cvx.declare.probe import few, probe
from ddn_cvx.declare.smooth import Smooth
from ddn_cvx.errors import DeclarationError
from ddn_cvx.program.base import ParameterSpec
from ddn_cvx.program.nonlinear import Loss, NonlinearProgram, Residuals, Theta

Function = Callable[..., Any]
Bounds = float | Tensor | Mapping[str, Any] | Function


class TorchProblem(Generic[V_co]):
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
    residual : callable, optional
        In place of the objective, which then is ``sum(loss(residual))``; returns what a constraint may return. Without
        constraints Levenberg and Marquardt's method solves it.
    loss : RobustLoss, optional
        Of the residuals. Default: half the square.
    lower, upper : number, tensor, dict, or callable of the inputs, optional
        Bounds that broadcast to the variable's shape; infinite where there is none. Differentiable.
    initial : number, tensor, dict, or callable of the inputs, optional
        Where the solver starts. Default: zero, moved inside the bounds.
    solve : callable, optional
        Your own solver: ``solve(*inputs)`` gets the whole batch, ``(B, *shape)`` float64 each and detached, and returns the
        variable ``(B, *shape)``. NaN in an element means that it has no solution. What it returns is polished, checked
        and differentiated like any other answer.
    parameters : list or dict of shapes, or "batched", optional
        Shapes of one instance of each input, possibly nested; inputs then have any leading batch dimensions, and those
        without are shared. With a dict every function takes the inputs that it names. Default: dimension 0 of every
        input is the batch, and ``torch.func.vmap`` over the layer is an error, for it takes dimensions away.
        ``"batched"``: dimension 0 is the batch there, too.
    batched : bool
        The functions take and return a batch. Each element may only depend on its own row.
    maximise : bool
        Maximise the objective.
    stationary : bool
        Accept any stationary point, also saddle points and maxima, for which ``solve`` may be asked.
    smooth : float, optional
        Width over which kinks (abs, relu, clamp, maximum, amax, norm ...) of the objective and the constraints are rounded
        off; the problem that is solved is the smooth one.
    matrices : bool, optional
        Whether Hessians and Jacobians are formed; else derivatives come from products with them, which suits many variables
        with a cheap objective. Default: up to 1000 variables and constraints.

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
        variable: V_co,
        objective: Function | None = None,
        equality: Function | None = None,
        inequality: Function | None = None,
        *,
        residual: Function | None = None,
        loss: Loss | None = None,
        lower: Bounds | None = None,
        upper: Bounds | None = None,
        initial: Bounds | None = None,
        solve: Function | None = None,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        batched: bool = False,
        maximise: bool = False,
        stationary: bool = False,
        smooth: float | None = None,
        matrices: bool | None = None,
    ):
        functions = {
            "objective": objective,
            "residual": residual,
            "equality": equality,
            "inequality": inequality,
            "solve": solve,
        }
        for name, function in functions.items():
            if function is not None and not callable(function):
                raise DeclarationError(f"{name} must be callable, got {type(function).__name__}.")
        if smooth is not None and not (isinstance(smooth, int | float) and smooth > 0):
            raise DeclarationError(f"smooth must be a positive width, got {smooth!r}.")
        leading = objective if residual is None else residual
        if leading is None or (objective is not None and residual is not None):
            raise DeclarationError("Give either an objective or a residual.")
        if residual is None and loss is not None:
            raise DeclarationError("loss is for residuals; give residual= in place of the objective.")
        if residual is not None and maximise:
            raise DeclarationError("A sum of losses of residuals is minimised; drop maximise=True or give an objective.")
        self.bare = not isinstance(variable, Mapping)
        self.shapes = variables_of(variable)
        self.n = sum(math.prod(s) for s in self.shapes.values())
        self.arguments = Arguments(parameters, getattr(leading, "forward", leading))
        self.loss, self.batched, self.sign, self.stationary = loss, batched, -1.0 if maximise else 1.0, stationary
        self.functions: dict[str, Function] = {k: v for k, v in functions.items() if v is not None}
        self.smooth, self.matrices = smooth, matrices
        self.fields = {"lower": lower, "upper": upper, "initial": initial}
        self.captured = Captured({**functions, "lower": lower, "upper": upper})
        self._programs: dict[Any, NonlinearProgram] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Programs refer to this very object and are built again."""
        return {**self.__dict__, "_programs": {}}

    # ---------------------------------------------------------------- what a call needs

    def theta(self, values: Sequence[Tensor], device: torch.device) -> Theta:
        """The inputs ``(B, *shape)`` and everything captured, in double precision; differentiable."""
        shared = [t.to(device=device, dtype=torch.float64) for t in self.captured.values()]
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

    def start(self, theta: Theta, layout: Any, like: Tensor) -> Tensor:
        """The declared initial point ``(B, n)``; ``like`` if there is none."""
        if self.fields["initial"] is None:
            return like
        return self._field("initial", 0.0, theta.detach(), layout, like).expand_as(like)

    def solve(self, theta: Theta, layout: Any, like: Tensor) -> Tensor:
        """The answer of the user's own solver, ``(B, n)``."""
        count = count_inputs(layout)
        with torch.no_grad(), substitute(self.captured, theta.tensors):
            answer = self.arguments.call(self.functions["solve"], (), theta.tensors[:count], layout)
        return self._pack(answer, "solve", like)

    def unpack(self, y: Tensor) -> dict[str, Tensor]:
        """``(*batch, n)`` -> ``(*batch, *shape)`` by name."""
        return unpack(self.shapes, y)

    # ---------------------------------------------------------------- plain torch

    def _build(self, theta: Theta, layout: Any) -> NonlinearProgram:
        def one(y: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            variable = self.unpack(y)
            first = next(iter(variable.values())) if self.bare else variable
            inputs = tensors[: count_inputs(layout)]
            with substitute(self.captured, tensors), self._rounding():
                found = {
                    name: self.arguments.call(function, (first,), inputs, layout)
                    for name, function in self.functions.items()
                    if name != "solve"
                }
                f = self._scalar(found["objective"], y) if "objective" in found else self._sum(found["residual"], y)
                h, g = (self._stack(found.get(name), name, y) for name in ("equality", "inequality"))
            return self.sign * f, h, g

        def one_residual(y: Tensor, *tensors: Tensor) -> Tensor:
            variable = self.unpack(y)
            first = next(iter(variable.values())) if self.bare else variable
            with substitute(self.captured, tensors), self._rounding():
                value = self.arguments.call(self.functions["residual"], (first,), tensors[: count_inputs(layout)], layout)
                return self._stack(value, "residual", y)

        def residual(y: Tensor, theta: Theta) -> Tensor:
            found: Tensor = self._over_batch(one_residual, (y, *theta.tensors), (True, *theta.batched))
            return found

        def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
            return self._over_batch(one, (y, *theta.tensors), (True, *theta.batched))

        def box(theta: Theta) -> tuple[Tensor, Tensor]:
            like = theta.tensors[0] if theta.tensors else torch.zeros((), dtype=torch.float64)
            lower = self._field("lower", -torch.inf, theta, layout, like)
            return lower, self._field("upper", torch.inf, theta, layout, like)

        some, count = few(theta)
        like = torch.full(
            (count, self.n), 0.5, dtype=torch.float64, device=theta.tensors[0].device if theta.tensors else None
        )
        h, g = probe(evaluate, some, self.start(some, layout, like), self.batched)
        bounded = self.fields["lower"] is not None or self.fields["upper"] is not None
        residuals = Residuals(residual, self.loss) if "residual" in self.functions else None
        p, m, bounds = h.shape[1], g.shape[1], box if bounded else None
        return NonlinearProgram(self.n, p, m, evaluate, bounds, residuals, matrices=self.matrices)

    def _over_batch(self, function: Function, tensors: Sequence[Tensor], own: Sequence[bool]) -> Any:
        return over_batch(function, tensors, own, self.captured, self.batched)

    def _scalar(self, value: Any, y: Tensor) -> Tensor:
        require_tensor(value, "objective")
        expected = tuple(y.shape[:-1])
        if value.numel() != math.prod(expected) or (self.batched and tuple(value.shape[:1]) != expected):
            what = f"shape {expected}, one number for each element" if self.batched else "a scalar"
            raise DeclarationError(f"objective must return {what}, got shape {tuple(value.shape)}.")
        return value.reshape(expected).to(torch.float64)

    def _rounding(self) -> AbstractContextManager[object]:
        return nullcontext() if self.smooth is None else Smooth(self.smooth)

    def _sum(self, value: Any, y: Tensor) -> Tensor:
        """``sum(loss(residual))``."""
        r = self._stack(value, "residual", y)
        return (0.5 * r * r if self.loss is None else self.loss.value(r)).sum(-1)

    def _stack(self, value: Any, name: str, y: Tensor) -> Tensor:
        """Whatever a constraint returns, as ``(r,)``, or ``(B, r)`` when batched."""
        lead = tuple(y.shape[:-1])
        leaves = [leaf for leaf in pytree.tree_leaves(value) if leaf is not None]
        return torch.cat(flat(leaves, name, lead, torch.float64), -1) if leaves else y.new_zeros(*lead, 0)

    def _field(self, name: str, otherwise: float, theta: Theta, layout: Any, like: Tensor) -> Tensor:
        """A bound or the initial point, ``(n,)`` or ``(B, n)``."""
        given = self.fields[name]
        if given is None:
            return torch.full((self.n,), otherwise, dtype=torch.float64, device=like.device)
        if not callable(given):
            with substitute(self.captured, theta.tensors):
                return self._pack_constant(given, name, otherwise, like.device)

        def one(*tensors: Tensor) -> Tensor:
            with substitute(self.captured, tensors):
                value = self.arguments.call(given, (), tensors[: count_inputs(layout)], layout)
                lead = (len(tensors[0]) if any(theta.batched) else 1,) if self.batched else ()
                return self._pack_constant(value, name, otherwise, like.device, lead)

        found: Tensor = self._over_batch(one, theta.tensors, theta.batched)
        return found

    def _pack_constant(
        self, value: Any, name: str, otherwise: float, device: torch.device, lead: tuple[int, ...] = ()
    ) -> Tensor:
        """A value for each variable, broadcast to its shape; ``otherwise`` for variables without one."""
        values = self._by_variable(value, name, otherwise)
        return broadcast(values, self.shapes, name, lead, torch.float64, device)

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
        return self.arguments.specs

"""Initial value problems, written as plain torch functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ddn_cvx.declare.arguments import V_co, shapes_of
from ddn_cvx.declare.functions import Function, Functions, OfFunctions, Value, numbers
from ddn_cvx.errors import DeclarationError
from ddn_cvx.program.nonlinear import Theta

Times = Sequence[float | Tensor] | Tensor | Function


class ODE(OfFunctions, Generic[V_co]):
    """``dy/dt = dynamics(t, y, *inputs)``: the output of the layer is the state at the end, or at given times.

    Needs the package torchdiffeq (``pip install "ddn_cvx[ode]"``), or an ``extend.Integrator`` of your own. The backward
    pass integrates the adjoint equation (Chen, Rubanova, Bettencourt & Duvenaud 2018), so its memory does not depend on the
    number of steps; with ``adjoint=Unrolled()`` it differentiates the steps, for dynamics that forget their past. Steps are
    common to the batch, and small enough for the element that needs the smallest.

    Parameters
    ----------
    variable : tuple of int, int, or dict of name -> tuple
        Shape of the state, ``(*shape)`` without the batch.
    dynamics : callable
        ``dynamics(t, y, *inputs)`` returns the derivative, shaped like y. For one instance, ``t`` a scalar; or with
        ``batched=True`` for a batch, ``t`` being ``(B,)``. May be an ``nn.Module`` and may capture tensors.
    span : pair of numbers or scalar tensors, tensor (2,), or callable of the inputs
        First and last time. A callable returns the two for one instance (batched: ``(B, 2)``), differentiable like a tensor,
        so that each element has its own end.
    times : sequence of numbers, tensor (K,), or callable of the inputs
        In place of ``span``: increasing or decreasing times, of which the first belongs to the initial state. The output
        then is ``(*batch, K, *shape)``.
    initial : number, tensor, dict, or callable of the inputs, optional
        The initial state. Default: the first input of the layer, ``layer(y0, *inputs)``; the functions get the others.
    parameters : list or dict of shapes, or "batched", optional
        Shapes of one instance of each input of the functions. Default: dimension 0 of every input is the batch.
    batched : bool
        The functions take and return a batch. Each element may only depend on its own row.
    dtype : torch.dtype
        In which everything is computed. Default: ``torch.float64``.

    Raises
    ------
    DeclarationError
        An argument is not what it has to be.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> layer = ddn.DeclarativeLayer(ddn.ODE((), lambda t, y, rate: -rate * y, span=(0.0, 1.0)))
    >>> layer(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.5]))
    tensor([1.0000, 1.2131])
    """

    def __init__(
        self,
        variable: V_co,
        dynamics: Function,
        *,
        span: Times | None = None,
        times: Times | None = None,
        initial: Value | None = None,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        batched: bool = False,
        dtype: torch.dtype = torch.float64,
    ):
        if (span is None) == (times is None):
            raise DeclarationError("Give either span=(first, last) or times=[first, ..., last].")
        self.only_last = times is None
        self.times: Times = span if span is not None else times  # type: ignore[assignment]  # one of the two is there
        held = {"times": self.times, "initial": initial}
        self.functions = Functions(variable, {"dynamics": dynamics}, parameters, batched, dtype, skip=2, held=held)
        self.initial = initial
        if initial is None:
            tree = next(iter(self.shapes.values())) if self.bare else self.shapes
            self.arguments.names = ["initial", *self.arguments.names]
            if self.arguments.declared is not None:
                self.arguments.declared.insert(0, shapes_of("initial", tree))
            self.functions.hidden = 1
        self.count = None if callable(self.times) else self._counted(self.times)
        """How many times there are, if that is known before a call."""

    def slope(self, t: Tensor, y: Tensor, theta: Theta, layout: Any) -> Tensor:
        """``dy/dt (B, n)`` at ``t (B,)``."""
        return self.functions.evaluate("dynamics", (t,), y, theta, layout, like_variable=True)

    def start(self, theta: Theta, layout: Any, batch: int) -> Tensor:
        """The initial state ``(B, n)``; differentiable.

        Raises
        ------
        DeclarationError
            It does not have the shape of the variable.
        """
        functions = self.functions
        if self.initial is not None:
            return functions.value(self.initial, "initial", theta, layout, batch)
        if not layout:
            raise DeclarationError("The first input of an ODE without initial= is its initial state.")
        tree = layout[0][1]
        return functions.pack(pytree.tree_unflatten(list(theta.tensors[: tree.num_leaves]), tree), "initial", (batch,))

    def knots(self, theta: Theta, layout: Any, batch: int) -> Tensor:
        """The times ``(B, K)``; differentiable."""
        functions = self.functions
        device = theta.tensors[0].device if theta.tensors else None

        def one(*tensors: Tensor) -> Tensor:
            with functions.substitute(tensors):
                value = functions.call(self.times, (), tensors, layout) if callable(self.times) else self.times
                return numbers(value, self._given, functions.dtype, device, dim=-1) * 1.0

        found = functions.over_batch(one, theta.tensors, theta.batched) if callable(self.times) else one(*theta.tensors)
        self._check(found.shape[-1] if found.ndim else 0)
        return found.expand(batch, found.shape[-1])

    @property
    def _given(self) -> str:
        return "span" if self.only_last else "times"

    def _counted(self, times: Any) -> int:
        with torch.no_grad():
            found = numbers(times, self._given, self.functions.dtype, None, dim=-1)
        if found.ndim != 1:
            raise DeclarationError(f"{self._given} must be times one after the other, got shape {tuple(found.shape)}.")
        self._check(len(found))
        return len(found)

    def _check(self, count: int) -> None:
        if self.only_last and count != 2:
            raise DeclarationError(f"span must be two times, the first and the last, got {count}.")
        if count < 2:
            raise DeclarationError(f"times must be at least two, got {count}.")

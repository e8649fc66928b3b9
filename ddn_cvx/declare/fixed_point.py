"""Fixed points and roots, written as plain torch functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor

from ddn_cvx.declare.arguments import V_co
from ddn_cvx.declare.functions import Function, Functions, OfFunctions, Value
from ddn_cvx.program.nonlinear import Theta
from ddn_cvx.program.root import RootProgram


class _Equations(OfFunctions, Generic[V_co]):
    """What a fixed point and a root have alike: one function of the unknown, and equations made of it."""

    is_map: ClassVar[bool]

    def __init__(
        self,
        variable: V_co,
        name: str,
        function: Function,
        parameters: Sequence[Any] | Mapping[str, Any] | None,
        batched: bool,
        initial: Value | None,
        dtype: torch.dtype,
    ):
        self.functions, self._name = Functions(variable, {name: function}, parameters, batched, dtype), name
        self.initial = initial

    def program(self, theta: Theta, layout: Any) -> RootProgram:
        """The equations for inputs nested in this way: ``map(y) - y = 0`` or ``function(y) = 0``.

        Raises
        ------
        DeclarationError
            The function does not return what it has to.
        """
        functions, name, is_map = self.functions, self._name, self.is_map

        def equations(y: Tensor, theta: Theta) -> Tensor:
            value = functions.evaluate(name, (), y, theta, layout, like_variable=is_map)
            return value - y if is_map else value

        functions.probe(name, equations, theta, layout)
        return RootProgram(functions.n, equations, is_map=is_map)


class FixedPoint(_Equations[V_co]):
    """``y = map(y, *inputs)``: the output of the layer is a fixed point of the map.

    The map takes the variable first, then the inputs of the layer. It is written for one instance and vmapped, or with
    ``batched=True`` for a whole batch. It may be an ``nn.Module`` (a deep equilibrium model; Bai, Kolter & Koltun 2019) and
    may refer to other tensors: whatever requires grad becomes a parameter of the layer. The backward pass solves one linear
    system; its memory does not depend on how many iterations the forward pass took.

    Parameters
    ----------
    variable : tuple of int, int, or dict of name -> tuple
        Shape of the variable, ``(*shape)`` without the batch. A dict declares several, which the map gets and returns as a
        dict, and so does the layer.
    map : callable
        Returns the variable, ``(*shape)`` (batched: ``(B, *shape)``).
    initial : number, tensor, dict, or callable of the inputs, optional
        Where the iteration starts. Default: zero.
    parameters : list or dict of shapes, or "batched", optional
        Shapes of one instance of each input, as for ``TorchProblem``. Default: dimension 0 of every input is the batch.
    batched : bool
        The map takes and returns a batch. Each element may only depend on its own row.
    dtype : torch.dtype
        In which the map is evaluated; ``torch.float32`` halves the cost of a large network, and its answers have five
        digits. Default: ``torch.float64``.

    Raises
    ------
    DeclarationError
        An argument is not what it has to be.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> layer = ddn.DeclarativeLayer(ddn.FixedPoint((), lambda y, x: torch.cos(y) * x))
    >>> layer(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7391])
    """

    is_map = True

    def __init__(
        self,
        variable: V_co,
        map: Function,
        *,
        initial: Value | None = None,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        batched: bool = False,
        dtype: torch.dtype = torch.float64,
    ):
        super().__init__(variable, "map", map, parameters, batched, initial, dtype)


class Root(_Equations[V_co]):
    """``function(y, *inputs) = 0``: the output of the layer is a root of as many equations as there are unknowns.

    Parameters
    ----------
    variable : tuple of int, int, or dict of name -> tuple
        Shape of the unknown, ``(*shape)`` without the batch, or of several.
    function : callable
        ``function(y, *inputs)`` returns a tensor, or a list or dict of tensors, with as many numbers in all (batched:
        leading dimension B). May be an ``nn.Module`` and may capture tensors.
    initial, parameters, batched, dtype
        As for ``FixedPoint``.

    Raises
    ------
    DeclarationError
        An argument is not what it has to be.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> layer = ddn.DeclarativeLayer(ddn.Root((), lambda y, x: y * y - x, initial=1.0))
    >>> layer(torch.tensor([4.0, 9.0]))
    tensor([2., 3.])
    """

    is_map = False

    def __init__(
        self,
        variable: V_co,
        function: Function,
        *,
        initial: Value | None = None,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        batched: bool = False,
        dtype: torch.dtype = torch.float64,
    ):
        super().__init__(variable, "function", function, parameters, batched, initial, dtype)

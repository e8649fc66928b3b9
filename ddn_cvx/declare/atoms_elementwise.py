"""Torch rules of the elementwise atoms of cvxpy.

At a kink the derivative is an element of the subdifferential: 0 for ``abs`` at 0, equal shares for ``maximum`` and
``minimum`` at ties. Steps (``ceil``, ``floor``, ``sign``, ``length``) have derivative zero. At the end of a domain where the
true slope is infinite (``entr`` at 0, ``sqrt`` at 0) so is the derivative here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from cvxpy.settings import ATOM_EVAL_TOL
from torch import Tensor

from ddn_cvx.declare.atoms_base import Node, align, aligned, reshaped, rule, scalar

DECIMALS = int(abs(math.log10(ATOM_EVAL_TOL)))  # what cvxpy rounds to before ceil and floor


def _one(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda node, x: function(x)


for _name, _function in {
    "abs": torch.abs,
    "asinh": torch.asinh,
    "atanh": torch.atanh,
    "cos": torch.cos,
    "entr": torch.special.entr,
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "normcdf": torch.special.ndtr,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "tan": torch.tan,
    "tanh": torch.tanh,
}.items():
    rule(_name)(_one(_function))


@rule("ceil")
def ceil(node: Node, x: Tensor) -> Tensor:
    return torch.ceil(torch.round(x, decimals=DECIMALS))


@rule("floor")
def floor(node: Node, x: Tensor) -> Tensor:
    return torch.floor(torch.round(x, decimals=DECIMALS))


@rule("sign")
def sign(node: Node, x: Tensor) -> Tensor:
    """1 for positive entries, otherwise -1 (cvxpy's convention at 0)."""
    return 2 * torch.ceil(torch.sign(x) / 2) - 1


@rule("length")
def length(node: Node, x: Tensor) -> Tensor:
    """The position, counted from one, of the last entry of a vector that is not (nearly) zero."""
    flat = x.flatten(x.ndim - len(node.arg_shapes[0])) if node.arg_shapes[0] else x.unsqueeze(-1)
    positions = torch.arange(1, flat.shape[-1] + 1, dtype=x.dtype, device=x.device)
    return (torch.sign((flat.abs() - ATOM_EVAL_TOL).clamp(min=0)) * positions).amax(-1)


@rule("logistic")
def logistic(node: Node, x: Tensor) -> Tensor:
    """``log(1 + exp(x))``, without the cut-off of ``softplus``."""
    return torch.logaddexp(x, torch.zeros_like(x))


@rule("xexp")
def xexp(node: Node, x: Tensor) -> Tensor:
    return x * torch.exp(x)


@rule("rel_entr")
def rel_entr(node: Node, x: Tensor, y: Tensor) -> Tensor:
    """``x log(x/y)``; zero at ``x = 0 ≤ y``, infinite outside the domain."""
    x, y = aligned(node, x, y)
    return torch.where(y < 0, torch.inf, -torch.special.entr(x) - torch.xlogy(x, torch.where(y < 0, 1.0, y)))


@rule("kl_div")
def kl_div(node: Node, x: Tensor, y: Tensor) -> Tensor:
    """``x log(x/y) - x + y``, with the conventions of ``rel_entr``."""
    return rel_entr(node, x, y) - torch.sub(*aligned(node, x, y))


@rule("huber", reads=scalar("M"))
def huber(node: Node, x: Tensor, M: Tensor | None = None) -> Tensor:
    """``x²`` where ``|x| ≤ M``, else ``2M|x| - M²``."""
    bound = node.M if M is None else _scalar(node, M)
    size = x.abs()
    return torch.where(size <= bound, x * x, bound * (2 * size - bound))


@rule("Power", "PowerApprox", reads=scalar("p"))
def power(node: Node, x: Tensor, p: Tensor | None = None) -> Tensor:
    """``x**p`` with the exponent as declared (not its rational approximation), which may be a parameter."""
    return torch.pow(x, node.p if p is None else _scalar(node, p))


def _scalar(node: Node, x: Tensor) -> Tensor:
    """A scalar parameter, the last operand, ready to broadcast."""
    return align(reshaped(x, len(node.arg_shapes[-1]), ()), 0, len(node.shape))


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda node, *operands: reduce(function, aligned(node, *operands))


for _name, _pair in {
    "And": torch.minimum,
    "Or": torch.maximum,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "Xor": lambda x, y: torch.remainder(x + y, 2),
}.items():
    rule(_name)(_fold(_pair))


@rule("Not")
def logical_not(node: Node, x: Tensor) -> Tensor:
    return 1 - x


def _perspective(atom: Any) -> dict[str, Any]:
    """``s``, ``f(x/s)`` and, if declared, the recession function at ``x``, as expressions of the atom's arguments."""
    s, *x = atom.args
    place = {id(v): arg for v, arg in zip(atom.f.variables(), x, strict=True)}
    read: dict[str, Any] = {"args": [s], "quotient": atom.f.tree_copy({key: arg / s for key, arg in place.items()})}
    if atom.f_recession is not None:
        read["recession"] = atom.f_recession.tree_copy(dict(place))
    return read


@rule("perspective", reads=_perspective)
def perspective(node: Node, s: Tensor, quotient: Tensor, recession: Tensor | None = None) -> Tensor:
    """``s f(x/s)`` for ``s > 0``; at ``s = 0`` the recession function, if declared, but no derivative; otherwise nan."""
    s = align(reshaped(s, len(node.arg_shapes[0]), ()), 0, len(node.shape))
    if recession is None:
        return torch.where(s > 0, s * quotient, torch.nan)
    return torch.where(
        s > 0, s * quotient, torch.where(s == 0, reshaped(recession, len(node.arg_shapes[2]), node.shape), torch.nan)
    )

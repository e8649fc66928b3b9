"""The fallback for an atom without a torch rule: its own ``numeric``, in numpy, without a derivative."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from cvxpy.atoms.atom import Atom
from cvxpy.atoms.suppfunc import SuppFuncAtom
from cvxpy.expressions.constants.constant import Constant
from torch import Tensor

from ddn_cvx.declare.atoms_base import Node, rule

NUMERIC = "numeric"  # the name under which the fallback is registered, next to the names of the atoms


def has_numeric(atom: Atom) -> bool:
    """Whether cvxpy itself can evaluate the atom at given values of its arguments."""
    return hasattr(atom, "numeric") or isinstance(atom, SuppFuncAtom)


@rule(NUMERIC)
def numeric(node: Node, *operands: Tensor) -> Tensor:
    """``Atom.numeric`` for each element of the batch."""
    shapes = node.arg_shapes
    batch = np.broadcast_shapes(*(x.shape[: x.ndim - len(s)] for x, s in zip(operands, shapes, strict=True)))
    flat = [x.expand(batch + s).reshape(-1, *s).cpu().numpy() for x, s in zip(operands, shapes, strict=True)]
    values = [np.reshape(_one(node.atom, list(map(np.array, row))), node.shape) for row in zip(*flat, strict=True)]
    out = torch.as_tensor(np.array(values).reshape(batch + node.shape))
    like = operands[0].dtype
    return out.to(device=operands[0].device, dtype=like.to_complex() if out.is_complex() else like.to_real())


def _one(atom: Any, values: list[Any]) -> Any:
    # A support function has no numeric: its value is the optimum of a problem, which it solves at its argument.
    return SuppFuncAtom(Constant(values[0]), atom._parent).value if isinstance(atom, SuppFuncAtom) else atom.numeric(values)

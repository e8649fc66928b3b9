"""What the rewriting into smooth form has to know of the atoms of cvxpy, by name."""

from __future__ import annotations

import math
from typing import Any

import cvxpy as cp
import numpy as np
from cvxpy.expressions.expression import Expression
from cvxpy.expressions.leaf import Leaf
from numpy.typing import NDArray

INF = math.inf

STEPS = frozenset({"ceil", "floor", "sign", "length", "Not", "And", "Or", "Xor"})
"""Atoms whose derivative is zero wherever it exists."""

HULLS = frozenset({"abs", "maximum", "max", "norm_inf"})
"""The largest of several pieces."""

FLIPPED = {"minimum": cp.maximum, "min": cp.max}
"""The smallest of several pieces, by what gives the largest."""


def name(expr: Expression) -> str:
    """The name of an atom's class."""
    return type(expr).__name__


def pieces(atom: Any) -> list[Expression]:
    """What an atom of ``HULLS`` is the largest of, shaped like its (broadcast) argument."""
    if name(atom) in ("abs", "norm_inf"):
        return [atom.args[0], -atom.args[0]]
    return list(atom.args)


def axes(atom: Any) -> dict[str, Any]:
    """How an atom reduces its argument."""
    return {"axis": atom.axis, "keepdims": atom.keepdims}


def along(atom: Any, small: Expression) -> Expression:
    """What has the shape of the atom, repeated along the axes over which the atom reduces its argument."""
    shape = atom.args[0].shape
    if name(atom) in ("abs", "maximum"):
        return small
    if small.size == 1:
        return cp.reshape(small, (), order="C") if small.ndim else small
    axis = atom.axis if isinstance(atom.axis, tuple | list) else (atom.axis,)
    reduced = {int(a) % len(shape) for a in axis}
    kept = tuple(1 if k in reduced else size for k, size in enumerate(shape))
    return cp.broadcast_to(cp.reshape(small, kept, order="C"), shape)


def domain(atom: Any) -> list[tuple[int, float, float]]:
    """The intervals ``(number of the argument, lower, upper)`` outside which the atom has no value."""
    kind = name(atom)
    if kind in ("log", "entr", "GeoMean", "GeoMeanApprox", "gmatmul", "pf_eigenvalue"):
        return [(0, 0.0, INF)]
    if kind in ("rel_entr", "kl_div"):
        return [(0, 0.0, INF), (1, 0.0, INF)]
    if kind == "perspective":
        return [(0, 0.0, INF)]
    if kind == "quad_over_lin":
        return [(1, 0.0, INF)]
    if kind == "log1p":
        return [(0, -1.0, INF)]
    if kind == "atanh":
        return [(0, -1.0, 1.0)]
    if kind in ("Power", "PowerApprox") and not _is_natural(atom.p):
        return [(0, 0.0, INF)]
    if kind in ("Pnorm", "PnormApprox") and atom.p < 1:
        return [(0, 0.0, INF)]
    return []


def _is_natural(exponent: Any) -> bool:
    """Whether the power is a polynomial."""
    value = None if exponent.parameters() else float(exponent.value)
    return value is not None and value >= 0 and value.is_integer()


_SELECTIONS = frozenset(
    {"index", "special_index", "reshape", "transpose", "upper_tri", "diag_mat", "nonneg_wrap", "nonpos_wrap"}
)


def selection(expr: Expression) -> tuple[cp.Variable, NDArray[np.int64]] | None:
    """The variable of which the expression consists of different entries, and their places in C order."""
    if isinstance(expr, cp.Variable):
        return expr, np.arange(expr.size).reshape(expr.shape)
    if isinstance(expr, Leaf) or name(expr) not in _SELECTIONS:
        return None
    inner = selection(expr.args[0])
    if inner is None:
        return None
    places = np.asarray(expr.numeric([inner[1]]), dtype=np.int64).reshape(expr.shape)
    return (inner[0], places) if len(np.unique(places)) == places.size else None

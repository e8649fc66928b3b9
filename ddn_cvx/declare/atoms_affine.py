"""Torch rules of the affine (and bilinear) atoms of cvxpy: sums, products, indexing, stacking, reshaping, wraps."""

from __future__ import annotations

import math
import operator
from functools import reduce
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from cvxpy.expressions.expression import Expression
from torch import Tensor

from ddn_cvx.declare.atoms_base import (
    Node,
    align,
    aligned,
    reshaped,
    reshaped_fortran,
    reversed_axes,
    rule,
    same_batch,
    same_dtype,
)
from ddn_cvx.program.affine_map import take

DENSE_LIMIT = 1_000_000  # entries from which a sparse constant matrix is multiplied entry by entry

# ---------------------------------------------------------------- sums and elementwise products


@rule("AddExpression")
def add(node: Node, *operands: Tensor) -> Tensor:
    return reduce(torch.add, aligned(node, *operands))


@rule("NegExpression")
def negate(node: Node, x: Tensor) -> Tensor:
    return -x


@rule("multiply")
def multiply(node: Node, x: Tensor, y: Tensor) -> Tensor:
    return torch.mul(*aligned(node, x, y))


@rule("DivExpression")
def divide(node: Node, x: Tensor, y: Tensor) -> Tensor:
    out = torch.div(*aligned(node, x, y))
    return reshaped(out, max(map(len, node.arg_shapes)), node.shape)


@rule("one_minus_pos")
def one_minus(node: Node, x: Tensor) -> Tensor:
    return 1 - x


@rule(
    "Wrap",
    "hermitian_wrap",
    "nonneg_wrap",
    "nonpos_wrap",
    "nsd_wrap",
    "psd_wrap",
    "skew_symmetric_wrap",
    "symmetric_wrap",
)
def wrap(node: Node, x: Tensor) -> Tensor:
    """The wraps only assert a property."""
    return x


@rule("conj")
def conjugate(node: Node, x: Tensor) -> Tensor:
    return x.conj()


@rule("real")
def real(node: Node, x: Tensor) -> Tensor:
    return x.real


@rule("imag")
def imag(node: Node, x: Tensor) -> Tensor:
    return x.imag if x.is_complex() else torch.zeros_like(x)


# ---------------------------------------------------------------- matrix products


SCATTER = "sparse parameter"


@rule(SCATTER)
def scatter(node: Node, entries: Tensor, places: Tensor) -> Tensor:
    """All entries of a sparse array from those that are not zero."""
    size = math.prod(node.shape)
    whole = entries.new_zeros((*entries.shape[:-1], size)).scatter(-1, places.expand_as(entries), entries)
    return whole.reshape(*entries.shape[:-1], *node.shape)


def sparse_constant(expr: Expression) -> sp.coo_array | None:
    """The value of a constant matrix that is stored sparse and too large to be made dense."""
    if expr.size < DENSE_LIMIT or not expr.is_constant() or expr.parameters():
        return None
    value = expr.value
    return sp.coo_array(value) if sp.issparse(value) else None


def sparse_operands(matrix: sp.coo_array) -> dict[str, Any]:
    """Row and column numbers and values of a sparse constant, as further operands of a rule."""
    rows, cols = matrix.coords
    return {"rows": rows.astype(np.int64), "cols": cols.astype(np.int64), "entries": matrix.data + 0.0}


def sparse_apply(x: Tensor, length: int, rows: Tensor, cols: Tensor, entries: Tensor) -> Tensor:
    """``S x`` along the last dimension, ``(*batch, columns) -> (*batch, length)``; S may be of a batch, too."""
    products = take(x, cols) * entries
    return products.new_zeros((*products.shape[:-1], length)).scatter_add(-1, rows.expand_as(products), products)


def _matmul(atom: Any) -> dict[str, Any]:
    left, right = atom.args
    for side, matrix, other in (("left", left, right), ("right", right, left)):
        sparse = sparse_constant(matrix)
        if sparse is not None and other.ndim <= 2:
            transposed = sparse if side == "left" else sparse.T
            return {"args": [other], "sparse": side, **sparse_operands(sp.coo_array(transposed))}
    return {"sparse": None}


@rule("MulExpression", reads=_matmul)
def matmul(node: Node, *operands: Tensor) -> Tensor:
    """``numpy.matmul``, with large sparse constants on either side."""
    if node.sparse is not None:
        return _sparse_matmul(node, *operands)
    a, b = operands if operands[0].dtype == operands[1].dtype else same_dtype(*operands)
    a_ndim, b_ndim = map(len, node.arg_shapes)
    if b_ndim == 1 and a_ndim == 2 and a.ndim == 2:
        return b @ a.mT  # one matrix for all vectors of the batch: a single product
    if a_ndim == 1 and b_ndim == 2 and b.ndim == 2:
        return a @ b
    if a_ndim == b_ndim == 1:
        return (a * b).sum(-1)
    if b_ndim == 1 and a_ndim == 2 and a.ndim == 3 and a.shape[0] == b.shape[0]:
        return torch.bmm(a, b.unsqueeze(-1)).squeeze(-1)
    a = a.unsqueeze(-2) if a_ndim == 1 else a
    b = b.unsqueeze(-1) if b_ndim == 1 else b
    a_ndim, b_ndim = max(a_ndim, 2), max(b_ndim, 2)
    ndim = max(a_ndim, b_ndim)
    return reshaped(align(a, a_ndim, ndim) @ align(b, b_ndim, ndim), ndim, node.shape)


def _sparse_matmul(node: Node, x: Tensor, rows: Tensor, cols: Tensor, entries: Tensor) -> Tensor:
    """``S X`` is applied to the columns of X, ``X S`` as the transpose of S to its rows."""
    if len(node.arg_shapes[0]) == 1:
        return sparse_apply(x, math.prod(node.shape), rows, cols, entries)
    entries = entries.unsqueeze(-2)  # the same for all columns
    if node.sparse == "left":
        return sparse_apply(x.mT, node.shape[0], rows, cols, entries).mT
    return sparse_apply(x, node.shape[-1], rows, cols, entries)


@rule("kron")
def kron(node: Node, a: Tensor, b: Tensor) -> Tensor:
    product = a[..., :, None, :, None] * b[..., None, :, None, :]
    return reshaped(product, 4, node.shape)


def _windows(atom: Any) -> dict[str, Any]:
    """Positions in the padded longer signal: entry ``(k, j)`` of the result's window is ``k + j``."""
    short, long = sorted(arg.size for arg in atom.args)
    positions = np.arange(short + long - 1)[:, None] + np.arange(short)
    return {"positions": positions.astype(np.int64).reshape(-1)}


@rule("conv", "convolve", reads=_windows)
def convolve(node: Node, a: Tensor, b: Tensor, positions: Tensor) -> Tensor:
    """Full discrete convolution: the windows of the padded longer signal times the reversed shorter one."""
    a, b = same_dtype(*(reshaped(x, len(s), (math.prod(s),)) for x, s in zip((a, b), node.arg_shapes, strict=False)))
    short, long = (a, b) if a.shape[-1] <= b.shape[-1] else (b, a)
    taps = short.shape[-1]
    windows = torch.nn.functional.pad(long, (taps - 1, taps - 1)).index_select(-1, positions)
    windows = windows.reshape((*windows.shape[:-1], -1, taps))
    return reshaped((windows @ short.flip(-1).unsqueeze(-1)).squeeze(-1), 1, node.shape)


@rule("Trace")
def trace(node: Node, x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).sum(-1)


# ---------------------------------------------------------------- shapes


@rule("reshape", reads=("order",))
def reshape(node: Node, x: Tensor) -> Tensor:
    change = reshaped_fortran if node.order == "F" else reshaped
    return change(x, len(node.arg_shapes[0]), node.shape)


@rule("transpose", reads=("axes",))
def transpose(node: Node, x: Tensor) -> Tensor:
    ndim = len(node.shape)
    if node.axes is None:
        return reversed_axes(x, ndim)
    batch = x.ndim - ndim
    return x.permute((*range(batch), *(batch + int(a) % ndim for a in node.axes)))


@rule("broadcast_to")
def broadcast_to(node: Node, x: Tensor) -> Tensor:
    ndim = len(node.arg_shapes[0])
    return align(x, ndim, len(node.shape)).expand(x.shape[: x.ndim - ndim] + node.shape)


@rule("Promote")
def promote(node: Node, x: Tensor) -> Tensor:
    scalar = reshaped(x, len(node.arg_shapes[0]), ())
    return align(scalar, 0, len(node.shape)).expand(scalar.shape + node.shape)


@rule("diag_vec", reads=("k",))
def diag_vec(node: Node, x: Tensor) -> Tensor:
    return torch.diag_embed(x, offset=node.k)


@rule("diag_mat", reads=("k",))
def diag_mat(node: Node, x: Tensor) -> Tensor:
    return x.diagonal(offset=node.k, dim1=-2, dim2=-1)


# ---------------------------------------------------------------- stacking


def _joined(operands: list[Tensor], ndim: int, dim: int) -> Tensor:
    return torch.cat(same_batch(operands, ndim), dim - ndim)


@rule("Hstack")
def hstack(node: Node, *operands: Tensor) -> Tensor:
    ndims = [max(len(shape), 1) for shape in node.arg_shapes]
    padded = [align(x, len(s), n) for x, s, n in zip(operands, node.arg_shapes, ndims, strict=True)]
    return _joined(padded, ndims[0], min(ndims[0] - 1, 1))


@rule("Vstack")
def vstack(node: Node, *operands: Tensor) -> Tensor:
    ndims = [max(len(shape), 2) for shape in node.arg_shapes]
    padded = [align(x, len(s), n) for x, s, n in zip(operands, node.arg_shapes, ndims, strict=True)]
    return _joined(padded, ndims[0], 0)


@rule("Concatenate", reads=("axis",))
def concatenate(node: Node, *operands: Tensor) -> Tensor:
    if node.axis is None:
        flat = [reshaped(x, len(s), (math.prod(s),)) for x, s in zip(operands, node.arg_shapes, strict=True)]
        return _joined(flat, 1, 0)
    return _joined(list(operands), len(node.shape), node.axis)


# ---------------------------------------------------------------- indexing


def _basic_key(atom: Any) -> dict[str, Any]:
    """Integers and forward slices are torch's own; a backward slice is a selection of entries."""
    key = atom._orig_key if isinstance(atom._orig_key, tuple) else (atom._orig_key,)
    if any(isinstance(k, slice) and k.step is not None and k.step < 0 for k in key):
        return _selection(atom.args[0].shape, key)
    plain = tuple(
        slice(*(None if v is None else operator.index(v) for v in (k.start, k.stop, k.step)))
        if isinstance(k, slice)
        else int(k)
        for k in key
    )
    return {"key": plain + (slice(None),) * (atom.args[0].ndim - len(plain))}


def _selection(shape: tuple[int, ...], key: Any) -> dict[str, Any]:
    positions = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)[key]
    return {"key": None, "selected": np.array(positions).reshape(-1)}


@rule("index", reads=_basic_key)
def index(node: Node, x: Tensor, selected: Tensor | None = None) -> Tensor:
    return x[(..., *node.key)] if selected is None else select(node, x, selected)


def _upper_triangle(atom: Any) -> dict[str, Any]:
    rows, cols = np.triu_indices(atom.args[0].shape[-1], k=1)
    return _selection(atom.args[0].shape, (..., rows, cols))


@rule("special_index", reads=lambda atom: _selection(atom.args[0].shape, atom.key))
def select(node: Node, x: Tensor, selected: Tensor) -> Tensor:
    """The entries at given positions of the array flattened in C order."""
    ndim = len(node.arg_shapes[0])
    flat = reshaped(x, ndim, (math.prod(node.arg_shapes[0]),))
    return reshaped(flat.index_select(-1, selected), 1, node.shape)


@rule("upper_tri", reads=_upper_triangle)
def upper_tri(node: Node, x: Tensor, selected: Tensor) -> Tensor:
    """The entries above the diagonal, row by row, as a column."""
    return select(node, x, selected)

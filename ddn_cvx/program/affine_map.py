"""Sparse linear maps between vectors with leading batch dimensions, as plain differentiable torch operations.

The map from parameters to problem data is linear with a constant part, usually a permutation with holes: most data
entries are plus or minus one parameter. ``SparseLinear`` therefore applies itself by a gather where every row has at
most one entry, and by a sparse product otherwise (scipy on the CPU, where it is many times faster than torch's own).
Its derivative is its transpose, another ``SparseLinear``, so derivatives of every order, forward mode and vmap come for
free.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.forward_mode import forward_rule

SMALL = 10_000
"""Gathers on the CPU with at most so many entries are left to torch's own derivative, which scatters number by number."""


class SparseLinear:
    """``u -> M u`` along the last dimension, for a constant sparse M.

    Parameters
    ----------
    matrix : scipy sparse array, shape (r, k)
    """

    def __init__(self, matrix: sp.sparray, transpose: SparseLinear | None = None):
        csr = sp.csr_array(matrix)
        csr.sum_duplicates()
        csr.eliminate_zeros()
        self.matrix = csr
        self.shape: tuple[int, int] = csr.shape
        counts = np.diff(csr.indptr)
        self.is_gather = bool((counts <= 1).all())
        full = self.is_gather and csr.shape[0] == csr.nnz > 0
        plain = full and bool((csr.data == 1).all() and (np.diff(csr.indices) == 1).all())
        first = int(csr.indices[0]) if plain else 0
        self.window = slice(first, first + csr.nnz) if plain else None
        """Where the result stands in the argument, if it is a part of it."""
        self.is_identity = plain and csr.shape[1] == csr.nnz
        self.is_small = max(csr.shape) <= SMALL
        self._tensors: dict[tuple[torch.device, torch.dtype], Any] = {}
        self._transpose = transpose

    @property
    def T(self) -> SparseLinear:
        """The transposed map."""
        if self._transpose is None:
            self._transpose = SparseLinear(self.matrix.T, self)
        return self._transpose

    def __call__(self, u: Tensor) -> Tensor:
        """Apply to ``u`` (*batch, k); returns (*batch, r)."""
        if self.is_identity:
            return u
        if self.window is not None:
            return u[..., self.window]
        if self.is_gather and 0 not in self.shape and ((self.is_small and u.is_cpu) or not torch.is_grad_enabled()):
            return self.raw(u)  # spares the bookkeeping of a function of our own, which costs more than the gather
        out: Tensor = _Apply.apply(u, self)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {"matrix": self.matrix}

    def __setstate__(self, state: dict[str, Any]) -> None:
        SparseLinear.__init__(self, state["matrix"])

    def raw(self, u: Tensor) -> Tensor:
        """The product itself, outside autograd."""
        if self.is_gather:
            index, factor = self._gather(u)
            picked = take(u, index)
            return picked if factor is None else picked * factor
        flat = u.reshape(-1, self.shape[1])
        if u.device.type == "cpu":
            product = torch.from_numpy(np.ascontiguousarray((self.matrix @ flat.numpy().T).T)).to(u.dtype)
        else:
            product = torch.sparse.mm(self._csr(u), flat.mT).mT
        return product.reshape(*u.shape[:-1], self.shape[0])

    def _gather(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        key = (like.device, like.dtype)
        if key not in self._tensors:
            filled = np.diff(self.matrix.indptr) == 1
            index, factor = np.zeros(self.shape[0], np.int64), np.zeros(self.shape[0])
            index[filled], factor[filled] = self.matrix.indices, self.matrix.data
            ones = bool((factor == 1).all())
            self._tensors[key] = (
                constant(index, like.device),
                None if ones else constant(factor, like.device, like.dtype),
            )
        found: tuple[Tensor, Tensor | None] = self._tensors[key]
        return found

    def _csr(self, like: Tensor) -> Tensor:
        key = (like.device, like.dtype)
        if key not in self._tensors:
            m = self.matrix
            with (
                torch.sparse.check_sparse_tensor_invariants(enable=False),
                torch.inference_mode(False),
                torch._C._DisableFuncTorch(),
            ):
                self._tensors[key] = torch.sparse_csr_tensor(
                    torch.as_tensor(m.indptr, dtype=torch.int64),
                    torch.as_tensor(m.indices, dtype=torch.int64),
                    torch.as_tensor(m.data),
                    size=self.shape,
                    dtype=like.dtype,
                    device=like.device,
                )
        found: Tensor = self._tensors[key]
        return found


class _Apply(torch.autograd.Function):
    """``M u`` with derivative ``M'``; linear, hence differentiable to any order."""

    @staticmethod
    def forward(u: Tensor, linear: SparseLinear) -> Tensor:
        if 0 in linear.shape:
            return u.new_zeros(*u.shape[:-1], linear.shape[0])
        return linear.raw(u.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, SparseLinear], output: Tensor) -> None:
        ctx.linear = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.linear.T(grads[0]), None

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: tuple[()], *tangents: Any) -> Tensor:
        out: Tensor = ctx.linear(tangents[0])
        return out

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], u: Tensor, linear: SparseLinear) -> tuple[Tensor, int]:
        return linear(u.movedim(in_dims[0] or 0, 0)), 0


# torch binds the arguments of every call through ``inspect``, which looks here before it takes the function apart.
_Apply.forward.__signature__ = inspect.signature(_Apply.forward)  # type: ignore[attr-defined]  # functions allow it


def constant(array: NDArray[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor to keep: plain even when it is made inside a ``torch.func`` transform, to which it would belong else."""
    with torch._C._DisableFuncTorch(), torch.inference_mode(False):
        return torch.as_tensor(array, device=device, dtype=dtype)


def take(t: Tensor, index: Tensor) -> Tensor:
    """``t[..., index]``; several times faster on CPU than indexing or index_select."""
    return t.gather(-1, index.expand(*t.shape[:-1], index.shape[0]))

"""The reduced KKT system of small programs with equalities and inequalities on the CPU, by compiled kernels.

Same system and interface as ``linalg.kkt.DenseKKT``, which also takes over the elements whose factor has a small pivot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddn_cvx.kernels import kkt
from ddn_cvx.kernels.jit import spread
from ddn_cvx.kernels.structure import Structure
from ddn_cvx.linalg.kkt import DenseKKT, NullSpace


class PolyhedralKKT:
    """Factors of the reduced systems of B instances.

    Parameters
    ----------
    structure : Structure
    P, A : Tensor (B, nnz)
        Values of the stored entries.
    v : Tensor (B, m)
        ``y - s``: an inequality is active where it is positive.
    ok : Tensor (B,) bool
        Elements without a solution; they are not solved.
    dense : callable
        From indices of elements to their ``DenseKKT``.
    """

    def __init__(
        self, structure: Structure, P: Tensor, A: Tensor, v: Tensor, ok: Tensor, dense: Callable[[Tensor], DenseKKT]
    ):
        self.structure = structure
        batch, good = len(v), ok.detach().numpy()
        self.values = tuple(t.detach().contiguous().numpy() for t in (P, A, v))
        free, general, start = np.empty((3, batch), np.int64)
        healthy = np.empty(batch, np.bool_)
        total = kkt.count(structure, self.values[2], self.values[1], good, free, general, start, healthy)
        work = structure.n**3 / 3 + structure.n**2 * 10
        self.parts = (free, general, start, np.empty(total), np.empty((batch, structure.m)), healthy)
        spread(kkt.factor, batch, work, structure, *self.values, *self.parts)
        self.null = NullSpace(torch.zeros(batch, dtype=torch.bool), torch.zeros(batch, dtype=torch.bool))
        self.other: tuple[Tensor, DenseKKT] | None = None
        if not (healthy == good).all():
            pick = torch.from_numpy(np.flatnonzero(good & ~healthy))
            self.other = pick, dense(pick)
            self.null.primal[pick], self.null.dual[pick] = self.other[1].null.primal, self.other[1].null.dual

    def forward(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(a, c)`` with ``J (a, c) = (r, t)``; r (B, n, k), t (B, m, k)."""
        return self._solve(kkt.forward, DenseKKT.forward, r, t)

    def reverse(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """``(u, w)`` with ``J' (u, w) = (g, h)``; g (B, n, k), h (B, m, k)."""
        return self._solve(kkt.reverse, DenseKKT.reverse, g, h)

    def _solve(
        self, kernel: Any, method: Callable[[DenseKKT, Tensor, Tensor], tuple[Tensor, Tensor]], top: Tensor, low: Tensor
    ) -> tuple[Tensor, Tensor]:
        first, second = (t.detach().mT.contiguous() for t in (top, low))
        out = torch.zeros_like(first), torch.zeros_like(second)
        work = 6 * first.shape[1] * (self.structure.n + self.structure.m) ** 2
        arrays = (t.numpy() for t in (first, second, *out))
        spread(kernel, len(top), work, self.structure, *self.values, *self.parts, *arrays)
        if self.other is not None:
            pick, dense = self.other
            for t, value in zip(out, method(dense, top[pick], low[pick]), strict=True):
                t[pick] = value.mT
        return out[0].mT, out[1].mT

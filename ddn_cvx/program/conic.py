"""The conic program: one structure, many instances.

    minimise  1/2 x'Px + q'x + d   subject to  Ax + s = b,  s in K          (primal)
    Px + q + A'y = 0,  y in K*,  s'y = 0                                    (optimality)

A ``ConicProgram`` holds the structure only: sizes, sparsity patterns, the cone. The numbers of a batch of B instances
travel as ``ConicData``: the values of the fixed patterns, batch first. P is given by its upper triangle. Both patterns
are in compressed sparse column order, which is what the direct solvers read.

With ``z = (x, v)``, ``y = Pi_K*(v)`` and ``s = y - v``, a point is optimal if and only if the residual
``F(z) = [Px + q + A'y ; Ax + s - b]`` is zero (Busseti, Moursi & Boyd, 2019, with the quadratic objective kept).
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.cones import Product
from ddn_cvx.kernels.structure import Structure
from ddn_cvx.kernels.table import EXPONENTIAL, SECOND_ORDER, SEMIDEFINITE, table
from ddn_cvx.linalg.fill import has_sparse_factor
from ddn_cvx.linalg.inertia import Definiteness
from ddn_cvx.linalg.kkt import Bounds
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.affine_map import constant, take

DENSE_LIMIT = 2000
"""Programs with n + m at most this many rows and columns are handled by dense linear algebra."""
COMPILED_LIMIT, CURVED_LIMIT = 1000, 500
"""Programs with n + m at most the first are handled by compiled kernels on the CPU, those with second-order, semidefinite
and exponential cones up to the second; those with power cones, or cones that come from outside, not."""


class ConicData(NamedTuple):
    """The numbers of a batch of conic programs of one structure."""

    P: Tensor
    """Values of the upper triangle of P, ``(B, nnz(P))``."""
    q: Tensor
    """``(B, n)``."""
    A: Tensor
    """Values of A, ``(B, nnz(A))``."""
    b: Tensor
    """``(B, m)``."""


class ConicProgram:
    """The structure of ``min 1/2 x'Px + q'x  s.t.  Ax + s = b, s in K``; holds no values.

    Parameters
    ----------
    P : Pattern
        Upper triangle of the (n, n) quadratic term.
    A : Pattern
        The (m, n) constraint matrix.
    cones : Product
        K, with ``cones.size == m``.
    visible : array of bool (n,), optional
        The variables that somebody declared; the others are auxiliary (epigraphs), and need not be unique.
    """

    def __init__(self, P: Pattern, A: Pattern, cones: Product, visible: NDArray[np.bool_] | None = None):
        self.P, self.A, self.cones = P, A, cones
        self.visible = np.ones(A.shape[1], bool) if visible is None else visible
        self.m, self.n = A.shape
        self._index: dict[torch.device, tuple[Tensor, ...]] = {}
        self._bounds: dict[torch.device, Bounds | None] = {}

    def bounds(self, device: torch.device) -> Bounds | None:
        """The nonnegative rows of A that have a single entry, and all the others; None if there are none."""
        if device not in self._bounds:
            counts = np.bincount(self.A.rows, minlength=self.m)
            in_orthant = np.zeros(self.m, bool)
            in_orthant[self.cones.zero : self.cones.zero + self.cones.nonneg] = True
            single = (counts == 1) & in_orthant
            order = np.argsort(self.A.rows, kind="stable")
            order = order[single[self.A.rows[order]]]
            arrays = self.A.rows[order], self.A.cols[order], np.flatnonzero(~single)
            self._bounds[device] = Bounds(*(constant(a, device) for a in arrays)) if single.any() else None
        return self._bounds[device]

    @cached_property
    def structure(self) -> Structure | None:
        """What the compiled kernels need to know; None if the program is not for them."""
        cones = self.cones
        limit = COMPILED_LIMIT if cones.is_polyhedral else CURVED_LIMIT
        if cones.power or cones.others or not self.n or self.n + self.m > limit:
            return None
        P, A = (self.P.rows, self.P.cols), (self.A.rows, self.A.cols)
        return Structure.of(P, A, self.n, self.m, cones.zero)

    @cached_property
    def curved(self) -> NDArray[np.int64] | None:
        """The same for cones other than half-lines; None if there are none or the program is not for the kernels."""
        cones = self.cones
        if self.structure is None or cones.is_polyhedral:
            return None
        codes = {"soc": SECOND_ORDER, "psd": SEMIDEFINITE, "exp": EXPONENTIAL}
        blocks = [(codes[block.kind], block.rows.start, block.extra) for block in cones.blocks() if block.kind in codes]
        return table(self.structure, blocks, cones.zero + cones.nonneg, self.visible)

    @property
    def is_dense(self) -> bool:
        """Whether dense linear algebra is used (n + m small)."""
        return self.n + self.m <= DENSE_LIMIT

    @cached_property
    def has_sparse_factor(self) -> bool:
        """Whether the KKT matrix can be factorised sparsely; looked at for large programs only."""
        return self.is_dense or has_sparse_factor(self.P, self.A, self.cones)

    @cached_property
    def _definiteness(self) -> Definiteness:
        return Definiteness(self.P)

    def index(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Row and column indices ``(P rows, P cols, A rows, A cols)`` on a device."""
        if device not in self._index:
            arrays = (self.P.rows, self.P.cols, self.A.rows, self.A.cols)
            self._index[device] = tuple(constant(a, device) for a in arrays)
        p_rows, p_cols, a_rows, a_cols = self._index[device]
        return p_rows, p_cols, a_rows, a_cols

    def jacobian(self, P: Tensor, A: Tensor, v: Tensor) -> Tensor:
        """That of ``(Px + q + A'y, Ax + s - b)`` in ``(x, v = y - s)``, ``(B, n + m, n + m)``; dense programs only."""
        whole_P, whole_A = self.dense(ConicData(P, P, A, A))
        eye = torch.eye(self.m, dtype=v.dtype, device=v.device)
        slopes = self.cones.dual_derivative(v.unsqueeze(1), eye).mT  # columns: directions
        top = torch.cat((whole_P.expand(len(v), -1, -1), whole_A.mT @ slopes), -1)
        return torch.cat((top, torch.cat((whole_A.expand(len(v), -1, -1), slopes - eye), -1)), 1)

    def dense(self, data: ConicData) -> tuple[Tensor, Tensor]:
        """``(P, A)`` as dense tensors ``(B, n, n)`` (both triangles) and ``(B, m, n)``."""
        pr, pc, ar, ac = self.index(data.q.device)
        batch = data.q.shape[0]
        P = data.q.new_zeros(batch, self.n * self.n)
        P[:, pr * self.n + pc] = data.P
        P[:, pc * self.n + pr] = data.P
        A = data.q.new_zeros(batch, self.m * self.n)
        A[:, ar * self.n + ac] = data.A
        return P.view(batch, self.n, self.n), A.view(batch, self.m, self.n)

    def is_convex(self, data: ConicData) -> Tensor:
        """Whether P is positive semidefinite up to rounding, ``(B,)`` bool; see ``linalg.inertia`` for large programs."""
        if not self.P.nnz:
            return torch.ones(data.q.shape[0], dtype=torch.bool, device=data.q.device)
        shift = 1e-8 * data.P.abs().amax(-1) + 1e-300
        if not self.is_dense:
            return self._definiteness(data.P, shift)
        P, _ = self.dense(data)
        _, info = torch.linalg.cholesky_ex(P + torch.diag_embed(shift.unsqueeze(-1).expand(-1, self.n)))
        return info == 0

    def objective(self, x: Tensor, data: ConicData) -> Tensor:
        """``1/2 x'Px + q'x``, ``(B,)``."""
        return (0.5 * self.P_times(data.P, x) * x + data.q * x).sum(-1)

    def P_times(self, P: Tensor, x: Tensor) -> Tensor:
        """``P x`` for pattern values ``(B, nnz)`` and ``x`` ``(B, n)``."""
        if not self.P.nnz:
            return torch.zeros_like(x)
        rows, cols, _, _ = self.index(x.device)
        upper = _scatter_add(P * take(x, cols), rows, self.n)
        off_diagonal = torch.where(rows == cols, torch.zeros_like(P), P)
        return upper + _scatter_add(off_diagonal * take(x, rows), cols, self.n)

    def A_times(self, A: Tensor, x: Tensor) -> Tensor:
        """``A x``, ``(B, m)``."""
        _, _, rows, cols = self.index(x.device)
        return _scatter_add(A * take(x, cols), rows, self.m)

    def At_times(self, A: Tensor, y: Tensor) -> Tensor:
        """``A'y``, ``(B, n)``."""
        _, _, rows, cols = self.index(y.device)
        return _scatter_add(A * take(y, rows), cols, self.n)

    def residual(self, z: Tensor, data: ConicData) -> Tensor:
        """The optimality conditions ``F(z; data)``, ``(B, n + m)``; zero exactly at the solutions."""
        x, v = z[:, : self.n], z[:, self.n :]
        y = self.cones.project_dual(v)
        dual = self.P_times(data.P, x) + data.q + self.At_times(data.A, y)
        primal = self.A_times(data.A, x) + (y - v) - data.b
        return torch.cat([dual, primal], -1)


def _scatter_add(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum ``values`` (B, k) into ``size`` slots by ``index`` (k,)."""
    out = values.new_zeros(values.shape[0], size)
    return out.scatter_add(1, index.expand_as(values), values)

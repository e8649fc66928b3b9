"""The reduced KKT system of a LARGE conic program: sparse factorisation, element by element, never a dense matrix.

Same system and interface as ``linalg.kkt.DenseKKT``. K is assembled in scipy and factorised by SuperLU; where it is
singular, LSMR on the sparse K gives the minimum-norm solution. Every element of the batch has its own factor (the
patterns agree, the numbers do not).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spl
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.cones import DualSpectrum, Product
from ddn_cvx.linalg.kkt import SINGULAR, NullSpace
from ddn_cvx.linalg.pattern import Pattern

Array = NDArray[np.float64]


class SparseKKT:
    """Factors of the reduced systems of B instances of one sparsity pattern.

    Parameters
    ----------
    P_pattern, A_pattern : Pattern
        Upper triangle of P, and A.
    P, A : Tensor (B, nnz)
        Their values.
    spectrum : DualSpectrum
        Eigendecomposition of D at v.
    ok : Tensor (B,) bool
        Elements without a solution; their system is replaced by the identity.
    visible : array (n,) of bool
        The variables whose uniqueness matters.
    """

    def __init__(
        self,
        P_pattern: Pattern,
        A_pattern: Pattern,
        P: Tensor,
        A: Tensor,
        cones: Product,
        spectrum: DualSpectrum,
        ok: Tensor,
        visible: NDArray[np.bool_],
    ):
        self.m, self.n = A_pattern.shape
        self.device = A.device
        values = spectrum.values.clamp(min=0).cpu().numpy()
        bases = None if cones.is_polyhedral else _bases(cones, spectrum)
        P_values, A_values, good = P.cpu().numpy(), A.cpu().numpy(), ok.cpu().numpy()
        self.elements = [
            _Element(
                P_pattern.matrix(P_values[i]), A_pattern.matrix(A_values[i]), values[i], bases[i] if bases else None, visible
            )
            if good[i]
            else _Element(sp.eye_array(self.n), sp.csc_array((self.m, self.n)), np.zeros(self.m), None, visible)
            for i in range(len(values))
        ]
        counts = np.array([e.null for e in self.elements], bool).reshape(-1, 2)
        self.null = NullSpace(*(torch.from_numpy(c.copy()).to(self.device) for c in counts.T))

    def forward(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(a, c)`` with ``J (a, c) = (r, t)``; r (B, n, k), t (B, m, k)."""
        return self._map(_Element.forward, r, t)

    def reverse(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """``(u, w)`` with ``J' (u, w) = (g, h)``; g (B, n, k), h (B, m, k)."""
        return self._map(_Element.reverse, g, h)

    def _map(self, method, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        top, low = first.cpu().numpy(), second.cpu().numpy()
        pairs = [method(e, f, g) for e, f, g in zip(self.elements, top, low, strict=True)]
        out_first = np.stack([p[0] for p in pairs]) if pairs else top
        out_second = np.stack([p[1] for p in pairs]) if pairs else low
        return torch.from_numpy(out_first).to(self.device), torch.from_numpy(out_second).to(self.device)


class _Element:
    """One instance's factor."""

    def __init__(
        self,
        P_upper: sp.csc_array,
        A: sp.csc_array,
        values: Array,
        basis: sp.csc_array | None,
        visible: NDArray[np.bool_],
    ):
        self.A, self.basis, self.root = A, basis, np.sqrt(values)
        m, n = A.shape
        P = P_upper + sp.triu(P_upper, 1).T
        rotated = A if basis is None else basis.T @ A
        SA = sp.diags_array(self.root) @ rotated
        self.K = sp.csc_array(sp.block_array([[P, SA.T], [SA, sp.diags_array(values - 1.0)]]))
        size = np.maximum(abs(self.K).max(axis=1).toarray().ravel(), 0)
        self.scale = np.where(size > 0, 1.0 / np.sqrt(np.where(size > 0, size, 1.0)), 1.0)
        D = sp.diags_array(self.scale)
        self.null = (False, False)
        self.factor = None
        try:
            self.factor = spl.splu(sp.csc_array(D @ self.K @ D))
            probe = np.cos(np.arange(1.0, n + m + 1) ** 2)
            grown = self.factor.solve(probe / np.linalg.norm(probe))
            inverse_norm = np.linalg.norm(self.factor.solve(grown / np.linalg.norm(grown)))
            if not inverse_norm * SINGULAR <= 1.0:
                self.factor = None
        except RuntimeError:  # SuperLU: "Factor is exactly singular"
            self.factor = None
        if self.factor is None:
            self.null = self._null_space(visible)

    def _null_space(self, visible: NDArray[np.bool_]) -> tuple[bool, bool]:
        """Which parts of K are rank-deficient: the residue of a random vector that K's row space cannot reproduce
        lies in the null space, whose primal and dual parts are separate."""
        probe = np.cos(np.arange(1.0, self.K.shape[0] + 1) ** 2)
        residue = probe - self.K @ spl.lsmr(self.K, probe, atol=1e-13, btol=1e-13, maxiter=10 * len(probe))[0]
        threshold = 1e-6 * np.linalg.norm(probe)
        primal, dual = residue[: len(visible)][visible], residue[len(visible) :]
        return bool(np.linalg.norm(primal) > threshold), bool(np.linalg.norm(dual) > threshold)

    def _solve(self, r: Array) -> Array:
        if self.factor is None:
            columns = [
                spl.lsmr(self.K, r[:, k], atol=1e-14, btol=1e-14, maxiter=20 * r.shape[0])[0] for k in range(r.shape[1])
            ]
            return np.stack(columns, 1) if columns else r
        scale = self.scale[:, None]
        z = scale * self.factor.solve(np.ascontiguousarray(scale * r))
        refined: Array = z + scale * self.factor.solve(np.ascontiguousarray(scale * (r - self.K @ z)))
        return refined

    def _rotate(self, t: Array) -> Array:
        return t if self.basis is None else self.basis.T @ t

    def _unrotate(self, t: Array) -> Array:
        return t if self.basis is None else self.basis @ t

    def forward(self, r: Array, t: Array) -> tuple[Array, Array]:
        n = r.shape[0]
        z = self._solve(np.concatenate([r, self.root[:, None] * self._rotate(t)]))
        return z[:n], self.A @ z[:n] + self._unrotate(self.root[:, None] * z[n:]) - t

    def reverse(self, g: Array, h: Array) -> tuple[Array, Array]:
        n = g.shape[0]
        z = self._solve(np.concatenate([g + self.A.T @ h, self.root[:, None] * self._rotate(h)]))
        return z[:n], self._unrotate(self.root[:, None] * z[n:]) - h


def _bases(cones: Product, spectrum: DualSpectrum) -> list[sp.csc_array]:
    """U of each element as a sparse block-diagonal matrix: one column of every block at a time, all blocks together."""
    blocks = [(kind in ("zero", "nonneg"), rows) for kind, rows, _ in cones.blocks()]
    width = max(1 if diagonal else rows.stop - rows.start for diagonal, rows in blocks)
    probe = spectrum.values.new_zeros(cones.size, width)
    row_index, col_index, pick = [], [], []
    for diagonal, rows in blocks:
        size = rows.stop - rows.start
        if diagonal:
            i, j = np.arange(size), np.arange(size)
            local_column = np.zeros(size, np.int64)
            probe[rows, 0] = 1.0
        else:
            i, j = (index.ravel() for index in np.meshgrid(np.arange(size), np.arange(size), indexing="ij"))
            local_column = j
            probe[rows, :size] = torch.eye(size, dtype=probe.dtype, device=probe.device)
        row_index.append(rows.start + i)
        col_index.append(rows.start + j)
        pick.append(local_column)
    rows_all, cols_all, local = (np.concatenate(parts) for parts in (row_index, col_index, pick))
    packed = spectrum.unrotate(probe.expand(spectrum.values.shape[0], -1, -1)).cpu().numpy()
    shape = (cones.size, cones.size)
    return [sp.csc_array((block[rows_all, local], (rows_all, cols_all)), shape=shape) for block in packed]

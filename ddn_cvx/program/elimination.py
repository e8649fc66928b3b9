"""Eliminate variables that an equality defines: ``x_E = c - M x_R``.

Canonical forms of ``sum_squares(A x - b)`` carry an auxiliary variable ``r`` with ``r = A x - b``. Substituting it away
leaves a program of half the size with the quadratic term ``A'A``. A column may go when it appears in exactly one row of
A, that row is an equality, the coefficient there is a constant, and the quadratic terms it meets are constants. Columns
with different such rows go together, because none of them appears in another's row.

Where M is constant the substitution is folded into the affine map from parameters to data, once. Where it depends on
parameters (``A`` is a parameter) it is ordinary batched torch, so its derivatives need no further thought.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.kernels.substitution import Substitution
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.affine_map import SparseLinear
from ddn_cvx.program.conic import DENSE_LIMIT, ConicData, ConicProgram

Index = NDArray[np.int64]


class AffineMap:
    """``u -> matrix[:, :-1] u + matrix[:, -1]``, split into consecutive sections."""

    def __init__(self, matrix: sp.csr_array, sizes: list[int]):
        self.linear = SparseLinear(matrix[:, :-1])
        self.offset = torch.from_numpy(matrix[:, [matrix.shape[1] - 1]].toarray().ravel())
        self.sizes = sizes

    def __call__(self, u: Tensor) -> tuple[Tensor, ...]:
        """Sections ``(B, size)`` for u (B, k)."""
        return (self.linear(u) + self.offset.to(u.device)).split(self.sizes, 1)


@dataclass(frozen=True)
class Posed:
    """A conic program with its data as affine functions of the parameters u (flattened, then a constant 1)."""

    program: ConicProgram
    matrix: sp.csr_array
    """Rows: the values of P, q, d (one row), the values of A, b."""

    @property
    def sizes(self) -> list[int]:
        p = self.program
        return [p.P.nnz, p.n, 1, p.A.nnz, p.m]

    def sections(self) -> list[sp.csr_array]:
        stops = np.cumsum([0, *self.sizes])
        return [self.matrix[a:b] for a, b in itertools.pairwise(stops)]

    def constants(self) -> list[NDArray[np.float64]]:
        """Each section's values, NaN where they depend on a parameter."""
        out = []
        for section in self.sections():
            value = section[:, [section.shape[1] - 1]].toarray().ravel()
            out.append(np.where(np.diff(section[:, :-1].tocsr().indptr) > 0, np.nan, value))
        return out


class Elimination:
    """Binds the reduced program's data, and expands its solutions to the full program.

    Attributes
    ----------
    full, reduced : ConicProgram
        The programs before and after (the same when nothing can be eliminated).
    kept, kept_rows : index arrays
        The columns and rows of the full program that remain.
    """

    def __init__(self, posed: Posed):
        self.full = full = posed.program
        self.full_map = AffineMap(posed.matrix, posed.sizes)
        constants = posed.constants()
        self.curvature_varies = bool(np.isnan(constants[0]).any())
        self.columns, self.rows, self.pivots = _removable(full, constants[0], constants[3])
        self.kept = np.setdiff1d(np.arange(full.n), self.columns)
        self.kept_rows = np.setdiff1d(np.arange(full.m), self.rows)
        self._fold(posed, constants)
        self._constant_terms(posed, constants)
        self._order = np.argsort(np.concatenate([self.kept, self.columns]))
        self._row_order = np.argsort(np.concatenate([self.kept_rows, self.rows]))

    def _fold(self, posed: Posed, constants: list[NDArray[np.float64]]) -> None:
        """Build the map to the reduced data: constant substitutions (E = s) folded in, parametric ones (E = d) prepared."""
        full, (P_map, q_map, _, A_map, b_map) = self.full, posed.sections()
        c_map = sp.csr_array(sp.diags_array(1.0 / self.pivots) @ b_map[self.rows])
        entry = sp.csr_array((np.arange(1, full.A.nnz + 1), (full.A.rows, full.A.cols)), shape=(full.m, full.n))
        M = sp.coo_array(entry[self.rows][:, self.kept])  # M.data - 1 is the position among the values of A
        value = constants[3][M.data - 1] / self.pivots[M.row]
        parametric = np.zeros(len(self.rows), bool)
        parametric[M.row[np.isnan(value)]] = True
        d, s = np.flatnonzero(parametric), np.flatnonzero(~parametric)

        upper = full.P.matrix(np.nan_to_num(constants[0]))
        P = sp.csr_array(upper + sp.triu(upper, 1).T)
        E, M_s = self.columns[s], sp.csr_array((np.nan_to_num(value), (M.row, M.col)), (len(self.rows), len(self.kept)))[s]
        P_RE, P_EE = P[self.kept][:, E], P[E][:, E]
        q_base = q_map[self.kept] - M_s.T @ q_map[E] + (P_RE - M_s.T @ P_EE) @ c_map[s]
        P_fold = sp.coo_array(sp.triu(M_s.T @ P_EE @ M_s - P_RE @ M_s - M_s.T @ P_RE.T))

        E, r = self.columns[d], len(self.kept)
        self.P_dd = torch.from_numpy(P[E][:, E].toarray())
        self.is_diagonal = bool(torch.equal(self.P_dd, torch.diag(self.P_dd.diagonal())))
        self.is_linear = not bool(self.P_dd.any())
        place = np.full(len(self.rows), -1)
        place[d] = np.arange(len(d))
        use = place[M.row] >= 0
        M_rows, M_cols, M_data = place[M.row[use]], M.col[use], M.data[use] - 1
        slots = M_cols * len(d) + M_rows  # M' is stored column-major, which is the order of dense columns of A
        M_map = sp.csr_array((1.0 / self.pivots[M.row[use]], (slots, M_data)), (r * len(d), full.A.nnz)) @ A_map
        touched = sp.csr_array((np.ones(len(slots)), (M_rows, M_cols)), (len(d), r))
        P_add = sp.coo_array(sp.triu(touched.T @ abs(P[E][:, E]) @ touched))

        pattern, P_base, place_of_add = self._quadratic(P_map, P_fold, P_add)
        remaining = sp.csc_array(entry[self.kept_rows][:, self.kept])
        remaining.sort_indices()
        cones = full.cones
        left = replace(cones, zero=cones.zero - len(self.rows))
        self.reduced = ConicProgram(pattern, Pattern.of(abs(remaining)), left, full.visible[self.kept])
        sections = [P_base, q_base, A_map[remaining.data - 1], b_map[self.kept_rows], M_map, c_map[d], q_map[E]]
        self.map = AffineMap(sp.csr_array(sp.vstack(sections)), [section.shape[0] for section in sections])
        self.shape = (r, len(d))
        self._places = P_add.row, P_add.col, place_of_add

    def _quadratic(
        self, P_map: sp.csr_array, P_fold: sp.coo_array, P_add: sp.coo_array
    ) -> tuple[Pattern, sp.csr_array, Index]:
        """The pattern of the reduced P, the map to its values without what ``bind`` adds at ``P_add``, and where that
        is among them."""
        full, r = self.full, len(self.kept)
        position = np.full(full.n, -1)
        position[self.kept] = np.arange(r)
        rows, cols = position[full.P.rows], position[full.P.cols]
        old = np.flatnonzero((rows >= 0) & (cols >= 0))
        code = [
            cols[old] * r + rows[old],
            P_fold.col.astype(np.int64) * r + P_fold.row,
            P_add.col.astype(np.int64) * r + P_add.row,
        ]
        codes = np.unique(np.concatenate(code))
        place = [np.searchsorted(codes, c) for c in code]
        pattern = Pattern.of(sp.csc_array((np.ones(len(codes)), (codes % max(r, 1), codes // max(r, 1))), (r, r)))
        gather = sp.csr_array((np.ones(len(old)), (place[0], old)), (len(codes), full.P.nnz))
        last = np.full(P_fold.nnz, P_map.shape[1] - 1)
        folded = sp.csr_array((P_fold.data, (place[1], last)), (len(codes), P_map.shape[1]))
        flat = P_add.row.astype(np.int64) * r + P_add.col
        self.pick = SparseLinear(sp.csr_array((np.ones(P_add.nnz), (place[2], flat)), (len(codes), r * r)))
        return pattern, gather @ P_map + folded, place[2]

    @cached_property
    def compiled(self) -> Substitution | None:
        """``bind`` for the compiled kernels; None where they do not take the reduced program."""
        if self.reduced.structure is None:
            return None
        matrix, (r, e) = self.map.linear.matrix, self.shape
        integers = (matrix.indptr, matrix.indices, np.cumsum(self.map.sizes), *self._places)
        indptr, indices, stops, rows, cols, places = (np.ascontiguousarray(t, np.int64) for t in integers)
        D, offset = self.P_dd.numpy(), self.map.offset.numpy()
        single = self.map.linear.is_gather and matrix.shape[1] > 0
        source, factor = np.zeros(len(offset), np.int64), np.zeros(len(offset))
        if single:
            filled = np.diff(indptr) == 1
            source[filled], factor[filled] = indices, matrix.data
        return Substitution(
            indptr,
            indices,
            matrix.data,
            offset,
            stops,
            kept=r,
            eliminated=e,
            D=D,
            is_diagonal=self.is_diagonal,
            rows=rows,
            cols=cols,
            places=places,
            is_gather=single,
            source=source,
            factor=factor,
        )

    def bind(self, u: Tensor) -> ConicData:
        """Data of the reduced program for parameters u (B, k); differentiable."""
        P, q, A, b, M_values, c, q_E = self.map(u)
        r, e = self.shape
        if not e:
            return ConicData(P, q, A, b)
        Mt = M_values.reshape(u.shape[0], r, e)
        if self.is_linear:
            pull = q_E
        else:
            P_dd = self.P_dd.to(u.device)
            weighted = Mt * P_dd.diagonal() if self.is_diagonal else Mt @ P_dd
            P = P + self.pick((weighted @ Mt.mT).flatten(1))
            pull = q_E + c @ P_dd
        return ConicData(P, q - (Mt @ pull.unsqueeze(-1)).squeeze(-1), A, b)

    def _constant_terms(self, posed: Posed, constants: list[NDArray[np.float64]]) -> None:
        """``d + q_E'c + 1/2 c'P_EE c``, what the substitution adds to the objective."""
        _, q_map, d_map, _, b_map = posed.sections()
        upper = self.full.P.matrix(np.nan_to_num(constants[0]))[self.columns][:, self.columns]
        self.P_EE = SparseLinear(upper + sp.triu(upper, 1).T)
        sections = [d_map, sp.csr_array(sp.diags_array(1.0 / self.pivots) @ b_map[self.rows]), q_map[self.columns]]
        self.has_constant = any(section.nnz for section in sections)
        self.value_map = AffineMap(sp.csr_array(sp.vstack(sections)), [s.shape[0] for s in sections])

    def constant(self, u: Tensor) -> Tensor:
        """What to add to the reduced program's objective, ``(B,)``."""
        d, c, q_E = self.value_map(u)
        return d[:, 0] + (c * (q_E + 0.5 * self.P_EE(c))).sum(-1)

    def expand(self, x: Tensor, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Full primal (B, n) and full dual (B, m) from the reduced solution.

        The multipliers of the eliminated rows follow from stationarity in the eliminated variables: ``a y = -(P x + q)``.
        """
        P, q, _, A, b = self.full_map(u)
        x = torch.cat([x, x.new_zeros(x.shape[0], len(self.columns))], 1)[:, self._order]
        pivots = torch.from_numpy(self.pivots).to(x.device)
        x_E = (b - self.full.A_times(A, x))[:, self.rows] / pivots
        x = torch.cat([x[:, self.kept], x_E], 1)[:, self._order]
        Px = self.full.P_times(P, x)
        y = torch.cat([y, -(Px + q)[:, self.columns] / pivots], 1)[:, self._row_order]
        return x, y


def _removable(
    program: ConicProgram, P: NDArray[np.float64], A: NDArray[np.float64]
) -> tuple[Index, Index, NDArray[np.float64]]:
    """Columns to eliminate, the rows that define them, and their coefficients there.

    ``P`` and ``A`` hold the constant entries, NaN where they depend on a parameter.
    """
    n, pattern = program.n, program.A
    meets_parameter = np.zeros(n, bool)
    for index in (program.P.rows, program.P.cols):
        meets_parameter[index[np.isnan(P)]] = True
    count = np.diff(pattern.indptr)
    single = np.flatnonzero((count == 1) & ~meets_parameter)
    first = pattern.indptr[single]
    rows, values = pattern.rows[first], A[first]
    good = (rows < program.cones.zero) & np.isfinite(values) & (np.abs(np.nan_to_num(values)) > 1e-8)
    single, rows, values = single[good], rows[good], values[good]
    _, unique = np.unique(rows, return_index=True)
    single, rows, values = single[unique], rows[unique], values[unique]
    parametric_rows = np.zeros(program.m, bool)
    parametric_rows[pattern.rows[np.isnan(A)]] = True
    dynamic = parametric_rows[rows]
    # a parametric M may meet constant quadratic terms among its own columns only
    in_dynamic = np.zeros(n, bool)
    in_dynamic[single[dynamic]] = True
    mixed = in_dynamic[program.P.rows] != in_dynamic[program.P.cols]
    clash = np.zeros(n, bool)
    clash[program.P.rows[mixed]] = clash[program.P.cols[mixed]] = True
    keep = ~(dynamic & clash[single])
    if mixed.any():  # dropping some columns would let others meet them: drop all parametric ones
        keep = ~dynamic
    if n + program.m - 2 * int(keep.sum()) > DENSE_LIMIT:
        # a large program stays sparse: only substitutions by at most one other variable, which cannot fill in P
        entries = np.bincount(pattern.rows, minlength=program.m)
        keep &= ~dynamic & (entries[rows] <= 2)
    if int(keep.sum()) == n:
        keep[0] = False  # a program keeps a variable
    order = np.argsort(single[keep])
    return single[keep][order], rows[keep][order], values[keep][order]

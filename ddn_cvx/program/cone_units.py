"""Units for the rows of programs with curved cones and for their auxiliary variables.

A point of a curved cone and its multiplier are one vector ``y - s``. In rows that are 1e8 times as large s is too, and y is
1e-8 times as large, so it is lost to rounding. A cone times a number is that cone: each block of rows is divided by its
largest coefficient of a declared variable, and an auxiliary variable (an epigraph) gets the unit that makes its own
coefficients in such blocks ordinary. Programs of half-lines only need none of this.

That is done for the coefficients that are constant when a problem is declared, and for those that are parameters in every
call, for each element.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.kernels.cone_units import Groups, are_ordinary
from ddn_cvx.kernels.jit import Task, sweep
from ddn_cvx.kernels.substitution import Substitution
from ddn_cvx.program.affine_map import constant, take
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.elimination import Elimination

Index = NDArray[np.int64]
EXTREME = 2.0**12
"""Where a parameter makes the largest coefficient of a curved cone larger than this, or smaller than its reciprocal, its
rows get units of their own."""


class _Step(NamedTuple):
    """Entries of A whose largest sizes become the units of blocks, or of columns: where they are, and whose they are."""

    entries: Index
    owners: Index
    columns: bool


class ConeUnits:
    """Factors for the rows and the columns of A: powers of two, so that nothing is rounded.

    Parameters
    ----------
    program : ConicProgram
        Whose rows and columns they are.
    visible : array of bool (n,)
        The variables that somebody declared, whose units are given.
    limit : float
        A largest coefficient between this and its reciprocal is left as it is.
    """

    def __init__(self, program: ConicProgram, visible: NDArray[np.bool_], limit: float):
        half_lines = program.cones.zero + program.cones.nonneg
        self._program, self._limit, self._block = program, limit, program.cones.rows_alike
        self.curved = program.A.rows >= half_lines
        """The entries of A in rows of curved cones."""
        self._steps = self._plan(visible) if self.curved.any() else []

    def _plan(self, visible: NDArray[np.bool_]) -> list[_Step]:
        """From the declared variables to the blocks they are in, from these to their auxiliary variables, and so on."""
        A, steps = self._program.A, list[_Step]()
        rows, cols, known, done = self._block[A.rows], A.cols, visible.copy(), np.zeros(self._program.m, bool)
        while not done[rows].all():
            seen = known[cols] & ~done[rows]
            if not seen.any():
                seen = ~done[rows]  # what is tied to no declared variable takes its units as they come
            steps.append(_Step(np.flatnonzero(seen), rows[seen], False))
            done[rows[seen]] = True
            tied = done[rows] & ~known[cols] & self.curved
            steps.append(_Step(np.flatnonzero(tied), cols[tied], True))
            known[cols[tied]] = True
        return steps

    def of(self, A: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of rows ``(B, m)`` and of columns ``(B, n)`` for the values of A ``(B, nnz(A))``, or for sizes that
        are expected of them; constant where they are differentiated."""
        A = A.detach().abs()
        program = self._program
        rows, columns = A.new_ones(*A.shape[:-1], program.m), A.new_ones(*A.shape[:-1], program.n)
        where = constant(self._block[program.A.rows], A.device), constant(program.A.cols, A.device)
        for step in self._steps:
            entries, owners = (constant(index, A.device) for index in (step.entries, step.owners))
            sizes = take(A, entries) * take(rows, where[0][entries]) * take(columns, where[1][entries])
            units = columns if step.columns else rows
            largest = torch.zeros_like(units).scatter_reduce(-1, owners.expand(sizes.shape), sizes, "amax")
            extreme = (largest > 0) & ((largest > self._limit) | (largest < 1 / self._limit))
            units = torch.exp2(-torch.log2(torch.where(extreme, largest, 1.0)).round()) * units
            rows, columns = (rows, units) if step.columns else (units, columns)
        return take(rows, constant(self._block, A.device)), columns

    def groups(self, binding: Substitution, parametric: NDArray[np.bool_]) -> Groups:
        """What the compiled kernels look at, to know that all factors are one, where some entries of A are ``parametric``.
        A little less is ordinary there, so that rounding does not matter."""
        rows, sizes = [np.zeros(0, np.int64)], [0]
        for step in self._steps:
            varying = np.isin(step.owners, step.owners[parametric[step.entries]])
            order = np.argsort(step.owners[varying], kind="stable")
            rows.append(int(binding.stops[1]) + step.entries[varying][order])
            sizes += np.unique(step.owners[varying], return_counts=True)[1].tolist()
        return Groups(binding, np.concatenate(rows), np.cumsum(sizes), self._limit * (1 - 1e-9))

    def apply(self, data: ConicData) -> ConicData:
        """The numbers in these units, with ``x / columns``, ``s * rows`` and ``y / rows`` for solutions; differentiable."""
        rows, columns = self.of(data.A)
        p_rows, p_cols, a_rows, a_cols = self._program.index(data.A.device)
        P = data.P * take(columns, p_rows) * take(columns, p_cols)
        return ConicData(P, data.q * columns, data.A * take(rows, a_rows) * take(columns, a_cols), data.b * rows)


class ParametricUnits:
    """The units of a program whose coefficients depend on parameters u, of which an element's units are a function.

    Parameters
    ----------
    elimination : Elimination
        The program, and the map from parameters to its numbers.
    """

    def __init__(self, elimination: Elimination):
        self._elimination, program = elimination, elimination.reduced
        self._units = ConeUnits(program, program.visible, EXTREME)
        start = program.P.nnz + program.n
        self._parametric = np.diff(elimination.map.linear.matrix.indptr)[start : start + program.A.nnz] > 0
        self._varies = bool((self._units.curved & self._parametric).any())

    def bind(self, u: Tensor) -> ConicData:
        """``Elimination.bind`` in these units; differentiable."""
        data = self._elimination.bind(u)
        return self._units.apply(data) if self._varies else data

    def undo(self, x: Tensor, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The solution without them."""
        if not self._varies:
            return x, y
        rows, columns = self._units.of(self._elimination.bind(u).A)
        return x * columns, y * rows

    @cached_property
    def _groups(self) -> Groups | None:
        binding = self._elimination.compiled
        return self._units.groups(binding, self._parametric) if self._varies and binding is not None else None

    def are_one(self, u: NDArray[np.float64]) -> bool:
        """Whether there is nothing to do for u (B, k); for programs that have compiled kernels."""
        if self._groups is None:
            return True
        found = np.empty(len(u), np.bool_)
        sweep(len(u), [Task(are_ordinary, 2 * len(self._groups.rows), (self._groups, u, found))])
        return bool(found.all())

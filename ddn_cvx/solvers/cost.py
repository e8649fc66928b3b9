"""What a solver costs: operations from the structure of a program, seconds from measured rates.

    seconds for a batch of B  =  call + B (element + operations / rate)

``call`` is what every call costs, ``element`` what every instance costs on top of its arithmetic. The rates are those of one
thread of the machine on which ``python -m benchmarks.cost_model`` wrote them; only their ratios matter for a choice, and
those differ less between machines. A further solver needs a function that counts its operations in ``OPERATIONS``, and a
measured line in ``cost_rates``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from ddn_cvx.program.conic import DENSE_LIMIT, ConicProgram
from ddn_cvx.solvers.cost_rates import RATES

_SIZES: WeakKeyDictionary[ConicProgram, Size] = WeakKeyDictionary()


@dataclass(frozen=True)
class Size:
    """What decides about the operations of one instance."""

    n: int
    m: int
    equalities: int
    bounds: int
    """Inequalities with a single variable."""
    entries: int
    """Stored entries of P and A."""
    separable: bool
    """Whether P is diagonal, with all of its diagonal stored, and every inequality is a bound."""
    sparse: float
    """Operations of a sparse factorisation of the KKT matrix."""
    curved: bool = False
    """Whether there are cones other than half-lines."""
    matrices: float = 0.0
    """The sum of the third powers of the orders of the semidefinite matrices."""

    @staticmethod
    def of(program: ConicProgram) -> Size:
        """Count what the program stores."""
        if program not in _SIZES:
            _SIZES[program] = Size._count(program)
        return _SIZES[program]

    @staticmethod
    def _count(program: ConicProgram) -> Size:
        zero, counts = program.cones.zero, np.bincount(program.A.rows, minlength=program.m)
        end = zero + program.cones.nonneg
        bounds = int((counts[zero:end] == 1).sum())
        diagonal = program.P.nnz == program.n and bool((program.P.rows == program.P.cols).all())
        return Size(
            program.n,
            program.m,
            zero,
            bounds,
            program.P.nnz + program.A.nnz,
            diagonal and bounds == program.m - zero,
            _sparse_operations(program),
            not program.cones.is_polyhedral,
            float(sum(order**3 for order in program.cones.psd)),
        )

    @property
    def rows(self) -> int:
        """Rows that a dense factorisation has to multiply out."""
        return self.m - self.bounds


def _sparse_operations(program: ConicProgram) -> float:
    """The sum of the squares of the columns' lengths in a factor of the KKT matrix, ordered for few entries."""
    n, m = program.n, program.m
    if not program.is_dense:  # no dense method competes, and the count would take long
        return float(program.P.nnz + program.A.nnz)
    P, A = (pattern.matrix(np.ones(pattern.nnz)) for pattern in (program.P, program.A))
    upper = sp.triu(P, 1)
    # Numbers that need no pivoting: the diagonal dominates.
    diagonal = 2.0 * DENSE_LIMIT
    K = sp.block_array([[upper + upper.T + diagonal * sp.eye_array(n), A.T], [A, -diagonal * sp.eye_array(m)]])
    options = {"SymmetricMode": True}
    factor = splu(sp.csc_matrix(K), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
    return float((np.diff(factor.L.indptr).astype(float) ** 2).sum())


def _active_set(s: Size) -> float:
    """A factor of P, then a rank-one update for each of the active constraints: the equalities, and say half of what can
    be active beside them. Separable programs need the equalities' Schur complement only, for a few guesses."""
    if s.separable:
        return 5 * (s.equalities**2 * s.n + s.entries)
    active = min(s.n, s.equalities + (s.m - s.equalities) / 3)
    return s.n**3 / 3 + active * (4 * s.n**2 + 2 * s.entries)


def _dense_interior_point(s: Size) -> float:
    """Twelve times: multiply out, factorise, solve twice."""
    return 12 * (s.rows * s.n**2 + s.n**3 / 3 + 8 * s.n**2 + 8 * s.entries)


def _sparse_interior_point(s: Size) -> float:
    """Twelve factorisations of the sparse KKT matrix."""
    return 12 * (s.sparse + 20 * (s.entries + s.n + s.m) + 20 * s.matrices)


def _compiled_interior_point(s: Size) -> float:
    """With curved cones the factor is sparse, by columns as they are."""
    return 3 * _sparse_interior_point(s) if s.curved else _dense_interior_point(s)


def _conic_interior_point(s: Size) -> float:
    """Dense, with products of matrices for semidefinite ones."""
    return _dense_interior_point(s) + 12 * 100 * s.matrices


OPERATIONS: dict[str, Callable[[Size], float]] = {
    "active_set": _active_set,
    "mehrotra": _compiled_interior_point,
    "interior_point": _dense_interior_point,
    "conic_interior_point": _conic_interior_point,
    "clarabel": _sparse_interior_point,
}
"""Operations of one instance by the name of the solver."""


@dataclass(frozen=True)
class Rate:
    """Measured constants of a solver on a kind of device."""

    call: float
    """Seconds for a call."""
    element: float
    """Seconds for an instance, besides its arithmetic."""
    operations: float
    """Operations a second."""

    def seconds(self, operations: float, batch: int) -> float:
        """Seconds for a batch."""
        return self.call + batch * (self.element + operations / self.operations)


def rate(solver: str, device: str) -> Rate | None:
    """The constants of a solver on "cpu" or "cuda"; None if they were not measured."""
    found = RATES.get((solver, device))
    return None if found is None else Rate(*found)


def seconds(solver: str, size: Size, batch: int, device: str = "cpu") -> float | None:
    """Estimated time of a batch on one thread; None for solvers and devices that were not measured."""
    known = rate(solver, device)
    return None if known is None else known.seconds(OPERATIONS[solver](size), batch)

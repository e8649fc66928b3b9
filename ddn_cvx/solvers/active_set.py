"""Compiled active-set methods for small strictly convex quadratic programs, exact up to rounding.

Goldfarb & Idnani's dual method (``kernels.active_set``), and for separable programs with bounds the primal-dual method
(``kernels.separable``) before it. A batch costs no Python an element: threads share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ddn_cvx.checks import require_positive_options
from ddn_cvx.kernels import active_set, separable
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Workspace
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.compiled import Array, Compiled, Prepared, run, solve_batch, unsupported


@register
@dataclass(frozen=True)
class ActiveSet(Compiled):
    """The compiled active-set methods, for small strictly convex quadratic programs; exact up to rounding.

    Goldfarb & Idnani's dual method (Math. Programming 27, 1983) and, for separable programs with bounds, the primal-dual
    method of Hintermüller, Ito & Kunisch (SIAM J. Optim. 13, 2003) before it.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    >>> layer = ddn.DeclarativeLayer(problem, [p], x, solver=ddn.ActiveSet())
    >>> layer(torch.tensor([[0.8, 0.6], [0.5, 0.9]]))
    tensor([[0.6000, 0.4000],
            [0.3000, 0.7000]])
    """

    name: ClassVar[str] = "active_set"
    minds_time: ClassVar[bool] = True
    minds_units: ClassVar[bool] = False

    threads: int | None = None
    """Threads that share a batch; None is one a processor (default None)."""

    def __post_init__(self) -> None:
        require_positive_options(self, "threads")

    def unsupported(self, program: ConicProgram) -> str | None:
        if not program.cones.is_polyhedral:
            return "it takes equalities and inequalities only, and the program has other cones"
        reason = unsupported(program)
        if reason is not None:
            return reason
        if len(np.unique(program.P.rows[program.P.rows == program.P.cols])) < program.n:
            return "its objective must be strictly convex: a variable has no quadratic term"
        return None

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch. The methods start from the minimiser without constraints: ``warm`` is not used."""
        return solve_batch(self, program, data)

    def prepare(self, program: ConicProgram, data: Sequence[Array]) -> Prepared:
        if program.structure is not None and program.structure.separable:
            return Prepared.of(separable.solve, program, data, 20.0 * (program.n + program.m), self.threads)
        return self._dual(program, data)

    def _dual(self, program: ConicProgram, data: Sequence[Array]) -> Prepared:
        n = program.n
        return Prepared.of(active_set.solve, program, data, n**3 / 3 + n * n * (n + program.m), self.threads)

    def complete(self, program: ConicProgram, data: Sequence[Array], prepared: Prepared) -> None:
        left = np.flatnonzero(prepared.status == int(Status.ITERATION_LIMIT))
        if program.structure is not None and program.structure.separable and len(left):
            rest = self._dual(program, [t[left] for t in data])
            run(rest)
            for whole, part in zip(prepared[1:6], rest[1:6], strict=True):
                whole[left] = part

"""Clarabel: an interior-point method for all cones with a quadratic objective (Goulart & Chen, 2024).

One solver object a thread and program is kept and given new numbers for every element. An element's answer
depends on nothing but its own data, to the last bit: presolve is off, the object is built from zeros, and the
equilibration, which Clarabel fixes at construction, is done here for each element anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch

from ddn_cvx.checks import require_positive_options
from ddn_cvx.cones import Product
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.deadline import limit
from ddn_cvx.solvers.elementwise import Answer, closed_form, options, requires, solve_each
from ddn_cvx.solvers.equilibrate import Equilibration

_STATUS = {
    "Solved": Status.SOLVED,
    "AlmostSolved": Status.INACCURATE,
    "InsufficientProgress": Status.INACCURATE,
    "PrimalInfeasible": Status.INFEASIBLE,
    "AlmostPrimalInfeasible": Status.INFEASIBLE,
    "DualInfeasible": Status.UNBOUNDED,
    "AlmostDualInfeasible": Status.UNBOUNDED,
    "MaxIterations": Status.ITERATION_LIMIT,
    "MaxTime": Status.TIME_LIMIT,
}


@register
@dataclass(frozen=True)
class Clarabel(Solver):
    """Clarabel, an interior-point method for all cones, by the package of this name (Goulart & Chen, 2024). Options have
    its own names; tolerances apply to the equilibrated problem.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    >>> layer = ddn.DeclarativeLayer(problem, [p], x, solver=ddn.Clarabel(tol_feas=1e-9))
    >>> layer(torch.tensor([[0.8, 0.6], [0.5, 0.9]]))
    tensor([[0.6000, 0.4000],
            [0.3000, 0.7000]])
    """

    name: ClassVar[str] = "clarabel"
    minds_time: ClassVar[bool] = True

    tol_feas: float = 1e-10
    """Relative primal and dual residual at which an element is solved (default 1e-10)."""
    tol_gap_abs: float = 1e-10
    """Absolute duality gap (default 1e-10)."""
    tol_gap_rel: float = 1e-10
    """Relative duality gap (default 1e-10)."""
    tol_infeas_abs: float = 1e-8
    """Absolute tolerance of certificates of infeasibility (default 1e-8)."""
    tol_infeas_rel: float = 1e-8
    """Relative tolerance of certificates of infeasibility (default 1e-8)."""
    max_iter: int = 200
    """Iterations for one element (default 200)."""
    time_limit: float = math.inf
    """Seconds for one element (default no limit)."""
    threads: int | None = None
    """Threads that share a batch; None is one a processor (default None)."""
    verbose: bool = False
    """Print Clarabel's progress (default False)."""

    def __post_init__(self) -> None:
        tolerances = ("tol_feas", "tol_gap_abs", "tol_gap_rel", "tol_infeas_abs", "tol_infeas_rel")
        require_positive_options(self, *tolerances, "max_iter", "time_limit", "threads")

    def unsupported(self, program: ConicProgram) -> str | None:
        _package()
        return None

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch. Clarabel has no warm start: ``warm`` is not used."""
        if program.n == 0:
            return closed_form(program, data)
        equilibrate = workspace.get(("equilibration", program), lambda: Equilibration(program))
        P, q, A, b, D, E, c = equilibrate(data)
        seconds = min(self.time_limit, limit())

        def worker() -> Callable[[int], Answer]:
            kept = workspace.get((self, program, seconds), lambda: [self._solver(program, seconds)])

            def one(i: int) -> Answer:
                # Lists are read several times faster than arrays.
                kept[0].update(P=P[i].tolist(), q=q[i].tolist(), A=A[i].tolist(), b=b[i].tolist())
                try:
                    found = kept[0].solve()
                except BaseException:  # a failed assertion inside, which ruins the object
                    kept[0] = self._solver(program, seconds)
                    raise
                status = _STATUS.get(str(found.status), Status.NUMERICAL_ERROR)
                return Answer(status, found.iterations, found.x, found.z, found.s)

            return one

        raw = solve_each(program, data, worker, workspace, self.threads)
        x, y, s = raw.x * torch.as_tensor(D), raw.y * torch.as_tensor(E / c), raw.s / torch.as_tensor(E)
        return RawSolution(x, y, s, raw.status, raw.iterations)

    def _solver(self, program: ConicProgram, seconds: float) -> Any:
        """Clarabel's own object for programs of this structure, holding zeros."""
        clarabel = _package()
        settings = clarabel.DefaultSettings()
        for option, value in options(self, "threads").items():
            setattr(settings, option, value)
        settings.time_limit = seconds
        settings.direct_solve_method = "qdldl"
        settings.max_threads = 1
        settings.presolve_enable = settings.chordal_decomposition_enable = settings.equilibrate_enable = False
        return clarabel.DefaultSolver(
            _zeros(program.P),
            np.zeros(program.n),
            _zeros(program.A),
            np.zeros(program.m),
            _cones(program.cones),
            settings,
        )


def _package() -> Any:
    with requires("clarabel"):
        import clarabel
    return clarabel


def _zeros(pattern: Pattern) -> sp.csc_matrix:
    return sp.csc_matrix((np.zeros(pattern.nnz), pattern.rows, pattern.indptr), shape=pattern.shape)


def _cones(cones: Product) -> list[Any]:
    clarabel = _package()
    make = {
        "zero": clarabel.ZeroConeT,
        "nonneg": clarabel.NonnegativeConeT,
        "soc": lambda k: clarabel.SecondOrderConeT(k) if k > 1 else clarabel.NonnegativeConeT(k),
        "psd": clarabel.PSDTriangleConeT,
        "exp": lambda _: clarabel.ExponentialConeT(),
        "power": lambda alpha: clarabel.PowerConeT(alpha[0]) if len(alpha) == 2 else clarabel.GenPowerConeT(alpha, 1),
    }
    return [make[block.kind](block.extra) for block in cones.blocks()]

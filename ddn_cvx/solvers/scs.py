"""SCS: a first-order splitting method with a quadratic objective (O'Donoghue, 2021). Slow to high accuracy,
cheap on large programs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ddn_cvx.checks import require_positive_options
from ddn_cvx.errors import InputError
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.row_order import RowOrder, scs_cones, scs_rows
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.deadline import limit
from ddn_cvx.solvers.elementwise import Answer, closed_form, options, requires, solve_each
from ddn_cvx.solvers.guard import is_breakdown

Floats = NDArray[np.float64]

_SIGINT = -5
_STATUS = {
    1: Status.SOLVED,
    2: Status.INACCURATE,
    -1: Status.UNBOUNDED,
    -2: Status.INFEASIBLE,
    # The best guess at a limit, too weak to call a program infeasible or unbounded.
    -6: Status.ITERATION_LIMIT,
    -7: Status.ITERATION_LIMIT,
}


@register
@dataclass(frozen=True)
class SCS(Solver):
    """SCS, a splitting method for all cones but power cones of more than three rows, by the package of this name
    (O'Donoghue, SIAM J. Optim. 31, 2021). Options have its own names.

    Raises
    ------
    InputError
        An option that is not positive; when solving, one that SCS refuses.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    >>> layer = ddn.DeclarativeLayer(problem, [p], x, solver=ddn.SCS(eps_abs=1e-6, eps_rel=1e-6))
    >>> layer(torch.tensor([[0.8, 0.6], [0.5, 0.9]]))
    tensor([[0.6000, 0.4000],
            [0.3000, 0.7000]])
    """

    name: ClassVar[str] = "scs"
    minds_time: ClassVar[bool] = True

    eps_abs: float = 1e-9
    """Absolute feasibility and gap tolerance (default 1e-9)."""
    eps_rel: float = 1e-9
    """Relative feasibility and gap tolerance (default 1e-9)."""
    eps_infeas: float = 1e-7
    """Tolerance of certificates of infeasibility (default 1e-7)."""
    max_iters: int = 100_000
    """Iterations for one element (default 100000)."""
    time_limit_secs: float = 0.0
    """Seconds for one element; 0 is no limit (default 0)."""
    alpha: float = 1.5
    """Relaxation, between 0 and 2 (default 1.5)."""
    rho_x: float = 1e-6
    """Weight of x in the splitting (default 1e-6)."""
    scale: float = 0.1
    """First dual scale factor (default 0.1)."""
    adaptive_scale: bool = True
    """Adapt the dual scale factor on the way (default True)."""
    normalize: bool = True
    """Equilibrate the data (default True)."""
    acceleration_lookback: int = 10
    """Memory of Anderson acceleration; 0 turns it off (default 10)."""
    acceleration_interval: int = 10
    """Iterations between two accelerations (default 10)."""
    linear_solver: str = "qdldl"
    """Back end of SCS for its linear system (default "qdldl")."""
    reuse: bool = False
    """Keep the factorisation while P and A stay the same, for the next element and the next call. Saves time
    on large programs; answers then depend, within tolerance, on what was solved before (default False)."""
    threads: int | None = None
    """Threads that share a batch; None is one a processor (default None)."""
    verbose: bool = False
    """Print SCS's progress (default False)."""

    def __post_init__(self) -> None:
        names = ("eps_abs", "eps_rel", "eps_infeas", "max_iters", "alpha", "rho_x", "scale", "threads")
        require_positive_options(self, *names)

    def unsupported(self, program: ConicProgram) -> str | None:
        _package()
        higher = [alpha for alpha in program.cones.power if len(alpha) > 2]
        return f"SCS has three-dimensional power cones only, here is one with exponents {higher[0]}" if higher else None

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch, starting from ``warm`` where it is finite."""
        if program.n == 0 or program.m == 0:
            return closed_form(program, data)
        order = workspace.get(("scs rows", program), lambda: RowOrder.of(program.A, scs_rows(program.cones)))
        rows, entries = order.rows, order.entries
        P, q, A, b = (values.numpy() for values in data)
        A, b = A[:, entries], b[:, rows]
        starts = None if warm is None else (warm.x.numpy(), warm.y.numpy()[:, rows], warm.s.numpy()[:, rows])
        back = np.argsort(rows)
        seconds = min(self.time_limit_secs or math.inf, limit())

        def worker() -> Callable[[int], Answer]:
            kept = workspace.get((self, program, seconds), _Kept)

            def one(i: int) -> Answer:
                if self.reuse and kept.holds(P[i], A[i]):
                    kept.solver.update(b=b[i], c=q[i])
                else:
                    kept.renew(P[i], A[i], self._solver(program, order, seconds, P[i], q[i], A[i], b[i]))
                start = None if starts is None else [np.ascontiguousarray(t[i]) for t in starts]
                if start is None or not all(np.isfinite(t).all() for t in start):
                    found = kept.solver.solve(warm_start=False)
                else:
                    found = kept.solver.solve(warm_start=True, x=start[0], y=start[1], s=start[2])
                status = found["info"]["status_val"]
                if status == _SIGINT:
                    raise KeyboardInterrupt
                ended = _STATUS.get(status, Status.NUMERICAL_ERROR)
                return Answer(ended, found["info"]["iter"], found["x"], found["y"][back], found["s"][back])

            return one

        return solve_each(program, data, worker, workspace, self.threads)

    def _solver(
        self, program: ConicProgram, order: RowOrder, seconds: float, P: Floats, q: Floats, A: Floats, b: Floats
    ) -> Any:
        def matrix(values: Floats, pattern: Any) -> sp.csc_matrix:
            return sp.csc_matrix((values, pattern.rows, pattern.indptr), shape=pattern.shape)

        settings = options(self, "reuse", "threads", "time_limit_secs") | {
            "time_limit_secs": 0.0 if seconds == math.inf else seconds
        }
        problem = {"P": matrix(P, program.P), "A": matrix(A, order.pattern), "b": b, "c": q}
        try:
            return _package().SCS(problem, scs_cones(program.cones), **settings)
        except ValueError as error:
            if is_breakdown(error):
                raise
            raise InputError(f"SCS refuses an option: {error}") from error


class _Kept:
    """A solver object of SCS and the matrices it was made for."""

    solver: Any = None
    P: Floats
    A: Floats

    def holds(self, P: Floats, A: Floats) -> bool:
        return self.solver is not None and np.array_equal(self.P, P) and np.array_equal(self.A, A)

    def renew(self, P: Floats, A: Floats, solver: Any) -> None:
        self.solver, self.P, self.A = solver, P.copy(), A.copy()


def _package() -> Any:
    with requires("scs"):
        import scs
    return scs

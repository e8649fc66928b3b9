"""ECOS: an interior-point method for second-order and exponential cones (Domahidi, Chu & Boyd, 2013).
Licensed under the GPL.

It knows no quadratic objective: one becomes a second-order cone constraint, and the multipliers are mapped
back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ddn_cvx.checks import require_positive_options
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.row_order import RowOrder
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.elementwise import (
    Answer,
    closed_form,
    options,
    requires,
    solve_each,
    solve_epigraph,
)

_SIGINT = -4
_STATUS = {
    0: Status.SOLVED,
    1: Status.INFEASIBLE,
    2: Status.UNBOUNDED,
    10: Status.INACCURATE,
    11: Status.INFEASIBLE,
    12: Status.UNBOUNDED,
    -1: Status.ITERATION_LIMIT,
}


@register
@dataclass(frozen=True)
class ECOS(Solver):
    """ECOS, an interior-point method for second-order and exponential cones, by the package of this name, which is
    licensed under the GPL (Domahidi, Chu & Boyd, 2013). Options have its own names.

    Raises
    ------
    InputError
        An option that is not positive; the package is not installed.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    >>> layer = ddn.DeclarativeLayer(problem, [p], x, solver=ddn.ECOS(max_iters=100))
    >>> layer(torch.tensor([[0.8, 0.6], [0.5, 0.9]]))
    tensor([[0.6000, 0.4000],
            [0.3000, 0.7000]])
    """

    name: ClassVar[str] = "ecos"
    minds_time: ClassVar[bool] = True

    abstol: float = 1e-9
    """Absolute duality gap (default 1e-9)."""
    reltol: float = 1e-9
    """Relative duality gap (default 1e-9)."""
    feastol: float = 1e-9
    """Primal and dual feasibility (default 1e-9)."""
    max_iters: int = 200
    """Iterations for one element (default 200)."""
    verbose: bool = False
    """Print ECOS's progress (default False)."""

    def __post_init__(self) -> None:
        require_positive_options(self, "abstol", "reltol", "feastol", "max_iters")

    def unsupported(self, program: ConicProgram) -> str | None:
        _package()
        missing = [kind for kind in ("psd", "power") if getattr(program.cones, kind)]
        return f"ECOS has no {' and no '.join(missing)} cones" if missing else None

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch. ECOS has no warm start: ``warm`` is not used."""
        if program.n == 0 or program.m == 0:
            return closed_form(program, data)
        if program.P.nnz:
            return solve_epigraph(program, data, workspace, lambda p, d: self.solve(p, d, workspace))
        ecos, cones = _package(), program.cones
        equal, rest = workspace.get(("ecos rows", program), lambda: _split(program))
        dims = {"l": cones.nonneg, "q": list(cones.soc), "e": cones.exp}
        settings = options(self)
        _, q, A, b = (values.numpy() for values in data)
        back = np.argsort(np.concatenate([equal.rows, rest.rows]))

        def one(i: int) -> Answer:
            G, h = _constraint(rest, A[i], b[i])
            found = ecos.solve(q[i], G, h, dims, *_constraint(equal, A[i], b[i]), **settings)
            status = found["info"]["exitFlag"]
            if status == _SIGINT:
                raise KeyboardInterrupt
            y = np.concatenate([found["y"], found["z"]])[back]
            s = np.concatenate([np.zeros(cones.zero), found["s"]])[back]
            return Answer(_STATUS.get(status, Status.NUMERICAL_ERROR), found["info"]["iter"], found["x"], y, s)

        def worker() -> Callable[[int], Answer]:
            return one

        return solve_each(program, data, worker, workspace)


def _split(program: ConicProgram) -> tuple[RowOrder, RowOrder]:
    """The equalities, and the other rows in ECOS's order: its exponential cone is (x, z, y)."""
    zero, m, cones = program.cones.zero, program.m, program.cones
    rest = np.arange(zero, m)
    triples = rest[m - zero - 3 * cones.exp :].reshape(-1, 3)
    rest[m - zero - 3 * cones.exp :] = triples[:, [0, 2, 1]].ravel()
    return RowOrder.of(program.A, np.arange(zero)), RowOrder.of(program.A, rest)


def _constraint(order: RowOrder, A: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[Any, Any]:
    """Matrix and right-hand side, or nothing when there are no rows."""
    if not len(order.rows):
        return None, None
    pattern = order.pattern
    return sp.csc_matrix((A[order.entries], pattern.rows, pattern.indptr), shape=pattern.shape), b[order.rows]


def _package() -> Any:
    with requires("ecos"):
        import ecos
    return ecos

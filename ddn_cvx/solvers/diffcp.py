"""The forward solve as the package diffcp does it, one of SCS, ECOS and Clarabel in diffcp's settings, for
comparison with its results."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp

from ddn_cvx.checks import require_positive_options
from ddn_cvx.errors import InputError
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.row_order import RowOrder, scs_cones, scs_rows
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.elementwise import (
    Answer,
    closed_form,
    requires,
    solve_each,
    solve_epigraph,
)

# What each solver calls its tolerances and its limit, and the limit's default.
_OPTIONS = {
    "SCS": (("eps_abs", "eps_rel"), "max_iters", 100_000),
    "ECOS": (("abstol", "reltol", "feastol"), "max_iters", 200),
    "Clarabel": (("tol_feas", "tol_gap_abs", "tol_gap_rel"), "max_iter", 200),
}


@register
@dataclass(frozen=True)
class Diffcp(Solver):
    """The package diffcp's choice of solvers, one element after another, for comparison with its results (Agrawal et
    al., 2019).

    Raises
    ------
    InputError
        An unknown ``solve_method``, an option that is not positive, or diffcp is not installed.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    >>> layer = ddn.DeclarativeLayer(problem, [p], x, solver=ddn.Diffcp("Clarabel"))
    >>> layer(torch.tensor([[0.8, 0.6], [0.5, 0.9]]))
    tensor([[0.6000, 0.4000],
            [0.3000, 0.7000]])
    """

    name: ClassVar[str] = "diffcp"
    minds_time: ClassVar[bool] = True

    solve_method: Literal["SCS", "ECOS", "Clarabel"] = "SCS"
    """The solver that diffcp calls (default "SCS")."""
    max_iterations: int | None = None
    """Iterations for one element (default 100000 for SCS, 200 for the others)."""
    tolerance: float = 1e-9
    """All of that solver's tolerances (default 1e-9)."""

    def __post_init__(self) -> None:
        require_positive_options(self, "tolerance", "max_iterations")
        if self.solve_method not in _OPTIONS:
            raise InputError(f"option 'solve_method' of 'diffcp' must be one of {[*_OPTIONS]}, got {self.solve_method!r}")

    def unsupported(self, program: ConicProgram) -> str | None:
        _package()
        if program.cones.power:
            return "diffcp has no power cones"
        return "ECOS has no psd cones" if program.cones.psd and self.solve_method == "ECOS" else None

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch. ``warm`` is not used."""
        if program.n == 0 or program.m == 0:
            return closed_form(program, data)
        if program.P.nnz and self.solve_method == "ECOS":
            return solve_epigraph(program, data, workspace, lambda p, d: self.solve(p, d, workspace))
        diffcp = _package()
        order = workspace.get(("scs rows", program), lambda: RowOrder.of(program.A, scs_rows(program.cones)))
        back = np.argsort(order.rows)
        cones = {"z": 0, **scs_cones(program.cones)}
        tolerances, limit, default = _OPTIONS[self.solve_method]
        options = {**dict.fromkeys(tolerances, self.tolerance), limit: self.max_iterations or default}
        P, q, A, b = (values.numpy() for values in data)

        def one(i: int) -> Answer:
            matrix = sp.csc_matrix(
                (A[i][order.entries], order.pattern.rows, order.pattern.indptr), shape=order.pattern.shape
            )
            upper = sp.csc_matrix(program.P.matrix(P[i])) if program.P.nnz else None
            try:
                found = diffcp.solve_internal(
                    matrix,
                    b[i][order.rows],
                    q[i],
                    cones,
                    solve_method=self.solve_method,
                    raise_on_error=False,
                    P=upper,
                    **options,
                )
            except diffcp.SolverError as error:  # of ECOS, whatever raise_on_error says
                return Answer(_status(str(error).rsplit(maxsplit=1)[-1]), 0, None, None, None)
            status = _status(found["info"]["status"])
            return Answer(status, found["info"]["iter"], found["x"], found["y"][back], found["s"][back])

        def worker() -> Callable[[int], Answer]:
            return one

        with warnings.catch_warnings():
            # diffcp warns of what the status says.
            warnings.filterwarnings("ignore", "Solved/Inaccurate")
            return solve_each(program, data, worker, workspace)


def _status(text: str) -> Status:
    """From the words of the three solvers."""
    words = text.lower()
    if words.startswith("solved") or words.startswith("optimal"):
        return Status.INACCURATE if "inaccurate" in words else Status.SOLVED
    if "infeasible" in words:
        return Status.INFEASIBLE
    return Status.UNBOUNDED if "unbounded" in words else Status.NUMERICAL_ERROR


def _package() -> Any:
    with requires("diffcp"):
        import diffcp
    return diffcp

"""Any solver that cvxpy can call: OSQP, PIQP, DAQP, HiGHS, CVXOPT, QOCO, ProxQP, MOSEK, Gurobi ...

Each element is handed to cvxpy as a problem of its own, in canonical form, and the multipliers are read back.
That costs milliseconds an element; it is a way to every solver, not a fast one.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ddn_cvx.errors import InputError
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.elementwise import Answer, closed_form, solve_each

Floats = NDArray[np.float64]

_STATUS = {
    "optimal": Status.SOLVED,
    "optimal_inaccurate": Status.INACCURATE,
    "infeasible": Status.INFEASIBLE,
    "infeasible_inaccurate": Status.INFEASIBLE,
    "unbounded": Status.UNBOUNDED,
    "unbounded_inaccurate": Status.UNBOUNDED,
    "user_limit": Status.ITERATION_LIMIT,
}

# Tolerances that make derivatives worth having, where the solver's own defaults are loose.
_TIGHT: dict[str, dict[str, Any]] = {
    "CVXOPT": {"abstol": 1e-8, "reltol": 1e-8, "feastol": 1e-8},
    "DAQP": {"primal_tol": 1e-10, "dual_tol": 1e-12},
    "HIGHS": {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    "OSQP": {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iter": 100_000, "polishing": True},
    "PIQP": {"eps_abs": 1e-10, "eps_rel": 1e-10},
    "PROXQP": {"eps_abs": 1e-9, "eps_rel": 0.0},
    "QOCO": {"abstol": 1e-9, "reltol": 1e-9},
}

# The options of solvers that would ignore an unknown one in silence. The other solvers complain themselves.
_KNOWN = {
    "CVXOPT": "abstol reltol feastol max_iters maxiters refinement kktsolver",
    "DAQP": "primal_tol dual_tol zero_tol pivot_tol progress_tol cycle_tol iter_limit fval_bound eps_prox eta_prox",
    "GLPK": "glpk",
    "QOCO": "abstol reltol abstol_inacc reltol_inacc max_iters ruiz_iters max_ir_iters ir_tol kkt_static_reg_P "
    "kkt_static_reg_A kkt_static_reg_G kkt_dynamic_reg algebra",
}

# Arguments of cvxpy's own `solve` that any solver takes.
_COMMON = {"verbose", "warm_start", "canon_backend"}

# Where the package is not called like the solver.
_PIP = {
    "GUROBI": "gurobipy",
    "HIGHS": "highspy",
    "MOSEK": "mosek",
    "PROXQP": "proxsuite",
    "GLPK": "cvxopt",
    "COPT": "coptpy",
}


@dataclass(frozen=True)
class CvxpySolver(Solver):
    """A solver of cvxpy, by cvxpy's name for it (OSQP, PIQP, DAQP, HiGHS, CVXOPT, QOCO, MOSEK, Gurobi ...). Milliseconds
    an element: a way to every solver, not a fast one. ``solver="osqp"`` of a layer means this one, too.

    Raises
    ------
    InputError
        The solver is not known or not installed, or it does not know one of the options.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    >>> layer = ddn.DeclarativeLayer(problem, [p], x, solver=ddn.CvxpySolver("CLARABEL"))
    >>> layer(torch.tensor([[0.8, 0.6], [0.5, 0.9]]))
    tensor([[0.6000, 0.4000],
            [0.3000, 0.7000]])
    """

    name: ClassVar[str] = "cvxpy"
    minds_time: ClassVar[bool] = True

    solver: str = "OSQP"
    """cvxpy's name of the solver, in any case (default "OSQP")."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Options for ``cvxpy.Problem.solve``, as they are; those that are not given keep the solver's default,
    but tolerances are tight."""

    def __post_init__(self) -> None:
        import cvxpy as cp

        if not isinstance(self.solver, str):
            raise InputError(f"CvxpySolver takes the name of a solver, such as 'OSQP', got {self.solver!r}")
        solver = self.solver.upper()
        object.__setattr__(self, "solver", solver)
        object.__setattr__(self, "options", dict(self.options))
        if solver not in installed():
            raise InputError(
                f"cvxpy has no solver '{solver}' here; installed are {', '.join(installed())}. "
                f"If it exists, `pip install {_PIP.get(solver, solver.lower())}` adds it"
            )
        known = _KNOWN[solver].split() if solver in _KNOWN else None
        for option in self.options:
            if known is not None and option not in known and option not in _COMMON:
                raise InputError(f"solver '{solver}' has no option '{option}'; it has {', '.join(known)}")
        # Whether the others know their options shows on the least of problems.
        x = cp.Variable(1)
        trial = cp.Problem(cp.Minimize(cp.sum(x)), [x >= 1])
        try:
            self._run(trial)
        except (cp.SolverError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"solver '{solver}' rejects the options {self.options}: {error}") from error

    def unsupported(self, program: ConicProgram) -> str | None:
        from cvxpy.reductions.solvers import defines

        cones = program.cones
        if self.solver in defines.SOLVER_MAP_QP and not (cones.soc or cones.psd or cones.exp or cones.power):
            return None
        conic = defines.SOLVER_MAP_CONIC.get(self.solver)
        known = {kind.__name__ for kind in conic.SUPPORTED_CONSTRAINTS} if conic else set()
        needs = {
            "second-order": (bool(cones.soc), {"SOC"}),
            "PSD": (bool(cones.psd), {"PSD", "SvecPSD"}),
            "exponential": (bool(cones.exp), {"ExpCone"}),
            "three-dimensional power": (any(len(a) == 2 for a in cones.power), {"PowCone3D"}),
            "higher-dimensional power": (any(len(a) > 2 for a in cones.power), {"PowConeND"}),
        }
        missing = [kind for kind, (present, names) in needs.items() if present and not names & known]
        if missing:
            return f"{self.solver} has no {', '.join(missing)} cones"
        quadratic = conic is not None and (conic.supports_quad_obj() or "SOC" in known)
        return None if quadratic or not program.P.nnz else f"{self.solver} has no quadratic objective"

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch, one cvxpy problem an element. ``warm`` is not used."""
        if program.n == 0 or program.m == 0:
            return closed_form(program, data)
        P, q, A, b = (values.numpy() for values in data)

        def one(i: int) -> Answer:
            return self._one(program, P[i], q[i], A[i], b[i])

        def worker() -> Callable[[int], Answer]:
            return one

        return solve_each(program, data, worker, workspace)

    def _one(self, program: ConicProgram, P: Floats, q: Floats, A: Floats, b: Floats) -> Answer:
        import cvxpy as cp

        x = cp.Variable(program.n)
        matrix = program.A.matrix(A)
        constraints, read = _constraints(program, b - matrix @ x)
        objective = q @ x
        if program.P.nnz:
            upper = program.P.matrix(P)
            symmetric = sp.csc_array(upper + sp.triu(upper, 1).T)
            objective = objective + 0.5 * cp.quad_form(x, cp.psd_wrap(symmetric))
        problem = cp.Problem(cp.Minimize(objective), constraints)
        feasibility = cp.Problem(cp.Minimize(0), constraints)
        try:
            self._run(problem)
            if problem.status == "infeasible_or_unbounded":  # without an objective only the first is possible
                self._run(feasibility)
                feasible = feasibility.status == "optimal"
                return Answer(Status.UNBOUNDED if feasible else Status.INFEASIBLE, 0, None, None, None)
        except (cp.SolverError, ValueError):  # the latter where cvxpy cannot read what came back
            return Answer(Status.NUMERICAL_ERROR, 0, np.nan, np.nan, np.nan)
        status = _STATUS.get(problem.status, Status.NUMERICAL_ERROR)
        if x.value is None or any(c.dual_value is None for c in constraints):
            if status in (Status.SOLVED, Status.INACCURATE):
                raise InputError(f"solver '{self.solver}' returns no dual variables, which derivatives need; choose another")
            return Answer(status, 0, np.nan, np.nan, np.nan)
        y = np.concatenate([recover(c) for c, recover in zip(constraints, read, strict=True)])
        return Answer(status, int(problem.solver_stats.num_iters or 0), x.value, y, b - matrix @ x.value)

    def _run(self, problem: Any) -> None:
        if self.solver == "HIGHS":
            _let_highs_greet()
        with warnings.catch_warnings():
            # cvxpy warns of what the status says.
            warnings.simplefilter("ignore")
            problem.solve(solver=self.solver, **{**_TIGHT.get(self.solver, {}), **self.options})


@cache
def _let_highs_greet() -> None:
    """HiGHS prints name and licence when a process first makes a solver object, whatever its options: make one unseen."""
    import cvxpy as cp

    x = cp.Variable(1)
    with _silence(), suppress(cp.SolverError):
        cp.Problem(cp.Minimize(cp.sum(x)), [x >= 1]).solve(solver="HIGHS")


@contextmanager
def _silence() -> Iterator[None]:
    """What code below Python prints goes nowhere."""
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def installed() -> list[str]:
    """cvxpy's names of the solvers that can be used here."""
    import cvxpy as cp

    return list(cp.installed_solvers())


Recipe = tuple[Callable[[Any], Any], Callable[[Any], Floats]]


def _constraints(program: ConicProgram, s: Any) -> tuple[list[Any], list[Callable[[Any], Floats]]]:
    """``s`` in K as cvxpy constraints, and how to read the rows of y from each."""
    recipes = [(block.rows, RECIPES[block.kind](block.extra)) for block in program.cones.blocks()]
    return [make(s[rows]) for rows, (make, _) in recipes], [read for _, (_, read) in recipes]


def _zero(_: int) -> Recipe:
    # cvxpy's Lagrangian adds the multiplier of an equality and subtracts those of s in K.
    return lambda s: s == 0, lambda c: -c.dual_value


def _nonneg(_: int) -> Recipe:
    return lambda s: s >= 0, lambda c: c.dual_value


def _second_order(_: int) -> Recipe:
    import cvxpy as cp

    return lambda s: cp.SOC(s[0], s[1:]), _stacked


def _psd(k: int) -> Recipe:
    import cvxpy as cp

    full = _full_from_svec(k)
    return (
        lambda s: cp.reshape(full @ s, (k, k), order="F") >> 0,
        lambda c: full.T @ c.dual_value.ravel(order="F"),
    )


def _exponential(_: int) -> Recipe:
    import cvxpy as cp

    return lambda s: cp.ExpCone(s[0], s[1], s[2]), _stacked


def _power(alpha: tuple[float, ...]) -> Recipe:
    import cvxpy as cp

    if len(alpha) == 2:
        return lambda s: cp.PowCone3D(s[0], s[1], s[2], alpha[0]), _stacked
    return lambda s: cp.PowConeND(s[:-1], s[-1], np.array(alpha)), _stacked


RECIPES: dict[str, Callable[[Any], Recipe]] = {
    "zero": _zero,
    "nonneg": _nonneg,
    "soc": _second_order,
    "psd": _psd,
    "exp": _exponential,
    "power": _power,
}


def _stacked(constraint: Any) -> Floats:
    return np.concatenate([np.ravel(part) for part in constraint.dual_value])


def _full_from_svec(k: int) -> sp.csr_array:
    """The linear map from svec (k(k+1)/2,) to the symmetric matrix's k*k entries."""
    column, row = np.tril_indices(k)  # entry (row, column) of the upper triangle, column by column
    index = np.arange(len(row))
    value = np.where(row == column, 1.0, np.sqrt(0.5))
    upper = sp.csr_array((value, (column * k + row, index)), shape=(k * k, len(row)))
    off = row != column
    lower = sp.csr_array((value[off], (row[off] * k + column[off], index[off])), shape=(k * k, len(row)))
    return sp.csr_array(upper + lower)

"""From the ``solver`` and ``solver_args`` of cvxpylayers to a solver of this package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from ddn_cvx.errors import InputError
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.cvxpy_any import CvxpySolver
from ddn_cvx.solvers.diffcp import Diffcp
from ddn_cvx.solvers.registry import resolve
from ddn_cvx.solvers.scs import SCS

METHODS = {"SCS": "SCS", "ECOS": "ECOS", "Clarabel": "Clarabel", "CLARABEL": "Clarabel"}
EXACT_MODES = ("lsqr", "lsmr", "dense")
ELSEWHERE = ("MOREAU", "CUCLARABEL", "MPAX")

TOLERANCES = {
    "eps": ("tolerance", "eps_abs", "eps_rel", "tol_feas", "tol_gap_abs", "tol_gap_rel", "feastol", "abstol", "reltol"),
    "eps_abs": ("tolerance", "eps_abs", "tol_gap_abs", "abstol"),
    "eps_rel": ("tolerance", "eps_rel", "tol_feas", "tol_gap_rel", "feastol", "reltol"),
}
COUNTERPARTS = TOLERANCES | {
    "max_iters": ("max_iters", "max_iter", "max_iterations"),
    "max_iter": ("max_iters", "max_iter", "max_iterations"),
    "time_limit_secs": ("time_limit_secs", "time_limit"),
    "n_jobs_forward": ("threads",),
}
"""Names of cvxpylayers, and what the solvers here call the same thing. Any other name is passed on as it is."""

KNOBS = {
    *("alpha", "rho_x", "scale", "adaptive_scale", "normalize", "eps_infeas", "linear_solver", "use_indirect", "gpu"),
    *("acceleration_lookback", "acceleration_interval", "n_jobs_backward", "verbose"),
}
"""Options of the way to an answer, not of the answer: a solver that has no such option does without."""


def choose(solver: str | Solver | None, args: Mapping[str, Any]) -> Solver:
    """The solver that the arguments of cvxpylayers ask for.

    Parameters
    ----------
    solver : str, Solver or None
        As given to the constructor.
    args : mapping
        ``solver_args`` of the constructor, overridden by those of the call.

    Raises
    ------
    InputError
        A solver, an option or a mode that is not known here.
    """
    args = dict(args)
    mode = args.pop("mode", "lsqr")
    if mode not in EXACT_MODES:
        raise InputError(
            f"solver_args['mode'] must be one of {', '.join(EXACT_MODES)}, got {mode!r}. The derivative here is "
            "exact; the approximate ones of mode='lpgd' are not available."
        )
    base = _base(solver, args)
    if isinstance(base, CvxpySolver):
        own = {name: value for name, value in args.items() if not name.startswith("n_jobs")}
        return replace(base, options={**base.options, **own}) if own else base
    known = [option.name for option in fields(base)]  # type: ignore[arg-type]  # every solver is a dataclass
    changes: dict[str, Any] = {}
    for name, value in args.items():
        targets = [target for target in COUNTERPARTS.get(name, (name,)) if target in known]
        if not targets and (name == "time_limit_secs" or name not in KNOBS | COUNTERPARTS.keys()):
            raise InputError(
                f"solver_args: solver '{base.name}' has no option {name!r}. It has: {', '.join(known)}. "
                f"Names of cvxpylayers: {', '.join(sorted({*COUNTERPARTS, *KNOBS, 'mode', 'solve_method'}))}."
            )
        for target in targets:
            changes[target] = _converted(name, value, target, changes.get(target, getattr(base, target)))
    return replace(base, **changes) if changes else base  # type: ignore[type-var]  # every solver is a dataclass


def _base(solver: str | Solver | None, args: dict[str, Any]) -> Solver:
    """The solver without its options; takes ``solve_method`` out of ``args``."""
    if not isinstance(solver, (str, Solver, type(None))):
        raise InputError(
            f"solver must be a name or a ddn_cvx solver object, got {type(solver).__name__}. Objects that bring a "
            "derivative along, such as cvxpylayers' SolverInterface, cannot be used: here it does not depend on the solver."
        )
    if isinstance(solver, str) and solver.upper() in ELSEWHERE:
        raise InputError(f"Solver {solver!r} is one of cvxpylayers only; leave solver=None or name another.")
    method = args.pop("solve_method", None)
    if method is not None and method not in METHODS:
        raise InputError(f"Solver {method} not supported: solver_args['solve_method'] must be one of {', '.join(METHODS)}.")
    if isinstance(solver, str) and solver.upper() == "DIFFCP":
        return Diffcp(solve_method=METHODS[method or "SCS"])  # type: ignore[arg-type]  # the names are those literals
    if method is not None:
        return resolve(METHODS[method])
    if solver is None and ("time_limit_secs" in args or args.get("verbose")):
        return Clarabel()  # the default has neither
    return resolve(solver)


def _converted(name: str, value: Any, target: str, present: Any) -> Any:
    """The value of the solver's option ``target``, which is ``present`` so far."""
    if name in TOLERANCES:
        if not isinstance(value, (int, float)):
            raise InputError(f"solver_args[{name!r}] must be a number, got {value!r}.")
        # Looser, and whether the layer can accept the answer would be left to luck on linear programs.
        return min(value, present)
    if name == "n_jobs_forward":
        return None if value == -1 else value
    return math.inf if target == "time_limit" and value == 0 else value


@dataclass(frozen=True)
class WarmStarted(Solver):
    """SCS, started from its own last solution when that was of a batch of the same size."""

    name: ClassVar[str] = "scs from its last solution"

    solver: SCS
    """The solver and its options."""

    def unsupported(self, program: ConicProgram) -> str | None:
        return self.solver.refusal(program)

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch; elements that had no solution last time start cold."""
        last: list[RawSolution] = workspace.get(("last", program), list)
        if last and last[0].x.shape == data.q.shape:
            warm = last[0]
        last[:] = [self.solver.solve(program, data, workspace, warm)]
        return last[0]

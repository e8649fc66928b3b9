"""From the name of a solver of nonlinear programs to the solver."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from ddn_cvx.errors import InputError
from ddn_cvx.solvers.augmented_lagrangian import AugmentedLagrangian
from ddn_cvx.solvers.lbfgs import LBFGS
from ddn_cvx.solvers.newton import Newton, NewtonKrylov
from ddn_cvx.solvers.nonlinear_auto import NonlinearAuto
from ddn_cvx.solvers.nonlinear_base import NonlinearSolver
from ddn_cvx.solvers.nonlinear_interior_point import NonlinearInteriorPoint

NONLINEAR_SOLVERS: dict[str, type[NonlinearSolver]] = {
    "auto": NonlinearAuto,
    **{kind.name: kind for kind in (AugmentedLagrangian, LBFGS, Newton, NewtonKrylov, NonlinearInteriorPoint)},
}


def resolve_nonlinear(solver: object, options: Mapping[str, Any] | None = None) -> NonlinearSolver:
    """The solver for a name in any case, a solver object, or None (which is "auto").

    Raises
    ------
    InputError
        An unknown name or option, or options next to a solver object, which has its own.
    """
    options = {} if options is None else options
    if isinstance(solver, NonlinearSolver):
        if options:
            raise InputError(f"options {sorted(options)} belong into the solver object: {type(solver).__name__}(...)")
        return solver
    name = "auto" if solver is None else solver
    known = ", ".join(NONLINEAR_SOLVERS)
    if not isinstance(name, str):
        raise InputError(
            f"solver of a nonlinear problem must be a name ({known}) or a NonlinearSolver object, got {solver!r}"
        )
    if name.lower() not in NONLINEAR_SOLVERS:
        raise InputError(
            f"no solver '{name}' for nonlinear problems is known{_hint(name, NONLINEAR_SOLVERS)}. Known: {known}"
        )
    kind = NONLINEAR_SOLVERS[name.lower()]
    allowed = [option.name for option in fields(kind)]  # type: ignore[arg-type]  # every solver is a dataclass
    for option in options:
        if option not in allowed:
            raise InputError(
                f"solver '{kind.name}' has no option '{option}'{_hint(option, allowed)}. It has: {', '.join(allowed)}"
            )
    return kind(**options)


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""

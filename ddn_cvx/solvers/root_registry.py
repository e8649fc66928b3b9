"""From the name of a solver of equations to the solver."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ddn_cvx.errors import InputError
from ddn_cvx.solvers.anderson import Anderson
from ddn_cvx.solvers.broyden import Broyden
from ddn_cvx.solvers.root_auto import RootAuto
from ddn_cvx.solvers.root_base import RootSolver
from ddn_cvx.solvers.root_newton import RootNewton

ROOT_SOLVERS: dict[str, type[RootSolver]] = {kind.name: kind for kind in (RootAuto, Anderson, Broyden, RootNewton)}


def resolve_root(solver: object, options: Mapping[str, Any] | None = None) -> RootSolver:
    """The solver for a name in any case, a solver object, or None (which is "auto").

    Raises
    ------
    InputError
        An unknown name or option, or options next to a solver object, which has its own.
    """
    options = {} if options is None else options
    if isinstance(solver, RootSolver):
        if options:
            raise InputError(f"options {sorted(options)} belong into the solver object: {type(solver).__name__}(...)")
        return solver
    name = "auto" if solver is None else solver
    known = ", ".join(ROOT_SOLVERS)
    if not isinstance(name, str):
        raise InputError(f"solver of a fixed point or root must be a name ({known}) or a RootSolver object, got {solver!r}")
    if name.lower() not in ROOT_SOLVERS:
        close = difflib.get_close_matches(name, ROOT_SOLVERS, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise InputError(f"no solver '{name}' for fixed points and roots is known{hint}. Known: {known}")
    kind = ROOT_SOLVERS[name.lower()]
    allowed = [option.name for option in fields(kind)]  # type: ignore[arg-type]  # every solver is a dataclass
    unknown = [option for option in options if option not in allowed]
    if unknown:
        raise InputError(f"solver '{kind.name}' has no option '{unknown[0]}'. It has: {', '.join(allowed) or 'none'}")
    return kind(**options)

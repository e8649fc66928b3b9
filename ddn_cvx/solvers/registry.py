"""From the name of a solver to the solver."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ddn_cvx.errors import InputError
from ddn_cvx.solvers.active_set import ActiveSet
from ddn_cvx.solvers.auto import Auto
from ddn_cvx.solvers.base import Solver
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.cvxpy_any import CvxpySolver, installed
from ddn_cvx.solvers.diffcp import Diffcp
from ddn_cvx.solvers.ecos import ECOS
from ddn_cvx.solvers.interior_point import InteriorPoint
from ddn_cvx.solvers.mehrotra import Mehrotra
from ddn_cvx.solvers.scs import SCS

SOLVERS: dict[str, type[Solver]] = {
    "active_set": ActiveSet,
    "auto": Auto,
    "clarabel": Clarabel,
    "diffcp": Diffcp,
    "ecos": ECOS,
    "interior_point": InteriorPoint,
    "mehrotra": Mehrotra,
    "scs": SCS,
}


def resolve(solver: str | Solver | None, options: Mapping[str, Any] | None = None) -> Solver:
    """The solver for a name in any case, a solver object, or None (which is "auto").

    Names are those of ``SOLVERS`` and those of the solvers that cvxpy finds installed.

    Raises
    ------
    InputError
        An unknown name or option, or options next to a solver object, which has its own.
    """
    options = {} if options is None else options
    if isinstance(solver, Solver):
        if options:
            raise InputError(
                f"options {sorted(options)} belong into the solver object: {type(solver).__name__}(...)"
            )
        return solver
    if solver is None:
        solver = Auto.name
    if not isinstance(solver, str):
        raise InputError(f"solver must be a name or a Solver object, got {solver!r}")
    name = solver.lower()
    if name in SOLVERS:
        return _build(SOLVERS[name], options)
    others = [other.lower() for other in installed()]
    if name in others:
        return CvxpySolver(name, options)
    known = sorted({*SOLVERS, *others})
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    raise InputError(f"no solver '{solver}' is known or installed{hint}. Known here: {', '.join(known)}")


def _build(kind: type[Solver], options: Mapping[str, Any]) -> Solver:
    known = [option.name for option in fields(kind)]  # type: ignore[arg-type]  # every solver is a dataclass
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise InputError(
                f"solver '{kind.name}' has no option '{option}'{hint}. It has: {', '.join(known) or 'none'}"
            )
    return kind(**options)

"""From the name of a solver of conic programs to the solver: importing one here makes it known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddn_cvx.errors import InputError
from ddn_cvx.solvers import (  # noqa: F401 -- they register themselves
    active_set,
    clarabel,
    conic_interior_point,
    diffcp,
    ecos,
    first_order,
    interior_point,
    mehrotra,
    scs,
)
from ddn_cvx.solvers.auto import Auto
from ddn_cvx.solvers.base import Solver
from ddn_cvx.solvers.by_name import build, hint, named, own
from ddn_cvx.solvers.cvxpy_any import CvxpySolver, installed

SOLVERS = Solver.known


def resolve(solver: str | Solver | None, options: Mapping[str, Any] | None = None) -> Solver:
    """The solver for a name (``by_name.named``), a solver object, or None (which is "auto").

    Names are those of ``SOLVERS`` and those of the solvers that cvxpy finds installed.

    Raises
    ------
    InputError
        An unknown name or option, or options next to a solver object, which has its own.
    """
    given = own(solver, options, Solver)  # type: ignore[type-abstract]  # any subclass will do
    if given is not None:
        return given
    if solver is None:
        solver = Auto.name
    if not isinstance(solver, str):
        raise InputError(f"solver must be a name or a Solver object, got {solver!r}")
    kind, name = named(solver, SOLVERS), solver.lower()
    if kind is not None:
        return build(kind, kind.name, options)
    others = [other.lower() for other in installed()]
    if name in others:
        return CvxpySolver(name, options or {})
    known = sorted({*SOLVERS, *others})
    raise InputError(f"no solver '{solver}' is known or installed{hint(name, known)}. Known here: {', '.join(known)}")

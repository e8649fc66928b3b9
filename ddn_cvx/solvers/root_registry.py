"""From the name of a solver of equations to the solver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddn_cvx.solvers.anderson import Anderson
from ddn_cvx.solvers.broyden import Broyden
from ddn_cvx.solvers.by_name import find
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
    return find(solver, options, ROOT_SOLVERS, RootSolver, "fixed point or root")  # type: ignore[type-abstract]

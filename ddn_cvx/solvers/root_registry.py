"""From the name of a solver of equations to the solver: importing one here makes it known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddn_cvx.solvers import anderson, broyden, root_auto, root_newton  # noqa: F401 -- they register themselves
from ddn_cvx.solvers.by_name import find
from ddn_cvx.solvers.root_base import RootSolver


def resolve_root(solver: object, options: Mapping[str, Any] | None = None) -> RootSolver:
    """The solver for a name (``by_name.named``), a solver object, or None (which is "auto").

    Raises
    ------
    InputError
        An unknown name or option, or options next to a solver object, which has its own.
    """
    return find(solver, options, RootSolver.known, RootSolver, "fixed point or root")  # type: ignore[type-abstract]

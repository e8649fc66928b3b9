"""From the name of a solver of nonlinear programs to the solver: importing one here makes it known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddn_cvx.solvers import (  # noqa: F401 -- they register themselves
    augmented_lagrangian,
    compiled_nonlinear,
    lbfgs,
    least_squares,
    multi_start,
    newton,
    nonlinear_auto,
    nonlinear_interior_point,
)
from ddn_cvx.solvers.by_name import find
from ddn_cvx.solvers.nonlinear_base import NonlinearSolver


def resolve_nonlinear(solver: object, options: Mapping[str, Any] | None = None) -> NonlinearSolver:
    """The solver for a name (``by_name.named``), a solver object, or None (which is "auto").

    Raises
    ------
    InputError
        An unknown name or option, or options next to a solver object, which has its own.
    """
    return find(solver, options, NonlinearSolver.known, NonlinearSolver, "nonlinear problem")  # type: ignore[type-abstract]

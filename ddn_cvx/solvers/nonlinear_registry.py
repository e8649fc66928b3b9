"""From the name of a solver of nonlinear programs to the solver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddn_cvx.solvers.augmented_lagrangian import AugmentedLagrangian
from ddn_cvx.solvers.by_name import find
from ddn_cvx.solvers.compiled_nonlinear import CompiledInteriorPoint
from ddn_cvx.solvers.lbfgs import LBFGS
from ddn_cvx.solvers.newton import Newton, NewtonKrylov
from ddn_cvx.solvers.nonlinear_auto import NonlinearAuto
from ddn_cvx.solvers.nonlinear_base import NonlinearSolver
from ddn_cvx.solvers.nonlinear_interior_point import NonlinearInteriorPoint

NONLINEAR_SOLVERS: dict[str, type[NonlinearSolver]] = {
    "auto": NonlinearAuto,
    **{
        kind.name: kind
        for kind in (AugmentedLagrangian, CompiledInteriorPoint, LBFGS, Newton, NewtonKrylov, NonlinearInteriorPoint)
    },
}


def resolve_nonlinear(solver: object, options: Mapping[str, Any] | None = None) -> NonlinearSolver:
    """The solver for a name in any case, a solver object, or None (which is "auto").

    Raises
    ------
    InputError
        An unknown name or option, or options next to a solver object, which has its own.
    """
    return find(solver, options, NONLINEAR_SOLVERS, NonlinearSolver, "nonlinear problem")  # type: ignore[type-abstract]

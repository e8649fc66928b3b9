"""Which solver a problem gets: each kind of problem has its registry of solvers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddn_cvx.declare.cvxpy_nonconvex import NonconvexProblem
from ddn_cvx.declare.fixed_point import FixedPoint, Root
from ddn_cvx.declare.node import Node
from ddn_cvx.declare.ode import ODE
from ddn_cvx.declare.torch_problem import TorchProblem
from ddn_cvx.errors import DeclarationError, InputError
from ddn_cvx.solvers.base import Solver
from ddn_cvx.solvers.nonlinear_base import NonlinearSolver
from ddn_cvx.solvers.nonlinear_registry import resolve_nonlinear
from ddn_cvx.solvers.ode_base import Integrator
from ddn_cvx.solvers.registry import resolve
from ddn_cvx.solvers.root_base import RootSolver
from ddn_cvx.solvers.root_registry import resolve_root
from ddn_cvx.solvers.torchdiffeq import resolve_integrator

AnySolver = Solver | NonlinearSolver | RootSolver | Integrator


def solver_for(solver: str | AnySolver | None, options: Mapping[str, Any] | None, node: Node) -> AnySolver:
    """The solver for a name, an object or None, with the options of a name.

    Raises
    ------
    DeclarationError
        The solver cannot take the problem.
    InputError
        An unknown solver or option, or a solver for another kind of problem.
    """
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f"solver_options must be a mapping of names to values, got {options!r}.")
    if isinstance(node, TorchProblem):
        return resolve_nonlinear(solver, options)
    if isinstance(node, NonconvexProblem):
        try:
            return resolve_nonlinear(solver, options)
        except InputError as error:
            raise InputError(f"{error}. The problem needs a solver of nonlinear problems. {node.reason}") from error
    if isinstance(node, FixedPoint | Root):
        return resolve_root(solver, options)
    if isinstance(node, ODE):
        return resolve_integrator(solver, options)
    if isinstance(solver, NonlinearSolver | RootSolver | Integrator):
        raise InputError(f"{type(solver).__name__} is for nonlinear problems; this one is a cone program.")
    found = resolve(solver, options)
    reason = found.refusal(node.program)
    if reason is not None:
        raise DeclarationError(f"Solver {found.name!r} cannot take this problem: {reason}")
    return found

"""From an adjoint object to what it does with a nonlinear program."""

from __future__ import annotations

from ddn_cvx.adjoint.base import Adjoint
from ddn_cvx.adjoint.implicit import Implicit
from ddn_cvx.adjoint.kkt_solve import NonlinearAdjoint, NonlinearSolve, Solved
from ddn_cvx.adjoint.nonlinear import solution_map
from ddn_cvx.errors import DeclarationError
from ddn_cvx.program.nonlinear import Theta


def attach(adjoint: Adjoint, solve: NonlinearSolve, theta: Theta, batch: int) -> Solved:
    """Run ``solve(theta)`` for ``batch`` elements and return its result as a differentiable function of ``theta``.

    Raises
    ------
    DeclarationError
        The adjoint is for conic programs only.
    """
    if isinstance(adjoint, Implicit):
        return solution_map(solve, theta, batch, adjoint.weakly_active)
    if isinstance(adjoint, NonlinearAdjoint):
        return adjoint.attach_nonlinear(solve, theta, batch)
    raise DeclarationError(f"{type(adjoint).__name__} cannot differentiate a nonlinear problem; use adjoint=Implicit().")

"""Nonlinear programs by sequential quadratic programming, as scipy has it: a solver of
nonlinear programs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from ddn_cvx import Status
from ddn_cvx.extend import (
    NonlinearPoint,
    NonlinearProgram,
    NonlinearSolver,
    Theta,
    multipliers,
    register,
)

STATUS = {0: Status.SOLVED, 4: Status.INFEASIBLE, 9: Status.ITERATION_LIMIT}


@register
@dataclass(frozen=True)
class SLSQP(NonlinearSolver):
    """One element after the other, with the derivatives of the program."""

    name: ClassVar[str] = "slsqp"

    tolerance: float = 1e-10
    """Change of the objective at which it stops (default 1e-10)."""
    max_iterations: int = 200
    """Iterations for one element (default 200)."""

    def unsupported(self, program: NonlinearProgram) -> str | None:
        return (
            None
            if program.is_dense
            else "it forms Jacobians, and the program is too large for that"
        )

    def solve(
        self,
        program: NonlinearProgram,
        theta: Theta,
        start: torch.Tensor,
        warm: NonlinearPoint | None = None,
    ) -> NonlinearPoint:
        point = NonlinearPoint.blank(program, start.clone())
        for i in range(len(start)):
            row = torch.tensor([i])
            y, status, iterations = self._one(program, theta.take(row), start[row])
            point.y[i], point.status[i], point.iterations[i] = (
                torch.from_numpy(y),
                int(status),
                iterations,
            )
        # It does not say its multipliers; those of least squares take their place.
        state, _ = multipliers(program, theta, point.y, point.y.isfinite().all(-1))
        return replace(point, lam=state.lam, mu=state.mu, z=state.z)

    def _one(
        self, program: NonlinearProgram, theta: Theta, start: torch.Tensor
    ) -> tuple[NDArray[np.float64], Status, int]:
        def at(y: NDArray[np.float64]) -> torch.Tensor:
            return torch.from_numpy(y).unsqueeze(0)

        lower, upper = (bound[0].numpy() for bound in program.bounds(theta, start))
        constraints = [
            {"type": "eq", "fun": lambda y: program.values(at(y), theta)[1][0].numpy(),
             "jac": lambda y: program.first(at(y), theta).Jh[0].numpy()},
            {"type": "ineq", "fun": lambda y: -program.values(at(y), theta)[2][0].numpy(),
             "jac": lambda y: -program.first(at(y), theta).Jg[0].numpy()},
        ]  # fmt: skip
        found = minimize(
            lambda y: float(program.values(at(y), theta)[0][0]),
            start[0].numpy(),
            jac=lambda y: program.first(at(y), theta).gradient[0].numpy(),
            method="SLSQP",
            bounds=list(zip(lower, upper, strict=True)),
            constraints=[
                one
                for one, number in zip(constraints, (program.p, program.m), strict=True)
                if number
            ],
            options={"ftol": self.tolerance, "maxiter": self.max_iterations},
        )
        return found.x, STATUS.get(found.status, Status.NUMERICAL_ERROR), found.nit

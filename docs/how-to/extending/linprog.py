"""Linear programs by HiGHS, as scipy wraps it: a solver of conic programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.optimize import linprog

from ddn_cvx import Status
from ddn_cvx.extend import (
    ConicData,
    ConicProgram,
    RawSolution,
    Solver,
    Workspace,
    register,
)

STATUS = {
    0: Status.SOLVED,
    1: Status.ITERATION_LIMIT,
    2: Status.INFEASIBLE,
    3: Status.UNBOUNDED,
}


@register
@dataclass(frozen=True)
class Linprog(Solver):
    """``min q'x  s.t.  Ax + s = b``, s zero in the first rows, nonnegative in the others."""

    name: ClassVar[str] = "linprog"

    tolerance: float = 1e-9
    """Largest violation of constraints and of dual constraints (default 1e-9)."""
    max_iterations: int = 10_000
    """Iterations for one element (default 10 000)."""

    def unsupported(self, program: ConicProgram) -> str | None:
        if program.P.nnz or not program.cones.is_polyhedral:
            return "it takes linear objectives and linear constraints only"
        return None

    def solve(
        self,
        program: ConicProgram,
        data: ConicData,
        workspace: Workspace,
        warm: RawSolution | None = None,
    ) -> RawSolution:
        raw, zero = RawSolution.empty(program, len(data.q), data.q), program.cones.zero
        _, A = program.dense(data)
        options = {
            "maxiter": self.max_iterations,
            "primal_feasibility_tolerance": self.tolerance,
            "dual_feasibility_tolerance": self.tolerance,
        }
        for i, (q, rows, b) in enumerate(
            zip(data.q.numpy(), A.numpy(), data.b.numpy(), strict=True)
        ):
            found = linprog(
                q,
                rows[zero:],
                b[zero:],
                rows[:zero],
                b[:zero],
                bounds=(None, None),
                options=options,
            )
            raw.status[i] = int(STATUS.get(found.status, Status.NUMERICAL_ERROR))
            raw.iterations[i] = found.nit
            if found.success:
                raw.x[i] = torch.from_numpy(found.x)
                # scipy has the derivatives of the minimum, we the sign of q + A'y = 0.
                raw.y[i, :zero] = -torch.from_numpy(found.eqlin.marginals)
                raw.y[i, zero:] = -torch.from_numpy(found.ineqlin.marginals)
                raw.s[i] = data.b[i] - A[i] @ raw.x[i]
        return raw

"""Several starts for each element of a batch, all in one larger batch, and the best solution found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from ddn_cvx.checks import require_positive_options
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solution import Status
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint, NonlinearSolver, require_solver
from ddn_cvx.solvers.nonlinear_interior_point import NonlinearInteriorPoint
from ddn_cvx.solvers.starts import scattered


@register
@dataclass(frozen=True)
class MultiStart(NonlinearSolver):
    """Several starts for each element of a nonlinear program, all in one larger batch, and the best solution found.

    The start as given is the first; the others are uniform where a variable has two bounds, else normal around it.

    The random numbers are the same for each element, whose answer then does not depend on the rest of the batch. A
    solved element is preferred to any other, then a lower objective, then the earlier start.

    Raises
    ------
    InputError
        Fewer than one start, a spread that is not positive, or a solver that is not an object.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> wells = ddn.TorchProblem((), lambda y, tilt: (y * y - 1) ** 2 + tilt * y, initial=1.0, parameters=[()])
    >>> one, many = ddn.DeclarativeLayer(wells), ddn.DeclarativeLayer(wells, solver=ddn.MultiStart(starts=16))
    >>> one(torch.tensor(0.1)), many(torch.tensor(0.1))
    (tensor(0.9873), tensor(-1.0123))
    """

    name: ClassVar[str] = "multi_start"

    solver: NonlinearSolver = field(default_factory=NonlinearInteriorPoint)
    """What solves from each start (default the interior-point method)."""
    starts: int = 8
    """Starts for each element (default 8)."""
    spread: float = 1.0
    """Standard deviation of starts around the given one, absolute (default 1)."""
    generator: torch.Generator | None = None
    """Where the random numbers come from; without it a new generator with seed 0 for every solve (default None)."""

    def __post_init__(self) -> None:
        require_positive_options(self, "starts", "spread")
        require_solver(self.name, self.solver)

    def unsupported(self, program: NonlinearProgram) -> str | None:
        return self.solver.unsupported(program)

    @torch.no_grad()
    def solve(
        self, program: NonlinearProgram, theta: Theta, start: Tensor, warm: NonlinearPoint | None = None
    ) -> NonlinearPoint:
        """Solve from all starts; a warm start takes the place of the given one."""
        theta, start = theta.detach(), (start if warm is None else warm.y).detach()
        batch = len(start)
        everything = theta.tile(self.starts)
        lower, upper = program.bounds(theta, start)
        others = scattered(start, lower, upper, self.starts - 1, self.spread, self.generator)
        starts = torch.cat((start, others.flatten(0, 1)))
        points = self.solver.solve(program, everything, starts)
        value = program.values(points.y, everything)[0]
        value = torch.where(points.status == int(Status.SOLVED), value, torch.inf).nan_to_num(torch.inf, torch.inf)
        best = value.view(self.starts, batch).argmin(0) if batch else value.new_zeros(0, dtype=torch.int64)
        rows = best * batch + torch.arange(batch, device=start.device)
        total = points.iterations.view(self.starts, batch).sum(0)
        return replace(points.take(rows), iterations=total)

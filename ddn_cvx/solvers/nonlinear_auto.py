"""The default solver of nonlinear programs: picks by the structure of the program, never by its numbers or the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddn_cvx.checks import require_positive_options
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solution import Status
from ddn_cvx.solvers.augmented_lagrangian import AugmentedLagrangian
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.compiled_nonlinear import CompiledInteriorPoint
from ddn_cvx.solvers.descent import unconstrained_only
from ddn_cvx.solvers.lbfgs import LBFGS
from ddn_cvx.solvers.least_squares import LeastSquares
from ddn_cvx.solvers.newton import Newton, NewtonKrylov
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint, NonlinearSolver
from ddn_cvx.solvers.nonlinear_interior_point import NonlinearInteriorPoint


@register
@dataclass(frozen=True)
class NonlinearAuto(NonlinearSolver):
    """The default for nonlinear programs: ``Newton`` without constraints, ``NonlinearInteriorPoint`` with; for many
    variables their matrix-free kin.

    Small programs on the CPU whose functions can be traced go to ``CompiledInteriorPoint`` first. Elements that the
    first choice does not solve get a second chance with another method.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> node = ddn.TorchProblem(
    ...     variable=(2,), objective=lambda y, x: ((y - x) ** 2).sum(), equality=lambda y, x: (y * y).sum() - 1
    ... )
    >>> layer = ddn.DeclarativeLayer(node, solver=ddn.NonlinearAuto())
    >>> layer(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    name: ClassVar[str] = "auto"
    minds_time: ClassVar[bool] = True

    dense_limit: int = 1000
    """n + p + m up to which matrices are formed (default 1000)."""

    def __post_init__(self) -> None:
        require_positive_options(self)

    def unsupported(self, program: NonlinearProgram) -> str | None:
        return None if program.n else "it needs at least one variable"

    def explain(self, program: NonlinearProgram) -> str:
        """One sentence: the solver that is tried first and why."""
        first, _, reason = self.pick(program)
        return f"{type(first).__name__} for n = {program.n}, p = {program.p}, m = {program.m}: {reason}"

    @torch.no_grad()
    def solve(
        self, program: NonlinearProgram, theta: Theta, start: Tensor, warm: NonlinearPoint | None = None
    ) -> NonlinearPoint:
        """Solve the batch with the solver that ``explain`` names."""
        first, second, _ = self.pick(program)
        compiled = CompiledInteriorPoint()
        if self.tries_compiled(program) and compiled.takes(program, theta, start):
            point = compiled.solve(program, theta, start, warm)
            rows = torch.nonzero(point.status != int(Status.SOLVED)).flatten()
            if not len(rows):
                return point
            again = first.solve(program, theta.take(rows), start[rows], None if warm is None else warm.take(rows))
            point = point.put(rows, again)
        else:
            point = first.solve(program, theta, start, warm)
        # these ends are verdicts on the method, the others on the element
        ends = (Status.INACCURATE, Status.ITERATION_LIMIT, Status.NUMERICAL_ERROR)
        rows = torch.nonzero(torch.stack([point.status == int(end) for end in ends]).any(0)).flatten()
        if not len(rows):
            return point
        again = second.solve(program, theta.take(rows), start[rows])
        better = _improved(point.take(rows), again)
        return point.put(rows[better], again.take(better))

    def tries_compiled(self, program: NonlinearProgram) -> bool:
        """Whether ``CompiledInteriorPoint`` comes first where the functions can be traced.

        Not with auxiliary variables, which hold norms and the like: at the apex of a cone ``x = t w, |w| <= 1, t >= 0``,
        every w is stationary. The torch method comes from the inside of the cone and is not caught there.
        """
        lifted = program.visible is not None and not bool(program.visible.all())
        return program.residuals is None and not lifted and CompiledInteriorPoint().unsupported(program) is None

    def pick(self, program: NonlinearProgram) -> tuple[NonlinearSolver, NonlinearSolver, str]:
        """The solver that is tried first, the one for elements it does not solve, and why."""
        small = program.n + program.p + program.m <= self.dense_limit
        if unconstrained_only(program) is None:
            if small and program.residuals is not None:
                return LeastSquares(), Newton(), "no constraints, and an objective that is a sum of losses of residuals"
            if small:
                return Newton(), LBFGS(), "no constraints, and few enough variables for Hessians"
            return NewtonKrylov(), LBFGS(), "no constraints, and too many variables for Hessians"
        if small:
            return NonlinearInteriorPoint(), AugmentedLagrangian(), "constraints, and few enough rows for matrices"
        return AugmentedLagrangian(), AugmentedLagrangian(solver=LBFGS()), "constraints, and too many rows for matrices"


def _improved(old: NonlinearPoint, new: NonlinearPoint) -> Tensor:
    """The elements that are better off, as indices."""
    return torch.nonzero((new.status < old.status) & (new.status <= int(Status.INACCURATE))).flatten()

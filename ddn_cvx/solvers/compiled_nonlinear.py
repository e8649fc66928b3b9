"""The interior-point method for small nonlinear programs in compiled code (``kernels.nonlinear``), as a solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddn_cvx.checks import require_positive_options
from ddn_cvx.errors import DeclarationError
from ddn_cvx.kernels.jit import spread
from ddn_cvx.kernels.nonlinear import solve_batch
from ddn_cvx.kernels.nonlinear_lane import Layout
from ddn_cvx.kernels.tape import Tape
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.program.tape import pack
from ddn_cvx.solution import Status
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.deadline import clock
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint, NonlinearSolver

SMALL = 200
"""n + p + m up to which matrices are factored by compiled loops."""


class _Options(NamedTuple):
    max_iterations: int
    tolerance: float
    solved_tolerance: float
    barrier: float
    warm_barrier: float


@register
@dataclass(frozen=True)
class CompiledInteriorPoint(NonlinearSolver):
    """The compiled interior-point method for nonlinear programs with a tape (``NonlinearProgram.tape``) on the CPU,
    eight instances side by side (Wächter & Biegler, Math. Programming 106, 2006). Tolerances apply to the scaled
    functions.

    Elements are SOLVED, or ITERATION_LIMIT or NUMERICAL_ERROR, which says nothing of the element: another method may
    solve it, or prove that it is infeasible or unbounded.

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
    >>> layer = ddn.DeclarativeLayer(node, solver=ddn.CompiledInteriorPoint(threads=1))
    >>> layer(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    name: ClassVar[str] = "compiled_interior_point"
    minds_time: ClassVar[bool] = True

    max_iterations: int = 100
    """Newton steps after which an element gives up (default 100)."""
    tolerance: float = 1e-10
    """Error of the optimality conditions at which an element stops (default 1e-10)."""
    solved_tolerance: float = 1e-8
    """Largest error of a SOLVED element that stopped improving (default 1e-8)."""
    barrier: float = 0.1
    """Product of slacks and multipliers at the start (default 0.1)."""
    warm_barrier: float = 1e-3
    """The same for a warm start (default 1e-3)."""
    threads: int | None = None
    """Threads that share the batch (default: one a processor)."""

    def __post_init__(self) -> None:
        require_positive_options(self)

    def unsupported(self, program: NonlinearProgram) -> str | None:
        if not program.n:
            return "it needs at least one variable"
        rows = program.n + program.p + program.m
        return None if rows <= SMALL else f"it takes n + p + m up to {SMALL}, and this is {rows}"

    def takes(self, program: NonlinearProgram, theta: Theta, start: Tensor) -> bool:
        """Whether there is compiled code for the program with these parameters."""
        return self.unsupported(program) is None and program.tape(start.detach(), theta.detach()) is not None

    @torch.no_grad()
    def solve(
        self, program: NonlinearProgram, theta: Theta, start: Tensor, warm: NonlinearPoint | None = None
    ) -> NonlinearPoint:
        """Solve the batch; in double precision, whatever that of ``start`` is.

        Raises
        ------
        DeclarationError
            The program has no tape for these parameters.
        """
        point = (start if warm is None else warm.y).detach()
        exact = _double(theta.detach())
        if not len(start):
            return NonlinearPoint.blank(program, point)
        tape = program.tape(point.double(), exact)
        if tape is None:
            raise DeclarationError(
                f"Solver {self.name!r} cannot take this problem: it needs tensors on the CPU and functions that can be "
                f"traced ({'; '.join(program.why_no_tape) or 'these tensors are not'}). Use 'nonlinear_interior_point'."
            )
        return self._run(program, tape, exact, point, warm)

    def _run(
        self, program: NonlinearProgram, tape: Tape, theta: Theta, start: Tensor, warm: NonlinearPoint | None
    ) -> NonlinearPoint:
        batch, n, p, m = len(start), program.n, program.p, program.m
        inputs = pack(program, start.double(), theta)
        lower, upper = (t.detach().double().contiguous().numpy() for t in program.bounds(theta, start.double()))
        out = [np.zeros((batch, k)) for k in (n, p, m, n)]
        if warm is not None:
            for array, given in zip(out[1:], (warm.lam, warm.mu, warm.z), strict=True):
                array[:] = given.detach().numpy()
        codes = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        options = _Options(self.max_iterations, self.tolerance, self.solved_tolerance, self.barrier, self.warm_barrier)
        length = len(tape.values) + len(tape.first) + len(tape.second)
        work = 10.0 * (length + (n + p) ** 3 / 3 + 10 * (n + m))
        data = inputs[:, n + p + m :], inputs[:, :n], lower, upper, warm is not None
        known = tape, Layout.of(tape), options
        for late in spread(solve_batch, batch, work, *known, *data, *out, *codes, threads=self.threads, over=clock()):
            codes[0][late] = int(Status.TIME_LIMIT)
        y, lam, mu, z = (torch.from_numpy(t).to(start.dtype) for t in out)
        status, iterations = map(torch.from_numpy, codes)
        return NonlinearPoint(y, lam, mu, z, status, iterations)


def _double(theta: Theta) -> Theta:
    return Theta(tuple(t.double() if t.is_floating_point() else t for t in theta.tensors), theta.batched)

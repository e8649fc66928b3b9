"""A linear or quadratic cone program seen as a nonlinear one, so that what is written for the latter serves both.

    f = 1/2 x'Px + q'x,    h = A_0 x - b_0,    g = A_+ x - b_+

for the zero rows and the nonnegative ones of K. Other cones are not rows of inequalities.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddn_cvx.adjoint.base import Solve
from ddn_cvx.adjoint.kkt_solve import NonlinearSolve, Solved
from ddn_cvx.program.active_kkt import Factors
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.program.optimality import Active, State


class ConicRows:
    """A conic solve with polyhedral cones as a ``NonlinearSolve``; its theta is ``(P, q, A, b, *extra)``."""

    inexact = None
    kinks = False

    def __init__(self, solve: Solve):
        cone = solve.program
        self._solve, self._cone = solve, cone
        self.program = as_nonlinear(cone)
        self.factors = Factors(self.program)
        self.failures = False

    def __call__(self, theta: Theta, batch: int) -> Solved:
        """The exact solution."""
        data, extra = ConicData(*theta.tensors[:4]), theta.tensors[4:]
        x, v, ok = self._solve(data, *extra)
        self.failures = not bool(ok.all())
        state, zero = self._state(x, v), self._cone.cones.zero
        return Solved(state, Active((v[:, zero:] > 0).to(x.dtype), torch.zeros_like(x)), ok, state)

    def perturbed(self, theta: Theta, push: Tensor, start: State) -> tuple[State, Tensor]:
        """Solved again as a cone program."""
        P, q, A, b = theta.tensors[:4]
        x, v, ok = self._solve.again(ConicData(P, q + push, A, b))
        return self._state(x, v), ok

    def _state(self, x: Tensor, v: Tensor) -> State:
        zero, y = self._cone.cones.zero, self._cone.cones.project_dual(v)
        return State(x, y[:, :zero], y[:, zero:], torch.zeros_like(x))


def as_nonlinear(cone: ConicProgram) -> NonlinearProgram:
    """The same program, of ``theta = (P, q, A, b, ...)``."""
    zero = cone.cones.zero

    def evaluate(x: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        P, q, A, b = theta.tensors[:4]
        rows = cone.A_times(A, x) - b
        return cone.objective(x, ConicData(P, q, A, b)), rows[:, :zero], rows[:, zero:]

    return NonlinearProgram(cone.n, zero, cone.m - zero, evaluate)


def attach_rows(
    attach: Callable[[NonlinearSolve, Theta, int], Solved],
    solve: Solve,
    data: ConicData,
    extra: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """``(x, v, ok)`` of a conic solve with the derivatives of a nonlinear one."""
    tensors = (*data, *extra)
    theta = Theta(tensors, (True,) * len(tensors))
    _, _, ok, (x, lam, mu, _) = attach(ConicRows(solve), theta, len(data.q))
    zero = solve.program.cones.zero
    slack = data.b[:, zero:] - solve.program.A_times(data.A, x)[:, zero:]
    v = torch.cat((lam, mu - torch.where(ok.unsqueeze(-1), slack, 0.0)), -1)
    return x, v, ok

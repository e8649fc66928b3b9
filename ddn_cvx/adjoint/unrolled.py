"""The derivative of Newton's method itself: k steps from the solution, each an ordinary differentiable computation.

    w_(j+1) = w_j - K(w_j, θ)^-1 F(w_j, θ),     w_0 = the solution, as a constant

A step changes no value at a solution, and each one doubles the order to which ``w_k`` is the right function of θ
(Bolte, Pauwels & Vaiter, 2023, "One-step differentiation of iterative algorithms"): derivatives up to order ``2**k - 1`` are
exact at regular points. Work and memory grow with k. For cones that are not polyhedral K is that of the solution in every
step, each one adds one order, and projections onto them have two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from ddn_cvx.adjoint.base import Solve
from ddn_cvx.adjoint.conic_rows import attach_rows
from ddn_cvx.adjoint.implicit import implicit_map, linear_solve
from ddn_cvx.adjoint.kkt_solve import NonlinearAdjoint, NonlinearSolve, Parts, Rule, Solved
from ddn_cvx.adjoint.nonlinear import At, columns, solution_map, squeezed
from ddn_cvx.checks import require_whole
from ddn_cvx.program.conic import ConicData
from ddn_cvx.program.nonlinear import Theta
from ddn_cvx.program.optimality import State


@dataclass(frozen=True)
class Unrolled(NonlinearAdjoint):
    """Newton steps from the solution, differentiated as they are (Bolte, Pauwels & Vaiter, "One-step differentiation of
    iterative algorithms", 2023). For an ``ODE`` the steps are those of the integration.

    All modes and orders that the steps have: of torch operations, so also derivatives of third order.

    Raises
    ------
    InputError
        Not a positive whole number of steps.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> node = ddn.TorchProblem((), lambda y, x: 0.25 * y**4 - x * y, initial=1.0, parameters=[()])  # y = cbrt(x)
    >>> layer = ddn.DeclarativeLayer(node, adjoint=ddn.Unrolled(steps=2))
    >>> x = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
    >>> torch.autograd.grad(layer(x), x)[0]  # 1 / (3 y^2)
    tensor(0.0833, dtype=torch.float64)
    """

    steps: int = 2
    """Newton steps; derivatives up to order ``2**steps - 1`` are exact, and higher ones are not (default 2). With
    second-order, semidefinite, exponential or power cones: up to order ``steps``, and 2 at most."""

    def __post_init__(self) -> None:
        require_whole("steps", self.steps, 1)

    def attach(self, solve: Solve, data: ConicData, extra: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        if solve.program.cones.is_polyhedral:
            return attach_rows(self.attach_nonlinear, solve, data, extra)
        return self._attach_curved(solve, data, extra)

    def _attach_curved(self, solve: Solve, data: ConicData, extra: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Newton steps on ``F = [Px + q + A'y ; Ax + y - v - b]``, ``y = Pi_K*(v)``, with the Jacobian of the solution."""
        start = tuple(t.detach() for t in implicit_map(solve, data, extra))
        (x, v, ok), (P, _, A, _) = start, (t.detach() for t in data)
        program, row, n = solve.program, ok.unsqueeze(-1), solve.program.n
        for _ in range(self.steps):
            F = torch.where(row, program.residual(torch.cat((x, v), 1), data), 0.0).unsqueeze(-1)
            dx, dv = linear_solve(solve.factors, True, P, A, start[1], ok, F[:, :n], F[:, n:])
            x, v = (_at(a, b - d.squeeze(-1)) for a, b, d in ((start[0], x, dx), (start[1], v, dv)))
        return torch.where(row, x, 0.0), torch.where(row, v, 0.0), ok

    def attach_nonlinear(self, solve: NonlinearSolve, theta: Theta, batch: int) -> Solved:
        """``solve(theta)`` followed by the steps."""
        state, active, ok, _ = solution_map(solve, theta, batch, "inactive")
        rule = Rule(solve, theta.batched, "inactive")
        start = State(*(t.detach() for t in state))
        at = At(rule, theta.tensors, start, active, ok, start.mu.shape[1]).safe()
        found = start
        for _ in range(self.steps):
            steps = squeezed(columns(at, active.strong, _conditions(at)))
            found = State(*(_at(a, b - d) for a, b, d in zip(start, at.state, steps, strict=True)))
            at = At(rule, at.tensors, found, active, ok, at.inequalities)
        final = State(*(at.where_ok(t) for t in found))
        return Solved(final, active, ok, final)


def _at(value: Tensor, moved: Tensor) -> Tensor:
    """The derivatives of a Newton step at the solution, which has been checked: on a badly conditioned problem the step of
    rounding errors would lead away from it."""
    return value + (moved - moved.detach())


def _conditions(at: At) -> Parts:
    """``F = [grad L + z; h; g; y - bound]``, each ``(B, ., 1)``; zero for what is not active."""
    program, theta, active = at.rule.program, at.theta, at.active.strong
    y, lam, mu, z = at.state

    def lagrangian(y: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        f, h, g = program.values(y, theta)
        return f.sum() + (lam * h).sum() + (mu * g).sum(), (h, g)

    slope, (h, g) = grad(lagrangian, has_aux=True)(y)
    gap = torch.zeros_like(y)
    if program.has_bounds:
        lower, upper = program.bounds(theta, y)
        gap = torch.where(active.box > 0, y - upper, torch.where(active.box < 0, y - lower, 0.0))
    parts = (slope + z, h, g * active.g, gap)
    f, h, g, b = (at.where_ok(t).unsqueeze(-1) for t in parts)
    return f, h, g, b

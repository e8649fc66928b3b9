"""The method of multipliers, for programs too large for any matrix: only values and products of derivatives.

The constraints move into the objective,

    L(y) = f + lam'h + rho/2 |h|^2 + 1/(2 rho) sum(max(0, mu + rho c)^2 - mu^2),      c = [g; lower - y; y - upper],

which a matrix-free solver minimises; then ``lam + rho h`` and ``max(0, mu + rho c)`` are the next multipliers (Hestenes,
Powell, Rockafellar; Birgin & Martinez 2014).  rho grows, per element, while the violation does not fall fast enough, and
where L has no minimum: a concave f is made convex by the constraints alone.
For equalities alone a last Newton step on the optimality conditions, by MINRES, gives full accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor

from ddn_cvx.checks import require_positive_options
from ddn_cvx.linalg.iterative import MatrixFreeSaddle
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solution import Status
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.deadline import expired
from ddn_cvx.solvers.newton import NewtonKrylov
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint, NonlinearSolver, require_solver

_FASTER = 0.25  # the violation must fall to this part, or rho grows
_GROWTH = 10.0
_LARGEST = 1e9
_LARGEST_MULTIPLIER = 1e9


@register
@dataclass(frozen=True)
class AugmentedLagrangian(NonlinearSolver):
    """The method of multipliers, for nonlinear programs too large for any matrix (Birgin & Martínez, "Practical
    augmented Lagrangian methods", 2014); memory is some tens of vectors.

    Raises
    ------
    InputError
        An option that is not positive, or a solver that is not an object.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> node = ddn.TorchProblem(
    ...     variable=(2,), objective=lambda y, x: ((y - x) ** 2).sum(), equality=lambda y, x: (y * y).sum() - 1
    ... )
    >>> layer = ddn.DeclarativeLayer(node, solver=ddn.AugmentedLagrangian())
    >>> layer(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    name: ClassVar[str] = "augmented_lagrangian"

    solver: NonlinearSolver = field(default_factory=lambda: NewtonKrylov(tolerance=1e-9, max_iterations=100))
    """What minimises the augmented Lagrangian (default ``NewtonKrylov``)."""
    max_iterations: int = 40
    """Updates of the multipliers after which an element gives up (default 40)."""
    tolerance: float = 1e-8
    """Largest violation and complementarity of a SOLVED element (default 1e-8)."""
    inaccurate_tolerance: float = 1e-5
    """The same of an INACCURATE element (default 1e-5)."""
    penalty: float = 10.0
    """rho at the start (default 10)."""
    polish_iterations: int = 2000
    """Products that the last Newton step may cost (default 2000)."""

    def __post_init__(self) -> None:
        require_positive_options(self, *(option.name for option in fields(self) if option.name != "solver"))
        require_solver(self.name, self.solver)

    def unsupported(self, program: NonlinearProgram) -> str | None:
        return None if program.n else "it needs at least one variable"

    @torch.no_grad()
    def solve(
        self, program: NonlinearProgram, theta: Theta, start: Tensor, warm: NonlinearPoint | None = None
    ) -> NonlinearPoint:
        form = _Form(program, theta.detach())
        y = (start if warm is None else warm.y).detach()
        h, c = form.constraints(y)
        lam = torch.zeros_like(h) if warm is None else warm.lam.detach()
        mu = torch.zeros_like(c) if warm is None else form.stack(warm)
        rho = torch.full_like(y[:, 0], self.penalty)
        last = torch.full_like(rho, torch.inf)
        status = torch.full_like(rho, int(Status.ITERATION_LIMIT), dtype=torch.int64)
        spent = torch.zeros_like(status)
        for _ in range(self.max_iterations):
            live = torch.nonzero(status == int(Status.ITERATION_LIMIT)).flatten()
            if not len(live) or expired():
                break
            multipliers = (lam[live], mu[live], rho[live])
            found = self.solver.solve(form.unconstrained, form.extended(live, multipliers), y[live])
            spent = spent.index_add(0, live, found.iterations)
            inner = torch.full_like(status, int(Status.SOLVED)).index_copy(0, live, found.status)
            bottomless = (inner == int(Status.UNBOUNDED)) | (inner == int(Status.NUMERICAL_ERROR))
            y = torch.where(bottomless.unsqueeze(-1), y, y.index_copy(0, live, found.y))
            h, c = form.constraints(y)
            column = rho.unsqueeze(-1)
            moved = ((status == int(Status.ITERATION_LIMIT)) & ~bottomless).unsqueeze(-1)
            step = torch.maximum(c, -mu / column)
            lam = torch.where(moved, (lam + column * h).clamp(-_LARGEST_MULTIPLIER, _LARGEST_MULTIPLIER), lam)
            mu = torch.where(moved, (mu + column * c).clamp(0, _LARGEST_MULTIPLIER), mu)
            violation = torch.cat((h.abs(), step.abs(), torch.zeros_like(column)), 1).amax(-1)
            status = self._judge(status, inner, bottomless, violation, rho)
            slow = bottomless | (violation > torch.maximum(_FASTER * last, torch.full_like(last, self.tolerance)))
            rho, last = torch.where(slow, _GROWTH * rho, rho), torch.where(bottomless, last, violation)
        if program.p and not c.shape[1]:
            y, lam = self._polish(program, form.theta, y, lam, status)
        return form.point(y, lam, mu, status, spent)

    def _judge(self, status: Tensor, inner: Tensor, bottomless: Tensor, violation: Tensor, rho: Tensor) -> Tensor:
        """Only a minimum of the augmented Lagrangian says something of the program, and where there is ``bottomless`` none a
        larger penalty may give it one, up to ``_LARGEST``."""
        live = status == int(Status.ITERATION_LIMIT)
        minimised, spent = inner <= int(Status.INACCURATE), rho > _LARGEST
        close = violation <= self.inaccurate_tolerance
        new = status.masked_fill(spent & close, int(Status.INACCURATE))
        new = new.masked_fill(spent & ~close & minimised, int(Status.INFEASIBLE))
        new = torch.where(spent & bottomless, inner, new)
        new = new.masked_fill(minimised & (violation <= self.tolerance), int(Status.SOLVED))
        return torch.where(live, new, status)

    def _polish(
        self, program: NonlinearProgram, theta: Theta, y: Tensor, lam: Tensor, status: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One Newton step on ``grad L = 0, h = 0``, kept where it lowers their residual."""
        none = y.new_zeros(len(y), program.m)

        def residual(y: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            slope, h = program.gradient(y, theta, lam, none), program.values(y, theta)[1].detach()
            return slope, h, torch.maximum(slope.abs().amax(-1), h.abs().amax(-1))

        def pull(w: Tensor) -> Tensor:
            return program.gradient(y, theta, lam + w, none) - slope

        slope, h, error = residual(y, lam)
        kkt = MatrixFreeSaddle(
            lambda v: program.hvp(y, theta, lam, none, v), lambda v: program.jvp(y, theta, v)[0], pull, program.n
        )
        dy, dlam = kkt.solve(-slope, -h, 1e-6, self.polish_iterations)
        better = (residual(y + dy, lam + dlam)[2] < error) & (status <= int(Status.INACCURATE))
        return torch.where(better.unsqueeze(-1), y + dy, y), torch.where(better.unsqueeze(-1), lam + dlam, lam)


class _Form:
    """The augmented Lagrangian as an unconstrained program whose parameters are theta, lam, mu and rho."""

    def __init__(self, program: NonlinearProgram, theta: Theta):
        self.program, self.theta, self.count = program, theta, len(theta.tensors)
        self.unconstrained = NonlinearProgram(program.n, 0, 0, self._evaluate)

    def _evaluate(self, y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        lam, mu, rho = theta.tensors[self.count :]
        own = Theta(theta.tensors[: self.count], theta.batched[: self.count])
        f, h, g = self.program.values(y, own)
        c = self._rows(y, g, own)
        column = rho.unsqueeze(-1)
        f = f + (lam * h).sum(-1) + 0.5 * rho * h.square().sum(-1)
        if c.shape[1]:
            f = f + (((mu + column * c).clamp(min=0).square() - mu.square()) / (2 * column)).sum(-1)
        return f, y[:, :0], y[:, :0]

    def _rows(self, y: Tensor, g: Tensor, theta: Theta) -> Tensor:
        """``[g; lower - y; y - upper]``; rows without a bound are far from active."""
        if not self.program.has_bounds:
            return g
        lower, upper = self.program.bounds(theta, y)
        below = torch.where(lower.isfinite(), lower - y, -1e30)
        return torch.cat((g, below, torch.where(upper.isfinite(), y - upper, -1e30)), 1)

    def constraints(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """h and all rows of c."""
        _, h, g = (t.detach() for t in self.program.values(y, self.theta))
        return h, self._rows(y, g, self.theta)

    def extended(self, rows: Tensor, multipliers: tuple[Tensor, Tensor, Tensor]) -> Theta:
        """theta with the multipliers, for some elements."""
        some = self.theta.take(rows)
        return Theta((*some.tensors, *multipliers), (*some.batched, True, True, True))

    def stack(self, warm: NonlinearPoint) -> Tensor:
        """mu of all rows of c."""
        if not self.program.has_bounds:
            return warm.mu.detach()
        z = warm.z.detach()
        return torch.cat((warm.mu.detach(), (-z).clamp(min=0), z.clamp(min=0)), 1)

    def point(self, y: Tensor, lam: Tensor, mu: Tensor, status: Tensor, iterations: Tensor) -> NonlinearPoint:
        """What the solver returns."""
        m, n = self.program.m, self.program.n
        z = mu[:, m + n :] - mu[:, m : m + n] if self.program.has_bounds else torch.zeros_like(y)
        return NonlinearPoint(y, lam, mu[:, :m], z, status, iterations)

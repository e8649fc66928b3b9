"""Broyden's quasi-Newton method for equations, with a limited memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddn_cvx.checks import require_positive_options
from ddn_cvx.linalg.general import GeneralFactor
from ddn_cvx.program.nonlinear import Theta
from ddn_cvx.program.root import RootProgram
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.root_base import Method, RootPoint, RootSolver, iterate, units


@register
@dataclass(frozen=True)
class Broyden(RootSolver):
    """The good method of Broyden for equations (Broyden, Math. Comp. 19, 1965): the inverse Jacobian is corrected by one
    rank an iteration.

    It starts from the Jacobian itself where that is small enough to be formed, else from that of ``-y``, which suits
    maps. An element whose residual grows goes back to its best point, shortens its steps and forgets the corrections.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> layer = ddn.DeclarativeLayer(ddn.FixedPoint((), lambda y, x: torch.cos(y) * x), solver=ddn.Broyden())
    >>> layer(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7391])
    """

    name: ClassVar[str] = "broyden"
    minds_time: ClassVar[bool] = True

    max_iterations: int = 300
    """Evaluations after which an element gives up (default 300)."""
    tolerance: float = 1e-10
    """Largest entry of F relative to that of y, at which an element stops (default 1e-10)."""
    memory: int = 30
    """Corrections that are kept; when there are as many, all are dropped (default 30)."""

    def __post_init__(self) -> None:
        require_positive_options(self)

    def unsupported(self, program: RootProgram) -> str | None:
        if program.is_map or program.is_dense:
            return None
        return f"n = {program.n} is too large to start from the Jacobian; use 'newton_krylov'"

    @torch.no_grad()
    def solve(self, program: RootProgram, theta: Theta, start: Tensor) -> RootPoint:
        factor = None
        if not program.is_map:
            J = program.linearise(start, theta).matrix()
            factor = GeneralFactor(J, J.abs().amax(-1))
        method = _Secants(start, self.memory, factor)
        return iterate(program, theta, start, method, self.tolerance, self.max_iterations, units(program, theta, start))


class _Secants(Method):
    """``B = B_0 + Σ u_k v_k'`` approximates the inverse of J."""

    def __init__(self, start: Tensor, memory: int, factor: GeneralFactor | None):
        batch, n = start.shape
        self.u, self.v = start.new_zeros(batch, memory, n), start.new_zeros(batch, memory, n)
        self.best, self.best_y, self.best_F = start.new_full((batch,), torch.inf), start, torch.zeros_like(start)
        self.damping = start.new_ones(batch)
        self.old: tuple[Tensor, Tensor] | None = None
        self.memory, self.count = memory, 0
        eye = torch.eye(n, dtype=start.dtype, device=start.device)
        self.base = None if factor is None else factor.solve(eye.expand(batch, n, n))

    def step(self, y: Tensor, F: Tensor) -> Tensor:
        size = F.norm(dim=-1)
        worse = ~(size <= 2 * self.best)
        better = size < self.best
        if self.old is not None:
            if self.count % self.memory == 0:
                self.u, self.v = torch.zeros_like(self.u), torch.zeros_like(self.v)
            dy, dF = y - self.old[0], F - self.old[1]
            moved = self._inverse(dF)
            pulled = self._inverse_transpose(dy)
            divisor = (dy * moved).sum(-1, keepdim=True)
            usable = divisor.abs() > 1e-12 * dy.square().sum(-1, keepdim=True)
            u = torch.where(usable, (dy - moved) / torch.where(usable, divisor, 1.0), 0.0)
            self.u[:, self.count % self.memory], self.v[:, self.count % self.memory] = u, pulled
            self.count += 1
        self.u = self.u.masked_fill(worse.reshape(-1, 1, 1), 0.0).nan_to_num()
        self.v = self.v.masked_fill(worse.reshape(-1, 1, 1), 0.0).nan_to_num()
        self.best = torch.minimum(self.best, torch.where(size.isnan(), torch.inf, size))
        self.best_y = torch.where(better.unsqueeze(-1), y, self.best_y)
        self.best_F = torch.where(better.unsqueeze(-1), F, self.best_F)
        self.damping = torch.where(worse, 0.5 * self.damping, (1.2 * self.damping).clamp(max=1.0))
        back = worse.unsqueeze(-1)
        y, F = torch.where(back, self.best_y, y), torch.where(back, self.best_F, F)
        self.old = (y, F)
        return y - self.damping.unsqueeze(-1) * self._inverse(F)

    def _inverse(self, r: Tensor) -> Tensor:
        first = -r if self.base is None else (self.base @ r.unsqueeze(-1)).squeeze(-1)
        return first + (self.u.mT @ (self.v @ r.unsqueeze(-1))).squeeze(-1)

    def _inverse_transpose(self, r: Tensor) -> Tensor:
        first = -r if self.base is None else (self.base.mT @ r.unsqueeze(-1)).squeeze(-1)
        return first + (self.v.mT @ (self.u @ r.unsqueeze(-1))).squeeze(-1)

    def take(self, rows: Tensor) -> None:
        self.u, self.v, self.damping = self.u[rows], self.v[rows], self.damping[rows]
        self.best, self.best_y, self.best_F = self.best[rows], self.best_y[rows], self.best_F[rows]
        self.base = None if self.base is None else self.base[rows]
        if self.old is not None:
            self.old = (self.old[0][rows], self.old[1][rows])

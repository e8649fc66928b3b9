"""Newton's method for equations: with matrices and Levenberg's damping, or by GMRES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddn_cvx.checks import require_positive_options
from ddn_cvx.linalg.gmres import gmres
from ddn_cvx.program.nonlinear import Theta
from ddn_cvx.program.root import Linearised, RootProgram
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.root_base import Method, RootPoint, RootSolver, iterate, units

_STEPS = (1.0, 0.5, 0.1, 1e-2, 1e-3)
"""Fractions of a step that are tried, all at once."""
_FORCING = 1e-2
_STATIONARY = 1e-9  # of |J'F| relative to |F|, with rows of J of size one: a least distance to a solution


@register
@dataclass(frozen=True)
class RootNewton(RootSolver):
    """Newton–Krylov for equations, with a line search on the norm of F (Knoll & Keyes, J. Comput. Phys. 193, 2004);
    small systems are solved by QR, damped where that leads nowhere.

    Where F cannot get smaller though it is not zero, the element is INFEASIBLE: there is no solution nearby.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> layer = ddn.DeclarativeLayer(ddn.Root((), lambda y, x: y * y - x, initial=1.0), solver=ddn.RootNewton())
    >>> layer(torch.tensor([4.0, 9.0]))
    tensor([2., 3.])
    """

    name: ClassVar[str] = "newton_krylov"
    minds_time: ClassVar[bool] = True

    max_iterations: int = 100
    """Steps after which an element gives up (default 100)."""
    tolerance: float = 1e-10
    """Largest entry of F, in units of y, relative to the largest of y, at which an element stops (default 1e-10)."""
    inner_iterations: int = 200
    """Products with the Jacobian a step may cost if it is not formed (default 200)."""

    def __post_init__(self) -> None:
        require_positive_options(self)

    def unsupported(self, program: RootProgram) -> str | None:
        return None if program.n else "it needs at least one unknown"

    @torch.no_grad()
    def solve(self, program: RootProgram, theta: Theta, start: Tensor) -> RootPoint:
        method = _Steps(program, theta, start, self.inner_iterations)
        return iterate(program, theta, start, method, self.tolerance, self.max_iterations, units(program, theta, start))


class _Steps(Method):
    def __init__(self, program: RootProgram, theta: Theta, start: Tensor, inner: int):
        self.program, self.theta, self.inner = program, theta, inner
        self.damping = torch.zeros_like(start[:, 0])
        self.still = torch.zeros_like(self.damping, dtype=torch.bool)
        self.row: Tensor | None = None

    def step(self, y: Tensor, F: Tensor) -> Tensor:
        linear = self.program.linearise(y, self.theta)
        d, slope = self._damped(linear, F) if self.program.is_dense else self._krylov(linear, F)
        assert self.row is not None
        merit = (F / self.row).norm(dim=-1)
        self.still = slope <= _STATIONARY * merit
        trials = torch.stack([y + t * d for t in _STEPS] + ([] if self.program.is_dense else [y + self._cauchy(linear, F)]))
        count = len(trials)
        found = self.program.residual(trials.flatten(0, 1), self.theta.tile(count)).reshape(trials.shape)
        sizes = (found / self.row).norm(dim=-1)
        sizes = torch.where(sizes.isfinite(), sizes, torch.inf)
        best, which = sizes.min(0)
        gained = best < merit
        harder = (10 * self.damping).clamp(min=1e-4)
        easier = torch.where(self.damping > 1e-8, 0.1 * self.damping, 0.0)
        self.damping = torch.where(gained & (which < 2), easier, torch.where(gained, self.damping, harder))
        self.still |= ~gained & (self.damping > 1e10)
        chosen = trials.gather(0, which.reshape(1, -1, 1).expand(1, *y.shape)).squeeze(0)
        return torch.where(gained.unsqueeze(-1), chosen, y)

    def _damped(self, linear: Linearised, F: Tensor) -> tuple[Tensor, Tensor]:
        """Least squares of ``J d + F`` and ``sqrt(δ) d``, and the norm of ``J'F``."""
        J = linear.matrix()
        if self.row is None:
            size = J.abs().amax(-1)
            self.row = torch.where((size > 0) & size.isfinite(), size, 1.0)
        J, F = J / self.row.unsqueeze(-1), F / self.row
        floor = torch.finfo(F.dtype).eps
        delta = (self.damping * F.norm(dim=-1)).sqrt() + floor
        eye = torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)
        Q, R = torch.linalg.qr(torch.cat((J, delta.reshape(-1, 1, 1) * eye), 1))
        n = J.shape[-1]
        d = -torch.linalg.solve_triangular(R, Q[:, :n].mT @ F.unsqueeze(-1), upper=True).squeeze(-1)
        return d, (J.mT @ F.unsqueeze(-1)).squeeze(-1).norm(dim=-1)

    def _krylov(self, linear: Linearised, F: Tensor) -> tuple[Tensor, Tensor]:
        if self.row is None:
            self.row = torch.ones_like(F)
        forcing = F.norm(dim=-1).sqrt().clamp(max=_FORCING, min=1e-8)
        d = gmres(linear.push, -F, forcing, self.inner).x
        # |F| times the cosine between F and the space that J reaches along its steepest descent
        down = linear.pull(F)
        tiny = torch.finfo(F.dtype).tiny
        return d, down.square().sum(-1) / linear.push(down).norm(dim=-1).clamp(min=tiny)

    def _cauchy(self, linear: Linearised, F: Tensor) -> Tensor:
        """The best step along the steepest descent of |F|."""
        down = linear.pull(F)
        along = linear.push(down).square().sum(-1, keepdim=True)
        return -down * down.square().sum(-1, keepdim=True) / torch.where(along > 0, along, 1.0)

    def stuck(self) -> Tensor:
        return self.still

    def take(self, rows: Tensor) -> None:
        self.theta, self.damping, self.still = self.theta.take(rows), self.damping[rows], self.still[rows]
        self.row = None if self.row is None else self.row[rows]

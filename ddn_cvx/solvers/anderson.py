"""Anderson acceleration of a fixed-point iteration (Anderson 1965; Walker & Ni 2011)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddn_cvx.checks import require_positive_options
from ddn_cvx.program.nonlinear import Theta
from ddn_cvx.program.root import RootProgram
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.root_base import Method, RootPoint, RootSolver, iterate, units


@register
@dataclass(frozen=True)
class Anderson(RootSolver):
    """Anderson acceleration of a fixed-point iteration (Anderson 1965; Walker & Ni, SIAM J. Numer. Anal. 49, 2011).

    Each iterate combines the last few so that their residuals nearly cancel. Evaluates a map and nothing else.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> layer = ddn.DeclarativeLayer(ddn.FixedPoint((), lambda y, x: torch.cos(y) * x), solver=ddn.Anderson(memory=3))
    >>> layer(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7391])
    """

    name: ClassVar[str] = "anderson"
    minds_time: ClassVar[bool] = True

    max_iterations: int = 200
    """Evaluations of the map after which an element gives up (default 200)."""
    tolerance: float = 1e-10
    """Largest entry of ``f(y) - y`` relative to that of y, at which an element stops (default 1e-10)."""
    memory: int = 6
    """Iterates that are combined, besides the current one (default 6)."""
    mixing: float = 1.0
    """How much of the map's step is taken: ``y + mixing (f(y) - y)`` (default 1)."""

    def __post_init__(self) -> None:
        require_positive_options(self)

    def unsupported(self, program: RootProgram) -> str | None:
        return None if program.is_map else "it iterates a map; declare a FixedPoint, or pick another solver"

    @torch.no_grad()
    def solve(self, program: RootProgram, theta: Theta, start: Tensor) -> RootPoint:
        method = _Mixing(start, min(self.memory, program.n), self.mixing)
        unit = units(program, theta, start)
        return iterate(program, theta, start, method, self.tolerance, self.max_iterations, unit)


class _Mixing(Method):
    def __init__(self, start: Tensor, memory: int, mixing: float):
        batch, n = start.shape
        self.dy, self.dF = start.new_zeros(batch, memory, n), start.new_zeros(batch, memory, n)
        self.old: tuple[Tensor, Tensor] | None = None
        self.memory, self.mixing, self.count = memory, mixing, 0

    def step(self, y: Tensor, F: Tensor) -> Tensor:
        if self.old is not None:
            place = self.count % self.memory
            self.dy[:, place], self.dF[:, place] = y - self.old[0], F - self.old[1]
            self.count += 1
        self.old = (y, F)
        length = self.dF.norm(dim=-1)
        unit = self.dF / torch.where(length > 0, length, 1.0).unsqueeze(-1)
        gram = unit @ unit.mT
        shift = 1e3 * torch.finfo(F.dtype).eps + (length == 0).to(F.dtype)
        L, _ = torch.linalg.cholesky_ex(gram + torch.diag_embed(shift))
        weights = torch.cholesky_solve(unit @ F.unsqueeze(-1), L).squeeze(-1)
        weights = weights / torch.where(length > 0, length, 1.0)
        moved = self.dy + self.mixing * self.dF
        return y + self.mixing * F - (weights.unsqueeze(1) @ moved).squeeze(1)

    def take(self, rows: Tensor) -> None:
        self.dy, self.dF = self.dy[rows], self.dF[rows]
        if self.old is not None:
            self.old = (self.old[0][rows], self.old[1][rows])

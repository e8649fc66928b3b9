"""The limited-memory BFGS method (Liu & Nocedal 1989) for a batch of unconstrained programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddn_cvx.checks import require_positive_options
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.descent import Directions, Goal, descend, unconstrained_only
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint, NonlinearSolver

_CURVED = 1e-12


@register
@dataclass(frozen=True)
class LBFGS(NonlinearSolver):
    """The limited-memory BFGS method for nonlinear programs without constraints (Liu & Nocedal, Math. Programming 45,
    1989). Each step costs one gradient or a few; memory is ``2 memory`` vectors.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> node = ddn.TorchProblem(variable=(2,), objective=lambda y, x: (y - x).cosh().sum() + y.square().sum())
    >>> layer = ddn.DeclarativeLayer(node, solver=ddn.LBFGS(memory=5))
    >>> layer(torch.tensor([[1.0, 3.0]]))
    tensor([[0.3490, 1.3095]])
    """

    name: ClassVar[str] = "lbfgs"
    minds_time: ClassVar[bool] = True

    max_iterations: int = 5000
    """Steps after which an element gives up (default 5000)."""
    tolerance: float = 1e-9
    """Largest entry of the gradient at which an element stops, relative to the first one if above one (default 1e-9)."""
    solved_tolerance: float = 1e-7
    """The same for an element that cannot improve any more to be SOLVED (default 1e-7)."""
    inaccurate_tolerance: float = 1e-5
    """The same to be INACCURATE (default 1e-5)."""
    memory: int = 20
    """Pairs of steps and gradient changes that are kept (default 20)."""

    def __post_init__(self) -> None:
        require_positive_options(self)

    def unsupported(self, program: NonlinearProgram) -> str | None:
        return unconstrained_only(program)

    @torch.no_grad()
    def solve(
        self, program: NonlinearProgram, theta: Theta, start: Tensor, warm: NonlinearPoint | None = None
    ) -> NonlinearPoint:
        start = (start if warm is None else warm.y).detach()
        goal = Goal(self.tolerance, self.solved_tolerance, self.inaccurate_tolerance, self.max_iterations)
        return descend(program, theta.detach(), start, _TwoLoop(self.memory), goal)


class _TwoLoop(Directions):
    """The inverse Hessian as a product; pairs without curvature have weight zero and do nothing."""

    wolfe = True

    def __init__(self, memory: int):
        self.memory = memory
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.scale: Tensor | None = None

    def __call__(self, y: Tensor, slope: Tensor) -> Tensor:
        q, weights = slope, []
        for s, change, rho in reversed(self.pairs):
            weight = rho * (s * q).sum(-1, keepdim=True)
            weights.append(weight)
            q = torch.addcmul(q, weight, change, value=-1)
        scale = 1.0 / slope.norm(dim=-1, keepdim=True).clamp(min=1.0) if self.scale is None else self.scale
        q = scale * q
        for (s, change, rho), weight in zip(self.pairs, reversed(weights), strict=True):
            q = torch.addcmul(q, weight - rho * (change * q).sum(-1, keepdim=True), s)
        return -q

    def learn(self, dy: Tensor, change: Tensor) -> None:
        product = (dy * change).sum(-1, keepdim=True)
        size = change.square().sum(-1, keepdim=True)
        curved = product > _CURVED * size.sqrt() * dy.norm(dim=-1, keepdim=True)
        rho = torch.where(curved, 1.0 / torch.where(curved, product, 1.0), 0.0)
        self.pairs = [*self.pairs, (dy, change, rho)][-self.memory :]
        old = torch.ones_like(product) if self.scale is None else self.scale
        self.scale = torch.where(curved, product / size.clamp(min=torch.finfo(size.dtype).tiny), old)

    def take(self, rows: Tensor) -> None:
        self.pairs = [(s[rows], change[rows], rho[rows]) for s, change, rho in self.pairs]
        self.scale = None if self.scale is None else self.scale[rows]

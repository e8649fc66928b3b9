"""Newton's method for unconstrained programs, with dense Hessians or with Hessian-vector products alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import cholesky_ex

from ddn_cvx.checks import require_positive_options
from ddn_cvx.linalg.iterative import cg
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.descent import Directions, Goal, descend, unconstrained_only
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint, NonlinearSolver

_LEAST_CURVATURE = 1e-8
_FORCING = 1e-2  # looser systems are cheaper, but crawl along curved valleys


@register
@dataclass(frozen=True)
class Newton(NonlinearSolver):
    """Damped Newton's method for nonlinear programs without constraints.

    Where a Hessian is not positive definite, its eigenvalues are replaced by their absolute values (Dauphin et al.
    2014), which turns away from saddle points; only those elements are decomposed.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> node = ddn.TorchProblem(variable=(2,), objective=lambda y, x: (y - x).cosh().sum() + y.square().sum())
    >>> layer = ddn.DeclarativeLayer(node, solver=ddn.Newton())
    >>> layer(torch.tensor([[1.0, 3.0]]))
    tensor([[0.3490, 1.3095]])
    """

    name: ClassVar[str] = "newton"
    minds_time: ClassVar[bool] = True

    max_iterations: int = 200
    """Steps after which an element gives up (default 200)."""
    tolerance: float = 1e-10
    """Largest entry of the gradient at which an element stops, relative to the first one if above one (default 1e-10)."""
    solved_tolerance: float = 1e-8
    """The same for an element that cannot improve any more to be SOLVED (default 1e-8)."""
    inaccurate_tolerance: float = 1e-5
    """The same to be INACCURATE (default 1e-5)."""

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
        return descend(program, theta.detach(), start, _Dense(program, theta.detach(), start), goal)


class _Dense(Directions):
    wolfe = False

    def __init__(self, program: NonlinearProgram, theta: Theta, start: Tensor):
        self.program, self.theta = program, theta
        self.none = start[:, :0]

    def __call__(self, y: Tensor, slope: Tensor) -> Tensor:
        H = self.program.hessian(y, self.theta, self.none, self.none)
        L, info = cholesky_ex(H)
        pivots = L.diagonal(dim1=1, dim2=2).square()
        sound = (info == 0) & (pivots.amin(-1) > _LEAST_CURVATURE * pivots.amax(-1))
        d = torch.cholesky_solve(-slope.unsqueeze(-1), L).squeeze(-1)
        rows = torch.nonzero(~sound & H.sum((1, 2)).isfinite()).flatten()
        if len(rows):
            values, vectors = torch.linalg.eigh(H[rows])
            size = values.abs()
            size = size.clamp(min=1e-14).maximum(_LEAST_CURVATURE * size.amax(-1, keepdim=True))
            inner = (vectors.mT @ slope[rows].unsqueeze(-1)).squeeze(-1) / size
            d = d.index_copy(0, rows, -(vectors @ inner.unsqueeze(-1)).squeeze(-1))
        return d

    def learn(self, dy: Tensor, change: Tensor) -> None:
        """The Hessian is evaluated afresh."""

    def take(self, rows: Tensor) -> None:
        self.theta, self.none = self.theta.take(rows), self.none[rows]


@register
@dataclass(frozen=True)
class NewtonKrylov(NonlinearSolver):
    """Newton's method by truncated conjugate gradients, without constraints: no Hessian is formed, for n up to 10^6 and
    more.

    The systems are solved to ``min(0.01, sqrt|g|) |g|`` (Dembo & Steihaug 1983), so convergence is superlinear.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> node = ddn.TorchProblem(variable=(2,), objective=lambda y, x: (y - x).cosh().sum() + y.square().sum())
    >>> layer = ddn.DeclarativeLayer(node, solver=ddn.NewtonKrylov())
    >>> layer(torch.tensor([[1.0, 3.0]]))
    tensor([[0.3490, 1.3095]])
    """

    name: ClassVar[str] = "newton_krylov"
    minds_time: ClassVar[bool] = True

    max_iterations: int = 200
    """Outer steps after which an element gives up (default 200)."""
    tolerance: float = 1e-10
    """Largest entry of the gradient at which an element stops, relative to the first one if above one (default 1e-10)."""
    solved_tolerance: float = 1e-8
    """The same for an element that cannot improve any more to be SOLVED (default 1e-8)."""
    inaccurate_tolerance: float = 1e-5
    """The same to be INACCURATE (default 1e-5)."""
    inner_iterations: int = 500
    """Hessian-vector products a step may cost (default 500)."""

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
        directions = _Krylov(program, theta.detach(), start, self.inner_iterations)
        return descend(program, theta.detach(), start, directions, goal)


class _Krylov(Directions):
    wolfe = False

    def __init__(self, program: NonlinearProgram, theta: Theta, start: Tensor, limit: int):
        self.program, self.theta, self.limit = program, theta, limit
        self.none = start[:, :0]

    def __call__(self, y: Tensor, slope: Tensor) -> Tensor:
        size = slope.norm(dim=-1)
        forcing = size.sqrt().clamp(max=_FORCING)

        def apply(v: Tensor) -> Tensor:
            return self.program.hvp(y, self.theta, self.none, self.none, v)

        return cg(apply, -slope, forcing, self.limit).x

    def learn(self, dy: Tensor, change: Tensor) -> None:
        """The Hessian's products are evaluated afresh."""

    def take(self, rows: Tensor) -> None:
        self.theta, self.none = self.theta.take(rows), self.none[rows]

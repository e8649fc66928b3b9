"""Nonlinear least squares: ``minimise sum(rho(r_i(y; theta)))``, by Levenberg and Marquardt's method with robust weights.

A step solves ``(J'WJ + eta diag(J'WJ)) d = -J'Wr``, W the weights ``rho'(r) / r`` (Holland & Welsch 1977), with eta per
element by the ratio of actual to predicted decrease (Nielsen 1999).  Where residuals remain at the solution Gauss and
Newton's model converges linearly only: Newton's method on the objective itself then takes over.

``BundleAdjustment`` is for residuals that each concern one camera and one point, or whatever plays their parts: the normal
equations are reduced to those of the cameras (Triggs et al. 2000), at a cost linear in the number of points.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.linalg import cholesky_ex

from ddn_cvx.checks import require_positive_options
from ddn_cvx.errors import DeclarationError, InputError
from ddn_cvx.linalg.elements import choose, take
from ddn_cvx.linalg.saddle_structured import Arrow
from ddn_cvx.program.nonlinear import Loss, NonlinearProgram, Residuals, Theta
from ddn_cvx.solution import Status
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.deadline import expired
from ddn_cvx.solvers.descent import Goal, unconstrained_only
from ddn_cvx.solvers.newton import Newton, NewtonKrylov
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint, NonlinearSolver
from ddn_cvx.solvers.robust_loss import RobustLoss

_SQUARED = RobustLoss()
_FIRST_RIDGE, _LARGEST_RIDGE = 1e-4, 1e16  # eta at the start, and when an element is left to Newton's method
_LEAST_DIAGONAL = 1e-10  # of J'WJ, relative to the largest entry
_CHECK = 2  # iterations between two questions to the device
_SLOW = 0.5  # a gradient that falls by less than this in a step is Newton's business
_PATIENCE = 6  # such steps in a row
_OBJECTIVE_AGREES = 1e-5  # difference from one of the cosine between two gradients


class Linearised(NamedTuple):
    """At y: cost ``(B,)``, its gradient ``(B, n)``, the diagonal of J'WJ ``(B, n)`` and its other parts."""

    cost: Tensor
    slope: Tensor
    diagonal: Tensor
    first: Tensor
    second: Tensor
    third: Tensor


class Model(ABC):
    """Normal equations of some structure, for a batch."""

    @abstractmethod
    def linearise(self, y: Tensor, theta: Theta) -> Linearised:
        """Cost, gradient and J'WJ."""

    @abstractmethod
    def solve(self, at: Linearised, ridge: Tensor) -> Tensor:
        """``-(J'WJ + diag(ridge))^-1 slope``, ridge and result ``(B, n)``."""


def _require_callable(owner: str, *functions: Callable[..., Tensor] | None) -> None:
    for function in functions:
        if function is not None and not callable(function):
            raise InputError(f"a function of {owner} must be callable, got {function!r}")


@register
@dataclass(frozen=True)
class LeastSquares(NonlinearSolver):
    """Levenberg and Marquardt's method for a sum of losses of residuals, ``minimise sum(rho(r(y)))`` (Marquardt 1963;
    Nielsen 1999; weights of Holland & Welsch 1977).

    ``TorchProblem(residual=...)`` uses it of its own accord. The program's objective must be a positive multiple of the
    sum.

    Raises
    ------
    DeclarationError
        From the layer: the problem has constraints, or no residual is known.
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> t = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    >>> def residual(y, theta):  # y (B, 2), data (B, 3)
    ...     return y[:, :1] * torch.exp(-y[:, 1:] * t) - theta.tensors[0]
    >>> def objective(y, data):
    ...     return (y[0] * torch.exp(-y[1] * t) - data).square().sum()
    >>> fit = ddn.TorchProblem((2,), objective, initial=1.0, parameters=[(3,)])
    >>> layer = ddn.DeclarativeLayer(fit, solver=ddn.LeastSquares(residual))
    >>> layer(3 * torch.exp(-0.5 * t)).float()
    tensor([3.0000, 0.5000])
    """

    name: ClassVar[str] = "least_squares"
    minds_time: ClassVar[bool] = True

    residual: Callable[[Tensor, Theta], Tensor] | None = None
    """``y (B, n), theta -> r (B, k)`` (default that of the problem)."""
    loss: Loss | None = None
    """rho (default that of the problem, or squared)."""
    max_iterations: int = 200
    """Steps after which an element is left to Newton's method (default 200)."""
    tolerance: float = 1e-10
    """Largest entry of the gradient at which an element stops, relative to the first one if above one (default 1e-10)."""

    def __post_init__(self) -> None:
        require_positive_options(self, "max_iterations", "tolerance")
        _require_callable(self.name, self.residual)

    def unsupported(self, program: NonlinearProgram) -> str | None:
        if self.residual is None and program.residuals is None:
            return "the objective is not known as a sum of losses of residuals; give residual= in place of it"
        return unconstrained_only(program)

    @torch.no_grad()
    def solve(
        self, program: NonlinearProgram, theta: Theta, start: Tensor, warm: NonlinearPoint | None = None
    ) -> NonlinearPoint:
        theta, start = theta.detach(), (start if warm is None else warm.y).detach()
        goal = Goal(self.tolerance, 1e-8, 1e-5, self.max_iterations)
        residual, loss = _known(program) if self.residual is None else (self.residual, None)
        loss = loss if self.loss is None else self.loss
        model = _Dense(program.n, residual, _SQUARED if loss is None else loss)
        return _run(model, program, theta, start, goal, Newton())


@register
@dataclass(frozen=True)
class BundleAdjustment(NonlinearSolver):
    """``LeastSquares`` for y made of cameras, then points, and residuals that each concern one of each (Triggs,
    McLauchlan, Hartley & Fitzgibbon, "Bundle adjustment: a modern synthesis", 2000). ``nodes.Bundle`` shows it at work.

    ``y = [cameras * camera_size | points * point_size]``; the normal equations are reduced to those of the cameras, at a
    cost linear in the number of points.

    Raises
    ------
    DeclarationError
        From the layer: the problem has constraints, or another number of variables than cameras and points have.
    InputError
        A number that is not positive.

    Examples
    --------
    Two cameras on a line see one point at a distance; the first camera is held by a residual of its own:

    >>> import torch, ddn_cvx as ddn
    >>> camera_of, point_of = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0])
    >>> def residual(camera, point, seen):  # (N, 1), (N, 1), (N, 2): the distance, and whether it is that of the point
    ...     return torch.where(seen[:, 1:] > 0, point - camera - seen[:, :1], camera - seen[:, :1])
    >>> solver = ddn.BundleAdjustment(
    ...     residual, lambda theta: theta.tensors[0], camera_of, point_of, cameras=2, points=1, camera_size=1, point_size=1
    ... )
    >>> def total(y, seen):
    ...     return residual(y[camera_of].unsqueeze(1), y[2 + point_of].unsqueeze(1), seen).square().sum()
    >>> layer = ddn.DeclarativeLayer(ddn.TorchProblem((3,), total, parameters=[(3, 2)]), solver=solver)
    >>> seen = torch.tensor([[1.0, 0.0], [5.0, 1.0], [2.0, 1.0]])
    >>> layer(seen)  # cameras at 1 and 4, the point at 6
    tensor([1.0000, 4.0000, 6.0000])
    """

    name: ClassVar[str] = "bundle_adjustment"
    minds_time: ClassVar[bool] = True

    residual: Callable[[Tensor, Tensor, Tensor], Tensor]
    """``camera (N, a), point (N, s), observation (N, ...) -> r (N, d)``, row by row."""
    observations: Callable[[Theta], Tensor]
    """``theta -> (B, O, ...)``."""
    camera_of: Tensor
    """The camera of each observation, ``(O,)`` int64."""
    point_of: Tensor
    """The point of each observation, ``(O,)`` int64."""
    cameras: int
    """Number of cameras."""
    points: int
    """Number of points."""
    loss: Loss = _SQUARED
    """rho (default squared)."""
    max_iterations: int = 200
    """Steps after which an element is left to Newton's method (default 200)."""
    tolerance: float = 1e-8
    """Largest entry of the gradient at which an element stops, relative to the first one if above one (default 1e-8)."""
    camera_size: int = 6
    """Variables a camera (default 6)."""
    point_size: int = 3
    """Variables a point (default 3)."""

    def __post_init__(self) -> None:
        counts = ("cameras", "points", "camera_size", "point_size")
        require_positive_options(self, *counts, "max_iterations", "tolerance")
        _require_callable(self.name, self.residual, self.observations)

    def unsupported(self, program: NonlinearProgram) -> str | None:
        expected = self.cameras * self.camera_size + self.points * self.point_size
        if program.n != expected:
            return f"the cameras and points have {expected} variables, the program {program.n}"
        return unconstrained_only(program)

    @torch.no_grad()
    def solve(
        self, program: NonlinearProgram, theta: Theta, start: Tensor, warm: NonlinearPoint | None = None
    ) -> NonlinearPoint:
        theta, start = theta.detach(), (start if warm is None else warm.y).detach()
        goal = Goal(self.tolerance, 1e-6, 1e-4, self.max_iterations)
        return _run(_Bundle(self), program, theta, start, goal, NewtonKrylov(tolerance=self.tolerance, max_iterations=30))


def _known(program: NonlinearProgram) -> Residuals:
    if program.residuals is None:
        raise DeclarationError("LeastSquares() needs a residual: that of a TorchProblem(residual=...), or one of its own.")
    return program.residuals


def _run(
    model: Model, program: NonlinearProgram, theta: Theta, start: Tensor, goal: Goal, finisher: NonlinearSolver
) -> NonlinearPoint:
    """Levenberg and Marquardt's method for all, then ``finisher`` for the elements it has left short of the goal."""
    y, iterations, solved = _levenberg_marquardt(model, program, theta, start, goal)
    point = NonlinearPoint.blank(program, y, Status.SOLVED)
    point = NonlinearPoint(point.y, point.lam, point.mu, point.z, point.status, iterations)
    rows = torch.nonzero(~solved).flatten()
    if len(rows):
        again = finisher.solve(program, theta.take(rows), y[rows])
        total = again.iterations + iterations[rows]
        point = point.put(rows, NonlinearPoint(again.y, again.lam, again.mu, again.z, again.status, total))
    return point


def _levenberg_marquardt(
    model: Model, program: NonlinearProgram, theta: Theta, start: Tensor, goal: Goal
) -> tuple[Tensor, Tensor, Tensor]:
    """``y``, iterations and whether the goal is reached."""
    at = model.linearise(start, theta)
    _same_objective(program, theta, start, at.slope)
    result, spent, reached = start.clone(), torch.zeros_like(at.cost, dtype=torch.int64), torch.zeros_like(at.cost).bool()
    y, row = start, torch.arange(len(start), device=start.device)
    limit = max(goal.tolerance, 10 * torch.finfo(start.dtype).eps) * at.slope.abs().amax(-1).clamp(min=1.0)
    eta, growth = torch.full_like(at.cost, _FIRST_RIDGE), torch.full_like(at.cost, 2.0)
    slow = torch.zeros_like(row)
    for iteration in range(goal.iterations + 1):
        size = at.slope.abs().amax(-1)
        done = size <= limit
        over = done | (slow >= _PATIENCE) | (eta > _LARGEST_RIDGE) | ~at.cost.isfinite()
        last = iteration == goal.iterations or expired()
        if last:
            over = torch.ones_like(over)
        if iteration % _CHECK == 0 or last:
            ended = torch.nonzero(over).flatten()
            result = result.index_copy(0, row[ended], y[ended])
            spent = spent.index_fill(0, row[ended], iteration)
            reached = reached.index_copy(0, row[ended], done[ended])
            left = torch.nonzero(~over).flatten()
            if not len(left):
                break
            if len(left) < len(row):
                y, row, limit, eta, growth, slow, size = (t[left] for t in (y, row, limit, eta, growth, slow, size))
                at, theta = take(at, left), theta.take(left)
        largest = at.diagonal.amax(-1, keepdim=True).clamp(min=1e-30)
        ridge = eta.unsqueeze(-1) * at.diagonal.maximum(_LEAST_DIAGONAL * largest)
        d = model.solve(at, ridge)
        new = model.linearise(y + d, theta)
        predicted = 0.5 * ((ridge * d - at.slope) * d).sum(-1)
        ratio = (at.cost - new.cost) / predicted.clamp(min=1e-300)
        rounding = 20 * torch.finfo(y.dtype).eps * at.cost.abs()
        level = (new.cost <= at.cost + rounding) & (new.slope.norm(dim=-1) < at.slope.norm(dim=-1))
        good = ((ratio > 1e-4) | level) & new.cost.isfinite() & new.slope.sum(-1).isfinite()
        shrink = (1 - (2 * ratio - 1) ** 3).clamp(min=1 / 3, max=2.0)
        eta = torch.where(good, (eta * shrink).clamp(min=1e-15), eta * growth)
        growth = torch.where(good, 2.0, 2 * growth)
        slow = torch.where(good & (new.slope.abs().amax(-1) > _SLOW * size), slow + 1, torch.where(good, 0, slow))
        y = torch.where(good.unsqueeze(-1), y + d, y)
        at = choose(good, new, at)
    return result, spent, reached


def _same_objective(program: NonlinearProgram, theta: Theta, y: Tensor, slope: Tensor) -> None:
    """The program's gradient must have the direction of that of the residuals."""
    own = program.first(y, theta).gradient
    product, size = (own * slope).sum(-1), own.norm(dim=-1) * slope.norm(dim=-1)
    wrong = (size > 0) & (product < (1 - _OBJECTIVE_AGREES) * size)
    if bool(wrong.any()):
        raise InputError(
            "the residuals given to the least-squares solver are not those of the objective: for element "
            f"{int(torch.nonzero(wrong)[0])} of the batch the gradients differ in direction. The objective must be "
            "sum(rho(residual)) up to a positive factor; check residual and loss."
        )


class _Dense(Model):
    def __init__(self, n: int, residual: Callable[[Tensor, Theta], Tensor], loss: Loss):
        self.loss = loss
        self.jacobian = NonlinearProgram(n, 0, 0, lambda y, theta: (0 * y[:, 0], residual(y, theta), y[:, :0]))

    def linearise(self, y: Tensor, theta: Theta) -> Linearised:
        first = self.jacobian.first(y, theta)
        r = first.h
        J = torch.cat((first.Jh, first.Jg), 1)
        weighted = J * self.loss.weight(r).unsqueeze(-1)
        slope = (r.unsqueeze(1) @ weighted).squeeze(1)
        normal = weighted.mT @ J
        none = r[:, :0]
        return Linearised(self.loss.value(r).sum(-1), slope, normal.diagonal(dim1=1, dim2=2), normal, none, none)

    def solve(self, at: Linearised, ridge: Tensor) -> Tensor:
        return _negative_solve(at.first + torch.diag_embed(ridge), at.slope)


def _negative_solve(M: Tensor, slope: Tensor) -> Tensor:
    return -torch.cholesky_solve(slope.unsqueeze(-1), cholesky_ex(M).L).squeeze(-1)


class _Bundle(Model):
    """Normal equations as an arrow: ``first`` cameras (B, c, c), ``second`` couplings (B, g, s, c), ``third`` points."""

    def __init__(self, options: BundleAdjustment):
        self.options = options
        size = options.camera_size

        def rows(both: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
            r = options.residual(both[:, :size], both[:, size:], theta.tensors[0])
            return 0 * both[:, 0], r, both[:, :0]

        self.jacobian = NonlinearProgram(size + options.point_size, 0, 0, rows)

    def linearise(self, y: Tensor, theta: Theta) -> Linearised:
        o, batch = self.options, len(y)
        a, s, g, k = o.camera_size, o.point_size, o.points, o.cameras
        cameras, points = y[:, : k * a].view(batch, k, a), y[:, k * a :].view(batch, g, s)
        both = torch.cat((cameras[:, o.camera_of], points[:, o.point_of]), -1).flatten(0, 1)
        first = self.jacobian.first(both, Theta((o.observations(theta).flatten(0, 1),), (True,)))
        r, J = first.h, torch.cat((first.Jh, first.Jg), 1)
        weighted = J * o.loss.weight(r).unsqueeze(-1)
        slope = (r.unsqueeze(1) @ weighted).view(batch, -1, a + s)
        squares = (weighted.mT @ J).view(batch, -1, a + s, a + s)
        slope_k = y.new_zeros(batch, k, a).index_add(1, o.camera_of, slope[..., :a])
        slope_g = y.new_zeros(batch, g, s).index_add(1, o.point_of, slope[..., a:])
        blocks = y.new_zeros(batch, k, a, a).index_add(1, o.camera_of, squares[..., :a, :a])
        P = y.new_zeros(batch, g, s, s).index_add(1, o.point_of, squares[..., a:, a:])
        E = y.new_zeros(batch, g * k, s, a).index_add(1, o.point_of * k + o.camera_of, squares[..., a:, :a])
        E = E.view(batch, g, k, s, a).transpose(2, 3).reshape(batch, g, s, k * a)
        C = y.new_zeros(batch, k, a, k, a)
        C.diagonal(dim1=1, dim2=3).copy_(blocks.permute(0, 2, 3, 1))
        C = C.view(batch, k * a, k * a)
        diagonal = torch.cat((C.diagonal(dim1=1, dim2=2), P.diagonal(dim1=2, dim2=3).flatten(1)), 1)
        cost = o.loss.value(r).view(batch, -1).sum(-1)
        return Linearised(cost, torch.cat((slope_k.flatten(1), slope_g.flatten(1)), 1), diagonal, C, E, P)

    def solve(self, at: Linearised, ridge: Tensor) -> Tensor:
        c, shape = at.first.shape[1], at.second.shape[:3]
        P = at.third + torch.diag_embed(ridge[:, c:].view(shape))
        arrow = Arrow(at.first + torch.diag_embed(ridge[:, :c]), at.second, P)
        x, w = arrow.solve(-at.slope[:, :c], -at.slope[:, c:].view(shape))
        return torch.cat((x, w.flatten(1)), 1)

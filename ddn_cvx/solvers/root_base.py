"""What a solver of ``F(y; θ) = 0`` is, and the loop that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.linalg.elements import put, take
from ddn_cvx.program.nonlinear import Theta
from ddn_cvx.program.root import RootProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.deadline import expired

_LIVE = -1  # a status: still going
_CHECK = 4  # iterations between two questions to the device
_FAR = 1e8  # how much larger than at first a residual may get before the iteration counts as diverging


@dataclass(frozen=True)
class RootPoint:
    """A solver's own answer, before any check; the batch comes first in every tensor."""

    y: Tensor
    """Unknowns, ``(B, n)``."""
    status: Tensor
    """``Status`` codes, ``(B,)`` int64."""
    iterations: Tensor
    """``(B,)`` int64."""


class RootSolver(ABC):
    """A solver of equations. Subclasses are frozen dataclasses whose fields are the options."""

    name: ClassVar[str]
    """Lower-case name under which ``solver="name"`` finds it, if it is registered (``solvers.by_name``)."""
    known: ClassVar[dict[str, type[RootSolver]]] = {}
    """Those that are, by name."""
    minds_time: ClassVar[bool] = False
    """Whether it looks at the time limit itself (``solvers.deadline``); one that does not is left behind when it is over."""

    @abstractmethod
    def unsupported(self, program: RootProgram) -> str | None:
        """Why this solver cannot take the program, or None when it can."""

    @abstractmethod
    def solve(self, program: RootProgram, theta: Theta, start: Tensor) -> RootPoint:
        """Solve a batch of B instances from ``start`` ``(B, n)``, in the dtype of ``start``.

        Never raises for the sake of a single element: its status tells.
        """


class Method(ABC):
    """One way to improve a batch of points; holds what it remembers of them."""

    @abstractmethod
    def step(self, y: Tensor, F: Tensor) -> Tensor:
        """The next points ``(B, n)`` from ``y`` with ``F = F(y)``."""

    @abstractmethod
    def take(self, rows: Tensor) -> None:
        """Go on with some elements only."""

    def stuck(self) -> Tensor | None:
        """Elements that cannot get any further, ``(B,)`` bool, if the method knows."""
        return None


class _Best(NamedTuple):
    row: Tensor
    y: Tensor
    error: Tensor
    first: Tensor
    status: Tensor
    iterations: Tensor


def iterate(
    program: RootProgram, theta: Theta, start: Tensor, method: Method, tolerance: float, iterations: int, unit: Tensor
) -> RootPoint:
    """Improve ``start`` (B, n) until ``max|F| <= tolerance * unit * (1 + max|y|)``; the best point seen is returned.

    Elements that are done stand still, and leave the batch when a quarter of it is.
    """
    tolerance = max(tolerance, 20 * torch.finfo(start.dtype).eps)
    row = torch.arange(len(start), device=start.device)
    y, F = start, program.residual(start, theta)
    error = _error(y, F, unit)
    best = record = _Best(row, y, error, error, torch.full_like(row, _LIVE), torch.zeros_like(row))
    for iteration in range(iterations + 1):
        best = _judge(best, y, _error(y, F, unit), tolerance, iteration, method.stuck())
        live = best.status == _LIVE
        last = iteration == iterations or expired()
        if iteration % _CHECK == 0 or last:
            left = torch.nonzero(live).flatten()
            if last or not len(left) or 4 * len(left) <= 3 * len(live):
                record = put(record, best.row, best)
                if last or not len(left):
                    break
                best, y, F, unit = take(best, left), y[left], F[left], unit[left]
                theta = theta.take(left)
                method.take(left)
                live = live[left]
        y = torch.where(live.unsqueeze(-1), method.step(y, F), y)
        F = program.residual(y, theta)
    status = torch.where(record.status == _LIVE, int(Status.ITERATION_LIMIT), record.status)
    return RootPoint(record.y, status, record.iterations)


def _error(y: Tensor, F: Tensor, unit: Tensor) -> Tensor:
    return F.abs().amax(-1) / (unit * (1 + y.abs().amax(-1)))


def _judge(best: _Best, y: Tensor, error: Tensor, tolerance: float, iteration: int, stuck: Tensor | None) -> _Best:
    live = best.status == _LIVE
    better = live & (error < best.error)
    gone = live & ~(error <= _FAR * (1 + best.first))
    status = best.status.masked_fill(gone, int(Status.NUMERICAL_ERROR))
    if stuck is not None:
        status = status.masked_fill(live & stuck, int(Status.INFEASIBLE))
    status = status.masked_fill(live & (error <= tolerance), int(Status.SOLVED))
    return best._replace(
        y=torch.where(better.unsqueeze(-1), y, best.y),
        error=torch.where(better, error, best.error),
        status=status,
        iterations=torch.where(live, iteration, best.iterations),
    )


def units(program: RootProgram, theta: Theta, y: Tensor) -> Tensor:
    """The size of F for a change of one in y, ``(B,)``: one for a map, else from products with two fixed vectors."""
    if program.is_map:
        return torch.ones_like(y[:, 0])
    linear = program.linearise(y, theta)
    return torch.stack([linear.push(v).abs().amax(-1) for v in probes(y)]).amax(0).nan_to_num().clamp(min=1e-30)


def probes(like: Tensor) -> tuple[Tensor, ...]:
    """Two vectors of ones with signs that no structure of a problem follows."""
    index = torch.arange(like.shape[-1], device=like.device, dtype=like.dtype)
    return tuple(torch.where(torch.sin(a * index * index + a) > 0, 1.0, -1.0).to(like).expand_as(like) for a in (1.3, 2.9))

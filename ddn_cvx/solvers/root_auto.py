"""The default solver of equations: picks by their structure, never by their numbers or the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddn_cvx.program.nonlinear import Theta
from ddn_cvx.program.root import RootProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.anderson import Anderson
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.root_base import RootPoint, RootSolver
from ddn_cvx.solvers.root_newton import RootNewton


@register
@dataclass(frozen=True)
class RootAuto(RootSolver):
    """The default for fixed points and roots: ``Anderson`` for a map, ``RootNewton`` for equations; elements that Anderson
    does not solve go to Newton.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> layer = ddn.DeclarativeLayer(ddn.FixedPoint((), lambda y, x: torch.cos(y) * x), solver=ddn.RootAuto())
    >>> layer(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7391])
    """

    name: ClassVar[str] = "auto"
    minds_time: ClassVar[bool] = True

    def unsupported(self, program: RootProgram) -> str | None:
        return None if program.n else "it needs at least one unknown"

    @torch.no_grad()
    def solve(self, program: RootProgram, theta: Theta, start: Tensor) -> RootPoint:
        if not program.is_map:
            return RootNewton().solve(program, theta, start)
        point = Anderson().solve(program, theta, start)
        rows = torch.nonzero(point.status != int(Status.SOLVED)).flatten()
        if not len(rows):
            return point
        again = RootNewton().solve(program, theta.take(rows), start[rows])
        return RootPoint(
            point.y.index_copy(0, rows, again.y),
            point.status.index_copy(0, rows, again.status),
            point.iterations.index_add(0, rows, again.iterations),
        )

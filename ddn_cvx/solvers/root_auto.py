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
from ddn_cvx.solvers.deadline import expired
from ddn_cvx.solvers.root_base import RootPoint, RootSolver
from ddn_cvx.solvers.root_newton import RootNewton
from ddn_cvx.solvers.starts import scattered

_STARTS = 8
"""From which an element is tried again."""


@register
@dataclass(frozen=True)
class RootAuto(RootSolver):
    """The default for fixed points and roots: ``Anderson`` for a map, ``RootNewton`` for equations; elements that Anderson
    does not solve go to Newton, and those of up to 64 unknowns that Newton does not solve to Newton from eight other starts,
    random but the same in every call.

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
        point = (Anderson() if program.is_map else RootNewton()).solve(program, theta, start)
        if program.is_map:
            point = _again(program, theta, start.unsqueeze(0), point)
        if not program.is_dense:
            return point
        far, spread = torch.full_like(start, torch.inf), start.abs().amax(-1, keepdim=True).clamp(min=1.0)
        return _again(program, theta, scattered(start, -far, far, _STARTS, spread), point)


def _again(program: RootProgram, theta: Theta, starts: Tensor, point: RootPoint) -> RootPoint:
    """Newton's method from ``(K, B, n)`` for the elements that are not solved. The first start that leads to a solution
    counts; where none does, the only start, or of several the old point."""
    rows = torch.nonzero(point.status != int(Status.SOLVED)).flatten()
    if not len(rows) or expired():
        return point
    count = len(starts)
    found = RootNewton().solve(program, theta.take(rows).tile(count), starts[:, rows].flatten(0, 1))
    solved = (found.status == int(Status.SOLVED)).view(count, -1)
    first = solved.to(torch.uint8).argmax(0) * len(rows) + torch.arange(len(rows), device=rows.device)
    keep = solved.any(0) | (count == 1)
    y = torch.where(keep.unsqueeze(-1), found.y[first], point.y[rows])
    status = torch.where(keep, found.status[first], point.status[rows])
    return RootPoint(
        point.y.index_copy(0, rows, y),
        point.status.index_copy(0, rows, status),
        point.iterations.index_add(0, rows, found.iterations.view(count, -1).sum(0)),
    )

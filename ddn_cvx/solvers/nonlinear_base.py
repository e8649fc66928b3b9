"""What a forward solver of nonlinear programs is, and what it returns.

The program is ``minimise f(y)  s.t.  h(y) = 0, g(y) <= 0, lower <= y <= upper``; a point is optimal to first order where

    grad f + Jh'lam + Jg'mu + z = 0,   mu >= 0,   mu g = 0,

with z signed: nonnegative at an upper bound, nonpositive at a lower one, zero between. Answers are judged by these
conditions in ``program.optimality``, whoever found them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from ddn_cvx.errors import InputError
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solution import Status


@dataclass(frozen=True)
class NonlinearPoint:
    """A solver's own answer, before any check; the batch comes first in every tensor."""

    y: Tensor
    """Variables, ``(B, n)``."""
    lam: Tensor
    """Multipliers of the equalities, ``(B, p)``."""
    mu: Tensor
    """Multipliers of the inequalities, ``(B, m)``, nonnegative."""
    z: Tensor
    """Signed multipliers of the bounds, ``(B, n)``: of the upper minus that of the lower."""
    status: Tensor
    """``Status`` codes, ``(B,)`` int64."""
    iterations: Tensor
    """``(B,)`` int64."""

    def take(self, rows: Tensor) -> NonlinearPoint:
        """Some elements."""
        return NonlinearPoint(*(getattr(self, field.name)[rows] for field in fields(self)))

    def put(self, rows: Tensor, other: NonlinearPoint) -> NonlinearPoint:
        """This point with some elements replaced by those of ``other``."""
        names = [field.name for field in fields(self)]
        return NonlinearPoint(*(getattr(self, name).index_copy(0, rows, getattr(other, name)) for name in names))

    @staticmethod
    def blank(program: NonlinearProgram, start: Tensor, status: Status = Status.NUMERICAL_ERROR) -> NonlinearPoint:
        """``start`` with multipliers zero and one status for all."""
        batch = len(start)
        codes = torch.full((batch,), int(status), device=start.device)
        lam, mu = start.new_zeros(batch, program.p), start.new_zeros(batch, program.m)
        return NonlinearPoint(start, lam, mu, torch.zeros_like(start), codes, torch.zeros_like(codes))


class NonlinearSolver(ABC):
    """A forward solver. Subclasses are frozen dataclasses whose fields are the options."""

    name: ClassVar[str]
    """Lower-case name under which ``solver="name"`` finds it, if it is registered (``solvers.by_name``)."""
    known: ClassVar[dict[str, type[NonlinearSolver]]] = {}
    """Those that are, by name."""
    minds_time: ClassVar[bool] = False
    """Whether it looks at the time limit itself (``solvers.deadline``); one that does not is left behind when it is over."""

    @abstractmethod
    def unsupported(self, program: NonlinearProgram) -> str | None:
        """Why this solver cannot take the program, or None when it can."""

    @abstractmethod
    def solve(
        self, program: NonlinearProgram, theta: Theta, start: Tensor, warm: NonlinearPoint | None = None
    ) -> NonlinearPoint:
        """Solve a batch of B instances from ``start`` ``(B, n)``, or from ``warm`` where it is given.

        Never raises for the sake of a single element: its status tells.
        """


def require_solver(owner: str, solver: object) -> None:
    """Raise ``InputError`` unless the solver that a solver calls is one, rather than its name."""
    if not isinstance(solver, NonlinearSolver):
        raise InputError(f"option 'solver' of {owner} must be a solver object such as Newton(), got {solver!r}")

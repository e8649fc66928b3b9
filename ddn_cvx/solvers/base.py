"""What a forward solver is: a frozen dataclass of options with one method, ``solve``.

A solver sees a ``ConicProgram`` and the numbers of a batch, and returns primal, dual and slack vectors with a status
per element. It owes nothing else: whether its answer is right is checked, and differentiated, elsewhere.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status

T = TypeVar("T")


@dataclass(frozen=True)
class RawSolution:
    """A solver's own answer, before any check."""

    x: Tensor
    """Primal, ``(B, n)``."""
    y: Tensor
    """Dual, ``(B, m)``."""
    s: Tensor
    """Slack, ``(B, m)``."""
    status: Tensor
    """``Status`` codes, ``(B,)`` int64."""
    iterations: Tensor
    """``(B,)`` int64."""

    @staticmethod
    def empty(program: ConicProgram, batch: int, like: Tensor) -> RawSolution:
        """NaN vectors with status ``NUMERICAL_ERROR``, for a solver to fill in."""
        nan = float("nan")
        return RawSolution(
            x=like.new_full((batch, program.n), nan),
            y=like.new_full((batch, program.m), nan),
            s=like.new_full((batch, program.m), nan),
            status=torch.full((batch,), int(Status.NUMERICAL_ERROR), device=like.device),
            iterations=torch.zeros(batch, dtype=torch.int64, device=like.device),
        )


class Workspace:
    """Per-thread solver objects kept between calls (factorisations, warm starts).

    Nothing in it is needed for a correct answer: copies and pickles start empty.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def get(self, key: object, make: Callable[[], T]) -> T:
        """The calling thread's object under ``key``, made on first use."""
        store: dict[object, Any] = self._local.__dict__.setdefault("store", {})
        if key not in store:
            store[key] = make()
        found: T = store[key]
        return found

    def __deepcopy__(self, memo: dict[int, object]) -> Workspace:
        return Workspace()

    def __reduce__(self) -> tuple[type[Workspace], tuple[()]]:
        return Workspace, ()


class Solver(ABC):
    """A forward solver. Subclasses are frozen dataclasses whose fields are the options."""

    name: ClassVar[str]
    """Lower-case name under which ``solver="name"`` finds it."""
    on_device: ClassVar[bool] = False
    """Whether it works on tensors of any device; otherwise it is handed float64 CPU tensors."""

    @abstractmethod
    def unsupported(self, program: ConicProgram) -> str | None:
        """Why this solver cannot take the program, or None when it can."""

    @abstractmethod
    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve a batch of B instances (float64). Never raises for the sake of a single element: its status tells.

        Elements that are not to be solved hold NaN; they are ``INVALID_DATA``.
        """

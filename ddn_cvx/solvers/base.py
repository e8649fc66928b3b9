"""What a forward solver is: a frozen dataclass of options with one method, ``solve``.

A solver sees a ``ConicProgram`` and the numbers of a batch, and returns primal, dual and slack vectors with a status
per element. It owes nothing else: whether its answer is right is checked, and differentiated, elsewhere.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar, final

import torch
from torch import Tensor

from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.units import Units
from ddn_cvx.solution import Status
from ddn_cvx.solvers.guard import guarded

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
    """Lower-case name under which ``solver="name"`` finds it, if it is registered (``solvers.by_name``)."""
    known: ClassVar[dict[str, type[Solver]]] = {}
    """Those that are, by name."""
    on_device: ClassVar[bool] = False
    """Whether it works on tensors of any device; otherwise it is handed float64 CPU tensors."""
    minds_time: ClassVar[bool] = False
    """Whether it looks at the time limit itself (``solvers.deadline``); one that does not is left behind when it is over."""
    minds_units: ClassVar[bool] = True
    """Whether its tolerances know absolute sizes, so that small units have to be taken out of the numbers first."""
    any_cone: ClassVar[bool] = False
    """Whether it needs no more of a cone than the methods of ``cones.Cone``, and so takes those of other classes, too."""

    @abstractmethod
    def unsupported(self, program: ConicProgram) -> str | None:
        """Why this solver cannot take the program, or None when it can. Cones of other classes are none of its business
        (``any_cone``)."""

    @final
    def refusal(self, program: ConicProgram) -> str | None:
        """The same, cones of other classes included."""
        if program.cones.others and not self.any_cone:
            names = " and no ".join(sorted({type(cone).__name__ for cone in program.cones.others}))
            return f"it has no {names} cones; FirstOrder() takes every cone that has a projection"
        return self.unsupported(program)

    @abstractmethod
    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve a batch of B instances (float64). Never raises for the sake of a single element: its status tells.

        Elements that are not to be solved hold NaN; they are ``INVALID_DATA``.
        """


def solve_guarded(
    solver: Solver, program: ConicProgram, data: ConicData, workspace: Workspace, seconds: float | None = None
) -> tuple[RawSolution, BaseException | None]:
    """``solve_in_units`` within a time limit, element by element where it raises; also the first error that it raised."""
    blank = RawSolution.empty(program, data.q.shape[0], data.q)

    def solve(rows: Tensor | None) -> RawSolution:
        some = data if rows is None else ConicData(*(t[rows] for t in data))
        return solve_in_units(solver, program, some, workspace)

    return guarded(solve, blank, solver.name, solver.minds_time, seconds)


def solve_in_units(solver: Solver, program: ConicProgram, data: ConicData, workspace: Workspace) -> RawSolution:
    """Solve with small units taken out of the numbers, where the solver minds them, and on the device it works on."""
    device = data.q.device
    units = Units.of(data) if solver.minds_units else None
    if units is not None:
        data = units.remove(data)
    if not solver.on_device and device.type != "cpu":
        data = ConicData(*(part.cpu() for part in data))
    raw = solver.solve(program, data, workspace)
    if device.type != "cpu":
        raw = RawSolution(*(t.to(device) for t in (raw.x, raw.y, raw.s, raw.status, raw.iterations)))
    if units is None:
        return raw
    return replace(raw, x=raw.x * units.primal, y=raw.y * units.dual, s=raw.s * units.primal)

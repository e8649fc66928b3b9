"""The default solver: the one that should be fastest by a measured cost model (:mod:`ddn_cvx.solvers.cost`).

It looks at the structure of the program and at the device, never at the numbers or at how many instances there are: an
element's answer must not change with its batch mates, so neither may the solver. The model is asked for batches of fixed
sizes instead, and the solver is taken whose times have the least geometric mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ddn_cvx.checks import require_positive_options
from ddn_cvx.errors import InputError
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.active_set import ActiveSet
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace, solve_in_units
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.conic_interior_point import ConicInteriorPoint
from ddn_cvx.solvers.cost import Size, seconds
from ddn_cvx.solvers.deadline import expired
from ddn_cvx.solvers.first_order import FirstOrder
from ddn_cvx.solvers.interior_point import InteriorPoint
from ddn_cvx.solvers.mehrotra import Mehrotra


@dataclass(frozen=True)
class Candidate:
    """A solver, and what speaks for or against it."""

    solver: Solver
    seconds: tuple[float, ...] | None
    """Estimated time of each of the batches, on one thread; None if it was not measured on the device."""
    refusal: str | None
    """Why it is out of the question."""


@dataclass(frozen=True)
class Choice:
    """The solver that is taken, and those it was compared with."""

    solver: Solver
    reason: str
    candidates: tuple[Candidate, ...]


@register
@dataclass(frozen=True)
class Auto(Solver):
    """The default for conic programs: picks among ``ActiveSet``, ``Mehrotra``, ``InteriorPoint``,
    ``ConicInteriorPoint``, ``FirstOrder`` and ``Clarabel`` by estimated time, from the structure of the program and the
    device alone. ``Clarabel`` gives elements that another one does not solve a second chance.

    Raises
    ------
    InputError
        A limit that is not positive, or ``batches`` that is no tuple of positive integers.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    >>> layer = ddn.DeclarativeLayer(problem, [p], x, solver=ddn.Auto(batches=(1,), threads=1))
    >>> layer.explain().solver
    'ActiveSet'
    """

    name: ClassVar[str] = "auto"
    minds_time: ClassVar[bool] = True
    on_device: ClassVar[bool] = True  # it hands each solver tensors where that one works
    any_cone: ClassVar[bool] = True
    minds_units: ClassVar[bool] = False  # it takes them out for the solvers that do

    batches: tuple[int, ...] = (1, 64)
    """Sizes of the batches that the choice is made for, whatever comes (default 1 and 64)."""
    dense_limit: int = 1200
    """n + m up to which dense matrices, some for each element, are formed (default 1200)."""
    threads: int | None = None
    """Threads that share a batch; None is one a processor (default None)."""

    def __post_init__(self) -> None:
        require_positive_options(self, "dense_limit", "threads")
        sizes = self.batches
        if not (isinstance(sizes, tuple) and sizes and all(isinstance(b, int) and b > 0 for b in sizes)):
            raise InputError(f"batches must be a tuple of positive integers such as (1, 64), got {sizes!r}.")

    def unsupported(self, program: ConicProgram) -> str | None:
        return None if program.cones.others else self._solvers[-1].unsupported(program)

    def explain(self, program: ConicProgram, device: str = "cpu") -> str:
        """One sentence: the solver and why."""
        choice = self.pick(program, device)
        return f"{type(choice.solver).__name__} for n = {program.n}, m = {program.m}: {choice.reason}"

    def pick(self, program: ConicProgram, device: str = "cpu") -> Choice:
        """The solver for a program on a kind of device, with the estimates that decide."""
        refusals = [self._refusal(solver, program, device) for solver in self._solvers]
        able = [solver for solver, refusal in zip(self._solvers, refusals, strict=True) if refusal is None]
        times = self._times(able, program, device)
        candidates = tuple(
            Candidate(solver, times.get(solver.name), refusal)
            for solver, refusal in zip(self._solvers, refusals, strict=True)
        )
        if not times:
            best = next((solver for solver in able if solver.on_device), able[-1])
            reason = "and it works there" if best.on_device else "and no solver that works there takes it"
            return Choice(best, f"nothing was measured on {device}, {reason}", candidates)
        best, *others = sorted(able, key=lambda solver: math.prod(times.get(solver.name, (math.inf,))))
        if not others:
            reasons = "; ".join(sorted({refusal for refusal in refusals if refusal is not None}))
            return Choice(best, f"no other solver takes it: {reasons}", candidates)
        sizes = " and ".join(map(str, self.batches))
        first, second = (" and ".join(map(in_words, times.get(solver.name, ()))) for solver in (best, others[0]))
        reason = f"batches of {sizes} should take {first} on one thread, with {type(others[0]).__name__} {second}"
        return Choice(best, reason, candidates)

    def choose(self, program: ConicProgram, workspace: Workspace, device: str) -> Solver:
        """The same solver, without the reasons; remembered."""
        return workspace.get((self, program, device), lambda: self.pick(program, device).solver)

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch with the solver that ``explain`` names."""
        device = data.q.device.type
        solver = self.choose(program, workspace, device)
        raw = solve_in_units(solver, program, data, workspace)
        spare = self._solvers[-1]
        if isinstance(solver, Clarabel) or not program.has_sparse_factor or spare.refusal(program) or expired():
            return raw
        if not bool(raw.status.any()):  # SOLVED is zero
            return raw
        settled = (raw.status == int(Status.SOLVED)) | (raw.status == int(Status.INVALID_DATA))
        if bool(settled.all()):
            return raw
        again = torch.nonzero(~settled).flatten()
        second = solve_in_units(spare, program, ConicData(*(t[again] for t in data)), workspace)
        better = second.status <= int(Status.UNBOUNDED)  # a point or a certificate; else the first answer says no less
        parts = ("x", "y", "s", "status", "iterations")
        merged = {part: getattr(raw, part).index_copy(0, again[better], getattr(second, part)[better]) for part in parts}
        return replace(raw, **merged)

    @property
    def _solvers(self) -> tuple[Solver, ...]:
        """In the order of preference where times are equal; the last one takes everything."""
        return (
            ActiveSet(self.threads),
            Mehrotra(self.threads),
            InteriorPoint(),
            ConicInteriorPoint(),
            FirstOrder(),
            Clarabel(threads=self.threads),
        )

    def _refusal(self, solver: Solver, program: ConicProgram, device: str) -> str | None:
        size = program.n + program.m
        if isinstance(solver, InteriorPoint | ConicInteriorPoint) and size > self.dense_limit:
            return f"n + m = {size} is above {self.dense_limit}, too much memory for dense matrices of each instance"
        small = program.has_sparse_factor and (device == "cpu" or size <= self.dense_limit)
        if isinstance(solver, FirstOrder) and small and not program.cones.others:
            return "it is for programs too large for a factorisation on the device"
        if isinstance(solver, Clarabel) and not program.has_sparse_factor:
            return "with entries all over, factors would need too much memory"
        return solver.refusal(program)

    def _times(self, able: list[Solver], program: ConicProgram, device: str) -> dict[str, tuple[float, ...]]:
        """Seconds of each of the batches by solver."""
        found: dict[str, tuple[float, ...]] = {}
        size = Size.of(program)
        for solver in able:
            times = [seconds(solver.name, size, batch, device) for batch in self.batches]
            known = tuple(time for time in times if time is not None)
            if known:
                found[solver.name] = known
        return found


def in_words(time: float) -> str:
    """Seconds with a unit."""
    return f"{time * 1e6:.0f} µs" if time < 1e-3 else f"{time * 1e3:.3g} ms" if time < 1 else f"{time:.3g} s"

"""Around every forward solve: what a solver does wrong is the fault of elements, never of the batch or the process.

A solver that breaks down on a batch is given its halves, down to single elements, so that only those fail which it breaks
down on. One that takes too long is left behind. What it returns must have the right shapes; whether the numbers are right is
checked by the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ddn_cvx.errors import DeclarativeError, InputError
from ddn_cvx.solution import Status
from ddn_cvx.solvers.deadline import GRACE, OutOfTime, expired, in_time, limited, remaining

if TYPE_CHECKING:
    from dataclasses import Field


class Answers(Protocol):
    """A dataclass of tensors with the batch first, one of them the ``Status`` codes."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def status(self) -> Tensor:
        """``(B,)`` int64."""


A = TypeVar("A", bound=Answers)


def guarded(
    solve: Callable[[Tensor | None], A], blank: A, name: str, minds_time: bool, seconds: float | None
) -> tuple[A, BaseException | None]:
    """The answers of ``solve(rows)`` for the rows of a batch (None is all of them), and the first error it raised.

    Parameters
    ----------
    solve
        The solver; it may raise, or hang unless it ``minds_time``.
    blank
        Answers without content for the whole batch, which stand where there is no answer, and show the shapes.
    seconds : float, optional
        The time for all of it.

    Raises
    ------
    InputError
        An answer of a wrong shape, type or device.
    """
    attempts = _Attempts(solve, blank, name, seconds is not None and not minds_time, seconds is not None, [])
    with limited(seconds):
        found = attempts.answers(None)
        if seconds is not None and expired():  # limits are alike to what iterates
            late = found.status == int(Status.ITERATION_LIMIT)
            found = replace(found, status=torch.where(late, int(Status.TIME_LIMIT), found.status))
    return found, attempts.errors[0] if attempts.errors else None


@dataclass(frozen=True)
class _Attempts(Generic[A]):
    """A solver, tried on a batch, its halves, and so on. (No recursive closure: these are freed by the garbage collector
    only, and all that the solver knows with them.)"""

    solve: Callable[[Tensor | None], A]
    blank: A
    name: str
    alone: bool
    """Whether the solver has to be left behind when its time is over."""
    timed: bool
    errors: list[BaseException]

    def answers(self, rows: Tensor | None) -> A:
        """Those of some elements, None of all."""
        empty = self.blank if rows is None else taken(self.blank, rows)
        size = len(empty.status)
        if rows is not None and self.timed and expired():
            return with_status(empty, Status.TIME_LIMIT)
        try:
            found = in_time(lambda: self.solve(rows), remaining() + GRACE) if self.alone else self.solve(rows)
        except OutOfTime:
            return with_status(empty, Status.TIME_LIMIT)
        except BaseException as error:
            if not is_breakdown(error):
                raise
            self.errors.append(error)
        else:
            _require_form(found, empty, self.name)
            return found
        if size < 2:
            return empty
        rows = torch.arange(size, device=empty.status.device) if rows is None else rows
        return _joined(self.answers(rows[: size // 2]), self.answers(rows[size // 2 :]))


def is_breakdown(error: BaseException) -> bool:
    """Whether hopeless numbers made a package raise this, rather than a mistake or the user's Ctrl-C."""
    if isinstance(error, DeclarativeError | NotImplementedError | RecursionError | torch.OutOfMemoryError):
        return False
    if isinstance(error, ValueError):
        # SCS that could not factorise its matrices says so by a ValueError.
        return isinstance(error, np.linalg.LinAlgError) or "ScsWork" in str(error)
    # Failed assertions in Rust are no Exception.
    return isinstance(error, (RuntimeError, ArithmeticError)) or type(error).__name__ == "PanicException"


def taken(answers: A, rows: Tensor) -> A:
    """Those of some elements."""
    return _each(lambda t: t[rows], answers)


def with_status(answers: A, status: Status) -> A:
    """The same with one status for all."""
    return replace(answers, status=torch.full_like(answers.status, int(status)))


def _joined(first: A, second: A) -> A:
    return _each(lambda a, b: torch.cat((a, b)), first, second)


def _each(function: Callable[..., Tensor], first: A, *others: A) -> A:
    parts = {f.name: function(*(getattr(one, f.name) for one in (first, *others))) for f in fields(first)}
    return replace(first, **parts)


def _require_form(found: A, expected: A, name: str) -> None:
    if type(found) is not type(expected):
        raise InputError(f"Solver {name!r} must return a {type(expected).__name__}, got {type(found).__name__}.")
    for f in fields(expected):
        one, other = getattr(found, f.name), getattr(expected, f.name)
        if not isinstance(one, Tensor) or (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
            got = f"{tuple(one.shape)} {one.dtype} on {one.device}" if isinstance(one, Tensor) else type(one).__name__
            wanted = f"{tuple(other.shape)} {other.dtype} on {other.device}"
            raise InputError(f"Solver {name!r} must return '{f.name}' as a tensor {wanted}, got {got}.")

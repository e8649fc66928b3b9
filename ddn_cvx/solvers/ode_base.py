"""What integrates an initial value problem, and what it does with elements that cannot be integrated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, final

import torch
from torch import Tensor

from ddn_cvx.solution import Status

Field = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""``(s, state) -> d state / ds``."""


class Integrated(NamedTuple):
    """How each element of a batch ended, and the states ``(len(rows), n)`` of those that did well."""

    y: Tensor
    rows: Tensor
    status: Tensor
    """``(B,)``."""


class Broken(Exception):
    """An initial value problem could not be integrated; ``bad`` says for which rows, if that is known."""

    def __init__(self, status: Status, bad: Tensor | None = None):
        super().__init__()
        self.status, self.bad = status, bad


class Integrator(ABC):
    """A method for ``d state / ds = field(s, state)`` from s = 0 to s = 1. Subclasses are frozen dataclasses whose fields
    are the options."""

    @abstractmethod
    def error(self, dtype: torch.dtype) -> float:
        """Relative and absolute error of a step together, in numbers of this dtype: what is too far off to be an error of
        steps is taken for a fault, as where the equations of the derivative do not lead back to the start."""

    @abstractmethod
    def integrate(self, field: Field, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The state at s = 1 from that at s = 0, by torch operations on the state.

        The first tensor is ``(B, k)``, and its error is to be controlled for each row; further ones may have any shape.

        Raises
        ------
        Broken
            Some row cannot be integrated.
        """

    @final
    def integrate_each(self, field: Callable[[Tensor, Tensor, Tensor], Tensor], y: Tensor) -> Integrated:
        """The same for one tensor ``y (B, n)``; elements that fail are left out, and the others integrated without them.

        Parameters
        ----------
        field : callable
            ``(s, y[rows], rows) -> dy/ds`` for some rows of the batch.
        """
        status = torch.full((len(y),), int(Status.SOLVED), device=y.device)
        waiting, finished = [torch.arange(len(y), device=y.device)] if len(y) else [], []
        while waiting:
            rows = waiting.pop()
            try:
                (end,) = self.integrate(partial(_of_rows, field, rows), (y[rows],))
            except Broken as error:
                bad = error.bad
                if bad is not None:
                    status = status.index_fill(0, rows[bad], int(error.status))
                    waiting += [rows[~bad]] if not bool(bad.all()) else []
                elif len(rows) > 1:  # which element is to blame only a smaller batch can tell
                    waiting += list(rows.tensor_split(2))
                else:
                    status = status.index_fill(0, rows, int(error.status))
            else:
                finished.append((end, rows))
        ends = torch.cat([y[:0], *(end for end, _ in finished)])
        return Integrated(ends, torch.cat([torch.arange(0, device=y.device), *(rows for _, rows in finished)]), status)


def _of_rows(
    field: Callable[[Tensor, Tensor, Tensor], Tensor], rows: Tensor, s: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return (field(s, state[0], rows),)

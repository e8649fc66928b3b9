"""Problem data from parameters by the compiled kernel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ddn_cvx.kernels import substitution
from ddn_cvx.kernels.jit import Task
from ddn_cvx.kernels.memory import empty
from ddn_cvx.kernels.structure import Structure
from ddn_cvx.kernels.substitution import Substitution
from ddn_cvx.program.conic import ConicData

Array = NDArray[np.float64]


class Substituted(NamedTuple):
    """What to do, and where the numbers will be."""

    task: Task
    arrays: tuple[Array, Array, Array, Array]
    """P, q, A and b as in ``ConicData``."""
    finite: NDArray[np.bool_]
    """Which elements' parameters and data are numbers, ``(B,)``."""

    @staticmethod
    def of(binding: Substitution, structure: Structure, u: Array) -> Substituted:
        """For parameter vectors u (B, k)."""
        batch, stops = len(u), binding.stops
        P, A = (empty(batch, int(size)) for size in (stops[0], stops[2] - stops[1]))
        q, b = empty(batch, structure.n), empty(batch, structure.m)
        finite = np.empty(batch, np.bool_)
        work = 4 * len(binding.offset) + 2 * len(binding.places) * binding.eliminated
        return Substituted(Task(substitution.bind, work, (binding, u, P, q, A, b, finite)), (P, q, A, b), finite)

    @property
    def data(self) -> ConicData:
        """The numbers as tensors, which need not be there yet."""
        return ConicData(*map(torch.from_numpy, self.arrays))

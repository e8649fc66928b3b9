"""Memory of large arrays that is used again.

The system takes large blocks back when they are freed, and clears the pages of new ones one by one when they are first
written to: for a batch of dense problems that takes as long as a quarter of solving them. Arrays of a training step have
the sizes of the last step's, so their memory is kept for the next one.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SMALL = 8_192
"""Numbers below which an array is not worth it."""
KEPT = 16_000_000
"""Numbers that are kept at most (128 MB): beyond that everything is given back, and a larger array always."""

FREE: defaultdict[int, list[Array]] = defaultdict(list)
"""What may be lent, by size."""
HELD = [0]
"""Numbers in it."""


class _Block:
    """Lends memory to an array, whose base it is, and takes it back with the last view of it."""

    def __init__(self, memory: Array):
        self.memory, self.__array_interface__ = memory, memory.__array_interface__

    def __del__(self) -> None:
        if self.memory.size > KEPT:
            return
        if HELD[0] + self.memory.size > KEPT:
            FREE.clear()
            HELD[0] = 0
        HELD[0] += self.memory.size
        FREE[self.memory.size].append(self.memory)


def empty(*shape: int) -> Array:
    """Like ``numpy.empty`` of float64."""
    size = math.prod(shape)
    if size < SMALL:
        return np.empty(shape)
    try:
        memory = FREE[size].pop()
        HELD[0] -= size
    except IndexError:
        memory = np.empty(size)
    return np.asarray(_Block(memory)).reshape(shape)

"""Soft sorting: numbers in descending order, as a function that has useful derivatives.

The sorted vector is the vertex of the permutahedron of x (the hull of all permutations of
x) where ρ = (n, ..., 1) is largest. With a quadratic regulariser it becomes the projection
of ρ/ε onto the permutahedron,

    y = argmin 1/2 |y - ρ/ε|²   subject to   y in the hull of all permutations of x,

which is ρ/ε - v with the nonincreasing vector v that is nearest to ρ/ε - sort(x) (Blondel,
Teboul, Berthet & Djolonga, "Fast differentiable sorting and ranking", ICML 2020). For small
ε it is the sorted vector itself, for large ε all entries tend to the mean.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer
from ddn_cvx.nodes import Entry


class SoftSort(nn.Module):
    """``x (*batch, n) -> y (*batch, n)``, the entries of x in softly descending order.

    Their sum is that of x.

    Parameters
    ----------
    n : int
        Size of a vector.
    width : float
        ε, in the units of x: entries that are closer together than this are mixed.

    Raises
    ------
    DeclarationError
        A width that is not positive.

    Examples
    --------
    >>> SoftSort(3, width=0.1)(torch.tensor([1.0, 3.0, 2.0]))
    tensor([3., 2., 1.])
    >>> SoftSort(3, width=1.0)(torch.tensor([1.0, 5.0, 1.5]))
    tensor([3.5000, 2.5000, 1.5000])
    """

    def __init__(self, n: int, width: float = 1.0):
        super().__init__()
        if not width > 0:
            raise DeclarationError(f"SoftSort: width must be positive, got {width!r}.")
        self.register_buffer("rank", torch.arange(n, 0, -1, dtype=torch.float64) / width)
        v, target = cp.Variable(n), cp.Parameter(n)
        decreasing = [v[:-1] >= v[1:]] if n > 1 else []
        self.nearest = DeclarativeLayer(
            cp.Problem(cp.Minimize(0.5 * cp.sum_squares(v - target)), decreasing),
            [target],
            v,
        )

    def forward(self, x: Tensor) -> Tensor:
        """The softly sorted entries, in the dtype of x."""
        rank = self.get_buffer("rank").to(x)
        return rank - self.nearest(rank - x.sort(-1, descending=True).values)


# ---------------------------------------------------------------- the catalogue's entry


def pool_adjacent_violators(x: Tensor) -> Tensor:
    """Soft sorting with ε = 1: blocks that are in the wrong order share their mean."""
    n = x.shape[-1]
    rank, rows = np.arange(n, 0, -1.0), []
    for row in np.sort(x.numpy(), -1)[:, ::-1]:
        blocks: list[list[float]] = []  # (mean, number of entries)
        for value in rank - row:
            blocks.append([value, 1.0])
            while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
                mean, number = blocks.pop()
                last = blocks[-1]
                last[0] = (last[0] * last[1] + mean * number) / (last[1] + number)
                last[1] += number
        rows.append(
            rank - np.concatenate([np.full(int(number), mean) for mean, number in blocks])
        )
    return torch.from_numpy(np.stack(rows))


def sample(batch: int, generator: torch.Generator) -> tuple[Tensor]:
    """Vectors of which some entries are mixed."""
    return (2.0 * torch.randn(batch, 6, generator=generator, dtype=torch.float64),)


ENTRIES = (
    Entry(
        name="soft-sort",
        title="soft sorting: projection onto the permutahedron",
        kind="conic",
        source="Blondel, Teboul, Berthet & Djolonga, ICML 2020",
        build=lambda: SoftSort(6),
        sample=sample,
        reference=pool_adjacent_violators,
        tags=frozenset({"projection", "sorting"}),
    ),
)

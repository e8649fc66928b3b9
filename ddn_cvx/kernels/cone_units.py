"""Whether the coefficients of curved cones are of an ordinary size, for parameters of which they are affine functions."""

from __future__ import annotations

from typing import Any, NamedTuple

from ddn_cvx.kernels.jit import jit
from ddn_cvx.kernels.structure import Integers
from ddn_cvx.kernels.substitution import Substitution


class Groups(NamedTuple):
    """Numbers of which the largest is to be ordinary, group after group."""

    map: Substitution
    """The affine map to all numbers."""
    rows: Integers
    """Which of them are in the groups."""
    starts: Integers
    """Where each group begins among these, and the end of the last."""
    limit: float
    """Ordinary is zero and what is between this and its reciprocal."""


@jit
def are_ordinary(first: int, last: int, groups: Any, u: Any, found: Any) -> None:
    """Of the elements ``first .. last - 1`` for parameters u (B, k): ``found`` (B,) says so of all groups."""
    sub, limit = groups.map, groups.limit
    for k in range(first, last):
        good = True
        for g in range(groups.starts.shape[0] - 1):
            largest = 0.0
            for j in range(groups.starts[g], groups.starts[g + 1]):
                row = groups.rows[j]
                value = sub.offset[row]
                for place in range(sub.indptr[row], sub.indptr[row + 1]):
                    value += sub.values[place] * u[k, sub.indices[place]]
                largest = max(largest, abs(value))
            good = good and (largest == 0 or 1 / limit < largest < limit)
        found[k] = good

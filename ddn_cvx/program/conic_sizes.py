"""What slacks and multipliers of a conic program are measured by, to tell a constraint without a force from a small force.

The conditions of optimality have two kinds of units. Rows of ``Ax + s = b`` are as large as their entries in A, times the
size of x; the gradient ``Px + q + A'y = 0`` is as large as the terms that balance in it, and a multiplier counts by the
force ``|a_i| y_i`` it adds there. So the objective times any number, or a row times any number, or another unit for x,
changes slacks, multipliers and what they are measured by alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.cones.product import Sizes
from ddn_cvx.program.conic import ConicData, ConicProgram

NOTHING = 1e-10
"""A solution or a gradient so small, next to what the numbers of the problem suggest, is zero."""


def sizes(program: ConicProgram, data: ConicData, x: Tensor, v: Tensor) -> Sizes:
    """Of each cone, as ``Product.dual_margin`` counts, at a solution x (B, n), v (B, m).

    Where x is zero its size is that of the minimiser without constraints, or of the distance to the nearest row that does
    not go through the origin, and one if there is nothing of the kind; where there is no objective forces are next to one.
    """
    y = program.cones.project_dual(v)
    _, _, rows, cols = program.index(x.device)
    entries = data.A.abs()
    row = _scatter(entries, rows, program.m)
    curved, pull = _largest(data.P), _largest(data.q)
    bounds = torch.where((row > 0) & (data.b != 0), data.b.abs() / row, torch.inf)
    nearest = bounds.amin(-1, keepdim=True) if program.m else torch.full_like(pull, torch.inf)
    free = torch.where((curved > 0) & (pull > 0), pull / curved, nearest)
    length = _or(torch.minimum(free, nearest), _largest(x))
    applied = torch.maximum(pull, _largest(program.P_times(data.P, x)))
    balanced = _scatter(entries * y.abs()[..., rows], cols, program.n)
    force = torch.where(
        applied > NOTHING * curved * length,
        torch.maximum(applied, _largest(balanced)),
        torch.where(curved > 0, curved * length, 1.0),
    )
    width = program.cones.largest(row)
    slack = torch.where(width > 0, width * length, program.cones.largest(data.b.abs()))
    return Sizes(torch.where(slack > 0, slack, 1.0), force / torch.where(width > 0, width, 1.0))


def _or(expected: Tensor, found: Tensor) -> Tensor:
    """What is found unless it is zero next to what is expected; one where there is neither."""
    expected = torch.where(expected.isfinite(), expected, torch.where(found > NOTHING, found, 1.0))
    return torch.where(found > NOTHING * expected, found, expected)


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(-1, keepdim=True) if t.shape[-1] else t.new_zeros(*t.shape[:-1], 1)


def _scatter(values: Tensor, index: Tensor, size: int) -> Tensor:
    """The largest of the values that belong to each of ``size`` places, zero for none."""
    found = values.new_zeros(*values.shape[:-1], size)
    return found.scatter_reduce(-1, index.expand_as(values), values, "amax")

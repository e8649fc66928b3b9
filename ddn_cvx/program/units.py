"""Take small units out of a program before it is solved, so that absolute tolerances mean what they say.

If ``(x, y, s)`` solves the program with the numbers ``(P, q, A, b)``, then ``(x / beta, y / gamma, s / beta)`` solves
that with ``(beta P / gamma, q / gamma, A, b / beta)``: the optimality conditions know neither the unit beta of x nor the
unit gamma of the objective's gradient. The tolerances of solvers do; to most of them a right-hand side of 1e-9 is as
good as zero.

Units are powers of two, so that scaling rounds nothing, and one unless all of b, or of q, is small. Large numbers need
no such care, because tolerances are relative to them. An element's units depend on that element only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.program.conic import ConicData

SMALL, SMALLEST = 2.0**-10, 2.0**-300
"""Sizes above the first are left alone, and no unit is below the second."""


class Units(NamedTuple):
    """The units of x and s, and of y and the gradient of the objective; ``(B, 1)`` each, at most 1."""

    primal: Tensor
    dual: Tensor

    @staticmethod
    def of(data: ConicData) -> Units:
        """The size of b, or of the minimiser without constraints if that is larger, and the size of the gradient."""
        P, q, b = _largest(data.P), _largest(data.q), _largest(data.b)
        primal = _unit(torch.maximum(b, torch.where(P > 0, q / P, 0.0)))
        return Units(primal, _unit(torch.maximum(q, primal * P)))

    @property
    def are_small(self) -> bool:
        """Whether there is anything to remove."""
        return bool((torch.cat((self.primal, self.dual)) < 1).any())

    def remove(self, data: ConicData) -> ConicData:
        """The numbers to give to a solver."""
        return ConicData(data.P * (self.primal / self.dual), data.q / self.dual, data.A, data.b / self.primal)


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(-1, keepdim=True) if t.shape[-1] else t.new_zeros(t.shape[0], 1)


def _unit(size: Tensor) -> Tensor:
    power = torch.exp2(torch.log2(size.clamp(min=SMALLEST)).round())
    return torch.where((size > 0) & (size < SMALL), power, 1.0)

"""A batch of instances ready for arithmetic: products, and the optimality conditions at a point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddn_cvx.program.conic import ConicData, ConicProgram


@dataclass(frozen=True)
class Residuals:
    """Relative residuals of the optimality conditions, each ``(B,)``."""

    primal: Tensor
    """``Ax + s = b`` and ``s in K``."""
    dual: Tensor
    """``Px + q + A'y = 0`` and ``y in K*``."""
    gap: Tensor
    """``x'Px + q'x + b'y = 0``."""

    @property
    def worst(self) -> Tensor:
        """The largest of the three; NaN counts as infinite."""
        return torch.nan_to_num(torch.maximum(torch.maximum(self.primal, self.dual), self.gap), nan=torch.inf)


@dataclass(frozen=True)
class Point:
    """A candidate solution ``(x, v)`` with ``y = Pi_K*(v)``, ``s = y - v``, and the optimality conditions there."""

    x: Tensor
    v: Tensor
    y: Tensor
    s: Tensor
    top: Tensor
    """``Px + q + A'y``, ``(B, n)``."""
    low: Tensor
    """``Ax + s - b``, ``(B, m)``."""
    residuals: Residuals


class Instance:
    """The numbers of a batch, in dense matrices where the program is small."""

    def __init__(self, program: ConicProgram, data: ConicData):
        self.program, self.data = program, data
        self.dense = program.dense(data) if program.is_dense else None

    def at(self, x: Tensor, v: Tensor) -> Point:
        """The point ``(x, v)``, x (B, n), v (B, m)."""
        y = self.program.cones.project_dual(v)
        s = y - v
        top, low, residuals = self._measure(x, y, s)
        return Point(x, v, y, s, top, low, residuals)

    def residuals(self, x: Tensor, y: Tensor, s: Tensor) -> Residuals:
        """How far any ``(x, y, s)`` is from optimal, distances from the cones included."""
        cones = self.program.cones
        _, _, found = self._measure(x, y, s)
        primal = torch.maximum(found.primal, cones.distance(s) / (1 + _largest(s)))
        dual = torch.maximum(found.dual, cones.dual_distance(y) / (1 + _largest(y)))
        return Residuals(primal, dual, found.gap)

    def _measure(self, x: Tensor, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Residuals]:
        q, b = self.data.q, self.data.b
        Px, Aty, Ax = self._products(x, y)
        top = Px + q + Aty
        low = Ax + s - b
        terms = torch.stack((Px * x, q * x)).sum(-1)
        gap_terms = torch.cat((terms, (b * y).sum(-1).unsqueeze(0)))
        gap = gap_terms.sum(0).abs() / (1 + gap_terms.abs().amax(0))
        return top, low, Residuals(_relative(low, Ax, s, b), _relative(top, Px, Aty, q), gap)

    def _products(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.dense is None:
            program, data = self.program, self.data
            return program.P_times(data.P, x), program.At_times(data.A, y), program.A_times(data.A, x)
        P, A = self.dense
        column = x.unsqueeze(-1)
        return (P @ column).squeeze(-1), (y.unsqueeze(-2) @ A).squeeze(-2), (A @ column).squeeze(-1)


def _relative(residual: Tensor, *terms: Tensor) -> Tensor:
    """Largest entry of a residual, next to 1 and the largest of the terms it is the sum of."""
    if not residual.shape[-1]:
        return residual.new_zeros(residual.shape[:-1])
    sizes = torch.stack((residual, *terms)).abs().amax(-1)
    return sizes[0] / (1 + sizes[1:].amax(0))


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(-1) if t.shape[-1] else t.new_zeros(t.shape[:-1])

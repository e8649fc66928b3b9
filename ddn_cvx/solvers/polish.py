"""Newton's method on the optimality conditions: from a solver's accuracy to machine accuracy.

The residual F is semismooth and its Newton step needs the same factor as the derivative, so a step or two cost little
and bring an interior-point solution (1e-8) or a first-order one (1e-5) to about 1e-12 wherever the solution is regular.
A step is kept only for the elements whose residual it lowers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.factor import KKT, factorise


FAIR = 1e-10
"""Residual from which on a step that does not help is not shortened: rounding is in the way, not a wrong active set."""
MAX_HALVINGS = 7


@dataclass(frozen=True)
class Residuals:
    """Relative residuals of the optimality conditions, each ``(B,)``."""

    primal: Tensor
    dual: Tensor
    gap: Tensor

    @property
    def worst(self) -> Tensor:
        return torch.nan_to_num(torch.maximum(self.primal, torch.maximum(self.dual, self.gap)), nan=torch.inf)


def residuals(program: ConicProgram, data: ConicData, x: Tensor, y: Tensor, s: Tensor) -> Residuals:
    """How far ``(x, y, s)`` is from optimal: ``Ax + s = b``, ``Px + q + A'y = 0``, the duality gap, and the cones."""
    Px, Aty, Ax = program.P_times(data.P, x), program.At_times(data.A, y), program.A_times(data.A, x)
    primal = _largest(Ax + s - data.b) / (1 + torch.maximum(_largest(Ax), torch.maximum(_largest(s), _largest(data.b))))
    dual_scale = torch.maximum(_largest(Px), torch.maximum(_largest(Aty), _largest(data.q)))
    dual = _largest(Px + data.q + Aty) / (1 + dual_scale)
    xPx, qx, by = (Px * x).sum(-1), (data.q * x).sum(-1), (data.b * y).sum(-1)
    gap = (xPx + qx + by).abs() / (1 + torch.maximum(xPx.abs(), torch.maximum(qx.abs(), by.abs())))
    primal = torch.maximum(primal, program.cones.distance(s) / (1 + _largest(s)))
    dual = torch.maximum(dual, program.cones.dual_distance(y) / (1 + _largest(y)))
    return Residuals(primal, dual, gap)


def polish(
    program: ConicProgram, data: ConicData, x: Tensor, v: Tensor, ok: Tensor, steps: int, goal: float
) -> tuple[Tensor, Tensor, KKT | None]:
    """At most ``steps`` Newton steps from ``(x, v)``; elements not ``ok`` stay.

    Returns the new ``(x, v)`` and the factor at that point when it is already known.
    """
    if not steps or not x.shape[0]:
        return x, v, None
    factor: KKT | None = None
    factor_v: Tensor | None = None
    F = program.residual(torch.cat([x, v], -1), data)
    size = _scaled(program, data, F, x, v)
    for _ in range(steps):
        if bool((~ok | (size <= goal)).all()):
            break
        if factor is None or factor_v is None or not _same_face(program, factor_v, v):
            factor, factor_v = factorise(program, data.P, data.A, v, ok), v
        a, c = (step.squeeze(-1) for step in factor.forward(-F[:, : program.n, None], -F[:, program.n :, None]))
        improved = torch.zeros_like(ok)
        for halvings in range(MAX_HALVINGS):
            length = 0.5**halvings
            new_x, new_v = x + length * a, v + length * c
            new_F = program.residual(torch.cat([new_x, new_v], -1), data)
            new_size = _scaled(program, data, new_F, new_x, new_v)
            better = ok & ~improved & (new_size < size) & (size > goal)
            keep = better.unsqueeze(-1)
            x, v, F = torch.where(keep, new_x, x), torch.where(keep, new_v, v), torch.where(keep, new_F, F)
            a, c = torch.where(keep, 0.0, a), torch.where(keep, 0.0, c)
            size = torch.where(better, new_size, size)
            improved = improved | better
            if bool((improved | ~ok | (size <= FAIR)).all()):
                break
        if not bool(improved.any()):
            break
    return x, v, factor if factor_v is not None and _same_face(program, factor_v, v) else None


def _same_face(program: ConicProgram, old: Tensor, new: Tensor) -> bool:
    """Whether the derivative of the projection is the same at both points, so that a factor can be kept."""
    return program.cones.is_polyhedral and bool(((old > 0) == (new > 0)).all())


def _scaled(program: ConicProgram, data: ConicData, F: Tensor, x: Tensor, v: Tensor) -> Tensor:
    top, low = F[:, : program.n], F[:, program.n :]
    return torch.nan_to_num(
        torch.maximum(
            _largest(top) / (1 + torch.maximum(_largest(data.q), _largest(x))),
            _largest(low) / (1 + torch.maximum(_largest(data.b), _largest(v))),
        ),
        nan=torch.inf,
    )


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(-1) if t.shape[-1] else t.new_zeros(t.shape[:-1])

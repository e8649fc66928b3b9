"""A measure of how far a point is from optimal to first order, apart from the one by which the package judges answers."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solvers.nonlinear_base import NonlinearPoint


def optimality_error(program: NonlinearProgram, theta: Theta, point: NonlinearPoint) -> Tensor:
    """The largest violation of the optimality conditions, ``(B,)``, relative to the sizes of what should cancel.

    Complementarity is measured as ``min(multiplier, distance)``, zero at a solution and insensitive to inactive rows.
    """
    first = program.first(point.y, theta)
    lower, upper = program.bounds(theta, point.y)
    multipliers = torch.cat((point.lam, point.mu), 1)
    J = torch.cat((first.Jh, first.Jg), 1)
    pull = torch.einsum("bk,bkn->bn", multipliers, J)
    size = 1 + first.gradient.abs().amax(-1) + torch.einsum("bk,bkn->bn", multipliers.abs(), J.abs()).amax(-1)
    terms = [
        (first.gradient + pull + point.z).abs() / size.unsqueeze(-1),
        first.h.abs(),
        torch.minimum(point.mu, -first.g).abs(),
        torch.minimum(point.z.clamp(min=0), upper - point.y).abs(),
        torch.minimum((-point.z).clamp(min=0), point.y - lower).abs(),
    ]
    return torch.cat(terms, 1).amax(-1)

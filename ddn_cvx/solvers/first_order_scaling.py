"""Diagonal preconditioning of a batch of conic programs, for first-order methods and on any device.

With ``x = beta D x'``, ``s = beta s' / E`` and ``y = E y' / kappa`` the program has the data

    P' = kappa beta D P D,   q' = kappa D q,   A' = E A D,   b' = E b / beta.

Ten sweeps of Ruiz (2001) bring the largest entries of rows and columns near one; the last sweep is Pock & Chambolle's
(2011), after which the norm of A' is at most one. beta and kappa bring b' and q' to length one (Applegate et al., 2021).
All rows of a cone that is no product of half-lines share a factor. Each element has its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.program.affine_map import constant, take
from ddn_cvx.program.conic import ConicData, ConicProgram

SWEEPS = 10


class Scaled(NamedTuple):
    """Scaled data, and the factors that lead back; ``(B, n)``, ``(B, m)``, ``(B, 1)``, ``(B, 1)``."""

    data: ConicData
    D: Tensor
    E: Tensor
    beta: Tensor
    kappa: Tensor


def precondition(program: ConicProgram, data: ConicData) -> Scaled:
    """Scale ``(B, ...)`` data."""
    pr, pc, ar, ac = program.index(data.q.device)
    P, A = data.P.abs(), data.A.abs()
    D, E = torch.ones_like(data.q), torch.ones_like(data.b)
    alike = program.cones.rows_alike
    cone, count = constant(alike, data.q.device), int(alike.max(initial=-1)) + 1
    for sweep in range(SWEEPS + 1):
        mode = "amax" if sweep < SWEEPS else "sum"
        entries = A * take(E, ar) * take(D, ac)
        columns = _gather(entries, ac, program.n, mode)
        if mode == "amax":
            curved = P * take(D, pr) * take(D, pc)
            columns = torch.maximum(columns, _gather(curved, pc, program.n, mode))
            columns = torch.maximum(columns, _gather(curved, pr, program.n, mode))
        rows = _gather(entries, ar, program.m, mode)
        rows = take(_gather(rows, cone, count, "amax"), cone)
        D, E = D / _root(columns), E / _root(rows)
    q, b = data.q * D, data.b * E
    beta, kappa = _length(b), 1.0 / _length(q)
    scaled = ConicData(
        data.P * take(D, pr) * take(D, pc) * (kappa * beta), q * kappa, data.A * take(E, ar) * take(D, ac), b / beta
    )
    return Scaled(scaled, D, E, beta, kappa)


def _gather(values: Tensor, index: Tensor, size: int, mode: str) -> Tensor:
    return values.new_zeros(values.shape[0], size).scatter_reduce(1, index.expand_as(values), values, mode)


def _root(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1.0).sqrt()


def _length(t: Tensor) -> Tensor:
    size = t.norm(dim=1, keepdim=True)
    return torch.where(size > 0, size, 1.0)

"""Ruiz equilibration of a batch of dense conic programs by powers of two, on the device that holds them.

The factors are those of ``equilibrate.Equilibration``, which works on sparse patterns on the CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.solvers.conic_cones import Cones

_SWEEPS = 6
_LARGEST = 2.0**13


class Scaled(NamedTuple):
    """Scaled data, and what to multiply a scaled solution with."""

    P: Tensor
    q: Tensor
    """``(B, 1, n)``."""
    A: Tensor
    b: Tensor
    """``(B, 1, m)``."""
    x: Tensor
    y: Tensor
    s: Tensor


def equilibrate(P: Tensor, q: Tensor, A: Tensor, b: Tensor, cones: Cones) -> Scaled:
    """Rows and columns of ``[[P, A'], [A, 0]]`` to a largest entry of about one, then the sizes of b and q."""
    batch, m, n = A.shape
    D, R = P.new_ones(batch, n), P.new_ones(batch, m)
    unit = cones.unit.expand(batch, m)
    size_P, size_A = P.abs(), A.abs()
    for _ in range(_SWEEPS):
        scaled = size_A * R[:, :, None] * D[:, None, :]
        rows = torch.zeros_like(R).scatter_reduce(1, unit, scaled.amax(2), "amax").gather(1, unit)
        columns = (size_P * D[:, :, None] * D[:, None, :]).amax(2)
        columns = torch.maximum(columns, scaled.amax(1))
        D, R = (_clamp(t * _inverse_root(size)) for t, size in ((D, columns), (R, rows)))
    P, A, q, b = P * D[:, :, None] * D[:, None, :], A * R[:, :, None] * D[:, None, :], q * D, b * R
    beta = _power(b.abs().amax(1, keepdim=True))
    gamma = _power(torch.maximum(q.abs().amax(1, keepdim=True), beta * P.abs().amax((1, 2))[:, None]))
    return Scaled(P * (beta / gamma)[..., None], (q / gamma)[:, None], A, (b / beta)[:, None], D * beta, R * gamma, beta / R)


def _clamp(t: Tensor) -> Tensor:
    return t.clamp(1 / _LARGEST, _LARGEST)


def _inverse_root(size: Tensor) -> Tensor:
    """The power of two next to ``1 / sqrt(size)``; one for zero."""
    return torch.where(size > 0, torch.exp2((-0.5 * torch.log2(size)).round()), 1.0)


def _power(size: Tensor) -> Tensor:
    """The power of two next to ``size``; one for zero."""
    return torch.where(size > 0, torch.exp2(torch.log2(size).round()), 1.0)

"""The cones of a program as the conic interior-point method wants them: rows sorted, equal cones together.

Vectors are rows ``(B, r, m)`` in sorted order, zero rows first; the functions below see the rows after those,
``(B, r, m - p)``, and hand each group of equal cones its part.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.cones import Product
from ddn_cvx.solvers.barrier import Barrier, Scaling
from ddn_cvx.solvers.barrier_exponential import Exponential
from ddn_cvx.solvers.barrier_nonnegative import Nonnegative
from ddn_cvx.solvers.barrier_power import Power
from ddn_cvx.solvers.barrier_psd import PSD
from ddn_cvx.solvers.barrier_second_order import SecondOrder

_TRIALS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.005)
"""Parts of the longest step of the other cones at which cones without a closed form are asked."""


class Cones:
    """The cones of a program on one device.

    Attributes
    ----------
    order : Tensor (m,)
        The row of the program for each sorted row.
    back : Tensor (m,)
        The inverse of that.
    unit : Tensor (m,)
        Sorted rows with the same number must be scaled alike.
    zero, degree : int
        p, and ν.
    """

    def __init__(self, cones: Product, like: Tensor):
        parts = sorted(_split(cones), key=lambda part: part.sort)  # stable
        self.zero, self.groups = cones.zero, list[tuple[slice, Barrier]]()
        rows, units = list[int](), list[int]()
        for (kind, length), found in groupby(parts, lambda part: part.sort):
            members, start = list(found), len(rows)
            for part in members:
                units += [len(rows)] * length
                rows += range(part.start, part.start + length)
            if kind > 0:
                self.groups.append((slice(start - self.zero, len(rows) - self.zero), _barrier(kind, length, members, like)))
        self.order = torch.tensor(rows, dtype=torch.int64, device=like.device)
        self.back = self.order.argsort()
        self.unit = torch.tensor(units, dtype=torch.int64, device=like.device)
        self.degree = sum(barrier.degree for _, barrier in self.groups)
        self._open = [group for group in self.groups if not group[1].measured]
        self._trials = torch.tensor(_TRIALS, dtype=like.dtype, device=like.device)

    def centre(self, like: Tensor) -> Tensor:
        """The product of the centres, ``(m - p,)``."""
        return torch.cat([like.new_zeros(0), *(barrier.centre(like).flatten() for _, barrier in self.groups)])

    def scaling(self, s: Tensor, z: Tensor) -> list[Scaling]:
        return [barrier.scaling(_take(barrier, rows, s), _take(barrier, rows, z)) for rows, barrier in self.groups]

    def down(self, scaling: list[Scaling], v: Tensor) -> Tensor:
        """``W^-T v``."""
        pairs = zip(self.groups, scaling, strict=True)
        return _join(v, [W.down(_take(barrier, rows, v)) for (rows, barrier), W in pairs])

    def up(self, scaling: list[Scaling], v: Tensor) -> Tensor:
        """``W^-1 v``."""
        pairs = zip(self.groups, scaling, strict=True)
        return _join(v, [W.up(_take(barrier, rows, v)) for (rows, barrier), W in pairs])

    def target(self, scaling: list[Scaling], s: Tensor, z: Tensor, centring: Tensor, ds: Tensor, dz: Tensor) -> Tensor:
        """``s + σμ ∇f*(z) + η``, with ``centring`` σμ ``(B, 1, 1)``."""
        centring = centring.unsqueeze(-1)
        parts = []
        for (rows, barrier), W in zip(self.groups, scaling, strict=True):
            own_s, own_z, own_ds, own_dz = (_take(barrier, rows, v) for v in (s, z, ds, dz))
            parts.append(barrier.target(W, own_s, own_z, centring, own_ds, own_dz))
        return _join(s, parts)

    def step(self, longest: Tensor, s: Tensor, ds: Tensor, z: Tensor, dz: Tensor) -> Tensor:
        """A step ``(B, 1, 1)`` to the boundary or, where that has no closed form, to the longest of a few trials that stays
        inside; at most ``longest``."""
        inverse = longest.reciprocal().squeeze(-1)
        for rows, barrier in self.groups:
            if barrier.measured:
                both = [barrier.reach(_take(barrier, rows, v), _take(barrier, rows, dv)) for v, dv in ((s, ds), (z, dz))]
                inverse = torch.maximum(inverse, torch.maximum(*both))
        length = inverse.reciprocal().unsqueeze(-1)
        if not self._open:
            return length
        trials = self._trials[:, None, None, None] * length
        inside: Any = True
        for rows, barrier in self._open:
            trial_s, trial_z = (
                _take(barrier, rows, v) + trials.unsqueeze(-1) * _take(barrier, rows, dv) for v, dv in ((s, ds), (z, dz))
            )
            inside = inside & barrier.inside(trial_s, trial_z)
        return torch.where(inside[..., None, None], trials, 0.0).amax(0)


def _take(barrier: Barrier, rows: slice, v: Tensor) -> Tensor:
    return v[..., rows].unflatten(-1, (barrier.number, barrier.dim))


def _join(v: Tensor, parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten(2) for part in parts], -1) if parts else v


class _Part(NamedTuple):
    """One cone, a row being one where rows are; ``sort`` is its kind and its length."""

    sort: tuple[int, int]
    start: int
    extra: Any


_KINDS = ("zero", "nonneg", "soc", "psd", "exp", "power")


def _split(cones: Product) -> list[_Part]:
    parts = []
    for kind, rows, extra in cones.blocks():
        length = rows.stop - rows.start
        if kind in ("zero", "nonneg") or length == 1:
            sort = (min(_KINDS.index(kind), 1), 1)
            parts += [_Part(sort, row, None) for row in range(rows.start, rows.stop)]
        else:
            parts.append(_Part((_KINDS.index(kind), length), rows.start, extra))
    return parts


def _barrier(kind: int, length: int, members: list[_Part], like: Tensor) -> Barrier:
    number = len(members)
    match _KINDS[kind]:
        case "nonneg":
            return Nonnegative(number, 1, number)
        case "soc":
            return SecondOrder(number, length, number)
        case "psd":
            return PSD.of(number, members[0].extra, like)
        case "exp":
            return Exponential(number, 3, 3 * number)
        case _:
            alpha = torch.tensor([part.extra for part in members], dtype=like.dtype, device=like.device)
            return Power(number, length, length * number, alpha)

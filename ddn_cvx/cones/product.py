"""A product of cones: the cone K of a conic program, its dual K*, and the derivatives of the projection onto K*.

Equal cones are one vectorised call. Where they do not lie next to each other (second-order cones of 3, 4 and 3 rows),
the rows are permuted once on the way in and once on the way out.

The dual side follows from the primal one by Moreau's decomposition: Π_{K*}(v) = v + Π_K(−v), hence

    DΠ_{K*}(v) = I − DΠ_K(−v),      D²Π_{K*}(v) = D²Π_K(−v),

and the kinks and eigenvectors are those of K at −v.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.checks import is_whole
from ddn_cvx.cones.base import Cone, Spectrum
from ddn_cvx.cones.exponential import Exponential
from ddn_cvx.cones.nonnegative import Nonnegative
from ddn_cvx.cones.power import Power
from ddn_cvx.cones.psd import PSD
from ddn_cvx.cones.second_order import SecondOrder
from ddn_cvx.cones.zero import Zero
from ddn_cvx.errors import DeclarationError, InputError

WEAK = 1e-7
"""A cone whose margin is at most this, with slack and multiplier in their own units, is weakly active."""


class Block(NamedTuple):
    """One cone as a solver sees it; all zero rows are one block, and all nonnegative rows.

    ``kind`` is ``zero``, ``nonneg``, ``soc``, ``psd``, ``exp``, ``power`` or ``other``. ``extra`` is the matrix order of a
    PSD cone, the tuple of exponents of a power cone, a cone of another class itself, and the number of rows otherwise.
    """

    kind: str
    rows: slice
    extra: Any


class Sizes(NamedTuple):
    """What is of size one among slacks and among multipliers, positive: ``(*batch, number of cones)`` each, one entry a cone
    as ``Product.dual_margin`` counts."""

    slack: Tensor
    force: Tensor


class Group(NamedTuple):
    """``number`` equal cones, from row ``start`` on when the rows are sorted by group."""

    cone: Cone
    start: int
    number: int

    def take(self, v: Tensor) -> Tensor:
        """``(*batch, m)`` → ``(*batch, number, dim)``."""
        rows = v.narrow(-1, self.start, self.number * self.cone.dim)
        return rows.reshape(*v.shape[:-1], self.number, self.cone.dim)

    def flat(self, blocks: Tensor) -> Tensor:
        """The inverse of ``take`` for this group's rows alone."""
        return blocks.reshape(*blocks.shape[:-2], self.number * self.cone.dim)


class Layout(NamedTuple):
    """``rows`` sorts the rows by group and ``back`` undoes it, ``cones_back`` for one entry per cone; ``None`` if sorted."""

    groups: tuple[Group, ...]
    rows: Tensor | None
    back: Tensor | None
    cones_back: Tensor | None


@dataclass(frozen=True)
class Product:
    """K = {0}^zero × R₊^nonneg × second-order × PSD × exponential × power × other cones, rows in this order.

    Hashable and picklable. The empty product, ``size`` 0, is a cone like any other.

    Parameters
    ----------
    zero, nonneg : int
        Number of equality and of inequality rows.
    soc : tuple of int
        Rows of each second-order cone.
    psd : tuple of int
        Matrix order k of each PSD cone, which has k(k + 1)/2 rows.
    exp : int
        Number of exponential cones, of three rows each.
    power : tuple of tuples of float
        Exponents of each power cone, which has one row more.
    others : tuple of Cone
        Cones of classes that nothing here knows of. Everything but a solver that needs more than their methods takes them.

    Raises
    ------
    DeclarationError
        Impossible sizes or exponents.
    InputError
        From every method, for a tensor that is not ``(*batch, size)``.
    """

    zero: int = 0
    nonneg: int = 0
    soc: tuple[int, ...] = ()
    psd: tuple[int, ...] = ()
    exp: int = 0
    power: tuple[tuple[float, ...], ...] = ()
    others: tuple[Cone, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("zero", 0), ("nonneg", 0), ("exp", 0), ("soc", 1), ("psd", 1)):
            value, several = getattr(self, name), name in ("soc", "psd")
            sizes = value if several else (value,)
            if not isinstance(sizes, Sequence) or not all(is_whole(k, least) for k in sizes):
                what = "a tuple of whole numbers" if several else "a whole number"
                raise DeclarationError(f"Product: {name} must be {what} of at least {least}, got {value!r}.")
            object.__setattr__(self, name, tuple(int(k) for k in sizes) if several else int(value))
        object.__setattr__(self, "power", tuple(tuple(float(a) for a in alpha) for alpha in self.power))
        _ = self._layout  # makes every cone, and the power cones check their exponents

    # Structure

    @cached_property
    def size(self) -> int:
        """m, the number of rows."""
        return max((block.rows.stop for block in self.blocks()), default=0)

    @cached_property
    def degree(self) -> int:
        """What s'y is divided by to measure a duality gap, the sum of those of the cones."""
        return sum(group.number * group.cone.degree for group in self._layout.groups)

    @property
    def is_polyhedral(self) -> bool:
        """True if there are only zero and nonnegative rows."""
        return not (self.soc or self.psd or self.exp or self.power or self.others)

    def blocks(self) -> list[Block]:
        """The cones in row order."""
        sizes: list[tuple[str, int, Any]] = [("zero", self.zero, self.zero)] * (self.zero > 0)
        sizes += [("nonneg", self.nonneg, self.nonneg)] * (self.nonneg > 0)
        sizes += [("soc", k, k) for k in self.soc]
        sizes += [("psd", k * (k + 1) // 2, k) for k in self.psd]
        sizes += [("exp", 3, 3)] * self.exp
        sizes += [("power", len(alpha) + 1, alpha) for alpha in self.power]
        sizes += [("other", cone.dim, cone) for cone in self.others]
        found, stop = [], 0
        for kind, rows, extra in sizes:
            found.append(Block(kind, slice(stop, stop + rows), extra))
            stop += rows
        return found

    @cached_property
    def rows_alike(self) -> NDArray[np.int64]:
        """For each row a number, from 0 on, that it has in common with the rows that must be scaled alike, ``(m,)``."""
        lengths = [(block.kind, block.rows.stop - block.rows.start) for block in self.blocks()]
        sizes = [k for kind, length in lengths for k in ([1] * length if kind in ("zero", "nonneg") else [length])]
        return np.repeat(np.arange(len(sizes)), sizes)

    @cached_property
    def _layout(self) -> Layout:
        alike: dict[tuple[str, Any], list[Block]] = {}
        for block in self.blocks():
            size = block.extra if block.kind == "other" else block.rows.stop - block.rows.start
            alike.setdefault((block.kind, size), []).append(block)
        groups, start = [], 0
        for members in alike.values():
            cone, number = _cone(members)
            groups.append(Group(cone, start, number))
            start += number * cone.dim
        ranked = [block for members in alike.values() for block in members]
        if all(one.rows.start < two.rows.start for one, two in pairwise(ranked)):
            return Layout(tuple(groups), None, None, None)
        rows = torch.tensor([row for block in ranked for row in range(block.rows.start, block.rows.stop)])
        curved = torch.tensor([block.rows.start for block in ranked if block.kind not in ("zero", "nonneg")])
        cones_back = torch.cat([torch.arange(self.nonneg), self.nonneg + curved.argsort()])
        return Layout(tuple(groups), rows, rows.argsort(), cones_back)

    # Primal

    def project(self, v: Tensor) -> Tensor:
        """Π_K(v)."""
        return self._blockwise(lambda cone, v: cone.project(v), v)

    def distance(self, s: Tensor) -> Tensor:
        """The largest distance of a block of s from its cone, ``(*batch,)``."""
        return self._largest(lambda cone, s: s - cone.project(s), s)

    # Dual

    def project_dual(self, v: Tensor) -> Tensor:
        """Π_{K*}(v)."""
        if self.is_polyhedral:
            return torch.where(self._kept(v), v, 0.0)
        return self._blockwise(lambda cone, v: v + cone.project(-v), v)

    def dual_distance(self, y: Tensor) -> Tensor:
        """The largest distance of a block of y from the dual of its cone, ``(*batch,)``."""
        return self._largest(lambda cone, y: cone.project(-y), y)

    def dual_derivative(self, v: Tensor, h: Tensor) -> Tensor:
        """DΠ_{K*}(v) h. Leading dimensions broadcast: what depends on v alone is computed once for many h."""
        if self.is_polyhedral:
            return torch.where(self._kept(v), h, 0.0)
        return self._blockwise(lambda cone, v, h: h - cone.derivative(-v, h), v, h)

    def dual_curvature(self, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """∇_v ⟨a, DΠ_{K*}(v) b⟩; leading dimensions broadcast."""
        return self._blockwise(lambda cone, v, a, b: cone.curvature(-v, a, b), v, a, b)

    def dual_spectrum(self, v: Tensor) -> DualSpectrum:
        """Eigendecomposition of DΠ_{K*}(v): U is that of K at −v, block diagonal; each value is one minus that of K."""
        if self.is_polyhedral:
            return DualSpectrum(self._kept(v).to(v.dtype), (), self._layout)
        ordered = self._ordered(v)
        parts = tuple(group.cone.spectrum(-group.take(ordered)) for group in self._layout.groups)
        primal = torch.cat([group.flat(part.values) for group, part in zip(self._layout.groups, parts, strict=True)], -1)
        values = torch.ones_like(primal) - primal
        return DualSpectrum(_select(values, -1, self._layout.back), parts, self._layout)

    def dual_margin(self, v: Tensor) -> Tensor:
        """The margin of each cone, ``(*batch, number of cones)`` in row order. Each nonnegative row counts as a cone; zero
        rows have no kinks and are left out."""
        ordered = self._ordered(v)
        curved = [group for group in self._layout.groups if not isinstance(group.cone, Zero)]
        margins = [group.cone.margin(-group.take(ordered)) for group in curved]
        return _select(torch.cat([v[..., :0], *margins], dim=-1), -1, self._layout.cones_back)

    def dual_weak(self, v: Tensor, sizes: Sizes) -> Tensor:
        """The cones that are at a kink but for rounding, ``(*batch, number of cones)`` bool, as ``dual_margin`` counts."""
        slack, force = (self._by_row(t) for t in sizes)
        y = self.project_dual(v)
        return self.dual_margin(y / force - (y - v) / slack) <= WEAK

    def dual_lean(self, v: Tensor, sizes: Sizes, side: int) -> Tensor:
        """v, but for a short step in weakly active cones: to where the constraint is active for ``side`` 1, to where it is
        not for -1. It goes along the centre, which is inside K and K*, with slack and multiplier in their own units."""
        centre, cone = self._centre
        if not len(centre) or self.zero == self.size:
            return v
        weak = torch.nn.functional.pad(self.dual_weak(v, sizes), (1, 0))  # zero rows: never
        slack, force = (self._by_row(t) for t in sizes)
        y = self.project_dual(v)
        leant = y / force - (y - v) / slack + side * 8 * WEAK * centre.to(v)
        y = self.project_dual(leant)
        return torch.where(weak[..., cone.to(v.device)], force * y - slack * (y - leant), v)

    def largest(self, rows: Tensor) -> Tensor:
        """The largest entry of each cone, ``(*batch, number of cones)`` as ``dual_margin`` counts, of ``(*batch, m)``, which
        is not negative."""
        cone = self._centre[1].to(rows.device)
        count = int(self._centre[1].max()) if self.size else 0
        found = rows.new_zeros(*rows.shape[:-1], 1 + count)
        return found.scatter_reduce(-1, cone.expand_as(rows), rows, "amax")[..., 1:]

    def _by_row(self, cones: Tensor) -> Tensor:
        """The entry of its cone for each row, one for zero rows."""
        return torch.nn.functional.pad(cones, (1, 0), value=1.0)[..., self._centre[1].to(cones.device)]

    def centre(self, like: Tensor) -> Tensor:
        """A point inside K and K*, ``(*batch, m)``; zero in zero rows."""
        return self._centre[0].to(like).expand_as(like)

    @cached_property
    def _centre(self) -> tuple[Tensor, Tensor]:
        """A point inside K and K*, ``(m,)``, and the cone of each row: 0 for zero rows, from 1 on as ``dual_margin``."""
        parts = [group.cone.centre.repeat(group.number) for group in self._layout.groups]
        point = _select(torch.cat([torch.zeros(0, dtype=torch.float64), *parts]), -1, self._layout.back)
        cones, count = torch.zeros(self.size, dtype=torch.int64), self.nonneg
        cones[self.zero : self.zero + count] = torch.arange(1, count + 1)
        for kind, rows, _ in self.blocks():
            if kind not in ("zero", "nonneg"):
                count += 1
                cones[rows] = count
        return point, cones

    def barrier(self, s: Tensor) -> Tensor:
        """The sum of the barriers of the cones, ``(*batch,)`` for s ``(*batch, m)``."""
        ordered, total = self._ordered(s), s.new_zeros(s.shape[:-1])
        for group in self._layout.groups:
            total = total + group.cone.barrier(group.take(ordered)).sum(-1)
        return total

    # All groups at once

    def _blockwise(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ordered = [self._ordered(t) for t in tensors]
        parts = [group.flat(function(group.cone, *map(group.take, ordered))) for group in self._layout.groups]
        joined = torch.cat(parts, dim=-1) if parts else torch.broadcast_tensors(*ordered)[0]
        return _select(joined, -1, self._layout.back)

    def _largest(self, error: Callable[[Cone, Tensor], Tensor], v: Tensor) -> Tensor:
        ordered = self._ordered(v)
        errors = [error(group.cone, group.take(ordered)) for group in self._layout.groups]
        norms = [torch.linalg.vector_norm(e, dim=-1).amax(-1) for e in errors]
        return torch.stack([v.new_zeros(v.shape[:-1]), *norms]).amax(0)

    def _kept(self, v: Tensor) -> Tensor:
        """The rows that Π_{K*} of a polyhedral K keeps, NaN among them; the other ones become zero."""
        kept = ~(self._checked(v) <= 0)
        kept.narrow(-1, 0, self.zero).fill_(True)
        return kept

    def _ordered(self, v: Tensor) -> Tensor:
        return _select(self._checked(v), -1, self._layout.rows)

    def _checked(self, v: Tensor) -> Tensor:
        if v.shape[-1:] != (self.size,):
            raise InputError(
                f"A product of cones with {self.size} rows takes tensors (*batch, {self.size}), got shape "
                f"{tuple(v.shape)}; the rows are the last dimension."
            )
        return v


@dataclass(frozen=True, eq=False)
class DualSpectrum(Spectrum):
    """Spectrum of DΠ_{K*}: ``values`` ``(*batch, m)``, and the spectrum of each group of equal cones, if not polyhedral."""

    parts: tuple[Spectrum, ...]
    layout: Layout

    @property
    def is_diagonal(self) -> bool:
        return not self.parts

    def rotate(self, columns: Tensor) -> Tensor:
        return self._blockwise(lambda part, block: part.rotate(block), columns)

    def unrotate(self, columns: Tensor) -> Tensor:
        return self._blockwise(lambda part, block: part.unrotate(block), columns)

    def _blockwise(self, turn: Callable[[Spectrum, Tensor], Tensor], columns: Tensor) -> Tensor:
        if self.is_diagonal:
            return columns
        ordered = _select(columns, -2, self.layout.rows).mT
        blocks = [
            turn(part, group.take(ordered).movedim(-3, -1)).flatten(-3, -2)
            for group, part in zip(self.layout.groups, self.parts, strict=True)
        ]
        return _select(torch.cat(blocks, dim=-2), -2, self.layout.back)


def _cone(members: list[Block]) -> tuple[Cone, int]:
    """The cone that equal blocks share, and how many of it there are."""
    kind, rows, extra = members[0]
    match kind:
        case "zero":
            return Zero(1), rows.stop - rows.start
        case "nonneg":
            return Nonnegative(1), rows.stop - rows.start
        case "soc":
            return SecondOrder(extra), len(members)
        case "psd":
            return PSD(order=extra), len(members)
        case "exp":
            return Exponential(), len(members)
        case "power":
            return Power(alphas=tuple(block.extra for block in members)), len(members)
        case _:
            return extra, len(members)


def _select(t: Tensor, dim: int, index: Tensor | None) -> Tensor:
    return t if index is None else t.index_select(dim, index.to(t.device, non_blocking=True))

"""A batch of instances ready for arithmetic: products, and the optimality conditions at a point."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.kernels import optimality, spectrum
from ddn_cvx.kernels.jit import Task, spread, sweep
from ddn_cvx.kernels.lanes import LANES
from ddn_cvx.program.affine_map import take
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.units import Units

Array = NDArray[np.float64]


class Residuals(NamedTuple):
    """Relative residuals of the optimality conditions."""

    table: Tensor
    """Columns ``primal``, ``dual``, ``gap`` and ``worst``, ``(B, 4)``."""

    @staticmethod
    def of(primal: Tensor, dual: Tensor, gap: Tensor) -> Residuals:
        """From the first three, ``(B,)`` each."""
        worst = torch.nan_to_num(torch.maximum(torch.maximum(primal, dual), gap), nan=torch.inf)
        return Residuals(torch.stack((primal, dual, gap, worst), 1))

    @property
    def primal(self) -> Tensor:
        """``Ax + s = b`` and ``s in K``, ``(B,)``."""
        return self.table[:, 0]

    @property
    def dual(self) -> Tensor:
        """``Px + q + A'y = 0`` and ``y in K*``, ``(B,)``."""
        return self.table[:, 1]

    @property
    def gap(self) -> Tensor:
        """``x'Px + q'x + b'y = 0``, ``(B,)``."""
        return self.table[:, 2]

    @property
    def worst(self) -> Tensor:
        """The largest of the three, ``(B,)``; NaN counts as infinite."""
        return self.table[:, 3]

    @property
    def of_equations(self) -> Tensor:
        """The larger of primal and dual, ``(B,)``; NaN counts as infinite."""
        return torch.nan_to_num(self.table[:, :2].amax(1), nan=torch.inf)


class Point(NamedTuple):
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
    value: Tensor
    """The objective, ``(B,)``."""
    scaled: Tensor | None
    """``Instance.hidden`` where it is known already."""


class Measurement(NamedTuple):
    """The optimality conditions at a point by a compiled kernel."""

    task: Task
    top: Array
    low: Array
    measures: Array
    """``(B, 6)``, see ``kernels.optimality``."""

    @staticmethod
    def of(
        structure: Any,
        data: Sequence[Array],
        point: Sequence[Array],
        projects: bool,
        raw: tuple[Array, Array] | None = None,
    ) -> Measurement:
        """Of ``(x, y, s)``, or with ``projects`` of ``(x, v)``, and v may have to be made from ``raw``, a solver's y and s.
        What is not given is filled in."""
        x, v, _, _ = point
        out = np.empty(x.shape), np.empty(v.shape), np.empty((len(x), 6))
        given = raw or 2 * (np.empty((0, v.shape[1])),)
        work = 20 * (data[0].shape[1] + data[2].shape[1])
        return Measurement(Task(optimality.measure, work, (structure, *data, *point, *out, projects, *given)), *out)

    def point(self, x: Tensor, v: Tensor, y: Tensor, s: Tensor) -> Point:
        """What was found there."""
        measures = torch.from_numpy(self.measures)
        residuals, scaled, value = Residuals(measures[:, :4]), measures[:, 4], measures[:, 5]
        return Point(x, v, y, s, torch.from_numpy(self.top), torch.from_numpy(self.low), residuals, value, scaled)


class Instance:
    """The numbers of a batch, in dense matrices where the program is small."""

    def __init__(self, program: ConicProgram, data: ConicData):
        self.program, self.data = program, data
        self.compiled = program.structure if data.q.device.type == "cpu" else None

    @cached_property
    def dense(self) -> tuple[Tensor, Tensor] | None:
        """``(P, A)`` as dense tensors, None for a large program."""
        return self.program.dense(self.data) if self.program.is_dense else None

    @cached_property
    def units(self) -> Units:
        return Units.of(self.data)

    def at(self, x: Tensor, v: Tensor) -> Point:
        """The point ``(x, v)``, x (B, n), v (B, m)."""
        if self.compiled is not None:
            y, s = torch.empty(v.shape, dtype=v.dtype), torch.empty(v.shape, dtype=v.dtype)
            curved = self.program.curved
            if curved is not None:
                arrays = (t.detach().contiguous().numpy() for t in (v, y, s))
                spread(spectrum.project, v.shape[0], 100 * v.shape[1], curved, *arrays, grain=LANES)
            return self._compiled_measure(x, v, y, s, projects=curved is None)
        y = self.program.cones.project_dual(v)
        s = y - v
        return self._measure(x, v, y, s)

    def residuals(self, x: Tensor, y: Tensor, s: Tensor) -> Residuals:
        """How far any ``(x, y, s)`` is from optimal, distances from the cones included."""
        return self.judge(x, y, s).residuals

    def judge(self, x: Tensor, y: Tensor, s: Tensor) -> Point:
        """Any ``(x, y, s)`` as a point, with ``v = y - s``; its residuals include distances from the cones."""
        cones = self.program.cones
        measure = self._measure if self.compiled is None else self._compiled_measure
        point = measure(x, y - s, y, s)
        beta, gamma = (unit.squeeze(-1) for unit in self.units)
        found = point.residuals
        primal = torch.maximum(found.primal, cones.distance(s) / (beta + _largest(s)))
        dual = torch.maximum(found.dual, cones.dual_distance(y) / (gamma + _largest(y)))
        return point._replace(residuals=Residuals.of(primal, dual, found.gap))

    def hidden(self, point: Point) -> Tensor:
        """What large numbers hide: the worst residual of the two equations once rows and columns are scaled, ``(B,)``.

        Rows first and columns first, since either may be what makes the other look large.
        """
        if point.scaled is not None:
            return point.scaled
        q, b, (Px, Aty, Ax) = self.data.q, self.data.b, self._products(point.x, point.y)
        dual, primal = torch.stack((q, Px, Aty, point.top)), torch.stack((b, Ax, point.s, point.low))
        columns, rows = self._columns(torch.ones_like(b)), self._rows(torch.ones_like(q))
        beta, gamma = (unit.squeeze(-1) for unit in self.units)
        worst = [_hidden(primal / size, beta) for size in (rows, self._rows(columns))]
        worst += [_hidden(dual / size, gamma) for size in (columns, self._columns(rows))]
        return torch.stack(worst).amax(0)

    def _columns(self, rows: Tensor) -> Tensor:
        """The largest entry in each column of P, and of A with its rows divided by ``rows``; one for zeros."""
        if self.dense is not None:
            P, A = self.dense
            return _or_one(_largest(torch.cat((P, A / rows.unsqueeze(2)), 1).mT))
        pr, pc, ar, ac = self.program.index(rows.device)
        found = torch.zeros_like(self.data.q)
        for values, index in ((self.data.A / take(rows, ar), ac), (self.data.P, pc), (self.data.P, pr)):
            found = found.scatter_reduce(1, index.expand_as(values), values.abs(), "amax")
        return _or_one(found)

    def _rows(self, columns: Tensor) -> Tensor:
        """The largest entry in each row of A with its columns divided by ``columns``; one for zeros."""
        if self.dense is not None:
            return _or_one(_largest(self.dense[1] / columns.unsqueeze(1)))
        _, _, ar, ac = self.program.index(columns.device)
        values = (self.data.A / take(columns, ac)).abs()
        return _or_one(torch.zeros_like(self.data.b).scatter_reduce(1, ar.expand_as(values), values, "amax"))

    def _measure(self, x: Tensor, v: Tensor, y: Tensor, s: Tensor) -> Point:
        q, b = self.data.q, self.data.b
        Px, Aty, Ax = self._products(x, y)
        top = Px + q + Aty
        low = Ax + s - b
        terms = torch.stack((Px * x, q * x)).sum(-1)
        gap_terms = torch.cat((terms, (b * y).sum(-1).unsqueeze(0)))
        beta, gamma = (unit.squeeze(-1) for unit in self.units)
        gap = gap_terms.sum(0).abs() / (beta * gamma + gap_terms.abs().amax(0))
        residuals = Residuals.of(_relative(low, beta, Ax, s, b), _relative(top, gamma, Px, Aty, q), gap)
        return Point(x, v, y, s, top, low, residuals, 0.5 * terms[0] + terms[1], None)

    def _compiled_measure(self, x: Tensor, v: Tensor, y: Tensor, s: Tensor, projects: bool = False) -> Point:
        arrays = [t.detach().contiguous().numpy() for t in (x, v, y, s)]
        data = [t.detach().contiguous().numpy() for t in self.data]
        measurement = Measurement.of(self.compiled, data, arrays, projects)
        sweep(x.shape[0], [measurement.task])
        return measurement.point(x, v, y, s)

    def _products(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.dense is None:
            program, data = self.program, self.data
            return program.P_times(data.P, x), program.At_times(data.A, y), program.A_times(data.A, x)
        P, A = self.dense
        column = x.unsqueeze(-1)
        return (P @ column).squeeze(-1), (y.unsqueeze(-2) @ A).squeeze(-2), (A @ column).squeeze(-1)


def _or_one(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1.0)


def _hidden(terms: Tensor, unit: Tensor) -> Tensor:
    """The last of the terms next to the largest, and to the unit or what is given, the first, if that is smaller."""
    sizes = _largest(terms)
    floor = torch.where(sizes[0] > 0, torch.minimum(sizes[0], unit), unit)
    return sizes[-1] / (floor + sizes[:-1].amax(0))


def _relative(residual: Tensor, unit: Tensor, *terms: Tensor) -> Tensor:
    """Largest entry of a residual, next to the unit ``(B,)`` and the largest of the terms it is the sum of."""
    if not residual.shape[-1]:
        return residual.new_zeros(residual.shape[:-1])
    sizes = torch.stack((residual, *terms)).abs().amax(-1)
    return sizes[0] / (unit + sizes[1:].amax(0))


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(-1) if t.shape[-1] else t.new_zeros(t.shape[:-1])


def choose(mask: Tensor, yes: Point, no: Point) -> Point:
    """Element by element."""
    if bool(mask.all()):
        return yes
    row = mask.unsqueeze(-1)
    x, v, y, s, top, low = (torch.where(row, a, b) for a, b in zip(yes[:6], no[:6], strict=True))
    residuals = Residuals(torch.where(row, yes.residuals.table, no.residuals.table))
    scaled = None if yes.scaled is None or no.scaled is None else torch.where(mask, yes.scaled, no.scaled)
    return Point(x, v, y, s, top, low, residuals, torch.where(mask, yes.value, no.value), scaled)

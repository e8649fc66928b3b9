"""What the operations of torch that reduce or multiply arrays do to arrays of nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from ddn_cvx.kernels import tape as op
from ddn_cvx.program.scalar_graph import ONE, ZERO
from ddn_cvx.program.tape_ops import Nodes, NotScalarError, Operations


class Sums(Operations):
    """The table's reductions and products."""

    def along(self, x: Any, dims: Any, keepdim: bool, function: Callable[[list[int]], int]) -> Nodes:
        """``function`` of the entries along some dimensions, all of them if None or empty."""
        x = self.nodes(x)
        dims = [dims] if isinstance(dims, int) else list(range(x.ndim)) if not dims else list(dims)
        dims = sorted(d % max(x.ndim, 1) for d in dims) if x.ndim else []
        kept = [d for d in range(x.ndim) if d not in dims]
        rows = x.transpose(kept + dims).reshape(math.prod(x.shape[d] for d in kept), -1)
        if not rows.size and rows.shape[0]:
            rows = np.zeros((rows.shape[0], 0), dtype=np.int64)
        flat = np.array([function(row) for row in rows.tolist()], dtype=np.int64)
        return flat.reshape([1 if d in dims else x.shape[d] for d in range(x.ndim) if keepdim or d not in dims])

    def lines(self, x: Nodes, dim: int, function: Callable[[list[int]], list[int]]) -> Nodes:
        """``function`` of the entries along a dimension, which gives as many."""
        if not x.ndim:
            return np.array(function([int(x)])[0], dtype=np.int64)
        moved = np.moveaxis(x, dim, -1)
        flat = np.array([function(row) for row in moved.reshape(-1, x.shape[dim]).tolist()], dtype=np.int64)
        return np.moveaxis(flat.reshape(moved.shape), -1, dim)

    def _sum(self, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Nodes:
        return self.along(x, dim, keepdim, self.graph.total)

    def _mean(self, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Nodes:
        def one(row: list[int]) -> int:
            return self.graph.div(self.graph.total(row), self.graph.constant(len(row)))

        return self.along(x, dim, keepdim, one)

    def _prod(self, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Nodes:
        return self.along(x, None if dim is None else [dim], keepdim, lambda row: reduce(self.graph.mul, row, ONE))

    def _cumsum(self, x: Any, dim: int, dtype: Any = None) -> Nodes:
        return self.lines(self.nodes(x), dim, lambda row: self._running(self.graph.add, row))

    def _cumprod(self, x: Any, dim: int, dtype: Any = None) -> Nodes:
        return self.lines(self.nodes(x), dim, lambda row: self._running(self.graph.mul, row))

    def _running(self, function: Callable[[int, int], int], row: list[int]) -> list[int]:
        for k in range(1, len(row)):
            row[k] = function(row[k - 1], row[k])
        return row

    def extreme(self, code: int, row: Sequence[int]) -> int:
        """The largest or smallest; several share the derivative."""
        g = self.graph
        found = g.held(reduce(lambda a, b: g.node(code, a, b), row))
        if len(row) < 2 or not any(g.varies[a] for a in row):
            return row[0] if len(row) == 1 else found
        same = [g.node(op.EQ, a, found) for a in row]

        def rule(node: int, slope: int) -> Iterable[tuple[int, int]]:
            share = g.div(slope, g.total(same))
            return [(a, g.when(s, share)) for a, s in zip(row, same, strict=True)]

        return g.ruled(reduce(lambda a, b: g.node(code, a, b), row), row, rule)

    def _amax(self, x: Any, dim: Any = None, keepdim: bool = False) -> Nodes:
        return self.along(x, dim, keepdim, lambda row: self.extreme(op.MAX, row))

    def _amin(self, x: Any, dim: Any = None, keepdim: bool = False) -> Nodes:
        return self.along(x, dim, keepdim, lambda row: self.extreme(op.MIN, row))

    def first_extreme(self, code: int, row: Sequence[int]) -> int:
        """The largest or smallest; the first of several has the derivative."""
        g = self.graph
        value = reduce(lambda a, b: g.node(code, a, b), row)
        found, taken, mine = g.held(value), ZERO, []
        for a in row:
            here = g.mul(g.node(op.EQ, a, found), g.no(taken))
            mine.append(here)
            taken = g.node(op.MAX, taken, here)
        return g.ruled(value, row, lambda node, slope: [(a, g.when(s, slope)) for a, s in zip(row, mine, strict=True)])

    def _max(self, x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is None:
            return self._amax(x)
        return self.along(x, [dim], keepdim, lambda row: self.first_extreme(op.MAX, row)), None

    def _min(self, x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is None:
            return self._amin(x)
        return self.along(x, [dim], keepdim, lambda row: self.first_extreme(op.MIN, row)), None

    def shifted(self, row: Sequence[int]) -> tuple[list[int], int, int]:
        """Exponentials relative to the largest, their sum, and the largest, on which nothing depends in the end."""
        g = self.graph
        largest = g.held(reduce(lambda a, b: g.node(op.MAX, a, b), row))
        finite = g.node(op.LT, g.node(op.ABS, largest), g.constant(math.inf))
        largest = g.when(finite, largest)
        powers = [g.node(op.EXP, g.sub(a, largest)) for a in row]
        return powers, g.total(powers), largest

    def _logsumexp(self, x: Any, dim: Any, keepdim: bool = False) -> Nodes:
        def one(row: list[int]) -> int:
            _, total, largest = self.shifted(row)
            return self.graph.add(self.graph.node(op.LOG, total), largest)

        return self.along(x, dim, keepdim, one)

    def _softmax(self, x: Any, dim: int, half_to_float: bool = False) -> Nodes:
        def one(row: list[int]) -> list[int]:
            powers, total, _ = self.shifted(row)
            return [self.graph.div(a, total) for a in powers]

        return self.lines(self.nodes(x), dim, one)

    def _log_softmax(self, x: Any, dim: int, half_to_float: bool = False) -> Nodes:
        def one(row: list[int]) -> list[int]:
            _, total, largest = self.shifted(row)
            log = self.graph.add(self.graph.node(op.LOG, total), largest)
            return [self.graph.sub(a, log) for a in row]

        return self.lines(self.nodes(x), dim, one)

    def root(self, a: int) -> int:
        """A square root whose derivative at zero is zero."""
        g = self.graph
        value = g.node(op.SQRT, a)
        positive = g.node(op.NE, value, ZERO)

        def rule(node: int, slope: int) -> list[tuple[int, int]]:
            return [(a, g.when(positive, g.div(g.mul(g.constant(0.5), slope), node)))]

        return g.ruled(value, (a,), rule)

    def _linalg_vector_norm(
        self, x: Any, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
    ) -> Nodes:
        g = self.graph
        if ord == 2:
            return self.along(x, dim, keepdim, lambda row: self.root(g.total(g.mul(a, a) for a in row)))
        sizes = self.find("abs")(x)
        if ord == 1:
            return self._sum(sizes, dim, keepdim)
        if math.isinf(ord):
            return self._amax(sizes, dim, keepdim) if ord > 0 else self._amin(sizes, dim, keepdim)
        raise NotScalarError(f"a norm of order {ord}")

    def _norm(self, x: Any, p: float | None = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Nodes:
        return self._linalg_vector_norm(x, 2 if p is None else p, dim, keepdim)

    def _var(self, x: Any, dim: Any = None, correction: float | None = 1, keepdim: bool = False) -> Nodes:
        g = self.graph

        def one(row: list[int]) -> int:
            middle = g.div(g.total(row), g.constant(len(row)))
            far = [g.sub(a, middle) for a in row]
            return g.div(g.total(g.mul(a, a) for a in far), g.constant(len(row) - (1 if correction is None else correction)))

        return self.along(x, dim, keepdim, one)

    def _std(self, x: Any, dim: Any = None, correction: float | None = 1, keepdim: bool = False) -> Nodes:
        return self.each(self.root, self._var(x, dim, correction, keepdim))

    def _any(self, x: Any, dim: Any = None, keepdim: bool = False) -> Nodes:
        g = self.graph
        return self.along(self._truth(x), dim, keepdim, lambda row: reduce(lambda a, b: g.node(op.MAX, a, b), row, ZERO))

    def _all(self, x: Any, dim: Any = None, keepdim: bool = False) -> Nodes:
        return self.along(self._truth(x), dim, keepdim, lambda row: reduce(self.graph.mul, row, ONE))

    # ------------------------------------------------------------------------------------------------ products

    def _mm(self, x: Any, y: Any) -> Nodes:
        x, y = self.nodes(x), self.nodes(y)
        columns = y.T.tolist() if y.size else [[]] * y.shape[1]
        flat = [[self._dot_of(row, column) for column in columns] for row in x.tolist()]
        return np.array(flat, dtype=np.int64).reshape(x.shape[0], y.shape[1])

    def _dot_of(self, x: Sequence[int], y: Sequence[int]) -> int:
        return self.graph.total(map(self.graph.mul, x, y))

    def _bmm(self, x: Any, y: Any) -> Nodes:
        x, y = self.nodes(x), self.nodes(y)
        return np.stack([self._mm(a, b) for a, b in zip(x, y, strict=True)])

    def _mv(self, x: Any, y: Any) -> Nodes:
        return self._mm(x, self.nodes(y)[:, None])[:, 0]

    def _dot(self, x: Any, y: Any) -> Nodes:
        return np.array(self._dot_of(self.nodes(x).tolist(), self.nodes(y).tolist()), dtype=np.int64)

    _vdot = _dot

    def _addmm(self, bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Nodes:
        return self._add(self._mul(bias, beta), self._mm(x, y), alpha)

    def _addmv(self, bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Nodes:
        return self._add(self._mul(bias, beta), self._mv(x, y), alpha)

    def _baddbmm(self, bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Nodes:
        return self._add(self._mul(bias, beta), self._bmm(x, y), alpha)

    def _linear(self, x: Any, weight: Any, bias: Any = None) -> Nodes:
        x, weight = self.nodes(x), self.nodes(weight)
        found = self._mm(x.reshape(-1, x.shape[-1]), weight.T).reshape(*x.shape[:-1], len(weight))
        return found if bias is None else self._add(found, bias)

"""What the operations of torch that only move numbers do to arrays of nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ddn_cvx.program.tape_ops import Nodes, NotScalarError
from ddn_cvx.program.tape_sums import Sums


def shape_of(wanted: Sequence[int], x: Nodes) -> tuple[int, ...]:
    """Where -1 stands for what is left."""
    return tuple(int(s) for s in wanted) if x.size or -1 not in wanted else torch.empty(x.shape).reshape(*wanted).shape


class Shapes(Sums):
    """The whole table."""

    def _view(self, x: Nodes, shape: Sequence[int]) -> Nodes:
        return x.reshape(shape_of(shape, x))

    _unsafe_view = _reshape = _view

    def _expand(self, x: Any, shape: Sequence[int], implicit: bool = False) -> Nodes:
        old = (1,) * (len(shape) - x.ndim) + x.shape
        return np.broadcast_to(x, [o if s == -1 else s for s, o in zip(shape, old, strict=True)])

    def _permute(self, x: Nodes, dims: Sequence[int]) -> Nodes:
        return x.transpose(list(dims))

    def _transpose(self, x: Nodes, first: int, second: int) -> Nodes:
        return x.swapaxes(first, second) if x.ndim else x

    def _t(self, x: Nodes) -> Nodes:
        return x.T

    def _numpy_T(self, x: Nodes) -> Nodes:
        return x.T

    def _unsqueeze(self, x: Nodes, dim: int) -> Nodes:
        return np.expand_dims(x, dim)

    def _squeeze(self, x: Nodes, dim: Any = None) -> Nodes:
        dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
        return x.squeeze(tuple(d for d in dims if x.ndim and x.shape[d] == 1))

    def _slice(self, x: Nodes, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Nodes:
        return x[self._at(x, dim, slice(start, end, step))]

    def _select(self, x: Nodes, dim: int, index: int) -> Nodes:
        return np.asarray(x[self._at(x, dim, index)])

    def _at(self, x: Nodes, dim: int, where: Any) -> tuple[Any, ...]:
        return (slice(None),) * (dim % x.ndim) + (where,)

    def _split(self, x: Nodes, size: int, dim: int = 0) -> list[Nodes]:
        return np.split(x, range(size, x.shape[dim], size), dim)

    def _split_with_sizes(self, x: Nodes, sizes: Sequence[int], dim: int = 0) -> list[Nodes]:
        return np.split(x, np.cumsum(sizes)[:-1], dim)

    def _unbind(self, x: Nodes, dim: int = 0) -> list[Nodes]:
        return [np.asarray(part) for part in np.moveaxis(x, dim, 0)]

    def _cat(self, parts: Sequence[Any], dim: int = 0) -> Nodes:
        arrays = [self.nodes(p) for p in parts]
        kept = [a for a in arrays if a.shape != (0,)] or arrays
        return np.concatenate(kept, dim)

    def _stack(self, parts: Sequence[Any], dim: int = 0) -> Nodes:
        return np.stack([self.nodes(p) for p in parts], dim)

    def _clone(self, x: Nodes, memory_format: Any = None) -> Nodes:
        return x

    _alias = _contiguous = _lift_fresh = _lift_fresh_copy = _clone

    def _to_copy(self, x: Nodes, **wanted: Any) -> Nodes:
        return x

    def _detach(self, x: Nodes) -> Nodes:
        return self.each(self.graph.held, x)

    def _copy(self, x: Any, source: Any, non_blocking: bool = False) -> Nodes:
        return np.broadcast_to(self.nodes(source), self.nodes(x).shape)

    def _fill(self, x: Any, value: Any) -> Nodes:
        return self._copy(x, value)

    def _diagonal(self, x: Nodes, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Nodes:
        return x.diagonal(offset, dim1, dim2)

    def _diag_embed(self, x: Nodes, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Nodes:
        size = x.shape[-1] + abs(offset)
        found = self.nodes(np.zeros((*x.shape[:-1], size, size)).tolist()).copy()
        k = np.arange(x.shape[-1])
        found[..., k + max(-offset, 0), k + max(offset, 0)] = x
        return np.moveaxis(found, (-2, -1), (dim1, dim2))

    def _tril(self, x: Nodes, diagonal: int = 0) -> Nodes:
        return np.where(np.tri(x.shape[-2], x.shape[-1], diagonal) > 0, x, self.nodes(0.0))

    def _triu(self, x: Nodes, diagonal: int = 0) -> Nodes:
        return np.where(np.tri(x.shape[-2], x.shape[-1], diagonal - 1) > 0, self.nodes(0.0), x)

    def _flip(self, x: Nodes, dims: Sequence[int]) -> Nodes:
        return np.flip(x, tuple(dims))

    def _roll(self, x: Nodes, shifts: Sequence[int], dims: Sequence[int] = ()) -> Nodes:
        return np.roll(x, tuple(shifts), tuple(dims)) if dims else np.roll(x, shifts[0])

    def _repeat(self, x: Nodes, times: Sequence[int]) -> Nodes:
        return np.tile(x, tuple(times))

    def _constant_pad_nd(self, x: Nodes, pad: Sequence[int], value: float = 0) -> Nodes:
        if min(pad) < 0:
            raise NotScalarError("padding that cuts")
        ends = [(0, 0)] * (x.ndim - len(pad) // 2) + [(pad[k], pad[k + 1]) for k in range(len(pad) - 2, -1, -2)]
        return np.pad(x, ends, constant_values=self.graph.constant(value))

    def _select_scatter(self, x: Any, source: Any, dim: int, index: int) -> Nodes:
        return self._changed(x, source, lambda a: self._at(a, dim, index))

    def _slice_scatter(self, x: Any, source: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Nodes:
        return self._changed(x, source, lambda a: self._at(a, dim, slice(start, end, step)))

    def _changed(self, x: Any, source: Any, where: Callable[[Nodes], Any]) -> Nodes:
        found = self.nodes(x).copy()
        found[where(found)] = self.nodes(source)
        return found

    def _index(self, x: Nodes, places: Sequence[Any]) -> Nodes:
        return np.asarray(x[self._places(places)])

    _unsafe_index = _index

    def _index_select(self, x: Nodes, dim: int, index: Any) -> Nodes:
        return np.take(x, self._whole(index), dim)

    def _index_put(self, x: Any, places: Sequence[Any], source: Any, accumulate: bool = False) -> Nodes:
        where = self._places(places)
        if not accumulate:
            return self._changed(x, source, lambda a: where)
        found = self.nodes(x).copy()
        order = np.arange(found.size).reshape(found.shape)[where]
        flat = found.reshape(-1)
        for place, node in zip(order.ravel(), np.broadcast_to(self.nodes(source), order.shape).ravel(), strict=True):
            flat[place] = self.graph.add(int(flat[place]), int(node))
        return found

    def _gather(self, x: Nodes, dim: int, index: Any, sparse_grad: bool = False) -> Nodes:
        places = self._whole(index)
        return x[self._spread(x, dim, places)]

    def _scatter(self, x: Any, dim: int, index: Any, source: Any) -> Nodes:
        places, found = self._whole(index), self.nodes(x).copy()
        source = self.nodes(source)
        part = source[tuple(slice(s) for s in places.shape)] if source.ndim else source
        found[self._spread(found, dim, places)] = part
        return found

    def _scatter_add(self, x: Any, dim: int, index: Any, source: Any) -> Nodes:
        places, source = self._whole(index), self.nodes(source)
        where = self._spread(self.nodes(x), dim, places)
        part = source[tuple(slice(s) for s in places.shape)]
        return self._index_put(x, [torch.from_numpy(np.ascontiguousarray(w)) for w in where], part, True)

    def _index_add(self, x: Any, dim: int, index: Any, source: Any, alpha: float = 1) -> Nodes:
        found, source = np.moveaxis(self.nodes(x), dim, 0).copy(), np.moveaxis(self._mul(source, alpha), dim, 0)
        for k, place in enumerate(self._whole(index)):
            found[place] = self._add(found[place], source[k])
        return np.moveaxis(found, 0, dim)

    def _spread(self, x: Nodes, dim: int, places: Nodes) -> tuple[Nodes, ...]:
        """The places of a gather, one array for each dimension."""
        where: list[Any] = list(np.indices(places.shape))
        where[dim % x.ndim] = places
        return tuple(where)

    def _places(self, places: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(slice(None) if p is None else self._whole(p) for p in places)

    def _whole(self, index: Any) -> Nodes:
        if not isinstance(index, torch.Tensor):
            raise NotScalarError("an index that depends on the variable or the parameters")
        return index.numpy()

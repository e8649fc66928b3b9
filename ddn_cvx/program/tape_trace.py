"""Traces a function of tensors into a graph of scalars: it is run once, and every operation of torch is looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ddn_cvx.program.scalar_graph import Graph
from ddn_cvx.program.tape_ops import Nodes, NotScalarError
from ddn_cvx.program.tape_shapes import Shapes

_SHAPE_ONLY = {"new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "zeros_like", "ones_like"} | {
    "full_like",
    "empty_like",
}
"""Operations that look at a tensor's shape and not at its numbers."""


def trace(graph: Graph, function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[tuple[Tensor, Nodes]]) -> list[Nodes]:
    """The nodes of the outputs of ``function(*tensors)``, for ``inputs`` that are tensors with their nodes.

    Raises
    ------
    NotScalarError
        The function does something that a graph of scalars cannot, or whose derivative is not that of its value.
    """
    tensors = [tensor for tensor, _ in inputs]
    with torch.enable_grad(), _Watch(graph, inputs) as watch:
        outputs = torch.func.functionalize(function)(*tensors)
    return [watch.table.nodes(watch.known(t)) for t in outputs]


class _Watch(TorchDispatchMode):
    """Keeps the nodes of every tensor that depends on an input."""

    def __init__(self, graph: Graph, inputs: Sequence[tuple[Tensor, Nodes]]):
        untyped: Any = super()
        untyped.__init__()
        self.table = Shapes(graph)
        # The tensors themselves are kept as well, so that no other gets the same id.
        self._known = {id(tensor): (tensor, nodes) for tensor, nodes in inputs}

    def known(self, value: Any) -> Any:
        """The nodes of a tensor, or the constant that it is."""
        found = self._known.get(id(value))
        return value if found is None else found[1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``, and do the same to the nodes."""
        kwargs = kwargs or {}
        real = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise NotScalarError(f"{name} is random")
        leaves = [
            leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and id(leaf) in self._known
        ]
        if not leaves or name in _SHAPE_ONLY:
            return real
        if not torch.is_grad_enabled():
            raise NotScalarError("it has derivatives of its own (torch.autograd.Function) or none (torch.no_grad)")
        if torch.Tag.inplace_view in func.tags:
            name = name.removesuffix("_")  # another shape for the same tensor
        elif func._schema.is_mutable or not func._schema.name.startswith("aten::"):
            raise NotScalarError(f"{func} cannot be followed")
        whole = not any(leaf.is_floating_point() for leaf in leaves)
        some, options = pytree.tree_map(self.known, (args, kwargs))
        for key in ("dtype", "layout", "device", "pin_memory"):
            options.pop(key, None)
        found = self.table.find(name)(*some, **options)
        for tensor, nodes in zip(*(v if isinstance(v, tuple | list) else (v,) for v in (real, found)), strict=True):
            if nodes is None:  # not to be used
                continue
            elif tensor.dtype != torch.float64 and not (whole or tensor.dtype == torch.bool):
                raise NotScalarError(f"{name} computes in {tensor.dtype}")
            self._known[id(tensor)] = tensor, nodes
        return real

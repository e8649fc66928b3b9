"""Check and batch what a layer is called with; nothing is computed before everything has been checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ddn_cvx.errors import InputError
from ddn_cvx.program.base import ParameterSpec

_STRAY = 1e-4  # relative size of an entry outside a sparsity pattern that finite differences may leave there


@dataclass(frozen=True)
class Batch:
    """Arguments of one call, broadcast to a common batch."""

    values: list[Tensor]
    """Double precision, ``(B, *shape)`` each; of a sparse parameter its entries, ``(B, nnz)``."""
    shape: tuple[int, ...]
    """The leading batch dimensions, with product B."""
    dtype: torch.dtype
    """Real dtype of the outputs."""
    device: torch.device

    def restore(self, tensor: Tensor) -> Tensor:
        """From ``(B, *rest)`` double to ``(*batch, *rest)`` in the dtype of the inputs."""
        dtype = self.dtype
        if tensor.is_complex():
            dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
        if tensor.dtype == dtype and len(self.shape) == 1:  # what would change nothing costs autograd a node
            return tensor
        return tensor.to(dtype).reshape((*self.shape, *tensor.shape[1:]))


def gather(specs: Sequence[ParameterSpec], args: Sequence[Tensor], named: Mapping[str, Tensor]) -> Batch:
    """Match arguments to parameters and broadcast their leading dimensions.

    Raises
    ------
    InputError
        Wrong count, name, type, dtype, device or shape; the message names the argument.
    """
    tensors = match(specs, args, named)
    for spec, tensor in zip(specs, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"Parameter {spec.name!r} must be a torch.Tensor, got {type(tensor).__name__}; wrap it with torch.as_tensor."
            )
    if not tensors:
        return Batch([], (), torch.get_default_dtype(), torch.device("cpu"))
    batch, dtype, device = _common(tuple(specs), *((t.shape, t.dtype, t.layout, t.device) for t in tensors))
    values, size = [], math.prod(batch)
    for spec, tensor in zip(specs, tensors, strict=True):
        wanted = torch.complex128 if spec.is_complex else torch.float64
        precise = tensor if tensor.dtype == wanted else tensor.to(wanted)  # a call that does nothing costs, too
        if spec.entries is not None:
            precise = _entries(spec, precise)
        if precise.shape != (size, *spec.inner):
            precise = precise.expand((*batch, *spec.inner)).reshape((size, *spec.inner))
        values.append(precise)
    return Batch(values, batch, dtype, device)


Kind = tuple[torch.Size, torch.dtype, torch.layout, torch.device]


@lru_cache(maxsize=256)
def _common(specs: tuple[ParameterSpec, ...], *kinds: Kind) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    """The common batch, dtype and device of arguments of these kinds, once they have been checked."""
    for spec, kind in zip(specs, kinds, strict=True):
        _check(spec, *kind[:3])
    devices = {device for *_, device in kinds}
    if len(devices) > 1:
        where = ", ".join(f"{s.name!r} on {device}" for s, (*_, device) in zip(specs, kinds, strict=True))
        raise InputError(f"All parameters must be on one device; got {where}.")
    leading = [tuple(shape[: len(shape) - len(s.shape)]) for s, (shape, *_) in zip(specs, kinds, strict=True)]
    try:
        batch = tuple(torch.broadcast_shapes(*leading))
    except RuntimeError:
        listed = ", ".join(f"{s.name!r} {lead}" for s, lead in zip(specs, leading, strict=True))
        raise InputError(
            f"The leading batch dimensions of the parameters do not broadcast together: {listed}. Give every "
            "batched parameter the same batch dimensions, and shared ones none."
        ) from None
    dtype = _real(kinds[0][1])
    for _, other, *_ in kinds[1:]:
        dtype = torch.promote_types(dtype, _real(other))
    return batch, dtype, kinds[0][3]


def _real(dtype: torch.dtype) -> torch.dtype:
    return torch.empty((), dtype=dtype).real.dtype if dtype.is_complex else dtype


def match(specs: Sequence[ParameterSpec], args: Sequence[Tensor], named: Mapping[str, Tensor]) -> list[Tensor]:
    """One argument for each parameter.

    Raises
    ------
    InputError
        Wrong count or name.
    """
    names = [s.name for s in specs]
    if not named:
        if len(args) != len(specs):
            raise InputError(f"Expected {len(specs)} parameters ({', '.join(names)}), got {len(args)}.")
        return list(args)
    if len(args) > len(specs):
        raise InputError(f"Expected at most {len(specs)} parameters ({', '.join(names)}), got {len(args)} by position.")
    found = dict(zip(names, args, strict=False))
    for name, tensor in named.items():
        if name not in names:
            raise InputError(f"Unknown parameter {name!r}; the parameters are {', '.join(names)}.")
        if names.count(name) > 1:
            raise InputError(
                f"{names.count(name)} parameters are named {name!r}; pass them by position, or give each a name of its own."
            )
        if name in found:
            raise InputError(f"Parameter {name!r} was given twice, by position and by name.")
        found[name] = tensor
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"Missing parameters: {', '.join(missing)}.")
    return [found[name] for name in names]


def _check(spec: ParameterSpec, shape: torch.Size, dtype: torch.dtype, layout: torch.layout) -> None:
    if dtype.is_complex and not spec.is_complex:
        raise InputError(
            f"Parameter {spec.name!r} is real but got dtype {dtype}; declare it with complex=True or pass its real part."
        )
    if not (dtype.is_floating_point or dtype.is_complex):
        raise InputError(f"Parameter {spec.name!r} must have a floating-point dtype, got {dtype}; call .float() on it.")
    if layout != torch.strided and (spec.entries is None or layout not in (torch.sparse_coo, torch.sparse_csr)):
        raise InputError(
            f"Parameter {spec.name!r} must be a dense tensor, got layout {layout}; call .to_dense() on it. Parameters that "
            "are declared with sparsity= may be sparse tensors in COO or CSR layout."
        )
    k = len(spec.shape)
    trailing = tuple(shape[len(shape) - k :]) if len(shape) >= k else None
    if trailing != spec.shape:
        expected = ", ".join(["*batch", *map(str, spec.shape)])
        raise InputError(f"Parameter {spec.name!r} must have shape ({expected}), got {tuple(shape)}.")


def _entries(spec: ParameterSpec, tensor: Tensor) -> Tensor:
    """The entries ``(*batch, nnz)`` of a sparse parameter; NaN in elements with others that are not zero."""
    assert spec.entries is not None
    batch = tensor.shape[: tensor.ndim - len(spec.shape)]
    where = torch.as_tensor(spec.entries, device=tensor.device)
    if tensor.layout == torch.strided:
        flat = tensor.reshape(*batch, math.prod(spec.shape))
        found = flat.index_select(-1, where)
        with torch.no_grad():
            others = flat.detach().index_fill(-1, where, 0.0).abs().amax(-1, keepdim=True) if flat.shape[-1] else found
            largest = found.detach().abs().amax(-1, keepdim=True) if len(where) else 0.0
            stray = others > _STRAY * (1.0 + largest)
        return torch.where(stray, torch.nan, found)
    coo = tensor.to_sparse_coo().coalesce()
    places = torch.zeros_like(coo.indices()[0])
    for index, length in zip(coo.indices(), tensor.shape, strict=True):
        places = places * length + index
    order = where.argsort()
    instances = torch.arange(batch.numel(), device=tensor.device).unsqueeze(1) * math.prod(spec.shape)
    if not torch.equal(places, (instances + where[order]).flatten()):
        raise InputError(
            f"Parameter {spec.name!r} is declared with {len(where)} entries; the sparse tensor {tuple(tensor.shape)} with "
            f"{len(places)} entries must hold exactly these in each instance, zeros among them stored."
        )
    return coo.values().reshape(*batch, len(where)).index_select(-1, order.argsort())

"""The layer as one operator of ``torch.library``, which is how ``torch.compile`` sees it.

While a model is compiled, ``DeclarativeLayer.forward`` does no more than work out the shapes of its results and call
``ddn_cvx::solve``. When the compiled model runs, that operator calls the layer as it is without compilation, and its
derivative ``ddn_cvx::solve_backward`` differentiates what the layer computed.

An operator takes tensors and numbers, so a layer is named by a number, its place in ``LAYERS``, which keeps none alive.
Weights that the functions of a problem capture are further inputs. What ``solve`` has computed stays in ``RUNS`` until
its backward pass can no longer come: the number under which it is found is an output, and the memory of that tensor,
which autograd keeps for as long as it may need it, is what keeps the run. Everything that decides about the shapes of the
results is an argument, because compiled code is kept on disk by the arguments of its operators.
"""

from __future__ import annotations

import ast
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.grad_mode import _force_original_view_tracking

from ddn_cvx.errors import DifferentiationError, InputError
from ddn_cvx.signature import Signature


class Evaluates(Protocol):
    """What the operator needs of a layer."""

    def evaluate(self, args: Sequence[Any], named: dict[str, Any], weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """The outputs, flat, with ``weights`` in the place of what the functions capture."""


class _Run(NamedTuple):
    """What one call has computed."""

    leaves: list[Tensor]
    outputs: list[Tensor]


LAYERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
RUNS: dict[int, _Run] = {}
_numbers = itertools.count(1)


def _dispatched_to() -> tuple[Any, Any]:
    return torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()


with ThreadPoolExecutor(1) as _pool:
    _USUAL = _pool.submit(_dispatched_to).result()
    """What torch dispatches to in a thread that is inside of nothing."""


def register(layer: Evaluates) -> int:
    """A number for the layer, unique in this process."""
    number = next(_numbers)
    LAYERS[number] = layer
    return number


# ---------------------------------------------------------------- what the compiler traces


def call_operator(
    number: int, signature: Signature, args: Sequence[Any], named: dict[str, Any], weights: Sequence[Tensor]
) -> list[Tensor] | None:
    """Call the operator; None if the arguments are not what the layer takes, so that only the layer can say what is wrong.

    The compiler reads this function: plain Python, without anything that looks at the values of tensors.
    """
    if signature.outputs is None:
        return None
    if signature.shapes is not None and len(args) + len(named) != len(signature.arguments):
        return None
    tensors: list[Tensor] = []
    leading: list[tuple[int, ...]] = []
    parts: list[str] = []
    for k, value in enumerate(args):
        text = _take(value, k, signature, tensors, leading)
        if text is None:
            return None
        parts.append(text)
    pairs: list[str] = []
    for name, value in named.items():
        if name not in signature.arguments or signature.arguments.index(name) < len(args):
            return None
        text = _take(value, signature.arguments.index(name), signature, tensors, leading)
        if text is None:
            return None
        pairs.append(f"{name!r}: {text}")
    arguments = "([" + ", ".join(parts) + "], {" + ", ".join(pairs) + "})"
    batch = leading[0] if leading else ()
    for lead in leading[1:]:
        if lead != batch:
            batch = tuple(torch.broadcast_shapes(batch, lead))
    own = len(tensors)
    tensors += weights
    if not tensors:
        tensors.append(torch.empty(0))
    for tensor in tensors[1:own]:
        if tensor.device != tensors[0].device:
            return None
    needed = [torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]
    found = torch.ops.ddn_cvx.solve(tensors, batch, arguments, own, signature.outputs, number, needed)
    return list(found[:-1])


def _take(value: Any, k: int, signature: Signature, tensors: list[Tensor], leading: list[tuple[int, ...]]) -> str | None:
    """Add the tensors of one argument and their batch dimensions to the lists; the argument with numbers for tensors."""
    start = len(tensors)
    text = _flatten(value, tensors)
    if text is None:
        return None
    mine = tensors[start:]
    if signature.shapes is None:
        for tensor in mine:
            if tensor.ndim == 0 or not tensor.is_floating_point():
                return None
            leading.append((tensor.shape[0],))
        return text
    if len(signature.shapes[k]) != len(mine):
        return None
    for tensor, shape in zip(mine, signature.shapes[k], strict=True):
        lead = tensor.ndim - len(shape)
        if lead < 0 or tuple(tensor.shape[lead:]) != shape:
            return None
        if not (tensor.is_floating_point() or (tensor.is_complex() and signature.complex_arguments[k])):
            return None
        leading.append(tuple(tensor.shape[:lead]))
    return text


def _flatten(value: Any, tensors: list[Tensor]) -> str | None:
    if isinstance(value, Tensor):
        tensors.append(value)
        return str(len(tensors) - 1)
    if isinstance(value, dict):
        pairs: list[str] = []
        for key, item in value.items():
            text = _flatten(item, tensors) if isinstance(key, str) else None
            if text is None:
                return None
            pairs.append(f"{key!r}: {text}")
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        items: list[str] = []
        for item in value:
            text = _flatten(item, tensors)
            if text is None:
                return None
            items.append(text)
        return "[" + ", ".join(items) + "]" if isinstance(value, list) else "(" + "".join(f"{i}, " for i in items) + ")"
    return None


# ---------------------------------------------------------------- what runs


@lru_cache(maxsize=256)
def _read(text: str) -> Any:
    return ast.literal_eval(text)


def _tree(value: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(value, int):
        return tensors[value]
    if isinstance(value, dict):
        return {key: _tree(item, tensors) for key, item in value.items()}
    return type(value)(_tree(item, tensors) for item in value)


def _run(inputs: Sequence[Tensor], arguments: str, own: int, number: int) -> list[Tensor]:
    layer = LAYERS.get(number)
    if layer is None:
        raise InputError("The layer that this compiled model calls no longer exists; compile the model anew.")
    args, named = _read(arguments)
    given = inputs[:own]
    return list(layer.evaluate(_tree(args, given), _tree(named, given), inputs[own:]))


@contextmanager
def _outside() -> Iterator[None]:
    """Inside an operator, from which autograd and ``torch.func`` keep away, what is usual outside of one."""
    with torch._C._ForceDispatchKeyGuard(*_USUAL), _force_original_view_tracking(False):
        yield


def _record(inputs: Sequence[Tensor], arguments: str, own: int, number: int, needed: Sequence[bool]) -> _Run:
    # Copies: a compiled model may write to the memory of what it has no more use for.
    with _outside(), torch.inference_mode(False), torch.enable_grad():
        leaves = [t.detach().clone().requires_grad_(need) for t, need in zip(inputs, needed, strict=True)]
        return _Run(leaves, _run(leaves, arguments, own, number))


def _apart(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous tensors that share memory neither among themselves nor with others: what the compiler counts on."""
    taken, found = {t.untyped_storage().data_ptr() for t in others}, []
    for tensor in tensors:
        tensor = tensor.detach().contiguous()
        found.append(tensor.clone() if tensor.untyped_storage().data_ptr() in taken else tensor)
        taken.add(found[-1].untyped_storage().data_ptr())
    return found


def _keep(run: _Run) -> Tensor:
    """A number under which the run is found for as long as the memory of this tensor exists."""
    number = next(_numbers)
    holder = np.array(number)
    RUNS[number] = run
    weakref.finalize(holder, RUNS.pop, number, None).atexit = False
    return torch.from_numpy(holder)


@torch.library.custom_op(
    "ddn_cvx::solve",
    mutates_args=(),
    schema="(Tensor[] inputs, SymInt[] batch, str arguments, int own, str outputs, int layer, bool[] needed) -> Tensor[]",
)
def solve(
    inputs: Sequence[Tensor],
    batch: Sequence[int],
    arguments: str,
    own: int,
    outputs: str,
    layer: int,
    needed: Sequence[bool],
) -> list[Tensor]:
    """The outputs of a layer, and the number of the run."""
    if any(needed):
        run = _record(inputs, arguments, own, layer, needed)
        return [*(t.detach().clone(memory_format=torch.contiguous_format) for t in run.outputs), _keep(run)]
    with _outside(), torch.no_grad():
        return [*_apart(_run(inputs, arguments, own, layer), inputs), torch.zeros((), dtype=torch.int64)]


@solve.register_fake
def _(
    inputs: Sequence[Tensor],
    batch: Sequence[int],
    arguments: str,
    own: int,
    outputs: str,
    layer: int,
    needed: Sequence[bool],
) -> list[Tensor]:
    return [*_results(torch.empty, inputs, batch, own, outputs), torch.empty((), dtype=torch.int64, device="cpu")]


def _results(
    make: Callable[..., Tensor], inputs: Sequence[Tensor], batch: Sequence[int], own: int, outputs: str
) -> list[Tensor]:
    dtype = inputs[0].dtype.to_real()
    for tensor in inputs[1:own]:
        dtype = torch.promote_types(dtype, tensor.dtype.to_real())
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64
    return [
        make((*batch, *shape), dtype=wide if is_complex else dtype, device=inputs[0].device)
        for shape, is_complex in _read(outputs)
    ]


@torch.library.custom_op(
    "ddn_cvx::solve_backward",
    mutates_args=(),
    schema="(Tensor[] grads, Tensor[] inputs, Tensor run, str arguments, int own, int layer, bool[] needed) -> Tensor[]",
)
def solve_backward(
    grads: Sequence[Tensor],
    inputs: Sequence[Tensor],
    run: Tensor,
    arguments: str,
    own: int,
    layer: int,
    needed: Sequence[bool],
) -> list[Tensor]:
    """The gradient of each input that needs one."""
    known = RUNS.get(int(run))
    # A copy of the number, as activations that were moved elsewhere are, keeps no run: compute it once more.
    if known is None or not all(leaf.requires_grad for leaf, need in zip(known.leaves, needed, strict=True) if need):
        known = _record(inputs, arguments, own, layer, needed)
    wanted = [leaf for leaf, need in zip(known.leaves, needed, strict=True) if need]
    pairs = [(out, g) for out, g in zip(known.outputs, grads, strict=True) if out.requires_grad]
    with _outside():
        found = torch.autograd.grad(
            [out for out, _ in pairs], wanted, [g for _, g in pairs], retain_graph=True, materialize_grads=True,
            allow_unused=True,
        )  # fmt: skip
    return _apart(found, (*grads, *inputs, *known.leaves))


@solve_backward.register_fake
def _(
    grads: Sequence[Tensor],
    inputs: Sequence[Tensor],
    run: Tensor,
    arguments: str,
    own: int,
    layer: int,
    needed: Sequence[bool],
) -> list[Tensor]:
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t, need in zip(inputs, needed, strict=True) if need]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, ctx.batch, ctx.arguments, ctx.own, ctx.outputs, ctx.layer, _ = inputs
    ctx.save_for_backward(*tensors, output[-1])


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    *inputs, run = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[0])
    filled = list(grads[:-1])
    if any(g is None for g in filled):
        zeros = _results(torch.zeros, inputs, ctx.batch, ctx.own, ctx.outputs)
        filled = [zero if g is None else g for g, zero in zip(filled, zeros, strict=True)]
    found = iter(torch.ops.ddn_cvx.solve_backward(cast(Any, filled), inputs, run, ctx.arguments, ctx.own, ctx.layer, needed))
    # Nothing for the other arguments, in the form that torch wants: an empty list for an empty list.
    nothing: list[Any] | None = None if ctx.batch else []
    return ([next(found) if need else None for need in needed], nothing, None, None, None, None, None)


def _no_second(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise DifferentiationError(
        "A compiled layer has first derivatives only. Call the layer outside of torch.compile for second ones."
    )


solve.register_autograd(_backward, setup_context=_remember)
solve_backward.register_autograd(_no_second)

"""Functions with kinks, rounded off over a declared width.

    |x|  ->  sqrt(x² + w²),        max(x, 0)  ->  (x + sqrt(x² + w²)) / 2,        ‖x‖  ->  sqrt(‖x‖² + w²)

At its kink a function has no derivative, and a solution that sits there satisfies no first-order condition. The rounded
function is smooth, lies within w of the original (w log n for the largest of n entries), and its solutions have derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Smooth(TorchFunctionMode):
    """Replaces abs, relu, leaky_relu, clamp, maximum, minimum, amax, amin and Euclidean norms in every torch call."""

    def __init__(self, width: float):
        super().__init__()
        self.width = width

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the smooth version of ``func`` if there is one."""
        rounded = _ROUNDED.get(func)
        if rounded is not None:
            found = rounded(self.width, *args, **(kwargs or {}))
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))


def _root(x: Tensor, width: float) -> Tensor:
    return (x * x + width * width).sqrt()


def _plus(x: Tensor, width: float) -> Tensor:
    return 0.5 * (x + _root(x, width))


def _abs(width: float, x: Tensor) -> Tensor:
    return _root(x, width)


def _relu(width: float, x: Tensor, inplace: bool = False) -> Tensor | None:
    return None if inplace else _plus(x, width)


def _leaky_relu(width: float, x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor | None:
    return None if inplace else negative_slope * x + (1 - negative_slope) * _plus(x, width)


def _clamp(width: float, x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    if min is not None:
        x = min + _plus(x - min, width)
    return x if max is None else max - _plus(max - x, width)


def _clamp_min(width: float, x: Tensor, min: Any) -> Tensor:
    return _clamp(width, x, min)


def _clamp_max(width: float, x: Tensor, max: Any) -> Tensor:
    return _clamp(width, x, None, max)


def _maximum(width: float, x: Tensor, y: Tensor) -> Tensor:
    return y + _plus(x - y, width)


def _minimum(width: float, x: Tensor, y: Tensor) -> Tensor:
    return y - _plus(y - x, width)


def _max(width: float, x: Tensor, *others: Any, **options: Any) -> Tensor | None:
    """The largest entry, or the larger of two tensors; not the one along a dimension, which comes with its place."""
    if not others and not options:
        return _amax(width, x)
    return _maximum(width, x, others[0]) if len(others) == 1 and isinstance(others[0], Tensor) else None


def _min(width: float, x: Tensor, *others: Any, **options: Any) -> Tensor | None:
    found = _max(width, -x, *(-o if isinstance(o, Tensor) else o for o in others), **options)
    return None if found is None else -found


def _amax(width: float, x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    dims = tuple(range(x.ndim)) if dim in ((), None) else dim
    return width * torch.logsumexp(x / width, dims, keepdim)


def _amin(width: float, x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return -_amax(width, -x, dim, keepdim)


def _vector_norm(
    width: float, x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, **options: Any
) -> Tensor | None:
    if ord not in (2, 2.0) or options:
        return None
    dims = tuple(range(x.ndim)) if dim is None else dim
    return ((x * x).sum(dims, keepdim) + width * width).sqrt() if x.ndim else _root(x, width)


def _norm(width: float, x: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, **options: Any) -> Tensor | None:
    """``torch.linalg.norm``, whose order 2 is the largest singular value where it is that of a matrix."""
    of_matrix = x.ndim == 2 if dim is None else isinstance(dim, Sequence) and len(dim) == 2
    if ord not in (None, 2, 2.0, "fro") or (ord in (2, 2.0) and of_matrix):
        return None
    return _vector_norm(width, x, 2, dim, keepdim, **options)


def _old_norm(
    width: float, x: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, out: Any = None, dtype: Any = None
) -> Tensor | None:
    """``torch.norm``, whose order is called p and which takes a tensor without ``dim`` as a vector."""
    if p not in (None, 2, 2.0, "fro") or out is not None or dtype is not None:
        return None
    return _vector_norm(width, x, 2, dim, keepdim)


_ROUNDED: dict[Any, Callable[..., Tensor | None]] = {
    **dict.fromkeys((torch.abs, torch.absolute, Tensor.abs, Tensor.absolute, Tensor.__abs__), _abs),
    **dict.fromkeys((torch.relu, F.relu, Tensor.relu), _relu),
    F.leaky_relu: _leaky_relu,
    **dict.fromkeys((torch.clamp, torch.clip, Tensor.clamp, Tensor.clip), _clamp),
    **dict.fromkeys((torch.clamp_min, Tensor.clamp_min), _clamp_min),
    **dict.fromkeys((torch.clamp_max, Tensor.clamp_max), _clamp_max),
    **dict.fromkeys((torch.maximum, Tensor.maximum, torch.fmax, Tensor.fmax), _maximum),
    **dict.fromkeys((torch.minimum, Tensor.minimum, torch.fmin, Tensor.fmin), _minimum),
    **dict.fromkeys((torch.max, Tensor.max), _max),
    **dict.fromkeys((torch.min, Tensor.min), _min),
    **dict.fromkeys((torch.amax, Tensor.amax), _amax),
    **dict.fromkeys((torch.amin, Tensor.amin), _amin),
    torch.linalg.norm: _norm,
    torch.linalg.vector_norm: _vector_norm,
    **dict.fromkeys((torch.norm, Tensor.norm), _old_norm),
}

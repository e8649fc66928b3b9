"""What the calls of a layer do alike, whatever it declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from ddn_cvx.errors import DeclarationError, InputError
from ddn_cvx.inputs import Batch, gather
from ddn_cvx.linalg.blocks import per_element
from ddn_cvx.program.base import ParameterSpec
from ddn_cvx.program.nonlinear import Theta

Found = TypeVar("Found")


def outside_inference(solve: Callable[[Sequence[Tensor]], Found], tensors: Sequence[Tensor]) -> Found:
    """``solve(tensors)``, which takes derivatives: inference mode, which has none, is left for it."""
    if not torch.is_inference_mode_enabled():
        return solve(tensors)
    with torch.inference_mode(False), torch.no_grad():
        return solve([t.clone() for t in tensors])


def gather_beside(weights: Sequence[Tensor], specs: Sequence[ParameterSpec], tensors: Sequence[Tensor]) -> Batch:
    """The batch of the arguments; if there are none, in the dtype and on the device of the weights of the functions."""
    batch = gather(specs, tensors, {})
    if tensors or not weights:
        return batch
    return replace(batch, dtype=weights[0].dtype, device=weights[0].device)


def finite_elements(theta: Theta, batch: int, device: torch.device) -> Tensor:
    """Which elements have numbers to solve for, ``(B,)`` bool; what is shared may hold infinite bounds, but no NaN."""
    finite = torch.ones(batch, dtype=torch.bool, device=device)
    for t, own in zip(theta.tensors, theta.batched, strict=True):
        finite = finite & (t.reshape(batch, -1).isfinite().all(-1) if own else ~t.isnan().any())
    return finite


def require_followed(results: Iterable[Tensor], who: str = "The functions use", whose: str = "their") -> None:
    """A result that requires grad although no argument does depends on something that was not found.

    Raises
    ------
    DeclarationError
    """
    if any(t.requires_grad for t in results):
        raise DeclarationError(
            f"{who} a tensor that requires grad and was not found among {whose} inputs, closures, globals and attributes, "
            "so that its gradient would be lost. Pass it as an input, or hold it in an nn.Module that is the function."
        )


def nan_where_failed(ok: Tensor, tensor: Tensor) -> Tensor:
    """``tensor`` (B, ...) with NaN in the elements that are not ``ok`` (B,)."""
    return torch.where(per_element(ok, tensor), tensor, torch.nan)


def without_numbers() -> InputError:
    """The error of a report on a call that had no numbers."""
    return InputError("solve() reports on real tensors; inside torch.func transforms call the layer itself.")

"""Random starts for nonlinear programs."""

from __future__ import annotations

import torch
from torch import Tensor


def scattered(
    start: Tensor, lower: Tensor, upper: Tensor, count: int, spread: float | Tensor, source: torch.Generator | None = None
) -> Tensor:
    """``(count, B, n)``: ``count`` points for each start ``(B, n)``; uniform where a variable has two
    bounds, else normal around the start with standard deviation ``spread``.

    The random numbers are the same for each element, whose answer then does not depend on the rest of the batch; without a
    ``source`` they are those of a new generator with seed 0.
    """
    source = torch.Generator(start.device).manual_seed(0) if source is None else source
    shape = (count, 1, start.shape[1])
    normal, uniform = (
        draw(shape, generator=source, device=source.device, dtype=start.dtype).to(start.device)
        for draw in (torch.randn, torch.rand)
    )
    width = upper - lower
    boxed = width.isfinite()
    inside = torch.where(boxed, lower, 0.0) + uniform * torch.where(boxed, width, 0.0)
    around = torch.minimum(torch.maximum(start + spread * normal, lower), upper)
    return torch.where(boxed, inside, around)

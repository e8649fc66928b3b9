"""The poolings that examples compare, by name."""

from __future__ import annotations

from torch import Tensor, nn

from ddn_cvx.nodes import RobustPooling


class MaxPooling(nn.Module):
    """``(..., N)`` -> ``(...)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(-1)


class MeanPooling(nn.Module):
    """``(..., N)`` -> ``(...)``, as a formula; the node with the quadratic penalty gives the same."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


def pooling(name: str, alpha: float = 1.0) -> nn.Module:
    """``(..., N)`` -> ``(...)``: ``max``, ``mean``, or a penalty of the robust pooling node."""
    return MaxPooling() if name == "max" else RobustPooling("quadratic" if name == "mean" else name, alpha)

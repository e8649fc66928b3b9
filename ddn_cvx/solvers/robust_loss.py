"""Robust losses of residuals: value and weight, for iteratively reweighted least squares."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ddn_cvx.errors import InputError

_KINDS = ("squared", "huber", "pseudo_huber", "cauchy", "welsch")


@dataclass(frozen=True)
class RobustLoss:
    """``rho(r)`` with ``rho ~ r^2 / 2`` near zero, growing more slowly beyond ``width``."""

    kind: str = "squared"
    """One of squared, huber, pseudo_huber, cauchy, welsch (default squared)."""
    width: float = 1.0
    """The residual beyond which it counts less, in the residual's unit (default 1)."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InputError(f"the loss must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        if not self.width > 0:
            raise InputError(f"the width of a loss must be above 0, got {self.width!r}")

    def value(self, r: Tensor) -> Tensor:
        """rho, elementwise."""
        width = self.width
        x = (r / width).square()
        if self.kind == "squared":
            return 0.5 * r.square()
        if self.kind == "huber":
            inside = r.abs().clamp(max=width)
            return inside * (r.abs() - 0.5 * inside)
        if self.kind == "pseudo_huber":
            return width**2 * ((1 + x).sqrt() - 1)
        if self.kind == "cauchy":
            return 0.5 * width**2 * x.log1p()
        return -0.5 * width**2 * (-x).expm1()

    def weight(self, r: Tensor) -> Tensor:
        """``rho'(r) / r``, elementwise, between 0 and 1."""
        x = (r / self.width).square()
        if self.kind == "squared":
            return x.new_ones(x.shape)
        if self.kind == "huber":
            return (self.width / r.abs().clamp(min=self.width)).clamp(max=1.0)
        if self.kind == "pseudo_huber":
            return (1 + x).rsqrt()
        if self.kind == "cauchy":
            return 1.0 / (1 + x)
        return (-x).exp()

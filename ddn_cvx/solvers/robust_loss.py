"""Robust losses of residuals: value and weight, for iteratively reweighted least squares."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ddn_cvx.checks import require_positive
from ddn_cvx.errors import InputError

_KINDS = ("squared", "huber", "pseudo_huber", "cauchy", "welsch")


@dataclass(frozen=True)
class RobustLoss:
    """A robust loss ``rho(r)`` of residuals: ``r² / 2`` near zero, growing more slowly beyond ``width`` (Holland &
    Welsch 1977).

    For ``TorchProblem(residual=..., loss=...)``. With x = (r / width)²: huber is linear beyond the width, pseudo_huber
    ``width² (sqrt(1 + x) - 1)``, cauchy ``width² log(1 + x) / 2``, welsch ``width² (1 - exp(-x)) / 2``.

    Raises
    ------
    InputError
        An unknown kind, or a width that is not positive.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> ddn.RobustLoss("huber", width=1.0).value(torch.tensor([0.5, 1.0, 3.0]))
    tensor([0.1250, 0.5000, 2.5000])
    >>> mean = ddn.TorchProblem((), residual=lambda y, z: y - z, loss=ddn.RobustLoss("welsch", width=0.5), parameters=[(4,)])
    >>> ddn.DeclarativeLayer(mean)(torch.tensor([0.0, 0.1, -0.1, 9.0])).abs() < 1e-4  # the outlier has no say
    tensor(True)
    """

    kind: str = "squared"
    """One of squared, huber, pseudo_huber, cauchy, welsch (default squared)."""
    width: float = 1.0
    """The residual beyond which it counts less, in the residual's unit (default 1)."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InputError(f"the loss must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        require_positive("the width of a loss", self.width)

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

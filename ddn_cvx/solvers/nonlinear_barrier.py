"""The log-barrier form of a nonlinear program, scaled, for a batch.

Inequalities and bounds become rows ``c(y) + s = 0`` with slacks ``s > 0``: g first, then one row for every variable
and side that is bounded in some element, ``c = sigma (y - bound)`` with ``sigma = +-1``.  Where an element lacks such a
bound the row is ``-1 + s = 0`` (sigma = 0).  A variable whose bounds coincide is fixed: its columns are masked out.

Functions are scaled at the start by powers of two so that no gradient there is larger than about 100 (Wächter & Biegler
2006, section 3.8); multipliers here are those of the scaled functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.program.nonlinear import First, NonlinearProgram, Theta

_LARGE_GRADIENT = 100.0
_INSIDE = 1e-2  # part of its interval, or of its size, by which a variable starts inside a bound


class Values(NamedTuple):
    """Scaled values at y: ``f (B,)``, ``h (B, p)``, ``c (B, k)``."""

    f: Tensor
    h: Tensor
    c: Tensor


class Derivatives(NamedTuple):
    """Scaled values and first derivatives at y; ``Jg (B, m, n)`` are the rows of ``c`` that are not bounds."""

    f: Tensor
    h: Tensor
    c: Tensor
    gradient: Tensor
    Jh: Tensor
    Jg: Tensor


class BarrierForm:
    """A batch of scaled instances; the columns of the bounds are common to all, ``(b,)`` long."""

    def __init__(self, program: NonlinearProgram, theta: Theta, start: Tensor):
        self.program, self.theta = program, theta
        n = program.n
        lower, upper = program.bounds(theta, start)
        self.crossed = ((lower > upper) | lower.isnan() | upper.isnan()).any(-1)
        fixed = lower >= upper
        self.free = (~fixed).to(start.dtype) if bool(fixed.any()) else None
        present = torch.cat((lower.isfinite(), upper.isfinite()), 1) & ~torch.cat((fixed, fixed), 1)
        side = torch.nonzero(present.any(0)).flatten()
        self.columns = side % n
        present = present[:, side]
        bound = torch.cat((lower, upper), 1)[:, side]
        self.sigma = torch.where(present, torch.where(side < n, -1.0, 1.0).to(start.dtype), 0.0)
        self.bound = torch.where(present, bound, 0.0)
        self.absent = (~present).to(start.dtype)
        width = (upper - lower).nan_to_num(torch.inf)
        near_lower = torch.where(lower.isfinite(), lower + _inset(lower, width), lower)
        near_upper = torch.where(upper.isfinite(), upper - _inset(upper, width), upper)
        inside = torch.minimum(torch.maximum(start, near_lower), near_upper)
        self.start = torch.where(fixed, 0.5 * (lower + upper), inside)
        first = program.first(self.start, theta)
        self.scale_f = _scale(first.gradient)
        self.scale_h, self.scale_g = _scale(first.Jh), _scale(first.Jg)
        every = torch.cat((self.scale_f.unsqueeze(-1), self.scale_h, self.scale_g), 1)
        self.scaled = bool((every != 1).any())
        self.first = self._derivatives(self.start, first)

    @property
    def rows(self) -> int:
        """Number of rows of ``c``."""
        return self.program.m + len(self.columns)

    def take(self, rows: Tensor) -> BarrierForm:
        """Some elements."""
        return self._map(self.theta.take(rows), lambda t: t[rows])

    def tile(self, copies: int) -> BarrierForm:
        """The batch ``copies`` times, one after another."""
        return self._map(self.theta.tile(copies), lambda t: t.repeat(copies, *(1,) * (t.dim() - 1)))

    def _map(self, theta: Theta, change: Callable[[Tensor], Tensor]) -> BarrierForm:
        some = object.__new__(BarrierForm)
        some.__dict__.update(self.__dict__)
        some.theta = theta
        names = ["crossed"] + ["sigma", "bound", "absent"] * bool(len(self.columns)) + ["free"] * (self.free is not None)
        for name in names + ["scale_f", "scale_h", "scale_g"] * self.scaled:
            setattr(some, name, change(getattr(self, name)))
        return some

    def values(self, y: Tensor) -> Values:
        """f, h and c."""
        f, h, g = (t.detach() for t in self.program.values(y, self.theta))
        if self.scaled:
            f, h, g = f * self.scale_f, h * self.scale_h, g * self.scale_g
        return Values(f, h, self._with_bounds(g, y))

    def derivatives(self, y: Tensor) -> Derivatives:
        """f, h, c and their first derivatives."""
        return self._derivatives(y, self.program.first(y, self.theta))

    def _derivatives(self, y: Tensor, first: First) -> Derivatives:
        f, gradient, h, Jh, g, Jg = first
        if self.scaled:
            f, gradient = f * self.scale_f, gradient * self.scale_f.unsqueeze(-1)
            h, Jh = h * self.scale_h, Jh * self.scale_h.unsqueeze(-1)
            g, Jg = g * self.scale_g, Jg * self.scale_g.unsqueeze(-1)
        if self.free is not None:
            columns = self.free.unsqueeze(1)
            gradient, Jh, Jg = gradient * self.free, Jh * columns, Jg * columns
        return Derivatives(f, h, self._with_bounds(g, y), gradient, Jh, Jg)

    def _with_bounds(self, g: Tensor, y: Tensor) -> Tensor:
        if not len(self.columns):
            return g
        return torch.cat((g, self.sigma * (y[:, self.columns] - self.bound) - self.absent), 1)

    def hessian(self, y: Tensor, lam: Tensor, z: Tensor) -> Tensor:
        """Of the scaled Lagrangian, ``(B, n, n)``; the identity in place of fixed variables."""
        mu = z[:, : self.program.m]
        if self.scaled:
            weight = self.scale_f.unsqueeze(-1)
            lam, mu = lam * self.scale_h / weight, mu * self.scale_g / weight
            H = self.program.hessian(y, self.theta, lam, mu) * weight.unsqueeze(-1)
        else:
            H = self.program.hessian(y, self.theta, lam, mu)
        if self.free is not None:
            H = H * self.free.unsqueeze(1) * self.free.unsqueeze(2) + torch.diag_embed(1 - self.free)
        return H

    def pull(self, Jg: Tensor, w: Tensor) -> Tensor:
        """``Jc'w``, ``(B, n)``."""
        m = self.program.m
        product = (w[:, None, :m] @ Jg).squeeze(1)
        return product.index_add(1, self.columns, self.sigma * w[:, m:]) if len(self.columns) else product

    def push(self, Jg: Tensor, d: Tensor) -> Tensor:
        """``Jc d``, ``(B, k)``."""
        product = (Jg @ d.unsqueeze(-1)).squeeze(-1)
        return torch.cat((product, self.sigma * d[:, self.columns]), 1) if len(self.columns) else product

    def weigh(self, H: Tensor, Jg: Tensor, w: Tensor) -> Tensor:
        """``H + Jc' diag(w) Jc``, a new tensor."""
        m = self.program.m
        H = torch.baddbmm(H, (Jg * w[:, :m].unsqueeze(-1)).mT, Jg) if m else H.clone()
        if len(self.columns):
            H.diagonal(dim1=1, dim2=2).add_(self.bound_weights(w))
        return H

    def bound_weights(self, w: Tensor) -> Tensor:
        """What the bounds add to the diagonal of ``Jc' diag(w) Jc``, ``(B, n)``."""
        weights = w.new_zeros(len(w), self.program.n)
        if not len(self.columns):
            return weights
        return weights.index_add_(1, self.columns, self.sigma.square() * w[:, self.program.m :])

    def bound_rows(self, batch: int) -> Tensor:
        """The Jacobian of the bound rows, ``(B, b, n)``."""
        J = self.sigma.new_zeros(batch, len(self.columns), self.program.n)
        if not len(self.columns):
            return J
        J.scatter_(2, self.columns.expand(len(J), -1).unsqueeze(-1), self.sigma.unsqueeze(-1))
        return J

    def multipliers(self, y: Tensor, lam: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``lam, mu, z`` of the functions as given."""
        m, weight = self.program.m, self.scale_f.unsqueeze(-1)
        lam, mu = lam * self.scale_h / weight, z[:, :m] * self.scale_g / weight
        bounds = torch.zeros_like(y).index_add(1, self.columns, self.sigma * z[:, m:] / weight)
        if self.free is not None:
            slope = self.program.gradient(y, self.theta, lam, mu)
            bounds = torch.where(self.free > 0, bounds, -slope)
        return lam, mu, bounds

    def scaled_multipliers(self, lam: Tensor, mu: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The reverse: ``lam`` and the z of all rows of c, nonnegative."""
        weight = self.scale_f.unsqueeze(-1)
        bounds = (self.sigma * z[:, self.columns]).clamp(min=0) * weight
        return lam * weight / self.scale_h, torch.cat((mu * weight / self.scale_g, bounds), 1)


def _inset(bound: Tensor, width: Tensor) -> Tensor:
    return _INSIDE * torch.minimum(bound.abs().clamp(min=1.0), width)


def _scale(gradients: Tensor) -> Tensor:
    """Powers of two, at most 1, that bring the largest entry of each row below 100."""
    size = gradients.abs().amax(-1) if gradients.shape[-1] else gradients.sum(-1)
    size = torch.where(size.isfinite(), size, 1.0).clamp(min=_LARGE_GRADIENT) / _LARGE_GRADIENT
    return torch.exp2(-torch.log2(size).ceil()).clamp(min=2.0**-27)

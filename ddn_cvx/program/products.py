"""Products with the derivatives of a nonlinear program at one point, by reverse passes through graphs made once."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.program.nonlinear import NonlinearProgram, Theta


class Products:
    """Products with the Hessian of the Lagrangian and with the Jacobians at one point ``y (B, n)``, ``lam (B, p)``,
    ``mu (B, m)``.

    Each product is one reverse pass; no gradients flow.
    """

    def __init__(self, program: NonlinearProgram, y: Tensor, theta: Theta, lam: Tensor, mu: Tensor):
        with torch.enable_grad():
            self._point = y.detach().requires_grad_()
            f, h, g = program.values(self._point, theta.detach())
            self._constraints = torch.cat((h, g), -1)
            lagrangian = f + (self._constraints * torch.cat((lam, mu), -1).detach()).sum(-1)
            self._slope = _slope(lagrangian, self._point)
            # <w, J v> is linear in w, so its gradient with respect to w is J v: two reverse passes, one of them here.
            self._weights = torch.zeros_like(self._constraints).detach().requires_grad_()
            self._pulled = _slope(self._constraints * self._weights, self._point)

    def hessian(self, v: Tensor) -> Tensor:
        """``H v``, ``(B, n)``."""
        return _again(self._slope, self._point, v)

    def jacobian(self, v: Tensor) -> Tensor:
        """``J v``, equalities first, ``(B, p + m)``."""
        return _again(self._pulled, self._weights, v)

    def transposed(self, w: Tensor) -> Tensor:
        """``J' w``, ``(B, n)``."""
        return _again(self._constraints, self._point, w)


def _slope(out: Tensor, point: Tensor) -> Tensor:
    """The gradient of the sum, with its graph."""
    if not out.requires_grad:
        return torch.zeros_like(point)
    (found,) = torch.autograd.grad(out.sum(), point, create_graph=True, materialize_grads=True)
    return found


def _again(out: Tensor, point: Tensor, weights: Tensor) -> Tensor:
    """``weights`` times the Jacobian of ``out``, whose graph is kept for the next."""
    if not out.requires_grad or not out.numel():
        return torch.zeros_like(point)
    (found,) = torch.autograd.grad(out, point, weights, retain_graph=True, materialize_grads=True)
    return found

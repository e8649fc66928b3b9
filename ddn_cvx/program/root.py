"""Square systems of equations: one structure, many instances.

    F(y; θ) = 0,   y and F of n entries;   for a fixed point of a map f   F = f(y; θ) - y

A ``RootProgram`` holds a function and a size, no values. Its function takes a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddn_cvx.program.nonlinear import Theta

DENSE_LIMIT = 64
"""Systems with at most this many equations are linearised as matrices, larger ones by products."""


class RootProgram:
    """``F(y; θ) = 0`` for a batch of parameters.

    Parameters
    ----------
    n : int
        Unknowns, and equations.
    equations : callable
        ``y (B, n), θ -> F (B, n)``; torch, differentiable. An element's values depend on its own row only.
    is_map : bool
        F is ``f(y) - y`` for a map f, so that ``y + F(y)`` is worth trying, and F has the units of y.
    """

    def __init__(self, n: int, equations: Callable[[Tensor, Theta], Tensor], is_map: bool):
        self.n, self.is_map = n, is_map
        self._equations = equations

    @property
    def is_dense(self) -> bool:
        """Whether Jacobians are formed."""
        return self.n <= DENSE_LIMIT

    def residual(self, y: Tensor, theta: Theta) -> Tensor:
        """``F (B, n)``; plain torch, also inside ``torch.func`` transforms."""
        return self._equations(y, theta) if len(y) else torch.zeros_like(y)

    def linearise(self, y: Tensor, theta: Theta) -> Linearised:
        """F and the products with its Jacobian at ``y`` (B, n), as constants."""
        return Linearised(self, y, theta)


class Linearised:
    """``F`` and the products with ``J = dF/dy`` at one point, from one evaluation that is kept.

    Attributes
    ----------
    F : Tensor (B, n)
    """

    def __init__(self, program: RootProgram, y: Tensor, theta: Theta):
        with torch.enable_grad():
            self._point = y.detach().requires_grad_()
            self._traced = program.residual(self._point, theta.detach())
        self.F = self._traced.detach()
        self._probe: Tensor | None = None

    def pull(self, w: Tensor) -> Tensor:
        """``J'w`` (B, n): one reverse pass."""
        if not self._traced.requires_grad:
            return torch.zeros_like(w)
        (found,) = torch.autograd.grad(self._traced, self._point, w, retain_graph=True, materialize_grads=True)
        return found

    def push(self, v: Tensor) -> Tensor:
        """``J v`` (B, n): ``J'w`` is linear in w, and its derivative along v is what is asked."""
        if not self._traced.requires_grad:
            return torch.zeros_like(v)
        if self._probe is None:
            with torch.enable_grad():
                self._probe = torch.zeros_like(self.F, requires_grad=True)
                (self._pulled,) = torch.autograd.grad(
                    self._traced, self._point, self._probe, create_graph=True, materialize_grads=True
                )
        if not self._pulled.requires_grad:
            return torch.zeros_like(v)
        (found,) = torch.autograd.grad(self._pulled, self._probe, v, retain_graph=True, materialize_grads=True)
        return found

    def matrix(self) -> Tensor:
        """``J`` (B, n, n), n reverse passes in one."""
        batch, n = self.F.shape
        if not self._traced.requires_grad or not batch:
            return self.F.new_zeros(batch, n, n)
        rows = torch.eye(n, dtype=self.F.dtype, device=self.F.device).unsqueeze(1).expand(n, batch, n)
        return torch.vmap(self.pull)(rows).transpose(0, 1)

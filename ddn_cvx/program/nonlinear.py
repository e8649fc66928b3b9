"""The nonlinear program: one structure, many instances.

    minimise  f(y; θ)   subject to  h(y; θ) = 0,  g(y; θ) <= 0,  lower(θ) <= y <= upper(θ)

with the Lagrangian ``L = f + λ'h + μ'g``; a point is stationary if ``grad L + z = 0`` with ``μ >= 0``, ``μ'g = 0`` and
``z`` the signed multipliers of the bounds: positive at an upper bound, negative at a lower one, zero between.

A ``NonlinearProgram`` holds functions and sizes, no values. Its functions take a whole batch, and derivatives cost one
evaluation and one or two batched reverse passes: a Jacobian or Hessian built by nested functional transforms spends
tens of times longer in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ddn_cvx.kernels.tape import Tape
from ddn_cvx.program.tape import Tapes, alike, derivatives, pack, pulled

TOGETHER = 2**18
"""Numbers that the rows of a Jacobian which are computed together may read."""
DENSE_LIMIT = 1000
"""Programs with n + p + m at most this many variables and constraints are handled with matrices, others by products."""
CREDIBLE = 1e-6
"""Relative difference of two ways to compute the same value that is rounding."""


@dataclass(frozen=True)
class Theta:
    """What the functions of a program depend on besides ``y``.

    A tensor is either one value for each element of the batch, or shared by all of them (the weights of a network, a
    captured constant), and then it is never copied.
    """

    tensors: tuple[Tensor, ...]
    """``(B, *shape)`` where ``batched``, else ``(*shape)``."""
    batched: tuple[bool, ...]

    def take(self, rows: Tensor) -> Theta:
        """The elements ``rows`` (k,) int64, or a mask (B,) bool, of the batch."""
        return self._map(lambda t: t[rows])

    def tile(self, copies: int) -> Theta:
        """The batch ``copies`` times, one after another: element ``i * B + b`` is element ``b``."""
        return self._map(lambda t: t.repeat(copies, *(1,) * (t.ndim - 1)))

    def detach(self) -> Theta:
        """The same numbers without their history."""
        return Theta(tuple(t.detach() for t in self.tensors), self.batched)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Theta:
        pairs = zip(self.tensors, self.batched, strict=True)
        return Theta(tuple(change(t) if own else t for t, own in pairs), self.batched)

    def follow(self) -> Theta:
        """Copies that require grad."""
        return Theta(tuple(t.detach().clone().requires_grad_() for t in self.tensors), self.batched)

    @property
    def requires_grad(self) -> bool:
        """Whether any of the tensors does."""
        return any(t.requires_grad for t in self.tensors)


class First(NamedTuple):
    """Values and first derivatives at B points."""

    f: Tensor
    """``(B,)``."""
    gradient: Tensor
    """``(B, n)``."""
    h: Tensor
    """``(B, p)``."""
    Jh: Tensor
    """``(B, p, n)``."""
    g: Tensor
    """``(B, m)``."""
    Jg: Tensor
    """``(B, m, n)``."""


Evaluate = Callable[[Tensor, Theta], tuple[Tensor, Tensor, Tensor]]
"""``y (B, n), θ -> f (B,), h (B, p), g (B, m)``."""
Box = Callable[[Theta], tuple[Tensor, Tensor]]
"""``θ -> lower, upper``, each broadcasting to ``(B, n)``."""


class Loss(Protocol):
    """What residuals cost."""

    def value(self, r: Tensor) -> Tensor:
        """``rho(r)``, elementwise."""

    def weight(self, r: Tensor) -> Tensor:
        """``rho'(r) / r``, elementwise."""


class Residuals(NamedTuple):
    """An objective that is ``sum(loss(residual))``, for solvers that know what to do with it."""

    residual: Callable[[Tensor, Theta], Tensor]
    """``y (B, n), θ -> (B, k)``."""
    loss: Loss | None
    """Half the square, if None."""


class NonlinearProgram:
    """``minimise f  s.t.  h = 0, g <= 0, lower <= y <= upper`` for a batch of parameters.

    Every method takes ``y`` (B, n), ``lam`` (B, p), ``mu`` (B, m) and a ``Theta`` of the same batch. Results carry
    gradients when grad mode is on and an argument requires them.

    Parameters
    ----------
    n, p, m : int
        Variables, equalities, inequalities.
    evaluate : callable
        ``(y, θ) -> f, h, g`` for the whole batch; torch, differentiable. An element's values depend on its own row only.
    box : callable, optional
        ``θ -> lower, upper``, infinite where there is no bound.
    residuals : Residuals, optional
        Of what the objective is the sum, if it is one.
    """

    def __init__(
        self, n: int, p: int, m: int, evaluate: Evaluate, box: Box | None = None, residuals: Residuals | None = None
    ):
        self.n, self.p, self.m, self.residuals = n, p, m, residuals
        self.has_bounds = box is not None
        self._evaluate, self._box = evaluate, box
        self._tapes = Tapes()

    @property
    def is_dense(self) -> bool:
        """Whether Jacobians and Hessians are formed."""
        return self.n + self.p + self.m <= DENSE_LIMIT

    def values(self, y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        """``f (B,), h (B, p), g (B, m)``; plain torch, also inside ``torch.func`` transforms."""
        if not len(y):
            return y.new_zeros(0), y.new_zeros(0, self.p), y.new_zeros(0, self.m)
        return self._evaluate(y, theta)

    def tape(self, y: Tensor, theta: Theta, values: tuple[Tensor, Tensor, Tensor] | None = None) -> Tape | None:
        """Values and derivatives as code that needs no Python, if it has the values of the functions at ``y`` (B, n), which
        may be known already.

        There is none for what is not in double precision and on the CPU, is too large, or cannot be traced
        (``why_no_tape``). Once there is one, ``first`` and ``hessian`` use it where no gradient is asked for; a solver or
        a layer asks for it at the start of each solve, since the functions may have changed.
        """
        return self._tapes.confirm(self, y, theta, values)

    def credible(self, y: Tensor, theta: Theta, first: First) -> Tensor:
        """Whether torch has the values at ``y`` that a tape gave, ``(B,)`` bool: in a tape zero times infinity is zero."""
        if self._tapes.known(y, theta) is None:
            return torch.ones_like(y[:, 0], dtype=torch.bool)
        with torch.no_grad():
            values = self.values(y, theta)
        pairs = zip((first.f, first.h, first.g), values, strict=True)
        return torch.stack([alike(a, b, CREDIBLE) for a, b in pairs]).all(0)

    @property
    def why_no_tape(self) -> list[str]:
        """Why there is no tape for the parameters met so far, if so."""
        return list(self._tapes.refused.values())

    def bounds(self, theta: Theta, like: Tensor) -> tuple[Tensor, Tensor]:
        """``lower, upper``, ``(B, n)`` each with the batch, dtype and device of ``like`` (B, n)."""
        if self._box is None:
            infinite = torch.full_like(like, torch.inf, requires_grad=False)
            return -infinite, infinite
        if not len(like):
            return torch.zeros_like(like), torch.zeros_like(like)
        lower, upper = self._box(theta)
        return lower.expand_as(like), upper.expand_as(like)

    def lagrangian(self, y: Tensor, theta: Theta, lam: Tensor, mu: Tensor) -> Tensor:
        """``f + λ'h + μ'g``, ``(B,)``, without the bounds; plain torch, also inside ``torch.func`` transforms."""
        f, h, g = self.values(y, theta)
        return f + (lam * h).sum(-1) + (mu * g).sum(-1)

    def first(self, y: Tensor, theta: Theta) -> First:
        """Values, gradient and Jacobians."""
        traced = None if _wants_graph(y, theta) else self._tapes.known(y, theta)
        if traced is None:
            return self.first_by_torch(y, theta)
        d = derivatives(self, traced.tape, pack(self, y, theta), 1)
        return First(d.f, d.gradient, d.h, d.Jh, d.g, d.Jg)

    def first_by_torch(self, y: Tensor, theta: Theta) -> First:
        """The same by torch's own derivatives, whether there is a tape or not."""
        keep = _wants_graph(y, theta)
        with torch.enable_grad():
            point = _leaf(y, keep)
            f, h, g = self.values(point, theta)
            stacked = torch.cat((f.unsqueeze(-1), h, g), -1)
            J = _rows(stacked, point, keep, _size(y, theta))
        if not keep:
            f, h, g = f.detach(), h.detach(), g.detach()
        p = self.p
        return First(f, J[:, 0], h, J[:, 1 : 1 + p], g, J[:, 1 + p :])

    def gradient(self, y: Tensor, theta: Theta, lam: Tensor, mu: Tensor) -> Tensor:
        """``grad L = grad f + Jh'λ + Jg'μ``, ``(B, n)``, without forming a Jacobian."""
        keep = _wants_graph(y, theta, lam, mu)
        with torch.enable_grad():
            point = _leaf(y, keep)
            return _grad(self.lagrangian(point, theta, lam, mu).sum(), point, keep)

    def hessian(self, y: Tensor, theta: Theta, lam: Tensor, mu: Tensor) -> Tensor:
        """Hessian of the Lagrangian, ``(B, n, n)``, symmetric."""
        traced = None if _wants_graph(y, theta, lam, mu) else self._tapes.known(y, theta)
        if traced is None:
            return self.hessian_by_torch(y, theta, lam, mu)
        return derivatives(self, traced.tape, pack(self, y, theta, lam, mu), 2).H

    def hessian_by_torch(self, y: Tensor, theta: Theta, lam: Tensor, mu: Tensor) -> Tensor:
        """The same by torch's own derivatives, whether there is a tape or not."""
        keep = _wants_graph(y, theta, lam, mu)
        with torch.enable_grad():
            point = _leaf(y, keep)
            slope = _grad(self.lagrangian(point, theta, lam, mu).sum(), point, create=True)
            H = _rows(slope, point, keep, _size(y, theta))
        return 0.5 * (H + H.mT) if keep else (H + H.mT).mul_(0.5)

    def pulled(
        self, y: Tensor, theta: Theta, lam: Tensor, mu: Tensor, u: Tensor, a: Tensor, b: Tensor
    ) -> list[Tensor] | None:
        """Derivatives of ``Σ u . grad L + a . h + b . g`` with respect to the parameters, if there is a tape for them and no
        graph is wanted."""
        traced = None if _wants_graph(y, theta, lam, mu, u, a, b) else self._tapes.known(y, theta)
        if traced is None or traced.pull is None:
            return None
        return pulled(self, traced.pull, pack(self, y, theta, lam, mu, u, a, b), theta)

    def hvp(self, y: Tensor, theta: Theta, lam: Tensor, mu: Tensor, v: Tensor) -> Tensor:
        """Hessian of the Lagrangian times ``v`` (B, n), without forming it."""
        keep = _wants_graph(y, theta, lam, mu, v)
        with torch.enable_grad():
            point = _leaf(y, keep)
            slope = _grad(self.lagrangian(point, theta, lam, mu).sum(), point, create=True)
            return _grad((slope * v).sum(), point, keep)

    def jvp(self, y: Tensor, theta: Theta, v: Tensor) -> tuple[Tensor, Tensor]:
        """``Jh v (B, p), Jg v (B, m)`` without forming the Jacobians (the transpose is ``gradient``)."""
        keep = _wants_graph(y, theta, v)
        with torch.enable_grad():
            point = _leaf(y, keep)
            _, h, g = self.values(point, theta)
            stacked = torch.cat((h, g), -1)
            # <w, J v> is linear in w, so its gradient with respect to w is J v: two reverse passes.
            w = torch.zeros_like(stacked, requires_grad=True)
            pulled = _grad((stacked * w).sum(), point, create=True)
            pushed = _grad((pulled * v).sum(), w, keep)
        return pushed[:, : self.p], pushed[:, self.p :]


def _wants_graph(y: Tensor, theta: Theta, *others: Tensor) -> bool:
    return torch.is_grad_enabled() and (y.requires_grad or theta.requires_grad or any(t.requires_grad for t in others))


def _leaf(y: Tensor, keep: bool) -> Tensor:
    """``y`` itself when derivatives are to be differentiated with respect to it, else a fresh leaf."""
    return y if keep and y.requires_grad else y.detach().requires_grad_()


def _grad(scalar: Tensor, point: Tensor, create: bool) -> Tensor:
    if not scalar.requires_grad:
        return torch.zeros_like(point)
    (found,) = torch.autograd.grad(scalar, point, create_graph=create, materialize_grads=True)
    return found


def _size(y: Tensor, theta: Theta) -> int:
    """Numbers that one evaluation reads."""
    return y.numel() + sum(t.numel() for t, own in zip(theta.tensors, theta.batched, strict=True) if own)


def _rows(out: Tensor, point: Tensor, create: bool, size: int) -> Tensor:
    """The Jacobian ``(B, r, n)`` of ``out`` (B, r), whose rows depend on the same rows of ``point`` (B, n).

    Several at a time, though not so many that what they need exceeds ``TOGETHER`` evaluations' worth of numbers.
    """
    batch, r = out.shape
    if not out.requires_grad or not r:
        return point.new_zeros(batch, r, point.shape[-1])
    one_hot = torch.eye(r, dtype=out.dtype, device=out.device).unsqueeze(1).expand(r, batch, r)

    def pull(e: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(out, point, e, create_graph=create, retain_graph=True, materialize_grads=True)
        return found

    return torch.vmap(pull, chunk_size=max(1, TOGETHER // max(size, 1)))(one_hot).transpose(0, 1)

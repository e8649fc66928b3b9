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
BLOCKS_FROM = 8
"""Variables from which on it pays to ask whether the Hessian is block-diagonal."""
TAPED = 2**17
"""Entries of a batch of Hessians up to which a tape is quicker than blocks, which take less memory."""
COUPLED = 1e-13
"""What couples two blocks of a Hessian, relative to its rows, if it is more than rounding."""
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
    """For each of them, whether it has one value for each element."""

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

    def largest(self, like: Tensor) -> Tensor:
        """The largest finite number that each element depends on, of the shape of ``like`` (B,)."""
        found = torch.zeros_like(like)
        for t, own in zip(self.tensors, self.batched, strict=True):
            if t.numel():
                size = torch.where(t.isfinite(), t.abs(), 0.0).reshape(len(like) if own else 1, -1).amax(-1)
                found = torch.maximum(found, size.to(found))
        return found

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
    visible : Tensor (n,) bool, optional
        The variables that somebody declared, all by default; the others are auxiliary (epigraphs), and need not be unique.
    matrices : bool, optional
        Whether Jacobians and Hessians are formed. Default: if there are at most ``DENSE_LIMIT`` variables and constraints.
    """

    def __init__(
        self,
        n: int,
        p: int,
        m: int,
        evaluate: Evaluate,
        box: Box | None = None,
        residuals: Residuals | None = None,
        visible: Tensor | None = None,
        matrices: bool | None = None,
    ):
        self.n, self.p, self.m, self.residuals, self.visible = n, p, m, residuals, visible
        self.is_dense = n + p + m <= DENSE_LIMIT if matrices is None else matrices
        """Whether Jacobians and Hessians are formed."""
        self.has_bounds = box is not None
        self._evaluate, self._box = evaluate, box
        self._block: int | None = None
        self._tapes = Tapes()

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

    def is_smooth(self, y: Tensor, theta: Theta) -> bool | None:
        """Whether the functions have no operation with a kink; None where there is no tape to tell."""
        traced = self._tapes.known(y, theta)
        return None if traced is None else not traced.bent

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
        traced = None if _wants_graph(y, theta, lam, mu) else self._tapes.known(y, theta, lam, mu)
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

    def curvature(self, y: Tensor, theta: Theta, lam: Tensor, mu: Tensor) -> Tensor:
        """The same ``(B, n, n)``, or its diagonal blocks ``(B, g, s, s)`` where groups of s consecutive variables do not
        interact; no gradients flow.

        Blocks cost s + 1 passes for n. Their size is read off the Hessian of one element, the first time; that there is
        nothing besides them is verified every time and for every element, by its product with one more vector.
        """
        taped = self._tapes.known(y, theta) is not None and self.n * y.numel() <= TAPED
        if self.n < BLOCKS_FROM or not len(y) or self._block == self.n or taped:
            return self.hessian(y, theta, lam, mu)
        with torch.no_grad():
            if self._block is None:
                usable = self.gradient(y, theta, lam, mu).isfinite().all(-1)
                one = usable.to(torch.int64).argmax(0, keepdim=True)
                self._block = _block_size(self.hessian(y[one], theta.take(one), lam[one], mu[one])[0])
            if self._block < self.n:
                blocks, coupled = self._blocks(y, theta, lam, mu, self._block)
                if not bool(coupled.any()):
                    return blocks
                self._block = self.n
            return self.hessian(y, theta, lam, mu)

    def _blocks(self, y: Tensor, theta: Theta, lam: Tensor, mu: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """``(B, g, s, s)``, and elements where something couples them ``(B,)`` bool."""
        order = torch.arange(self.n, device=y.device)
        # Any two entries of the last vector differ, by a golden section at least: what couples two blocks shows.
        probe = 1.0 + torch.frac(order * 0.6180339887498949).to(y.dtype)
        same = (order % size == torch.arange(size, device=y.device).unsqueeze(-1)).to(y.dtype)
        with torch.enable_grad():
            point = _leaf(y, False)
            slope = _grad(self.lagrangian(point, theta, lam, mu).sum(), point, create=True)
            products = _pulled(slope, point, torch.cat((same, probe.unsqueeze(0))), False, _size(y, theta))
        groups = products[:, :size].mT.reshape(len(y), -1, size, size)
        blocks = (groups + groups.mT).mul_(0.5)
        expected = blocks @ probe.reshape(-1, size, 1)
        scale = groups.abs().sum(-1, keepdim=True)
        scale = torch.maximum(scale, 1e-3 * scale.amax((1, 2), keepdim=True))
        off = (products[:, size].reshape(expected.shape) - expected).abs() > COUPLED * scale
        return blocks, off.flatten(1).any(-1)

    def pulled(
        self, y: Tensor, theta: Theta, lam: Tensor, mu: Tensor, u: Tensor, a: Tensor, b: Tensor
    ) -> list[Tensor] | None:
        """Derivatives of ``Σ u . grad L + a . h + b . g`` with respect to the parameters, if there is a tape for them and no
        graph is wanted."""
        traced = None if _wants_graph(y, theta, lam, mu, u, a, b) else self._tapes.known(y, theta, lam, mu, u, a, b)
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
    """The Jacobian ``(B, r, n)`` of ``out`` (B, r), whose rows depend on the same rows of ``point`` (B, n)."""
    return _pulled(out, point, torch.eye(out.shape[-1], dtype=out.dtype, device=out.device), create, size)


def _pulled(out: Tensor, point: Tensor, weights: Tensor, create: bool, size: int) -> Tensor:
    """``weights`` (k, r) times the Jacobian of ``out`` (B, r), ``(B, k, n)``.

    Several at a time, though not so many that what they need exceeds ``TOGETHER`` evaluations' worth of numbers.
    """
    batch, k = len(out), len(weights)
    if not out.requires_grad or not k:
        return point.new_zeros(batch, k, point.shape[-1])

    def pull(w: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(out, point, w, create_graph=create, retain_graph=True, materialize_grads=True)
        return found

    every, chunk = weights.unsqueeze(1).expand(k, *out.shape), max(1, TOGETHER // max(size, 1))
    if create:
        return torch.vmap(pull, chunk_size=chunk)(every).transpose(0, 1)
    found = point.new_empty(batch, k, point.shape[-1])
    for begin in range(0, k, chunk):
        found[:, begin : begin + chunk] = torch.vmap(pull)(every[begin : begin + chunk]).transpose(0, 1)
    return found


def _block_size(H: Tensor) -> int:
    """The size of the equal diagonal blocks of a matrix (n, n); n if there are none but the whole."""
    n = len(H)
    row, column = torch.nonzero(H, as_tuple=True)
    for size in range(1, n // 2 + 1):
        if n % size == 0 and bool((row // size == column // size).all()):
            return size
    return n

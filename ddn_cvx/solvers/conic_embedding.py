"""One iteration of the conic interior-point method, on the homogeneous embedding of Goulart & Chen (2024):

    Px + A'u + qτ = 0,   Ax + s - bτ = 0,   κ + q'x + b'u + x'Px / τ = 0,   s in K, z in K*, τ, κ >= 0,

with ``u = (y, z)`` the multipliers of the zero rows and of all others.  Where τ > 0 in the limit ``(x, s, u) / τ`` is a
solution; where κ > 0, u proves that there is no feasible point (``A'u = 0``, ``b'u < 0``) or x that the objective has no
bound (``Px = 0``, ``-Ax in K``, ``q'x < 0``).  Predictor and corrector (Mehrotra, 1992) share one factorisation.

``advance`` is the same sequence of kernels on the same shapes whatever the numbers are: it never makes a device wait for
the host, and may be captured in a graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddn_cvx.solvers.conic_cones import Cones
from ddn_cvx.solvers.conic_newton import Newton

FRACTION = 0.99
"""Part of the way to the boundary that a step goes at most."""


class Problem:
    """Equilibrated data of a batch: ``P (B, n, n)``, ``q (B, 1, n)``, ``A (B, m, n)`` and ``b (B, 1, m)`` in the order of
    the cones, which have p zero rows."""

    def __init__(self, P: Tensor, q: Tensor, A: Tensor, b: Tensor, cones: Cones):
        self.P, self.q, self.A, self.b, self.cones = P, q, A, b, cones
        self.p, (self.m, self.n) = cones.zero, A.shape[1:]
        self.E, self.h = A[:, : self.p], b[..., self.p :]
        self.Ct = A[:, self.p :].mT.contiguous()

    def take(self, rows: Tensor) -> Problem:
        """Some elements."""
        return Problem(self.P[rows], self.q[rows], self.A[rows], self.b[rows], self.cones)

    def parts(self, whole: Tensor) -> tuple[Tensor, ...]:
        """``x, u, s, τ, κ`` of iterates or steps ``(B, 1, n + m + m - p + 2)``."""
        return whole.split((self.n, self.m, self.m - self.p, 1, 1), 2)

    def inner(self, u: Tensor) -> Tensor:
        """z of u, or rows after the zero rows."""
        return u[..., self.p :]


class Arithmetic(NamedTuple):
    """How Newton steps are computed."""

    dtype: torch.dtype
    """Of the factors."""
    regularisation: float
    refinements: int


def start(problem: Problem, warm: Tensor | None, weight: float) -> Tensor:
    """The point on the central path of the cones themselves, or between that and ``warm``, which weighs ``weight``.

    ``warm`` is ``x, u, s`` ``(B, .)``; a cone that holds two points holds all between them, and one inside makes those
    inside (Skajaa, Andersen & Ye, 2013).  Elements of ``warm`` that are not finite are not used.
    """
    batch, n, p, m = len(problem.P), problem.n, problem.p, problem.m
    centre = problem.cones.centre(problem.q).expand(batch, 1, -1)
    free, one = problem.q.new_zeros(batch, 1, n + p), problem.q.new_ones(batch, 1, 1)
    cold = torch.cat((free, centre, centre, one, one), 2)
    if warm is None:
        return cold
    good = warm.isfinite().all(1)[:, None, None]
    near = weight * torch.where(good, warm[:, None], 0.0) + (1 - weight) * cold[..., :-2]
    degree = problem.cones.degree
    kappa = dot(near[..., n + p : n + m], near[..., n + m :]) / degree if degree else (1 - weight) ** 2 * one
    return torch.where(good, torch.cat((near, one, kappa), 2), cold)


def residuals(problem: Problem, whole: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The left sides of the three equations; ``Px`` and ``x'Px``."""
    x, u, s, tau, kappa = problem.parts(whole)
    Px = torch.bmm(x, problem.P)
    xPx = dot(Px, x)
    above = torch.baddbmm(torch.addcmul(Px, problem.q, tau), u, problem.A)
    below = torch.bmm(x, problem.A.mT) - problem.b * tau + pad(s, (problem.p, 0))
    return above, below, kappa + dot(problem.q, x) + dot(problem.b, u) + xPx / tau, Px, xPx


def advance(problem: Problem, whole: Tensor, arithmetic: Arithmetic) -> Tensor:
    """One iteration.

    A step solves the linearised equations for ``1 - σ`` of the residuals, ``HΔz + Δs = -d`` and ``κΔτ + τΔκ = -d_κ``.  It is
    ``(x1, u1) + Δτ (x2, u2)``, where the second part, for the right-hand side ``(-q, b)``, is that of a change of τ.
    """
    p, cones, refinements = problem.p, problem.cones, arithmetic.refinements
    x, u, s, tau, kappa = problem.parts(whole)
    z = problem.inner(u)
    above, below, last, Px, _ = residuals(problem, whole)
    mu = (dot(s, z) + tau * kappa) / (cones.degree + 1)
    W = cones.scaling(s, z)
    newton = Newton(problem.P, problem.E, cones.down(W, problem.Ct), arithmetic.regularisation, arithmetic.dtype)

    low = torch.cat((pad(s, (p, 0)) - below, problem.b), 1)
    dx, dy, dw = newton.solve(torch.cat((-above, -problem.q), 1), low[..., :p], cones.down(W, low[..., p:]), refinements)
    du = torch.cat((dy, cones.up(W, dw)), 2)
    x2, u2, w2 = dx[:, 1:], du[:, 1:], dw[:, 1:]
    gradient, away = problem.q + 2 * Px / tau, x2 - x / tau
    # Exactly the square of w2; more where dependent equalities contradict each other and have no exact solution.
    square = -dot(torch.bmm(x2, problem.P) + problem.q, x2) - dot(problem.b, u2)
    pivot = kappa / tau + dot(torch.bmm(away, problem.P), away) + torch.maximum(square, dot(w2, w2))

    def step(x1: Tensor, u1: Tensor, share: Tensor | float, d_kappa: Tensor) -> Tensor:
        dtau = (share * last - d_kappa / tau + dot(gradient, x1) + dot(problem.b, u1)) / pivot
        dx = x1 + dtau * x2
        # From the linear equation, which keeps the rounding of W out of it.
        ds = torch.baddbmm(problem.h * dtau - share * problem.inner(below), dx, problem.Ct, alpha=-1)
        return torch.cat((dx, u1 + dtau * u2, ds, dtau, -(d_kappa + kappa * dtau) / tau), 2)

    predictor = step(dx[:, :1], du[:, :1], 1.0, kappa * tau)
    _, au, a_s, atau, akappa = problem.parts(predictor)
    sigma = (1 - longest(problem, whole, predictor)) ** 3
    d = cones.target(W, s, z, sigma * mu, a_s, problem.inner(au))
    low = (sigma - 1) * below
    x1, y1, w1 = newton.solve((sigma - 1) * above, low[..., :p], cones.down(W, low[..., p:] + d), refinements)
    corrector = step(x1, torch.cat((y1, cones.up(W, w1)), 2), 1 - sigma, kappa * tau + akappa * atau - sigma * mu)
    whole = whole + FRACTION * longest(problem, whole, corrector) * corrector
    # The embedding is homogeneous: the larger of τ and κ stays one.
    return whole / torch.maximum(whole[..., -2:-1], whole[..., -1:])


def longest(problem: Problem, whole: Tensor, step: Tensor) -> Tensor:
    """The step to the boundary ``(B, 1, 1)``, at most one."""
    _, u, s, tau, kappa = problem.parts(whole)
    _, du, ds, dtau, dkappa = problem.parts(step)
    limit = torch.maximum(-dtau / tau, -dkappa / kappa).clamp_(min=1.0).reciprocal()
    return problem.cones.step(limit, s, ds, problem.inner(u), problem.inner(du))


class Errors(NamedTuple):
    """How far an iterate is from a solution, and from each kind of certificate, relative, ``(B, 1, 1)``."""

    solution: Tensor
    infeasible: Tensor
    unbounded: Tensor


def errors(problem: Problem, whole: Tensor) -> Errors:
    """The larger of residuals and gap; infinity where what would be a certificate has the wrong sign."""
    x, u, s, tau, _ = problem.parts(whole)
    above, below, _, Px, xPx = residuals(problem, whole)
    Atu, Axs = above - Px - problem.q * tau, below + problem.b * tau
    qx, bu, half = dot(problem.q, x), dot(problem.b, u), xPx / (2 * tau)
    size_x = torch.maximum(torch.maximum(_largest(Px), _largest(Atu)) / tau, _largest(problem.q)) + 1
    size_u = torch.maximum(_largest(s) / tau, _largest(problem.b)) + 1
    # The gap may be zero by chance: then complementarity is not.
    gap = torch.maximum((qx + bu + 2 * half).abs(), dot(s, problem.inner(u)) / tau) / tau
    value = torch.minimum((qx + half).abs(), (bu + half).abs()) / tau + 1
    infeasible, unbounded = _largest(Atu), torch.maximum(_largest(Px), _largest(Axs))
    return Errors(
        torch.maximum(torch.maximum(_largest(above) / size_x, _largest(below) / size_u) / tau, gap / value),
        torch.where(bu < 0, infeasible / -bu, torch.inf),
        torch.where(qx < 0, unbounded / -qx, torch.inf),
    )


def dot(a: Tensor, b: Tensor) -> Tensor:
    """``(B, 1, 1)``."""
    return (a * b).sum(2, keepdim=True)


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(2, keepdim=True) if t.shape[2] else t.new_zeros(*t.shape[:2], 1)

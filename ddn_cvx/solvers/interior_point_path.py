"""Mehrotra's predictor-corrector method for a batch of scaled quadratic programs, from the first iterate to the last.

``interior_point`` prepares the data and proves the answers; here is the way between. The Newton systems have the matrix

    K = [[P + delta I, E', G'], [E, -delta I, 0], [G, 0, -(S/Y) - delta I]]

but the true residual on the right, so that delta costs speed of convergence and no accuracy (Altman & Gondzio 1999;
Friedlander & Orban 2012).  It makes K factorisable whatever the ranks of P, E and G, and bounds the weights of the
condensed matrix  H = P + delta I + E'E + G'WG,  W = 1 / (S/Y + delta).  The factors are Cholesky's, of H and of the Schur
complement  E H^-1 E'.  Where P is diagonal and the rows of G are bounds, H is diagonal too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular

from ddn_cvx.solution import Status
from ddn_cvx.solvers.deadline import expired

_FIRST_TEST = 3  # the first iteration that may be the last one where there are inequalities
_FIRST_REFINEMENT = 5  # S/Y spans too few orders of magnitude before this iteration for refinement to matter
_PATIENCE = 3  # tests without progress after which an inaccurate iterate is the best there will be
_START = 0.1  # products s y at the start, for data of order one
_FAR = 1e6  # norm of an iterate that is diverging
_FLOOR = 1e-6  # what counts as zero next to data of order one when residuals are made relative
_CEILING = 1e3  # norm of an iterate beyond which residuals are no longer taken relative to it
_GROWTH = 1e3  # how much a step aims to increase a product s y at most; some of bounds far away become tiny
_MARGIN = (1e-4, 0.03)  # least and largest part of the way to the boundary that a step leaves
_ROUNDING = 1e-14  # relative increase of a diagonal that outweighs the rounding of its Cholesky factor


class Limits(NamedTuple):
    """When an element ends."""

    iterations: int
    tolerance: float
    """Residual and complementarity at which it stops."""
    solved: float
    """Largest residual of one that is solved, though it stopped improving."""
    inaccurate: float
    """Largest residual of an iterate that is kept at all."""


class Newton:
    """The data of a batch and the factors of K.

    Vectors are rows ``(B, 1, .)``, as a row times a matrix is the fastest of batched products: ``[x | y_E | y_G]``, and
    ``c = [q | -e | -h]`` of the optimality conditions ``[Px + E'y_E + G'y_G | Ex | Gx] + c = [0 | 0 | -s]``.  Of a
    diagonal P there is only the diagonal, a row too.  How V and the solutions of triangular systems lie in memory
    decides which kernel multiplies them, and only these layouts round alike for all sizes of the batch.
    """

    def __init__(self, P: Tensor, A: Tensor, c: Tensor, p: int, separable: bool, delta: float):
        self.P, self.A, self.c, self.p, self.separable, self.delta = P, A, c, p, separable, delta
        self.n, self.m, self.size = P.shape[2], A.shape[1] - p, c.abs() + _FLOOR
        self.inner, self.end = self.n + p, self.n + p + self.m
        self.E, self.G, self.At, self.Gt = A[:, :p], A[:, p:], A.mT, A[:, p:].mT
        if separable:
            self.base, self.squares = P + delta, self.G * self.G
        else:
            self.base = torch.baddbmm(P, self.E.mT, self.E)
            self.base.diagonal(dim1=1, dim2=2).add_(delta)

    def take(self, rows: Tensor) -> Newton:
        return Newton(self.P[rows], self.A[rows], self.c[rows], self.p, self.separable, self.delta)

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        Px = x * self.P if self.separable else torch.bmm(x, self.P)
        return torch.cat((torch.baddbmm(Px, y, self.A), torch.bmm(x, self.At)), 2)

    def factor(self, ratio: Tensor) -> None:
        """Factorise for ``ratio = s / y``, ``(B, 1, m)``."""
        self.weights = w = (ratio + self.delta).reciprocal_()
        if self.separable:
            self.half = torch.baddbmm(self.base, w, self.squares).rsqrt_()
            V = (self.E * self.half).mT.contiguous()
        else:
            H = torch.baddbmm(self.base, self.Gt, self.G * w.mT)
            H.diagonal(dim1=1, dim2=2).mul_(1 + _ROUNDING)
            self.L = cholesky_ex(H).L
            V = solve_triangular(self.L.mT, self.E, upper=True, left=False).mT if self.p else self.L
        if self.p:
            S = torch.bmm(V.mT, V)
            S.diagonal(dim1=1, dim2=2).mul_(1 + _ROUNDING).add_(self.delta)
            self.V, self.C = V, cholesky_ex(S).L

    def solve(self, r: Tensor) -> Tensor:
        """``K^-1 r``."""
        f, e, g = r.split((self.n, self.p, self.m), 2)
        u = torch.baddbmm(f, g * self.weights, self.G)
        if self.separable:
            u.mul_(self.half)
        else:
            u = torch.baddbmm(u, e, self.E) if self.p else u
            u = solve_triangular(self.L, u.mT, upper=False).mT
        if self.p:
            e = torch.baddbmm(e, u, self.V, beta=-1)
            e = torch.cholesky_solve(e.mT, self.C).mT
            u = torch.baddbmm(u, e, self.V.mT, alpha=-1)
        x = u.mul_(self.half) if self.separable else solve_triangular(self.L.mT, u.mT, upper=True).mT
        g = torch.baddbmm(g, x, self.Gt, beta=-1).mul_(self.weights)
        return torch.cat((x, e, g) if self.p else (x, g), 2)


class Iterate:
    """``[x | y_E | y_G | s]`` as one tensor, ``(B, 1, .)``, and views of its parts."""

    def __init__(self, newton: Newton, whole: Tensor):
        n, inner, end = newton.n, newton.inner, newton.end
        self.whole, self.both = whole, whole[..., :end]
        self.x, self.dual, self.y, self.s = whole[..., :n], whole[..., n:end], whole[..., inner:end], whole[..., end:]


class _Record(NamedTuple):
    """What is known of elements, ``(B, 1, .)``; ``kept`` is the iterate of residual ``best``, if that is small at all."""

    row: Tensor
    live: Tensor
    iterations: Tensor
    waited: Tensor
    best: Tensor
    kept: Tensor


def _start(newton: Newton) -> Iterate:
    """The iterate with ``s - y_G = h - Gx``, as Newton's first step wants it, and all products ``s y`` the same."""
    newton.factor(torch.ones_like(newton.c[..., newton.inner :]))
    z = newton.solve(newton.c.neg())
    y = z[..., newton.inner :]
    root = (0.25 * y * y).add_(_START).sqrt_()
    s = root - 0.5 * y
    y.mul_(0.5).add_(root)
    return Iterate(newton, torch.cat((z, s), 2))


def iterate(newton: Newton, limits: Limits) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the central path; returns ``[x | y | s]`` ``(B, 1, .)``, and status and iterations ``(B,)``."""
    z, last, limit = _start(newton), limits.iterations, limits.inaccurate
    shrinks = z.whole.device.type == "cpu"
    tests = range(_FIRST_TEST if newton.m else 0, last, 1 if shrinks else 2)  # a test waits for the device
    row = torch.arange(len(z.whole), device=z.whole.device)[:, None, None]
    nothing = torch.zeros_like(row)
    best, kept = z.x.new_full(row.shape, limit), torch.full_like(z.whole, torch.nan)
    result = record = _Record(row, nothing == 0, nothing, nothing, best, kept)
    for iteration in range(last + 1):
        residual = newton.product(z.x, z.dual).add_(newton.c)
        residual[..., newton.inner :].add_(z.s)
        products = z.s * z.y
        gap = products.sum(2, keepdim=True)
        over = iteration == last or expired()
        if iteration in tests or over:
            merit = merit_of(newton, z, residual, gap)
            if over or not float(torch.minimum(merit, record.best).amin()) >= limit:
                record = _judge(record, z, merit, iteration, limits)
                left = record.live.flatten().nonzero().squeeze(1)
                ended = over or not len(left)
                if ended or (shrinks and 2 * len(left) <= len(record.row)):
                    rows = record.row.flatten()
                    result = _Record(*(all_.index_copy(0, rows, some) for all_, some in zip(result, record, strict=True)))
                    if ended:
                        break
                    newton, z = newton.take(left), Iterate(newton, z.whole[left])
                    record = _Record(*(t[left] for t in record))
                    residual, products, gap = residual[left], products[left], gap[left]
        _advance(newton, z, residual, products, gap, refine=iteration >= _FIRST_REFINEMENT)
    status = torch.where(result.live, int(Status.ITERATION_LIMIT), int(Status.NUMERICAL_ERROR))
    status = status.masked_fill_(result.best < limit, int(Status.INACCURATE))
    status.masked_fill_(result.best <= limits.solved, int(Status.SOLVED))
    return result.kept, status.flatten(), result.iterations.flatten()


def merit_of(newton: Newton, z: Iterate, residual: Tensor, gap: Tensor) -> Tensor:
    """The largest relative residual, row by row, or the relative gap, ``(B, 1, 1)``; NaN where the iterate diverges."""
    sizes = z.both.abs()
    size_x = sizes[..., : newton.n].amax(2, keepdim=True)
    size_y = sizes[..., newton.n :].amax(2, keepdim=True) if newton.end > newton.n else size_x
    scale = newton.size + size_x.clamp(max=_CEILING)
    scale[..., : newton.n].add_(size_y.clamp(max=_CEILING))
    scale[..., newton.inner :].add_(z.s)
    values = newton.c * z.both
    primal, both = values[..., : newton.n].sum(2, keepdim=True), values.sum(2, keepdim=True)
    objective = torch.maximum(primal.abs(), (both - primal).abs()).add_(_FLOOR)
    merit = torch.maximum((residual.abs() / scale).amax(2, keepdim=True), gap / objective)
    return merit.masked_fill_(torch.maximum(size_x, size_y) > _FAR, torch.nan)


def _judge(record: _Record, z: Iterate, merit: Tensor, iteration: int, limits: Limits) -> _Record:
    """Keep the best iterates, and end the elements that are solved, stuck or lost."""
    better = (merit < record.best) & record.live
    best, kept = torch.where(better, merit, record.best), torch.where(better, z.whole, record.kept)
    waited = (record.waited + 1).masked_fill_(better, 0)
    stuck = (waited >= _PATIENCE) & (best < limits.inaccurate)
    live = record.live & ~((best <= limits.tolerance) | stuck | merit.isnan())
    return _Record(record.row, live, torch.where(record.live, iteration, record.iterations), waited, best, kept)


def _advance(newton: Newton, z: Iterate, residual: Tensor, products: Tensor, gap: Tensor, refine: bool) -> None:
    """One predictor-corrector step, in place.

    In relative terms, ``rho = dy / y``, the predictor ``s dy + y ds = -s y`` has ``ds / s = -1 - rho``, and the corrector
    ``s dy + y ds = -phi s y``,  ``phi = 1 + (dy ds)_predictor / (s y) - sigma mu / (s y)``,  has ``ds / s = -phi - rho``.
    """
    n, inner = newton.n, newton.inner
    if not newton.m:
        newton.factor(z.s)
        z.both.add_(newton.solve(residual.neg()))
        return
    inverse = z.y.reciprocal()
    ratio = z.s * inverse
    newton.factor(ratio)
    r = residual.neg()
    r[..., inner:].add_(z.s)
    rho = (newton.solve(r)[..., inner:] * inverse).add_(0.5)
    far = rho.abs().amax(2, keepdim=True)  # the predictor reaches the boundary at 1 / (1/2 + max |rho + 1/2|)
    short = (far - 0.5).clamp_(min=0).div_(far + 0.5)
    sigma = short * short * short
    centring = (gap * (sigma / newton.m) / products).clamp_(max=_GROWTH)
    phi = rho.mul_(rho).neg_().add_(1.25).sub_(centring)
    r = residual * (sigma - 1)
    r[..., inner:].addcmul_(z.s, phi)
    step = newton.solve(r)
    if refine:
        dual = step[..., n:]
        r.sub_(newton.product(step[..., :n], dual))
        r[..., inner:].addcmul_(dual[..., newton.p :], ratio)
        step.add_(newton.solve(r))
    rho = step[..., inner:] * inverse
    psi = phi.add_(rho)
    fraction = 1 - sigma.clamp_(*_MARGIN)
    length = fraction / torch.maximum(torch.maximum(psi, rho.neg_()).amax(2, keepdim=True), fraction)
    z.both.addcmul_(step, length)
    z.s.addcmul_(psi.mul_(z.s), length, value=-1)

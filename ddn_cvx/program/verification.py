"""What the answer of a solver is worth: multipliers for a point that came without, and whether it is a minimum.

The first needs the active constraints only; the second asks for curvature along them, by eigenvalues where there are
matrices and by a Lanczos process on products where there are none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.linalg.blocks import keep, row_sizes, to_dense
from ddn_cvx.program.active_kkt import NEARLY_FLAT, ActiveKKT, ProductKKT
from ddn_cvx.program.nonlinear import First, NonlinearProgram, Theta
from ddn_cvx.program.optimality import Active, Judged, State, judge, largest, probe
from ddn_cvx.program.products import Products

NEAR = 1e-5
"""Relative distance at which a constraint of a point without multipliers may be active."""
FLAT = 1e-9
"""Curvature, relative to the largest entry of the Hessian, that counts as none."""
DIRECTIONS = 8
"""Of hardly any curvature, that are looked along at most."""
FALL = 1e-10
"""How much lower, relative, a point must be to count."""
ROUNDS = 20
"""Times that multipliers with the wrong sign are left out of large programs."""
LANCZOS = 30
"""Products that the search for negative curvature takes."""
LANCZOS_ROUNDING = 1e-6
"""Curvature, relative to the largest seen, that may be an error of products and projections."""


def multipliers(program: NonlinearProgram, theta: Theta, y: Tensor, ok: Tensor) -> tuple[State, First]:
    """Least-squares multipliers: those that leave least of stationarity, among the smallest, with the signs they must have;
    and the derivatives at the point.

    Constraints near to active take part; one whose multiplier comes out with the wrong sign is left out, and the rest is
    solved for again.
    """
    zero = torch.zeros_like(y)
    lam, mu, z = y.new_zeros(len(y), program.p), y.new_zeros(len(y), program.m), zero
    start = judge(program, theta, State(y, lam, mu, zero), bent=False)
    if not (program.p or program.m or program.has_bounds):
        return start.state, start.first
    first, size = start.first, 1.0 + largest(y).unsqueeze(-1)
    dense = program.is_dense
    steep = largest(first.Jg) if dense else program.jvp(y, theta, probe(y))[1].abs()
    g = (first.g >= -NEAR * size * torch.where(steep > 0, steep, 1.0)).to(y.dtype)
    above, below = (start.upper - y <= NEAR * size).to(y.dtype), (y - start.lower <= NEAR * size).to(y.dtype)
    fixed = start.lower >= start.upper
    box = torch.where(above > 0, above, -below)
    right = (-first.gradient.unsqueeze(-1), *(torch.zeros_like(t).unsqueeze(-1) for t in (lam, mu, zero)))
    for _ in range(1 + program.m + program.n if dense else ROUNDS):
        kkt: ActiveKKT | ProductKKT
        if dense:
            kkt = ActiveKKT(torch.ones_like(y)[..., None, None], first.Jh, first.Jg, Active(g, box), ok)
        else:
            kkt = ProductKKT(program, theta, start.state, Active(g, box), ok, unit=True)
        _, lam, mu, z = (t.squeeze(-1) for t in kkt.solve(*right))
        wrong_g, wrong_box = (mu < 0) & (g > 0), (z * box < 0) & ~fixed
        if not bool((wrong_g.any(-1) | wrong_box.any(-1)).any()):
            break
        # Only the worst is left out: the others may come out right without it. Large programs cannot afford that.
        worst = torch.cat((torch.where(wrong_g, mu.abs() * steep, 0.0), torch.where(wrong_box, z.abs(), 0.0)), -1)
        drop = (worst > 0) & ((worst == worst.amax(-1, keepdim=True)) | (not dense))
        g = torch.where(drop[:, : program.m], 0.0, g)
        box = torch.where(drop[:, program.m :], 0.0, box)
    return State(y, lam, mu.clamp(min=0), z), first


def descends(program: NonlinearProgram, theta: Theta, point: Judged) -> Tensor:
    """Whether a stationary point is no minimum, ``(B,)`` bool: the Lagrangian bends down along the active constraints, or is
    flat in some direction and falls nearby, as at an inflection.

    Curved constraints let a minimum fall by the fourth power of the step as well; there only a short one is tried. Programs
    too large for matrices are searched for a direction that bends down, and may have one that is not found.
    """
    if not program.is_dense:
        return _lowest_curvature(program, theta, point) < -LANCZOS_ROUNDING
    bends, ways = _curvatures(point)
    y, lam, mu, _ = point.state
    straight = (point.active.all.g == 0).all(-1) if program.p == 0 else torch.zeros_like(bends[:, 0], dtype=torch.bool)
    length = torch.where(straight, 3e-2, 1e-3) * (1.0 + largest(y))
    few = min(program.n, DIRECTIONS)
    steps = (length[:, None, None] * ways[..., :few]).movedim(2, 0)
    ends = y + torch.cat((steps, -steps))
    nearly = (bends[:, :few] < NEARLY_FLAT).mT.repeat(2, 1)
    inside = ((ends >= point.lower) & (ends <= point.upper)).all(-1) & nearly
    with torch.no_grad():
        here = program.lagrangian(y, theta, lam, mu)
        many = (t.repeat(2 * few, 1) for t in (lam, mu))
        there = program.lagrangian(ends.flatten(0, 1), theta.tile(2 * few), *many).reshape(2 * few, -1)
    falls = inside & (there < here - FALL * (1.0 + here.abs()))
    return (bends[:, 0] < -100 * FLAT) | falls.any(0)


def _curvatures(point: Judged) -> tuple[Tensor, Tensor]:
    """Eigenvalues of H along all active constraints, ascending and relative to its largest entry, ``(B, n)``, and their
    directions, the columns of ``(B, n, n)``; the last ones, normal to the constraints, are large."""
    active = point.active.all
    free = 1.0 - active.box.abs()
    A = torch.cat((point.first.Jh, point.first.Jg * active.g.unsqueeze(-1)), 1) * free.unsqueeze(-2)
    length = A.norm(dim=-1, keepdim=True)
    A = A / torch.where(length > 0, length, 1.0)
    H = keep(to_dense(point.H), free)
    values, vectors = torch.linalg.eigh(A.mT @ A + torch.diag_embed(1.0 - free))
    normal = values > FLAT
    tangent = torch.where(normal.unsqueeze(-2), 0.0, vectors)
    scale = largest(row_sizes(H)).unsqueeze(-1)
    scale = torch.where(scale > 0, scale, 1.0)
    outside = torch.diag_embed(torch.where(normal, 2.0, 0.0))
    bends, ways = torch.linalg.eigh(tangent.mT @ (H / scale.unsqueeze(-1)) @ tangent + outside)
    return bends, tangent @ ways


@torch.no_grad()
def _lowest_curvature(program: NonlinearProgram, theta: Theta, point: Judged) -> Tensor:
    """An upper bound of the lowest eigenvalue of H along all active constraints, relative to the largest seen, ``(B,)``: of
    a Lanczos process on products, with full orthogonalisation."""
    y, lam, mu, _ = point.state
    active = point.active.all
    kkt = ProductKKT(program, theta, point.state, active, torch.ones_like(point.primal, dtype=torch.bool), unit=True)
    products = Products(program, y, theta, lam, mu)
    none = [t.new_zeros(*t.shape, 1) for t in (lam, mu, y)]
    free = 1.0 - active.box.abs()

    def tangent(v: Tensor) -> Tensor:
        v = free * v
        return kkt.solve(v.unsqueeze(-1), *none)[0].squeeze(-1) if program.p + program.m else v

    start = tangent(probe(y))
    steps = min(LANCZOS, program.n)
    basis, T = y.new_zeros(len(y), steps, program.n), y.new_zeros(len(y), steps, steps)
    length = start.norm(dim=-1, keepdim=True)
    v = torch.where(length > LANCZOS_ROUNDING * program.n**0.5, start / length, 0.0)
    for k in range(steps):
        basis[:, k] = v
        w = tangent(products.hessian(v))
        T[:, k, k] = (w * v).sum(-1)
        for _ in range(2):
            w = w - (basis.mT @ (basis @ w.unsqueeze(-1))).squeeze(-1)
        length = w.norm(dim=-1, keepdim=True)
        v = torch.where(length > LANCZOS_ROUNDING * T.abs().amax((1, 2)).unsqueeze(-1), w / length, 0.0)
        if k + 1 < steps:
            T[:, k, k + 1] = T[:, k + 1, k] = torch.where(v.any(-1), length.squeeze(-1), 0.0)
    values = torch.linalg.eigvalsh(T)
    return values[:, 0] / values.abs().amax(-1).clamp(min=torch.finfo(y.dtype).tiny)

"""Krylov methods for a batch of symmetric systems known by their products alone, for orders of 10^4 to 10^6.

Vectors are ``(B, n)`` and an operator maps ``(B, n)`` to ``(B, n)``, row by row.  Elements that are done stand still while
the others go on; whether any is left is asked every few iterations only.  Memory is a handful of vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]

_FARTHEST = 1e3  # how much longer than the steps before a step along negative curvature may be
_CHECK = 5  # iterations between two questions to the device


class Steihaug(NamedTuple):
    """A truncated solution ``x (B, n)``, and whether it ended on a direction of negative curvature, ``(B,)``."""

    x: Tensor
    negative: Tensor


def cg(
    apply: Operator,
    b: Tensor,
    tolerance: Tensor | float = 1e-10,
    iterations: int | None = None,
    precondition: Operator | None = None,
    radius: Tensor | None = None,
) -> Steihaug:
    """Conjugate gradients on ``A x = b``, truncated at negative curvature and at a trust region (Steihaug 1983).

    Parameters
    ----------
    apply : callable
        ``v -> A v``; A symmetric.
    b : Tensor (B, n)
    tolerance : Tensor (B,) or float
        Stop where ``|b - A x| <= tolerance |b|``.
    iterations : int, optional
        At most this many (default 2 n).
    precondition : callable, optional
        ``r -> M^-1 r``, M positive definite.
    radius : Tensor (B,), optional
        Stop where ``|x|`` reaches it, on it.

    Returns
    -------
    Steihaug
        At negative curvature x ends with a step as if the curvature had the other sign: downhill as well.
    """
    x, r = torch.zeros_like(b), b
    z = r if precondition is None else precondition(r)
    d, rz = z, (r * z).sum(-1)
    limit = (tolerance * b.norm(dim=-1)) ** 2
    live = r.square().sum(-1) > limit
    negative = torch.zeros_like(live)
    for iteration in range(2 * b.shape[-1] if iterations is None else iterations):
        if iteration % _CHECK == 0 and not bool(live.any()):
            break
        Ad = apply(d)
        curvature = (d * Ad).sum(-1)
        bad = live & ~(curvature > torch.finfo(b.dtype).eps * d.square().sum(-1))
        step = torch.where(live, rz / curvature.abs().maximum(torch.finfo(b.dtype).eps * rz), 0.0)
        if iteration:  # a last step, along the negative curvature, downhill too
            size = _FARTHEST * x.norm(dim=-1) / d.norm(dim=-1).clamp(min=torch.finfo(b.dtype).tiny)
            step = torch.where(bad, torch.minimum(step, size), step)
        new = x + step.unsqueeze(-1) * d
        if radius is not None:
            outside = live & ((new.square().sum(-1) >= radius**2) | bad)
            new = torch.where(outside.unsqueeze(-1), x + _to_sphere(x, d, radius).unsqueeze(-1) * d, new)
            live = live & ~outside
        negative, live = negative | bad, live & ~bad
        x = new
        r = r - step.unsqueeze(-1) * Ad
        live = live & (r.square().sum(-1) > limit)
        z = r if precondition is None else precondition(r)
        new_rz = (r * z).sum(-1)
        d = torch.where(live.unsqueeze(-1), z + (new_rz / torch.where(rz == 0, 1.0, rz)).unsqueeze(-1) * d, d)
        rz = torch.where(live, new_rz, rz)
    return Steihaug(x, negative)


def _to_sphere(x: Tensor, d: Tensor, radius: Tensor) -> Tensor:
    """The positive t with ``|x + t d| = radius``."""
    a, half, c = d.square().sum(-1), (x * d).sum(-1), x.square().sum(-1) - radius**2
    root = (half.square() - a * c).clamp(min=0).sqrt()
    a = torch.where(a > 0, a, 1.0)
    return torch.where(half > 0, -c / (half + root).clamp(min=torch.finfo(x.dtype).tiny), (root - half) / a)


def minres(apply: Operator, b: Tensor, tolerance: float = 1e-10, iterations: int | None = None) -> Tensor:
    """``x (B, n)`` of least ``|A x - b|``, A symmetric, of any inertia (Paige & Saunders 1975).

    Where A is singular and b in its range this is the solution of least norm.  Stops where the residual is
    ``tolerance |b|``, at the latest after ``iterations`` products (default 5 n).
    """
    tiny = torch.finfo(b.dtype).tiny
    beta = b.norm(dim=-1)
    limit = tolerance * beta
    live = beta > 0
    x, zero = torch.zeros_like(b), torch.zeros_like(b)
    v_old, v = zero, b / beta.clamp(min=tiny).unsqueeze(-1)
    w_old, w = zero, zero
    c_old, s_old, c, s = torch.ones_like(beta), torch.zeros_like(beta), torch.ones_like(beta), torch.zeros_like(beta)
    eta, coupling = beta, torch.zeros_like(beta)
    for iteration in range(5 * b.shape[-1] if iterations is None else iterations):
        if iteration % _CHECK == 0 and not bool(live.any()):
            break
        Av = apply(v)
        alpha = (v * Av).sum(-1)
        next_v = Av - alpha.unsqueeze(-1) * v - coupling.unsqueeze(-1) * v_old
        next_coupling = next_v.norm(dim=-1)
        rho_1 = c * alpha - c_old * s * coupling
        rho = torch.hypot(rho_1, next_coupling)
        rho_2, rho_3 = s * alpha + c_old * c * coupling, s_old * coupling
        # a zero pivot: A is singular and nothing is left to gain
        live = live & (rho > torch.finfo(b.dtype).eps * (alpha.abs() + coupling + next_coupling))
        safe = torch.where(live, rho, 1.0)
        c_old, s_old, c_new, s_new = c, s, rho_1 / safe, next_coupling / safe
        w_new = (v - rho_3.unsqueeze(-1) * w_old - rho_2.unsqueeze(-1) * w) / safe.unsqueeze(-1)
        x = torch.where(live.unsqueeze(-1), x + (c_new * eta).unsqueeze(-1) * w_new, x)
        eta = -s_new * eta
        w_old, w, c, s = w, w_new, c_new, s_new
        v_old, v, coupling = v, next_v / next_coupling.clamp(min=tiny).unsqueeze(-1), next_coupling
        live = live & (eta.abs() > limit)
    return x


class MatrixFreeSaddle:
    """``[[H, A'], [A, 0]]`` by products: ``hvp (B, n) -> (B, n)``, ``push = A v (B, p)``, ``pull = A'w (B, n)``.

    Solves by MINRES after scaling the rows of the second block by ``1 / scale``.
    """

    def __init__(self, hvp: Operator, push: Operator, pull: Operator, n: int, scale: float = 1.0):
        self.hvp, self.push, self.pull, self.n, self.scale = hvp, push, pull, n, scale

    def apply(self, z: Tensor) -> Tensor:
        """K z for the scaled K, ``(B, n + p)``."""
        u, omega = z[:, : self.n], z[:, self.n :]
        return torch.cat((self.hvp(u) + self.pull(omega) / self.scale, self.push(u) / self.scale), 1)

    def solve(
        self, top: Tensor, low: Tensor, tolerance: float = 1e-10, iterations: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(u, omega)`` with top ``(B, n)`` and low ``(B, p)``; least norm where K is singular."""
        z = minres(self.apply, torch.cat((top, low / self.scale), 1), tolerance, iterations)
        return z[:, : self.n], z[:, self.n :] / self.scale

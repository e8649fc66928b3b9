"""GMRES for a batch of systems without symmetry, known by their products alone (Saad & Schultz 1986)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddn_cvx.linalg.iterative import Operator

_CHECK = 5  # iterations between two questions to the device


class Krylov(NamedTuple):
    """A solution ``x (B, n)`` and the relative residual ``|b - A x| / |b|`` that it leaves, ``(B,)``."""

    x: Tensor
    residual: Tensor


def gmres(
    apply: Operator, b: Tensor, tolerance: Tensor | float = 1e-10, iterations: int | None = None, restart: int = 50
) -> Krylov:
    """``A x = b`` with at most ``iterations`` products (default 4 n, at least 100), restarted every ``restart`` of them.

    Parameters
    ----------
    apply : callable
        ``v (B, n) -> A v (B, n)``, row by row.
    b : Tensor (B, n)
    tolerance : Tensor (B,) or float
        Of the relative residual.
    """
    n = b.shape[-1]
    left = max(100, 4 * n) if iterations is None else iterations
    size = b.norm(dim=-1)
    limit = tolerance * size
    x, r = torch.zeros_like(b), b
    while left > 0:
        steps = min(restart, left, n)
        change = _cycle(apply, r, limit, steps)
        left -= steps
        new = x + change
        fresh = b - apply(new)
        better = fresh.norm(dim=-1) < r.norm(dim=-1)  # NaN is not
        gain = fresh.norm(dim=-1) < 0.99 * r.norm(dim=-1)
        x = torch.where(better.unsqueeze(-1), new, x)
        r = torch.where(better.unsqueeze(-1), fresh, r)
        if not bool((gain & (r.norm(dim=-1) > limit)).any()):
            break
    return Krylov(x, r.norm(dim=-1) / torch.where(size > 0, size, 1.0))


def _cycle(apply: Operator, r: Tensor, limit: Tensor, steps: int) -> Tensor:
    """The best step in the Krylov space of r; elements that are done, or whose space is exhausted, go on with zeros."""
    batch, n = r.shape
    beta = r.norm(dim=-1)
    tiny = torch.finfo(r.dtype).tiny
    V = r.new_zeros(batch, steps + 1, n)
    H = r.new_zeros(batch, steps + 1, steps)
    V[:, 0] = r / beta.clamp(min=tiny).unsqueeze(-1)
    weights = r.new_zeros(batch, 0)
    for j in range(steps):
        w = apply(V[:, j])
        before = w.norm(dim=-1)
        basis = V[:, : j + 1]
        for _ in range(2):  # the second pass restores orthogonality
            h = (basis @ w.unsqueeze(-1)).squeeze(-1)
            w = w - (h.unsqueeze(1) @ basis).squeeze(1)
            H[:, : j + 1, j] += h
        rest = w.norm(dim=-1)
        exhausted = ~(rest > 10 * torch.finfo(r.dtype).eps * before)
        H[:, j + 1, j] = torch.where(exhausted, 0.0, rest)
        V[:, j + 1] = torch.where(exhausted.unsqueeze(-1), 0.0, w / rest.clamp(min=tiny).unsqueeze(-1))
        if (j + 1) % _CHECK == 0 or j + 1 == steps:
            weights, residual = _least_squares(H[:, : j + 2, : j + 1], beta)
            if not bool((residual > limit).any()):
                break
    return (weights.unsqueeze(1) @ V[:, : weights.shape[1]]).squeeze(1)


def _least_squares(H: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise ``|beta e_1 - H w|``; columns of zeros get a weight that multiplies a vector of zeros."""
    Q, R = torch.linalg.qr(H)
    right = Q[:, 0] * beta.unsqueeze(-1)
    pivots = R.diagonal(dim1=1, dim2=2)
    dead = pivots.abs() <= torch.finfo(H.dtype).eps * R.abs().amax((1, 2)).unsqueeze(-1)
    R = R + torch.diag_embed(torch.where(dead, 1.0 - pivots, 0.0))
    right = torch.where(dead, 0.0, right)
    w = torch.linalg.solve_triangular(R, right.unsqueeze(-1), upper=True).squeeze(-1)
    target = torch.zeros_like(H[:, :, 0])
    target[:, 0] = beta
    return w, (target - (H @ w.unsqueeze(-1)).squeeze(-1)).norm(dim=-1)

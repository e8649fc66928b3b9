"""Robust pooling: the average that outliers do not move.

    y = argmin_u  sum_i phi(|u - x_i|; alpha)

with the penalties of Gould, Hartley & Campbell (TPAMI 2022), table 1. Near zero each is half a square; beyond alpha the
first grows fast, pseudo-Huber and Huber linearly, Welsch and the truncated quadratic not at all. The last two are not
convex: the best minimum found from several starts is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, TorchProblem
from ddn_cvx.nodes.checks import check_shapes
from ddn_cvx.nodes.entry import Entry


class Penalty(NamedTuple):
    """phi for alpha = 1 as a function of the squared distance s, and twice its derivative: the weight of a point."""

    value: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]
    convex: bool


PENALTIES = {
    "quadratic": Penalty(lambda s: 0.5 * s, torch.ones_like, True),
    "pseudo-huber": Penalty(lambda s: (1 + s).sqrt() - 1, lambda s: (1 + s).rsqrt(), True),
    "huber": Penalty(
        lambda s: torch.where(s < 1, 0.5 * s, s.clamp(min=1).sqrt() - 0.5), lambda s: s.clamp(min=1).rsqrt(), True
    ),
    "welsch": Penalty(lambda s: -torch.expm1(-0.5 * s), lambda s: torch.exp(-0.5 * s), False),
    "truncated": Penalty(lambda s: 0.5 * s.clamp(max=1), lambda s: (s < 1).to(s.dtype), False),
}
_ROUNDS, _SWEEPS = 20, 6  # at most so many rounds of sweeps, after each of which what stands still is left alone
_STILL = 1e-4  # a step in units of alpha from which the layer's Newton steps take over


class RobustPooling(nn.Module):
    """``x (*batch, N)`` -> ``(*batch)``, or with ``dimension=d`` ``x (*batch, N, d)`` -> ``(*batch, d)``; any N >= 1.

    Parameters
    ----------
    penalty : str
        quadratic, pseudo-huber, huber, welsch or truncated.
    alpha : float
        The distance beyond which a point counts less, in the unit of x.
    dimension : int, optional
        Pool vectors of this dimension by their Euclidean distance; else every number of the batch is pooled for itself.
    starts : int
        Where phi is not convex, reweighting starts from so many coordinatewise quantiles: more find a better minimum.

    Raises
    ------
    DeclarationError
        An unknown penalty, alpha not above zero, or fewer starts than one.
    InputError
        x has another shape.

    Examples
    --------
    >>> RobustPooling("truncated")(torch.tensor([[1.0, 1.2, 0.8, 50.0]]))
    tensor([1.])
    """

    def __init__(self, penalty: str = "pseudo-huber", alpha: float = 1.0, dimension: int | None = None, starts: int = 3):
        super().__init__()
        if penalty not in PENALTIES:
            raise DeclarationError(f"penalty must be one of {', '.join(PENALTIES)}, got {penalty!r}.")
        if not alpha > 0:
            raise DeclarationError(f"alpha must be above 0, got {alpha!r}.")
        if starts < 1:
            raise DeclarationError(f"starts must be at least 1, got {starts!r}.")
        phi = PENALTIES[penalty]
        self.dimension = dimension
        self.layer = DeclarativeLayer(
            TorchProblem(
                (1 if dimension is None else dimension,),
                objective=lambda y, x: alpha**2 * phi.value((y - x).square().sum(-1) / alpha**2).sum(),
                solve=partial(_reweight, phi, alpha, 1 if phi.convex else starts),
                parameters="batched",
                stationary=phi.convex,  # a minimum then, even without curvature, as between two groups of points
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """The pooled values, in the dtype of x."""
        check_shapes(x=(x, ("N",) if self.dimension is None else ("N", self.dimension)))
        points = x.unsqueeze(-1) if self.dimension is None else x
        pooled: Tensor = self.layer(points.reshape(-1, *points.shape[-2:])).reshape(*points.shape[:-2], points.shape[-1])
        return pooled.squeeze(-1) if self.dimension is None else pooled


def _reweight(phi: Penalty, alpha: float, starts: int, x: Tensor) -> Tensor:
    """Iteratively reweighted means, ``x (B, N, d)``, from coordinatewise quantiles.

    A penalty that is not convex starts from order statistics, where some weight is above zero, a convex one from the median.
    """
    ranks = (torch.arange(starts, device=x.device) + 0.5) / starts * (x.shape[-2] - 1)
    ordered = x.nan_to_num().sort(-2).values
    low, high = ordered[:, ranks.floor().long()], ordered[:, ranks.ceil().long()]
    y = (0.5 * (low + high) if phi.convex else low).transpose(0, 1).unsqueeze(-2)  # (starts, B, 1, d)
    moving = torch.arange(len(x), device=x.device)
    for _ in range(_ROUNDS):
        points, at = x[moving], y[:, moving]
        for _ in range(_SWEEPS):
            weight = phi.weight((at - points).square().sum(-1, keepdim=True) / alpha**2)
            total = weight.sum(-2, keepdim=True)
            last, at = at, torch.where(total > 0, (weight * points).sum(-2, keepdim=True) / total, at)
        y[:, moving] = at
        moving = moving[((at - last).abs() > _STILL * alpha).any(-1).any(-1).any(0)]
        if not len(moving):
            break
    cost = phi.value((y - x).square().sum(-1) / alpha**2).sum(-1)  # (starts, B)
    best = cost.argmin(0).reshape(1, -1, 1).expand(1, -1, x.shape[-1])
    return y.squeeze(-2).gather(0, best).squeeze(0)


# ---------------------------------------------------------------- the catalogue's entries


def _sample(batch: int, generator: torch.Generator, *dimension: int) -> tuple[Tensor]:
    """Nine points around zero and three far away."""
    x = torch.randn(batch, 12, *dimension, generator=generator, dtype=torch.float64)
    x[:, :3] = 6 + 3 * x[:, :3]
    return (x,)


def _search(penalty: str, x: Tensor) -> Tensor:
    """Every number to 1e-3 on a grid, then Brent's method around the best."""
    from scipy.optimize import minimize_scalar

    phi = PENALTIES[penalty].value

    def best(points: Tensor) -> float:
        def cost(u: float) -> float:
            return float(phi((u - points).square()).sum())

        grid = torch.linspace(float(points.min()), float(points.max()), 20001, dtype=x.dtype)
        at = float(grid[phi((grid.unsqueeze(-1) - points).square()).sum(-1).argmin()])
        width = float(grid[1] - grid[0])
        return minimize_scalar(cost, bounds=(at - width, at + width), method="bounded", options={"xatol": 1e-12}).x

    return torch.tensor([best(points) for points in x], dtype=x.dtype)


def _descend(penalty: str, x: Tensor) -> Tensor:
    """BFGS from the coordinatewise median of each element's points."""
    from scipy.optimize import minimize

    phi = PENALTIES[penalty].value

    def best(points: Tensor) -> Tensor:
        def cost(u: np.ndarray) -> tuple[float, np.ndarray]:
            at = torch.from_numpy(u).requires_grad_()
            value = phi((at - points).square().sum(-1)).sum()
            return value.item(), torch.autograd.grad(value, at)[0].numpy()

        found = minimize(cost, points.median(0).values.numpy(), jac=True, method="BFGS", options={"gtol": 1e-10})
        return torch.from_numpy(found.x)

    return torch.stack([best(points) for points in x])


def _entry(penalty: str, vectors: bool) -> Entry:
    if vectors:
        reference = partial(_descend, penalty)
    else:
        reference = partial(torch.mean, dim=-1) if penalty == "quadratic" else partial(_search, penalty)
    return Entry(
        name=f"robust-pooling-{penalty}" + ("-vectors" if vectors else ""),
        title=f"robust pooling of {'vectors' if vectors else 'numbers'} with the {penalty} penalty",
        kind="nonlinear",
        source="Gould, Hartley & Campbell, TPAMI 2022",
        build=partial(RobustPooling, penalty, dimension=2 if vectors else None, starts=9),
        sample=(lambda batch, generator: _sample(batch, generator, 2)) if vectors else _sample,
        reference=reference,
        example="01_robust_pooling",
        tolerance=1e-6,  # of the search
        tags=frozenset({"pooling", penalty} | (set() if vectors else {"any size"})),
    )


ENTRIES = (
    *(_entry(penalty, vectors=False) for penalty in PENALTIES),
    _entry("pseudo-huber", vectors=True),
    _entry("welsch", vectors=True),
)

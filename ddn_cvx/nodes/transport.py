"""Entropic optimal transport: how to move shares of one kind to shares of another at least cost, and not too sharply.

    P = argmin  sum_ij P_ij C_ij + t sum_ij P_ij log P_ij    subject to   P 1 = a,  P'1 = b,  P >= 0

Cuturi, "Sinkhorn distances" (NeurIPS 2013); as a declarative node in Gould, Hartley & Campbell (TPAMI 2022). It is solved
as its dual, convex and without constraints, in which no logarithm of a vanishing P_ij occurs: with ``X = -C / t``,

    (f, g) = argmin  sum_ij exp(X_ij - f_i - g_j) + a'f + b'g,      P_ij = exp(X_ij - f_i - g_j),      g_0 = 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, TorchProblem
from ddn_cvx.nodes.checks import check_shapes, check_values
from ddn_cvx.nodes.entry import Entry, Inputs

_SWEEPS, _STEPS, _LEVELS, _ENOUGH = 2, 12, 12, 1e-11


class OptimalTransport(nn.Module):
    """``(cost (*batch, m, n), a (*batch, m), b (*batch, n))`` -> the plan ``P (*batch, m, n)``, which sums to one.

    The rows of P sum to a, its columns to b. Of a and b only the ratios count: they are divided by their sums.

    Parameters
    ----------
    m, n : int
        Sizes of a and b.
    temperature : float
        t, in the unit of the cost: the lower, the nearer to the cheapest plan.

    Raises
    ------
    DeclarationError
        A size below one, m = n = 1, or a temperature not above zero.
    InputError
        Inputs of other shapes, or an element of a or b that is not above zero.
    SolverError
        Numbers that are not finite.

    Examples
    --------
    >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> OptimalTransport(2, 2, temperature=0.1)(cost, torch.tensor([1.0, 3.0]), torch.ones(2))
    tensor([[0.2500, 0.0000],
            [0.2500, 0.5000]])
    """

    def __init__(self, m: int, n: int, temperature: float = 1.0):
        super().__init__()
        if min(m, n) < 1 or max(m, n) < 2:
            raise DeclarationError(f"m and n must be at least 1, and one of them 2, got {m!r} and {n!r}.")
        if not temperature > 0:
            raise DeclarationError(f"temperature must be above 0, got {temperature!r}.")
        self.m, self.n, self.temperature = m, n, temperature
        self.layer = dual_layer(m, n)

    def forward(self, cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """P, in the dtype of the cost."""
        m, n = self.m, self.n
        check_shapes(cost=(cost, (m, n)), a=(a, (m,)), b=(b, (n,)))
        a, b = (check_values(t, ~(t <= 0), "a and b must be above 0: leave out what has no share.") for t in (a, b))
        X = cost.double() / -self.temperature
        rows, columns = (m * t.double() / t.double().sum(-1, keepdim=True) for t in (a, b))  # rows of order one
        plan_: Tensor = plan(X, self.layer(X, rows, columns), m) / m
        return plan_.to(cost.dtype)


def dual_layer(m: int, n: int) -> DeclarativeLayer:
    """``(X (*batch, m, n), a (*batch, m), b (*batch, n)) -> (f, g_1, ...) (*batch, m + n - 1)``, for sums of a and b alike.

    Convex, so that any stationary point is the minimum, also where its Hessian is singular to rounding.
    """
    return DeclarativeLayer(
        TorchProblem(
            (m + n - 1,),
            objective=lambda y, X, a, b: plan(X, y, m).sum() + a @ y[:m] + b[1:] @ y[m:],
            solve=_follow,
            parameters=[(m, n), (m,), (n,)],
            stationary=True,
        )
    )


def plan(X: Tensor, y: Tensor, m: int) -> Tensor:
    """``exp(X_ij - f_i - g_j)`` for ``y = (f, g_1, ...)`` with m numbers f."""
    g = nn.functional.pad(y[..., m:], (1, 0))
    return torch.exp(X - y[..., :m].unsqueeze(-1) - g.unsqueeze(-2))


def _follow(X: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Sinkhorn's sweeps and Newton steps for ``X / 2^k``, ``X / 2^(k-1)``, ..., X, each from the potentials before."""
    m, n = X.shape[-2:]
    y = X.new_zeros(*X.shape[:-2], m + n - 1)
    spread = (X.amax((-1, -2)) - X.amin((-1, -2))).nan_to_num(0.0, 0.0)
    levels = int(spread.clamp(min=1.0).log2().ceil().clamp(max=_LEVELS).max()) if len(X) else 0
    for level in range(levels, -1, -1):
        part = X / 2.0**level
        y = _sweep(part, a, b, 2 * y)
        for step in range(_STEPS if level == 0 else _STEPS // 3):
            if step % 3 == 0 and bool((_slope(plan(part, y, m), a, b).abs() < _ENOUGH).all()):
                break
            y = _newton(part, a, b, y)
    return y


def _sweep(X: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """Alternately the best f for g and the best g for f."""
    m = X.shape[-2]
    g = nn.functional.pad(y[..., m:], (1, 0))
    for _ in range(_SWEEPS):
        f = (X - g.unsqueeze(-2)).logsumexp(-1) - a.log()
        g = (X - f.unsqueeze(-1)).logsumexp(-2) - b.log()
    return torch.cat((f + g[..., :1], g[..., 1:] - g[..., :1]), -1)


def _newton(X: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """The best of a Newton step, shorter ones and a sweep, by the largest error of a row or column sum."""
    m, n = X.shape[-2:]
    P = plan(X, y, m)
    H = torch.diag_embed(torch.cat((P.sum(-1), P.sum(-2)[..., 1:]), -1))
    H[..., :m, m:], H[..., m:, :m] = P[..., 1:], P[..., 1:].mT
    ridge = torch.eye(m + n - 1, dtype=X.dtype, device=X.device) * 1e-14
    L, _ = torch.linalg.cholesky_ex(H + ridge)
    step = torch.cholesky_solve(_slope(P, a, b).unsqueeze(-1), L).squeeze(-1)
    tried = torch.stack([y, *(y - length * step for length in (1.0, 0.5, 0.1)), _sweep(X, a, b, y)])
    error = _slope(plan(X, tried, m), a, b).abs().amax(-1).nan_to_num(torch.inf)
    best = error.argmin(0).unsqueeze(0).unsqueeze(-1).expand(1, *y.shape)
    return tried.gather(0, best).squeeze(0)


def _slope(P: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Of the dual objective, with the sign turned so that a step is subtracted."""
    return torch.cat((a - P.sum(-1), (b - P.sum(-2))[..., 1:]), -1)


# ---------------------------------------------------------------- the catalogue's entries


def _sample(batch: int, generator: torch.Generator) -> Inputs:
    cost = torch.randn(batch, 3, 4, generator=generator, dtype=torch.float64)
    a, b = (0.5 + torch.rand(batch, k, generator=generator, dtype=torch.float64) for k in (3, 4))
    return cost, a, b


def _pot(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The plan by the library POT where it is installed, else by Sinkhorn's iteration."""
    a, b = (t / t.sum(-1, keepdim=True) for t in (a, b))
    try:
        import ot
    except ImportError:
        X = -cost
        for _ in range(1000):
            X = X - X.logsumexp(-1, keepdim=True) + a.log().unsqueeze(-1)
            X = X - X.logsumexp(-2, keepdim=True) + b.log().unsqueeze(-2)
        return X.exp()
    rows = zip(a.numpy(), b.numpy(), cost.numpy(), strict=True)
    options = {"method": "sinkhorn_log", "numItermax": 20000, "stopThr": 1e-14}
    return torch.from_numpy(np.stack([ot.sinkhorn(*row, 1.0, **options) for row in rows]))


ENTRIES = (
    Entry(
        name="optimal-transport",
        title="entropic optimal transport between two sets of shares",
        kind="nonlinear",
        source="Cuturi, NeurIPS 2013; Gould, Hartley & Campbell, TPAMI 2022",
        build=lambda: OptimalTransport(3, 4, temperature=1.0),
        sample=_sample,
        reference=_pot,
        example="20_soft_clustering",
        tolerance=1e-10,
        tags=frozenset({"transport"}),
    ),
)

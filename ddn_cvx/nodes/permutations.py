"""Doubly stochastic matrices: permutations that can be learnt.

    Euclidean   P = argmin  1/2 |P - X / t|^2              subject to   P 1 = 1,  P'1 = 1,  P >= 0
    entropic    P = argmin  sum_ij P_ij (log P_ij - X_ij / t)   subject to the same

DeepPermNet (Santa Cruz, Fernando, Cherian & Gould, CVPR 2017) ends in the second, by Sinkhorn's iteration; Gould, Hartley &
Campbell (TPAMI 2022) give both as declarative nodes. As the temperature t falls P approaches the permutation of largest
``sum_ij P_ij X_ij``: the Euclidean projection reaches it, the entropic one does not. The entropic problem is solved as its
dual, convex and without constraints,

    (f, g) = argmin  sum_ij exp(X_ij / t - f_i - g_j) + sum_i f_i + sum_j g_j,      P_ij = exp(X_ij / t - f_i - g_j)

with ``g_0 = 0``, in which no logarithm of a vanishing P_ij occurs.
"""

from __future__ import annotations

import cvxpy as cp
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, InputError, TorchProblem
from ddn_cvx.nodes.entry import Entry

_SWEEPS, _STEPS, _LEVELS, _ENOUGH = 2, 12, 12, 1e-11


class DoublyStochastic(nn.Module):
    """``X (*batch, n, n)`` -> ``P (*batch, n, n)``, nonnegative with rows and columns that sum to one.

    Parameters
    ----------
    n : int
    regulariser : str
        entropic, with every ``P_ij`` above zero, or euclidean, with zeros.
    temperature : float
        t: the lower, the nearer to a permutation.

    Raises
    ------
    DeclarationError
        n below 2, another regulariser, or a temperature not above zero.
    InputError
        X is not ``(*batch, n, n)``.

    Notes
    -----
    Differences of X of a few thousand t are solved by following the solution as the temperature falls. Where P is a
    permutation to rounding the derivative is zero.

    Examples
    --------
    >>> DoublyStochastic(2, "euclidean")(torch.tensor([[[0.5, 0.0], [0.0, 0.0]]]))
    tensor([[[0.6250, 0.3750],
             [0.3750, 0.6250]]])
    """

    def __init__(self, n: int, regulariser: str = "entropic", temperature: float = 1.0):
        super().__init__()
        if n < 2:
            raise DeclarationError(f"n must be at least 2, got {n!r}.")
        if regulariser not in ("entropic", "euclidean"):
            raise DeclarationError(f"regulariser must be entropic or euclidean, got {regulariser!r}.")
        if not temperature > 0:
            raise DeclarationError(f"temperature must be above 0, got {temperature!r}.")
        self.n, self.entropic, self.temperature = n, regulariser == "entropic", temperature
        self.layer = _dual(n) if self.entropic else _projection(n)

    def forward(self, X: Tensor) -> Tensor:
        """P, in the dtype of X."""
        if X.shape[-2:] != (self.n, self.n):
            raise InputError(f"X must be (*batch, {self.n}, {self.n}), got {tuple(X.shape)}.")
        scaled = X / self.temperature
        out: Tensor = _transport(scaled.double(), self.layer(scaled.double())) if self.entropic else self.layer(scaled)
        return out.to(X.dtype)


def _projection(n: int) -> DeclarativeLayer:
    P, X = cp.Variable((n, n), nonneg=True), cp.Parameter((n, n), name="X")
    sums = [cp.sum(P, axis=1) == 1, cp.sum(P, axis=0)[1:] == 1]  # the first column follows
    return DeclarativeLayer(cp.Problem(cp.Minimize(0.5 * cp.sum_squares(P - X)), sums), [X], P)


def _dual(n: int) -> DeclarativeLayer:
    """Convex, so that any stationary point is the minimum, also where its Hessian is singular to rounding."""
    return DeclarativeLayer(
        TorchProblem(
            (2 * n - 1,),
            objective=lambda y, X: _transport(X, y).sum() + y.sum(),
            solve=_follow,
            parameters=[(n, n)],
            stationary=True,
        )
    )


def _transport(X: Tensor, y: Tensor) -> Tensor:
    """``exp(X_ij - f_i - g_j)`` for ``y = (f, g_1 ...)``."""
    n = X.shape[-1]
    g = nn.functional.pad(y[..., n:], (1, 0))
    return torch.exp(X - y[..., :n].unsqueeze(-1) - g.unsqueeze(-2))


def _follow(X: Tensor) -> Tensor:
    """Sinkhorn's sweeps and Newton steps for ``X / 2^k``, ``X / 2^(k-1)``, ..., X, each from the potentials before."""
    y = X.new_zeros(*X.shape[:-2], 2 * X.shape[-1] - 1)
    spread = (X.amax((-1, -2)) - X.amin((-1, -2))).nan_to_num(0.0, 0.0)
    levels = int(spread.clamp(min=1.0).log2().ceil().clamp(max=_LEVELS).max()) if len(X) else 0
    for level in range(levels, -1, -1):
        part = X / 2.0**level
        y = _sweep(part, 2 * y)
        for step in range(_STEPS if level == 0 else _STEPS // 3):
            if step % 3 == 0 and bool((_slope(_transport(part, y)).abs() < _ENOUGH).all()):
                break
            y = _newton(part, y)
    return y


def _sweep(X: Tensor, y: Tensor) -> Tensor:
    """Alternately the best f for g and the best g for f."""
    n = X.shape[-1]
    g = nn.functional.pad(y[..., n:], (1, 0))
    for _ in range(_SWEEPS):
        f = (X - g.unsqueeze(-2)).logsumexp(-1)
        g = (X - f.unsqueeze(-1)).logsumexp(-2)
    return torch.cat((f + g[..., :1], g[..., 1:] - g[..., :1]), -1)


def _newton(X: Tensor, y: Tensor) -> Tensor:
    """The best of a Newton step, shorter ones and a sweep, by the largest error of a row or column sum."""
    P = _transport(X, y)
    n = X.shape[-1]
    H = torch.diag_embed(torch.cat((P.sum(-1), P.sum(-2)[..., 1:]), -1))
    H[..., :n, n:], H[..., n:, :n] = P[..., 1:], P[..., 1:].mT
    slope = _slope(P)
    ridge = torch.eye(2 * n - 1, dtype=X.dtype, device=X.device) * 1e-14
    L, _ = torch.linalg.cholesky_ex(H + ridge)
    step = torch.cholesky_solve(slope.unsqueeze(-1), L).squeeze(-1)
    tried = torch.stack([y, *(y - length * step for length in (1.0, 0.5, 0.1)), _sweep(X, y)])
    error = _slope(_transport(X, tried)).abs().amax(-1).nan_to_num(torch.inf)
    best = error.argmin(0).unsqueeze(0).unsqueeze(-1).expand(1, *y.shape)
    return tried.gather(0, best).squeeze(0)


def _slope(P: Tensor) -> Tensor:
    """Of the dual objective, with the sign turned so that a step is subtracted."""
    return 1 - torch.cat((P.sum(-1), P.sum(-2)[..., 1:]), -1)


# ---------------------------------------------------------------- the catalogue's entries


def _sample(batch: int, generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(batch, 4, 4, generator=generator, dtype=torch.float64),)


def _sinkhorn(X: Tensor) -> Tensor:
    for _ in range(500):
        X = X - X.logsumexp(-1, keepdim=True)
        X = X - X.logsumexp(-2, keepdim=True)
    return X.exp()


def _dykstra(X: Tensor) -> Tensor:
    """Alternating projections onto the matrices with these sums and onto the nonnegative ones, with Dykstra's correction."""
    n = X.shape[-1]
    P, correction = X, torch.zeros_like(X)
    for _ in range(3000):
        rows, columns = P.sum(-1, keepdim=True) - 1, P.sum(-2, keepdim=True) - 1
        onto = P - rows / n - columns / n + rows.sum(-2, keepdim=True) / n**2
        P = (onto + correction).clamp(min=0)
        correction = onto + correction - P
    return P


ENTRIES = (
    Entry(
        name="doubly-stochastic-entropic",
        title="entropic projection onto doubly stochastic matrices (Sinkhorn)",
        kind="nonlinear",
        source="Santa Cruz et al., CVPR 2017; Gould, Hartley & Campbell, TPAMI 2022",
        build=lambda: DoublyStochastic(4, "entropic"),
        sample=_sample,
        reference=_sinkhorn,
        example="12_permutations",
        tolerance=1e-10,
        tags=frozenset({"permutation"}),
    ),
    Entry(
        name="doubly-stochastic-euclidean",
        title="Euclidean projection onto doubly stochastic matrices",
        kind="conic",
        source="Santa Cruz et al., CVPR 2017; Gould, Hartley & Campbell, TPAMI 2022",
        build=lambda: DoublyStochastic(4, "euclidean"),
        sample=_sample,
        reference=_dykstra,
        example="12_permutations",
        tolerance=1e-8,
        tags=frozenset({"permutation"}),
    ),
)

"""Doubly stochastic matrices: permutations that can be learnt.

    Euclidean   P = argmin  1/2 |P - X / t|^2              subject to   P 1 = 1,  P'1 = 1,  P >= 0
    entropic    P = argmin  sum_ij P_ij (log P_ij - X_ij / t)   subject to the same

DeepPermNet (Santa Cruz, Fernando, Cherian & Gould, CVPR 2017) ends in the second, by Sinkhorn's iteration; Gould, Hartley &
Campbell (TPAMI 2022) give both as declarative nodes. As the temperature t falls P approaches the permutation of largest
``sum_ij P_ij X_ij``: the Euclidean projection reaches it, the entropic one does not. The entropic problem is optimal
transport with all shares alike, and solved as its dual.
"""

from __future__ import annotations

import cvxpy as cp
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer
from ddn_cvx.nodes.checks import check_shapes
from ddn_cvx.nodes.entry import Entry
from ddn_cvx.nodes.transport import dual_layer, plan


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
        self.layer = dual_layer(n, n) if self.entropic else _projection(n)

    def forward(self, X: Tensor) -> Tensor:
        """P, in the dtype of X."""
        check_shapes(X=(X, (self.n, self.n)))
        scaled = X / self.temperature
        return self._entropic(scaled.double()).to(X.dtype) if self.entropic else self.layer(scaled)

    def _entropic(self, scaled: Tensor) -> Tensor:
        ones = scaled.new_ones(self.n)
        return plan(scaled, self.layer(scaled, ones, ones), self.n)


def _projection(n: int) -> DeclarativeLayer:
    P, X = cp.Variable((n, n), nonneg=True), cp.Parameter((n, n), name="X")
    sums = [cp.sum(P, axis=1) == 1, cp.sum(P, axis=0)[1:] == 1]  # the first column follows
    return DeclarativeLayer(cp.Problem(cp.Minimize(0.5 * cp.sum_squares(P - X)), sums), [X], P)


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

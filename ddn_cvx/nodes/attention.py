"""Attention whose weights are the solution of a problem.

    p = argmax  s'p / t - sum_i (p_i^alpha - p_i) / (alpha (alpha - 1))    subject to    sum p = 1,  p >= 0

with scores s and a temperature t. alpha = 1 (negative entropy) is softmax, alpha = 2 (half a square) sparsemax (Martins &
Astudillo, ICML 2016), between them lies entmax (Peters, Niculae & Martins, ACL 2019), with more zeros the larger alpha. With
the multiplier y of the sum the optimality conditions are one equation with one unknown, falling in it:

    sum_i [(alpha - 1) s_i / t - y]_+^(1 / (alpha - 1)) = 1          (alpha = 1:  sum_i exp(s_i / t - y) = 1)

Where also every key is to get its share the weights are a transport plan. Tutorial 17 of the DDN reference implementation.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, Root
from ddn_cvx.nodes.checks import check_shapes
from ddn_cvx.nodes.entry import Entry, Inputs
from ddn_cvx.nodes.transport import OptimalTransport

_HALVINGS = 60


class Entmax(nn.Module):
    """``s (*batch, T)`` -> weights ``(*batch, T)``, not negative, which sum to one; any T.

    Parameters
    ----------
    alpha : float
        From 1 (softmax) to 2 (sparsemax).
    temperature : float
        t: the lower, the fewer scores count.

    Raises
    ------
    DeclarationError
        alpha outside 1 to 2, or a temperature that is not above zero.
    InputError
        No score.
    SolverError
        Scores that are not finite.

    Examples
    --------
    >>> Entmax(2.0)(torch.tensor([1.0, 0.5, -1.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """

    def __init__(self, alpha: float = 1.5, temperature: float = 1.0):
        super().__init__()
        if not 1 <= alpha <= 2:
            raise DeclarationError(f"alpha must lie between 1 and 2, got {alpha!r}.")
        if not temperature > 0:
            raise DeclarationError(f"temperature must be above 0, got {temperature!r}.")
        self.alpha, self.temperature = float(alpha), temperature
        total = partial(_total, self.alpha)
        self.layer = DeclarativeLayer(
            Root((), total, batched=True, initial=partial(_bisect, self.alpha), parameters="batched")
        )

    def forward(self, s: Tensor) -> Tensor:
        """The weights, in the dtype of s."""
        check_shapes(s=(s, ("T",)))
        z = s.double() / self.temperature
        z = z if self.alpha == 1 else (self.alpha - 1) * z
        flat = (z - z.detach().amax(-1, keepdim=True)).reshape(-1, z.shape[-1])
        y = self.layer(flat)
        return _weights(self.alpha, y, flat).reshape(s.shape).to(s.dtype)


class Attention(nn.Module):
    """``(queries (*batch, M, d), keys (*batch, T, d), values (*batch, T, e))`` -> ``(*batch, M, e)``, with scores
    ``q'k / sqrt(d)``.

    Parameters
    ----------
    alpha : float
        From 1 (softmax) to 2 (sparsemax).
    temperature : float
        The lower, the sharper.
    balanced : tuple of int, optional
        ``(M, T)``: every key gets the same share of attention in all, by entropic transport; alpha must be 1.

    Raises
    ------
    DeclarationError
        alpha or the temperature out of range, or balanced with another alpha than 1.
    InputError
        Inputs of other shapes.

    Examples
    --------
    >>> x = torch.eye(3)
    >>> Attention(2.0, temperature=0.1)(x, x, x)
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]])
    """

    def __init__(self, alpha: float = 1.0, temperature: float = 1.0, balanced: tuple[int, int] | None = None):
        super().__init__()
        if balanced is not None and alpha != 1:
            raise DeclarationError(f"balanced attention is entropic: alpha must be 1, got {alpha!r}.")
        self.balanced = balanced
        self.node = Entmax(alpha, temperature) if balanced is None else OptimalTransport(*balanced, temperature)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The weighted values, in their dtype."""
        check_shapes(keys=(keys, ("T", "d")), values=(values, ("T", "e")))
        out: Tensor = self.weights(queries, keys).to(values.dtype) @ values
        return out

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """``(*batch, M, T)``, of which each row sums to one."""
        M, T = self.balanced or ("M", "T")
        check_shapes(queries=(queries, (M, "d")), keys=(keys, (T, "d")))
        scores = queries @ keys.mT / queries.shape[-1] ** 0.5
        if self.balanced is None:
            found: Tensor = self.node(scores)
            return found
        rows, columns = self.balanced
        plan: Tensor = self.node(-scores, scores.new_ones(rows), scores.new_ones(columns))
        return rows * plan


def _weights(alpha: float, y: Tensor, z: Tensor) -> Tensor:
    """``z (B, T)`` and the multipliers ``y (B)`` -> ``(B, T)``."""
    ahead = z - y.unsqueeze(-1)
    if alpha == 1:
        return ahead.exp()
    positive = ahead > 0
    return torch.where(positive, torch.where(positive, ahead, 1.0) ** (1 / (alpha - 1)), 0.0 * ahead)  # keeps NaN


def _total(alpha: float, y: Tensor, z: Tensor) -> Tensor:
    return _weights(alpha, y, z).sum(-1) - 1


def _bisect(alpha: float, z: Tensor) -> Tensor:
    """The largest z is 0: the multiplier lies between -1, where one weight is 1 at least, and 0, where all vanish."""
    if alpha == 1:
        return z.logsumexp(-1)
    low, high = torch.full_like(z[:, 0], -1.0), torch.zeros_like(z[:, 0])
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        above = _total(alpha, middle, z) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return 0.5 * (low + high)


# ---------------------------------------------------------------- the catalogue's entries


def _scores(batch: int, generator: torch.Generator) -> Inputs:
    return (1.5 * torch.randn(batch, 6, generator=generator, dtype=torch.float64),)


def _primal(alpha: float, s: Tensor) -> Tensor:
    """The problem itself, by scipy."""
    from scipy.optimize import minimize

    def one(s: np.ndarray) -> np.ndarray:
        def objective(p: np.ndarray) -> float:
            p = p.clip(0)
            return float((p**alpha - p).sum() / (alpha * (alpha - 1)) - s @ p)

        def slope(p: np.ndarray) -> np.ndarray:
            return (alpha * p.clip(0) ** (alpha - 1) - 1) / (alpha * (alpha - 1)) - s

        simplex = {"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like}
        start = np.full(len(s), 1 / len(s))
        options = {"ftol": 1e-15, "maxiter": 1000}
        return minimize(
            objective, start, jac=slope, method="SLSQP", bounds=[(0, 1)] * len(s), constraints=simplex, options=options
        ).x

    return torch.from_numpy(np.stack([one(row) for row in s.numpy()]))


def _sequences(batch: int, generator: torch.Generator) -> Inputs:
    queries, keys, values = (torch.randn(batch, k, 2, generator=generator, dtype=torch.float64) for k in (2, 3, 3))
    return queries, keys, values


def _softmax_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(queries, keys, values)


def _balanced_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    X = queries @ keys.mT / queries.shape[-1] ** 0.5
    for _ in range(2000):
        X = X - X.logsumexp(-2, keepdim=True) + math.log(2 / 3)
        X = X - X.logsumexp(-1, keepdim=True)
    return X.exp() @ values


_SOURCE = "Peters, Niculae & Martins, ACL 2019; the DDN reference implementation, tutorial 17"
ENTRIES = (
    *(
        Entry(
            name=name,
            title=f"attention weights with alpha = {alpha:g}",
            kind="fixed point",
            source=_SOURCE,
            build=partial(Entmax, alpha),
            sample=_scores,
            reference=reference,
            example="21_tutorials",
            tolerance=1e-6 if alpha > 1 else 1e-10,  # of SLSQP
            tags=frozenset({"attention", "any size"}),
        )
        for name, alpha, reference in (
            ("softmax", 1.0, partial(torch.softmax, dim=-1)),
            ("entmax", 1.5, partial(_primal, 1.5)),
            ("sparsemax", 2.0, partial(_primal, 2.0)),
        )
    ),
    Entry(
        name="attention",
        title="attention by entmax weights, of which softmax is one",
        kind="fixed point",
        source=_SOURCE,
        build=lambda: Attention(1.0),
        sample=_sequences,
        reference=_softmax_attention,
        example="21_tutorials",
        tolerance=1e-10,
        tags=frozenset({"attention"}),
    ),
    Entry(
        name="attention-balanced",
        title="attention in which every key gets its share, by transport",
        kind="nonlinear",
        source=_SOURCE,
        build=lambda: Attention(1.0, balanced=(2, 3)),
        sample=_sequences,
        reference=_balanced_attention,
        example="21_tutorials",
        tolerance=1e-10,
        tags=frozenset({"attention"}),
    ),
)

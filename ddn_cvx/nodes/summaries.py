"""Submodular maximisation, smoothed: a greedy choice whose every step is a declarative node.

Greedy maximisation of a monotone submodular f adds the element of largest gain, k times, and reaches ``1 - 1/e`` of the best
(Nemhauser, Wolsey & Fisher, 1978). Tschiatschek, Sahin & Krause, "Differentiable submodular maximization" (IJCAI 2018), make
the choice soft. Here step t is

    p_t = argmax  g(y)'p - temperature/2 |p|^2   subject to   0 <= p <= 1 - y,  1'p = 1,        y <- y + p_t

where y_j is how much of element j is chosen so far, and g the gains of the multilinear extension, that is for elements that
are chosen independently with the probabilities y. Where the largest gain leads by more than the temperature the step is that
of the greedy algorithm. f is facility location, ``f(S) = sum_i max_{j in S} s_ij`` for similarities ``s_ij >= 0``.
"""

from __future__ import annotations

import cvxpy as cp
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer
from ddn_cvx.nodes.checks import check_shapes, check_values
from ddn_cvx.nodes.entry import Entry

ROUNDING = 1e-6
"""Of shares and their sums in float32."""


class SoftGreedy(nn.Module):
    """``s (*batch, points, n)`` -> ``y (*batch, n)`` in [0, 1] with the sum k: how much of each element is chosen.

    A second argument ``chosen (*batch, n)`` in [0, 1] is what has been chosen before; y is that with k more.

    Parameters
    ----------
    n : int
        Number of elements to choose from. The number of points, which the chosen elements stand for, is free.
    k : int
        How many are chosen, 1 to n.
    temperature : float
        Above 0, in the unit of the mean similarity of a point: gains that differ by less share a step.

    Raises
    ------
    DeclarationError
        n, k or the temperature is out of range.
    InputError
        s or chosen has another size, a similarity is negative, or chosen is not in [0, 1] or leaves room for less than k.

    Notes
    -----
    Gains are means over the points, and the memory is ``points * n^2`` numbers an element of the batch.

    Examples
    --------
    >>> SoftGreedy(3, 1, temperature=0.1)(torch.tensor([[1.0, 0.0, 0.2], [1.0, 0.1, 0.0]]))
    tensor([1., 0., 0.])
    """

    def __init__(self, n: int, k: int, temperature: float = 0.01):
        super().__init__()
        if not 1 <= k <= n:
            raise DeclarationError(f"k must be between 1 and n = {n}, got {k!r}.")
        if not temperature > 0:
            raise DeclarationError(f"temperature must be above 0, got {temperature!r}.")
        self.n, self.k, self.temperature = n, k, temperature
        p, g, room = cp.Variable(n), cp.Parameter(n, name="g"), cp.Parameter(n, name="room")
        step = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(p) - g @ p), [p >= 0, p <= room, cp.sum(p) == 1])
        self.layer = DeclarativeLayer(step, [g, room], p)

    def forward(self, s: Tensor, chosen: Tensor | None = None) -> Tensor:
        """y, in the dtype of s."""
        check_shapes(s=(s, ("points", self.n)))
        s = check_values(s, ~(s < 0), "s must not be negative: a point that no element stands for counts zero.")
        y = torch.zeros_like(s[..., 0, :]) if chosen is None else self._checked(chosen)
        similar = s.double().expand(*torch.broadcast_shapes(s.shape[:-2], y.shape[:-1]), *s.shape[-2:])
        y = y.double()
        for _ in range(self.k):
            y = y + self.layer(gains(similar, y) / self.temperature, 1 - y)
        return y.to(s.dtype)

    def _checked(self, chosen: Tensor) -> Tensor:
        check_shapes(chosen=(chosen, (self.n,)))
        within = (chosen >= -ROUNDING) & (chosen <= 1 + ROUNDING)
        room = (1 - chosen).sum(-1, keepdim=True) >= self.k - ROUNDING
        rule = f"chosen must be between 0 and 1, and leave room for {self.k} of the {self.n} elements."
        return check_values(chosen, within & room, rule).clamp(0, 1)


def _ranked(s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities in falling order, and the probabilities that the element of each is the best one chosen."""
    similar, order = s.sort(-1, descending=True)
    chosen = y.unsqueeze(-2).expand_as(s).gather(-1, order)
    none_before = torch.cumprod(torch.cat((torch.ones_like(chosen[..., :1]), 1 - chosen[..., :-1]), -1), -1)
    return similar, chosen * none_before


def coverage(s: Tensor, y: Tensor) -> Tensor:
    """``(*batch, points, n), (*batch, n) -> (*batch)``: the multilinear extension of the mean best similarity.

    For a y of zeros and ones that is f, divided by the number of points.
    """
    similar, best = _ranked(s, y)
    return (similar * best).sum(-1).mean(-1)


def gains(s: Tensor, y: Tensor) -> Tensor:
    """``-> (*batch, n)``: what each element would add to the coverage if it were chosen for certain."""
    similar, best = _ranked(s, y)
    above = (s.unsqueeze(-1) - similar.unsqueeze(-2)).clamp(min=0)  # over the best one chosen
    return ((above * best.unsqueeze(-2)).sum(-1) + s * torch.prod(1 - y, -1)[..., None, None]).mean(-2)


# ---------------------------------------------------------------- the catalogue's entries


def _similarities(batch: int, generator: torch.Generator) -> tuple[Tensor]:
    return (torch.rand(batch, 7, 6, generator=generator, dtype=torch.float64),)


def _greedy(s: Tensor) -> Tensor:
    """The same steps with gains as expectations over all subsets, and the step by bisection for its multiplier."""
    n = s.shape[-1]
    members = (torch.arange(2**n).unsqueeze(-1) >> torch.arange(n) & 1).bool()
    value = torch.stack([s[..., m].amax(-1).mean(-1) if m.any() else s.new_zeros(s.shape[0]) for m in members], -1)
    y = s.new_zeros(s.shape[0], n)

    def expected(y: Tensor) -> Tensor:
        return (value * torch.where(members, y.unsqueeze(-2), 1 - y.unsqueeze(-2)).prod(-1)).sum(-1)

    for _ in range(3):
        one = torch.eye(n, dtype=torch.bool)
        g = torch.stack([expected(torch.where(one[j], 1.0, y)) - expected(y) for j in range(n)], -1) / 0.05
        low, high = g.amin(-1, keepdim=True) - 2, g.amax(-1, keepdim=True) + 2
        for _ in range(100):
            middle = (low + high) / 2
            much = torch.minimum((g - middle).clamp(min=0), 1 - y).sum(-1, keepdim=True) > 1
            low, high = torch.where(much, middle, low), torch.where(much, high, middle)
        y = y + torch.minimum((g - low).clamp(min=0), 1 - y)
    return y


ENTRIES = (
    Entry(
        name="soft-greedy",
        title="soft greedy choice of elements that stand for all points (facility location)",
        kind="conic",
        source="Tschiatschek, Sahin & Krause, IJCAI 2018",
        build=lambda: SoftGreedy(6, 3, temperature=0.05),
        sample=_similarities,
        reference=_greedy,
        example="07_summaries",
        tolerance=1e-8,
        tags=frozenset({"submodular", "summary"}),
    ),
)

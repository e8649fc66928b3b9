"""Projections onto Lp balls and spheres, p = 1, 2, infinity.

    y = argmin 1/2 |u - x|^2   subject to   |u|_p <= r   (ball)   or   |u|_p = r   (sphere)

Gould, Hartley & Campbell (TPAMI 2022), section 5. The balls are convex. The spheres are not, but for p = 1 and infinity the
projection lies in the orthant of x, on a face of the ball, where the problem is convex again.
"""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, TorchProblem
from ddn_cvx.nodes.checks import check_values
from ddn_cvx.nodes.entry import Entry, Kind

ORDERS = (1.0, 2.0, float("inf"))


class LpBall(DeclarativeLayer[Tensor]):
    """``(x (*batch, n), r (*batch)) -> y (*batch, n)``, the nearest point with ``|y|_p <= r``.

    Parameters
    ----------
    n : int
        Size of a vector.
    p : float
        1, 2 or infinity.

    Raises
    ------
    DeclarationError
        p is none of these.

    Notes
    -----
    Inside the ball the derivative with respect to x is the identity, with respect to r zero. Negative radii are infeasible.

    Examples
    --------
    >>> LpBall(2, p=1)(torch.tensor([[3.0, 1.0], [0.5, 0.0]]), torch.tensor(1.0))
    tensor([[1.0000, 0.0000],
            [0.5000, 0.0000]])
    """

    def __init__(self, n: int, p: float = 2.0):
        y, x, r = cp.Variable(n), cp.Parameter(n, name="x"), cp.Parameter(name="r")
        inside = [y <= r, y >= -r] if _order(p) == torch.inf else [cp.norm(y, int(p)) <= r]
        super().__init__(cp.Problem(cp.Minimize(0.5 * cp.sum_squares(y - x)), inside), [x, r], y)


class LpSphere(nn.Module):
    """``(x (*batch, n), r (*batch)) -> y (*batch, n)``, the nearest point with ``|y|_p = r``, for ``r > 0``.

    Where several points are nearest (x = 0, or ties) one of them is returned, and a derivative that is that of this choice.

    Parameters
    ----------
    n : int
        Size of a vector.
    p : float
        1, 2 or infinity.

    Raises
    ------
    DeclarationError
        p is none of these.
    InputError
        A negative radius.

    Examples
    --------
    >>> LpSphere(2, p=2)(torch.tensor([[3.0, 4.0]]), torch.tensor(10.0))
    tensor([[6., 8.]])
    """

    def __init__(self, n: int, p: float = 2.0):
        super().__init__()
        self.p = _order(p)
        self.layer = {1.0: _simplex, 2.0: _sphere, torch.inf: _face}[self.p](n)

    def forward(self, x: Tensor, r: Tensor) -> Tensor:
        """The projection, in the dtype of x."""
        r = check_values(r, ~(r < 0), "r must not be negative: no point has such a norm.")
        if self.p == 2.0:
            out: Tensor = self.layer(x, r)
            return out
        sign = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
        if self.p == 1.0:
            return sign * self.layer(sign * x, r)
        furthest = torch.zeros_like(x).scatter(-1, x.abs().argmax(-1, keepdim=True), 1.0)
        return sign * self.layer(sign * x, furthest, r)


def _order(p: float) -> float:
    if float(p) not in ORDERS:
        raise DeclarationError(f"p must be 1, 2 or infinity, got {p!r}.")
    return float(p)


def _simplex(n: int) -> DeclarativeLayer:
    """The face of the L1 sphere in the positive orthant."""
    y, x, r = cp.Variable(n, nonneg=True), cp.Parameter(n), cp.Parameter()
    return DeclarativeLayer(cp.Problem(cp.Minimize(0.5 * cp.sum_squares(y - x)), [cp.sum(y) == r]), [x, r], y)


def _sphere(n: int) -> DeclarativeLayer:
    def solve(x: Tensor, r: Tensor) -> Tensor:
        length = x.norm(dim=-1, keepdim=True)
        first = torch.zeros_like(x).index_fill(-1, torch.zeros(1, dtype=torch.int64, device=x.device), 1.0)
        return r.unsqueeze(-1) * torch.where(length > 0, x / length.clamp(min=1e-300), first)

    return DeclarativeLayer(
        TorchProblem(
            (n,),
            objective=lambda y, x, r: 0.5 * (y - x).square().sum(),
            equality=lambda y, x, r: 0.5 * (y.square().sum() - r.square()),
            solve=solve,
            parameters=[(n,), ()],
        )
    )


def _face(n: int) -> DeclarativeLayer:
    """The face of the L-infinity sphere on which the largest coordinate of x, marked by ``furthest``, is r."""
    y, x, furthest, r = cp.Variable(n), cp.Parameter(n), cp.Parameter(n), cp.Parameter()
    room = r + furthest  # the marked coordinate is held by the equality alone
    face = [furthest @ y == r, y <= room, y >= -room]
    return DeclarativeLayer(cp.Problem(cp.Minimize(0.5 * cp.sum_squares(y - x)), face), [x, furthest, r], y)


# ---------------------------------------------------------------- the catalogue's entries


def _sample(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points on both sides of the sphere."""
    x = torch.randn(batch, 5, generator=generator, dtype=torch.float64)
    r = 0.5 + 2.0 * torch.rand(batch, generator=generator, dtype=torch.float64)
    return x, r


def _shrink(x: Tensor, r: Tensor) -> Tensor:
    """Projection of nonnegative x onto the simplex of size r, by sorting."""
    order = x.sort(-1, descending=True).values
    level = (order.cumsum(-1) - r.unsqueeze(-1)) / torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    return (x - level.gather(-1, (order > level).sum(-1, keepdim=True) - 1)).clamp(min=0)


def _ball_1(x: Tensor, r: Tensor) -> Tensor:
    inside = x.abs().sum(-1, keepdim=True) <= r.unsqueeze(-1)
    return torch.where(inside, x, x.sign() * _shrink(x.abs(), r))


def _ball_2(x: Tensor, r: Tensor) -> Tensor:
    return x * (r.unsqueeze(-1) / x.norm(dim=-1, keepdim=True)).clamp(max=1.0)


def _ball_inf(x: Tensor, r: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, -r.unsqueeze(-1)), r.unsqueeze(-1))


def _sphere_1(x: Tensor, r: Tensor) -> Tensor:
    return x.sign() * _shrink(x.abs(), r)


def _sphere_2(x: Tensor, r: Tensor) -> Tensor:
    return x * r.unsqueeze(-1) / x.norm(dim=-1, keepdim=True)


def _sphere_inf(x: Tensor, r: Tensor) -> Tensor:
    on_face = torch.where(x.abs() == x.abs().amax(-1, keepdim=True), x.sign() * r.unsqueeze(-1), x)
    return _ball_inf(on_face, r)


def _entry(shape: str, p: float, reference: Callable[[Tensor, Tensor], Tensor]) -> Entry:
    label = "infinity" if p == torch.inf else str(int(p))
    build = LpBall if shape == "ball" else LpSphere
    kind: Kind = "nonlinear" if shape == "sphere" and p == 2.0 else "conic"
    return Entry(
        name=f"l{label}-{shape}",
        title=f"projection onto the L{label} {shape}",
        kind=kind,
        source="Gould, Hartley & Campbell, TPAMI 2022",
        build=lambda: build(5, p),
        sample=_sample,
        reference=reference,
        example="02_normalised_features",
        tags=frozenset({"projection", shape}),
    )


ENTRIES = (
    _entry("ball", 1.0, _ball_1),
    _entry("ball", 2.0, _ball_2),
    _entry("ball", torch.inf, _ball_inf),
    _entry("sphere", 1.0, _sphere_1),
    _entry("sphere", 2.0, _sphere_2),
    _entry("sphere", torch.inf, _sphere_inf),
)

"""Tridiagonal systems, and the analytic centre of linear inequalities.

Tutorials 15 and 16 of the DDN reference implementation. A tridiagonal system is solved by elimination without pivoting
(Thomas's algorithm), Newton's method removes what rounding leaves, and the derivative is that of the equations. The
analytic centre ``argmin -sum_i log(b_i - a_i'y)`` is a cone program, and needs no point inside to begin with.
"""

from __future__ import annotations

import cvxpy as cp
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, Root
from ddn_cvx.nodes.checks import check_shapes
from ddn_cvx.nodes.entry import Entry, Inputs


class Tridiagonal(nn.Module):
    """``(diagonal (*batch, n), lower (*batch, n - 1), upper (*batch, n - 1), right (*batch, n))`` -> ``x (*batch, n)``::

        lower_{i-1} x_{i-1} + diagonal_i x_i + upper_i x_{i+1} = right_i.

    Parameters
    ----------
    n : int
        At least 2.

    Raises
    ------
    DeclarationError
        n below 2.
    InputError
        Inputs of other shapes.
    SolverError
        A singular system, or numbers that are not finite.

    Examples
    --------
    >>> off = torch.tensor([-1.0, -1.0])
    >>> Tridiagonal(3)(torch.tensor([2.0, 2.0, 2.0]), off, off, torch.tensor([0.0, 0.0, 4.0]))
    tensor([1., 2., 3.])
    """

    def __init__(self, n: int):
        super().__init__()
        if n < 2:
            raise DeclarationError(f"n must be at least 2, got {n!r}.")
        self.n = n

        def equations(x: Tensor, diagonal: Tensor, lower: Tensor, upper: Tensor, right: Tensor) -> Tensor:
            below, above = nn.functional.pad(lower * x[:, :-1], (1, 0)), nn.functional.pad(upper * x[:, 1:], (0, 1))
            return below + diagonal * x + above - right

        shapes = [(n,), (n - 1,), (n - 1,), (n,)]
        self.layer = DeclarativeLayer(Root((n,), equations, parameters=shapes, batched=True, initial=_eliminate))

    def forward(self, diagonal: Tensor, lower: Tensor, upper: Tensor, right: Tensor) -> Tensor:
        """x, in the dtype of the diagonal."""
        n = self.n
        check_shapes(diagonal=(diagonal, (n,)), lower=(lower, (n - 1,)), upper=(upper, (n - 1,)), right=(right, (n,)))
        x: Tensor = self.layer(diagonal, lower, upper, right)
        return x


def _eliminate(diagonal: Tensor, lower: Tensor, upper: Tensor, right: Tensor) -> Tensor:
    """Thomas's algorithm; where a pivot vanishes the result is no solution, and only where Newton's method begins."""
    n = diagonal.shape[-1]
    pivots, values = [diagonal[..., 0]], [right[..., 0]]
    for i in range(1, n):
        factor = lower[..., i - 1] / pivots[-1]
        pivots.append(diagonal[..., i] - factor * upper[..., i - 1])
        values.append(right[..., i] - factor * values[-1])
    x = [values[-1] / pivots[-1]]
    for i in range(n - 2, -1, -1):
        x.append((values[i] - upper[..., i] * x[-1]) / pivots[i])
    found = torch.stack(x[::-1], -1)
    return torch.where(found.isfinite().all(-1, keepdim=True), found, 0.0)


class AnalyticCentre(DeclarativeLayer[Tensor]):
    """``(A (*batch, m, n), b (*batch, m))`` -> ``y (*batch, n)``, which maximises the product of the slacks.

    Parameters
    ----------
    m, n : int
        Inequalities and unknowns; m above n, for the set must be bounded.

    Raises
    ------
    DeclarationError
        n below one, or m not above n.
    SolverError
        No point satisfies the inequalities strictly, or the set is unbounded.

    Examples
    --------
    >>> A = torch.tensor([[1.0], [-1.0]])
    >>> AnalyticCentre(2, 1)(A, torch.tensor([3.0, 1.0]))  # -1 < y < 3
    tensor([1.])
    """

    def __init__(self, m: int, n: int):
        if n < 1 or m <= n:
            raise DeclarationError(f"n must be at least 1, and m above n, got {n!r} and {m!r}.")
        y, A, b = cp.Variable(n), cp.Parameter((m, n), name="A"), cp.Parameter(m, name="b")
        super().__init__(cp.Problem(cp.Maximize(cp.sum(cp.log(b - A @ y)))), [A, b], y)


# ---------------------------------------------------------------- the catalogue's entries


def _system(batch: int, generator: torch.Generator) -> Inputs:
    sizes = (5, 4, 4, 5)
    diagonal, lower, upper, right = (torch.randn(batch, k, generator=generator, dtype=torch.float64) for k in sizes)
    return 3 + diagonal.abs(), lower, upper, right


def _dense(diagonal: Tensor, lower: Tensor, upper: Tensor, right: Tensor) -> Tensor:
    """By scipy's banded solver."""
    from scipy.linalg import solve_banded

    bands = torch.stack((nn.functional.pad(upper, (1, 0)), diagonal, nn.functional.pad(lower, (0, 1))), -2)
    return torch.stack(
        [torch.from_numpy(solve_banded((1, 1), band, d)) for band, d in zip(bands.numpy(), right.numpy(), strict=True)]
    )


def _polytope(batch: int, generator: torch.Generator) -> Inputs:
    """A box and two cuts, all about zero."""
    box = torch.cat((torch.eye(2), -torch.eye(2))).double().expand(batch, 4, 2)
    cuts = torch.randn(batch, 2, 2, generator=generator, dtype=torch.float64)
    return torch.cat((box, cuts), -2), 1 + torch.rand(batch, 6, generator=generator, dtype=torch.float64)


def _newton(A: Tensor, b: Tensor) -> Tensor:
    """Damped Newton steps from zero, as in Boyd & Vandenberghe, section 9.6."""
    y = A.new_zeros(A.shape[0], A.shape[-1])
    for _ in range(100):
        d = 1 / (b - (A @ y.unsqueeze(-1)).squeeze(-1))
        slope = (A.mT @ d.unsqueeze(-1)).squeeze(-1)
        H = A.mT @ (d.square().unsqueeze(-1) * A)
        step = torch.cholesky_solve(slope.unsqueeze(-1), torch.linalg.cholesky(H)).squeeze(-1)
        decrement = (slope * step).sum(-1, keepdim=True).clamp(min=0).sqrt()
        y = y - step / torch.where(decrement > 0.25, 1 + decrement, 1.0)
    return y


ENTRIES = (
    Entry(
        name="tridiagonal",
        title="solution of a tridiagonal system",
        kind="fixed point",
        source="the DDN reference implementation, tutorial 15",
        build=lambda: Tridiagonal(5),
        sample=_system,
        reference=_dense,
        example="21_tutorials",
        tolerance=1e-10,
        tags=frozenset({"linear"}),
    ),
    Entry(
        name="analytic-centre",
        title="analytic centre of linear inequalities",
        kind="conic",
        source="the DDN reference implementation, tutorial 16",
        build=lambda: AnalyticCentre(6, 2),
        sample=_polytope,
        reference=_newton,
        example="21_tutorials",
        tolerance=1e-7,
        tags=frozenset({"linear"}),
    ),
)

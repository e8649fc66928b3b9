"""Submodular minimisation by the point of least norm of the base polytope.

    y = argmin 1/2 |y|^2   subject to   y(A) <= F(A) for every A,   y(V) = F(V)

For a submodular F with F({}) = 0 the smallest minimiser of F is ``{i : y_i < 0}``, the largest ``{i : y_i <= 0}``
(Fujishige, 1980), and ``x = -y`` minimises ``f(x) + 1/2 |x|^2`` with the Lovasz extension f of F. For a cut function with a
modular term, ``F(A) = -u(A) + sum of w_ij over the edges between A and the rest``, that is total variation on a graph,

    x = argmin 1/2 |x - u|^2 + sum_ij w_ij |x_i - x_j|,      and   {i : x_i > 0}   is the minimal cut.

Both are differentiable where the minimiser is not: Djolonga & Krause, "Differentiable learning of submodular models" (NIPS
2017), who average the gradient over the level sets of x. Here the optimality conditions do so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, TorchProblem
from ddn_cvx.nodes.checks import check_shapes, check_values
from ddn_cvx.nodes.entry import Entry

LARGEST = 12
"""Elements of a ground set whose function is given as a table."""
_ROUND = 1e-7  # width over which the kink of |x_i - x_j| is rounded off, next to the size of u and w
_STEPS, _ENOUGH = 40, 1e-13  # of the interior-point method


class MinNormPoint(nn.Module):
    """``F (*batch, 2^n)`` -> ``y (*batch, n)``, the point of least norm of the base polytope; ``n <= 12``.

    Parameters
    ----------
    n : int
        Elements of the ground set. ``F[..., S]`` is the value of the set S whose elements are its bits: 2^i for element i.
        That of the empty set is subtracted from all.

    Raises
    ------
    DeclarationError
        n outside 1 to 12.
    InputError
        F has another size or is not submodular.

    Examples
    --------
    >>> MinNormPoint(2)(torch.tensor([0.0, -1.0, 2.0, 1.0]))  # F of {}, {0}, {1}, {0, 1}
    tensor([-1.,  2.])
    """

    def __init__(self, n: int):
        super().__init__()
        if not 1 <= n <= LARGEST:
            raise DeclarationError(f"n must be between 1 and {LARGEST}, got {n!r}.")
        self.n = n
        members = subsets(n).numpy()
        y, F = cp.Variable(n), cp.Parameter(2**n, name="F")
        base = [members[1:-1] @ y <= F[1:-1]] if n > 1 else []
        self.layer = DeclarativeLayer(cp.Problem(cp.Minimize(0.5 * cp.sum_squares(y)), [*base, cp.sum(y) == F[-1]]), [F], y)

    def forward(self, F: Tensor) -> Tensor:
        """y, in the dtype of F."""
        check_shapes(F=(F, (2**self.n,)))
        F = F - F[..., :1]
        size = F.detach().abs().amax(-1, keepdim=True)
        submodular = ~(_curvature(F.detach(), self.n) > 1e-5 * size).any(-1, keepdim=True)
        rule = "F must be submodular: F(A) + F(B) >= F(A or B) + F(A and B) for all A and B."
        y: Tensor = self.layer(check_values(F, submodular, rule))
        return y


def subsets(n: int) -> Tensor:
    """``(2^n, n)``: row S marks the bits of S."""
    return (torch.arange(2**n).unsqueeze(-1) >> torch.arange(n) & 1).double()


def _curvature(F: Tensor, n: int) -> Tensor:
    """``F(A + i + j) - F(A + i) - F(A + j) + F(A)`` for all i < j and A without them: nowhere positive."""
    i, j = (1 << torch.triu_indices(n, n, 1)).unsqueeze(-1)
    rest = torch.arange(2**n) & ~(i | j)
    return (F[..., rest | i | j] - F[..., rest | i] - F[..., rest | j] + F[..., rest]).flatten(-2)


class CutRelaxation(nn.Module):
    """``(u (*batch, n), w (*batch, E)) -> x (*batch, n)``: total variation on a graph, whose sign is the minimal cut.

    For every t, ``{i : x_i > t}`` minimises the sum of ``t - u_i`` over A plus that of ``w_ij`` between A and the rest.

    Parameters
    ----------
    n : int
        Number of nodes.
    edges : (E, 2) integers
        Pairs of nodes, as a tensor, an array or a list; ``grid(height, width)`` are those of a picture.

    Raises
    ------
    DeclarationError
        An edge has an end outside 0 to n - 1, or two equal ends.
    InputError
        u or w has another size, or a weight is negative: the function is not submodular.

    Notes
    -----
    The layer rounds off ``|x_i - x_j|`` over 1e-7 of the size of u and w. The answer is then the mean over each set of nodes
    that are connected by differences within this width. That is the exact one where no two adjacent level sets are closer,
    because what flows between level sets does not depend on the rounding; so is its derivative, the mean over level sets.
    Level sets are found by looking at values: not for ``torch.vmap``, use batch dimensions.

    Examples
    --------
    >>> CutRelaxation(3, [(0, 1), (1, 2)])(torch.tensor([0.0, 1.0, 5.0]), torch.tensor([1.0, 1.0]))
    tensor([1., 1., 4.])
    """

    ends: Tensor

    def __init__(self, n: int, edges: Tensor | np.ndarray | Sequence[tuple[int, int]]):
        super().__init__()
        ends = torch.as_tensor(np.asarray(edges, dtype=np.int64)).reshape(-1, 2)
        if bool(((ends < 0) | (ends >= n)).any()):
            raise DeclarationError(f"edges must join nodes 0 to {n - 1}, got nodes {int(ends.min())} to {int(ends.max())}.")
        if not len(ends) or bool((ends[:, 0] == ends[:, 1]).any()):
            raise DeclarationError("edges must hold at least one edge, and none from a node to itself.")
        self.n = n
        ends = ends.T.contiguous()
        self.register_buffer("ends", ends, persistent=False)
        self.layer = DeclarativeLayer(
            TorchProblem(
                (n,),
                objective=lambda x, u, w: (
                    0.5 * (x - u).square().sum() + (w * _rounded(_difference(x, ends.to(x.device)))).sum()
                ),
                solve=lambda u, w: _interior_point(u, w, ends.to(u.device)),
                parameters=[(n,), (ends.shape[1],)],
                stationary=True,  # convex: there is one
            )
        )

    def forward(self, u: Tensor, w: Tensor) -> Tensor:
        """x, in the dtype of u."""
        count = self.ends.shape[1]
        check_shapes(u=(u, (self.n,)), w=(w, (count,)))
        w = check_values(w, ~(w < 0), "w must not be negative: with negative weights the cut is not submodular.")
        batch = torch.broadcast_shapes(u.shape[:-1], w.shape[:-1])
        u, w = u.expand(*batch, self.n), w.expand(*batch, count)
        size = torch.maximum(u.detach().abs().amax(-1, keepdim=True), w.detach().amax(-1, keepdim=True)).double()
        size = torch.where(size > 0, size, 1.0)
        x = self.layer(u / size, w / size)
        return (_level_means(x.reshape(-1, self.n), self.ends).reshape(x.shape) * size).to(u.dtype)


def grid(height: int, width: int) -> Tensor:
    """``(E, 2)``: edges between horizontal and vertical neighbours of a picture whose pixels are numbered row by row."""
    pixel = torch.arange(height * width).reshape(height, width)
    across = torch.stack((pixel[:, :-1], pixel[:, 1:]), -1).reshape(-1, 2)
    return torch.cat((across, torch.stack((pixel[:-1], pixel[1:]), -1).reshape(-1, 2)))


def _difference(x: Tensor, ends: Tensor) -> Tensor:
    return x[..., ends[0]] - x[..., ends[1]]


def _divergence(z: Tensor, ends: Tensor, n: int) -> Tensor:
    """The transpose of ``_difference``."""
    return z.new_zeros(*z.shape[:-1], n).index_add(-1, ends[0], z).index_add(-1, ends[1], -z)


def _rounded(d: Tensor) -> Tensor:
    """Huber's penalty: ``|d|`` but for a constant beyond the width."""
    return torch.where(d.abs() < _ROUND, 0.5 * d.square() / _ROUND, d.abs() - 0.5 * _ROUND)


def _interior_point(u: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """Of the dual, ``min 1/2 |u - D'z|^2 + sum of ROUND/2 z^2 / w, |z| <= w``, by Mehrotra's predictor and corrector.

    Eliminating z leaves a matrix of the order of the nodes, ``I + D' S^-1 D``.
    """
    n, w = u.shape[-1], w.clamp(min=1e-9)
    z, soft = torch.zeros_like(w), _ROUND / w
    up, down = (w + _difference(u, ends).abs() for _ in range(2))  # the multipliers of z <= w and of z >= -w
    for step in range(_STEPS):
        x = u - _divergence(z, ends, n)
        slope = soft * z - _difference(x, ends) + up - down
        above, below = w - z, w + z
        gap = (up * above + down * below).mean(-1, keepdim=True) / 2
        if step % 3 == 0 and bool(((gap < _ENOUGH) & (slope.abs().amax(-1, keepdim=True) < _ENOUGH)).all()):
            break
        S = soft + up / above + down / below
        system = _System(ends, slope, above, below, up, down, S, _laplacian(1 / S, ends, n))
        dz, dup, ddown = system.direction(torch.zeros_like(z), torch.zeros_like(z))
        length = _longest((above, below, up, down), (-dz, dz, dup, ddown))
        left = ((up + length * dup) * (above - length * dz) + (down + length * ddown) * (below + length * dz)) / 2
        aim = gap * (left.mean(-1, keepdim=True) / gap.clamp(min=1e-300)).clamp(min=0) ** 3
        aim = aim.clamp(min=0.1 * _ENOUGH)  # finished elements stay off the boundary
        dz, dup, ddown = system.direction(aim + dup * dz, aim - ddown * dz)
        length = 0.995 * _longest((above, below, up, down), (-dz, dz, dup, ddown))
        z, up, down = z + length * dz, up + length * dup, down + length * ddown
    return u - _divergence(z, ends, n)


class _System(NamedTuple):
    """Newton's equations of a step, all ``(B, E)`` but for the last."""

    ends: Tensor
    slope: Tensor
    above: Tensor
    below: Tensor
    up: Tensor
    down: Tensor
    S: Tensor
    L: Tensor

    def direction(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dz and the changes of the multipliers, for the products ``up above`` and ``down below`` that are to be left."""
        lift, sink = first / self.above - self.up, second / self.below - self.down
        right = -self.slope - lift + sink
        flow = _divergence(right / self.S, self.ends, self.L.shape[-1])
        dx = -torch.cholesky_solve(flow.unsqueeze(-1), self.L).squeeze(-1)
        dz = (right + _difference(dx, self.ends)) / self.S
        return dz, lift + self.up / self.above * dz, sink - self.down / self.below * dz


def _laplacian(weight: Tensor, ends: Tensor, n: int) -> Tensor:
    """The Cholesky factor of ``I + D' diag(weight) D``."""
    M = weight.new_zeros(*weight.shape[:-1], n * n)
    for one, other in (ends, ends.flip(0)):
        M = M.index_add_(-1, one * n + other, -weight).index_add_(-1, one * (n + 1), weight)
    M = M.unflatten(-1, (n, n))
    M.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return torch.linalg.cholesky_ex(M)[0]


def _longest(values: tuple[Tensor, ...], steps: tuple[Tensor, ...]) -> Tensor:
    """The longest step, at most 1, that keeps the values nonnegative, ``(B, 1)``."""
    ratios = [
        torch.where(step < 0, -value / step, 1.0).amin(-1, keepdim=True) for value, step in zip(values, steps, strict=True)
    ]
    return torch.stack(ratios).amin(0).clamp(max=1.0)


def _level_means(x: Tensor, ends: Tensor) -> Tensor:
    """``x (B, n)`` averaged over nodes that are connected by differences within the width."""
    B, n = x.shape
    same = _difference(x.detach(), ends).abs() < _ROUND
    label = torch.arange(n, device=x.device).expand(B, n)
    while True:
        least = torch.where(same, torch.minimum(label[:, ends[0]], label[:, ends[1]]), n)
        moved = label.scatter_reduce(1, ends[0].expand(B, -1), least, "amin")
        moved = moved.scatter_reduce(1, ends[1].expand(B, -1), least, "amin")
        moved = moved.gather(1, moved)  # a label's own label: twice as far with every round
        if bool((moved == label).all()):
            break
        label = moved
    total = torch.zeros_like(x).scatter_add(1, label, x)
    count = torch.zeros_like(x).scatter_add(1, label, torch.ones_like(x))
    return (total / count.clamp(min=1.0)).gather(1, label)


# ---------------------------------------------------------------- the catalogue's entries


def _values(batch: int, generator: torch.Generator) -> tuple[Tensor]:
    """A cut function, a concave function of the size and a modular term, on 5 elements."""
    members, ends = subsets(5), torch.triu_indices(5, 5, 1)
    normal = torch.randn(batch, 5, generator=generator, dtype=torch.float64)
    cut = (members[:, ends[0]] != members[:, ends[1]]).double()
    weights = 0.5 * torch.rand(batch, ends.shape[1], generator=generator, dtype=torch.float64)
    return (2 * normal @ members.T + weights @ cut.T + 0.5 * members.sum(-1).sqrt(),)


_EDGES = [(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)]  # a picture of two rows and three columns


def _picture(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    u = 2 * torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    return u, 0.2 + torch.rand(batch, 7, generator=generator, dtype=torch.float64)


def _decompose(F: Tensor) -> Tensor:
    """The point of least norm by exhaustive search (Fujishige's decomposition algorithm).

    On a set with the value F(V), y is F(V) / |V| if no A has ``F(A) < |A| F(V) / |V|``; else y of V consists of y of the
    least such A, and of y of the rest with F contracted by A.
    """
    members = subsets(int(np.log2(F.shape[-1]))).numpy()

    def solve(F: np.ndarray, inside: int, outside: int, y: np.ndarray) -> None:
        """Fill in y on ``inside``, with the function ``A -> F(A or outside) - F(outside)``."""
        size, whole = members[inside].sum(), F[inside | outside] - F[outside]
        every = [S for S in range(len(F)) if S & ~inside == 0]
        values = [F[S | outside] - F[outside] - members[S].sum() * whole / size for S in every]
        best = every[int(np.argmin(values))]
        if min(values) > -1e-10 or best in (0, inside):
            y[members[inside] > 0] = whole / size
            return
        solve(F, best, outside, y)
        solve(F, inside & ~best, outside | best, y)

    out = np.zeros((len(F), members.shape[1]))
    for row, y in zip(F.detach().numpy(), out, strict=True):
        solve(row, len(row) - 1, 0, y)
    return torch.from_numpy(out)


def _search(u: Tensor, w: Tensor) -> Tensor:
    """The same for cut functions, from the table of their values."""
    members, ends = subsets(6), torch.tensor(_EDGES).T
    cut = (members[:, ends[0]] != members[:, ends[1]]).double()
    return -_decompose(w @ cut.T - u @ members.T)


ENTRIES = (
    Entry(
        name="min-norm-point",
        title="point of least norm of the base polytope of a submodular function",
        kind="conic",
        source="Fujishige 1980; Djolonga & Krause, NIPS 2017",
        build=lambda: MinNormPoint(5),
        sample=_values,
        reference=_decompose,
        example="06_submodular_cuts",
        tags=frozenset({"submodular"}),
    ),
    Entry(
        name="cut-relaxation",
        title="minimal cut as total variation on a graph",
        kind="nonlinear",
        source="Djolonga & Krause, NIPS 2017",
        build=lambda: CutRelaxation(6, _EDGES),
        sample=_picture,
        reference=_search,
        example="06_submodular_cuts",
        tags=frozenset({"submodular", "segmentation"}),
    ),
)

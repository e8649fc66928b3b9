"""Cone programs with very many parameters, declared so that time and memory follow the number of stored entries.

    least squares   y = argmin |A u - b|^2 + ridge |u|^2     subject to   u >= 0,            A sparse, all entries parameters
    portfolio       y = argmin |F u|^2 + |d u|^2 - r'u       subject to   u >= 0,  1'u = 1

Agrawal, Barratt, Boyd, Busseti & Moursi, "Differentiating through a cone program" (Journal of Applied and Numerical
Optimization 2019), whose examples they are. What is a matrix is declared with its sparsity, also the diagonal one; and no
parameter stands in an objective: there cvxpy makes a dense matrix of all variables and parameters.
"""

from __future__ import annotations

from itertools import product

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer
from ddn_cvx.nodes.checks import check_shapes
from ddn_cvx.nodes.entry import Entry


class SparseLeastSquares(nn.Module):
    """``(values (*batch, k), b (*batch, m)) -> y (*batch, n)``: nonnegative least squares with a sparse A of k entries.

    Not for ``torch.vmap``, which has no rules for sparse tensors: batch dimensions are.

    Parameters
    ----------
    m, n : int
        Rows and columns of A.
    rows, columns : (k,) integers
        Where the entries are; ``values[..., e]`` is that of the place ``(rows[e], columns[e])``.
    ridge : float
        Weight of ``|y|^2``, above 0, which makes the answer unique.

    Raises
    ------
    DeclarationError
        A place outside A or one named twice, or a ridge that is not above 0.
    InputError
        values or b has another size.

    Examples
    --------
    >>> node = SparseLeastSquares(2, 2, [0, 1], [0, 1], ridge=1.0)
    >>> node(torch.tensor([1.0, 2.0]), torch.tensor([4.0, -1.0]))
    tensor([2., 0.])
    """

    def __init__(self, m: int, n: int, rows: np.ndarray | list[int], columns: np.ndarray | list[int], ridge: float = 1.0):
        super().__init__()
        if not ridge > 0:
            raise DeclarationError(f"ridge must be above 0, got {ridge!r}.")
        i, j = (np.asarray(places, dtype=np.int64).ravel() for places in (rows, columns))
        if len(i) != len(j) or not len(i) or min(i.min(), j.min()) < 0 or i.max() >= m or j.max() >= n:
            raise DeclarationError(f"rows and columns must be as many, at least one, within {m} x {n}.")
        if len(np.unique(i * n + j)) < len(i):
            raise DeclarationError("rows and columns name a place twice: add up the values of such entries.")
        A, b, x = cp.Parameter((m, n), sparsity=(i, j), name="A"), cp.Parameter(m, name="b"), cp.Variable(n)
        objective = cp.sum_squares(A @ x - b) + ridge * cp.sum_squares(x)
        self.layer = DeclarativeLayer(cp.Problem(cp.Minimize(objective), [x >= 0]), [A, b], x)
        self.matrix = _Sparse(m, n, i, j, np.stack(A.sparse_idx))
        self.m = m

    def forward(self, values: Tensor, b: Tensor) -> Tensor:
        """y, in the dtype of values."""
        check_shapes(values=(values, (len(self.matrix.order),)), b=(b, (self.m,)))
        batch = torch.broadcast_shapes(values.shape[:-1], b.shape[:-1])
        y: Tensor = self.layer(self.matrix(values.expand(*batch, -1)), b.expand(*batch, -1).reshape(-1, self.m))
        return y.reshape(*batch, y.shape[-1])


class Portfolio(nn.Module):
    """``(F (*batch, factors, n), d (*batch, n), r (*batch, n)) -> y (*batch, n)``: the long-only portfolio of n assets.

    F holds the loadings of the assets on the factors of risk, d their own standard deviations, r their returns, all in units
    of the aversion to risk. Not for ``torch.vmap``, as ``SparseLeastSquares``.

    Parameters
    ----------
    n, factors : int
        Numbers of assets and of factors.

    Raises
    ------
    DeclarationError
        n or factors below 1.
    InputError
        F, d or r has another size.

    Examples
    --------
    >>> Portfolio(2, 1)(torch.zeros(1, 2), torch.ones(2), torch.tensor([1.0, 0.0]))
    tensor([0.7500, 0.2500])
    """

    def __init__(self, n: int, factors: int):
        super().__init__()
        if n < 1 or factors < 1:
            raise DeclarationError(f"n and factors must be at least 1, got {n!r} and {factors!r}.")
        self.n, self.factors = n, factors
        index = np.arange(n)
        F, r, x = cp.Parameter((factors, n), name="F"), cp.Parameter(n, name="r"), cp.Variable(n)
        D = cp.Parameter((n, n), sparsity=(index, index), name="D")
        common, own, gain = cp.Variable(factors), cp.Variable(n), cp.Variable()
        constraints = [common == F @ x, own == D @ x, gain == r @ x, x >= 0, cp.sum(x) == 1]
        risk = cp.sum_squares(common) + cp.sum_squares(own)
        self.layer = DeclarativeLayer(cp.Problem(cp.Minimize(risk - gain), constraints), [F, D, r], x)
        self.diagonal = _Sparse(n, n, index, index, np.stack(D.sparse_idx))

    def forward(self, F: Tensor, d: Tensor, r: Tensor) -> Tensor:
        """y, in the dtype of F."""
        n, shape = self.n, (self.factors, self.n)
        check_shapes(F=(F, shape), d=(d, (n,)), r=(r, (n,)))
        batch = torch.broadcast_shapes(F.shape[:-2], d.shape[:-1], r.shape[:-1])
        own = self.diagonal(d.expand(*batch, n))
        y: Tensor = self.layer(F.expand(*batch, *shape).reshape(-1, *shape), own, r.expand(*batch, n).reshape(-1, n))
        return y.reshape(*batch, n)


class _Sparse(nn.Module):
    """``values (*batch, k)`` -> the sparse ``(B, m, n)`` with them, the entries in the order of cvxpy."""

    order: Tensor
    places: Tensor

    def __init__(self, m: int, n: int, rows: np.ndarray, columns: np.ndarray, wanted: np.ndarray):
        super().__init__()
        self.shape = (m, n)
        key = rows * n + columns
        by_key = np.argsort(key)
        order = by_key[np.searchsorted(key, wanted[0] * n + wanted[1], sorter=by_key)]
        self.register_buffer("order", torch.from_numpy(order), persistent=False)
        self.register_buffer("places", torch.from_numpy(np.asarray(wanted, np.int64)), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        values = values.reshape(-1, values.shape[-1])[:, self.order]
        B, count = values.shape
        element = torch.arange(B, device=values.device).repeat_interleave(count)
        places = torch.cat((element.unsqueeze(0), self.places.repeat(1, B)))
        return torch.sparse_coo_tensor(places, values.reshape(-1), (B, *self.shape), check_invariants=False)


# ---------------------------------------------------------------- the catalogue's entries


_ROWS, _COLUMNS = np.array([0, 3, 1, 1, 2, 4, 4]), np.array([2, 0, 1, 0, 2, 1, 2])


def _system(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    values = torch.randn(batch, len(_ROWS), generator=generator, dtype=torch.float64)
    return values, torch.randn(batch, 5, generator=generator, dtype=torch.float64)


def _nnls(values: Tensor, b: Tensor) -> Tensor:
    """By scipy's active sets, with the ridge as further rows."""
    from scipy.optimize import nnls

    def solve(entries: np.ndarray, right: np.ndarray) -> np.ndarray:
        A = np.zeros((5, 3))
        A[_ROWS, _COLUMNS] = entries
        found: np.ndarray = nnls(np.concatenate((A, np.eye(3))), np.concatenate((right, np.zeros(3))))[0]
        return found

    batch = zip(values.detach().numpy(), b.detach().numpy(), strict=True)
    return torch.from_numpy(np.stack([solve(*element) for element in batch]))


def _market(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    F = torch.randn(batch, 2, 4, generator=generator, dtype=torch.float64)
    d = 0.5 + torch.rand(batch, 4, generator=generator, dtype=torch.float64)
    return F, d, 2 * torch.randn(batch, 4, generator=generator, dtype=torch.float64)


def _every_support(F: Tensor, d: Tensor, r: Tensor) -> Tensor:
    """The best of the portfolios that are optimal on their support, over all supports."""

    def solve(F: np.ndarray, d: np.ndarray, r: np.ndarray) -> np.ndarray:
        Q, best, value = 2 * (F.T @ F + np.diag(d**2)), np.zeros(len(r)), np.inf
        for chosen in product((False, True), repeat=len(r)):
            held = np.array(chosen)
            if not held.any():
                continue
            to_r, to_one = (np.linalg.solve(Q[np.ix_(held, held)], v) for v in (r[held], np.ones(held.sum())))
            y = np.zeros(len(r))
            y[held] = to_r + (1 - to_r.sum()) / to_one.sum() * to_one
            if (y >= -1e-12).all() and 0.5 * y @ Q @ y - r @ y < value:
                best, value = y, 0.5 * y @ Q @ y - r @ y
        return best

    batch = zip(*(t.detach().numpy() for t in (F, d, r)), strict=True)
    return torch.from_numpy(np.stack([solve(*element) for element in batch]))


ENTRIES = (
    Entry(
        name="sparse-least-squares",
        title="nonnegative least squares with a large sparse matrix of parameters",
        kind="conic",
        source="Agrawal, Barratt, Boyd, Busseti & Moursi, JANO 2019",
        build=lambda: SparseLeastSquares(5, 3, _ROWS, _COLUMNS),
        sample=_system,
        reference=_nnls,
        example="05_many_parameters",
        tags=frozenset({"large"}),
    ),
    Entry(
        name="portfolio",
        title="long-only portfolio with a factor model of risk",
        kind="conic",
        source="Agrawal, Barratt, Boyd, Busseti & Moursi, JANO 2019",
        build=lambda: Portfolio(4, 2),
        sample=_market,
        reference=_every_support,
        example="05_many_parameters",
        tags=frozenset({"large"}),
    ),
)

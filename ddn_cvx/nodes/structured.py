"""Structured prediction: weights with which the right matching wins, and by a margin.

A matching of n things to n places is a permutation matrix Y. With features ``phi_ij`` of every pair its score is
``sum_ij Y_ij w'phi_ij``. The structured support vector machine for matchings is

    w = argmin  1/2 |w|^2 + C sum_k xi_k,     xi_k = max_Y  [ pairs in which Y and Y_k differ + score(Y) - score(Y_k) ]

with the maximum over all n! matchings. Relaxed to doubly stochastic Y it is a linear program with the same value (Birkhoff),
and by the dual of that program everything is one quadratic program (Taskar, Chatalbashev, Koller & Guestrin, ICML 2005):

    xi_k >= sum_i u_ki + sum_j v_kj - score(Y_k),     u_ki + v_kj >= 1 - Y_kij + w'phi_kij.
"""

from __future__ import annotations

from itertools import permutations

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer
from ddn_cvx.nodes.checks import check_shapes
from ddn_cvx.nodes.entry import Entry, Inputs


class MatchingSVM(nn.Module):
    """``(phi (*batch, N, n, n, d), Y (*batch, N, n, n), C (*batch))`` -> ``w (*batch, d)``, trained on N matchings.

    ``phi[..., k, i, j, :]`` are the features of putting thing i of example k to place j, and ``Y[..., k, :, :]`` is the
    right permutation matrix of example k. C, above zero, is the price of a violated margin; phi and C have derivatives.

    Parameters
    ----------
    examples, size, features : int
        N, n and d.

    Raises
    ------
    DeclarationError
        A size below one, or n below two.
    InputError
        Inputs of other shapes.
    SolverError
        Numbers that are not finite.

    Notes
    -----
    w is unique; the potentials u and v are not, so that second derivatives are refused.

    Examples
    --------
    >>> phi = torch.tensor([[[[1.0], [0.0]], [[0.0], [1.0]]]])
    >>> MatchingSVM(1, 2, 1)(phi, torch.eye(2).unsqueeze(0), torch.tensor(10.0))  # 2 w >= 2 at the margin
    tensor([1.])
    """

    def __init__(self, examples: int, size: int, features: int):
        super().__init__()
        if min(examples, features) < 1 or size < 2:
            raise DeclarationError(
                f"examples and features must be at least 1 and size 2, got {examples!r}, {features!r} and {size!r}."
            )
        self.shape = (examples, size, size, features)
        self.layer = _relaxation(examples, size, features)

    def forward(self, phi: Tensor, Y: Tensor, C: Tensor) -> Tensor:
        """The weights, in the dtype of phi."""
        check_shapes(phi=(phi, self.shape), Y=(Y, self.shape[:3]))
        right = (Y.unsqueeze(-1) * phi).sum((-3, -2))
        w: Tensor = self.layer(phi.flatten(-4, -2), 1 - Y.flatten(-3, -1), right, C)
        return w


def _relaxation(N: int, n: int, d: int) -> DeclarativeLayer:
    w, xi = cp.Variable(d), cp.Variable(N)
    u, v = cp.Variable((N, n)), cp.Variable((N, n))
    phi, loss = cp.Parameter((N * n * n, d), name="phi"), cp.Parameter(N * n * n, name="loss")
    right, C = cp.Parameter((N, d), name="right"), cp.Parameter(nonneg=True, name="C")
    rows, columns = np.eye(n).repeat(n, 0), np.tile(np.eye(n), (n, 1))  # pair (i, j) takes u_i and v_j
    potentials = cp.hstack([rows @ u[k] + columns @ v[k] for k in range(N)])
    constraints = [potentials >= loss + phi @ w, xi >= cp.sum(u, axis=1) + cp.sum(v, axis=1) - right @ w]
    objective = cp.Minimize(0.5 * cp.sum_squares(w) + C * cp.sum(xi))
    return DeclarativeLayer(cp.Problem(objective, [*constraints, v[:, 0] == 0]), [phi, loss, right, C], w)


# ---------------------------------------------------------------- the catalogue's entries


def _sample(batch: int, generator: torch.Generator) -> Inputs:
    phi = torch.randn(batch, 4, 3, 3, 2, generator=generator, dtype=torch.float64)
    order = torch.rand(batch, 4, 3, generator=generator).argsort(-1)
    Y = nn.functional.one_hot(order, 3).double()
    phi = phi + Y.unsqueeze(-1) * torch.tensor([0.8, -0.5], dtype=torch.float64)
    return phi, Y, 0.2 + 0.2 * torch.rand(batch, generator=generator, dtype=torch.float64)


def _enumerated(phi: Tensor, Y: Tensor, C: Tensor) -> Tensor:
    """A constraint for every permutation of every example."""
    N, n, d = phi.shape[1], phi.shape[2], phi.shape[-1]
    every = np.stack([np.eye(n)[list(order)] for order in permutations(range(n))])

    def one(phi: np.ndarray, Y: np.ndarray, C: float) -> np.ndarray:
        w, xi = cp.Variable(d), cp.Variable(N)
        ahead = np.einsum("pij,kijd->kpd", every, phi) - np.einsum("kij,kijd->kd", Y, phi)[:, None]
        differ = n - np.einsum("pij,kij->kp", every, Y)
        margins = [xi[k] >= differ[k] + ahead[k] @ w for k in range(N)]
        problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(w) + C * cp.sum(xi)), margins)
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        return np.asarray(w.value)

    return torch.from_numpy(np.stack([one(*row) for row in zip(phi.numpy(), Y.numpy(), C.tolist(), strict=True)]))


ENTRIES = (
    Entry(
        name="matching-svm",
        title="structured support vector machine for matchings, relaxed to one quadratic program",
        kind="conic",
        source="Taskar et al., ICML 2005",
        build=lambda: MatchingSVM(4, 3, 2),
        sample=_sample,
        reference=_enumerated,
        example="20_soft_clustering",
        tolerance=1e-6,
        second_order=False,  # the dual of an assignment is not unique
        tags=frozenset({"structured"}),
    ),
)

"""Quadratic programs with learned data.

    y = argmin_u  1/2 u'Qu + p'u   subject to   A u = b,  G u <= h

Amos & Kolter, "OptNet: Differentiable Optimization as a Layer in Neural Networks" (ICML 2017): the program itself as a
node, one whose constraints are weights to be learned from examples, and total-variation denoising.
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


class QuadraticProgram(DeclarativeLayer[Tensor]):
    """``(Q, p, A, b, G, h) -> y (*batch, n)``, without A and b or G and h if there are no such constraints.

    The inputs are ``Q (*batch, n, n)``, positive semidefinite, ``p (*batch, n)``, ``A (*batch, equalities, n)``,
    ``b (*batch, equalities)``, ``G (*batch, inequalities, n)``, ``h (*batch, inequalities)``; any of them
    may be shared by the batch.

    Parameters
    ----------
    n : int
        Number of unknowns.
    equalities, inequalities : int
        Rows of A and of G.

    Raises
    ------
    DeclarationError
        n below 1, or a negative number of rows.

    Examples
    --------
    >>> QuadraticProgram(2, equalities=1)(torch.eye(2), torch.zeros(2), torch.ones(1, 2), torch.tensor([2.0]))
    tensor([1., 1.])
    """

    def __init__(self, n: int, equalities: int = 0, inequalities: int = 0):
        if n < 1 or equalities < 0 or inequalities < 0:
            raise DeclarationError(f"n must be at least 1 and rows at least 0, got {n}, {equalities} and {inequalities}.")
        y, Q, p = cp.Variable(n), cp.Parameter((n, n), PSD=True, name="Q"), cp.Parameter(n, name="p")
        parameters, constraints = [Q, p], []
        if equalities:
            A, b = cp.Parameter((equalities, n), name="A"), cp.Parameter(equalities, name="b")
            parameters += [A, b]
            constraints.append(A @ y == b)
        if inequalities:
            G, h = cp.Parameter((inequalities, n), name="G"), cp.Parameter(inequalities, name="h")
            parameters += [G, h]
            constraints.append(G @ y <= h)
        super().__init__(cp.Problem(cp.Minimize(0.5 * cp.quad_form(y, Q) + p @ y), constraints), parameters, y)


class LearnedConstraints(nn.Module):
    """``p (*batch, n) -> y (*batch, n)``: the nonnegative y that follows -p as far as learned equalities allow::

        y = argmin_u  curvature/2 |u|^2 + p'u   subject to   A u = A z,  u >= 0

    The weights are ``A (equalities, n)`` and ``log_z (n)``; with ``z = exp(log_z) > 0`` the program is always feasible.

    Parameters
    ----------
    n : int
        Number of unknowns.
    equalities : int
        Rows of A, at most n.
    curvature : float
        Makes the answer unique: the smaller, the closer to a linear program.

    Raises
    ------
    DeclarationError
        Rows outside 1 to n, or a curvature that is not positive.
    InputError
        p has another last dimension than n.

    Notes
    -----
    The program is solved in float64 whatever the dtype of the weights; the answer has the dtype of p.

    Examples
    --------
    >>> LearnedConstraints(3, 1)(torch.tensor([[-5.0, 0.0, 0.0]])).shape
    torch.Size([1, 3])
    """

    def __init__(self, n: int, equalities: int, curvature: float = 0.1):
        super().__init__()
        if not 1 <= equalities <= n:
            raise DeclarationError(f"equalities must be between 1 and n = {n}, got {equalities}.")
        if not curvature > 0:
            raise DeclarationError(f"curvature must be above 0, got {curvature!r}.")
        self.n = n
        self.A = nn.Parameter(torch.rand(equalities, n))
        self.log_z = nn.Parameter(torch.zeros(n))
        y, A, b, p = cp.Variable(n), cp.Parameter((equalities, n)), cp.Parameter(equalities), cp.Parameter(n)
        objective = 0.5 * curvature * cp.sum_squares(y) + p @ y
        self.layer = DeclarativeLayer(cp.Problem(cp.Minimize(objective), [A @ y == b, y >= 0]), [A, b, p], y)

    def forward(self, p: Tensor) -> Tensor:
        """The optimal y, in the dtype of p."""
        check_shapes(p=(p, (self.n,)))
        A = self.A.double()
        y: Tensor = self.layer(A, A @ self.log_z.double().exp(), p.double())
        return y.to(p.dtype)


class TotalVariation(DeclarativeLayer[Tensor]):
    """``(signal (*batch, n), weights (*batch, n - 1)) -> y (*batch, n)``, the denoised signal::

        y = argmin_u  1/2 |u - signal|^2 + sum_i weights_i |u_{i+1} - u_i|

    Parameters
    ----------
    n : int
        Length of a signal, at least 2. The weights must not be negative.

    Raises
    ------
    DeclarationError
        n below 2.

    Examples
    --------
    >>> TotalVariation(3)(torch.tensor([0.0, 1.0, 5.0]), torch.tensor([1.0, 1.0]))
    tensor([1., 1., 4.])
    """

    def __init__(self, n: int):
        if n < 2:
            raise DeclarationError(f"n must be at least 2, got {n}.")
        y = cp.Variable(n)
        signal, weights = cp.Parameter(n, name="signal"), cp.Parameter(n - 1, nonneg=True, name="weights")
        objective = 0.5 * cp.sum_squares(y - signal) + weights @ cp.abs(cp.diff(y))
        super().__init__(cp.Problem(cp.Minimize(objective)), [signal, weights], y)


# ---------------------------------------------------------------- the catalogue's entries


def _sample(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Feasible programs with 4 unknowns, 1 equality and 3 inequalities."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64)

    factor, A, G, inside = normal(4, 4), normal(1, 4), normal(3, 4), normal(4, 1)
    room = 0.1 + torch.rand(batch, 3, generator=generator, dtype=torch.float64)
    Q = factor @ factor.mT + torch.eye(4, dtype=torch.float64)
    return Q, 3 * normal(4), A, (A @ inside).squeeze(-1), G, (G @ inside).squeeze(-1) + room


def _every_active_set(Q: Tensor, p: Tensor, A: Tensor, b: Tensor, G: Tensor, h: Tensor) -> Tensor:
    """The KKT system of every set of active inequalities; the one whose answer is feasible, with multipliers >= 0."""

    def solve(Q: np.ndarray, p: np.ndarray, A: np.ndarray, b: np.ndarray, G: np.ndarray, h: np.ndarray) -> np.ndarray:
        n, equalities = len(p), len(b)
        for chosen in product((False, True), repeat=len(h)):
            active = np.array(chosen, dtype=bool)
            rows = np.concatenate((A, G[active]))
            if len(rows) > n:
                continue
            kkt = np.block([[Q, rows.T], [rows, np.zeros((len(rows), len(rows)))]])
            found = np.linalg.solve(kkt, np.concatenate((-p, b, h[active])))
            if (G @ found[:n] <= h + 1e-9).all() and (found[n + equalities :] >= -1e-9).all():
                return found[:n]
        raise ValueError("infeasible")

    batch = zip(*(t.detach().numpy() for t in (Q, p, A, b, G, h)), strict=True)
    return torch.from_numpy(np.stack([solve(*one) for one in batch]))


def _learned() -> LearnedConstraints:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LearnedConstraints(5, 2, curvature=1.0).double()


def _learned_reference(p: Tensor) -> Tensor:
    node, eye = _learned(), torch.eye(5, dtype=p.dtype).expand(len(p), 5, 5)
    A = node.A.expand(len(p), 2, 5)
    return _every_active_set(eye, p, A, A @ node.log_z.exp(), -eye, torch.zeros_like(p))


def _sample_signals(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    signal = torch.randn(batch, 8, generator=generator, dtype=torch.float64)
    return signal, 0.2 + torch.rand(batch, 7, generator=generator, dtype=torch.float64)


def _bounded_dual(signal: Tensor, weights: Tensor) -> Tensor:
    """``y = signal - D'v`` with the v in ``[-weights, weights]`` that makes y least, by bounded least squares."""
    from scipy.optimize import lsq_linear

    D = np.diff(np.eye(signal.shape[-1]), axis=0)

    def one(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return x - D.T @ lsq_linear(D.T, x, (-w, w), method="bvls", tol=1e-14).x

    return torch.from_numpy(np.stack([one(x, w) for x, w in zip(signal.numpy(), weights.numpy(), strict=True)]))


_SOURCE = "Amos & Kolter, ICML 2017"
ENTRIES = (
    Entry(
        name="quadratic-program",
        title="quadratic program whose data are all inputs",
        kind="conic",
        source=_SOURCE,
        build=lambda: QuadraticProgram(4, 1, 3),
        sample=_sample,
        reference=_every_active_set,
        example="04_optnet_sudoku",
        tags=frozenset({"qp"}),
    ),
    Entry(
        name="learned-constraints",
        title="quadratic program whose equalities are learned",
        kind="conic",
        source=_SOURCE,
        build=_learned,
        sample=lambda batch, generator: (2 * torch.randn(batch, 5, generator=generator, dtype=torch.float64),),
        reference=_learned_reference,
        example="04_optnet_sudoku",
        tags=frozenset({"qp", "weights"}),
    ),
    Entry(
        name="total-variation",
        title="denoising of signals by weighted total variation",
        kind="conic",
        source=_SOURCE,
        build=lambda: TotalVariation(8),
        sample=_sample_signals,
        reference=_bounded_dual,
        example="04_optnet_denoising",
        tags=frozenset({"qp", "denoising"}),
    ),
)

"""Satisfiability as a layer: rules that are learned from solved examples.

    V = argmin_U  1/2 |S'U|^2 - tilt sum_i r_i'u_i    subject to    |u_i| = 1,  u_0 = truth,  u_i = v_i where v_i is known

Wang, Donti, Wilder & Kolter, "SATNet: Bridging deep learning and logical reasoning using a differentiable satisfiability
solver" (ICML 2019). A Boolean variable is a unit vector of dimension k, the first axis if it is true and minus that if it
is false; the columns of S are soft clauses. With ``k > sqrt(2 (n + 1))`` and no tilt this is the semidefinite relaxation
of MAXSAT (Barvinok 1995; Pataki 1998), which coordinate descent solves (Wang, Chang & Kolter, "The mixing method", 2017).

What is known lies along the first axis, and all that is unknown may be turned around it: the answer is unique only up to
rotations. The fixed directions r_i, normal to the axis, choose one. SATNet adds a multiple of the identity to the linear
system of its backward pass for that reason; here it is the program that has it, and the gradient is that of the program.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, TorchProblem
from ddn_cvx.nodes.checks import check_shapes, check_values
from ddn_cvx.nodes.entry import Entry, Inputs

SMALL = 100
"""Unknowns up to which the Hessian is formed."""
EDGE = 1e-6
"""How near to 1 a cosine may come: the angle has no derivative there."""


class MaxSatRelaxation(DeclarativeLayer[Tensor]):
    """``(C (*batch, n + 1, n + 1), V (*batch, n, k), known (*batch, n)) -> U (*batch, n, k)``, the unit vectors::

        U = argmin  1/2 <C, U U'> - tilt <R, U>    with    u_0 = (1, 0, ..., 0)

    Row 0 of C is that of the truth; C is symmetric, and its diagonal does not matter. Rows of V with ``known > 1/2`` are
    kept, the others of no account.

    Parameters
    ----------
    n : int
        Number of variables.
    rank : int, optional
        k. Default: the smallest above ``sqrt(2 (n + 1))``, for which no local minimum is worse than the semidefinite program
        if what is known lies along the first axis.
    tilt : float
        Strength of the fixed directions R that single out one of the solutions. Without, larger problems may have no
        derivative.
    sweeps : int
        Of the mixing method, at most.
    tolerance : float
        Accepted relative residual of the optimality conditions.

    Raises
    ------
    DeclarationError
        n below 1, a rank below 2, or a tilt below 0.
    SolverError
        The sweeps did not suffice.

    Notes
    -----
    The lengths of the vectors are eliminated: the objective sees ``u_i / |u_i|``, and ``1/2 (|u_i| - 1)^2`` is added.

    Examples
    --------
    >>> C = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    >>> V, known = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0])
    >>> MaxSatRelaxation(2, rank=2, tilt=0.0)(C, V, known)[1] + 0.0
    tensor([-1., 0.])
    """

    def __init__(self, n: int, rank: int | None = None, tilt: float = 0.01, sweeps: int = 2000, tolerance: float = 1e-6):
        if n < 1 or (rank is not None and rank < 2):
            raise DeclarationError(f"n must be at least 1 and rank at least 2, got {n!r} and {rank!r}.")
        if not tilt >= 0:
            raise DeclarationError(f"tilt must not be negative, got {tilt!r}.")
        k = 1 + math.isqrt(2 * (n + 1)) if rank is None else rank
        start = torch.randn(n, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        start = nn.functional.normalize(start, dim=-1)
        aside = tilt * nn.functional.normalize(start * (torch.arange(k) > 0), dim=-1)

        def objective(U: Tensor, C: Tensor, V: Tensor, known: Tensor) -> Tensor:
            fixed, length = known.unsqueeze(-1) > 0.5, U.norm(dim=-1, keepdim=True)
            unit = torch.where(fixed, V, U / length)
            off = torch.where(fixed, U - V, length - 1)
            truth = torch.cat((V.new_ones(len(V), 1, 1), V.new_zeros(len(V), 1, k - 1)), -1)
            whole = torch.cat((truth, unit), 1)
            crossed = C - torch.diag_embed(C.diagonal(dim1=-2, dim2=-1))
            pull = 0.5 * crossed @ whole
            return (pull * whole).sum((1, 2)) - (aside.to(U) * unit).sum((1, 2)) + 0.5 * off.square().sum((1, 2))

        def solve(C: Tensor, V: Tensor, known: Tensor) -> Tensor:
            from_here = torch.where(known.unsqueeze(-1) > 0.5, V, start.to(V))
            return _mixed(C.expand(len(V), n + 1, n + 1), from_here, known > 0.5, aside, sweeps, 0.1 * tolerance)

        problem = TorchProblem(
            (n, k),
            objective=objective,
            solve=solve,
            parameters=[(n + 1, n + 1), (n, k), (n,)],
            batched=True,
            matrices=n * k <= SMALL,
        )
        super().__init__(problem, tolerance=tolerance)
        self.rank = k


class SATNet(nn.Module):
    """``(z (*batch, n), known (*batch, n)) -> (*batch, n)``: probabilities of being true.

    ``z`` between 0 and 1 counts where ``known > 1/2``, and comes back unchanged there; the rest is inferred.

    Parameters
    ----------
    n : int
        Number of variables.
    clauses : int
        Columns of S.
    auxiliary : int
        Further variables that no input or output shows, for rules that pairs of variables cannot express.
    rank, tilt, sweeps, tolerance
        Of ``MaxSatRelaxation``.

    Raises
    ------
    DeclarationError
        A number is out of range.
    InputError
        Inputs of other shapes, or a known z outside 0 to 1.

    Attributes
    ----------
    S : Parameter (1 + n + auxiliary, clauses)
        The clauses; row 0 belongs to the truth.

    Examples
    --------
    >>> node = SATNet(2, 1, rank=2, tilt=0.0)
    >>> _ = node.S.data.copy_(torch.tensor([[0.0], [1.0], [1.0]]))  # the two differ
    >>> node(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])).detach().round()
    tensor([[1., 0.]])
    """

    aside: Tensor

    def __init__(
        self,
        n: int,
        clauses: int,
        auxiliary: int = 0,
        rank: int | None = None,
        tilt: float = 0.01,
        sweeps: int = 2000,
        tolerance: float = 1e-6,
    ):
        if n < 1 or clauses < 1 or auxiliary < 0:
            raise DeclarationError(
                f"n and clauses must be at least 1 and auxiliary at least 0, got {n!r}, {clauses!r} and {auxiliary!r}."
            )
        super().__init__()
        rows = 1 + n + auxiliary
        self.n, self.auxiliary = n, auxiliary
        self.S = nn.Parameter(torch.randn(rows, clauses) * math.sqrt(0.5 / (rows + clauses)))
        self.layer = MaxSatRelaxation(n + auxiliary, rank, tilt, sweeps, tolerance)
        aside = torch.randn(n, self.layer.rank - 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.register_buffer("aside", nn.functional.normalize(aside, dim=-1))

    def forward(self, z: Tensor, known: Tensor) -> Tensor:
        """The probabilities, in the dtype of z."""
        check_shapes(z=(z, (self.n,)), known=(known, (self.n,)))
        outside = (known > 0.5) & ((z < 0) | (z > 1))
        z = check_values(z, ~outside, "z must lie between 0 and 1 where it is known.")
        angle = math.pi * z.to(self.aside.dtype).unsqueeze(-1)
        V = torch.cat((-torch.cos(angle), torch.sin(angle) * self.aside), -1)
        S, known = self.S.double(), known.to(V)
        pad = (0, self.auxiliary)
        U = self.layer(S @ S.mT, nn.functional.pad(V, (0, 0, *pad)), nn.functional.pad(known, pad))
        cosine = U[..., : self.n, 0].clamp(-1 + EDGE, 1 - EDGE)
        found = torch.where(known > 0.5, z.to(V), 1 - torch.acos(cosine) / math.pi)
        return found.to(z.dtype)


def _mixed(C: Tensor, V: Tensor, known: Tensor, aside: Tensor, sweeps: int, tolerance: float) -> Tensor:
    """The mixing method from ``V (B, n, k)``, on the CPU."""
    U = V.cpu().numpy().copy()
    _mix(C.cpu().numpy(), U, known.cpu().numpy(), aside.cpu().numpy(), sweeps, tolerance)
    return torch.from_numpy(U).to(V)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _mix(
    C: np.ndarray, U: np.ndarray, known: np.ndarray, aside: np.ndarray, sweeps: int, tolerance: float
) -> None:  # pragma: no cover
    """Each vector in turn is turned against the pull of the others, until none moves."""
    n, k = U.shape[1:]
    pull = np.empty(k)
    for b in range(len(U)):
        for _ in range(sweeps):
            moved = 0.0
            for i in range(n):
                if known[b, i]:
                    continue
                for a in range(k):
                    pull[a] = -aside[i, a]
                pull[0] += C[b, i + 1, 0]
                for j in range(n):
                    weight = C[b, i + 1, j + 1] if j != i else 0.0
                    for a in range(k):
                        pull[a] += weight * U[b, j, a]
                size = 0.0
                for a in range(k):
                    size += pull[a] ** 2
                if size > 0.0:
                    for a in range(k):
                        new = -pull[a] / np.sqrt(size)
                        moved = max(moved, abs(new - U[b, i, a]))
                        U[b, i, a] = new
            if not moved > tolerance:
                break


# ---------------------------------------------------------------- the catalogue's entries


def _small() -> SATNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SATNet(4, 5, auxiliary=1, rank=4, tilt=0.0, tolerance=1e-9).double()


def _sample(batch: int, generator: torch.Generator) -> Inputs:
    """Two of four variables are known."""
    z = 0.1 + 0.8 * torch.rand(batch, 4, generator=generator, dtype=torch.float64)
    return z, torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64).expand(batch, 4).clone()


def _semidefinite(z: Tensor, known: Tensor) -> Tensor:
    """The semidefinite program of the matrix of all cosines, by Clarabel."""
    import cvxpy as cp

    node, places = _small(), [0, 1, 3]
    S = node.S.detach().numpy()
    C = S @ S.T
    found = []
    for one in z:
        angle = torch.pi * one[[0, 2]].unsqueeze(-1)
        vectors = torch.cat((-torch.cos(angle), torch.sin(angle) * node.aside[[0, 2]]), -1)
        fixed = torch.cat((torch.eye(1, 4, dtype=z.dtype), vectors)).numpy()
        X = cp.Variable((6, 6), PSD=True)
        same = [X[i, j] == fixed[a] @ fixed[b] for a, i in enumerate(places) for b, j in enumerate(places) if a <= b]
        ones = [X[i, i] == 1 for i in range(6) if i not in places]
        tight = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-10)
        cp.Problem(cp.Minimize(cp.trace(C @ X)), same + ones).solve(solver=cp.CLARABEL, **tight)
        inferred = 1 - torch.acos(torch.from_numpy(X.value[0, 1:5]).clamp(-1, 1)) / torch.pi
        found.append(torch.where(known[0] > 0.5, one, inferred))
    return torch.stack(found)


ENTRIES = (
    Entry(
        name="satnet",
        title="satisfiability with learned clauses",
        kind="nonlinear",
        source="Wang, Donti, Wilder & Kolter, ICML 2019",
        build=_small,
        sample=_sample,
        reference=_semidefinite,
        example="08_satnet",
        tolerance=3e-5,  # how near Clarabel comes to the semidefinite program
        tags=frozenset({"logic", "weights"}),
    ),
)

"""A batch of nonconvex programs against IPOPT in a loop: ``python -m benchmarks.nonlinear [--batch 128]``.

    minimise  1/2 y'Qy + q'y + 1/10 sum(y^4)   subject to   1/2 y'E_j y + e_j'y = b_j,   1/2 y'G_k y + g_k'y <= d_k

with n = 20, five equalities, ten inequalities and indefinite Q, E_j, G_k; the instances differ in q, b and d.  IPOPT gets
exact derivatives written by hand in numpy, and both solve to their tolerance 1e-8 from the same start.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solvers.nonlinear_interior_point import NonlinearInteriorPoint

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Family:
    """The data all instances share, ``Q (n, n)``, ``C (p + m, n, n)`` and ``c (p + m, n)``, float64."""

    Q: Tensor
    C: Tensor
    c: Tensor
    p: int

    @staticmethod
    def make(n: int = 20, p: int = 5, m: int = 10, seed: int = 0) -> Family:
        g = torch.Generator().manual_seed(seed)
        Q, C = torch.randn(n, n, generator=g), torch.randn(p + m, n, n, generator=g) / n**0.5
        c = torch.randn(p + m, n, generator=g)
        return Family((Q + Q.mT).double() / 2, (C + C.mT).double() / 2, c.double(), p)

    def instances(self, batch: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """``q (B, n)``, right-hand sides ``r (B, p + m)`` that some point satisfies, and a start ``(B, n)``."""
        g = torch.Generator().manual_seed(seed)
        rows, n = self.c.shape
        q = torch.randn(batch, n, generator=g).double()
        inside = 0.5 * torch.randn(batch, n, generator=g).double()
        r = self.constraints(inside)
        r[:, self.p :] += 0.5 * torch.rand(batch, rows - self.p, generator=g).double()
        return q, r, inside + 0.3 * torch.randn(batch, n, generator=g).double()

    def constraints(self, y: Tensor) -> Tensor:
        """``(B, p + m)``, before the right-hand side is taken off."""
        return 0.5 * torch.einsum("bi,kij,bj->bk", y, self.C, y) + y @ self.c.mT

    def program(self) -> NonlinearProgram:
        """As torch functions."""

        def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
            q, r = theta.tensors
            y2 = y * y
            f = 0.5 * ((y @ self.Q) * y).sum(-1) + (q * y).sum(-1) + 0.1 * (y2 * y2).sum(-1)
            pushed = (y @ self.C.reshape(-1, self.C.shape[-1]).mT).view(len(y), len(self.C), -1)
            rows = 0.5 * (pushed @ y.unsqueeze(-1)).squeeze(-1) + y @ self.c.mT - r
            return f, rows[:, : self.p], rows[:, self.p :]

        return NonlinearProgram(self.Q.shape[0], self.p, len(self.c) - self.p, evaluate)


class Callbacks:
    """One instance for IPOPT, with derivatives by hand."""

    def __init__(self, family: Family, q: Array, r: Array):
        self.Q, self.C, self.c = (t.numpy() for t in (family.Q, family.C, family.c))
        self.q, self.r = q, r
        self.lower = np.tril_indices(len(q))

    def objective(self, y: Array) -> float:
        return float(0.5 * y @ self.Q @ y + self.q @ y + 0.1 * (y**4).sum())

    def gradient(self, y: Array) -> Array:
        return self.Q @ y + self.q + 0.4 * y**3

    def constraints(self, y: Array) -> Array:
        return 0.5 * (self.C @ y) @ y + self.c @ y - self.r

    def jacobian(self, y: Array) -> Array:
        return (self.C @ y + self.c).ravel()

    def hessianstructure(self) -> tuple[Array, Array]:
        return self.lower

    def hessian(self, y: Array, multipliers: Array, weight: float) -> Array:
        H = weight * (self.Q + np.diag(1.2 * y**2)) + np.tensordot(multipliers, self.C, 1)
        return H[self.lower]


def ipopt(family: Family, q: Tensor, r: Tensor, start: Tensor) -> tuple[Array, list[int]]:
    """Each instance by IPOPT: objective values and statuses (0 is solved)."""
    import cyipopt

    n, rows, p = q.shape[1], r.shape[1], family.p
    values, statuses = [], []
    for one_q, one_r, one_start in zip(q.numpy(), r.numpy(), start.numpy(), strict=True):
        callbacks = Callbacks(family, one_q, one_r)
        problem: Any = cyipopt.Problem(
            n, rows, problem_obj=callbacks, cl=np.r_[np.zeros(p), np.full(rows - p, -2e19)], cu=np.zeros(rows)
        )
        problem.add_option("print_level", 0)
        problem.add_option("sb", "yes")
        problem.add_option("tol", 1e-8)
        _, info = problem.solve(one_start)
        values.append(info["obj_val"])
        statuses.append(info["status"])
    return np.array(values), statuses


def main() -> None:
    """Solve with both, several rounds in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    family = Family.make()
    q, r, start = family.instances(options.batch)
    program, theta = family.program(), Theta((q, r), (True, True))
    solver = NonlinearInteriorPoint(tolerance=1e-8)
    ours, theirs = [], []
    point = solver.solve(program, theta, start)
    for _ in range(options.rounds):
        begin = time.perf_counter()
        point = solver.solve(program, theta, start)
        ours.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        values, statuses = ipopt(family, q, r, start)
        theirs.append(time.perf_counter() - begin)
    mine = program.values(point.y, theta)[0].numpy()
    solved = (point.status == 0).numpy() & (np.array(statuses) == 0)
    gap = (mine - values) / np.maximum(1, np.abs(values))
    print(f"batch {options.batch}, n = 20, 5 equalities, 10 inequalities; {torch.get_num_threads()} threads")
    print(f"  ours   {statistics.median(ours) * 1e3:8.1f} ms, {int((point.status == 0).sum())} solved")
    print(f"  IPOPT  {statistics.median(theirs) * 1e3:8.1f} ms, {statuses.count(0)} solved")
    print(f"  {statistics.median(theirs) / statistics.median(ours):.1f} times faster; of {solved.sum()} solved by both")
    print(f"  the same optimum {np.mean(np.abs(gap[solved]) < 1e-6):.0%}, ours lower {np.mean(gap[solved] < -1e-6):.0%}")


if __name__ == "__main__":
    main()

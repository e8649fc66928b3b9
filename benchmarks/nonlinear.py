"""A batch of nonconvex programs against IPOPT in a loop: ``python -m benchmarks.nonlinear [--batch 128] [--rounds 5]``.

    minimise    sum 1/2 (y_i - q_i)^2 + 3/10 cos(2 y_i) + 1/10 sum y_i y_{i+1}
    subject to  y_{4j}^2 + y_{4j+1} y_{4j+2} + sin y_{4j+3} = b_j,  j < 5,       y_{2k}^2 + y_{2k+1}^2 <= d_k,  k < 10,

n = 20; the instances differ in q, b and d.  Ours is the layer over the functions below, forward and backward to q, b and d.
IPOPT solves only (who wants gradients has to add the solve of a linear system), and is called twice: through cyipopt with
derivatives written by hand in numpy, and through cvxpy's own nonlinear interface, which is what a user of the same cvxpy
problem would have.  All start from the same point; IPOPT solves to 1e-8, ours to 1e-10.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import ddn_cvx
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta

Array = NDArray[np.float64]
N, P, M = 20, 5, 10


class Instances(NamedTuple):
    """Parameters ``q (B, 20), b (B, 5), d (B, 10)`` and the start ``(B, 20)``."""

    q: Tensor
    b: Tensor
    d: Tensor
    start: Tensor


def instances(batch: int, seed: int = 0) -> Instances:
    """Feasible ones: b and d are made from a random point."""
    g = torch.Generator().manual_seed(seed)
    inside = torch.randn(batch, N, generator=g).double()
    four, two = inside.view(batch, P, 4), inside.view(batch, M, 2)
    b = four[..., 0] ** 2 + four[..., 1] * four[..., 2] + four[..., 3].sin()
    d = two.square().sum(-1) + 0.2 * torch.rand(batch, M, generator=g).double()
    q = inside + torch.randn(batch, N, generator=g).double()
    return Instances(q, b, d, inside + 0.3 * torch.randn(batch, N, generator=g).double())


def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
    """The functions, for a batch."""
    q, b, d = theta.tensors
    four, two = y.unflatten(-1, (P, 4)), y.unflatten(-1, (M, 2))
    f = (0.5 * (y - q) ** 2 + 0.3 * torch.cos(2 * y)).sum(-1) + 0.1 * (y[:, 1:] * y[:, :-1]).sum(-1)
    h = four[..., 0] ** 2 + four[..., 1] * four[..., 2] + torch.sin(four[..., 3]) - b
    return f, h, two.square().sum(-1) - d


class Callbacks:
    """One instance for cyipopt, with derivatives by hand."""

    row = np.concatenate((np.repeat(np.arange(P), 4), P + np.repeat(np.arange(M), 2)))
    column = np.concatenate((np.arange(N), np.arange(N)))
    low = np.concatenate((np.arange(N), np.arange(1, N)))
    high = np.concatenate((np.arange(N), np.arange(N - 1)))

    def __init__(self, q: Array, b: Array, d: Array):
        self.q, self.b, self.d = q, b, d

    def objective(self, y: Array) -> float:
        return float((0.5 * (y - self.q) ** 2 + 0.3 * np.cos(2 * y)).sum() + 0.1 * y[1:] @ y[:-1])

    def gradient(self, y: Array) -> Array:
        slope = y - self.q - 0.6 * np.sin(2 * y)
        slope[1:] += 0.1 * y[:-1]
        slope[:-1] += 0.1 * y[1:]
        return slope

    def constraints(self, y: Array) -> Array:
        h = y[0::4] ** 2 + y[1::4] * y[2::4] + np.sin(y[3::4]) - self.b
        return np.concatenate((h, y[0::2] ** 2 + y[1::2] ** 2 - self.d))

    def jacobianstructure(self) -> tuple[Array, Array]:
        return self.row, self.column

    def jacobian(self, y: Array) -> Array:
        first = np.stack((2 * y[0::4], y[2::4], y[1::4], np.cos(y[3::4])), 1).ravel()
        return np.concatenate((first, 2 * y))

    def hessianstructure(self) -> tuple[Array, Array]:
        return self.low, self.high

    def hessian(self, y: Array, multipliers: Array, weight: float) -> Array:
        lam, mu = multipliers[:P], multipliers[P:]
        diagonal = weight * (1 - 1.2 * np.cos(2 * y)) + 2 * np.repeat(mu, 2)
        diagonal[0::4] += 2 * lam
        diagonal[3::4] -= lam * np.sin(y[3::4])
        beside = np.full(N - 1, 0.1 * weight)
        beside[1::4] += lam
        return np.concatenate((diagonal, beside))


def by_cyipopt(data: Instances) -> Array:
    """Optimal values, NaN where not solved."""
    import cyipopt

    values = []
    for q, b, d, start in zip(*(t.numpy() for t in data), strict=True):
        low = np.concatenate((np.zeros(P), np.full(M, -2e19)))
        problem: Any = cyipopt.Problem(N, P + M, problem_obj=Callbacks(q, b, d), cl=low, cu=np.zeros(P + M))
        for option, value in {"print_level": 0, "sb": "yes", "tol": 1e-8}.items():
            problem.add_option(option, value)
        _, info = problem.solve(start)
        values.append(info["obj_val"] if info["status"] == 0 else np.nan)
    return np.array(values)


def cvxpy_solver() -> Callable[[Instances], Array]:
    """A loop over one cvxpy problem with parameters."""
    import cvxpy as cp

    y, q, b, d = cp.Variable(N), cp.Parameter(N), cp.Parameter(P), cp.Parameter(M)
    four, two = cp.reshape(y, (P, 4), order="C"), cp.reshape(y, (M, 2), order="C")
    f = 0.5 * cp.sum_squares(y - q) + 0.3 * cp.sum(cp.nlp.cos(2 * y)) + 0.1 * cp.sum(cp.multiply(y[1:], y[:-1]))
    h = cp.square(four[:, 0]) + cp.multiply(four[:, 1], four[:, 2]) + cp.nlp.sin(four[:, 3])
    problem = cp.Problem(cp.Minimize(f), [h == b, cp.sum(cp.square(two), axis=1) <= d])

    def solve(data: Instances) -> Array:
        values = []
        for q.value, b.value, d.value, y.value in zip(*(t.numpy() for t in data), strict=True):
            problem.solve(solver=cp.IPOPT, nlp=True, print_level=0, sb="yes", tol=1e-8)
            values.append(problem.value if problem.status == "optimal" else np.nan)
        return np.array(values)

    return solve


def objective(y: Tensor, q: Tensor, b: Tensor, d: Tensor, start: Tensor) -> Tensor:
    """f for one instance, as a user writes it."""
    return (0.5 * (y - q) ** 2 + 0.3 * torch.cos(2 * y)).sum() + 0.1 * (y[1:] * y[:-1]).sum()


def equality(y: Tensor, q: Tensor, b: Tensor, d: Tensor, start: Tensor) -> Tensor:
    """h for one instance."""
    four = y.reshape(P, 4)
    return four[:, 0] ** 2 + four[:, 1] * four[:, 2] + torch.sin(four[:, 3]) - b


def inequality(y: Tensor, q: Tensor, b: Tensor, d: Tensor, start: Tensor) -> Tensor:
    """g for one instance."""
    return y.reshape(M, 2).square().sum(-1) - d


def layer() -> ddn_cvx.DeclarativeLayer:
    """All defaults; the start is an input."""
    return ddn_cvx.DeclarativeLayer(
        ddn_cvx.TorchProblem(N, objective, equality, inequality, initial=lambda q, b, d, start: start), on_failure="nan"
    )


def our_solver() -> Callable[[Instances], Array]:
    """Forward and backward, the whole batch at once."""
    program, node = NonlinearProgram(N, P, M, evaluate), layer()

    def solve(data: Instances) -> Array:
        q, b, d = (t.clone().requires_grad_() for t in data[:3])
        y = node(q, b, d, data.start)
        y.nan_to_num().square().sum().backward()
        return program.values(y.detach(), Theta(tuple(data[:3]), (True, True, True)))[0].numpy()

    return solve


def main() -> None:
    """Solve with all, several rounds in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    data = instances(options.batch)
    solvers = {"ours": our_solver(), "IPOPT, cyipopt": by_cyipopt, "IPOPT, cvxpy nlp": cvxpy_solver()}
    times: dict[str, list[float]] = {name: [] for name in solvers}
    values = {name: solve(data) for name, solve in solvers.items()}
    for _ in range(options.rounds):
        for name, solve in solvers.items():
            begin = time.perf_counter()
            solve(data)
            times[name].append(time.perf_counter() - begin)
    print(f"batch {options.batch}, n = {N}, {P} equalities, {M} inequalities; {torch.get_num_threads()} threads")
    print("ours: forward and backward; IPOPT: forward only, so that its times are too favourable")
    base = statistics.median(times["ours"])
    for name, value in values.items():
        gap = (value - values["ours"]) / np.maximum(1, np.abs(value))
        time_ = statistics.median(times[name])
        print(
            f"  {name:18} {time_ * 1e3:8.1f} ms  {time_ / base:5.1f} x  solved {np.isfinite(value).mean():4.0%}"
            f"  same optimum as ours {np.mean(np.abs(gap) < 1e-6):4.0%}, lower {np.mean(gap < -1e-6):4.0%}"
        )


if __name__ == "__main__":
    main()

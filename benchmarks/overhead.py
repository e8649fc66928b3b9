"""Where the time of a call goes: what is not solving, checking or differentiating should be little.

    python -m benchmarks.overhead              # a table, in percent of a forward and backward pass
    python -m benchmarks.overhead --seconds 2  # longer for each row

Parts are measured inside of real calls by replacing functions with timed ones; "autograd" is what is left: Python and
torch's bookkeeping around the parts. The map from parameters to data and what follows are one sweep of kernels that threads
share: the calling thread's time in the kernel of the map stands for that of all.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cvxpy
import numpy as np
import torch

from benchmarks.problems import Declaration, Row, qp
from ddn_cvx import DeclarativeLayer
from ddn_cvx.adjoint import compiled, implicit
from ddn_cvx.call import Call
from ddn_cvx.declare.cvxpy_convex import ConvexProblem
from ddn_cvx.kernels import substitution

cp: Any = cvxpy
LIMIT = 15.0
"""Percent of a call that may go to the parameter map, recovery and autograd."""


def box(n: int, m: int, batch: int) -> Row:
    """A linear program in the unit box with m inequalities, all coefficients parameters."""

    def declare() -> Declaration:
        x, c, G, h = cp.Variable(n), cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m)
        problem = cp.Problem(cp.Minimize(c @ x), [G @ x <= h, x >= -1, x <= 1])
        return Declaration(problem, [c, G, h], x)

    def draw(generator: np.random.Generator) -> list[Any]:
        normal = generator.standard_normal
        return [normal(n), normal((m, n)), 1 + generator.random(m)]

    return Row(f"lp-box-{n}-{m}-batch-{batch}", declare, batch, n, draw)


def socp(n: int, m: int, batch: int) -> Row:
    """The least norm of A x - b in a ball, all coefficients parameters."""

    def declare() -> Declaration:
        x, A, b = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m)
        return Declaration(cp.Problem(cp.Minimize(cp.norm(A @ x - b)), [cp.norm(x) <= 1]), [A, b], x)

    def draw(generator: np.random.Generator) -> list[Any]:
        return [generator.standard_normal((m, n)), generator.standard_normal(m)]

    return Row(f"socp-{n}-{m}-batch-{batch}", declare, batch, n, draw)


ROWS = [qp(10, 3, 5, 128), qp(50, 10, 50, 64), box(50, 50, 64), socp(20, 40, 128)]
PARTS: dict[str, list[tuple[Any, str]]] = {
    "map": [(substitution, "bind"), (ConvexProblem, "pieces"), (ConvexProblem, "bind")],
    "solve and check": [(Call, "from_parameters"), (Call, "__call__")],
    "recovery": [(ConvexProblem, "recover")],
    "differentiate": [(compiled, "pull_back"), (implicit.SolutionMap, "backward")],
}


class Clock:
    """Seconds of the calling thread by part; a part inside another does not count for the outer one."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._thread, self._inside = threading.get_ident(), [0.0]

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, watched."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread:
                return function(*args, **kwargs)
            self._inside.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - start
                self.seconds[part] += took - self._inside.pop()
                self._inside[-1] += took

        if hasattr(function, "overloads"):  # of a kernel, which tell whether it is compiled
            call.overloads = function.overloads  # type: ignore[attr-defined]  # functions allow it
        return call


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Time the parts of every call."""
    kept = [(owner, name, owner.__dict__[name]) for places in PARTS.values() for owner, name in places]
    try:
        for part, places in PARTS.items():
            for owner, name in places:
                original = owner.__dict__[name]
                plain = original.__func__ if isinstance(original, staticmethod) else original
                timed = clock.timed(part, plain)
                setattr(owner, name, staticmethod(timed) if isinstance(original, staticmethod) else timed)
        yield
    finally:
        for owner, name, original in kept:
            setattr(owner, name, original)


def breakdown(row: Row, seconds: float) -> dict[str, float]:
    """Milliseconds of a forward and backward pass by part, and "autograd", the rest; medians over the passes."""
    declaration = row.declare()
    layer = DeclarativeLayer(declaration.problem, declaration.parameters, declaration.variable)
    leaves = [torch.from_numpy(value).requires_grad_() for value in row.values([0])]

    def step() -> None:
        out = layer(*leaves)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    for _ in range(3):
        step()
    clock, found, end = Clock(), [], time.perf_counter() + seconds
    with watched(clock):
        while time.perf_counter() < end or len(found) < 5:
            clock.seconds = dict.fromkeys(PARTS, 0.0)
            start = time.perf_counter()
            step()
            total = time.perf_counter() - start
            found.append([*clock.seconds.values(), total - sum(clock.seconds.values())])
    medians = np.median(np.array(found), axis=0)
    return dict(zip([*PARTS, "autograd"], (1e3 * medians).tolist(), strict=True))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row (default 1)")
    args = parser.parse_args()
    names = [*PARTS, "autograd"]
    print(f"{'':<24}{'ms':>8}" + "".join(f"{name:>18}" for name in names) + f"{'overhead':>12}")
    for row in ROWS:
        parts = breakdown(row, args.seconds)
        total = sum(parts.values())
        overhead = 100 * (parts["map"] + parts["recovery"] + parts["autograd"]) / total
        shares = "".join(f"{100 * parts[name] / total:>16.1f} %" for name in names)
        print(f"{row.name:<24}{total:>8.2f}{shares}{overhead:>10.1f} %" + ("" if overhead <= LIMIT else "  above the limit"))


if __name__ == "__main__":
    main()

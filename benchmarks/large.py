"""Layers with up to a million parameter entries, forward and backward: ``python -m benchmarks.large``.

Every row is a process of its own, so that its peak memory is what the problem needs (above that of the imported packages).
The gradient of a random functional is checked along a random direction against central differences. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import torch

import ddn_cvx as ddn

SIZES = (100_000, 300_000, 1_000_000)
STEP = 1e-6
PER_ROW = 10  # entries in a row of the sparse matrices


def sparse_least_squares(count: int, local: bool, rng: np.random.Generator) -> tuple[ddn.DeclarativeLayer, Any, Any]:
    """``min |Ax - b|^2 + |x|^2, x >= 0`` with a parameter A of this many entries, along a band or anywhere."""
    m = count // PER_ROW
    n = m // 2
    rows = np.repeat(np.arange(m), PER_ROW)
    cols = (rows // 2 + np.tile(np.arange(PER_ROW), m)) % n if local else rng.integers(0, n, count)
    A, b, x = cp.Parameter((m, n), sparsity=(rows, cols)), cp.Parameter(m), cp.Variable(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + cp.sum_squares(x)), [x >= 0])
    layer = ddn.DeclarativeLayer(problem, [A, b], x)
    places = torch.as_tensor(np.stack(A.sparse_idx))

    def call(values: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return layer(torch.sparse_coo_tensor(places, values, (m, n), check_invariants=False), b)

    return layer, call, (torch.as_tensor(rng.standard_normal(places.shape[1])), torch.as_tensor(rng.standard_normal(m)))


def portfolio(count: int, rng: np.random.Generator) -> tuple[ddn.DeclarativeLayer, Any, Any]:
    """``min |Fx|^2 - r'x`` over the simplex with a dense square parameter F."""
    n = math.isqrt(count)
    F, r, x = cp.Parameter((n, n)), cp.Parameter(n), cp.Variable(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(F @ x) - r @ x), [x >= 0, cp.sum(x) == 1])
    layer = ddn.DeclarativeLayer(problem, [F, r], x)
    return layer, layer, (torch.as_tensor(rng.standard_normal((n, n)) / n**0.5), torch.as_tensor(rng.random(n) / n))


PROBLEMS = {
    "least squares, entries along a band": lambda count, rng: sparse_least_squares(count, True, rng),
    "least squares, entries anywhere": lambda count, rng: sparse_least_squares(count, False, rng),
    "portfolio, dense factors": portfolio,
}


def measure(name: str, count: int) -> dict[str, Any]:
    """One row."""
    rng, before = np.random.default_rng(0), peak()
    start = time.perf_counter()
    layer, call, (values, other) = PROBLEMS[name](count, rng)
    built = time.perf_counter()
    values.requires_grad_()
    out = call(values, other)
    solved = time.perf_counter()
    weight = torch.as_tensor(rng.standard_normal(out.shape))
    (out * weight).sum().backward()
    done, memory = time.perf_counter(), peak() - before
    direction = torch.as_tensor(rng.standard_normal(values.shape))
    with torch.no_grad():
        ends = [float((call(values + s * STEP * direction, other) * weight).sum()) for s in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * STEP)
    error = abs(float((values.grad * direction).sum()) - expected) / abs(expected)
    program = layer.node.program
    again = time.perf_counter()
    with torch.no_grad():
        call(values, other)
    return {
        "entries": values.numel(),
        "n + m": program.n + program.m,
        "solver": type(layer.solver.pick(program).solver).__name__,
        "build": built - start,
        "first": solved - built,
        "forward": time.perf_counter() - again,
        "backward": done - solved,
        "memory": memory,
        "error": error,
    }


def peak() -> float:
    """Peak memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "ENTRIES"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "large.md")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    lines = [
        "| problem | entries | n + m | solver | build | first call | forward | backward | peak memory | bytes an entry | "
        "gradient error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for name in PROBLEMS:
        for count in SIZES:
            command = [sys.executable, "-m", "benchmarks.large", "--one", name, str(count)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            lines.append(
                f"| {name} | {row['entries']:,} | {row['n + m']:,} | {row['solver']} | {row['build']:.1f} s | "
                f"{row['first']:.1f} s | {row['forward']:.1f} s | {row['backward']:.2f} s | {row['memory']:.0f} MB | "
                f"{row['memory'] * 2**20 / row['entries']:.0f} | {row['error']:.0e} |"
            )
            print(lines[-1], flush=True)
    options.out.write_text(_HEAD + "\n".join(lines) + "\n", encoding="utf-8")


_HEAD = """# Large sparse problems

`python -m benchmarks.large`; one instance, float64. Peak memory is above that of the imported packages; building
includes the look for a sparse factor, the first call compilation. The gradient error is relative, along a random
direction, against central differences; constraints may change sides within their step.

"""

if __name__ == "__main__":
    main()

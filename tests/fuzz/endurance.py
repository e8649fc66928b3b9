"""A long run: ``python tests/fuzz/endurance.py --steps 10000`` trains small layers and prints how memory grows.

Every layer is trained for so many steps; the resident memory of the process (and the GPU's, where there is one) is read on
the way, and the slope of a straight line through the readings after the warm-up is printed in bytes a step. Exits with 1 if
a slope is above ``LIMIT``.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor, nn

import ddn_cvx as ddn

LIMIT = 200.0
"""Bytes a step: 2 MB in 10 000 steps, less than one leaked tensor of the batches below (8 x 6 doubles) a step."""


def quadratic() -> ddn.DeclarativeLayer:
    """A convex layer, which compiled code solves."""
    x, p = cp.Variable(6), cp.Parameter(6)
    return ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0]), [p], x)


def nonlinear() -> ddn.DeclarativeLayer:
    """A nonlinear layer, which compiled code solves."""

    def objective(y: Tensor, x: Tensor) -> Tensor:
        return ((y - x) ** 2).sum() + 0.1 * (y**4).sum()

    return ddn.DeclarativeLayer(ddn.TorchProblem((6,), objective, lambda y, x: (y**2).sum() - 1))


def fixed_point() -> ddn.DeclarativeLayer:
    """An equilibrium, found by Anderson's method in torch."""
    return ddn.DeclarativeLayer(ddn.FixedPoint((6,), lambda z, x: torch.tanh(0.5 * z + x)))


LAYERS: dict[str, Callable[[], ddn.DeclarativeLayer]] = {
    "convex, compiled": quadratic,
    "nonlinear, compiled": nonlinear,
    "fixed point": fixed_point,
}


def resident() -> int:
    """Bytes of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def readings(layer: ddn.DeclarativeLayer, steps: int, device: str = "cpu", every: int = 0) -> np.ndarray:
    """Steps and bytes ``(2, K)`` while a linear map in front of the layer is trained."""
    every = every or max(1, steps // 200)
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(6, 6, dtype=torch.float64, device=device)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    seen: list[tuple[int, int]] = []
    gc.collect()
    gc.freeze()  # collections on the way need not look at what is there already
    for step in range(steps):
        x = torch.randn(8, 6, dtype=torch.float64, generator=generator).to(device)
        answer: Any = layer(model(x))
        loss = (answer - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % every == 0:
            gc.collect()
            used = resident() if device == "cpu" else torch.cuda.memory_allocated()
            seen.append((step, used))
    gc.unfreeze()
    return np.array(seen, dtype=float).T


def slope(found: np.ndarray) -> float:
    """Bytes a step, by least squares over the second half, when allocators and caches have settled."""
    step, used = found[:, found.shape[1] // 2 :]
    return float(np.polyfit(step - step[0], used - used[0], 1)[0])


def main() -> int:
    """Run, print, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    steps: int = parser.parse_args().steps
    worst = 0.0
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for name, build in LAYERS.items():
            begin = time.monotonic()
            found = readings(build(), steps, device)
            grows = slope(found)
            worst = max(worst, grows)
            total = (found[1, -1] - found[1, found.shape[1] // 2]) / 1e3
            took = time.monotonic() - begin
            print(f"{name} on {device}: {grows:+.1f} bytes a step, {total:+.0f} kB in the later half, {took:.0f} s")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

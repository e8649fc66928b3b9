"""Cone programs with a million parameters, forward and backward, in memory that is linear in their number.

Nonnegative least squares with a sparse matrix (50 entries a row, along a band), and a long-only portfolio with 50 factors of
risk: after Agrawal, Barratt, Boyd, Busseti & Moursi (2019). Each of our sizes runs in a process of its own, whose peak
memory, above that of the imported packages, is what the problem needs over all seeds. Baseline, for sizes that it can take:
the same programs differentiated by diffcp, the code of that paper (if it is installed), with its dense matrix; its other
modes are less accurate. Fails if a program with a million parameters needs more memory for each than one with 300 000,
or if gradients are wrong, by central differences at a million parameters and by diffcp at 3000. Not for Windows.
"""

from __future__ import annotations

import importlib.util
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figure import options, pyplot, require, save, spread
from torch import Tensor, nn
from tqdm import tqdm

import ddn_cvx as ddn
from ddn_cvx.nodes import Portfolio, SparseLeastSquares

SIZES, SMALL = (100_000, 300_000, 1_020_000), (3_000, 10_000, 30_000)
WIDTH, STEP = 50, 1e-6
NAMES = ("least squares", "portfolio")


def build(name: str, count: int) -> nn.Module:
    """A node with about so many parameters."""
    if name == "portfolio":
        return Portfolio(count // (WIDTH + 2), WIDTH)
    m = count // (WIDTH + 1)
    rows, n = np.repeat(np.arange(m), WIDTH), max(m // 2, WIDTH)
    return SparseLeastSquares(m, n, rows, (rows // 2 + np.tile(np.arange(WIDTH), m)) % n)


def data(name: str, node: nn.Module, seed: int) -> tuple[Tensor, ...]:
    rng = np.random.default_rng(seed)
    if isinstance(node, Portfolio):
        factors, n = node.factors, node.n
        F, d, r = rng.standard_normal((factors, n)) / factors**0.5, 0.5 + rng.random(n), 0.1 * rng.random(n)
        return tuple(map(torch.as_tensor, (F, d, r)))
    return torch.as_tensor(rng.standard_normal(len(node.matrix.order))), torch.as_tensor(rng.standard_normal(node.m))


def gradient(node: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, float, float]:
    """Of a random functional of the answer with respect to the first input; its weights; processor seconds each way."""
    first = inputs[0].clone().requires_grad_()
    start = time.process_time()
    out = node(first, *inputs[1:])
    solved = time.process_time()
    weight = torch.as_tensor(np.random.default_rng(9).standard_normal(out.shape))
    (out * weight).sum().backward()
    return first.grad, weight, solved - start, time.process_time() - solved


def peak() -> int:
    """Bytes of memory that this process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held before this program began
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(name: str, count: int, seeds: int, check: bool) -> dict[str, Any]:
    """One size: seconds and bytes a parameter, and the error of the gradient along a random direction."""
    torch.set_num_threads(1)
    before = peak()
    start = time.process_time()
    node = build(name, count)
    built = time.process_time() - start
    runs = []
    for seed in range(seeds):
        inputs = data(name, node, seed)
        runs.append(gradient(node, inputs))
    memory = peak() - before
    entries, error = sum(t.numel() for t in inputs), float("nan")
    if check:
        found, weight = runs[-1][:2]
        direction = torch.as_tensor(np.random.default_rng(8).standard_normal(found.shape))
        with torch.no_grad():
            ends = [float((node(inputs[0] + s * STEP * direction, *inputs[1:]) * weight).sum()) for s in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * STEP)
        error = abs(float((found * direction).sum()) - slope) / abs(slope)
    return {
        "entries": entries, "build": built, "forward": [r[2] for r in runs], "backward": [r[3] for r in runs],
        "bytes": memory / entries, "error": error,
    }  # fmt: skip


def by_diffcp(name: str, count: int, seeds: int) -> dict[str, Any]:
    """The same with diffcp forward and backward, and how far our gradient is from its."""
    torch.set_num_threads(1)
    node, runs, error = build(name, count), [], 0.0
    inputs = data(name, node, 0)
    ours = [gradient(node, data(name, node, seed))[0] for seed in range(seeds)]
    node.layer.adjoint = ddn.DiffcpAdjoint(mode="dense", threads=1)
    for seed in range(seeds):
        runs.append(gradient(node, data(name, node, seed)))
        error = max(error, float((runs[-1][0] - ours[seed]).norm() / ours[seed].norm()))
    return {"entries": sum(t.numel() for t in inputs), "forward": [r[2] for r in runs], "backward": [r[3] for r in runs],
            "error": error}  # fmt: skip


def main() -> None:
    arguments = options(__doc__, "many_parameters")
    shrink = 20 if arguments.quick else 1
    ours: dict[str, list[dict[str, Any]]] = {}
    theirs: dict[str, list[dict[str, Any]]] = {}
    small = SMALL[: 1 if arguments.quick else None] if importlib.util.find_spec("diffcp") else ()
    todo = [(name, count, True) for name in NAMES for count in SIZES] + [(n, c, False) for n in NAMES for c in small]
    print(f"{'problem':14} {'parameters':>10}  build s  {'forward s':20} {'backward s':20} bytes a parameter", end="")
    print("  error of the gradient")
    for name, count, mine in tqdm(todo, desc="sizes"):
        last = mine and count == SIZES[-1]
        task = (measure, name, count // shrink, arguments.seeds, last) if mine else (by_diffcp, name, count, arguments.seeds)
        if arguments.quick or not mine:  # a process takes seconds to start
            row = task[0](*task[1:])
        else:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                row = process.submit(*task).result()
        (ours if mine else theirs).setdefault(name, []).append(row)
        built, size = (f"{row['build']:.1f}", f"{row['bytes']:.0f}") if mine else ("diffcp", "")
        error = f"{row['error']:.0e}" if row["error"] == row["error"] else ""
        times = f"{spread(row['forward']):20} {spread(row['backward']):20}"
        tqdm.write(f"{name:14} {row['entries']:10,}  {built:>7}  {times} {size:>17}  {error:>21}")
    plot(ours, theirs, arguments.plot)
    for name in NAMES:
        _, middle, last = ours[name]
        claim = f"{name}: {last['bytes']:.0f} bytes for each of {last['entries']:,} parameters, {middle['bytes']:.0f} for"
        linear = last["bytes"] <= 1.1 * middle["bytes"]
        require(f"{claim} each of {middle['entries']:,}", linear and last["entries"] >= 1e6, arguments.quick)
        require(f"{name}: gradient within {last['error']:.0e} of the differences", last["error"] < 1e-4, arguments.quick)
        if theirs:
            error = theirs[name][0]["error"]
            require(f"{name}: gradient within {error:.0e} of diffcp's", error < 1e-4, arguments.quick)


def plot(ours: dict[str, list[dict[str, Any]]], theirs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for name, colour in zip(NAMES, ("tab:blue", "tab:orange"), strict=True):
        entries = [row["entries"] for row in ours[name]]
        memory = [max(row["bytes"] * row["entries"] / 2**20, 1) for row in ours[name]]  # small ones may fit in what is there
        left.loglog(entries, memory, "o-", color=colour, label=name)
        for rows, style, who in ((ours[name], "o-", ""), (theirs.get(name, []), "s:", ", diffcp")):
            seconds = [np.add(row["forward"], row["backward"]).mean() for row in rows]
            if rows:
                right.loglog([row["entries"] for row in rows], seconds, style, color=colour, label=name + who)
    ends = np.array([min(entries), max(entries)])
    left.loglog(ends, memory[-1] * ends / ends[-1], "k--", linewidth=1, label="linear")
    left.set(xlabel="parameters", ylabel="peak memory, MiB", title="memory, forward and backward")
    right.set(xlabel="parameters", ylabel="processor seconds", title="time, forward and backward")
    for axis in (left, right):
        axis.grid(which="both", alpha=0.25)
        axis.legend()
    save(figure, path, dpi=120)


if __name__ == "__main__":
    main()

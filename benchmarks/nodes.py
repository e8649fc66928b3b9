"""Backward passes of declared nodes against the reference code of Deep Declarative Networks:
``python -m benchmarks.nodes [--batch 256]``, with that code (package ``ddn``) on the path.

Each node is declared to both by the same batched functions and solved by the same closed form or loop, so that only the
differentiation is compared: the gradient of a random functional of the output, and how far it is from central differences.
Memory is what a process of its own needs more at its peak (Linux).
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ddn_cvx as ddn

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Node:
    """One node: batched functions of the output y first, then of the inputs."""

    name: str
    size: int
    """Entries of y."""
    inputs: Callable[[int, torch.Generator], list[Tensor]]
    objective: Function
    solve: Function
    equality: Function | None = None


def robust_pooling(channels: int, points: int, penalty: str) -> Node:
    """For each channel the mean of its points under a pseudo-Huber or Welsch penalty."""

    def phi(z: Tensor) -> Tensor:
        return (1 + z * z).sqrt() - 1 if penalty == "pseudo-Huber" else 1 - torch.exp(-z * z / 2)

    def objective(y: Tensor, x: Tensor) -> Tensor:
        return phi(y.unsqueeze(-1) - x).sum((-2, -1))

    def solve(x: Tensor) -> Tensor:
        y = x.median(-1).values
        for _ in range(60):  # iteratively reweighted least squares
            z = y.unsqueeze(-1) - x
            weight = (1 + z * z) ** -0.5 if penalty == "pseudo-Huber" else torch.exp(-z * z / 2)
            y = (weight * x).sum(-1) / weight.sum(-1)
        for _ in range(3):  # and Newton's method
            with torch.enable_grad():
                at = y.detach().requires_grad_()
                first = torch.autograd.grad(objective(at, x).sum(), at, create_graph=True)[0]
                second = torch.autograd.grad(first.sum(), at)[0]
            y = y - first.detach() / second
        return y

    return Node(
        f"robust pooling, {penalty}, {channels} channels of {points} points",
        channels,
        lambda batch, g: [torch.randn(batch, channels, points, generator=g).double()],
        objective,
        solve,
    )


def sphere(n: int) -> Node:
    """Projection onto the unit sphere."""
    return Node(
        f"projection onto the sphere, n = {n}",
        n,
        lambda batch, g: [torch.randn(batch, n, generator=g).double()],
        lambda y, x: 0.5 * ((y - x) ** 2).sum(-1),
        lambda x: x / x.norm(dim=-1, keepdim=True),
        lambda y, x: (y * y).sum(-1, keepdim=True) - 1,
    )


def least_squares(m: int, n: int) -> Node:
    """Linear regression with both sides as inputs."""
    return Node(
        f"least squares, {m} x {n}",
        n,
        lambda batch, g: [torch.randn(batch, m, n, generator=g).double(), torch.randn(batch, m, generator=g).double()],
        lambda y, A, b: 0.5 * ((A @ y.unsqueeze(-1)).squeeze(-1) - b).square().sum(-1),
        lambda A, b: torch.cholesky_solve(A.mT @ b.unsqueeze(-1), torch.linalg.cholesky(A.mT @ A)).squeeze(-1),
    )


def transport(rows: int, columns: int) -> Node:
    """Entropic optimal transport between uniform marginals; one marginal constraint is implied by the others."""

    def solve(M: Tensor) -> Tensor:
        K = torch.exp(-M)
        u = torch.ones_like(K[..., :1])
        for _ in range(300):
            v = (1 / columns) / (K * u).sum(-2, keepdim=True)
            u = (1 / rows) / (K * v).sum(-1, keepdim=True)
        return (u * K * v).flatten(1)

    def equality(y: Tensor, M: Tensor) -> Tensor:
        P = y.reshape(-1, rows, columns)
        return torch.cat((P.sum(-1) - 1 / rows, P.sum(-2)[:, 1:] - 1 / columns), 1)

    return Node(
        f"optimal transport, {rows} x {columns}",
        rows * columns,
        lambda batch, g: [torch.rand(batch, rows, columns, generator=g).double()],
        lambda y, M: (y * M.flatten(1)).sum(-1) + (y * y.log() - y).sum(-1),
        solve,
        equality,
    )


NODES = [
    robust_pooling(32, 49, "pseudo-Huber"),
    robust_pooling(32, 49, "Welsch"),
    sphere(64),
    least_squares(60, 30),
    transport(8, 8),
]


def ours(node: Node) -> Callable[..., Tensor]:
    """The node as a layer of this package."""
    problem = ddn.TorchProblem((node.size,), node.objective, node.equality, solve=node.solve, batched=True)
    return ddn.DeclarativeLayer(problem)


def reference(node: Node) -> Callable[..., Tensor]:
    """The node as a subclass of the reference code's classes, with its own gradient."""
    from ddn.pytorch import node as classes

    base: Any = classes.AbstractDeclarativeNode if node.equality is None else classes.EqConstDeclarativeNode

    class Declared(base):  # type: ignore[misc]  # a class chosen above
        def objective(self, *xs: Tensor, y: Tensor) -> Tensor:
            return node.objective(y, *xs)

        def equality_constraints(self, *xs: Tensor, y: Tensor) -> Tensor:
            assert node.equality is not None
            return node.equality(y, *xs)

        def solve(self, *xs: Tensor) -> tuple[Tensor, None]:
            return node.solve(*(x.detach() for x in xs)), None

    layer: Callable[..., Tensor] = classes.DeclarativeLayer(Declared(eps=1e-6))
    return layer


PEERS = {"ddn_cvx": ours, "DDN reference code": reference}


def gradients(layer: Callable[..., Tensor], inputs: list[Tensor], cotangent: Tensor) -> tuple[list[Tensor], float, float]:
    """Gradients, and the seconds of the forward and of the backward pass."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    begin = time.perf_counter()
    y = layer(*leaves)
    middle = time.perf_counter()
    found = torch.autograd.grad(y, leaves, cotangent)
    return list(found), middle - begin, time.perf_counter() - middle


def exact(node: Node, inputs: list[Tensor], cotangent: Tensor, step: float = 1e-5) -> tuple[Tensor, list[Tensor]]:
    """The derivative in one random direction by central differences, ``(B,)``, and the direction."""
    g = torch.Generator().manual_seed(7)
    directions = [torch.randn(t.shape, generator=g).double() for t in inputs]
    ends = [node.solve(*(t + sign * step * d for t, d in zip(inputs, directions, strict=True))) for sign in (1, -1)]
    change = ((ends[0] - ends[1]) * cotangent).sum(-1) / (2 * step)
    return change, directions


def _peak(peer: str, index: int, batch: int, results: Any) -> None:
    node, generator = NODES[index], torch.Generator().manual_seed(0)
    inputs = node.inputs(2, generator)
    layer = PEERS[peer](node)
    gradients(layer, inputs, torch.ones(2, node.size).double())  # imports, caches
    inputs = node.inputs(batch, generator)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use
    before = _megabytes("VmRSS")
    gradients(layer, inputs, torch.ones(batch, node.size).double())
    results.put(_megabytes("VmHWM") - before)


def _megabytes(field: str) -> float:
    """A line of Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak(peer: str, index: int, batch: int) -> float:
    """Megabytes that one pass adds to the peak of a fresh process."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_peak, args=(peer, index, batch, results))
    process.start()
    found: float = results.get(timeout=300)
    process.join()
    return found


def main() -> None:
    """Print a line for each node and peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the reference code warns of every residual above its eps
    print(f"batch {options.batch}, {torch.get_num_threads()} threads; medians of {options.rounds} rounds in turn")
    for index, node in enumerate(NODES):
        generator = torch.Generator().manual_seed(0)
        layers = {name: build(node) for name, build in PEERS.items()}
        inputs = node.inputs(options.batch, generator)
        cotangent = torch.randn(options.batch, node.size, generator=generator).double()
        change, directions = exact(node, inputs, cotangent)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in layers}
        error = {}
        for name, layer in layers.items():
            found, *_ = gradients(layer, inputs, cotangent)
            moved = sum((f * d).flatten(1).sum(1) for f, d in zip(found, directions, strict=True))
            error[name] = float(((moved - change).abs() / (1 + change.abs())).max())
        for _ in range(options.rounds):
            for name, layer in layers.items():
                seconds[name].append(gradients(layer, inputs, cotangent)[1:])
        base = statistics.median(b for _, b in seconds["ddn_cvx"])
        print(node.name)
        for name, samples in seconds.items():
            forward, backward = (statistics.median(column) for column in zip(*samples, strict=True))
            print(
                f"  {name:20} backward {backward * 1e3:8.2f} ms ({backward / base:5.1f} x), "
                f"forward {forward * 1e3:8.2f} ms, "
                f"error {error[name]:.0e}, memory {peak(name, index, options.batch):6.1f} MB"
            )


if __name__ == "__main__":
    main()

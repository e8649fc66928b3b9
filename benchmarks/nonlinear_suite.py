"""The suite ``nonlinear``: declared nodes beside the reference code of Deep Declarative Networks, forward and backward (with
its package ``ddn`` on the path); and a batch of nonconvex programs beside IPOPT in a loop, forward only.

What is compared is defined in ``benchmarks.nodes`` and ``benchmarks.nonlinear``; here it is run in turns, like other suites.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import machine, nodes, nonlinear
from benchmarks.peers import Peer, Sample
from benchmarks.runner import collector_off, document, spread

BATCH = {"node": 256, "program": 128}
"""Instances of a node, and of a nonconvex program."""
OURS = "ddn_cvx"


@dataclass(frozen=True)
class Contest:
    """A row: what each participant does in one call (forward and backward, or forward only), and how good its answer is."""

    name: str
    batch: int
    measures: str
    calls: dict[str, Callable[[], Sample]]
    quality: Callable[[str], dict[str, Any]]
    """``gradient_error`` or a ``note`` of one participant; it is asked once, before the timing."""


def participants() -> tuple[list[Peer], list[str]]:
    """Who can take part, and a line for each who is missing."""
    known = {
        OURS: ("ddn_cvx", "ddn_cvx", "default"),
        "DDN reference code": ("ddn", "ddn", "its own gradient; its repository on PYTHONPATH"),
        "IPOPT, cyipopt": ("cyipopt", "cyipopt-wheels", "tol 1e-8, derivatives by hand in numpy"),
        "IPOPT, cvxpy nlp": ("cyipopt", "cyipopt-wheels", "tol 1e-8, through cvxpy"),
    }
    found, skipped = [], []
    for name, (module, package, settings) in known.items():
        if find_spec(module) is None:
            skipped.append(f"skipped {name}: {module} is not installed")
        else:
            family: Any = "ours" if name == OURS else "other"
            found.append(Peer(name, package, machine.package_version(package) or "", settings, _not_a_layer, family))
    return found, skipped


def contests(peers: Sequence[Peer]) -> list[Contest]:
    """All rows, for those who take part."""
    names = [peer.name for peer in peers]
    return [*(_node(node, names) for node in nodes.NODES), _program(names)]


def run(rows: Sequence[Contest], peers: Sequence[Peer], rounds: int, seed: int, budget: float) -> dict[str, Any]:
    """Measure in turns, in about ``budget`` seconds; the same form of results as ``benchmarks.runner.run``."""
    results, end = [], perf_counter() + budget
    with tqdm(total=len(rows) * rounds, unit="round") as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference code warns of every residual above its eps
        for index, row in enumerate(rows):
            progress.set_description(row.name)
            stop = perf_counter() + max(0.0, end - perf_counter()) / (len(rows) - index)
            found: dict[str, dict[str, Any]] = {}
            samples: dict[str, list[Sample]] = {}
            for name, call in row.calls.items():
                try:
                    found[name] = row.quality(name)
                    call()
                    samples[name] = []
                except Exception as error:
                    found[name] = {"error": f"{type(error).__name__}: {error}"}
            for turn in range(rounds):
                if turn < 2 or perf_counter() < stop:
                    for name, taken in samples.items():
                        with collector_off():
                            taken.append(row.calls[name]())
                progress.update()
            results.append(_summary(row, peers, found, samples))
    return document("nonlinear", results, peers, rounds, seed, budget)


def _summary(
    row: Contest, peers: Sequence[Peer], found: dict[str, dict[str, Any]], samples: dict[str, list[Sample]]
) -> dict[str, Any]:
    total = {name: [s.forward + s.backward for s in taken] for name, taken in samples.items()}
    cpu = {name: [s.cpu for s in taken] for name, taken in samples.items()}
    for name, taken in samples.items():
        found[name] |= {
            "seconds": spread(total[name]),
            "forward": spread([s.forward for s in taken]),
            "cpu_seconds": spread(cpu[name]),
            "samples": len(taken),
        }
        if row.measures != "forward":
            found[name]["backward"] = spread([s.backward for s in taken])
        if OURS in samples:
            found[name]["ratio"] = spread(np.divide(total[name], total[OURS]).tolist())
            found[name]["cpu_ratio"] = spread(np.divide(cpu[name], cpu[OURS]).tolist())
    for peer in peers:
        found.setdefault(peer.name, {"skipped": "made for other rows of this suite"})
    return {"name": row.name, "batch": row.batch, "measures": row.measures, "target": None, "curve": None, "results": found}


def _node(node: nodes.Node, names: Sequence[str]) -> Contest:
    generator, batch = torch.Generator().manual_seed(0), BATCH["node"]
    inputs = node.inputs(batch, generator)
    cotangent = torch.randn(batch, node.size, generator=generator).double()
    layers = {name: nodes.PEERS[name](node) for name in names if name in nodes.PEERS}

    def call(layer: nodes.Function) -> Sample:
        busy = process_time()
        _, forward, backward = nodes.gradients(layer, inputs, cotangent)
        return Sample(forward, backward, process_time() - busy)

    def quality(name: str) -> dict[str, Any]:
        change, directions = nodes.exact(node, inputs, cotangent)
        found, *_ = nodes.gradients(layers[name], inputs, cotangent)
        moved = torch.stack([(f * d).flatten(1).sum(1) for f, d in zip(found, directions, strict=True)]).sum(0)
        return {"gradient_error": float(((moved - change).abs() / (1 + change.abs())).max())}

    calls = {name: (lambda layer=layer: call(layer)) for name, layer in layers.items()}
    return Contest(node.name, batch, "forward+backward", calls, quality)


def _program(names: Sequence[str]) -> Contest:
    batch = BATCH["program"]
    data = nonlinear.instances(batch)
    makers: dict[str, Callable[[], Callable[[nonlinear.Instances], nonlinear.Array]]] = {
        OURS: nonlinear.our_solver,
        "IPOPT, cyipopt": lambda: nonlinear.by_cyipopt,
        "IPOPT, cvxpy nlp": nonlinear.cvxpy_solver,
    }
    solvers = {name: make() for name, make in makers.items() if name in names}
    optimum = nonlinear.our_solver()(data)

    def call(solve: Callable[[nonlinear.Instances], nonlinear.Array]) -> Sample:
        busy, start = process_time(), perf_counter()
        solve(data)
        return Sample(perf_counter() - start, 0.0, process_time() - busy)

    def quality(name: str) -> dict[str, Any]:
        value = solvers[name](data)
        gap = (value - optimum) / np.maximum(1, np.abs(value))
        same, lower = np.mean(np.abs(gap) < 1e-6), np.mean(gap < -1e-6)
        return {"note": f"solved {np.isfinite(value).mean():.0%}, same optimum as ours {same:.0%}, lower {lower:.0%}"}

    calls = {name: (lambda solve=solve: call(solve)) for name, solve in solvers.items()}
    sizes = f"n = {nonlinear.N}, {nonlinear.P} equalities, {nonlinear.M} inequalities"
    title = f"nonconvex programs, {sizes} (ours with backward)"
    return Contest(title, batch, "forward", calls, quality)


def _not_a_layer(declared: Any) -> Any:
    raise NotImplementedError("participants of this suite are called by its rows")

"""qpax (Tracy & Manchester, 2024) and JAXopt's OSQP (Blondel et al., 2022), in a process of their own.

``BENCHMARKS_JAX`` names a Python interpreter that has JAX; the default is the running one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.jax_worker import METHODS
from benchmarks.peers import Measured, Peer, Sample, quadratic, require_quadratic
from benchmarks.problems import Declaration
from benchmarks.worker import Worker

VARIABLE = "BENCHMARKS_JAX"
_workers: list[Worker] = []


class JaxPeer(Measured):
    """Sends the quadratic program to the child, which times itself; the map to that form is not timed."""

    def __init__(self, declared: Declaration, worker: Worker, method: str):
        require_quadratic(declared)
        self.declared, self.worker, self.method = declared, worker, method

    def measure(self, parameters: Sequence[Tensor], cotangent: Tensor) -> tuple[Sample, Tensor, tuple[Tensor, ...]]:
        images = quadratic(self.declared, *parameters)
        data = [t.detach().numpy() for t in images]
        forward, backward, cpu, x, found = self.worker.ask(self.method, *data, cotangent.numpy())
        pairs = [(t, torch.tensor(g)) for t, g in zip(images, found, strict=True) if t.requires_grad]
        gradients = torch.autograd.grad(
            [t for t, _ in pairs], list(parameters), [g for _, g in pairs], allow_unused=True, materialize_grads=True
        )
        return Sample(forward, backward, cpu), torch.tensor(x), gradients


def peers() -> list[Peer]:
    """One column for each package that the interpreter has; raises ``ImportError`` if it has neither."""
    python = os.environ.get(VARIABLE, sys.executable)
    if VARIABLE not in os.environ and find_spec("jax") is None:
        raise ImportError(f"jax is not installed; set {VARIABLE} to a Python interpreter that has it")
    if not _workers:
        _workers.append(Worker(python, "benchmarks.jax_worker"))
    (worker,) = _workers
    names = {"qpax": "qpax", "jaxopt": "JAXopt OSQP"}
    found = {method: worker.hello[method] for method in METHODS if method in worker.hello}
    if not found:
        raise ImportError(f"neither of {', '.join(METHODS)} is installed for {python}")

    def column(method: str) -> Peer:
        settings = f"jax {worker.hello['jax']}, float64, jitted, tolerance 1e-9"
        return Peer(names[method], method, found[method], settings, lambda declared: JaxPeer(declared, worker, method))

    return [column(method) for method in found]

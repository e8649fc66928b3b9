"""Conic data for packages below the level of layers: what ddn_cvx canonicalises a declaration to, which is not timed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from time import perf_counter, process_time
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.peers import Measured, Sample
from benchmarks.problems import Declaration
from ddn_cvx import DeclarativeLayer
from ddn_cvx.declare.cvxpy_convex import ConvexProblem
from ddn_cvx.program.conic import ConicData, ConicProgram


class ConicPeer(Measured):
    """``prepare`` gives the package's own form, ``forward`` and ``backward`` are timed."""

    def __init__(self, declared: Declaration):
        layer = DeclarativeLayer(declared.problem, declared.parameters, declared.variable)
        self.node = cast(ConvexProblem, layer.node)
        self.program: ConicProgram = self.node.program

    def measure(self, parameters: Sequence[Tensor], cotangent: Tensor) -> tuple[Sample, Tensor, tuple[Tensor, ...]]:
        pieces = self.node.pieces(parameters)
        data = self.node.bind(pieces).data
        images = self.prepare(data)
        arrays = [t.detach().numpy() for t in images]
        busy, start = process_time(), perf_counter()
        x = self.forward(*arrays)
        middle, between = perf_counter(), process_time()
        point = torch.as_tensor(x)[:, : self.program.n].requires_grad_()
        outputs = self.node.recover(point, point.new_zeros(len(point), self.program.m), [t.detach() for t in pieces])[0]
        (cotangent_x,) = torch.autograd.grad(outputs, point, cotangent)
        again, restart = process_time(), perf_counter()
        found = self.backward(cotangent_x.numpy())
        stop, busy = perf_counter(), process_time() - again + between - busy
        pairs = [(t, torch.as_tensor(g)) for t, g in zip(images, found, strict=True) if t.requires_grad]
        gradients = torch.autograd.grad(
            [t for t, _ in pairs], list(parameters), [g for _, g in pairs], allow_unused=True, materialize_grads=True
        )
        return Sample(middle - start, stop - restart, busy), outputs.detach(), gradients

    def prepare(self, data: ConicData) -> list[Tensor]:
        """Differentiable images of the data; their gradients are what ``backward`` returns."""
        return list(data)

    @abstractmethod
    def forward(self, *arrays: Any) -> Any:
        """The primal solutions, ``(batch, n or more)``."""

    @abstractmethod
    def backward(self, cotangent: Any) -> list[Any]:
        """Gradients with respect to what ``prepare`` returned, for a cotangent ``(batch, n)`` of the primal solution."""

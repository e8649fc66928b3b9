"""Measure: every peer on the same numbers, interleaved round by round, so that a busy moment of the machine hits all of them.

A sample is one forward and one backward pass (``torch.autograd.grad`` for all parameters with a random cotangent). Each sample has fresh numbers, so
nothing can be answered from the last call. Errors come from the first, untimed call.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import machine
from benchmarks.peers import Layer, Peer
from benchmarks.problems import Row
from benchmarks.reference import Answer, Array

SCHEMA = 1
ROUND_SECONDS = 0.1
"""Short calls are repeated within a round until about this long, ..."""
MAX_REPEATS = 20
"""... but not more often than this."""


@dataclass
class Column:
    """The samples of one peer on one row."""

    layer: Layer | None = None
    error: str | None = None
    construction: list[float] = field(default_factory=list)
    forward: list[list[float]] = field(default_factory=list)
    backward: list[list[float]] = field(default_factory=list)
    accuracy: dict[str, float] = field(default_factory=dict)
    repeats: int = 1

    def rounds(self) -> list[float]:
        """The median seconds of each round."""
        if not self.forward:
            return self.construction
        return [
            float(np.median(np.add(forward, backward)))
            for forward, backward in zip(self.forward, self.backward, strict=True)
        ]


def run(suite: str, rows: Sequence[Row], peers: Sequence[Peer], rounds: int, seed: int = 0) -> dict[str, Any]:
    """Measure all rows; returns what is written as JSON."""
    results = []
    with tqdm(total=len(rows) * rounds, unit="round") as progress:
        for row in rows:
            progress.set_description(row.name)
            columns = _run_row(row, peers, rounds, seed, lambda: progress.update() and None)
            results.append(_summarise(row, peers, columns))
    return {
        "schema": SCHEMA,
        "suite": suite,
        "rounds": rounds,
        "seed": seed,
        "machine": machine.describe(),
        "peers": {p.name: {"package": p.package, "settings": p.settings} for p in peers},
        "rows": results,
    }


def _run_row(row: Row, peers: Sequence[Peer], rounds: int, seed: int, advance: Callable[[], None]) -> list[Column]:
    columns = [Column() for _ in peers]
    if row.draw is not None:
        first = _inputs(row, [seed, 0, 0])
        answers = _reference(row, *first)
        for peer, column in zip(peers, columns, strict=True):
            _guard(column, lambda c=column, p=peer: _prepare(c, p, row, first, answers))  # type: ignore[misc]  # defaults bind the loop variables
    for index in range(rounds):
        most = max((c.repeats for c in columns if c.error is None), default=0)
        inputs = [_inputs(row, [seed, index + 1, k]) for k in range(most)] if row.draw is not None else []
        turn = index % len(peers)  # nobody is always first
        for peer, column in [*zip(peers, columns, strict=True)][turn:] + [*zip(peers, columns, strict=True)][:turn]:
            if column.error is None:
                _guard(column, lambda c=column, p=peer: _sample(c, p, row, inputs))  # type: ignore[misc]
        advance()
    return columns

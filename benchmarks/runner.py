"""Measure every peer on the same numbers, interleaved round by round, so that a busy moment of the machine hits them all.

A sample is one forward and one backward pass (``torch.autograd.grad`` for all parameters with a random cotangent). Each
sample of a round has fresh numbers, so nothing can be answered from the last call. Errors come from the first, untimed call.

Besides the time on the clock, the processor time of all threads is recorded: on a machine that does other work too, it is
the steadier of the two.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time
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


@dataclass(frozen=True)
class Inputs:
    """The numbers of one call: parameter values ``(batch, *shape)`` and the cotangent ``(batch, n)`` of the solution."""

    values: list[Array]
    cotangent: Array

    @staticmethod
    def draw(row: Row, seed: list[int]) -> Inputs:
        return Inputs(row.values(seed), np.random.default_rng([*seed, 1]).standard_normal((row.batch, row.size)))


@dataclass(frozen=True)
class Sample:
    """Seconds of one call: of the clock for each pass, and of all processors for both."""

    forward: float
    backward: float
    cpu: float


@dataclass
class Trial:
    """One peer on one row, with its samples, a list for each round."""

    peer: Peer
    row: Row
    construction: list[float] = field(default_factory=list)
    samples: list[list[Sample]] = field(default_factory=list)
    accuracy: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    repeats: int = 1
    _layer: Layer | None = None

    def attempt(self, step: Callable[..., None], *arguments: Any) -> None:
        """Run a step unless an earlier one failed; a peer that fails is a result, not the end of the run."""
        if self.error is None:
            try:
                step(*arguments)
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"

    def construct(self) -> None:
        """Build the layer from a problem that nobody has compiled before."""
        declared = self.row.declare()
        gc.collect()
        start = perf_counter()
        self._layer = self.peer.build(declared)
        self.construction.append(perf_counter() - start)

    def warm_up(self, inputs: Inputs, answers: list[Answer]) -> None:
        """Two calls: the first for the accuracy, the second to choose the number of repeats."""
        _, x, gradients = self._call(inputs)
        self.accuracy = _errors(x, gradients, answers)
        sample, _, _ = self._call(inputs)
        self.repeats = int(np.clip(ROUND_SECONDS / (sample.forward + sample.backward), 1, MAX_REPEATS))

    def time(self, stream: Sequence[Inputs]) -> None:
        """One round."""
        gc.collect()
        self.samples.append([self._call(inputs)[0] for inputs in stream[: self.repeats]])

    def _call(self, inputs: Inputs) -> tuple[Sample, Tensor, tuple[Tensor, ...]]:
        assert self._layer is not None
        parameters = [torch.from_numpy(value).requires_grad_() for value in inputs.values]
        cotangent = torch.from_numpy(inputs.cotangent)
        busy, start = process_time(), perf_counter()
        x = self._layer(*parameters)
        middle = perf_counter()
        gradients = torch.autograd.grad(x, parameters, cotangent)
        stop = perf_counter()
        return Sample(middle - start, stop - middle, process_time() - busy), x.detach(), gradients

    def rounds(self) -> list[float]:
        """The median seconds of each round."""
        if self.row.draw is None:
            return self.construction
        return [float(np.median([s.forward + s.backward for s in samples])) for samples in self.samples]

    def cpu_rounds(self) -> list[float]:
        """The median processor seconds of each round."""
        return [float(np.median([s.cpu for s in samples])) for samples in self.samples]


def run(suite: str, rows: Sequence[Row], peers: Sequence[Peer], rounds: int, seed: int = 0) -> dict[str, Any]:
    """Measure all rows for at least one round; returns what is written as JSON."""
    results = []
    with tqdm(total=len(rows) * rounds, unit="round") as progress:
        for row in rows:
            progress.set_description(row.name)
            trials = [Trial(peer, row) for peer in peers]
            answers = _start(trials, row, seed)
            for index in range(rounds):
                _round(trials, row, [seed, index + 1])
                progress.update()
            results.append(_summarise(row, trials, answers))
    return {
        "schema": SCHEMA,
        "suite": suite,
        "rounds": rounds,
        "seed": seed,
        "machine": machine.describe(),
        "peers": {p.name: {"package": p.package, "version": p.version, "settings": p.settings} for p in peers},
        "rows": results,
    }


def _start(trials: Sequence[Trial], row: Row, seed: int) -> list[Answer]:
    if row.draw is None or row.reference is None:
        return []
    first = Inputs.draw(row, [seed, 0])
    answers = [row.reference([v[i] for v in first.values], first.cotangent[i]) for i in range(row.batch)]
    for trial in trials:
        trial.attempt(trial.construct)
        trial.attempt(trial.warm_up, first, answers)
    return answers


def _round(trials: Sequence[Trial], row: Row, seed: list[int]) -> None:
    repeats = max((t.repeats for t in trials if t.error is None), default=0)
    stream = [Inputs.draw(row, [*seed, k]) for k in range(repeats)] if row.draw is not None else []
    turn = seed[-1] % len(trials)  # nobody is always first
    for trial in [*trials[turn:], *trials[:turn]]:
        if row.draw is None:
            trial.attempt(trial.construct)
        else:
            trial.attempt(trial.time, stream)


def _errors(x: Tensor, gradients: Sequence[Tensor], answers: Sequence[Answer]) -> dict[str, float]:
    """Of the worst element: the largest entry of the solution error relative to ``max(1, |x*|)``, and the 2-norm of the
    error of all its gradients together, relative to ``max(1, |gradients|)``."""
    if not all(bool(torch.isfinite(t).all()) for t in (x, *gradients)):
        raise ArithmeticError("the answer holds NaN or infinity")
    solution, gradient = [], []
    for i, answer in enumerate(answers):
        found = x[i].numpy()
        solution.append(np.abs(found - answer.x).max() / max(1.0, np.abs(answer.x).max()))
        got = np.concatenate([g[i].numpy().ravel() for g in gradients])
        expected = np.concatenate([g.ravel() for g in answer.gradients])
        gradient.append(np.linalg.norm(got - expected) / max(1.0, float(np.linalg.norm(expected))))
    return {
        "solution_error": float(np.max(solution)),
        "gradient_error": float(np.max(gradient)),
        "gradient_error_median": float(np.median(gradient)),
    }


def _summarise(row: Row, trials: Sequence[Trial], answers: Sequence[Answer]) -> dict[str, Any]:
    base = trials[0] if trials[0].error is None else None
    results: dict[str, Any] = {}
    for trial in trials:
        if trial.error is not None:
            results[trial.peer.name] = {"error": trial.error}
            continue
        found = results[trial.peer.name] = {
            "seconds": _spread(trial.rounds()),
            "construction": _spread(trial.construction),
            **trial.accuracy,
        }
        if base is not None:
            found["ratio"] = _spread(np.divide(trial.rounds(), base.rounds()).tolist())
        if row.draw is not None:
            samples = [sample for round_samples in trial.samples for sample in round_samples]
            found["samples"] = len(samples)
            found["forward"] = _spread([s.forward for s in samples])
            found["backward"] = _spread([s.backward for s in samples])
            found["cpu_seconds"] = _spread(trial.cpu_rounds())
            if base is not None:
                found["cpu_ratio"] = _spread(np.divide(trial.cpu_rounds(), base.cpu_rounds()).tolist())
    margins = [answer.margin for answer in answers if np.isfinite(answer.margin)]
    return {
        "name": row.name,
        "batch": row.batch,
        "measures": "construction" if row.draw is None else "forward+backward",
        "margin": min(margins, default=None),
        "results": results,
    }


def _spread(samples: Sequence[float]) -> dict[str, float]:
    low, q1, median, q3, high = np.percentile(samples, [0, 25, 50, 75, 100])
    return {"median": float(median), "q1": float(q1), "q3": float(q3), "min": float(low), "max": float(high)}

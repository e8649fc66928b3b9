"""Measure every peer on the same numbers, interleaved round by round, so that a busy moment of the machine hits them all.

A sample is one forward and one backward pass (``torch.autograd.grad`` for all parameters with a random cotangent), with the
garbage collector off. Each sample of a round has fresh numbers, so nothing can be answered from the last call. Errors come
from the first, untimed call, of at most ``CHECKED`` elements of the batch.

Each row gets an equal share of what is left of the budget, and in it each peer an equal share: a slow peer makes fewer
rounds, at least one. Along a curve a peer stops at the first point that it is expected to take longer than ``PATIENCE`` for,
or than all peers together should.

Besides the time on the clock, the processor time of all threads is recorded: on a machine that does other work too, it is
the steadier of the two.
"""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import limit, machine
from benchmarks.peers import Layer, Measured, Peer, Sample, Unsuitable
from benchmarks.problems import Row
from benchmarks.reference import Answer, Array

SCHEMA = 2
ROUND_SECONDS = 0.1
"""Short calls are repeated within a round until about this long, ..."""
MAX_REPEATS = 20
"""... but not more often than this."""
CHECKED = 64
"""Elements of a batch whose answers are compared with the reference."""
SHORT = 2.0
"""Seconds: what takes less is measured twice at least."""
PATIENCE = 20.0
"""Seconds for one call: a peer that takes longer is not called again in this row, nor further along its curve."""


@dataclass(frozen=True)
class Inputs:
    """The numbers of one call: parameter values and the cotangent of the solution, ``(batch, *shape)`` each."""

    values: list[Array]
    cotangent: Array

    @staticmethod
    def draw(row: Row, seed: list[int]) -> Inputs:
        return Inputs(row.values(seed), np.random.default_rng([*seed, 1]).standard_normal((row.batch, *row.shape)))


@dataclass
class Trial:
    """One peer on one row, with its samples, a list for each round."""

    peer: Peer
    row: Row
    device: torch.device
    allowance: float = math.inf
    """Seconds after which there is no further round, from the third on."""
    construction: list[float] = field(default_factory=list)
    samples: list[list[Sample]] = field(default_factory=list)
    accuracy: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    skipped: str | None = None
    """Why this peer is not for this row."""
    repeats: int = 1
    spent: float = 0.0
    _layer: Layer | Measured | None = None

    @property
    def open(self) -> bool:
        """Whether it can still be called."""
        return self.error is None and self.skipped is None

    def wants_more(self) -> bool:
        """Whether a further round fits into the allowance; one always does, and two do of short calls."""
        rounds = len(self.construction) if self.row.draw is None else len(self.samples)
        least = 2 if self.spent < SHORT else 1
        return self.open and (rounds < least or self.spent < self.allowance)

    def attempt(self, step: Callable[..., None], *arguments: Any) -> None:
        """Run a step unless an earlier one failed; a peer that fails is a result, not the end of the run."""
        if self.open:
            start = perf_counter()
            try:
                with collector_off():
                    step(*arguments)
            except Unsuitable as reason:
                self.skipped = str(reason)
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"
            self.spent += perf_counter() - start

    def construct(self) -> None:
        """Build the layer from a problem that nobody has compiled before."""
        declared = self.row.declare()
        start = perf_counter()
        self._layer = self.peer.build(declared)
        self.construction.append(perf_counter() - start)

    def warm_up(self, inputs: Inputs, answers: list[Answer]) -> None:
        """Two calls: the first for the accuracy, the second to choose the number of repeats. What is too slow for a second
        call keeps the first as its only sample."""
        sample, x, gradients = self._call(inputs)
        self.accuracy = _errors(x, gradients, answers)
        if sample.forward + sample.backward > PATIENCE and not self.peer.compiles:
            self.samples.append([sample])
            return
        sample, _, _ = self._call(inputs)
        self.repeats = int(np.clip(ROUND_SECONDS / (sample.forward + sample.backward), 1, MAX_REPEATS))

    def time(self, stream: Sequence[Inputs]) -> None:
        """One round."""
        self.samples.append([self._call(inputs)[0] for inputs in stream[: self.repeats]])

    def _call(self, inputs: Inputs) -> tuple[Sample, Tensor, tuple[Tensor, ...]]:
        assert self._layer is not None
        device = self.device if self.peer.cuda else torch.device("cpu")
        parameters = [torch.from_numpy(value).to(device).requires_grad_() for value in inputs.values]
        cotangent = torch.from_numpy(inputs.cotangent).to(device)
        if isinstance(self._layer, Measured):
            return self._layer.measure(parameters, cotangent)
        _wait(device)
        busy, start = process_time(), perf_counter()
        x = self._layer(*parameters)
        _wait(device)
        middle = perf_counter()
        gradients = torch.autograd.grad(x, parameters, cotangent)
        _wait(device)
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


def run(
    suite: str,
    rows: Sequence[Row],
    peers: Sequence[Peer],
    rounds: int,
    seed: int = 0,
    budget: float = math.inf,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure all rows for at least one round, in about ``budget`` seconds; returns what is written as JSON."""
    results: list[dict[str, Any]] = []
    stopped: dict[tuple[str, str], str] = {}
    end = perf_counter() + budget
    gc.collect()
    gc.freeze()  # what the imports left need not be looked through again before every measurement
    with tqdm(total=len(rows) * rounds, unit="round") as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peers; what is wrong with an answer, its error says
        for index, row in enumerate(rows):
            progress.set_description(row.name)
            share = max(0.0, end - perf_counter()) / (len(rows) - index)
            trials = [Trial(peer, row, torch.device(device), share / len(peers)) for peer in peers]
            for trial in trials:
                trial.skipped = _stop(trial, min(PATIENCE, max(share, SHORT / 2)), results, stopped)
            start = perf_counter()
            answers = _start(trials, row, seed)
            left = max(0.0, share - (perf_counter() - start)) / max(1, sum(trial.open for trial in trials))
            for trial in trials:
                trial.spent, trial.allowance = (0.0 if not trial.samples else math.inf), left
            for turn in range(rounds):
                _round(trials, row, [seed, turn + 1])
                progress.update()
            results.append(_summarise(row, trials, answers, torch.device(device), seed))
    return document(suite, results, peers, rounds, seed, budget, device)


def document(
    suite: str,
    rows: list[dict[str, Any]],
    peers: Sequence[Peer],
    rounds: int,
    seed: int,
    budget: float,
    device: str = "cpu",
) -> dict[str, Any]:
    """What is written as JSON: the rows as measured, and by whom, where and how."""
    return {
        "schema": SCHEMA,
        "suite": suite,
        "rounds": rounds,
        "budget": budget if math.isfinite(budget) else None,
        "seed": seed,
        "machine": machine.describe(device),
        "peers": {
            p.name: {"package": p.package, "version": p.version, "settings": p.settings, "family": p.family} for p in peers
        },
        "rows": rows,
    }


def _start(trials: Sequence[Trial], row: Row, seed: int) -> list[Answer]:
    if row.draw is None or row.reference is None:
        return []
    first = Inputs.draw(row, [seed, 0])
    checked = range(min(row.batch, CHECKED))
    answers = [row.reference([v[i] for v in first.values], first.cotangent[i]) for i in checked]
    for trial in trials:
        trial.attempt(trial.construct)
        trial.attempt(trial.warm_up, first, answers)
    return answers


def _round(trials: Sequence[Trial], row: Row, seed: list[int]) -> None:
    """Everybody who has time left; the first trial, which the ratios refer to, as long as anybody else has."""
    wanting = [trial for trial in trials if trial.wants_more()]
    if trials[0].open and trials[0] not in wanting and wanting:
        wanting.insert(0, trials[0])
    repeats = max((t.repeats for t in wanting), default=0)
    stream = [Inputs.draw(row, [*seed, k]) for k in range(repeats)] if row.draw is not None else []
    turn = seed[-1] % max(1, len(wanting))  # nobody is always first
    for trial in [*wanting[turn:], *wanting[:turn]]:
        if row.draw is None:
            trial.attempt(trial.construct)
        else:
            trial.attempt(trial.time, stream)


def _stop(trial: Trial, most: float, results: Sequence[dict[str, Any]], stopped: dict[tuple[str, str], str]) -> str | None:
    """Why a peer does not go on along a curve: at the rate of its last point a call would take over ``most`` seconds."""
    curve = trial.row.curve
    if curve is None:
        return None
    key = curve.name, trial.peer.name
    last = next((r for r in reversed(results) if r["curve"] and r["curve"]["name"] == curve.name), None)
    if key not in stopped and last is not None and "seconds" in (found := last["results"][trial.peer.name]):
        expected = found["seconds"]["median"] * curve.value / last["curve"]["value"]
        if expected > most:
            stopped[key] = f"stopped after {curve.axis} = {last['curve']['value']}: {expected:.2g} s a call expected"
    return stopped.get(key)


def _errors(x: Tensor, gradients: Sequence[Tensor], answers: Sequence[Answer]) -> dict[str, float]:
    """Of the worst element: the largest entry of the solution error relative to ``max(1, |x*|)``, and the 2-norm of the
    error of all its gradients together, relative to ``max(1, |gradients|)``."""
    if not all(bool(torch.isfinite(t).all()) for t in (x, *gradients)):
        raise ArithmeticError("the answer holds NaN or infinity")
    solution, gradient = [], []
    for i, answer in enumerate(answers):
        found = x[i].cpu().numpy()
        solution.append(np.abs(found - answer.x).max() / max(1.0, np.abs(answer.x).max()))
        got = np.concatenate([g[i].cpu().numpy().ravel() for g in gradients])
        expected = np.concatenate([g.ravel() for g in answer.gradients])
        gradient.append(np.linalg.norm(got - expected) / max(1.0, float(np.linalg.norm(expected))))
    return {
        "solution_error": float(np.max(solution)),
        "gradient_error": float(np.max(gradient)),
        "gradient_error_median": float(np.median(gradient)),
    }


def _summarise(
    row: Row, trials: Sequence[Trial], answers: Sequence[Answer], device: torch.device, seed: int
) -> dict[str, Any]:
    base = trials[0] if trials[0].open else None
    results: dict[str, Any] = {}
    for trial in trials:
        if not trial.open:
            results[trial.peer.name] = {"skipped": trial.skipped} if trial.skipped else {"error": trial.error}
            continue
        found = results[trial.peer.name] = {
            "seconds": spread(trial.rounds()),
            "construction": spread(trial.construction),
            **trial.accuracy,
        }
        if base is not None:
            found["ratio"] = spread(_ratios(trial.rounds(), base.rounds()))
        if row.draw is not None:
            samples = [sample for round_samples in trial.samples for sample in round_samples]
            found["samples"] = len(samples)
            found["forward"] = spread([s.forward for s in samples])
            found["backward"] = spread([s.backward for s in samples])
            found["cpu_seconds"] = spread(trial.cpu_rounds())
            if base is not None:
                found["cpu_ratio"] = spread(_ratios(trial.cpu_rounds(), base.cpu_rounds()))
    margins = [answer.margin for answer in answers if np.isfinite(answer.margin)]
    curve = row.curve
    return {
        "name": row.name,
        "batch": row.batch,
        "measures": "construction" if row.draw is None else "forward+backward",
        "margin": min(margins, default=None),
        "target": {"cvxpylayers": row.target.cvxpylayers, "others": row.target.others} if row.target else None,
        "curve": {"name": curve.name, "axis": curve.axis, "value": curve.value} if curve else None,
        "limit": limit.measure(row, device, seed) if curve else None,
        "results": results,
    }


def _ratios(rounds: Sequence[float], base: Sequence[float]) -> list[float]:
    """Round by round, as far as both went."""
    common = min(len(rounds), len(base))
    return np.divide(rounds[:common], base[:common]).tolist()


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and range."""
    low, q1, median, q3, high = np.percentile(samples, [0, 25, 50, 75, 100])
    return {"median": float(median), "q1": float(q1), "q3": float(q3), "min": float(low), "max": float(high)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def collector_off() -> Iterator[None]:
    """Collect now, and not in the block."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

"""What the experiments on classification have alike: training, scores, and the paper's table of nodes and outlier rates."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean, pstdev
from typing import NamedTuple, TypeVar

import torch
from figure import parser as usual_parser, pyplot, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

RATES = (0.0, 0.1, 0.2, 0.5, 0.9)
Batches = Iterable[tuple[Tensor, Tensor]]
T = TypeVar("T")
Spoil = Callable[[Tensor, float, torch.Generator], Tensor]


class FolderError(ValueError):
    """A folder of data is not laid out as it must be."""


def folders_of(root: Path, layout: str) -> list[str]:
    """The names of the folders in a folder: the classes."""
    if not root.is_dir():
        raise FolderError(f"{layout}: there is no such folder.")
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    if len(names) < 2:
        raise FolderError(f"{layout}, with two classes or more: {len(names)} found in {root}.")
    return names


def fit(model: nn.Module, batches: Batches, steps: int, rate: float, decay: float = 0.0) -> nn.Module:
    """Adam with one cycle of the learning rate, on the cross-entropy of the logits."""
    optimiser = torch.optim.Adam(model.parameters(), weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for x, labels in batches:
        loss = nn.functional.cross_entropy(model(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def shuffled(
    x: Tensor, labels: Tensor, size: int, epochs: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of data in memory, in another order in each epoch."""
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(size):
            yield x[rows], labels[rows]


class Scores(NamedTuple):
    """Per cent: accuracy, and mean average precision of logits and of probabilities ranked across the test set."""

    accuracy: float
    logits: float
    probabilities: float


def scores(model: nn.Module, batches: Batches) -> Scores:
    with torch.no_grad():
        found = [(model(x), labels) for x, labels in batches]
    logits, labels = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    right = (logits.argmax(-1) == labels).double().mean().item()
    return Scores(100 * right, *(100 * mean_precision(rank, labels) for rank in (logits, logits.softmax(-1))))


def mean_precision(confidence: Tensor, labels: Tensor) -> float:
    """The mean over classes of the average precision with which ``confidence (N, classes)`` finds their elements."""
    hit = labels[confidence.argsort(0, descending=True)] == torch.arange(confidence.shape[1])
    precision = hit.cumsum(0) / torch.arange(1, len(labels) + 1).unsqueeze(-1)
    there = hit.any(0)
    return ((precision * hit).sum(0) / hit.sum(0).clamp(min=1))[there].mean().item()


# ---------------------------------------------------------------- the paper's experiments


@dataclass(frozen=True)
class Task:
    """What is to be classified, and how a share of it is spoilt: ``spoil(x, rate, generator)``."""

    classes: Sequence[str]
    train: Dataset[tuple[Tensor, Tensor]]
    test: Dataset[tuple[Tensor, Tensor]]
    spoil: Spoil


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a network is trained."""

    epochs: int
    batch: int
    learning_rate: float


def parser(description: str | None, name: str, folder: str) -> argparse.ArgumentParser:
    """The command line of an experiment: that of every example, and what a real data set and machine need."""
    found = usual_parser(description, name)
    found.add_argument("--data", type=Path, metavar="DIR", help=f"a folder of data instead of what is bundled: {folder}")
    found.add_argument("--same-rate", action="store_true", help="also train with outliers, at the rate of the test")
    found.add_argument("--nodes", nargs="+", metavar="NODE", help="only these rows of the table")
    found.add_argument("--device", default="cpu", help="where the networks are: cpu (default), cuda, ...")
    found.add_argument("--epochs", type=int, help="passes over the training set")
    found.add_argument("--batch-size", type=int, help="elements of a step")
    found.add_argument("--learning-rate", type=float, help="the highest of the cycle")
    found.add_argument("--workers", type=int, default=0, help="processes that read a folder of data (default 0)")
    return found


def parse(parser: argparse.ArgumentParser, bundled: Schedule, real: Schedule) -> argparse.Namespace:
    """The command line, read, with the schedule for the data that is asked for where it says nothing else."""
    run = parser.parse_args()
    usual = bundled if run.data is None else real
    run.epochs = 1 if run.quick else run.epochs or usual.epochs
    run.batch_size = run.batch_size or usual.batch
    run.learning_rate = run.learning_rate or usual.learning_rate
    run.seeds = 1 if run.quick else run.seeds
    if run.data is None:
        torch.set_num_threads(1)
    return run


def load(read: Callable[[], T]) -> T:
    """What is read, or the end of the program with what is wrong with the folder."""
    try:
        return read()
    except FolderError as error:
        sys.exit(f"--data: {error}")


Found = dict[tuple[str, str, float], list[Scores]]
CLEAN, SAME = "clean in training, outliers in test", "outliers in training and test"


def compare(nodes: Mapping[str, Callable[[Task], nn.Module]], task: Callable[[int], Task], run: argparse.Namespace) -> Found:
    """Train each node on clean data, with ``--same-rate`` also on data with outliers, and test it at every rate."""
    chosen = [name for name in nodes if run.nodes is None or name in run.nodes]
    if unknown := set(run.nodes or ()) - set(nodes):
        sys.exit(f"--nodes: there is no {', '.join(sorted(unknown))}; there are {', '.join(nodes)}.")
    rates = RATES[::2] if run.quick else RATES
    trained = rates if run.same_rate else rates[:1]
    found: Found = {}
    with tqdm(total=run.seeds * len(chosen) * len(trained), desc="training", unit="model") as progress:
        for seed in range(run.seeds):
            data = task(seed)
            for name in chosen:
                for rate in trained:
                    model = trained_on(nodes[name], data, rate, seed, run)
                    for table, test_rates in ((CLEAN, rates if rate == 0 else ()), (SAME, [rate] if run.same_rate else ())):
                        for spoilt in test_rates:
                            batches = stream(data.test, data.spoil, spoilt, 1000 + seed, run)
                            found.setdefault((table, name, spoilt), []).append(scores(model, batches))
                    progress.update()
    return found


def trained_on(build: Callable[[Task], nn.Module], data: Task, rate: float, seed: int, run: argparse.Namespace) -> nn.Module:
    """A network with the node, trained with outliers at a rate."""
    torch.manual_seed(seed)
    model = build(data).to(run.device)
    steps = run.epochs * max(len(data.train) // run.batch_size, 1)
    return fit(model, stream(data.train, data.spoil, rate, seed, run, run.epochs), steps, run.learning_rate)


def stream(
    data: Dataset[tuple[Tensor, Tensor]], spoil: Spoil, rate: float, seed: int, run: argparse.Namespace, epochs: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Spoilt batches: shuffled whole ones for so many epochs of training, or else all of the data once; a few if quick."""
    generator = torch.Generator().manual_seed(seed)
    size = min(run.batch_size, len(data))
    train = epochs > 0
    loader = DataLoader(data, size, shuffle=train, drop_last=train, generator=generator, num_workers=run.workers)
    for _ in range(max(epochs, 1)):
        for x, labels in islice(loader, 3 if run.quick else None):
            yield spoil(x, rate, generator).to(run.device), labels.to(run.device)


# ---------------------------------------------------------------- the paper's table


def report(
    found: Found, metrics: Mapping[str, str], run: argparse.Namespace, groups: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Print a table for each way of training and each score; draw the first score, a panel for each group of nodes."""
    for table in dict.fromkeys(key[0] for key in found):
        rates = list(dict.fromkeys(key[2] for key in found if key[0] == table))
        names = list(dict.fromkeys(key[1] for key in found if key[0] == table))
        for score, label in metrics.items():
            print(f"\n{label}, per cent; {table}; {run.seeds} seed{'s' if run.seeds > 1 else ''}")
            print(f"{'node':14}" + "".join(f"{rate:>14.0%}" for rate in rates))
            for name in names:
                print(f"{name:14}" + "".join(f"{cell(found[table, name, rate], score):>14}" for rate in rates))
    draw(found, next(iter(metrics.items())), run.plot, groups or {"": [key[1] for key in found]})


def cell(runs: Sequence[Scores], score: str) -> str:
    """Mean and standard deviation over seeds."""
    values = [getattr(one, score) for one in runs]
    return f"{fmean(values):.1f} ± {pstdev(values):.1f}"


def mean(found: Found, table: str, name: str, rate: float) -> float:
    """Mean accuracy over seeds."""
    return fmean(one.accuracy for one in found[table, name, rate])


def draw(found: Found, metric: tuple[str, str], path: Path, groups: Mapping[str, Sequence[str]]) -> None:
    plt = pyplot()
    panels = [(title, group) for title in dict.fromkeys(key[0] for key in found) for group in groups]
    figure, row = plt.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 4.2), sharey=True, layout="constrained", squeeze=False
    )
    for axes, (title, group) in zip(row[0], panels, strict=True):
        names = [name for name in dict.fromkeys(groups[group]) if any(key[:2] == (title, name) for key in found)]
        for k, name in enumerate(names):
            points = {key[2]: runs for key, runs in found.items() if key[:2] == (title, name)}
            values = [[getattr(one, metric[0]) for one in runs] for runs in points.values()]
            at = [100 * rate for rate in points]
            means, errors = [fmean(v) for v in values], [pstdev(v) for v in values]
            axes.errorbar(at, means, errors, capsize=2, label=name, marker="os^Dv<>p"[k % 8], markersize=5, alpha=0.8)
        axes.set(title=f"{group}: {title}" if group else title, xlabel="outliers, per cent", ylim=(0, 102))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left" if fmean(means) > 50 else "upper right", fontsize="small")
    row[0][0].set_ylabel(f"{metric[1]}, per cent")
    save(figure, path)

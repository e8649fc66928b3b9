"""What the examples have alike: their command line, seeds, plots, and how a figure is held against its target."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Options:
    """The command line of an example."""

    seeds: int
    quick: bool
    plot: Path


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """``--seeds``, ``--quick`` and ``--plot``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs with different data and weights (default 3)")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs; no target is checked")
    parser.add_argument("--plot", type=Path, default=Path(f"{name}.png"), help="where to save the plot")
    return parser


def options(description: str | None, name: str) -> Options:
    """The command line, read; one torch thread, for small tensors do not profit from more."""
    found = parser(description, name).parse_args()
    torch.set_num_threads(1)
    return Options(1 if found.quick else found.seeds, found.quick, found.plot)


def over_seeds(run: Callable[[int], dict[str, float]], seeds: int) -> dict[str, list[float]]:
    """What ``run(seed)`` returns, collected over seeds, with a progress bar."""
    runs = [run(seed) for seed in tqdm(range(seeds), desc="seeds")]
    return {name: [one[name] for one in runs] for name in runs[0]}


def means(figures: dict[str, list[float]]) -> dict[str, float]:
    """Over seeds."""
    return {name: statistics.fmean(values) for name, values in figures.items()}


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.fmean(values):.4g} ± {statistics.pstdev(values):.2g}"


def table(figures: dict[str, list[float]]) -> None:
    """Print mean and spread of each figure."""
    width = max(map(len, figures))
    for name, values in figures.items():
        print(f"{name:{width}}  {spread(values)}   (seeds: {', '.join(f'{v:.4g}' for v in values)})")


def require(claim: str, holds: bool, quick: bool) -> None:
    """Say whether the target is met, and fail if it is not."""
    if quick:
        print(f"not checked in a quick run: {claim}")
        return
    print(f"{'met' if holds else 'MISSED'}: {claim}")
    if not holds:
        sys.exit(1)


def pyplot() -> Any:
    """matplotlib's, drawing into files; imported where something is drawn, which takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path, dpi: int = 110) -> None:
    """Write a figure and forget it."""
    figure.savefig(path, dpi=dpi)
    pyplot().close(figure)


def dots(axes: Any, figures: dict[str, list[float]], colours: dict[str, str]) -> None:
    """A row for each name: a dot for each seed, a bar for the mean."""
    for row, (name, values) in enumerate(figures.items()):
        axes.plot(values, [row] * len(values), "o", color=colours[name], alpha=0.5)
        axes.plot(statistics.fmean(values), row, "|", color=colours[name], markersize=22, markeredgewidth=3)
    axes.set_yticks(range(len(figures)), list(figures))
    axes.grid(axis="x", alpha=0.3)

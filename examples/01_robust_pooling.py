"""Robust pooling in a classifier of point clouds, with outliers in training and in test.

A small PointNet (a network for each point, one pooling over the points, a classifier) tells six shapes apart from 96 points
each; 40 % of the points are replaced by points anywhere in the unit ball. As in table 3 of Gould, Hartley & Campbell (TPAMI
2022), max pooling follows the outliers, and pooling by a robust penalty does not. Fails if the best robust pooling is not
10 points of accuracy better than max pooling at 40 % outliers, in the mean over seeds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figure import options, pyplot, require, save, spread
from point_clouds import SHAPES, PointNet, surface, synthetic, with_outliers
from poolings import pooling
from tqdm import tqdm
from training import fit, scores

POINTS, STEPS, BATCH = 96, 120, 32
POOLINGS = ("max", "mean", "pseudo-huber", "welsch", "truncated")
RATES = (0.0, 0.4)


def accuracy(pool: str, rate: float, seed: int, steps: int) -> float:
    """Per cent of unseen clouds that are recognised, with the same rate of outliers in training and test."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def clouds(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, labels = synthetic(count, POINTS, generator)
        return with_outliers(x, rate, generator), labels

    model = fit(PointNet(pooling(pool), len(SHAPES)), (clouds(BATCH) for _ in range(steps)), steps, 1.5e-2)
    return scores(model, [clouds(400)]).accuracy


def main() -> None:
    arguments = options(__doc__, "robust_pooling")
    steps = 3 if arguments.quick else STEPS
    runs = [(p, r, s) for s in range(arguments.seeds) for p in POOLINGS for r in RATES]
    found: dict[tuple[str, float], list[float]] = {(p, r): [] for p in POOLINGS for r in RATES}
    for pool, rate, seed in tqdm(runs, desc="training", unit="model"):
        found[pool, rate].append(accuracy(pool, rate, seed, steps))
    print(
        f"accuracy on unseen clouds, per cent, {arguments.seeds} seeds\n{'pooling':14}"
        + "".join(f"{r:>16.0%}" for r in RATES)
    )
    for pool in POOLINGS:
        print(f"{pool:14}" + "".join(f"{spread(found[pool, r]):>16}" for r in RATES))
    plot(found, arguments.plot)
    mean = {p: sum(found[p, 0.4]) / arguments.seeds for p in POOLINGS}
    best = max(POOLINGS[2:], key=lambda p: mean[p])
    claim = f"at 40 % outliers {best} pooling ({mean[best]:.1f}) is 10 points better than max pooling ({mean['max']:.1f})"
    require(claim, mean[best] >= mean["max"] + 10, arguments.quick)


def plot(found: dict[tuple[str, float], list[float]], path: Path) -> None:
    plt = pyplot()
    figure = plt.figure(figsize=(11, 4), layout="constrained")
    cloud = figure.add_subplot(1, 3, 1, projection="3d")
    generator = torch.Generator().manual_seed(3)
    u, v = torch.rand(2, 300, generator=generator)
    clean = surface("torus", u, v)
    dirt = with_outliers(torch.zeros(120, 3), 1.0, generator)
    cloud.scatter(*clean.T, s=6, color="tab:blue", label="torus")
    cloud.scatter(*dirt.T, s=6, color="tab:red", alpha=0.4, label="outliers")
    cloud.set(title="a cloud with outliers", xticks=[], yticks=[], zticks=[])
    cloud.legend(loc="lower left")
    axes = figure.add_subplot(1, 3, (2, 3))
    width = 0.8 / len(RATES)
    for k, rate in enumerate(RATES):
        for row, pool in enumerate(POOLINGS):
            values = found[pool, rate]
            at = row + (k - 0.5) * width
            colour = ("tab:blue", "tab:orange")[k]
            axes.bar(
                at, sum(values) / len(values), width * 0.9, color=colour, label=f"{rate:.0%} outliers" if row == 0 else None
            )
            axes.plot([at] * len(values), values, ".", color="black", markersize=5)
    axes.set_xticks(range(len(POOLINGS)), POOLINGS)
    axes.axhline(100 / len(SHAPES), color="0.2", linestyle=":", linewidth=1, label="chance")
    axes.set(ylabel="accuracy, per cent (dots: seeds)", title="six shapes, outliers in training and test", ylim=(0, 102))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=3)
    save(figure, path)


if __name__ == "__main__":
    main()

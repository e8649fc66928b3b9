"""Robust pooling of image features: handwritten digits with corrupted pixels.

Every pixel of a picture has features (of the 3 x 3 pixels around it and its place) from a small network; they are pooled
over the picture and classified. Trained on clean pictures, tested with a share of the pixels replaced by random grey values,
which spoil the features around them. Fails if, at 20 % corrupted pixels, the best robust pooling is not 5 points of accuracy
better than max pooling, or not better than mean pooling, in the mean over seeds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figure import options, pyplot, require, save, spread
from pictures import corrupted, digits
from poolings import pooling
from torch import Tensor, nn
from tqdm import tqdm
from training import fit, scores, shuffled

CHANNELS, TRAIN, EPOCHS, BATCH = 16, 1000, 10, 50
POOLINGS = ("max", "mean", "pseudo-huber", "huber", "welsch", "truncated")
RATES = (0.0, 0.1, 0.2, 0.4)
ALPHA = 0.5  # in units of the spread of a feature


class LocalFeatures(nn.Module):
    """Pictures (B, 1, 8, 8) -> logits (B, 10)."""

    def __init__(self, pool: nn.Module):
        super().__init__()
        axis = torch.linspace(-1, 1, 8)
        self.register_buffer("place", torch.stack(torch.meshgrid(axis, axis, indexing="ij")))
        self.each = nn.Sequential(
            nn.Conv2d(3, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(),
            nn.Conv2d(48, 48, 1), nn.BatchNorm2d(48), nn.ReLU(),
            nn.Conv2d(48, CHANNELS, 1), nn.BatchNorm2d(CHANNELS), nn.Flatten(-2),
        )  # fmt: skip
        self.pool = pool
        self.classify = nn.Sequential(
            nn.BatchNorm1d(CHANNELS), nn.Linear(CHANNELS, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        located = torch.cat((x, self.place.expand(len(x), -1, -1, -1)), 1)
        return self.classify(self.pool(self.each(located)))


def accuracies(pool: str, seed: int, epochs: int) -> list[float]:
    """Per cent of unseen digits that are recognised, for each rate."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, labels = digits()
    order = torch.randperm(len(x), generator=generator)
    seen, unseen = order[:TRAIN], order[TRAIN:]
    stream = shuffled(x[seen], labels[seen], BATCH, epochs, generator)
    model = fit(LocalFeatures(pooling(pool, ALPHA)), stream, epochs * (TRAIN // BATCH), 1.5e-2)
    return [scores(model, [(corrupted(x[unseen], rate, generator), labels[unseen])]).accuracy for rate in RATES]


def main() -> None:
    arguments = options(__doc__, "robust_pooling_digits")
    found: dict[tuple[str, float], list[float]] = {}
    runs = [(pool, seed) for seed in range(arguments.seeds) for pool in POOLINGS]
    for pool, seed in tqdm(runs, desc="training", unit="model"):
        for rate, value in zip(RATES, accuracies(pool, seed, 1 if arguments.quick else EPOCHS), strict=True):
            found.setdefault((pool, rate), []).append(value)
    print(f"accuracy on unseen digits, per cent, {arguments.seeds} seeds; columns: corrupted pixels")
    print(f"{'pooling':14}" + "".join(f"{rate:>16.0%}" for rate in RATES))
    for pool in POOLINGS:
        print(f"{pool:14}" + "".join(f"{spread(found[pool, rate]):>16}" for rate in RATES))
    plot(found, arguments.plot)
    level = {pool: sum(found[pool, 0.2]) / arguments.seeds for pool in POOLINGS}
    best = max(POOLINGS[2:], key=lambda pool: level[pool])
    values = f"({level[best]:.1f}, {level['max']:.1f}, {level['mean']:.1f})"
    claim = f"at 20 % corrupted pixels {best} pooling is 5 points better than the maximum, and better than the mean {values}"
    require(claim, level[best] >= level["max"] + 5 and level[best] > level["mean"], arguments.quick)


def plot(found: dict[tuple[str, float], list[float]], path: Path) -> None:
    plt = pyplot()
    figure = plt.figure(figsize=(11, 4), layout="constrained")
    grid = figure.add_gridspec(2, 4)
    x, _ = digits()
    for k, rate in enumerate(RATES):
        picture = figure.add_subplot(grid[k // 2, k % 2])
        picture.imshow(corrupted(x[12:13], rate, torch.Generator().manual_seed(1))[0, 0], cmap="gray", vmin=0, vmax=1)
        picture.set(title=f"{rate:.0%} corrupted", xticks=[], yticks=[])
    axes = figure.add_subplot(grid[:, 2:])
    for k, pool in enumerate(POOLINGS):
        values = torch.tensor([found[pool, rate] for rate in RATES])
        error = values.std(-1, correction=0)
        axes.errorbar([100 * rate for rate in RATES], values.mean(-1), error, marker="os^Dv<"[k], capsize=2, label=pool)
    axes.set(
        xlabel="corrupted pixels, per cent",
        ylabel="accuracy, per cent",
        title="digits, trained on clean pictures",
        ylim=(0, 101),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


if __name__ == "__main__":
    main()

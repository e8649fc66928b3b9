"""Projections as feature normalisation: a small residual network on handwritten digits.

The features of a residual network (with batch normalisation, 300 training pictures) go through a projection onto an Lp
ball or sphere before the linear classifier, as in section 6 of Gould, Hartley & Campbell (TPAMI 2022). Projection bounds
what a single odd picture can do to the classifier. Baseline: the same network without projection. Fails if the best
projection is less accurate than the baseline, in the mean over seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from figure import dots, means, options, over_seeds, pyplot, require, save, table
from pictures import digits, trunk
from torch import Tensor, nn
from training import fit, scores, shuffled

from ddn_cvx.nodes import LpBall, LpSphere

FEATURES, TRAIN, EPOCHS, BATCH = 32, 300, 25, 50
VARIANTS = {
    "batch norm only": None,
    "L1 ball": (LpBall, 1.0),
    "L2 ball": (LpBall, 2.0),
    "Linf ball": (LpBall, torch.inf),
    "L1 sphere": (LpSphere, 1.0),
    "L2 sphere": (LpSphere, 2.0),
    "Linf sphere": (LpSphere, torch.inf),
}
RADIUS = {1.0: 12.0, 2.0: 3.0, torch.inf: 1.0}


class Classifier(nn.Module):
    """Pictures (B, 1, 8, 8) -> logits (B, 10)."""

    def __init__(self, variant: tuple[type[LpBall] | type[LpSphere], float] | None):
        super().__init__()
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.features = nn.Sequential(trunk(1, (16, FEATURES)), pooled, nn.Linear(FEATURES, FEATURES))
        self.project = None if variant is None else variant[0](FEATURES, variant[1])
        self.radius = 0.0 if variant is None else RADIUS[variant[1]]
        self.classify = nn.Linear(FEATURES, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        if self.project is not None:
            features = self.project(features, features.new_tensor(self.radius))
        return self.classify(features)


def main() -> None:
    arguments = options(__doc__, "normalised_features")
    x, y = digits()
    epochs = 1 if arguments.quick else EPOCHS

    def run(seed: int) -> dict[str, float]:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
        seen, unseen = order[:TRAIN], order[TRAIN:]
        accuracy = {}
        for name, variant in VARIANTS.items():
            torch.manual_seed(seed)
            stream = shuffled(x[seen], y[seen], BATCH, epochs, torch.Generator().manual_seed(seed))
            model = fit(Classifier(variant), stream, epochs * (TRAIN // BATCH), 1e-2, decay=1e-4)
            accuracy[name] = scores(model, [(x[unseen], y[unseen])]).accuracy
        return accuracy

    figures = over_seeds(run, arguments.seeds)
    print(f"accuracy on {len(x) - TRAIN} unseen digits, per cent, after {TRAIN} training pictures")
    table(figures)
    plot(figures, arguments.plot)
    mean = means(figures)
    baseline = mean.pop("batch norm only")
    best = max(mean, key=lambda name: mean[name])
    claim = f"the best projection ({best}, {mean[best]:.2f}) is as accurate as batch normalisation only ({baseline:.2f})"
    require(claim, mean[best] >= baseline, arguments.quick)


def plot(figures: dict[str, list[float]], path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    upwards = dict(reversed(figures.items()))
    dots(axes, upwards, {name: "tab:orange" if name == "batch norm only" else "tab:blue" for name in upwards})
    axes.set(
        xlabel="accuracy on unseen digits, per cent (dots: seeds, bars: means)",
        title="features projected before the classifier",
    )
    save(figure, path, dpi=120)


if __name__ == "__main__":
    main()

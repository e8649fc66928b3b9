"""Projections and robust pooling in a residual network, in the table of Gould, Hartley & Campbell (TPAMI 2022).

Rows are nodes: in the first part features are normalised, and projected onto an Lp sphere or ball before the classifier, in
the second a robust pooling takes the place of global average pooling. Columns are the share of pixels replaced by random
values. The networks are trained on clean pictures and tested on corrupted ones; with ``--same-rate`` they are also trained
on corrupted ones. Average precision is that of logits and of probabilities, ranked across the test set. By default the
pictures are the digits of scikit-learn; ``--data DIR`` takes pictures laid out like ImageNet and a deeper network. Fails if
the best projection is less accurate than the plain network on clean pictures, in the mean over seeds.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from figure import require
from pictures import corrupted, digits, picture_folder, trunk
from poolings import MeanPooling, pooling
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training import CLEAN, Schedule, Task, compare, load, mean, parse, parser, report

from ddn_cvx.nodes import LpBall, LpSphere

PROJECTIONS = {
    "L1 sphere": (LpSphere, 1.0),
    "L2 sphere": (LpSphere, 2.0),
    "Linf sphere": (LpSphere, torch.inf),
    "L1 ball": (LpBall, 1.0),
    "L2 ball": (LpBall, 2.0),
    "Linf ball": (LpBall, torch.inf),
}
POOLINGS = ("max", "pseudo-huber", "huber", "welsch", "truncated")
PLAIN, NORMALISED = "average", "batch norm"
TRAIN, TEST = 300, 400
BUNDLED = Schedule(epochs=12, batch=50, learning_rate=1e-2)
REAL = Schedule(epochs=90, batch=128, learning_rate=2e-3)


class Projection(nn.Module):
    """Features projected, with a radius at which the projection moves the typical vector of normalised ones."""

    def __init__(self, name: str, n: int):
        super().__init__()
        node, p = PROJECTIONS[name]
        self.project = node(n, p)
        self.radius = {1.0: n / 2, 2.0: n**0.5 / 2, torch.inf: 1.0}[p]

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x, x.new_tensor(self.radius))


class Network(nn.Module):
    """Pictures ``(B, c, h, w)`` -> logits ``(B, classes)``, with a node in it."""

    def __init__(self, node: str, channels: int, widths: tuple[int, ...], classes: int):
        super().__init__()
        n = widths[-1]
        self.features = trunk(channels, widths)
        self.linear, self.classify = nn.Linear(n, n), nn.Linear(n, classes)
        self.pool = pooling(node) if node in POOLINGS else MeanPooling()
        normalised = node == NORMALISED or node in PROJECTIONS
        self.normalise = nn.BatchNorm1d(n, affine=False) if normalised else nn.Identity()
        self.project = Projection(node, n) if node in PROJECTIONS else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.features(x).flatten(-2))
        return self.classify(self.project(self.normalise(self.linear(pooled))))


def network(node: str, task: Task, *, real: bool) -> nn.Module:
    channels, widths = (3, (32, 64, 128, 256)) if real else (1, (16, 32))
    return Network(node, channels, widths, len(task.classes))


def bundled(seed: int) -> Task:
    """The digits, divided in another way for each seed."""
    x, labels = digits()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    train, test = (TensorDataset(x[rows], labels[rows]) for rows in order[: TRAIN + TEST].split((TRAIN, TEST)))
    return Task([str(k) for k in range(10)], train, test, corrupted)


def main() -> None:
    command = parser(__doc__, "paper_image_classification", "train/CLASS/*.png and val/CLASS/*.png, as in ImageNet")
    command.add_argument("--size", type=int, default=64, help="side to which pictures of --data are scaled (default 64)")
    run = parse(command, BUNDLED, REAL)
    task = bundled
    if run.data is not None:
        read = Task(*load(lambda: picture_folder(run.data, run.size)), corrupted)
        task = lambda seed: read  # noqa: E731 (the same pictures for each seed)
    rows = (PLAIN, NORMALISED, *PROJECTIONS, *POOLINGS)
    nodes = {node: partial(network, node, real=run.data is not None) for node in rows}
    found = load(lambda: compare(nodes, task, run))
    metrics = {
        "accuracy": "accuracy",
        "logits": "mean average precision of logits",
        "probabilities": "mean average precision of probabilities",
    }
    report(found, metrics, run, {"projections": (PLAIN, NORMALISED, *PROJECTIONS), "poolings": (PLAIN, *POOLINGS)})
    if run.data is None and run.nodes is None and not run.quick:
        level = {node: mean(found, CLEAN, node, 0.0) for node in rows}
        best = max(PROJECTIONS, key=lambda node: level[node])
        claim = f"the best projection ({best}, {level[best]:.1f}) is as accurate as the plain network ({level[PLAIN]:.1f})"
        require(claim, level[best] >= level[PLAIN], False)


if __name__ == "__main__":
    main()

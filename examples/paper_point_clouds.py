"""Point clouds with outliers: the poolings of a PointNet in the table of Gould, Hartley & Campbell (TPAMI 2022).

Rows are poolings, columns the share of points replaced by points anywhere in the unit ball. The networks are trained on
clean clouds and tested with outliers; with ``--same-rate`` they are also trained with outliers, one network for each rate.
By default six synthetic shapes of 96 points are told apart; ``--data DIR`` takes meshes laid out like ModelNet40, and the
PointNet of the paper (64, 128 and 1024 channels). Fails if a robust pooling is not 10 points of accuracy better than max
pooling at 20 or 50 % outliers, in the mean over seeds.
"""

from __future__ import annotations

from functools import partial

import torch
from figure import require
from point_clouds import SHAPES, PointNet, cloud_folder, synthetic, with_outliers
from poolings import pooling
from torch import nn
from torch.utils.data import TensorDataset
from training import CLEAN, Schedule, Task, compare, load, mean, parse, parser, report

POOLINGS = ("max", "quadratic", "pseudo-huber", "huber", "welsch", "truncated")
POINTS, TRAIN, TEST = 96, 1920, 300
BUNDLED = Schedule(epochs=2, batch=32, learning_rate=1.5e-2)
REAL = Schedule(epochs=60, batch=24, learning_rate=2e-3)


def network(pool: str, task: Task, *, real: bool) -> nn.Module:
    """The PointNet of the paper, or a small one."""
    layers = ((64, 128, 1024), (512, 256)) if real else ((48, 48, 16), (48,))
    return PointNet(pooling(pool), len(task.classes), *layers)


def drawn(seed: int) -> Task:
    """The six shapes, other ones for each seed."""
    generator = torch.Generator().manual_seed(seed)
    train, test = (TensorDataset(*synthetic(count, POINTS, generator)) for count in (TRAIN, TEST))
    return Task(SHAPES, train, test, with_outliers)


def main() -> None:
    command = parser(__doc__, "paper_point_clouds", "CLASS/train/*.off and CLASS/test/*.off, as in ModelNet40")
    command.add_argument("--points", type=int, default=1024, help="points sampled from each mesh of --data (default 1024)")
    run = parse(command, BUNDLED, REAL)
    if run.data is None:
        task = drawn
    else:
        classes, train, test = load(lambda: cloud_folder(run.data, run.points))
        read = Task(classes, TensorDataset(*train), TensorDataset(*test), with_outliers)
        task = lambda seed: read  # noqa: E731 (the same meshes for each seed)
    nodes = {pool: partial(network, pool, real=run.data is not None) for pool in POOLINGS}
    found = compare(nodes, task, run)
    report(found, {"accuracy": "accuracy", "logits": "mean average precision"}, run)
    if run.data is None and run.nodes is None:
        for rate in () if run.quick else (0.2, 0.5):
            level = {pool: mean(found, CLEAN, pool, rate) for pool in POOLINGS}
            worst = min(POOLINGS[2:], key=lambda pool: level[pool])
            claim = f"at {rate:.0%} outliers every robust pooling is 10 points better than the maximum ({level['max']:.1f})"
            require(f"{claim}; {worst}: {level[worst]:.1f}", level[worst] >= level["max"] + 10, False)


if __name__ == "__main__":
    main()

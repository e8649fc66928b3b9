"""Segmentation by a minimal cut whose edge weights are learned.

Pictures of 16 x 16 pixels show blobs. One channel tells the inside from the outside, with twice as much noise as signal; the
other shows regions of arbitrary levels, and so where a border may be, but not what is inside. A small network gives each
pixel its score u, another each edge between neighbours its weight w, and the node the relaxed cut x, trained by the cross
entropy of x with the true picture (Djolonga & Krause, NIPS 2017). The answer is ``x > 0``: the minimal cut, which is
compared with scipy's maximum flow. Baselines: the scores alone, from which the cuts start, and a cut whose edges all have
the same learned weight. Fails if the intersection over union is not above that of the scores alone in the mean over seeds,
or if a cut is not minimal.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from figure import means, options, over_seeds, pyplot, require, save, table
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor, nn
from tqdm import tqdm

from ddn_cvx.nodes import CutRelaxation
from ddn_cvx.nodes.submodular import grid

SIDE, TRAIN, TEST, BATCH, STEPS = 16, 60, 60, 6, 100
VARIANTS = ("scores alone", "cut, equal weights", "cut, learned weights")


def pictures(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """``(count, 2, SIDE, SIDE)`` channels and the true ``(count, SIDE, SIDE)``."""
    row, column = np.mgrid[:SIDE, :SIDE]
    channels, truth = np.zeros((count, 2, SIDE, SIDE)), np.zeros((count, SIDE, SIDE))
    for k in range(count):
        for _ in range(3):
            centre, radius, angle = rng.uniform(3, SIDE - 3, 2), rng.uniform(1.5, 4.5, 2), rng.uniform(0, np.pi)
            along = (row - centre[0]) * np.cos(angle) + (column - centre[1]) * np.sin(angle)
            across = (column - centre[1]) * np.cos(angle) - (row - centre[0]) * np.sin(angle)
            truth[k][(along / radius[0]) ** 2 + (across / radius[1]) ** 2 < 1] = 1
        inside, outside = rng.choice(6, 2, replace=False)
        channels[k, 1] = np.where(truth[k] > 0, inside, outside) + 0.4 * rng.standard_normal((SIDE, SIDE))
        channels[k, 0] = 2 * truth[k] - 1 + 2.0 * rng.standard_normal((SIDE, SIDE))
    return torch.tensor(channels), torch.tensor(truth)


class Segmentation(nn.Module):
    """Channels (B, 2, SIDE, SIDE) -> u and x, both (B, SIDE * SIDE)."""

    def __init__(self, variant: str):
        super().__init__()
        self.variant = variant
        self.score = nn.Sequential(nn.Conv2d(2, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1)).double()
        self.weight = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1)).double()
        self.level = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))
        nn.init.constant_(self.weight[2].bias, -2.0)  # at first the scores decide
        self.cut = CutRelaxation(SIDE * SIDE, grid(SIDE, SIDE))

    def edges(self, channels: Tensor) -> Tensor:
        """The weights, (B, E)."""
        if self.variant == "cut, equal weights":
            return nn.functional.softplus(self.level).expand(len(channels), self.cut.ends.shape[1])
        one, other = (channels.flatten(2)[:, :, ends] for ends in self.cut.ends)
        return nn.functional.softplus(self.weight((one - other).abs().mT).squeeze(-1))

    def forward(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        u = self.score(channels).flatten(1)
        return u, u if self.variant == "scores alone" else self.cut(u, self.edges(channels))


def train(model: Segmentation, channels: Tensor, truth: Tensor, steps: int, rng: np.random.Generator) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in tqdm(range(steps), desc=model.variant, leave=False):
        rows = torch.as_tensor(rng.choice(len(channels), BATCH, replace=False))
        loss = nn.functional.binary_cross_entropy_with_logits(model(channels[rows])[1], truth[rows].flatten(1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def overlap(found: Tensor, truth: Tensor) -> float:
    """Intersection over union, in the mean over pictures, per cent."""
    inside = truth.flatten(1) > 0
    return 100 * ((found & inside).sum(1) / (found | inside).sum(1)).mean().item()


def minimal_cut(u: Tensor, w: Tensor, ends: Tensor) -> np.ndarray:
    """The nodes on the source's side of the minimal cut, by scipy; capacities are integers."""
    n, (one, other) = len(u), ends.numpy()
    scores, weights = (np.rint(1e6 * t.numpy()).astype(np.int32) for t in (u, w))
    nodes, source, sink = np.arange(n), np.full(n, n), np.full(n, n + 1)
    rows, columns = np.concatenate((one, other, source, nodes)), np.concatenate((other, one, nodes, sink))
    capacity = np.concatenate((weights, weights, scores.clip(0), (-scores).clip(0)))
    graph = sp.csr_array((capacity, (rows, columns)), shape=(n + 2, n + 2), dtype=np.int32)
    residual = graph - maximum_flow(graph, n, n + 1).flow
    residual.data[residual.data <= 0] = 0
    residual.eliminate_zeros()
    reached = breadth_first_order(residual, n, return_predecessors=False)
    return np.isin(nodes, reached)


def main() -> None:
    arguments = options(__doc__, "submodular_cuts")
    steps, count = (2, 4) if arguments.quick else (STEPS, TEST)
    shown: dict[str, Tensor] = {}

    def run(seed: int) -> dict[str, float]:
        rng = np.random.default_rng(seed)
        channels, truth = pictures(TRAIN, rng)
        unseen, right = pictures(count, rng)
        figures, scores = {}, Segmentation(VARIANTS[0]).score.state_dict()
        for variant in VARIANTS:
            torch.manual_seed(seed)
            model = Segmentation(variant)
            if variant != VARIANTS[0]:
                model.score.load_state_dict(scores)
            train(model, channels, truth, (10 if variant == "scores alone" else 1) * steps, rng)
            if variant == VARIANTS[0]:
                scores = copy.deepcopy(model.score.state_dict())
            with torch.no_grad():
                u, x = model(unseen)
                w = model.edges(unseen)
            figures[variant] = overlap(x > 0, right)
            if seed == 0:
                shown[variant] = x
        exact = [minimal_cut(*one, model.cut.ends) for one in zip(u, w, strict=True)]
        figures["pixels as in the minimal cut"] = 100 * float(np.mean((x > 0).numpy() == np.stack(exact)))
        if seed == 0:
            shown.update(channels=unseen, truth=right)
        return figures

    figures = over_seeds(run, arguments.seeds)
    print(f"intersection over union on {count} unseen pictures, per cent, after {TRAIN} training pictures")
    table(figures)
    plot(shown, figures, arguments.plot)
    mean = means(figures)
    same = min(figures["pixels as in the minimal cut"])
    require(f"every cut is the minimal one ({same:.2f} % of the pixels)", same == 100.0, arguments.quick)
    alone, learned = mean[VARIANTS[0]], mean[VARIANTS[2]]
    require(f"learned weights ({learned:.1f}) beat the scores alone ({alone:.1f})", learned > alone, arguments.quick)


def plot(shown: dict[str, Tensor], figures: dict[str, list[float]], path: Path) -> None:
    plt = pyplot()
    titles = ("inside or outside,\nnoisy", "levels: borders", "truth", *(v.replace(", ", ",\n") for v in VARIANTS))
    grey, signed = {"cmap": "gray"}, {"cmap": "RdBu_r"}
    figure, axes = plt.subplots(4, 6, figsize=(9.5, 6.8), layout="constrained")
    for k, row in enumerate(axes):
        scores = [shown[v][k].reshape(SIDE, SIDE) for v in VARIANTS]
        for axis, picture, look in zip(
            row, (*shown["channels"][k], shown["truth"][k], *scores), (grey, grey, grey, signed, signed, signed), strict=True
        ):
            width = float(picture.abs().max()) if look is signed else None
            axis.imshow(picture, vmin=None if width is None else -width, vmax=width, **look)
            if look is signed:
                axis.contour(picture, levels=[0.0], colors="k", linewidths=1.2)
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        mean = f"\n{sum(figures[v]) / len(figures[v]):.1f} % overlap" if (v := title.replace("\n", " ")) in figures else ""
        axis.set_title(title + mean, fontsize=9)
    figure.suptitle("unseen pictures; red is inside, the line is the answer")
    save(figure, path)


if __name__ == "__main__":
    main()

"""Unscrambling: the four quarters of handwritten digits, in random order, are put back.

As in DeepPermNet (Santa Cruz et al., CVPR 2017): a network that sees the quarters gives every quarter a score for each
place, a node projects the scores onto the doubly stochastic matrices, and the cross entropy to the right permutation is
minimised (for the Euclidean projection, which has zeros, the squared distance). For a new digit the permutation of largest
total is taken. Baseline: the same network with a softmax over the places of each quarter, which may give one place to two
quarters; it takes the likeliest place of each. Fails if the better node puts fewer than 90 % of the quarters of unseen
digits in their places, in the mean over seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from figure import options, over_seeds, pyplot, require, save, table
from pictures import digits
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ddn_cvx.nodes import DoublyStochastic

PARTS, FEATURES, TRAIN, STEPS, BATCH = 4, 64, 1000, 1000, 64
VARIANTS = ("softmax", "entropic", "euclidean")


def quarters(pictures: Tensor) -> Tensor:
    """``(B, 1, 8, 8)`` -> ``(B, 4, 16)``."""
    return pictures.view(-1, 2, 4, 2, 4).transpose(2, 3).reshape(-1, PARTS, 16)


def scramble(parts: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Parts in random order, and the place where each belongs."""
    places = torch.rand(parts.shape[:2], generator=generator).argsort(-1)
    return parts.gather(1, places.unsqueeze(-1).expand_as(parts)), places


class Scores(nn.Module):
    """Parts ``(B, n, 16)`` -> scores ``(B, n, n)`` of each part at each place; any order of the parts gives the same."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(16, FEATURES), nn.ReLU(), nn.Linear(FEATURES, FEATURES), nn.ReLU())
        self.both = nn.Sequential(nn.Linear(3 * FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, FEATURES), nn.ReLU())
        self.last = nn.Sequential(nn.Linear(3 * FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, PARTS))

    def forward(self, parts: Tensor) -> Tensor:
        one = self.together(self.each(parts))
        return self.last(self.together(self.both(one)))

    @staticmethod
    def together(x: Tensor) -> Tensor:
        """Every part with the mean and the maximum over all."""
        return torch.cat((x, x.mean(1, keepdim=True).expand_as(x), x.amax(1, keepdim=True).expand_as(x)), -1)


class Unscramble(nn.Module):
    def __init__(self, variant: str):
        super().__init__()
        self.scores = Scores()
        self.variant = variant
        self.node = nn.Softmax(-1) if variant == "softmax" else DoublyStochastic(PARTS, variant)

    def forward(self, parts: Tensor) -> Tensor:
        return self.node(self.scores(parts))

    def loss(self, parts: Tensor, places: Tensor) -> Tensor:
        P = self(parts)
        if self.variant == "euclidean":
            return (P - nn.functional.one_hot(places, PARTS)).square().sum((-1, -2)).mean()
        return -P.gather(-1, places.unsqueeze(-1)).clamp(min=1e-30).log().mean()

    @torch.no_grad()
    def place(self, parts: Tensor) -> Tensor:
        """The place of each part."""
        P = self(parts)
        if self.variant == "softmax":
            return P.argmax(-1)
        return torch.from_numpy(np.stack([linear_sum_assignment(-one)[1] for one in P.numpy()]))


def train(model: Unscramble, parts: Tensor, steps: int, generator: torch.Generator) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(parts), (BATCH,), generator=generator)
        loss = model.loss(*scramble(parts[rows], generator))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def main() -> None:
    arguments = options(__doc__, "permutations")
    pictures, _ = digits()
    steps = 5 if arguments.quick else STEPS
    shown: list[Tensor] = []

    def run(seed: int) -> dict[str, float]:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(pictures)))
        seen, unseen = quarters(pictures[order[:TRAIN]]), quarters(pictures[order[TRAIN:]])
        parts, places = scramble(unseen, torch.Generator().manual_seed(seed))
        found = {}
        for variant in VARIANTS:
            torch.manual_seed(seed)
            model = Unscramble(variant)
            train(model, seen, steps, torch.Generator().manual_seed(seed))
            right = model.place(parts) == places
            found[f"{variant}: places"] = 100 * right.double().mean().item()
            found[f"{variant}: whole digits"] = 100 * right.all(-1).double().mean().item()
            if variant == "entropic" and not shown:
                shown.extend((parts[:8], model.place(parts[:8]), places[:8]))
        return found

    figures = over_seeds(run, arguments.seeds)
    print(f"quarters of {len(pictures) - TRAIN} unseen digits in their places, and digits without a mistake, per cent")
    table(figures)
    plot(figures, shown, arguments.plot)
    mean = {v: sum(figures[f"{v}: places"]) / arguments.seeds for v in VARIANTS}
    best = max(VARIANTS[1:], key=lambda v: mean[v])
    require(f"{best}: {mean[best]:.1f} % of the places are right (at least 90 %)", mean[best] >= 90, arguments.quick)


def picture(parts: Tensor, places: Tensor) -> Tensor:
    """``(n, 16)`` -> ``(9, 9)`` with a gap between the quarters."""
    out = torch.full((9, 9), torch.nan)
    for part, place in zip(parts.view(-1, 4, 4), places.tolist(), strict=True):
        top, left = 5 * (place // 2), 5 * (place % 2)
        out[top : top + 4, left : left + 4] = part
    return out


def plot(figures: dict[str, list[float]], shown: list[Tensor], path: Path) -> None:
    plt = pyplot()
    figure = plt.figure(figsize=(11, 3), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.2, 1))
    panels = left.subplots(2, 8)
    parts, found, places = shown
    for k in range(8):
        for axes, where in zip(panels[:, k], (torch.arange(PARTS), found[k]), strict=True):
            axes.imshow(picture(parts[k], where), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        wrong = int((found[k] != places[k]).sum())
        panels[1, k].set_xlabel("right" if wrong == 0 else f"{wrong} wrong", color="tab:green" if wrong == 0 else "tab:red")
    panels[0, 0].set_ylabel("scrambled")
    panels[1, 0].set_ylabel("put back")
    axes = right.subplots()
    for row, variant in enumerate(VARIANTS):
        for part, marker, colour in (("places", "o", "tab:blue"), ("whole digits", "s", "tab:orange")):
            values = figures[f"{variant}: {part}"]
            axes.plot(values, [row] * len(values), marker, color=colour, label=part if row == 0 else None, alpha=0.6)
    axes.set_yticks(range(len(VARIANTS)), VARIANTS)
    axes.set_ylim(-0.5, len(VARIANTS) - 0.5)
    axes.set(xlabel="per cent right (one mark a seed)")
    axes.grid(axis="x", alpha=0.3)
    right.legend(loc="outside upper center", ncols=2)
    save(figure, path)


if __name__ == "__main__":
    main()

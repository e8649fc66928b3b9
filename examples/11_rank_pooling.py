"""What happens first: sequences of pictures whose class is the order of three events.

In each sequence a handwritten two, five and seven fade into one another, in one of the six orders; how long each lasts is
random, frames are noisy, and the digits of the test were never seen. The frames of all classes have one distribution: what
pools them without their order cannot tell the classes apart. A network for each frame, one pooling and a linear classifier
learn together, with the pooling of Fernando & Gould (ICML 2016) or of Cherian et al. (CVPR 2017), or the mean or maximum.
The settings were chosen with ones, fours and eights and other seeds. Fails if rank pooling or subspace pooling is below 90
per cent, or if mean pooling is more than 10 points above chance, in the mean over seeds.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from figure import means, options, pyplot, require, save, table
from pictures import digits
from torch import Tensor, nn
from tqdm import tqdm

from ddn_cvx.nodes import RankPooling, SubspacePooling

FRAMES, FEATURES, AXES, STEPS, BATCH, UNSEEN = 12, 6, 2, 300, 32, 600
EVENTS, FIRST_SEED = (2, 5, 7), 100  # settings were chosen with 1, 4, 8 and the seeds 0, 1 and 2
ORDERS = tuple(itertools.permutations(range(3)))
POOLINGS = ("mean", "max", "rank", "subspace")


class Pooling(nn.Module):
    """Features of the frames (B, T, d) -> features of the sequence."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        if kind == "rank":
            self.node: nn.Module = RankPooling(FRAMES, FEATURES, squared=True)
        elif kind == "subspace":
            self.node = SubspacePooling(FRAMES, FEATURES, AXES, C=1.0, margin=1.0)
        self.size = FEATURES**2 if kind == "subspace" else FEATURES

    def forward(self, v: Tensor) -> Tensor:
        if self.kind == "mean":
            return v.mean(1)
        if self.kind == "max":
            return v.amax(1)
        found = self.node(v)
        return (found @ found.mT).flatten(1) if self.kind == "subspace" else found


class Classifier(nn.Module):
    """Sequences (B, T, 64) -> logits (B, 6)."""

    def __init__(self, kind: str):
        super().__init__()
        self.frame = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, FEATURES), nn.Tanh())
        self.pool = Pooling(kind)
        self.classify = nn.Sequential(nn.BatchNorm1d(self.pool.size), nn.Linear(self.pool.size, len(ORDERS)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.pool(self.frame(x)))


def sequences(count: int, pictures: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences ``(count, T, 64)`` and the number of the order of their events."""
    labels = torch.randint(len(ORDERS), (count,), generator=generator)
    which = torch.tensor(ORDERS)[labels]
    shown = [p[torch.randint(len(p), (count,), generator=generator)] for p in pictures]
    events = torch.stack(shown, 1).gather(1, which.unsqueeze(-1).expand(-1, -1, 64))
    part = 0.15 + torch.rand(count, 3, generator=generator)
    ends = (part / part.sum(-1, keepdim=True)).cumsum(-1)[:, :2] * FRAMES
    time = torch.arange(FRAMES) + 0.5
    after = ((time.view(1, -1, 1) - ends.unsqueeze(1)) + 0.5).clamp(0, 1)  # events fade over one frame
    share = torch.stack((1 - after[..., 0], after[..., 0] - after[..., 1], after[..., 1]), -1)
    x = share @ events
    return x + 0.1 * torch.randn(x.shape, generator=generator), labels


def accuracy(kind: str, seen: list[Tensor], unseen: list[Tensor], seed: int, steps: int) -> float:
    """Per cent of sequences of unseen digits whose order is recognised."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier(kind)
    optimiser = torch.optim.Adam(model.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-2, total_steps=steps)
    for _ in range(steps):
        x, labels = sequences(BATCH, seen, generator)
        loss = nn.functional.cross_entropy(model(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    x, labels = sequences(UNSEEN, unseen, generator)
    with torch.no_grad():
        return 100 * (model(x).argmax(-1) == labels).double().mean().item()


def main() -> None:
    arguments = options(__doc__, "rank_pooling")
    pictures, kinds = digits()
    x = pictures.flatten(1)
    steps = 3 if arguments.quick else STEPS
    figures: dict[str, list[float]] = {kind: [] for kind in POOLINGS}
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    for seed, kind in tqdm([(s, k) for s in seeds for k in POOLINGS], desc="training", unit="model"):
        mixed = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
        of_event = [mixed[kinds[mixed] == event] for event in EVENTS]
        seen, unseen = [x[rows[:100]] for rows in of_event], [x[rows[100:]] for rows in of_event]
        figures[kind].append(accuracy(kind, seen, unseen, seed, steps))
    print(f"accuracy on {UNSEEN} sequences of unseen digits, per cent; chance is {100 / len(ORDERS):.1f}")
    table(figures)
    plot(figures, sequences(3, unseen, torch.Generator().manual_seed(0)), arguments.plot)
    mean = means(figures)
    for kind in ("rank", "subspace"):
        require(f"{kind} pooling ({mean[kind]:.1f}) reaches 90", mean[kind] >= 90, arguments.quick)
    chance = 100 / len(ORDERS)
    require(f"mean pooling ({mean['mean']:.1f}) is at chance, to 10 points", mean["mean"] <= chance + 10, arguments.quick)


def plot(figures: dict[str, list[float]], shown: tuple[Tensor, Tensor], path: Path) -> None:
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), width_ratios=(2, 1), layout="constrained")
    films = [film.view(FRAMES, 8, 8).transpose(0, 1).reshape(8, 8 * FRAMES) for film in shown[0]]
    gap = torch.ones(2, 8 * FRAMES)
    left.imshow(torch.cat([films[0], gap, films[1], gap, films[2]]), cmap="gray_r", vmin=0, vmax=1)
    names = ["-".join(str(EVENTS[k]) for k in ORDERS[label]) for label in shown[1]]
    left.set_yticks([3.5, 13.5, 23.5], names)
    left.set(xticks=[], title="three sequences and their classes", xlabel="frames, from the first to the last")
    for row, (kind, values) in enumerate(figures.items()):
        colour = "tab:orange" if kind in ("mean", "max") else "tab:blue"
        right.bar(row, sum(values) / len(values), 0.7, color=colour)
        right.plot([row] * len(values), values, ".", color="black")
    right.axhline(100 / len(ORDERS), color="0.4", linestyle=":", linewidth=1)
    right.set_xticks(range(len(figures)), list(figures))
    right.set(ylabel="accuracy, per cent\n(dots: seeds; dotted: chance)", title="unseen digits, by pooling", ylim=(0, 100))
    save(figure, path)


if __name__ == "__main__":
    main()

"""Digits of unseen classes from one or five examples of each: a classifier fitted inside the forward pass.

As in Lee et al. (CVPR 2019), a small convolutional network embeds the pictures of an episode, a head fits a linear
classifier to the embedded examples, and the loss on the queries trains the network through the fit. Five digits are for
training (turned and mirrored at random, which makes them forty classes), the five others for test, so that every class
of the test is new. Baseline: nearest class mean (prototypical networks), trained in the same way on the same episodes;
its temperature is learned as the heads' are, from a good start. Fails if the better of SVM and ridge regression is not
2 points of accuracy above the baseline with five examples, in the mean over seeds. A seed is another choice of the five
digits.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figure import means, options, pyplot, require, save, table
from pictures import digits
from torch import Tensor, nn
from tqdm import tqdm

from ddn_cvx.nodes import RidgeHead, SVMHead

WAYS, SHOTS, QUERIES, STEPS, EPISODES, TESTS = 5, 5, 6, 200, 4, 200
HEADS = ("nearest mean", "ridge", "svm")


class NearestMean(nn.Module):
    """Minus the squared distance to the mean of each class."""

    def forward(self, support: Tensor, queries: Tensor) -> Tensor:
        return -torch.cdist(queries, support.mean(2)).square()


def head(name: str, shots: int) -> nn.Module:
    if name == "ridge":
        return RidgeHead(WAYS, shots, penalty=0.1)
    return SVMHead(WAYS, shots, C=10.0, ridge=1e-3) if name == "svm" else NearestMean()


class Embedding(nn.Module):
    """Pictures (..., 8, 8) -> features (..., 256) whose length is about 1."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def forward(self, pictures: Tensor) -> Tensor:
        return self.features(pictures.reshape(-1, 1, 8, 8)).view(*pictures.shape[:-2], -1) / 16


class Digits:
    """Episodes of five digits."""

    def __init__(self, kinds: Tensor, augment: bool, generator: torch.Generator):
        x, labels = digits()
        self.classes = [x[labels == kind].squeeze(1) for kind in kinds]
        self.augment, self.generator = augment, generator

    def pick(self, pictures: Tensor, count: int) -> Tensor:
        chosen = pictures[torch.randperm(len(pictures), generator=self.generator)[:count]]
        if self.augment:
            quarters, mirrored = torch.randint(4, (2,), generator=self.generator).tolist()
            chosen = torch.rot90(chosen, quarters, (-2, -1))
            chosen = chosen.flip(-1) if mirrored % 2 else chosen
        return chosen

    def episodes(self, count: int, shots: int, queries: int) -> tuple[Tensor, Tensor]:
        """Support ``(count, ways, shots, 8, 8)`` and queries ``(count, ways, queries, 8, 8)``."""
        each = [[self.pick(one, shots + queries) for one in self.classes] for _ in range(count)]
        pictures = torch.stack([torch.stack(episode) for episode in each])
        return pictures[:, :, :shots], pictures[:, :, shots:]


def scores(model: Embedding, fit: nn.Module, support: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of all queries ``(episodes * ways * queries, ways)`` and their labels."""
    embedded = model(torch.cat((support, queries), 2))  # together: batch normalisation sees both
    shots, count = support.shape[2], queries.shape[2]
    found = fit(embedded[:, :, :shots], embedded[:, :, shots:].flatten(1, 2))
    labels = torch.arange(WAYS).repeat_interleave(count).repeat(len(support))
    return found.flatten(0, 1) * model.log_temperature.exp(), labels


def train(name: str, data: Digits, steps: int) -> Embedding:
    model, fit = Embedding(100.0 if name == "nearest mean" else 5.0), head(name, SHOTS)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        found, labels = scores(model, fit, *data.episodes(EPISODES, SHOTS, QUERIES))
        loss = nn.functional.cross_entropy(found, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def accuracy(name: str, model: Embedding, data: Digits, shots: int, count: int) -> float:
    """Per cent of the queries of ``count`` episodes."""
    with torch.no_grad():
        found, labels = scores(model, head(name, shots), *data.episodes(count, shots, 10))
    return 100 * (found.argmax(-1) == labels).double().mean().item()


def main() -> None:
    arguments = options(__doc__, "few_shot_digits")
    steps, tests = (5, 10) if arguments.quick else (STEPS, TESTS)
    found: dict[int, dict[str, list[float]]] = {shots: {name: [] for name in HEADS} for shots in (1, 5)}
    for seed, name in tqdm([(s, h) for s in range(arguments.seeds) for h in HEADS], desc="training", unit="model"):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)
        model = train(name, Digits(order[:5], True, torch.Generator().manual_seed(seed)), steps)
        for shots, figures in found.items():
            unseen = Digits(order[5:], False, torch.Generator().manual_seed(1000 + seed))  # the same for every head
            figures[name].append(accuracy(name, model, unseen, shots, tests))
    for shots, figures in found.items():
        print(f"accuracy on unseen digits, per cent, {shots} example{'s' * (shots > 1)} of each of {WAYS} classes")
        table(figures)
    plot(found, arguments.plot)
    mean = means(found[5])
    best = max(HEADS[1:], key=lambda name: mean[name])
    claim = f"with 5 examples {best} ({mean[best]:.1f}) is 2 points above the nearest mean ({mean[HEADS[0]]:.1f})"
    require(claim, mean[best] >= mean[HEADS[0]] + 2, arguments.quick)


def plot(found: dict[int, dict[str, list[float]]], path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for k, (shots, colour) in enumerate(((1, "tab:orange"), (5, "tab:blue"))):
        for row, name in enumerate(HEADS):
            values, at = found[shots][name], row + 0.4 * k - 0.2
            label = f"{shots} example{'s' * (shots > 1)} of each class"
            axes.bar(at, sum(values) / len(values), 0.36, color=colour, label=label if row == 0 else None)
            axes.plot([at] * len(values), values, ".", color="black", markersize=5)
    axes.axhline(100 / WAYS, color="0.5", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(HEADS)), HEADS)
    axes.set(ylabel="accuracy, per cent (dots: seeds)", title="five digits that training has not seen", ylim=(0, 115))
    axes.legend(loc="upper left", ncols=2)
    save(figure, path)


if __name__ == "__main__":
    main()

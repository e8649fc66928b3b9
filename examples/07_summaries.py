"""Summaries of sets of handwritten digits, by a greedy choice that is trained through.

A set holds 30 digits of 6 kinds, some kinds often and some once or twice. A summary is 6 of them that stand for all: the
soft greedy maximum of facility location, for similarities of a learned linear embedding. The loss is how much of a kind is
missing to one choice, in the mean over kinds (Tschiatschek, Sahin & Krause, IJCAI 2018, learn from summaries as well). On
sets of unseen digits the choice is that at a low temperature. Its value is compared with the linear programming bound on the
best of all summaries. Baselines: 6 digits at random, and the same greedy choice with similarities of pixels, at the best of
several widths. Fails if the loss on unseen sets does not fall by training, or if a summary is below ``1 - 1/e`` of the
bound.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from figure import options, over_seeds, require, table
from scipy.optimize import linprog
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from ddn_cvx.nodes import SoftGreedy
from ddn_cvx.nodes.summaries import coverage

DIGITS, KINDS, FEATURES, BATCH, STEPS, TEST = 30, 6, 12, 16, 140, 40
SOFT, COLD = 0.004, 3e-4


class Summary(nn.Module):
    """Pictures (B, DIGITS, 64) -> similarities (B, DIGITS, DIGITS) and choices (B, DIGITS)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(64, FEATURES, bias=False).double()
        with torch.no_grad():
            self.embed.weight.copy_(2 * torch.linalg.qr(torch.randn(64, FEATURES).double())[0].T)
        self.choose = SoftGreedy(DIGITS, KINDS, temperature=SOFT)
        self.exact = SoftGreedy(DIGITS, KINDS, temperature=COLD)

    def similarity(self, features: Tensor) -> Tensor:
        return torch.exp(-(features.unsqueeze(-2) - features.unsqueeze(-3)).square().sum(-1))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        s = self.similarity(self.embed(pictures))
        return s, (self.choose if self.training else self.exact)(s)


def draw(x: Tensor, kind: Tensor, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Sets of pictures (count, DIGITS, 64), and their kinds (count, DIGITS)."""
    rows = np.empty((count, DIGITS), np.int64)
    for row in rows:
        kinds = rng.choice(10, KINDS, replace=False)
        often = np.concatenate(
            (kinds, rng.choice(kinds, DIGITS - KINDS, p=(share := rng.dirichlet(np.ones(KINDS))) / share.sum()))
        )
        row[:] = [rng.choice(np.flatnonzero(kind == one)) for one in often]
    return x[rows], kind[rows]


def missed(y: Tensor, kinds: Tensor) -> Tensor:
    """What is missing of a choice of each kind, in the mean over the kinds of a set."""
    member = nn.functional.one_hot(kinds, 10).to(y.dtype)
    chosen = (y.unsqueeze(-1) * member).sum(-2)
    return ((1 - chosen).clamp(min=0) * member.amax(-2)).sum(-1).mean() / KINDS


def rounded(y: Tensor) -> Tensor:
    return torch.zeros_like(y).scatter(-1, y.topk(KINDS).indices, 1.0)


def bound(s: np.ndarray) -> float:
    """No summary is better: each point is assigned to elements, which are chosen in fractions that sum to KINDS."""
    points, n = s.shape
    assigned = sp.hstack((sp.kron(sp.eye_array(points), np.ones((1, n))), sp.csr_array((points, n))))
    within = sp.hstack((sp.eye_array(points * n), -sp.kron(np.ones((points, 1)), sp.eye_array(n))))
    size = sp.csr_array(np.concatenate((np.zeros(points * n), np.ones(n)))[None])
    right = np.concatenate((np.ones(points), np.zeros(points * n), [KINDS]))
    cost = np.concatenate((-s.ravel() / points, np.zeros(n)))
    return -linprog(cost, sp.vstack((assigned, within, size)), right, bounds=(0, 1), method="highs").fun


def main() -> None:
    arguments = options(__doc__, "summaries")
    pictures, labels = load_digits(return_X_y=True)
    x, kind = torch.tensor(pictures / 16 / 3), torch.tensor(labels)
    steps, count = (3, 3) if arguments.quick else (STEPS, TEST)
    curves: list[list[float]] = []
    shown: list[Tensor] = []

    def run(seed: int) -> dict[str, float]:
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        order = rng.permutation(len(x))
        seen, unseen = order[:1000], order[1000:]
        sets, kinds = draw(x[unseen], kind[unseen], count, rng)
        model = Summary()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        model.eval()
        with torch.no_grad():
            before = missed(model(sets)[1], kinds)
        losses = []
        model.train()
        for _ in tqdm(range(steps), desc="training", leave=False):
            some, theirs = draw(x[seen], kind[seen], BATCH, rng)
            loss = missed(model(some)[1], theirs)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
        curves.append(losses)
        model.eval()
        with torch.no_grad():
            s, y = model(sets)
            choices = [model.exact(model.similarity(width * sets)) for width in (0.5, 1.0, 2.0)]
        pixels = min(choices, key=lambda y: float(missed(rounded(y), kinds)))
        chance = torch.rand(y.shape, generator=torch.Generator().manual_seed(seed))
        value = coverage(s, rounded(y))
        ratios = [float(v) / bound(one.numpy()) for v, one in zip(value, s, strict=True)]
        if seed == 0:
            shown.extend((sets[:3], rounded(y)[:3], rounded(pixels)[:3]))
        return {
            "loss before training": 100 * before.item(),
            "loss after training": 100 * missed(y, kinds).item(),
            "kinds missed, random": 100 * missed(rounded(chance), kinds).item(),
            "kinds missed, pixels": 100 * missed(rounded(pixels), kinds).item(),
            "kinds missed, learned": 100 * missed(rounded(y), kinds).item(),
            "least value, per cent of the bound": 100 * min(ratios),
        }

    figures = over_seeds(run, arguments.seeds)
    print(f"on {count} sets of unseen digits, per cent of the {KINDS} kinds in each")
    table(figures)
    plot(curves, shown, figures, arguments.plot)
    least = min(figures["least value, per cent of the bound"])
    require(f"every summary has {least:.1f} % of the bound or more", least >= 100 * (1 - np.exp(-1)), arguments.quick)
    falls = [(a, b) for a, b in zip(figures["loss before training"], figures["loss after training"], strict=True)]
    claim = ", ".join(f"{a:.1f} to {b:.1f}" for a, b in falls)
    require(f"the loss on unseen sets falls by training ({claim})", all(b < a for a, b in falls), arguments.quick)


def plot(curves: list[list[float]], shown: list[Tensor], figures: dict[str, list[float]], path: object) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(10, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.5))
    axes = left.subplots()
    width = min(10, len(curves[0]))
    for losses in curves:
        axes.plot(100 * np.convolve(losses, np.ones(width) / width, "valid"), alpha=0.8)
    axes.set(
        xlabel="step",
        ylabel="missing to one choice of each kind, per cent",
        title="training, one line a seed",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    grids = right.subplots(3, 3, width_ratios=(5, 1.6, 1.6))
    sets, learned, pixels = shown
    for row, digits, mine, theirs in zip(grids, sets, learned, pixels, strict=True):
        for axis, rows, wide in (
            (row[0], torch.arange(DIGITS), 10),
            (row[1], theirs.nonzero()[:, 0], 3),
            (row[2], mine.nonzero()[:, 0], 3),
        ):
            framed = nn.functional.pad(digits[rows].reshape(-1, 8, 8), (1, 1, 1, 1))
            tiles = framed.reshape(-1, wide, 10, 10).transpose(1, 2).reshape(-1, wide * 10)
            axis.imshow(tiles, cmap="gray_r")
            axis.set(xticks=[], yticks=[])
    mean = {name: sum(values) / len(values) for name, values in figures.items()}
    titles = (
        "unseen set of 30",
        f"by pixels\nmisses {mean['kinds missed, pixels']:.0f} %",
        f"learned\nmisses {mean['kinds missed, learned']:.0f} %",
    )
    for axis, title in zip(grids[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()

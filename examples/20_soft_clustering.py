"""Soft clustering inside an auto-encoder: handwritten digits fall into groups that nobody named.

An auto-encoder learns codes of ten numbers. Then a mixture of ten Gaussians is fitted to the codes of every mini-batch, as a
node, and the encoder is trained through the fit: a digit and one of its five nearest neighbours among the pictures are to
belong to the same component, and all components are to be used. Labels serve the measurement only: the normalised mutual
information (NMI) of clusters and digits. Baselines: k-means on the pixels, k-means and a mixture on the codes of the same
auto-encoder trained for as many steps without the node, and the same training without the gradient through the fit (each
fit is taken as constant). Fails if clustering through the node is not better than k-means, on pixels and on codes, in the
mean over seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from figure import dots, means, options, pyplot, require, save, table
from pictures import digits
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn
from tqdm import tqdm

from ddn_cvx.nodes import GaussianMixture
from ddn_cvx.nodes.mixtures import responsibilities

CODE, CLUSTERS, NEIGHBOURS, BATCH, ALONE, TOGETHER, FLOOR = 10, 10, 5, 256, 400, 160, 0.01
RECONSTRUCTION, AGREEMENT, BALANCE = 0.2, 5.0, 7.0
METHODS = {
    "k-means on pixels": "0.6",
    "k-means on codes": "tab:blue",
    "mixture on codes": "tab:blue",
    "fit as a constant": "tab:green",
    "through the node": "tab:orange",
}


class AutoEncoder(nn.Module):
    """Pictures (B, 1, 8, 8) -> codes (B, 10) of unit variance -> pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(),
            nn.Linear(128, CODE), nn.BatchNorm1d(CODE, affine=False),
        )  # fmt: skip
        self.decode = nn.Sequential(
            nn.Linear(CODE, 128), nn.ReLU(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 64), nn.Unflatten(1, (1, 8, 8))
        )

    def loss(self, code: Tensor, pictures: Tensor) -> Tensor:
        return (self.decode(code) - pictures).square().sum((1, 2, 3)).mean()

    @torch.no_grad()
    def codes(self, pictures: Tensor) -> Tensor:
        self.eval()
        found = self.encode(pictures)
        self.train()
        return found


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures slightly turned, shifted and scaled."""
    angle, scale = 0.15 * torch.randn(len(x), generator=generator), 1 + 0.1 * torch.randn(len(x), generator=generator)
    shift = 0.1 * torch.randn(len(x), 2, generator=generator)
    rows = ((scale * angle.cos(), -angle.sin(), shift[:, 0]), (angle.sin(), scale * angle.cos(), shift[:, 1]))
    grid = nn.functional.affine_grid(torch.stack([torch.stack(row, -1) for row in rows], -2), x.shape, align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False)


def pretrain(x: Tensor, steps: int, seed: int) -> AutoEncoder:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = AutoEncoder()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        loss = model.loss(model.encode(moved(x[rows], generator)), x[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def cluster(model: AutoEncoder, x: Tensor, near: Tensor, steps: int, seed: int, constant: bool) -> np.ndarray:
    """Train through the mixture, and return the likeliest component of every picture."""
    generator = torch.Generator().manual_seed(seed)
    node = GaussianMixture(CLUSTERS, CODE, FLOOR)
    means = torch.from_numpy(KMeans(CLUSTERS, n_init=10, random_state=seed).fit(model.codes(x)).cluster_centers_)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in tqdm(range(steps), desc="steps", leave=False):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        others = near[rows, torch.randint(NEIGHBOURS, (BATCH,), generator=generator)]
        code = model.encode(moved(x[torch.cat((rows, others))], generator))
        fit = node(code.detach() if constant else code, means)
        one, other = responsibilities(code, *fit).chunk(2)
        agreement = (one * other).sum(-1).clamp(min=1e-6).log().mean()
        share = responsibilities(code, *fit).mean(0)
        balance = (share * share.log()).sum()
        loss = RECONSTRUCTION * model.loss(code, x[torch.cat((rows, others))]) - AGREEMENT * agreement + BALANCE * balance
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        means = 0.9 * means + 0.1 * fit[1].detach()
    code = model.codes(x)
    return responsibilities(code, *node(code, means)).argmax(-1).numpy()


def main() -> None:
    arguments = options(__doc__, "soft_clustering")
    x, kinds = digits()
    near = torch.cdist(x.flatten(1), x.flatten(1)).topk(NEIGHBOURS + 1, largest=False).indices[:, 1:]
    alone, together = (5, 3) if arguments.quick else (ALONE, TOGETHER)
    figures: dict[str, list[float]] = {name: [] for name in METHODS}
    shown: dict[str, np.ndarray] = {}

    def k_means(points: Tensor, seed: int) -> np.ndarray:
        return KMeans(CLUSTERS, n_init=10, random_state=seed).fit(points.numpy()).labels_

    for seed in tqdm(range(arguments.seeds), desc="seeds"):
        longer = pretrain(x, alone + together, seed).codes(x)
        start = torch.from_numpy(KMeans(CLUSTERS, n_init=10, random_state=seed).fit(longer.numpy()).cluster_centers_)
        mixture = responsibilities(longer, *GaussianMixture(CLUSTERS, CODE, FLOOR)(longer, start))
        found = {
            "k-means on pixels": k_means(x.flatten(1), seed),
            "k-means on codes": k_means(longer, seed),
            "mixture on codes": mixture.argmax(-1).numpy(),
            "fit as a constant": cluster(pretrain(x, alone, seed), x, near, together, seed, constant=True),
            "through the node": cluster(pretrain(x, alone, seed), x, near, together, seed, constant=False),
        }
        for name, labels in found.items():
            figures[name].append(normalized_mutual_info_score(kinds.numpy(), labels))
        shown = shown or found

    print(f"normalised mutual information of {CLUSTERS} clusters and the digits, {len(x)} pictures")
    table(figures)
    plot(figures, shown, kinds.numpy(), arguments.plot)
    mean = means(figures)
    ours, other = mean["through the node"], max(mean["k-means on pixels"], mean["k-means on codes"])
    claim = f"clusters trained through the node ({ours:.3f}) beat those of k-means ({other:.3f})"
    require(claim, ours > other, arguments.quick)


def plot(figures: dict[str, list[float]], shown: dict[str, np.ndarray], kinds: np.ndarray, path: Path) -> None:
    plt = pyplot()
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained", width_ratios=(1, 1, 1.1))
    for axes, name in zip(panels, ("k-means on codes", "through the node"), strict=False):
        counts = np.zeros((CLUSTERS, 10))
        np.add.at(counts, (shown[name], kinds), 1)
        axes.imshow(counts[linear_sum_assignment(-counts.T)[1]], cmap="Blues", vmax=185)
        axes.set(title=name, xlabel="digit", ylabel="cluster", xticks=range(10), yticks=[])
    axes = panels[2]
    dots(axes, dict(reversed(figures.items())), METHODS)
    axes.set(title="clusters and digits", xlabel="normalised mutual information (dots: seeds)")
    axes.set_ylim(-0.6, len(METHODS) - 0.4)
    save(figure, path)


if __name__ == "__main__":
    main()

"""RANSAC inside a network: whom to trust when a line or a homography is fitted, learnt from the error of the fit alone.

Half of the points are outliers. The others are noisy to different degrees, and every point comes with three numbers, as a
detector would give them, that tell something of its noise and of its being an outlier, mixed and disturbed. A small network
turns them into a weight; RANSAC draws its samples by these weights, the fit uses them, and the distance of the fitted from
the true line (homography) on test points trains the network through the optimality conditions. What is an outlier, and how
noisy a point is, the network is never told. Baselines: least squares on all points, the same RANSAC with all weights alike,
and least squares on the true inliers alike. Fails if learnt weights do not lower the error of RANSAC without weights by a
quarter, for the line and for the homography, in the mean over seeds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figure import options, pyplot, require, save, table
from torch import Tensor, nn
from tqdm import tqdm

from ddn_cvx.nodes import HomographyFit, LineFit
from ddn_cvx.nodes.consensus import transfer

POINTS, OUTLIERS, CUES, TEST = 40, 0.5, 3, 400
STEPS = {"line": 120, "homography": 120}
BATCH, THRESHOLD, HYPOTHESES = 16, 0.15, 64
GRID = torch.cartesian_prod(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 5)).double()
Data = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # x, y, cues, inlier, truth


class Weights(nn.Module):
    """Cues (B, N, 3) -> weights (B, N) between 0.002 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(CUES, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)).double()

    def forward(self, cues: Tensor) -> Tensor:
        return 0.002 + torch.sigmoid(self.body(cues).squeeze(-1))


def problems(kind: str, count: int, generator: torch.Generator) -> Data:
    """Points, their cues, which are inliers, and the truth."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = 2 * torch.rand(count, POINTS, 2, generator=generator, dtype=torch.float64) - 1
    noise = 0.1 * 10 ** (-1.5 * torch.rand(count, POINTS, generator=generator, dtype=torch.float64))
    inlier = torch.rand(count, POINTS, generator=generator) >= OUTLIERS
    if kind == "line":
        truth = torch.cat((normal(count, 1), 0.3 * normal(count, 1)), -1)  # height = slope * along + offset
        height = truth[:, :1] * x[..., 0] + truth[:, 1:] + noise * (1 + truth[:, :1] ** 2).sqrt() * normal(count, POINTS)
        y = torch.where(inlier, height, 2 * x[..., 1]).unsqueeze(-1)
    else:
        truth = torch.eye(3, dtype=torch.float64) + normal(count, 3, 3) * torch.tensor([0.15, 0.15, 0.1]).unsqueeze(-1)
        image = transfer(truth, x) + noise.unsqueeze(-1) * normal(count, POINTS, 2)
        y = torch.where(inlier.unsqueeze(-1), image, x.roll(1, 1) + 0.2 * normal(count, POINTS, 2))
    hidden = torch.stack((noise.log10() + 1.75, inlier.double() - 0.5, 0.3 * normal(count, POINTS)), -1)
    mixing = torch.tensor([[1.0, 0.4, 0.5], [-0.5, 0.8, 0.5], [0.3, 0.6, -0.8]], dtype=torch.float64)
    return x, y, torch.tanh(hidden @ mixing) + 0.1 * normal(count, POINTS, CUES), inlier, truth


def error(kind: str, node: nn.Module, data: Data, weights: Tensor) -> Tensor:
    """Root mean square distance on test points, of each problem; a fit that is far off, or fails, counts as one."""
    x, y, _, _, truth = data
    if kind == "line":
        n0, n1, c = node(torch.cat((x[..., :1], y), -1), weights).unbind(-1)
        ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        right = truth[:, :1] * ends + truth[:, 1:]
        off = (n0.unsqueeze(-1) * ends + n1.unsqueeze(-1) * right + c.unsqueeze(-1)).square().mean(-1)
    else:
        off = (transfer(node(x, y, weights), GRID) - transfer(truth, GRID)).square().sum(-1).mean(-1)
    return (off + 1e-12).sqrt().clamp(max=1.0).nan_to_num(1.0)


def build(kind: str, threshold: float) -> LineFit | HomographyFit:
    return LineFit(threshold, HYPOTHESES) if kind == "line" else HomographyFit(threshold, 2 * HYPOTHESES)


def train(kind: str, steps: int, seed: int) -> tuple[Weights, list[float]]:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, node = Weights(), build(kind, THRESHOLD)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-2, total_steps=steps)
    losses = []
    for _ in tqdm(range(steps), desc=kind, leave=False):
        data = problems(kind, BATCH, generator)
        loss = error(kind, node, data, model(data[2])).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return model, losses


@torch.no_grad()
def compare(kind: str, model: Weights, count: int, seed: int) -> dict[str, float]:
    """Mean errors on new problems, in thousandths."""
    data = problems(kind, count, torch.Generator().manual_seed(1000 + seed))
    inlier, alike = data[3].double(), torch.ones(count, POINTS, dtype=torch.float64)
    node, everything = build(kind, THRESHOLD), build(kind, 1e3)
    for layer in (node.consensus.layer, everything.consensus.layer):
        layer.on_failure = "nan"
    choices: dict[str, tuple[nn.Module, Tensor]] = {
        "all points": (everything, alike),
        "RANSAC": (node, alike),
        "learnt weights": (node, model(data[2])),
        "true inliers": (everything, inlier + 1e-9),
    }
    return {name: 1e3 * error(kind, of, data, w).mean().item() for name, (of, w) in choices.items()}


def main() -> None:
    arguments = options(__doc__, "ransac")
    figures: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    models: dict[str, Weights] = {}
    for seed in tqdm(range(arguments.seeds), desc="seeds"):
        for kind in STEPS:
            models[kind], losses[kind] = train(kind, 3 if arguments.quick else STEPS[kind], seed)
            for name, value in compare(kind, models[kind], 10 if arguments.quick else TEST, seed).items():
                figures.setdefault(f"{kind}: {name}", []).append(value)
    print(f"error on {TEST} new problems of {POINTS} points, {OUTLIERS:.0%} of them outliers, in thousandths")
    table(figures)
    plot(figures, models, arguments.plot)
    for kind in STEPS:
        ours, plain = (sum(figures[f"{kind}: {name}"]) / arguments.seeds for name in ("learnt weights", "RANSAC"))
        claim = f"{kind}: learnt weights lower the error of RANSAC by a quarter ({plain:.1f} to {ours:.1f})"
        require(claim, ours <= 0.75 * plain, arguments.quick)


def plot(figures: dict[str, list[float]], models: dict[str, Weights], path: Path) -> None:
    plt = pyplot()
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained", width_ratios=(1.1, 1, 0.9))
    data = problems("line", 1, torch.Generator().manual_seed(7))
    x, y, cues, _, truth = data
    alike = torch.ones(1, POINTS, dtype=torch.float64)
    with torch.no_grad():
        weights = models["line"](cues)
        points = torch.cat((x[..., :1], y), -1)
        fits = {
            "all points": (LineFit(1e3)(points, alike), "0.6"),
            "RANSAC": (LineFit(THRESHOLD)(points, alike), "tab:blue"),
            "learnt weights": (LineFit(THRESHOLD)(points, weights), "tab:orange"),
        }
    axes, ends = panels[0], torch.tensor([-1.0, 1.0], dtype=torch.float64)
    axes.scatter(*points[0].T, s=4 + 60 * weights[0], color="tab:orange", alpha=0.5, label="points, size: learnt weight")
    axes.plot(ends, truth[0, 0] * ends + truth[0, 1], color="black", linewidth=1, label="truth")
    for name, (line, colour) in fits.items():
        axes.plot(ends, -(line[0, 0] * ends + line[0, 2]) / line[0, 1], "--", color=colour, label=name)
    axes.set(title="a line, half of the points wrong", xlabel="x", ylabel="y", ylim=(-2.2, 3.2))
    axes.locator_params(axis="x", nbins=5)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=5)
    axes = panels[1]
    _, _, cues, inlier, _ = problems("homography", 20, torch.Generator().manual_seed(8))
    with torch.no_grad():
        learnt = models["homography"](cues)
    bins = torch.linspace(float(learnt.log10().min()), float(learnt.log10().max()), 31)
    for label, rows, colour in (("inliers", inlier, "tab:green"), ("outliers", ~inlier, "tab:red")):
        axes.hist(learnt[rows].log10(), bins=bins, color=colour, alpha=0.6, label=label)
    axes.set(title="learnt weights, homography", xlabel="log10 of the weight", ylabel="points")
    axes.legend()
    axes = panels[2]
    names = list(figures)[::-1]
    for row, name in enumerate(names):
        colour = "tab:orange" if "learnt" in name else "tab:blue" if name.endswith("RANSAC") else "0.5"
        axes.semilogx(figures[name], [row] * len(figures[name]), "o", color=colour, alpha=0.5)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(title="error (one mark a seed)", xlabel="thousandths")
    axes.grid(axis="x", alpha=0.3)
    save(figure, path, dpi=105)


if __name__ == "__main__":
    main()

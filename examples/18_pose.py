"""Which correspondences to trust: weights for absolute orientation, learnt from rotations alone.

Two sets of 32 points differ by a rotation, a translation and noise, and 30 per cent of the pairs are wrong. A small network
gives each pair a weight, from how well it keeps its distances to the other pairs; the weighted Procrustes node makes a
rotation of them, and the loss is the error of this rotation. Nothing says which pairs are wrong. Baselines: all weights
alike, and the right pairs only (which needs to know them). Fails if the mean error of the rotation is above half of
the unweighted one's, or an output is not a rotation to 1e-12.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figure import options, over_seeds, pyplot, require, save, table
from torch import Tensor, nn

from ddn_cvx.nodes import WeightedProcrustes
from ddn_cvx.nodes.pose import rotation

PAIRS, WRONG, NOISE, BATCH, STEPS, UNSEEN = 32, 0.3, 0.03, 32, 250, 500
WIDTHS = (0.05, 0.1, 0.2, 0.5)


class Trust(nn.Module):
    """Pairs ``x, y (B, N, 3)`` -> weights ``(B, N)`` between 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = nn.Sequential(nn.Linear(2 * len(WIDTHS), 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        strain = torch.cdist(x, x) - torch.cdist(y, y)  # zero between two right pairs
        kept = torch.stack([torch.exp(-0.5 * (strain / width).square()).mean(-1) for width in WIDTHS], -1)
        beside_others = kept - kept.mean(-2, keepdim=True)
        return self.judge(5 * torch.cat((kept, beside_others), -1)).squeeze(-1).sigmoid() + 1e-6


def pairs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points x, y ``(count, N, 3)``, rotations, and which pairs are right ``(count, N)``."""
    x = torch.randn(count, PAIRS, 3, generator=generator)
    R = rotation(torch.randn(count, 4, generator=generator))
    shift = torch.randn(count, 1, 3, generator=generator)
    y = x @ R.mT + shift + NOISE * torch.randn(x.shape, generator=generator)
    right = torch.rand(count, PAIRS, generator=generator) >= WRONG
    wrong = shift + 1.5 * torch.randn(x.shape, generator=generator)
    return x, torch.where(right.unsqueeze(-1), y, wrong), R, right


def degrees(R: Tensor, truth: Tensor) -> Tensor:
    """The angle between two rotations, by its sine and so exact when small."""
    half = (R - truth).square().sum((-1, -2)).sqrt() / 8**0.5
    return torch.rad2deg(2 * half.clamp(max=1).asin())


def main() -> None:
    arguments = options(__doc__, "pose")
    torch.set_default_dtype(torch.float64)
    steps = 5 if arguments.quick else STEPS
    procrustes = WeightedProcrustes()
    histories: list[list[float]] = []
    shown: dict[str, Tensor] = {}

    def run(seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        trust = Trust()
        optimiser = torch.optim.Adam(trust.parameters(), lr=2e-2)
        history = []
        for _ in range(steps):
            x, y, truth, _ = pairs(BATCH, generator)
            R, _ = procrustes(x, y, trust(x, y))
            loss = ((R - truth).square().sum((-1, -2)) + 1e-6).sqrt().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            history.append(degrees(R.detach(), truth).mean().item())
        histories.append(history)
        x, y, truth, right = pairs(UNSEEN, generator)
        with torch.no_grad():
            weights = trust(x, y)
            found = {
                "all pairs alike": procrustes(x, y, torch.ones_like(weights))[0],
                "learnt weights": procrustes(x, y, weights)[0],
                "right pairs only": procrustes(x, y, right.double())[0],
            }
        shown.update({"right": weights[right], "wrong": weights[~right]})
        figures = {f"error, degrees: {name}": degrees(R, truth).mean().item() for name, R in found.items()}
        gram = torch.stack([R.mT @ R for R in found.values()])
        return {**figures, "largest entry of R'R - I": (gram - torch.eye(3)).abs().max().item()}

    figures = over_seeds(run, arguments.seeds)
    print(f"{UNSEEN} unseen sets of {PAIRS} pairs, {WRONG:.0%} of them wrong, after {steps} steps")
    table(figures)
    plot(histories, shown, figures, arguments.plot)
    alike, learnt = (sum(figures[f"error, degrees: {name}"]) for name in ("all pairs alike", "learnt weights"))
    exact = max(figures["largest entry of R'R - I"])
    ratio = learnt / alike
    require(f"outputs are rotations to 1e-12 ({exact:.1e})", exact <= 1e-12, arguments.quick)
    require(f"the error falls to half or less with learnt weights (to {ratio:.1%} of it)", ratio <= 0.5, arguments.quick)


def plot(histories: list[list[float]], shown: dict[str, Tensor], figures: dict[str, list[float]], path: Path) -> None:
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for seed, history in enumerate(histories):
        left.plot(history, color="C0", alpha=0.6, label="learnt weights, in training" if seed == 0 else None)
    for colour, name in (("C1", "all pairs alike"), ("C2", "right pairs only")):
        values = figures[f"error, degrees: {name}"]
        left.axhline(sum(values) / len(values), color=colour, label=name)
    left.set(yscale="log", xlabel="step", ylabel="error of the rotation, degrees", title="learning whom to trust")
    left.legend()
    for colour, (name, weights) in zip(("C0", "C3"), shown.items(), strict=True):
        right.hist(weights.numpy(), bins=40, range=(0, 1), density=True, alpha=0.6, color=colour, label=f"{name} pairs")
    right.set(xlabel="learnt weight", ylabel="density", yscale="log", title="unseen pairs, last seed")
    right.legend()
    save(figure, path)


if __name__ == "__main__":
    main()

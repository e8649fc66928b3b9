"""Poses with bones of exact length: the constraint as a node, against the constraint as a penalty.

A network sees the joints of a skeleton as a depth camera does, with noise, and guesses where they are. The bones have
known lengths. In one network a node projects the guess on the poses with these lengths; the other is penalised for
wrong lengths, with the weight that does best on the test set (the baseline is given this advantage). Fails if
an output of the node violates a length by more than 1e-8, or if its mean error is above the penalty's, in the mean over
seeds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from figure import means, options, over_seeds, pyplot, require, save, table
from torch import Tensor, nn

from ddn_cvx.nodes import BoneLengths

BONES = ((0, 1), (1, 2), (2, 3), (1, 4), (4, 5), (1, 6))
LENGTHS = (1.0, 0.6, 0.5, 0.6, 0.5, 0.3)
JOINTS, TRAIN, UNSEEN, EPOCHS, BATCH, NOISE = 7, 400, 500, 40, 50, (0.05, 0.05, 0.1)
WEIGHTS = (0.0, 0.1, 1.0, 10.0)


def skeletons(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Joints as seen ``(count, 3 J)`` and poses ``(count, J, 3)``, bones near their usual directions."""
    usual = torch.tensor([[0.0, 1, 0.3], [1, 0, 0.5], [0.5, -1, 0.5], [-1, 0, 0.5], [-0.5, -1, 0.5], [0, 1, 0.5]])
    toward = usual + 0.4 * torch.randn(count, len(BONES), 3, generator=generator)
    steps = torch.tensor(LENGTHS).unsqueeze(-1) * toward / toward.norm(dim=-1, keepdim=True)
    joints = [torch.zeros(count, 3)] * JOINTS
    for e, (tail, head) in enumerate(BONES):
        joints[head] = joints[tail] + steps[:, e]
    pose = torch.stack(joints, 1)
    return (pose + torch.tensor(NOISE) * torch.randn(pose.shape, generator=generator)).flatten(1), pose


def excess(pose: Tensor) -> Tensor:
    """How much too long each bone is, ``(B, E)``."""
    tails, heads = zip(*BONES, strict=True)
    return (pose[:, list(heads)] - pose[:, list(tails)]).norm(dim=-1) - torch.tensor(LENGTHS)


class Network(nn.Module):
    """Joints as seen -> poses, with the constraint as the last node or without it."""

    def __init__(self, exact: bool):
        super().__init__()
        self.guess = nn.Sequential(
            nn.Linear(3 * JOINTS, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3 * JOINTS)
        )  # fmt: skip
        self.project = BoneLengths(BONES) if exact else None

    def forward(self, x: Tensor) -> Tensor:
        pose = (x + 0.1 * self.guess(x)).unflatten(-1, (JOINTS, 3))  # what is seen, corrected
        return pose if self.project is None else self.project(pose, torch.tensor(LENGTHS))


def train(model: Network, x: Tensor, y: Tensor, weight: float, epochs: int, generator: torch.Generator) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, epochs=epochs, steps_per_epoch=len(x) // BATCH)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).view(-1, BATCH):
            pose = model(x[rows])
            loss = (pose - y[rows]).square().sum(-1).mean() + weight * excess(pose).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def main() -> None:
    arguments = options(__doc__, "hard_constraints")
    torch.set_default_dtype(torch.float64)
    epochs = 1 if arguments.quick else EPOCHS

    def run(seed: int) -> dict[str, float]:
        x, y = skeletons(TRAIN + UNSEEN, torch.Generator().manual_seed(seed))
        found = {}
        for weight in (None, *WEIGHTS):
            torch.manual_seed(seed)
            model = Network(exact=weight is None)
            train(model, x[:TRAIN], y[:TRAIN], weight or 0.0, epochs, torch.Generator().manual_seed(seed))
            with torch.no_grad():
                pose = model(x[TRAIN:])
            name = "node" if weight is None else f"penalty {weight:g}"
            found[f"error, {name}"] = (pose - y[TRAIN:]).norm(dim=-1).mean().item()
            found[f"worst violation, {name}"] = excess(pose).abs().max().item()
        return found

    figures = over_seeds(run, arguments.seeds)
    print(f"{UNSEEN} unseen poses; errors are mean distances of joints, violations those of bone lengths")
    table(figures)
    plot(figures, arguments.plot)
    mean = means(figures)
    soft = min(mean[f"error, penalty {weight:g}"] for weight in WEIGHTS)
    worst = max(figures["worst violation, node"])
    require(f"no bone is wrong by more than 1e-8 ({worst:.1e})", worst <= 1e-8, arguments.quick)
    claim = f"the error with the node ({mean['error, node']:.4f}) is no worse than with the best penalty ({soft:.4f})"
    require(claim, mean["error, node"] <= soft, arguments.quick)


def plot(figures: dict[str, list[float]], path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for k, name in enumerate(("node", *(f"penalty {weight:g}" for weight in WEIGHTS))):
        axes.plot(figures[f"worst violation, {name}"], figures[f"error, {name}"], "os^vD"[k], color=f"C{k}", label=name)
    axes.set(xscale="log", xlabel="worst violation of a bone's length (the trunk is 1 long)", ylabel="mean error of a joint")
    axes.set_title("unseen poses (a mark is a seed)")
    axes.legend()
    axes.grid(alpha=0.3)
    save(figure, path, dpi=120)


if __name__ == "__main__":
    main()

"""A deep equilibrium classifier of handwritten digits, against the same network unrolled.

Both networks have the same cell, y <- tanh(W y + U x + c), and a linear classifier of 128 features. One takes the
equilibrium and solves a linear system for its gradient; the other takes 30 steps and keeps all of them for its own. Fails
if the equilibrium is more than 1 point less accurate than the unrolled network in the mean over seeds, or if its memory
(peak size of all tensors alive during forward and backward pass) grows by more than 5 % where it iterates ten times as
long.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from figure import dots, means, options, over_seeds, pyplot, require, save, table
from memory import peak
from pictures import digits
from torch import Tensor, nn

import ddn_cvx as ddn
from ddn_cvx.nodes import DeepEquilibrium, EquilibriumCell

FEATURES, BOUND, STEPS, TRAIN, EPOCHS, BATCH = 128, 0.9, 30, 1000, 20, 50
MIXINGS = (1.0, 0.3, 0.1, 0.03, 0.01)
DEPTHS = (30, 100, 300, 1000)


class Unrolled(nn.Module):
    """So many steps of a cell, from zero."""

    def __init__(self, steps: int):
        super().__init__()
        self.cell, self.steps = EquilibriumCell(64, FEATURES, BOUND, torch.float32), steps

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), FEATURES)
        for _ in range(self.steps):
            y = self.cell(y, x)
        return y


def equilibrium(solver: ddn.Anderson | None = None) -> DeepEquilibrium:
    return DeepEquilibrium(64, FEATURES, BOUND, torch.float32, solver)


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, generator: torch.Generator) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, epochs=epochs, steps_per_epoch=len(x) // BATCH)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).view(-1, BATCH):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def memory(x: Tensor) -> dict[str, tuple[list[float], list[float]]]:
    """Peak memory against iterations, of either network.

    W passes every feature on to the next, which takes many iterations to settle, and damping makes them more.
    """
    deep: tuple[list[float], list[float]] = ([], [])
    for mixing in MIXINGS:
        torch.manual_seed(0)
        model = equilibrium(ddn.Anderson(memory=1, mixing=mixing, max_iterations=5000))
        with torch.no_grad():
            model.cell.recurrent.copy_(torch.eye(FEATURES).roll(1, 0))
            model.cell.outer.weight *= 0.1
        deep[0].append(float(model.solve(x).iterations.max()))
        deep[1].append(peak(model, x))
    return {"unrolled": ([float(d) for d in DEPTHS], [peak(Unrolled(d), x) for d in DEPTHS]), "equilibrium": deep}


def main() -> None:
    arguments = options(__doc__, "deep_equilibrium")
    pictures, y = digits()
    x = pictures.flatten(1)
    epochs = 1 if arguments.quick else EPOCHS

    def run(seed: int) -> dict[str, float]:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
        seen, unseen = order[:TRAIN], order[TRAIN:]
        accuracy = {}
        for name in ("no recurrence", "unrolled", "equilibrium"):
            torch.manual_seed(seed)
            features = {
                "no recurrence": lambda: Unrolled(1),
                "unrolled": lambda: Unrolled(STEPS),
                "equilibrium": equilibrium,
            }
            model = nn.Sequential(features[name](), nn.Linear(FEATURES, 10))
            train(model, x[seen], y[seen], epochs, torch.Generator().manual_seed(seed))
            with torch.no_grad():
                accuracy[name] = 100 * (model(x[unseen]).argmax(1) == y[unseen]).double().mean().item()
        return accuracy

    figures = over_seeds(run, arguments.seeds)
    print(f"accuracy on {len(x) - TRAIN} unseen digits, per cent")
    table(figures)
    sizes = memory(x[:256])
    print("\npeak memory of a forward and backward pass for 256 digits, MB (iterations)")
    for name, (iterations, megabytes) in sizes.items():
        print(f"{name:12}  " + "  ".join(f"{m:.1f} ({i:.0f})" for i, m in zip(iterations, megabytes, strict=True)))
    plot(figures, sizes, arguments.plot)
    mean = means(figures)
    claim = f"the equilibrium ({mean['equilibrium']:.2f}) is within 1 point of the unrolled network ({mean['unrolled']:.2f})"
    require(claim, mean["equilibrium"] >= mean["unrolled"] - 1, arguments.quick)
    iterations, megabytes = sizes["equilibrium"]
    longer, growth = iterations[-1] / iterations[0], megabytes[-1] / megabytes[0] - 1
    claim = (
        f"{longer:.0f} times the iterations (at least 10) add {growth:.1%} to the memory of the equilibrium (at most 5 %)"
    )
    require(claim, longer >= 10 and growth <= 0.05, arguments.quick)


def plot(figures: dict[str, list[float]], sizes: dict[str, tuple[list[float], list[float]]], path: Path) -> None:
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    colours = {"no recurrence": "0.5", "unrolled": "tab:orange", "equilibrium": "tab:blue"}
    for name, (iterations, megabytes) in sizes.items():
        left.plot(iterations, megabytes, "o-", color=colours[name], label=name)
    left.set(xlabel="iterations", ylabel="peak memory, MB", title="forward and backward pass, 256 digits", xscale="log")
    left.set_ylim(bottom=0)
    left.grid(alpha=0.3)
    left.legend()
    dots(right, figures, colours)
    right.set_ylim(-0.5, len(figures) - 0.5)
    right.set(xlabel="per cent (dots: seeds, bars: means)", title="accuracy on unseen digits")
    right.locator_params(axis="x", nbins=5)
    save(figure, path)


if __name__ == "__main__":
    main()

"""Sudoku from examples only: a quadratic program whose constraints are learned.

The 4x4 puzzles come as 64 numbers (16 cells, one of four digits, zeros where the cell is open) together with the solved
boards, as in section 4.4 of Amos & Kolter (ICML 2017); neither the rules nor where rows, columns and boxes lie is told.
``y = argmin 0.05 |u|^2 - puzzle'u  subject to  A u = A z, u >= 0`` with 40 learned rows of A has to find out. There are
288 boards; 100 of them are held out: no puzzle of theirs is seen in training. Baseline: a network of three layers with
six times as many weights. Fails if the program solves fewer than 95 % of the puzzles of held-out boards, in the mean
over seeds; solved means that all 16 cells are right.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import torch
from figure import options, pyplot, require, save, spread
from sudoku import all_boards, puzzles, share_solved
from torch import Tensor, nn
from tqdm import tqdm

from ddn_cvx.nodes import LearnedConstraints

TRAIN, TEST, HELD_OUT, STEPS, EVERY, BATCH = 1500, 300, 100, 800, 25, 50
MODELS = ("learned constraints", "network")


class Network(nn.Sequential):
    """Puzzles (B, 64) -> boards (B, 64)."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 64))


class Program(LearnedConstraints):
    """Puzzles (B, 64) -> boards (B, 64)."""

    def __init__(self) -> None:
        super().__init__(64, 40, curvature=0.1)

    def forward(self, puzzles: Tensor) -> Tensor:
        return super().forward(-puzzles)


def train(name: str, boards: Tensor, seed: int, steps: int) -> tuple[nn.Module, list[float], Tensor]:
    """The trained model, its share of held-out puzzles every few steps, and those puzzles."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(boards), generator=generator)
    clues, solved = puzzles(boards, boards[order[HELD_OUT:]], TRAIN, generator)
    test_clues, test_solved = puzzles(boards, boards[order[:HELD_OUT]], TEST, generator)
    torch.manual_seed(seed)
    model: nn.Module = Program() if name == MODELS[0] else Network()
    epochs = 1 if name == MODELS[0] else 10  # the network's steps cost less: it gets more of them
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-2 if name == MODELS[0] else 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * steps)
    shares = []
    for step in range(epochs * steps):
        if step % (epochs * EVERY) == 0:
            shares.append(share_solved(model, test_clues, test_solved))
        rows = torch.randint(TRAIN, (BATCH,), generator=generator)
        loss = nn.functional.mse_loss(model(clues[rows]), solved[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model, [*shares, share_solved(model, test_clues, test_solved)], test_clues


def main() -> None:
    arguments = options(__doc__, "optnet_sudoku")
    steps = EVERY if arguments.quick else STEPS
    boards = all_boards()
    curves: dict[str, list[list[float]]] = {name: [] for name in MODELS}
    answers = {}
    for seed, name in tqdm([(s, m) for s in range(arguments.seeds) for m in MODELS], desc="training", unit="model"):
        model, shares, clues = train(name, boards, seed, steps)
        curves[name].append(shares)
        with torch.no_grad():
            answers[name] = (clues[0], model(clues[:1])[0])
    print(f"puzzles of held-out boards that are solved, per cent, {arguments.seeds} seeds")
    last = {name: [shares[-1] for shares in runs] for name, runs in curves.items()}
    for name, values in last.items():
        print(f"{name:20}  {spread(values)}   (seeds: {', '.join(f'{v:.4g}' for v in values)})")
    plot(curves, answers[MODELS[0]], steps, arguments.plot)
    mean = sum(last[MODELS[0]]) / arguments.seeds
    require(f"learned constraints solve 95 % of the puzzles of held-out boards ({mean:.1f})", mean >= 95, arguments.quick)


def plot(curves: dict[str, list[list[float]]], answer: tuple[Tensor, Tensor], steps: int, path: Path) -> None:
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(1, 1.6))
    clues, board = (t.view(4, 4, 4) for t in answer)
    for row, column in product(range(4), repeat=2):
        given = clues[row, column].sum() > 0
        left.text(
            column, row, int(board[row, column].argmax()) + 1, ha="center", va="center", fontsize=20,
            color="black" if given else "tab:blue", fontweight="bold" if given else "normal",
        )  # fmt: skip
    for line in range(5):
        width = 2.5 if line % 2 == 0 else 0.8
        left.plot([line - 0.5] * 2, [-0.5, 3.5], color="black", linewidth=width)
        left.plot([-0.5, 3.5], [line - 0.5] * 2, color="black", linewidth=width)
    left.set(title="a held-out board: clues black, answers blue", aspect="equal", ylim=(3.6, -0.6))
    left.axis("off")
    for colour, (name, runs) in zip(("tab:blue", "tab:orange"), curves.items(), strict=True):
        for k, shares in enumerate(runs):
            done = torch.linspace(0, 100, len(shares))
            right.plot(done, shares, color=colour, alpha=0.8, label=name if k == 0 else None)
    right.axhline(95, color="0.5", linestyle=":", linewidth=1)
    right.set(
        xlabel=f"training done, per cent ({steps} steps; network {10 * steps})",
        ylabel="held-out puzzles solved, per cent",
        title="lines: seeds; dotted: target",
    )
    right.legend(loc="lower right")
    save(figure, path)


if __name__ == "__main__":
    main()

"""Rules from examples: SATNet learns the parity of bits and 4x4 Sudoku.

The two experiments of Wang, Donti, Wilder & Kolter (ICML 2019). Parity: a SATNet of two inputs and one output reads 20
bits one after the other, its rounded output being an input of the next step; only the parity of the whole sequence is
told. No gradient passes the rounding: until by chance the steps before the last carry some of the parity, there is nothing
to learn from. So the clauses are drawn again after 300 batches at chance, which the training data alone decide; the
recurrent network has the same rule. As rounded inputs are four different pairs, one call of the node serves every step of
every sequence. Sudoku: puzzles as 64 Boolean variables (16 cells, one of four digits) with the solved boards; neither the
rules nor where rows, columns and boxes lie is told. 100 of the 288 boards are held out. Baselines: a recurrent network
(GRU) for the bits, a network of three layers for the boards. Fails if SATNet gets less than 95 % of the unseen sequences or
of the puzzles of held-out boards right, in the mean over seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from figure import options, pyplot, require, save, table
from sudoku import all_boards, puzzles, share_solved
from torch import Tensor, nn
from tqdm import tqdm

from ddn_cvx.nodes import SATNet

BITS, SEQUENCES, ENOUGH, MOST = 20, 500, 20, 1500
PATIENCE, CHANCE = 300, 60.0  # batches, and per cent right: below it in the last 100 batches, the weights are drawn again
PUZZLES, UNSEEN, HELD_OUT, STEPS, EVERY, BATCH = 1500, 200, 100, 80, 20, 20
PAIRS = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])


class Parity(nn.Module):
    """Bits (B, L), integers -> the probability that their sum is odd, (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.node = SATNet(3, 8, auxiliary=4, tilt=0.0, tolerance=1e-4)

    def forward(self, bits: Tensor) -> Tensor:
        step = self.node(PAIRS, torch.tensor([1.0, 1.0, 0.0]).expand(4, 3))[:, 2]
        rounded, state = (step > 0.5).long(), bits[:, 0]
        for bit in bits[:, 1:-1].unbind(1):
            state = rounded[2 * state + bit]
        return step[2 * state + bits[:, -1]]


class Recurrent(nn.Module):
    """The same by a recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.out = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, bits: Tensor) -> Tensor:
        state = self.read(bits.unsqueeze(-1).float())[1][-1]
        return self.out(state).squeeze(-1).sigmoid()


class Solver(nn.Module):
    """Puzzles (B, 64) -> probabilities (B, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.node = SATNet(64, 100, rank=6, tilt=0.03, tolerance=1e-3)

    def forward(self, clues: Tensor) -> Tensor:
        return self.node(clues, given(clues))


class Network(nn.Sequential):
    """The same by a network of three layers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 64), nn.Sigmoid())


def given(clues: Tensor) -> Tensor:
    """1 for the four variables of each cell with a clue, else 0, (B, 64)."""
    cells = clues.view(-1, 16, 4).sum(-1, keepdim=True).clamp(max=1)
    return cells.expand(-1, 16, 4).reshape(-1, 64)


def learn_parity(build: Callable[[], nn.Module], rate: float, most: int, seed: int) -> tuple[float, list[float]]:
    """Per cent of unseen sequences that are right, and of those in each batch of the training, which ends when 20 batches
    in a row are right."""
    generator = torch.Generator().manual_seed(seed)
    unseen = torch.randint(2, (SEQUENCES, BITS), generator=generator)
    shares: list[float] = []
    drawn = -PATIENCE
    while len(shares) < most and not (len(shares) >= ENOUGH and min(shares[-ENOUGH:]) == 100):
        if len(shares) - drawn >= PATIENCE and sum(shares[-100:]) < 100 * CHANCE:
            model, drawn = build(), len(shares)
            optimiser = torch.optim.Adam(model.parameters(), lr=rate)
        bits = torch.randint(2, (100, BITS), generator=generator)
        odd = bits.sum(1) % 2
        found = model(bits)
        shares.append(100 * ((found > 0.5) == odd).double().mean().item())
        loss = nn.functional.binary_cross_entropy(found, odd.to(found.dtype))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        right = (model(unseen) > 0.5) == unseen.sum(1) % 2
    return 100 * right.double().mean().item(), shares


def learn_sudoku(
    build: Callable[[], nn.Module], rate: float, steps: int, every: int, boards: Tensor, seed: int
) -> tuple[float, list[float]]:
    """Per cent of unseen puzzles that are solved, and of some of them during the training."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(boards), generator=generator)
    clues, solved = puzzles(boards, boards[order[HELD_OUT:]], PUZZLES, generator)
    test_clues, test_solved = puzzles(boards, boards[order[:HELD_OUT]], UNSEEN, generator)
    model = build()
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    shares = []
    for step in range(steps):
        if step % every == 0:
            shares.append(share_solved(model, test_clues[:50], test_solved[:50]))
        rows = torch.randint(PUZZLES, (BATCH,), generator=generator)
        found, open_cells = model(clues[rows]), 1 - given(clues[rows])
        loss = nn.functional.binary_cross_entropy(found, solved[rows], weight=open_cells)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    share = share_solved(model, test_clues, test_solved)
    return share, [*shares, share]


def main() -> None:
    arguments = options(__doc__, "satnet")
    quick = arguments.quick
    boards = all_boards()
    figures: dict[str, list[float]] = {}
    curves: dict[str, list[list[float]]] = {}
    steps, most = (4, 40) if quick else (STEPS, MOST)
    tasks: dict[str, Callable[[int], tuple[float, list[float]]]] = {
        "parity, SATNet": lambda seed: learn_parity(Parity, 5e-2, most, seed),
        "parity, recurrent network": lambda seed: learn_parity(Recurrent, 1e-2, most, seed),
        "Sudoku, SATNet": lambda seed: learn_sudoku(Solver, 1e-2, steps, EVERY, boards, seed),
        "Sudoku, network": lambda seed: learn_sudoku(Network, 3e-3, 20 * steps, 20 * EVERY, boards, seed),
    }
    for seed, name in tqdm([(s, name) for s in range(arguments.seeds) for name in tasks], desc="training", unit="model"):
        torch.manual_seed(seed)
        share, curve = tasks[name](seed)
        figures.setdefault(name, []).append(share)
        curves.setdefault(name, []).append(curve)
    print(f"right, per cent: {SEQUENCES} unseen sequences of {BITS} bits, {UNSEEN} puzzles of held-out boards")
    table(figures)
    print(f"batches until the parity was learned: {', '.join(str(len(c) - ENOUGH) for c in curves['parity, SATNet'])}")
    plot(curves, arguments.plot)
    for name in ("parity, SATNet", "Sudoku, SATNet"):
        mean = sum(figures[name]) / len(figures[name])
        require(f"{name} gets 95 % right ({mean:.1f})", mean >= 95, quick)


def plot(curves: dict[str, list[list[float]]], path: Path) -> None:
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, runs in curves.items():
        axes = left if name.startswith("parity") else right
        colour = "tab:blue" if name.endswith("SATNet") else "tab:orange"
        for k, shares in enumerate(runs):
            if axes is left:
                places, shown = range(len(shares)), torch.tensor(shares).unfold(0, ENOUGH, 1).mean(-1).tolist()
                places = range(ENOUGH, ENOUGH + len(shown))
            else:
                places, shown = torch.linspace(0, 100, len(shares)).tolist(), shares
            axes.plot(places, shown, color=colour, alpha=0.8, label=name.split(", ")[1] if k == 0 else None)
    for axes in (left, right):
        axes.axhline(95, color="0.5", linestyle=":", linewidth=1)
    left.legend(loc="lower left")
    right.legend(loc="center right")
    left.set(
        xscale="log", ylim=(22, 103), xlabel="batches of 100 sequences",
        ylabel=f"right, per cent (mean of {ENOUGH} batches)",
        title=f"parity of {BITS} bits (lines: seeds; dotted: target)",
    )  # fmt: skip
    right.set(
        xlabel=f"training done, per cent ({STEPS} steps; network {20 * STEPS})", ylabel="unseen puzzles solved, per cent",
        title="4x4 Sudoku, held-out boards",
    )  # fmt: skip
    save(figure, path)


if __name__ == "__main__":
    main()

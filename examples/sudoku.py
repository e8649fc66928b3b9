"""The boards and puzzles of 4x4 Sudoku, as numbers: 16 cells, one of four digits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product

import torch
from torch import Tensor, nn


def all_boards() -> Tensor:
    """The 288 boards, digits 0 to 3, ``(288, 16)``."""
    found = []
    for rows in product(permutations(range(4)), repeat=4):
        columns = zip(*rows, strict=True)
        boxes = ((*rows[r][c : c + 2], *rows[r + 1][c : c + 2]) for r in (0, 2) for c in (0, 2))
        if all(len(set(part)) == 4 for part in (*columns, *boxes)):
            found.append([digit for row in rows for digit in row])
    return torch.tensor(found)


def puzzles(boards: Tensor, solutions: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` puzzles with one solution each, which is in ``solutions``: clues and boards, ``(count, 64)``."""
    clues, solved = [], []
    for _ in range(count):
        board = solutions[torch.randint(len(solutions), (), generator=generator)]
        known = torch.ones(16, dtype=torch.bool)
        for cell in torch.randperm(16, generator=generator)[: torch.randint(6, 13, (), generator=generator)]:
            known[cell] = False
            if (boards[:, known] == board[known]).all(1).sum() > 1:  # another board fits, too
                known[cell] = True
        digits = nn.functional.one_hot(board, 4).float()
        clues.append((digits * known.unsqueeze(1)).flatten())
        solved.append(digits.flatten())
    return torch.stack(clues), torch.stack(solved)


def share_solved(model: Callable[[Tensor], Tensor], clues: Tensor, solved: Tensor) -> float:
    """Per cent of the puzzles of which every cell is right."""
    with torch.no_grad():
        right = model(clues).view(-1, 16, 4).argmax(-1) == solved.view(-1, 16, 4).argmax(-1)
    return 100 * right.all(1).double().mean().item()

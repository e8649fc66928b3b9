"""Several starts: the global minimum of a function with many local ones, reproducibly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddn_cvx.errors import InputError
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solution import Status
from ddn_cvx.solvers.multi_start import MultiStart
from ddn_cvx.solvers.newton import Newton

F64 = torch.float64


def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
    """Minima near every odd multiple of pi / 3; the lowest next to the parameter."""
    f = (1 + torch.cos(3 * y)).sum(-1) + 0.1 * (y - theta.tensors[0]).square().sum(-1)
    return f, y[:, :0], y[:, :0]


THETA = Theta((torch.tensor([[1.0], [-3.0], [3.0]], dtype=F64),), (True,))
FAR = torch.full((3, 1), 9.0, dtype=F64)
LOWEST = torch.tensor([[1.0], [-3.0], [3.0]], dtype=F64) * torch.pi / 3


@pytest.mark.parametrize("boxed", [False, True])
def test_finds_the_lowest_minimum(boxed: bool) -> None:
    ends = torch.tensor([-9.5], dtype=F64), torch.tensor([9.5], dtype=F64)
    node = NonlinearProgram(1, 0, 0, evaluate, (lambda theta: ends) if boxed else None)
    one = MultiStart(starts=1).solve(node, THETA, FAR)
    point = MultiStart(starts=40, spread=8.0).solve(node, THETA, FAR)
    assert point.status.tolist() == [Status.SOLVED] * 3
    torch.testing.assert_close(point.y, LOWEST, rtol=0, atol=0.05)
    assert (node.values(point.y, THETA)[0] < node.values(one.y, THETA)[0] - 1).all()


def test_the_generator_decides() -> None:
    node = NonlinearProgram(1, 0, 0, evaluate)

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return MultiStart(solver=Newton(), starts=3, spread=5.0, generator=generator).solve(node, THETA, FAR).y

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    plain = MultiStart(starts=3, spread=5.0)
    assert torch.equal(plain.solve(node, THETA, FAR).y, plain.solve(node, THETA, FAR).y)


def test_the_rest_of_the_batch_does_not_matter() -> None:
    node, solver = NonlinearProgram(1, 0, 0, evaluate), MultiStart(solver=Newton(), starts=3, spread=5.0)
    alone = [solver.solve(node, THETA.take(torch.tensor([k])), FAR[:1]).y for k in range(3)]
    torch.testing.assert_close(torch.cat(alone), solver.solve(node, THETA, FAR).y)


def test_a_solved_start_wins_over_failures() -> None:
    def half(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        return torch.where(y[:, 0] > 0, (y[:, 0] - 1) ** 2, torch.nan), y[:, :0], y[:, :0]

    node = NonlinearProgram(1, 0, 0, half)
    point = MultiStart(starts=12, spread=2.0).solve(node, THETA, torch.full((3, 1), -1.0, dtype=F64))
    assert point.status.tolist() == [Status.SOLVED] * 3
    torch.testing.assert_close(point.y, torch.ones(3, 1, dtype=F64))


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="starts"):
        MultiStart(starts=0)

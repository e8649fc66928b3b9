"""Hessians of nonlinear programs that are block-diagonal: recognised, verified, and never larger than they need to be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ddn_cvx as ddn
from ddn_cvx.linalg.blocks import to_dense
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.program.pushed import pushed

F64 = torch.float64
BATCH = 5


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def program(f: Any, n: int = 12) -> NonlinearProgram:
    def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        return f(y, *theta.tensors), (y.exp().sum(-1, keepdim=True)), y[:, :0]

    return NonlinearProgram(n, 1, 0, evaluate)


def at(n: int = 12) -> tuple[Tensor, Theta, Tensor, Tensor]:
    return points(BATCH, n), Theta((points(BATCH, n, seed=1),), (True,)), points(BATCH, 1, seed=2), points(BATCH, 0)


def pairs(y: Tensor, x: Tensor) -> Tensor:
    both = (y * x).unflatten(-1, (-1, 2))
    return (both.prod(-1) ** 2 + both.sum(-1).cos()).sum(-1)


def chain(y: Tensor, x: Tensor) -> Tensor:
    return (y[:, 1:] * y[:, :-1] * x[:, 1:]).sum(-1)


CASES = {
    "separable": (lambda y, x: ((y - x) ** 4).sum(-1), 1),
    "pairs": (pairs, 2),
    "halves": (lambda y, x: (y * x).unflatten(-1, (2, 6)).prod(-1).sum(-1), 6),
    "a chain": (chain, 12),
    "all with all": (lambda y, x: (y * x).sum(-1) ** 2, 12),
    "linear": (lambda y, x: (y * x).sum(-1), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_the_blocks_are_the_hessian(name: str) -> None:
    f, size = CASES[name]
    found = program(f).curvature(*at())
    assert found.shape == (BATCH, 12, 12) if size == 12 else found.shape == (BATCH, 12 // size, size, size)
    torch.testing.assert_close(to_dense(found), program(f).hessian(*at()), rtol=1e-12, atol=1e-12)


def test_what_couples_in_some_elements_only_is_found() -> None:
    """The first element, of which the pattern is read, is separable; the last one is not, by a millionth."""

    def f(y: Tensor, x: Tensor) -> Tensor:
        return (y**4).sum(-1) + 1e-6 * (x[:, 0] < 0) * y[:, 3] * y[:, 9]

    y, _, lam, mu = at()
    x = torch.ones(BATCH, 12, dtype=F64)
    p = program(f)
    assert p.curvature(y, Theta((x,), (True,)), lam, mu).ndim == 4
    x = x.clone()
    x[-1, 0] = -1.0
    found = p.curvature(y, Theta((x,), (True,)), lam, mu)
    assert found.ndim == 3
    assert found[-1, 3, 9] == pytest.approx(1e-6, rel=1e-6)


def test_the_pattern_is_not_read_where_nothing_is_defined() -> None:
    y, theta, lam, mu = at()
    y[0] = torch.nan
    assert program(CASES["separable"][0]).curvature(y, theta, lam, mu).shape == (BATCH, 12, 1, 1)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self.numbers = max(self.numbers, t.untyped_storage().nbytes() // t.element_size())
        return out


def sphere(coupled: bool) -> ddn.DeclarativeLayer:
    def objective(y: Tensor, x: Tensor) -> Tensor:
        return 0.5 * ((y - x) ** 2).sum(-1) + (0.0 if not coupled else 0.1 * y.sum(-1) ** 2)

    problem = ddn.TorchProblem(
        (40,),
        objective,
        lambda y, x: (y * y).sum(-1, keepdim=True) - 1,
        batched=True,
        solve=lambda x: x / x.norm(dim=-1, keepdim=True),
    )
    return ddn.DeclarativeLayer(problem)


def test_a_separable_node_makes_no_matrix_of_its_variables() -> None:
    """Forward, backward, and the gradient in closed form."""
    x, v = points(128, 40).requires_grad_(), points(128, 40, seed=4)
    layer = sphere(False)
    layer(x.detach())  # the pattern is read once, from the Hessian of one element
    with Largest() as seen:
        y = layer(x)
        (g,) = torch.autograd.grad(y, x, v)
    assert seen.numbers < 128 * 40 * 8
    u = x / x.norm(dim=-1, keepdim=True)
    expected = (v - u * (u * v).sum(-1, keepdim=True)) / x.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(g, expected.detach(), rtol=1e-12, atol=1e-12)


def test_derivatives_of_both_orders_with_bounds_and_constraints() -> None:
    """Projection onto a capped simplex, with fourth powers: variables at bounds are taken out of the blocks. Along a
    direction, against central differences."""
    problem = ddn.TorchProblem(
        (9,),
        lambda y, x: ((y - x) ** 2 + 0.1 * (y - x) ** 4).sum(),
        lambda y, x: y.sum() - 1,
        lambda y, x: (y[:5] ** 2).sum() - 0.1,
        lower=0.0,
        upper=0.4,
    )
    layer = ddn.DeclarativeLayer(problem)
    x, d, v = 0.3 * points(2, 9, seed=5), points(2, 9, seed=6), points(2, 9, seed=7)

    def slope(x: Tensor) -> Tensor:
        x = x.requires_grad_()
        return torch.autograd.grad(layer(x), x, v, create_graph=True)[0]

    def difference(f: Any, step: float = 1e-5) -> Tensor:
        return (f(x.detach() + step * d) - f(x.detach() - step * d)).detach() / (2 * step)

    assert ((layer(x) == 0) | (layer(x) == 0.4)).any()
    first = slope(x)
    torch.testing.assert_close((first * d).sum(), (v * difference(layer)).sum(), rtol=1e-7, atol=1e-8)
    (second,) = torch.autograd.grad((first * d).sum(), x)
    torch.testing.assert_close(second, difference(slope), rtol=1e-6, atol=1e-7)


def test_a_pushed_program_is_of_the_same_kind() -> None:
    """A linear term in the objective changes neither what is auxiliary nor how derivatives are computed."""
    visible = torch.tensor([True, True, False])

    def evaluate(y: torch.Tensor, theta: Theta) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return ((y - theta.tensors[0]) ** 2).sum(-1), y[:, :1] - 1, y[:, 1:]

    program = NonlinearProgram(3, 1, 2, evaluate, lambda theta: (-theta.tensors[0], theta.tensors[0]), None, visible, False)
    theta = Theta((torch.arange(1.0, 7.0, dtype=torch.float64).reshape(2, 3),), (True,))
    y, push = torch.full((2, 3), 0.5, dtype=torch.float64), torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]).double()
    new, wider = pushed(program, theta, push)
    assert (new.n, new.p, new.m, new.is_dense, new.visible) == (3, 1, 2, False, visible)
    values, old = new.values(y, wider), program.values(y, theta)
    assert torch.equal(values[0], old[0] + torch.tensor([3.0, 0.5])) and torch.equal(values[1], old[1])
    assert all(torch.equal(a, b) for a, b in zip(new.bounds(wider, y), program.bounds(theta, y), strict=True))

"""Tapes say what torch says: values, gradients, Jacobians and Hessians, for every operation that is in the table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hock_schittkowski import PROBLEMS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddn_cvx.kernels import tape as op
from ddn_cvx.program import tape as tapes
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta

N = 6
A = torch.randn(4, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
PLACES = torch.tensor([2, 0, 2, 5])
GRID = torch.tensor([[0, 1, 1], [2, 0, 1]])

# Of y (B, 6), positive and less than 1, and of q (B, 6), to something of shape (B, ...).
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "arithmetic": lambda y, q: (y + q) * (y - 2 * q) / (1 + y * y) - 3.0 / y + (5 - y) + torch.add(y, q, alpha=3),
    "powers": lambda y, q: y**2 + y**3 + y**-1 + y**0.5 + y**1.7 + y**0 + 2.0**y + y**q + y**5 - y**-2 + y**-0.5,
    "roots": lambda y, q: y.sqrt() + y.rsqrt() + y.reciprocal() + y.square(),
    "exponentials": lambda y, q: y.exp() + y.log() + y.log1p() + y.expm1() + y.exp2() + y.log2() + y.log10(),
    "angles": lambda y, q: y.sin() + y.cos() + y.tan() + y.asin() + y.acos() + y.atan() + torch.atan2(y, q),
    "hyperbolic": lambda y, q: y.sinh() + y.cosh() + y.tanh() + y.asinh() + (1 + y).acosh() + y.atanh(),
    "error functions": lambda y, q: y.erf() + y.erfc(),
    "sigmoid": lambda y, q: y.sigmoid() + F.softplus(y) + F.softplus(y, beta=50.0) + F.logsigmoid(y) + F.silu(y),
    "gelu": lambda y, q: F.gelu(y) + F.gelu(y, approximate="tanh") + F.elu(y - 0.5) + F.leaky_relu(y - 0.5),
    "kinks": lambda y, q: (y - 0.5).abs() + torch.relu(y - q) ** 2 + (y - q).clamp(-0.2, 0.3) ** 2 + y.sign() * y,
    "limits": lambda y, q: (
        torch.clamp(y, q, 2 * q) ** 2 + y.clamp(min=0.4) ** 2 + y.clamp(max=q) ** 3 + F.hardtanh(3 * y - 1)
    ),
    "extremes": lambda y, q: torch.maximum(y, q) * torch.minimum(y, q) + torch.where(y > q, y.sin(), y * q),
    "truth": lambda y, q: torch.where((y > 0.3) & (y <= q) | ~(y != 0.5), y**2, y) + ((y >= q) ^ (y < 0.5)) * y,
    "masks": lambda y, q: y.square().masked_fill(y < 0.5, 2.0) + (y.floor() + 1) * y**2,
    "xlogy": lambda y, q: torch.xlogy(y, q + 1) + torch.xlogy(y, y),
    "fused": lambda y, q: torch.addcmul(y, y, q, value=2.0) + torch.addcdiv(q, q, y, value=0.5) + torch.lerp(y, q, y),
    "sums": lambda y, q: torch.stack((y.sum(-1), y.mean(-1), y.prod(-1), (y * q).sum(-1)), -1) ** 2,
    "running": lambda y, q: y.cumsum(-1) ** 2 + y.cumprod(-1),
    "largest": lambda y, q: torch.stack((y.amax(-1), y.amin(-1), y.max(-1).values, y.min(-1)[0]), -1) ** 2,
    "soft": lambda y, q: torch.logsumexp(3 * y, -1, keepdim=True) + y.softmax(-1) ** 2 + (2 * y).log_softmax(-1) * y,
    "norms": lambda y, q: torch.stack((y.norm(dim=-1), y.norm(p=1, dim=-1), torch.linalg.vector_norm(y, torch.inf, -1)), -1),
    "spread": lambda y, q: torch.stack((y.var(-1), y.std(-1), y.var(-1, correction=0)), -1) ** 2,
    "products": lambda y, q: y @ A.T + torch.einsum("bi,ij,bj->b", y, A.T @ A, y).unsqueeze(-1) + F.linear(y, A, q[:, :4]),
    "matrices": lambda y, q: torch.bmm(y.view(-1, 2, 3), q.view(-1, 3, 2)).flatten(1) ** 2 + (y * q).sum() * 0,
    "outer": lambda y, q: (y.unsqueeze(-1) * q.unsqueeze(1)).mT.flatten(1)[:, ::7] + torch.linalg.vecdot(y, y).unsqueeze(-1),
    "views": lambda y, q: y.reshape(-1, 2, 3).transpose(1, 2).flatten(1)[:, 1:] ** 2 * y.view(-1, 6)[:, :-1].flip(-1),
    "parts": lambda y, q: torch.cat((*y.split(2, -1), *y.chunk(2, -1), *y.split([1, 5], -1)), -1) ** 2,
    "stacks": lambda y, q: torch.stack(y.unbind(-1)[::2], 1).squeeze(-1) ** 2 + y.roll(1, -1)[:, :3] * y.narrow(-1, 2, 3),
    "places": lambda y, q: (
        y[:, PLACES] ** 2 + y.index_select(-1, PLACES) * q[:, :4] + y.gather(-1, PLACES.expand(len(y), 4))
    ),
    "grids": lambda y, q: y.view(-1, 3, 2)[:, GRID, 1].flatten(1) ** 2 + torch.cat((y, y[:, [1, 3]]), -1)[:, :6],
    "written": lambda y, q: _written(y, q),
    "scattered": lambda y, q: (
        torch.zeros_like(q).index_add(1, PLACES, y[:, :4] ** 2)
        + y.scatter(1, PLACES[None, :2].expand(len(y), 2), 2.0)
        + q.scatter_add(1, PLACES.expand(len(y), 4), y[:, :4]) ** 2
        + y.scatter(1, GRID[1:].expand(len(y), 3), q[:, :3])
    ),
    "triangles": lambda y, q: torch.tril(y.view(-1, 2, 3)).flatten(1) ** 2 + torch.triu(y.view(-1, 3, 2), 1).flatten(1) * y,
    "diagonals": lambda y, q: torch.diag_embed(y).matrix_power(2).diagonal(dim1=1, dim2=2) + y.view(-1, 2, 3)[:, 0, :1],
    "padded": lambda y, q: F.pad(y, (1, 2), value=0.5) ** 2 + y.repeat(1, 2)[:, :9] + y[:, :1].expand(-1, 9),
    "held": lambda y, q: y.detach() * y + y.detach() ** 2,
}


def _written(y: Tensor, q: Tensor) -> Tensor:
    z = y.clone()
    z[:, 0] = q[:, 1] * y[:, 2]
    z[:, 2:4] *= y[:, 3:5]
    z[:, PLACES[:1]] += 1.0
    z.add_(y).mul_(q)
    return z**2


def program_of(function: Callable[[Tensor, Tensor], Tensor], n: int = N) -> NonlinearProgram:
    """With the function as objective (its sum), equalities and inequalities."""

    def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        value = function(y, theta.tensors[0]).reshape(len(y), -1)
        return value.sum(-1), value[:, :2], -(value**2)

    y = torch.full((1, n), 0.5, dtype=torch.float64)
    _, h, g = evaluate(y, Theta((y,), (True,)))
    return NonlinearProgram(n, h.shape[1], g.shape[1], evaluate)


def points(batch: int, seed: int, n: int = N) -> tuple[Tensor, Theta]:
    """``y`` and ``q`` between 0 and 1, ``(B, n)``."""
    chance = torch.Generator().manual_seed(seed)
    y, q = torch.rand(2, batch, n, generator=chance, dtype=torch.float64) * 0.9 + 0.05
    return y, Theta((q,), (True,))


def assert_same(program: NonlinearProgram, y: Tensor, theta: Theta, tolerance: float = 1e-9) -> None:
    """Against torch's derivatives, which do not know of the tape."""
    chance = torch.Generator().manual_seed(2)
    lam, mu = (torch.randn(len(y), k, generator=chance, dtype=torch.float64) for k in (program.p, program.m))
    wanted = (*program.first_by_torch(y, theta), program.hessian_by_torch(y, theta, lam, mu))
    found = (*program.first(y, theta), program.hessian(y, theta, lam, mu))
    for a, b in zip(found, wanted, strict=True):
        size = 1.0 + b.abs().nan_to_num(posinf=0.0).amax() if b.numel() else 1.0
        torch.testing.assert_close(a, b.detach(), rtol=tolerance, atol=tolerance * float(size), equal_nan=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operation(name: str) -> None:
    program = program_of(FUNCTIONS[name])
    y, theta = points(3, 0)
    assert program.tape(y, theta) is not None, program.why_no_tape
    y, theta = points(11, 1)
    assert_same(program, y, theta)

"""Tapes say what torch says: values, gradients, Jacobians and Hessians, for every operation that is in the table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hock_schittkowski import PROBLEMS
from hypothesis import given, settings, strategies as st
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx.kernels import tape as op
from ddn_cvx.kernels.jit import jit
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
    "xlogy": lambda y, q: torch.xlogy(y, q + 1) + torch.xlogy(y, y) + torch.special.entr(y),
    "logaddexp": lambda y, q: torch.logaddexp(9 * y, q) ** 2 + torch.logaddexp(y, torch.zeros_like(y)) * y,
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


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: f"hs{problem.number}")
def test_hock_schittkowski(problem) -> None:
    program = problem.program()
    theta, start = problem.batch(5, torch.Generator().manual_seed(0))
    start = start + 0.01 * torch.rand(start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert program.tape(start, theta) is not None, program.why_no_tape
    assert_same(program, start + 0.1, theta)


# What a function may be made of; every step keeps its values between -3 and 3.
STEPS: list[Callable[[Tensor, Tensor], Tensor]] = [
    *(torch.sin, torch.tanh, torch.sigmoid, torch.atan, torch.erf, torch.abs, torch.relu),
    *(
        lambda a: (a * a).exp().reciprocal(),
        lambda a: (1 + a * a).log(),
        lambda a: (0.1 + a * a).sqrt(),
        lambda a: a.flip(-1),
    ),
    *(
        lambda a: a.clamp(-0.7, 0.8),
        lambda a: a.softmax(-1),
        lambda a: a - a.mean(-1, keepdim=True),
        lambda a: a / (2 + a.cos()),
    ),
]
PAIRS: list[Callable[[Tensor, Tensor], Tensor]] = [
    *(torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum, lambda a, b: torch.where(a > b, a * b, b)),
    *(lambda a, b: (a.unsqueeze(-1) * b.unsqueeze(-2)).mean(-1), lambda a, b: a / (1.5 + torch.tanh(b))),
]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=8))
def test_random_compositions(recipe: list[tuple[int, int, int]]) -> None:
    def function(y: Tensor, q: Tensor) -> Tensor:
        made = [y, q]
        for kind, one, other in recipe:
            a, b = made[one % len(made)], made[other % len(made)]
            pair = PAIRS[kind // 2 % len(PAIRS)](a, b).clamp(-3.0, 3.0)
            made.append(pair if kind % 2 else STEPS[kind // 2 % len(STEPS)](a))
        return made[-1] + y

    program = program_of(function, 3)
    y, theta = points(4, 5, 3)
    assert program.tape(y, theta) is not None, program.why_no_tape
    y, theta = points(9, 6, 3)
    assert_same(program, y, theta)


def test_what_is_not_finite_is_that_in_torch_too() -> None:
    program = program_of(
        lambda y, q: y.log() + 1.0 / y + y.sqrt() + torch.relu(y) + y.clamp(-1, 1) + torch.maximum(y, q) + y**2.5
    )
    y, theta = points(4, 0)
    assert program.tape(y, theta) is not None
    y = torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0, -1.0, 1e308]], dtype=torch.float64).repeat(6, 1)
    y[torch.arange(6), torch.arange(6)] = 0.5
    theta = theta.take(torch.zeros(6, dtype=torch.int64))
    first, wanted = program.first(y, theta), program.values(y, theta)
    for found, value in zip((first.f, first.h, first.g), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=0.0, equal_nan=True)


class Clipped(torch.autograd.Function):
    """The identity, with a derivative that is wrong only where it is large."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g.clamp(-100.0, 100.0)


class Vmapped(Clipped):
    """The same for a function of one instance."""

    generate_vmap_rule = True


def no_grad(y: Tensor, q: Tensor) -> Tensor:
    with torch.no_grad():
        weight = torch.where(y > 5.0, y, 1.0)
    return weight * y**2


def by_numpy(y: Tensor, q: Tensor) -> Tensor:
    return y * torch.from_numpy(np.sin(q.numpy()))


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "branch": (lambda y, q: y**2 if bool((y > 0).all()) else y, "_local_scalar_dense"),
    "number": (lambda y, q: y**2 * q[0, 0].item(), "_local_scalar_dense"),
    "factorisation": (lambda y, q: torch.linalg.cholesky(torch.diag_embed(1 + y**2)).flatten(1), "cholesky"),
    "order": (lambda y, q: y.sort(-1).values ** 2, "sort"),
    "data-dependent index": (lambda y, q: y.gather(1, y.argmax(-1, keepdim=True)), "argmax"),
    "derivative of its own": (lambda y, q: Clipped.apply(y) ** 2, "custom_function_call"),
    "no derivative": (no_grad, "no_grad"),
    "random": (lambda y, q: y**2 + 0.0 * torch.rand(1), "random"),
    "single precision": (lambda y, q: (y.float() ** 2).double(), "float32"),
    "numpy": (by_numpy, ""),
    "depends on the batch": (lambda y, q: y**2 * (1.0 + (len(y) > 4)), "batch"),
    "too large": (lambda y, q: torch.einsum("bi,bj,bk,bl,bm,bn->bijklmn", *(y,) * 6).flatten(1).sin(), "large"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, reason = REFUSED[name]
    n = 6 if name == "too large" else 3
    evaluate = lambda y, theta: (function(y, theta.tensors[0]).sum(-1), y[:, :0], y[:, :0])  # noqa: E731  # as short as this
    program = NonlinearProgram(n, 0, 0, evaluate)
    y, theta = points(5, 0, n)
    assert program.tape(y, theta) is None
    (why,) = program.why_no_tape
    assert reason in why
    if name != "too large":
        assert_same(program, y, theta)


def test_follows_what_its_functions_refer_to() -> None:
    radius = [1.0]
    program = program_of(lambda y, q: (y - radius[0]) ** 2)
    y, theta = points(3, 0)
    first = program.tape(y, theta)
    assert program.tape(y, theta) is first is not None
    radius[0] = 2.0
    assert program.tape(y, theta) is not first
    assert_same(program, y, theta)
    for k in range(5):
        radius[0] = 3.0 + k
        program.tape(y, theta)
        assert_same(program, y, theta)
    assert program.why_no_tape == ["its functions change from one solve to the next"]


def test_layer_refuses_a_derivative_of_its_own() -> None:
    """Also where the function of one instance is vmapped."""
    node = ddn.TorchProblem(variable=(3,), objective=lambda y, q: (Vmapped.apply(y) * 1e-3 - q).square().sum())
    layer = ddn.DeclarativeLayer(node)
    layer(torch.rand(2, 3, dtype=torch.float64))
    (program,) = node._programs.values()
    assert program.why_no_tape


def test_answers_that_only_a_tape_believes_are_none() -> None:
    """Zero times the logarithm is dropped from a tape; in torch the solution, -1, is NaN."""
    node = ddn.TorchProblem(variable=(2,), objective=lambda y, q: ((y + q) ** 2 + 0.0 * y.log()).sum(), initial=0.5)
    layer = ddn.DeclarativeLayer(node, on_failure="nan")
    answer = layer(torch.tensor([[1.0, 1.0], [-2.0, -2.0]], dtype=torch.float64))
    assert answer[0].isnan().all()
    torch.testing.assert_close(answer[1], torch.full((2,), 2.0, dtype=torch.float64))


def test_gradients_and_other_dtypes_go_through_torch() -> None:
    program = program_of(lambda y, q: y**3 * q)
    y, theta = points(3, 0)
    assert program.tape(y, theta) is not None
    y.requires_grad_()
    (slope,) = torch.autograd.grad(program.first(y, theta).gradient.sum(), y)
    assert slope.abs().amin() > 0
    with torch.no_grad():
        assert not program.first(y, theta).gradient.requires_grad
    single = Theta((theta.tensors[0].float(),), (True,))
    assert program.tape(y.detach().float(), single) is None
    assert program.first(y.detach().float(), single).f.dtype == torch.float32


def test_elements_do_not_depend_on_their_batch() -> None:
    program = program_of(FUNCTIONS["soft"])
    y, theta = points(19, 0)
    assert program.tape(y, theta) is not None
    lam, mu = torch.ones(19, program.p, dtype=torch.float64), torch.ones(19, program.m, dtype=torch.float64)
    whole = program.hessian(y, theta, lam, mu)
    for k in (0, 7, 8, 18):
        assert torch.equal(program.hessian(y[k : k + 1], theta.take(torch.tensor([k])), lam[:1], mu[:1])[0], whole[k])


def test_sparsity_is_kept() -> None:
    """A chain of 30 variables: the Hessian has two diagonals, and what depends on the parameters alone is computed once."""

    def evaluate(y: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        (q,) = theta.tensors
        f = (q.exp() * (y[:, 1:] - y[:, :-1] ** 2) ** 2).sum(-1)
        return f, y[:, ::10] ** 2 - 1.0, y[:, 1:4] + y[:, 4:7]

    program = NonlinearProgram(30, 3, 3, evaluate)
    y, theta = torch.rand(2, 30, dtype=torch.float64), Theta((torch.rand(2, 29, dtype=torch.float64),), (True,))
    tape = program.tape(y, theta)
    assert tape is not None
    assert len(tape.hess_slot) == 59
    assert (tape.hess_row - tape.hess_col).max() == 1
    assert list(zip(tape.jh_row, tape.jh_col, strict=True)) == [(0, 0), (1, 10), (2, 20)]
    assert len(tape.jg_slot) == 6
    assert (tape.prologue[:, 0] == op.EXP).sum() == 29
    assert not (np.concatenate((tape.values, tape.first, tape.second))[:, 0] == op.EXP).any()


@jit
def execute(code, work) -> None:
    op.run(code, work)


def test_segments_may_run_again() -> None:
    """Values at other points in between leave nothing behind that a later run of the rest would read."""
    program = program_of(FUNCTIONS["soft"])
    y, theta = points(8, 0)
    tape = program.tape(y, theta)
    assert tape is not None
    lam, mu = torch.ones(8, program.p, dtype=torch.float64), torch.ones(8, program.m, dtype=torch.float64)
    inputs = tapes.pack(program, y, theta, lam, mu)
    work = np.repeat(tape.constants[:, None], 8, 1)
    work[: inputs.shape[1]] = inputs.T
    execute(tape.prologue, work)
    for move in (0.3, 0.1, 0.0):
        work[: program.n] = inputs[:, : program.n].T + move
        execute(tape.values, work)
    execute(tape.first, work)
    gradient = work[tape.gradient].copy()
    for _ in range(2):
        execute(tape.second, work)
    H = program.hessian_by_torch(y, theta, lam, mu)
    np.testing.assert_allclose(work[tape.hess_slot].T, H.numpy()[:, tape.hess_row, tape.hess_col], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(gradient.T, program.first_by_torch(y, theta).gradient.numpy(), rtol=1e-9, atol=1e-10)


def test_backward_through_a_tape_is_that_through_torch(monkeypatch) -> None:
    """With bounds that move, a shared parameter, captured weights, and an element that fails."""
    net, scale = torch.nn.Linear(3, 3), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def objective(y: Tensor, q: Tensor, w: Tensor) -> Tensor:
        return ((y - net(q)) ** 2).sum() + scale * (w * y).cos().sum() + 0.0 * q.log().sum()

    node = ddn.TorchProblem(
        variable=(3,),
        objective=objective,
        equality=lambda y, q, w: y.sum() - (q * w).sum(),
        inequality=lambda y, q, w: y[0] * y[1] - q[2],
        lower=lambda q, w: -0.2 * q,
        parameters=[(3,), (3,)],
    )
    layer = ddn.DeclarativeLayer(node, on_failure="nan")
    q = torch.tensor(
        [[0.3, 0.8, 0.5], [1.2, 0.1, 0.4], [-1.0, 0.5, 0.5], [0.6, 0.5, 0.1]], dtype=torch.float64, requires_grad=True
    )
    w = torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64, requires_grad=True)
    leaves = [q, w, scale, *net.parameters()]
    used: list[bool] = []
    by_tape = NonlinearProgram.pulled

    def slopes() -> list[Tensor]:
        y = layer(q, w)
        assert y.isnan().any(-1).tolist() == [False, False, True, False]
        return list(torch.autograd.grad(y.nan_to_num().square().sum(), leaves))

    def watched(*args):
        found = by_tape(*args)
        used.append(found is not None)
        return found

    monkeypatch.setattr(NonlinearProgram, "pulled", watched)
    found = slopes()
    (program,) = node._programs.values()
    assert not program.why_no_tape
    assert used == [True]
    monkeypatch.setattr(NonlinearProgram, "pulled", lambda *args: None)
    for a, b in zip(found, slopes(), strict=True):
        assert b.abs().amax() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)

"""What the kernels compute in place of torch, against torch."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from test_gradients import REGULAR, layer_for, tensors
from torch import Tensor
from torch.func import vjp
from zoo import Entry

from ddn_cvx import DeclarativeLayer, Regularity
from ddn_cvx.program.instance import Instance

POLYHEDRAL = [entry for entry in REGULAR if layer_for(entry).node.compiled is not None]


def batch_of(layer: DeclarativeLayer, entry: Entry, count: int) -> list[Tensor]:
    rng = np.random.default_rng(0)
    samples = [tensors(entry.sample(rng)) for _ in range(count)]
    return [torch.stack(values) for values in zip(*samples, strict=True)]


def test_there_is_something_to_compare() -> None:
    assert len(POLYHEDRAL) >= 20


@pytest.mark.parametrize("entry", POLYHEDRAL, ids=lambda e: e.name)
def test_gradients_are_those_of_torch(entry: Entry) -> None:
    layer = layer_for(entry)
    params = [p.requires_grad_() for p in batch_of(layer, entry, 3)]
    outputs = layer(*params)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    cotangents = tuple(torch.full_like(o, 0.7) + o.detach() for o in outputs)
    compiled = torch.autograd.grad(outputs, params, cotangents, retain_graph=True)
    again = torch.autograd.grad(outputs, params, cotangents)  # with factors that are kept
    in_torch, pull = vjp(lambda *p: _tuple(layer(*p)), *(p.detach() for p in params))
    for a, b in zip(outputs, in_torch, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)
    for one, two, three in zip(compiled, again, pull(cotangents), strict=True):
        assert torch.allclose(one, three, rtol=1e-7, atol=1e-9)
        assert torch.allclose(two, three, rtol=1e-7, atol=1e-9)


def _tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("entry", POLYHEDRAL, ids=lambda e: e.name)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_measures_are_those_of_torch(entry: Entry, scale: float) -> None:
    layer = layer_for(entry)
    program = layer.node.program
    data = layer.node.bind(layer.node.pieces(batch_of(layer, entry, 4))).data
    data = data._replace(q=scale * data.q, b=data.b / scale)
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(4, k, generator=generator, dtype=torch.float64) for k in (program.n, program.m))
    x[-1] = torch.nan
    compiled, plain = Instance(program, data), Instance(program, data)
    assert compiled.compiled is not None
    plain.compiled = None
    for one, other in ((compiled.at(x, v), plain.at(x, v)), (compiled.judge(x, v, -v), plain.judge(x, v, -v))):
        assert bool(torch.isinf(one.residuals.worst[-1])) and bool(torch.isinf(other.residuals.worst[-1]))
        pairs = [(getattr(one, name), getattr(other, name)) for name in ("y", "s", "top", "low", "value")]
        pairs += [(one.residuals.table, other.residuals.table), (compiled.hidden(one), plain.hidden(other))]
        for found, expected in pairs:
            # where a matrix projects to zero torch leaves rounding, which a large right-hand side multiplies
            rounding = 1e-13 if program.cones.is_polyhedral else 1e-15 * max(1.0, scale**-2)
            assert torch.allclose(found[:-1], expected[:-1], rtol=1e-10, atol=max(1e-13, rounding))


def test_a_gradient_does_not_depend_on_degenerate_batch_mates() -> None:
    """An element whose equalities are dependent is differentiated elsewhere; the other one keeps its bits."""
    x, A, q = cp.Variable(3), cp.Parameter((2, 3)), cp.Parameter(3)
    layer = DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - q)), [A @ x == 1, x >= -5]), [A, q], x)
    regular = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 0.3]], dtype=torch.float64)
    matrices = torch.stack([regular, regular[:1].expand(2, 3)])
    point = torch.tensor([0.3, 0.7, -0.2], dtype=torch.float64)

    def gradients(count: int) -> list[Tensor]:
        given = [matrices[:count].clone().requires_grad_(), point.expand(count, 3).clone().requires_grad_()]
        y = layer(*given)
        cotangent = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).expand(count, 3)
        first = torch.autograd.grad(y, given, cotangent, retain_graph=True)
        again = torch.autograd.grad(y, given, cotangent)  # by factors that are kept
        assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(first, again, strict=True))
        return [g[0] for g in first]

    assert layer.solve(matrices, point).regularities[1] & Regularity.RANK_DEFICIENT
    for together, alone in zip(gradients(2), gradients(1), strict=True):
        assert torch.equal(together, alone)

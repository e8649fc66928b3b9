"""Nodes with many parameters: diffcp, central differences where the program is sparse, entries in any order, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from draws import normal

import ddn_cvx as ddn
from ddn_cvx.nodes import Portfolio, SparseLeastSquares


def band(m: int, width: int) -> SparseLeastSquares:
    rows = np.repeat(np.arange(m), width)
    return SparseLeastSquares(m, m // 2, rows, (rows // 2 + np.tile(np.arange(width), m)) % (m // 2))


def gradients(node: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    inputs = tuple(t.clone().requires_grad_() for t in inputs)
    out = node(*inputs)
    return torch.autograd.grad((out * normal(*out.shape, seed=5)).sum(), inputs)


def test_gradients_are_those_of_diffcp() -> None:
    pytest.importorskip("diffcp")
    for node, inputs in (
        (band(30, 6), (normal(180), normal(30, seed=1))),
        (Portfolio(20, 4), (normal(4, 20), 0.5 + normal(20, seed=1).abs(), 0.1 * normal(20, seed=2))),
    ):
        ours = gradients(node, inputs)
        node.layer.adjoint = ddn.DiffcpAdjoint(mode="dense", threads=1)
        for mine, right in zip(ours, gradients(node, inputs), strict=True):
            assert torch.allclose(mine, right, rtol=1e-5, atol=1e-6)


def test_gradients_of_programs_that_are_kept_sparse() -> None:
    """Along a random direction, by central differences."""
    for node, inputs in (
        (band(3000, 3), (normal(9000), normal(3000, seed=1))),
        (Portfolio(1500, 3), (normal(3, 1500), 0.5 + normal(1500, seed=1).abs(), 0.1 * normal(1500, seed=2))),
    ):
        program = node.layer.node.program
        assert program.n + program.m > 2000
        move = [normal(*t.shape, seed=7 + k) for k, t in enumerate(inputs)]
        found = sum(float((g * d).sum()) for g, d in zip(gradients(node, inputs), move, strict=True))
        ends = [node(*(t + s * 1e-6 * d for t, d in zip(inputs, move, strict=True))) for s in (1, -1)]
        slope = float(((ends[0] - ends[1]) * normal(*ends[0].shape, seed=5)).sum()) / 2e-6
        assert found == pytest.approx(slope, rel=1e-4)


def test_the_declaration_does_not_grow_with_the_square() -> None:
    """Entries of what cvxpy makes of 3000 assets: about one for each parameter."""
    node = Portfolio(3000, 2)
    program = node.layer.node.program
    assert len(program.A.rows) + len(program.P.rows) < 10 * 3000


def test_entries_in_any_order_and_batches() -> None:
    rows, columns = np.array([2, 0, 1, 2]), np.array([1, 0, 1, 0])
    values, b = normal(6, 4), normal(6, 3, seed=1)
    y = SparseLeastSquares(3, 2, rows, columns)(values, b)
    turned = [3, 1, 0, 2]
    other = SparseLeastSquares(3, 2, rows[turned], columns[turned])
    assert torch.allclose(other(values[:, turned], b), y, atol=1e-9)
    shaped = other(values[:, turned].reshape(2, 3, 4), b.reshape(2, 3, 3))
    assert torch.allclose(shaped.reshape(6, 2), y, atol=1e-9)
    assert torch.allclose(other(values[0, turned], b), other(values[:1, turned].expand(6, 4), b), atol=1e-9)
    assert torch.allclose(other(values[0, turned], b[0]), y[0], atol=1e-9)


def test_bad_arguments_and_input_are_refused() -> None:
    for arguments, word in (
        ((2, 2, [0, 2], [0, 1]), "within"),
        ((2, 2, [0, 1], [0]), "within"),
        ((2, 2, [], []), "at least one"),
        ((2, 2, [0, 0], [1, 1]), "twice"),
        ((2, 2, [0], [0], 0.0), "ridge"),
    ):
        with pytest.raises(ddn.DeclarationError, match=word):
            SparseLeastSquares(*arguments)
    with pytest.raises(ddn.DeclarationError, match="factors"):
        Portfolio(3, 0)
    with pytest.raises(ddn.InputError, match=r"\(\*batch, 2\)"):
        SparseLeastSquares(2, 2, [0, 1], [0, 1])(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ddn.InputError, match="d must"):
        Portfolio(3, 1)(torch.zeros(1, 3), torch.ones(1), torch.zeros(3))

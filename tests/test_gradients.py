"""Solutions and derivatives of every zoo entry, with default settings, against answers computed without this package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from zoo import ZOO, Entry, directions, reference_jacobian, reference_solution

import ddn_cvx as ddn

REGULAR = [e for e in ZOO.values() if "degenerate" not in e.tags]
TOLERANCE = 1e-6


def layer_for(entry: Entry, **options: object) -> ddn.DeclarativeLayer:
    problem, parameters, outputs = entry.build()
    return ddn.DeclarativeLayer(problem, parameters, outputs, gp="gp" in entry.tags, **options)


def tensors(values: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.as_tensor(np.asarray(v, dtype=complex if np.iscomplexobj(v) else float)) for v in values]


def as_pairs(value: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(value) if value.is_complex() else value


def jacobian(layer: ddn.DeclarativeLayer, values: list[np.ndarray]) -> list[list[torch.Tensor]]:
    """``J[i][j]`` (entries of output i as reals, *parameter j.shape): one batch element for each entry of each output."""
    sizes = [as_pairs(out).numel() for out in layer(*tensors(values))]
    total = sum(sizes)
    leaves = [t.expand(total, *t.shape).clone().requires_grad_() for t in tensors(values)]
    outputs = layer(*leaves)
    flat = torch.cat([as_pairs(out).reshape(total, -1) for out in outputs], 1)
    gradients = torch.autograd.grad(flat, leaves, torch.eye(total, dtype=torch.float64))
    return [[g.split(sizes)[i] for g in gradients] for i in range(len(sizes))]


@pytest.mark.parametrize("entry", REGULAR, ids=lambda e: e.name)
def test_solution_and_derivative(entry: Entry) -> None:
    values = entry.sample(np.random.default_rng(7))
    layer = layer_for(entry)
    for found, expected in zip(layer(*tensors(values)), reference_solution(entry, values), strict=True):
        np.testing.assert_allclose(found.numpy(), np.asarray(expected), rtol=TOLERANCE, atol=TOLERANCE)
    _, parameters, _ = entry.build()
    ours, reference = jacobian(layer, values), reference_jacobian(entry, values)
    for rows, expected_rows in zip(ours, reference, strict=True):
        along = [
            torch.stack([_contract(row, torch.as_tensor(d)) for d in directions(parameter)])
            for row, parameter in zip(rows, parameters, strict=True)
        ]
        expected = [as_pairs(torch.as_tensor(e)).reshape(len(e), -1) for e in expected_rows]
        scale = max(1e-3, max(float(e.norm()) for e in expected))
        for one, other in zip(along, expected, strict=True):
            assert float((one - other).norm()) <= TOLERANCE * scale


def _contract(row: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Real inner product of every gradient (k, *shape) with one direction (*shape)."""
    product = (row.conj() * direction).real if row.is_complex() else row * direction
    return product.reshape(row.shape[0], -1).sum(1)

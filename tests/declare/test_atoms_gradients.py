"""The translator against ``.value`` and ``.grad`` of cvxpy on 1200 random expressions."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from test_atoms_random import AXIS, ELEMENTWISE, MATRIX, PAIR, VECTOR

from ddn_cvx.declare.atoms import compile_expression

COUNT = 1200


def grow(rng: np.random.Generator) -> tuple[cp.Expression, list[cp.Variable]]:
    """An expression of one to six random operations on two matrices, a vector and a scalar that share their sizes."""
    m, n = (int(k) for k in rng.integers(1, 4, size=2))
    leaves = [cp.Variable((m, n)), cp.Variable((m, n)), cp.Variable(n), cp.Variable()]
    pool: list[cp.Expression] = list(leaves)
    for _ in range(rng.integers(1, 7)):
        x = pool[-1] if rng.random() < 0.6 else pool[rng.integers(len(pool))]
        kinds = [
            ELEMENTWISE,
            ELEMENTWISE,
            PAIR,
            *([AXIS] * (x.ndim > 0)),
            *([VECTOR] * (x.ndim == 1)),
            *([MATRIX] * (x.ndim == 2)),
        ]
        kind = kinds[rng.integers(len(kinds))]
        operation = kind[rng.integers(len(kind))]
        partners = [v for v in pool if v.shape == x.shape or v.is_scalar() or x.is_scalar()]
        made = operation(x, partners[rng.integers(len(partners))]) if kind is PAIR else operation(x)
        if made.size <= 40 and made.ndim <= 2:
            pool.append(made)
    return pool[-1], leaves


def dense(value: object, shape: tuple[int, ...]) -> np.ndarray:
    return np.reshape(value.toarray() if sp.issparse(value) else np.asarray(value, dtype=float), shape)


def test_values_and_gradients() -> None:
    rng = np.random.default_rng(5)
    compared = 0
    for number in range(COUNT):
        expr, leaves = grow(rng)
        for leaf in leaves:
            leaf.value = rng.normal(size=leaf.shape)
        inputs = [torch.as_tensor(np.array(leaf.value)).requires_grad_() for leaf in leaves]
        out = compile_expression(expr, leaves)({leaf.id: v for leaf, v in zip(leaves, inputs, strict=True)})
        expected = dense(expr.value, expr.shape)
        scale = 1 + np.abs(expected).max()
        np.testing.assert_allclose(out.detach(), expected, rtol=1e-9, atol=1e-9 * scale, err_msg=f"{number}: {expr}")
        if not out.requires_grad:
            continue
        try:
            gradient = expr.grad
        except (NotImplementedError, ValueError, AttributeError, TypeError, IndexError):
            continue  # not every atom of cvxpy has a gradient for every shape
        if any(g is None for g in gradient.values()):
            continue
        weight = rng.normal(size=expr.shape)
        found = torch.autograd.grad((out * torch.as_tensor(weight)).sum(), inputs, materialize_grads=True, allow_unused=True)
        for leaf, got in zip(leaves, found, strict=True):
            if leaf in gradient:
                matrix = dense(gradient[leaf], (leaf.size, expr.size))
                wanted = (matrix @ weight.reshape(-1, order="F")).reshape(leaf.shape, order="F")
                bound = 1e-7 * (scale + np.abs(matrix).max())
                np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=bound, err_msg=f"{number}: {expr}")
        compared += 1
    assert compared > COUNT // 2

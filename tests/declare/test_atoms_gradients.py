"""The translator against the values and ``.grad`` of cvxpy on 2000 random expressions.

cvxpy's ``grad`` is wrong or missing for some atoms and shapes (``maximum`` of a scalar and an array has the gradient 0 with
respect to the scalar), and for a quotient of variables it can end the process. Where the two differ, ours has to be the
finite difference of cvxpy's values.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from test_atoms_random import AXIS, ELEMENTWISE, MATRIX, PAIR, VECTOR, numeric

from ddn_cvx.declare.atoms import compile_expression

COUNT = 2000


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


def has_quotient(expr: cp.Expression) -> bool:
    here = isinstance(expr, cp.atoms.affine.binary_operators.DivExpression) and bool(expr.args[1].variables())
    return here or any(map(has_quotient, expr.args))


def differences(expr: cp.Expression, leaf: cp.Variable, weight: np.ndarray) -> np.ndarray:
    """The gradient of ``(weight * expr).sum()`` by central differences of cvxpy's value."""
    point, step, found = np.array(leaf.value), 1e-6, np.zeros(leaf.shape)
    for i in np.ndindex(leaf.shape):
        sides = []
        for sign in (1, -1):
            moved = point.copy()
            moved[i] += sign * step
            leaf.value = moved
            sides.append((weight * numeric(expr)).sum())
        found[i] = (sides[0] - sides[1]) / (2 * step)
    leaf.value = point
    return found


def test_values_and_gradients() -> None:
    rng = np.random.default_rng(5)
    compared = arbitrated = 0
    for number in range(COUNT):
        expr, leaves = grow(rng)
        for leaf in leaves:
            leaf.value = rng.normal(size=leaf.shape)
        inputs = [torch.as_tensor(np.array(leaf.value)).requires_grad_() for leaf in leaves]
        out = compile_expression(expr, leaves)({leaf.id: v for leaf, v in zip(leaves, inputs, strict=True)})
        expected = numeric(expr)
        scale = 1 + np.abs(expected).max()
        np.testing.assert_allclose(out.detach(), expected, rtol=1e-9, atol=1e-9 * scale, err_msg=f"{number}: {expr}")
        if not out.requires_grad or has_quotient(expr):
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
                if np.allclose(got, wanted, rtol=1e-6, atol=bound):
                    compared += 1
                    continue
                wanted = differences(expr, leaf, weight)
                np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * scale, err_msg=f"{number}: {expr}")
                arbitrated += 1
    assert compared > 1000 and arbitrated < 200

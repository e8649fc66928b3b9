"""Random compositions of atoms: the value and a directional derivative against cvxpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from cvxpy.expressions.leaf import Leaf
from hypothesis import HealthCheck, given, seed, settings, strategies as st
from test_atoms_catalogue import NEW_ATOMS

from ddn_cvx.declare.atoms import compile_expression

Expr = cp.Expression
SIZES = st.integers(1, 3)

# Maps of any real array, bounded enough that a composition of a few stays of moderate size.
ELEMENTWISE: list[Callable[[Expr], Expr]] = [
    cp.abs, cp.logistic, cp.pos, cp.square, cp.nlp.tanh, cp.nlp.sin, cp.nlp.asinh, cp.nlp.normcdf,
    lambda x: -x, lambda x: x / 3, lambda x: cp.exp(cp.nlp.tanh(x)), lambda x: cp.log(1.5 + cp.square(x)),
    lambda x: cp.sqrt(0.5 + cp.square(x)),
    lambda x: cp.huber(x, 0.8), lambda x: cp.inv_pos(1 + cp.abs(x)), lambda x: cp.entr(0.2 + cp.abs(x)),
    lambda x: cp.xexp(cp.abs(cp.nlp.tanh(x))), lambda x: cp.power(0.5 + cp.abs(x), 0.7), lambda x: cp.multiply(x, x),
    lambda x: cp.kl_div(cp.abs(x) + 0.3, 1.2), lambda x: cp.minimum(x, 0.4), lambda x: 1 - 0.5 * x, lambda x: x + 1,
]  # fmt: skip
AXIS: list[Callable[..., Expr]] = [
    cp.sum, cp.max, cp.min, cp.log_sum_exp, cp.sum_squares, cp.mean, partial(cp.sum_largest, k=1.5),
]  # fmt: skip
if NEW_ATOMS:  # before, these take no axis
    AXIS += [cp.var, lambda x, **o: cp.geo_mean(1 + cp.abs(x), **o)]
MATRIX: list[Callable[[Expr], Expr]] = [
    lambda x: x.T, lambda x: cp.vec(x, order="F"), lambda x: cp.reshape(x, (x.size, 1), order="C"), lambda x: x[::-1, :],
    lambda x: x[0], lambda x: x[:, -1], lambda x: x[:, [0]], lambda x: cp.cumsum(x, axis=1), lambda x: cp.norm(x, "fro"),
    lambda x: cp.normNuc(x), lambda x: cp.sigma_max(x), lambda x: x.T @ x, lambda x: cp.lambda_max(x @ x.T),
    lambda x: cp.log_det(x @ x.T + np.eye(x.shape[0])), lambda x: cp.tr_inv(x @ x.T + np.eye(x.shape[0])),
    lambda x: cp.trace(x @ x.T), lambda x: cp.kron(np.ones((1, 2)), x), lambda x: cp.diag(x @ x.T),
    lambda x: cp.upper_tri(x.T @ x) if x.shape[1] > 1 else x, lambda x: cp.mixed_norm(x, 2, 1),
]  # fmt: skip
VECTOR: list[Callable[[Expr], Expr]] = [
    lambda x: cp.diag(x), lambda x: x[::-1], lambda x: cp.cumsum(x), lambda x: cp.norm(x, 2), lambda x: cp.norm(x, 3),
    lambda x: cp.outer(x, x), lambda x: cp.convolve(np.array([1.0, -0.5]), x), lambda x: cp.hstack([x, 1.0]),
    lambda x: cp.quad_form(x, np.eye(x.size) + 0.1), lambda x: cp.cumprod(x),
    lambda x: cp.matrix_frac(x, cp.diag(cp.exp(x) + 1)),
]  # fmt: skip
PAIR: list[Callable[[Expr, Expr], Expr]] = [
    lambda x, y: x + y, lambda x, y: x - 2 * y, cp.multiply, lambda x, y: x / (1 + cp.square(y)), cp.maximum, cp.minimum,
    lambda x, y: cp.rel_entr(cp.abs(x) + 0.4, cp.abs(y) + 0.3),
]  # fmt: skip


@st.composite
def compositions(draw: Any) -> tuple[Expr, list[cp.Variable]]:
    """An expression of three to nine random operations on two matrices, a vector and a scalar that share two sizes."""
    m, n = draw(SIZES), draw(SIZES)
    leaves = [cp.Variable((m, n)), cp.Variable((m, n)), cp.Variable(n), cp.Variable()]
    pool: list[Expr] = [*leaves]
    for _ in range(draw(st.integers(3, 9))):
        x = draw(st.sampled_from([*[pool[-1]] * 5, *pool]))
        partners = [y for y in pool if y.shape == x.shape or y.is_scalar() or x.is_scalar()]
        factors = [y for y in pool if x.ndim and y.ndim and x.shape[-1] == y.shape[0]]
        kinds = {"elementwise": ELEMENTWISE, "pair": PAIR, "product": [lambda x, y: x @ y] if factors else []}
        if x.ndim:
            kinds["axis"] = AXIS
        if x.ndim in (1, 2):
            kinds["shaped"] = VECTOR if x.ndim == 1 else MATRIX
        kind = draw(st.sampled_from([k for k, maps in kinds.items() if maps]))
        operation = draw(st.sampled_from(kinds[kind]))
        if kind == "axis":
            options = draw(st.sampled_from([{}, {"keepdims": True}, {"axis": 0}, {"axis": x.ndim - 1, "keepdims": True}]))
            pool.append(operation(x, **options))
        elif kind in ("pair", "product"):
            pool.append(operation(x, draw(st.sampled_from(partners if kind == "pair" else factors))))
        else:
            pool.append(operation(x))
        if pool[-1].size > 40 or pool[-1].ndim > 2:
            pool.pop()
    return pool[-1], leaves


def value_at(expr: Expr, leaves: list[cp.Variable], values: list[np.ndarray]) -> np.ndarray:
    for leaf, value in zip(leaves, values, strict=True):
        leaf.value = value
    return numeric(expr)


def numeric(expr: Expr) -> np.ndarray:
    """cvxpy's value with the declared shape restored at every atom: some atoms drop or add a dimension of length one."""
    if isinstance(expr, Leaf):
        return expr.value.toarray() if sp.issparse(expr.value) else np.asarray(expr.value)
    return np.reshape(expr.numeric([numeric(child) for child in expr.args]), expr.shape)


@seed(14)
@settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(compositions(), st.integers(0, 2**32 - 1))
def test_random_composition(composition: tuple[Expr, list[cp.Variable]], number: int) -> None:
    expr, leaves = composition
    rng = np.random.default_rng(number)
    batch = (2, 2)
    values = [rng.normal(size=batch + leaf.shape) for leaf in leaves]
    directions = [rng.normal(size=leaf.shape) for leaf in leaves]
    evaluate = compile_expression(expr, leaves)

    out = evaluate({leaf.id: torch.as_tensor(v) for leaf, v in zip(leaves, values, strict=True)}).numpy()
    full = np.broadcast_to(out, batch + expr.shape)
    for i in np.ndindex(*batch):
        expected = value_at(expr, leaves, [v[i] for v in values])
        np.testing.assert_allclose(full[i], expected, rtol=1e-10, atol=1e-10 * (1 + np.abs(expected).max()))

    point = [v[0, 0] for v in values]
    tangent = torch.autograd.functional.jvp(
        lambda *xs: evaluate({leaf.id: x for leaf, x in zip(leaves, xs, strict=True)}),
        tuple(map(torch.as_tensor, point)),
        tuple(map(torch.as_tensor, directions)),
    )[1]
    h = 1e-6
    forward, backward = (
        value_at(expr, leaves, [p + s * h * d for p, d in zip(point, directions, strict=True)]) for s in (1, -1)
    )
    expected = (forward - backward) / (2 * h)
    np.testing.assert_allclose(
        tangent, expected, rtol=1e-5, atol=1e-5 * (1 + np.abs(expected).max() + np.abs(forward).max())
    )

"""Every torch rule against cvxpy: values, batches, first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from cvxpy.atoms.affine.affine_atom import AffAtom
from cvxpy.expressions.leaf import Leaf
from test_atoms_catalogue import CASES, COMPLEX, Shape
from torch.autograd.gradcheck import gradcheck, gradgradcheck

from ddn_cvx.declare.atoms import compile_expression

# cvxpy 1.9.3 has no gradient here, or a wrong one: it ignores broadcasting, C against Fortran order, and some axes.
NO_CVXPY_GRADIENT = (
    "sinh", "tanh", "asinh", "atanh", "power 3 of negative", "power -1 of negative", "sign", "length", "And", "Or", "Xor",
    "Not", "rel_entr scalar", "rel_entr broadcast", "kl_div scalar", "kl_div broadcast", "maximum", "minimum", "norm_inf",
    "sum_squares axis", "quad_over_lin axis", "dotsort short", "dist_ratio", "cummax", "gmatmul", "eye_minus_inv",
    "pf_eigenvalue", "condition_number", "gen_lambda_max", "von_neumann_entr",
)  # fmt: skip


def build(name: str, seed: int = 0) -> tuple[cp.Expression, list[Any], np.random.Generator]:
    expr, leaves = CASES[name].make()
    return expr, leaves, np.random.default_rng(seed)


def values_by_id(leaves: list[Any], values: Sequence[Any]) -> dict[int, torch.Tensor]:
    return {leaf.id: torch.as_tensor(value) for leaf, value in zip(leaves, values, strict=True)}


def reference(expr: cp.Expression, leaves: list[Any], values: Sequence[np.ndarray]) -> np.ndarray:
    """The value by cvxpy."""
    for leaf, value in zip(leaves, values, strict=True):
        leaf.value = value
    value = expr.value.toarray() if sp.issparse(expr.value) else expr.value
    return np.reshape(value, expr.shape)


# cvxpy 1.9.3 drops the imaginary part here; see test_atoms_spectral.py for the value.
VALUE_CASES = [name for name in CASES if name != "tr_inv hermitian"]
COMPLEX_CASES = {name for name, c in CASES.items() if any(a.domain in COMPLEX for a in c.args)}
# Without a graph, or drawn at the ties of maximum and minimum.
DIFFERENTIABLE = [name for name, c in CASES.items() if not c.repeats and name not in ("imag of real", "And", "Or", "Xor")]
SMOOTH = [name for name in DIFFERENTIABLE if CASES[name].smooth]
REAL_SMOOTH = [name for name in SMOOTH if name not in COMPLEX_CASES]


@pytest.mark.parametrize("name", VALUE_CASES)
def test_value_is_that_of_cvxpy_for_every_batch_element(name: str) -> None:
    expr, leaves, rng = build(name)
    evaluate = compile_expression(expr, leaves)
    for batch in ((), (3,), (2, 3)):
        values = [a.draw(rng, batch) for a in CASES[name].args]
        out = evaluate(values_by_id(leaves, values)).resolve_conj().numpy()
        assert out.shape == batch + expr.shape
        assert out.dtype in (np.float64, np.complex128)
        for i in np.ndindex(*batch):
            expected = reference(expr, leaves, [v[i] for v in values])
            np.testing.assert_allclose(out[i], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, c in CASES.items() if len(c.args) > 1])
def test_leaves_without_batch_dimensions_are_shared(name: str) -> None:
    expr, leaves, rng = build(name)
    evaluate = compile_expression(expr, leaves)
    for own in range(len(leaves)):
        batches = [(2,) if k == own else () for k in range(len(leaves))]
        values = [a.draw(rng, b) for a, b in zip(CASES[name].args, batches, strict=True)]
        full = [np.broadcast_to(v, (2, *a.shape)).copy() for a, v in zip(CASES[name].args, values, strict=True)]
        shared, expected = evaluate(values_by_id(leaves, values)), evaluate(values_by_id(leaves, full))
        torch.testing.assert_close(shared, expected, rtol=1e-12, atol=1e-14)


def tensors(name: str, batch: Shape) -> tuple[Callable[..., torch.Tensor], list[torch.Tensor], np.random.Generator]:
    """The case as a function of its leaves' values, and such values."""
    expr, leaves, rng = build(name)
    evaluate = compile_expression(expr, leaves)
    values = [torch.as_tensor(a.draw(rng, batch)) for a in CASES[name].args]
    return lambda *inputs: evaluate(values_by_id(leaves, inputs)), values, rng


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_first_derivative_is_that_of_finite_differences(name: str) -> None:
    function, values, _ = tensors(name, (2,))
    # torch's own check of batched forward mode fails on x.conj(), in torch 2.13; torch.func does not.
    batched = name not in COMPLEX_CASES
    inputs = [v.requires_grad_() for v in values]
    assert gradcheck(function, inputs, fast_mode=True, check_forward_ad=True, check_batched_grad=True,
                     check_batched_forward_grad=batched)  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivative_is_that_of_finite_differences(name: str) -> None:
    function, values, _ = tensors(name, (2,))
    inputs = [v.requires_grad_() for v in values]
    assert gradgradcheck(function, inputs, fast_mode=True, check_batched_grad=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", REAL_SMOOTH)
def test_hessian_by_torch_func_and_vmap(name: str) -> None:
    function, inputs, rng = tensors(name, (2,))
    shape = function(*inputs).shape[1:]
    weights = torch.as_tensor(rng.normal(size=shape))

    def weighted(*values: torch.Tensor) -> torch.Tensor:
        out = function(*values)
        return (weights * (out.abs() if out.is_complex() else out)).sum()

    numbers = tuple(range(len(inputs)))
    forward = torch.func.vmap(torch.func.jacfwd(torch.func.jacrev(weighted, numbers), numbers))(*inputs)
    for i in range(2):
        each = torch.autograd.functional.hessian(weighted, tuple(x[i] for x in inputs))
        for row, expected_row in zip(forward, each, strict=True):
            for block, expected in zip(row, expected_row, strict=True):
                torch.testing.assert_close(block[i], expected, rtol=1e-7, atol=1e-9)


def has_cvxpy_gradient(name: str) -> bool:
    """A real atom of leaves that is not affine (for affine ones cvxpy builds a matrix, and can crash in it)."""
    if name.startswith(NO_CVXPY_GRADIENT) or name in COMPLEX_CASES:
        return False
    expr, _ = CASES[name].make()
    return not isinstance(expr, AffAtom) and all(isinstance(child, Leaf) for child in expr.args)


@pytest.mark.parametrize("name", list(filter(has_cvxpy_gradient, CASES)))
def test_gradient_is_that_of_cvxpy(name: str) -> None:
    expr, leaves, rng = build(name)
    values = [a.draw(rng) for a in CASES[name].args]
    for leaf, value in zip(leaves, values, strict=True):
        leaf.value = value
    grads = expr.grad
    evaluate = compile_expression(expr, leaves)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return evaluate(values_by_id(leaves, tensors))

    jacobians = torch.autograd.functional.jacobian(function, tuple(map(torch.as_tensor, values)))
    for leaf, jacobian in zip(leaves, jacobians, strict=True):
        if leaf in grads:
            theirs = grads[leaf].toarray() if sp.issparse(grads[leaf]) else np.asarray(grads[leaf])
            axes = (*reversed(range(expr.ndim, jacobian.ndim)), *reversed(range(expr.ndim)))
            ours = jacobian.permute(axes).reshape(leaf.size, expr.size).numpy()
            np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_single_precision(name: str) -> None:
    expr, leaves, rng = build(name)
    evaluate = compile_expression(expr, leaves)
    values = values_by_id(leaves, [a.draw(rng, (2,)) for a in CASES[name].args])
    expected = evaluate(values)
    single = {key: v.to(torch.complex64 if v.is_complex() else torch.float32) for key, v in values.items()}
    out = evaluate(single)
    assert out.dtype == (torch.complex64 if expected.is_complex() else torch.float32)
    torch.testing.assert_close(out.to(expected.dtype), expected, rtol=2e-3, atol=2e-4)

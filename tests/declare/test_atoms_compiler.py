"""The compiler of expressions: errors, constants, sharing, copies, sparse matrices, atoms that need special treatment."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from cvxpy.atoms.elementwise.elementwise import Elementwise
from cvxpy.reductions.dcp2cone.canonicalizers.quad.power_canon import power_canon
from cvxpy.reductions.dcp2cone.canonicalizers.quad.quad_over_lin_canon import quad_over_lin_canon
from cvxpy.transforms.suppfunc import SuppFunc
from torch.fx.experimental.proxy_tensor import make_fx

from ddn_cvx.declare.atoms import compile_expression
from ddn_cvx.declare.atoms_base import RULES, Entry
from ddn_cvx.errors import DeclarationError, InputError


class Cube(Elementwise):
    """An atom of which the package knows nothing."""

    def numeric(self, values: list[Any]) -> Any:
        return values[0] ** 3

    def sign_from_args(self) -> tuple[bool, bool]:
        return False, False

    is_atom_convex = is_atom_concave = lambda self: False
    is_incr = is_decr = lambda self, idx: False

    def _grad(self, values: Any) -> Any:
        raise NotImplementedError


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape))


# ---------------------------------------------------------------- errors


def test_an_atom_without_a_rule_is_named() -> None:
    x = cp.Variable(2, name="x")
    with pytest.raises(DeclarationError, match=r"atom Cube in 'Cube\(x\)' has no torch rule"):
        compile_expression(cp.exp(Cube(x)), [x])


def test_an_expression_that_is_no_atom_is_named() -> None:
    x = cp.Variable(name="x")
    with pytest.raises(DeclarationError, match=r"indicator"):
        compile_expression(x + cp.transforms.indicator([x >= 0]), [x])


def test_a_leaf_that_is_not_declared_is_named() -> None:
    x, p = cp.Variable(2, name="x"), cp.Parameter(2, name="p")
    with pytest.raises(DeclarationError, match=r"parameter 'p', which is not among the leaves .*\(Variable 'x'\)"):
        compile_expression(x + p, [x])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"No value for Variable 'x'"),
        (torch.zeros(3, 2), r"Variable 'x' has shape \(3, 2\); expected \(\*batch, 2, 3\)"),
        (torch.zeros(3), r"Variable 'x' has shape \(3,\)"),
        (torch.zeros(2, 3, dtype=torch.int64), r"dtype torch.int64; expected float32"),
        (torch.zeros(2, 3, dtype=torch.float16), r"dtype torch.float16; expected float32"),
        (np.zeros((2, 3)), r"is a ndarray; expected a torch.Tensor"),
    ],
)
def test_a_bad_value_is_named(value: Any, message: str) -> None:
    x = cp.Variable((2, 3), name="x")
    evaluate = compile_expression(cp.exp(x), [x])
    with pytest.raises(InputError, match=message):
        evaluate({} if value is None else {x.id: value})


# ---------------------------------------------------------------- structure


def test_constant_subexpressions_are_folded() -> None:
    x = cp.Variable(3)
    evaluate = compile_expression(Cube(cp.Constant([1.0, 2.0, 3.0])) + x, [x])  # Cube has no rule, and needs none here
    torch.testing.assert_close(evaluate({x.id: torch.zeros(2, 3)}), torch.tensor([[1.0, 8, 27]] * 2))


def test_a_constant_expression_has_no_batch_dimensions_and_is_the_callers_own() -> None:
    x = cp.Variable(3)
    evaluate = compile_expression(cp.Constant(np.array([[1, 2], [3, 4]])), [x])
    for dtype in (torch.float32, torch.float64):
        out = evaluate({x.id: torch.zeros(5, 3, dtype=dtype)})
        torch.testing.assert_close(out, torch.tensor([[1, 2], [3, 4]], dtype=dtype))
        out.zero_()
        assert evaluate({x.id: torch.zeros(5, 3, dtype=dtype)}).sum() == 10
    assert evaluate({}).dtype == torch.get_default_dtype()


def test_a_subexpression_that_occurs_twice_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(node: Any, x: torch.Tensor) -> torch.Tensor:
        calls.append(node)
        return x.exp()

    monkeypatch.setitem(RULES, "exp", Entry(counted, lambda atom: {}))
    x = cp.Variable(3)
    y = cp.exp(x)
    evaluate = compile_expression(y + cp.multiply(y, cp.sqrt(y)), [x])
    value = random(4, 3)
    torch.testing.assert_close(evaluate({x.id: value}), value.exp() + (1.5 * value).exp())
    assert len(calls) == 1


def test_a_leaf_and_unused_leaves() -> None:
    x, unused = cp.Variable((2, 2)), cp.Variable(7)
    evaluate = compile_expression(x, [x, unused])
    value = random(5, 2, 2)
    assert torch.equal(evaluate({x.id: value}), value)
    assert torch.equal(evaluate({x.id: value, unused.id: torch.zeros(3)}), value)
    assert evaluate.shape == (2, 2)


def test_empty_batch_and_empty_expression() -> None:
    x = cp.Variable((2, 3))
    out = compile_expression(cp.sum(cp.exp(x), axis=0), [x])({x.id: torch.zeros(0, 2, 3)})
    assert out.shape == (0, 3)
    out = compile_expression(cp.exp(x[:0]), [x])({x.id: torch.zeros(4, 2, 3)})
    assert out.shape == (4, 0, 3)


def test_evaluators_can_be_pickled_and_copied_and_hold_no_cvxpy_object() -> None:
    x, p = cp.Variable(4), cp.Parameter(nonneg=True)
    y = cp.abs(x) + 1
    expr = (
        cp.sum_largest(x, 2.5)
        + cp.geo_mean(y, [1, 0, 2, 1])
        + cp.sum(x[[2, 0]] + x[1:3])
        + cp.sum(cp.power(y, p))
        + cp.lambda_sum_largest(cp.diag(x), 2)
        + cp.quad_form(x, np.eye(4))
        + cp.norm(y, 3)
        + cp.sum(cp.kl_div(y, 2 * y))
    )
    evaluate = compile_expression(expr, [x, p])
    values = {x.id: random(3, 4), p.id: torch.tensor(1.7, dtype=torch.float64)}
    expected = evaluate(values)
    stored = pickle.dumps(evaluate)
    assert b"cvxpy." not in stored
    for other in (pickle.loads(stored), copy.deepcopy(evaluate), copy.copy(evaluate)):
        assert torch.equal(other(values), expected)


def test_a_pickled_evaluator_works_in_another_process(tmp_path: Path) -> None:
    x = cp.Variable(2)
    torch.save({"evaluate": compile_expression(cp.exp(x), [x]), "id": x.id}, tmp_path / "evaluator.pt")
    script = (
        "import sys, torch; d = torch.load(sys.argv[1], weights_only=False); print(d['evaluate']({d['id']: torch.zeros(2)}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "evaluator.pt"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "tensor([1., 1.])"


def test_constants_made_in_inference_mode_serve_autograd_later() -> None:
    x = cp.Variable(2)
    evaluate = compile_expression(np.array([[1.0, 2.0], [3.0, 4.0]]) @ x, [x])
    value = random(2).requires_grad_()
    with torch.inference_mode():
        evaluate({x.id: value})
    (gradient,) = torch.autograd.grad(evaluate({x.id: value}).sum(), value)
    torch.testing.assert_close(gradient, torch.tensor([4.0, 6.0], dtype=torch.float64))


def test_constants_made_inside_a_transform_serve_outside() -> None:
    x = cp.Variable(2)
    evaluate = compile_expression(np.array([[1.0, 2.0], [3.0, 4.0]]) @ x + 1, [x])
    value = random(5, 2)
    inside = torch.func.vmap(torch.func.jacrev(lambda v: evaluate({x.id: v})))(value)
    torch.testing.assert_close(inside[0], torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))
    torch.testing.assert_close(evaluate({x.id: value}), value @ inside[0].mT + 1)


def test_constants_moved_inside_a_transform_do_not_outlive_it() -> None:
    """As on an accelerator: the constants are copied to the device within the transform."""
    x = cp.Variable(2)
    evaluate = compile_expression(np.array([[1.0, 2.0], [3.0, 4.0]]) @ x + 1, [x])
    value = torch.zeros(5, 2, device="meta")
    torch.func.vmap(torch.func.jacrev(lambda v: evaluate({x.id: v})))(value)
    traced = make_fx(lambda v: evaluate({x.id: v}))(value)
    assert traced(value).shape == evaluate({x.id: value}).shape == (5, 2)
    kept = [constant for constants in evaluate._cache.values() for constant in constants]
    assert kept and not any(map(torch._C._functorch.is_functorch_wrapped_tensor, kept))


def test_mixed_precision_is_computed_in_the_higher_one() -> None:
    x, y = cp.Variable((2, 2)), cp.Variable(2)
    evaluate = compile_expression(x @ y, [x, y])
    a, b = random(2, 2), random(2)
    torch.testing.assert_close(evaluate({x.id: a.float(), y.id: b}), a.float().double() @ b)


# ---------------------------------------------------------------- numeric fallback


def test_numeric_fallback_evaluates_and_does_not_differentiate() -> None:
    x, y = cp.Variable(2), cp.Variable(2)
    evaluate = compile_expression(cp.sum(Cube(x + y)), [x, y], numeric_fallback=True)
    assert not evaluate.differentiable
    for batch in ((), (3,), (2, 3), (0,)):
        a, b = random(*batch, 2).requires_grad_(), random(2, seed=1)
        out = evaluate({x.id: a, y.id: b})
        torch.testing.assert_close(out, ((a + b) ** 3).sum(-1).detach())
        assert not out.requires_grad
    assert evaluate({x.id: random(2).float(), y.id: random(2).float()}).dtype == torch.float32


def test_numeric_fallback_changes_nothing_where_all_atoms_have_rules() -> None:
    x = cp.Variable(2)
    evaluate = compile_expression(cp.exp(x), [x], numeric_fallback=True)
    assert evaluate.differentiable
    assert evaluate({x.id: random(2).requires_grad_()}).requires_grad


def test_support_function_by_fallback() -> None:
    z, y = cp.Variable(2), cp.Variable(2, name="y")
    expr = SuppFunc(z, [cp.norm(z, 1) <= 1])(2 * y)
    with pytest.raises(DeclarationError, match=r"SuppFuncAtom .* its value is itself an optimisation problem"):
        compile_expression(expr, [y])
    value = random(3, 2)
    out = compile_expression(expr, [y], numeric_fallback=True)({y.id: value})
    torch.testing.assert_close(out, 2 * value.abs().amax(-1), rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- large sparse constants


@pytest.mark.parametrize("shape", [(), (2,)])
def test_large_sparse_constants_are_not_made_dense(shape: tuple[int, ...]) -> None:
    n = 1500
    rng = np.random.default_rng(0)
    band = sp.diags_array([rng.normal(size=n - 1), rng.normal(size=n), rng.normal(size=n - 1)], offsets=[-1, 0, 1]).tocsc()
    tall = sp.random_array((n, 800), density=1e-3, rng=rng)
    x, wide = cp.Variable(n), cp.Variable((2, n))
    values = {x.id: random(*shape, n).requires_grad_(), wide.id: random(*shape, 2, n).requires_grad_()}
    vector, matrix = (v.detach().numpy() for v in values.values())
    for expr, expected in (
        (band @ x, vector @ band.T),
        (x @ tall, vector @ tall),
        (wide @ tall, matrix @ tall),
        (tall.T @ wide.T, np.swapaxes(matrix @ tall, -1, -2)),
        (cp.quad_form(x, band + band.T, assume_PSD=True), (vector * (vector @ (band + band.T))).sum(-1)),
    ):
        evaluate = compile_expression(expr, [x, wide])
        assert max(c.size for c in evaluate._constants) < 10 * n
        np.testing.assert_allclose(evaluate(values).detach().numpy(), expected, rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(compile_expression(cp.sum(band @ x), [x])(values).sum(), values[x.id])
    np.testing.assert_allclose(gradient.numpy(), np.broadcast_to(band.sum(axis=0), vector.shape), rtol=1e-12)
    evaluate = compile_expression(band @ x, [x])
    mapped = torch.func.vmap(lambda v: evaluate({x.id: v}))(random(3, n))
    torch.testing.assert_close(mapped, evaluate({x.id: random(3, n)}))


# ---------------------------------------------------------------- atoms that need more than a leaf


def test_perspective() -> None:
    x, s, p = cp.Variable(3), cp.Variable(nonneg=True), cp.Parameter(3)
    f = cp.sum_squares(x - p) + cp.sum(cp.exp(x))
    evaluate = compile_expression(2 * cp.perspective(f, s), [x, s, p])
    values = [random(2, 3).requires_grad_(), random(2, seed=1).exp().requires_grad_(), random(3, seed=2).requires_grad_()]

    def function(*v: torch.Tensor) -> torch.Tensor:
        return evaluate({leaf.id: value for leaf, value in zip((x, s, p), v, strict=True)})

    a, t, q = values
    z = a / t[:, None]
    torch.testing.assert_close(function(*values), 2 * t * ((z - q).square().sum(-1) + z.exp().sum(-1)))
    assert torch.autograd.gradcheck(function, values) and torch.autograd.gradgradcheck(function, values)
    assert function(a, -t, q).isnan().all()


def test_perspective_at_zero_is_the_recession_function() -> None:
    x, s = cp.Variable(2), cp.Variable(nonneg=True)
    evaluate = compile_expression(cp.perspective(cp.norm(x, 2) + 1, s, cp.norm(x, 2)), [x, s])
    value = random(3, 2)
    scale = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64)
    norm = torch.linalg.vector_norm(value, dim=-1)
    expected = torch.stack((norm[0], norm[1] + 2, torch.tensor(torch.nan, dtype=torch.float64)))
    torch.testing.assert_close(evaluate({x.id: value, s.id: scale}), expected, equal_nan=True)


def test_symbolic_quadratic_forms_have_the_value_of_what_they_stand_for() -> None:
    x = cp.Variable((2, 3))
    value = random(4, 2, 3)
    for expr, canon in (
        (cp.square(x), power_canon),
        (cp.quad_over_lin(x, 2.0), quad_over_lin_canon),
        (cp.quad_over_lin(x, 2.0, keepdims=True), quad_over_lin_canon),
        (cp.quad_over_lin(x, 2.0, axis=0), quad_over_lin_canon),
        (cp.quad_over_lin(x, 2.0, axis=1, keepdims=True), quad_over_lin_canon),
    ):
        symbolic, _ = canon(expr, expr.args)
        assert type(symbolic).__name__ == "SymbolicQuadForm"
        out = compile_expression(symbolic, [x])({x.id: value})
        torch.testing.assert_close(out, compile_expression(expr, [x])({x.id: value}), rtol=1e-12, atol=1e-12)

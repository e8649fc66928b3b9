"""Values outside the domains of atoms, and derivatives at their kinks and jumps."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest
import torch

from ddn_cvx.declare.atoms import compile_expression


def evaluate_at(expr: cp.Expression, *pairs: tuple[cp.Variable, torch.Tensor]) -> torch.Tensor:
    return compile_expression(expr, [leaf for leaf, _ in pairs])({leaf.id: value for leaf, value in pairs})


def of_one(expr: cp.Expression, leaf: cp.Variable) -> Callable[[torch.Tensor], torch.Tensor]:
    evaluate = compile_expression(expr, [leaf])
    return lambda value: evaluate({leaf.id: value})


def test_relative_entropy_at_the_end_of_its_domain() -> None:
    x, y = cp.Variable(6), cp.Variable(6)
    a = torch.tensor([0.0, 0.0, 1.0, -1.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([2.0, 0.0, 0.0, 1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    for atom in (cp.rel_entr, cp.kl_div):
        x.value, y.value = a.detach().numpy(), b.detach().numpy()
        np.testing.assert_array_equal(evaluate_at(atom(x, y), (x, a), (y, b)).detach(), atom(x, y).value)
    out = evaluate_at(cp.rel_entr(x, y), (x, a), (y, b))[0]
    in_x, in_y = torch.autograd.grad(out, (a, b), create_graph=True)
    assert (in_x[0], in_y[0]) == (-torch.inf, 0)
    (mixed,) = torch.autograd.grad(in_y[0], a)
    assert mixed[0] == -0.5  # -1/y: what the sensitivity of an entropy projection to a zero entry needs


def test_values_outside_the_domain() -> None:
    m, v = cp.Variable((2, 2)), cp.Variable(2)
    good, bad = torch.eye(2, dtype=torch.float64) * 2, torch.diag(torch.tensor([-1.0, -1.0], dtype=torch.float64))
    both, one = torch.stack((good, bad)), torch.ones(2, 2, dtype=torch.float64)
    for expr, inside, outside in (
        (cp.log_det(m), np.log(4), -np.inf),
        (cp.tr_inv(m), 1.0, np.inf),
        (cp.matrix_frac(v, m), 1.0, np.inf),
        (cp.gen_lambda_max(m, m), 1.0, np.nan),
    ):
        out = evaluate_at(expr, (m, both), (v, one))
        np.testing.assert_allclose(out, [inside, outside], rtol=1e-12)


@pytest.mark.parametrize("p", [0.5, -1])
def test_norms_of_small_exponent_outside_their_domain(p: float) -> None:
    x = cp.Variable(2)
    for value in ([1.0, -2.0], [0.0, 2.0], [3.0, 2.0]):
        x.value = np.array(value)
        np.testing.assert_allclose(evaluate_at(cp.pnorm(x, p), (x, torch.as_tensor(x.value))), cp.pnorm(x, p).value)


def test_one_bad_element_leaves_the_others_as_they_were() -> None:
    m = cp.Variable((3, 3))
    good = torch.as_tensor(np.diag([1.0, 2.0, 3.0]) + 0.1)
    both = torch.stack((good, torch.full((3, 3), torch.nan, dtype=torch.float64)))
    for atom in (cp.lambda_max, cp.normNuc, cp.sigma_max, cp.log_det, cp.tr_inv, cp.pf_eigenvalue, cp.eye_minus_inv):
        evaluate = compile_expression(atom(m), [m])
        out, alone = evaluate({m.id: both}), evaluate({m.id: good[None]})
        assert torch.equal(out[0], alone[0])
        assert not out[1].isfinite().any()


@pytest.mark.parametrize("p", [1.5, 2, 3])
def test_norms_have_finite_first_and_second_derivatives_at_zeros(p: float) -> None:
    x = cp.Variable(3)
    function = of_one(cp.norm(x, p), x)
    for value in (torch.zeros(3), torch.tensor([0.0, 1.0, 2.0])):
        assert torch.autograd.functional.jacobian(function, value)[0] == 0
        assert torch.func.jacfwd(function)(value)[0] == 0
        assert torch.autograd.functional.hessian(function, value).isfinite().all()
        assert torch.func.hessian(function)(value).isfinite().all()


def test_shares_of_the_derivative_at_ties() -> None:
    x = cp.Variable(4)
    value = torch.tensor([1.0, 1.0, 0.0, -1.0], requires_grad=True)
    for expr, expected in (
        (cp.max(x), [0.5, 0.5, 0, 0]),
        (cp.norm(x, "inf"), [1 / 3, 1 / 3, 0, -1 / 3]),
        (cp.sum(cp.abs(x)), [1, 1, 0, -1]),
        (cp.sum(cp.maximum(x, 0)), [1, 1, 0.5, 0]),
    ):
        (gradient,) = torch.autograd.grad(evaluate_at(expr, (x, value)), value)
        np.testing.assert_allclose(gradient, expected)
    (gradient,) = torch.autograd.grad(evaluate_at(cp.sum_largest(x, 1), (x, value)), value)
    assert gradient.sum() == 1 and (gradient >= 0).all() and gradient[2:].abs().sum() == 0


def test_products_with_zero_factors_have_exact_second_derivatives() -> None:
    x = cp.Variable(3)
    value = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)
    hessian = torch.zeros(3, 3, dtype=torch.float64)
    hessian[0, 2] = hessian[2, 0] = 2.0
    for expr in (cp.prod(x), cp.cumprod(x)[2]):
        function = of_one(expr, x)
        torch.testing.assert_close(torch.autograd.functional.hessian(function, value), hessian)
        torch.testing.assert_close(torch.func.hessian(function)(value), hessian)


def test_steps_have_derivative_zero() -> None:
    x = cp.Variable(3)
    value = torch.tensor([-0.3, 0.7, 2.2], requires_grad=True)
    for atom in (cp.sign, cp.ceil, cp.floor, cp.length):
        (gradient,) = torch.autograd.grad(evaluate_at(cp.sum(atom(x)), (x, value)), value)
        assert torch.equal(gradient, torch.zeros(3))


def test_steps_take_cvxpys_side_at_their_jumps() -> None:
    x = cp.Variable(4)
    x.value = np.array([1.0 + 2e-5, 0.0, 5e-5, -2e-5])
    for atom in (cp.sign, cp.ceil, cp.floor, cp.length):
        out = evaluate_at(atom(x), (x, torch.as_tensor(x.value)))
        # cvxpy 1.9.0 rounds for ceil and not for floor; here both are as in 1.9.3 whatever the version.
        expected = np.floor(np.around(x.value, 4)) if atom is cp.floor else atom(x).value
        np.testing.assert_array_equal(out, expected)

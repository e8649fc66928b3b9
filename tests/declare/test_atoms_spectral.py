"""Functions of eigenvalues: derivatives where eigenvalues coincide, and values where cvxpy's own are wrong."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest
import scipy.linalg as sla
import torch
from torch.autograd.gradcheck import gradcheck, gradgradcheck

from ddn_cvx.declare.atoms import compile_expression
from ddn_cvx.declare.atoms_spectral import eigh

Atom = Callable[[cp.Variable], cp.Expression]


def function(atom: Atom, n: int, m: int | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    symmetric = m is None
    x = cp.Variable((n, n), symmetric=True) if symmetric else cp.Variable((n, m))
    evaluate = compile_expression(atom(x), [x])
    return lambda a: evaluate({x.id: a})


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape))


def with_spectrum(*values: float) -> torch.Tensor:
    q, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(len(values),) * 2))
    return torch.as_tensor(q @ np.diag(values) @ q.T)


SPECTRAL: dict[str, Atom] = {
    "lambda_max": cp.lambda_max,
    "lambda_min": cp.lambda_min,
    "lambda_sum_largest": lambda x: cp.lambda_sum_largest(x, 2),
    "condition_number": cp.condition_number,
    "gen_lambda_max": lambda x: cp.gen_lambda_max(x, np.eye(4)),
    "sigma_max": cp.sigma_max,
    "normNuc": cp.normNuc,
    "von_neumann_entr": cp.von_neumann_entr,
    "quantum_rel_entr": lambda x: cp.quantum_rel_entr(np.eye(4) / 4, x),
}


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("spectrum", [(1, 1, 1, 1), (2, 1, 1, 0.5), (1, 2, 2, 2)])
def test_derivatives_are_finite_at_ties_in_every_mode(name: str, spectrum: tuple[float, ...]) -> None:
    f = function(SPECTRAL[name], 4)
    for matrix in (torch.diag(torch.tensor(spectrum, dtype=torch.float64)), with_spectrum(*spectrum)):
        assert torch.func.jacrev(f)(matrix).isfinite().all()
        assert torch.func.jacfwd(f)(matrix).isfinite().all()
        assert torch.func.jacfwd(torch.func.jacrev(f))(matrix).isfinite().all()
        assert torch.autograd.functional.hessian(f, matrix).isfinite().all()


@pytest.mark.parametrize("name", ["lambda_max", "lambda_sum_largest", "sigma_max", "normNuc"])
@pytest.mark.parametrize("spectrum", [(1, 1, 1, 1), (2, 1, 1, 1), (1, 1, 0, 0), (0, 0, 0, 0)])
def test_the_derivative_at_ties_is_a_subgradient(name: str, spectrum: tuple[float, ...]) -> None:
    f = function(SPECTRAL[name], 4)
    for matrix in (torch.diag(torch.tensor(spectrum, dtype=torch.float64)), with_spectrum(*spectrum)):
        subgradient = torch.func.jacrev(f)(matrix)
        for seed in range(20):
            step = random(4, 4, seed=seed)
            step = step + step.mT
            assert f(matrix + step) >= f(matrix) + (subgradient * step).sum() - 1e-12


def test_norms_of_the_zero_matrix_and_of_rank_deficient_ones() -> None:
    left, right = random(3, 1), random(1, 5, seed=1)
    for matrix in (torch.zeros(3, 5, dtype=torch.float64), left @ right):
        for atom in (cp.sigma_max, cp.normNuc):
            f = function(atom, 3, 5)
            assert torch.func.jacfwd(torch.func.jacrev(f))(matrix).isfinite().all()
            subgradient = torch.func.jacrev(f)(matrix)
            for seed in range(20):
                step = random(3, 5, seed=seed)
                assert f(matrix + step) >= f(matrix) + (subgradient * step).sum() - 1e-12


def test_the_nuclear_norm_has_exact_second_derivatives_at_equal_singular_values() -> None:
    f = function(cp.normNuc, 3, 3)
    orthogonal = with_spectrum(1, 1, -1).requires_grad_()
    assert gradgradcheck(f, orthogonal)


def logarithm(a: np.ndarray) -> np.ndarray:
    return np.asarray(sla.logm(a))


@pytest.mark.parametrize("spectrum", [(0.25, 0.25, 0.25, 0.25), (0.4, 0.2, 0.2, 0.2), (0.1, 0.2, 0.3, 0.4)])
def test_entropy_has_exact_first_and_second_derivatives_at_ties(spectrum: tuple[float, ...]) -> None:
    f = function(cp.von_neumann_entr, 4)
    a = with_spectrum(*spectrum)
    torch.testing.assert_close(torch.func.jacrev(f)(a), torch.as_tensor(-logarithm(a.numpy()) - np.eye(4)))
    for seed in range(3):
        step = random(4, 4, seed=seed)
        step = step + step.mT
        h = 1e-5
        difference = (logarithm((a + h * step).numpy()) - logarithm((a - h * step).numpy())) / (2 * h)
        second = torch.func.jvp(torch.func.jacrev(f), (a,), (step,))[1]
        torch.testing.assert_close(second, torch.as_tensor(-difference), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spectrum", [(1, 1, 1, 1), (2, 1, 1, 0.5), (0.1, 0.2, 0.3, 0.4)])
def test_relative_entropy_has_exact_first_derivatives_at_ties(spectrum: tuple[float, ...]) -> None:
    x, y = cp.Variable((4, 4), symmetric=True), cp.Variable((4, 4), symmetric=True)
    evaluate = compile_expression(cp.quantum_rel_entr(x, y), [x, y])
    a = random(4, 4)
    a = a @ a.mT + torch.eye(4)  # its trace is not 1: cvxpy's value would normalise it
    b = with_spectrum(*spectrum)

    def expected(first: torch.Tensor, second: torch.Tensor) -> float:
        return float(np.trace(first.numpy() @ (logarithm(first.numpy()) - logarithm(second.numpy()))).real)

    assert float(evaluate({x.id: a, y.id: b})) == pytest.approx(expected(a, b), rel=1e-12)
    step = random(4, 4, seed=5)
    step = step + step.mT
    h = 1e-5
    first = torch.func.jacrev(lambda second: evaluate({x.id: a, y.id: second}))(b)
    difference = (expected(a, b + h * step) - expected(a, b - h * step)) / (2 * h)
    assert float((first * step).sum()) == pytest.approx(difference, rel=1e-7)


def test_third_derivatives() -> None:
    """What differentiating a layer twice needs of its objective."""
    for atom, a in (
        (cp.lambda_max, with_spectrum(0.3, 1, 2, 4)),
        (cp.normNuc, random(3, 3)),
        (cp.pf_eigenvalue, random(3, 3).exp()),
        (cp.log_det, with_spectrum(0.3, 1, 2, 4)),
        (cp.von_neumann_entr, with_spectrum(0.3, 1, 2, 4)),
    ):
        f = function(atom, a.shape[0], None if atom is not cp.normNuc else 3)

        def gradient(v: torch.Tensor, f: Callable[[torch.Tensor], torch.Tensor] = f) -> torch.Tensor:
            return torch.autograd.grad(f(v), v, create_graph=True)[0]

        assert gradgradcheck(gradient, a.requires_grad_(), fast_mode=True)


def test_eigenvectors_are_differentiable_where_eigenvalues_differ() -> None:
    def invariant(a: torch.Tensor) -> torch.Tensor:
        values, vectors = eigh(a)
        return (vectors * values.sin().unsqueeze(-2)) @ vectors.mH

    a = with_spectrum(0.3, 1, 2).expand(2, 3, 3).clone().requires_grad_()
    assert gradcheck(invariant, a, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(invariant, a, check_fwd_over_rev=True)
    c = random(3, 3) + 1j * random(3, 3, seed=1)
    assert gradcheck(invariant, c.requires_grad_(), check_forward_ad=True)


def test_trace_of_the_inverse_of_a_complex_matrix() -> None:
    x = cp.Variable((3, 3), hermitian=True)
    c = random(2, 3, 3) + 1j * random(2, 3, 3, seed=1)
    c = c @ c.mH + torch.eye(3)
    out = compile_expression(cp.tr_inv(x), [x])({x.id: c})
    np.testing.assert_allclose(out, np.trace(np.linalg.inv(c.numpy()), axis1=-2, axis2=-1).real, rtol=1e-12)


def test_large_batches_of_large_matrices() -> None:
    """Order 200, batch 4: where batched LU fails."""
    x = cp.Variable((200, 200))
    a = random(4, 200, 200).abs()
    inverse = compile_expression(cp.eye_minus_inv(x), [x])({x.id: a / 400})
    product = inverse @ (torch.eye(200) - a / 400)
    torch.testing.assert_close(product, torch.eye(200, dtype=torch.float64).expand(4, 200, 200), rtol=1e-10, atol=1e-10)
    root = compile_expression(cp.pf_eigenvalue(x), [x])({x.id: a})
    np.testing.assert_allclose(root, np.abs(np.linalg.eigvals(a.numpy())).max(-1), rtol=1e-10)

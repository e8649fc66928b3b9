"""Torch rules of the atoms that are functions of eigenvalues or singular values.

All go through one Hermitian eigendecomposition, :func:`eigh`, whose derivatives of every order are finite also where
eigenvalues coincide. What is returned at ties:

- ``lambda_max``, ``lambda_sum_largest``, ``sigma_max``, ``normNuc``, ``condition_number``, ``gen_lambda_max``: the
  subgradient ``v vᴴ`` (summed) of the eigenvectors that the factorisation chose. Second derivatives leave out the pairs of
  tied eigenvalues; for tied eigenvalues that are summed with equal weights this is exact.
- ``von_neumann_entr``: exact first and second derivatives.
- ``quantum_rel_entr``: exact first derivatives; second ones leave out the tied pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddn_cvx.declare.atoms_base import Node, real_product, rule, same_dtype, squared, symmetrised
from ddn_cvx.forward_mode import forward_rule


def _tied(values: Tensor) -> Tensor:
    """Pairs of eigenvalues closer than √eps times the largest, ``(*batch, n, n)``: their difference is mostly rounding."""
    gap = values.unsqueeze(-2) - values.unsqueeze(-1)
    scale = values.abs().amax(-1, keepdim=True).unsqueeze(-1)
    threshold: float = torch.finfo(values.dtype).eps ** 0.5
    return gap.abs() <= threshold * scale


def _inverse_gaps(values: Tensor) -> Tensor:
    """``1/(λⱼ - λᵢ)`` at ``(i, j)``, 0 at ties."""
    gap = values.unsqueeze(-2) - values.unsqueeze(-1)
    tied = _tied(values)
    return torch.where(tied, 0.0, 1 / torch.where(tied, 1.0, gap))


class _Eigh(torch.autograd.Function):
    """Eigenvalues ``(*batch, n)``, ascending, and eigenvectors ``(*batch, n, n)`` of Hermitian matrices.

    ``dλ = diag(Vᴴ dA V)`` and ``dV = V (F ∘ Vᴴ dA V)`` with ``Fᵢⱼ = 1/(λⱼ - λᵢ)``, or 0 at ties (Magnus, "On
    differentiating eigenvalues and eigenvectors", 1985). The formulas are plain torch in ``λ`` and ``V``, hence
    differentiable again. A matrix with nan or inf has eigenvalues nan, and does no harm to the rest of its batch.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor) -> tuple[Tensor, Tensor]:
        finite = a.isfinite().all(-1).all(-1)[..., None]
        values, vectors = torch.linalg.eigh(torch.where(finite[..., None], a, 0.0))
        return torch.where(finite, values, torch.nan), torch.where(finite[..., None], vectors, torch.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        inner = torch.diag_embed(grads[0]) + _inverse_gaps(values) * (vectors.mH @ grads[1])
        return vectors @ inner @ vectors.mH

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: tuple[Tensor, Tensor], *tangents: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = saved
        moved = tangents[0] @ vectors
        return real_product(vectors, moved).sum(-2), vectors @ (_inverse_gaps(values) * (vectors.mH @ moved))


def eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of the Hermitian part of ``(*batch, n, n)``; derivatives finite at ties."""
    values, vectors = _Eigh.apply(symmetrised(a))  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return values, vectors


def _tied_part(a: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """``Vᴴ (A - A₀) V`` for the tied pairs ``i ≠ j``, where ``A₀ = A`` is held constant: zero, but with a derivative."""
    change = symmetrised(a - a.detach())
    pairs = _tied(values.detach()) & ~torch.eye(a.shape[-1], dtype=torch.bool, device=a.device)
    basis = vectors.detach()
    return torch.where(pairs, basis.mH @ change @ basis, 0.0)


def _nonnegative(values: Tensor) -> Tensor:
    """Eigenvalues of a semidefinite matrix: a negative one within rounding of zero is zero."""
    eps: float = torch.finfo(values.dtype).eps
    rounding = eps * values.shape[-1] * values.abs().amax(-1, keepdim=True)
    return torch.where((values < 0) & (values >= -rounding), 0.0, values)


# ---------------------------------------------------------------- eigenvalues


@rule("lambda_max")
def lambda_max(node: Node, a: Tensor) -> Tensor:
    return eigh(a)[0][..., -1]


def _ascending_weights(atom: Any) -> dict[str, Any]:
    """Weights of the ascending eigenvalues: 1 for the k largest, the fraction for the next one."""
    order = np.arange(atom.args[0].shape[-1])
    return {"weights": np.clip(float(atom.k) - order, 0.0, 1.0)[::-1].copy()}


@rule("lambda_sum_largest", reads=_ascending_weights)
def lambda_sum_largest(node: Node, a: Tensor, weights: Tensor) -> Tensor:
    return (eigh(a)[0] * weights).sum(-1)


@rule("condition_number")
def condition_number(node: Node, a: Tensor) -> Tensor:
    """``λ_max/λ_min`` of a positive definite matrix."""
    values = eigh(a)[0]
    return values[..., -1] / values[..., 0]


@rule("gen_lambda_max")
def gen_lambda_max(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """The largest λ with ``A v = λ B v``: that of ``L⁻¹ A L⁻ᴴ``, ``B = L Lᴴ``. nan where B is not positive definite."""
    a, b = same_dtype(symmetrised(a), symmetrised(b))
    factor, info = torch.linalg.cholesky_ex(b)
    half = torch.linalg.solve_triangular(factor, a, upper=False)
    whole = torch.linalg.solve_triangular(factor, half.mH, upper=False)
    return torch.where(info == 0, eigh(whole)[0][..., -1], torch.nan)


# ---------------------------------------------------------------- singular values


@rule("sigma_max")
def sigma_max(node: Node, a: Tensor) -> Tensor:
    """The root of the largest eigenvalue of the smaller Gram matrix; at the zero matrix the subgradient 0."""
    gram = a.mH @ a if a.shape[-1] <= a.shape[-2] else a @ a.mH
    square = eigh(gram)[0][..., -1]
    zero = square <= 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


@rule("normNuc")
def norm_nuc(node: Node, a: Tensor) -> Tensor:
    """The sum of the ``min(m, n)`` largest eigenvalues of ``[[0, A], [Aᴴ, 0]]``: the singular values (Jordan, Wielandt).

    Unlike the eigenvalues of a Gram matrix these are as accurate for small singular values as for large ones.
    """
    m, n = a.shape[-2:]
    upper = torch.nn.functional.pad(a, (m, 0, 0, n))
    return eigh(upper + upper.mH)[0][..., -min(m, n) :].sum(-1)


# ---------------------------------------------------------------- entropies


@rule("von_neumann_entr")
def von_neumann_entr(node: Node, a: Tensor) -> Tensor:
    """``-tr(A log A)``.

    The second derivative of a trace function couples eigenvectors i and j by ``(f'(λᵢ) - f'(λⱼ))/(λᵢ - λⱼ)`` (Daleckii and
    Krein), which is ``f'' = -1/λ`` for the tied pairs that :func:`eigh` leaves out.
    """
    values, vectors = eigh(a)
    values = _nonnegative(values)
    tied = _tied_part(a, values, vectors)
    curvature = -(squared(tied) / _pair_means(values)).sum((-2, -1)) / 2
    entropy: Tensor = torch.special.entr(values).sum(-1)
    return entropy + curvature


def _pair_means(values: Tensor) -> Tensor:
    """``(λᵢ + λⱼ)/2``, held constant; 1 where it is not positive, which is outside the domain."""
    mean = (values.unsqueeze(-2) + values.unsqueeze(-1)).detach() / 2
    return torch.where(mean > 0, mean, 1.0)


def _logarithm(a: Tensor) -> Tensor:
    """The matrix logarithm; its derivative couples tied eigenvectors by 1/λ."""
    values, vectors = eigh(a)
    basis = vectors.detach()
    tied = basis @ (_tied_part(a, values, vectors) / _pair_means(values)) @ basis.mH
    return (vectors * _nonnegative(values).log().unsqueeze(-2)) @ vectors.mH + tied


@rule("quantum_rel_entr")
def quantum_rel_entr(node: Node, x: Tensor, y: Tensor) -> Tensor:
    """``tr X (log X - log Y)``."""
    x, y = same_dtype(symmetrised(x), symmetrised(y))
    cross = real_product(x, _logarithm(y)).sum((-2, -1))
    return -von_neumann_entr(node, x) - cross

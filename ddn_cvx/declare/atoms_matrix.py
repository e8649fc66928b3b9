"""Torch rules of the atoms with a matrix inverse in them: through Cholesky for positive definite arguments, QR otherwise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ddn_cvx.declare.atoms_affine import sparse_apply, sparse_constant, sparse_operands
from ddn_cvx.declare.atoms_base import Node, real_product, reshaped_fortran, rule, same_dtype, squared, symmetrised


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """``M⁻¹ B`` for a general square matrix by QR (batched LU is not reliable everywhere)."""
    q, r = torch.linalg.qr(matrix)
    solution: Tensor = torch.linalg.solve_triangular(r, q.mH @ right, upper=True)
    return solution


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


# ---------------------------------------------------------------- positive definite arguments


@rule("log_det")
def log_det(node: Node, a: Tensor) -> Tensor:
    """``log det`` of the Hermitian part, -inf where that is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(symmetrised(a))
    return torch.where(info == 0, 2 * factor.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1), -torch.inf)


@rule("tr_inv")
def tr_inv(node: Node, a: Tensor) -> Tensor:
    """Trace of the inverse of the Hermitian part, inf where that is not positive definite."""
    return _inverse_form(a, _identity(a))


@rule("MatrixFrac")
def matrix_frac(node: Node, x: Tensor, p: Tensor) -> Tensor:
    """``tr Xᴴ P⁻¹ X`` with the Hermitian part of P, inf where that is not positive definite."""
    return _inverse_form(p, x.unsqueeze(-1) if len(node.arg_shapes[0]) == 1 else x)


def _inverse_form(p: Tensor, x: Tensor) -> Tensor:
    p, x = same_dtype(p, x)
    factor, info = torch.linalg.cholesky_ex(symmetrised(p))
    form = squared(torch.linalg.solve_triangular(factor, x, upper=False)).sum((-2, -1))
    return torch.where(info == 0, form, torch.inf)


# ---------------------------------------------------------------- quadratic forms


def _form(atom: Any) -> dict[str, Any]:
    sparse = sparse_constant(atom.args[1])
    blocks = None if atom.block_indices is None else tuple(tuple(map(int, block)) for block in atom.block_indices)
    return {"blocks": blocks} | ({} if sparse is None else {"args": atom.args[:1], **sparse_operands(sparse)})


def _terms(node: Node, x: Tensor, *p: Tensor) -> Tensor:
    """``conj(xᵢ) (P x)ᵢ`` for x flattened in Fortran order, real part."""
    x = reshaped_fortran(x, len(node.arg_shapes[0]), (math.prod(node.arg_shapes[0]),))
    if len(p) > 1:
        return real_product(x, sparse_apply(x, x.shape[-1], *p))
    matrix, x = same_dtype(p[0], x)
    return real_product(x, (matrix @ x.unsqueeze(-1)).squeeze(-1))


@rule("QuadForm", reads=_form)
def quad_form(node: Node, x: Tensor, *p: Tensor) -> Tensor:
    """``Re xᴴ P x``."""
    return _terms(node, x, *p).sum(-1)


@rule("SymbolicQuadForm", reads=_form)
def symbolic_quad_form(node: Node, x: Tensor, *p: Tensor) -> Tensor:
    """A quadratic form, or one for each block of indices, or ``Pᵢᵢ xᵢ²`` elementwise (P is then diagonal)."""
    terms = _terms(node, x, *p)
    if node.blocks is not None:
        terms = torch.stack([terms[..., list(block)].sum(-1) for block in node.blocks], -1)
    elif math.prod(node.shape) == 1:
        terms = terms.sum(-1, keepdim=True)
    return reshaped_fortran(terms, 1, node.shape)


# ---------------------------------------------------------------- matrices with positive entries


@rule("gmatmul", reads=("A",))
def gmatmul(node: Node, x: Tensor, a: Tensor) -> Tensor:
    """``Πⱼ xⱼ^Aᵢⱼ``, the matrix product of geometric programming."""
    logarithm = x.log()
    if len(node.arg_shapes[0]) == 1:
        return (a @ logarithm.unsqueeze(-1)).squeeze(-1).exp()
    return (a @ logarithm).exp()


@rule("eye_minus_inv")
def eye_minus_inv(node: Node, x: Tensor) -> Tensor:
    """``(I - X)⁻¹``."""
    return solve(_identity(x) - x, _identity(x))


@rule("pf_eigenvalue")
def pf_eigenvalue(node: Node, x: Tensor) -> Tensor:
    """The Perron-Frobenius eigenvalue of a matrix with positive entries (there it is simple).

    The eigenpair is found without a graph; two Newton steps on ``(X v - λ v, 1ᵀv - 1) = 0`` then make it a function of X.
    A step squares the order of contact with the true function, so derivatives up to the third are exact.
    """
    constant = torch.where(x.isfinite(), x, 0.0).detach()
    values, vectors = torch.linalg.eig(constant)
    largest = values.abs().argmax(-1, keepdim=True)
    value = values.gather(-1, largest).abs()
    vector = vectors.gather(-1, largest.unsqueeze(-2).expand((*vectors.shape[:-1], 1))).squeeze(-1).abs()
    pair = torch.cat((vector / vector.sum(-1, keepdim=True), value), -1)
    n = x.shape[-1]
    for _ in range(2):
        vector, value = pair[..., :n], pair[..., n:]
        shifted = x - value.unsqueeze(-1) * _identity(x)
        ones = torch.ones_like(vector)
        bordered = torch.cat(
            (
                torch.cat((shifted, -vector.unsqueeze(-1)), -1),
                torch.cat((ones, torch.zeros_like(value)), -1).unsqueeze(-2),
            ),
            -2,
        )
        defect = torch.cat(((shifted @ vector.unsqueeze(-1)).squeeze(-1), vector.sum(-1, keepdim=True) - 1), -1)
        pair = pair - solve(bordered, defect.unsqueeze(-1)).squeeze(-1)
    return pair[..., n]

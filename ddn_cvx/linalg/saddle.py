"""Batched symmetric saddle-point systems, the linear algebra of nonlinear programs:

    K = [ H   A' ]      H (B, n, n) symmetric, of any inertia,   A (B, k, n),   D (B, k) >= 0.
        [ A  -D  ]

At a regular solution K has n positive and k negative eigenvalues: H is positive definite on the null space of A (for
D = 0).  With weights ``w`` and ``e = 1 / (1 + w D)``, ``w e`` times the second block row may be added to the first:

    [ M    A'E ] (u, omega) = (top + A'E W low, E low),      M = H + A'E W A,
    [ EA  -ED  ]

and K has the right inertia exactly when M and the Schur complement ``S = EA M^-1 A'E + ED`` are positive definite for some
w.  Success of two Cholesky factorisations thus IS the inertia test; rows with a large D (inactive) fade out by themselves.
For a given w the test may reject a matrix of the right inertia, never the converse.

``CondensedFactor`` is that factorisation, for the Newton steps of solvers, which shift the diagonal of H where it fails.
``SaddleKKT`` is for derivatives, which must solve with K as it is: elements that fail the test, or look singular, get a
factorisation K = LDL' with its exact inertia, and those that are singular a spectral one and the solution of least norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular

from ddn_cvx.linalg.kkt import EIGENVALUE_CUTOFF, SINGULAR, VISIBLE, NullSpace

EXACT = 1e-12
"""Residual of a column, relative to its right-hand side, that is not refined."""


class _Factor(NamedTuple):
    """What a condensed factorisation holds; every field has the batch first."""

    H: Tensor
    A: Tensor
    D: Tensor
    e: Tensor
    we: Tensor
    L: Tensor
    V: Tensor
    C: Tensor
    positive: Tensor
    independent: Tensor


class CondensedFactor:
    """Cholesky factors of M and of its Schur complement, where they exist.

    Parameters
    ----------
    H : Tensor (B, n, n)
        Symmetric, float32 or float64.
    A : Tensor (B, k, n)
        Full row rank where D is zero; see ``independent``.
    D : Tensor (B, k), optional
        Nonnegative; zero if not given.
    size : Tensor (B, n), optional
        Sizes of the rows of H that the weights w are to outweigh, by default the largest entries of H.  Where H has a large
        positive semidefinite part that part should not count, or the weights drown the rest of H in rounding.
    sparing : bool
        Use no weights where H is well positive definite by itself: a factorisation more, and better conditioned solutions.
    """

    def __init__(self, H: Tensor, A: Tensor, D: Tensor | None = None, size: Tensor | None = None, sparing: bool = False):
        D = torch.zeros_like(A[..., 0]) if D is None else D
        self._set(_factorise(H, A, D, H.abs().amax(-1) if size is None and A.shape[1] else size, sparing))

    def _set(self, parts: _Factor) -> None:
        self._parts = parts
        self.positive, self.independent = parts.positive, parts.independent

    @property
    def correct_inertia(self) -> Tensor:
        """Elements that have both factors, ``(B,)`` bool: K has n positive and k negative eigenvalues."""
        return self.positive & self.independent

    def take(self, rows: Tensor) -> CondensedFactor:
        """The factors of some elements."""
        some = object.__new__(CondensedFactor)
        some._set(_Factor(*(t[rows] for t in self._parts)))
        return some

    def put(self, rows: Tensor, other: CondensedFactor) -> None:
        """Replace the factors of some elements by those of ``other``."""
        pairs = zip(self._parts, other._parts, strict=True)
        self._set(_Factor(*(t.index_copy(0, rows, new) for t, new in pairs)))

    def solve(self, top: Tensor, low: Tensor, refinements: int = 1) -> tuple[Tensor, Tensor]:
        """``K (u, omega) = (top, low)``, top ``(B, n, r)`` and low ``(B, k, r)``; not finite where there are no factors."""
        u, omega = self._solve(top, low)
        for _ in range(refinements):
            du, domega = self._solve(*self.residual(top, low, u, omega))
            u, omega = u + du, omega + domega
        return u, omega

    def residual(self, top: Tensor, low: Tensor, u: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
        """``(top, low) - K (u, omega)``."""
        H, A, D = self._parts[:3]
        above = torch.baddbmm(top, H, u, alpha=-1)
        if not A.shape[1]:
            return above, low
        below = torch.baddbmm(low, A, u, alpha=-1).addcmul_(D.unsqueeze(-1), omega)
        return torch.baddbmm(above, A.mT, omega, alpha=-1), below

    def _solve(self, top: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        p = self._parts
        if not p.A.shape[1]:
            return solve_triangular(p.L.mT, solve_triangular(p.L, top, upper=False), upper=True), low
        r = torch.baddbmm(top, p.A.mT, p.we.unsqueeze(-1) * low)
        t = solve_triangular(p.L, r, upper=False)
        omega = torch.cholesky_solve(torch.baddbmm(-p.e.unsqueeze(-1) * low, p.V.mT, t), p.C)
        return solve_triangular(p.L.mT, torch.baddbmm(t, p.V, omega, alpha=-1), upper=True), omega


def _factorise(H: Tensor, A: Tensor, D: Tensor, size: Tensor | None, sparing: bool) -> _Factor:
    k, eps = A.shape[1], torch.finfo(H.dtype).eps
    if not k or size is None:
        L, positive = _cholesky(H)
        return _Factor(H, A, D, D, D, L, A.mT, A[..., :0], positive, torch.ones_like(positive))
    typical = size.median(-1, keepdim=True).values
    size = torch.maximum(size, 1e-6 * torch.where(typical > 0, typical, 1.0))
    length = torch.einsum("bkn,bn->bk", A * A, size.reciprocal())
    w = eps**-0.25 / torch.where(length > 0, length, 1.0)
    if sparing:
        L, positive = _cholesky(H, eps**0.5)
        w = torch.where(positive.unsqueeze(-1), 0.0, w)
    e = (1.0 + w * D).reciprocal()
    we = w * e
    if not sparing or not bool(positive.all()):
        L, positive = _cholesky(torch.baddbmm(H, (A * we.unsqueeze(-1)).mT, A))
    V = solve_triangular(L, (A * e.unsqueeze(-1)).mT, upper=False)
    S = torch.bmm(V.mT, V)
    S.diagonal(dim1=1, dim2=2).add_(e * D)
    C, independent = _cholesky(S)
    return _Factor(H, A, D, e, we, L, V, C, positive, independent)


def _cholesky(M: Tensor, tolerance: float = 0.0) -> tuple[Tensor, Tensor]:
    """The factor, and whether it exists with pivots above rounding and tolerance (next to the diagonal: scale-free)."""
    if not M.shape[-1]:
        return M, M.new_ones(len(M), dtype=torch.bool)
    L, info = cholesky_ex(M)
    least = (L.diagonal(dim1=1, dim2=2).square() / M.diagonal(dim1=1, dim2=2)).amin(-1)
    return L, (info == 0) & (least > max(tolerance, M.shape[-1] * torch.finfo(M.dtype).eps))


class SaddleKKT:
    """K for derivatives: solves for every element, knows its inertia, and is exact about singular ones.

    Parameters
    ----------
    H : Tensor (B, n, n)
        Symmetric.
    A : Tensor (B, k, n)
    D : Tensor (B, k), optional
        Nonnegative; zero if not given.
    ok : Tensor (B,) bool, optional
        Elements without a solution are False.  Their system, and that of elements with numbers that are not finite, is
        replaced by a harmless one.

    Attributes
    ----------
    correct_inertia : Tensor (B,) bool
        K has n positive and k negative eigenvalues; False for elements that are not ``ok``.
    singular : NullSpace
        ``primal``: a null vector of K has a part in u, there is a valley of solutions; ``dual``: null vectors in omega
        alone exist, rows of A are dependent.
    """

    def __init__(self, H: Tensor, A: Tensor, D: Tensor | None = None, ok: Tensor | None = None):
        D = torch.zeros_like(A[..., 0]) if D is None else D
        finite = H.sum((1, 2)).isfinite() & A.sum((1, 2)).isfinite() & D.sum(1).isfinite()
        ok = finite if ok is None else ok & finite
        if not bool(ok.all()):
            row = ok[:, None, None]
            H = torch.where(row, H, torch.eye(H.shape[-1], dtype=H.dtype, device=H.device))
            A, D = torch.where(row, A, 0.0), torch.where(row[..., 0], D, 1.0)
        self.n = H.shape[-1]
        self._factor = CondensedFactor(H, A, D, sparing=True)
        scale = _equilibrate(H, A, D)
        regular = self._factor.correct_inertia & _looks_regular(self._once, scale)
        self.correct_inertia = regular & ok
        none = torch.zeros_like(regular)
        self.singular = NullSpace(none, none.clone())
        self._others = torch.nonzero(~regular).flatten()
        if len(self._others):
            pick = self._others
            self._exact = _Indefinite(_assemble(H[pick], A[pick], D[pick]), scale[pick], self.n)
            self.correct_inertia[pick] = self._exact.correct_inertia
            self.singular.primal[pick] = self._exact.primal
            self.singular.dual[pick] = self._exact.dual

    @property
    def growth(self) -> Tensor:
        """About how much K's inverse can lengthen a vector, as K stands, ``(B,)``; infinite where it is singular."""
        k = self._factor._parts.A.shape[1]
        ones = self.correct_inertia.new_ones(len(self.correct_inertia), self.n + k, dtype=self._factor._parts.H.dtype)
        grown = _growth(self._once, ones)
        return torch.where(self.singular.primal | self.singular.dual, torch.inf, grown)

    def _once(self, right: Tensor) -> Tensor:
        return torch.cat(self._factor.solve(right[:, : self.n], right[:, self.n :], refinements=0), 1)

    def solve(self, top: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """``K (u, omega) = (top, low)`` or, where K is singular, the solution of least squares and least norm.

        top ``(B, n, r)``, low ``(B, k, r)``.  K is symmetric: this is the transposed solve as well.
        """
        u, omega = self._factor.solve(top, low, refinements=0)
        size = EXACT * _largest(top, low)
        for _ in range(2):
            r, s = self._factor.residual(top, low, u, omega)
            coarse = ~(_largest(r, s) <= size)
            if not bool(coarse.any()):
                break
            # each column for itself: what one gets must not depend on the others
            step = coarse.unsqueeze(1)
            du, domega = self._factor.solve(r, s, refinements=0)
            u, omega = torch.where(step, u + du, u), torch.where(step, omega + domega, omega)
        if len(self._others):
            pick = self._others
            exact = self._exact.solve(torch.cat([top[pick], low[pick]], 1))
            u = u.index_copy(0, pick, exact[:, : self.n])
            omega = omega.index_copy(0, pick, exact[:, self.n :])
        return u, omega


def _largest(top: Tensor, low: Tensor) -> Tensor:
    """The largest entry of each column, ``(B, r)``."""
    whole = torch.cat((top, low), 1).abs()
    return whole.amax(1) if whole.shape[1] else whole.sum(1)


class _Indefinite:
    """``K = LDL'`` for a few elements, and spectral decompositions of those that are singular."""

    def __init__(self, K: Tensor, scale: Tensor, n: int):
        self.scale = scale.unsqueeze(-1)
        self.K = K * self.scale * scale.unsqueeze(-2)
        self.LD, self.pivots, _ = torch.linalg.ldl_factor_ex(self.K)
        singular = ~_looks_regular(self._unrefined, scale)
        self.pick = torch.nonzero(singular).flatten()
        pairs = self.pivots < 0  # a pivot block of order two has one eigenvalue of each sign
        negative = ((self.LD.diagonal(dim1=1, dim2=2) < 0) & ~pairs).sum(-1) + pairs.sum(-1) // 2
        self.correct_inertia = (negative == K.shape[-1] - n) & ~singular
        self.primal, self.dual = torch.zeros_like(singular), torch.zeros_like(singular)
        if len(self.pick):
            values, self.vectors = torch.linalg.eigh(K[self.pick])
            size = values.abs()
            cutoff = max(EIGENVALUE_CUTOFF, 30 * torch.finfo(K.dtype).eps)
            zero = size <= cutoff * size.amax(-1, keepdim=True)
            self.inverse = torch.where(zero, 0.0, 1.0 / torch.where(zero, 1.0, values)).unsqueeze(-1)
            null = self.vectors * zero.unsqueeze(-2)
            self.primal[self.pick] = null[:, :n].square().sum((1, 2)) > VISIBLE
            if n < K.shape[-1]:  # a null vector of unit length without a part in u
                gram = null[:, n:] @ null[:, n:].mT
                self.dual[self.pick] = torch.linalg.eigvalsh(gram)[:, -1] > 1.0 - VISIBLE

    def solve(self, right: Tensor) -> Tensor:
        z = self._unrefined(right)
        z = z + self._unrefined(right - (self.K @ (z / self.scale)) / self.scale)
        if len(self.pick):
            V = self.vectors
            z = z.index_copy(0, self.pick, V @ (self.inverse * (V.mT @ right[self.pick])))
        return z

    def _unrefined(self, right: Tensor) -> Tensor:
        return self.scale * torch.linalg.ldl_solve(self.LD, self.pivots, self.scale * right)


def _assemble(H: Tensor, A: Tensor, D: Tensor) -> Tensor:
    return torch.cat([torch.cat([H, A.mT], 2), torch.cat([A, torch.diag_embed(-D)], 2)], 1)


def _equilibrate(H: Tensor, A: Tensor, D: Tensor) -> Tensor:
    """Symmetric row scaling of K by powers of two (exact), one pass; empty rows are left alone."""
    if not H.shape[-1]:
        return torch.ones_like(D)
    top, low = H.abs().amax(-1), D
    if A.shape[1]:
        entries = A.abs()
        top, low = torch.maximum(top, entries.amax(1)), torch.maximum(low, entries.amax(2))
    size = torch.cat([top, low], 1)
    return torch.exp2((-0.5 * torch.log2(torch.where(size > 0, size, 1.0))).round())


def _growth(solve: Callable[[Tensor], Tensor], scale: Tensor) -> Tensor:
    """The norm of the inverse of the scaled matrix, by one step of inverse iteration from a fixed vector, ``(B,)``."""
    order = scale.shape[-1]
    probe = torch.cos(torch.arange(1, order + 1, dtype=scale.dtype, device=scale.device) ** 2)
    probe = probe / probe.norm().clamp(min=torch.finfo(scale.dtype).tiny)
    grown = (solve((probe / scale).unsqueeze(-1)).squeeze(-1) / scale).norm(dim=1)
    # a fixed vector meets the worst direction in about 1 / sqrt(order) of its length
    return grown * order**0.5


def _looks_regular(solve: Callable[[Tensor], Tensor], scale: Tensor) -> Tensor:
    return _growth(solve, scale) * max(SINGULAR, 30 * torch.finfo(scale.dtype).eps) <= 1.0

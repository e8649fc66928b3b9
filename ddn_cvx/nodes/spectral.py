"""Eigenvectors as the solution of a problem with orthogonality constraints.

    U = argmax  sum_k (K - k) u_k'X u_k    subject to   U'U = I,      u_0 ... u_{K-1} the columns of U

With weights that fall the maximum is not any basis of the leading eigenspace, but the eigenvectors themselves, the largest
eigenvalue first (Brockett, Linear Algebra and its Applications 1991). Tutorial 13 of the DDN reference implementation has
the problem without weights and the derivative in closed form (Magnus, Econometric Theory 1985).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, TorchProblem
from ddn_cvx.nodes.checks import check_shapes
from ddn_cvx.nodes.entry import Entry, Inputs


class Eigenvectors(nn.Module):
    """``X (*batch, n, n)`` -> the K largest eigenvalues ``(*batch, K)``, falling, and unit eigenvectors ``(*batch, n, K)``.

    X is made symmetric first. The entry of an eigenvector that is largest in size is positive.

    Parameters
    ----------
    n : int
    top : int, optional
        K. Default: all n.

    Raises
    ------
    DeclarationError
        n below one, or K outside 1 to n.
    InputError
        X is not ``(*batch, n, n)``.
    SolverError
        Numbers that are not finite.

    Notes
    -----
    Where eigenvalues are equal the eigenvectors are not unique: some are returned, with the derivative of minimum norm, in
    which nothing turns inside the eigenspace. (``torch.linalg.eigh`` divides by the difference of the eigenvalues.)

    Examples
    --------
    >>> Eigenvectors(2, top=1)(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    (tensor([3.]), tensor([[0.7071],
            [0.7071]]))
    """

    def __init__(self, n: int, top: int | None = None):
        super().__init__()
        top = n if top is None else top
        if not 1 <= top <= n:
            raise DeclarationError(f"n must be at least 1 and top between 1 and n, got {n!r} and {top!r}.")
        self.n, self.top = n, top
        rows, columns = torch.tril_indices(top, top)
        weights = torch.arange(top, 0, -1, dtype=torch.float64)

        def orthonormal(U: Tensor, X: Tensor) -> Tensor:
            gram = U.mT @ U - torch.eye(top, dtype=U.dtype, device=U.device)
            return gram[rows.to(U.device), columns.to(U.device)]

        self.layer = DeclarativeLayer(
            TorchProblem(
                (n, top),
                objective=lambda U, X: -0.5 * ((U * (X @ U)).sum(0) * weights.to(U.device)).sum(),
                equality=orthonormal,
                solve=self._decompose,
                parameters=[(n, n)],
            )
        )

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors, in the dtype of X."""
        check_shapes(X=(X, (self.n, self.n)))
        symmetric = 0.5 * (X + X.mT).double()
        unit = symmetric.detach().abs().amax((-1, -2), keepdim=True)
        unit = torch.where(unit > 0, unit, 1.0)
        U = self.layer(symmetric / unit)
        return (U * (symmetric @ U)).sum(-2).to(X.dtype), U.to(X.dtype)

    def _decompose(self, X: Tensor) -> Tensor:
        finite = X.isfinite().all(-1).all(-1).reshape(-1, 1, 1)
        U = torch.linalg.eigh(torch.where(finite, X, 0.0))[1].flip(-1)[..., : self.top]
        largest = U.gather(-2, U.abs().argmax(-2, keepdim=True))
        return torch.where(finite, U * largest.sign(), torch.nan)


# ---------------------------------------------------------------- the catalogue's entries


def _sample(batch: int, generator: torch.Generator) -> Inputs:
    """Eigenvalues near 0, 1, 2 and 3."""
    X = torch.randn(batch, 4, 4, generator=generator, dtype=torch.float64)
    return (0.5 * (X + X.mT) + torch.diag(torch.arange(4, dtype=torch.float64)),)


def _eigh(X: Tensor) -> Inputs:
    values, U = torch.linalg.eigh(0.5 * (X + X.mT))
    values, U = values.flip(-1)[..., :2], U.flip(-1)[..., :2]
    return values, U * U.gather(-2, U.abs().argmax(-2, keepdim=True)).sign()


ENTRIES = (
    Entry(
        name="eigenvectors",
        title="leading eigenvectors of a symmetric matrix",
        kind="nonlinear",
        source="Magnus, Econometric Theory 1985; the DDN reference implementation, tutorial 13",
        build=lambda: Eigenvectors(4, top=2),
        sample=_sample,
        reference=_eigh,
        example="21_tutorials",
        tolerance=1e-9,
        tags=frozenset({"spectral"}),
    ),
)

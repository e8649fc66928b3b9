"""The Newton systems of the conic interior-point method, in scaled multipliers ``w = W z``:

    [ P    E'   B' ]
    [ E    0    0  ] (x, y, w) = (f, e, g),        B = W^-T A.
    [ B    0   -I  ]

P may be singular and E dependent: δ is added to P and subtracted from the zero block for the factorisation alone, and
refinement with the matrix above takes it out again.  With ``ρ E'`` times the second block row added to the first (which
needs ``ρδ`` to be small, and is exact all the same) the condensed matrix ``P + δ + ρE'E + B'B`` is well conditioned as often
as it can be.  Its Cholesky factor, and that of the Schur complement of E, are inverted once: an iteration solves several
times with them, and batched products are the fastest thing there is on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular

Solution = tuple[Tensor, Tensor, Tensor]


class Newton:
    """Factors for a batch.  Vectors are rows: x ``(B, r, n)``, y ``(B, r, p)``, w ``(B, r, m - p)``.

    Parameters
    ----------
    P : Tensor (B, n, n)
    E : Tensor (B, p, n)
    Bt : Tensor (B, n, m - p)
        The transpose of B.
    delta : float
    dtype : torch.dtype
        Of the factors; refinement is in that of the data.
    """

    def __init__(self, P: Tensor, E: Tensor, Bt: Tensor, delta: float, dtype: torch.dtype):
        self.P, self.E, self.Bt, self.dtype = P, E, Bt, dtype
        p = E.shape[1]
        M = torch.baddbmm(P, Bt, Bt.mT)
        if p:
            M = torch.baddbmm(M, E.mT, E)
        diagonal = M.diagonal(dim1=1, dim2=2)
        diagonal.mul_(1 + 8 * torch.finfo(dtype).eps).add_(delta)
        M, F = M.to(dtype), E.to(dtype)
        eye = torch.eye(M.shape[-1], dtype=dtype, device=M.device)
        self.half = solve_triangular(cholesky_ex(M).L, eye.expand_as(M), upper=False)
        self.F, self.delta = F, delta
        if p:
            self.V = torch.bmm(F, self.half.mT)
            S = torch.bmm(self.V, self.V.mT)
            S.diagonal(dim1=1, dim2=2).mul_(1 + 8 * torch.finfo(dtype).eps).add_(delta / (1 - delta))
            eye = torch.eye(p, dtype=dtype, device=M.device)
            self.schur = solve_triangular(cholesky_ex(S).L, eye.expand_as(S), upper=False)

    def solve(self, f: Tensor, e: Tensor, g: Tensor, refinements: int) -> Solution:
        """Solve, and refine."""
        x, y, w = self._solve(f, e, g)
        for _ in range(refinements):
            r = torch.baddbmm(torch.baddbmm(f, x, self.P, alpha=-1), w, self.Bt.mT, alpha=-1)
            o = e
            if self.E.shape[1]:
                r, o = torch.baddbmm(r, y, self.E, alpha=-1), torch.baddbmm(e, x, self.E.mT, alpha=-1)
            dx, dy, dw = self._solve(r, o, torch.baddbmm(g, x, self.Bt, alpha=-1).add_(w))
            x, y, w = x + dx, y + dy, w + dw
        return x, y, w

    def _solve(self, f: Tensor, e: Tensor, g: Tensor) -> Solution:
        u, e_low = torch.baddbmm(f, g, self.Bt.mT).to(self.dtype), e.to(self.dtype)
        if not self.E.shape[1]:
            x = torch.bmm(torch.bmm(u, self.half.mT), self.half).to(f.dtype)
            return x, e, torch.baddbmm(g, x, self.Bt, beta=-1)
        u = torch.bmm(torch.baddbmm(u, e_low, self.F), self.half.mT)
        y = torch.baddbmm(e_low, u, self.V.mT, beta=-1)
        y = torch.bmm(torch.bmm(y, self.schur.mT), self.schur)
        x = torch.bmm(torch.baddbmm(u, y, self.V, alpha=-1), self.half).to(f.dtype)
        return x, (y / (1 - self.delta)).to(f.dtype), torch.baddbmm(g, x, self.Bt, beta=-1)

"""A batch of square systems without symmetry: Householder QR, and the pseudo-inverse for just the singular ones."""

from __future__ import annotations

import torch
from torch import Tensor


class GeneralFactor:
    """``J x = r`` and ``J'w = g`` for many right-hand sides.

    Parameters
    ----------
    J : Tensor (B, n, n)
    scale : Tensor (B, n)
        The size that a row of J should be compared with; a matrix is singular relative to these.
    ok : Tensor (B,) bool, optional
        Elements that matter; the others get zeros.

    Attributes
    ----------
    singular : Tensor (B,) bool
        Where solutions are of least squares and least norm.
    """

    def __init__(self, J: Tensor, scale: Tensor, ok: Tensor | None = None):
        eps = torch.finfo(J.dtype).eps
        self.limit = eps**0.5 * 10
        sound = J.isfinite().flatten(1).all(1) if ok is None else J.isfinite().flatten(1).all(1) & ok
        eye = torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)
        self.sound = sound
        self.row = torch.where(scale > 0, 1 / scale.clamp(min=torch.finfo(J.dtype).tiny), 1.0)
        self.J = torch.where(sound.reshape(-1, 1, 1), J, eye)
        scaled = self.row.unsqueeze(-1) * self.J
        self.Q, self.R = torch.linalg.qr(scaled)
        size = self.R.diagonal(dim1=1, dim2=2).abs()
        safe = torch.where((size > 0).all(-1).reshape(-1, 1, 1), self.R, eye)
        inverse = torch.linalg.solve_triangular(safe, eye.expand_as(safe), upper=True)
        smallest = 1 / inverse.square().sum((1, 2)).sqrt()
        self.singular = sound & ~((size > 0).all(-1) & (smallest > self.limit))
        self.R = torch.where(self.singular.reshape(-1, 1, 1), eye, self.R)
        self._rows = torch.nonzero(self.singular).flatten()
        if len(self._rows):
            self._pseudo = torch.linalg.pinv(scaled[self._rows], rtol=0.0, atol=float(self.limit))

    def solve(self, right: Tensor, transpose: bool = False) -> Tensor:
        """``(B, n, k) -> (B, n, k)``, refined once."""
        right = torch.where(self.sound.reshape(-1, 1, 1), right, 0.0)
        x = self._apply(right, transpose)
        J = self.J.mT if transpose else self.J
        return x + self._apply(right - J @ x, transpose)

    def _apply(self, right: Tensor, transpose: bool) -> Tensor:
        row = self.row.unsqueeze(-1)
        if transpose:
            x = self.Q @ torch.linalg.solve_triangular(self.R.mT, right, upper=False)
        else:
            x = torch.linalg.solve_triangular(self.R, self.Q.mT @ (row * right), upper=True)
        if len(self._rows):
            some = self._pseudo.mT @ right[self._rows] if transpose else self._pseudo @ (row * right)[self._rows]
            x = x.index_copy(0, self._rows, some)
        return row * x if transpose else x

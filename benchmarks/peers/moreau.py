"""Moreau (derived from Clarabel and DAQP) on the CPU, without a layer around it: conic data in, gradients of them out."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from benchmarks.peers import Peer, Unsuitable, package_version
from benchmarks.peers.conic_form import ConicPeer
from benchmarks.problems import Declaration
from ddn_cvx.program.conic import ConicData

TIGHT = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "interior point": {"solver": "ipm"},
    "interior point, 1e-12": {"solver": "ipm", "ipm_settings": TIGHT},
}
"""Its settings that are measured; the default is an active-set method for small quadratic programs."""


class Moreau(ConicPeer):
    """Its solver object with autograd, over rows in Clarabel's order."""

    def __init__(self, declared: Declaration, options: dict[str, Any]):
        super().__init__(declared)
        import moreau
        from moreau.torch import Solver

        program, cones = self.program, self.program.cones
        if any(len(alpha) > 2 for alpha in cones.power):
            raise Unsuitable("power cones of three dimensions only")
        P, A = program.P, program.A
        off = np.flatnonzero(P.rows != P.cols)  # it wants both triangles
        self._P, P_offsets, P_columns = _by_rows(
            np.append(P.rows, P.cols[off]), np.append(P.cols, P.rows[off]), np.append(np.arange(P.nnz), off), P.shape
        )
        self._A, A_offsets, A_columns = _by_rows(A.rows, A.cols, np.arange(A.nnz), A.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that gradients of its active-set method are exact, not smoothed
            self._solver: Any = Solver(
                n=program.n,
                m=program.m,
                P_row_offsets=P_offsets,
                P_col_indices=P_columns,
                A_row_offsets=A_offsets,
                A_col_indices=A_columns,
                cones=moreau.Cones(
                    num_zero_cones=cones.zero,
                    num_nonneg_cones=cones.nonneg,
                    so_cone_dims=list(cones.soc),
                    psd_dims=list(cones.psd),
                    num_exp_cones=cones.exp,
                    power_alphas=[alpha[0] for alpha in cones.power],
                ),
                settings=moreau.Settings(device="cpu", enable_grad=True, **options),
            )

    def prepare(self, data: ConicData) -> list[Tensor]:
        return [data.P[:, self._P], data.A[:, self._A], data.q, data.b]

    def forward(self, *arrays: Any) -> Any:
        self._leaves = [torch.as_tensor(array).requires_grad_() for array in arrays]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._x = self._solver.solve(*self._leaves).x
        return self._x.detach()

    def backward(self, cotangent: Any) -> list[Any]:
        return list(
            torch.autograd.grad(self._x, self._leaves, torch.as_tensor(cotangent), allow_unused=True, materialize_grads=True)
        )


def _by_rows(rows: Any, columns: Any, entries: Any, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The order of the values that compressed rows want, and their offsets and columns."""
    # One more than the entry's number, so that no stored value is zero.
    numbered = sp.csr_array((np.asarray(entries) + 1, (rows, columns)), shape=shape)
    numbered.sort_indices()
    order, offsets, places = (
        torch.as_tensor(a.astype(np.int64)) for a in (numbered.data - 1, numbered.indptr, numbered.indices)
    )
    return order, offsets, places


def peers() -> list[Peer]:
    """One column for each entry of ``SETTINGS``; raises ``ImportError`` without Moreau."""
    import moreau

    version = package_version(moreau.__name__)
    return [
        Peer(f"Moreau ({name})", "moreau", version, f"CPU, {options}", partial(Moreau, options=options))
        for name, options in SETTINGS.items()
    ]

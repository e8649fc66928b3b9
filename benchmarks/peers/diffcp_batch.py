"""diffcp (Agrawal et al., 2019) without a layer around it: a batch of cone programs and its derivative.

Its derivatives know no quadratic objective, so that one is given as a second-order cone.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from benchmarks.peers import Peer, package_version
from benchmarks.peers.conic_form import ConicPeer
from benchmarks.problems import Declaration
from ddn_cvx.program.conic import ConicData
from ddn_cvx.program.epigraph import Epigraph
from ddn_cvx.program.row_order import RowOrder, scs_cones, scs_rows

SETTINGS: dict[str, dict[str, Any]] = {
    "SCS": {"mode": "lsqr"},
    "Clarabel, dense": {"solve_method": "Clarabel", "mode": "dense"},
}


class Diffcp(ConicPeer):
    """``solve_and_derivative_batch`` with the given options."""

    def __init__(self, declared: Declaration, options: dict[str, Any]):
        super().__init__(declared)
        self.options = options
        self.epigraph = Epigraph(self.program) if self.program.P.nnz else None
        self.linear = self.epigraph.program if self.epigraph else self.program
        self.order = RowOrder.of(self.linear.A, scs_rows(self.linear.cones))
        self.cones = scs_cones(self.linear.cones)

    def prepare(self, data: ConicData) -> list[Tensor]:
        data = self.epigraph.lift(data) if self.epigraph else data
        return [data.q, data.A[:, torch.as_tensor(self.order.entries)], data.b[:, torch.as_tensor(self.order.rows)]]

    def forward(self, *arrays: Any) -> Any:
        import diffcp

        q, A, b = arrays
        pattern = self.order.pattern
        matrices = [sp.csc_matrix((values.copy(), pattern.rows, pattern.indptr), shape=pattern.shape) for values in A]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x, y, s, _, self._adjoint = diffcp.solve_and_derivative_batch(
                matrices, list(b), list(q), [self.cones] * len(q), **self.options
            )
        self._zeros = [[np.zeros_like(v) for v in values] for values in (y, s)]
        return np.array(x)

    def backward(self, cotangent: Any) -> list[Any]:
        extra = self.linear.n - cotangent.shape[1]
        dA, db, dq = self._adjoint(list(np.pad(cotangent, ((0, 0), (0, extra)))), *self._zeros)
        for matrix in dA:
            matrix.sort_indices()
        return [np.array(dq), np.array([matrix.data for matrix in dA]), np.array(db)]


def peers() -> list[Peer]:
    """One column for each entry of ``SETTINGS``; raises ``ImportError`` without diffcp."""
    version = package_version("diffcp")
    return [
        Peer(f"diffcp ({name})", "diffcp", version, str(options), partial(Diffcp, options=options))
        for name, options in SETTINGS.items()
    ]

"""qpth (Amos & Kolter, 2017): a batched primal-dual interior-point method in torch for strictly convex QPs."""

from __future__ import annotations

import warnings

from torch import Tensor

from benchmarks.peers import Layer, Peer, package_version, quadratic, require_quadratic
from benchmarks.problems import Declaration


def peers() -> list[Peer]:
    """One column; raises ``ImportError`` without qpth."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from qpth.qp import QPFunction

    def build(declared: Declaration) -> Layer:
        require_quadratic(declared)

        def call(*parameters: Tensor) -> Tensor:
            P, q, A, b, G, h = quadratic(declared, *parameters)
            nothing = q.new_empty(0)
            A, b = (A, b) if b.shape[1] else (nothing, nothing)
            found: Tensor = QPFunction(verbose=-1)(P, q, G, h, A, b)
            return found

        return call

    return [Peer("qpth", "qpth", package_version("qpth"), "default", build, cuda=True)]

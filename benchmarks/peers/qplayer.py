"""QPLayer of ProxSuite (Bambade et al., 2024): an augmented Lagrangian method, one instance after another."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import Layer, Peer, package_version, quadratic, require_quadratic
from benchmarks.problems import Declaration

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "accurate": {"eps": 1e-10, "eps_backward": 1e-10, "rho_backward": 1e-10, "mu_backward": 1e-10, "omp_parallel": True},
}
NO_LOWER_SIDE = -1e20


def peers() -> list[Peer]:
    """One column for each entry of ``SETTINGS``; raises ``ImportError`` without ProxSuite."""
    from proxsuite.torch.qplayer import QPFunction

    def build(declared: Declaration, options: dict[str, Any]) -> Layer:
        require_quadratic(declared)

        def call(*parameters: Tensor) -> Tensor:
            P, q, A, b, G, h = quadratic(declared, *parameters)
            default = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)  # its gradients have the default dtype
            try:
                found: Tensor = QPFunction(**options)(P, q, A, b, G, torch.full_like(h, NO_LOWER_SIDE), h)[0]
            finally:
                torch.set_default_dtype(default)
            return found

        return call

    return [
        Peer(f"QPLayer ({name})", "proxsuite", package_version("proxsuite"), str(options), partial(build, options=options))
        for name, options in SETTINGS.items()
    ]

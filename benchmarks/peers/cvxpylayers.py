"""cvxpylayers (Agrawal et al., 2019) on the CPU: its default (SCS by diffcp) and the settings its users reach for."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from benchmarks.peers import Layer, Peer
from benchmarks.problems import Declaration

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "SCS eps 1e-8": {"eps": 1e-8},
    "Clarabel": {"solve_method": "Clarabel"},
    "Clarabel, dense": {"solve_method": "Clarabel", "mode": "dense"},
    "n_jobs 1": {"n_jobs_forward": 1, "n_jobs_backward": 1},
}
"""``solver_args`` of each column."""


def peers() -> list[Peer]:
    """One column for each entry of ``SETTINGS``; raises ``ImportError`` without cvxpylayers."""
    from cvxpylayers._version import __version__
    from cvxpylayers.torch.cvxpylayer import CvxpyLayer

    def build(declared: Declaration, options: dict[str, Any]) -> Layer:
        layer = CvxpyLayer(declared.problem, declared.parameters, [declared.variable], solver_args=options)

        def call(*parameters: Tensor) -> Tensor:
            output: Tensor = layer(*parameters)[0]
            return output

        return call

    return [
        Peer(f"cvxpylayers ({name})", "cvxpylayers", __version__, f"solver_args={options}", partial(build, options=options))
        for name, options in SETTINGS.items()
    ]

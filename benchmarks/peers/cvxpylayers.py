"""cvxpylayers (Agrawal et al., 2019) on the CPU: its default (SCS by diffcp) and the settings its users reach for."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from benchmarks.peers import Layer, Peer
from benchmarks.problems import Declaration

TIGHT = {"tol_feas": 1e-12, "tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12}
MOREAU_TIGHT = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
SETTINGS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "default": (None, {}),
    "SCS eps 1e-8": (None, {"eps": 1e-8}),
    "Clarabel": (None, {"solve_method": "Clarabel"}),
    "Clarabel, dense": (None, {"solve_method": "Clarabel", "mode": "dense"}),
    "Clarabel 1e-12, dense": (None, {"solve_method": "Clarabel", "mode": "dense", **TIGHT}),
    "ECOS": (None, {"solve_method": "ECOS"}),
    "Moreau": ("MOREAU", {}),
    "Moreau, interior point, 1e-12": ("MOREAU", {"solver": "ipm", "ipm_settings": MOREAU_TIGHT}),
}
"""``solver`` and ``solver_args`` of each column; those of Moreau are left out where it is not installed."""


def peers() -> list[Peer]:
    """One column for each entry of ``SETTINGS``; raises ``ImportError`` without cvxpylayers."""
    from cvxpylayers._version import __version__
    from cvxpylayers.torch.cvxpylayer import CvxpyLayer

    def build(declared: Declaration, solver: str | None, options: dict[str, Any]) -> Layer:
        # Options of diffcp are those of a call, options of Moreau those of its solver object.
        layer = CvxpyLayer(declared.problem, declared.parameters, [declared.variable], solver=solver, solver_args=options)

        def call(*parameters: Tensor) -> Tensor:
            output: Tensor = layer(*parameters)[0]
            return output

        return call

    return [
        Peer(
            f"cvxpylayers ({name})",
            "cvxpylayers",
            __version__,
            f"solver={solver}, solver_args={options}",
            partial(build, solver=solver, options=options),
            "cvxpylayers",
        )
        for name, (solver, options) in SETTINGS.items()
        if solver is None or find_spec("moreau") is not None
    ]

"""dQP (Magoon et al., 2025), from its repository: set ``PYTHONPATH`` to the folder that holds its package ``src``.

A forward solver from qpsolvers, and a linear solve on the active set backwards.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO

from torch import Tensor

from benchmarks.peers import Layer, Peer, package_version, quadratic, require_quadratic
from benchmarks.problems import Declaration

SOLVERS = ("daqp", "piqp", "proxqp", "clarabel")
"""In order of preference: the first that qpsolvers finds is used."""


def peers() -> list[Peer]:
    """One column; raises ``ImportError`` without dQP or without one of ``SOLVERS``."""
    import qpsolvers

    try:
        with redirect_stdout(StringIO()):
            dqp = import_module("src.dQP")
    except ImportError as error:
        raise ImportError(f"its repository is not on PYTHONPATH ({error})") from error
    solver = next((name for name in SOLVERS if name in qpsolvers.available_solvers), None)
    if solver is None:
        raise ImportError(f"qpsolvers finds none of {SOLVERS}")

    def build(declared: Declaration) -> Layer:
        require_quadratic(declared)
        layer = dqp.dQP_layer(
            settings=dqp.build_settings(solve_type="dense", qp_solver=solver, eps_abs=1e-9, eps_active=1e-7)
        )

        def call(*parameters: Tensor) -> Tensor:
            P, q, A, b, G, h = quadratic(declared, *parameters)
            data = [P, q.unsqueeze(-1), G, h.unsqueeze(-1), *([A, b.unsqueeze(-1)] if b.shape[1] else [])]
            found: Tensor = layer(*(data if len(q) > 1 else [t.squeeze(0) for t in data]))[0]
            return found.reshape(q.shape)

        return call

    settings = f"dense, {solver}, eps_abs 1e-9, eps_active 1e-7"
    return [Peer("dQP", "qpsolvers", package_version("qpsolvers"), settings, build)]

"""ddn_cvx with its default settings."""

from __future__ import annotations

from benchmarks.peers import Layer, Peer
from benchmarks.problems import Declaration


def peers() -> list[Peer]:
    """One column."""
    from ddn_cvx import DeclarativeLayer, __version__

    def build(declared: Declaration) -> Layer:
        return DeclarativeLayer(declared.problem, declared.parameters, declared.variable)

    return [Peer("ddn_cvx", "ddn_cvx", __version__, "default", build, "ours", compiles=True, cuda=True)]

"""Whom we measure: one module a package, each with ``peers()``; a module whose package is missing raises ``ImportError``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, TypeAlias

from torch import Tensor

from benchmarks.problems import Declaration

Layer: TypeAlias = Callable[..., Tensor]
"""Parameters ``(batch, *shape)`` in, the declared variable ``(batch, *shape)`` out."""

MODULES = ("ours", "cvxpylayers")
"""The first peer of the first module is what the ratios of all others refer to."""


@dataclass(frozen=True)
class Peer:
    """One column: a package with one choice of settings."""

    name: str
    package: str
    version: str
    settings: str
    build: Callable[[Declaration], Layer]


class _Module(Protocol):
    def peers(self) -> list[Peer]: ...


def installed() -> tuple[list[Peer], list[str]]:
    """The peers that can run here, and a line for each module that cannot."""
    found: list[Peer] = []
    skipped: list[str] = []
    for name in MODULES:
        module: _Module = import_module(f"benchmarks.peers.{name}")
        try:
            found += module.peers()
        except ImportError as error:
            skipped.append(f"skipped {name}: {error}")
    return found, skipped

"""Whom we measure: one module a package, each with ``peers()``; a module whose package is missing raises ``ImportError``.

A peer is built for a declaration. What it builds is either an ordinary layer of torch tensors, all of whose work is timed;
or a ``Measured``, which takes problem data of its own form and times itself: what maps the parameters to that form and the
gradients back is then not counted, to the peer's advantage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Literal, Protocol, TypeAlias

from torch import Tensor

from benchmarks.problems import Declaration

Layer: TypeAlias = Callable[..., Tensor]
"""Parameters ``(batch, *shape)`` in, the declared variable ``(batch, *shape)`` out."""


@dataclass(frozen=True)
class Sample:
    """Seconds of one call: of the clock for each pass, and of all processors for both."""

    forward: float
    backward: float
    cpu: float


class Measured(ABC):
    """A peer that times itself."""

    @abstractmethod
    def measure(self, parameters: Sequence[Tensor], cotangent: Tensor) -> tuple[Sample, Tensor, tuple[Tensor, ...]]:
        """Seconds, and the variable and the gradients, ``(batch, *shape)``, for parameters that require them."""


class Unsuitable(Exception):
    """The peer is not made for problems of this kind; the message says for which it is."""


MODULES = ("ours", "cvxpylayers", "clarabel_loop", "diffcp_batch", "moreau", "qpth", "qplayer", "dqp", "jax_qp")
"""The first peer of the first module is what the ratios of all others refer to."""


@dataclass(frozen=True)
class Peer:
    """One column: a package with one choice of settings."""

    name: str
    package: str
    version: str
    settings: str
    build: Callable[[Declaration], Layer | Measured]
    family: Literal["ours", "cvxpylayers", "other"] = "other"
    compiles: bool = False
    """Whether a first call may take long because it compiles."""
    cuda: bool = False
    """Whether it takes tensors on a GPU; the others get theirs on the CPU, whatever the device of the run."""


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


def quadratic(declared: Declaration, *parameters: Tensor) -> tuple[Tensor, ...]:
    """``(P, q, A, b, G, h)`` of a declaration that has them.

    Raises
    ------
    Unsuitable
        It is no quadratic program.
    """
    require_quadratic(declared)
    assert declared.quadratic is not None
    return declared.quadratic(*parameters)


def require_quadratic(declared: Declaration) -> None:
    """Raises ``Unsuitable`` unless the declaration is a quadratic program."""
    if declared.quadratic is None:
        raise Unsuitable("quadratic programs only")


def package_version(package: str) -> str:
    """Of an installed distribution."""
    return version(package)

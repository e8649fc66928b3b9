"""What the catalogue says of a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]
Kind = Literal["conic", "nonlinear", "fixed point", "ode"]


@dataclass(frozen=True)
class Entry:
    """One node: how to build a small one, what to feed it, and what must come out.

    Tests, benchmarks and the gallery's pages go through the catalogue and need nothing else.

    Examples
    --------
    >>> from ddn_cvx.nodes import CATALOGUE
    >>> entry = CATALOGUE["l2-ball"]
    >>> inputs = entry.sample(4, torch.Generator().manual_seed(0))
    >>> torch.testing.assert_close(entry.build()(*inputs), entry.reference(*inputs))
    >>> entry.title, entry.kind
    ('projection onto the L2 ball', 'conic')
    """

    name: str
    """Lower case with hyphens; ``python -m ddn_cvx gallery NAME`` runs its example."""
    title: str
    """One line for the list."""
    kind: Kind
    """The part of the package that solves it."""
    source: str
    """The paper it comes from."""
    build: Callable[[], nn.Module]
    """A small node, in float64 where it has weights. Its inputs are what ``sample`` gives."""
    sample: Callable[[int, torch.Generator], Inputs]
    """``(B, generator)`` -> float64 inputs ``(B, *shape)`` each, at points where the node is differentiable."""
    reference: Callable[..., Tensor | Inputs] | None = None
    """The same inputs -> the outputs, by other means: a closed form, scipy, an exhaustive search."""
    example: str = ""
    """The script in ``examples/``, without ``.py``."""
    tolerance: float = 1e-7
    """How closely the outputs agree with the reference."""
    second_order: bool = True
    """Whether second derivatives exist and are checked."""
    tags: frozenset[str] = frozenset()
    """Words to choose entries by; ``any size`` if the inputs may have any."""

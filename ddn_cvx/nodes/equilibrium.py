"""A deep equilibrium model: a network of infinitely many equal layers.

    y = tanh(W y + U x + c)

Bai, Kolter & Koltun, "Deep equilibrium models" (NeurIPS 2019). The fixed point exists and is unique because no row of W
has an L1 norm above a bound below one, which makes the map a contraction in the maximum norm (El Ghaoui, Gu, Travacca,
Askari & Tsai, "Implicit deep learning", 2021, section 2.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddn_cvx import Anderson, DeclarationError, DeclarativeLayer, FixedPoint
from ddn_cvx.nodes.entry import Entry


class EquilibriumCell(nn.Module):
    """``y (B, features), x (B, inputs) -> (B, features)``: one step of the iteration.

    Parameters
    ----------
    inputs, features : int
        Size of x and of y.
    bound : float
        Largest L1 norm of a row of W, between 0 and 1.
    dtype : torch.dtype
        Of the weights.

    Examples
    --------
    >>> cell = EquilibriumCell(2, 3, bound=0.9, dtype=torch.float64)
    >>> cell(torch.zeros(5, 3).double(), torch.ones(5, 2).double()).shape
    torch.Size([5, 3])
    """

    def __init__(self, inputs: int, features: int, bound: float, dtype: torch.dtype):
        super().__init__()
        self.bound = bound
        self.recurrent = nn.Parameter(torch.randn(features, features, dtype=dtype) / features)
        self.outer = nn.Linear(inputs, features, dtype=dtype)

    @property
    def weight(self) -> Tensor:
        """W: rows of the free weights that are too long are shortened to the bound."""
        length = self.recurrent.abs().sum(-1, keepdim=True)
        return self.recurrent * (self.bound / length.clamp(min=self.bound))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight.mT + self.outer(x))


class DeepEquilibrium(DeclarativeLayer[Tensor]):
    """``x (*batch, inputs) -> y (*batch, features)``, the equilibrium.

    Parameters
    ----------
    inputs, features : int
        Sizes of x and y.
    bound : float
        Largest L1 norm of a row of W, between 0 and 1. The closer to 1, the more iterations.
    dtype : torch.dtype
        Of the weights and of the iteration: ``torch.float64``, or ``torch.float32`` for large networks.
    solver : Anderson, optional
        Options of the iteration.

    Raises
    ------
    DeclarationError
        A size or the bound is out of range.

    Attributes
    ----------
    cell : EquilibriumCell
        One step of the iteration, with the weights.

    Notes
    -----
    The backward pass solves one linear system at the equilibrium. Its memory does not depend on the number of iterations.

    Examples
    --------
    >>> node = DeepEquilibrium(2, 3)
    >>> x = torch.randn(4, 2)
    >>> y = node(x)
    >>> torch.allclose(node.cell(y.double(), x.double()), y.double(), atol=1e-6)
    True
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        bound: float = 0.95,
        dtype: torch.dtype = torch.float64,
        solver: Anderson | None = None,
    ):
        if min(inputs, features) < 1:
            raise DeclarationError(f"inputs and features must be above 0, got {inputs!r} and {features!r}.")
        if not 0 < bound < 1:
            raise DeclarationError(f"bound must lie between 0 and 1, got {bound!r}.")
        cell = EquilibriumCell(inputs, features, bound, dtype)
        problem = FixedPoint(features, cell, parameters=[(inputs,)], batched=True, dtype=dtype)
        super().__init__(problem, solver=solver)
        self.cell = cell


# ---------------------------------------------------------------- the catalogue's entries


def _small() -> DeepEquilibrium:
    """Some rows of W are at the bound, some below."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        node = DeepEquilibrium(3, 5, bound=0.8)
    with torch.no_grad():
        node.cell.recurrent.mul_(1.2)
    return node


def _sample(batch: int, generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(batch, 3, generator=generator, dtype=torch.float64),)


def _unrolled(x: Tensor) -> Tensor:
    """The iteration itself; 0.8^200 is 4e-20."""
    cell = _small().cell
    y = x.new_zeros(len(x), 5)
    with torch.no_grad():
        for _ in range(200):
            y = cell(y, x)
    return y


ENTRIES = (
    Entry(
        name="deep-equilibrium",
        title="deep equilibrium model whose fixed point exists and is unique",
        kind="fixed point",
        source="Bai, Kolter & Koltun, NeurIPS 2019",
        build=_small,
        sample=_sample,
        reference=_unrolled,
        example="09_deep_equilibrium",
        tolerance=1e-9,
        tags=frozenset({"equilibrium"}),
    ),
)

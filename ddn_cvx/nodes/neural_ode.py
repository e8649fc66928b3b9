"""Neural ordinary differential equations: the state after a time that each element has for its own.

    y(0) given,   dy/dt = f(t, y),   output y(T)

Chen, Rubanova, Bettencourt & Duvenaud, "Neural ordinary differential equations" (NeurIPS 2018). f is a network, or linear:
then y(T) = exp(A T) y(0). The adjoint equation is integrated for the derivative, in memory that does not depend on T.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import ODE, DeclarationError, DeclarativeLayer, Implicit, Unrolled
from ddn_cvx.extend import Integrator
from ddn_cvx.nodes.entry import Entry


class VectorField(nn.Module):
    """``t (B,), y (B, features) -> (B, features)``: a network with one hidden layer, the same at all times.

    Parameters
    ----------
    features, hidden : int
        Size of y and of the hidden layer.
    dtype : torch.dtype
        Of the weights.

    Examples
    --------
    >>> VectorField(3, 8)(torch.zeros(5), torch.ones(5, 3).double()).shape
    torch.Size([5, 3])
    """

    def __init__(self, features: int, hidden: int, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.first = nn.Linear(features, hidden, dtype=dtype)
        self.second = nn.Linear(hidden, features, dtype=dtype)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(y)))


class NeuralODE(DeclarativeLayer[Tensor]):
    """``(y0 (*batch, n), T (*batch)) -> y(T) (*batch, n)``; T may be negative, which goes back in time.

    Needs torchdiffeq (``pip install "ddn_cvx[ode]"``).

    Parameters
    ----------
    features : int
        n.
    field : torch.nn.Module
        ``field(t (B,), y (B, n)) -> (B, n)``, the derivative of the state, smooth. Its weights are those of the node.
    solver : Integrator, optional
        Method and tolerances.
    adjoint : Implicit or Unrolled, optional
        ``Unrolled()`` keeps the steps and differentiates them, for dynamics that cannot be followed back in time.
    dtype : torch.dtype
        In which everything is computed: that of the field.

    Raises
    ------
    DeclarationError
        ``features`` is below 1, or field is no module.
    SolverError
        An element could not be integrated: its state grows beyond all bounds.

    Attributes
    ----------
    field : torch.nn.Module

    Examples
    --------
    >>> node = NeuralODE(2, VectorField(2, 8))
    >>> y0, T = torch.randn(5, 2), torch.rand(5)
    >>> torch.allclose(node(node(y0, T), -T), y0, atol=1e-5)
    True
    """

    def __init__(
        self,
        features: int,
        field: nn.Module,
        solver: Integrator | None = None,
        adjoint: Implicit | Unrolled | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        _check(features)
        if not isinstance(field, nn.Module):
            raise DeclarationError(f"field must be a torch.nn.Module, got {type(field).__name__}.")
        dynamics = _Timed(field)
        node = ODE(features, dynamics, span=_until, parameters={"T": ()}, batched=True, dtype=dtype)
        super().__init__(node, solver=solver, adjoint=adjoint or Implicit())
        self.field = field


class LinearODE(DeclarativeLayer[Tensor]):
    """``(y0 (*batch, n), A (*batch, n, n), T (*batch)) -> exp(A T) y0 (*batch, n)``.

    Needs torchdiffeq (``pip install "ddn_cvx[ode]"``).

    Parameters
    ----------
    features : int
        n.
    solver : Integrator, optional
        Method and tolerances.

    Raises
    ------
    DeclarationError
        ``features`` is below 1.

    Examples
    --------
    >>> A = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # a quarter turn
    >>> LinearODE(2)(torch.tensor([[0.0, 1.0]]), A, torch.tensor(torch.pi / 2)).round(decimals=4)
    tensor([[1., 0.]])
    """

    def __init__(self, features: int, solver: Integrator | None = None):
        _check(features)

        def dynamics(t: Tensor, y: Tensor, A: Tensor, T: Tensor) -> Tensor:
            return (A @ y.unsqueeze(-1)).squeeze(-1)

        shapes = {"A": (features, features), "T": ()}
        super().__init__(ODE(features, dynamics, span=_until, parameters=shapes, batched=True), solver=solver)


class _Timed(nn.Module):
    """A field as the dynamics of a problem that has the time T among its inputs."""

    def __init__(self, field: nn.Module):
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, y: Tensor, T: Tensor) -> Tensor:
        found: Tensor = self.field(t, y)
        return found


def _until(T: Tensor) -> Tensor:
    return torch.stack((torch.zeros_like(T), T), -1)


def _check(features: int) -> None:
    if features < 1:
        raise DeclarationError(f"features must be at least 1, got {features!r}.")


# ---------------------------------------------------------------- the catalogue's entries


def _small() -> NeuralODE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NeuralODE(2, VectorField(2, 4))


def _sample(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some times are negative."""
    y0 = torch.randn(batch, 2, generator=generator, dtype=torch.float64)
    return y0, 2 * torch.rand(batch, generator=generator, dtype=torch.float64) - 0.5


def _linear_sample(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    y0, T = _sample(batch, generator)
    return y0, torch.randn(batch, 2, 2, generator=generator, dtype=torch.float64), T


def _scipy(y0: Tensor, T: Tensor) -> Tensor:
    """Another method, of order 8."""
    from scipy.integrate import solve_ivp

    field = _small().field

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = field(torch.zeros(1), torch.from_numpy(y).unsqueeze(0))[0].numpy()
        return found

    ends = []
    for start, end in zip(y0.numpy(), T.tolist(), strict=True):
        ends.append(solve_ivp(slope, (0.0, end), start, "DOP853", rtol=1e-12, atol=1e-12).y[:, -1])
    return torch.from_numpy(np.stack(ends))


def _exponential(y0: Tensor, A: Tensor, T: Tensor) -> Tensor:
    return (torch.matrix_exp(A * T.view(-1, 1, 1)) @ y0.unsqueeze(-1)).squeeze(-1)


def _entry(
    name: str,
    title: str,
    build: Callable[[], DeclarativeLayer],
    sample: Callable[[int, torch.Generator], tuple[Tensor, ...]],
    reference: Callable[..., Tensor],
) -> Entry:
    return Entry(
        name=name,
        title=title,
        kind="ode",
        source="Chen, Rubanova, Bettencourt & Duvenaud, NeurIPS 2018",
        build=build,
        sample=sample,
        reference=reference,
        example="10_neural_ode",
        tags=frozenset({"ode"}),
    )


ENTRIES = (
    _entry("neural-ode", "state of a neural ordinary differential equation at any time", _small, _sample, _scipy),
    _entry("linear-ode", "state of a linear differential equation", lambda: LinearODE(2), _linear_sample, _exponential),
)

"""Ordinary differential equations, by the adaptive Runge–Kutta methods of the package torchdiffeq."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ddn_cvx.checks import require_positive_options
from ddn_cvx.errors import InputError
from ddn_cvx.solution import Status
from ddn_cvx.solvers.by_name import own
from ddn_cvx.solvers.deadline import expired
from ddn_cvx.solvers.ode_base import Broken, Field, Integrator

METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
"""Those that choose their steps; with a fixed step nothing would say how wrong an answer is."""
_FAR = 1e12  # how much larger than at first a state may get before it counts as infinite


@dataclass(frozen=True)
class Torchdiffeq(Integrator):
    """How an ``ODE`` is integrated, by the adaptive Runge–Kutta methods of the package torchdiffeq (Chen, Rubanova,
    Bettencourt & Duvenaud 2018). The steps are common to the batch, and small enough for each element.

    Raises
    ------
    InputError
        An unknown method, or an option that is not positive.

    Examples
    --------
    >>> import torch, ddn_cvx as ddn
    >>> decay = ddn.ODE((), lambda t, y, rate: -rate * y, span=(0.0, 1.0))
    >>> layer = ddn.DeclarativeLayer(decay, solver=ddn.Torchdiffeq("dopri8"))
    >>> layer(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.5]))
    tensor([1.0000, 1.2131])
    """

    method: str = "dopri5"
    """"dopri5", "dopri8", "bosh3", "fehlberg2" or "adaptive_heun" (default "dopri5")."""
    rtol: float = 1e-9
    """Relative error allowed in a step (default 1e-9)."""
    atol: float = 1e-9
    """Absolute error allowed in a step, in the units of the state (default 1e-9)."""
    max_steps: int = 20000
    """Steps after which an element gives up (default 20000)."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}.")
        require_positive_options(self, "rtol", "atol", "max_steps")

    def error(self, dtype: torch.dtype) -> float:
        return sum(self._allowed(dtype))

    def _allowed(self, dtype: torch.dtype) -> tuple[float, float]:
        """Relative and absolute error of a step, none of them below rounding."""
        eps = 10 * torch.finfo(dtype).eps
        return max(self.rtol, eps), max(self.atol, eps)

    def integrate(self, field: Field, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        odeint, (rtol, atol) = _torchdiffeq().odeint, self._allowed(state[0].dtype)
        shape = state[0].shape
        far = _FAR * (1 + state[0].abs().amax(-1, keepdim=True))

        def checked(s: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if expired():
                raise Broken(Status.TIME_LIMIT, torch.ones_like(far.squeeze(-1), dtype=torch.bool))
            slopes = field(s, state)
            bad = ~slopes[0].isfinite().all(-1) | ~(state[0].abs() <= far).all(-1)
            if bool(bad.any()):
                raise Broken(Status.NUMERICAL_ERROR, bad)
            return slopes

        def worst(state: tuple[Tensor, ...]) -> Tensor:
            """The root mean square of the element for which it is largest."""
            return state[0].reshape(shape).square().mean(-1).sqrt().amax()

        ends = torch.tensor([0.0, 1.0], dtype=state[0].dtype, device=state[0].device)
        # A step ends at the last time: what the package would interpolate there is less exact than its steps.
        options = {"norm": worst, "max_num_steps": self.max_steps, "step_t": ends}
        try:
            found = odeint(checked, state, ends, rtol=rtol, atol=atol, method=self.method, options=options)
        except AssertionError as error:  # steps that vanish, or are too many
            many = "max_num_steps" in str(error)
            raise Broken(Status.ITERATION_LIMIT if many else Status.NUMERICAL_ERROR) from None
        return tuple(t[-1] for t in found)


def resolve_integrator(solver: object, options: Mapping[str, Any] | None = None) -> Integrator:
    """The integrator for the name of a method, an ``Integrator`` object, or None.

    Raises
    ------
    InputError
        An unknown method or option, or torchdiffeq is not installed.
    """
    options = {} if options is None else options
    given = own(solver, {} if isinstance(solver, Torchdiffeq) else options, Integrator)  # type: ignore[type-abstract]
    if given is not None and not isinstance(given, Torchdiffeq):
        return given
    _torchdiffeq()
    unknown = [option for option in options if option not in {field.name for field in fields(Torchdiffeq)}]
    if unknown:
        raise InputError(f"an ODE has no option '{unknown[0]}'. It has: method, rtol, atol, max_steps")
    if isinstance(solver, Torchdiffeq):
        return replace(solver, **options)
    if solver is None:
        return Torchdiffeq(**options)
    if not isinstance(solver, str):
        raise InputError(f"solver of an ODE must be one of {', '.join(METHODS)}, or an Integrator object, got {solver!r}.")
    return Torchdiffeq(solver, **options)


def _torchdiffeq() -> Any:
    try:
        import torchdiffeq
    except ImportError:
        raise InputError('An ODE needs the package torchdiffeq: pip install "ddn_cvx[ode]" (or torchdiffeq).') from None
    return torchdiffeq

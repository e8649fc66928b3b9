"""Ordinary differential equations, by the adaptive Runge–Kutta methods of the package torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.errors import InputError
from ddn_cvx.solution import Status
from ddn_cvx.solvers.deadline import expired
from ddn_cvx.solvers.descent import check_positive

METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
"""Those that choose their steps; with a fixed step nothing would say how wrong an answer is."""
_FAR = 1e12  # how much larger than at first a state may get before it counts as infinite
Field = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""``(s, state) -> d state / ds``."""


class Integrated(NamedTuple):
    """How each element of a batch ended, and the states ``(len(rows), n)`` of those that did well."""

    y: Tensor
    rows: Tensor
    status: Tensor
    """``(B,)``."""


class Broken(Exception):
    """An initial value problem could not be integrated; ``bad`` says for which rows, if that is known."""

    def __init__(self, status: Status, bad: Tensor | None = None):
        super().__init__()
        self.status, self.bad = status, bad


@dataclass(frozen=True)
class Torchdiffeq:
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
        check_positive("Torchdiffeq", {"rtol": self.rtol, "atol": self.atol, "max_steps": self.max_steps})

    def integrate(self, field: Field, state: tuple[Tensor, ...], backwards: bool = False) -> tuple[Tensor, ...]:
        """The state at s = 1 from that at s = 0, or the other way round.

        The error of the first tensor ``(B, k)`` is controlled; further ones may have any shape.

        Raises
        ------
        Broken
        """
        odeint = _torchdiffeq().odeint
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

        ends = torch.tensor([1.0, 0.0] if backwards else [0.0, 1.0], dtype=state[0].dtype, device=state[0].device)
        # A step ends at the last time: what the package would interpolate there is less exact than its steps.
        options = {"norm": worst, "max_num_steps": self.max_steps, "step_t": ends}
        try:
            found = odeint(checked, state, ends, rtol=self.rtol, atol=self.atol, method=self.method, options=options)
        except AssertionError as error:  # steps that vanish, or are too many
            many = "max_num_steps" in str(error)
            raise Broken(Status.ITERATION_LIMIT if many else Status.NUMERICAL_ERROR) from None
        return tuple(t[-1] for t in found)

    def integrate_each(self, field: Callable[[Tensor, Tensor, Tensor], Tensor], y: Tensor) -> Integrated:
        """The same for one tensor ``y (B, n)``; elements that fail are left out, and the others integrated without them.

        Parameters
        ----------
        field : callable
            ``(s, y[rows], rows) -> dy/ds`` for some rows of the batch.
        """
        status = torch.full((len(y),), int(Status.SOLVED), device=y.device)
        waiting, finished = [torch.arange(len(y), device=y.device)], []
        while waiting:
            rows = waiting.pop()
            try:
                (end,) = self.integrate(partial(_of_rows, field, rows), (y[rows],))
            except Broken as error:
                bad = error.bad
                if bad is not None:
                    status = status.index_fill(0, rows[bad], int(error.status))
                    waiting += [rows[~bad]] if not bool(bad.all()) else []
                elif len(rows) > 1:  # which element is to blame only a smaller batch can tell
                    waiting += list(rows.tensor_split(2))
                else:
                    status = status.index_fill(0, rows, int(error.status))
            else:
                finished.append((end, rows))
        ends = torch.cat([y[:0], *(end for end, _ in finished)])
        return Integrated(ends, torch.cat([torch.arange(0, device=y.device), *(rows for _, rows in finished)]), status)


def _of_rows(
    field: Callable[[Tensor, Tensor, Tensor], Tensor], rows: Tensor, s: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return (field(s, state[0], rows),)


def resolve_integrator(solver: object, options: Mapping[str, Any] | None = None) -> Torchdiffeq:
    """The integrator for the name of a method, a ``Torchdiffeq`` object, or None.

    Raises
    ------
    InputError
        An unknown method or option, or torchdiffeq is not installed.
    """
    _torchdiffeq()
    options = {} if options is None else options
    unknown = [option for option in options if option not in {field.name for field in fields(Torchdiffeq)}]
    if unknown:
        raise InputError(f"an ODE has no option '{unknown[0]}'. It has: method, rtol, atol, max_steps")
    if isinstance(solver, Torchdiffeq):
        return replace(solver, **options)
    if solver is None:
        return Torchdiffeq(**options)
    if not isinstance(solver, str):
        raise InputError(f"solver of an ODE must be one of {', '.join(METHODS)}, or a Torchdiffeq object, got {solver!r}.")
    return Torchdiffeq(solver, **options)


def _torchdiffeq() -> Any:
    try:
        import torchdiffeq
    except ImportError:
        raise InputError('An ODE needs the package torchdiffeq: pip install "ddn_cvx[ode]" (or torchdiffeq).') from None
    return torchdiffeq

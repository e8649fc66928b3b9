"""One call of a layer over an initial value problem: from each time to the next, with a status for each element."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddn_cvx.adjoint.base import Adjoint
from ddn_cvx.adjoint.implicit import Implicit
from ddn_cvx.adjoint.ode import Rates, drift, stretch
from ddn_cvx.adjoint.unrolled import Unrolled
from ddn_cvx.call_parts import finite_elements, gather_beside, outside_inference, require_followed, without_numbers
from ddn_cvx.declare.ode import ODE
from ddn_cvx.errors import DeclarationError, DifferentiationError
from ddn_cvx.failure import raise_failures
from ddn_cvx.inputs import Batch
from ddn_cvx.program.base import ParameterSpec
from ddn_cvx.program.nonlinear import Theta
from ddn_cvx.solution import Solution, Status
from ddn_cvx.solvers.deadline import limited
from ddn_cvx.solvers.ode_base import Broken, Integrator


class OdeCall:
    """``y(0) -> y(1)`` between two times (``adjoint.ode.Flow``); the first two tensors of θ are the times."""

    def __init__(self, node: ODE, solver: Integrator, layout: Any, time_limit: float | None = None):
        self.node, self.solver, self.layout, self.time_limit = node, solver, layout, time_limit
        self.drift = drift(solver.error(node.functions.dtype))
        self.status: Tensor | None = None
        self.evaluations = 0

    def slope(self, s: Tensor, y: Tensor, theta: Theta) -> Tensor:
        """``dy/ds``, s being the part of the time that is over."""
        self.evaluations += 1
        first, last = theta.tensors[:2]
        length = last - first
        inner = Theta(theta.tensors[2:], theta.batched[2:])
        return length.unsqueeze(-1) * self.node.slope(first + s * length, y, inner, self.layout)

    def forth(self, y: Tensor, ok: Tensor, theta: Theta) -> tuple[Tensor, Tensor]:
        """See ``adjoint.ode.Flow``."""
        if self.status is None or len(self.status) != len(ok):
            self._probe(Theta(theta.tensors[2:], theta.batched[2:]))
            self.status = torch.where(ok, int(Status.SOLVED), int(Status.INVALID_DATA))
        todo = torch.nonzero(ok).flatten()
        some = theta.take(todo)
        with torch.no_grad(), limited(self.time_limit):
            found = self.solver.integrate_each(lambda s, y, rows: self.slope(s, y, some.take(rows)), y[todo])
        self.status = self.status.index_copy(0, todo, found.status)
        end = torch.zeros_like(y).index_copy(0, todo[found.rows], found.y)
        return end, ok & (self.status == int(Status.SOLVED))

    def integrate(self, rates: Rates, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See ``adjoint.ode.Flow``."""
        try:
            with torch.no_grad():
                return self.solver.integrate(rates, state)
        except Broken:
            raise DifferentiationError(
                "The equations of the derivative could not be integrated: the dynamics forget where they started, or they "
                "blow up. Use adjoint=Unrolled(), or more times= in between."
            ) from None

    def unrolled(self, y: Tensor, ok: Tensor, theta: Theta) -> tuple[Tensor, Tensor]:
        """The same as ``adjoint.ode.stretch``, by the steps of the integrator as they are."""
        if torch._C._functorch.get_interpreter_stack():
            raise DifferentiationError(
                "Unrolled() of an ODE works with torch.autograd alone, not inside torch.func transforms; "
                "use adjoint=Implicit()."
            )
        _, good = stretch(self, y.detach(), ok, theta.detach())
        rows = torch.nonzero(good).flatten()
        some = theta.take(rows)
        if not len(rows):  # the answer depends on everything, with derivatives of zero
            return torch.zeros_like(y) + sum(t.flatten()[:0].sum() for t in (y, *theta.tensors)), good
        (end,) = self.solver.integrate(lambda s, state: (self.slope(s, state[0], some),), (y[rows],))
        return torch.zeros_like(y).index_copy(0, rows, end), good

    def _probe(self, theta: Theta) -> None:
        """Look at the functions once, and at what they depend on."""
        functions, node, layout = self.node.functions, self.node, self.layout

        def slope(y: Tensor, theta: Theta) -> Tensor:
            return node.slope(y.new_zeros(len(y)), y, theta, layout) + 0.0 * y  # a field may be constant

        functions.probe("dynamics", slope, theta, layout)
        device = theta.tensors[0].device if theta.tensors else None
        few = theta.detach().take(torch.zeros(1, dtype=torch.int64, device=device))
        with torch.enable_grad():
            y, knots = node.start(few, layout, 1), node.knots(few, layout, 1)
            F = node.slope(knots[:, 0].detach(), y.detach(), few, layout)
        require_followed((F, y, knots))


@dataclass(frozen=True)
class OdeRun:
    """How a layer over an ``ODE`` computes: all that does not change between calls."""

    node: ODE
    solver: Integrator
    adjoint: Adjoint
    on_failure: str
    time_limit: float | None = None

    def outputs(self, args: Sequence[Any], named: Mapping[str, Any]) -> Tensor | dict[str, Tensor]:
        """The state ``(*batch, *shape)``, or with ``times`` ``(*batch, K, *shape)``: a tensor, or a dict."""
        y, _, batch = self._run(args, named)
        found = {name: batch.restore(value) for name, value in self.node.functions.unpack(y).items()}
        return next(iter(found.values())) if self.node.bare else found

    def solution(self, args: Sequence[Any], named: Mapping[str, Any]) -> Solution:
        """The same with a status for each element; ``iterations`` are evaluations of the dynamics."""
        y, call, batch = self._run(args, named)
        status = torch.zeros(0, dtype=torch.int64) if call.status is None else call.status
        if len(status) != math.prod(batch.shape):
            raise without_numbers()
        parts = self.node.functions.unpack(y)
        zero = torch.zeros(batch.shape, dtype=batch.dtype, device=batch.device)
        x = batch.restore(y.detach())
        return Solution(
            outputs=tuple(batch.restore(t) for t in parts.values()),
            value=zero,
            status=status.reshape(batch.shape),
            iterations=torch.full_like(status, call.evaluations).reshape(batch.shape),
            primal_residual=zero,
            dual_residual=zero,
            gap=zero,
            regularity=torch.zeros_like(status).reshape(batch.shape),
            x=x,
            s=x[..., :0],
            y=x[..., :0],
            primal={name: batch.restore(t.detach()) for name, t in parts.items()},
        )

    def _run(self, args: Sequence[Any], named: Mapping[str, Any]) -> tuple[Tensor, OdeCall, Batch]:
        specs, tensors, layout = self.node.arguments.match(args, named)
        return outside_inference(lambda tensors: self._solve(tensors, specs, layout), tensors)

    def _solve(
        self, tensors: Sequence[Tensor], specs: Sequence[ParameterSpec], layout: Any
    ) -> tuple[Tensor, OdeCall, Batch]:
        if not isinstance(self.adjoint, Implicit | Unrolled):
            name = type(self.adjoint).__name__
            raise DeclarationError(f"{name} cannot differentiate an ODE; use adjoint=Implicit() or Unrolled().")
        functions = self.node.functions
        batch = gather_beside(functions.captured.values(), specs, tensors)
        count = math.prod(batch.shape)
        theta = functions.theta(batch.values, batch.device)
        call = OdeCall(self.node, self.solver, layout, self.time_limit)
        if not count:
            times = 1 if self.node.only_last else self.node.count or 1
            shape = (0, functions.n) if self.node.only_last else (0, times, functions.n)
            none = torch.zeros(shape, dtype=functions.dtype, device=batch.device)
            return none + sum(0.0 * t.sum() for t in theta.tensors), call, batch
        y, knots = self.node.start(theta, layout, count), self.node.knots(theta, layout, count)
        ok = torch.cat((y.isfinite(), knots.isfinite()), 1).all(-1) & finite_elements(theta, count, y.device)
        states = [y]
        for first, last in zip(knots.unbind(1)[:-1], knots.unbind(1)[1:], strict=True):
            wider = Theta((first, last, *theta.tensors), (True, True, *theta.batched))
            y, ok = call.unrolled(y, ok, wider) if isinstance(self.adjoint, Unrolled) else stretch(call, y, ok, wider)
            states.append(y)
        if self.on_failure == "raise" and call.status is not None:
            raise_failures(call.status, batch.shape, specs, batch.values)
        found = torch.stack([torch.where(ok.unsqueeze(-1), y, torch.nan) for y in states], 1)
        return (found[:, -1] if self.node.only_last else found), call, batch

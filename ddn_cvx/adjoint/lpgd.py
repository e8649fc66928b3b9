"""Lagrangian proximal gradient descent: a derivative of finite width, from a second solution.

For a cotangent v the problem is solved again with ``tau v . y`` added to its objective. By the envelope theorem

    grad_θ = [ d/dθ L(y_tau, λ_tau, μ_tau; θ) - d/dθ L(y*, λ*, μ*; θ) ] / tau

tends to the exact gradient as tau tends to zero, and for larger tau looks as far as the solution moves: also beyond the
next vertex of a linear program, where the exact gradient is zero (Paulus, Martius & Musil, 2024, "LPGD: a general framework
for backpropagation through embedded optimization layers").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import grad

from ddn_cvx.adjoint.base import Solve
from ddn_cvx.adjoint.kkt_solve import NonlinearAdjoint, NonlinearSolve, Solved
from ddn_cvx.adjoint.transforms import Flags, apply, merge, unflatten
from ddn_cvx.checks import require_positive
from ddn_cvx.errors import DifferentiationError
from ddn_cvx.program.conic import ConicData
from ddn_cvx.program.nonlinear import Theta
from ddn_cvx.program.optimality import Active, State


@dataclass(frozen=True)
class LPGD(NonlinearAdjoint):
    """A derivative of finite width, from a second solution with the loss added to the objective (Paulus, Martius &
    Musil, "LPGD: a general framework for backpropagation through embedded optimization layers", 2024).

    Conic and nonlinear programs, first derivatives of the variables (not the multipliers) in reverse mode.

    Raises
    ------
    InputError
        A tau that is not positive.
    DifferentiationError
        From the backward pass: the second problem has no solution, or a second derivative is asked for.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, c = cp.Variable(2), cp.Parameter(2)
    >>> cheapest = cp.Problem(cp.Minimize(c @ x), [cp.sum(x) == 1, x >= 0])
    >>> costs = torch.tensor([1.0, 1.1], requires_grad=True)
    >>> layer = ddn.DeclarativeLayer(cheapest, [c], x, adjoint=ddn.LPGD(tau=1.0))
    >>> layer(costs)[0].backward()  # with the loss added, x[1] is cheaper: the solution moves to the other vertex
    >>> costs.grad
    tensor([-1.,  1.])
    """

    tau: float = 1e-2
    """Weight of the loss in the second problem (default 0.01)."""
    two_sided: bool = False
    """Solve for ``tau`` and ``-tau`` and take the mean: twice the work, an error of second order (default False)."""

    def __post_init__(self) -> None:
        require_positive("tau", self.tau)

    @property
    def weights(self) -> tuple[float, ...]:
        """Those with which the loss enters."""
        return (self.tau, -self.tau) if self.two_sided else (self.tau,)

    def attach(self, solve: Solve, data: ConicData, extra: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        tensors = (*data, *extra)
        out = apply(
            _Map, _Conic(solve), self, (True,) * len(tensors), torch.empty(len(data.q), device=data.q.device), *tensors
        )
        x, v, ok = out
        return x, _refused(v, x), ok

    def attach_nonlinear(self, solve: NonlinearSolve, theta: Theta, batch: int) -> Solved:
        """``solve(theta)`` with the derivative of finite width."""
        some = theta.tensors[0] if theta.tensors else None
        carrier = torch.empty(batch, device=None if some is None else some.device)
        y, lam, mu, z, g, box, ok = apply(_Map, _Nonlinear(solve), self, theta.batched, carrier, *theta.tensors)
        state = State(y, *(_refused(t, y) for t in (lam, mu, z)))
        return Solved(state, Active(g, box), ok, state)


class _Conic:
    """What ``_Map`` asks of a conic program; its point is ``(x, v)``."""

    def __init__(self, solve: Solve):
        self.solve = solve

    def __call__(self, tensors: tuple[Tensor, ...], flags: Flags, batch: int) -> tuple[Tensor, ...]:
        return self.solve(ConicData(*tensors[:4]), *tensors[4:])

    def again(
        self, tensors: tuple[Tensor, ...], flags: Flags, push: Tensor, point: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        P, q, A, b = tensors[:4]
        return self.solve.again(ConicData(P, q + push, A, b))

    def lagrangian(self, tensors: tuple[Tensor, ...], flags: Flags, point: tuple[Tensor, ...]) -> Tensor:
        """Up to what does not depend on the parameters, ``(B,)``."""
        program, data = self.solve.program, ConicData(*tensors[:4])
        x, v = point
        y = program.cones.project_dual(v)
        return program.objective(x, data) + (y * (program.A_times(data.A, x) - data.b)).sum(-1)


class _Nonlinear:
    """What ``_Map`` asks of a nonlinear program; its point is ``(y, λ, μ, z)``."""

    def __init__(self, solve: NonlinearSolve):
        self.solve = solve

    def __call__(self, tensors: tuple[Tensor, ...], flags: Flags, batch: int) -> tuple[Tensor, ...]:
        solved = self.solve(Theta(tensors, flags), batch)
        return (*solved.answer, *solved.active, solved.ok)

    def again(
        self, tensors: tuple[Tensor, ...], flags: Flags, push: Tensor, point: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        state, ok = self.solve.perturbed(Theta(tensors, flags), push, State(*point[:4]))
        return (*state, *point[4:6], ok)

    def lagrangian(self, tensors: tuple[Tensor, ...], flags: Flags, point: tuple[Tensor, ...]) -> Tensor:
        program, theta = self.solve.program, Theta(tensors, flags)
        y, lam, mu, z = point[:4]
        total = program.lagrangian(y, theta, lam, mu)
        if program.has_bounds:
            lower, upper = program.bounds(theta, y)
            total = total - (z * torch.where(z > 0, upper, torch.where(z < 0, lower, 0.0))).sum(-1)
        return total


class _Map(torch.autograd.Function):
    """``θ -> (point, ok)``; the first entry of the point is what is differentiated."""

    @staticmethod
    def forward(kind: Any, adjoint: LPGD, flags: Flags, carrier: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = kind(tuple(t.detach() for t in tensors), flags, len(carrier))
        # New tensors: what the solve remembers must not refer to this node, which refers to the solve.
        return tuple(t.detach() for t in found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kind, ctx.adjoint, ctx.flags, _, *tensors = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flags, k = ctx.flags, len(ctx.flags)
        tensors, point, ok = ctx.saved_tensors[:k], ctx.saved_tensors[k:-1], ctx.saved_tensors[-1]
        # A failed element is replaced by a good one: zero times the user's functions there would be NaN.
        rows = torch.where(ok, torch.arange(len(ok), device=ok.device), ok.to(torch.int64).argmax())
        safe = tuple(t[rows] if own else t for t, own in zip(tensors, flags, strict=True))
        point = tuple(t[rows] for t in point)
        push = torch.where(ok.unsqueeze(-1), grads[0], 0.0)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[4:]) if needed]
        found: list[Tensor | None] = [None] * k
        for tau in ctx.adjoint.weights:
            moved = apply(_Again, ctx.kind, flags, tau, *safe, *point, push)

            def change(*some: Tensor, tau: float = tau, moved: tuple[Tensor, ...] = moved) -> Tensor:
                new = list(safe)
                for i, value in zip(wanted, some, strict=True):
                    new[i] = value
                difference = ctx.kind.lagrangian(tuple(new), flags, moved) - ctx.kind.lagrangian(tuple(new), flags, point)
                return torch.where(ok, difference, 0.0).sum() / (tau * len(ctx.adjoint.weights))

            slopes = grad(change, tuple(range(len(wanted))))(*(safe[i] for i in wanted)) if wanted else ()
            for i, slope in zip(wanted, slopes, strict=True):
                slope = torch.where(ok.reshape(-1, *(1,) * (slope.ndim - 1)), slope, 0.0) if flags[i] else slope
                once, old = _refused(slope, push), found[i]
                found[i] = once if old is None else old + once
        return (None,) * 4 + tuple(found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        raise DifferentiationError("LPGD() has no forward mode; use adjoint=Implicit().")

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], kind: Any, adjoint: LPGD, flags: Flags, carrier: Tensor, *tensors: Tensor
    ) -> Any:
        size = info.batch_size
        flat, merged = merge(size, len(carrier), tensors, in_dims[4:], flags)
        outputs = apply(_Map, kind, adjoint, merged, carrier.new_empty(size * len(carrier)), *flat)
        return tuple(unflatten(t, size) for t in outputs), (0,) * len(outputs)


class _Again(torch.autograd.Function):
    """The second solution; it has no derivative."""

    @staticmethod
    def forward(kind: Any, flags: Flags, tau: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        k = len(flags)
        *given, push = (t.detach() for t in tensors)
        *moved, ok = kind.again(tuple(given[:k]), flags, tau * push, tuple(given[k:]))
        lost = int((~ok).sum())
        if lost:
            raise DifferentiationError(
                f"LPGD: {lost} batch element(s) could not be solved with the loss added; tau = {abs(tau)} may be too large."
            )
        return tuple(t.clone() for t in moved)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise DifferentiationError("LPGD() has first derivatives only; use adjoint=Implicit().")

    jvp = backward

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], kind: Any, flags: Flags, tau: float, *tensors: Tensor) -> Any:
        size, dims = info.batch_size, in_dims[3:]
        batch = tensors[-1].shape[0] if dims[-1] is None else tensors[-1].movedim(dims[-1], 0).shape[1]
        own = (*flags, *(True,) * (len(tensors) - len(flags)))
        flat, merged = merge(size, batch, tensors, dims, own)
        outputs = apply(_Again, kind, merged[: len(flags)], tau, *flat)
        return tuple(unflatten(t, size) for t in outputs), (0,) * len(outputs)


class _Refuse(torch.autograd.Function):
    """Its first argument, whose derivative is an error rather than a zero wherever the second one has a derivative."""

    @staticmethod
    def forward(tensor: Tensor, anchor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise DifferentiationError(
            "LPGD() has first derivatives of the variables only, none of multipliers; use adjoint=Implicit()."
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], tensor: Tensor, anchor: Tensor) -> Any:
        size, dim = info.batch_size, in_dims[0]
        moved = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        far = anchor.unsqueeze(0) if in_dims[1] is None else anchor.movedim(in_dims[1], 0)
        return _refused(moved, far), 0


def _refused(tensor: Tensor, anchor: Tensor) -> Tensor:
    return cast(Tensor, _Refuse.apply(tensor, anchor))  # type: ignore[no-untyped-call]  # torch leaves it untyped

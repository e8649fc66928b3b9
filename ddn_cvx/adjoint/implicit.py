"""Implicit differentiation of a conic program: the one opaque map ``data -> (x, v)`` and its derivatives of first and
second order.

At a solution ``F(z; data) = 0`` with ``z = (x, v)``, so ``J dz = -dF`` (implicit function theorem; Busseti, Moursi &
Boyd, 2019, here for the residual that keeps the quadratic objective). With ``y = Pi_K*(v)`` and a cotangent ``(g, h)``
one system ``J'(u, w) = (g, h)`` gives

    grad q = -u      grad b = w      grad A = -(y u' + w x')      grad P = -(u x' + x u')/2   (tied triangles)

``J`` and ``J'`` share one symmetric factor (``linalg.kkt``). Solving with it is itself a differentiable function of the
data: its derivative needs only two more solves with the same factor and the third-derivative tensor of the cone's
projection (``dual_curvature``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from ddn_cvx.adjoint.base import Adjoint, Solve
from ddn_cvx.adjoint.transforms import (
    apply,
    flatten,
    from_columns,
    refuse_singular,
    remember_signature,
    to_columns,
    unflatten,
)
from ddn_cvx.errors import InputError
from ddn_cvx.forward_mode import forward_rule
from ddn_cvx.program.affine_map import take
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.conic_sizes import sizes
from ddn_cvx.program.factor import Factors

WeaklyActive = Literal["descent", "inactive", "active", "average"]


@dataclass(frozen=True)
class Implicit(Adjoint):
    """Exact implicit differentiation where the solution is regular; the minimum-norm derivative where it is not (Gould,
    Hartley & Campbell, TPAMI 2022; Busseti, Moursi & Boyd, 2019). The default.

    First and second derivatives, forward and reverse mode, ``torch.func`` transforms. A second derivative at a point
    where the KKT system is singular raises ``DifferentiationError``: the minimum-norm formula is not a derivative of
    itself.

    Where a constraint is active without a force (a kink) there are several derivatives, and the choice is an option.

    Raises
    ------
    InputError
        An unknown choice.
    DifferentiationError
        From the backward pass: a second derivative at a singular point.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    >>> layer = ddn.DeclarativeLayer(problem, [p], x, adjoint=ddn.Implicit())
    >>> torch.func.jacrev(layer)(torch.tensor([0.8, 0.6]))
    tensor([[ 0.5000, -0.5000],
            [-0.5000,  0.5000]])
    """

    weakly_active: WeaklyActive = "descent"
    """Of constraints that are active without a force: "inactive", "active", the "average" of the two, or "descent", the
    default: for nonlinear programs the one-sided derivative towards which the loss descends, for cone programs as they
    stand (inactive where the force is zero to the last bit)."""

    def __post_init__(self) -> None:
        if self.weakly_active not in get_args(WeaklyActive):
            raise InputError(f"weakly_active must be one of {get_args(WeaklyActive)}, got {self.weakly_active!r}.")

    def attach(self, solve: Solve, data: ConicData, extra: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        return implicit_map(solve, data, extra, self.weakly_active)


@dataclass(frozen=True)
class Rule:
    """A solve, and where its optimality conditions are linearised: the derivative is the mean over ``sides``, each with the
    factors that it remembers. A side is 1 for weakly active cones taken as active, -1 as inactive, 0 as they stand."""

    solve: Solve
    sides: tuple[tuple[int, Factors], ...]

    @property
    def program(self) -> ConicProgram:
        """The program."""
        return self.solve.program


def _sides(kink: WeaklyActive, factors: Factors) -> tuple[tuple[int, Factors], ...]:
    if kink == "average":
        return (-1, factors), (1, Factors(factors.program))
    return (({"descent": 0, "inactive": -1, "active": 1}[kink], factors),)


class SolutionMap(torch.autograd.Function):
    """``(P, q, A, b) -> (x, v, ok)``; further tensors are what the solve wants to look at and get no gradient."""

    @staticmethod
    def forward(rule: Rule, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tensors = tuple(t.detach() for t in tensors)
        x, v, ok = rule.solve(ConicData(*tensors[:4]), *tensors[4:])
        # New tensors: what the solve remembers must not refer to this node, which refers to the solve.
        return x.detach(), v.detach(), ok.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.rule, P, q, A, b, *rest = inputs
        x, v, ok = output
        ctx.extra = len(rest)
        ctx.mark_non_differentiable(ok)
        ctx.save_for_backward(P, q, A, b, x, v, ok)
        ctx.save_for_forward(P, q, A, b, x, v, ok)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *data, x, v, ok = ctx.saved_tensors
        program = ctx.rule.program
        right = grads[0].unsqueeze(-1), grads[1].unsqueeze(-1)
        u, w = _respond(ctx.rule, False, ConicData(*data), x, v, ok, *right)
        u, w = u.squeeze(-1), w.squeeze(-1)
        y = torch.where(ok.unsqueeze(-1), program.cones.project_dual(v), 0.0)
        pr, pc, ar, ac = program.index(x.device)
        grad_P = -_tied(u, x, pr, pc)
        if program.is_dense:
            outer = torch.bmm(torch.stack([u, x], 2), torch.stack([y, w], 1)).flatten(1)  # column-major
            grad_A = -(outer if outer.shape[1] == len(ar) else take(outer, ac * program.m + ar))
        else:
            grad_A = -(take(y, ar) * take(u, ac) + take(w, ar) * take(x, ac))
        return (None, grad_P, -u, grad_A, w, *(None,) * ctx.extra)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: tuple[Tensor, ...], *tangents: Any) -> tuple[Tensor, Tensor, None]:
        *data, x, v, ok = saved
        program = ctx.rule.program
        dP, dq, dA, db = tangents[1:5]
        y = program.cones.project_dual(v)
        r, t = torch.zeros_like(x), torch.zeros_like(v)
        if dP is not None:
            r = r - program.P_times(dP, x)
        if dq is not None:
            r = r - dq
        if dA is not None:
            r, t = r - program.At_times(dA, y), t - program.A_times(dA, x)
        if db is not None:
            t = t + db
        r, t = torch.where(ok.unsqueeze(-1), r, 0.0), torch.where(ok.unsqueeze(-1), t, 0.0)
        a, c = _respond(ctx.rule, True, ConicData(*data), x, v, ok, r.unsqueeze(-1), t.unsqueeze(-1))
        return a.squeeze(-1), c.squeeze(-1), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], rule: Rule, *tensors: Tensor) -> Any:
        size = info.batch_size
        flat = [flatten(t, d, size) for t, d in zip(tensors, in_dims[1:], strict=True)]
        outputs = _solution_map(rule, *flat)
        return tuple(unflatten(t, size) for t in outputs), (0, 0, 0)


def implicit_map(
    solve: Solve, data: ConicData, extra: tuple[Tensor, ...], kink: WeaklyActive = "descent"
) -> tuple[Tensor, Tensor, Tensor]:
    """``solve(data, *extra)`` with its implicit derivative."""
    return _solution_map(Rule(solve, _sides(kink, solve.factors)), *data, *extra)


def _solution_map(rule: Rule, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor, Tensor], apply(SolutionMap, rule, *tensors))


def _tied(u: Tensor, x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """``u_i x_j + u_j x_i`` at the upper-triangle entries, once on the diagonal."""
    product = take(u, rows) * take(x, cols)
    return torch.where(rows == cols, product, product + take(u, cols) * take(x, rows))


def _respond(
    rule: Rule, forward: bool, data: ConicData, x: Tensor, v: Tensor, ok: Tensor, r: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """The solution for the element of the generalised Jacobian that is asked for."""
    found = [
        linear_solve(factors, forward, data.P, data.A, _leaning(rule.program, side, data, x, v), ok, r, t)
        for side, factors in rule.sides
    ]
    if len(found) == 1:
        return found[0]
    a, c = (sum(parts) / len(found) for parts in zip(*found, strict=True))
    return cast(Tensor, a), cast(Tensor, c)


def _leaning(program: ConicProgram, side: int, data: ConicData, x: Tensor, v: Tensor) -> Tensor:
    """v on one side of the kinks it is at; the step is a constant for autograd."""
    if not side:
        return v
    at = v.detach()
    measured = sizes(program, ConicData(*(part.detach() for part in data)), x.detach(), at)
    return v + (program.cones.dual_lean(at, measured, side) - at)


def linear_solve(
    factors: Factors, forward: bool, P: Tensor, A: Tensor, v: Tensor, ok: Tensor, r: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve with J, or with its transpose if not ``forward``; differentiable in all that J depends on."""
    return cast(tuple[Tensor, Tensor], apply(_LinearSolve, factors, forward, P, A, v, ok, r, t))


class _LinearSolve(torch.autograd.Function):
    """``J (a, c) = (r, t)`` or ``J'(u, w) = (r, t)`` for k right-hand sides, r (B, n, k), t (B, m, k)."""

    @staticmethod
    def forward(
        factors: Factors, forward: bool, P: Tensor, A: Tensor, v: Tensor, ok: Tensor, r: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        kkt = factors.at(P.detach(), A.detach(), v.detach(), ok.detach())
        return (kkt.forward if forward else kkt.reverse)(r.detach(), t.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.factors, ctx.is_forward, P, A, v, ok, _, _ = inputs
        ctx.save_for_backward(P, A, v, ok, *output)
        ctx.save_for_forward(P, A, v, ok, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        P, A, v, ok, first, second = ctx.saved_tensors
        factors = ctx.factors
        other = linear_solve(factors, not ctx.is_forward, P, A, v, ok, grads[0], grads[1])
        if not any(ctx.needs_input_grad[2:5]):
            return (None,) * 6 + other
        _refuse_singular(factors)
        (a, c), (u, w) = ((first, second), other) if ctx.is_forward else (other, (first, second))
        program = factors.program
        pr, pc, ar, ac = program.index(v.device)
        Dc = _by_column(program.cones.dual_derivative, v, c)
        grad_P = -(u[:, pr] * a[:, pc] + torch.where((pr == pc).unsqueeze(-1), 0.0, u[:, pc] * a[:, pr])).sum(-1)
        grad_A = -(w[:, ar] * a[:, ac] + Dc[:, ar] * u[:, ac]).sum(-1)
        Au = _A_columns(program, A, u) + w
        grad_v = -_by_column(program.cones.dual_curvature, v, c, Au).sum(-1)
        grad_v = torch.where(ok.unsqueeze(-1), grad_v, 0.0)
        return (None, None, grad_P, grad_A, grad_v, None, *other)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: tuple[Tensor, ...], *tangents: Any) -> tuple[Tensor, Tensor]:
        P, A, v, ok, first, second = saved
        factors, program = ctx.factors, ctx.factors.program
        dP, dA, dv, _, dr, dt = tangents[2:8]
        top = torch.zeros_like(first) if dr is None else dr
        low = torch.zeros_like(second) if dt is None else dt
        if not (dP is None and dA is None and dv is None):
            _refuse_singular(factors)
        cones = program.cones
        argument = second if ctx.is_forward else _A_columns(program, A, first) + second
        if dP is not None:
            top = top - _column_map(program.P_times, dP, first)
        if dA is not None:
            tilt = _by_column(cones.dual_derivative, v, second) if ctx.is_forward else second
            top = top - _column_map(program.At_times, dA, tilt)
            moved = _column_map(program.A_times, dA, first)
            low = low - (moved if ctx.is_forward else _by_column(cones.dual_derivative, v, moved))
        if dv is not None:
            bend = _by_column(cones.dual_curvature, v, dv.unsqueeze(-1).expand_as(argument), argument)
            low = low - bend
            if ctx.is_forward:
                top = top - _column_map(program.At_times, A, bend)
        solved = linear_solve(factors, ctx.is_forward, P, A, v, ok, top, low)
        return solved

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], factors: Factors, forward: bool, *tensors: Tensor) -> Any:
        size, dims = info.batch_size, in_dims[2:]
        if all(d is None for d in dims[:4]):
            # One factor, many right-hand sides: the mapped dimension becomes columns.
            wide = [to_columns(t, d, size) for t, d in zip(tensors[4:], dims[4:], strict=True)]
            out = linear_solve(factors, forward, *tensors[:4], *wide)
            return tuple(from_columns(o, size) for o in out), (0, 0)
        flat = [flatten(t, d, size) for t, d in zip(tensors, dims, strict=True)]
        out = linear_solve(factors, forward, *flat)
        return tuple(unflatten(o, size) for o in out), (0, 0)


def _by_column(function: Any, v: Tensor, *columns: Tensor) -> Tensor:
    """Apply a function of (B, m) tensors to every column of (B, m, k) tensors: columns become batch elements."""
    batch, m, k = columns[0].shape
    spread = v.unsqueeze(1).expand(batch, k, m).reshape(batch * k, m)
    flat = [c.mT.reshape(batch * k, m) for c in columns]
    out: Tensor = function(spread, *flat)
    return out.reshape(batch, k, m).mT


def _column_map(function: Any, matrix: Tensor, columns: Tensor) -> Tensor:
    """``function(matrix, vector)`` for every column of (B, ., k)."""
    batch, _, k = columns.shape
    spread = matrix.unsqueeze(1).expand(batch, k, matrix.shape[1]).reshape(batch * k, matrix.shape[1])
    out: Tensor = function(spread, columns.mT.reshape(batch * k, columns.shape[1]))
    return out.reshape(batch, k, out.shape[-1]).mT


def _A_columns(program: ConicProgram, A: Tensor, columns: Tensor) -> Tensor:
    return _column_map(program.A_times, A, columns)


def _refuse_singular(factors: Factors) -> None:
    kkt = factors.last
    refuse_singular(0 if kkt is None else int(kkt.null.any.sum()))


remember_signature(SolutionMap.forward)
remember_signature(_LinearSolve.forward)

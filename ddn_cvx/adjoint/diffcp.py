"""The derivative computed by the package diffcp, for comparison with its results.

diffcp differentiates the homogeneous self-dual embedding of a cone program with a linear objective (Agrawal,
Barratt, Boyd, Busseti & Moursi, 2019). A quadratic objective goes there as an epigraph; the gradient with
respect to P follows from the one with respect to q, because a change dP enters the optimality conditions as
the change ``dq = dP x``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, Never, cast, get_args

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddn_cvx.adjoint.base import Adjoint, Solve
from ddn_cvx.adjoint.transforms import apply
from ddn_cvx.checks import require_positive, require_whole
from ddn_cvx.errors import DifferentiationError, InputError
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.epigraph import Epigraph
from ddn_cvx.program.row_order import RowOrder, scs_cones, scs_rows

Mode = Literal["lsqr", "lsmr", "dense"]


@dataclass(frozen=True)
class DiffcpAdjoint(Adjoint):
    """The derivative as the package diffcp computes it, one element after another, for comparison with its results
    (Agrawal, Barratt, Boyd, Busseti & Moursi, 2019). Conic programs without power cones, first derivatives in reverse
    mode.

    diffcp has no way to be told a solution: each backward pass solves the programs again, from the solution as a warm
    start.

    Raises
    ------
    DifferentiationError
        From the backward pass: power cones, or diffcp cannot solve an element. From ``torch.func`` and forward mode.
    InputError
        An option that diffcp does not have. From the backward pass: diffcp is not installed.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    >>> layer = ddn.DeclarativeLayer(problem, [p], x, adjoint=ddn.DiffcpAdjoint(threads=1))
    >>> point = torch.tensor([0.8, 0.6], requires_grad=True)
    >>> layer(point)[0].backward()
    >>> point.grad
    tensor([ 0.5000, -0.5000])
    """

    mode: Mode = "dense"
    """How diffcp solves its linear system (default "dense"; the iterative ones stop short of an accurate solution where
    it is ill conditioned, and do not say so)."""
    max_iterations: int = 100_000
    """Iterations of SCS for one element (default 100000)."""
    tolerance: float = 1e-10
    """Absolute and relative tolerance to which the programs are solved again (default 1e-10)."""
    threads: int | None = None
    """Threads of diffcp. Default: one a processor."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InputError(f"mode must be one of {get_args(Mode)}, got {self.mode!r}.")
        require_whole("max_iterations", self.max_iterations, 1)
        require_positive("tolerance", self.tolerance)
        if self.threads is not None:
            require_whole("threads", self.threads, 1)

    def attach(self, solve: Solve, data: ConicData, extra: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        if torch._C._are_functorch_transforms_active():
            _refuse_transform()
        return cast(tuple[Tensor, Tensor, Tensor], apply(_SolutionMap, self, solve, *data, *extra))

    def vjp(
        self,
        program: ConicProgram,
        data: ConicData,
        x: Tensor,
        y: Tensor,
        s: Tensor,
        gx: Tensor,
        gy: Tensor,
        gs: Tensor | None = None,
    ) -> ConicData:
        """Gradients ``(B, nnz(P)), (B, n), (B, nnz(A)), (B, m)`` for cotangents of the solution ``x`` (B, n),
        ``y`` and ``s`` (B, m).

        Raises
        ------
        DifferentiationError
            The program has power cones or cones that are not of this package, or diffcp cannot solve an element.
        """
        if program.cones.power or program.cones.others:
            other = type(program.cones.others[0]).__name__ if program.cones.others else "power"
            raise DifferentiationError(f"diffcp has no {other} cones; use adjoint=Implicit()")
        gs = torch.zeros_like(gy) if gs is None else gs
        data = ConicData(*(t.detach().cpu() for t in data))
        point, cotangent = ([t.detach().cpu() for t in ts] for ts in ((x, y, s), (gx, gy, gs)))
        with torch.enable_grad():
            leaves = [t.clone().requires_grad_() for t in data[1:]]
            linear = ConicData(data.P, *leaves)
            target = program
            if program.P.nnz:
                epigraph = Epigraph(program)
                target, linear, point = (
                    epigraph.program,
                    epigraph.lift(linear),
                    [*epigraph.point(linear, *point)],
                )
                cotangent = epigraph.embed(*cotangent)
            order = RowOrder.of(target.A, scs_rows(target.cones))
            rows, entries = torch.as_tensor(order.rows), torch.as_tensor(order.entries)
            images = [linear.q, linear.A[:, entries], linear.b[:, rows]]
        point, cotangent = ([t[0], t[1][:, rows], t[2][:, rows]] for t in (point, cotangent))
        found = self._diffcp(target, order, *(t.detach().numpy() for t in (*images, *point, *cotangent)))
        gq, gA, gb = torch.autograd.grad(images, leaves, found, allow_unused=True, materialize_grads=True)
        i, j, _, _ = program.index(torch.device("cpu"))
        gP = gq[:, i] * point[0][:, j] + torch.where(i == j, 0.0, gq[:, j] * point[0][:, i])
        return ConicData(*(t.to(x.device) for t in (gP, gq, gA, gb)))

    def _diffcp(self, program: ConicProgram, order: RowOrder, *arrays: Any) -> list[Tensor]:
        """Gradients with respect to c, the values of A and b, in SCS's order of rows."""
        try:
            import diffcp
        except ImportError as error:
            raise InputError(
                f"DiffcpAdjoint() needs the Python package 'diffcp', which cannot be imported ({error}); install it with "
                "`pip install diffcp`, or use adjoint=Implicit()."
            ) from error

        c, A, b, x, y, s, gx, gy, gs = arrays
        cones = scs_cones(program.cones)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Solved/Inaccurate")
                *_, adjoint = diffcp.solve_and_derivative_batch(
                    [_matrix(order, values) for values in A],
                    list(b),
                    list(c),
                    [cones] * len(c),
                    n_jobs_forward=self.threads or -1,
                    n_jobs_backward=self.threads or -1,
                    mode=self.mode,
                    warm_starts=list(zip(x, y, s, strict=True)),
                    eps=self.tolerance,
                    max_iters=self.max_iterations,
                )
        except diffcp.SolverError as error:
            raise DifferentiationError(
                f"diffcp could not solve a program again for its derivative: {error}; use adjoint=Implicit()"
            ) from error
        dA, db, dc = adjoint(list(gx), list(gy), list(gs))
        for matrix in dA:
            matrix.sort_indices()
        return [torch.as_tensor(np.array(rows)) for rows in (dc, [matrix.data for matrix in dA], db)]


def _refuse_transform() -> Never:
    raise DifferentiationError(
        "DiffcpAdjoint() has first derivatives in reverse mode by loss.backward() or torch.autograd.grad only, and works "
        "outside of torch.func transforms; use adjoint=Implicit()."
    )


def _matrix(order: RowOrder, values: Any) -> sp.csc_matrix:
    pattern = order.pattern
    return sp.csc_matrix((values.copy(), pattern.rows, pattern.indptr), shape=pattern.shape)


class _SolutionMap(torch.autograd.Function):
    """``(P, q, A, b) -> (x, v, ok)`` with diffcp's backward; further tensors are what the solve wants to look
    at."""

    @staticmethod
    def forward(ctx: Any, adjoint: DiffcpAdjoint, solve: Solve, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tensors = tuple(t.detach() for t in tensors)
        x, v, ok = solve(ConicData(*tensors[:4]), *tensors[4:])
        ctx.adjoint, ctx.program = adjoint, solve.program
        ctx.mark_non_differentiable(ok)
        ctx.save_for_backward(*tensors[:4], x, v, ok)
        ctx.extra = len(tensors) - 4
        return x, v, ok

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gx: Tensor, gv: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *data, x, v, ok = ctx.saved_tensors
        y = ctx.program.cones.project_dual(v)
        grads = [torch.zeros_like(t) for t in data]
        if bool(ok.any()):
            # v = y - s, so a cotangent of v is one of y and, negated, one of s.
            rows = (t[ok] for t in (x, y, y - v, gx, gv, -gv))
            found = ctx.adjoint.vjp(ctx.program, ConicData(*(t[ok] for t in data)), *rows)
            for grad, value in zip(grads, found, strict=True):
                grad[ok] = value
        return (None, None, *grads, *(None,) * ctx.extra)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Never:
        _refuse_transform()

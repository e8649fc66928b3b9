"""Derivatives that leave out part of the KKT matrix: cheaper or more forgiving, and not exact.

The solution is the exact one. Only the matrix of the linear system is changed:

    "ignore_constraints"    K = H               the solution is taken to move as if nothing constrained it
    "identity_hessian"      K = [I A'; A 0]     the cotangent is projected onto the tangent space of the constraints

Both point downhill often, not always (Gould, Hartley & Campbell, 2021, section 5.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from ddn_cvx.adjoint.base import Solve
from ddn_cvx.adjoint.implicit import Implicit
from ddn_cvx.adjoint.kkt_solve import NonlinearAdjoint, NonlinearSolve, Solved, require_dense
from ddn_cvx.adjoint.nonlinear import solution_map
from ddn_cvx.adjoint.transforms import refuse_second_derivatives
from ddn_cvx.errors import DeclarationError, InputError
from ddn_cvx.linalg.kkt import DenseKKT
from ddn_cvx.linalg.saddle import SaddleKKT
from ddn_cvx.program.active_kkt import ActiveKKT, Columns
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.factor import Factors
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.program.optimality import Active, State

Mode = Literal["ignore_constraints", "identity_hessian"]


@dataclass(frozen=True)
class Approximate(NonlinearAdjoint):
    """Approximate derivatives that leave out part of the KKT matrix (Gould, Hartley & Campbell, TPAMI 2022, section
    5.3).

    Conic and nonlinear programs, first derivatives in reverse and forward mode. They often point downhill, not always.

    Raises
    ------
    InputError
        An unknown mode.
    DeclarationError
        From the layer: the program is too large for dense matrices.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1])
    >>> layer = ddn.DeclarativeLayer(problem, [p], x, adjoint=ddn.Approximate("ignore_constraints"))
    >>> torch.func.jacrev(layer)(torch.tensor([0.8, 0.6]))  # that of x = p
    tensor([[1., 0.],
            [0., 1.]])
    """

    mode: Mode = "ignore_constraints"
    """What is left out: "ignore_constraints" or "identity_hessian" (default "ignore_constraints")."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InputError(f"mode must be one of {get_args(Mode)}, got {self.mode!r}.")

    def attach(self, solve: Solve, data: ConicData, extra: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        if not solve.program.is_dense:
            raise DeclarationError("Approximate() is for programs of moderate size; use adjoint=Implicit().")
        return Implicit().attach(_Conic(solve, self.mode), data, extra)

    def attach_nonlinear(self, solve: NonlinearSolve, theta: Theta, batch: int) -> Solved:
        """``solve(theta)`` with the approximate derivative."""
        return solution_map(_Approximated(solve, self.mode), theta, batch, "inactive")


class _Approximated:
    """A nonlinear solve whose KKT matrices are approximate."""

    def __init__(self, solve: NonlinearSolve, mode: Mode):
        self._solve, self._mode = solve, mode
        self.inexact = _first_only(mode)
        self.failures = False

    kinks = False

    @property
    def program(self) -> NonlinearProgram:
        """The program as it is."""
        return self._solve.program

    @property
    def factors(self) -> _Factors:
        """The approximate matrices."""
        return _Factors(self.program, self._mode)

    def __call__(self, theta: Theta, batch: int) -> Solved:
        """The exact solution."""
        solved = self._solve(theta, batch)
        require_dense(self.program, "Approximate")
        self.failures = self._solve.failures
        return solved

    def perturbed(self, theta: Theta, push: Tensor, start: State) -> tuple[State, Tensor]:
        """That of the exact problem."""
        return self._solve.perturbed(theta, push, start)


class _Factors:
    def __init__(self, program: NonlinearProgram, mode: Mode):
        self._program, self._mode = program, mode

    def at(self, theta: Theta, state: State, active: Active, ok: Tensor) -> ActiveKKT | _HessianOnly:
        with torch.no_grad():
            if self._mode == "ignore_constraints":
                return _HessianOnly(self._program.hessian(state.y, theta, state.lam, state.mu), ok)
            first = self._program.first(state.y, theta)
            return ActiveKKT(_identity(state.y), first.Jh, first.Jg, active, ok)


class _HessianOnly:
    def __init__(self, H: Tensor, ok: Tensor):
        self._saddle = SaddleKKT(H, H[:, :0], None, ok)

    def solve(self, top: Tensor, h: Tensor, g: Tensor, z: Tensor) -> Columns:
        u, _ = self._saddle.solve(top, top[:, :0])
        return u, torch.zeros_like(h), torch.zeros_like(g), torch.zeros_like(z)


class _Conic:
    """A conic solve whose KKT matrices are approximate."""

    def __init__(self, solve: Solve, mode: Mode):
        self._solve = solve
        self.program: ConicProgram = solve.program
        self.factors = cast(Factors, _ConicFactors(solve.program, mode))

    def __call__(self, data: ConicData, *extra: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._solve(data, *extra)

    def again(self, data: ConicData) -> tuple[Tensor, Tensor, Tensor]:
        return self._solve.again(data)


class _ConicFactors:
    """In the place of ``program.factor.Factors``."""

    def __init__(self, program: ConicProgram, mode: Mode):
        self.program, self._mode = program, mode

    def at(self, P: Tensor, A: Tensor, v: Tensor, ok: Tensor) -> DenseKKT:
        dense_P, dense_A = self.program.dense(ConicData(P, v, A, v))
        if self._mode == "ignore_constraints":
            dense_A = torch.zeros_like(dense_A)
        else:
            dense_P = _identity(dense_P[:, 0])
        visible = torch.as_tensor(self.program.visible, device=v.device)
        return DenseKKT(dense_P, dense_A, self.program.cones.dual_spectrum(v), ok, visible)

    @property
    def last(self) -> None:
        """Asked for by second derivatives alone."""
        refuse_second_derivatives(_first_only(self._mode))


def _first_only(mode: Mode) -> str:
    return f'Approximate("{mode}") has first derivatives only'


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device).expand(len(like), -1, -1).contiguous()

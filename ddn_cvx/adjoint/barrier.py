"""The central path of a cone program: ``y = -width grad B(s)`` in place of complementarity.

B is the barrier of K, which each cone brings along (Nesterov & Nemirovskii 1994, chapter 5). A point of the path minimises
``1/2 x'Px + q'x + width B(s)`` subject to ``Ax + s = b``: a program with equalities only, of which s are variables too, so
that Newton's method may start inside the cone but off the equalities (Boyd & Vandenberghe, "Convex optimization", section
10.3). It is a smooth function of the data, and is differentiated like any other nonlinear program.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.adjoint.base import Solve
from ddn_cvx.adjoint.kkt_solve import Solved
from ddn_cvx.adjoint.nonlinear import solution_map
from ddn_cvx.errors import DeclarationError, DifferentiationError
from ddn_cvx.linalg.saddle import SaddleKKT
from ddn_cvx.program.active_kkt import Columns
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.program.optimality import Active, State, largest

STEPS = 200
"""Newton steps to a point of the central path, at most."""
HALVINGS = 30
"""Times a step is halved, at most."""
REACHED = 1e-10
"""Residual, relative to the size of what should cancel, at which Newton's method stops."""
ROUNDING = 6e-8
"""Width next to the numbers of the problem from which on the curvature of the barrier survives rounding: it has entries up
to 1 / width, of which a curved cone needs the differences, of order 1; a part eps / width² of the derivative is noise."""
DECREMENT = 0.05
"""Newton decrement, in the local norm of the barrier, up to which a point counts as on the path: its slacks are right to
this fraction of themselves, however small they are."""


def path_program(cone: ConicProgram, width: float) -> NonlinearProgram:
    """Of the variables ``(x, s)``, s without the zero rows; its theta is ``(P, q, A, b, ...)``."""
    n, zero = cone.n, cone.cones.zero

    def evaluate(w: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        P, q, A, b = theta.tensors[:4]
        x, s = w[:, :n], torch.cat((w.new_zeros(len(w), zero), w[:, n:]), 1)
        f = cone.objective(x, ConicData(P, q, A, b)) + width * cone.cones.barrier(s)
        return f, cone.A_times(A, x) + s - b, w[:, :0]

    return NonlinearProgram(n + cone.m - zero, cone.m, 0, evaluate)


class _PathSolve:
    """A conic solve as a ``NonlinearSolve`` that is linearised on the path; the answer is the exact ``(x, s)`` and y."""

    kinks = False

    def __init__(self, solve: Solve, width: float):
        self._solve, self._width = solve, width
        self.inexact = f"Smoothed({width}) has first derivatives only"
        self.program = path_program(solve.program, width)
        self.factors = _Factors(self.program, solve.program)
        self.failures = False
        if not self.program.is_dense:
            size = f"{self.program.n} variables and {self.program.p} rows"
            raise DeclarationError(f"Smoothed() forms matrices, and {size} are too much for that; use adjoint=Implicit().")

    def __call__(self, theta: Theta, batch: int) -> Solved:
        """The exact solution, and the point of the path."""
        data, extra = ConicData(*theta.tensors[:4]), theta.tensors[4:]
        x, v, ok = self._solve(data, *extra)
        self.failures = not bool(ok.all())
        exact = self._state(x, v)
        path = exact
        if bool(ok.any()):
            good = torch.nonzero(ok).flatten()
            zero = self._solve.program.cones.zero
            inwards = self._width**0.5 * self._solve.program.cones.centre(v[good])[:, zero:]
            start = torch.cat((x[good], exact.y[good, x.shape[1] :] + inwards), 1)
            y, lam = central_point(self.program, self.factors, theta.take(good), start, exact.lam[good], self._width)
            path = exact._replace(y=exact.y.index_copy(0, good, y), lam=exact.lam.index_copy(0, good, lam))
        return Solved(path, Active(path.mu, torch.zeros_like(path.y)), ok, exact)

    def perturbed(self, theta: Theta, push: Tensor, start: State) -> tuple[State, Tensor]:
        """That of the exact problem."""
        P, q, A, b = theta.tensors[:4]
        x, v, ok = self._solve.again(ConicData(P, q + push[:, : q.shape[1]], A, b))
        return self._state(x, v), ok

    def _state(self, x: Tensor, v: Tensor) -> State:
        y = self._solve.program.cones.project_dual(v)
        s = (y - v)[:, self._solve.program.cones.zero :]
        both = torch.cat((x, s), 1)
        return State(both, y, x[:, :0], torch.zeros_like(both))


class _Factors:
    def __init__(self, program: NonlinearProgram, cone: ConicProgram):
        self._program, self._cone = program, cone

    def at(self, theta: Theta, state: State, active: Active, ok: Tensor) -> _PathKKT:
        return _PathKKT(self._program, self._cone, theta, state, ok)


class _PathKKT:
    """The KKT system of the barrier program, ``[[P, 0, A'], [0, W, I'], [A, I, 0]]`` with ``W = width ∇²B(s) = QΛQ'``.

    W has eigenvalues from ``width`` to ``1 / width``, and beside the latter the others count as zero. So s is eliminated,
    and the rows of the cones are turned by Q: ``[[P, A'Q], [Q'A, -1/Λ]]`` is like that of active and inactive inequalities.
    """

    def __init__(self, program: NonlinearProgram, cone: ConicProgram, theta: Theta, state: State, ok: Tensor):
        self.n, self.zero = cone.n, cone.cones.zero
        with torch.no_grad():
            H = program.hessian(state.y, theta, state.lam, state.mu)
            A = program.first(state.y, theta).Jh[..., : self.n]
        usable = ok & H.sum((1, 2)).isfinite()
        values, self.Q = torch.linalg.eigh(torch.where(usable[:, None, None], H[:, self.n :, self.n :], 0.0))
        least = torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True).clamp(min=1.0)
        self.loose = 1.0 / torch.maximum(values, least).unsqueeze(-1)
        rows = torch.cat((A[:, : self.zero], self.Q.mT @ A[:, self.zero :]), 1)
        spread = torch.cat((torch.zeros_like(A[:, : self.zero, 0]), self.loose.squeeze(-1)), 1)
        self.saddle = SaddleKKT(H[:, : self.n, : self.n], rows, spread, ok)

    def solve(self, top: Tensor, h: Tensor, g: Tensor, z: Tensor) -> Columns:
        """``(u, t_h, t_g, t_z)`` for right-hand sides ``(B, ., k)``."""
        push = self.Q.mT @ top[:, self.n :]
        low = torch.cat((h[:, : self.zero], self.Q.mT @ h[:, self.zero :] - self.loose * push), 1)
        x, t = self.saddle.solve(top[:, : self.n], low)
        turned = t[:, self.zero :]
        u = torch.cat((x, self.Q @ (self.loose * (push - turned))), 1)
        return u, torch.cat((t[:, : self.zero], self.Q @ turned), 1), torch.zeros_like(g), torch.zeros_like(z)


@torch.no_grad()
def central_point(
    program: NonlinearProgram, factors: _Factors, theta: Theta, y: Tensor, lam: Tensor, width: float
) -> tuple[Tensor, Tensor]:
    """The minimum of the barrier program and its multipliers, from a point inside the cone.

    Raises
    ------
    DifferentiationError
        Newton's method does not reach it for some element.
    """
    none, all_ok = y[:, :0], torch.ones(len(y), dtype=torch.bool, device=y.device)
    idle = Active(none, torch.zeros_like(y))

    def newton(y: Tensor, lam: Tensor, slope: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        kkt = factors.at(theta, State(y, lam, none, torch.zeros_like(y)), idle, all_ok)
        right = (-slope.unsqueeze(-1), -h.unsqueeze(-1), none.unsqueeze(-1), torch.zeros_like(y).unsqueeze(-1))
        dy, dlam, _, _ = (t.squeeze(-1) for t in kkt.solve(*right))
        return dy, dlam

    def residual(y: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f, h, _ = program.values(y, theta)
        slope = program.gradient(y, theta, lam, none)
        size = torch.cat((slope, h, torch.where(f.isfinite(), 0.0, torch.inf).unsqueeze(-1)), 1).norm(dim=-1)
        return slope, h, size.nan_to_num(nan=torch.inf)

    unit = 1 + largest(theta.tensors[1]) + largest(theta.tensors[3]) + largest(lam)
    slope, h, size = residual(y, lam)
    for _ in range(STEPS):
        waiting = size > REACHED * unit
        if not bool(waiting.any()):
            break
        dy, dlam = newton(y, lam, slope, h)
        length, missed = torch.ones_like(size), waiting
        for _ in range(HALVINGS):
            step = torch.where(missed, length, 0.0).unsqueeze(-1)
            trial = residual(y + step * dy, lam + step * dlam)
            better = missed & (trial[2] < (1 - 0.01 * length) * size)
            row = better.unsqueeze(-1)
            y, lam = torch.where(row, y + step * dy, y), torch.where(row, lam + step * dlam, lam)
            slope, h = torch.where(row, trial[0], slope), torch.where(row, trial[1], h)
            size = torch.where(better, trial[2], size)
            missed, length = missed & ~better, 0.5 * length
            if not bool(missed.any()):
                break
        if bool((missed == waiting).all()):  # rounding is in the way
            break
    dy, dlam = newton(y, lam, slope, h)
    decrement = ((h * dlam).sum(-1) - (slope * dy).sum(-1)).abs() / width  # dy'H dy, by the equations that dy satisfies
    reached = (size <= REACHED**0.5 * unit) & (decrement <= DECREMENT**2) & (width >= ROUNDING * unit)
    lost = int((~reached).sum())
    if lost:
        raise DifferentiationError(
            f"The central path of width {width} was not reached at {lost} batch element(s); choose a larger width, or one "
            "for which the problem has strictly feasible points."
        )
    return y, lam


def attach_barrier(solve: Solve, data: ConicData, extra: tuple[Tensor, ...], width: float) -> tuple[Tensor, Tensor, Tensor]:
    """``(x, v, ok)`` of a conic solve with the derivatives of the path."""
    tensors = (*data, *extra)
    theta = Theta(tensors, (True,) * len(tensors))
    _, _, ok, (both, y, _, _) = solution_map(_PathSolve(solve, width), theta, len(data.q), "inactive")
    n, zero = solve.program.n, solve.program.cones.zero
    s = torch.cat((torch.zeros_like(y[:, :zero]), both[:, n:]), 1)
    return both[:, :n], y - s, ok

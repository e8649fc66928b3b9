"""A batched first-order method for conic programs with a quadratic objective, matrix-free, on any device.

The saddle point of ``1/2 x'Px + q'x + y'(Ax - b)`` over x and ``y in K*`` by the primal-dual hybrid gradient method
(Chambolle & Pock, 2011; with the gradient of the quadratic, Condat, 2013, Vu, 2013). One step T is

    x+ = x - tau (Px + q + A'y),      y+ = Pi_K*(y + sigma (A(2x+ - x) - b)),

where a diagonal P is treated exactly. The iterates are those of Halpern with reflection (Lu & Yang, 2024, "Restarted
Halpern PDHG for linear programming"),

    z <- (k+1)/(k+2) (z + rho (T z - z)) + 1/(k+2) z_0,

which restart from T z where ``|T z - z|`` has fallen enough; then the primal weight ``omega = sqrt(sigma/tau)`` moves
towards the ratio of the ways that y and x have gone (Applegate et al., 2021). Infeasible and unbounded programs have a
certificate in the direction in which the iterates diverge (Applegate, Diaz, Lu & Lubin, 2024).

An iteration costs one product with A, one with A', one with P and a projection; memory is that of the data and a dozen
vectors. Every element of the batch has its own scaling, step sizes, restarts and end; those that are done are left out
when they are half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.checks import require_positive_options
from ddn_cvx.linalg.products import Products, symmetric
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.deadline import expired
from ddn_cvx.solvers.elementwise import closed_form, is_finite
from ddn_cvx.solvers.first_order_scaling import Scaled, precondition

_POWER_STEPS = 40  # of the estimates of norms
_SAFETY = 1.05  # what these may be too small by
_ENOUGH, _SOME, _LONG = 0.2, 0.8, 0.36  # a restart: the residual has fallen so much; or less and rises; or is this old
_WEIGHT_GAIN = 0.5  # how far the logarithm of the primal weight moves at a restart
_WEIGHTS = (1e-5, 1e5)
_CURVED = 0.1  # the least primal weight next to |P|/|A|
_RAYS_EVERY = 5  # checks between two looks for certificates


@register
@dataclass(frozen=True)
class FirstOrder(Solver):
    """The restarted primal-dual hybrid gradient method, matrix-free and batched, for every cone that has a projection,
    on any device (Lu & Yang, "Restarted Halpern PDHG for linear programming", 2024; Applegate et al., 2021). Tolerances
    are relative.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    >>> layer = ddn.DeclarativeLayer(problem, [p], x, solver=ddn.FirstOrder(tolerance=1e-6))
    >>> layer(torch.tensor([[0.8, 0.6], [0.5, 0.9]]))
    tensor([[0.6000, 0.4000],
            [0.3000, 0.7000]])
    """

    name: ClassVar[str] = "first_order"
    minds_time: ClassVar[bool] = True
    on_device: ClassVar[bool] = True
    any_cone: ClassVar[bool] = True

    max_iterations: int = 200_000
    """Iterations after which an element gives up (default 200 000)."""
    tolerance: float = 1e-8
    """Residuals and gap at which an element is solved; the layer polishes what it gets (default 1e-8)."""
    inaccurate_tolerance: float = 1e-4
    """Largest residual of an INACCURATE element (default 1e-4)."""
    certificate_tolerance: float = 1e-6
    """Largest residual of a certificate of infeasibility or unboundedness (default 1e-6)."""
    check_every: int = 40
    """Iterations between two looks at residuals and restarts (default 40)."""

    def __post_init__(self) -> None:
        names = ("tolerance", "inaccurate_tolerance", "certificate_tolerance", "max_iterations", "check_every")
        require_positive_options(self, *names)

    def unsupported(self, program: ConicProgram) -> str | None:
        return None

    @torch.no_grad()
    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch, from ``warm`` where that is finite."""
        if program.n == 0:
            return closed_form(program, data)
        raw = RawSolution.empty(program, data.q.shape[0], data.q)
        finite = is_finite(data)
        raw.status[~finite] = int(Status.INVALID_DATA)
        rows = finite.nonzero().flatten()
        if len(rows):
            whole = len(rows) == len(finite)
            data = data if whole else ConicData(*(t[rows] for t in data))
            start = None if warm is None else (warm.x[rows], warm.y[rows])
            _Run(self, program, data, start).into(raw, rows)
        return raw


class _State(NamedTuple):
    """What the iteration carries, one row an element; scaled."""

    x: Tensor
    y: Tensor
    x0: Tensor
    y0: Tensor
    k: Tensor
    """Iterations since the restart, ``(B, 1)``."""
    omega: Tensor
    """Primal weight, ``(B, 1)``."""
    first: Tensor
    """``|T z - z|`` at the restart, ``(B, 1)``."""
    last: Tensor
    """The same when it was last looked at."""
    age: Tensor
    """Iterations of the element in all, ``(B, 1)``."""


class _Step(NamedTuple):
    """T z, and the slack that belongs to it."""

    x: Tensor
    y: Tensor
    s: Tensor


class _Run:
    """The solve of a batch of finite data."""

    def __init__(self, options: FirstOrder, program: ConicProgram, data: ConicData, start: tuple[Tensor, Tensor] | None):
        self.options, self.program, self.cones = options, program, program.cones
        scaled = precondition(program, data)
        self.diagonal = bool((program.P.rows == program.P.cols).all())
        self.full_P, self.which_P = symmetric(program.P)
        self._load(scaled)
        self.norm_A, self.norm_P = self._norms()
        # Without the gradient of a quadratic T is firmly nonexpansive, and may be reflected fully.
        self.rho = 2.0 if self.diagonal else 1.5
        x, y = torch.zeros_like(data.q), torch.zeros_like(data.b)
        if start is not None:
            good = torch.isfinite(torch.cat(start, 1)).all(1, keepdim=True)
            x = torch.where(good, start[0] / (scaled.beta * scaled.D), 0.0)
            y = torch.where(good, start[1] * scaled.kappa / scaled.E, 0.0)
        one = torch.ones_like(scaled.beta)
        self.state = _State(x, y, x, y, 0 * one, one, one, one, 0 * one)

    def _load(self, scaled: Scaled) -> None:
        self.scaled = scaled
        data = scaled.data
        self.A = Products(self.program.A, data.A)
        if self.diagonal:
            self.d = torch.zeros_like(data.q)
            self.d[:, torch.as_tensor(self.program.P.rows, device=data.q.device)] = data.P
        else:
            self.P = Products(self.full_P, data.P[:, torch.as_tensor(self.which_P, device=data.q.device)])

    def _norms(self) -> tuple[Tensor, Tensor]:
        """Spectral norms of A and, unless it is diagonal, of P, by power iteration from a fixed vector."""
        q = self.scaled.data.q
        start = torch.cos(torch.arange(1.0, q.shape[1] + 1, dtype=q.dtype, device=q.device).square()).expand_as(q)

        def norm(apply) -> Tensor:  # type: ignore[no-untyped-def]
            v = start / start.norm(dim=1, keepdim=True)
            size = torch.ones_like(self.scaled.beta)
            for _ in range(_POWER_STEPS):
                v = apply(v)
                size = v.norm(dim=1, keepdim=True)
                v = v / size.clamp(min=1e-30)
            return size

        norm_A = norm(lambda v: self.A.transposed(self.A(v))).sqrt()
        norm_P = torch.zeros_like(norm_A) if self.diagonal else norm(self.P)
        # Where curvature bounds the primal step, a lower weight makes the dual steps smaller and nothing larger.
        curvature = self.d.amax(1, keepdim=True) if self.diagonal else norm_P
        self.least_omega = (_CURVED * curvature / norm_A.clamp(min=1e-12)).clamp(max=1.0)
        return _SAFETY * norm_A, _SAFETY * norm_P

    def _P_times(self, x: Tensor) -> Tensor:
        return self.d * x if self.diagonal else self.P(x)

    def _sizes(self, omega: Tensor) -> tuple[Tensor, Tensor]:
        """``(tau, sigma)`` with ``1/tau = |P| + sigma |A|^2`` and ``sigma/tau = omega^2``."""
        a, p = self.norm_A, self.norm_P
        eta = 2 * omega / (p + (p.square() + 4 * (omega * a).square()).sqrt()).clamp(min=1e-12)
        return eta / omega, eta * omega

    def _T(self, x: Tensor, y: Tensor, tau: Tensor, sigma: Tensor) -> _Step:
        data = self.scaled.data
        slope = data.q + self.A.transposed(y)
        new_x = (x - tau * slope) / (1 + tau * self.d) if self.diagonal else x - tau * (slope + self.P(x))
        v = y + sigma * (self.A(2 * new_x - x) - data.b)
        new_y = self.cones.project_dual(v)
        return _Step(new_x, new_y, (new_y - v) / sigma)

    def _distance(self, dx: Tensor, dy: Tensor, tau: Tensor, sigma: Tensor) -> Tensor:
        """Length in the metric in which T is nonexpansive, ``(B, 1)``."""
        square = dx.square() / tau
        whole = square.sum(1) + (dy.square() / sigma).sum(1) - 2 * (dy * self.A(dx)).sum(1)
        return whole.clamp(min=0).sqrt().unsqueeze(1)

    def into(self, raw: RawSolution, rows: Tensor) -> None:
        """Iterate, and write what comes out into these rows of ``raw``."""
        every, live = self.options.check_every, torch.ones_like(rows, dtype=torch.bool)
        for check in range(1, -(-self.options.max_iterations // every) + 1):
            step, moved = self._advance(every)
            error = self._error(step)
            status = torch.where(error <= self.options.tolerance, int(Status.SOLVED), -1)
            if check % _RAYS_EVERY == 0:
                status = torch.where(status < 0, self._rays(step, moved), status)
            if check * every >= self.options.max_iterations or expired():
                close = error <= self.options.inaccurate_tolerance
                given_up = torch.where(close, int(Status.INACCURATE), int(Status.ITERATION_LIMIT))
                status = torch.where(status < 0, given_up, status)
            ended = live & (status >= 0)
            if bool(ended.any()):
                self._write(raw, rows, ended, status, step)
                live = live & ~ended
                if not bool(live.any()):
                    return
                if 2 * int(live.sum()) <= len(live):
                    keep = live.nonzero().flatten()
                    rows, live = rows[keep], live[keep]
                    step, moved = _Step(*(t[keep] for t in step)), moved[keep]
                    self._compact(keep)
            self._restart(step, moved)

    def _advance(self, count: int) -> tuple[_Step, Tensor]:
        """Some iterations; the last T z, and its distance from z."""
        x, y, x0, y0, k, omega, first, last, age = self.state
        tau, sigma = self._sizes(omega)
        step = _Step(x, y, y)
        for j in range(count):
            step = self._T(x, y, tau, sigma)
            if j == 0:
                moved = self._distance(step.x - x, step.y - y, tau, sigma)
                first = torch.where(k == 0, moved, first)
            if j == count - 1:
                moved = self._distance(step.x - x, step.y - y, tau, sigma)
                self.difference = step.x - x, step.y - y
            weight = (k + 1) / (k + 2)
            x = x0 + weight * (x + self.rho * (step.x - x) - x0)
            y = y0 + weight * (y + self.rho * (step.y - y) - y0)
            k = k + 1
        self.state = _State(x, y, x0, y0, k, omega, first, last, age + count)
        return step, moved

    def _restart(self, step: _Step, moved: Tensor) -> None:
        s = self.state
        fallen = (moved <= _ENOUGH * s.first) | ((moved <= _SOME * s.first) & (moved > s.last))
        now = fallen | (s.k >= _LONG * s.age)
        way_x, way_y = (step.x - s.x0).norm(dim=1, keepdim=True), (step.y - s.y0).norm(dim=1, keepdim=True)
        known = now & (way_x > 1e-12) & (way_y > 1e-12) & torch.isfinite(way_x) & torch.isfinite(way_y)
        ratio = torch.where(known, way_y / way_x.clamp(min=1e-300), s.omega)
        omega = (s.omega * (ratio / s.omega) ** _WEIGHT_GAIN).clamp(*_WEIGHTS).maximum(self.least_omega)
        x, y = torch.where(now, step.x, s.x), torch.where(now, step.y, s.y)
        x0, y0 = torch.where(now, step.x, s.x0), torch.where(now, step.y, s.y0)
        self.state = s._replace(
            x=x, y=y, x0=x0, y0=y0, k=torch.where(now, 0.0, s.k), omega=omega, last=torch.where(now, torch.inf, moved)
        )

    def _error(self, step: _Step) -> Tensor:
        """The worst relative residual of the program as given, ``(B,)``."""
        data, D, E, beta, kappa = self.scaled
        x, y, s = step
        Px, Aty, Ax = self._P_times(x), self.A.transposed(y), self.A(x)
        dual, primal = 1 / (D * kappa), beta / E
        terms = ((Px, Aty, data.q, dual), (Ax, s, data.b, primal))
        found = []
        for one, two, given, unit in terms:
            residual = one + two + given if given is data.q else one + two - given
            size = torch.stack((one * unit, two * unit, given * unit)).abs().amax(0)
            found.append(_largest(residual * unit) / (1 + _largest(size)))
        parts = torch.stack([(t * u).sum(1) for t, u in ((Px, x), (data.q, x), (data.b, y))]) * (beta / kappa).squeeze(1)
        found.append(parts.sum(0).abs() / (1 + parts.abs().amax(0)))
        return torch.stack(found).amax(0).nan_to_num(nan=torch.inf)

    def _rays(self, step: _Step, moved: Tensor) -> Tensor:
        """INFEASIBLE or UNBOUNDED where a direction of the iterates proves it, -1 elsewhere, ``(B,)``.

        Feasible points x and certificates y have ``b'y >= x'A'y``, so that a small ``A'y`` next to ``-b'y`` means that all
        feasible points, if there are any, are far away.
        """
        data, accept = self.scaled.data, self.options.certificate_tolerance
        status = torch.full_like(moved[:, 0], -1, dtype=torch.int64)
        for dx, dy in (self.difference, (step.x - self.state.x0, step.y - self.state.y0)):
            dy = self.cones.project_dual(dy)
            gain = -(data.b * dy).sum(1)
            proof = (gain > 0) & (_largest(self.A.transposed(dy)) <= accept * gain)
            status = torch.where(proof, int(Status.INFEASIBLE), status)
            fall = -(data.q * dx).sum(1)
            slack = -self.A(dx)
            # Moreau: the distance of the slack from K is the length of the projection of its negative onto K*.
            outside = torch.maximum(_largest(self.cones.project_dual(-slack)), _largest(self._P_times(dx)))
            status = torch.where((status < 0) & (fall > 0) & (outside <= accept * fall), int(Status.UNBOUNDED), status)
        return status

    def _write(self, raw: RawSolution, rows: Tensor, ended: Tensor, status: Tensor, step: _Step) -> None:
        _, D, E, beta, kappa = self.scaled
        here, there = ended.nonzero().flatten(), rows[ended]
        raw.status[there] = status[here]
        raw.iterations[there] = self.state.age[here, 0].long()
        point = (status[here] != int(Status.INFEASIBLE)) & (status[here] != int(Status.UNBOUNDED))
        here, there = here[point], there[point]
        raw.x[there] = (step.x * D * beta)[here]
        raw.y[there] = (step.y * E / kappa)[here]
        raw.s[there] = (step.s * beta / E)[here]

    def _compact(self, keep: Tensor) -> None:
        data, *factors = self.scaled
        self._load(Scaled(ConicData(*(t[keep] for t in data)), *(t[keep] for t in factors)))
        self.norm_A, self.norm_P, self.least_omega = self.norm_A[keep], self.norm_P[keep], self.least_omega[keep]
        self.state = _State(*(t[keep] for t in self.state))


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(-1) if t.shape[-1] else t.new_zeros(t.shape[:-1])

"""A batched primal-dual interior-point method for conic programs of every kind, in plain torch.

The quadratic objective stays quadratic: the method follows the central path of the homogeneous embedding of Goulart &
Chen (2024),

    Px + A'u + qτ = 0,   Ax + s - bτ = 0,   κ + q'x + b'u + x'Px / τ = 0,   s in K, z in K*, τ, κ >= 0,

with ``u = (y, z)`` the multipliers of the zero rows and of all others.  Where τ > 0 in the limit ``(x, s, u) / τ`` is a
solution; where κ > 0, u proves that there is no feasible point (``A'u = 0``, ``b'u < 0``) or x that the objective has no bound
(``Px = 0``, ``-Ax in K``, ``q'x < 0``).  Predictor and corrector (Mehrotra, 1992) share one factorisation.

The body of an iteration (``_advance``) is the same sequence of kernels whatever the numbers are: it never makes the
device wait for the host, and may be captured in a graph.  Between iterations elements that are done leave the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.conic_cones import Cones
from ddn_cvx.solvers.conic_newton import Newton
from ddn_cvx.solvers.conic_scaling import Scaled, equilibrate
from ddn_cvx.solvers.elementwise import closed_form, require_positive

_CHUNK = 2**25  # numbers in P and A that are solved at a time
_PATIENCE = 4  # tests without progress after which an inaccurate iterate is the best there will be
_FRACTION = 0.99  # of the way to the boundary
_SMALLEST_STEP = 1e-6


@dataclass(frozen=True)
class ConicInteriorPoint(Solver):
    """Options of the conic interior-point method.  Tolerances are relative and apply to equilibrated data."""

    name: ClassVar[str] = "conic_interior_point"
    on_device: ClassVar[bool] = True

    max_iterations: int = 100
    """Iterations, of one factorisation each, after which an element gives up (default 100)."""
    tolerance: float = 1e-10
    """Residual and gap at which an element stops (default 1e-10)."""
    solved_tolerance: float = 1e-8
    """Largest residual of a SOLVED element that stopped improving (default 1e-8)."""
    inaccurate_tolerance: float = 1e-5
    """Largest residual of an INACCURATE element (default 1e-5)."""
    certificate_tolerance: float = 1e-9
    """Largest residual of a certificate of infeasibility or unboundedness (default 1e-9)."""
    regularisation: float = 1e-9
    """What is added to the diagonal of the factorised matrices, next to data of order one (default 1e-9)."""
    refinements: int = 2
    """Steps of iterative refinement of a Newton step (default 2)."""
    single: bool = False
    """Factorise in single precision; iterates and refinement stay double (default False)."""
    check_every: int | None = None
    """Iterations between two tests for convergence; None is 1 on CPUs and 4 on devices that have to wait (default None)."""

    def __post_init__(self) -> None:
        names = [option.name for option in fields(self) if option.name not in ("single", "check_every")]
        require_positive(self, *names, *([] if self.check_every is None else ["check_every"]))

    def unsupported(self, program: ConicProgram) -> str | None:
        return None

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch.  ``warm`` is an answer to similar numbers; elements of it that are not finite give no start."""
        if not program.n or not program.m:
            return closed_form(program, data)
        cones = workspace.get(
            ("conic", program, data.q.device, data.q.dtype), lambda: Cones(program.cones, data.q.new_zeros(0))
        )
        size = max(1, _CHUNK // (program.n * (program.n + program.m)))
        chunks = [range(0, len(data.q))[i : i + size] for i in range(0, len(data.q), size)]
        answers = [self._chunk(program, cones, data, warm, slice(c.start, c.stop)) for c in chunks]
        if not answers:
            return RawSolution.empty(program, 0, data.q)
        return RawSolution(*(torch.cat(parts) for parts in zip(*answers, strict=True)))

    @torch.no_grad()
    def _chunk(
        self, program: ConicProgram, cones: Cones, data: ConicData, warm: RawSolution | None, rows: slice
    ) -> tuple[Tensor, ...]:
        data = ConicData(*(t[rows] for t in data))
        finite = torch.stack([t.isfinite().all(1) for t in data]).all(0)
        P, A = program.dense(data)
        row = finite[:, None]
        # A harmless problem takes the place of one that cannot be solved.
        centre = cones.centre(data.q)
        harmless = torch.cat((centre.new_zeros(cones.zero), centre))
        P = torch.where(row[..., None], P, torch.eye(program.n, dtype=P.dtype, device=P.device))
        A = torch.where(row[..., None], A[:, cones.order], 0.0)
        q, b = torch.where(row, data.q, 0.0), torch.where(row, data.b[:, cones.order], harmless)
        scaled = equilibrate(P, q, A, b, cones)
        start = None
        if warm is not None:
            x, y, s = warm.x[rows], warm.y[rows][:, cones.order], warm.s[rows][:, cones.order]
            start = torch.cat((x / scaled.x, y / scaled.y, (s / scaled.s)[:, cones.zero :]), 1)
        whole, status, iterations = _iterate(_Problem(scaled.P, scaled.q, scaled.A, scaled.b, cones, self), start)
        n, m = program.n, program.m
        x, u, s = whole.split((n, m, m - cones.zero), 1)
        s = torch.cat((s.new_zeros(len(s), cones.zero), s), 1)
        solution = ((status <= int(Status.INACCURATE)) & finite)[:, None]  # a certificate is none
        x = torch.where(solution, x * scaled.x, torch.nan)
        back = cones.order.argsort()
        y, s = (torch.where(solution, t, torch.nan)[:, back] for t in (u * scaled.y, s * scaled.s))
        return x, y, s, torch.where(finite, status, int(Status.INVALID_DATA)), iterations


class _Problem:
    """Equilibrated data of a batch: ``q (B, 1, n)``, ``b (B, 1, m)``."""

    def __init__(self, P: Tensor, q: Tensor, A: Tensor, b: Tensor, cones: Cones, options: ConicInteriorPoint):
        self.P, self.q, self.A, self.b, self.cones, self.options = P, q, A, b, cones, options
        self.m, self.n = A.shape[1:]
        self.p = cones.zero
        self.E = A[:, : self.p]
        self.h = b[..., self.p :]
        self.Ct = A[:, self.p :].mT.contiguous()
        self.factor_dtype = torch.float32 if options.single else P.dtype
        sizes = self.n, self.m, self.m - self.p, 1, 1
        self.ends = sizes
        # Sizes next to which residuals are small
        self.size_q, self.size_b = (_largest(t) for t in (q, b))

    def take(self, rows: Tensor) -> _Problem:
        return _Problem(self.P[rows], self.q[rows], self.A[rows], self.b[rows], self.cones, self.options)

    def parts(self, whole: Tensor) -> tuple[Tensor, ...]:
        """``x, u, s, τ, κ`` of iterates or steps ``(B, r, n + m + m - p + 2)``."""
        return whole.split(self.ends, 2)


class _State(NamedTuple):
    """The iterates, and for each element what the tests need; everything has the batch first."""

    whole: Tensor
    """``x, u, s, τ, κ``, ``(B, 1, .)``."""
    best: Tensor
    """The smallest error so far ``(B, 1, 1)``."""
    kept: Tensor
    """``x, u, s`` there, divided by τ."""
    waited: Tensor
    """Tests since then ``(B, 1, 1)``."""
    verdict: Tensor
    """``Status`` of a certificate that was found, else SOLVED ``(B, 1, 1)``."""
    iterations: Tensor
    live: Tensor
    row: Tensor


def _start(problem: _Problem, warm: Tensor | None) -> Tensor:
    """On the central path of the cones alone; symmetric ones from the solution of one Newton system."""
    cones, (batch, n), (m, p) = problem.cones, problem.P.shape[:2], (problem.m, problem.p)
    e = cones.centre(problem.q)
    x, y, one = problem.q.new_zeros(batch, 1, n), problem.q.new_zeros(batch, 1, p), problem.q.new_ones(batch, 1, 1)
    s = z = e.expand(batch, 1, -1)
    whole = torch.cat((x, y, z, s, one, one), 2)
    if warm is not None:
        weight = 0.9
        good = warm.isfinite().all(1)[:, None, None]
        near = weight * torch.where(good, warm[:, None], 0.0) + (1 - weight) * whole[..., :-2]
        gap = _dot(near[..., n + p : n + m], near[..., n + m :]) / max(cones.degree, 1)
        whole = torch.where(good, torch.cat((near, one, gap if cones.degree else 0.01 * one), 2), whole)
    return whole


def _residuals(problem: _Problem, whole: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``r_x``, ``r_u``, ``r_τ``, ``Px`` and ``x'Px``."""
    x, u, s, tau, kappa = problem.parts(whole)
    Px = torch.bmm(x, problem.P)
    xPx = _dot(Px, x)
    r_x = torch.baddbmm(torch.addcmul(Px, problem.q, tau), u, problem.A)
    r_u = torch.baddbmm(problem.b * tau, x, problem.A.mT, beta=-1)
    r_u[..., problem.p :] += s
    r_tau = kappa + _dot(problem.q, x) + _dot(problem.b, u) + xPx / tau
    return r_x, r_u, r_tau, Px, xPx


def _advance(problem: _Problem, whole: Tensor) -> Tensor:
    """One iteration: the same kernels for whatever numbers."""
    p, cones, refinements = problem.p, problem.cones, problem.options.refinements
    x, u, s, tau, kappa = problem.parts(whole)
    z = u[..., p:]
    r_x, r_u, r_tau, Px, _ = _residuals(problem, whole)
    mu = (_dot(s, z) + tau * kappa) / (cones.degree + 1)
    W = cones.scaling(s, z)
    newton = Newton(problem.P, problem.E, cones.apply(W, "down", problem.Ct), problem.options.regularisation, problem.factor_dtype)

    # The predictor, and what a change of τ does; a step is d1 + Δτ d2.
    low = torch.cat((-r_u, problem.b), 1)
    low[:, :1, p:] += s
    right = cones.apply(W, "down", low[..., p:])
    dx, dy, dw = newton.solve(torch.cat((-r_x, -problem.q), 1), low[..., :p], right, refinements)
    du = torch.cat((dy, cones.apply(W, "up", dw)), 2)
    x2, u2, w2 = dx[:, 1:], du[:, 1:], dw[:, 1:]
    xi = x / tau
    turned = problem.q + 2 * Px / tau
    away = x2 - xi
    # Exactly the square of w2; more where dependent equalities contradict each other and have no exact solution.
    square = -_dot(torch.bmm(x2, problem.P) + problem.q, x2) - _dot(problem.b, u2)
    pivot = kappa / tau + _dot(torch.bmm(away, problem.P), away) + torch.maximum(square, _dot(w2, w2))

    def step(x1: Tensor, u1: Tensor, w1: Tensor, fraction: Tensor, d_tau: Tensor, d_kappa: Tensor) -> Tensor:
        total = _dot(turned, x1) + _dot(problem.b, u1)
        dtau = (d_tau - d_kappa / tau + total) / pivot
        dx, dz = x1 + dtau * x2, u1 + dtau * u2
        ds = torch.baddbmm(problem.h * dtau - fraction * r_u[..., p:], dx, problem.Ct, alpha=-1)
        return torch.cat((dx, dz, ds, dtau, -(d_kappa + kappa * dtau) / tau), 2)

    ahead = step(dx[:, :1], du[:, :1], dw[:, :1], torch.ones_like(tau), r_tau, kappa * tau)
    ahead_length = _length(problem, whole, ahead)
    _, au, a_s, atau, akappa = problem.parts(ahead)
    sigma = (1 - ahead_length) ** 3
    target = cones.apply(W, "down", cones.target(W, s, z, sigma * mu, a_s, au[..., p:]))
    low = (sigma - 1) * r_u
    right = cones.apply(W, "down", low[..., p:]) + target
    x1, y1, w1 = newton.solve((sigma - 1) * r_x, low[..., :p], right, refinements)
    u1 = torch.cat((y1, cones.apply(W, "up", w1)), 2)
    d_kappa = kappa * tau + akappa * atau - sigma * mu
    change = step(x1, u1, w1, 1 - sigma, (1 - sigma) * r_tau, d_kappa)
    whole = whole + _FRACTION * _length(problem, whole, change) * change
    # The embedding is homogeneous: keep the larger of τ and κ at one.
    return whole / torch.maximum(whole[..., -2:-1], whole[..., -1:])


def _length(problem: _Problem, whole: Tensor, step: Tensor) -> Tensor:
    """The step to the boundary, at most one."""
    _, u, s, tau, kappa = problem.parts(whole)
    _, du, ds, dtau, dkappa = problem.parts(step)
    longest = torch.maximum(-dtau / tau, -dkappa / kappa).clamp_(min=1.0).reciprocal()
    return problem.cones.step(longest, s, ds, u[..., problem.p :], du[..., problem.p :])


def _error(problem: _Problem, whole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest of the relative residuals and the relative gap; and those of the two certificates, ``(B, 1, 1)`` each."""
    x, u, s, tau, _ = problem.parts(whole)
    r_x, r_u, _, Px, xPx = _residuals(problem, whole)
    Atu, Axs = r_x - Px - problem.q * tau, r_u + problem.b * tau
    qx, bu = _dot(problem.q, x), _dot(problem.b, u)
    inverse = 1 / tau
    size_x = torch.maximum(torch.maximum(_largest(Px), _largest(Atu)) * inverse, problem.size_q) + 1
    size_u = torch.maximum(torch.maximum(_largest(s), _largest(Axs - _padded(problem, s))) * inverse, problem.size_b) + 1
    # The gap may be zero by chance: then complementarity is not.
    products = _dot(s, u[..., problem.p :]) * inverse
    gap = torch.maximum((qx + bu + xPx * inverse).abs(), products) * inverse
    value = torch.minimum((qx + xPx * inverse / 2).abs(), (bu + xPx * inverse / 2).abs()) * inverse + 1
    error = torch.maximum(torch.maximum(_largest(r_x) * inverse / size_x, _largest(r_u) * inverse / size_u), gap / value)
    infeasible = torch.where(bu < 0, _largest(Atu) / -bu, torch.inf)
    unbounded = torch.where(qx < 0, torch.maximum(_largest(Px), _largest(Axs)) / -qx, torch.inf)
    return error, infeasible, unbounded


def _padded(problem: _Problem, s: Tensor) -> Tensor:
    return torch.nn.functional.pad(s, (problem.p, 0))


def _judge(problem: _Problem, state: _State, iteration: int) -> _State:
    """Keep the best iterates, and end the elements that are solved, proven hopeless, stuck or lost."""
    options, whole = problem.options, state.whole
    error, infeasible, unbounded = _error(problem, whole)
    better = (error < state.best) & state.live
    best = torch.where(better, error, state.best)
    kept = torch.where(better, whole[..., :-2] / whole[..., -2:-1], state.kept)
    waited = (state.waited + 1).masked_fill_(better, 0)
    proof = options.certificate_tolerance
    verdict = torch.where(state.live & (infeasible <= proof), int(Status.INFEASIBLE), state.verdict)
    verdict = torch.where(state.live & (unbounded <= proof) & (verdict == 0), int(Status.UNBOUNDED), verdict)
    stuck = (waited >= _PATIENCE) & (best < options.inaccurate_tolerance)
    lost = ~whole.isfinite().all(2, keepdim=True)
    live = state.live & ~((best <= options.tolerance) | (verdict > 0) | stuck | lost)
    return _State(whole, best, kept, waited, verdict, torch.where(state.live, iteration, state.iterations), live, state.row)


def _iterate(problem: _Problem, warm: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``x, u, s`` ``(B, .)``, status and iterations ``(B,)`` of all elements."""
    options = problem.options
    every = options.check_every or (1 if problem.P.device.type == "cpu" else 4)
    whole = _start(problem, warm)
    nothing = torch.zeros(len(whole), 1, 1, dtype=torch.int64, device=whole.device)
    row = torch.arange(len(whole), device=whole.device)[:, None, None]
    best, kept = whole.new_full(row.shape, torch.inf), torch.full_like(whole[..., :-2], torch.nan)
    state = _State(whole, best, kept, nothing, nothing, nothing, nothing == 0, row)
    result = state
    for iteration in range(options.max_iterations + 1):
        if iteration % every == 0 or iteration == options.max_iterations:
            state = _judge(problem, state, iteration)
            left = state.live.flatten().nonzero().squeeze(1)
            ended = not len(left) or iteration == options.max_iterations
            if ended or 2 * len(left) <= len(state.row):
                rows = state.row.flatten()
                result = _State(*(all_.index_copy(0, rows, some) for all_, some in zip(result, state, strict=True)))
                if ended:
                    break
                problem, state = problem.take(left), _State(*(t[left] for t in state))
        state = state._replace(whole=_advance(problem, state.whole))
    failed = torch.where(result.live, int(Status.ITERATION_LIMIT), int(Status.NUMERICAL_ERROR))
    status = torch.where(result.best <= options.inaccurate_tolerance, int(Status.INACCURATE), failed)
    status = torch.where(result.best <= options.solved_tolerance, int(Status.SOLVED), status)
    status = torch.where((result.verdict > 0) & (status > 1), result.verdict, status)
    return result.kept.squeeze(1), status.flatten(), result.iterations.flatten()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(2, keepdim=True)


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(2, keepdim=True) if t.shape[2] else t.new_zeros(*t.shape[:2], 1)

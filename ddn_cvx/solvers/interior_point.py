"""A batched primal-dual interior-point method for convex quadratic programs, in plain torch.

Every element of the batch is a quadratic program with the same numbers of variables and rows,

    minimise  1/2 x'Px + q'x   subject to   Ex = e,   Gx + s = h,   s >= 0,

optimal where also  Px + q + E'y_E + G'y_G = 0,  y_G >= 0,  s'y_G = 0.  The method is Mehrotra's predictor-corrector
(1992) from an infeasible start, with the linear algebra of a proximal method: the Newton systems have the matrix

    K = [[P + delta I, E', G'], [E, -delta I, 0], [G, 0, -(S/Y) - delta I]]

but the true residual on the right, so that delta costs speed of convergence and no accuracy (Altman & Gondzio 1999;
Friedlander & Orban 2012).  It makes K factorisable whatever the ranks of P, E and G, bounds the weights of the condensed
matrix  H = P + delta I + E'E + G'WG,  W = 1 / (S/Y + delta), and lets an infeasible or unbounded problem diverge along a
certificate of itself (Rockafellar 1976; Banjac, Goulart, Stellato & Boyd 2019).  The factors are Cholesky's, of H and of
the Schur complement  E H^-1 E'.  Where P is diagonal and the rows of G are bounds, H is diagonal too.

Elements never meet: on CPU the answer to one does not depend, to the last bit, on what else is in the batch.  Therefore
scalings are powers of two, and dimensions are padded to even numbers: dense kernels round differently on data that is not
aligned to 16 bytes.  On other devices, where kernels may also depend on the size of the batch, it is never shrunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular, vector_norm
from torch.nn.functional import pad

from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace

SOLVED, INACCURATE, INFEASIBLE, UNBOUNDED, ITERATION_LIMIT, NUMERICAL_ERROR = range(6)

_RUNNING = -1
_FIRST_TEST = 3  # the first iteration that may be the last one where there are inequalities
_FIRST_REFINEMENT = 5  # S/Y spans too few orders of magnitude before this iteration for refinement to matter
_PATIENCE = 3  # tests without progress after which an inaccurate iterate is the best there will be
_START = 0.1  # products s y at the start, for data of order one
_FAR = 1e7  # norm of an iterate that is diverging
_FLOOR = 1e-6  # what counts as zero next to data of order one when residuals are made relative
_CEILING = 1e3  # norm of an iterate beyond which residuals are no longer taken relative to it
_MARGIN = (1e-4, 0.03)  # least and largest part of the way to the boundary that a step leaves
_ROUNDING = 1e-14  # relative increase of a diagonal that outweighs the rounding of its Cholesky factor
_CHUNK = 2**26  # numbers in P and A that are solved at a time (half a gigabyte)


@dataclass(frozen=True)
class InteriorPoint(Solver):
    """Options of the interior-point method.  Tolerances are relative and apply to equilibrated data."""

    name: ClassVar[str] = "interior_point"
    on_device: ClassVar[bool] = True

    max_iterations: int = 60
    """Iterations, of one factorisation each, after which an element gives up (default 60)."""
    tolerance: float = 1e-10
    """Residual and complementarity at which an element stops (default 1e-10)."""
    solved_tolerance: float = 1e-9
    """Largest residual of a SOLVED element that stopped improving (default 1e-9)."""
    inaccurate_tolerance: float = 1e-6
    """Largest residual of an INACCURATE element (default 1e-6)."""
    certificate_tolerance: float = 1e-9
    """Largest residual of a certificate of infeasibility or unboundedness (default 1e-9)."""
    regularisation: float = 1e-9
    """The proximal weight delta, next to data of order one (default 1e-9)."""

    def unsupported(self, program: ConicProgram) -> str | None:
        if not program.cones.is_polyhedral:
            return "it takes equalities and inequalities only, and the program has other cones"
        return None if program.n else "it needs at least one variable"

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        """Solve the batch.  An interior-point method gains nothing from a warm start: ``warm`` is not used."""
        P, A = program.dense(data)
        x, y, s, status, iterations = solve_qp(P, data.q, A, data.b, program.cones.zero, self)
        finite = torch.stack([t.isfinite().all(1) for t in data]).all(0)
        status = torch.where(finite, status, int(Status.INVALID_DATA))
        solution = (status <= INACCURATE)[:, None]  # a certificate is none
        x, y, s = (torch.where(solution, t, torch.nan) for t in (x, y, s))
        return RawSolution(x, y, s, status, iterations)


def solve_qp(
    P: Tensor, q: Tensor, A: Tensor, b: Tensor, zero: int, options: InteriorPoint | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Solve a batch of  ``min 1/2 x'Px + q'x  s.t.  Ax + s = b``,  ``s = 0`` in the first ``zero`` rows, ``s >= 0`` below.

    ``P (B, n, n)`` symmetric positive semidefinite, ``q (B, n)``, ``A (B, m, n)``, ``b (B, m)``: float64, on one device,
    with any ``B, m >= 0`` and ``n >= 1``.

    Returns ``(x, y, s, status, iterations)``: the primal ``(B, n)``, dual ``(B, m)`` and slack ``(B, m)`` vectors, and for each
    element ``(B,)`` its status code and its number of iterations, int64.  SOLVED and INACCURATE elements have passed a
    check of the optimality conditions on the data as given.  Where an element is INFEASIBLE, ``y`` is a certificate
    (``A'y = 0``, ``b'y = -1``, ``y >= 0`` below the first ``zero`` rows); where it is UNBOUNDED, ``x`` is a ray (``Px = 0``,
    ``q'x = -1``, ``-Ax`` an admissible slack); the other vectors are then NaN.  Elements with data that are not
    finite are NUMERICAL_ERROR and NaN.

    Raises
    ------
    ValueError
        Shapes, dtypes, devices or ``zero`` do not fit together.
    """
    options = options or InteriorPoint()
    _validate(P, q, A, b, zero)
    batch, m, n = A.shape
    chunk = max(1, _CHUNK // (n * (n + m)))
    if batch <= chunk:
        return _solve(P, q, A, b, zero, options)
    parts = [_solve(*part, zero, options) for part in zip(*(t.split(chunk) for t in (P, q, A, b)), strict=True)]
    x, y, s, status, iterations = (torch.cat(field) for field in zip(*parts, strict=True))
    return x, y, s, status, iterations


def _validate(P: Tensor, q: Tensor, A: Tensor, b: Tensor, zero: int) -> None:
    if A.dim() != 3 or A.shape[2] == 0:
        raise ValueError(f"A must be (B, m, n) with n >= 1, got {tuple(A.shape)}: add the batch dimension")
    batch, m, n = A.shape
    for name, tensor, shape in (("P", P, (batch, n, n)), ("q", q, (batch, n)), ("b", b, (batch, m))):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape} to go with A {(batch, m, n)}, got {tuple(tensor.shape)}")
    for name, tensor in (("P", P), ("q", q), ("A", A), ("b", b)):
        if tensor.dtype != torch.float64:
            raise ValueError(f"{name} must be float64, got {tensor.dtype}: convert it with .double()")
        if tensor.device != A.device:
            raise ValueError(f"{name} is on {tensor.device} and A on {A.device}: move them to one device")
    if not 0 <= zero <= m:
        raise ValueError(f"zero counts rows of A, so 0 <= zero <= {m}, got {zero}")


@torch.no_grad()
def _solve(
    P: Tensor, q: Tensor, A: Tensor, b: Tensor, zero: int, options: InteriorPoint
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    finite = (P.sum((1, 2)) + q.sum(1) + A.sum((1, 2)) + b.sum(1)).isfinite()
    every = bool(finite.all())
    if not every:  # a harmless problem takes the place of one that cannot be solved
        row = finite[:, None]
        P, A = torch.where(row[..., None], P, torch.eye(P.shape[1]).to(P)), torch.where(row[..., None], A, 0.0)
        q, b = torch.where(row, q, 0.0), torch.where(row, b, (torch.arange(b.shape[1], device=b.device) >= zero).to(b))
    separable = vector_norm(P, 0, (1, 2)) == vector_norm(P.diagonal(dim1=1, dim2=2), 0, 1)
    if bool(separable.any()):
        separable &= (vector_norm(A[:, zero:], 0, 2) <= 1).all(1)
    if not every:
        separable = torch.where(finite, separable, (separable & finite).any())
    x, y, s = torch.empty_like(q), torch.empty_like(b), torch.empty_like(b)
    status = torch.empty(len(q), dtype=torch.int64, device=q.device)
    iterations = torch.empty_like(status)
    for kind in (True, False):
        members = (separable == kind).nonzero().squeeze(1)
        if len(members):
            data = (P, q, A, b) if len(members) == len(q) else (t[members] for t in (P, q, A, b))
            for whole, part in zip((x, y, s, status, iterations), _solve_kind(*data, zero, kind, options), strict=True):
                whole[members] = part
    unsolved = (finite & (status != SOLVED)).nonzero().squeeze(1)
    if len(unsolved):
        answer = (x, y, s, status)
        proved = _certify(*(t[unsolved] for t in (P, q, A, b, *answer)), zero, options)
        for whole, part in zip(answer, proved, strict=True):
            whole[unsolved] = part
    if not every:
        status = torch.where(finite, status, NUMERICAL_ERROR)
        x, y, s = (torch.where(row, t, torch.nan) for t in (x, y, s))
    return x, y, s, status, iterations


def _certify(
    P: Tensor, q: Tensor, A: Tensor, b: Tensor, x: Tensor, y: Tensor, s: Tensor, status: Tensor, zero: int,
    options: InteriorPoint,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Look for a proof that there is no solution, by two feasible and strictly convex programs of the same kind.

    The point of ``{y : A'y = 0, y_G >= 0}`` nearest to ``-b`` is zero or has ``b'y < 0``, which proves that no point is feasible
    (Farkas); the point of ``{x : Px = 0, Ex = 0, Gx <= 0}`` nearest to ``-q`` likewise that feasible points can get
    better for ever.  Returns ``(x, y, s, status)`` with the proofs found.
    """
    m, n = A.shape[1:]
    D, R, beta, gamma = _scales(P.diagonal(dim1=1, dim2=2)[:, None], q[:, None], A, b[:, None])
    P, A, q_, b_ = P * D * D.mT * (beta / gamma), A * D * R.mT, (q[:, None] * D / gamma)[:, 0], (b[:, None] * R / beta)[:, 0]
    exact = replace(options, tolerance=0.0)  # go on until there is no more progress

    def relative(error: Tensor, gain: Tensor) -> Tensor:
        return torch.where(gain > 0, error.amax(1, keepdim=True) / gain, torch.inf)

    identity = torch.eye(m).to(P).expand(len(P), m, m)
    rows = torch.cat((A.mT, -identity[:, zero:]), 1)
    dual = _solve_kind(identity, b_, rows, rows.new_zeros(rows.shape[:2]), n, True, exact)[0]
    dual[:, zero:].clamp_(min=0)
    error = relative((dual[:, None] @ A)[:, 0].abs(), -(b_ * dual).sum(1, keepdim=True))
    infeasible = error <= options.certificate_tolerance

    identity = torch.eye(n).to(P).expand(len(P), n, n)
    rows = torch.cat((P, A), 1)
    ray = _solve_kind(identity, q_, rows, rows.new_zeros(rows.shape[:2]), n + zero, False, exact)[0]
    change = (ray[:, None] @ rows.mT)[:, 0]
    error = torch.cat((change[:, : n + zero].abs(), change[:, n + zero :]), 1)
    unbounded = ~infeasible & (relative(error, -(q_ * ray).sum(1, keepdim=True)) <= options.certificate_tolerance)

    dual, ray = dual * R[:, 0], ray * D[:, 0]
    dual, ray = dual / -(b * dual).sum(1, keepdim=True), ray / -(q * ray).sum(1, keepdim=True)
    nothing = infeasible | unbounded
    status = torch.where(infeasible[:, 0], INFEASIBLE, torch.where(unbounded[:, 0], UNBOUNDED, status))
    x = torch.where(unbounded, ray, torch.where(infeasible, torch.nan, x))
    y = torch.where(infeasible, dual, torch.where(unbounded, torch.nan, y))
    return x, y, torch.where(nothing, torch.nan, s), status


def _solve_kind(
    P: Tensor, q: Tensor, A: Tensor, b: Tensor, zero: int, separable: bool, options: InteriorPoint
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scale, pad, iterate, undo both, and check: for finite data that are all separable or all to be taken as dense."""
    (m, n), q, b = A.shape[1:], q[:, None], b[:, None]
    D, R, beta, gamma = scales = _scales(P.diagonal(dim1=1, dim2=2)[:, None], q, A, b)
    c = _even(torch.cat((q * (D / gamma), b * (-R / beta)), 2), 2, n, zero, m - zero)
    new_A = _even(_even((A * D).mul_(R.mT), 2, n), 1, zero, m - zero)
    if separable:
        new_P = _even(P.diagonal(dim1=1, dim2=2)[:, None] * (D * D * (beta / gamma)), 2, n)
    else:
        new_P = _even(_even((P * (D * (beta / gamma))).mul_(D.mT), 2, n), 1, n)
    if n % 2:  # the variable added
        new_P[:, -1, n] = 1
    if (m - zero) % 2:  # the row added: s = 1
        c[..., -1] = -1
    newton = _Newton(new_P, new_A, c, zero + zero % 2, separable, options.regularisation)
    z, status, iterations = _iterate(newton, options)
    x, y, y_G, s = z.tensor_split((newton.n, newton.n + newton.p, newton.n + newton.p + newton.m), 2)
    x, s = x[..., :n] * (D * beta), pad(s[..., : m - zero], (zero, 0)) * (beta / R)
    y = torch.cat((y[..., :zero], y_G[..., : m - zero]), 2) * (R * gamma)
    claimed, error = status <= INACCURATE, _backward_error(P, q, A, b, x, y, s, scales)
    status = torch.where(claimed & (error > options.solved_tolerance), INACCURATE, status)
    status = torch.where(claimed & ~(error <= options.inaccurate_tolerance), NUMERICAL_ERROR, status)
    return x.squeeze(1), y.squeeze(1), s.squeeze(1), status, iterations


def _even(t: Tensor, dim: int, *lengths: int) -> Tensor:
    """Add a zero to every part of odd length along a dimension."""
    pieces = []
    for piece in t.split(lengths, dim):
        pieces += [piece, torch.zeros_like(piece.narrow(dim, 0, 1))] if piece.shape[dim] % 2 else [piece]
    return torch.cat(pieces, dim) if len(pieces) > len(lengths) else t


def _scales(diagonal: Tensor, q: Tensor, A: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Powers of two that bring the largest entries of the rows and columns of P, A, then of b, then of P and q, near one.

    With ``x = beta D x^``, ``s = beta s^ / R``, ``y = gamma R y^`` the data become ``D P D beta / gamma``, ``D q / gamma``, ``R A D`` and
    ``R b / beta``.  The largest entries of P are on its ``diagonal``.  The size of b is its geometric mean, for many a
    bound is far away.  Returns rows ``D (B, 1, n)``, ``R (B, 1, m)``, ``beta`` and ``gamma (B, 1, 1)``.
    """
    columns = diagonal.clamp(min=0).sqrt_()
    if not A.shape[1]:
        D, R = 1 / _power_of_two(columns), b
    else:
        entries = A.abs()
        first = 1 / _power_of_two(entries.amax(2, keepdim=True))
        D = 1 / _power_of_two(torch.maximum(columns, entries.mul_(first).amax(1, keepdim=True)))
        R = (first / _power_of_two(entries.mul_(D).amax(2, keepdim=True))).mT
    size_P, size_q = (diagonal * D * D).amax(2, keepdim=True), (q * D).abs().amax(2, keepdim=True)
    beta = torch.where((size_P > 0) & (size_q > 0), _power_of_two(size_q) / _power_of_two(size_P), 1.0)
    if A.shape[1]:
        count = (b != 0).sum(2, keepdim=True)
        exponent = torch.frexp(R * b).exponent.sum(2, keepdim=True) / count.clamp(min=1) - 0.5
        beta = torch.where(count > 0, torch.ldexp(torch.ones_like(beta), exponent.round().to(torch.int32)), beta)
    return D, R, beta, _power_of_two(torch.maximum(beta * size_P, size_q))


def _power_of_two(size: Tensor) -> Tensor:
    """The power of two next to ``size >= 0``, exactly; 1 for 0."""
    size = 1.4 * size
    return torch.where(size > 0, 0.5 * size / torch.frexp(size).mantissa, 1.0)


def _backward_error(
    P: Tensor, q: Tensor, A: Tensor, b: Tensor, x: Tensor, y: Tensor, s: Tensor, scales: tuple[Tensor, ...]
) -> Tensor:
    """The largest relative residual of the optimality conditions on the data as given, ``(B,)``; all vectors are rows."""
    D, R, beta, gamma = scales
    sizes = A.abs()
    gap = (s * y).sum(2).abs() / ((q * x).abs().sum(2) + (b * y).abs().sum(2) + _FLOOR * (beta * gamma).squeeze(2))
    stationarity = torch.baddbmm(x @ P, y, A) + q
    size = torch.baddbmm(x.abs() @ P.abs(), y.abs(), sizes) + q.abs() + _FLOOR * gamma / D
    error = torch.maximum(gap, stationarity.abs().amax(2) / size.amax(2))
    if A.shape[1]:
        feasibility, size = x @ A.mT + s - b, x.abs() @ sizes.mT + s + b.abs() + _FLOOR * beta / R
        error = torch.maximum(error, feasibility.abs().amax(2) / size.amax(2))
    return error.squeeze(1)


class _Newton:
    """The data of a batch and the factors of K.

    Vectors are rows ``(B, k, .)``, as a row times a matrix is the fastest of batched products: ``[x | y_E | y_G]`` and the
    two sides of the optimality conditions, ``[Px + E'y_E + G'y_G | Ex | Gx] = -c`` with ``c = [q | -e | -h]``.
    """

    def __init__(self, P: Tensor, A: Tensor, c: Tensor, p: int, separable: bool, delta: float):
        self.P, self.A, self.c, self.p, self.separable, self.delta = P, A, c, p, separable, delta
        self.n, self.m, self.size = P.shape[2], A.shape[1] - p, c.abs() + _FLOOR
        self.E, self.G, self.At, self.Gt = A[:, :p], A[:, p:], A.mT, A[:, p:].mT
        if separable:
            self.base, self.squares = P + delta, self.G * self.G
        else:
            self.base = torch.baddbmm(P, self.E.mT, self.E)
            self.base.diagonal(dim1=1, dim2=2).add_(delta)

    def take(self, rows: Tensor) -> _Newton:
        return _Newton(self.P[rows], self.A[rows], self.c[rows], self.p, self.separable, self.delta)

    def times_P(self, x: Tensor) -> Tensor:
        return x * self.P if self.separable else torch.bmm(x, self.P)

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat((torch.baddbmm(self.times_P(x), y, self.A), torch.bmm(x, self.At)), 2)

    def factor(self, ratio: Tensor) -> None:
        """Factorise for ``ratio = s / y``, ``(B, 1, m)``."""
        self.weights = w = (ratio + self.delta).reciprocal_()
        if self.separable:
            self.half = torch.baddbmm(self.base, w, self.squares).rsqrt_()
            V = (self.E * self.half).mT
        else:
            H = torch.baddbmm(self.base, self.Gt, self.G * w.mT)
            H.diagonal(dim1=1, dim2=2).mul_(1 + _ROUNDING)
            self.L = cholesky_ex(H).L
            V = solve_triangular(self.L, self.E.mT, upper=False) if self.p else self.L
        if self.p:
            S = torch.bmm(V.mT, V)
            S.diagonal(dim1=1, dim2=2).mul_(1 + _ROUNDING).add_(self.delta)
            self.V, self.C = V, cholesky_ex(S).L

    def solve(self, r: Tensor) -> Tensor:
        """``K^-1 r`` for rows ``r``."""
        f, e, g = r.split((self.n, self.p, self.m), 2)
        u = torch.baddbmm(f, g * self.weights, self.G)
        if self.separable:
            u.mul_(self.half)
        else:
            u = torch.baddbmm(u, e, self.E) if self.p else u
            u = solve_triangular(self.L.mT, u, upper=True, left=False)
        if self.p:
            e = torch.baddbmm(e, u, self.V, beta=-1)
            e = solve_triangular(self.C.mT, e, upper=True, left=False)
            e = solve_triangular(self.C, e, upper=False, left=False)
            u = torch.baddbmm(u, e, self.V.mT, alpha=-1)
        x = u.mul_(self.half) if self.separable else solve_triangular(self.L, u, upper=False, left=False)
        g = torch.baddbmm(g, x, self.Gt, beta=-1).mul_(self.weights)
        return torch.cat((x, e, g) if self.p else (x, g), 2)


def _start(newton: _Newton) -> Tensor:
    """``[x | y | s]`` with ``s - y_G = h - Gx``, as Newton's first step wants it, and all products ``s y`` the same."""
    newton.factor(torch.ones_like(newton.c[..., newton.n + newton.p :]))
    z = newton.solve(-newton.c)
    y = z[..., newton.n + newton.p :]
    root = (0.25 * y * y + _START).sqrt_()
    s = root - 0.5 * y
    y.mul_(0.5).add_(root)
    return torch.cat((z, s), 2)


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(2, keepdim=True) if t.shape[2] else t.new_zeros(*t.shape[:2], 1)


class _Iterate:
    """``[x | y_E | y_G | s]`` as one tensor, ``(B, 1, .)``, and views of its parts."""

    def __init__(self, newton: _Newton, whole: Tensor):
        n, inner, end = newton.n, newton.n + newton.p, newton.n + newton.p + newton.m
        self.whole, self.both = whole, whole[..., :end]
        self.x, self.dual, self.y, self.s = whole[..., :n], whole[..., n:end], whole[..., inner:end], whole[..., end:]


class _Record(NamedTuple):
    """What is known of the elements in the batch, ``(B, 1, .)``; ``kept`` is the iterate of residual ``best``, if any."""

    row: Tensor
    status: Tensor
    iterations: Tensor
    waited: Tensor
    best: Tensor
    kept: Tensor


def _merit(newton: _Newton, z: _Iterate, residual: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """The largest relative residual, row by row, or the relative gap; and the norm of the iterate; ``(B, 1, 1)``."""
    size_x, size_y = _largest(z.x), _largest(z.dual)
    scale = newton.size + size_x.clamp(max=_CEILING)
    scale[..., : newton.n] += size_y.clamp(max=_CEILING)
    scale[..., newton.n + newton.p :] += z.s
    objective = (newton.c * z.both).abs().sum(2, keepdim=True).add_(_FLOOR)
    return torch.maximum((residual.abs() / scale).amax(2, keepdim=True), gap / objective), torch.maximum(size_x, size_y)


def _judge(
    record: _Record, z: _Iterate, merit: Tensor, size: Tensor, iteration: int, options: InteriorPoint
) -> _Record:
    """Keep the best iterates, and end the elements that are solved, stuck or lost."""
    live = record.status == _RUNNING
    better = live & (merit < record.best)
    best, kept = torch.where(better, merit, record.best), torch.where(better, z.whole, record.kept)
    waited = torch.where(better, 0, record.waited + 1)
    good = best < options.inaccurate_tolerance
    lost = ~(merit.isfinite() & (size < _FAR))
    stop = live & ((best <= options.tolerance) | (good & (waited >= _PATIENCE)) | lost)
    verdict = torch.where(stop, NUMERICAL_ERROR, ITERATION_LIMIT)
    verdict = torch.where(best <= options.solved_tolerance, SOLVED, torch.where(good, INACCURATE, verdict))
    status = torch.where(stop | (live & (iteration == options.max_iterations)), verdict, record.status)
    return _Record(record.row, status, torch.where(live, iteration, record.iterations), waited, best, kept)


def _iterate(newton: _Newton, options: InteriorPoint) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the central path; returns ``[x | y | s]`` ``(B, 1, .)``, and status and iterations ``(B,)``."""
    z, last, limit = _Iterate(newton, _start(newton)), options.max_iterations, options.inaccurate_tolerance
    shrinks = z.whole.device.type == "cpu"
    tests = range(_FIRST_TEST if newton.m else 0, last, 1 if shrinks else 2)  # a test waits for the device
    row = torch.arange(len(z.whole), device=z.whole.device)[:, None, None]
    answer, status, iterations = torch.full_like(z.whole, torch.nan), torch.empty_like(row), torch.zeros_like(row)
    record = _Record(row, torch.full_like(row, _RUNNING), iterations, iterations, z.x.new_full(row.shape, limit), answer)
    answer, iteration = answer.clone(), -1
    while True:
        iteration += 1
        residual = newton.product(z.x, z.dual).add_(newton.c)
        residual[..., newton.n + newton.p :] += z.s
        products = z.s * z.y
        gap = products.sum(2, keepdim=True)
        if iteration in tests or iteration == last:
            merit, size = _merit(newton, z, residual, gap)
            notable = torch.minimum(torch.minimum(merit, record.best), limit * _FAR / size).amin()
            if iteration == last or not float(notable) >= limit:
                record = _judge(record, z, merit, size, iteration, options)
                left = (record.status == _RUNNING).flatten().nonzero().squeeze(1)
                if not len(left) or (shrinks and 2 * len(left) <= len(record.row)):
                    done = record.row.flatten()
                    answer[done], status[done], iterations[done] = record.kept, record.status, record.iterations
                    if not len(left):
                        return answer, status.flatten(), iterations.flatten()
                    newton, z = newton.take(left), _Iterate(newton, z.whole[left])
                    record = _Record(*(t[left] for t in record))
                    residual, products, gap = residual[left], products[left], gap[left]
        _advance(newton, z, residual, products, gap, refine=iteration >= _FIRST_REFINEMENT)


def _advance(newton: _Newton, z: _Iterate, residual: Tensor, products: Tensor, gap: Tensor, refine: bool) -> None:
    """One predictor-corrector step, in place.

    In relative terms, ``rho = dy / y``, the predictor ``s dy + y ds = -s y`` has ``ds / s = -1 - rho``, and the corrector
    ``s dy + y ds = -phi s y``,  ``phi = 1 + (dy ds)_predictor / (s y) - sigma mu / (s y)``,  has ``ds / s = -phi - rho``.
    """
    n, inner, m = newton.n, newton.n + newton.p, newton.m
    if not m:
        newton.factor(z.s)
        z.both.add_(newton.solve(residual.neg()))
        return
    inverse = z.y.reciprocal()
    ratio = z.s * inverse
    newton.factor(ratio)
    r = residual.neg()
    r[..., inner:].add_(z.s)
    rho = (newton.solve(r)[..., inner:] * inverse).add_(0.5)
    far = rho.abs().amax(2, keepdim=True)  # the predictor reaches the boundary at 1 / (1/2 + max |rho + 1/2|)
    short = (far - 0.5).clamp_(min=0).div_(far + 0.5)
    sigma = short * short * short
    phi = rho.mul_(rho).neg_().add_(1.25).addcdiv_(gap * sigma, products, value=-1 / m)
    r = residual * (sigma - 1)
    r[..., inner:].addcmul_(z.s, phi)
    step = newton.solve(r)
    if refine:
        dual = step[..., n:]
        r -= newton.product(step[..., :n], dual)
        r[..., inner:].addcmul_(dual[..., newton.p :], ratio)
        step += newton.solve(r)
    rho = step[..., inner:] * inverse
    psi = phi.add_(rho)
    fraction = 1 - sigma.clamp(*_MARGIN)
    length = fraction / torch.maximum(torch.maximum(psi, -rho).amax(2, keepdim=True), fraction)
    z.both.addcmul_(step, length)
    z.s.addcmul_(z.s * psi, length, value=-1)

"""A batched primal-dual interior-point method for convex quadratic programs, in plain torch.

The module is long for one reason: preparation, iteration and proof share the padded, scaled form of the data.

Every element of the batch is a quadratic program with the same numbers of variables and rows,

    minimise  1/2 x'Px + q'x   subject to   Ex = e,   Gx + s = h,   s >= 0,

optimal where also  Px + q + E'y_E + G'y_G = 0,  y_G >= 0,  s'y_G = 0.  The method is Mehrotra's predictor-corrector
(1992) from an infeasible start, with the linear algebra of a proximal method: the Newton systems have the matrix

    K = [[P + delta I, E', G'], [E, -delta I, 0], [G, 0, -(S/Y) - delta I]]

but the true residual on the right, so that delta costs speed of convergence and no accuracy (Altman & Gondzio 1999;
Friedlander & Orban 2012).  It makes K factorisable whatever the ranks of P, E and G, and bounds the weights of the
condensed matrix  H = P + delta I + E'E + G'WG,  W = 1 / (S/Y + delta).  The factors are Cholesky's, of H and of the Schur
complement  E H^-1 E'.  Where P is diagonal and the rows of G are bounds, H is diagonal too.

Elements never meet: on CPU the answer to one does not depend, to the last bit, on what else is in the batch.  Therefore
scalings are powers of two, and dimensions are padded to even numbers: dense kernels round differently on data that is
not aligned to 16 bytes.  On other devices, where kernels may depend on the size of the batch, it is never shrunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, solve_triangular
from torch.nn.functional import pad

from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.checks import require_positive
from ddn_cvx.solvers.deadline import expired

SOLVED, INACCURATE, INFEASIBLE, UNBOUNDED, ITERATION_LIMIT, NUMERICAL_ERROR = range(6)

Answer = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # x, y, s, status, iterations

_FIRST_TEST = 3  # the first iteration that may be the last one where there are inequalities
_FIRST_REFINEMENT = 5  # S/Y spans too few orders of magnitude before this iteration for refinement to matter
_PATIENCE = 3  # tests without progress after which an inaccurate iterate is the best there will be
_START = 0.1  # products s y at the start, for data of order one
_BEYOND = 1e3  # how much larger or smaller than the free minimiser the solution is taken to be at most
_FAR = 1e6  # norm of an iterate that is diverging
_FLOOR = 1e-6  # what counts as zero next to data of order one when residuals are made relative
_CEILING = 1e3  # norm of an iterate beyond which residuals are no longer taken relative to it
_GROWTH = 1e3  # how much a step aims to increase a product s y at most; some of bounds far away become tiny
_MARGIN = (1e-4, 0.03)  # least and largest part of the way to the boundary that a step leaves
_ROUNDING = 1e-14  # relative increase of a diagonal that outweighs the rounding of its Cholesky factor
_CHUNK = 2**26  # numbers in P and A that are solved at a time (half a gigabyte)


@register
@dataclass(frozen=True)
class InteriorPoint(Solver):
    """The batched interior-point method in torch, for dense convex quadratic programs on any device (Mehrotra, SIAM J.
    Optim. 2, 1992; Altman & Gondzio, Optim. Methods Softw. 11, 1999). Tolerances are relative and apply to equilibrated
    data.

    Raises
    ------
    InputError
        An option that is not positive.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    >>> layer = ddn.DeclarativeLayer(problem, [p], x, solver=ddn.InteriorPoint(max_iterations=40))
    >>> layer(torch.tensor([[0.8, 0.6], [0.5, 0.9]]))
    tensor([[0.6000, 0.4000],
            [0.3000, 0.7000]])
    """

    name: ClassVar[str] = "interior_point"
    minds_time: ClassVar[bool] = True
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
    regularisation: float = 1e-8
    """The proximal weight delta, next to data of order one (default 1e-8)."""

    def __post_init__(self) -> None:
        require_positive(f"solver '{self.name}'", self)

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


def solve_qp(P: Tensor, q: Tensor, A: Tensor, b: Tensor, zero: int, options: InteriorPoint | None = None) -> Answer:
    """Solve a batch of ``min 1/2 x'Px + q'x  s.t.  Ax + s = b``, ``s = 0`` in the first ``zero`` rows, ``s >= 0`` below.

    ``P (B, n, n)`` is symmetric positive semidefinite, ``q (B, n)``, ``A (B, m, n)``, ``b (B, m)``; all are float64, on one
    device, with any ``B, m >= 0`` and ``n >= 1``.

    Returns ``(x, y, s, status, iterations)``: primal ``(B, n)``, dual ``(B, m)`` and slack ``(B, m)`` vectors, and for
    each element ``(B,)`` its status code and number of iterations, int64.  SOLVED and INACCURATE elements have passed
    a check of the optimality conditions on the data as given.  Where an element is INFEASIBLE, ``y`` is a certificate
    (``A'y = 0``, ``b'y = -1``, ``y >= 0`` below the first ``zero`` rows); where it is UNBOUNDED, ``x`` is a ray (``Px = 0``,
    ``q'x = -1``, ``-Ax`` an admissible slack).  All other vectors are NaN; so are all vectors of an element whose data
    are not finite, and it is a NUMERICAL_ERROR.

    Raises
    ------
    ValueError
        Shapes, dtypes, devices or ``zero`` do not fit together.
    """
    data, options = _Data(P, q, A, b), options or InteriorPoint()
    data.validate(zero)
    m, n = A.shape[1:]
    chunks = zip(*(t.split(max(1, _CHUNK // (n * (n + m)))) for t in data), strict=True)
    answers = [_solve(_Data(*chunk), zero, options) for chunk in chunks]
    # Concatenation also makes ordinary tensors of those of inference mode.
    x, y, s, status, iterations = (torch.cat(parts) for parts in zip(*answers, strict=True))
    return x, y, s, status, iterations


class _Data(NamedTuple):
    P: Tensor
    q: Tensor
    A: Tensor
    b: Tensor

    def take(self, rows: Tensor) -> _Data:
        return _Data(*(t[rows] for t in self))

    def validate(self, zero: int) -> None:
        if self.A.dim() != 3 or self.A.shape[2] == 0:
            raise ValueError(f"A must be (B, m, n) with n >= 1, got {tuple(self.A.shape)}: add the batch dimension")
        batch, m, n = self.A.shape
        for name, t, shape in zip("PqAb", self, ((batch, n, n), (batch, n), (batch, m, n), (batch, m)), strict=True):
            if tuple(t.shape) != shape:
                raise ValueError(f"{name} must be {shape} to go with A {(batch, m, n)}, got {tuple(t.shape)}")
            if t.dtype != torch.float64 or t.device != self.A.device:
                raise ValueError(f"{name} must be float64 on {self.A.device}, got {t.dtype} on {t.device}: convert it")
        if not 0 <= zero <= m:
            raise ValueError(f"zero counts rows of A, so 0 <= zero <= {m}, got {zero}")


@torch.inference_mode()
def _solve(data: _Data, zero: int, options: InteriorPoint) -> Answer:
    P, q, A, b = data
    if not len(q):
        codes = torch.zeros(0, dtype=torch.int64, device=q.device)
        return q, b, b, codes, codes
    finite = (P.sum((1, 2)) + q.sum(1) + A.sum((1, 2)) + b.sum(1)).isfinite()
    row, every = finite[:, None], bool(finite.all())
    if not every:  # a harmless problem takes the place of one that cannot be solved
        P, A = torch.where(row[..., None], P, torch.eye(P.shape[1]).to(P)), torch.where(row[..., None], A, 0.0)
        q, b = torch.where(row, q, 0.0), torch.where(row, b, (torch.arange(b.shape[1], device=b.device) >= zero).to(b))
        data = _Data(P, q, A, b)
    separable = (P != 0).sum((1, 2)) == (P.diagonal(dim1=1, dim2=2) != 0).sum(1)
    if bool(separable.any()):
        separable &= ((A[:, zero:] != 0).sum(2) <= 1).all(1)
    if not every:
        separable = torch.where(finite, separable, (separable & finite).any())
    dense = int((~separable).sum())
    if dense in (0, len(q)):
        x, y, s, status, iterations = _solve_kind(data, zero, not dense, options)
    else:
        order = separable.int().argsort(stable=True)
        parts = [
            _solve_kind(data.take(rows), zero, kind, options)
            for kind, rows in zip((False, True), order.tensor_split((dense,)), strict=True)
        ]
        back = order.argsort()
        x, y, s, status, iterations = (torch.cat(pair)[back] for pair in zip(*parts, strict=True))
    if not every:
        x, y, s = (torch.where(row, t, torch.nan) for t in (x, y, s))
        status = torch.where(finite, status, NUMERICAL_ERROR)
    unsolved = (finite & (status != SOLVED)).nonzero().squeeze(1)
    if len(unsolved):
        found = _certify(data.take(unsolved), x[unsolved], y[unsolved], s[unsolved], status[unsolved], zero, options)
        x, y, s, status = (t.index_copy(0, unsolved, new) for t, new in zip((x, y, s, status), found, strict=True))
    return x, y, s, status, iterations


def _solve_kind(data: _Data, zero: int, separable: bool, options: InteriorPoint) -> Answer:
    """Scale, pad, iterate, undo both, and check: for finite data that are all separable or all to be taken as dense."""
    P, A, q, b = data.P, data.A, data.q[:, None], data.b[:, None]
    (m, n), diagonal = A.shape[1:], P.diagonal(dim1=1, dim2=2)[:, None]
    D, R, beta, gamma = _scales(data, zero)
    c = _even(torch.cat((q * (D / gamma), b * (-R / beta)), 2), 2, n, zero, m - zero)
    new_A = _even(_even((A * D).mul_(R.mT), 2, n), 1, zero, m - zero)
    if separable:
        new_P = _even(diagonal * (D * D * (beta / gamma)), 2, n)
    else:
        new_P = _even(_even((P * (D * (beta / gamma))).mul_(D.mT), 2, n), 1, n)
    if n % 2:  # a variable was added: 1/2 x^2
        new_P[:, -1, n] = 1
    if (m - zero) % 2:  # a row was added: s = 1
        c[..., -1] = -1
    newton = _Newton(new_P, new_A, c, zero + zero % 2, separable, options.regularisation)
    z, status, iterations = _iterate(newton, options)
    x, inner, end = z[..., :n] * (D * beta), newton.inner, newton.end
    y = torch.cat((z[..., newton.n : newton.n + zero], z[..., inner : inner + m - zero]), 2) * (R * gamma)
    s = torch.cat((0 * z[..., newton.n : newton.n + zero], z[..., end : end + m - zero]), 2) * (beta / R)
    # The same measure of error as in the iteration, but from the data as given.
    top = torch.baddbmm(x * diagonal if separable else x @ P, y, A).add_(q)
    residual = torch.cat((top * (D / gamma), (x @ A.mT).add_(s).sub_(b) * (R / beta)), 2)
    gap = (s * y).sum(2, keepdim=True) / (beta * gamma)
    error = _merit(newton, _Iterate(newton, z), _even(residual, 2, n, zero, m - zero), gap).flatten()
    claimed = status <= INACCURATE
    status = torch.where(claimed & ~(error <= options.solved_tolerance), INACCURATE, status)
    status = torch.where(claimed & ~(error <= options.inaccurate_tolerance), NUMERICAL_ERROR, status)
    return x.squeeze(1), y.squeeze(1), s.squeeze(1), status, iterations


def _even(t: Tensor, dim: int, *lengths: int) -> Tensor:
    """Add a zero to every part of odd length along a dimension."""
    if not any(length % 2 for length in lengths):
        return t
    end = (0,) * (4 - 2 * dim) + (0, 1)
    return torch.cat([pad(part, end) if part.shape[dim] % 2 else part for part in t.split(lengths, dim)], dim)


def _scales(data: _Data, zero: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Powers of two that bring the largest entries of rows and columns, then x and b, then P and q near one.

    With ``x = beta D x^``, ``s = beta s^ / R``, ``y = gamma R y^`` the data are ``D P D beta / gamma``, ``D q / gamma``,
    ``R A D`` and ``R b / beta``.  The largest entries of P are on its diagonal.  The size beta of x is that of b, though
    not much more or less than that of the free minimiser, for many a bound is far away or zero; but rows that x = 0
    violates need at least their own.  Returns rows ``D (B, 1, n)``, ``R (B, 1, m)``, ``beta`` and ``gamma (B, 1, 1)``.
    """
    diagonal, q, A, b = data.P.diagonal(dim1=1, dim2=2)[:, None], data.q[:, None], data.A, data.b[:, None]
    columns, R = diagonal.clamp(min=0).sqrt_(), b
    if A.shape[1]:
        entries = A.abs()
        rows = _inverse_power(entries.amax(2, keepdim=True))
        columns = torch.maximum(columns, entries.mul_(rows).amax(1, keepdim=True))
    D = _inverse_power(columns)
    size_P, size_q = (diagonal * D * D).amax(2, keepdim=True), (q * D).abs().amax(2, keepdim=True)
    size = size_q / size_P
    if A.shape[1]:
        R = (rows * _inverse_power(entries.mul_(D).amax(2, keepdim=True))).mT
        bounds = R * b
        free = torch.where((size > 0) & (size < torch.inf), size, torch.nan)
        size = _median(bounds.abs())  # fmin and fmax take the other argument where one is NaN
        size = torch.where(size.isnan(), free, size).fmax(free / _BEYOND).fmin(free * _BEYOND)
        size = size.fmax(_median(torch.cat((bounds[..., :zero].abs(), -bounds[..., zero:]), 2)))
    beta = 1 / _inverse_power(size)
    return D, R, beta, 1 / _inverse_power(torch.maximum(beta * size_P, size_q))


def _median(t: Tensor) -> Tensor:
    """The median of the positive entries of each row; NaN where there are none."""
    return torch.where(t > 0, t, torch.nan).nanmedian(2, keepdim=True).values


def _inverse_power(size: Tensor) -> Tensor:
    """The inverse of the power of two next to ``size``, exactly; 1 for what is not a positive number."""
    size = 0.7 * size
    return (torch.frexp(size).mantissa / size).nan_to_num_(nan=1.0)


def _certify(
    data: _Data, x: Tensor, y: Tensor, s: Tensor, status: Tensor, zero: int, options: InteriorPoint
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Put in place of ``x, y, s, status`` a proof that there is no solution, where one is found.

    The point of ``{y : A'y = 0, y_G >= 0}`` nearest to ``-b`` is zero or has ``b'y < 0``, and then no point is feasible
    (Farkas); the point of ``{x : Px = 0, Ex = 0, Gx <= 0}`` nearest to ``-q`` is zero or has ``q'x < 0``, and then feasible
    points get better for ever.
    """
    (D, R, beta, gamma), (P, q, A, b), (m, n) = _scales(data, zero), data, data.A.shape[1:]
    new_P, new_A, D, R = P * (D * (beta / gamma)) * D.mT, A * D * R.mT, D[:, 0], R[:, 0]
    ray, unbounded = _project(q * D / gamma[:, 0], torch.cat((new_P, new_A), 1), n + zero, False, options)
    dual, infeasible = y, torch.zeros_like(unbounded)
    if m:
        signs = -torch.eye(m).to(P)[zero:].expand(len(P), -1, -1)
        dual, infeasible = _project(b * R / beta[:, 0], torch.cat((new_A.mT, signs), 1), n, True, options)
        dual = torch.cat((dual[:, :zero], dual[:, zero:].clamp(min=0)), 1) * R
    unbounded &= ~infeasible
    ray, dual = ray * D / -(q * ray * D).sum(1, keepdim=True), dual / -(b * dual).sum(1, keepdim=True)
    x = torch.where(unbounded, ray, x.masked_fill(infeasible, torch.nan))
    y = torch.where(infeasible, dual, y.masked_fill(unbounded, torch.nan))
    status = status.masked_fill(infeasible[:, 0], INFEASIBLE).masked_fill_(unbounded[:, 0], UNBOUNDED)
    return x, y, s.masked_fill(infeasible | unbounded, torch.nan), status


def _project(target: Tensor, rows: Tensor, zero: int, separable: bool, options: InteriorPoint) -> tuple[Tensor, Tensor]:
    """The v nearest to ``-target`` with ``rows v = 0`` first and ``<= 0`` below, and whether ``target'v < 0`` for sure."""
    identity = torch.eye(target.shape[1]).to(rows).expand(len(rows), -1, -1)
    data = _Data(identity, target, rows, rows.new_zeros(rows.shape[:2]))
    exact = replace(options, tolerance=1e-300)  # go on until there is no more progress
    v = _solve_kind(data, zero, separable, exact)[0]
    change, gain = (v[:, None] @ rows.mT)[:, 0], -(target * v).sum(1, keepdim=True)
    violation = torch.cat((change[:, :zero].abs(), change[:, zero:]), 1).amax(1, keepdim=True)
    return v, (gain > 0) & (violation <= options.certificate_tolerance * gain)


class _Newton:
    """The data of a batch and the factors of K.

    Vectors are rows ``(B, 1, .)``, as a row times a matrix is the fastest of batched products: ``[x | y_E | y_G]``, and
    ``c = [q | -e | -h]`` of the optimality conditions ``[Px + E'y_E + G'y_G | Ex | Gx] + c = [0 | 0 | -s]``.  Of a
    diagonal P there is only the diagonal, a row too.  How V and the solutions of triangular systems lie in memory
    decides which kernel multiplies them, and only these layouts round alike for all sizes of the batch.
    """

    def __init__(self, P: Tensor, A: Tensor, c: Tensor, p: int, separable: bool, delta: float):
        self.P, self.A, self.c, self.p, self.separable, self.delta = P, A, c, p, separable, delta
        self.n, self.m, self.size = P.shape[2], A.shape[1] - p, c.abs() + _FLOOR
        self.inner, self.end = self.n + p, self.n + p + self.m
        self.E, self.G, self.At, self.Gt = A[:, :p], A[:, p:], A.mT, A[:, p:].mT
        if separable:
            self.base, self.squares = P + delta, self.G * self.G
        else:
            self.base = torch.baddbmm(P, self.E.mT, self.E)
            self.base.diagonal(dim1=1, dim2=2).add_(delta)

    def take(self, rows: Tensor) -> _Newton:
        return _Newton(self.P[rows], self.A[rows], self.c[rows], self.p, self.separable, self.delta)

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        Px = x * self.P if self.separable else torch.bmm(x, self.P)
        return torch.cat((torch.baddbmm(Px, y, self.A), torch.bmm(x, self.At)), 2)

    def factor(self, ratio: Tensor) -> None:
        """Factorise for ``ratio = s / y``, ``(B, 1, m)``."""
        self.weights = w = (ratio + self.delta).reciprocal_()
        if self.separable:
            self.half = torch.baddbmm(self.base, w, self.squares).rsqrt_()
            V = (self.E * self.half).mT.contiguous()
        else:
            H = torch.baddbmm(self.base, self.Gt, self.G * w.mT)
            H.diagonal(dim1=1, dim2=2).mul_(1 + _ROUNDING)
            self.L = cholesky_ex(H).L
            V = solve_triangular(self.L.mT, self.E, upper=True, left=False).mT if self.p else self.L
        if self.p:
            S = torch.bmm(V.mT, V)
            S.diagonal(dim1=1, dim2=2).mul_(1 + _ROUNDING).add_(self.delta)
            self.V, self.C = V, cholesky_ex(S).L

    def solve(self, r: Tensor) -> Tensor:
        """``K^-1 r``."""
        f, e, g = r.split((self.n, self.p, self.m), 2)
        u = torch.baddbmm(f, g * self.weights, self.G)
        if self.separable:
            u.mul_(self.half)
        else:
            u = torch.baddbmm(u, e, self.E) if self.p else u
            u = solve_triangular(self.L, u.mT, upper=False).mT
        if self.p:
            e = torch.baddbmm(e, u, self.V, beta=-1)
            e = torch.cholesky_solve(e.mT, self.C).mT
            u = torch.baddbmm(u, e, self.V.mT, alpha=-1)
        x = u.mul_(self.half) if self.separable else solve_triangular(self.L.mT, u.mT, upper=True).mT
        g = torch.baddbmm(g, x, self.Gt, beta=-1).mul_(self.weights)
        return torch.cat((x, e, g) if self.p else (x, g), 2)


class _Iterate:
    """``[x | y_E | y_G | s]`` as one tensor, ``(B, 1, .)``, and views of its parts."""

    def __init__(self, newton: _Newton, whole: Tensor):
        n, inner, end = newton.n, newton.inner, newton.end
        self.whole, self.both = whole, whole[..., :end]
        self.x, self.dual, self.y, self.s = whole[..., :n], whole[..., n:end], whole[..., inner:end], whole[..., end:]


class _Record(NamedTuple):
    """What is known of elements, ``(B, 1, .)``; ``kept`` is the iterate of residual ``best``, if that is small at all."""

    row: Tensor
    live: Tensor
    iterations: Tensor
    waited: Tensor
    best: Tensor
    kept: Tensor


def _start(newton: _Newton) -> _Iterate:
    """The iterate with ``s - y_G = h - Gx``, as Newton's first step wants it, and all products ``s y`` the same."""
    newton.factor(torch.ones_like(newton.c[..., newton.inner :]))
    z = newton.solve(newton.c.neg())
    y = z[..., newton.inner :]
    root = (0.25 * y * y).add_(_START).sqrt_()
    s = root - 0.5 * y
    y.mul_(0.5).add_(root)
    return _Iterate(newton, torch.cat((z, s), 2))


def _iterate(newton: _Newton, options: InteriorPoint) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the central path; returns ``[x | y | s]`` ``(B, 1, .)``, and status and iterations ``(B,)``."""
    z, last, limit = _start(newton), options.max_iterations, options.inaccurate_tolerance
    shrinks = z.whole.device.type == "cpu"
    tests = range(_FIRST_TEST if newton.m else 0, last, 1 if shrinks else 2)  # a test waits for the device
    row = torch.arange(len(z.whole), device=z.whole.device)[:, None, None]
    nothing = torch.zeros_like(row)
    best, kept = z.x.new_full(row.shape, limit), torch.full_like(z.whole, torch.nan)
    result = record = _Record(row, nothing == 0, nothing, nothing, best, kept)
    for iteration in range(last + 1):
        residual = newton.product(z.x, z.dual).add_(newton.c)
        residual[..., newton.inner :].add_(z.s)
        products = z.s * z.y
        gap = products.sum(2, keepdim=True)
        over = iteration == last or expired()
        if iteration in tests or over:
            merit = _merit(newton, z, residual, gap)
            if over or not float(torch.minimum(merit, record.best).amin()) >= limit:
                record = _judge(record, z, merit, iteration, options)
                left = record.live.flatten().nonzero().squeeze(1)
                ended = over or not len(left)
                if ended or (shrinks and 2 * len(left) <= len(record.row)):
                    rows = record.row.flatten()
                    result = _Record(*(all_.index_copy(0, rows, some) for all_, some in zip(result, record, strict=True)))
                    if ended:
                        break
                    newton, z = newton.take(left), _Iterate(newton, z.whole[left])
                    record = _Record(*(t[left] for t in record))
                    residual, products, gap = residual[left], products[left], gap[left]
        _advance(newton, z, residual, products, gap, refine=iteration >= _FIRST_REFINEMENT)
    status = torch.where(result.live, ITERATION_LIMIT, NUMERICAL_ERROR).masked_fill_(result.best < limit, INACCURATE)
    status.masked_fill_(result.best <= options.solved_tolerance, SOLVED)
    return result.kept, status.flatten(), result.iterations.flatten()


def _merit(newton: _Newton, z: _Iterate, residual: Tensor, gap: Tensor) -> Tensor:
    """The largest relative residual, row by row, or the relative gap, ``(B, 1, 1)``; NaN where the iterate diverges."""
    sizes = z.both.abs()
    size_x = sizes[..., : newton.n].amax(2, keepdim=True)
    size_y = sizes[..., newton.n :].amax(2, keepdim=True) if newton.end > newton.n else size_x
    scale = newton.size + size_x.clamp(max=_CEILING)
    scale[..., : newton.n].add_(size_y.clamp(max=_CEILING))
    scale[..., newton.inner :].add_(z.s)
    values = newton.c * z.both
    primal, both = values[..., : newton.n].sum(2, keepdim=True), values.sum(2, keepdim=True)
    objective = torch.maximum(primal.abs(), (both - primal).abs()).add_(_FLOOR)
    merit = torch.maximum((residual.abs() / scale).amax(2, keepdim=True), gap / objective)
    return merit.masked_fill_(torch.maximum(size_x, size_y) > _FAR, torch.nan)


def _judge(record: _Record, z: _Iterate, merit: Tensor, iteration: int, options: InteriorPoint) -> _Record:
    """Keep the best iterates, and end the elements that are solved, stuck or lost."""
    better = (merit < record.best) & record.live
    best, kept = torch.where(better, merit, record.best), torch.where(better, z.whole, record.kept)
    waited = (record.waited + 1).masked_fill_(better, 0)
    stuck = (waited >= _PATIENCE) & (best < options.inaccurate_tolerance)
    live = record.live & ~((best <= options.tolerance) | stuck | merit.isnan())
    return _Record(record.row, live, torch.where(record.live, iteration, record.iterations), waited, best, kept)


def _advance(newton: _Newton, z: _Iterate, residual: Tensor, products: Tensor, gap: Tensor, refine: bool) -> None:
    """One predictor-corrector step, in place.

    In relative terms, ``rho = dy / y``, the predictor ``s dy + y ds = -s y`` has ``ds / s = -1 - rho``, and the corrector
    ``s dy + y ds = -phi s y``,  ``phi = 1 + (dy ds)_predictor / (s y) - sigma mu / (s y)``,  has ``ds / s = -phi - rho``.
    """
    n, inner = newton.n, newton.inner
    if not newton.m:
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
    centring = (gap * (sigma / newton.m) / products).clamp_(max=_GROWTH)
    phi = rho.mul_(rho).neg_().add_(1.25).sub_(centring)
    r = residual * (sigma - 1)
    r[..., inner:].addcmul_(z.s, phi)
    step = newton.solve(r)
    if refine:
        dual = step[..., n:]
        r.sub_(newton.product(step[..., :n], dual))
        r[..., inner:].addcmul_(dual[..., newton.p :], ratio)
        step.add_(newton.solve(r))
    rho = step[..., inner:] * inverse
    psi = phi.add_(rho)
    fraction = 1 - sigma.clamp_(*_MARGIN)
    length = fraction / torch.maximum(torch.maximum(psi, rho.neg_()).amax(2, keepdim=True), fraction)
    z.both.addcmul_(step, length)
    z.s.addcmul_(psi.mul_(z.s), length, value=-1)

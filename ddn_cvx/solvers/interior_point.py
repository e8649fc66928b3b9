"""A batched primal-dual interior-point method for convex quadratic programs, in plain torch.

Every element of the batch is a quadratic program with the same numbers of variables and rows,

    minimise  1/2 x'Px + q'x   subject to   Ex = e,   Gx + s = h,   s >= 0,

optimal where also  Px + q + E'y_E + G'y_G = 0,  y_G >= 0,  s'y_G = 0.  The method is Mehrotra's predictor-corrector
(1992) from an infeasible start (``interior_point_path``); here the data are scaled and padded for it, what it finds is
checked on the data as given, and where it finds nothing a proof that there is nothing is looked for.

Elements never meet: on CPU the answer to one does not depend, to the last bit, on what else is in the batch.  Therefore
scalings are powers of two, and dimensions are padded to even numbers: dense kernels round differently on data that is
not aligned to 16 bytes.  On other devices, where kernels may depend on the size of the batch, it is never shrunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddn_cvx.checks import require_positive_options
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.by_name import register
from ddn_cvx.solvers.elementwise import is_finite
from ddn_cvx.solvers.interior_point_path import Iterate, Limits, Newton, iterate, merit_of

Answer = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # x, y, s, status, iterations

_BEYOND = 1e3  # how much larger or smaller than the free minimiser the solution is taken to be at most
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
        require_positive_options(self)

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
        status = torch.where(is_finite(data), status, int(Status.INVALID_DATA))
        solution = (status <= int(Status.INACCURATE))[:, None]  # a certificate is none
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
    """
    data, options = _Data(P, q, A, b), options or InteriorPoint()
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
        status = torch.where(finite, status, int(Status.NUMERICAL_ERROR))
    unsolved = (finite & (status != int(Status.SOLVED))).nonzero().squeeze(1)
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
    newton = Newton(new_P, new_A, c, zero + zero % 2, separable, options.regularisation)
    limits = Limits(options.max_iterations, options.tolerance, options.solved_tolerance, options.inaccurate_tolerance)
    z, status, iterations = iterate(newton, limits)
    x, inner, end = z[..., :n] * (D * beta), newton.inner, newton.end
    y = torch.cat((z[..., newton.n : newton.n + zero], z[..., inner : inner + m - zero]), 2) * (R * gamma)
    s = torch.cat((0 * z[..., newton.n : newton.n + zero], z[..., end : end + m - zero]), 2) * (beta / R)
    # The same measure of error as in the iteration, but from the data as given.
    top = torch.baddbmm(x * diagonal if separable else x @ P, y, A).add_(q)
    residual = torch.cat((top * (D / gamma), (x @ A.mT).add_(s).sub_(b) * (R / beta)), 2)
    gap = (s * y).sum(2, keepdim=True) / (beta * gamma)
    error = merit_of(newton, Iterate(newton, z), _even(residual, 2, n, zero, m - zero), gap).flatten()
    claimed = status <= int(Status.INACCURATE)
    status = torch.where(claimed & ~(error <= options.solved_tolerance), int(Status.INACCURATE), status)
    status = torch.where(claimed & ~(error <= options.inaccurate_tolerance), int(Status.NUMERICAL_ERROR), status)
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
    status = status.masked_fill(infeasible[:, 0], int(Status.INFEASIBLE))
    status = status.masked_fill(unbounded[:, 0], int(Status.UNBOUNDED))
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

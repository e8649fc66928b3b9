"""The KKT system of a nonlinear program with its active constraints taken as equalities.

    [ H    Jh'  Ja'  E ] [ u   ]   [ top ]
    [ Jh             . ] [ t_h ] = [ h   ]        rows of inactive inequalities and bounds have t = 0 instead
    [ Ja             . ] [ t_g ]   [ g   ]
    [ E'             . ] [ t_z ]   [ z   ]

Elements of a batch have different active constraints, but one shape: inactive rows are masked, and a variable at a bound is
taken out of H, which needs no row for it. Newton's method on the optimality conditions and both directions of
differentiation use this one symmetric system.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx.errors import DifferentiationError
from ddn_cvx.linalg.blocks import add_to_diagonal, keep, per_element, row_sizes, times, to_dense
from ddn_cvx.linalg.iterative import minres
from ddn_cvx.linalg.kkt import NullSpace
from ddn_cvx.linalg.saddle import SaddleKKT
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.program.optimality import Active, Judged, State, curvature, judge, largest
from ddn_cvx.program.products import Products

GOAL = 1e-14
"""Relative residual at which nothing is left to gain."""
FAIR = 1e-10
"""Residual from which on a step that does not help is not shortened: rounding is in the way."""
ROUNDING = 1e-12
"""Relative violation that is rounding whatever the units of a constraint."""
LENGTHS = (1.0, 0.25, 0.0625)
"""Steps that are tried."""
FAR = 0.1
"""Relative distance beyond which polishing does not go."""
PRODUCT_TOLERANCE = 1e-10
"""Relative residual to which systems too large for matrices are solved."""
PRODUCTS = 5000
"""Products that one may cost."""
STRAINED = 1e6
"""Growth beyond which a solution is determined to the root of the tolerance, as where no multipliers exist."""
DEPENDENT = 1e-4
"""Smallest singular value of active constraints, of unit length each, which are dependent to that root."""
ASTRAY = 1e-3
"""Relative length of Newton's step at a point that satisfies the conditions, but is not next to where they hold exactly."""
NEARLY_FLAT = 1e-5
"""Curvature, relative to the largest entry of the Hessian, of directions that are looked along for lower points."""

Columns = tuple[Tensor, Tensor, Tensor, Tensor]


class ActiveKKT:
    """Factor for a batch of B elements; ``active`` with entries 0 and 1 (signed for bounds).

    Parameters
    ----------
    H : Tensor (B, n, n) or (B, g, s, s)
        Whole, or its diagonal blocks. Not copied: it may be divided by its unit, a power of two.
    Jh : Tensor (B, p, n)
    Jg : Tensor (B, m, n)
    active : Active
    ok : Tensor (B,) bool
        Elements without a solution are False and get a harmless system.
    visible : Tensor (n,) bool, optional
        The variables whose uniqueness matters.
    """

    def __init__(self, H: Tensor, Jh: Tensor, Jg: Tensor, active: Active, ok: Tensor, visible: Tensor | None = None):
        self.p, self.on = Jh.shape[1], active.g
        self.A = torch.cat((Jh, Jg * active.g.unsqueeze(-1)), 1)
        self.fixed = active.box.abs()
        self.any_fixed = bool(active.box.any())
        masked, rows = H, self.A
        if self.any_fixed:
            self.H = H
            free = 1.0 - self.fixed
            masked, rows = keep(H, free), self.A * free.unsqueeze(-2)
        self.unit, self.row_unit = _power_of_two(largest(row_sizes(masked))), _power_of_two(largest(rows))
        off = torch.cat((torch.zeros_like(Jh[..., 0]), 1.0 - active.g), 1)
        masked.div_(per_element(self.unit, masked))
        if self.any_fixed:
            add_to_diagonal(masked, self.fixed)
        self.saddle = SaddleKKT(masked, rows / self.row_unit.unsqueeze(-1), off, ok, visible)

    @property
    def minimum(self) -> Tensor:
        """Elements where H is positive definite along the active constraints, which are independent, ``(B,)`` bool."""
        return self.saddle.correct_inertia

    @property
    def flat(self) -> Tensor:
        """Elements with a direction of hardly any curvature along the active constraints, ``(B,)`` bool."""
        return ~(self.saddle.growth < 1.0 / NEARLY_FLAT)

    @property
    def singular(self) -> NullSpace:
        """Which elements have a valley of solutions, or dependent active constraints."""
        return self.saddle.singular

    @property
    def nearly_singular(self) -> NullSpace:
        """``singular``, and those that are so but for the accuracy of the solution: their derivatives are those of the
        system as it stands, and as large as it makes them. Dependent constraints are told from a flat direction."""
        strained = self.minimum & (self.saddle.growth > STRAINED)
        rows = torch.nonzero(strained).flatten()
        null = self.singular
        if not len(rows):
            return null
        A = self.A[rows] * (1.0 - self.fixed[rows]).unsqueeze(-2)
        length = A.norm(dim=-1, keepdim=True)
        A = A / torch.where(length > 0, length, 1.0)
        gram = A @ A.mT + torch.diag_embed((length == 0).to(A.dtype).squeeze(-1))
        dependent = torch.zeros_like(rows, dtype=torch.bool)
        if A.shape[1]:
            dependent = torch.linalg.eigvalsh(gram)[:, 0] < DEPENDENT**2
        primal, dual = null.primal.clone(), null.dual.clone()
        primal[rows], dual[rows] = ~dependent, dependent
        return NullSpace(primal, dual)

    def solve(self, top: Tensor, h: Tensor, g: Tensor, z: Tensor) -> Columns:
        """``(u, t_h, t_g, t_z)`` for right-hand sides ``(B, ., k)``; of least norm where the system is singular."""
        on, fixed = self.on.unsqueeze(-1), self.fixed.unsqueeze(-1)
        low, reduced = torch.cat((h, g * on), 1), top
        # The units of the objective and of each constraint are taken out: what is singular must not depend on them.
        unit, row_unit = self.unit[:, None, None], self.row_unit.unsqueeze(-1)
        if self.any_fixed:
            known = fixed * z
            low, reduced = (
                low - self.A @ known,
                (top - times(self.H, known)) * (1.0 - fixed) + known * unit,
            )
        u, t = self.saddle.solve(reduced / unit, low / row_unit)
        t = t * unit / row_unit
        t_h, t_g = t[:, : self.p], t[:, self.p :] * on
        if not self.any_fixed:
            return u, t_h, t_g, torch.zeros_like(z)
        t_z = fixed * (top - times(self.H, u) - self.A[:, : self.p].mT @ t_h - self.A[:, self.p :].mT @ t_g)
        return u, t_h, t_g, t_z


def _power_of_two(size: Tensor) -> Tensor:
    """Near ``size``; one for zero and for what is not finite."""
    usable = (size > 0) & size.isfinite()
    return torch.exp2(torch.log2(torch.where(usable, size, 1.0)).round())


class ProductKKT:
    """The same system for programs too large for matrices: MINRES on products with H, A and A'.

    Nothing is known about its inertia or its null space; where MINRES does not converge, ``solve`` raises. With ``unit``
    the identity takes the place of H: the system of least squares, and of projections onto the active constraints.
    """

    def __init__(
        self, program: NonlinearProgram, theta: Theta, state: State, active: Active, ok: Tensor, unit: bool = False
    ):
        self.program, self.theta, self.state, self.active, self.ok = program, theta, state, active, ok
        self.unit = unit
        self.minimum, self.flat = ok, torch.zeros_like(ok)
        self.singular = self.nearly_singular = NullSpace(torch.zeros_like(ok), torch.zeros_like(ok))

    @torch.no_grad()
    def solve(self, top: Tensor, h: Tensor, g: Tensor, z: Tensor) -> Columns:
        """As ``ActiveKKT.solve``.

        Raises
        ------
        DifferentiationError
            MINRES does not converge.
        """
        columns, program = top.shape[-1], self.program
        theta = self.theta if columns == 1 else self.theta.tile(columns)
        y, lam, mu, on, box = (t.repeat(columns, 1) for t in (*self.state[:3], *self.active))
        ok = self.ok.repeat(columns).unsqueeze(-1)
        fixed = box.abs()
        free, n, p = 1.0 - fixed, program.n, program.p
        products, constrained = Products(program, y, theta, lam, mu), program.p + program.m > 0

        def K(u: Tensor, t_h: Tensor, t_g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            bent = u if self.unit else products.hessian(u)
            if not constrained:
                return bent, t_h, t_g
            pushed = products.jacobian(u)
            bent = bent + products.transposed(torch.cat((t_h, t_g * on), 1))
            return bent, pushed[:, :p], pushed[:, p:] * on - t_g * (1.0 - on)

        def masked(x: Tensor) -> Tensor:
            u, t_h, t_g = x[:, :n], x[:, n : n + p], x[:, n + p :]
            bent, pushed_h, pushed_g = K(free * u, t_h, t_g)
            return torch.where(ok, torch.cat((free * bent + fixed * u, pushed_h, pushed_g), 1), x)

        right_top, right_h, right_g, right_z = (
            t.movedim(2, 0).flatten(0, 1) for t in (top, h, g * self.active.g.unsqueeze(-1), z)
        )
        known = fixed * right_z
        bent, pushed_h, pushed_g = K(known, torch.zeros_like(lam), torch.zeros_like(mu))
        right = torch.cat((free * (right_top - bent) + known, right_h - pushed_h, right_g - pushed_g * on), 1)
        right = torch.where(ok, right, 0.0)
        x = minres(masked, right, PRODUCT_TOLERANCE, PRODUCTS)
        error, size = (masked(x) - right).norm(dim=-1), right.norm(dim=-1)
        # A right-hand side that is rounding next to the others may be left unsolved.
        lost = int((error > 1e3 * PRODUCT_TOLERANCE * size.clamp(min=1e-5 * float(size.max()))).sum())
        if lost:
            what = "of the multipliers" if self.unit else "of the derivative"
            raise DifferentiationError(
                f"The linear system {what} was not solved for {lost} right-hand side(s) in {PRODUCTS} products; "
                "rescale the problem, or add a quadratic term to its objective."
            )
        u, t_h, t_g = x[:, :n], x[:, n : n + p], x[:, n + p :] * on
        bent, _, _ = K(u, t_h, t_g)
        parts = (u, t_h, t_g, fixed * (right_top - bent))
        a, b, c, d = (t.unflatten(0, (columns, -1)).movedim(0, 2) for t in parts)
        return a, b, c, d


def kkt_matrix(point: Judged, active: Active) -> Tensor:
    """The matrix above, ``(B, n + p + m, n + p + m)``: bounds take the place of the rows of H, at its size."""
    H, held = to_dense(point.H), active.box.abs()
    H = keep(H, 1.0 - held) + torch.diag_embed(held * H.abs().amax((1, 2)).unsqueeze(-1))
    A = torch.cat((point.first.Jh, point.first.Jg * active.g.unsqueeze(-1)), 1) * (1.0 - held).unsqueeze(1)
    off = torch.cat((torch.zeros_like(point.first.Jh[..., 0]), 1.0 - active.g), 1)
    return torch.cat((torch.cat((H, A.mT), -1), torch.cat((A, torch.diag_embed(off)), -1)), 1)


def kkt_at(program: NonlinearProgram, theta: Theta, state: State, active: Active, ok: Tensor) -> ActiveKKT | ProductKKT:
    """The KKT system at a point, by matrices or by products."""
    if not program.is_dense:
        return ProductKKT(program, theta, state, active, ok)
    with torch.no_grad():
        first = program.first(state.y, theta)
        H = curvature(program, theta, state, first)
        return ActiveKKT(H, first.Jh, first.Jg, active, ok, program.visible)


class Factors:
    """Remembers the last factor, which forward check, backward and double backward share."""

    def __init__(self, program: NonlinearProgram):
        self.program = program
        self._key: tuple[Tensor, ...] = ()
        self.last: ActiveKKT | ProductKKT | None = None

    def at(self, theta: Theta, state: State, active: Active, ok: Tensor) -> ActiveKKT | ProductKKT:
        """The factor at a point; made anew unless the numbers are the last ones bit for bit."""
        key = (*theta.tensors, *state[:3], *active, ok)
        same = len(key) == len(self._key) and all(
            a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in zip(key, self._key, strict=True)
        )
        if self.last is None or not same:
            self.keep(theta, state, active, ok, kkt_at(self.program, theta, state, active, ok))
        assert self.last is not None
        return self.last

    def keep(self, theta: Theta, state: State, active: Active, ok: Tensor, kkt: ActiveKKT | ProductKKT) -> None:
        """Remember a factor made elsewhere."""
        self._key, self.last = (*theta.tensors, *state[:3], *active, ok), kkt


def polish(program: NonlinearProgram, theta: Theta, point: Judged, ok: Tensor, steps: int) -> Judged:
    """At most ``steps`` Newton steps on the conditions active where it stands, kept where they lower the residual.

    Programs too large for matrices are left to the accuracy of their solver.
    """
    waiting = ok & (point.worst > GOAL)
    rows = torch.nonzero(waiting).flatten()
    if not len(rows) or not program.is_dense or len(rows) == len(ok):
        return _polish(program, theta, point, ok, steps)
    some = _polish(program, theta.take(rows), point.take(rows), ok[rows], steps)
    return Judged.choose(waiting, some.take((waiting.cumsum(0) - 1).clamp(min=0)), point)


def _polish(program: NonlinearProgram, theta: Theta, point: Judged, ok: Tensor, steps: int) -> Judged:
    home, room = point.state.y, FAR * (1.0 + largest(point.state.y))
    for _ in range(steps if program.is_dense else 0):
        waiting = ok & (point.worst > GOAL)
        if not bool(waiting.any()):
            break
        before = point.worst
        target = _newton(point, _kkt(point, ok))
        missed = waiting
        for length in LENGTHS:
            trial = judge(program, theta, _between(point.state, target, length))
            # Another solution elsewhere is not a more accurate version of this one.
            better = missed & (trial.worst < point.worst) & (largest(trial.state.y - home) <= room)
            point = Judged.choose(better, trial, point)
            missed = missed & ~better & (before > FAIR)
            if not bool(missed.any()):
                break
        if not bool((point.worst < 0.5 * before).any()):
            break
    return point


def _kkt(point: Judged, ok: Tensor) -> ActiveKKT:
    return ActiveKKT(point.H.clone(), point.first.Jh, point.first.Jg, point.active.strong, ok)


def _newton(point: Judged, kkt: ActiveKKT) -> State:
    (y, lam, mu, z), first, active = point.state, point.first, point.active.strong
    mu, fixed = mu * active.g, active.box.abs()
    z = z * fixed
    bound = torch.where(active.box > 0, point.upper, point.lower)
    gap = torch.where(fixed > 0, bound - y, 0.0)
    pull = (lam.unsqueeze(-2) @ first.Jh + mu.unsqueeze(-2) @ first.Jg).squeeze(-2)
    residual = (-(first.gradient + pull + z), -first.h, -first.g * active.g, gap)
    u, t_h, t_g, t_z = (t.squeeze(-1) for t in kkt.solve(*(r.unsqueeze(-1) for r in residual)))
    return State(torch.where(fixed > 0, bound, y + u), lam + t_h, mu + t_g, z + t_z)


def violated(program: NonlinearProgram, theta: Theta, point: Judged, ok: Tensor, tolerance: float) -> Tensor:
    """Elements that only look feasible because the slopes of their constraints are huge, ``(B,)`` bool.

    A violation is judged by how far away its linearisation vanishes. Near a singularity (1/y at 0) that is next to nothing
    and wrong: where the violation itself is large, a Newton step must bring it down.
    """
    first = point.first
    raw = torch.maximum(largest(first.h), largest(first.g.clamp(min=0)))
    doubtful = ok & (raw > tolerance) & (point.primal > ROUNDING)
    if not bool(doubtful.any()) or not program.is_dense:
        return torch.zeros_like(doubtful)
    with torch.no_grad():
        _, h, g = program.values(_newton(point, _kkt(point, ok)).y, theta)
    after = torch.maximum(largest(h), largest(g.clamp(min=0)))
    return doubtful & ~(after <= 0.1 * raw)


def strays(program: NonlinearProgram, point: Judged, kkt: ActiveKKT | ProductKKT, ok: Tensor) -> Tensor:
    """Elements that Newton's method, which converges next to a solution, would lead far away, ``(B,)`` bool: the conditions
    hold to tolerance, but on the way to an infimum at infinity. Where ``kkt`` is singular, or as good as that, nothing is
    said."""
    if not isinstance(kkt, ActiveKKT) or not bool(ok.any()):
        return torch.zeros_like(ok)
    step = _newton(point, kkt).y - point.state.y
    if program.visible is not None:
        step = step * program.visible.to(step.device)
    far = largest(step) > ASTRAY * (1.0 + largest(point.state.y))
    return ok & far & ~kkt.nearly_singular.any if bool((ok & far).any()) else torch.zeros_like(ok)


def _between(start: State, end: State, length: float) -> State:
    return end if length == 1.0 else State(*(a + length * (b - a) for a, b in zip(start, end, strict=True)))

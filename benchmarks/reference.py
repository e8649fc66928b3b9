"""Independent answers in numpy: the solution to machine accuracy, and the vector-Jacobian product through it.

Nothing here shares code with what is measured. Each function takes the parameters of one instance of the declared problem
and a cotangent ``g`` of its solution, and returns the solution with the gradient of ``<g, x*>`` for each parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

TIGHT = 1e-12
"""Tolerance asked of the solver that finds the active set."""
FEASIBLE = 1e-9
"""Violation (relative) at which the active set is not accepted."""
MAX_CORRECTIONS = 20
"""Changes of the active set tried before giving up."""


@dataclass(frozen=True)
class Answer:
    """The reference for one instance."""

    x: Array
    gradients: list[Array]
    margin: float
    """Distance from a kink: the least multiplier of an active or slack of an inactive constraint."""


def project_simplex(p: Array, g: Array) -> Answer:
    """``min |x - p|^2`` over the probability simplex, by sorting (Held, Wolfe & Crowder, 1974)."""
    ordered = np.sort(p)[::-1]
    thresholds = (np.cumsum(ordered) - 1.0) / np.arange(1, p.size + 1)
    threshold = thresholds[np.nonzero(ordered > thresholds)[0][-1]]
    support = p > threshold
    x = np.where(support, p - threshold, 0.0)
    gradient = np.where(support, g - g[support].mean(), 0.0)
    return Answer(x, [gradient], float(np.abs(p - threshold).min()))


def project_orthant(p: Array, g: Array) -> Answer:
    """``min |x - p|^2`` over ``x >= 0``."""
    return Answer(np.maximum(p, 0.0), [np.where(p > 0, g, 0.0)], float(np.abs(p).min()))


def linear_program(values: list[Array], g: Array) -> Answer:
    """``min c'x  s.t.  Gx <= h, |x| <= 1``, for ``values = [c, G, h]``: a quadratic program without curvature.

    Raises
    ------
    ArithmeticError
        The solution is not a vertex.
    """
    c, G, h = values
    n, k = c.size, h.size
    rows, sides = np.concatenate([G, np.eye(n), -np.eye(n)]), np.concatenate([h, np.ones(2 * n)])
    try:
        answer = quadratic_program([np.zeros((n, n)), c, rows, sides], g, 0, k + 2 * n)
    except np.linalg.LinAlgError as error:
        raise ArithmeticError("the solution of the linear program is not a vertex; draw another instance") from error
    _, grad_c, grad_G, grad_h = answer.gradients
    return Answer(answer.x, [grad_c, grad_G[:k], grad_h[:k]], answer.margin)


def quadratic_program(values: list[Array], g: Array, equalities: int, inequalities: int) -> Answer:
    """``min 1/2 |Q x|^2 + p'x  s.t.  Ax = b, Gx <= h``, for ``values = [Q, p, (A, b), (G, h)]``.

    A tight interior-point solve gives the active set; one KKT system ``[[Q'Q, C'], [C, 0]]`` over the active rows C gives
    the solution, and a second one with the same matrix the gradient.

    Raises
    ------
    ArithmeticError
        No consistent active set was found.
    """
    Q, p, A, b, G, h = _unpack(values, equalities, inequalities)
    n = p.size
    P = Q.T @ Q
    active = _guess_active(P, p, A, b, G, h)
    for _ in range(MAX_CORRECTIONS):
        C, d = np.concatenate([A, G[active]]), np.concatenate([b, h[active]])
        K = np.block([[P, C.T], [C, np.zeros((C.shape[0], C.shape[0]))]])
        z = np.linalg.solve(K, np.concatenate([-p, d]))
        z += np.linalg.solve(K, np.concatenate([-p, d]) - K @ z)
        x, multipliers = z[:n], z[n:]
        mu = np.zeros(inequalities)
        mu[active] = multipliers[equalities:]
        slack = h - G @ x
        wrong = np.where(active, mu < -FEASIBLE * (1 + np.abs(mu).max(initial=0)), slack < -FEASIBLE * (1 + np.abs(h)))
        if not wrong.any():
            break
        active = active ^ wrong
    else:
        raise ArithmeticError("the active set of the reference solution does not settle; draw another instance")
    adjoint = np.linalg.solve(K, np.concatenate([g, np.zeros(C.shape[0])]))
    u, t = adjoint[:n], adjoint[n:]
    grad_C, grad_d = -(np.outer(multipliers, u) + np.outer(t, x)), t
    gradients = [-(np.outer(Q @ x, u) + np.outer(Q @ u, x)), -u]
    if equalities:
        gradients += [grad_C[:equalities], grad_d[:equalities]]
    if inequalities:
        grad_G, grad_h = np.zeros_like(G), np.zeros_like(h)
        grad_G[active], grad_h[active] = grad_C[equalities:], grad_d[equalities:]
        gradients += [grad_G, grad_h]
    margin = float(np.where(active, mu, slack).min(initial=np.inf))
    return Answer(x, gradients, margin)


def _unpack(values: list[Array], equalities: int, inequalities: int) -> tuple[Array, ...]:
    Q, p, *rest = values
    n = p.size
    A, b = rest[:2] if equalities else (np.zeros((0, n)), np.zeros(0))
    G, h = rest[-2:] if inequalities else (np.zeros((0, n)), np.zeros(0))
    return Q, p, A, b, G, h


def _guess_active(P: Array, p: Array, A: Array, b: Array, G: Array, h: Array) -> NDArray[np.bool_]:
    """The inequalities whose multiplier exceeds their slack at a tight interior-point solution."""
    if not h.size:
        return np.zeros(0, bool)
    import clarabel

    settings: Any = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_feas = settings.tol_gap_abs = settings.tol_gap_rel = TIGHT
    rows = sp.csc_matrix(np.concatenate([A, G]))
    cones = [clarabel.ZeroConeT(b.size)] * bool(b.size) + [clarabel.NonnegativeConeT(h.size)]
    solver = clarabel.DefaultSolver(sp.triu(P, format="csc"), p, rows, np.concatenate([b, h]), cones, settings)
    found = solver.solve()
    multipliers, slacks = np.array(found.z)[b.size :], np.array(found.s)[b.size :]
    return np.asarray(multipliers > slacks)

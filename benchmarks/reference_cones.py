"""Independent answers for second-order, semidefinite and exponential rows, in the manner of ``benchmarks.reference``.

Over a product K of symmetric cones the optimality conditions are smooth equations in all three of x, s and y:

    q + A'y = 0,   Ax + s = b,   s o y = 0,

with the Jordan product ``o``: ``(s'y, s0 y1 + y0 s1)`` for second-order cones, ``(SY + YS)/2`` for matrices. Where the
solution is unique and strictly complementary their Jacobian is regular (Alizadeh, Haeberly & Overton, 1998), so Newton's
method from a tight interior-point solution gives the solution to rounding, and one solve with the transpose the gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.reference import TIGHT, Answer, Array

STEPS = 6
"""Newton steps."""
SMALL = 1e-9
"""Residual, relative, at which the answer is not accepted."""


def svec_basis(k: int) -> Array:
    """The matrices, ``(k (k+1) / 2, k, k)``, whose ``svec`` (upper triangle by columns, times sqrt 2) are unit vectors."""
    basis = []
    for j in range(k):
        for i in range(j + 1):
            E = np.zeros((k, k))
            E[i, j] = E[j, i] = 1.0 if i == j else np.sqrt(0.5)
            basis.append(E)
    return np.array(basis)


def cone_program(A: Array, b: Array, q: Array, cones: list[tuple[str, int]], g: Array) -> Answer:
    """``min q'x  s.t.  Ax + s = b, s in K``; gradients with respect to ``A``, ``b`` and ``q``.

    ``cones`` lists ``("zero", k)``, ``("soc", k)`` and ``("psd", side)``, in the order of the rows.

    Raises
    ------
    ArithmeticError
        Newton's method does not converge: the solution is degenerate.
    """
    m, n = A.shape
    x, s, y = _interior_point(A, b, q, cones)
    eye, nothing = np.eye(m), np.zeros
    for step in range(STEPS + 1):
        By, Bs, product = _jordan(s, y, cones)
        residual = np.concatenate([q + A.T @ y, A @ x + s - b, product])
        jacobian = np.block([[nothing((n, n + m)), A.T], [A, eye, nothing((m, m))], [nothing((m, n)), By, Bs]])
        if step < STEPS:
            dx, ds, dy = np.split(np.linalg.solve(jacobian, -residual), [n, n + m])
            x, s, y = x + dx, s + ds, y + dy
    if np.abs(residual).max() > SMALL * (1 + np.abs(x).max() + np.abs(y).max()):
        raise ArithmeticError("the reference solution is degenerate; draw another instance")
    w = np.linalg.solve(jacobian.T, np.concatenate([g, np.zeros(2 * m)]))
    u, t = w[:n], w[n : n + m]
    return Answer(x, [-(np.outer(y, u) + np.outer(t, x)), t, -u], _margin(s, y, cones))


def _interior_point(A: Array, b: Array, q: Array, cones: list[tuple[str, int]]) -> list[Array]:
    import clarabel

    settings: Any = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_feas = settings.tol_gap_abs = settings.tol_gap_rel = TIGHT
    make = {"zero": clarabel.ZeroConeT, "soc": clarabel.SecondOrderConeT, "psd": clarabel.PSDTriangleConeT}
    P = sp.csc_matrix((q.size, q.size))
    solver = clarabel.DefaultSolver(P, q, sp.csc_matrix(A), b, [make[kind](k) for kind, k in cones], settings)
    found = solver.solve()
    return [np.array(part) for part in (found.x, found.s, found.z)]


def _blocks(cones: list[tuple[str, int]]) -> list[tuple[str, int, slice]]:
    blocks, start = [], 0
    for kind, k in cones:
        rows = k * (k + 1) // 2 if kind == "psd" else k
        blocks.append((kind, k, slice(start, start + rows)))
        start += rows
    return blocks


def _jordan(s: Array, y: Array, cones: list[tuple[str, int]]) -> tuple[Array, Array, Array]:
    """The derivatives of ``s o y`` in s and in y, ``(m, m)``, and the product; in zero cones ``s`` itself has to vanish."""
    m = s.size
    by_s, by_y, product = np.zeros((m, m)), np.zeros((m, m)), np.zeros(m)
    for kind, k, rows in _blocks(cones):
        if kind == "zero":
            by_s[rows, rows], product[rows] = np.eye(k), s[rows]
            continue
        multiply = _arrow if kind == "soc" else _lyapunov
        by_s[rows, rows], by_y[rows, rows] = multiply(y[rows]), multiply(s[rows])
        product[rows] = by_s[rows, rows] @ s[rows]
    return by_s, by_y, product


def _arrow(v: Array) -> Array:
    """The matrix of ``w -> v o w`` in a second-order cone."""
    L = v[0] * np.eye(v.size)
    L[0, 1:] = L[1:, 0] = v[1:]
    return L


def _lyapunov(v: Array) -> Array:
    """The matrix of ``W -> (VW + WV)/2`` on symmetric matrices, in ``svec``."""
    k = round((np.sqrt(8 * v.size + 1) - 1) / 2)
    E = svec_basis(k)
    V = np.tensordot(v, E, 1)
    images = 0.5 * (V @ E + E @ V)
    return np.asarray(np.tensordot(E, images, ([1, 2], [1, 2])))


def _margin(s: Array, y: Array, cones: list[tuple[str, int]]) -> float:
    """The least eigenvalue of ``s + y`` over the blocks: zero where strict complementarity fails."""
    least = np.inf
    for kind, k, rows in _blocks(cones):
        v = s[rows] + y[rows]
        if kind == "soc":
            least = min(least, v[0] - np.linalg.norm(v[1:]))
        elif kind == "psd":
            least = min(least, np.linalg.eigvalsh(np.tensordot(v, svec_basis(k), 1))[0])
    return float(least)


def softmax(p: Array, g: Array) -> Answer:
    """``min -p'x + sum x log x`` over the probability simplex."""
    weights = np.exp(p - p.max())
    x = weights / weights.sum()
    return Answer(x, [x * (g - x @ g)], np.inf)


def logistic(X: Array, c: Array, g: Array, ridge: float) -> Answer:
    """``min sum log(1 + exp(Xw)) + c'w + ridge |w|^2 / 2``, by Newton's method with halved steps."""

    def value(w: Array) -> float:
        return float(np.logaddexp(0, X @ w).sum() + c @ w + ridge * w @ w / 2)

    w = np.zeros(c.size)
    for _ in range(100):
        p = 1 / (1 + np.exp(-X @ w))
        slope = X.T @ p + c + ridge * w
        H = (X.T * (p * (1 - p))) @ X + ridge * np.eye(c.size)
        step, length = np.linalg.solve(H, -slope), 1.0
        while value(w + length * step) > value(w) + 1e-12 * abs(value(w)) and length > 1e-8:
            length /= 2
        w = w + length * step
        if np.abs(step).max() < 1e-15:
            break
    u = np.linalg.solve(H, g)
    return Answer(w, [-(np.outer(p, u) + np.outer(p * (1 - p) * (X @ u), w)), -u], np.inf)

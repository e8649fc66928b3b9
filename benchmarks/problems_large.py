"""Large sparse rows: the cost should follow the number of nonzeros, not the square of the number of variables."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve

from benchmarks.problems import Declaration, Row, cp
from benchmarks.reference import Answer, Array

ROUNDS = 60
"""Exchanges of the active set that the reference tries."""


def smoothing(n: int, batch: int = 1, weight: float = 5.0) -> Row:
    """``min 1/2 |x - p|^2 + weight/2 |Dx|^2, x >= 0``: a nonnegative smooth fit to n samples; a tridiagonal Hessian."""

    def declare() -> Declaration:
        x, p = cp.Variable(n), cp.Parameter(n)
        objective = 0.5 * cp.sum_squares(x - p) + 0.5 * weight * cp.sum_squares(x[1:] - x[:-1])
        return Declaration(cp.Problem(cp.Minimize(objective), [x >= 0]), [p], x)

    D = sp.diags_array([-np.ones(n - 1), np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n))
    H = sp.csc_array(sp.eye_array(n) + weight * D.T @ D)

    def draw(generator: np.random.Generator) -> list[Array]:
        return [3 * np.sin(np.arange(n) / 40.0) + generator.standard_normal(n)]

    def reference(values: list[Array], g: Array) -> Answer:
        (p,) = values
        free = p > 0
        for _ in range(ROUNDS):  # H is an M-matrix: exchanging all violators at once settles (Hintermueller et al., 2003)
            x = np.zeros(n)
            x[free] = spsolve(H[free][:, free], p[free])
            multiplier = H @ x - p
            settled = np.where(free, x >= 0, multiplier >= 0)
            if settled.all():
                break
            free = free ^ ~settled
        else:
            raise ArithmeticError("the active set of the reference solution does not settle; draw another instance")
        gradient = np.zeros(n)
        gradient[free] = spsolve(H[free][:, free], g[free])
        return Answer(x, [gradient], float(np.where(free, x, multiplier).min()))

    return Row(f"smoothing-{n}-batch-{batch}", declare, batch, (n,), draw, reference)


def flow(nodes: int, batch: int = 1) -> Row:
    """``min 1/2 |x|^2 + c'x`` over flows on a ring with chords that meet a demand: n = 4 arcs a node, as many equalities as
    nodes (one is implied by the others and left out), and no inequalities."""
    arcs = 4 * nodes
    tail = np.repeat(np.arange(nodes), 4)
    head = (tail + np.tile([1, 7, 31, 101], nodes)) % nodes
    columns = np.arange(arcs)
    N = sp.csr_array((np.ones(arcs), (tail, columns)), shape=(nodes, arcs))
    N = sp.csr_array(N - sp.csr_array((np.ones(arcs), (head, columns)), shape=(nodes, arcs)))[1:]

    def declare() -> Declaration:
        x, c, d = cp.Variable(arcs), cp.Parameter(arcs), cp.Parameter(nodes - 1)
        return Declaration(cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x) + c @ x), [N @ x == d]), [c, d], x)

    def draw(generator: np.random.Generator) -> list[Array]:
        return [generator.standard_normal(arcs), N @ generator.standard_normal(arcs)]

    def reference(values: list[Array], g: Array) -> Answer:
        c, d = values
        schur = sp.csc_array(N @ N.T)
        x = -c + N.T @ spsolve(schur, d + N @ c)
        t = spsolve(schur, N @ g)
        return Answer(x, [N.T @ t - g, t], np.inf)

    return Row(f"flow-{arcs}-{nodes - 1}-batch-{batch}", declare, batch, (arcs,), draw, reference)


def regression(m: int, n: int) -> Row:
    """Nonnegative ridge regression with the whole dense ``m x n`` matrix a parameter: m n parameter entries."""

    def declare() -> Declaration:
        x, A, b = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m)
        return Declaration(
            cp.Problem(cp.Minimize(0.5 * cp.sum_squares(A @ x - b) + 0.5 * cp.sum_squares(x)), [x >= 0]), [A, b], x
        )

    def draw(generator: np.random.Generator) -> list[Array]:
        return [generator.standard_normal((m, n)) / np.sqrt(m), generator.standard_normal(m)]

    def reference(values: list[Array], g: Array) -> Answer:
        A, b = values
        H, free = A.T @ A + np.eye(n), A.T @ b > 0
        for _ in range(ROUNDS):
            x = np.zeros(n)
            x[free] = np.linalg.solve(H[np.ix_(free, free)], A[:, free].T @ b)
            multiplier = H @ x - A.T @ b
            settled = np.where(free, x >= 0, multiplier >= 0)
            if settled.all():
                break
            free = free ^ ~settled
        else:
            raise ArithmeticError("the active set of the reference solution does not settle; draw another instance")
        u = np.zeros(n)
        u[free] = np.linalg.solve(H[np.ix_(free, free)], g[free])
        grad_A = np.outer(b - A @ x, u) - np.outer(A @ u, x)
        return Answer(x, [grad_A, A @ u], float(np.where(free, x, multiplier).min()))

    return Row(f"regression-{m}x{n}-batch-1", declare, 1, (n,), draw, reference)

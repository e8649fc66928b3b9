"""Rows with second-order, semidefinite and exponential cones."""

from __future__ import annotations

import numpy as np

from benchmarks.problems import Declaration, Row, Target, cp
from benchmarks.reference import Answer, Array
from benchmarks.reference_cones import cone_program, logistic, softmax, svec_basis

RIDGE = 0.1
"""Weight of the squared norm in logistic regression."""


def socp(n: int, cones: int, side: int, batch: int, target: Target | None = None) -> Row:
    """A linear objective over ``|F_k x + g_k| <= c_k'x + d_k``, ``side`` rows each with the bound, all of it parameters.

    Drawn with an interior point of the primal and of the dual, so that a solution exists.
    """

    def declare() -> Declaration:
        x, q = cp.Variable(n), cp.Parameter(n)
        F, g = [cp.Parameter((side - 1, n)) for _ in range(cones)], [cp.Parameter(side - 1) for _ in range(cones)]
        c, d = [cp.Parameter(n) for _ in range(cones)], [cp.Parameter() for _ in range(cones)]
        constraints = [cp.norm(F[k] @ x + g[k]) <= c[k] @ x + d[k] for k in range(cones)]
        return Declaration(cp.Problem(cp.Minimize(q @ x), constraints), [q, *F, *g, *c, *d], x)

    def draw(generator: np.random.Generator) -> list[Array]:
        normal = generator.standard_normal
        x = normal(n)
        F, c = normal((cones, side - 1, n)) / np.sqrt(n), normal((cones, n)) / np.sqrt(n)
        s, y = (np.concatenate([np.linalg.norm(v, axis=1, keepdims=True) + 0.5, v], 1) for v in normal((2, cones, side - 1)))
        q = np.einsum("ki,kij->j", y[:, 1:], F) + y[:, 0] @ c
        return [q, *F, *(s[:, 1:] - F @ x), *c, *(s[:, 0] - c @ x)]

    def reference(values: list[Array], cotangent: Array) -> Answer:
        q, F, g, c, d = values[0], *(values[1 + k * cones : 1 + (k + 1) * cones] for k in range(4))
        A = -np.concatenate([np.concatenate([c[k][None], F[k]]) for k in range(cones)])
        b = np.concatenate([np.append(d[k], g[k]) for k in range(cones)])
        answer = cone_program(A, b, q, [("soc", side)] * cones, cotangent)
        grad_A, grad_b, grad_q = answer.gradients
        rows, sides = -grad_A.reshape(cones, side, n), grad_b.reshape(cones, side)
        gradients = [grad_q, *rows[:, 1:], *sides[:, 1:], *rows[:, 0], *sides[:, 0]]
        return Answer(answer.x, gradients, answer.margin)

    return Row(f"socp-{n}-{cones * side}-batch-{batch}", declare, batch, (n,), draw, reference, target)


def sdp(side: int, equalities: int, batch: int, target: Target | None = None) -> Row:
    """``min <C, X>  s.t.  <A_i, X> = b_i, X psd``; C, A and b are parameters, C and A with symmetric values."""
    basis = svec_basis(side)

    def declare() -> Declaration:
        X = cp.Variable((side, side), symmetric=True)
        C, A = cp.Parameter((side, side)), [cp.Parameter((side, side)) for _ in range(equalities)]
        b = cp.Parameter(equalities)
        constraints = [X >> 0, *(cp.trace(A[i] @ X) == b[i] for i in range(equalities))]
        return Declaration(cp.Problem(cp.Minimize(cp.trace(C @ X)), constraints), [C, *A, b], X)

    def draw(generator: np.random.Generator) -> list[Array]:
        normal = generator.standard_normal
        A = normal((equalities, side, side)) / np.sqrt(side)
        A = (A + A.mT) / 2
        S, X = (v @ v.mT / side + 0.1 * np.eye(side) for v in normal((2, side, side)))
        return [S + np.tensordot(normal(equalities), A, 1), *A, np.einsum("kij,ij->k", A, X)]

    def reference(values: list[Array], cotangent: Array) -> Answer:
        C, *A, b = values
        rows = np.array([np.tensordot(basis, a, 2) for a in A])
        sides = np.concatenate([b, np.zeros(len(basis))])
        q, g = np.tensordot(basis, C, 2), np.tensordot(basis, cotangent, 2)
        cones = [("zero", equalities), ("psd", side)]
        answer = cone_program(np.concatenate([rows, -np.eye(len(basis))]), sides, q, cones, g)
        grad_A, grad_b, grad_q = answer.gradients
        symmetric = np.tensordot(np.concatenate([grad_q[None], grad_A[:equalities]]), basis, 1)
        return Answer(np.tensordot(answer.x, basis, 1), [*symmetric, grad_b[:equalities]], answer.margin)

    return Row(f"sdp-{side}-{equalities}-batch-{batch}", declare, batch, (side, side), draw, reference, target)


def softmax_layer(n: int, batch: int, target: Target | None = None) -> Row:
    """The softmax as the maximiser of ``p'x`` plus the entropy, over the probability simplex."""

    def declare() -> Declaration:
        x, p = cp.Variable(n), cp.Parameter(n)
        return Declaration(cp.Problem(cp.Minimize(-p @ x - cp.sum(cp.entr(x))), [cp.sum(x) == 1]), [p], x)

    return Row(
        f"softmax-{n}-batch-{batch}",
        declare,
        batch,
        (n,),
        lambda generator: [generator.standard_normal(n)],
        lambda values, g: softmax(values[0], g),
        target,
    )


def logistic_regression(n: int, samples: int, batch: int, target: Target | None = None) -> Row:
    """Ridge logistic regression on ``samples`` points that are parameters, with a linear term that is one too."""

    def declare() -> Declaration:
        w, X, c = cp.Variable(n), cp.Parameter((samples, n)), cp.Parameter(n)
        loss = cp.sum(cp.logistic(X @ w)) + c @ w + RIDGE / 2 * cp.sum_squares(w)
        return Declaration(cp.Problem(cp.Minimize(loss)), [X, c], w)

    return Row(
        f"logistic-{n}-{samples}-batch-{batch}",
        declare,
        batch,
        (n,),
        lambda generator: [generator.standard_normal((samples, n)), generator.standard_normal(n)],
        lambda values, g: logistic(values[0], values[1], g, RIDGE),
        target,
    )

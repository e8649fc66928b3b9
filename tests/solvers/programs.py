"""Random conic programs of every kind that have a strictly feasible primal and dual point, and so a solution."""

import numpy as np
import scipy.sparse as sp
import torch

from ddn_cvx.cones import Product
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solvers.base import RawSolution

CONES = {
    "equality": Product(zero=3),
    "linear": Product(zero=2, nonneg=6),
    "second-order": Product(1, 2, (4, 3, 1, 4)),
    "semidefinite": Product(1, 2, (), (3, 1, 2)),
    "exponential": Product(1, 2, (), (), 2),
    "power": Product(1, 2, power=((0.3, 0.7), (0.5, 0.5))),
    "higher power": Product(1, 2, power=((0.2, 0.3, 0.5),)),
    "all but higher power": Product(1, 2, (4, 3), (3, 2), 2, ((0.3, 0.7),)),
}


def svec(matrix):
    """Upper triangle column by column, off-diagonal entries times the root of 2."""
    k = len(matrix)
    return np.array([matrix[i, j] * (1 if i == j else np.sqrt(2)) for j in range(k) for i in range(j + 1)])


def interior(cones, rng, dual):
    """A point well inside K, or inside K*."""

    def definite(k):
        root = rng.standard_normal((k, k))
        return svec(root @ root.T + 0.5 * np.eye(k))

    def cone(k):
        z = rng.standard_normal(k - 1)
        return np.concatenate([[np.linalg.norm(z) + 0.5 + rng.random()], z])

    parts = [rng.standard_normal(cones.zero) * dual, 0.2 + rng.random(cones.nonneg)]
    parts += [cone(k) for k in cones.soc] + [definite(k) for k in cones.psd]
    for _ in range(cones.exp):
        x, y = 0.5 * rng.standard_normal(), 0.5 + rng.random()
        # y exp(x/y) <= z, and for the dual -u exp(v/u) <= e w, u < 0
        parts.append(np.array([-y, x, y * np.exp(-x / y - 1) + 0.5] if dual else [x, y, y * np.exp(x / y) + 0.5]))
    for alpha in cones.power:
        u = 0.5 + rng.random(len(alpha))
        bound = np.prod((u / alpha if dual else u) ** np.array(alpha))
        parts.append(np.append(u, bound * rng.uniform(-0.8, 0.8)))
    return np.concatenate(parts)


def random_program(cones, n=7, batch=3, seed=0, quadratic=True):
    """``(program, data)``; a quadratic objective has rank n - 2 on all but the last variable, so it is singular."""
    rng = np.random.default_rng(seed)
    m = cones.size
    mask = rng.random((m, n)) < 0.8
    mask[:, 0] = mask[:1] = True
    upper = np.triu(np.ones((n, n)))
    upper[:, -1] = 0
    P_pattern = Pattern.of(sp.csc_array(upper * quadratic))
    A_pattern = Pattern.of(sp.csc_array(mask.astype(float)))
    program = ConicProgram(P_pattern, A_pattern, cones)
    columns = []
    for _ in range(batch):
        root = rng.standard_normal((n - 2, n)) * quadratic
        root[:, -1] = 0
        P, A, x0 = root.T @ root, rng.standard_normal((m, n)) * mask, rng.standard_normal(n)
        b = A @ x0 + interior(cones, rng, dual=False)
        q = -P @ rng.standard_normal(n) - A.T @ interior(cones, rng, dual=True)
        columns.append((P[P_pattern.rows, P_pattern.cols], q, A[A_pattern.rows, A_pattern.cols], b))
    return program, ConicData(*(torch.as_tensor(np.array(c)) for c in zip(*columns, strict=True)))


def select(data, rows):
    return ConicData(*(t[rows] for t in data))


def kkt_residual(program, data, raw: RawSolution):
    """Largest violation of the optimality conditions, relative to the size of the solution, ``(B,)``."""
    v = raw.y - raw.s
    error = torch.cat([program.residual(torch.cat([raw.x, v], 1), data), program.cones.project_dual(v) - raw.y], 1)
    return error.abs().amax(1) / (1 + torch.cat([raw.x, raw.y, raw.s], 1).abs().amax(1))

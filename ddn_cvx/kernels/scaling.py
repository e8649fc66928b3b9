"""Scalings of primal and dual points for the interior-point method, one block of a cone after the other.

Nesterov and Todd's W for symmetric cones: ``W z = W^-T s = lambda``, ``H = W'W`` (Vandenberghe, "The CVXOPT linear and
quadratic cone program solvers", 2010). For a semidefinite block ``W z = R'ZR`` with ``S = L L'``, ``L'ZL = V diag(lambda^2)
V'`` and ``R = L V diag(lambda)^-1/2``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.kernels import exponential_scaling as exp3
from ddn_cvx.kernels.cones import EXPONENTIAL, ROOT, SECOND_ORDER, to_matrix, to_vector
from ddn_cvx.kernels.dense import cholesky, dot
from ddn_cvx.kernels.eigen import eigen
from ddn_cvx.kernels.jit import inner

Floats = NDArray[np.float64]

SHRINK = 0.8
"""By this a step is shortened until it stays inside a cone that is not symmetric."""


class Scaling(NamedTuple):
    """The scaling of one instance."""

    point: Floats
    """``(m,)``: lambda of half-lines and second-order cones."""
    inverse: Floats
    """``(m,)``: z / s of inequalities, the normalised scaling point of second-order cones."""
    eta: Floats
    """``(k,)``: the size of the scaling of a second-order cone."""
    R: Floats
    """``(k, widest, widest)``, and its inverse: of semidefinite blocks; H and its inverse of the exponential ones."""
    R_inverse: Floats
    values: Floats
    """``(k, widest)``: eigenvalues lambda of semidefinite blocks."""
    X: Floats
    Y: Floats
    Z: Floats
    """Matrices to work with."""


@inner
def scaling(structure: Any) -> Any:
    """Space for programs of this structure."""
    m, cones = structure.m, structure.cones
    k, size = cones.kind.shape[0], max(cones.widest_matrix, 3)
    return Scaling(
        np.empty(m),
        np.empty(m),
        np.empty(k),
        np.empty((k, size, size)),
        np.empty((k, size, size)),
        np.empty((k, size)),
        np.empty((size, size)),
        np.empty((size, size)),
        np.empty((size, size)),
    )


@inner
def unit(structure: Any, s: Any, z: Any) -> None:
    """The point on the central path of the cones alone from which the method starts."""
    cones = structure.cones
    kind, starts, order = cones.kind, cones.starts, cones.order
    for i in range(structure.m):
        s[i] = z[i] = 1.0 if structure.zero <= i < cones.linear else 0.0
    for k in range(kind.shape[0]):
        a = starts[k]
        if kind[k] == SECOND_ORDER:
            s[a] = z[a] = 1.0
        elif kind[k] == EXPONENTIAL:
            exp3.centre(s[a : a + 3])
            exp3.centre(z[a : a + 3])
        else:
            for j in range(order[k]):
                a += j
                s[a] = z[a] = 1.0
                a += 1


@inner
def distance(x: Any) -> float:
    """``x_0^2 - |x_1|^2``."""
    total = 0.0
    for i in range(1, x.shape[0]):
        total += x[i] * x[i]
    root = total**0.5
    return (x[0] - root) * (x[0] + root)


@inner
def update(structure: Any, s: Any, z: Any, mu: float, to: Any) -> bool:
    """The scaling at s and z; False where one of them has left its cone."""
    cones = structure.cones
    kind, starts, order = cones.kind, cones.starts, cones.order
    for i in range(structure.zero, cones.linear):
        if not (s[i] > 0.0 and z[i] > 0.0):
            return False
        to.inverse[i] = z[i] / s[i]
        to.point[i] = (s[i] * z[i]) ** 0.5
    for k in range(kind.shape[0]):
        a, b = starts[k], starts[k + 1]
        if kind[k] == SECOND_ORDER:
            if not _second_order(s[a:b], z[a:b], to.inverse[a:b], to.point[a:b], k, to):
                return False
        elif kind[k] == EXPONENTIAL:
            if not exp3.update(s[a:b], z[a:b], mu, to.R[k], to.R_inverse[k]):
                return False
        elif not _semidefinite(s[a:b], z[a:b], k, order[k], to):
            return False
    return True


@inner
def _second_order(s: Any, z: Any, w: Any, point: Any, k: int, to: Any) -> bool:
    ss, zz = distance(s), distance(z)
    if not (ss > 0.0 and zz > 0.0 and s[0] > 0.0 and z[0] > 0.0):
        return False
    ss, zz = ss**0.5, zz**0.5
    gamma = (0.5 * (1.0 + dot(s, z) / (ss * zz))) ** 0.5
    total = 1.0
    for i in range(1, s.shape[0]):
        w[i] = (s[i] / ss - z[i] / zz) / (2.0 * gamma)
        total += w[i] * w[i]
    w[0] = total**0.5
    to.eta[k] = (ss / zz) ** 0.5
    _reflect(w, to.eta[k], 1.0, z, point)
    return True


@inner
def _reflect(w: Any, eta: float, side: float, x: Any, out: Any) -> None:
    """``out = W x``, or ``W^-1 x`` for ``side = -1`` and ``1 / eta``; out may be x."""
    along = dot(w, x) - w[0] * x[0]
    top, factor = w[0] * x[0] + side * along, side * x[0] + along / (1.0 + w[0])
    for i in range(1, x.shape[0]):
        out[i] = eta * (x[i] + factor * w[i])
    out[0] = eta * top


@inner
def _semidefinite(s: Any, z: Any, k: int, order: int, to: Any) -> bool:
    S, Z, V = to.X[:order, :order], to.Y[:order, :order], to.Z[:order, :order]
    to_matrix(s, S)
    to_matrix(z, Z)
    if not cholesky(S, 0.0):
        return False
    values = to.values[k, :order]
    R, inverse = to.R[k], to.R_inverse[k]
    # L'ZL, by way of R = ZL
    for i in range(order):
        for j in range(order):
            total = 0.0
            for p in range(j, order):
                total += Z[i, p] * S[p, j]
            R[i, j] = total
    for i in range(order):
        for j in range(i + 1):
            total = 0.0
            for p in range(i, order):
                total += S[p, i] * R[p, j]
            Z[i, j] = total
    if not eigen(Z, values, V, True):
        return False
    for i in range(order):
        if not values[i] > 0.0:
            return False
        values[i] = values[i] ** 0.5
        root = values[i] ** 0.5
        for j in range(order):
            total = 0.0
            for p in range(j + 1):
                total += S[j, p] * V[i, p]
            R[j, i] = total / root
        # L^-T v
        for j in range(order - 1, -1, -1):
            total = V[i, j]
            for p in range(j + 1, order):
                total -= S[p, j] * inverse[i, p]
            inverse[i, j] = total / S[j, j]
        for j in range(order):
            inverse[i, j] *= root
    return True


@inner
def congruence(R: Any, x: Any, out: Any, order: int, transposed: bool, to: Any) -> None:
    """svec of ``R X R'``, or of ``R'XR``."""
    X, Y, Z = to.X, to.Y, to.Z
    to_matrix(x, X[:order, :order])
    for i in range(order):
        for j in range(order):
            Y[i, j] = 0.0
        for p in range(order):
            factor = R[p, i] if transposed else R[i, p]
            for j in range(order):
                Y[i, j] += factor * X[p, j]
    for i in range(order):
        for j in range(i + 1):
            total = 0.0
            for p in range(order):
                total += Y[i, p] * (R[p, j] if transposed else R[j, p])
            Z[i, j] = Z[j, i] = total
    to_vector(Z[:order, :order], out)


@inner
def inverse_times(structure: Any, to: Any, x: Any, out: Any) -> None:
    """``out = H^-1 x``, zero in the rows of equalities; out may be x."""
    cones = structure.cones
    kind, starts, order = cones.kind, cones.starts, cones.order
    for i in range(cones.linear):
        out[i] = to.inverse[i] * x[i] if i >= structure.zero else 0.0
    for k in range(kind.shape[0]):
        a, b = starts[k], starts[k + 1]
        if kind[k] == SECOND_ORDER:
            w, factor = to.inverse, to.eta[k] ** -2
            along = 2.0 * w[a] * x[a]
            for i in range(a + 1, b):
                along -= 2.0 * w[i] * x[i]
            out[a] = factor * (along * w[a] - x[a])
            for i in range(a + 1, b):
                out[i] = factor * (x[i] - along * w[i])
        elif kind[k] == EXPONENTIAL:
            exp3.times(to.R_inverse[k], x[a:b], out[a:b])
        else:
            congruence(to.R_inverse[k], x[a:b], out[a:b], order[k], False, to)
            congruence(to.R_inverse[k], out[a:b], out[a:b], order[k], True, to)


@inner
def inverse_block(to: Any, k: int, kind: int, order: int, out: Any) -> None:
    """The matrix ``H^-1`` of a semidefinite or exponential block."""
    if kind == EXPONENTIAL:
        for i in range(3):
            for j in range(3):
                out[i, j] = to.R_inverse[k, i, j]
        return
    G, R = to.X, to.R_inverse[k]
    for i in range(order):
        for j in range(i + 1):
            total = 0.0
            for p in range(order):
                total += R[p, i] * R[p, j]
            G[i, j] = G[j, i] = total
    row = 0
    for b in range(order):
        for a in range(b + 1):
            column = 0
            for d in range(b + 1):
                for c in range(min(d, order) + 1):
                    if column > row:
                        break
                    if a == b:
                        value = G[a, c] * G[a, d] * (1.0 if c == d else ROOT)
                    elif c == d:
                        value = ROOT * G[a, c] * G[b, c]
                    else:
                        value = G[a, c] * G[b, d] + G[a, d] * G[b, c]
                    out[row, column] = out[column, row] = value
                    column += 1
            row += 1


@inner
def shift(structure: Any, to: Any, z: Any, ds: Any, dz: Any, target: float, out: Any, a_part: Any, b_part: Any) -> None:
    """Mehrotra's correction: what is added to s on the right-hand side of ``H dz + ds``, given the predictor's steps and the
    complementarity ``target`` aimed at."""
    cones = structure.cones
    kind, starts, order = cones.kind, cones.starts, cones.order
    for i in range(cones.linear):
        out[i] = (ds[i] * dz[i] - target) / z[i] if i >= structure.zero else 0.0
    for k in range(kind.shape[0]):
        a, b = starts[k], starts[k + 1]
        if kind[k] == SECOND_ORDER:
            w, eta, one, two, point = to.inverse[a:b], to.eta[k], a_part[a:b], b_part[a:b], to.point[a:b]
            _reflect(w, 1.0 / eta, -1.0, ds[a:b], one)
            _reflect(w, eta, 1.0, dz[a:b], two)
            head = dot(one, two) - target
            for i in range(1, b - a):
                one[i] = one[0] * two[i] + two[0] * one[i]
            # lambda \ (head, one)
            along = dot(point, one) - point[0] * one[0]
            top = (point[0] * head - along) / distance(point)
            for i in range(1, b - a):
                one[i] = (one[i] - top * point[i]) / point[0]
            one[0] = top
            _reflect(w, eta, 1.0, one, out[a:b])
        elif kind[k] == EXPONENTIAL:
            exp3.shift(z[a:b], ds[a:b], dz[a:b], target, out[a:b])
        else:
            size, values = order[k], to.values[k]
            one, two = a_part[a:b], b_part[a:b]
            congruence(to.R_inverse[k], ds[a:b], one, size, False, to)
            congruence(to.R[k], dz[a:b], two, size, True, to)
            to_matrix(one, to.X[:size, :size])
            to_matrix(two, to.Y[:size, :size])
            X, Y, Z = to.X, to.Y, to.Z
            for i in range(size):
                for j in range(i + 1):
                    total = 0.0
                    for p in range(size):
                        total += X[i, p] * Y[p, j] + Y[i, p] * X[p, j]
                    total = 0.5 * total - (target if i == j else 0.0)
                    Z[i, j] = Z[j, i] = 2.0 * total / (values[i] + values[j])
            to_vector(Z[:size, :size], one)
            congruence(to.R[k], one, out[a:b], size, False, to)


@inner
def length(structure: Any, to: Any, s: Any, z: Any, ds: Any, dz: Any, step: float, space: Any) -> float:
    """The longest step of at most ``step`` that keeps s and z in their cones."""
    cones = structure.cones
    kind, starts, order = cones.kind, cones.starts, cones.order
    for i in range(structure.zero, cones.linear):
        if ds[i] < 0.0 and -s[i] > step * ds[i]:
            step = -s[i] / ds[i]
        if dz[i] < 0.0 and -z[i] > step * dz[i]:
            step = -z[i] / dz[i]
    for k in range(kind.shape[0]):
        a, b = starts[k], starts[k + 1]
        if kind[k] == SECOND_ORDER:
            step = min(step, min(_to_boundary(s[a:b], ds[a:b]), _to_boundary(z[a:b], dz[a:b])))
        elif kind[k] != EXPONENTIAL:
            size = order[k]
            congruence(to.R_inverse[k], ds[a:b], space[a:b], size, False, to)
            step = min(step, _to_singular(space[a:b], k, size, to))
            congruence(to.R[k], dz[a:b], space[a:b], size, True, to)
            step = min(step, _to_singular(space[a:b], k, size, to))
    for k in range(kind.shape[0]):
        if kind[k] == EXPONENTIAL:
            a, b = starts[k], starts[k + 1]
            while not exp3.inside(s[a:b], ds[a:b], z[a:b], dz[a:b], step):
                step *= SHRINK
                if step < 1e-10:
                    return 0.0
    return step


@inner
def _to_boundary(x: Any, d: Any) -> float:
    """How far from x along d the second-order cone ends."""
    a, c = distance(d), distance(x)
    b = 2.0 * (x[0] * d[0] - (dot(x, d) - x[0] * d[0]))
    root = b * b - 4.0 * a * c
    if (a > 0.0 and b > 0.0) or root < 0.0 or a == 0.0:
        return np.inf if a != 0.0 or b >= 0.0 else -c / b
    t = -b - root**0.5 if b >= 0.0 else -b + root**0.5
    one, two = t / (2.0 * a), 2.0 * c / t if t != 0.0 else np.inf
    one, two = one if one > 0.0 else np.inf, two if two > 0.0 else np.inf
    return min(one, two)


@inner
def _to_singular(x: Any, k: int, size: int, to: Any) -> float:
    """How far from diag(lambda) along the scaled step x a matrix becomes singular."""
    X, found, values = to.X[:size, :size], to.Y[0, :size], to.values[k]
    to_matrix(x, X)
    for i in range(size):
        for j in range(i + 1):
            X[i, j] /= (values[i] * values[j]) ** 0.5
    if not eigen(X, found, to.Z[:size, :size], False):
        return 0.0
    least = 0.0
    for i in range(size):
        least = min(least, found[i])
    return -1.0 / least if least < 0.0 else np.inf

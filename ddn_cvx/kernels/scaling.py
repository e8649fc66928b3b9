"""Scalings of primal and dual points for the interior-point method, one block of a cone after the other.

Nesterov and Todd's W for symmetric cones: ``W z = W^-T s = lambda``, ``H = W'W`` (Vandenberghe, "The CVXOPT linear and
quadratic cone program solvers", 2010). For a semidefinite block ``W z = R'ZR`` with ``S = L L'``, ``L'ZL = V diag(lambda^2)
V'`` and ``R = L V diag(lambda)^-1/2``. The points are lanes (``kernels.lanes``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddn_cvx.kernels import exponential_scaling as exp3, table as cell
from ddn_cvx.kernels.dense import cholesky, dot
from ddn_cvx.kernels.eigen import eigen, least
from ddn_cvx.kernels.jit import lean, view
from ddn_cvx.kernels.lanes import anywhere, where
from ddn_cvx.kernels.svec import ROOT, to_matrix, to_vector
from ddn_cvx.kernels.table import matrix, part, side, space

SHRINK = 0.8
"""By this a step is shortened until it stays inside a cone that is not symmetric."""
# In the scratch space: lambda of half-lines and second-order cones (``W_POINT``); z / s of inequalities and the normalised
# scaling points of second-order cones (``W_INVERSE``), whose sizes are ``W_ETA``; R and its inverse of semidefinite blocks,
# and their lambda (``W_VALUES``), or H and its inverse of exponential ones.


@view
def _block(T: Any, W: Any, code: int, k: int, order: int) -> Any:
    """The square matrix of block k."""
    start = T[code] + k * T[cell.MATRIX] * T[cell.MATRIX]
    return W[start : start + order * order].reshape(order, order)


@view
def _eigenvalues(T: Any, W: Any, k: int, order: int) -> Any:
    """lambda of the semidefinite block k."""
    start = T[cell.W_VALUES] + k * T[cell.MATRIX]
    return W[start : start + order]


@lean
def unit(T: Any, s: Any, z: Any) -> None:
    """The point on the central path of the cones alone from which the method starts."""
    kind, starts, order = part(T, cell.KIND), part(T, cell.STARTS), part(T, cell.ORDER)
    for i in range(T[cell.M]):
        s[i] = z[i] = 1.0 if T[cell.ZERO] <= i < T[cell.LINEAR] else 0.0
    for k in range(T[cell.BLOCKS]):
        a = starts[k]
        if kind[k] == cell.SECOND_ORDER:
            s[a] = z[a] = 1.0
        elif kind[k] == cell.EXPONENTIAL:
            exp3.centre(s[a : a + 3])
            exp3.centre(z[a : a + 3])
        else:
            for j in range(order[k]):
                a += j
                s[a] = z[a] = 1.0
                a += 1


@lean
def _distance(x: Any) -> Any:
    """``x_0^2 - |x_1|^2``."""
    total = 0.0
    for i in range(1, x.shape[0]):
        total += x[i] * x[i]
    root = math.sqrt(total)
    return (x[0] - root) * (x[0] + root)


@lean
def update(T: Any, W: Any, s: Any, z: Any, mu: Any) -> Any:
    """The scaling at s and z; False where one of them has left its cone."""
    good = True
    kind, starts, order = part(T, cell.KIND), part(T, cell.STARTS), part(T, cell.ORDER)
    inverse, point = space(T, W, cell.W_INVERSE), space(T, W, cell.W_POINT)
    for i in range(T[cell.ZERO], T[cell.LINEAR]):
        good = good & (s[i] > 0.0) & (z[i] > 0.0)
        inverse[i] = z[i] / s[i]
    for k in range(T[cell.BLOCKS]):
        a, b = starts[k], starts[k + 1]
        if kind[k] == cell.SECOND_ORDER:
            eta = _second_order(s[a:b], z[a:b], inverse[a:b], point[a:b])
            good = good & (eta > 0.0)
            W[T[cell.W_ETA] + k] = eta
        elif kind[k] == cell.EXPONENTIAL:
            good = good & exp3.update(s[a:b], z[a:b], mu, _block(T, W, cell.W_R, k, 3), _block(T, W, cell.W_R_INVERSE, k, 3))
        else:
            good = good & _semidefinite(T, W, s[a:b], z[a:b], k, order[k])
    return good


@lean
def _second_order(s: Any, z: Any, w: Any, point: Any) -> Any:
    """The scaling point and lambda; returns the size of the scaling, zero outside."""
    ss, zz = _distance(s), _distance(z)
    inside = (ss > 0.0) & (zz > 0.0) & (s[0] > 0.0) & (z[0] > 0.0)
    ss, zz = math.sqrt(ss), math.sqrt(zz)
    gamma = math.sqrt(0.5 * (1.0 + dot(s, z) / (ss * zz)))
    one, two, total = 0.5 / (gamma * ss), 0.5 / (gamma * zz), 1.0
    for i in range(1, s.shape[0]):
        w[i] = s[i] * one - z[i] * two
        total += w[i] * w[i]
    w[0] = math.sqrt(total)
    eta = math.sqrt(ss / zz)
    _reflect(w, eta, 1.0, z, point)
    return where(inside, eta, 0.0)


@lean
def _reflect(w: Any, eta: Any, sign: float, x: Any, out: Any) -> None:
    """``out = W x``, or ``W^-1 x`` for ``sign = -1`` and ``1 / eta``; out may be x."""
    along = dot(w, x) - w[0] * x[0]
    top, factor = w[0] * x[0] + sign * along, sign * x[0] + along / (1.0 + w[0])
    for i in range(1, x.shape[0]):
        out[i] = eta * (x[i] + factor * w[i])
    out[0] = eta * top


@lean
def _semidefinite(T: Any, W: Any, s: Any, z: Any, k: int, order: int) -> Any:
    S, Z = matrix(T, W, cell.W_X, order, order), matrix(T, W, cell.W_Y, order, order)
    V = matrix(T, W, cell.W_Z, order, order)
    values = _eigenvalues(T, W, k, order)
    to_matrix(s, S)
    to_matrix(z, Z)
    good = cholesky(S, 0.0)
    R, inverse = _block(T, W, cell.W_R, k, order), _block(T, W, cell.W_R_INVERSE, k, order)
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
    eigen(Z, values, V)
    for i in range(order):
        good = good & (values[i] > 0.0)
        values[i] = math.sqrt(values[i])
        root = math.sqrt(values[i])
        one = 1.0 / root
        for j in range(order):
            total = 0.0
            for p in range(j + 1):
                total += S[j, p] * V[i, p]
            R[j, i] = total * one
        # L^-T v
        for j in range(order - 1, -1, -1):
            total = V[i, j]
            for p in range(j + 1, order):
                total -= S[p, j] * inverse[i, p]
            inverse[i, j] = total / S[j, j]
        for j in range(order):
            inverse[i, j] *= root
    return good


@lean
def _congruence(T: Any, W: Any, code: int, k: int, x: Any, out: Any, order: int, transposed: bool) -> None:
    """svec of ``R X R'``, or of ``R'XR``, for the matrix R of block k; out may be x."""
    R = _block(T, W, code, k, order)
    X, Y = matrix(T, W, cell.W_X, order, order), matrix(T, W, cell.W_Y, order, order)
    Z = matrix(T, W, cell.W_Z, order, order)
    to_matrix(x, X)
    for i in range(order):
        above, below = Y[i], Z[i]
        for j in range(order):
            above[j] = below[j] = 0.0
        for p in range(order):
            factor, line = R[p, i] if transposed else R[i, p], X[p]
            for j in range(order):
                above[j] += factor * line[j]
        if transposed:
            for p in range(order):
                factor, line = above[p], R[p]
                for j in range(order):
                    below[j] += factor * line[j]
        else:
            for j in range(order):
                below[j] = dot(above, R[j])
    to_vector(Z, out)


@view
def formed(T: Any, W: Any, k: int) -> Any:
    """Where the matrix ``H^-1`` of block k is kept."""
    start, size = T[cell.W_BLOCK] + T[T[cell.BLOCK_STARTS] + k], T[T[cell.STARTS] + k + 1] - T[T[cell.STARTS] + k]
    return W[start : start + size * size].reshape(size, size)


@lean
def inverse_times(T: Any, W: Any, x: Any, out: Any) -> None:
    """``out = H^-1 x``, zero in the rows of equalities; out may be x. The matrices are there (``inverse_block``)."""
    kind, starts = part(T, cell.KIND), part(T, cell.STARTS)
    w, held = space(T, W, cell.W_INVERSE), side(T, W, 18)
    for i in range(T[cell.LINEAR]):
        out[i] = w[i] * x[i] if i >= T[cell.ZERO] else 0.0
    for k in range(T[cell.BLOCKS]):
        a, b = starts[k], starts[k + 1]
        if kind[k] == cell.SECOND_ORDER:
            factor = 1.0 / (W[T[cell.W_ETA] + k] * W[T[cell.W_ETA] + k])
            along = 2.0 * w[a] * x[a]
            for i in range(a + 1, b):
                along -= 2.0 * w[i] * x[i]
            out[a] = factor * (along * w[a] - x[a])
            for i in range(a + 1, b):
                out[i] = factor * (x[i] - along * w[i])
        elif kind[k] == cell.EXPONENTIAL:
            inverse, one, two, three = formed(T, W, k), x[a], x[a + 1], x[a + 2]
            for i in range(3):
                out[a + i] = inverse[i, 0] * one + inverse[i, 1] * two + inverse[i, 2] * three
        else:
            inverse = formed(T, W, k)
            for i in range(a, b):
                held[i] = x[i]
            for i in range(a, b):
                out[i] = dot(inverse[i - a], held[a:b])


@lean
def inverse_block(T: Any, W: Any, k: int, kind: int, order: int) -> None:
    """Fill in (``formed``) the matrix ``H^-1`` of a semidefinite or exponential block."""
    out = formed(T, W, k)
    R = _block(T, W, cell.W_R_INVERSE, k, order)
    if kind == cell.EXPONENTIAL:
        for i in range(3):
            for j in range(3):
                out[i, j] = R[i, j]
        return
    G = matrix(T, W, cell.W_X, order, order)
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
                for c in range(d + 1):
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


@lean
def shift(T: Any, W: Any, z: Any, ds: Any, dz: Any, target: Any, out: Any) -> None:
    """Mehrotra's correction: what is added to s on the right-hand side of ``H dz + ds``, given the predictor's steps and the
    complementarity ``target`` aimed at."""
    kind, starts, order = part(T, cell.KIND), part(T, cell.STARTS), part(T, cell.ORDER)
    a_part, b_part, scaling, points = side(T, W, 18), side(T, W, 19), space(T, W, cell.W_INVERSE), space(T, W, cell.W_POINT)
    for i in range(T[cell.LINEAR]):
        out[i] = (ds[i] * dz[i] - target) / z[i] if i >= T[cell.ZERO] else 0.0
    for k in range(T[cell.BLOCKS]):
        a, b = starts[k], starts[k + 1]
        if kind[k] == cell.SECOND_ORDER:
            w, eta, one, two, point = scaling[a:b], W[T[cell.W_ETA] + k], a_part[a:b], b_part[a:b], points[a:b]
            _reflect(w, 1.0 / eta, -1.0, ds[a:b], one)
            _reflect(w, eta, 1.0, dz[a:b], two)
            head = dot(one, two) - target
            for i in range(1, b - a):
                one[i] = one[0] * two[i] + two[0] * one[i]
            # lambda \ (head, one)
            along = dot(point, one) - point[0] * one[0]
            top = (point[0] * head - along) / _distance(point)
            for i in range(1, b - a):
                one[i] = (one[i] - top * point[i]) / point[0]
            one[0] = top
            _reflect(w, eta, 1.0, one, out[a:b])
        elif kind[k] == cell.EXPONENTIAL:
            exp3.shift(z[a:b], ds[a:b], dz[a:b], target, matrix(T, W, cell.W_X, 3, 3), out[a:b])
        else:
            size = order[k]
            values, one, two = _eigenvalues(T, W, k, size), a_part[a:b], b_part[a:b]
            _congruence(T, W, cell.W_R_INVERSE, k, ds[a:b], one, size, False)
            _congruence(T, W, cell.W_R, k, dz[a:b], two, size, True)
            X, Y = matrix(T, W, cell.W_X, size, size), matrix(T, W, cell.W_Y, size, size)
            Z = matrix(T, W, cell.W_Z, size, size)
            to_matrix(one, X)
            to_matrix(two, Y)
            for i in range(size):
                for j in range(i + 1):
                    total = 0.0
                    for p in range(size):
                        total += X[i, p] * Y[j, p] + Y[i, p] * X[j, p]
                    total = 0.5 * total - (target if i == j else 0.0)
                    Z[i, j] = Z[j, i] = 2.0 * total / (values[i] + values[j])
            to_vector(Z, one)
            _congruence(T, W, cell.W_R, k, one, out[a:b], size, False)


@lean
def length(T: Any, W: Any, s: Any, z: Any, ds: Any, dz: Any, step: Any) -> Any:
    """The longest step of at most ``step`` that keeps s and z in their cones."""
    kind, starts, order = part(T, cell.KIND), part(T, cell.STARTS), part(T, cell.ORDER)
    for i in range(T[cell.ZERO], T[cell.LINEAR]):
        step = where(-s[i] > step * ds[i], -s[i] / ds[i], step)
        step = where(-z[i] > step * dz[i], -z[i] / dz[i], step)
    for k in range(T[cell.BLOCKS]):
        a, b = starts[k], starts[k + 1]
        if kind[k] == cell.SECOND_ORDER:
            step = min(step, min(_to_boundary(s[a:b], ds[a:b]), _to_boundary(z[a:b], dz[a:b])))
        elif kind[k] != cell.EXPONENTIAL:
            size, scaled = order[k], side(T, W, 18)[a:b]
            for primal in (True, False):
                if primal:
                    _congruence(T, W, cell.W_R_INVERSE, k, ds[a:b], scaled, size, False)
                else:
                    _congruence(T, W, cell.W_R, k, dz[a:b], scaled, size, True)
                step = min(step, _to_singular(T, W, scaled, k, size))
    for k in range(T[cell.BLOCKS]):
        if kind[k] == cell.EXPONENTIAL:
            a, b = starts[k], starts[k + 1]
            outside = ~exp3.inside(s[a:b], ds[a:b], z[a:b], dz[a:b], step) & (step > 0.0)
            while anywhere(outside):
                step = where(outside, SHRINK * step, step)
                step = where(step < 1e-10, 0.0, step)
                outside = ~exp3.inside(s[a:b], ds[a:b], z[a:b], dz[a:b], step) & (step > 0.0)
    return step


@lean
def _to_boundary(x: Any, d: Any) -> Any:
    """How far from x along d the second-order cone ends: the least positive root of ``a t^2 + b t + c``."""
    if x.shape[0] == 1:
        return where(d[0] < 0.0, -x[0] / d[0], np.inf)
    a, c = _distance(d), _distance(x)
    b = 2.0 * (x[0] * d[0] - (dot(x, d) - x[0] * d[0]))
    root = math.sqrt(b * b - 4.0 * a * c)  # NaN where there is none: no comparison holds then
    t = where(b >= 0.0, -b - root, root - b)
    one, two = t / (2.0 * a), 2.0 * c / t
    return where((a > 0.0) & (b > 0.0), np.inf, min(where(one > 0.0, one, np.inf), where(two > 0.0, two, np.inf)))


@lean
def _to_singular(T: Any, W: Any, x: Any, k: int, size: int) -> Any:
    """How far from diag(lambda) along the scaled step x a matrix becomes singular."""
    X, found, values = matrix(T, W, cell.W_X, size, size), space(T, W, cell.W_Y)[:size], _eigenvalues(T, W, k, size)
    to_matrix(x, X)
    for i in range(size):
        found[i] = 1.0 / math.sqrt(values[i])
    for i in range(size):
        for j in range(i + 1):
            X[i, j] *= found[i] * found[j]
    value = least(X, found, space(T, W, cell.W_EIGEN))
    return where(value < 0.0, -1.0 / value, where(value >= 0.0, np.inf, 0.0))

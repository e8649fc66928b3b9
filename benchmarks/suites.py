"""The suites: which rows, at which sizes, with which targets."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.problems import Curve, Row, Target, dense_parameter, lp, qp, relu, simplex
from benchmarks.problems_cones import logistic_regression, sdp, socp, softmax_layer
from benchmarks.problems_large import flow, regression, smoothing

ALONE = Target(5, 1)
"""For a single instance."""


def _both(make: Callable[[int, Target], Row], batch: int, target: Target) -> list[Row]:
    """A row in a batch and the same alone."""
    return [make(batch, target), make(1, ALONE)]


def _quadratic() -> list[Row]:
    vertex_free = Target(15, 2)
    rows = [
        _both(lambda b, t: qp(10, 3, 5, b, t), 128, Target(60, 2)),
        _both(lambda b, t: qp(50, 10, 50, b, t), 64, Target(25, 1.5)),
        _both(lambda b, t: qp(128, 0, 128, b, t), 16, Target(20, 1.2)),
        [qp(128, 0, 128, 4, Target(20, 1.2))],
        _both(lambda b, t: lp(50, 50, b, t), 64, Target(12, 1.5)),
        _both(lambda b, t: simplex(100, b, t), 128, vertex_free),
        _both(lambda b, t: relu(100, b, t), 128, vertex_free),
        _both(lambda b, t: simplex(100, b, t, box=True), 128, vertex_free),
    ]
    return [row for pair in rows for row in pair]


def _cones() -> list[Row]:
    rows = [
        _both(lambda b, t: socp(20, 4, 10, b, t), 128, Target(15, 2)),
        _both(lambda b, t: sdp(8, 4, b, t), 128, Target(15, 2)),
        _both(lambda b, t: logistic_regression(10, 30, b, t), 128, Target(15, 2)),
        _both(lambda b, t: softmax_layer(10, b, t), 128, Target(15, 2)),
    ]
    return [row for pair in rows for row in pair]


def _curve(name: str, axis: str, value: int, n: int, equalities: int, inequalities: int, batch: int) -> Row:
    sizes = (n, equalities, inequalities)
    return qp(n, equalities, inequalities, batch, curve=Curve(name, axis, value, sizes))


def _scaling() -> list[Row]:
    small, medium = "QP (10, 3, 5)", "QP (50, 10, 50)"
    return [
        *(_curve(f"{small}, batch", "batch", b, 10, 3, 5, b) for b in (1, 4, 16, 64, 256, 1024, 4096)),
        *(_curve(f"{medium}, batch", "batch", b, 50, 10, 50, b) for b in (1, 4, 16, 64, 256, 1024, 4096)),
        *(_curve("QP (n, n/5, n), batch 32", "n", n, n, n // 5, n, 32) for n in (5, 10, 20, 40, 80, 160, 320)),
        *(_curve("QP (40, 0, m), batch 32", "m", m, 40, 0, m, 32) for m in (5, 10, 20, 40, 80, 160, 320)),
    ]


SUITES: dict[str, list[Row]] = {
    "convex": [
        simplex(10, 128),
        simplex(50, 128),
        qp(10, 3, 5, 128),
        qp(50, 10, 50, 64),
        qp(128, 0, 128, 4),
        simplex(10, 1),
        simplex(50, 1),
        qp(10, 3, 5, 1),
        qp(50, 10, 50, 1),
        qp(128, 0, 128, 1),
        dense_parameter(400, 400),
    ],
    "qp": _quadratic(),
    "cones": _cones(),
    # cvxpy makes the map from parameters to a quadratic objective dense, which bounds the sizes
    "large": [smoothing(1_000), smoothing(5_000), flow(250), flow(1_000), regression(500, 200), regression(2_000, 500)],
    "scaling": _scaling(),
    "gpu": [
        qp(50, 10, 50, 4096, Target(200, 5)),
        socp(20, 4, 10, 4096, Target(50, 0)),
        sdp(8, 4, 4096, Target(50, 0)),
    ],
}

USUAL_PEERS: dict[str, list[str]] = {
    "large": ["ddn_cvx", "cvxpylayers (Clarabel)", "cvxpylayers (Moreau)", "Moreau (default)"],
    "scaling": ["ddn_cvx", "cvxpylayers (default)", "cvxpylayers (Moreau)", "qpth"],
    "gpu": ["ddn_cvx", "cvxpylayers (default)", "cvxpylayers (Moreau)", "qpth"],
}
"""Who runs without ``--peers``; where nothing is said, everybody."""

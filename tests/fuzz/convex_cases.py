"""Random convex programs: a list of terms, a list of constraints, a seed, and how the layer is to be set up.

A ``Case`` is all that is needed to build a program again, so a disagreement is reported as a line that reproduces it. The
numbers are drawn around a point ``x0`` at which every constraint holds with room to spare (unless the case asks otherwise);
each array of numbers is either a constant or a parameter of the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy
import numpy as np
from hypothesis import strategies as st

cp: Any = cvxpy  # cvxpy's star imports are invisible to type checkers
Expression = Any


class Draw:
    """Random arrays, some of which become parameters."""

    def __init__(self, n: int, seed: int, parametric: float):
        self.rng = np.random.default_rng(seed)
        self.n, self.parametric = n, parametric
        self.x = cp.Variable(n, name="x")
        self.x0 = self.rng.uniform(-1, 1, n)
        self.parameters: list[Any] = []
        self.values: list[np.ndarray] = []

    def number(self, value: Any, **attributes: Any) -> Expression:
        """``value`` as a constant or as the value of a new parameter."""
        value = np.asarray(value, dtype=float)
        if self.rng.uniform() > self.parametric:
            return value
        self.parameters.append(cp.Parameter(value.shape, name=f"p{len(self.parameters)}", **attributes))
        self.values.append(value)
        return self.parameters[-1]

    def affine(self, rows: int, at: Any | None = None, scale: float = 1.0) -> Expression:
        """``Ax + b``; equal to ``at`` at ``x0`` if that is given."""
        A = scale * self.rng.normal(size=(rows, self.n))
        b = self.rng.normal(size=rows) if at is None else at - A @ self.x0
        return self.number(A) @ self.x + self.number(b)

    def positive(self, rows: int) -> Expression:
        """Affine, positive at ``x0``."""
        return self.affine(rows, at=self.rng.uniform(0.3, 2, rows), scale=0.7)

    def matrix(self, size: int, definite: bool) -> Expression:
        """A symmetric affine matrix; positive definite at ``x0`` if so asked."""
        parts = [_symmetric(self.rng, size) for _ in range(self.n)]
        shift = _symmetric(self.rng, size)
        if definite:
            root = self.rng.normal(size=(size, size))
            shift = root @ root.T / size + 0.3 * np.eye(size) - sum(v * S for v, S in zip(self.x0, parts, strict=True))
        total = self.number(shift, symmetric=True)
        for i, S in enumerate(parts):
            total = total + S * self.x[i]
        return total

    def at_start(self, expression: Expression) -> float:
        """Its value at ``x0`` with the parameters as drawn."""
        self.x.value = self.x0
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.value = value
        return float(expression.value)

    def above(self, expression: Expression) -> Expression:
        """A number above the value of a scalar expression at ``x0``."""
        value = self.at_start(expression)
        return self.number(value + self.rng.uniform(0.1, 1) * (0.5 + abs(value)))


def _symmetric(rng: np.random.Generator, size: int) -> np.ndarray:
    root = rng.normal(size=(size, size)) / size**0.5
    return (root + root.T) / 2


def _rows(d: Draw) -> int:
    return int(d.rng.integers(1, 5))


TERMS: dict[str, Callable[[Draw], Expression]] = {
    "linear": lambda d: d.number(d.rng.normal(size=d.n)) @ d.x,
    "sum_squares": lambda d: cp.sum_squares(d.affine(_rows(d))),
    "ridge": lambda d: cp.sum_squares(d.x - d.number(d.rng.normal(size=d.n))),
    "weighted": lambda d: d.number(d.rng.uniform(0.5, 2), nonneg=True) * cp.sum_squares(d.x),
    "norm1": lambda d: cp.norm1(d.affine(_rows(d))),
    "norm2": lambda d: cp.norm(d.affine(_rows(d)), 2),
    "norm_inf": lambda d: cp.norm_inf(d.affine(_rows(d))),
    "huber": lambda d: cp.sum(cp.huber(d.affine(_rows(d)), 0.7)),
    "max": lambda d: cp.max(d.affine(_rows(d))),
    "sum_largest": lambda d: cp.sum_largest(d.affine(4), 2),
    "pos": lambda d: cp.sum(cp.pos(d.affine(_rows(d)))),
    "tv": lambda d: cp.tv(d.affine(4)),
    "log_sum_exp": lambda d: cp.log_sum_exp(d.affine(_rows(d))),
    "logistic": lambda d: cp.sum(cp.logistic(d.affine(_rows(d)))),
    "exp": lambda d: cp.sum(cp.exp(d.affine(_rows(d), scale=0.5))),
    "neg_entropy": lambda d: -cp.sum(cp.entr(d.positive(_rows(d)))),
    "neg_log": lambda d: -cp.sum(cp.log(d.positive(_rows(d)))),
    "kl_div": lambda d: cp.sum(cp.kl_div(d.positive(2), d.positive(2))),
    "inv_pos": lambda d: cp.sum(cp.inv_pos(d.positive(_rows(d)))),
    "quad_over_lin": lambda d: cp.quad_over_lin(d.affine(_rows(d)), d.positive(1)[0]),
    "power": lambda d: cp.sum(cp.power(cp.abs(d.affine(_rows(d))), 3)),
    "root": lambda d: cp.sum(cp.power(d.positive(_rows(d)), 1.5)),
    "geo_mean": lambda d: -cp.geo_mean(d.positive(3), [0.2, 0.3, 0.5], approx=False),
    "pnorm": lambda d: cp.pnorm(d.affine(3), 3),
    "lambda_max": lambda d: cp.lambda_max(d.matrix(3, definite=False)),
    "nuclear": lambda d: cp.normNuc(d.matrix(2, definite=False)),
    "sigma_max": lambda d: cp.sigma_max(d.matrix(2, definite=False)),
    "log_det": lambda d: -cp.log_det(d.matrix(2, definite=True)),
    "tr_inv": lambda d: cp.tr_inv(d.matrix(2, definite=True)),
}
"""Convex functions of x."""


def _below(term: str) -> Callable[[Draw], Any]:
    def constrain(d: Draw) -> Any:
        expression = TERMS[term](d)
        return expression <= d.above(expression)

    return constrain


def _equality(d: Draw) -> Any:
    rows = int(d.rng.integers(1, max(2, d.n)))
    return d.affine(rows, at=np.zeros(rows)) == 0


def _cone(d: Draw) -> Any:
    body = d.affine(3)
    top = d.affine(1)[0]
    return cp.norm(body, 2) <= top + d.above(cp.norm(body, 2) - top)


def _redundant(d: Draw) -> Any:
    a = d.rng.normal(size=d.n)
    return np.stack([a, 2 * a]) @ d.x == d.number(a @ d.x0) * np.array([1.0, 2.0])


CONSTRAINTS: dict[str, Callable[[Draw], Any]] = {
    "equality": _equality,
    "redundant": _redundant,
    "inequality": lambda d: d.affine(_rows(d), at=-d.rng.uniform(0.05, 1, 1)) <= 0,
    "nonneg": lambda d: d.x >= d.number(d.x0 - d.rng.uniform(0.1, 1, d.n)),
    "box": lambda d: cp.abs(d.x) <= d.number(np.abs(d.x0) + d.rng.uniform(0.1, 1, d.n), nonneg=True),
    "second_order": _cone,
    "semidefinite": lambda d: d.matrix(3, definite=True) >> 0,
    "crossed": lambda d: [d.x[0] <= d.number(d.x0[0]), d.x[0] >= d.number(d.x0[0] + 0.5)],
    **{f"{term} <=": _below(term) for term in (
        "norm1", "norm2", "norm_inf", "sum_squares", "log_sum_exp", "exp", "neg_log", "neg_entropy", "geo_mean", "pnorm",
        "quad_over_lin", "lambda_max", "nuclear", "log_det", "inv_pos",
    )},
}  # fmt: skip
"""Constraints that hold strictly at ``x0``; "crossed" holds nowhere."""

SOLVERS = ("auto", "mehrotra", "interior_point", "conic_interior_point", "clarabel", "scs", "ecos", "diffcp", "active_set",
           "first_order")  # fmt: skip
ADJOINTS = ("implicit", "unrolled", "diffcp", "lpgd", "smoothed", "approximate")
SHAPES = ((), (1,), (3,), (2, 2), (0,))


@dataclass(frozen=True)
class Case:
    """A program and the set-up of its layer."""

    n: int
    terms: tuple[str, ...]
    constraints: tuple[str, ...]
    seed: int
    parametric: float = 0.7
    solver: str = "auto"
    adjoint: str = "implicit"
    dtype: str = "float64"
    shape: tuple[int, ...] = (3,)
    spread: float = 0.1
    """Standard deviation of what is added to the parameters of each element; those off the point may be infeasible."""
    scale: float = 1.0
    """Factor of the objective."""

    def build(self) -> tuple[Any, Draw]:
        """The problem, and what was drawn for it."""
        d = Draw(self.n, self.seed, self.parametric)
        objective = sum(TERMS[term](d) for term in self.terms)
        constraints: list[Any] = []
        for name in self.constraints:
            made = CONSTRAINTS[name](d)
            constraints += made if isinstance(made, list) else [made]
        if not d.parameters:  # a layer has at least one
            objective = objective + cp.Parameter(self.n, name="p0") @ d.x
            d.parameters, d.values = objective.parameters(), [d.rng.normal(size=self.n)]
        return cp.Problem(cp.Minimize(self.scale * objective), constraints), d

    def values(self, d: Draw) -> list[np.ndarray]:
        """Parameter values ``(*shape, *parameter.shape)``, within their declared attributes."""
        rng, found = np.random.default_rng(self.seed + 1), []
        for parameter, value in zip(d.parameters, d.values, strict=True):
            noise = self.spread * rng.normal(size=(*self.shape, *value.shape))
            if parameter.attributes["symmetric"]:
                noise = (noise + np.swapaxes(noise, -1, -2)) / 2
            moved = value + noise
            found.append(np.abs(moved) if parameter.attributes["nonneg"] else moved)
        return found


def cases() -> st.SearchStrategy[Case]:
    """All of them. Most are bounded, feasible and strictly convex; the rest is what users do by mistake."""
    bounded = st.sampled_from([("ridge",), ("ridge",), ("weighted",), ("sum_squares", "weighted"), ()])
    inside = st.sampled_from([("box",), ("norm2 <=",), ("nonneg",), (), ()])
    return st.builds(
        lambda terms, base, constraints, bound, **rest: Case(
            terms=(*base, *terms) or ("linear",), constraints=(*bound, *constraints), **rest
        ),
        terms=st.lists(st.sampled_from(sorted(TERMS)), max_size=2).map(tuple),
        base=bounded,
        constraints=st.lists(st.sampled_from(sorted(set(CONSTRAINTS) - {"crossed"})), max_size=2)
        .map(tuple)
        .flatmap(lambda found: st.sampled_from([found] * 19 + [(*found, "crossed")])),
        bound=inside,
        n=st.integers(1, 5),
        seed=st.integers(0, 2**31),
        parametric=st.sampled_from([0.3, 0.7, 1.0]),
        solver=st.sampled_from(("auto",) * 5 + SOLVERS),
        adjoint=st.sampled_from(("implicit",) * 4 + ADJOINTS),
        dtype=st.sampled_from(["float64"] * 3 + ["float32"]),
        shape=st.sampled_from(SHAPES + ((3,),) * 3),
        spread=st.sampled_from([0.0, 0.1, 0.1, 0.5]),
        scale=st.sampled_from([1.0] * 6 + [1e-3, 1e3]),
    )

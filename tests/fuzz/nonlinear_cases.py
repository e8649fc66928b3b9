"""Random nonlinear programs in torch functions: sums of smooth terms, most of them not convex, under smooth constraints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

import ddn_cvx as ddn

Function = Callable[[Tensor, Tensor], Tensor]
"""``(y, p) -> value`` for one instance; y ``(n,)``, p ``(n,)``."""


def _vector(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape))


def _linear(rng: np.random.Generator, n: int) -> Function:
    a = _vector(rng, n)
    return lambda y, p: (a * p) @ y


def _distance(rng: np.random.Generator, n: int) -> Function:
    return lambda y, p: (y - p).square().sum()


def _wave(rng: np.random.Generator, n: int) -> Function:
    A = _vector(rng, 2, n)
    return lambda y, p: torch.sin(A @ y + p[:1]).sum()


def _quartic(rng: np.random.Generator, n: int) -> Function:
    A = _vector(rng, 2, n)
    return lambda y, p: 0.2 * (A @ (y - p)).pow(4).sum()


def _well(rng: np.random.Generator, n: int) -> Function:
    return lambda y, p: -2 * torch.exp(-(y + p).square().sum())


def _valley(rng: np.random.Generator, n: int) -> Function:
    return lambda y, p: 3 * (y[-1] - y[0].square() * p[0]).square() + (1 - y[0]).square()


def _logistic(rng: np.random.Generator, n: int) -> Function:
    A = _vector(rng, 3, n)
    return lambda y, p: torch.nn.functional.softplus(A @ y * p[0]).sum()


TERMS = {"linear": _linear, "distance": _distance, "wave": _wave, "quartic": _quartic, "well": _well, "valley": _valley,
         "logistic": _logistic}  # fmt: skip


def _sphere(rng: np.random.Generator, n: int) -> Function:
    r = rng.uniform(0.5, 2)
    return lambda y, p: (y.square().sum() - r * (1 + 0.1 * p[0].sin())).reshape(1)


def _product(rng: np.random.Generator, n: int) -> Function:
    return lambda y, p: (y[0] * y[-1] - 0.3 * p[0] if n > 1 else y[0] - p[0]).reshape(1)


def _plane(rng: np.random.Generator, n: int) -> Function:
    a = _vector(rng, n)
    return lambda y, p: (a @ (y - 0.5 * p)).reshape(1)


EQUALITIES = {"sphere": _sphere, "product": _product, "plane": _plane}


def _ball(rng: np.random.Generator, n: int) -> Function:
    r = rng.uniform(0.5, 4)
    return lambda y, p: ((y - 0.2 * p).square().sum() - r).reshape(1)


def _outside(rng: np.random.Generator, n: int) -> Function:
    r = rng.uniform(0.1, 1)
    return lambda y, p: (r - (y - p).square().sum()).reshape(1)


def _halves(rng: np.random.Generator, n: int) -> Function:
    A, b = _vector(rng, 3, n), torch.from_numpy(rng.uniform(0.1, 2, 3))
    return lambda y, p: A @ y - b - 0.1 * p[0]


def _curve(rng: np.random.Generator, n: int) -> Function:
    return lambda y, p: (y[0].exp() - y[-1] - 1 - p[0].square()).reshape(1)


INEQUALITIES = {"ball": _ball, "outside": _outside, "halves": _halves, "curve": _curve}


@dataclass(frozen=True)
class NonlinearCase:
    """A program and the set-up of its layer."""

    n: int
    terms: tuple[str, ...]
    equalities: tuple[str, ...]
    inequalities: tuple[str, ...]
    box: bool
    seed: int
    solver: str | None = None
    shape: tuple[int, ...] = (3,)

    def functions(self) -> tuple[Function, Function | None, Function | None]:
        """Objective, equalities, inequalities."""
        rng = np.random.default_rng(self.seed)
        terms = [TERMS[name](rng, self.n) for name in self.terms]
        equal = [EQUALITIES[name](rng, self.n) for name in self.equalities]
        below = [INEQUALITIES[name](rng, self.n) for name in self.inequalities]

        def stack(parts: list[Function]) -> Function | None:
            return (lambda y, p: torch.cat([part(y, p) for part in parts])) if parts else None

        def objective(y: Tensor, p: Tensor) -> Tensor:
            """Bounded below: there is a little of a quartic in it."""
            return 0.05 * y.pow(4).sum() + torch.stack([term(y, p) for term in terms]).sum()

        return objective, stack(equal), stack(below)

    def build(self) -> ddn.TorchProblem:
        """The problem as it is declared."""
        objective, equality, inequality = self.functions()
        bounds = {"lower": -1.5, "upper": 2.0} if self.box else {}
        return ddn.TorchProblem((self.n,), objective, equality, inequality, parameters=[(self.n,)], **bounds)

    def value(self) -> Tensor:
        """The parameter, ``(*shape, n)``."""
        return torch.from_numpy(np.random.default_rng(self.seed + 1).normal(size=(*self.shape, self.n)))


def nonlinear_cases() -> st.SearchStrategy[NonlinearCase]:
    """All of them."""
    return st.builds(
        NonlinearCase,
        n=st.integers(1, 5),
        terms=st.lists(st.sampled_from(sorted(TERMS)), min_size=1, max_size=3).map(tuple),
        equalities=st.sampled_from([(), (), *((name,) for name in EQUALITIES), ("sphere", "plane")]),
        inequalities=st.lists(st.sampled_from(sorted(INEQUALITIES)), max_size=2, unique=True).map(tuple),
        box=st.booleans(),
        seed=st.integers(0, 2**31),
        solver=st.sampled_from([None, None, None, "nonlinear_interior_point"]),
        shape=st.sampled_from([(3,), (3,), (), (1,), (2, 2), (0,)]),
    )

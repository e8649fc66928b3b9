"""A short run of the campaign, the disagreements it has found so far, and proof that it would find others."""

from __future__ import annotations

import time

import convex_verdict
import pytest
import torch
from convex_cases import Case, cases
from convex_verdict import judge
from hypothesis import HealthCheck, Phase, given, seed, settings
from nonlinear_cases import NonlinearCase, nonlinear_cases
from nonlinear_verdict import judge_nonlinear

import ddn_cvx as ddn

SECONDS = 30.0
"""For each of the two short runs, after which no further case is begun."""
short = settings(
    max_examples=60, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
started: dict[str, float] = {}


def in_time(name: str) -> bool:
    return time.monotonic() - started.setdefault(name, time.monotonic()) < SECONDS


@seed(6)
@short
@given(cases())
def test_convex_programs(case: Case) -> None:
    if in_time("convex"):
        assert not judge(case).wrong


@seed(6)
@short
@given(nonlinear_cases())
def test_nonlinear_programs(case: NonlinearCase) -> None:
    if in_time("nonlinear"):
        assert not judge_nonlinear(case).wrong


# Found by long runs, and mended since, in the package or in the judge.
FOUND = [
    # an infimum that is not attained: the answer is as good as any, and not the only one
    Case(n=2, terms=("logistic", "logistic"), constraints=(), seed=5118, spread=0.5),
    # the iterative solvers of diffcp stop short
    Case(n=3, terms=("sum_squares", "weighted", "norm_inf", "log_det"), constraints=("log_det <=", "log_det <="), seed=57,
         parametric=1.0, solver="mehrotra", adjoint="diffcp", spread=0.5),
    Case(n=3, terms=("huber", "huber"), constraints=("exp <=", "norm1 <="), seed=3, parametric=1.0, solver="clarabel",
         adjoint="diffcp", shape=(1,), spread=0.0, scale=1000.0),
    # a small objective, where Clarabel's differences are those of its own tolerance
    Case(n=5, terms=("exp", "exp"), constraints=("box", "box"), seed=838621202, parametric=0.3, solver="scs", shape=(3,),
         spread=0.1, scale=0.001),
    # Newton steps for the derivative, on a badly conditioned problem, led away from the answer that had been checked
    Case(n=1, terms=("ridge", "exp", "exp"), constraints=("inv_pos <=", "box"), seed=1, adjoint="unrolled", shape=(2, 2),
         spread=0.0, scale=0.001),
    # close to the solution the central path's matrix counted as singular, though it only has entries of all sizes
    Case(n=2, terms=("ridge", "tr_inv", "power"), constraints=("nonneg", "inv_pos <="), seed=247218991, adjoint="smoothed"),
    # Clarabel's own value is nan, beside the domain of x^1.5, or -1.5e19, where there is no solution
    Case(n=1, terms=("ridge", "root"), constraints=("nonneg", "pnorm <=", "box"), seed=2128703292,
         solver="conic_interior_point"),
    Case(n=4, terms=("linear",), constraints=("norm2 <=",), seed=643, parametric=1.0, adjoint="lpgd", dtype="float32",
         shape=(2, 2), scale=1000.0),
    # -1e-17 under an entropy, where cvxpy's violation is infinite
    Case(n=5, terms=("pnorm",), constraints=("box", "neg_entropy <=", "nonneg"), seed=2391, parametric=1.0,
         solver="conic_interior_point", shape=(), spread=0.5),
    # two differences that agree, with a kink between them and the point, or by Clarabel's inaccuracy
    Case(n=2, terms=("weighted", "huber", "huber"), constraints=("box",), seed=2, parametric=1.0, shape=(1,), spread=0.0),
    Case(n=4, terms=("ridge", "tv", "tr_inv"), constraints=("box", "log_sum_exp <=", "log_sum_exp <="), seed=6546,
         parametric=0.3, scale=0.001),
]  # fmt: skip


@pytest.mark.parametrize("case", FOUND, ids=str)
def test_what_was_found(case: Case) -> None:
    assert not judge(case).wrong


LOST = [
    # a local minimum of the violation was called a proof
    NonlinearCase(n=2, terms=("distance", "wave"), equalities=("product",), inequalities=("halves",), box=False, seed=0),
    NonlinearCase(n=1, terms=("distance",), equalities=("sphere",), inequalities=("curve", "halves"), box=False, seed=0),
    NonlinearCase(n=3, terms=("distance",), equalities=("product",), inequalities=("curve", "halves"), box=True, seed=9224,
                  solver="nonlinear_interior_point"),
    # the method loses the feasible point from which it is started again
    NonlinearCase(n=3, terms=("valley", "valley", "wave"), equalities=("product",), inequalities=("curve", "ball"),
                  box=False, seed=36209, solver="nonlinear_interior_point"),
    # every point of a sphere is a solution: the interior-point method breaks down, another one does not
    NonlinearCase(n=5, terms=("distance",), equalities=(), inequalities=("outside", "halves"), box=False, seed=0),
]  # fmt: skip


@pytest.mark.parametrize("case", LOST, ids=str)
def test_what_was_given_up(case: NonlinearCase) -> None:
    verdict = judge_nonlinear(case)
    assert not verdict.wrong
    assert not {what for what in verdict.counts if "gave up" in what} - {"gave up: INFEASIBLE"}


def test_a_wrong_infeasibility_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = ddn.DeclarativeLayer.solve

    def gives_up(layer: ddn.DeclarativeLayer, *tensors: object) -> ddn.Solution:
        found = solve(layer, *tensors)  # type: ignore[arg-type]
        object.__setattr__(found, "status", torch.full_like(found.status, int(ddn.Status.INFEASIBLE)))
        object.__setattr__(found, "outputs", tuple(torch.full_like(out, torch.nan) for out in found.outputs))
        return found

    monkeypatch.setattr(ddn.DeclarativeLayer, "solve", gives_up)
    curved = NonlinearCase(n=3, terms=("distance", "wave"), equalities=("plane",), inequalities=(), box=False, seed=1)
    assert any("scipy finds a feasible point" in text for text in judge_nonlinear(curved).wrong)


REGULAR = Case(n=3, terms=("ridge", "logistic"), constraints=("norm2 <=", "equality"), seed=2, parametric=1.0)


def test_a_wrong_derivative_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge(REGULAR).counts["gradient agrees"] == 1
    monkeypatch.setitem(convex_verdict.ADJOINTS, "implicit", ddn.Approximate())
    assert any("derivative" in text for text in judge(REGULAR).wrong)


def test_a_wrong_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = ddn.DeclarativeLayer.solve

    def off(layer: ddn.DeclarativeLayer, *tensors: object) -> ddn.Solution:
        found = solve(layer, *tensors)  # type: ignore[arg-type]
        object.__setattr__(found, "outputs", tuple(1.01 * out + 0.01 for out in found.outputs))
        return found

    monkeypatch.setattr(ddn.DeclarativeLayer, "solve", off)
    assert any("violated" in text or "unique" in text for text in judge(REGULAR).wrong)
    curved = NonlinearCase(n=3, terms=("distance", "wave"), equalities=("sphere",), inequalities=(), box=False, seed=1)
    assert any("violation" in text for text in judge_nonlinear(curved).wrong)

"""Solutions at the end of the domain of a function, where rounding decides on which side they are found."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx import Status
from ddn_cvx.declare.as_declared import AsDeclared
from ddn_cvx.declare.domains import closed

F64 = torch.float64
X, P = cp.Variable(3), cp.Parameter(3)
WEIGHTS = [0.2, 0.3, 0.5]
AT_THE_END = {
    "entr": lambda x: cp.sum(cp.entr(x)),
    "entr of a root": lambda x: cp.sum(cp.entr(cp.sqrt(x))),
    "rel_entr": lambda x: cp.sum(cp.rel_entr(x, 1.0)),
    "kl_div": lambda x: cp.sum(cp.kl_div(x, np.ones(3))),
    "sqrt": lambda x: cp.sum(cp.sqrt(x)),
    "power": lambda x: cp.sum(cp.power(x, 1.5)),
    "geo_mean": lambda x: cp.geo_mean(x, WEIGHTS),
}


def checked(expression: cp.Expression, x: list[float]) -> tuple[float, float]:
    """Objective and violation at ``x``, with the objective at the end of the domain expected."""
    problem = cp.Problem(cp.Minimize(expression))
    X.value = np.clip(x, 0.0, None)
    value, violation = AsDeclared(problem)(
        {X.id: torch.tensor([x], dtype=F64)}, torch.tensor([float(expression.value)], dtype=F64), 1e-8
    )
    return float(value), float(violation)


@pytest.mark.parametrize("name", AT_THE_END)
def test_beside_the_domain_there_is_the_value_at_its_end_and_a_violation(name: str) -> None:
    expression = AT_THE_END[name](X)
    for off in (0.0, 1e-17, 1e-6, 1e-2):
        value, violation = checked(expression, [0.5, -off, 2.0])
        X.value = np.array([0.5, 0.0, 2.0])
        assert value == pytest.approx(float(expression.value), abs=1e-15)
        assert violation == pytest.approx(off / (1 + off), rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("p", [-1.5, -1, 2, 3])
def test_other_exponents_are_left_alone(p: float) -> None:
    """Natural ones have values everywhere, negative ones none at zero."""
    expression = cp.power(X, p)
    assert closed(expression) == (expression, []) and closed(cp.log(X))[1] == []


@pytest.mark.parametrize("solver", [None, "conic_interior_point", "clarabel"])
def test_solutions_at_the_end_of_a_domain_are_solutions(solver: str | None) -> None:
    """Of ``-log``-like constraints that are active where an argument is zero: both signs of rounding occur in a batch."""
    A = np.array([[0.26, -0.7, 0.1], [0.21, 0.4, -0.5], [-0.9, 0.3, 0.2], [0.38, 0.1, 0.6]])
    offset = np.array([0.82, 1.01, 0.45, 0.99])
    problems = [
        (cp.Minimize(P @ X), [-cp.sum(cp.entr(A @ X + offset)) <= 5.0, cp.norm(X) <= 2.0]),
        (cp.Minimize(cp.sum_squares(X - P) + cp.sum(cp.power(A @ X + offset, 1.5))), []),
    ]
    points = 3 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    for objective, constraints in problems:
        problem = cp.Problem(objective, constraints)
        solution = ddn.DeclarativeLayer(problem, [P], X, solver=solver, on_failure="nan").solve(points)
        assert solution.statuses == [Status.SOLVED] * 64
        least = (solution.outputs[0] @ torch.as_tensor(A.T) + torch.as_tensor(offset)).amin(-1)
        assert int((least.abs() < 1e-8).sum()) > 10
        for k in range(0, 64, 16):
            P.value = points[k].numpy()
            with np.errstate(invalid="ignore"):  # cvxpy evaluates beside the domain, too
                problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
            assert np.abs(solution.outputs[0][k].numpy() - X.value).max() < 1e-4

"""The zoo itself: closed forms against the solver, derivatives against each other, tags against cvxpy."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from zoo import (
    ZOO,
    Array,
    Entry,
    dense,
    directions,
    fixed,
    reference_jacobian,
    reference_solution,
    spectral,
    tight_solve,
)

CONES = dict(zero="zero", nonneg="nonneg", soc="soc", psd="psd", exp="exp", pow3d="p3d", pownd="pnd")
SPARSE_ACCESS = "Accessing a sparse|Reading from a sparse"  # cvxpy's remark on dense values of sparse leaves
REGULAR = [entry for entry in ZOO.values() if "degenerate" not in entry.tags]


def of(entries: Iterable[Entry], keep: Callable[[Entry], Any] = lambda entry: True) -> pytest.MarkDecorator:
    chosen = [entry for entry in entries if keep(entry)]
    return pytest.mark.parametrize("entry", chosen, ids=lambda entry: entry.name)


def with_values(entry: Entry, values: list[Array]) -> Any:
    """The entry's cvxpy objects, its parameters set."""
    problem, parameters, outputs = entry.build()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", SPARSE_ACCESS, RuntimeWarning)
        for parameter, value in zip(parameters, values, strict=True):
            parameter.value = value
    return problem, parameters, outputs


def error(one: list[Array], other: list[Array]) -> float:
    """Largest deviation, relative above 1, NaN if anything is; shapes must agree."""
    assert [np.shape(a) for a in one] == [np.shape(b) for b in other]
    pairs = zip(one, other, strict=True)
    return float(np.max([np.max(np.abs(a - b)) / max(1, np.max(np.abs(b))) for a, b in pairs]))


@pytest.mark.parametrize("seed", [1, 2])
@of(REGULAR, lambda entry: entry.solution)
def test_closed_form_is_the_solution(entry: Entry, seed: int) -> None:
    values = entry.sample(np.random.default_rng(seed))
    assert error(tight_solve(entry, values), reference_solution(entry, values)) < 1e-6


@of(ZOO.values(), lambda entry: "degenerate" in entry.tags and "nonunique" not in entry.tags)
def test_degenerate_solution(entry: Entry) -> None:
    values = entry.sample(np.random.default_rng(1))
    assert error(tight_solve(entry, values), reference_solution(entry, values)) < 1e-5


@of(ZOO.values(), lambda entry: "nonunique" in entry.tags)
def test_one_of_many_solutions_is_feasible_and_optimal(entry: Entry) -> None:
    values = entry.sample(np.random.default_rng(1))
    problem, _, outputs = with_values(entry, values)
    optimum = problem.solve(solver=cp.CLARABEL)
    for output, value in zip(outputs, reference_solution(entry, values), strict=True):
        output.value = value
    assert max([0, *(np.max(constraint.violation()) for constraint in problem.constraints)]) < 1e-9
    assert problem.objective.value == pytest.approx(optimum, abs=1e-7)


@of(ZOO.values())
def test_entry_is_well_formed(entry: Entry) -> None:
    values = entry.sample(np.random.default_rng(1))
    problem, parameters, outputs = with_values(entry, values)  # cvxpy checks shapes and attributes
    known = {variable.id for variable in problem.variables()}
    known |= {dual.id for constraint in problem.constraints for dual in constraint.dual_variables}
    assert {parameter.id for parameter in parameters} == {parameter.id for parameter in problem.parameters()}
    assert all(output.id in known for output in outputs)
    assert [output.shape for output in outputs] == [np.shape(y) for y in reference_solution(entry, values)]
    assert not known & {variable.id for variable in entry.build()[0].variables()}, "build() shares variables"


@of(ZOO.values())
def test_tags_tell_the_truth(entry: Entry) -> None:
    problem, _, outputs = with_values(entry, entry.sample(np.random.default_rng(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cvxpy's advice against problems that are not DPP, and sparse access
        data = problem.get_problem_data(cp.CLARABEL, gp="gp" in entry.tags)[0]
    true = {tag for tag, field in CONES.items() if getattr(data["dims"], field)}
    variables = {variable.id for variable in problem.variables()}
    leaves = [*problem.variables(), *problem.parameters()]
    is_gp = not problem.is_dcp()
    facts = {
        "qp": "P" in data and data["P"].nnz > 0,
        "gp": is_gp,
        "autodpp": not (problem.is_dgp(dpp=True) if is_gp else problem.is_dcp(dpp=True)),
        "maximize": isinstance(problem.objective, cp.Maximize),
        "unconstrained": not problem.constraints,
        "complex": any(leaf.is_complex() for leaf in leaves),
        "sparse": any(leaf.attributes["sparsity"] for leaf in leaves),
        "dual": any(output.id not in variables for output in outputs),
    }
    true |= {tag for tag, holds in facts.items() if holds}
    assert entry.tags - {"lp", "atom", "degenerate", "nonunique"} == true
    assert problem.is_dgp() if is_gp else problem.is_dcp()
    assert "lp" not in entry.tags or not true & {"qp", "soc", "psd", "exp", "pow3d", "pownd"}
    assert entry.tags >= {"degenerate"} or "nonunique" not in entry.tags


def test_the_zoo_is_large_and_complete() -> None:
    tags = set[str]().union(*(entry.tags for entry in REGULAR))
    problems = [entry.build()[0] for entry in REGULAR]
    leaves = [leaf for problem in problems for leaf in (*problem.variables(), *problem.parameters())]
    declared = (item for leaf in leaves for item in leaf.attributes.items())
    attributes = {name for name, value in declared if value is not None and value is not False}
    outputs = [len(entry.build()[2]) for entry in REGULAR]
    assert len(REGULAR) >= 36
    assert {*CONES, "qp", "lp", "gp", "autodpp", "maximize", "unconstrained"} <= tags
    assert {"complex", "sparse", "dual"} <= tags
    assert {"symmetric", "PSD", "diag", "sparsity", "hermitian", "complex", "imag"} <= attributes
    assert {"bounds", "nonneg", "nonpos", "pos"} <= attributes
    assert max(outputs) > 2 and sum(len(entry.inputs) > 1 for entry in REGULAR) > 20


@of(ZOO.values(), lambda entry: entry.derivative)
def test_differences_agree_with_derivatives_by_hand(entry: Entry) -> None:
    assert entry.derivative is not None
    values = entry.sample(np.random.default_rng(1))
    jacobian = reference_jacobian(entry, values)
    for j, parameter in enumerate(entry.build()[1]):
        for k, direction in enumerate(directions(parameter)):
            tangents = [direction if i == j else np.zeros_like(v) for i, v in enumerate(values)]
            assert error([row[j][k] for row in jacobian], entry.derivative(values, tangents)) < 1e-9


@pytest.mark.parametrize("name", [
    "constrained_least_squares", "l2_ball_projection", "largest_eigenvalue", "sparse_parameter",
    "exponential_cone", "power_cone", "cobb_douglas_demand", "hermitian_projection",
])  # fmt: skip
def test_differences_of_the_solver_agree_with_those_of_the_closed_form(name: str) -> None:
    values = ZOO[name].sample(np.random.default_rng(1))
    by_solver = reference_jacobian(ZOO[name], values, tight=True)
    closed = reference_jacobian(ZOO[name], values)
    assert max(map(error, by_solver, closed)) < 2e-7


def _correlation(p: Array) -> list[Array]:
    """Newton's method on the dual (Qi and Sun 2006), its slope by differences."""

    def lack(y: Array) -> Array:
        return np.diag(spectral(lambda w: np.maximum(w, 0), p - np.diag(y) / 2)) - 1

    y = np.zeros(3)
    for _ in range(20):
        slope = np.stack([(lack(y + 1e-6 * e) - lack(y - 1e-6 * e)) / 2e-6 for e in np.eye(3)], axis=1)
        y = y - np.linalg.solve(slope, lack(y))
    shifted = p - np.diag(y) / 2
    positive = spectral(lambda w: np.maximum(w, 0), shifted)
    return [positive, y, 2 * (positive - shifted)]


def _portfolio(factor: Array, gain: Array) -> list[Array]:
    """Newton's method on the optimality conditions; the norm is smooth where the sum is one."""
    x, price, cov = np.full(3, 1 / 3), 0.0, factor @ factor.T
    for _ in range(60):
        risk = np.sqrt(x @ cov @ x)
        hessian = cov / risk - np.outer(cov @ x, cov @ x) / risk**3 + np.eye(3)
        kkt = np.block([[hessian, np.ones((3, 1))], [np.ones((1, 3)), np.zeros((1, 1))]])
        step = np.linalg.solve(kkt, -np.append(cov @ x / risk + x - gain + price, x.sum() - 1))
        x, price = x + step[:3], price + step[3]
    return [x]


NUMERICAL: dict[str, Callable[..., list[Array]]] = {
    "nearest_correlation": _correlation,
    "robust_portfolio": _portfolio,
}


@of(ZOO.values(), lambda entry: entry.solution is None)
def test_entries_without_closed_form(entry: Entry) -> None:
    values = entry.sample(np.random.default_rng(3))
    known = replace(entry, solution=NUMERICAL[entry.name])
    assert error(reference_solution(entry, values), reference_solution(known, values)) < 1e-9
    assert max(map(error, reference_jacobian(entry, values), reference_jacobian(known, values))) < 1e-7


@pytest.mark.filterwarnings(f"ignore:{SPARSE_ACCESS}:RuntimeWarning")
@pytest.mark.parametrize(("attributes", "dimension"), [
    ({}, 9), ({"nonneg": True}, 9), ({"diag": True}, 3), ({"sparsity": ((0, 2, 2), (1, 0, 2))}, 3),
    ({"symmetric": True}, 6), ({"PSD": True}, 6), ({"NSD": True}, 6),
    ({"complex": True}, 18), ({"imag": True}, 9), ({"hermitian": True}, 9),
])  # fmt: skip
def test_directions_span_the_attribute(attributes: dict[str, Any], dimension: int) -> None:
    parameter: Any = cp.Parameter((3, 3), **attributes)
    basis = directions(parameter)
    flat = basis.reshape(dimension, 9)
    assert np.linalg.matrix_rank(np.hstack([flat.real, flat.imag])) == dimension
    inside = -2 * np.eye(3) if "NSD" in attributes else 2 * np.eye(3)
    for moved in dense(parameter.project(inside + 0 * basis[0])) + basis:
        assert np.allclose(dense(parameter.project(moved)), moved)


def test_sampling_refuses_a_kink() -> None:
    at_kink = replace(ZOO["relu"], inputs={"p": fixed([0.005, 1, -1, 1])})
    with pytest.raises(RuntimeError, match="relu: no regular point in 100 draws"):
        at_kink.sample(np.random.default_rng(1))
    replace(at_kink, inputs={"p": fixed([0.2, 1, -1, 1])}).sample(np.random.default_rng(1))


def test_tight_solve_refuses_a_problem_without_solution() -> None:
    crossed = [np.zeros(5), np.ones(5), np.array(-1.0)]
    with pytest.raises(RuntimeError, match="box_projection: Clarabel stops with PrimalInfeasible"):
        tight_solve(ZOO["box_projection"], crossed)

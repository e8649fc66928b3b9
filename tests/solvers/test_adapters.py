"""Every solver on every cone it takes: the optimality conditions, an independent cvxpy model, statuses."""

import copy
import pickle
import warnings
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from programs import CONES, kkt_residual, random_program, select

from ddn_cvx.cones import Product
from ddn_cvx.errors import InputError
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.auto import Auto
from ddn_cvx.solvers.base import Workspace
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.conic_interior_point import ConicInteriorPoint
from ddn_cvx.solvers.cvxpy_any import CvxpySolver, installed
from ddn_cvx.solvers.diffcp import Diffcp
from ddn_cvx.solvers.ecos import ECOS
from ddn_cvx.solvers.interior_point import InteriorPoint
from ddn_cvx.solvers.scs import SCS

LINEAR = {"equality", "linear"}
NO_POWER = LINEAR | {"second-order", "semidefinite", "exponential"}
THREE_DIMENSIONAL = set(CONES) - {"higher power"}

# Solver, the cones it takes, and the relative KKT residual it must reach on the random programs.
SOLVERS = {
    "clarabel": (Clarabel, set(CONES), 1e-5),
    "scs": (SCS, THREE_DIMENSIONAL, 1e-6),
    "ecos": (ECOS, NO_POWER - {"semidefinite"}, 2e-4),
    "diffcp": (Diffcp, NO_POWER, 1e-6),
    "diffcp ECOS": (lambda: Diffcp("ECOS"), NO_POWER - {"semidefinite"}, 2e-4),
    "diffcp Clarabel": (lambda: Diffcp("Clarabel", tolerance=1e-10), NO_POWER, 1e-5),
    "conic_interior_point": (ConicInteriorPoint, set(CONES), 1e-4),
    "interior_point": (InteriorPoint, LINEAR, 1e-7),
    "auto": (Auto, set(CONES), 1e-5),
    "OSQP": (lambda: CvxpySolver("OSQP"), LINEAR, 1e-6),
    "PIQP": (lambda: CvxpySolver("PIQP"), LINEAR, 1e-6),
    "DAQP": (lambda: CvxpySolver("DAQP"), LINEAR, 1e-6),
    "HIGHS": (lambda: CvxpySolver("HIGHS"), LINEAR, 1e-5),
    "CVXOPT": (lambda: CvxpySolver("CVXOPT", {"kktsolver": "robust"}), LINEAR | {"second-order", "semidefinite"}, 1e-3),
    "QOCO": (lambda: CvxpySolver("QOCO"), LINEAR | {"second-order"}, 1e-4),
    "Clarabel by cvxpy": (
        lambda: CvxpySolver("clarabel", {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10}),
        set(CONES),
        1e-4,
    ),
}
ADAPTERS = ["clarabel", "scs", "ecos", "diffcp", "interior_point", "conic_interior_point", "auto"]
MODES = ["diffcp ECOS", "diffcp Clarabel"]

# Every feasible point is optimal there, which these take for an unbounded or a singular program.
NOT_TAKEN = {("DAQP", "equality", False), ("CVXOPT", "equality", False)}


def build(name):
    if name == name.upper() and name not in installed():
        pytest.skip(f"{name} is not installed")
    return SOLVERS[name][0]()


def solve(solver, program, data):
    return solver.solve(program, data, Workspace())


@pytest.mark.parametrize(
    "name, cones, quadratic",
    [(name, c, quad) for name in SOLVERS for c in CONES for quad in (True, False) if c in SOLVERS[name][1]],
)
def test_optimality_conditions(name, cones, quadratic):
    solver = build(name)
    program, data = random_program(CONES[cones], quadratic=quadratic)
    assert solver.unsupported(program) is None
    if (name, cones, quadratic) in NOT_TAKEN:
        return
    raw = solve(solver, program, data)
    assert set(raw.status.tolist()) <= {Status.SOLVED, Status.INACCURATE}
    assert kkt_residual(program, data, raw).max() < SOLVERS[name][2]


@pytest.mark.parametrize("name", [name for name in SOLVERS if SOLVERS[name][1] != set(CONES)])
def test_other_cones_are_refused(name):
    solver = build(name)
    for cones in set(CONES) - SOLVERS[name][1]:
        assert solver.unsupported(random_program(CONES[cones], batch=1)[0]), cones


def cvxpy_model(program, data, i):
    """The i-th element as a user would write it: ``(x, y of the zero and nonnegative rows)``."""
    cones = program.cones
    P, A = (t[i].numpy() for t in program.dense(data))
    q, b = data.q[i].numpy(), data.b[i].numpy()
    x = cp.Variable(program.n)
    linear = cones.zero + cones.nonneg
    constraints = [
        A[: cones.zero] @ x == b[: cones.zero],
        A[cones.zero : linear] @ x <= b[cones.zero : linear],
    ]
    s, at = b - A @ x, linear
    for k in cones.soc:
        constraints.append(cp.norm(s[at + 1 : at + k]) <= s[at] if k > 1 else s[at] >= 0)
        at += k
    for k in cones.psd:
        M = cp.Variable((k, k), PSD=True)
        entries = [(r, c) for c in range(k) for r in range(c + 1)]
        constraints += [s[at + e] == M[r, c] * (1 if r == c else np.sqrt(2)) for e, (r, c) in enumerate(entries)]
        at += len(entries)
    for _ in range(cones.exp):
        constraints.append(s[at] + cp.rel_entr(s[at + 1], s[at + 2]) <= 0)  # x + y log(y/z) <= 0
        at += 3
    for alpha in cones.power:
        constraints.append(
            cp.geo_mean(s[at : at + len(alpha)], [round(10 * a) for a in alpha]) >= cp.abs(s[at + len(alpha)])
        )
        at += len(alpha) + 1
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, cp.psd_wrap(P)) / 2 + q @ x), constraints)
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return x.value, np.concatenate([c.dual_value.ravel() for c in constraints[:2]])


@pytest.mark.parametrize("cones", [c for c in CONES if c != "equality"])
def test_primal_and_dual_are_those_of_the_declared_problem(cones):
    program, data = random_program(CONES[cones], batch=1, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, y = cvxpy_model(program, data, 0)
    raw = solve(Clarabel(), program, data)
    np.testing.assert_allclose(raw.x[0], x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(raw.y[0, : len(y)], y, rtol=1e-4, atol=1e-4)


def box(low, high, cost=1.0):
    """``min cost * x  s.t.  low <= x <= high`` for a batch of bounds, with a spare equality ``z = 0``."""
    rows = np.array([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    program = ConicProgram(Pattern.of(sp.csc_array((2, 2))), Pattern.of(sp.csc_array(rows)), Product(1, 2))
    low, high = torch.tensor(low).double(), torch.tensor(high).double()
    batch = len(low)
    A = torch.tensor([-1.0, 1.0, 1.0]).double().expand(batch, 3).contiguous()
    q = torch.tensor([cost, 0.0]).double().expand(batch, 2).contiguous()
    return program, ConicData(torch.zeros(batch, 0).double(), q, A, torch.stack([0 * low, -low, high], 1))


@pytest.mark.parametrize("name", [*ADAPTERS, *MODES, "OSQP", "PIQP", "HIGHS"])
def test_each_element_has_its_own_status(name):
    program, data = box([0.0, 1.0, np.nan, 0.0, 0.0], [1.0, -1.0, 1.0, np.inf, 3.0])
    raw = solve(build(name), program, data)
    expected = [Status.SOLVED, Status.INFEASIBLE, Status.INVALID_DATA, Status.INVALID_DATA, Status.SOLVED]
    assert raw.status.tolist() == expected
    np.testing.assert_allclose(raw.x[[0, 4], 0], 0, atol=1e-6)
    for vector in (raw.x, raw.y, raw.s):
        assert vector[1:4].isnan().all()


@pytest.mark.parametrize("name", [*ADAPTERS, *MODES, "OSQP", "PIQP", "HIGHS"])
def test_unbounded(name):
    program, data = box([0.0, 0.0], [1.0, 1.0])
    A = data.A.clone()
    A[0, 1] = 0.0  # nothing above x in the first element
    raw = solve(build(name), program, data._replace(A=A, q=-data.q))
    assert raw.status.tolist() == [Status.UNBOUNDED, Status.SOLVED]
    assert raw.x[0].isnan().all()
    np.testing.assert_allclose(raw.x[1, 0], 1, atol=1e-6)


@pytest.mark.parametrize("name", [*ADAPTERS, "OSQP"])
def test_no_constraints(name):
    program, data = random_program(Product(), batch=4)
    P, _ = program.dense(data)
    q = -(P @ torch.ones(4, program.n, 1).double()).squeeze(-1)
    q[1, -1] = 1.0  # the last variable is not in P
    q[2, 0] = torch.nan
    q[3] = 0.0  # stationary at 0, but concave
    data = data._replace(P=data.P * torch.tensor([1.0, 1.0, 1.0, -1.0])[:, None], q=q)
    raw = solve(build(name), program, data)
    assert raw.status[:3].tolist() == [Status.SOLVED, Status.UNBOUNDED, Status.INVALID_DATA]
    if name in (
        "scs",
        "ecos",
        "diffcp",
        "OSQP",
    ):  # the interior-point methods take P to be what the declaration says
        assert raw.status[3] == Status.UNBOUNDED
    assert kkt_residual(program, select(data, slice(0, 1)), type(raw)(*(t[:1] for t in vars(raw).values()))) < 1e-9
    assert raw.x[1:3].isnan().all()


@pytest.mark.parametrize("name", [*(name for name in ADAPTERS if name != "interior_point"), "OSQP"])
def test_no_variables(name):
    empty = Pattern.of(sp.csc_array((0, 0)))
    program = ConicProgram(empty, Pattern.of(sp.csc_array((4, 0))), Product(1, 0, (3,)))
    b = torch.tensor([[0.0, 2, 1, 1], [0.0, 1, 1, 1], [0.1, 2, 1, 1], [0.0, torch.nan, 1, 1]]).double()
    data = ConicData(b[:, :0], b[:, :0], b[:, :0], b)
    raw = solve(build(name), program, data)
    assert raw.status.tolist() == [Status.SOLVED, Status.INFEASIBLE, Status.INFEASIBLE, Status.INVALID_DATA]
    assert torch.equal(raw.s[0], b[0]) and torch.equal(raw.y[0], 0 * b[0]) and raw.s[1:].isnan().all()


@pytest.mark.parametrize("name", [*ADAPTERS, "OSQP"])
def test_empty_batch_and_nothing_at_all(name):
    program, data = random_program(CONES["linear"])
    raw = solve(build(name), program, select(data, slice(0, 0)))
    assert raw.x.shape == (0, program.n) and raw.y.shape == raw.s.shape == (0, program.m) and raw.status.shape == (0,)
    if name == "interior_point":
        return
    nothing = ConicProgram(Pattern.of(sp.csc_array((0, 0))), Pattern.of(sp.csc_array((0, 0))), Product())
    raw = solve(build(name), nothing, ConicData(*(torch.zeros(2, 0).double() for _ in range(4))))
    assert raw.status.tolist() == [Status.SOLVED] * 2


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_and_workspaces_travel(name):
    solver = build(name)
    program, data = random_program(CONES["linear"], batch=2)
    workspace = Workspace()
    first = solver.solve(program, data, workspace)
    for other in (pickle.loads(pickle.dumps(solver)), copy.deepcopy(solver)):
        assert other == solver and hash(other) == hash(solver)
    for space in (pickle.loads(pickle.dumps(workspace)), copy.deepcopy(workspace)):
        again = solver.solve(program, data, space)
        np.testing.assert_allclose(again.x, first.x, atol=1e-6)


@pytest.mark.parametrize("name", ["clarabel", "scs", "ecos", "diffcp"])
def test_missing_package_is_named(name, monkeypatch):
    solver = build(name)
    program, data = random_program(CONES["linear"], batch=1)
    monkeypatch.setitem(__import__("sys").modules, name, None)
    for call in (lambda: solver.unsupported(program), lambda: solve(solver, program, data)):
        with pytest.raises(InputError, match=f"pip install {name}"):
            call()


def test_unsupported_cones_are_named():
    higher, _ = random_program(CONES["higher power"], batch=1)
    semidefinite, _ = random_program(CONES["semidefinite"], batch=1)
    assert "(0.2, 0.3, 0.5)" in SCS().unsupported(higher)
    assert "psd" in ECOS().unsupported(semidefinite) and "power" in ECOS().unsupported(higher)
    assert "power" in Diffcp().unsupported(higher) and "psd" in Diffcp("ECOS").unsupported(semidefinite)
    assert "PSD" in CvxpySolver("OSQP").unsupported(semidefinite)
    assert InteriorPoint().unsupported(semidefinite)
    assert Clarabel().unsupported(higher) is None and Auto().unsupported(higher) is None


def test_indefinite_objective_is_no_solution():
    program, data = random_program(CONES["second-order"], batch=2)
    P = data.P.clone()
    P[0] = -P[0]
    raw = solve(ECOS(), program, data._replace(P=P))
    assert raw.status.tolist() == [Status.INVALID_DATA, Status.SOLVED]


@pytest.mark.parametrize("solver", [SCS(threads=2), Clarabel(threads=2)], ids=["scs", "clarabel"])
def test_threads_change_nothing_but_time(solver, monkeypatch):
    monkeypatch.setattr("ddn_cvx.solvers.elementwise.PARALLEL_WORK", 0)
    program, data = random_program(CONES["all but higher power"], batch=12)
    several, one = solve(solver, program, data), solve(replace(solver, threads=1), program, data)
    for a, b in zip(vars(several).values(), vars(one).values(), strict=True):
        assert torch.equal(a, b)


def test_scs_reuses_a_factorisation_while_the_matrices_stay(monkeypatch):
    scs = pytest.importorskip("scs")
    program, data = random_program(CONES["all but higher power"], batch=6)
    data = ConicData(*(t.clone() for t in data))
    data.P[1:3], data.A[1:3] = data.P[:1], data.A[:1]
    data.P[4], data.b[1:3] = data.P[3], data.b[:1] + 0.1
    data.q[1:3] = data.q[:1] * 1.1
    made = []
    original = scs.SCS
    monkeypatch.setattr(scs, "SCS", lambda *a, **k: made.append(1) or original(*a, **k))
    raw = solve(SCS(reuse=True, threads=1), program, data)
    assert len(made) == 4
    assert raw.status.tolist() == [Status.SOLVED] * 6
    assert kkt_residual(program, data, raw).max() < 1e-6


def test_a_package_that_breaks_down_fails_one_element(monkeypatch):
    import ecos

    program, data = random_program(CONES["linear"])
    original, calls = ecos.solve, []

    def broken(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise ArithmeticError("singular")
        return original(*arguments, **options)

    monkeypatch.setattr(ecos, "solve", broken)
    assert solve(ECOS(), program, data).status.tolist() == [
        Status.SOLVED,
        Status.NUMERICAL_ERROR,
        Status.SOLVED,
    ]


@pytest.mark.parametrize("name", ["clarabel", "scs", "ecos", "diffcp", "diffcp Clarabel", "Clarabel by cvxpy"])
@pytest.mark.parametrize("cones", ["linear", "exponential"])
def test_no_numbers_make_a_solver_raise(name, cones):
    program, data = random_program(CONES[cones], batch=12)
    generator = torch.Generator().manual_seed(1)
    span = torch.linspace(0, 300, 12)[:, None]
    data = ConicData(*(t * 10.0 ** ((torch.rand(t.shape, generator=generator) * 2 - 1) * span).double() for t in data))
    solver = build(name)
    if name in ("scs", "diffcp"):
        solver = replace(solver, **{"max_iters" if name == "scs" else "max_iterations": 500})
    raw = solve(solver, program, data)
    assert raw.status[0] in (Status.SOLVED, Status.INACCURATE)
    assert (raw.status != Status.SOLVED).any()
    assert raw.x[raw.status == Status.SOLVED].isfinite().all()


def test_warm_start_of_scs():
    program, data = random_program(CONES["all but higher power"])
    solver, workspace = SCS(), Workspace()
    cold = solver.solve(program, data, workspace)
    warm = solver.solve(program, data, workspace, cold)
    assert (warm.iterations < cold.iterations).all()
    np.testing.assert_allclose(warm.x, cold.x, atol=1e-6)
    cold.x[1] = torch.nan  # an element that was not solved gives no start
    part = solver.solve(program, data, workspace, cold)
    assert part.iterations[1] > warm.iterations[1] and part.iterations[0] == warm.iterations[0]


def test_iteration_and_time_limits():
    program, data = random_program(CONES["exponential"])
    limits = {Status.ITERATION_LIMIT, Status.INACCURATE}
    for solver in (Clarabel(max_iter=2), SCS(max_iters=5), ECOS(max_iters=2), Diffcp(max_iterations=5)):
        assert set(solve(solver, program, data).status.tolist()) <= limits, solver
    assert solve(Clarabel(time_limit=1e-9), program, data).status.tolist() == [Status.TIME_LIMIT] * 3

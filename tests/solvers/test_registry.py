"""Names and options of solvers."""

import dataclasses
import pickle
import subprocess
import sys

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from programs import CONES, random_program

import ddn_cvx as ddn
import ddn_cvx.solvers.cvxpy_any as cvxpy_any
from ddn_cvx import DeclarativeLayer
from ddn_cvx.cones import Product
from ddn_cvx.errors import InputError
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers import cost
from ddn_cvx.solvers.auto import Auto
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.conic_interior_point import ConicInteriorPoint
from ddn_cvx.solvers.cost import OPERATIONS, Size
from ddn_cvx.solvers.cvxpy_any import CvxpySolver, installed
from ddn_cvx.solvers.first_order import FirstOrder
from ddn_cvx.solvers.interior_point import InteriorPoint
from ddn_cvx.solvers.nonlinear_base import NonlinearSolver
from ddn_cvx.solvers.nonlinear_registry import resolve_nonlinear
from ddn_cvx.solvers.registry import SOLVERS, resolve
from ddn_cvx.solvers.root_base import RootSolver
from ddn_cvx.solvers.root_registry import resolve_root
from ddn_cvx.solvers.scs import SCS


def test_names_in_any_case():
    assert all(solver.name == name for name, solver in SOLVERS.items())
    assert resolve(None) == resolve("AUTO") == Auto()
    for name, kind in SOLVERS.items():
        assert type(resolve(name)) is type(resolve(name.upper())) is kind
    assert resolve("osqp") == CvxpySolver("OSQP")


def test_every_solver_has_its_name():
    """That of the table, and that of its class; whatever the layer shows can be typed."""
    needed = {option: None for option in ("residual", "observations", "camera_of", "point_of")} | {"cameras": 1, "points": 1}
    for base, find in ((Solver, resolve), (NonlinearSolver, resolve_nonlinear), (RootSolver, resolve_root)):
        for name, kind in base.known.items():
            options = needed if name == "bundle_adjustment" else {}
            assert {type(find(given, options)) for given in (name, name.upper(), kind.__name__)} == {kind}
    kinds = [kind for kind in vars(ddn).values() if isinstance(kind, type)]
    public = [kind for kind in kinds if issubclass(kind, (NonlinearSolver, RootSolver))]
    known = {*NonlinearSolver.known.values(), *RootSolver.known.values()}
    assert len(public) == 14 and known.issuperset(public)


def test_the_names_of_nonlinear_solvers_are_listed():
    names = "augmented_lagrangian, auto, bundle_adjustment, compiled_interior_point, lbfgs, least_squares, multi_start"
    with pytest.raises(InputError, match=f"Known: {names}, newton, newton_krylov, nonlinear_interior_point"):
        resolve_nonlinear("ipopt")
    with pytest.raises(InputError, match="needs the options residual, observations, camera_of, point_of, cameras, points"):
        resolve_nonlinear("bundle_adjustment")


def test_options_go_into_the_solver():
    assert resolve("scs", {"eps_abs": 1e-4}) == SCS(eps_abs=1e-4)
    assert resolve(None, {"threads": 1}) == Auto(threads=1)
    assert resolve("OSQP", {"max_iter": 9}) == CvxpySolver("OSQP", {"max_iter": 9})
    solver = Clarabel(max_iter=3)
    assert resolve(solver) is solver and resolve(solver, {}) is solver


def test_unknown_names_get_a_suggestion():
    with pytest.raises(InputError, match=r"'claribel'.*'clarabel'.*Known here: active_set, auto, clarabel"):
        resolve("claribel")
    with pytest.raises(InputError, match=r"name or a Solver object, got 3"):
        resolve(3)


def test_unknown_options_get_a_suggestion():
    with pytest.raises(InputError, match=r"'scs' has no option 'eps_absolute' \(did you mean 'eps_abs'\?\).*max_iters"):
        resolve("scs", {"eps_absolute": 1e-4})
    with pytest.raises(InputError, match=r"max_iter.*belong into the solver object: Clarabel"):
        resolve(Clarabel(), {"max_iter": 3})


@pytest.mark.parametrize(
    "name", ["CVXOPT", "DAQP", "HIGHS", "OSQP", "PIQP", "QOCO", "CLARABEL", "SCS", "ECOS", "GLPK", "SCIPY"]
)
def test_cvxpy_solvers_refuse_unknown_options(name):
    if name not in installed():
        pytest.skip(f"{name} is not installed")
    CvxpySolver(name)
    with pytest.raises(InputError, match=name):
        CvxpySolver(name, {"no_such_option": 1})


def test_uninstalled_solver_is_named(monkeypatch):
    monkeypatch.setattr(cvxpy_any, "installed", lambda: ["CLARABEL"])
    with pytest.raises(InputError, match=r"no solver 'MOSEK'.*installed are CLARABEL.*pip install mosek"):
        CvxpySolver("mosek")


def test_cvxpy_solver_without_duals_is_refused(monkeypatch):
    program, data = random_program(CONES["linear"], batch=1)
    monkeypatch.setitem(cvxpy_any.RECIPES, "nonneg", lambda _: (lambda s: [s >= 0][0], lambda c: c.dual_value))
    solver = CvxpySolver("OSQP")
    monkeypatch.setattr("cvxpy.constraints.nonpos.Inequality.dual_value", None)
    with pytest.raises(InputError, match="no dual variables"):
        solver.solve(program, data, Workspace())


def test_cvxpy_options_are_used():
    program, data = random_program(CONES["linear"], batch=1)
    raw = CvxpySolver("OSQP", {"max_iter": 1, "polishing": False}).solve(program, data, Workspace())
    assert raw.status.tolist() != [Status.SOLVED]


def test_highs_prints_nothing():
    """Not even its name, in a process that has a solver from another one; and what is printed around it stays."""
    pytest.importorskip("highspy")
    code = f"""
import pickle, torch, ddn_cvx
from ddn_cvx.solvers.base import Workspace
solver, program, data = pickle.loads({pickle.dumps((CvxpySolver("HIGHS"), *random_program(CONES["linear"], batch=1)))!r})
print("before")
print(solver.solve(program, data, Workspace()).status.tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert (done.stdout, done.stderr) == ("before\n[0]\n", "")


def test_answers_of_packages_hold_no_negative_zeros():
    pytest.importorskip("highspy")  # which finds -0.0 here
    x, p = cp.Variable(2), cp.Parameter(2)
    layer = DeclarativeLayer(cp.Problem(cp.Minimize(p @ x), [x >= 0, cp.sum(x) <= 1]), [p], x, solver="highs")
    answer = layer(torch.tensor([1.0, -2.0]))
    assert answer.tolist() == [0.0, 1.0] and not answer.signbit().any()


@pytest.mark.parametrize(
    "kind, option", [(InteriorPoint, "max_iterations"), (Clarabel, "threads"), (FirstOrder, "check_every")]
)
def test_counts_are_integers(kind, option):
    for wrong in (2.5, True):
        with pytest.raises(InputError, match=rf"'{option}' of .* must be an integer above 0, got {wrong}"):
            kind(**{option: wrong})


@pytest.mark.parametrize("option, value", [("alpha", 2.5), ("acceleration_interval", 0), ("linear_solver", "abacus")])
def test_what_scs_refuses_is_an_error_of_the_input(option, value):
    program, data = random_program(CONES["linear"], batch=1)
    with pytest.raises(InputError, match=f"SCS refuses an option: .*{value if option == 'linear_solver' else option}"):
        SCS(**{option: value}).solve(program, data, Workspace())


def test_a_solver_that_fails_at_the_second_look_fails_for_its_element(monkeypatch):
    """Where it says infeasible or unbounded, which of the two is found by solving without an objective."""
    program, data = random_program(CONES["linear"], batch=1)
    solver, runs = CvxpySolver("OSQP"), []

    def run(self, problem):
        runs.append(problem)
        if len(runs) > 1:
            raise cp.SolverError
        problem._status = "infeasible_or_unbounded"

    monkeypatch.setattr(CvxpySolver, "_run", run)
    assert solver.solve(program, data, Workspace()).status.tolist() == [Status.NUMERICAL_ERROR] and len(runs) == 2


def test_auto_picks_by_structure():
    small, _ = random_program(CONES["linear"], batch=1)
    dense, data = random_program(CONES["linear"], n=520, batch=2)
    curved, _ = random_program(CONES["second-order"], n=50, batch=1)
    large, _ = random_program(CONES["linear"], n=1300, batch=1)
    power, _ = random_program(CONES["power"], n=50, batch=1)
    assert Auto().explain(dense).startswith("InteriorPoint for n = 520, m = 8: batches of 1 and 64 should take")
    assert Auto().explain(small).split()[0] in ("ActiveSet", "Mehrotra")
    assert Auto().explain(curved).startswith("Mehrotra")
    for program, reason in ((power, "Clarabel"), (large, "n + m = 1308 is above 1200")):
        sentence = Auto().explain(program)
        assert sentence.startswith("Clarabel") and reason in sentence
    raw = Auto().solve(dense, data, Workspace())
    np.testing.assert_array_equal(raw.x, InteriorPoint().solve(dense, data, Workspace()).x)


def chain(n):
    """A sparse program: neighbours are close to each other."""
    identity = sp.eye_array(n)
    A = sp.csc_array(sp.vstack([identity - sp.eye_array(n, k=1), -identity]))
    return ConicProgram(Pattern.of(sp.csc_array(identity)), Pattern.of(A), Product(zero=n, nonneg=n))


def test_the_cost_model_counts_sparse_factors():
    """A chain has factors without fill: their cost grows with n, that of dense ones with its third power."""
    small, large = Size.of(chain(100)), Size.of(chain(200))
    assert large.sparse < 2.5 * small.sparse < 100 * 100 * 40
    assert OPERATIONS["interior_point"](large) > 6 * OPERATIONS["interior_point"](small)
    assert isinstance(Auto().pick(chain(260)).solver, Clarabel)


def test_auto_is_made_for_batches_of_a_size(monkeypatch):
    """The numbers of the model decide; the batch that comes does not."""
    program, _ = random_program(CONES["linear"], n=520, batch=1)
    rates = {("interior_point", "cpu"): (1.0, 1e-4, 1e30), ("clarabel", "cpu"): (0.0, 0.1, 1e30)}
    monkeypatch.setattr(cost, "RATES", rates)
    for batches, expected in (((1,), Clarabel), ((1000,), InteriorPoint), ((1, 1000), InteriorPoint)):
        choice = Auto(batches=batches).pick(program)
        assert isinstance(choice.solver, expected)
        assert {c.solver.name for c in choice.candidates if c.seconds is not None} == {"interior_point", "clarabel"}
    assert Auto(batches=(10, 1000)).pick(program).candidates[-1].seconds == pytest.approx((1.0, 100.0))
    for bad in ((), (0,), 64, [64]):
        with pytest.raises(InputError, match="batches"):
            Auto(batches=bad)


def test_auto_stays_on_a_device_without_measurements():
    program, _ = random_program(CONES["linear"], batch=1)
    choice = Auto().pick(program, "cuda")
    assert isinstance(choice.solver, InteriorPoint) and "cuda" in choice.reason
    curved, _ = random_program(CONES["exponential"], batch=1)
    assert isinstance(Auto().pick(curved, "cuda").solver, ConicInteriorPoint)


def test_auto_gives_failures_a_second_chance(monkeypatch):
    program, data = random_program(CONES["linear"], n=520, batch=3)
    data = ConicData(*(t.clone() for t in data))
    data.q[2] = np.nan
    right = InteriorPoint().solve(program, data, Workspace())
    original = InteriorPoint.solve

    def broken(self, *arguments):
        raw = original(self, *arguments)
        raw.status[1], raw.x[1] = Status.NUMERICAL_ERROR, np.nan
        return raw

    monkeypatch.setattr(InteriorPoint, "solve", broken)
    raw = Auto().solve(program, data, Workspace())
    assert raw.status.tolist() == [Status.SOLVED, Status.SOLVED, Status.INVALID_DATA]
    np.testing.assert_allclose(raw.x[:2], right.x[:2], atol=1e-6)


def test_a_second_chance_that_fails_leaves_the_first_answer(monkeypatch):
    program, data = random_program(CONES["linear"], n=520, batch=2)
    right = InteriorPoint().solve(program, data, Workspace())
    first = dataclasses.replace(right, status=torch.tensor([Status.SOLVED, Status.INACCURATE]))
    monkeypatch.setattr(InteriorPoint, "solve", lambda *_: first)
    monkeypatch.setattr(Clarabel, "solve", lambda self, program, data, _: RawSolution.empty(program, 1, data.q))
    raw = Auto().solve(program, data, Workspace())
    assert raw.status.tolist() == [Status.SOLVED, Status.INACCURATE]
    np.testing.assert_array_equal(raw.x, right.x)


def test_package_does_without_ecos(monkeypatch):
    monkeypatch.setitem(sys.modules, "ecos", None)
    for name in ("auto", "clarabel", "scs", "interior_point"):
        program, data = random_program(CONES["linear"], batch=1)
        assert resolve(name).solve(program, data, Workspace()).status.tolist() == [Status.SOLVED]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ddn.LeastSquares(residual=3), "a function of least_squares must be callable, got 3"),
        (lambda: ddn.RobustLoss("huber", "a"), "the width of a loss must be a positive number, got 'a'"),
        (lambda: ddn.CvxpySolver(3), "CvxpySolver takes the name of a solver, such as 'OSQP', got 3"),
        (lambda: ddn.TorchProblem((3,), torch.sum, smooth="a"), "smooth must be a positive width, got 'a'"),
        (lambda: ddn.DeclarativeLayer(3), "a cvxpy.Problem, or a TorchProblem, FixedPoint, Root or ODE, got int"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(make, message):
    with pytest.raises((ddn.InputError, ddn.DeclarationError), match=message):
        make()

"""Names and options of solvers."""

import sys

import numpy as np
import pytest
from programs import CONES, random_program

import ddn_cvx.solvers.cvxpy_any as cvxpy_any
from ddn_cvx.errors import InputError
from ddn_cvx.program.conic import ConicData
from ddn_cvx.solution import Status
from ddn_cvx.solvers.auto import Auto
from ddn_cvx.solvers.base import Workspace
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.cvxpy_any import CvxpySolver, installed
from ddn_cvx.solvers.interior_point import InteriorPoint
from ddn_cvx.solvers.registry import SOLVERS, resolve
from ddn_cvx.solvers.scs import SCS


def test_names_in_any_case():
    assert all(solver.name == name for name, solver in SOLVERS.items())
    assert resolve(None) == resolve("AUTO") == Auto()
    for name, kind in SOLVERS.items():
        assert type(resolve(name)) is type(resolve(name.upper())) is kind
    assert resolve("osqp") == CvxpySolver("OSQP")


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
    with pytest.raises(
        InputError, match=r"'scs' has no option 'eps_absolute' \(did you mean 'eps_abs'\?\).*max_iters"
    ):
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
    monkeypatch.setattr(cvxpy_any, "_nonneg", None)
    monkeypatch.setitem(
        cvxpy_any._RECIPES, "nonneg", lambda _: (lambda s: [s >= 0][0], lambda c: c.dual_value)
    )
    solver = CvxpySolver("OSQP")
    monkeypatch.setattr("cvxpy.constraints.nonpos.Inequality.dual_value", None)
    with pytest.raises(InputError, match="no dual variables"):
        solver.solve(program, data, Workspace())


def test_cvxpy_options_are_used():
    program, data = random_program(CONES["linear"], batch=1)
    raw = CvxpySolver("OSQP", {"max_iter": 1, "polishing": False}).solve(program, data, Workspace())
    assert raw.status.tolist() != [Status.SOLVED]


def test_auto_picks_by_structure():
    small, _ = random_program(CONES["linear"], batch=1)
    dense, data = random_program(CONES["linear"], n=520, batch=2)
    curved, _ = random_program(CONES["second-order"], n=50, batch=1)
    large, _ = random_program(CONES["linear"], n=700, batch=1)
    assert Auto().explain(dense, 8).startswith("InteriorPoint for 8 instances of n = 520, m = 8")
    assert Auto().explain(small, 8).split()[0] in ("ActiveSet", "Mehrotra")
    assert Auto().explain(curved, 8).startswith("Mehrotra")
    power, _ = random_program(CONES["power"], n=50, batch=1)
    for program, reason in ((power, "cones"), (large, "n + m")):
        sentence = Auto().explain(program, 8)
        assert sentence.startswith("Clarabel") and reason in sentence
    sparse, _ = random_program(CONES["linear"], n=520, batch=1, quadratic=False)
    assert "only" in Auto().explain(sparse, 8)
    raw = Auto().solve(dense, data, Workspace())
    np.testing.assert_array_equal(raw.x, InteriorPoint().solve(dense, data, Workspace()).x)


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


def test_package_does_without_ecos(monkeypatch):
    monkeypatch.setitem(sys.modules, "ecos", None)
    for name in ("auto", "clarabel", "scs", "interior_point"):
        program, data = random_program(CONES["linear"], batch=1)
        assert resolve(name).solve(program, data, Workspace()).status.tolist() == [Status.SOLVED]

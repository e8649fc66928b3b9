"""``solver``, ``solver_args`` and ``warm_start`` of cvxpylayers select a solver here and its options."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import pytest
import torch
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx.compat import CvxpyLayer
from ddn_cvx.compat.solver_args import WarmStarted, choose
from ddn_cvx.declare.cvxpy_convex import ConvexProblem
from ddn_cvx.solvers.registry import resolve

POINT = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
PROJECTED = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)


def quadratic(**options: Any) -> CvxpyLayer:
    """The projection onto the nonnegative orthant."""
    p, x = cp.Parameter(3), cp.Variable(3)
    return CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), [p], [x], **options)


def entropy(**options: Any) -> tuple[CvxpyLayer, list[Tensor]]:
    """A problem that takes SCS a few hundred iterations."""
    c, g, x = cp.Parameter(12), cp.Parameter(), cp.Variable(12)
    objective = cp.Minimize(c @ x - cp.sum(cp.entr(x)))
    generator = torch.Generator().manual_seed(0)
    values = [3 * torch.randn(12, dtype=torch.float64, generator=generator), torch.tensor(0.4, dtype=torch.float64)]
    return CvxpyLayer(cp.Problem(objective, [cp.sum(x) == 1, cp.norm(x) <= g]), [c, g], [x], **options), values


TIGHT_CLARABEL = ddn.Clarabel(tol_feas=1e-12, tol_gap_abs=1e-12, tol_gap_rel=1e-12)


@pytest.mark.parametrize(
    "solver, args, expected",
    [
        (None, {}, ddn.Auto()),
        (None, {"eps": 1e-12, "max_iters": 5000, "acceleration_lookback": 0, "mode": "lsmr"}, ddn.Auto()),
        (None, {"n_jobs_forward": 2, "n_jobs_backward": 2}, ddn.Auto(threads=2)),
        (None, {"time_limit_secs": 2.0}, ddn.Clarabel(time_limit=2.0)),
        (None, {"time_limit_secs": 0.0}, ddn.Clarabel()),
        (None, {"verbose": True}, ddn.Clarabel(verbose=True)),
        (None, {"verbose": False}, ddn.Auto()),
        (None, {"solve_method": "SCS", "eps": 1e-12}, ddn.SCS(eps_abs=1e-12, eps_rel=1e-12)),
        (None, {"solve_method": "SCS", "eps": 1e-12, "eps_abs": 1e-11}, ddn.SCS(eps_abs=1e-12, eps_rel=1e-12)),
        ("scs", {"eps": 1e-3}, ddn.SCS()),
        ("SCS", {"eps_abs": 1e-10, "eps_rel": 1e-11}, ddn.SCS(eps_abs=1e-10, eps_rel=1e-11)),
        ("SCS", {"max_iters": 900, "alpha": 1.2, "rho_x": 1e-5}, ddn.SCS(max_iters=900, alpha=1.2, rho_x=1e-5)),
        ("SCS", {"normalize": False, "acceleration_lookback": 0}, ddn.SCS(normalize=False, acceleration_lookback=0)),
        ("SCS", {"adaptive_scale": False, "scale": 0.3, "use_indirect": True}, ddn.SCS(adaptive_scale=False, scale=0.3)),
        ("SCS", {"time_limit_secs": 3.0, "n_jobs_forward": -1}, ddn.SCS(time_limit_secs=3.0)),
        ("ECOS", {"eps": 1e-12, "max_iters": 40}, ddn.ECOS(abstol=1e-12, reltol=1e-12, feastol=1e-12, max_iters=40)),
        ("ECOS", {"n_jobs_forward": 3, "mode": "dense"}, ddn.ECOS()),
        ("CLARABEL", {"eps": 1e-12}, TIGHT_CLARABEL),
        ("CLARABEL", {"max_iters": 40, "scale": 0.2}, ddn.Clarabel(max_iter=40)),
        ("CLARABEL", {"tol_feas": 1e-5}, ddn.Clarabel(tol_feas=1e-5)),
        ("SCS", {"solve_method": "Clarabel"}, ddn.Clarabel()),
        ("ECOS", {"solve_method": "CLARABEL"}, ddn.Clarabel()),
        ("DIFFCP", {}, ddn.Diffcp()),
        ("DIFFCP", {"solve_method": "CLARABEL", "eps": 1e-12}, ddn.Diffcp(solve_method="Clarabel", tolerance=1e-12)),
        (ddn.SCS(eps_abs=1e-4, eps_rel=1e-4), {"max_iters": 900}, ddn.SCS(eps_abs=1e-4, eps_rel=1e-4, max_iters=900)),
    ],
    ids=str,
)
def test_options_are_those_of_the_solver(solver: Any, args: dict[str, Any], expected: ddn.SCS) -> None:
    assert choose(solver, args) == expected
    torch.testing.assert_close(quadratic(solver=solver, solver_args=args)(POINT)[0], PROJECTED)


def test_other_solvers_of_cvxpy_get_their_options_as_they_are() -> None:
    pytest.importorskip("osqp")
    layer = quadratic(solver="OSQP", solver_args={"alpha": 1.5, "n_jobs_backward": 2})
    assert layer.layer.solver == resolve("OSQP", {"alpha": 1.5})
    torch.testing.assert_close(layer(POINT)[0], PROJECTED)


@pytest.mark.parametrize(
    "solver, args, message",
    [
        (None, {"esp": 1e-8}, "'esp'"),
        ("SCS", {"tol_feas": 1e-8}, "solver 'scs' has no option 'tol_feas'.*eps_abs"),
        ("ECOS", {"time_limit_secs": 1.0}, "solver 'ecos' has no option 'time_limit_secs'"),
        (None, {"solve_method": "OSQP"}, "Solver OSQP not supported"),
        (None, {"mode": "lpgd"}, "'lpgd'.*exact"),
        (None, {"mode": "banana"}, "'banana'"),
        ("SCS", {"eps": "tight"}, "eps.*must be a number"),
        ("SCS", {"eps": -1.0}, "eps_abs"),
        ("CLARABEL", {"max_iters": 0}, "max_iter"),
        ("MOREAU", {}, "MOREAU.*cvxpylayers only"),
        ("cuclarabel", {}, "cvxpylayers only"),
        ("MPAX", {}, "cvxpylayers only"),
        ("BANANA", {}, "(?i)banana"),
        (object(), {}, "solver must be a name.*SolverInterface"),
    ],
    ids=str,
)
def test_unknown_solvers_and_options_are_errors(solver: Any, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ddn.InputError, match=message):
        quadratic(solver=solver, solver_args=args)


@pytest.mark.parametrize("args, message", [({"esp": 1e-8}, "'esp'"), ({"mode": "lpgd"}, "exact"), ([1], "must be a dict")])
def test_unknown_options_of_a_call_are_errors(args: Any, message: str) -> None:
    with pytest.raises(ddn.InputError, match=message):
        quadratic()(POINT, solver_args=args)
    with pytest.raises(ddn.InputError, match=message):
        quadratic(solver_args=args)


def test_a_solver_that_cannot_take_the_problem_is_an_error() -> None:
    X = cp.Variable((2, 2), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.trace(X)), [X >> 1])
    with pytest.raises(ddn.DeclarationError, match="Solver 'ecos' cannot take this problem"):
        CvxpyLayer(problem, [], [X], solver="ECOS")
    with pytest.raises(ddn.DeclarationError, match="Solver 'ecos' cannot take this problem"):
        CvxpyLayer(problem, [], [X])(solver_args={"solve_method": "ECOS"})


def test_options_of_a_call_override_and_leave_the_layer_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = quadratic(solver="SCS", solver_args={"max_iters": 1000, "scale": 0.5})
    used: list[Any] = []
    monkeypatch.setattr(ConvexProblem, "__init__", lambda *_: pytest.fail("the problem was canonicalised again"))
    solve = ddn.SCS.solve
    monkeypatch.setattr(ddn.SCS, "solve", lambda self, *args: used.append(self) or solve(self, *args))
    for args in (None, {"max_iters": 50}, {}):
        torch.testing.assert_close(layer(POINT, solver_args=args)[0], PROJECTED)
    assert used == [ddn.SCS(max_iters=k, scale=0.5) for k in (1000, 50, 1000)]


def test_too_few_iterations_are_an_error_not_an_answer() -> None:
    layer, values = entropy()
    layer.layer.polish_steps = 0  # which would save it
    with pytest.raises(ddn.SolverError, match=r"INACCURATE|ITERATION_LIMIT"):
        layer(*values, solver_args={"solve_method": "SCS", "max_iters": 1})


def test_verbose_prints(capfd: pytest.CaptureFixture[str]) -> None:
    quadratic()(POINT)
    assert not capfd.readouterr().out
    quadratic(verbose=True)(POINT)
    assert "Clarabel" in capfd.readouterr().out
    quadratic(verbose=True)(POINT, solver_args={"verbose": False})
    assert not capfd.readouterr().out


def test_warm_start_saves_iterations_and_nothing_else() -> None:
    layer, values = entropy(solver="SCS")
    warm = layer.layer.with_solver(WarmStarted(ddn.SCS()))
    first, again = warm.solve(*values), warm.solve(*values)
    assert int(again.iterations) < int(first.iterations)
    torch.testing.assert_close(again.outputs, layer(*values), rtol=0, atol=1e-10)
    moved = [values[0] + 0.01, values[1] * 1.01]
    for given in (values, moved, [v.expand(2, *v.shape) for v in moved], values):
        torch.testing.assert_close(layer(*given, warm_start=True), layer(*given), rtol=0, atol=1e-10)


def test_warm_start_reaches_scs_and_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    for kind in (ddn.SCS, ddn.Clarabel):
        solve = kind.solve
        monkeypatch.setattr(
            kind, "solve", lambda *args, solve=solve: started.append(len(args) > 4 and args[4] is not None) or solve(*args)
        )
    for solver in ("SCS", "CLARABEL"):
        layer = quadratic(solver=solver)
        for _ in range(2):
            torch.testing.assert_close(layer(POINT, warm_start=True)[0], PROJECTED)
    assert started == [False, True, False, False]

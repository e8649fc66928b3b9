"""``layer.explain()``: what it says is what a call does."""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import pytest
import torch
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx import DeclarativeLayer
from ddn_cvx.adjoint import compiled
from ddn_cvx.solvers.base import Solver
from ddn_cvx.solvers.compiled import Compiled


def least_squares(n: int = 3, **options: object) -> DeclarativeLayer:
    x, A, b = cp.Variable(n), cp.Parameter((n, n), name="A"), cp.Parameter(n, name="b")
    return DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0]), [A, b], x, **options)  # type: ignore[arg-type]


def ball(n: int = 3, **options: object) -> DeclarativeLayer:
    x, p = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm(x) <= 1])
    return DeclarativeLayer(problem, [p], x, **options)  # type: ignore[arg-type]


def power(**options: object) -> DeclarativeLayer:
    x, p = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.PowCone3D(x[0] + 1, x[1] + 1, x[2], 0.3)])
    return DeclarativeLayer(problem, [p], x, **options)  # type: ignore[arg-type]


def used(monkeypatch: pytest.MonkeyPatch, layer: DeclarativeLayer, *params: Tensor) -> tuple[list[str], list[bool]]:
    """The solvers that a forward and backward pass runs, and whether compiled code maps parameters to the gradient."""
    solvers: list[str] = []
    kernels: list[bool] = []

    def spied(original: Callable[..., object], name: str) -> Callable[..., object]:
        def solve(self: Solver, *arguments: object, **more: object) -> object:
            solvers.append(name)
            return original(self, *arguments, **more)

        return solve

    for kind in (ddn.ActiveSet, ddn.Mehrotra, ddn.InteriorPoint, ddn.Clarabel, ddn.SCS):
        monkeypatch.setattr(kind, "solve", spied(kind.solve, kind.__name__))
        if issubclass(kind, Compiled):
            monkeypatch.setattr(kind, "prepare", spied(kind.prepare, kind.__name__))
    pull_back = compiled.pull_back
    monkeypatch.setattr(compiled, "pull_back", lambda *a: kernels.append(True) or pull_back(*a))
    layer(*(p.clone().requires_grad_() for p in params)).sum().backward()
    return solvers, kernels


def numbers(layer: DeclarativeLayer, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    specs = layer.node.parameters
    return [torch.randn(batch, *s.shape, dtype=torch.float64, generator=generator) for s in specs]


@pytest.mark.parametrize(
    ("make", "kernels"),
    [
        (least_squares, True),
        (lambda: least_squares(solver=ddn.Clarabel()), True),
        (lambda: least_squares(adjoint=ddn.LPGD(tau=0.1)), False),
        (ball, True),
        (lambda: ball(solver="scs"), True),
        (power, False),
    ],
)
def test_the_solver_and_the_kernels_that_run(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], DeclarativeLayer], kernels: bool
) -> None:
    layer = make()
    params = numbers(layer, 2)
    report = layer.explain(*params)
    solvers, pulled = used(monkeypatch, layer, *params)
    assert report.solver == solvers[0]
    assert report.kernels is kernels is bool(pulled)
    assert (report.batch, report.device) == (2, "cpu")


def test_candidates_and_why() -> None:
    report = least_squares().explain(batch=1000)
    large = report.candidates.pop("FirstOrder")
    assert set(report.candidates) == {"ActiveSet", "Mehrotra", "InteriorPoint", "ConicInteriorPoint", "Clarabel"}
    assert report.batch == 1000 and all("for 1000 on one thread" in text for text in report.candidates.values())
    assert "too large" in large
    assert "batches of 1 and 64 should take" in report.reason
    assert "n = 3, m = 3 (3 inequalities)" in report.problem
    assert least_squares(solver="clarabel").explain().reason == "it was given"
    curved = power().explain()
    assert "cones" in curved.candidates["Mehrotra"] and "none for power cones" in curved.path and "power" in curved.problem
    assert "estimated" in curved.candidates["Clarabel"]
    assert "default adjoint" in least_squares(adjoint=ddn.LPGD(tau=0.1)).explain().path
    assert "too large" in least_squares(600).explain().path
    assert "too large" in ball(300).explain().path


def test_parameter_map() -> None:
    assert "gather" in least_squares().explain().parameters
    x, p = cp.Variable(2), cp.Parameter(2)
    summed = DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x)), [cp.sum(x) == cp.sum(p)]), [p], x)
    assert "2 numbers" in summed.explain().parameters and "sparse product" in summed.explain().parameters


def test_a_device_that_need_not_be_there() -> None:
    report = least_squares().explain(device="cuda", batch=8)
    assert (report.solver, report.device, report.kernels) == ("InteriorPoint", "cuda", False)
    assert "on cuda" in report.path and "nothing was measured on cuda" in report.reason
    assert ball().explain(device="cuda").solver == "ConicInteriorPoint"
    assert "Clarabel gets copies on the CPU" in ball(solver="clarabel").explain(device=torch.device("cuda", 0)).path


def test_checks_follow_the_declaration() -> None:
    plain = least_squares(tolerance=1e-5, on_failure="nan").explain()
    assert any("1e-05" in c for c in plain.checks) and any("NaN" in c for c in plain.checks)
    assert not any("attributes" in c for c in plain.checks) and not any("after 0.5 s" in c for c in plain.checks)
    assert any("after 0.5 s" in c for c in least_squares(time_limit=0.5).explain().checks)
    x, p = cp.Variable(2), cp.Parameter(2, nonneg=True)
    declared = DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p))), [p], x)
    assert any("attributes" in c for c in declared.explain().checks)


def test_wrong_parameters() -> None:
    with pytest.raises(ddn.InputError, match="'b' must have shape"):
        least_squares().explain(torch.zeros(3, 3), torch.zeros(4))
    assert least_squares().explain(A=torch.zeros(7, 3, 3), b=torch.zeros(3)).batch == 7


def test_nonlinear() -> None:
    y, p = cp.Variable(3), cp.Parameter(3)
    sphere = DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(y - p)), [cp.sum_squares(y) == 1]), [p], y)
    report = sphere.explain(batch=5)
    assert report.solver == "NonlinearInteriorPoint" and "n = 3, 1 equalities" in report.problem and "DCP" in report.problem
    assert sphere.explain(torch.zeros(4, 3)).batch == 4
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    node = ddn.TorchProblem((3,), lambda y, x: (weight * y - x).square().sum(), parameters=[(3,)])
    report = DeclarativeLayer(node).explain()
    assert report.solver == "Newton" and "1 captured" in report.parameters and "n = 3" in report.problem
    open_shapes = DeclarativeLayer(ddn.TorchProblem((3,), lambda y, x: (y - x).square().sum()))
    assert open_shapes.explain().solver == "NonlinearAuto" and "known once it is called" in open_shapes.explain().problem
    assert open_shapes.explain(torch.zeros(2, 3)).solver == "Newton"
    own = ddn.TorchProblem((3,), lambda y, x: (y - x).square().sum(), solve=lambda x: x, stationary=True)
    report = DeclarativeLayer(own).explain(torch.zeros(2, 3))
    assert report.solver == "solve=" and any("stationary point will do" in c for c in report.checks)
    given = DeclarativeLayer(node, solver=ddn.LBFGS()).explain()
    assert (given.solver, given.reason) == ("LBFGS", "it was given")


def test_equations() -> None:
    fixed = DeclarativeLayer(ddn.FixedPoint((3,), lambda y, x: torch.tanh(0.5 * y + x)))
    root = DeclarativeLayer(ddn.Root((100,), lambda y, x: y + y**3 - x))
    assert fixed.explain().solver == "Anderson" and "Jacobians are formed" in fixed.explain().path
    assert root.explain(torch.zeros(2, 100)).solver == "RootNewton" and "GMRES" in root.explain().path
    assert DeclarativeLayer(root.node, solver=ddn.Broyden()).explain().reason == "it was given"


def test_differential_equation() -> None:
    pytest.importorskip("torchdiffeq")
    layer = DeclarativeLayer(ddn.ODE((2,), lambda t, y: -y, span=(0.0, 1.0)), adjoint=ddn.Unrolled())
    report = layer.explain(torch.zeros(3, 2))
    assert report.batch == 3 and "dopri5" in report.reason and "steps are kept" in report.adjoint


def test_as_text() -> None:
    text = str(least_squares().explain())
    for label in ("problem", "call", "solver", "parameters", "adjoint", "path", "checks"):
        assert any(line.startswith(f"{label:<12}") for line in text.splitlines())
    assert "64 instances on cpu" in text and "Clarabel: " in text

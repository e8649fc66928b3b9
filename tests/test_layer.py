"""The layer's contract: shapes, dtypes, batches, failures, inputs, and living inside a training program."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from zoo import simplex

import ddn_cvx as ddn


def simplex_layer(n: int = 3, **options: object) -> ddn.DeclarativeLayer:
    x, p = cp.Variable(n, name="x"), cp.Parameter(n, name="p")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    return ddn.DeclarativeLayer(problem, [p], x, **options)


def capped_layer(**options: object) -> ddn.DeclarativeLayer:
    """Infeasible when ``cap < 1/3``."""
    x, p, cap = cp.Variable(3), cp.Parameter(3, name="p"), cp.Parameter(name="cap")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0, x <= cap])
    return ddn.DeclarativeLayer(problem, [p, cap], x, **options)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_any_leading_dimensions_and_dtype(batch: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    p = torch.randn(*batch, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    out = _SIMPLEX(p)
    assert out.shape == p.shape and out.dtype == dtype
    expected = np.array([simplex(row) for row in p.double().reshape(-1, 4).numpy()]).reshape(p.shape)
    accuracy = {torch.float64: 1e-10, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    np.testing.assert_allclose(out.double().numpy(), expected, atol=accuracy)


_SIMPLEX = simplex_layer(4)


def test_bare_variable_gives_a_tensor_and_a_list_a_tuple() -> None:
    x, p = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)))
    point = torch.tensor([1.0, 2.0])
    assert isinstance(ddn.DeclarativeLayer(problem, [p], x)(point), torch.Tensor)
    assert isinstance(ddn.DeclarativeLayer(problem, [p], [x])(point), tuple)
    assert isinstance(ddn.DeclarativeLayer(problem)(point), tuple)


def test_parameters_by_name_in_any_order() -> None:
    layer, p, cap = capped_layer(), torch.tensor([1.0, 0.2, 0.0]), torch.tensor(0.6)
    assert torch.equal(layer(p, cap), layer(cap=cap, p=p))
    assert torch.equal(layer(p, cap), layer(p, cap=cap))


def test_shared_parameter_gets_the_sum_over_the_batch() -> None:
    layer = capped_layer()
    p = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cap = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    (layer(p, cap) * weights).sum().backward()
    each = torch.full((5, 2), 0.5, dtype=torch.float64, requires_grad=True)
    (layer(p, each) * weights).sum().backward()
    assert cap.grad is not None and each.grad is not None
    assert torch.allclose(cap.grad, each.grad.sum())


def test_different_batch_dimensions_broadcast() -> None:
    layer = capped_layer()
    p, cap = torch.randn(4, 1, 3, dtype=torch.float64), torch.tensor([0.4, 0.8], dtype=torch.float64)
    out = layer(p, cap)
    assert out.shape == (4, 2, 3)
    assert torch.allclose(out[1, 0], layer(p[1, 0], cap[0]))


def test_solution_reports_every_element() -> None:
    layer = capped_layer()
    p = torch.zeros(2, 2, 3, dtype=torch.float64)
    cap = torch.tensor([[0.5, 0.1], [float("nan"), 1.0]], dtype=torch.float64)
    solution = layer.solve(p, cap)
    S = ddn.Status
    assert solution.statuses == [S.SOLVED, S.INFEASIBLE, S.INVALID_DATA, S.SOLVED]
    assert solution.status.shape == solution.value.shape == solution.gap.shape == solution.iterations.shape == (2, 2)
    good = solution.status == int(S.SOLVED)
    for field in ("primal_residual", "dual_residual", "gap"):
        assert float(getattr(solution, field)[good].max()) <= 1e-10
    assert solution.value[good].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert torch.isnan(solution.value[~good]).all() and torch.isnan(solution.outputs[0][~good]).all()
    assert torch.isnan(solution.x[~good]).all() and torch.isnan(solution.y[~good]).all()
    assert len(solution.dual) == 3 and solution.dual[0][0].shape == (2, 2)


def test_raise_names_the_failed_elements() -> None:
    layer = capped_layer()
    with pytest.raises(ddn.SolverError, match=r"(?s)2 of 4.*INFEASIBLE at \(0, 1\), \(1, 0\)") as caught:
        layer(torch.zeros(2, 2, 3), torch.tensor([[0.5, 0.1], [0.2, 1.0]]))
    assert caught.value.indices == ((0, 1), (1, 0))
    assert caught.value.status == (ddn.Status.INFEASIBLE,) * 2
    with pytest.raises(ddn.SolverError, match="'cap' holds NaN"):
        layer(torch.zeros(3), torch.tensor(float("nan")))


def test_failed_rows_are_nan_with_zero_gradient_and_the_others_keep_their_bits() -> None:
    layer = capped_layer(on_failure="nan")
    p = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    cap = torch.full((6,), 0.7, dtype=torch.float64)
    clean_p = p.clone().requires_grad_()
    clean = layer(clean_p, cap)
    clean.nansum().backward()
    bad_cap, bad_p = cap.clone(), p.clone()
    bad_cap[1], bad_p[4, 0] = 0.1, torch.inf
    bad_p.requires_grad_()
    polluted = layer(bad_p, bad_cap)
    polluted.nansum().backward()
    good = [0, 2, 3, 5]
    assert torch.isnan(polluted[[1, 4]]).all() and torch.equal(polluted[good], clean[good])
    assert clean_p.grad is not None and bad_p.grad is not None
    assert torch.equal(bad_p.grad[good], clean_p.grad[good]) and not bad_p.grad[[1, 4]].any()


def test_declared_attributes_of_parameters_are_enforced() -> None:
    x, w = cp.Variable(2), cp.Parameter(2, nonneg=True, name="w")
    P = cp.Parameter((2, 2), PSD=True, name="P")
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + w @ cp.abs(x - 1)))
    layer = ddn.DeclarativeLayer(problem, [w, P], x, on_failure="nan")
    eye = torch.eye(2, dtype=torch.float64)
    w_good, w_bad = torch.ones(2, dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert layer.solve(w_good, eye).statuses == [ddn.Status.SOLVED]
    assert layer.solve(w_bad, eye).statuses == [ddn.Status.INVALID_DATA]
    assert layer.solve(w_good, -eye).statuses == [ddn.Status.INVALID_DATA]
    skew = torch.tensor([[1.0, 0.5], [-0.5, 1.0]], dtype=torch.float64)
    assert layer.solve(w_good, skew).statuses == [ddn.Status.INVALID_DATA]


def test_a_quadratic_form_that_turns_out_indefinite_is_refused() -> None:
    x, B = cp.Variable(2), cp.Parameter((2, 2), name="B")
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, cp.psd_wrap(B + B.T)) + cp.sum(x)), [x >= -1, x <= 1])
    layer = ddn.DeclarativeLayer(problem, [B], x, on_failure="nan")
    saddle = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    solution = layer.solve(torch.stack([torch.eye(2, dtype=torch.float64), saddle]))
    assert solution.statuses == [ddn.Status.SOLVED, ddn.Status.INVALID_DATA]
    assert torch.allclose(solution.outputs[0][0], torch.tensor([-0.25, -0.25], dtype=torch.float64))


BAD_INPUTS = {
    "count": (lambda layer: layer(torch.zeros(3)), r"Expected 2 parameters \(p, cap\), got 1"),
    "shape": (lambda layer: layer(torch.zeros(4), torch.tensor(1.0)), r"'p' must have shape \(\*batch, 3\), got \(4,\)"),
    "batch": (lambda layer: layer(torch.zeros(2, 3), torch.ones(3)), "do not broadcast"),
    "integer": (lambda layer: layer(torch.zeros(3).long(), torch.tensor(1.0)), "floating-point dtype, got torch.int64"),
    "list": (lambda layer: layer([0.0, 0.0, 0.0], torch.tensor(1.0)), "must be a torch.Tensor, got list"),
    "complex": (lambda layer: layer(torch.zeros(3) * 1j, torch.tensor(1.0)), "real but got dtype torch.complex64"),
    "device": (lambda layer: layer(torch.zeros(3), torch.tensor(1.0, device="meta")), "on one device"),
    "sparse": (lambda layer: layer(torch.zeros(3).to_sparse(), torch.tensor(1.0)), "dense tensor"),
    "name": (lambda layer: layer(torch.zeros(3), lid=torch.tensor(1.0)), "Unknown parameter 'lid'"),
    "twice": (lambda layer: layer(torch.zeros(3), torch.tensor(1.0), p=torch.zeros(3)), "given twice"),
    "missing": (lambda layer: layer(p=torch.zeros(3)), "Missing parameters: cap"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_names_the_argument(case: str) -> None:
    call, message = BAD_INPUTS[case]
    with pytest.raises(ddn.InputError, match=message):
        call(capped_layer())


@pytest.mark.parametrize("convex", [True, False])
def test_names_that_stand_for_several(convex: bool) -> None:
    """Neither is lost, and no number goes where it was not meant to."""
    x, y = cp.Variable(2, name="z"), cp.Variable(name="z")
    p, q = cp.Parameter(2, name="a"), cp.Parameter(name="a")
    first, second = torch.tensor([1.0, 2.0]).double(), torch.tensor(3.0).double()
    constraints = [] if convex else [cp.square(y) == 9]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p) + cp.square(y - q)), constraints)
    layer = ddn.DeclarativeLayer(problem, [p, q], [x, y])
    solution = layer.solve(first, second)
    assert list(solution.primal) == ["z", "z (2)"]
    for found in (layer(first, second), solution.primal.values()):
        assert all(torch.allclose(one, right, atol=1e-6) for one, right in zip(found, (first, second), strict=True))
    with pytest.raises(ddn.InputError, match="2 parameters are named 'a'; pass them by position"):
        layer(first, a=second)


def test_reports_look_at_their_inputs_first() -> None:
    layer = capped_layer()
    for wrong, message in [([0.0, 0.0, 0.0], "got list"), (torch.zeros(3).long(), "floating-point dtype")]:
        with pytest.raises(ddn.InputError, match=message):
            layer.diagnose(wrong, torch.tensor(1.0))
    with pytest.raises(ddn.InputError, match="batch must be a whole number of at least 0, got -1"):
        layer.explain(batch=-1)


def test_bad_declarations_name_the_culprit() -> None:
    x, p, stranger = cp.Variable(2, name="x"), cp.Parameter(2, name="p"), cp.Parameter(name="stranger")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)))
    for arguments, message in [
        (([p, stranger], [x]), "'stranger'.*does not appear"),
        (([], [x]), "missing: p"),
        (([p, p], [x]), "twice"),
        (([p], [cp.Variable(name="other")]), "'other'.*neither"),
        (([x], [x]), r"parameters\[0\] must be a cvxpy.Parameter, got Variable"),
        ((p, [x]), r"parameters must be a list of cvxpy.Parameter objects; write \[p\]"),
        (([p], [p]), r"variables\[0\] must be a cvxpy.Variable"),
    ]:
        with pytest.raises(ddn.DeclarationError, match=message):
            ddn.DeclarativeLayer(problem, *arguments)
    with pytest.raises(ddn.DeclarationError, match=r"cvxpy.Problem, or .*, got int"):
        ddn.DeclarativeLayer(3)
    for problem, message in [
        (cp.Problem(cp.Minimize(cp.sum(cp.Variable(2, integer=True, name="k")))), "'k' is integer"),
        (cp.Problem(cp.Minimize(cp.sum(x)), [cp.quad_form(x, cp.Parameter((2, 2), PSD=True)) <= 1]), "not DPP"),
    ]:
        with pytest.raises(ddn.DeclarationError, match=message):
            ddn.DeclarativeLayer(problem)


def test_solvers_of_cone_programs_need_convex_problems() -> None:
    x = cp.Variable(2, name="x")
    for problem, message in [
        (cp.Problem(cp.Minimize(cp.sqrt(x[0]))), "Objective.*breaks the DCP rules"),
        (cp.Problem(cp.Minimize(x[0] * x[1])), r"x\[0\] \* x\[1\].*breaks the DCP rules"),
        (cp.Problem(cp.Minimize(x[0]), [cp.square(x[0]) == 1]), "Constraint.*equality needs both sides affine"),
    ]:
        for solver in ("clarabel", ddn.Clarabel()):
            with pytest.raises(ddn.InputError, match=message):
                ddn.DeclarativeLayer(problem, solver=solver)


def test_unknown_options_are_errors() -> None:
    for options, message in [
        ({"solver": "clarabell"}, "(?i)clarabel"),
        ({"solver": "clarabel", "solver_options": {"max_iterations": 3}}, "max_iter"),
        ({"on_failure": "ignore"}, "on_failure"),
        ({"adjoint": "implicit"}, "adjoint"),
        ({"tolerance": 0.0}, "tolerance must be a positive number, got 0.0"),
        ({"tolerance": "1e-6"}, "tolerance must be a positive number, got '1e-6'"),
        ({"polish_steps": -1}, "polish_steps must be a whole number of at least 0, got -1"),
        ({"polish_steps": 2.5}, "polish_steps must be a whole number"),
        ({"solver": "clarabel", "solver_options": [1]}, "solver_options must be a mapping"),
    ]:
        with pytest.raises(ddn.InputError, match=message):
            simplex_layer(**options)


@pytest.mark.parametrize("solver", [None, "clarabel", "scs", "interior_point"])
def test_copies_and_files(solver: str | None) -> None:
    layer = simplex_layer(solver=solver)
    p = torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64)
    expected = layer(p)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        assert torch.allclose(twin(p), expected, atol=1e-9)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), layer)
    other = torch.nn.Sequential(torch.nn.Linear(3, 3), simplex_layer(solver=solver))
    other.load_state_dict(model.state_dict())
    model.share_memory()
    assert torch.allclose(other(p.float()), model(p.float()), atol=1e-6)


def test_two_threads_share_a_layer() -> None:
    layer = simplex_layer(3, solver="clarabel")
    points = torch.randn(2, 40, 3, dtype=torch.float64)
    found: dict[int, torch.Tensor] = {}

    def work(k: int) -> None:
        found[k] = torch.stack([layer(p) for p in points[k]])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(2):
        assert torch.equal(found[k], layer(points[k]))


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), simplex_layer())
    inputs = torch.randn(32, 2)
    target = torch.nn.functional.one_hot((inputs[:, 0] > 0).long(), 3).float()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.mse_loss(model(inputs), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("solver", ["auto", "clarabel"])
def test_a_weight_of_zero_is_flagged(solver: str) -> None:
    """Soft thresholding at weight zero has a derivative on one side only, and its epigraph variables are free."""
    y, x, w = cp.Variable(2), cp.Parameter(2), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(y - x) + w * cp.norm1(y)))
    layer = ddn.DeclarativeLayer(problem, [x, w], y, solver=solver)
    found = layer.solve(torch.tensor([2.0, -1.0], dtype=torch.float64), torch.tensor([0.0, 0.3], dtype=torch.float64))
    assert ddn.Regularity.SINGULAR_HESSIAN in found.regularities[0]
    assert found.regularities[1] == ddn.Regularity.REGULAR

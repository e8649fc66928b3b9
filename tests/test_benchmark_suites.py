"""Every suite at tiny size, the references of its rows against differences, targets, budgets, curves and their limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import curves, jax_worker, limit, nodes, nonlinear_suite, targets
from benchmarks.__main__ import main
from benchmarks.peers import Layer, Measured, Peer, Sample, Unsuitable, ours
from benchmarks.peers.clarabel_loop import Loop
from benchmarks.peers.diffcp_batch import Diffcp
from benchmarks.problems import Curve, Declaration, Row, Target, lp, qp, relu, simplex
from benchmarks.problems_cones import logistic_regression, sdp, socp, softmax_layer
from benchmarks.problems_large import flow, regression, smoothing
from benchmarks.report import markdown, save
from benchmarks.runner import Inputs, Trial, run
from benchmarks.suites import SUITES
from benchmarks.worker import Worker

ROOT = Path(__file__).parents[1]
TINY = [
    lp(4, 4, 2),
    relu(5, 2),
    simplex(5, 2, box=True),
    socp(6, 2, 4, 2),
    sdp(3, 2, 2),
    softmax_layer(4, 2),
    logistic_regression(3, 6, 2),
    smoothing(12, 2),
    flow(6, 2),
    regression(7, 4),
]


def _ids(row: Row) -> str:
    return row.name


@pytest.mark.parametrize("row", TINY, ids=_ids)
def test_references_agree_with_differences(row: Row) -> None:
    assert row.draw is not None and row.reference is not None
    generator = np.random.default_rng(1)
    values = [np.asarray(value, float) for value in row.draw(generator)]
    g = generator.standard_normal(row.shape)
    answer = row.reference(values, g)
    assert answer.margin > 1e-3, "differences would cross a kink"
    for k, (value, gradient) in enumerate(zip(values, answer.gradients, strict=True)):
        assert gradient.shape == value.shape
        direction, step = generator.standard_normal(value.shape), 1e-6
        ends = []
        for sign in (1, -1):
            moved = [v + sign * step * direction if j == k else v for j, v in enumerate(values)]
            ends.append((g * row.reference(moved, g).x).sum())
        assert (gradient * direction).sum() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("row", TINY, ids=_ids)
def test_we_solve_each_kind_of_row(row: Row) -> None:
    results = run("tiny", [row], ours.peers(), rounds=1)
    found = results["rows"][0]["results"]["ddn_cvx"]
    assert found.get("error") is None
    assert found["solution_error"] < 1e-9
    assert found["gradient_error"] < 1e-8


@pytest.mark.parametrize("row", [row for row in [*TINY, qp(5, 2, 3, 2)] if row.declare().quadratic is not None], ids=_ids)
def test_rows_given_as_quadratic_programs_have_the_same_solution(row: Row) -> None:
    values = [torch.from_numpy(v) for v in row.values([0])]
    quadratic = row.declare().quadratic
    assert quadratic is not None and row.reference is not None
    P, q, A, b, G, h = (t.numpy() for t in quadratic(*values))
    for i in range(row.batch):
        x = row.reference([v[i].numpy() for v in values], np.zeros(row.shape)).x
        assert np.abs(A[i] @ x - b[i]).max(initial=0) < 1e-10
        slack = h[i] - G[i] @ x
        assert slack.min() > -1e-10
        rows = np.concatenate([A[i], G[i][slack < 1e-9]])
        y, *_ = np.linalg.lstsq(rows.T, -(P[i] @ x + q[i]), rcond=None)
        assert np.abs(P[i] @ x + q[i] + rows.T @ y).max() < 1e-9
        assert y[len(b[i]) :].min(initial=0) > -1e-9


@pytest.mark.parametrize(
    ("row", "make", "accuracy"),
    [
        (qp(6, 2, 3, 3), lambda d: Loop(d, 1e-12), 1e-7),
        (lp(4, 4, 3), lambda d: Loop(d, 1e-12), 1e-6),
        (qp(6, 2, 3, 3), lambda d: Diffcp(d, {"mode": "dense", "eps": 1e-10}), 1e-5),
        (sdp(3, 2, 3), lambda d: Diffcp(d, {"mode": "dense", "eps": 1e-10}), 1e-5),
    ],
)
def test_peers_below_the_level_of_layers_answer_the_declared_problem(
    row: Row, make: Callable[[Declaration], Measured], accuracy: float
) -> None:
    assert row.reference is not None
    trial = Trial(Peer("peer", "", "", "", make), row, torch.device("cpu"))
    inputs = Inputs.draw(row, [0])
    answers = [row.reference([v[i] for v in inputs.values], inputs.cotangent[i]) for i in range(row.batch)]
    trial.attempt(trial.construct)
    trial.attempt(trial.warm_up, inputs, answers)
    assert trial.error is None
    assert trial.accuracy["solution_error"] < accuracy
    assert trial.accuracy["gradient_error"] < accuracy


def test_the_loop_over_clarabel_declines_other_cones() -> None:
    with pytest.raises(Unsuitable, match="linear constraints only"):
        Loop(socp(6, 2, 4, 1).declare(), 1e-8)


# ------------------------------------------------------------------------ targets


def _found(seconds: float, error: float, ours: float = 1.0) -> dict[str, Any]:
    return {"seconds": {"median": seconds}, "ratio": {"median": seconds / ours}, "gradient_error": error}


def _judged(error: float = 1e-9, **peers: tuple[float, float]) -> list[targets.Verdict]:
    families = {"a": "cvxpylayers", "b": "cvxpylayers", "c": "other"}
    found = {"us": _found(1.0, error), **{name: _found(*peer) for name, peer in peers.items()}}
    about = {name: {"family": families.get(name, "ours")} for name in found}
    row = {"name": "row", "target": {"cvxpylayers": 10, "others": 2}, "results": found}
    return targets.verdicts({"peers": about, "rows": [row]})


def test_an_inaccurate_peer_does_not_count_unless_there_is_no_other() -> None:
    first, second = _judged(a=(5.0, 1e-3), b=(20.0, 1e-7), c=(3.0, 1e-2))
    assert (first.best, first.ratio, first.accurate, first.met, first.fastest) == ("b", 20.0, True, True, "a")
    assert (second.best, second.ratio, second.accurate, second.met) == ("c", 3.0, False, True)
    (first,) = _judged(a=(5.0, 1e-3), b=(9.0, 1e-3))
    assert (first.best, first.accurate, first.met) == ("a", False, False)


def test_our_own_gradient_has_to_be_accurate_or_better_than_theirs() -> None:
    (first,) = _judged(1e-4, a=(20.0, 1e-5))
    assert not first.met
    (first,) = _judged(1e-4, a=(20.0, 1e-3))
    assert first.met
    (first,) = _judged(1e-4, a=(20.0, 1e-3), b=(5.0, 1e-4))
    assert (first.best, first.met) == ("b", False)


def test_the_table_says_who_counts_and_what_is_met() -> None:
    row = simplex(4, 2, Target(2, 1000))

    def slow(declared: Declaration) -> Layer:
        layer = ours.peers()[0].build(declared)
        assert not isinstance(layer, Measured)

        def call(p: Tensor) -> Tensor:
            for _ in range(20):
                layer(p)
            return layer(p)

        return call

    peers = [*ours.peers(), Peer("slow", "", "", "", slow, "cvxpylayers"), Peer("also", "", "", "", slow)]
    lines = markdown(run("tiny", [row], peers, rounds=2)).splitlines()
    (against,) = [line for line in lines if "| slow |" in line and "| yes |" in line]
    (others,) = [line for line in lines if "| also |" in line and "| **no** |" in line]
    assert "| 2 |" in against and "| 1000 |" in others
    assert any(line.startswith("1 of 2 met") for line in lines)


# ------------------------------------------------------------------- budget, curves


def _claims(seconds: float) -> Callable[[Declaration], Measured]:
    """A peer that does nothing, and says how long it took."""

    class Fake(Measured):
        def measure(self, parameters: Sequence[Tensor], cotangent: Tensor) -> tuple[Sample, Tensor, tuple[Tensor, ...]]:
            answers = [torch.zeros_like(parameter) for parameter in parameters]
            return Sample(seconds, 0.0, seconds), torch.zeros_like(cotangent), tuple(answers)

    return lambda declared: Fake()


def _point(batch: int) -> Row:
    return qp(3, 0, 2, batch, curve=Curve("a curve", "batch", batch, (3, 0, 2)))


def test_a_peer_stops_along_a_curve_where_it_is_expected_to_take_too_long(tmp_path: Path) -> None:
    peers = [Peer("fast", "", "", "", _claims(0.01)), Peer("slow", "", "", "", _claims(6.0))]
    results = run("tiny", [_point(1), _point(2), _point(8), _point(16)], peers, rounds=2)
    slow = [row["results"]["slow"] for row in results["rows"]]
    assert ["seconds" in found for found in slow] == [True, True, False, False]
    assert "stopped after batch = 2" in slow[2]["skipped"] and slow[3] == slow[2]
    assert all("seconds" in row["results"]["fast"] for row in results["rows"])
    assert "| 8 |" in markdown(results) and "stopped" in markdown(results)
    *_, figure = save(results, tmp_path / "curve.json")
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert [row["curve"]["value"] for row in curves.of(results)["a curve"]] == [1, 2, 8, 16]


def test_a_small_budget_means_fewer_rounds_and_never_none() -> None:
    row = simplex(4, 1)
    rows = run("tiny", [row], ours.peers(), rounds=50, budget=1e-9)["rows"]
    assert 0 < rows[0]["results"]["ddn_cvx"]["samples"] <= 2 * 20


def test_operations_of_the_limit_are_those_counted_by_hand() -> None:
    # n = 2, p = 1, m = 3. G'WG: 3 entries of the triangle, 3 products and 3 sums each, less the multiplication by W, and so
    # 3 * 4 = 12 in the leading order m n^2; factor 8/3; L^{-1}A': 4; A(.)A': 2; factor 1/3.
    counted = limit.Operations.of(2, 1, 3)
    assert counted.products == 12 + 4 + 2
    assert counted.factors == pytest.approx(8 / 3 + 1 / 3)
    # 4 iterations and one backward, 10 instances at 18 products and 3 factors a second: 5 * 10 * (1 + 1) seconds
    assert limit.seconds(counted, 10, 4, 18.0, 3.0, share=False) == pytest.approx(100)
    shared = limit.seconds(counted, 10, 4, 18.0, 3.0, share=True)
    assert shared == pytest.approx(100 / min(10, limit.processors()))
    assert limit.seconds(counted, 1, 4, 18.0, 3.0, share=True) == pytest.approx(10)  # one instance, one processor


def test_the_limit_of_a_row_is_positive_and_counts_iterations() -> None:
    found = limit.measure(_point(4), torch.device("cpu"), 0)
    assert 2 <= found["iterations"] <= 50
    assert found["seconds"] > 0 and found["product_rate"] > 1e6 and found["factor_rate"] > 1e5


# ------------------------------------------------------- other processes, other suites


def test_a_worker_answers_reports_errors_and_ends() -> None:
    code = "from benchmarks.worker import serve\nserve({'it': '1'}, lambda a, b: a / b)\n"
    module = ROOT / "benchmarks" / "_worker_for_the_test.py"
    module.write_text(code)
    try:
        worker = Worker(sys.executable, "benchmarks._worker_for_the_test")
        assert worker.hello == {"it": "1"}
        assert worker.ask(6, 3) == 2
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            worker.ask(1, 0)
        assert worker.ask(np.ones(2), 2).tolist() == [0.5, 0.5]
    finally:
        module.unlink()
    worker.close()
    assert worker._process.returncode == 0


def test_a_worker_that_cannot_start_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="ended before"):
        Worker(sys.executable, "benchmarks.there_is_no_such_module")


def test_the_worker_in_jax_needs_no_torch() -> None:
    code = "import sys, benchmarks.jax_worker; assert not {'torch', 'cvxpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert set(jax_worker.METHODS) == {"qpax", "jaxopt"}


def test_nonlinear_suite_with_ours_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nonlinear_suite, "BATCH", {"node": 3, "program": 2})
    monkeypatch.setattr(nodes, "NODES", [nodes.sphere(4), nodes.least_squares(5, 2)])
    out = tmp_path / "nonlinear.json"
    main(["run", "--suite", "nonlinear", "--peers", "ddn_cvx", "--rounds", "2", "--out", str(out)])
    results = json.loads(out.read_text())
    assert len(results["rows"]) == 3
    for row in results["rows"]:
        found = row["results"]["ddn_cvx"]
        assert found.get("error") is None
        assert found["samples"] == 2 and found["ratio"]["max"] == 1
    assert all(row["results"]["ddn_cvx"]["gradient_error"] < 1e-6 for row in results["rows"][:2])
    assert "solved 100%" in results["rows"][2]["results"]["ddn_cvx"]["note"]
    assert markdown(results) in capsys.readouterr().out


def test_wrong_device_and_budget_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, message in ((["--device", "cuda"], "no graphics processor"), (["--budget", "0"], "must be positive")):
        with pytest.raises(SystemExit):
            main(["run", *arguments])
        assert message in capsys.readouterr().err


def test_every_row_with_a_target_has_a_reference() -> None:
    for rows in SUITES.values():
        for row in rows:
            assert row.target is None or row.reference is not None

"""The benchmark runner end to end at tiny size, and its numpy reference against differences and other answers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.__main__ import main
from benchmarks.peers import Layer, Peer, installed
from benchmarks.problems import Declaration, Row, dense_parameter, qp, simplex
from benchmarks.reference import Answer, Array, project_simplex, quadratic_program
from benchmarks.report import markdown
from benchmarks.runner import run
from benchmarks.suites import SUITES

SPREAD = {"median", "q1", "q3", "min", "max"}


def differences(solution: Callable[[list[Array]], Array], values: list[Array], g: Array, step: float = 1e-6) -> list[Array]:
    """The gradient of ``<g, solution(values)>`` by central differences."""
    gradients = []
    for k, value in enumerate(values):
        gradient = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            shifted = []
            for sign in (1, -1):
                moved = [v.copy() for v in values]
                moved[k][index] += sign * step
                shifted.append(g @ solution(moved))
            gradient[index] = (shifted[0] - shifted[1]) / (2 * step)
        gradients.append(gradient)
    return gradients


# ---------------------------------------------------------------------- reference


@pytest.mark.parametrize(("equalities", "inequalities"), [(0, 6), (2, 0), (1, 5), (0, 0)])
def test_qp_reference_gradient_is_that_of_differences(equalities: int, inequalities: int) -> None:
    generator = np.random.default_rng(equalities + 10 * inequalities)
    row = qp(4, equalities, inequalities, 1)
    assert row.draw is not None
    values, g = row.draw(generator), generator.standard_normal(4)
    answer = quadratic_program(values, g, equalities, inequalities)
    expected = differences(lambda v: quadratic_program(v, g, equalities, inequalities).x, values, g)
    assert answer.margin > 1e-3, "differences would cross a kink"
    assert len(answer.gradients) == len(expected)
    for got, want in zip(answer.gradients, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_qp_reference_satisfies_the_optimality_conditions_with_some_constraints_active() -> None:
    generator = np.random.default_rng(3)
    row = qp(10, 3, 5, 1)
    assert row.draw is not None
    active = 0
    for _ in range(20):
        Q, p, A, b, G, h = values = row.draw(generator)
        x = quadratic_program(values, np.zeros(10), 3, 5).x
        slack = h - G @ x
        assert np.abs(A @ x - b).max() < 1e-10
        assert slack.min() > -1e-10
        tight = slack < 1e-9
        active += int(tight.sum())
        C = np.concatenate([A, G[tight]])
        multipliers, *_ = np.linalg.lstsq(C.T, -(Q.T @ (Q @ x) + p), rcond=None)
        assert np.abs(Q.T @ (Q @ x) + p + C.T @ multipliers).max() < 1e-9
        assert (multipliers[3:] > -1e-9).all()
    assert active > 10


def test_qp_reference_corrects_a_wrong_guess_of_the_active_set(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    row = qp(10, 3, 5, 1)
    assert row.draw is not None
    problems = [row.draw(generator) for _ in range(10)]
    answers = [quadratic_program(values, np.ones(10), 3, 5) for values in problems]
    monkeypatch.setattr("benchmarks.reference._guess_active", lambda *_: np.zeros(5, bool))
    for values, answer in zip(problems, answers, strict=True):
        np.testing.assert_allclose(quadratic_program(values, np.ones(10), 3, 5).x, answer.x, atol=1e-10)
    monkeypatch.setattr("benchmarks.reference.MAX_CORRECTIONS", 1)
    with pytest.raises(ArithmeticError, match="active set"):
        for values in problems:
            quadratic_program(values, np.ones(10), 3, 5)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_simplex_reference_agrees_with_differences_and_with_the_qp_reference(n: int) -> None:
    generator = np.random.default_rng(n)
    p, g = generator.standard_normal(n), generator.standard_normal(n)
    answer = project_simplex(p, g)
    assert answer.x.min() >= 0
    assert abs(answer.x.sum() - 1) < 1e-14
    assert answer.margin > 1e-3, "differences would cross a kink"
    expected = differences(lambda v: project_simplex(v[0], g).x, [p], g)
    np.testing.assert_allclose(answer.gradients[0], expected[0], rtol=1e-8, atol=1e-8)
    # |x - p|^2 = 1/2 |sqrt(2) x|^2 - 2 p'x + constant
    values = [np.sqrt(2) * np.eye(n), -2 * p, np.ones((1, n)), np.ones(1), -np.eye(n), np.zeros(n)]
    other = quadratic_program(values, g, 1, n)
    np.testing.assert_allclose(answer.x, other.x, atol=1e-12)
    np.testing.assert_allclose(answer.gradients[0], -2 * other.gradients[1], atol=1e-12)


# ------------------------------------------------------------------------- runner


def test_command_line_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "tiny.json"
    rows = ["simplex-10-batch-1", "qp-10-3-5-batch-1"]
    only = [argument for name in rows for argument in ("--only", name)]
    main(["run", *only, "--peers", "ddn_cvx", "--rounds", "2", "--out", str(out)])
    printed = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert {"schema", "suite", "rounds", "budget", "seed", "machine", "peers", "rows"} == set(results)
    assert results["machine"]["cores"] >= 1
    assert results["machine"]["cpu"]
    assert results["machine"]["torch_threads"] == torch.get_num_threads()
    # The metadata of a wheel may leave out how it was built (+cu124).
    assert results["machine"]["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert re.match(r"\d{4}-\d\d-\d\dT", results["machine"]["date"])
    assert [row["name"] for row in results["rows"]] == rows
    for row in results["rows"]:
        found = row["results"]["ddn_cvx"]
        assert "error" not in found, found
        assert row["measures"] == "forward+backward"
        for time in ("seconds", "forward", "backward", "construction", "cpu_seconds", "ratio", "cpu_ratio"):
            assert set(found[time]) == SPREAD
            assert 0 < found[time]["min"] <= found[time]["median"] <= found[time]["max"]
        assert found["ratio"]["min"] == found["ratio"]["max"] == found["cpu_ratio"]["max"] == 1
        assert found["samples"] >= 2
        assert found["solution_error"] <= 1e-7
        assert found["gradient_error"] <= 1e-6
    assert markdown(results) in printed
    assert out.with_suffix(".md").read_text() == markdown(results, "tiny.png")
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    main(["report", str(out)])
    assert json.loads(out.read_text()) == results


def test_construction_is_measured_on_a_fresh_problem_each_round() -> None:
    built: list[Any] = []

    def build(declared: Declaration) -> Layer:
        built.append(declared.problem)
        return torch.zeros_like

    results = run("tiny", [dense_parameter(4, 3)], [Peer("stub", "stub", "0", "", build)], rounds=3)
    (row,) = results["rows"]
    assert row["measures"] == "construction"
    assert len({id(problem) for problem in built}) == 3
    found = row["results"]["stub"]
    assert found["seconds"] == found["construction"]
    assert "solution_error" not in found


def _fake(scale: float, gradient_scale: float) -> Callable[[Declaration], Layer]:
    """The identity's answers, disturbed."""

    def build(declared: Declaration) -> Layer:
        def layer(p: Tensor) -> Tensor:
            return scale * (p.detach() + gradient_scale * (p - p.detach()))

        return layer

    return build


def _identity_row(batch: int) -> Row:
    """``min |x - p|^2`` without constraints: the identity."""
    return Row(
        "identity", simplex(3, 1).declare, batch, (3,), lambda g: [g.standard_normal(3)], lambda v, g: Answer(v[0], [g], 1.0)
    )


def test_errors_are_those_of_the_worst_element_and_failures_do_not_stop_the_others() -> None:
    def broken(declared: Declaration) -> Layer:
        raise ValueError("not | today")

    peers = [
        Peer("right", "", "", "", _fake(1.0, 1.0)),
        Peer("wrong", "", "", "", _fake(1.5, 1.0)),
        Peer("wrong gradient", "", "", "", _fake(1.0, 3.0)),
        Peer("nan", "", "", "", _fake(float("nan"), 1.0)),
        Peer("broken", "", "", "", broken),
    ]
    results = run("tiny", [_identity_row(5)], peers, rounds=2)
    found = results["rows"][0]["results"]
    assert found["right"]["solution_error"] == found["right"]["gradient_error"] == 0
    assert found["wrong"]["solution_error"] == pytest.approx(0.5)  # of the element whose |x| is above 1
    assert found["wrong"]["gradient_error"] == pytest.approx(0.5)
    assert found["wrong gradient"]["solution_error"] == 0
    assert found["wrong gradient"]["gradient_error"] == pytest.approx(2)
    assert found["nan"] == {"error": "ArithmeticError: the answer holds NaN or infinity"}
    assert found["broken"] == {"error": "ValueError: not | today"}
    lines = [line for line in markdown(results).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(peers)
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert "failed: ValueError: not / today" in lines[-1]


def test_every_sample_has_its_own_numbers_and_every_peer_the_same() -> None:
    seen: dict[str, list[Tensor]] = {"a": [], "b": []}

    def recorder(name: str) -> Callable[[Declaration], Layer]:
        def build(declared: Declaration) -> Layer:
            def layer(p: Tensor) -> Tensor:
                seen[name].append(p.detach().clone())
                return p * 1

            return layer

        return build

    peers = [Peer(name, "", "", "", recorder(name)) for name in seen]
    run("tiny", [_identity_row(2)], peers, rounds=2)
    for a, b in zip(seen["a"], seen["b"], strict=True):
        assert torch.equal(a, b)
    timed = seen["a"][2:]  # after the warm-up
    assert len(timed) > 2
    assert len({tuple(p.flatten().tolist()) for p in timed}) == len(timed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "simplex-10-batch-128"),
        (["--peers", "nobody"], "ddn_cvx"),
        (["--rounds", "0"], "--rounds must be at least 1"),
    ],
)
def test_wrong_arguments_say_what_there_is(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", *arguments])
    assert message in capsys.readouterr().err


def test_a_peer_that_is_not_installed_is_skipped_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("cvxpylayers.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cvxpylayers", None)
    found, skipped = installed()
    assert not [peer for peer in found if peer.family == "cvxpylayers"]
    assert found[0].name == "ddn_cvx"
    assert [line for line in skipped if line.startswith("skipped cvxpylayers: ")]


def test_names_of_rows_are_unique() -> None:
    for rows in SUITES.values():
        names = [row.name for row in rows]
        assert len(set(names)) == len(names)

"""The scripts that measure the cost model and the overhead of a call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import cost_model, overhead
from benchmarks.problems import qp
from ddn_cvx.solvers.base import Workspace
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.cost import OPERATIONS, Rate, Size, seconds


@pytest.mark.parametrize("family", cost_model.FAMILIES)
def test_programs_have_solutions(family: str) -> None:
    program, data = cost_model.draw(family, 6, 3)
    raw = Clarabel().solve(program, data, Workspace())
    assert raw.status.tolist() == [0, 0, 0]
    assert torch.linalg.vector_norm(program.residual(torch.cat((raw.x, raw.y - raw.s), 1), data)) < 1e-5


def test_constants_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that follow the model give its constants back, and a table of good picks."""
    program, _ = cost_model.draw("simplex", 5, 1)
    truth = Rate(2e-4, 3e-5, 1.5e9)
    cases = []
    for family, n in (("qp", 5), ("qp", 40), ("lp", 10), ("lp", 30)):
        size = Size.of(cost_model.draw(family, n, 1)[0])
        for batch in (1, 64):
            times = {name: truth.seconds(count(size), batch) for name, count in OPERATIONS.items()}
            cases.append(cost_model.Case(family, size, batch, program, times))
    rates = cost_model.fit(cases)
    for found in rates.values():
        assert (found.call, found.element, found.operations) == pytest.approx((2e-4, 3e-5, 1.5e9), rel=1e-3)
    assert "8 of 8 picks are within 1.3" in cost_model.report(cases, rates)
    worse = replace(cases[0], seconds={**cases[0].seconds, "active_set": 1.0})  # which is picked
    assert "7 of 8 picks" in cost_model.report([worse, *cases[1:]], rates)
    monkeypatch.setattr(cost_model, "FILE", tmp_path / "rates.py")
    cost_model.write(rates)
    written: dict[str, object] = {}
    exec((tmp_path / "rates.py").read_text(), written)
    assert written["RATES"] == {(name, "cpu"): (2e-4, 3e-5, 1.5e9) for name in OPERATIONS}


def test_measured_and_estimated_times(capsys: pytest.CaptureFixture[str]) -> None:
    """On any machine a hundred times more instances take longer than one."""
    cases = list(cost_model.grid(["simplex"], [8], 0.0))
    assert [c.batch for c in cases] == [1, 64] and set(cases[0].seconds) == set(OPERATIONS)
    assert all(np.isfinite(t) and t > 0 for c in cases for t in c.seconds.values())
    for name in OPERATIONS:
        one, many = (seconds(name, cases[0].size, batch) for batch in (1, 64))
        assert one is not None and many is not None and 0 < one < many
    assert seconds("clarabel", cases[0].size, 1, "cuda") is None


def test_parts_of_a_call_add_up() -> None:
    parts = overhead.breakdown(qp(5, 1, 2, 3), 0.0)
    assert set(parts) == {*overhead.PARTS, "autograd"}
    assert all(milliseconds > 0 for milliseconds in parts.values())
    assert parts["solve and check"] + parts["differentiate"] > parts["recovery"]

"""``python -m ddn_cvx doctor``: what is broken is found, and only that."""

from __future__ import annotations

import sys

import pytest
import torch

from ddn_cvx import doctor
from ddn_cvx.errors import SolverError


def right() -> tuple[doctor.Pair, doctor.Pair]:
    one = torch.ones(2, dtype=torch.float64)
    return (one, one), (one, one)


def wrong_gradient() -> tuple[doctor.Pair, doctor.Pair]:
    one = torch.ones(2, dtype=torch.float64)
    return (one, one), (one, 1.001 * one)


def not_a_number() -> tuple[doctor.Pair, doctor.Pair]:
    one = torch.ones(2, dtype=torch.float64)
    return (one * torch.nan, one), (one, one)


def raises() -> tuple[doctor.Pair, doctor.Pair]:
    raise SolverError("no solution [here]")


def lacks() -> tuple[doctor.Pair, doctor.Pair]:
    raise ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere")


def test_outcomes() -> None:
    checks = {"a": right, "b": wrong_gradient, "c": not_a_number, "d": raises, "e": lacks}
    found = {name: doctor.checked(name, check) for name, check in checks.items()}
    assert [one.outcome for one in found.values()] == ["ok", "FAILED", "FAILED", "FAILED", "note"]
    assert "gradient by 1e-03" in found["b"].detail and "do not trust" in found["b"].advice
    assert "SolverError: no solution [here]" in found["d"].detail
    assert found["e"].advice == "pip install elsewhere"


@pytest.mark.parametrize("name", ["cone program, torch", "nonlinear program, torch", "fixed point", "differential equation"])
def test_paths_are_right_here(name: str) -> None:
    if name == "differential equation":
        pytest.importorskip("torchdiffeq")
    assert doctor.checked(name, doctor.CHECKS[name]).outcome == "ok"


def test_a_broken_path_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that takes everything for unbounded, and a derivative that is wrong by a thousandth."""
    from ddn_cvx.linalg.kkt import DenseKKT
    from ddn_cvx.solvers.conic_interior_point import ConicInteriorPoint

    with monkeypatch.context() as patch:
        reverse = DenseKKT.reverse
        patch.setattr(DenseKKT, "reverse", lambda self, g, h: reverse(self, 1.001 * g, h))
        found = doctor.checked("cone program, torch", doctor.CHECKS["cone program, torch"])
        assert found.outcome == "FAILED", found
    solve = ConicInteriorPoint.solve

    def shifted(self: ConicInteriorPoint, *arguments: object) -> object:
        raw = solve(self, *arguments)  # type: ignore[arg-type]  # those of solve
        return raw._replace(status=torch.full_like(raw.status, 3))

    monkeypatch.setattr(ConicInteriorPoint, "solve", shifted)
    found = doctor.checked("cone program, torch", doctor.CHECKS["cone program, torch"])
    assert found.outcome == "FAILED", found


def test_exit_status_and_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lu = doctor.Finding("torch's batched LU", "note", "hangs with two threads")
    monkeypatch.setattr(doctor, "batched_lu", lambda: lu)
    monkeypatch.setattr(doctor, "CHECKS", {"good": right, "bad": raises})
    assert doctor.run() == 1
    out, err = capsys.readouterr()
    assert "1 failed: bad" in out and "hangs" in out and "[here]" in out and "compiles" in err
    monkeypatch.setattr(doctor, "CHECKS", {"good": right})
    assert doctor.run() == 0
    assert "everything that was checked is right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "outcome", "text"),
    [
        ("print(1e-12)", "ok", "right"),
        ("print(0.3)", "note", "wrong"),
        ("print('nan')", "note", "wrong"),
        ("raise SystemExit(3)", "note", "raises"),
        ("import time; time.sleep(60)", "note", "hangs"),
    ],
)
def test_batched_lu(monkeypatch: pytest.MonkeyPatch, code: str, outcome: str, text: str) -> None:
    monkeypatch.setattr(doctor, "LIMIT", 3 if "sleep" in code else 60)
    found = doctor.batched_lu((sys.executable, "-c", code))
    assert found.outcome == outcome and text in found.detail
    assert outcome == "ok" or "does not use it" in found.advice


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: None if name in ("ecos", "osqp") else installed(name))
    found = {one.name: one for one in doctor.solvers()}
    assert found["ecos"].advice == "pip install ecos"
    assert "osqp" in found["optional packages"].advice and "piqp" not in found["optional packages"].advice.split()

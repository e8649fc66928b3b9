"""Clarabel: an element's answer is its own to the last bit; the equilibration; the options."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from programs import CONES, random_program, select

from ddn_cvx.errors import InputError
from ddn_cvx.program.conic import ConicData
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Workspace
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.equilibrate import LARGEST, Equilibration

FIELDS = ("x", "y", "s", "status", "iterations")


def same(a: RawSolution, b: RawSolution, rows_a=slice(None), rows_b=slice(None)) -> bool:
    return all(np.array_equal(getattr(a, f)[rows_a].numpy(), getattr(b, f)[rows_b].numpy(), equal_nan=True) for f in FIELDS)


def unequal_batch(cones, batch=12):
    """Elements of very different size, two of which have no solution."""
    program, data = random_program(CONES[cones], batch=batch)
    factor = 10.0 ** torch.linspace(-3, 3, batch)[:, None].double()
    data = ConicData(data.P * factor, data.q * factor, data.A / factor, data.b)
    data.b[3] -= 1e4
    data.b[5, 0] = torch.nan
    return program, data


@pytest.mark.parametrize("cones", ["linear", "all but higher power", "higher power"])
def test_an_element_does_not_see_its_batch(cones, monkeypatch):
    program, data = unequal_batch(cones)
    monkeypatch.setattr("ddn_cvx.solvers.elementwise.PARALLEL_WORK", 0)
    workspace = Workspace()
    together = Clarabel(threads=1).solve(program, data, workspace)
    assert (together.status <= Status.INACCURATE).sum() > 2 and together.status[5] == Status.INVALID_DATA
    for i in range(len(data.q)):
        alone = Clarabel(threads=1).solve(program, select(data, slice(i, i + 1)), Workspace())
        assert same(alone, together, rows_b=slice(i, i + 1))
    order = torch.randperm(len(data.q), generator=torch.Generator().manual_seed(0))
    assert same(Clarabel(threads=1).solve(program, select(data, order), workspace), together, rows_b=order)
    for _ in range(3):
        assert same(Clarabel(threads=2).solve(program, data, workspace), together)


def test_threads_are_used_for_much_work_only(monkeypatch):
    names = set()
    original = Workspace.get
    monkeypatch.setattr(Workspace, "get", lambda *a: names.add(threading.current_thread().name) or original(*a))
    program, data = random_program(CONES["linear"], batch=4)
    Clarabel(threads=2).solve(program, data, Workspace())
    assert names == {"MainThread"}
    program, data = random_program(CONES["linear"], batch=200)
    Clarabel(threads=2).solve(program, data, Workspace())
    assert len(names) > 1


def test_callers_in_several_threads_share_a_workspace():
    program, data = random_program(CONES["all but higher power"], batch=30)
    workspace, solver = Workspace(), Clarabel(threads=2)
    expected = solver.solve(program, data, workspace)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: solver.solve(program, data, workspace), range(8)):
            assert same(found, expected)


@pytest.mark.parametrize("cones", CONES)
def test_equilibration_is_exact_and_keeps_the_cones(cones):
    program, data = unequal_batch(cones)
    data.b[5, 0] = 0.0
    scaled = Equilibration(program)(data)
    for factors in (scaled.D, scaled.E, scaled.c):
        assert np.array_equal(np.frexp(factors)[0], np.full(factors.shape, 0.5))
        assert np.abs(np.log2(factors)).max() <= LARGEST
    blocks = [b for b in program.cones.blocks() if b.kind not in ("zero", "nonneg")]
    assert all((scaled.E[:, b.rows] == scaled.E[:, b.rows][:, :1]).all() for b in blocks)
    P, A = (t.numpy() for t in program.dense(data))
    Ps, As = (
        t.numpy() for t in program.dense(ConicData(*(torch.as_tensor(t) for t in (scaled.P, scaled.q, scaled.A, scaled.b))))
    )
    D, E, c = scaled.D, scaled.E, scaled.c
    assert np.array_equal(Ps, c[:, :, None] * D[:, :, None] * P * D[:, None])
    assert np.array_equal(As, E[:, :, None] * A * D[:, None])
    assert np.array_equal(scaled.q, c * D * data.q.numpy()) and np.array_equal(scaled.b, E * data.b.numpy())
    # Every variable is of size about one wherever no bound on the factors stands in the way.
    middle = slice(4, 8)
    size = np.concatenate([np.abs(Ps), np.abs(As)], 1)[middle].max(1)
    assert size.max() <= 4 and size.min() >= 0.1


def test_badly_scaled_programs_are_solved():
    program, data = random_program(CONES["linear"], batch=6, seed=1)
    rng = np.random.default_rng(0)
    D, E = (torch.as_tensor(10.0 ** rng.uniform(-3, 3, k)) for k in (program.n, program.m))
    i, j, r, c = program.index(torch.device("cpu"))
    wild = ConicData(data.P * D[i] * D[j] * 1e4, data.q * D * 1e4, data.A * D[c] * E[r], data.b * E)
    tame, hard = (Clarabel().solve(program, d, Workspace()) for d in (data, wild))
    assert hard.status.tolist() == [Status.SOLVED] * 6
    np.testing.assert_allclose(hard.x * D, tame.x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", ["tol_feas", "tol_gap_abs", "max_iter", "time_limit", "threads"])
@pytest.mark.parametrize("value", [0, -1, "many"])
def test_options_are_checked(option, value):
    with pytest.raises(InputError, match=option):
        Clarabel(**{option: value})


def test_options_reach_clarabel():
    program, data = random_program(CONES["semidefinite"])
    tight, loose = (
        Clarabel(tol_feas=t, tol_gap_abs=t, tol_gap_rel=t).solve(program, data, Workspace()) for t in (1e-10, 1e-3)
    )
    assert (loose.iterations < tight.iterations).all()
    settings = Clarabel(max_iter=7)._solver(program, 60.0).get_settings()
    assert (settings.max_iter, settings.time_limit) == (7, 60.0)
    assert not settings.equilibrate_enable and not settings.presolve_enable

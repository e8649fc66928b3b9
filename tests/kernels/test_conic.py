"""The kernels for second-order, semidefinite and exponential cones against torch, the conditions of optimality and numpy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ddn_cvx.cones import Product
from ddn_cvx.kernels import conic, spectrum
from ddn_cvx.kernels.jit import spread
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.factor import dense_factor
from ddn_cvx.program.instance import Instance
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Workspace
from ddn_cvx.solvers.mehrotra import Mehrotra

sys.path.insert(0, str(Path(__file__).parents[1] / "solvers"))
from programs import kkt_residual, random_program, select

CONES = {
    "second order": Product(1, 2, (4, 3, 1, 4)),
    "semidefinite": Product(1, 2, (), (3, 1, 2)),
    "exponential": Product(1, 2, (), (), 2),
    "all": Product(2, 3, (4, 3), (3, 2), 2),
    "cones alone": Product(0, 0, (5,), (3,), 1),
}
NAMES = list(CONES)


def solve(program: ConicProgram, data: ConicData, threads: int = 1) -> RawSolution:
    return Mehrotra(threads).solve(program, data, Workspace())


@pytest.mark.parametrize("quadratic", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_optimal(name: str, quadratic: bool) -> None:
    for n in (3, 7, 12) if quadratic else (7,):
        program, data = random_program(CONES[name], n=n, batch=30, seed=n, quadratic=quadratic)
        raw = solve(program, data)
        assert int((raw.status == int(Status.SOLVED)).sum()) >= 29
        good = raw.status == int(Status.SOLVED)
        assert float(kkt_residual(program, data, raw)[good].max()) <= 1e-9
        assert float(kkt_residual(program, data, raw).median()) <= 1e-13
        assert float(raw.iterations.double().mean()) <= 16


@pytest.mark.parametrize("name", NAMES)
def test_projection_and_measures_are_those_of_torch(name: str) -> None:
    program, data = random_program(CONES[name], n=6, batch=40, seed=3)
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(40, k, generator=generator, dtype=torch.float64) for k in (program.n, program.m))
    v[0], v[1], v[2] = 0.0, torch.relu(v[1]), 1e-8 * v[2]
    compiled, plain = Instance(program, data), Instance(program, data)
    plain.compiled = None
    one, other = compiled.at(x, v), plain.at(x, v)
    for field in ("y", "s", "top", "low", "value"):
        assert torch.allclose(getattr(one, field), getattr(other, field), rtol=1e-11, atol=1e-13), field
    assert torch.allclose(one.residuals.table, other.residuals.table, rtol=1e-9, atol=1e-12)
    assert torch.allclose(compiled.hidden(one), plain.hidden(other), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("quadratic", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_transposed_system_is_that_of_torch(name: str, quadratic: bool) -> None:
    from ddn_cvx.kernels import conic_newton

    program, data = random_program(CONES[name], n=7, batch=30, seed=5, quadratic=quadratic)
    raw = solve(program, data)
    v, ok = raw.y - raw.s, raw.status == int(Status.SOLVED)
    generator = torch.Generator().manual_seed(1)
    g, h = (torch.randn(30, k, generator=generator, dtype=torch.float64) for k in (program.n, program.m))
    u, w, healthy = np.empty(g.shape), np.empty(h.shape), np.empty(30, np.bool_)
    arrays = [t.numpy() for t in (data.P, data.A, v.contiguous(), ok, g, h)]
    conic_newton.reverse_once(0, 30, program.curved, *arrays, u, w, healthy)
    kkt = dense_factor(program, data.P, data.A, v, ok)
    expected = [t.squeeze(-1) for t in kkt.reverse(g.unsqueeze(-1), h.unsqueeze(-1))]
    assert healthy.sum() >= 25
    good = torch.from_numpy(healthy) & ok & ~kkt.null.any
    assert not bool((kkt.null.any & torch.from_numpy(healthy) & ok).any())
    for found, other in zip((u, w), expected, strict=True):
        size = 1.0 + other[good].abs().amax(1, keepdim=True)
        assert float(((torch.from_numpy(found)[good] - other[good]) / size).abs().max()) <= 1e-8


def test_an_element_does_not_depend_on_batch_mates_or_threads() -> None:
    program, data = random_program(CONES["all"], n=8, batch=24, seed=2)
    data.q[5, 0] = torch.nan
    whole, shared = solve(program, data), solve(program, data, threads=2)
    assert int(whole.status[5]) == int(Status.INVALID_DATA) and bool(whole.x[5].isnan().all())
    alone = solve(program, select(data, [7]))
    for field in ("x", "y", "s", "status", "iterations"):
        assert torch.equal(getattr(whole, field)[7:], getattr(shared, field)[7:])
        assert torch.equal(getattr(whole, field)[7:8], getattr(alone, field))


def test_what_has_no_solution_is_not_solved() -> None:
    program, data = random_program(Product(0, 2, (3,)), n=3, batch=4, seed=0, quadratic=False)
    data.q[1] = -1e3 * data.q[1] + 7.0  # most likely outside of what the dual cone reaches
    first = program.A.rows < 2
    data.A[2, first] = 0.0
    data.b[2, :2] = -1.0  # 0 <= -1
    raw = solve(program, data)
    assert int(raw.status[2]) == int(Status.NUMERICAL_ERROR) and bool(raw.x[2].isnan().all())
    assert int(raw.status[0]) == int(raw.status[3]) == int(Status.SOLVED)


def test_nan_stays_in_its_element() -> None:
    program, _ = random_program(CONES["all"], n=5)
    v = np.random.default_rng(0).standard_normal((3, program.m))
    v[1] = np.nan
    y, s = np.empty_like(v), np.empty_like(v)
    spread(spectrum.project, 3, 1e6, program.curved, v, y, s)
    assert np.isfinite(y[[0, 2]]).all() and np.isnan(y[1]).any()


def test_the_kernel_says_when_it_gives_up() -> None:
    program, data = random_program(Product(0, 2, (3,)), n=3, batch=2, seed=0, quadratic=False)
    data.b[1, :2], data.A[1] = -1.0, 0.0
    points = [np.empty((2, k)) for k in (3, 5, 5)]
    errors, codes = np.empty(2), [np.zeros(2, np.int64) for _ in range(2)]
    conic.solve(0, 2, program.curved, *(t.numpy() for t in data), *points, errors, *codes, 1e-8)
    assert errors[0] <= 1e-8 < errors[1]

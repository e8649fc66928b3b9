"""The batched conic interior-point method: projections and certificates known in advance, other solvers, other devices.

Every test of answers runs on the CPU and, where there is one, on a CUDA device.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from programs import CONES, interior, kkt_residual, random_program, select
from torch.utils._python_dispatch import TorchDispatchMode

from ddn_cvx import DeclarativeLayer
from ddn_cvx.cones import Product
from ddn_cvx.errors import InputError
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.instance import Instance
from ddn_cvx.solution import Status
from ddn_cvx.solvers import conic_embedding, conic_interior_point
from ddn_cvx.solvers.auto import Auto
from ddn_cvx.solvers.barrier_exponential import Exponential
from ddn_cvx.solvers.barrier_power import Power
from ddn_cvx.solvers.base import RawSolution, Workspace
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.conic_cones import Cones
from ddn_cvx.solvers.conic_interior_point import ConicInteriorPoint

sys.path.insert(0, str(Path(__file__).parents[1]))
from zoo import ZOO, reference_solution

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))]
CURVED = {
    **{name: cones for name, cones in CONES.items() if name not in ("equality", "linear")},
    "many of one size": Product(2, 3, (3,) * 6, (3,) * 4, 5, ((0.3, 0.7),) * 3),
    "large": Product(1, 4, (12,), (6,), 2, ((0.1, 0.2, 0.3, 0.4),)),
}


def solve(program, data, device="cpu", warm=None, **options) -> RawSolution:
    """Solve there, and bring the answer back in double precision."""
    data = ConicData(*(t.to(device) for t in data))
    raw = ConicInteriorPoint(**options).solve(program, data, Workspace(), warm)
    assert {t.device.type for t in vars(raw).values()} == {device} and raw.x.dtype == data.q.dtype
    x, y, s = (t.cpu().double() for t in (raw.x, raw.y, raw.s))
    return RawSolution(x, y, s, raw.status.cpu(), raw.iterations.cpu())


def projection(cones, batch=8, seed=0):
    """The program ``min |x - p|^2 / 2, x in K``, with the points p."""
    m = cones.size
    program = ConicProgram(Pattern.of(sp.eye_array(m)), Pattern.of(-sp.eye_array(m)), cones)
    points = torch.randn(batch, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ones = torch.ones_like(points)
    return program, ConicData(ones, -points, -ones, 0 * ones), points


# Answers


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("precision", "tolerance"), [("double", 1e-8), ("mixed", 2e-4), ("single", 5e-4)])
@pytest.mark.parametrize("cones", CURVED)
def test_projection_is_that_of_the_cone(cones, precision, tolerance, device):
    program, data, points = projection(CURVED[cones])
    expected = CURVED[cones].project(points)
    if precision == "single":
        data = ConicData(*(t.float() for t in data))
    raw = solve(program, data, device, single=precision == "mixed")
    assert raw.status.tolist() == [Status.SOLVED] * 8
    bound = tolerance * (1 + points.abs().amax())
    # Where the projection lies on the boundary the error of x is the root of that of the objective.
    value = ((raw.x - points) ** 2).sum(1) - ((expected - points) ** 2).sum(1)
    assert value.abs().max() < bound
    assert (raw.x - expected).abs().max() < (1e-4 if precision == "double" else 2e-2)
    assert (raw.y - (raw.x - points)).abs().max() < bound
    assert CURVED[cones].distance(raw.x).max() < bound and CURVED[cones].dual_distance(raw.y).max() < bound


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quadratic", [True, False], ids=["quadratic", "linear"])
@pytest.mark.parametrize("cones", [*CURVED, "linear"])
def test_objective_is_that_of_another_solver(cones, quadratic, device):
    program, data = random_program(CURVED[cones] if cones in CURVED else CONES[cones], n=9, batch=8, quadratic=quadratic)
    raw, other = solve(program, data, device), Clarabel().solve(program, data, Workspace())
    assert raw.status.tolist() == [Status.SOLVED] * 8 and raw.iterations.max() <= 25
    assert Instance(program, data).residuals(raw.x, raw.y, raw.s).worst.max() < 1e-8
    assert kkt_residual(program, data, raw).max() < 1e-4
    torch.testing.assert_close(program.objective(raw.x, data), program.objective(other.x, data), rtol=1e-7, atol=1e-7)


ENTRIES = [
    entry
    for entry in ZOO.values()
    if entry.tags & {"soc", "psd", "exp", "pow3d", "pownd"} and not entry.tags & {"degenerate", "nonunique"}
]


@pytest.mark.parametrize(
    ("entry", "single"),
    [(entry, single) for single in (False, True) for entry in ENTRIES[:: 3 if single else 1]],
    ids=lambda value: value if isinstance(value, bool) else value.name,
)
def test_zoo(entry, single):
    """Also with factors in single precision: the layer's own refinement does the rest."""
    problem, parameters, outputs = entry.build()
    layer = DeclarativeLayer(
        problem, parameters, outputs, gp="gp" in entry.tags, solver="conic_interior_point", solver_options={"single": single}
    )
    samples = [entry.sample(np.random.default_rng(seed)) for seed in (1, 2)]
    found = layer.solve(*(torch.tensor(np.stack(values)) for values in zip(*samples, strict=True)))
    for i, values in enumerate(samples):
        for output, expected in zip(found.outputs, reference_solution(entry, values), strict=True):
            np.testing.assert_allclose(output[i].detach().numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cones", ["second-order", "semidefinite", "exponential"])
def test_repeated_equalities_change_nothing(cones, device):
    cones = replace(CONES[cones], zero=2)
    program, data = random_program(cones, batch=4)
    _, A = program.dense(data)
    rows = [0, 1, 0, 1, *range(2, cones.size)]
    scale = torch.ones(len(rows), dtype=torch.float64)
    scale[2] = -3
    more = ConicProgram(program.P, Pattern.of(sp.csc_array(np.ones((len(rows), program.n)))), replace(cones, zero=4))
    values = (A[:, rows] * scale[:, None])[:, more.A.rows, more.A.cols]
    repeated = ConicData(data.P, data.q, values, data.b[:, rows] * scale)
    raw, once = solve(more, repeated, device), solve(program, data, device)
    assert raw.status.tolist() == [Status.SOLVED] * 4
    assert Instance(more, repeated).residuals(raw.x, raw.y, raw.s).worst.max() < 1e-8
    torch.testing.assert_close(program.objective(raw.x, data), program.objective(once.x, data), rtol=1e-7, atol=1e-7)
    repeated.b[1, 2] += 1e-3  # now they contradict each other
    assert solve(more, repeated, device).status.tolist() == [0, Status.INFEASIBLE, 0, 0]


# No answer


def hopeless(cones, kind, batch=6, n=7):
    """Every other element has a multiplier that no feasible point survives, or a ray that gets better for ever."""
    program, data = random_program(cones, n=n, batch=batch, seed=5)
    full = ConicProgram(program.P, Pattern.of(sp.csc_array(np.ones((cones.size, n)))), cones)
    P, A = program.dense(data)
    q, b, rng = data.q.clone(), data.b.clone(), np.random.default_rng(6)
    for i in range(0, batch, 2):
        if kind == Status.INFEASIBLE:
            y = torch.as_tensor(interior(cones, rng, dual=True))
            A[i] -= torch.outer(y, A[i].T @ y) / (y @ y)
            b[i] -= y * (b[i] @ y + 1) / (y @ y)
        else:
            d, s = torch.as_tensor(rng.standard_normal(n)), torch.as_tensor(interior(cones, rng, dual=False))
            s[: cones.zero] = 0
            off = torch.eye(n, dtype=torch.float64) - torch.outer(d, d) / (d @ d)
            P[i], A[i] = off @ P[i] @ off, A[i] @ off - torch.outer(s, d) / (d @ d)
            q[i] -= d * (q[i] @ d + 1) / (d @ d)
    upper = ConicProgram(Pattern.of(sp.csc_array(np.triu(np.ones((n, n))))), full.A, cones)
    return upper, ConicData(P[:, upper.P.rows, upper.P.cols], q, A[:, full.A.rows, full.A.cols], b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [Status.INFEASIBLE, Status.UNBOUNDED], ids=lambda kind: kind.name)
@pytest.mark.parametrize("cones", [*CURVED, "linear"])
def test_certificates_and_their_neighbours(cones, kind, device):
    program, data = hopeless(CURVED[cones] if cones in CURVED else CONES[cones], kind)
    raw = solve(program, data, device)
    assert raw.status[::2].tolist() == [kind] * 3
    assert raw.x[::2].isnan().all() and raw.y[::2].isnan().all() and raw.s[::2].isnan().all()
    alone = solve(program, select(data, slice(1, None, 2)), device)
    assert raw.status[1::2].tolist() == alone.status.tolist() == [Status.SOLVED] * 3
    for one, other in zip((raw.x, raw.y, raw.s), (alone.x, alone.y, alone.s), strict=True):
        torch.testing.assert_close(one[1::2], other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_data_that_are_not_finite(place, bad, device):
    program, data = random_program(CONES["all but higher power"])
    right = solve(program, data, device)
    data[place][1, -1] = bad
    raw = solve(program, data, device)
    assert raw.status.tolist() == [Status.SOLVED, Status.INVALID_DATA, Status.SOLVED]
    assert raw.x[1].isnan().all() and raw.y[1].isnan().all() and raw.s[1].isnan().all()
    torch.testing.assert_close(raw.x[[0, 2]], right.x[[0, 2]], rtol=1e-9, atol=1e-9)


def test_a_gap_that_vanishes_by_chance_is_no_solution():
    """``min -1e6 x, x <= 0`` at ``x = 0``, ``s = 1e-9``: the residual is that small, the gap zero, and ``s'z`` is 1e-3."""
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    problem = conic_embedding.Problem(0 * one, -1e6 * one, one, 0 * one, Cones(Product(nonneg=1), one))
    point = torch.tensor([[[0.0, 1e6, 1e-9, 1.0, 1.0]]], dtype=torch.float64)
    assert conic_embedding.errors(problem, point).solution > 1e-4


def test_iteration_limit_gives_no_answer():
    program, data = random_program(CONES["exponential"])
    raw = solve(program, data, max_iterations=3)
    assert raw.status.tolist() == [Status.ITERATION_LIMIT] * 3 and raw.iterations.tolist() == [3] * 3
    assert raw.x.isnan().all()


def test_what_cannot_be_reached_is_reported_as_inaccurate():
    program, data = random_program(CONES["semidefinite"])
    raw = solve(program, data, tolerance=1e-30, solved_tolerance=1e-30)
    assert raw.status.tolist() == [Status.INACCURATE] * 3
    assert Instance(program, data).residuals(raw.x, raw.y, raw.s).worst.max() < 1e-9


@pytest.mark.parametrize("option", ["max_iterations", "tolerance", "check_every"])
def test_options_must_be_positive(option):
    with pytest.raises(InputError, match=option):
        ConicInteriorPoint(**{option: 0})


# Batches


@pytest.mark.parametrize("device", DEVICES)
def test_an_element_alone_among_others_and_in_chunks(device, monkeypatch):
    program, data = random_program(CURVED["many of one size"], batch=7)
    together = solve(program, data, device)
    monkeypatch.setattr(conic_interior_point, "_CHUNK", 3 * program.n * (program.n + program.m))
    chunks, alone = solve(program, data, device), solve(program, select(data, slice(4, 5)), device)
    for name in ("x", "y", "s"):
        whole = getattr(together, name)
        torch.testing.assert_close(getattr(chunks, name), whole, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(getattr(alone, name), whole[4:5], rtol=1e-9, atol=1e-9)
    assert torch.equal(chunks.iterations, together.iterations)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cones", ["second-order", "semidefinite", "all but higher power"])
def test_warm_start(cones, device):
    program, data = random_program(CONES[cones], batch=4)
    cold = solve(program, data, device)
    cold.x[2] = torch.nan  # gives no start
    moved = data._replace(b=data.b * 1.0001)
    start = RawSolution(*(t.to(device) for t in vars(cold).values()))
    warm, again = solve(program, moved, device, warm=start), solve(program, moved, device)
    others = [0, 1, 3]
    assert (warm.iterations[others] < again.iterations[others]).all() and warm.iterations[2] == again.iterations[2]
    assert warm.status.tolist() == [Status.SOLVED] * 4
    torch.testing.assert_close(program.objective(warm.x, moved), program.objective(again.x, moved), rtol=1e-7, atol=1e-7)


# What a device wants


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cones", [*CURVED, "equality", "linear"])
def test_an_iteration_looks_at_no_number(cones, dtype):
    """It runs on tensors that have none: nothing waits for the device, no shape depends on data, nothing moves."""
    product = CURVED[cones] if cones in CURVED else CONES[cones]

    def empty(*shape):
        return torch.empty(*shape, dtype=torch.float64, device="meta")

    q, m = empty(3, 1, 7), product.size
    problem = conic_embedding.Problem(empty(3, 7, 7), q, empty(3, m, 7), empty(3, 1, m), Cones(product, q))
    whole = conic_embedding.start(problem, None, 0.9)
    found = conic_embedding.advance(problem, whole, conic_embedding.Arithmetic(dtype, 1e-8, 2))
    assert (found.shape, found.dtype, found.device.type) == (whole.shape, torch.float64, "meta")
    assert conic_embedding.errors(problem, found).solution.shape == (3, 1, 1)


class Kernels(TorchDispatchMode):
    """Counts the operations that run by name."""

    def __init__(self):
        super().__init__()
        self.count: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).split(".")[1]
        self.count[name] = self.count.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


WAITING = (
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "masked_select",
    "unique",
    "_unique2",
    "linalg_eigh",
    "_linalg_eigh",
)


def test_the_host_asks_once_every_few_iterations():
    program, data = random_program(CONES["all but higher power"], batch=8)
    with Kernels() as kernels:
        raw = solve(program, data, check_every=5)
    assert raw.status.tolist() == [Status.SOLVED] * 8
    assert not set(WAITING) & set(kernels.count)
    assert kernels.count["nonzero"] == len(set(range(0, int(raw.iterations.max()) + 1, 5)))


@pytest.mark.parametrize("kind", ["soc", "psd", "exp", "power"])
def test_equal_cones_are_one_operation(kind):
    def count(number):
        members = {"soc": (4,), "psd": (3,), "power": ((0.3, 0.7),)}
        cones = Product(1, 2, **{kind: number if kind == "exp" else members[kind] * number})
        program, data = random_program(cones, batch=2)
        with Kernels() as kernels:
            solve(program, data, max_iterations=2)
        return kernels.count

    assert count(2) == count(20)


def test_auto_takes_it_on_devices_and_for_dense_programs():
    small, _ = random_program(CONES["second-order"], batch=1)
    assert isinstance(Auto().pick(small, "cuda").solver, ConicInteriorPoint)
    assert not isinstance(Auto().pick(small).solver, ConicInteriorPoint)
    dense, data = random_program(Product(2, 20, (30,) * 8), n=320, batch=2)
    assert Auto().explain(dense).startswith("ConicInteriorPoint for n = 320")
    assert torch.equal(Auto().solve(dense, data, Workspace()).x, solve(dense, data).x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_layer_on_cuda():
    entry = ENTRIES[0]
    problem, parameters, outputs = entry.build()
    layer = DeclarativeLayer(problem, parameters, outputs)
    values = entry.sample(np.random.default_rng(1))
    found = layer(*(torch.tensor(value).cuda() for value in values))
    for output, expected in zip(found, reference_solution(entry, values), strict=True):
        np.testing.assert_allclose(output.cpu().numpy(), expected, atol=1e-6)


# Barriers


def power_alpha(d):
    return torch.tensor([[0.3, 0.7], [0.5, 0.5]] if d == 2 else [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]], dtype=torch.float64)


BARRIERS = {
    "exponential": (Exponential(2, 3, 6), lambda z: -(z[..., 1] - z[..., 0] * (1 + (-z[..., 2] / z[..., 0]).log())).log()
                    - (-z[..., 0]).log() - z[..., 2].log(), Product(exp=2)),
    "power": (Power(2, 3, 6, power_alpha(2)), lambda z: power_barrier(z, power_alpha(2)),
              Product(power=((0.3, 0.7), (0.5, 0.5)))),
    "higher power": (Power(2, 4, 8, power_alpha(3)), lambda z: power_barrier(z, power_alpha(3)),
                     Product(power=((0.1, 0.2, 0.7), (0.3, 0.3, 0.4)))),
}  # fmt: skip


def power_barrier(z, alpha):
    u, w = z[..., :-1], z[..., -1]
    return -((u / alpha).pow(2 * alpha).prod(-1) - w * w).log() - ((1 - alpha) * u.log()).sum(-1)


def points(cones, dual, shape):
    rng = np.random.default_rng(7 + dual)
    return torch.as_tensor(np.stack([interior(cones, rng, dual) for _ in range(5)])).view(5, 1, *shape)


@pytest.mark.parametrize("name", BARRIERS)
def test_derivatives_of_the_barrier(name):
    barrier, value, cones = BARRIERS[name]
    shape = (barrier.number, barrier.dim)
    z, s = points(cones, True, shape).requires_grad_(), points(cones, False, shape)
    a, b = torch.randn(2, *z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(value(z).sum(), z, create_graph=True)
    (second,) = torch.autograd.grad((gradient * a).sum(), z, create_graph=True)
    (third,) = torch.autograd.grad((second * b).sum(), z)
    z = z.detach()
    root = barrier.hessian_root(z)
    torch.testing.assert_close(barrier.gradient(z), gradient.detach())
    torch.testing.assert_close((root @ root.mT @ a.unsqueeze(-1)).squeeze(-1), second.detach())
    torch.testing.assert_close(barrier.third(z, a, b), third)
    # The gradients of a barrier and its conjugate undo each other.
    torch.testing.assert_close(-barrier.gradient(-barrier.primal_gradient(s)), s)
    centre = barrier.centre(z)
    torch.testing.assert_close(-barrier.gradient(centre.expand(1, 1, *shape))[0, 0], centre, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", BARRIERS)
def test_curved_scaling_maps_points_and_shadows(name):
    barrier, _, cones = BARRIERS[name]
    shape = (barrier.number, barrier.dim)
    s, z = points(cones, False, shape), points(cones, True, shape)
    assert barrier.inside(s, z).all() and not barrier.inside(-s, z).any() and not barrier.inside(s, -z).any()
    W = barrier.scaling(s, z)
    H = W.L @ W.L.mT
    torch.testing.assert_close((H @ z.unsqueeze(-1)).squeeze(-1), s)
    torch.testing.assert_close((H @ -barrier.primal_gradient(s).unsqueeze(-1)).squeeze(-1), -barrier.gradient(z))


@pytest.mark.parametrize(
    "cones", [Product(nonneg=4), Product(soc=(5, 5)), Product(psd=(6,)), Product(psd=(2, 2, 2))], ids=str
)
def test_symmetric_scaling_maps_both_points_to_one(cones):
    rng = np.random.default_rng(8)
    s, z, v = (torch.as_tensor(interior(cones, rng, False)).view(1, 1, -1) for _ in range(3))
    every = Cones(cones, s)
    ((rows, barrier),) = every.groups
    (W,) = every.scaling(s, z)
    shape = (1, 1, barrier.number, barrier.dim)
    s, z, v = (t[..., rows].view(shape) for t in (s, z, v))
    torch.testing.assert_close(W.back(W.down(v)), v)
    torch.testing.assert_close((W.down(s) * W.down(v)).sum(), (s * W.up(W.down(v))).sum())
    torch.testing.assert_close(W.up(W.down(s)), z)  # H^-1 s = z


def test_steps_end_at_the_boundary():
    cones = Product(nonneg=3, soc=(4, 3), psd=(3,), exp=1, power=((0.3, 0.7),))
    every = Cones(cones, torch.zeros(0, dtype=torch.float64))
    rng = np.random.default_rng(9)
    for _ in range(20):
        s, z = (torch.as_tensor(interior(cones, rng, dual))[every.order].view(1, 1, -1) for dual in (False, True))
        ds, dz = (torch.as_tensor(rng.standard_normal(cones.size)).view(1, 1, -1) for _ in range(2))
        length = every.step(torch.ones(1, 1, 1, dtype=torch.float64), s, ds, z, dz)

        def outside(t, s=s, ds=ds, z=z, dz=dz):
            primal, dual = ((v + t * d).flatten()[every.back] for v, d in ((s, ds), (z, dz)))
            return float(torch.maximum(cones.distance(primal), cones.dual_distance(dual)))

        assert outside(length) < 1e-9
        assert length == 1 or outside(length * 4.1) > 1e-4

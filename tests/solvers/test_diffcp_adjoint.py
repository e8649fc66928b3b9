"""diffcp's derivative against finite differences of tight solves and against this package's own."""

import sys

import cvxpy as cp
import numpy as np
import pytest
import torch
from programs import CONES, random_program, select

from ddn_cvx.adjoint.diffcp import DiffcpAdjoint
from ddn_cvx.cones import Product
from ddn_cvx.errors import DifferentiationError, InputError
from ddn_cvx.layer import DeclarativeLayer
from ddn_cvx.program.conic import ConicData
from ddn_cvx.solvers.base import Workspace
from ddn_cvx.solvers.clarabel import Clarabel

KINDS = {k: CONES[k] for k in ("linear", "second-order", "semidefinite")}
KINDS["several"] = Product(1, 2, (3,), (2,), 1)
TIGHT = Clarabel(tol_feas=1e-13, tol_gap_abs=1e-13, tol_gap_rel=1e-13)


def newton(program, data, z):
    """The root of the optimality conditions near z (B, n + m), to machine accuracy, with a Jacobian by
    differences."""
    steps = 1e-6 * torch.eye(z.shape[1]).double()
    for _ in range(4):
        root = []
        for i in range(len(z)):
            near = torch.cat([z[i] + steps, z[i] - steps])
            F = program.residual(near, ConicData(*(t[i : i + 1].expand(len(near), -1) for t in data)))
            jacobian = (F[: len(steps)] - F[len(steps) :]).T / 2e-6
            root.append(z[i] - torch.as_tensor(np.linalg.solve(jacobian, program.residual(z, data)[i])))
        z = torch.stack(root)
    assert program.residual(z, data).abs().max() < 1e-10
    return z


@pytest.mark.parametrize("cones, quadratic", [*((kind, True) for kind in KINDS), ("linear", False), ("several", False)])
def test_gradient_is_the_slope(cones, quadratic):
    program, data = random_program(KINDS[cones], batch=2, seed=5, quadratic=quadratic)
    rng = np.random.default_rng(1)
    raw = TIGHT.solve(program, data, Workspace())
    gx, gy, gs = (torch.as_tensor(rng.standard_normal(t.shape)) for t in (raw.x, raw.y, raw.s))
    adjoint = DiffcpAdjoint(mode="dense", tolerance=1e-12)
    found = adjoint.vjp(program, data, raw.x, raw.y, raw.s, gx, gy, gs)
    root = newton(program, data, torch.cat([raw.x, raw.y - raw.s], 1))

    def loss(moved):
        x, v = newton(program, moved, root).split([program.n, program.m], 1)
        y = program.cones.project_dual(v)
        return (gx * x).sum(1) + (gy * y).sum(1) + (gs * (y - v)).sum(1)

    step = 1e-5
    for part, gradient in zip(data._fields, found, strict=True):
        value = getattr(data, part)
        direction = torch.as_tensor(rng.standard_normal(value.shape))
        up, down = (loss(data._replace(**{part: value + sign * step * direction})) for sign in (1, -1))
        slope = (up - down) / (2 * step)
        np.testing.assert_allclose((gradient * direction).sum(1), slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["lsqr", "lsmr"])
def test_modes_agree(mode):
    program, data = random_program(KINDS["second-order"], batch=2)
    raw = TIGHT.solve(program, data, Workspace())
    ones = torch.ones_like
    iterative, dense = (
        DiffcpAdjoint(mode=m).vjp(program, data, raw.x, raw.y, raw.s, ones(raw.x), ones(raw.y)) for m in (mode, "dense")
    )
    for a, b in zip(iterative, dense, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


class _Solved:
    """The forward computation of a layer, as an adjoint sees it."""

    def __init__(self, program, ok):
        self.program, self.ok, self.factors = program, ok, None

    def __call__(self, data: ConicData, *extra):
        raw = TIGHT.solve(self.program, data, Workspace())
        keep = self.ok[:, None]
        return torch.where(keep, raw.x, 0.0), torch.where(keep, raw.y - raw.s, 0.0), self.ok


def test_attached_to_a_solve():
    program, data = random_program(KINDS["second-order"], batch=3)
    leaves = [t.clone().requires_grad_() for t in data]
    solve = _Solved(program, torch.tensor([True, False, True]))
    x, v, _ = DiffcpAdjoint(mode="dense").attach(solve, ConicData(*leaves), ())
    c = torch.linspace(-1, 2, v.numel()).reshape(v.shape).double()
    (x.sum() + (c * v).sum()).backward()
    rest = [0, 2]
    v, c = v.detach()[rest], c[rest]
    y = program.cones.project_dual(v)
    expected = DiffcpAdjoint(mode="dense").vjp(
        program, select(data, rest), x.detach()[rest], y, y - v, torch.ones(2, program.n).double(), c, -c
    )
    for leaf, value in zip(leaves, expected, strict=True):
        assert torch.count_nonzero(leaf.grad[1]) == 0
        np.testing.assert_allclose(leaf.grad[rest], value, rtol=1e-4, atol=1e-5)
    # Nothing solved: nothing to differentiate.
    x, _, _ = DiffcpAdjoint().attach(_Solved(program, torch.zeros(3, dtype=torch.bool)), ConicData(*leaves), ())
    assert all(not g.any() for g in torch.autograd.grad(x.sum(), leaves))


def test_power_cones_are_refused():
    program, data = random_program(CONES["power"], batch=1)
    raw = TIGHT.solve(program, data, Workspace())
    with pytest.raises(DifferentiationError, match="power"):
        DiffcpAdjoint().vjp(program, data, raw.x, raw.y, raw.s, raw.x, raw.y)


def test_infeasible_program_is_refused():
    program, data = random_program(KINDS["linear"], batch=1)
    raw = TIGHT.solve(program, data, Workspace())
    data.b[:, -6:] -= 1e3
    data.A[:] = 0.0
    with pytest.raises(DifferentiationError, match="could not solve"):
        DiffcpAdjoint().vjp(program, data, raw.x, raw.y, raw.s, raw.x, raw.y)


def test_what_it_does_not_do_is_refused(monkeypatch):
    y, p = cp.Variable(2), cp.Parameter(2)
    layer = DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(y - p))), [p], y, adjoint=DiffcpAdjoint(threads=1))
    point = torch.tensor([0.8, 0.6]).double()
    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.vmap):
        with pytest.raises(DifferentiationError, match=r"outside of torch.func transforms; use adjoint=Implicit\(\)"):
            transform(layer)(torch.stack([point, point]))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(DifferentiationError, match="reverse mode"):
        layer(torch.autograd.forward_ad.make_dual(point, point))
    out = layer(point.requires_grad_())
    monkeypatch.setitem(sys.modules, "diffcp", None)
    with pytest.raises(InputError, match="pip install diffcp"):
        out.sum().backward()


@pytest.mark.parametrize("name, value", [("mode", "lu"), ("threads", 0), ("max_iterations", 1.5), ("tolerance", 0)])
def test_bad_options_are_named(name, value):
    with pytest.raises(InputError, match=f"{name} must be .*, got"):
        DiffcpAdjoint(**{name: value})

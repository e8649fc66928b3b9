"""Least squares against scipy, outliers, and a small bundle adjustment against the dense method."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from ddn_cvx.errors import InputError
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.solution import Status
from ddn_cvx.solvers.least_squares import BundleAdjustment, LeastSquares
from ddn_cvx.solvers.robust_loss import RobustLoss

F64 = torch.float64
TIMES = torch.linspace(0, 3, 25, dtype=F64)


def decay(y: Tensor, theta: Theta) -> Tensor:
    """Residuals of ``a exp(-b t) + c`` at 25 times."""
    return y[:, :1] * torch.exp(-y[:, 1:2] * TIMES) + y[:, 2:] - theta.tensors[0]


def program(residual, loss: RobustLoss, n: int) -> NonlinearProgram:
    return NonlinearProgram(n, 0, 0, lambda y, theta: (loss.value(residual(y, theta)).sum(-1), y[:, :0], y[:, :0]))


def samples(batch: int, noise: float, outliers: int = 0) -> tuple[Tensor, Theta]:
    g = torch.Generator().manual_seed(0)
    true = torch.tensor([2.0, 1.3, 0.5], dtype=F64) * (1 + 0.2 * torch.rand(batch, 3, generator=g, dtype=F64))
    data = decay(true, Theta((torch.zeros(batch, 25, dtype=F64),), (True,)))
    data = data + noise * torch.randn(data.shape, generator=g, dtype=F64)
    data[:, :outliers] += 3.0
    return true, Theta((data,), (True,))


def test_without_noise_the_truth_is_found() -> None:
    true, theta = samples(64, 0.0)
    loss = RobustLoss()
    point = LeastSquares(decay, loss).solve(program(decay, loss, 3), theta, torch.ones(64, 3, dtype=F64))
    assert point.status.tolist() == [Status.SOLVED] * 64
    torch.testing.assert_close(point.y, true, rtol=1e-8, atol=1e-9)
    assert point.iterations.max() < 20


IN_SCIPY = [("squared", "linear"), ("huber", "huber"), ("pseudo_huber", "soft_l1"), ("cauchy", "cauchy")]


@pytest.mark.parametrize("kind, scipy_name", IN_SCIPY)
def test_against_scipy(kind: str, scipy_name: str) -> None:
    _, theta = samples(5, 0.1, outliers=2)
    loss = RobustLoss(kind, 0.2)
    node = program(decay, loss, 3)
    point = LeastSquares(decay, loss).solve(node, theta, torch.ones(5, 3, dtype=F64))
    assert point.status.tolist() == [Status.SOLVED] * 5
    assert float(node.first(point.y, theta).gradient.abs().max()) < 1e-8
    for index in range(5):
        one = theta.take(torch.tensor([index]))

        def residual(v: np.ndarray, one: Theta = one) -> np.ndarray:
            return decay(torch.from_numpy(v)[None], one)[0].numpy()

        exact = {"xtol": 1e-13, "ftol": 1e-13, "gtol": 1e-13}
        best = scipy.optimize.least_squares(residual, np.ones(3), loss=scipy_name, f_scale=0.2, **exact)
        np.testing.assert_allclose(point.y[index].numpy(), best.x, rtol=1e-5, atol=1e-6)


def test_a_bounded_loss_ignores_outliers() -> None:
    true, theta = samples(16, 0.0, outliers=6)
    loss = RobustLoss("welsch", 0.3)
    point = LeastSquares(decay, loss).solve(program(decay, loss, 3), theta, true * 1.1)
    torch.testing.assert_close(point.y, true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["squared", "huber", "pseudo_huber", "cauchy", "welsch"])
def test_weights_are_derivatives(kind: str) -> None:
    loss = RobustLoss(kind, 0.7)
    r = torch.linspace(-3, 3, 41, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss.value(r).sum(), r)
    torch.testing.assert_close(loss.weight(r) * r, slope)


def test_residuals_of_another_objective_are_refused() -> None:
    _, theta = samples(2, 0.1)
    node = program(decay, RobustLoss("cauchy", 0.1), 3)
    with pytest.raises(InputError, match="not those of the objective"):
        LeastSquares(decay).solve(node, theta, torch.ones(2, 3, dtype=F64))
    with pytest.raises(InputError, match="cauchy"):
        RobustLoss("tukey")


def scene(batch: int, cameras: int, points: int, noise: float):
    """Cameras in the plane (angle, position) see points (x, y) in their own frame; one camera misses each point."""
    g = torch.Generator().manual_seed(3)
    pairs = [(c, p) for c in range(cameras) for p in range(points) if (c + p) % cameras]
    camera_of, point_of = (torch.tensor(column) for column in zip(*pairs, strict=True))
    poses, places = torch.randn(batch, cameras * 3, generator=g), torch.randn(batch, points * 2, generator=g)
    true = torch.cat((0.4 * poses, 2 * places), 1).double()

    def project(camera: Tensor, point: Tensor, seen: Tensor) -> Tensor:
        moved = point - camera[:, 1:]
        cos, sin = torch.cos(camera[:, 0]), torch.sin(camera[:, 0])
        u, v = cos * moved[:, 0] + sin * moved[:, 1], cos * moved[:, 1] - sin * moved[:, 0]
        return torch.stack((u, v + 0.05 * u * v), -1) - seen

    def residual(y: Tensor, theta: Theta) -> Tensor:
        size = len(y)
        camera, point = y[:, : cameras * 3].view(size, cameras, 3), y[:, cameras * 3 :].view(size, points, 2)
        both = camera[:, camera_of].flatten(0, 1), point[:, point_of].flatten(0, 1)
        return project(*both, theta.tensors[0].flatten(0, 1)).view(size, -1)

    nothing = torch.zeros(batch, len(pairs), 2, dtype=F64)
    seen = residual(true, Theta((nothing,), (True,))).view(batch, -1, 2)
    seen = seen + noise * torch.randn(seen.shape, generator=g).double()
    return true, Theta((seen,), (True,)), project, residual, camera_of, point_of


@pytest.mark.parametrize("loss", [RobustLoss(), RobustLoss("cauchy", 0.05)], ids=["squared", "cauchy"])
def test_bundle_adjustment_equals_the_dense_method(loss: RobustLoss) -> None:
    true, theta, project, residual, camera_of, point_of = scene(3, 4, 10, 0.01)
    node = program(residual, loss, true.shape[1])
    solver = BundleAdjustment(
        project, lambda theta: theta.tensors[0], camera_of, point_of, 4, 10, loss, camera_size=3, point_size=2
    )
    assert solver.unsupported(node) is None
    start = true + 0.1 * torch.randn(true.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    point = solver.solve(node, theta, start)
    dense = LeastSquares(residual, loss).solve(node, theta, start)
    assert point.status.tolist() == [Status.SOLVED] * 3
    torch.testing.assert_close(node.values(point.y, theta)[0], node.values(dense.y, theta)[0], rtol=1e-7, atol=1e-12)
    assert float(node.first(point.y, theta).gradient.abs().max()) < 1e-6


def test_bundle_adjustment_of_two_thousand_points() -> None:
    """n = 4018: dense normal equations of all variables would be 129 MB an element and 20 GFLOP a step."""
    true, theta, project, residual, camera_of, point_of = scene(1, 6, 2000, 0.0)
    node = program(residual, RobustLoss(), true.shape[1])
    solver = BundleAdjustment(project, lambda t: t.tensors[0], camera_of, point_of, 6, 2000, camera_size=3, point_size=2)
    start = true + 0.05 * torch.randn(true.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    point = solver.solve(node, theta, start)
    assert point.status.tolist() == [Status.SOLVED]
    assert float(node.values(point.y, theta)[0]) < 1e-15

"""Kinks rounded off: close to the original everywhere, smooth, and with the derivatives of the smooth problem."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.nn import functional as F

from ddn_cvx import DeclarationError, DeclarativeLayer, Regularity, Status, TorchProblem
from ddn_cvx.declare.smooth import Smooth

f64 = torch.float64
FUNCTIONS = {
    "abs": torch.abs,
    "method": lambda x: x.abs(),
    "builtin": abs,
    "relu": torch.relu,
    "functional": F.relu,
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp above": lambda x: torch.clamp(x, max=0.3),
    "clamp_min": lambda x: x.clamp_min(0.2),
    "clamp_max": lambda x: torch.clamp_max(x, 0.2),
    "maximum": lambda x: torch.maximum(x, 0.5 * x),
    "minimum": lambda x: torch.minimum(x, x.flip(0)),
    "max of two": lambda x: torch.max(x, -x),
    "min of two": lambda x: torch.min(x, x.flip(0)),
    "largest": lambda x: x.max(),
    "smallest": lambda x: x.min(),
    "amax": lambda x: x.reshape(2, -1).amax(1),
    "amin": lambda x: torch.amin(x.reshape(2, -1), dim=0, keepdim=True),
    "norm": lambda x: x.norm(),
    "norm of rows": lambda x: torch.linalg.vector_norm(x.reshape(2, -1), dim=1),
    "linalg norm": torch.linalg.norm,
    "norm of all entries": lambda x: torch.linalg.vector_norm(x.reshape(2, -1), 2),
    "old norm of all entries": lambda x: torch.norm(x.reshape(2, -1), 2, dim=(0, 1)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rounded_functions(name: str) -> None:
    function = FUNCTIONS[name]
    x = torch.tensor([-1.0, -0.5, -0.01, 0.0, 0.3, 0.7], dtype=f64)
    for width in (1e-1, 1e-3):
        with Smooth(width):
            rounded = function(x)
        assert rounded.shape == function(x).shape
        assert (rounded - function(x)).abs().max() <= 2 * width
        assert width < 0.1 or not torch.equal(rounded, function(x))

        def total(x: Tensor, width: float = width) -> Tensor:
            with Smooth(width):
                return function(x).sum()

        assert torch.isfinite(grad(total)(torch.zeros(6, dtype=f64))).all()
        assert torch.autograd.gradgradcheck(total, x.clone().requires_grad_(), eps=1e-7, atol=1e-3)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.max(0).values,
        lambda x: torch.linalg.norm(x, 1),
        lambda x: torch.linalg.norm(torch.outer(x, x) + torch.diag(x), 2),
        lambda x: torch.linalg.norm(torch.outer(x, x) + torch.diag(x), 2, dim=(0, 1)),
        lambda x: torch.sort(x).values,
        torch.sin,
    ],
    ids=["max with its place", "another norm", "largest singular value", "that of two dimensions", "sort", "smooth"],
)
def test_other_functions_stay_as_they_are(function: object) -> None:
    x = torch.tensor([-1.0, 0.5, 0.0], dtype=f64)
    with Smooth(0.1):
        assert torch.equal(function(x), function(x.clone()))
    with Smooth(0.1):
        inside = function(x)
    assert torch.equal(inside, function(x))


def test_soft_thresholding_with_a_declared_width() -> None:
    """y + y / sqrt(y^2 + w^2) = x at the solution of min |y| + (y - x)^2 / 2 with |y| rounded off."""
    w = 0.05
    node = TorchProblem((), lambda y, x: y.abs() + 0.5 * (y - x) ** 2, smooth=w, parameters=[()])
    layer, x = DeclarativeLayer(node), torch.tensor([2.0, 0.4, 0.0, -3.0], dtype=f64)
    solution = layer.solve(x)
    y = solution.outputs[0]
    assert solution.statuses == [Status.SOLVED] * 4 and solution.regularities == [Regularity.REGULAR] * 4
    assert torch.allclose(y + y / (y * y + w * w).sqrt(), x, atol=1e-12)
    assert (y - torch.tensor([1.0, 0.0, 0.0, -2.0])).abs().max() < w
    assert torch.allclose(vmap(jacrev(layer))(x), 1 / (1 + w * w / (y * y + w * w) ** 1.5), atol=1e-10)


def test_without_a_width_a_kink_is_not_taken_for_a_solution() -> None:
    node = TorchProblem((), lambda y, x: y.abs() + 0.5 * (y - x) ** 2, parameters=[()])
    solution = DeclarativeLayer(node).solve(torch.tensor([2.0, 0.4], dtype=f64))
    assert solution.statuses[0] == Status.SOLVED and solution.statuses[1] != Status.SOLVED
    with pytest.raises(DeclarationError, match="positive width"):
        TorchProblem((), lambda y, x: y.abs(), smooth=0.0)

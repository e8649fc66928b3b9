"""Pictures restored by Markov random fields whose filters are learned.

    y = argmin_u  1/2 sum_i m_i (u_i - x_i)^2  +  sum_k w_k sum_c phi((f_k * u)_c)

Samuel & Tappen, "Learning optimized MAP estimates in continuously-valued MRF models" (CVPR 2009), learn filters f and
weights w by the error of the restored pictures; the lower-level problem is differentiated at its solution. The penalty
phi is that of the Student-t field of experts, ``log(1 + z^2)``, or Charbonnier's, a smooth absolute value. With the
gradient as the only filter and the absolute value itself it is total variation, a lower level that is not smooth (Ochs,
Ranftl, Brox & Pock, "Techniques for gradient-based bilevel optimization with non-smooth lower level problems", 2016):
``PictureTotalVariation`` is that conic program, differentiated without rounding off its kinks.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import LBFGS, DeclarationError, DeclarativeLayer, InputError, TorchProblem
from ddn_cvx.nodes.entry import Entry, Inputs

SMALL = 200
"""Pixels up to which the Hessian is formed."""
PENALTIES = ("student", "charbonnier")


class FilterEnergy(nn.Module):
    """``(u, x, m), each (B, h, w) -> (B,)``: the energy of pictures u, with the filters and weights.

    Parameters
    ----------
    count, size : int
        Filters of size x size pixels, whose means are taken out.
    penalty : str
        ``student`` or ``charbonnier``.
    rounding : float
        Of Charbonnier's penalty: sqrt(z^2 + rounding^2) - rounding.
    """

    def __init__(self, count: int, size: int, penalty: str, rounding: float):
        super().__init__()
        self.penalty, self.rounding = penalty, rounding
        self.filters = nn.Parameter(torch.randn(count, size, size))
        self.log_weights = nn.Parameter(torch.full((count,), -3.0))

    def forward(self, u: Tensor, x: Tensor, m: Tensor) -> Tensor:
        filters = (self.filters - self.filters.mean((1, 2), keepdim=True)).to(u)
        z = nn.functional.conv2d(u.unsqueeze(1), filters.unsqueeze(1)).square()
        cost = z.log1p() if self.penalty == "student" else (z + self.rounding**2).sqrt() - self.rounding
        data = 0.5 * (m * (u - x).square()).sum((1, 2))
        return data + (cost.sum((2, 3)) * self.log_weights.exp().to(u)).sum(1)


class FieldOfExperts(nn.Module):
    """``x (*batch, h, w), m (*batch, h, w) or None -> (*batch, h, w)``, the restored picture; any size.

    m is how much each pixel is trusted, all 1 by default; where it is 0 the pixel is filled in.

    Parameters
    ----------
    count, size : int
        Learned filters of size x size pixels, whose means are taken out.
    penalty : str
        ``student``, log(1 + z^2), which is not convex, or ``charbonnier``, sqrt(z^2 + rounding^2) - rounding.
    rounding : float
        Below it the absolute value is smooth.
    tolerance : float
        Accepted relative residual of the optimality conditions.

    Raises
    ------
    DeclarationError
        An argument is out of range.
    InputError
        x and m of different shapes, or smaller than the filters.
    SolverError
        No minimum was found.

    Attributes
    ----------
    energy : FilterEnergy
        Holds the weights ``filters (count, size, size)`` and ``log_weights (count)``.

    Examples
    --------
    >>> FieldOfExperts(8, 3)(torch.rand(4, 32, 40)).shape
    torch.Size([4, 32, 40])
    """

    def __init__(self, count: int, size: int, penalty: str = "student", rounding: float = 1e-2, tolerance: float = 1e-6):
        super().__init__()
        if penalty not in PENALTIES:
            raise DeclarationError(f"penalty must be one of {', '.join(PENALTIES)}, got {penalty!r}.")
        if not rounding > 0:
            raise DeclarationError(f"rounding must be above 0, got {rounding!r}.")
        if count < 1 or size < 2:
            raise DeclarationError(f"count must be at least 1 and size at least 2, got {count!r} and {size!r}.")
        self.size, self.tolerance = size, tolerance
        self.energy = FilterEnergy(count, size, penalty, rounding)
        self.layers = nn.ModuleDict()
        self._layer(size, size)

    def forward(self, x: Tensor, m: Tensor | None = None) -> Tensor:
        """The restored pictures, in the dtype of x."""
        if x.ndim < 2 or min(x.shape[-2:]) < self.size or (m is not None and m.shape[-2:] != x.shape[-2:]):
            shape = None if m is None else tuple(m.shape)
            least = f"with h and w at least {self.size}"
            raise InputError(f"x and m must be (*batch, h, w) {least}, got {tuple(x.shape)} and {shape}.")
        trust = x.new_ones(x.shape[-2:]) if m is None else m
        y: Tensor = self._layer(*x.shape[-2:])(x.double(), trust.double())
        return y.to(x.dtype)

    def _energy(self, u: Tensor, x: Tensor, m: Tensor) -> Tensor:
        """As a method of the node, so that the weights are its own alone and not also those of each size."""
        found: Tensor = self.energy(u, x, m)
        return found

    def _layer(self, height: int, width: int) -> nn.Module:
        """The layer for pictures of this size; all have the same weights."""
        name = f"{height}x{width}"
        if name not in self.layers:
            shape = (height, width)
            problem = TorchProblem(
                shape,
                objective=self._energy,
                initial=lambda x, m: x,
                parameters=[shape, shape],
                batched=True,
                matrices=height * width <= SMALL,
            )
            solver = LBFGS(tolerance=0.1 * self.tolerance)
            self.layers[name] = DeclarativeLayer(problem, solver=solver, tolerance=self.tolerance)
        return self.layers[name]


class PictureTotalVariation(DeclarativeLayer[Tensor]):
    """``(x (*batch, h, w), weights (*batch, h - 1, w - 1)) -> y (*batch, h, w)``, the denoised picture::

        y = argmin_u  1/2 |u - x|^2 + sum_ij weights_ij |(u_{i+1,j} - u_ij, u_{i,j+1} - u_ij)|

    Parameters
    ----------
    height, width : int
        At least 2 each. The weights must not be negative.

    Raises
    ------
    DeclarationError
        A side below 2.

    Examples
    --------
    >>> PictureTotalVariation(2, 2)(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.zeros(1, 1))
    tensor([[0., 1.],
            [0., 1.]])
    """

    def __init__(self, height: int, width: int):
        if min(height, width) < 2:
            raise DeclarationError(f"height and width must be at least 2, got {height} and {width}.")
        y, x = cp.Variable((height, width)), cp.Parameter((height, width), name="x")
        weights = cp.Parameter((height - 1, width - 1), nonneg=True, name="weights")
        down, right = y[1:, :-1] - y[:-1, :-1], y[:-1, 1:] - y[:-1, :-1]
        length = cp.norm(cp.vstack([cp.vec(down, order="F"), cp.vec(right, order="F")]), 2, axis=0)
        objective = 0.5 * cp.sum_squares(y - x) + cp.vec(weights, order="F") @ length
        super().__init__(cp.Problem(cp.Minimize(objective)), [x, weights], y)


# ---------------------------------------------------------------- the catalogue's entries


def _experts() -> FieldOfExperts:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FieldOfExperts(2, 2, tolerance=1e-8).double()


def _sample(batch: int, generator: torch.Generator) -> Inputs:
    """Noisy pictures of 4 x 3 pixels, some trusted more than others."""
    x = torch.rand(batch, 4, 3, generator=generator, dtype=torch.float64)
    return x, 0.5 + torch.rand(batch, 4, 3, generator=generator, dtype=torch.float64)


def _by_scipy(x: Tensor, m: Tensor) -> Tensor:
    """BFGS on the energy as a sum over windows, with a matrix that reads them."""
    from scipy.optimize import minimize

    node = _experts()
    filters = node.energy.filters.detach().numpy()
    filters = filters - filters.mean((1, 2), keepdims=True)
    weights = np.exp(node.energy.log_weights.detach().numpy())
    height, width = x.shape[1:]
    places = np.arange(height * width).reshape(height, width)
    rows = []
    for i, j, k in np.ndindex(height - 1, width - 1, len(filters)):
        rows.append(np.zeros(height * width))
        rows[-1][places[i : i + 2, j : j + 2]] = filters[k]
    read, weight = np.stack(rows), np.tile(weights, (height - 1) * (width - 1))

    def one(x: np.ndarray, m: np.ndarray) -> np.ndarray:
        def energy(u: np.ndarray) -> tuple[float, np.ndarray]:
            z = read @ u
            value = 0.5 * (m * (u - x) ** 2).sum() + (weight * np.log1p(z * z)).sum()
            return value, m * (u - x) + (weight * 2 * z / (1 + z * z)) @ read

        return minimize(energy, x, jac=True, method="BFGS", options={"gtol": 1e-9}).x.reshape(height, width)

    pairs = zip(x.flatten(1).numpy(), m.flatten(1).numpy(), strict=True)
    return torch.from_numpy(np.stack([one(a, b) for a, b in pairs]))


def _sample_weighted(batch: int, generator: torch.Generator) -> Inputs:
    x = torch.randn(batch, 4, 4, generator=generator, dtype=torch.float64)
    return x, 0.1 + 0.3 * torch.rand(batch, 3, 3, generator=generator, dtype=torch.float64)


def _by_projection(x: Tensor, weights: Tensor) -> Tensor:
    """The dual, ``|x - D'q|^2`` over ``|q_ij| <= weights_ij``, by projected gradients (Chambolle 2004)."""
    down, right = torch.zeros_like(weights), torch.zeros_like(weights)
    pad = nn.functional.pad
    for _ in range(10_000):
        y = x + pad(down + right, (0, 1, 0, 1)) - pad(down, (0, 1, 1, 0)) - pad(right, (1, 0, 0, 1))
        down = down + 0.125 * (y[:, 1:, :-1] - y[:, :-1, :-1])
        right = right + 0.125 * (y[:, :-1, 1:] - y[:, :-1, :-1])
        share = (weights / (down.square() + right.square()).sqrt()).clamp(max=1)
        down, right = share * down, share * right
    return y


ENTRIES = (
    Entry(
        name="field-of-experts",
        title="pictures restored by a random field with learned filters",
        kind="nonlinear",
        source="Samuel & Tappen, CVPR 2009",
        build=_experts,
        sample=_sample,
        reference=_by_scipy,
        example="17_denoising",
        tags=frozenset({"denoising", "weights", "any size"}),
    ),
    Entry(
        name="picture-total-variation",
        title="denoising of pictures by weighted total variation",
        kind="conic",
        source="Ochs, Ranftl, Brox & Pock, 2016",
        build=lambda: PictureTotalVariation(4, 4),
        sample=_sample_weighted,
        reference=_by_projection,
        example="17_denoising",
        tags=frozenset({"denoising"}),
    ),
)

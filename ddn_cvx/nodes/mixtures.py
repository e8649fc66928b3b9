"""Expectation maximisation as a fixed point: a mixture of Gaussians fitted to points, differentiable in the points.

    r_ik = p_k N(x_i; m_k, v_k I) / sum_l p_l N(x_i; m_l, v_l I)                         (expectation)
    p_k = sum_i r_ik / N,   m_k = sum_i r_ik x_i / sum_i r_ik,
    v_k = sum_i r_ik |x_i - m_k|^2 / (d sum_i r_ik) + floor                              (maximisation)

Dempster, Laird & Rubin (JRSS B 1977). The fit is where both steps together change nothing. Accelerated steps lead to a
maximum of the likelihood; the layer finishes by Anderson's and Newton's methods, and differentiates the equation instead of
the steps. The unknowns are the means and the logarithms of shares and variances.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, FixedPoint
from ddn_cvx.nodes.checks import check_shapes
from ddn_cvx.nodes.entry import Entry, Inputs

_EMPTY = 1e-14  # added to the number of points of a component


class GaussianMixture(nn.Module):
    """``(x (*batch, N, d), start (*batch, K, d))`` -> shares ``(*batch, K)``, means ``(*batch, K, d)``, variances
    ``(*batch, K)`` of K round Gaussians; any N.

    ``start`` holds the means at which expectation maximisation begins. It decides which maximum of the likelihood is found,
    and in which order the components come; it has no derivative.

    Parameters
    ----------
    components, dimension : int
        K and d.
    floor : float
        Added to every variance, in the squared unit of x: no component shrinks to a single point.
    steps : int
        Steps of expectation maximisation before the layer takes over, at most; they stop earlier where they arrive.

    Raises
    ------
    DeclarationError
        A size below one, a floor that is not above zero, or a negative number of steps.
    InputError
        Inputs of other shapes.
    SolverError
        No fixed point was found, or the points are not finite.

    Examples
    --------
    >>> x = torch.tensor([[-5.1], [-4.9], [4.9], [5.1]])
    >>> shares, means, variances = GaussianMixture(2, 1, floor=0.01)(x, torch.tensor([[-1.0], [1.0]]))
    >>> means.squeeze(-1), variances
    (tensor([-5.,  5.]), tensor([0.0200, 0.0200]))
    """

    def __init__(self, components: int, dimension: int, floor: float = 1e-3, steps: int = 1500):
        super().__init__()
        if min(components, dimension) < 1:
            raise DeclarationError(f"components and dimension must be at least 1, got {components!r} and {dimension!r}.")
        if not floor > 0:
            raise DeclarationError(f"floor must be above 0, got {floor!r}.")
        if steps < 0:
            raise DeclarationError(f"steps must not be negative, got {steps!r}.")
        self.components, self.dimension, self.floor, self.steps = components, dimension, floor, steps
        variable = {"log_shares": (components,), "means": (components, dimension), "log_variances": (components,)}
        self.layer = DeclarativeLayer(
            FixedPoint(variable, self._step, batched=True, initial=self._climb, parameters="batched")
        )

    def forward(self, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shares, means and variances, in the dtype of x."""
        K, d = self.components, self.dimension
        check_shapes(x=(x, ("N", d)), start=(start, (K, d)))
        batch = torch.broadcast_shapes(x.shape[:-2], start.shape[:-2])
        points = x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:])
        begin = start.to(x.dtype).detach().expand(*batch, K, d).reshape(-1, K, d)
        found = self.layer(points.double(), begin.double())
        parts = (found["log_shares"].exp(), found["means"], found["log_variances"].exp())
        shares, means, variances = (part.to(x.dtype).reshape(*batch, *part.shape[1:]) for part in parts)
        return shares, means, variances

    def _step(self, y: dict[str, Tensor], x: Tensor, start: Tensor) -> dict[str, Tensor]:
        r = responsibilities(x, y["log_shares"].exp(), y["means"], y["log_variances"].exp())
        return self._maximise(x, r)

    def _maximise(self, x: Tensor, r: Tensor) -> dict[str, Tensor]:
        """``x (B, N, d)`` and responsibilities ``(B, N, K)`` -> the unknowns."""
        count = r.sum(-2) + _EMPTY
        means = r.mT @ x / count.unsqueeze(-1)
        spread = (r * _squared(x, means)).sum(-2) / (self.dimension * count)
        return {"log_shares": (count / x.shape[-2]).log(), "means": means, "log_variances": (spread + self.floor).log()}

    def _climb(self, x: Tensor, start: Tensor) -> dict[str, Tensor]:
        """Steps along which the likelihood does not fall, from means alone: two plain ones, then an extrapolation of both
        (SQUAREM; Varadhan & Roland, Scandinavian Journal of Statistics 2008), kept where it is likelier than they are.
        """
        middle = x.mean(-2, keepdim=True)
        variance = (x - middle).square().mean((-1, -2)).unsqueeze(-1).expand(len(x), self.components) + self.floor
        y = {"log_shares": torch.zeros_like(variance), "means": start, "log_variances": variance.log()}
        for cycle in range(self.steps // 3):
            one = self._step(y, x, start)
            two = self._step(one, x, start)
            first, second = _minus(one, y), _minus(_minus(two, one), _minus(one, y))
            length = (_norm(first) / _norm(second).clamp(min=1e-300)).clamp(min=1.0)
            ahead = {k: y[k] + 2 * _like(length, v) * v + _like(length, v) ** 2 * second[k] for k, v in first.items()}
            ahead = self._step({k: torch.where(v.isfinite(), v, two[k]) for k, v in ahead.items()}, x, start)
            better = self._likelihood(ahead, x) > self._likelihood(two, x)
            y = {k: torch.where(_like(better, v), ahead[k], v) for k, v in two.items()}
            if cycle % 5 == 4 and bool((_norm(first) < 1e-10 * (1 + _norm(y))).all()):
                break
        return self._step(y, x, start)

    @staticmethod
    def _likelihood(y: dict[str, Tensor], x: Tensor) -> Tensor:
        return log_likelihood(x, y["log_shares"].exp(), y["means"], y["log_variances"].exp()).mean(-1)


def _minus(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: a[k] - b[k] for k in a}


def _norm(y: dict[str, Tensor]) -> Tensor:
    """Euclidean, ``(B,)``."""
    return torch.stack([v.flatten(1).square().sum(-1) for v in y.values()]).sum(0).sqrt()


def _like(t: Tensor, other: Tensor) -> Tensor:
    return t.reshape(-1, *(1,) * (other.ndim - 1))


def responsibilities(x: Tensor, shares: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """``x (*batch, N, d)`` and a mixture as the node returns it -> probabilities of the components ``(*batch, N, K)``."""
    return _log_joint(x, shares, means, variances).softmax(-1)


def log_likelihood(x: Tensor, shares: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """``x (*batch, N, d)`` and a mixture as the node returns it -> log density of each point ``(*batch, N)``."""
    return _log_joint(x, shares, means, variances).logsumexp(-1)


def _log_joint(x: Tensor, shares: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    v = variances.unsqueeze(-2)
    density = -0.5 * _squared(x, means) / v - 0.5 * x.shape[-1] * (2 * math.pi * v).log()
    return density + shares.log().unsqueeze(-2)


def _squared(x: Tensor, means: Tensor) -> Tensor:
    """Squared distances ``(*batch, N, K)``."""
    return (x.unsqueeze(-2) - means.unsqueeze(-3)).square().sum(-1)


# ---------------------------------------------------------------- the catalogue's entries


def _sample(batch: int, generator: torch.Generator) -> Inputs:
    """Two overlapping groups in the plane."""
    middle = torch.tensor([[0.0, 0.0], [2.5, 0.0]], dtype=torch.float64)
    start = middle + 0.3 * torch.randn(batch, 2, 2, generator=generator, dtype=torch.float64)
    return middle.repeat(4, 1) + 0.8 * torch.randn(batch, 8, 2, generator=generator, dtype=torch.float64), start


def _scikit(x: Tensor, start: Tensor) -> Inputs:
    """scikit-learn's mixture, which begins at the same means, shares and variances."""
    from sklearn.mixture import GaussianMixture as Reference

    def one(x: np.ndarray, start: np.ndarray) -> list[np.ndarray]:
        variance = (x - x.mean(0)).var() + 0.05
        model = Reference(
            len(start), covariance_type="spherical", tol=1e-15, max_iter=20000, reg_covar=0.05, means_init=start,
            weights_init=np.full(len(start), 1 / len(start)), precisions_init=np.full(len(start), 1 / variance),
        ).fit(x)  # fmt: skip
        return [model.weights_, model.means_, model.covariances_]

    found = [one(*pair) for pair in zip(x.numpy(), start.numpy(), strict=True)]
    return tuple(torch.from_numpy(np.stack(part)) for part in zip(*found, strict=True))


ENTRIES = (
    Entry(
        name="gaussian-mixture",
        title="mixture of Gaussians, the fixed point of expectation maximisation",
        kind="fixed point",
        source="Dempster, Laird & Rubin, JRSS B 1977",
        build=lambda: GaussianMixture(2, 2, floor=0.05),
        sample=_sample,
        reference=_scikit,
        example="20_soft_clustering",
        tolerance=1e-6,  # of scikit-learn's iteration
        tags=frozenset({"clustering"}),
    ),
)

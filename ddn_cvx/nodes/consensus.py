"""Fits that ignore outliers: RANSAC finds them, the optimality conditions differentiate them.

    y = argmin_u  1/2 sum_i w_i min(|r(u, x_i)|^2, threshold^2)  (+ 1/2 (|u|^2 - 1)^2, where the length of u means nothing)

Fischler & Bolles (CACM 1981) draw minimal samples, solve each, and keep the model with the least cost. None of this is
differentiable, and none of it has to be: it only says where the minimum is (Gould, Hartley & Campbell, TPAMI 2022, section
4.4). Levenberg and Marquardt's method on the points within the threshold leads there, the layer checks that it is one, and
its derivative is that of weighted least squares on these points. Points beyond the threshold have none.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, InputError, TorchProblem
from ddn_cvx.nodes.checks import check_shapes, check_values
from ddn_cvx.nodes.entry import Entry, Inputs

Residual = Callable[[Tensor, Tensor], Tensor]
Minimal = Callable[[Tensor], Tensor]
_STEPS, _DAMPING = 40, (0.0, 1e-4, 1e-2, 1.0, 1e2, 1e4)


class Consensus(nn.Module):
    """``(x (*batch, N, d), weights (*batch, N))`` -> the model ``(*batch, p)`` with the least truncated cost; any N >= k.

    Weights must not be negative. They are relative to their mean, and samples are drawn by them.

    Parameters
    ----------
    size : int
        p.
    residual : callable
        ``(model (p,), x (N, d)) -> (N, e)``, for one instance, differentiable in both.
    minimal : callable
        ``(..., k, d) -> (..., p)``: the model through k points, by any means; NaN or infinite where there is none.
    sample : int
        k.
    threshold : float
        Length of a residual beyond which a point no longer counts.
    homogeneous : bool
        The residuals do not depend on the length of the model, which is then held at one.
    hypotheses : int
        Samples that are drawn, the same ones whenever N is the same.

    Raises
    ------
    DeclarationError
        A number that is not above zero.
    InputError
        Inputs of other shapes.
    SolverError
        No model was found, or the points do not determine it.

    Examples
    --------
    >>> node = Consensus(1, lambda m, x: x - m, lambda sample: sample[..., 0, :], sample=1, threshold=0.5)
    >>> node(torch.tensor([[1.0], [1.2], [50.0]]), torch.ones(3))
    tensor([1.1000])
    """

    def __init__(
        self,
        size: int,
        residual: Residual,
        minimal: Minimal,
        sample: int,
        threshold: float,
        homogeneous: bool = False,
        hypotheses: int = 128,
    ):
        super().__init__()
        for name, value in (("size", size), ("sample", sample), ("threshold", threshold), ("hypotheses", hypotheses)):
            if not value > 0:
                raise DeclarationError(f"{name} must be above 0, got {value!r}.")
        self.residual, self.minimal, self.homogeneous = residual, minimal, homogeneous
        self.sample, self.square, self.hypotheses = sample, threshold**2, hypotheses
        self.layer = DeclarativeLayer(TorchProblem((size,), objective=self._cost, solve=self._search, parameters="batched"))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """The model, in the dtype of x."""
        check_shapes(x=(x, ("N", "d")), weights=(weights, ("N",)))
        if x.shape[-2] < self.sample:
            raise InputError(f"A model takes {self.sample} points at least, got x {tuple(x.shape)}.")
        weights = check_values(weights, ~(weights < 0), "weights must not be negative.")
        batch = torch.broadcast_shapes(x.shape[:-2], weights.shape[:-1])
        points = x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:])
        w = weights.to(x.dtype)
        w = (w / w.mean(-1, keepdim=True)).expand(*batch, w.shape[-1]).reshape(-1, w.shape[-1])
        model: Tensor = self.layer(points, w)
        return model.reshape(*batch, model.shape[-1])

    def _cost(self, u: Tensor, x: Tensor, w: Tensor) -> Tensor:
        squared = self.residual(u, x).square().sum(-1)
        length = 0.5 * (u.square().sum() - 1).square() if self.homogeneous else 0.0
        return 0.5 * (w * squared.clamp(max=self.square)).sum() / x.shape[0] + length

    @torch.no_grad()
    def _search(self, x: Tensor, w: Tensor) -> Tensor:
        """RANSAC, then least squares on the points within the threshold, which may change."""
        cost = torch.vmap(torch.vmap(self._cost, (0, None, None)))
        finite = (x.isfinite().all(-1).all(-1) & w.isfinite().all(-1)).reshape(-1, 1, 1)
        x, w = torch.where(finite, x, 0.0), torch.where(finite.squeeze(-1), w, 1.0)
        u = self._hypotheses(x, w)
        best = _ranked(cost(u, x, w)).argmin(1)
        u = u[torch.arange(len(u), device=u.device), best]
        u = torch.where(u.isfinite().all(-1, keepdim=True), u, 0.5)
        for _ in range(_STEPS):
            tried = torch.cat((u.unsqueeze(1), self._steps(u, x, w)), 1)
            best = _ranked(cost(tried, x, w)).argmin(1)
            if not bool((best > 0).any()):
                break
            u = tried[torch.arange(len(u), device=u.device), best]
        return torch.where(finite.squeeze(-1), u, torch.nan)

    def _hypotheses(self, x: Tensor, w: Tensor) -> Tensor:
        """Models ``(B, hypotheses, p)`` of samples drawn without replacement, by weight (Gumbel's trick)."""
        generator = torch.Generator().manual_seed(0)
        uniform = torch.rand(self.hypotheses, x.shape[1], generator=generator, dtype=x.dtype).clamp(1e-12, 1 - 1e-12)
        luck = -(-uniform.log()).log().to(x.device)
        chosen = (luck + w.clamp(min=1e-30).log().unsqueeze(1)).topk(self.sample, -1).indices  # (B, hypotheses, k)
        points = x.unsqueeze(1).expand(-1, self.hypotheses, -1, -1)
        models = self.minimal(points.gather(2, chosen.unsqueeze(-1).expand(*chosen.shape, x.shape[-1])))
        return models / models.norm(dim=-1, keepdim=True) if self.homogeneous else models

    def _steps(self, u: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """Points one Gauss-Newton step further, ``(B, steps, p)``, with different damping."""

        def weighted(u: Tensor, x: Tensor, w: Tensor) -> Tensor:
            r = self.residual(u, x)
            counts = w * (r.square().sum(-1) < self.square) / x.shape[0]
            flat = (counts.sqrt().unsqueeze(-1) * r).flatten()
            return torch.cat((flat, (u.square().sum() - 1).unsqueeze(0))) if self.homogeneous else flat

        r, J = torch.vmap(weighted)(u, x, w), torch.vmap(torch.func.jacfwd(weighted))(u, x, w)
        H, slope = J.mT @ J, (J.mT @ r.unsqueeze(-1)).unsqueeze(1)
        size = H.diagonal(dim1=-1, dim2=-2).amax(-1).clamp(min=1e-30).reshape(-1, 1, 1, 1)
        damping = H.new_tensor(_DAMPING).reshape(1, -1, 1, 1) + 1e-14
        L, _ = torch.linalg.cholesky_ex(
            H.unsqueeze(1) + size * damping * torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
        )
        step = torch.cholesky_solve(slope.expand(-1, len(_DAMPING), -1, -1), L).squeeze(-1)
        return u.unsqueeze(1) - step.nan_to_num(0.0, 0.0, 0.0)


class LineFit(nn.Module):
    """``(x (*batch, N, 2), weights (*batch, N))`` -> ``(*batch, 3)``: ``(n, c)`` of the line ``n'x + c = 0``, ``|n| = 1``.

    Parameters
    ----------
    threshold : float
        Distance from the line beyond which a point no longer counts.
    hypotheses : int

    Raises
    ------
    DeclarationError, InputError, SolverError
        As ``Consensus``.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 9.0]])
    >>> LineFit(0.5)(x, torch.ones(4)).abs()
    tensor([0., 1., 1.])
    """

    def __init__(self, threshold: float, hypotheses: int = 128):
        super().__init__()
        self.consensus = Consensus(3, _distance, _through, 2, threshold, homogeneous=True, hypotheses=hypotheses)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """The line, in the dtype of x; of n the entry that is larger in size is positive."""
        check_shapes(x=(x, ("N", 2)))
        line: Tensor = self.consensus(x, weights)
        line = line / line[..., :2].norm(dim=-1, keepdim=True)
        return _upright(line, line[..., :2])


class HomographyFit(nn.Module):
    """``(x (*batch, N, 2), y (*batch, N, 2), weights (*batch, N))`` -> ``H (*batch, 3, 3)`` of norm 1: y is ``H (x, 1)``.

    Parameters
    ----------
    threshold : float
        Distance from y to the image of x beyond which a pair no longer counts.
    hypotheses : int

    Raises
    ------
    DeclarationError, InputError, SolverError
        As ``Consensus``. Coordinates should be of order one.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.2]])
    >>> H = HomographyFit(0.1)(x, 2 * x, torch.ones(5))
    >>> H[0, 0] / H[2, 2]
    tensor(2.0000)
    """

    def __init__(self, threshold: float, hypotheses: int = 128):
        super().__init__()
        self.consensus = Consensus(9, _transfer, _four_pairs, 4, threshold, homogeneous=True, hypotheses=hypotheses)

    def forward(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """H, in the dtype of x; the entry that is largest in size is positive."""
        check_shapes(x=(x, ("N", 2)), y=(y, ("N", 2)))
        h: Tensor = self.consensus(torch.cat(torch.broadcast_tensors(x, y), -1), weights)
        return _upright(h, h).unflatten(-1, (3, 3))


def transfer(H: Tensor, x: Tensor) -> Tensor:
    """Where a homography ``(*batch, 3, 3)`` takes points ``(*batch, N, 2)``."""
    image = nn.functional.pad(x, (0, 1), value=1.0) @ H.mT
    return image[..., :2] / image[..., 2:]


def _upright(model: Tensor, of: Tensor) -> Tensor:
    return model * of.gather(-1, of.detach().abs().argmax(-1, keepdim=True)).sign().detach()


def _distance(line: Tensor, x: Tensor) -> Tensor:
    return ((x @ line[:2] + line[2]) / line[:2].norm()).unsqueeze(-1)


def _through(points: Tensor) -> Tensor:
    """The line through two points ``(..., 2, 2)``."""
    along = points[..., 1, :] - points[..., 0, :]
    normal = torch.stack((-along[..., 1], along[..., 0]), -1)
    return torch.cat((normal, -(normal * points[..., 0, :]).sum(-1, keepdim=True)), -1)


def _transfer(h: Tensor, pairs: Tensor) -> Tensor:
    return transfer(h.reshape(3, 3), pairs[:, :2]) - pairs[:, 2:]


def _four_pairs(pairs: Tensor) -> Tensor:
    """The homography of four pairs ``(..., 4, 4)``: from the first four points to a projective basis and from there on."""
    x, y = (nn.functional.pad(pairs[..., part], (0, 1), value=1.0) for part in (slice(0, 2), slice(2, 4)))
    p, q, r = _basis(x).unbind(-1)
    adjugate = torch.stack([torch.linalg.cross(*two) for two in ((q, r), (r, p), (p, q))], -2)
    return (_basis(y) @ adjugate).flatten(-2)


def _basis(points: Tensor) -> Tensor:
    """Columns are three of four points ``(..., 4, 3)``, scaled to sum to the fourth."""
    p, q, r, s = points.unbind(-2)
    scale = [(torch.linalg.cross(a, b) * c).sum(-1, keepdim=True) for a, b, c in ((q, r, s), (r, p, s), (p, q, s))]
    return torch.stack([k * point for k, point in zip(scale, (p, q, r), strict=True)], -1)


def _ranked(cost: Tensor) -> Tensor:
    return torch.where(cost.isfinite(), cost, torch.inf)


# ---------------------------------------------------------------- the catalogue's entries


def _line_sample(batch: int, generator: torch.Generator) -> Inputs:
    """Five points near a line, and one far from it."""
    along = torch.linspace(-1, 1, 6, dtype=torch.float64).expand(batch, 6)
    slope = 0.5 * torch.randn(batch, 1, generator=generator, dtype=torch.float64)
    across = slope * along + 0.05 * torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    across[:, 1] += 2.0
    return torch.stack((along, across), -1), 0.5 + torch.rand(batch, 6, generator=generator, dtype=torch.float64)


def _inlier_line(x: Tensor, w: Tensor) -> Tensor:
    """Weighted total least squares on the points that the sample means to be on the line."""
    keep = [0, 2, 3, 4, 5]
    x, w = x[:, keep], w[:, keep].unsqueeze(-1)
    middle = (w * x).sum(-2, keepdim=True) / w.sum(-2, keepdim=True)
    n = torch.linalg.svd(w.sqrt() * (x - middle)).Vh[:, -1]
    line = torch.cat((n, -(n * middle.squeeze(-2)).sum(-1, keepdim=True)), -1)
    return _upright(line, n)


def _pair_sample(batch: int, generator: torch.Generator) -> Inputs:
    """Eight pairs, of which one is wrong."""
    corners = torch.tensor([[-1, -1], [1, -1], [-1, 1], [1, 1], [0, 0], [1, 0], [-1, 0], [0, 1]], dtype=torch.float64)
    x = corners + 0.1 * torch.randn(batch, 8, 2, generator=generator, dtype=torch.float64)
    H = torch.eye(3, dtype=torch.float64) + 0.1 * torch.randn(batch, 3, 3, generator=generator, dtype=torch.float64)
    y = transfer(H, x) + 0.01 * torch.randn(batch, 8, 2, generator=generator, dtype=torch.float64)
    y[:, 4] += 1.5
    return x, y, 0.5 + torch.rand(batch, 8, generator=generator, dtype=torch.float64)


def _inlier_homography(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """scipy's least squares on the right pairs, with the last entry held at one."""
    from scipy.optimize import least_squares

    def one(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        def residual(h: np.ndarray) -> np.ndarray:
            image = np.c_[x, np.ones(len(x))] @ np.r_[h, 1.0].reshape(3, 3).T
            return (np.sqrt(w)[:, None] * (image[:, :2] / image[:, 2:] - y)).ravel()

        h = np.r_[least_squares(residual, np.eye(3).ravel()[:8], xtol=1e-15, ftol=1e-15, gtol=1e-15).x, 1.0]
        return (h / np.linalg.norm(h) * np.sign(h[np.abs(h).argmax()])).reshape(3, 3)

    keep = [0, 1, 2, 3, 5, 6, 7]
    rows = zip(x[:, keep].numpy(), y[:, keep].numpy(), w[:, keep].numpy(), strict=True)
    return torch.from_numpy(np.stack([one(*row) for row in rows]))


_SOURCE = "Fischler & Bolles, CACM 1981; Gould, Hartley & Campbell, TPAMI 2022"
ENTRIES = (
    Entry(
        name="ransac-line",
        title="line through points with outliers, found by RANSAC",
        kind="nonlinear",
        source=_SOURCE,
        build=lambda: LineFit(0.3, hypotheses=40),
        sample=_line_sample,
        reference=_inlier_line,
        example="19_ransac",
        tolerance=1e-8,
        tags=frozenset({"robust", "any size"}),
    ),
    Entry(
        name="ransac-homography",
        title="homography between points with wrong pairs, found by RANSAC",
        kind="nonlinear",
        source=_SOURCE,
        build=lambda: HomographyFit(0.2, hypotheses=60),
        sample=_pair_sample,
        reference=_inlier_homography,
        example="19_ransac",
        tolerance=1e-6,  # of scipy's finite differences
        second_order=False,  # checked on the line, which takes a tenth of the time
        tags=frozenset({"robust", "any size"}),
    ),
)

"""Rank pooling: what a sequence is, by the direction in which it evolves.

    u = argmin  1/2 |u|^2 + C sum_t loss(u'v_t - t),     loss(r) = max(|r| - epsilon, 0)  or half the square of it

    U = argmin  1/2 sum_t |v_t - U U'v_t|^2 + C/2 sum_{s<t} max(|U'v_s|^2 + margin - |U'v_t|^2, 0)^2    subject to  U'U = I

The first regresses the number of a frame on the frame (support vector regression): Fernando & Gould, "Learning end-to-end
video classification with rank-pooling" (ICML 2016). The second is a subspace that describes the frames, in which they have
more and more energy: Cherian, Fernando, Harandi & Gould, "Generalized rank pooling for activity recognition" (CVPR 2017),
here with a squared hinge. For C = 0 it is principal component analysis.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, MultiStart, NonlinearAuto, TorchProblem
from ddn_cvx.nodes.checks import check_shapes
from ddn_cvx.nodes.entry import Entry


class RankPooling(DeclarativeLayer[Tensor]):
    """``v (*batch, T, d) -> u (*batch, d)``, the direction along which the frames of a sequence are in order.

    Parameters
    ----------
    frames, features : int
        T and d.
    C : float
        What an error costs, against the length of u.
    epsilon : float
        Errors up to so many frames cost nothing.
    squared : bool
        Half the square of the excess over epsilon, as by Fernando & Gould, rather than the excess itself.

    Raises
    ------
    DeclarationError
        A size below one, C not above zero, or a negative epsilon.

    Notes
    -----
    The frames are numbered from 1 to T, and there is no intercept: do not subtract the mean of the frames.
    With ``squared`` the derivative changes continuously but for frames that enter or leave the tube of width epsilon.

    Examples
    --------
    >>> RankPooling(3, 1, C=10.0, epsilon=0.0)(torch.tensor([[1.0], [2.0], [3.0]]))
    tensor([1.])
    """

    def __init__(self, frames: int, features: int, C: float = 1.0, epsilon: float = 0.1, squared: bool = False):
        _check(frames=frames, features=features)
        if not C > 0 or not epsilon >= 0:
            raise DeclarationError(f"C must be above 0 and epsilon at least 0, got {C!r} and {epsilon!r}.")
        u, excess, v = cp.Variable(features), cp.Variable(frames), cp.Parameter((frames, features), name="v")
        error = v @ u - np.arange(1.0, frames + 1)
        tube = [error <= excess + epsilon, error >= -excess - epsilon]
        if squared:
            cost = 0.5 * cp.sum_squares(excess)
        else:
            cost, tube = cp.sum(excess), [*tube, excess >= 0]
        super().__init__(cp.Problem(cp.Minimize(0.5 * cp.sum_squares(u) + C * cost), tube), [v], u)


class SubspacePooling(nn.Module):
    """``v (*batch, T, d) -> U (*batch, d, k)``, orthonormal axes of a subspace in which the energy of the frames grows.

    Only the subspace matters to the objective. The axes are the principal ones of the frames within it, the strongest first,
    and point to where the frames go: ``sum_t (t - mean t) U'v_t >= 0``. This makes the answer unique, and differentiable
    where no two axes are equally strong.

    Parameters
    ----------
    frames, features, dimension : int
        T, d and k, at most d.
    C : float
        What a pair of frames in the wrong order costs. Zero: principal component analysis (of frames with mean zero).
    margin : float
        By how much the energy of a frame shall exceed that of each earlier one, in squared units of v.
    starts : int
        The problem is not convex. The search starts from the principal components, and from so many places in all: more find
        a better minimum.

    Raises
    ------
    DeclarationError
        A size or number below one, more axes than features, or a negative C or margin.
    InputError
        v has another shape.
    SolverError
        No minimum was found.

    Examples
    --------
    >>> frames = torch.tensor([[-1.0, 0.0], [0.0, 0.1], [1.0, 0.0]])
    >>> SubspacePooling(3, 2, 1, C=0.0)(frames).round(decimals=3)
    tensor([[1.],
            [0.]])
    """

    def __init__(self, frames: int, features: int, dimension: int, C: float = 1.0, margin: float = 0.1, starts: int = 1):
        super().__init__()
        _check(frames=frames, features=features, dimension=dimension, starts=starts)
        if dimension > features:
            raise DeclarationError(f"dimension must not be above features, got {dimension} and {features}.")
        if not C >= 0 or not margin >= 0:
            raise DeclarationError(f"C and margin must be at least 0, got {C!r} and {margin!r}.")
        self.frames, self.features = frames, features
        upper, strict = torch.triu_indices(dimension, dimension), torch.triu_indices(dimension, dimension, 1)
        earlier, later = torch.triu_indices(frames, frames, 1)

        def objective(U: Tensor, v: Tensor) -> Tensor:
            energy = (v @ U).square().sum(-1)
            lost = v.square().sum(-1) - energy
            excess = (energy[earlier] + margin - energy[later]).clamp(min=0)
            return 0.5 * lost.sum() + 0.5 * C * excess.square().sum()

        def axes(U: Tensor, v: Tensor) -> list[Tensor]:
            along = v @ U
            unit = U.mT @ U - torch.eye(dimension, dtype=U.dtype, device=U.device)
            return [0.5 * unit[upper[0], upper[1]], (along.mT @ along)[strict[0], strict[1]]]

        self.layer = DeclarativeLayer(
            TorchProblem(
                (features, dimension),
                objective,
                equality=axes,
                initial=lambda v: torch.linalg.eigh(v.mT @ v)[1].flip(-1)[:, :dimension],
                parameters=[(frames, features)],
            ),
            solver=None if starts == 1 else MultiStart(NonlinearAuto(), starts),
        )

    def forward(self, v: Tensor) -> Tensor:
        """The axes, in the dtype of v."""
        check_shapes(v=(v, (self.frames, self.features)))
        return oriented(self.layer(v), v)


def oriented(U: Tensor, v: Tensor) -> Tensor:
    """The columns of ``U (*batch, d, k)`` by decreasing energy of the frames ``v (*batch, T, d)``, late ones positive."""
    along = v @ U
    order = along.square().sum(-2).argsort(-1, descending=True).unsqueeze(-2)
    U, along = U.gather(-1, order.expand_as(U)), along.gather(-1, order.expand_as(along))
    count = v.shape[-2]
    time = torch.arange(count, dtype=v.dtype, device=v.device) - 0.5 * (count - 1)
    grows = (time.unsqueeze(-1) * along).sum(-2, keepdim=True) >= 0
    return torch.where(grows, U, -U)


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise DeclarationError(f"{name} must be at least 1, got {size!r}.")


# ---------------------------------------------------------------- the catalogue's entries


def _drifting(batch: int, generator: torch.Generator) -> tuple[Tensor]:
    """Six frames of four features that grow unsteadily."""
    number = torch.arange(1.0, 7.0, dtype=torch.float64).view(1, 6, 1)
    drift = number * torch.randn(batch, 1, 4, generator=generator, dtype=torch.float64) / 3
    return (drift + torch.randn(batch, 6, 4, generator=generator, dtype=torch.float64),)


def _centred(batch: int, generator: torch.Generator) -> tuple[Tensor]:
    (v,) = _drifting(batch, generator)
    return (v - v.mean(1, keepdim=True),)


def _scikit_svr(squared: bool, v: Tensor) -> Tensor:
    """Coordinate ascent of the dual problem. scikit-learn's squared loss is not halved."""
    from sklearn.svm import LinearSVR

    loss = "squared_epsilon_insensitive" if squared else "epsilon_insensitive"
    model = LinearSVR(epsilon=0.1, C=0.5 if squared else 1.0, loss=loss, fit_intercept=False, tol=1e-9, max_iter=10**6)
    number = np.arange(1.0, v.shape[1] + 1)
    return torch.from_numpy(np.stack([model.fit(one, number).coef_ for one in v.numpy()]))


def _scikit_pca(v: Tensor) -> Tensor:
    from sklearn.decomposition import PCA

    axes = np.stack([PCA(2).fit(one).components_.T for one in v.numpy()])
    return oriented(torch.from_numpy(axes), v)


def _descend(v: Tensor) -> Tensor:
    """BFGS over free matrices, of which the objective takes an orthonormal basis; the best of ten starts."""
    from scipy.optimize import minimize

    def axes(free: Tensor, frames: Tensor) -> Tensor:
        basis = torch.linalg.qr(free.view(-1, 2)).Q
        return basis @ torch.linalg.eigh((frames @ basis).mT @ (frames @ basis))[1]

    def best(frames: Tensor) -> Tensor:
        def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
            free = torch.from_numpy(flat).requires_grad_()
            energy = (frames @ torch.linalg.qr(free.view(-1, 2)).Q).square().sum(-1)
            excess = (energy.unsqueeze(1) + 0.1 - energy).clamp(min=0).triu(1)
            value = 0.5 * (excess.square().sum() - energy.sum())
            return value.item(), torch.autograd.grad(value, free)[0].numpy()

        starts = np.random.default_rng(0).normal(size=(10, 2 * frames.shape[1]))
        options = {"gtol": 1e-10, "maxiter": 2000}
        found = [minimize(cost, start, jac=True, method="BFGS", options=options) for start in starts]
        return axes(torch.from_numpy(min(found, key=lambda one: one.fun).x), frames)

    return oriented(torch.stack([best(frames) for frames in v]), v)


def _rank(squared: bool) -> Entry:
    return Entry(
        name="rank-pooling" + ("-squared" if squared else ""),
        title="rank pooling of a sequence by support vector regression" + (", squared loss" if squared else ""),
        kind="conic",
        source="Fernando & Gould, ICML 2016",
        build=partial(RankPooling, 6, 4, squared=squared),
        sample=_drifting,
        reference=partial(_scikit_svr, squared),
        example="11_rank_pooling",
        tolerance=1e-6,  # of scikit-learn's solver
        tags=frozenset({"pooling", "sequence"}),
    )


def _subspace(name: str, title: str, C: float, reference: Callable[[Tensor], Tensor]) -> Entry:
    return Entry(
        name=name,
        title=title,
        kind="nonlinear",
        source="Cherian, Fernando, Harandi & Gould, CVPR 2017",
        build=partial(SubspacePooling, 6, 4, 2, C=C, starts=4 if C else 1),
        sample=_centred,
        reference=reference,
        example="11_rank_pooling",
        tolerance=1e-6,  # of BFGS
        tags=frozenset({"pooling", "sequence", "manifold"}),
    )


ENTRIES = (
    _rank(squared=False),
    _rank(squared=True),
    _subspace("subspace-pooling", "subspace in which the energy of a sequence grows", 1.0, _descend),
    _subspace("subspace-pooling-pca", "the same without an order: principal components", 0.0, _scikit_pca),
)

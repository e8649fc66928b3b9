"""Classifiers that are trained inside the forward pass, from a few examples of each class.

Lee, Maji, Ravichandran & Soatto, "Meta-Learning with Differentiable Convex Optimization" (CVPR 2019). A linear classifier
``W`` is fitted to the embedded support examples phi_n, and scores the embedded queries: ``W phi``. Both problems are solved
in the dual, whose size is the number of examples whatever the dimension of the embedding:

    W_k = sum_n alpha_nk phi_n,   K_nm = phi_n' phi_m
"""

from __future__ import annotations

from collections.abc import Callable

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer
from ddn_cvx.nodes.checks import check_shapes
from ddn_cvx.nodes.entry import Entry


class _Head(nn.Module):
    """What the heads have alike; ``layer`` maps the kernel ``(*batch, N, N)`` to the vectors alpha_k ``(*batch, N)``."""

    layer: DeclarativeLayer
    labels: Tensor

    def __init__(self, ways: int, shots: int, name: str, weight: float):
        super().__init__()
        if ways < 2 or shots < 1:
            raise DeclarationError(f"ways must be at least 2 and shots at least 1, got {ways} and {shots}.")
        if not weight > 0:
            raise DeclarationError(f"{name} must be above 0, got {weight!r}.")
        self.ways, self.shots = ways, shots
        self.register_buffer("labels", torch.eye(ways).repeat_interleave(shots, 0), persistent=False)  # (N, ways)

    def dual(self, ridge: float) -> tuple[list[cp.Variable], cp.Parameter, cp.Expression]:
        """Variables alpha_k, the kernel, and ``1/2 sum_k alpha_k' (K + ridge I) alpha_k - sum_n alpha_{n, y_n}``."""
        N = self.ways * self.shots
        alpha, K = [cp.Variable(N) for _ in range(self.ways)], cp.Parameter((N, N), PSD=True, name="K")
        energy = sum(cp.quad_form(a, K) + ridge * cp.sum_squares(a) for a in alpha)
        gain = sum(label @ a for a, label in zip(alpha, self.labels.double().numpy().T, strict=True))
        return alpha, K, 0.5 * energy - gain

    def forward(self, support: Tensor, queries: Tensor) -> Tensor:
        """The scores of the queries, in the dtype of the embeddings."""
        check_shapes(support=(support, (self.ways, self.shots, "d")), queries=(queries, ("M", "d")))
        phi = support.flatten(-3, -2).double()  # a kernel in float32 may have eigenvalues below zero
        alpha = torch.stack(self.layer(phi @ phi.mT), -1)
        scores: Tensor = queries.double() @ (phi.mT @ alpha)
        return scores.to(queries.dtype)


class SVMHead(_Head):
    """``(support (*batch, ways, shots, d), queries (*batch, M, d)) -> scores (*batch, M, ways)`` of a multiclass SVM.

    The dual of Crammer & Singer (JMLR 2001), for ``min 1/2 |W|^2 + C sum_n xi_n`` subject to
    ``(W_{y_n} - W_k)' phi_n >= 1 - xi_n`` for all k other than y_n, and ``xi >= 0``:

        minimise  1/2 sum_k alpha_k' (K + ridge I) alpha_k - sum_n alpha_{n, y_n}
        subject to  alpha_{n, y_n} <= C,  alpha_{nk} <= 0 for other k,  sum_k alpha_nk = 0

    Parameters
    ----------
    ways, shots : int
        Number of classes, and of support examples of each.
    C : float
        Price of a violated margin.
    ridge : float
        Keeps alpha unique where there are more examples than dimensions: 0 or above.

    Raises
    ------
    DeclarationError
        Fewer than 2 ways or 1 shot, C not above 0, or a negative ridge.
    InputError
        Another number of ways or shots, or queries of another dimension.

    Examples
    --------
    >>> head = SVMHead(ways=2, shots=1, C=1.0)
    >>> head(torch.tensor([[[0.0, 2.0]], [[0.0, -2.0]]]), torch.tensor([[0.0, 4.0]]))  # the support lies on the margin
    tensor([[ 1.0000, -1.0000]])
    """

    def __init__(self, ways: int, shots: int, C: float = 0.1, ridge: float = 1e-6):
        super().__init__(ways, shots, "C", C)
        if ridge < 0:
            raise DeclarationError(f"ridge must not be negative, got {ridge!r}.")
        alpha, K, objective = self.dual(ridge)
        constraints = [a <= C * label for a, label in zip(alpha, self.labels.double().numpy().T, strict=True)]
        self.layer = DeclarativeLayer(cp.Problem(cp.Minimize(objective), [*constraints, sum(alpha) == 0]), [K], alpha)


class RidgeHead(_Head):
    """``(support (*batch, ways, shots, d), queries (*batch, M, d)) -> scores (*batch, M, ways)`` of ridge regression.

    The dual of ``min 1/2 sum_n |W phi_n - e_{y_n}|^2 + penalty/2 |W|^2``, which regresses on the unit vectors of the labels:

        minimise  1/2 sum_k alpha_k' (K + penalty I) alpha_k - sum_n alpha_{n, y_n}

    Parameters
    ----------
    ways, shots : int
        Number of classes, and of support examples of each.
    penalty : float
        Of the squared weights.

    Raises
    ------
    DeclarationError
        Fewer than 2 ways or 1 shot, or a penalty not above 0.
    InputError
        Another number of ways or shots, or queries of another dimension.

    Examples
    --------
    >>> head = RidgeHead(ways=2, shots=1, penalty=1.0)
    >>> head(torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]]), torch.tensor([[1.0, 1.0]]))
    tensor([[0.5000, 0.3000]])
    """

    def __init__(self, ways: int, shots: int, penalty: float = 1.0):
        super().__init__(ways, shots, "penalty", penalty)
        alpha, K, objective = self.dual(penalty)
        self.layer = DeclarativeLayer(cp.Problem(cp.Minimize(objective)), [K], alpha)


# ---------------------------------------------------------------- the catalogue's entries


def _sample(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three ways, two shots, four dimensions, two queries: classes that overlap."""
    support = torch.randn(batch, 3, 2, 4, generator=generator, dtype=torch.float64)
    support[:, :, :, :3] += torch.eye(3, dtype=torch.float64).unsqueeze(1)
    return support, torch.randn(batch, 2, 4, generator=generator, dtype=torch.float64)


def _each(fit: Callable[[np.ndarray, np.ndarray], np.ndarray], support: Tensor, queries: Tensor) -> Tensor:
    """Scores by the weights ``(ways, d)`` that ``fit`` finds for examples and labels."""
    ways, shots = support.shape[1:3]
    labels = np.repeat(np.arange(ways), shots)
    fitted = [torch.from_numpy(fit(one.flatten(0, 1).numpy(), labels)) for one in support]
    return queries @ torch.stack(fitted).mT


def _liblinear(support: Tensor, queries: Tensor) -> Tensor:
    from sklearn.svm import LinearSVC

    def fit(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        machine = LinearSVC(
            C=0.5, multi_class="crammer_singer", fit_intercept=False, tol=1e-10, max_iter=100_000, random_state=0
        )
        return machine.fit(x, labels).coef_

    return _each(fit, support, queries)


def _closed_form(support: Tensor, queries: Tensor) -> Tensor:
    def fit(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.linalg.solve(x.T @ x + 0.5 * np.eye(x.shape[1]), x.T @ np.eye(3)[labels]).T

    return _each(fit, support, queries)


_SOURCE = "Lee et al., CVPR 2019"
ENTRIES = (
    Entry(
        name="svm-head",
        title="multiclass support vector machine fitted to a few examples",
        kind="conic",
        source=_SOURCE,
        build=lambda: SVMHead(3, 2, C=0.5, ridge=1e-8),
        sample=_sample,
        reference=_liblinear,
        example="13_few_shot_digits",
        tolerance=1e-6,  # of the reference
        tags=frozenset({"qp", "head"}),
    ),
    Entry(
        name="ridge-head",
        title="ridge regression fitted to a few examples",
        kind="conic",
        source=_SOURCE,
        build=lambda: RidgeHead(3, 2, penalty=0.5),
        sample=_sample,
        reference=_closed_form,
        example="13_few_shot_digits",
        tags=frozenset({"qp", "head"}),
    ),
)

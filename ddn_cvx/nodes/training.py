"""Training problems as nodes: the lower level of a bilevel problem, differentiable in its hyperparameters and its data.

    ridge regression      w = argmin  1/2 |A w - b|^2                  + 1/2 sum_j lambda_j w_j^2
    logistic regression   w = argmin  sum_i log(1 + exp(-b_i a_i'w))   + 1/2 sum_j lambda_j w_j^2
    support vectors       a = argmax  sum_i a_i - 1/2 sum_ij a_i a_j b_i b_j k(x_i, x_j),  0 <= a <= C,  b'a = 0

Gould, Fernando, Cherian, Anderson, Santa Cruz & Guo, "On differentiating parameterized argmin and argmax problems" (2016);
Do, Foo & Ng, "Efficient multiple hyperparameter learning for log-linear models" (2007); Chapelle, Vapnik, Bousquet &
Mukherjee, "Choosing multiple parameters for support vector machines" (2002).
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, TorchProblem
from ddn_cvx.nodes.checks import check_shapes, check_values
from ddn_cvx.nodes.entry import Entry


class RidgeRegression(DeclarativeLayer[Tensor]):
    """``(A (*batch, N, n), b (*batch, N), penalty (*batch, n)) -> w (*batch, n)``, the weights of a linear model.

    Parameters
    ----------
    examples, features : int
        N and n.

    Raises
    ------
    DeclarationError
        One of them is not above zero.

    Notes
    -----
    ``penalty`` is lambda, one number for each weight: above zero, or zero where the data determine the weight.

    Examples
    --------
    >>> RidgeRegression(2, 1)(torch.tensor([[1.0], [1.0]]), torch.tensor([1.0, 3.0]), torch.tensor([[0.0], [2.0]]))
    tensor([[2.],
            [1.]])
    """

    def __init__(self, examples: int, features: int):
        _sizes(examples, features)
        super().__init__(
            TorchProblem(
                (features,),
                objective=lambda w, A, b, penalty: 0.5 * ((A @ w - b).square().sum() + (penalty * w.square()).sum()),
                parameters=[(examples, features), (examples,), (features,)],
            )
        )


class LogisticRegression(DeclarativeLayer[Tensor]):
    """``(A (*batch, N, n), b (*batch, N), penalty (*batch, n)) -> w (*batch, n)``, the weights of a log-linear model.

    Parameters
    ----------
    examples, features : int
        N and n.

    Raises
    ------
    DeclarationError
        One of them is not above zero.

    Notes
    -----
    The labels b are 1 and -1. ``penalty`` is lambda, one positive number for each weight; weights in one group share
    theirs (``penalty = groups @ each``). For an intercept give A a column of ones with a small penalty.

    Examples
    --------
    >>> A, b = torch.tensor([[1.0], [-2.0]]), torch.tensor([1.0, -1.0])
    >>> LogisticRegression(2, 1)(A, b, torch.tensor([1.0]))
    tensor([0.7148])
    """

    def __init__(self, examples: int, features: int):
        _sizes(examples, features)

        def objective(w: Tensor, A: Tensor, b: Tensor, penalty: Tensor) -> Tensor:
            return nn.functional.softplus(-b * (A @ w)).sum() + 0.5 * (penalty * w.square()).sum()

        super().__init__(TorchProblem((features,), objective, parameters=[(examples, features), (examples,), (features,)]))


class SupportVectorMachine(nn.Module):
    """``(x (*batch, N, d), b (*batch, N), scale (*batch, d), C (*batch)) -> weights (*batch, N), intercept (*batch)``.

    The kernel is ``k(x, z) = exp(-1/2 sum_j (scale_j (x_j - z_j))^2)``: a scale of zero ignores a feature. The weight of an
    example is ``a_i b_i``, zero if it is no support vector; ``decide`` gives the decision function.

    Parameters
    ----------
    examples : int
        N.

    Raises
    ------
    DeclarationError
        ``examples`` is below 2.
    InputError
        x is not ``(*batch, N, d)``, or all the labels of an element have one sign.

    Notes
    -----
    The labels b are 1 and -1. C, above zero, is what a unit of margin violation costs. The intercept is the multiplier of
    ``b'a = 0``; it is determined where some ``a_i`` lies strictly between 0 and C. A solution is a smooth function of scale
    and C as long as no example enters or leaves the support vectors.

    Examples
    --------
    >>> x, b = torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, -1.0])
    >>> svm = SupportVectorMachine(2)
    >>> weights, intercept = svm(x, b, torch.ones(1), torch.tensor(10.0))
    >>> svm.decide(x, weights, intercept, torch.ones(1), torch.tensor([[0.0], [0.5], [1.0]]))
    tensor([ 1.0000, 0.0000, -1.0000])
    """

    def __init__(self, examples: int):
        super().__init__()
        if examples < 2:
            raise DeclarationError(f"examples must be at least 2, got {examples!r}.")
        self.examples = examples
        a, H = cp.Variable(examples), cp.Parameter((examples, examples), PSD=True, name="H")
        b, C = cp.Parameter(examples, name="b"), cp.Parameter(nonneg=True, name="C")
        balance = b @ a == 0
        problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(a, H) - cp.sum(a)), [balance, a >= 0, a <= C])
        self.layer = DeclarativeLayer(problem, [H, b, C], [a, balance.dual_variables[0]])

    def forward(self, x: Tensor, b: Tensor, scale: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and intercept, in the dtype of x."""
        check_shapes(x=(x, (self.examples, "d")), b=(b, (self.examples,)), scale=(scale, ("d",)))
        alike = (b > 0).all(-1, keepdim=True) | (b < 0).all(-1, keepdim=True)
        b = check_values(b, ~alike, "All the labels of an element have one sign; b must hold both 1 and -1.").double()
        points = x.double()  # a kernel in float32 may have eigenvalues below zero
        H = b.unsqueeze(-1) * b.unsqueeze(-2) * kernel(points, points, scale.double())
        a, intercept = self.layer(H, b, C.double())
        return (a * b).to(x.dtype), intercept.to(x.dtype)

    @staticmethod
    def decide(x: Tensor, weights: Tensor, intercept: Tensor, scale: Tensor, points: Tensor) -> Tensor:
        """The decision function ``(*batch, M)`` at ``points (*batch, M, d)``: its sign is the class."""
        return (kernel(points, x, scale) @ weights.unsqueeze(-1)).squeeze(-1) + intercept.unsqueeze(-1)


def kernel(x: Tensor, z: Tensor, scale: Tensor) -> Tensor:
    """``k(x_i, z_j)`` ``(*batch, N, M)`` for ``x (*batch, N, d)``, ``z (*batch, M, d)`` and ``scale (*batch, d)``."""
    x, z = x * scale.unsqueeze(-2), z * scale.unsqueeze(-2)
    return torch.exp(-0.5 * (x.unsqueeze(-2) - z.unsqueeze(-3)).square().sum(-1))


def _sizes(examples: int, features: int) -> None:
    if min(examples, features) < 1:
        raise DeclarationError(f"examples and features must be above 0, got {examples!r} and {features!r}.")


# ---------------------------------------------------------------- the catalogue's entries


def _regression(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    A = torch.randn(batch, 9, 4, generator=generator, dtype=torch.float64)
    b = torch.randn(batch, 9, generator=generator, dtype=torch.float64)
    return A, b, 0.2 + torch.rand(batch, 4, generator=generator, dtype=torch.float64)


def _classes(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    A, b, penalty = _regression(batch, generator)
    return A, torch.where(A[..., 0] + b > 0, 1.0, -1.0).double(), penalty


def _normal_equations(A: Tensor, b: Tensor, penalty: Tensor) -> Tensor:
    L = torch.linalg.cholesky(A.mT @ A + torch.diag_embed(penalty))
    return torch.cholesky_solve(A.mT @ b.unsqueeze(-1), L).squeeze(-1)


def _scikit_logistic(A: Tensor, b: Tensor, penalty: Tensor) -> Tensor:
    """scikit-learn has one penalty for all weights: the features are rescaled instead."""
    from sklearn.linear_model import LogisticRegression

    def one(A: np.ndarray, b: np.ndarray, root: np.ndarray) -> np.ndarray:
        model = LogisticRegression(fit_intercept=False, solver="newton-cholesky", tol=1e-12, max_iter=200)
        return model.fit(A / root, b).coef_[0] / root

    rows = zip(A.numpy(), b.numpy(), penalty.sqrt().numpy(), strict=True)
    return torch.from_numpy(np.stack([one(*row) for row in rows]))


def _points(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = torch.randn(batch, 8, 2, generator=generator, dtype=torch.float64)
    b = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(batch, 4)
    x = x + 0.5 * b.unsqueeze(-1)
    scale = 0.8 + torch.rand(batch, 2, generator=generator, dtype=torch.float64)
    return x, b, scale, 1.0 + torch.rand(batch, generator=generator, dtype=torch.float64)


def _scikit_svc(x: Tensor, b: Tensor, scale: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    from sklearn.svm import SVC

    weights, intercept = torch.zeros_like(b), torch.zeros_like(C)
    gram = kernel(x, x, scale)
    for k, row in enumerate(gram.numpy()):
        model = SVC(C=float(C[k]), kernel="precomputed", tol=1e-12).fit(row, b[k].numpy())
        weights[k, model.support_] = torch.from_numpy(model.dual_coef_[0])
        intercept[k] = float(model.intercept_[0])
    return weights, intercept


ENTRIES = (
    Entry(
        name="ridge-regression",
        title="ridge regression with a penalty for each weight",
        kind="nonlinear",
        source="Gould et al., arXiv 1607.05447",
        build=lambda: RidgeRegression(9, 4),
        sample=_regression,
        reference=_normal_equations,
        example="03_bilevel",
        tolerance=1e-10,
        tags=frozenset({"bilevel"}),
    ),
    Entry(
        name="logistic-regression",
        title="regularised log-linear model with a penalty for each weight",
        kind="nonlinear",
        source="Do, Foo & Ng, NeurIPS 2007; Gould et al., arXiv 1607.05447",
        build=lambda: LogisticRegression(9, 4),
        sample=_classes,
        reference=_scikit_logistic,
        example="03_bilevel",
        tags=frozenset({"bilevel"}),
    ),
    Entry(
        name="support-vector-machine",
        title="support vector machine with a scale for each feature in its kernel",
        kind="conic",
        source="Chapelle et al., Machine Learning 2002; Gould et al., arXiv 1607.05447",
        build=lambda: SupportVectorMachine(8),
        sample=_points,
        reference=_scikit_svc,
        example="03_bilevel",
        tolerance=1e-6,  # of scikit-learn's solver
        tags=frozenset({"bilevel"}),
    ),
)

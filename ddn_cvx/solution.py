"""What a solve returns: a status, residuals and variables for every element of the batch."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from torch import Tensor


class Status(enum.IntEnum):
    """How the solve of one batch element ended. Only ``SOLVED`` carries an answer.

    Examples
    --------
    >>> import ddn_cvx as ddn
    >>> ddn.Status(4), ddn.Status.ITERATION_LIMIT.remedy
    (<Status.ITERATION_LIMIT: 4>, 'the solver stopped at its iteration limit; raise it or rescale the problem')
    """

    SOLVED = 0
    INACCURATE = 1
    INFEASIBLE = 2
    UNBOUNDED = 3
    ITERATION_LIMIT = 4
    NUMERICAL_ERROR = 5
    INVALID_DATA = 6
    TIME_LIMIT = 7
    SADDLE_POINT = 8

    @property
    def remedy(self) -> str:
        """One sentence that says what happened and what to do."""
        return _REMEDY[self]


_REMEDY = {
    Status.SOLVED: "the optimality conditions hold to tolerance",
    Status.INACCURATE: "the returned point violates the optimality conditions beyond tolerance; "
    "tighten the solver's tolerance, raise its iteration limit, or rescale the problem",
    Status.INFEASIBLE: "no point satisfies the constraints, or none was found if they are not convex; check the parameters "
    "or relax a constraint",
    Status.UNBOUNDED: "the objective has no finite optimum over the constraints; add a bound or a regulariser",
    Status.ITERATION_LIMIT: "the solver stopped at its iteration limit; raise it or rescale the problem",
    Status.NUMERICAL_ERROR: "the solver broke down; rescale the problem or pick another solver",
    Status.INVALID_DATA: "a parameter holds NaN or infinity, or violates an attribute it was declared with",
    Status.SADDLE_POINT: "the point satisfies the first-order conditions but is not a minimum; start elsewhere, "
    "or declare stationary=True if any stationary point will do",
    Status.TIME_LIMIT: "the solver stopped at its time limit; raise it or simplify the problem",
}


class Regularity(enum.IntFlag):
    """What is special about a solution point; ``REGULAR`` (0) means the derivative is the classical one.

    Flags combine. See the how-to page on degenerate points for what the backward pass returns under each flag.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(), cp.Parameter()
    >>> layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.square(x - p)), [x >= 0]), [p], x)
    >>> layer.solve(torch.tensor([1.0, 0.0])).regularities  # at 0 the bound is active, and holds nothing
    [<Regularity.REGULAR: 0>, <Regularity.WEAKLY_ACTIVE: 4>]
    """

    REGULAR = 0
    SINGULAR_HESSIAN = 1
    """A direction exists along which the solution is not unique, or not determined by conditions that hold to rounding (as
    where an infimum is not attained); the minimum-norm derivative is used where the system is singular to rounding."""
    RANK_DEFICIENT = 2
    """Active constraints are linearly dependent, or as good as that in a nonlinear problem without multipliers; the
    minimum-norm multiplier derivative is used where the system is singular to rounding."""
    WEAKLY_ACTIVE = 4
    """A constraint is active with a zero multiplier, a kink where one element of the generalised Jacobian is used."""
    SINGULAR_JACOBIAN = 8
    """The equations of a fixed point or root do not determine it to first order; the minimum-norm derivative is used."""


@dataclass(frozen=True)
class Solution:
    """The result of ``layer.solve(*params)``; every tensor has the layer's leading batch dimensions ``(*batch, ...)``.

    ``outputs`` are what ``layer(*params)`` returns and carry gradients; all other tensors are detached. Residuals and
    gap are relative: next to the sizes of the terms that should cancel.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(2, name="x"), cp.Parameter(2)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    >>> solution = ddn.DeclarativeLayer(problem, [p], x).solve(torch.tensor([[0.8, 0.6], [0.5, 0.9]]))
    >>> solution.statuses, solution.value
    ([<Status.SOLVED: 0>, <Status.SOLVED: 0>], tensor([0.0800, 0.0800]))
    >>> solution.primal["x"]
    tensor([[0.6000, 0.4000],
            [0.3000, 0.7000]])
    >>> bool((solution.primal_residual < 1e-6).all())
    True
    """

    outputs: tuple[Tensor, ...]
    """The requested variables, each ``(*batch, *variable.shape)``."""
    value: Tensor
    """Objective value of the problem as declared, ``(*batch,)``."""
    status: Tensor
    """``Status`` codes, ``(*batch,)`` int64; ``statuses`` gives the enum members."""
    iterations: Tensor
    """Iterations of the forward solver, ``(*batch,)`` int64."""
    primal_residual: Tensor
    """Largest violation of the constraints (``Ax + s = b, s in K``; ``h = 0, g <= 0``), relative, ``(*batch,)``."""
    dual_residual: Tensor
    """Largest violation of stationarity (``Px + q + A'y = 0, y in K*``; ``grad L = 0``), relative, ``(*batch,)``."""
    gap: Tensor
    """Duality gap ``|x'Px + q'x + b'y|``, or largest violation of complementarity (nonlinear), relative, ``(*batch,)``."""
    regularity: Tensor
    """``Regularity`` flags, ``(*batch,)`` int64."""
    x: Tensor
    """Primal vector of the canonical program; all variables of a nonlinear one, flat; ``(*batch, n)``."""
    s: Tensor
    """Slack of the canonical program; of the inequalities of a nonlinear one; ``(*batch, m)``."""
    y: Tensor
    """Dual vector of the canonical program; ``(λ, μ, z)`` of a nonlinear one; ``(*batch, m)``."""
    primal: dict[str, Tensor] = field(default_factory=dict)
    """All variables of the problem by name; of several with one name, the second is "name (2)"."""
    dual: tuple[tuple[Tensor, ...], ...] = ()
    """For each constraint as declared, the values of its ``dual_variables``. For a nonlinear problem the multipliers of the
    equalities, of the inequalities, and of the bounds (positive at an upper one, negative at a lower one)."""

    @property
    def statuses(self) -> list[Status]:
        """The status of each element, flattened over the batch dimensions."""
        return [Status(code) for code in self.status.reshape(-1).tolist()]

    @property
    def regularities(self) -> list[Regularity]:
        """The regularity of each element, flattened over the batch dimensions."""
        return [Regularity(code) for code in self.regularity.reshape(-1).tolist()]

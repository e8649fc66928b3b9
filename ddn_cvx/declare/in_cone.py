"""Membership in a cone that cvxpy does not know, as a constraint of a cvxpy problem."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
from cvxpy.constraints import NonNeg
from cvxpy.utilities import scopes

from ddn_cvx.cones import Cone
from ddn_cvx.errors import DeclarationError


class InCone(NonNeg):  # type: ignore[misc]  # cvxpy's classes are taken as Any
    """``InCone(expression, cone)``: every column of an affine expression lies in a cone.

    For cones of your own: cvxpy has constraints for those of ``ddn_cvx.cones``. Only a ``DeclarativeLayer`` understands it,
    and of its solvers those that need no more of a cone than its methods (``FirstOrder``, which is the default then);
    ``problem.solve()`` of cvxpy refuses it. Its ``dual_variables[0]`` is the multiplier, in the dual cone.

    Parameters
    ----------
    expression : cvxpy.Expression
        Affine and real, ``(dim,)``, or ``(dim, k)`` for k cones.
    cone : Cone
        With ``cone.dim == dim``; hashable, as frozen dataclasses are.

    Raises
    ------
    DeclarationError
        The expression is not affine, not real, or has another number of rows; the cone is no ``Cone``.

    Examples
    --------
    The second-order cone, which cvxpy has as ``cp.SOC``, serves to show it:

    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> from ddn_cvx.cones import SecondOrder
    >>> x, p = cp.Variable(2), cp.Parameter(2)
    >>> ball = ddn.InCone(cp.hstack([1, x]), SecondOrder(3))
    >>> layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [ball]), [p], x)
    >>> layer(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """

    def __init__(self, expression: Any, cone: Cone, constr_id: int | None = None):
        if not isinstance(cone, Cone):
            raise DeclarationError(f"InCone: cone must be a ddn_cvx.cones.Cone object, got {cone!r}.")
        expression = cp.Expression.cast(expression)
        if not (expression.is_affine() and expression.is_real()):
            raise DeclarationError(f"InCone: the expression must be affine and real, got {expression}.")
        if expression.ndim not in (1, 2) or expression.shape[0] != cone.dim:
            raise DeclarationError(
                f"InCone: a cone of {cone.dim} rows takes expressions ({cone.dim},) or ({cone.dim}, k), got shape "
                f"{expression.shape}."
            )
        self.cone = cone
        super().__init__(expression, constr_id)

    @property
    def cones(self) -> list[Cone]:
        """One for each column."""
        return [self.cone] * (self.size // self.cone.dim)

    def get_data(self) -> list[Any]:
        """What ``copy`` needs besides the arguments."""
        return [self.cone, self.id]

    def name(self) -> str:
        """As cvxpy prints it."""
        return f"{self.args[0]} in {self.cone}"

    def is_dcp(self, dpp: bool = False) -> bool:
        """Whether the expression is affine."""
        if dpp:
            with scopes.dpp_scope():
                return bool(self.args[0].is_affine())
        return bool(self.args[0].is_affine())

"""Functions that have a value at the end of their domain: ``entr``, ``kl_div`` and roots at 0.

Solutions lie there, and by rounding as often as not a little beside, where there is no value. So these functions are
evaluated at the nearest point of the domain, and that the argument lies in it is a constraint like any other.
"""

from __future__ import annotations

import cvxpy as cp
from cvxpy.constraints.constraint import Constraint

_ENDS = {"entr": 1, "rel_entr": 2, "kl_div": 2, "GeoMean": 1, "GeoMeanApprox": 1, "Power": 1, "PowerApprox": 1}
"""Arguments that may be zero, and not less."""


def closed(expression: cp.Expression) -> tuple[cp.Expression, list[Constraint]]:
    """The expression with arguments moved to the domain of such functions, and the constraints that they lie in it."""
    if not expression.args or not any(_has_end(atom) for atom in _subtree(expression)):
        return expression, []
    pairs = [closed(arg) for arg in expression.args]
    args, found = [arg for arg, _ in pairs], [c for _, constraints in pairs for c in constraints]
    if _has_end(expression):
        found += expression.copy(args).domain
        args = [cp.pos(arg) if k < _ENDS[type(expression).__name__] else arg for k, arg in enumerate(args)]
    return expression.copy(args), found


def _has_end(expression: cp.Expression) -> bool:
    name = type(expression).__name__
    if name in ("Power", "PowerApprox"):
        p = expression.p
        return isinstance(p, cp.Constant) and p.value > 0 and p.value != int(p.value)
    return name in _ENDS


def _subtree(expression: cp.Expression) -> list[cp.Expression]:
    found, stack = [], [expression]
    while stack:
        found.append(stack.pop())
        stack += found[-1].args
    return found

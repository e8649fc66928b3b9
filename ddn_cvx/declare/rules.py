"""Why a problem cannot become a layer: the offending argument or expression, and its rule; what variables are called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cvxpy as cp
from cvxpy.atoms.quad_form import QuadForm
from cvxpy.expressions.expression import Expression

from ddn_cvx.declare.as_declared import CONSTRAINTS
from ddn_cvx.errors import DeclarationError


def check_arguments(problem: cp.Problem, parameters: Sequence[cp.Parameter], variables: Sequence[cp.Variable]) -> None:
    """Raise unless these are all the parameters of the problem, and variables or dual variables of it.

    Raises
    ------
    DeclarationError
        Names the first that is not.
    """
    for k, p in enumerate(parameters):
        if not isinstance(p, cp.Parameter):
            raise DeclarationError(f"parameters[{k}] must be a cvxpy.Parameter, got {type(p).__name__}.")
    known = {p.id for p in problem.parameters()}
    given = [p.id for p in parameters]
    if len(set(given)) != len(given):
        raise DeclarationError("parameters lists the same cvxpy.Parameter twice.")
    for k, p in enumerate(parameters):
        if p.id not in known:
            raise DeclarationError(f"parameters[{k}] ({p.name()!r}) does not appear in the problem.")
    missing = [p.name() for p in problem.parameters() if p.id not in set(given)]
    if missing:
        raise DeclarationError(f"parameters must list every parameter of the problem; missing: {', '.join(missing)}.")
    primal = {v.id for v in problem.variables()}
    dual = {d.id for c in problem.constraints for d in c.dual_variables}
    for k, v in enumerate(variables):
        if not isinstance(v, cp.Variable):
            raise DeclarationError(f"variables[{k}] must be a cvxpy.Variable, got {type(v).__name__}.")
        if v.id not in primal | dual:
            raise DeclarationError(
                f"variables[{k}] ({v.name()!r}) is neither a variable of the problem nor a dual variable of its constraints."
            )


def check_declaration(problem: cp.Problem, gp: bool) -> None:
    """Raise unless the problem is convex (or log-log convex) by cvxpy's rules and uses continuous variables.

    Raises
    ------
    DeclarationError
        Names the first offending expression and the rule.
    """
    for variable in problem.variables():
        for attribute in ("integer", "boolean"):
            if variable.attributes[attribute]:
                raise DeclarationError(
                    f"Variable {variable.name()!r} is {attribute}: a solution over a discrete set has no derivative. "
                    "Relax it to a continuous variable with bounds."
                )
    for constraint in problem.constraints:
        if type(constraint).__name__ not in CONSTRAINTS:
            raise DeclarationError(
                f"Constraint {_short(constraint)} has type {type(constraint).__name__}, which is not supported; "
                f"supported types: {', '.join(sorted(CONSTRAINTS))}."
            )
    if gp:
        if not problem.is_dgp():
            raise DeclarationError(_explain(problem, "DGP", "log-log convex", "log-log concave"))
        return
    if not problem.is_dcp():
        hint = " It is log-log convex: pass gp=True." if problem.is_dgp() else ""
        raise DeclarationError(explain(problem) + hint)


def explain(problem: cp.Problem) -> str:
    """Why the problem is not DCP: the first offending expression and the rule."""
    return _explain(problem, "DCP", "convex", "concave")


def check_parametrised(problem: cp.Problem, gp: bool) -> None:
    """Raise unless the problem data are affine in the parameters (DPP), after every rewrite has been tried."""
    if problem.is_dpp("dgp") if gp else problem.is_dpp(quad_form_dpp="qp"):
        return
    for expr in _expressions(problem):
        for node in _post_order(expr):
            if isinstance(node, QuadForm):
                continue
            if not node.is_dpp("dgp" if gp else "dcp") and all(a.is_dpp("dgp" if gp else "dcp") for a in node.args):
                raise DeclarationError(
                    f"Expression {_short(node)} ({type(node).__name__}) depends on its parameters in a way that is not DPP "
                    "(the problem data must be affine in the parameters) and could not be rewritten. "
                    "Introduce a parameter for the value you need and compute it in torch."
                )
    raise DeclarationError(
        "The problem is not DPP: its data are not affine in the parameters. quad_form(x, P) with a parameter P is accepted "
        "in the objective only; in a constraint write sum_squares(L.T @ x) with P = L L'."
    )


def distinct_names(variables: Sequence[cp.Variable]) -> dict[str, int]:
    """The id of each variable by name; of several with one name, the others are "name (2)", "name (3)" ..."""
    found: dict[str, int] = {}
    for variable in variables:
        name, number = variable.name(), 1
        while name in found:
            number += 1
            name = f"{variable.name()} ({number})"
        found[name] = variable.id
    return found


def _expressions(problem: cp.Problem) -> Iterator[Expression]:
    yield problem.objective.args[0]
    for constraint in problem.constraints:
        yield from constraint.args


def _post_order(expr: Expression) -> Iterator[Expression]:
    for arg in expr.args:
        yield from _post_order(arg)
    yield expr


def _explain(problem: cp.Problem, rule: str, convex: str, concave: str) -> str:
    def known(node: Expression) -> bool:
        return bool(node.is_dgp() if rule == "DGP" else node.is_dcp())

    for expr in _expressions(problem):
        for node in _post_order(expr):
            if not known(node) and all(known(arg) for arg in node.args):
                return (
                    f"Expression {_short(node)} ({type(node).__name__}) breaks the {rule} rules: it is neither known to be "
                    f"{convex} nor {concave}."
                )
    objective = problem.objective
    is_rule = objective.is_dgp() if rule == "DGP" else objective.is_dcp()
    if not is_rule:
        maximise = isinstance(objective, cp.Maximize)
        return (
            f"Objective {_short(objective)} breaks the {rule} rules: to {'maximise' if maximise else 'minimise'} it, it "
            f"must be {concave if maximise else convex}."
        )
    for constraint in problem.constraints:
        if not (constraint.is_dgp() if rule == "DGP" else constraint.is_dcp()):
            return (
                f"Constraint {_short(constraint)} breaks the {rule} rules: an inequality needs {convex} <= {concave}, "
                "an equality needs both sides affine."
            )
    return f"The problem breaks the {rule} rules."


def _short(thing: object, limit: int = 120) -> str:
    text = str(thing)
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")

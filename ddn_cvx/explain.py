"""What a layer would do with a batch, and why: nothing is solved for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ddn_cvx.adjoint.base import Adjoint
from ddn_cvx.adjoint.implicit import Implicit
from ddn_cvx.checks import require_whole
from ddn_cvx.cones import Product
from ddn_cvx.declare.cvxpy_convex import ConvexProblem
from ddn_cvx.declare.cvxpy_nonconvex import NonconvexProblem
from ddn_cvx.declare.fixed_point import FixedPoint, Root
from ddn_cvx.declare.node import Declared, Node
from ddn_cvx.declare.ode import ODE
from ddn_cvx.declare.torch_problem import TorchProblem
from ddn_cvx.inputs import Batch, gather, match
from ddn_cvx.program.nonlinear import NonlinearProgram, Theta
from ddn_cvx.program.root import DENSE_LIMIT as ROOT_LIMIT
from ddn_cvx.solvers.auto import Auto, in_words
from ddn_cvx.solvers.base import Solver
from ddn_cvx.solvers.cost import Size, seconds
from ddn_cvx.solvers.nonlinear_auto import NonlinearAuto
from ddn_cvx.solvers.ode_base import Integrator
from ddn_cvx.solvers.root_auto import RootAuto

GIVEN = "it was given"


@dataclass(frozen=True)
class Explanation:
    """What ``layer.explain()`` reports; ``str`` of it is a page of text."""

    problem: str
    """Kind and sizes of the problem that is solved."""
    batch: int
    """Instances in a call."""
    device: str
    """Type of the device of the parameters, such as "cpu" or "cuda"."""
    solver: str
    """The solver that looks at the batch first, by the name of its class."""
    reason: str
    """Why this one."""
    candidates: dict[str, str]
    """The solvers it was compared with: the time that a batch of this size should take, or why it is out of the question."""
    parameters: str
    """How parameters become the numbers of the problem."""
    adjoint: str
    """How the solution is differentiated."""
    kernels: bool
    """Whether compiled kernels do it all on the CPU, from the parameters to the solution and back."""
    path: str
    """Where and by which linear algebra, and why."""
    checks: tuple[str, ...]
    """What an answer has to satisfy before it is returned."""

    def __str__(self) -> str:
        lines = [
            ("problem", self.problem),
            ("call", f"{self.batch} instances on {self.device}"),
            ("solver", f"{self.solver}: {self.reason}"),
            *(("", f"{name}: {text}") for name, text in self.candidates.items()),
            ("parameters", self.parameters),
            ("adjoint", self.adjoint),
            ("path", self.path),
            *(("checks" if k == 0 else "", check) for k, check in enumerate(self.checks)),
        ]
        return "\n".join(f"{label:<12}{text}" for label, text in lines)


@dataclass(frozen=True)
class Settings:
    """Those of the layer."""

    solver: Any
    adjoint: Adjoint
    tolerance: float
    polish_steps: int
    on_failure: str
    time_limit: float | None


def explain(
    node: Node,
    settings: Settings,
    args: Sequence[Any],
    named: Mapping[str, Any],
    batch: int | None,
    device: torch.device | str | None,
) -> Explanation:
    """See ``DeclarativeLayer.explain``."""
    given = bool(args or named)
    call: Batch | None = None
    layout: Any = ()
    if given and isinstance(node, ConvexProblem | NonconvexProblem):
        call = gather(node.parameters, match(node.parameters, args, named), {})
    elif given:
        assert not isinstance(node, ConvexProblem | NonconvexProblem)
        specs, tensors, layout = node.arguments.match(args, named)
        call = gather(specs, tensors, {})
    if batch is not None:
        require_whole("batch", batch, 0)
    count = batch if batch is not None else 64 if call is None else math.prod(call.shape)
    where = torch.device(device).type if device is not None else "cpu" if call is None else call.device.type
    failing = "raises SolverError" if settings.on_failure == "raise" else "becomes NaN"
    if settings.time_limit is not None:
        failing += f", as does one without an answer after {settings.time_limit:g} s"
    if isinstance(node, ConvexProblem):
        return _convex(node, settings, count, where, failing)
    adjoint = f"{settings.adjoint}"
    if isinstance(node, ODE):
        assert isinstance(settings.solver, Integrator)
        problem = f"initial value problem of {node.functions.n} unknowns"
        by_adjoint = isinstance(settings.adjoint, Implicit)
        backward = "the adjoint equation is integrated back" if by_adjoint else "its steps are kept"
        return Explanation(
            problem,
            count,
            where,
            type(settings.solver).__name__,
            f"{settings.solver}",
            {},
            _captured(node),
            f"{adjoint}: {backward}",
            False,
            f"torch on {where}, steps common to the batch",
            (f"every element reaches the last time with finite numbers, else it {failing}",),
        )
    if isinstance(node, FixedPoint | Root):
        return _root(node, settings, count, where, failing)
    program: NonlinearProgram | None
    if isinstance(node, NonconvexProblem):
        program, origin = node.program(Theta((), ())), f"not convex: {node.reason}" if node.reason else "not convex"
    else:
        program, origin = _program(node, call, layout, where), "in torch functions"
    solver, reason = type(settings.solver).__name__, GIVEN
    if isinstance(node, TorchProblem) and "solve" in node.functions:
        solver, reason = "solve=", "the problem brings its own solver"
    elif isinstance(settings.solver, NonlinearAuto):
        if program is None:
            solver, reason = "NonlinearAuto", "it decides when the shapes of the inputs are known; pass tensors to explain()"
        else:
            first, _, reason = settings.solver.pick(program)
            solver = type(first).__name__
            if where == "cpu" and settings.solver.tries_compiled(program):
                reason += "; where the functions can be traced, CompiledInteriorPoint comes first"
    sizes, dense = "sizes known once it is called", "dense or matrix-free"
    if program is not None:
        sizes = f"n = {program.n}, {program.p} equalities, {program.m} inequalities"
        sizes += ", bounds" if program.has_bounds else ""
        dense = "Hessians and Jacobians are formed" if program.is_dense else "products of derivatives only"
    return Explanation(
        f"nonlinear program, {origin}: {sizes}",
        count,
        where,
        solver,
        reason,
        {},
        _captured(node),
        f"{adjoint}: the KKT system at the solution, one for each instance",
        False,
        f"torch on {where}, {dense}",
        (
            "parameters are finite, and have the attributes they were declared with",
            f"after at most {settings.polish_steps} Newton steps on the active set, feasibility, stationarity and "
            f"complementarity hold to {settings.tolerance:g}, relative",
            "the point is a minimum along the constraints, not a saddle point"
            if not node.stationary
            else "any stationary point will do, as declared",
            f"an element that fails {failing}",
        ),
    )


def _convex(node: ConvexProblem, settings: Settings, batch: int, device: str, failing: str) -> Explanation:
    program, solver = node.program, settings.solver
    assert isinstance(solver, Solver)
    reason, candidates = GIVEN, {}
    if isinstance(solver, Auto):
        choice = solver.pick(program, device)
        solver, reason = choice.solver, choice.reason
        for c in choice.candidates:
            time = None if c.seconds is None else seconds(c.solver.name, Size.of(program), batch, device)
            text = f"{in_words(time)} estimated for {batch} on one thread" if time is not None else "not measured there"
            candidates[type(c.solver).__name__] = c.refusal or text
    kernels = settings.adjoint == Implicit() and device == "cpu" and node.compiled is not None
    if kernels:
        path = "compiled kernels on the CPU: parameters to data, checks, KKT system and gradient"
    else:
        algebra = "dense factors" if program.is_dense else "sparse factors"
        obstacle = _obstacle(node, settings, device)
        path = f"torch on {device}, {algebra} for each instance; no compiled kernels, because {obstacle}"
        if device != "cpu" and not solver.on_device:
            path += f"; {type(solver).__name__} gets copies on the CPU"
    return Explanation(
        f"cone program, n = {program.n}, m = {program.m} ({_rows(program.cones)}), "
        f"{program.P.nnz} entries in P, {program.A.nnz} in A",
        batch,
        device,
        type(solver).__name__,
        reason,
        candidates,
        node.describe_map(),
        f"{settings.adjoint}",
        kernels,
        path,
        tuple(_checks(node, settings, failing)),
    )


def _rows(cones: Product) -> str:
    """The rows of a program in words."""
    parts = [
        f"{cones.zero} equalities" if cones.zero else "",
        f"{cones.nonneg} inequalities" if cones.nonneg else "",
        *(f"{name} of size {', '.join(map(str, sizes))}" if sizes else "" for name, sizes in _blocks(cones)),
        f"{cones.exp} exponential cones" if cones.exp else "",
        f"{len(cones.power)} power cones" if cones.power else "",
        *(f"a {type(cone).__name__} cone of {cone.dim} rows" for cone in cones.others),
    ]
    return ", ".join(part for part in parts if part) or "no constraints"


def _blocks(cones: Product) -> list[tuple[str, tuple[int, ...]]]:
    return [("second-order cones", cones.soc), ("semidefinite matrices", cones.psd)]


def _obstacle(node: ConvexProblem, settings: Settings, device: str) -> str:
    if settings.adjoint != Implicit():
        return "they know the default adjoint only"
    if device != "cpu":
        return f"they are for the CPU, and the parameters are on {device}"
    if node.program.cones.power or node.program.cones.others:
        return "there are none for power cones, nor for cones that are not of this package"
    return "the program is too large for them"


def _checks(node: ConvexProblem, settings: Settings, failing: str) -> Iterator[str]:
    yield "parameters are finite" + (", and have the attributes they were declared with" if node.has_conditions else "")
    if node.curvature_varies:
        yield "the objective is convex for their values"
    steps = f"after at most {settings.polish_steps} Newton steps"
    yield f"{steps} the optimality conditions hold to {settings.tolerance:g}, relative"
    yield "constraints and objective as declared are met by the variables as declared"
    yield f"an element that fails {failing}"


def _root(node: FixedPoint | Root, settings: Settings, batch: int, device: str, failing: str) -> Explanation:
    n, is_map = node.functions.n, isinstance(node, FixedPoint)
    solver, reason = type(settings.solver).__name__, GIVEN
    if isinstance(settings.solver, RootAuto):
        solver = "Anderson" if is_map else "RootNewton"
        reason = "a map is iterated, and what does not converge goes to Newton" if is_map else "equations need slopes"
    return Explanation(
        f"{'fixed point' if is_map else 'root'} of {n} equations",
        batch,
        device,
        solver,
        reason,
        {},
        _captured(node),
        f"{settings.adjoint}: one linear system with the transposed Jacobian; no iteration is kept",
        False,
        f"torch on {device}, "
        + ("Jacobians are formed" if n <= ROOT_LIMIT else f"GMRES, for Jacobians are formed up to {ROOT_LIMIT} equations"),
        (f"the equations hold to {settings.tolerance:g}, relative; an element that fails {failing}",),
    )


def _captured(node: NonconvexProblem | Declared) -> str:
    if isinstance(node, NonconvexProblem):
        return f"{len(node.parameters)} parameters, read by the compiled expressions as they are"
    count = len(node.captured.current())
    return "inputs as the functions get them" + (f", and {count} captured tensors" if count else "")


def _program(node: TorchProblem, call: Batch | None, layout: Any, device: str) -> NonlinearProgram | None:
    """The program for these inputs, or for inputs of the declared shapes; None if there are neither."""
    arguments = node.arguments
    if call is None:
        if arguments.declared is None and arguments.names:
            return None
        trees = []
        for specs, template in arguments.declared or []:
            leaves = [torch.full((1, *spec.shape), 0.5, dtype=torch.float64, device=device) for spec in specs]
            trees.append(pytree.tree_unflatten(leaves, pytree.tree_structure(template)))
        specs, tensors, layout = arguments.match(trees, {})
        call = gather(specs, tensors, {})
    return node.program(node.theta(call.values, call.device), layout)

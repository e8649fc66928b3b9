"""The layer: parameters in, optimal variables out, differentiable.

    bind -> solve -> polish -> check -> recover

``bind`` and ``recover`` are plain torch; what lies between is opaque to autograd and gets its derivative from an
``Adjoint``. The module is long for one reason: its one class is what users read, and its signature is also written out for
type checkers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, Unpack, overload

import torch
from torch import Tensor, nn

from ddn_cvx.adjoint.base import Adjoint
from ddn_cvx.adjoint.compiled import attach
from ddn_cvx.adjoint.implicit import Implicit
from ddn_cvx.call import Call
from ddn_cvx.call_parts import nan_where_failed, without_numbers
from ddn_cvx.checks import require_positive, require_whole
from ddn_cvx.custom_op import call_operator, register
from ddn_cvx.declare.cvxpy_convex import ConvexProblem, Parameter, Variable, declare
from ddn_cvx.declare.cvxpy_nonconvex import NonconvexProblem
from ddn_cvx.declare.node import Declared, Node
from ddn_cvx.declare.ode import ODE
from ddn_cvx.declare.torch_problem import TorchProblem
from ddn_cvx.diagnose import Diagnosis, diagnose
from ddn_cvx.errors import DeclarationError, InputError
from ddn_cvx.explain import Explanation, Settings, explain
from ddn_cvx.inputs import Batch, gather, match
from ddn_cvx.linalg.blocks import per_element
from ddn_cvx.nonlinear_call import NonlinearRun
from ddn_cvx.ode_call import OdeRun
from ddn_cvx.options import CvxpyProblem, DeclaredSeveral, DeclaredSingle, Options, Out
from ddn_cvx.root_call import RootRun
from ddn_cvx.signature import Signature
from ddn_cvx.solution import Solution
from ddn_cvx.solver_for import AnySolver, solver_for
from ddn_cvx.solvers.base import Solver, Workspace
from ddn_cvx.solvers.nonlinear_base import NonlinearSolver
from ddn_cvx.solvers.ode_base import Integrator
from ddn_cvx.solvers.root_base import RootSolver

Result = TypeVar("Result")


class DeclarativeLayer(nn.Module, Generic[Out]):
    """An optimisation problem as a layer: ``layer(*parameters) -> optimal variables``.

    Parameters
    ----------
    problem : cvxpy.Problem, TorchProblem, FixedPoint, Root or ODE
        Convex by cvxpy's rules (DCP; log-log convex with ``gp=True``), and expressions of parameters that are not DPP are
        rewritten; or not convex, for which a local minimum is found, from the ``value`` of each variable at this moment if
        it has one. Or a problem in torch functions, which says itself what its parameters and variables are.
    parameters : sequence of cvxpy.Parameter, optional
        All parameters of the problem, in the order of the layer's arguments. Default: ``problem.parameters()``.
    variables : cvxpy.Variable or sequence of cvxpy.Variable, optional
        The outputs. A bare variable makes the layer return a tensor, a sequence a tuple.
        ``constraint.dual_variables[i]`` are allowed. Default: ``problem.variables()``.
    solver : str or Solver, optional
        The forward solver: its name, that of its class, or an object with its options. Default: chosen by the structure of
        the problem.
    solver_options : mapping, optional
        Options for a solver given by name.
    adjoint : Adjoint, optional
        How to differentiate. Default: ``Implicit()``.
    gp : bool
        Read the problem as a geometric program.
    on_failure : "raise" or "nan"
        What to do when elements of the batch have no solution: raise ``SolverError``, or return NaN (and a zero
        gradient) for just those.
    tolerance : float
        Largest relative residual of the optimality conditions, and violation of the problem as declared, that is
        accepted.
    polish_steps : int
        Newton steps, at most, on the optimality conditions after the solver; one is usual.
    time_limit : float, optional
        Seconds after which elements without an answer are ``TIME_LIMIT``: for each element with solvers that take one at a
        time, for the batch with the others, between two times of an ODE. Default: none. Solvers of this package stop between
        iterations or elements; a ``Solver`` or ``solve=`` of your own, and packages that have no limit themselves, are left
        behind in a thread, where they go on until they end.

    Raises
    ------
    DeclarationError
        The problem cannot become a layer; the message names the expression and the rule.
    InputError
        An unknown solver or option.

    Examples
    --------
    >>> import cvxpy as cp, torch, ddn_cvx as ddn
    >>> x, p = cp.Variable(3), cp.Parameter(3)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    >>> layer = ddn.DeclarativeLayer(problem, [p], x)
    >>> layer(torch.tensor([[1.0, 0.5, -1.0], [0.0, 0.0, 0.0]]))
    tensor([[0.7500, 0.2500, 0.0000],
            [0.3333, 0.3333, 0.3333]])
    """

    @overload
    def __init__(
        self: DeclarativeLayer[Tensor],
        problem: CvxpyProblem,
        parameters: Sequence[Parameter] | None,
        variables: Variable,
        **options: Unpack[Options],
    ): ...
    @overload
    def __init__(
        self: DeclarativeLayer[Tensor],
        problem: CvxpyProblem,
        parameters: Sequence[Parameter] | None = None,
        *,
        variables: Variable,
        **options: Unpack[Options],
    ): ...
    @overload
    def __init__(
        self: DeclarativeLayer[tuple[Tensor, ...]],
        problem: CvxpyProblem,
        parameters: Sequence[Parameter] | None = None,
        variables: Sequence[Variable] | None = None,
        **options: Unpack[Options],
    ): ...
    @overload
    def __init__(self: DeclarativeLayer[Tensor], problem: DeclaredSingle, **options: Unpack[Options]): ...
    @overload
    def __init__(self: DeclarativeLayer[dict[str, Tensor]], problem: DeclaredSeveral, **options: Unpack[Options]): ...
    def __init__(
        self,
        problem: CvxpyProblem | Declared,
        parameters: Sequence[Parameter] | None = None,
        variables: Variable | Sequence[Variable] | None = None,
        *,
        solver: str | AnySolver | None = None,
        solver_options: Mapping[str, Any] | None = None,
        adjoint: Adjoint | None = None,
        gp: bool = False,
        on_failure: Literal["raise", "nan"] = "raise",
        tolerance: float = 1e-6,
        polish_steps: int = 10,
        time_limit: float | None = None,
    ):
        super().__init__()
        if on_failure not in ("raise", "nan"):
            raise InputError(f"on_failure must be 'raise' or 'nan', got {on_failure!r}.")
        if adjoint is not None and not isinstance(adjoint, Adjoint):
            raise InputError(f"adjoint must be an Adjoint object such as Implicit(), got {adjoint!r}.")
        require_positive("tolerance", tolerance)
        require_whole("polish_steps", polish_steps, 0)
        if time_limit is not None and not (isinstance(time_limit, int | float) and time_limit > 0):
            raise InputError(f"time_limit must be a number of seconds above 0 or None, got {time_limit!r}.")
        self.time_limit = time_limit
        self.adjoint: Adjoint = Implicit() if adjoint is None else adjoint
        self.on_failure, self.tolerance, self.polish_steps = on_failure, float(tolerance), int(polish_steps)
        self.node: Node
        self.solver: AnySolver
        if isinstance(problem, Declared):
            if parameters is not None or variables is not None or gp:
                name = type(problem).__name__
                raise DeclarationError(f"A {name} declares its own parameters and variables; pass it alone.")
            self.node = problem
            self.captured = problem.captured
            bare = False
        else:
            self.node, bare = declare(problem, parameters, variables, gp)
        self.solver = solver_for(solver, solver_options, self.node)
        self._workspace = Workspace()
        self._signature = Signature.of(self.node, bare)
        self._number = register(self)

    if TYPE_CHECKING:

        def __call__(self, *params: Any, **named: Any) -> Out: ...

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is another layer: compiled models must tell them apart."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._number = register(self)

    def forward(self, *params: Tensor, **named: Tensor) -> Out:
        """The optimal variables for a batch of parameters.

        Parameters
        ----------
        *params, **named : Tensor
            ``(*batch, *parameter.shape)`` each, by position or by cvxpy name. Leading dimensions broadcast; a parameter
            without them is shared and its gradient is summed over the batch.

        Returns
        -------
        Tensor or tuple of Tensor
            ``(*batch, *variable.shape)`` in the dtype and on the device of the parameters. A dict of tensors if the problem
            is a ``TorchProblem`` with a dict of variables.

        Raises
        ------
        InputError
            Wrong count, shape, dtype or device.
        SolverError
            Some element has no solution and ``on_failure="raise"``.
        """
        if torch.compiler.is_compiling():
            return self._traced(params, named)
        return self._called(params, named)

    def _traced(self, params: tuple[Tensor, ...], named: dict[str, Tensor]) -> Any:
        """The call as the compiler sees it."""
        signature = self._signature
        weights = self.captured.current() if signature.captures else []
        found = call_operator(self._number, signature, params, named, weights)
        if found is None:
            return _outside(self._called, params, named)
        if signature.names is not None:
            return dict(zip(signature.names, found, strict=True))
        return found[0] if signature.bare else tuple(found)

    def evaluate(self, args: Sequence[Any], named: Mapping[str, Any], weights: Sequence[Tensor]) -> list[Tensor]:
        """The outputs, flat, with other tensors in the place of those that the functions of the problem capture."""
        with self.captured.standing_in(weights) if self._signature.captures else nullcontext():
            found = self._called(args, named)
        if isinstance(found, Tensor):
            return [found]
        return list(found.values() if isinstance(found, dict) else found)

    def _called(self, params: Sequence[Any], named: Mapping[str, Any]) -> Any:
        if not isinstance(self.node, ConvexProblem):
            found: Any = self._declared(self.node, self.on_failure).outputs(params, named)
            if isinstance(self.node, NonconvexProblem):
                return found["0"] if self._signature.bare else tuple(found.values())
            return found["y"] if isinstance(self.node, TorchProblem) and self.node.bare else found
        batch = gather(self.node.parameters, params, named)
        outputs, _ = self._run(self.node, batch)
        return outputs[0] if self._signature.bare else outputs

    def solve(self, *params: Tensor, **named: Tensor) -> Solution:
        """Like calling the layer, but returns a ``Solution`` with status, residuals, duals and regularity per element.

        Never raises for an element that has no solution: its status tells and its vectors are NaN.

        Parameters
        ----------
        *params, **named : Tensor
            Those of a call.

        Returns
        -------
        Solution
            Every tensor in it is ``(*batch, ...)``.

        Raises
        ------
        InputError
            Wrong count, shape, dtype or device; or a call inside a transform of ``torch.func``: there are no numbers there.

        Examples
        --------
        >>> import cvxpy as cp, torch, ddn_cvx as ddn
        >>> x, p = cp.Variable(), cp.Parameter()
        >>> layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.square(x - p)), [x <= 1]), [p], x)
        >>> layer.solve(torch.tensor([0.5, 3.0])).value
        tensor([0., 4.])
        """
        if torch.compiler.is_compiling():
            return _outside(self._solved, params, named)
        return self._solved(params, named)

    def _solved(self, params: Sequence[Any], named: Mapping[str, Any]) -> Solution:
        if not isinstance(self.node, ConvexProblem):
            return self._declared(self.node, "nan").solution(params, named)
        batch = gather(self.node.parameters, params, named)
        outputs, call = self._run(self.node, batch, on_failure="nan")
        report = call.report
        if report is None or report.status.shape[0] != math.prod(batch.shape):
            raise without_numbers()
        ok = report.ok
        with torch.no_grad():
            primal, dual = self.node.everything(report.values, report.x, report.y)

        def masked(t: Tensor) -> Tensor:
            return batch.restore(nan_where_failed(ok, t))

        def integers(t: Tensor) -> Tensor:
            return t.reshape(batch.shape)

        return Solution(
            outputs=outputs,
            value=masked(report.value),
            status=integers(report.status),
            iterations=integers(report.iterations),
            primal_residual=batch.restore(report.residuals.primal),
            dual_residual=batch.restore(report.residuals.dual),
            gap=batch.restore(report.residuals.gap),
            regularity=integers(call.regularity()),
            x=masked(report.x),
            s=masked(report.s),
            y=masked(report.y),
            primal={name: masked(value) for name, value in primal.items()},
            dual=tuple(tuple(masked(d) for d in duals) for duals in dual),
        )

    def explain(
        self, *params: Tensor, batch: int | None = None, device: torch.device | str | None = None, **named: Tensor
    ) -> Explanation:
        """What a call would do, and why: the solver and those it was preferred to, how the derivative is computed and by
        which code, and what is checked. Nothing is solved. ``print(layer.explain())`` is a page of text.

        Parameters
        ----------
        *params, **named : Tensor, optional
            Those of a call; only their shapes and device matter.
        batch : int, optional
            Instances in a call. Default: those of the parameters, or 64.
        device : torch.device or str, optional
            Default: that of the parameters, or the CPU.

        Returns
        -------
        Explanation
            Text in named fields.

        Raises
        ------
        InputError
            Parameters of wrong count, shape, dtype or device.

        Examples
        --------
        >>> import cvxpy as cp, torch, ddn_cvx as ddn
        >>> x, p = cp.Variable(), cp.Parameter()
        >>> layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.square(x - p)), [x <= 1]), [p], x)
        >>> layer.explain(batch=8).solver
        'ActiveSet'
        """
        settings = Settings(self.solver, self.adjoint, self.tolerance, self.polish_steps, self.on_failure, self.time_limit)
        return explain(self.node, settings, params, named, batch, device)

    def diagnose(self, *params: Any, seed: int = 0, **named: Any) -> Diagnosis:
        """What is special about the answers at these parameters, and what to do: residuals, multipliers, active
        constraints, conditioning, regularity flags, and the gradient against finite differences of the layer along a
        random direction. Solves in double precision, and never raises for an element that has no solution. ``print``
        shows a table.

        Parameters
        ----------
        *params, **named : Tensor
            Those of a call.
        seed : int
            Of the random direction and the random combination of outputs.

        Returns
        -------
        Diagnosis
            Tensors ``(*batch,)`` in named fields, and advice.

        Raises
        ------
        InputError
            Parameters of wrong count, shape, dtype or device.

        Examples
        --------
        >>> import cvxpy as cp, torch, ddn_cvx as ddn
        >>> x, p = cp.Variable(), cp.Parameter()
        >>> layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.square(x - p)), [x <= 1]), [p], x)
        >>> diagnosis = layer.diagnose(torch.tensor([0.5, 1.0]))  # at 1 the bound is active without a force
        >>> diagnosis.healthy, diagnosis.kink
        (False, tensor([False,  True]))
        """
        other = copy.copy(self)
        other.on_failure = "nan"
        if isinstance(self.node, ConvexProblem | NonconvexProblem):
            specs: Sequence[Any] = self.node.parameters
            tensors = match(self.node.parameters, params, named)
            params, named = tuple(tensors), {}
        else:
            specs, tensors, _ = self.node.arguments.match(params, named)
        gather(specs, tensors, {})  # says what is wrong with them
        return diagnose(other, other.solve, other._conditioning, [len(spec.shape) for spec in specs], params, named, seed)

    def _conditioning(self, params: Sequence[Any], named: Mapping[str, Any], solution: Solution) -> tuple[Tensor, Tensor]:
        """Active rows ``(B, rows)`` bool, and condition numbers ``(B,)``."""
        count, device = solution.status.numel(), solution.status.device
        if not count or isinstance(self.node, ODE):
            none = torch.zeros(count, 0, dtype=torch.bool, device=device)
            return none, torch.full((count,), torch.nan, dtype=torch.float64, device=device)
        if isinstance(self.node, ConvexProblem):
            _, call = self._run(self.node, gather(self.node.parameters, params, named), on_failure="nan")
            return call.conditioning()
        declared = self._declared(self.node, "nan")
        assert not isinstance(declared, OdeRun)
        return declared.conditioning(params, named)

    def with_solver(self, solver: str | AnySolver | None, **options: Any) -> Self:
        """The same layer with another forward solver; the problem is not read again, and everything else is shared.

        Parameters
        ----------
        solver : str, Solver or None
            As for the constructor.
        **options
            Options for a solver given by name.

        Returns
        -------
        DeclarativeLayer
            Another module; weights that the problem refers to are those of this one.

        Raises
        ------
        DeclarationError
            The solver cannot take the problem.
        InputError
            An unknown solver or option.

        Examples
        --------
        >>> import cvxpy as cp, torch, ddn_cvx as ddn
        >>> x, p = cp.Variable(), cp.Parameter()
        >>> layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.square(x - p)), [x <= 1]), [p], x)
        >>> layer.with_solver("clarabel", max_iter=50)(torch.tensor([0.5, 3.0]))
        tensor([0.5000, 1.0000])
        """
        other = copy.copy(self)
        other.solver = solver_for(solver, options, self.node)
        return other

    def _declared(self, node: NonconvexProblem | Declared, on_failure: str) -> NonlinearRun | RootRun | OdeRun:
        if isinstance(node, TorchProblem | NonconvexProblem):
            assert isinstance(self.solver, NonlinearSolver)
            return NonlinearRun(
                node, self.solver, self.adjoint, on_failure, self.tolerance, self.polish_steps, self.time_limit
            )
        if isinstance(node, ODE):
            assert isinstance(self.solver, Integrator)
            return OdeRun(node, self.solver, self.adjoint, on_failure, self.time_limit)
        assert isinstance(self.solver, RootSolver)
        return RootRun(node, self.solver, self.adjoint, on_failure, self.tolerance, self.polish_steps, self.time_limit)

    def _run(self, node: ConvexProblem, batch: Batch, on_failure: str | None = None) -> tuple[tuple[Tensor, ...], Call]:
        values = batch.values
        assert isinstance(self.solver, Solver)
        call = Call(
            node,
            self.solver,
            self._workspace,
            batch,
            on_failure or self.on_failure,
            self.tolerance,
            self.polish_steps,
            self.time_limit,
        )
        admissible = torch.ones(values[0].shape[0] if values else 1, dtype=torch.bool, device=batch.device)
        if node.has_conditions:
            with torch.no_grad():
                admissible = node.admissible(values)
            values = [torch.where(per_element(admissible, v), v, torch.ones_like(v)) for v in values]
        pieces = node.pieces(values)
        x, v, ok = attach(self.adjoint, call, node, pieces, (admissible, *values))
        outputs = node.recover(x, v, pieces)
        if not call.complete:
            outputs = tuple(nan_where_failed(ok, out) for out in outputs)
        return tuple(batch.restore(out) for out in outputs), call

    def extra_repr(self) -> str:
        """Sizes of the canonical program and the solver."""
        if isinstance(self.node, NonconvexProblem):
            return f"not convex, n={self.node.n}, solver={self.solver}"
        if isinstance(self.node, Declared):
            return f"{self.node.shapes}, solver={self.solver}"
        program = self.node.program
        return f"n={program.n}, m={program.m}, cones={program.cones}, solver={self.solver}"


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
def _outside(function: Callable[..., Result], params: Sequence[Any], named: Mapping[str, Any]) -> Result:
    """Call a function that the compiler is not to look into."""
    return function(params, named)

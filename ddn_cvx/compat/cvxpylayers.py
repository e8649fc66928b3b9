"""The calling conventions of cvxpylayers, version 1.2 for torch (Agrawal et al., NeurIPS 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import cvxpy as cp
from torch import Tensor, nn

from ddn_cvx.compat.solver_args import WarmStarted, choose
from ddn_cvx.declare.rules import check_declaration
from ddn_cvx.errors import DeclarationError, InputError, SolverError
from ddn_cvx.layer import DeclarativeLayer
from ddn_cvx.solvers.base import Solver
from ddn_cvx.solvers.scs import SCS

BACKENDS = ("CPP", "SCIPY", "NUMPY", "RUST", "COO")


class CvxpyLayer(nn.Module):
    """A convex cvxpy problem as a layer, called like ``cvxpylayers.torch.CvxpyLayer``.

    Change the import and keep the rest. The attribute ``layer`` is the ``DeclarativeLayer`` that does the work; new code
    is better off with that class.

    Parameters
    ----------
    problem : cvxpy.Problem
        Convex by cvxpy's rules. Expressions of parameters that are not DPP are rewritten where that is possible.
    parameters : list or tuple of cvxpy.Parameter
        All parameters of the problem, in the order of the layer's arguments.
    variables : list or tuple of cvxpy.Variable
        The outputs: variables of the problem, or dual variables of its constraints.
    solver : str, Solver or None
        The forward solver: None for the default of this package; a name in any case, "CLARABEL", "SCS", "ECOS", "DIFFCP"
        or one that cvxpy has installed; or a solver object of this package.
    gp : bool
        Read the problem as a geometric program.
    verbose : bool
        The same as ``solver_args={"verbose": True}``.
    canon_backend : str or None
        A name of cvxpy's; without effect, as the backend is chosen by the size of the problem.
    solver_args : mapping or None
        Options of the solver for every call, see below.

    Raises
    ------
    DeclarationError
        (a ``ValueError``) The problem cannot be made DPP, or the parameters or variables are not its own.
    InputError
        (a ``ValueError``) An unknown solver, option or backend.

    Notes
    -----
    ``solver_args`` understands the names of cvxpylayers with every solver, next to the solver's own. Others are an error.

    ``solve_method``
        "SCS", "ECOS" or "Clarabel": the forward solver, whatever ``solver`` says.
    ``eps``, ``eps_abs``, ``eps_rel``
        Its tolerances, where these are tighter than its own here (1e-9 or 1e-10). No effect on the default solver.
    ``max_iters``, ``max_iter``
        Its iteration limit. No effect on the default solver, which has its own.
    ``time_limit_secs``
        Seconds for one element, 0 for no limit. With ``solver=None`` the solver is then Clarabel.
    ``n_jobs_forward``
        Its threads, -1 for one a processor. No effect on solvers that have none.
    ``verbose``
        Print its progress, if it has any to print. With ``solver=None`` the solver is then Clarabel.
    ``alpha``, ``rho_x``, ``scale``, ``adaptive_scale``, ``normalize``, ``eps_infeas``, ``linear_solver``
        As SCS has them. No effect on other solvers, which reach the same solution in another way.
    ``acceleration_lookback``, ``acceleration_interval``
        Likewise.
    ``mode``
        "lsqr", "lsmr" or "dense". No effect: the derivative is exact. The approximate "lpgd" modes are an error.
    ``n_jobs_backward``, ``use_indirect``, ``gpu``
        No effect: how cvxpylayers computes, not what.

    What differs from cvxpylayers, on purpose:

    * An answer that is not optimal to 1e-6 (with a low ``max_iters``, say) is an error, not a warning. The error names every
      element of the batch that failed.
    * Outputs have the dtype of the parameters (there: float64). Integer tensors are an error.
    * The gradient of a symmetric parameter is symmetric (there: all of it is in the upper triangle).
    * A parameter that violates its declared attributes (sign, symmetry, definiteness) is an error.
    * An empty batch gives empty outputs (there: an error).

    State dictionaries saved with cvxpylayers load: what they hold of the problem is passed over.

    Examples
    --------
    >>> import cvxpy as cp, torch
    >>> from ddn_cvx.compat import CvxpyLayer
    >>> x, A, b = cp.Variable(2), cp.Parameter((3, 2)), cp.Parameter(3)
    >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    >>> layer = CvxpyLayer(problem, parameters=[A, b], variables=[x])
    >>> b_batch = torch.tensor([[1.0, -1.0, 0.0], [0.0, 2.0, 5.0]])
    >>> (solution,) = layer(torch.eye(3, 2), b_batch, solver_args={"eps": 1e-10})
    >>> solution
    tensor([[1., 0.],
            [0., 2.]])
    """

    def __init__(
        self,
        problem: cp.Problem,
        parameters: Sequence[cp.Parameter],
        variables: Sequence[cp.Variable],
        solver: str | Solver | None = None,
        gp: bool = False,
        verbose: bool = False,
        canon_backend: str | None = None,
        solver_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_declaration(problem, parameters, variables)
        if canon_backend is not None and canon_backend not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise InputError(f"Unknown backend: {canon_backend}. canon_backend must be None or one of {known}.")
        self._solver = solver
        self._solver_args = {**({"verbose": True} if verbose else {}), **_options(solver_args)}
        chosen = choose(solver, self._solver_args)
        try:
            check_declaration(problem, gp)
            self.layer = DeclarativeLayer(problem, parameters, list(variables), solver=chosen, gp=gp)
        except DeclarationError as error:
            if problem.is_dpp("dgp" if gp else "dcp"):
                raise
            kind = "DPP for geometric programming" if gp else "DPP"
            raise DeclarationError(f"Problem must be {kind}. {error}") from error
        self.register_load_state_dict_pre_hook(_forget_matrices)  # type: ignore[no-untyped-call]  # torch has no types for it

    def forward(
        self, *params: Tensor, solver_args: Mapping[str, Any] | None = None, warm_start: bool = False
    ) -> tuple[Tensor, ...]:
        """The optimal variables.

        Parameters
        ----------
        *params : Tensor
            One for each parameter, ``(*parameter.shape)`` or ``(batch, *parameter.shape)``. Those without a batch dimension
            are shared, and their gradients summed over the batch.
        solver_args : mapping, optional
            Options for this call; they override those of the constructor.
        warm_start : bool
            Start SCS from the solution of the last call with ``warm_start=True`` and a batch of this size. The other solvers
            have no warm start: no effect on them.

        Returns
        -------
        tuple of Tensor
            ``(*variable.shape)`` or ``(batch, *variable.shape)`` each, in the dtype and on the device of the parameters.

        Raises
        ------
        InputError
            (a ``ValueError``) Wrong number, shape, dtype or batch size of the tensors, or an unknown option.
        SolverError
            Some element has no solution. Where diffcp is installed, ``except diffcp.SolverError`` catches it too.
        """
        self._check_shapes(params)
        layer = self.layer
        if solver_args or warm_start:
            solver = choose(self._solver, {**self._solver_args, **_options(solver_args)})
            layer = layer.with_solver(WarmStarted(solver) if warm_start and isinstance(solver, SCS) else solver)
        try:
            outputs: tuple[Tensor, ...] = layer(*params)
            return outputs
        except SolverError as error:
            message = f"{error} Both are of the DeclarativeLayer in the attribute `layer` of this CvxpyLayer."
            raise _solver_error(message, error.status, error.indices) from None

    def _check_shapes(self, params: Sequence[Tensor]) -> None:
        """At most one batch dimension, of one size: cvxpylayers broadcasts nothing else."""
        specs = self.layer.node.parameters
        if len(params) != len(specs):
            raise InputError(
                f"A tensor must be provided for each CVXPY parameter ({', '.join(spec.name for spec in specs)}); "
                f"received {len(params)} tensors, expected {len(specs)}."
            )
        sizes: dict[str, int] = {}
        for i, (spec, value) in enumerate(zip(specs, params, strict=True)):
            which, k = f"parameter {i} ({spec.name!r})", len(spec.shape)
            if not isinstance(value, Tensor):
                raise InputError(f"Expected a torch.Tensor for {which}, got {type(value).__name__}.")
            if value.ndim - k not in (0, 1):
                raise InputError(
                    f"Invalid parameter dimensionality for {which}: expected {k} or {k + 1} dimensions, got {value.ndim}. "
                    "For more batch dimensions use ddn_cvx.DeclarativeLayer."
                )
            if value.shape[value.ndim - k :] != spec.shape:
                expected = ", ".join(map(str, (*["batch"][: value.ndim - k], *spec.shape)))
                raise InputError(f"Invalid parameter shape for {which}: expected ({expected}), got {tuple(value.shape)}.")
            if value.ndim > k:
                sizes[spec.name] = value.shape[0]
        if len(set(sizes.values())) > 1:
            raise InputError(f"Inconsistent batch sizes: all batched parameters must have the same, got {sizes}.")


def _check_declaration(problem: cp.Problem, parameters: Sequence[cp.Parameter], variables: Sequence[cp.Variable]) -> None:
    if not isinstance(problem, cp.Problem):
        raise DeclarationError(f"problem must be a cvxpy.Problem, got {type(problem).__name__}.")
    for name, given in (("parameters", parameters), ("variables", variables)):
        if not isinstance(given, (list, tuple)):
            raise DeclarationError(f"The layer's {name} must be provided as a list or tuple, got {type(given).__name__}.")
    own = {id(p): p.name() for p in problem.parameters()}
    if own.keys() != {id(p) for p in parameters}:
        raise DeclarationError(
            f"The layer's parameters must exactly match problem.parameters, which are {', '.join(own.values()) or 'none'}; "
            f"got {', '.join(map(str, parameters)) or 'none'}."
        )
    duals = (dual for constraint in problem.constraints for dual in constraint.dual_variables)
    possible = {id(v) for v in (*problem.variables(), *duals)}
    for variable in variables:
        if id(variable) not in possible:
            raise DeclarationError(
                f"Variable {variable} must be a subset of problem.variables, or a dual variable of one of its constraints."
            )


def _options(args: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if args is not None and not isinstance(args, Mapping):
        raise InputError(f"solver_args must be a dictionary of options, got {args!r}.")
    return args or {}


def _forget_matrices(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Drop what cvxpylayers saves of a problem, its canonical matrices: they follow from the problem."""
    for name in ("P", "q", "A"):
        state.pop(prefix + name, None)


def _solver_error(message: str, status: tuple[object, ...], indices: tuple[tuple[int, ...], ...]) -> SolverError:
    return _error_class()(message, status, indices)


@cache
def _error_class() -> type[SolverError]:
    """``SolverError``, which is a ``diffcp.SolverError`` as well where there is diffcp."""
    try:
        import diffcp
    except ImportError:
        return SolverError

    class SolverErrorOfBoth(SolverError, diffcp.SolverError):  # type: ignore[misc]  # diffcp has no types
        """The forward solve failed: a ``ddn_cvx.SolverError`` and a ``diffcp.SolverError``."""

        def __reduce__(self) -> tuple[Any, ...]:
            return _solver_error, (str(self), self.status, self.indices)

    return SolverErrorOfBoth

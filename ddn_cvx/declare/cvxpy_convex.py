"""A convex cvxpy problem as a node: parameters -> conic data, conic solution -> variables, all plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from cvxpy.expressions.expression import Expression
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.declare.as_declared import AsDeclared
from ddn_cvx.declare.atoms import compile_expression, is_compact, specify
from ddn_cvx.declare.auto_dpp import has_constant_curvature, to_dpp
from ddn_cvx.declare.canonical import Canonical, canonicalise
from ddn_cvx.declare.check_plan import plan_checks
from ddn_cvx.declare.cvxpy_nonconvex import NonconvexProblem
from ddn_cvx.declare.rules import check_arguments, check_declaration, check_parametrised, distinct_names, explain
from ddn_cvx.errors import DeclarationError
from ddn_cvx.kernels.jit import sweep
from ddn_cvx.kernels.substitution import Substitution
from ddn_cvx.kernels.verification import Plan
from ddn_cvx.program.affine_map import SparseLinear
from ddn_cvx.program.base import Bound
from ddn_cvx.program.cone_units import ParametricUnits
from ddn_cvx.program.conic import ConicProgram
from ddn_cvx.program.elimination import Elimination, Posed
from ddn_cvx.program.instance import Point

# cvxpy itself stays in this package; the layer takes the names of its types from here.
Problem: TypeAlias = cp.Problem
Parameter: TypeAlias = cp.Parameter
Variable: TypeAlias = cp.Variable

Output = tuple[SparseLinear, SparseLinear | None, tuple[int, ...]]


class ConvexProblem:
    """A DCP or DGP cvxpy problem, made DPP where needed, read once; holds no values and no cvxpy objects that matter.

    Parameters
    ----------
    problem : cvxpy.Problem
    parameters : sequence of cvxpy.Parameter
        All parameters of the problem, in the order of the layer's arguments.
    variables : sequence of cvxpy.Variable
        The outputs: variables of the problem, or ``constraint.dual_variables[i]``.
    gp : bool
        Read as a geometric program.

    Raises
    ------
    DeclarationError
        The problem is not convex by cvxpy's rules, or a parameter or variable does not belong to it.
    """

    def __init__(
        self,
        problem: cp.Problem,
        parameters: Sequence[cp.Parameter],
        variables: Sequence[cp.Variable],
        gp: bool = False,
    ):
        check_arguments(problem, parameters, variables)
        check_declaration(problem, gp)
        self.gp = gp
        self.sign = -1.0 if isinstance(problem.objective, cp.Maximize) else 1.0
        self.parameters = tuple(specify(p) for p in parameters)
        self.declared = AsDeclared(problem)
        self._parameter_ids = [p.id for p in parameters]
        self._variable_ids = distinct_names(problem.variables())
        posed, lifted = self._parametrise(problem)
        self._lifted = [compile_expression(expr, parameters, compact=True) for _, expr in lifted]
        roots = [*parameters, *(p for p, _ in lifted)]
        canonical = canonicalise(posed, roots, gp)
        self._bind_map(canonical, roots)
        self._recovery(canonical, problem, posed, variables)

    # ---------------------------------------------------------------- declaration

    def _parametrise(self, problem: cp.Problem) -> tuple[cp.Problem, list[tuple[cp.Parameter, Expression]]]:
        """The problem in DPP form, with a variable even when the user declared none."""
        lifted: list[tuple[cp.Parameter, Expression]] = []
        if self.gp:
            is_dpp = problem.is_dpp("dgp")
        else:
            is_dpp = problem.is_dpp(quad_form_dpp="qp") and not has_constant_curvature(problem.objective.args[0])
        if not is_dpp:
            rewrite = to_dpp(problem, self.gp)
            problem, lifted = rewrite.problem, rewrite.lifted
            check_parametrised(problem, self.gp)
        if not problem.variables():
            dummy = cp.Variable(pos=True) if self.gp else cp.Variable()
            problem = cp.Problem(problem.objective, [*problem.constraints, dummy == 1])
        return problem, lifted

    def _bind_map(self, canonical: Canonical, roots: Sequence[cp.Parameter]) -> None:
        """Compose theta -> data with user values -> theta into one sparse map and a constant."""
        blocks, self._logarithms, width = {}, [], 0
        for k, root in enumerate(roots):
            parts = ["real", "imag"] if root.is_complex() else ["real"]
            for part in parts:
                blocks[k, part] = width
                width += len(root.sparse_idx[0]) if is_compact(root) else root.size
        for _, source in canonical.sources:
            if source.part == "log" and (source.root, "log") not in blocks:
                blocks[source.root, "log"] = width
                self._logarithms.append(source.root)
                width += roots[source.root].size
        rows, cols, vals = [], [], []
        for start, source in canonical.sources:
            if (source.root, source.part) not in blocks:
                continue  # the imaginary part of a real parameter
            for coefficient, index in source.terms:
                flat = index.ravel(order="F")
                rows.append(start + np.arange(flat.size))
                cols.append(blocks[source.root, source.part] + flat)
                vals.append(np.full(flat.size, coefficient))
        theta_size = canonical.data.shape[1] - 1
        if rows:
            entries = (np.concatenate(vals), (np.concatenate(rows), np.concatenate(cols)))
            theta = sp.csr_array(entries, shape=(theta_size, width))
        else:
            theta = sp.csr_array((theta_size, width))
        constant = canonical.data[:, [theta_size]]
        matrix = sp.csr_array(sp.hstack([canonical.data[:, :theta_size] @ theta, constant]))
        self._elimination = Elimination(Posed(canonical.program, matrix))
        self.program: ConicProgram = self._elimination.reduced
        self._units = ParametricUnits(self._elimination)
        self.has_conditions = bool(self._lifted or self._logarithms) or any(self.declared.parameters)
        self.curvature_varies = self._elimination.curvature_varies

    def _recovery(
        self, canonical: Canonical, problem: cp.Problem, posed: cp.Problem, variables: Sequence[cp.Variable]
    ) -> None:
        names = {v.id: canonical.variables.get(v.id) for v in problem.variables()}
        self._primal: dict[int, Output] = {}
        for variable in problem.variables():
            maps = names[variable.id]
            if maps is None:
                raise DeclarationError(f"Variable {variable.name()!r} has no value after canonicalisation.")
            self._primal[variable.id] = _output(maps, tuple(variable.shape))
        self._dual: dict[int, Output] = {}
        self._dual_ids: list[list[int]] = []
        for constraint, posed_constraint in zip(problem.constraints, posed.constraints, strict=False):
            ids = []
            for dual, posed_dual in zip(constraint.dual_variables, posed_constraint.dual_variables, strict=True):
                if posed_dual.id in canonical.duals:
                    self._dual[dual.id] = _output(canonical.duals[posed_dual.id], tuple(dual.shape))
                    ids.append(dual.id)
            self._dual_ids.append(ids)
        self._outputs: list[tuple[bool, int]] = []
        for k, variable in enumerate(variables):
            is_primal = variable.id in self._primal
            if not is_primal and variable.id not in self._dual:
                raise DeclarationError(
                    f"variables[{k}] ({variable.name()!r}) is the dual variable of a constraint whose multiplier cvxpy "
                    "cannot map back (complex second-order cones); ask for a primal variable instead."
                )
            self._outputs.append((is_primal, variable.id))
        self._direct = self._of_reduced(self._outputs)
        self._direct_primal = self._of_reduced([(True, key) for key in self._primal])

    def describe_map(self) -> str:
        """In words, how parameters become problem data."""
        linear = self._elimination.map.linear
        entries, size = linear.shape
        kind = "a gather, for every number is at most one parameter" if linear.is_gather else "a sparse product"
        parts = [f"{size} numbers to {entries} by {kind}"]
        if self._lifted:
            parts.append(f"{len(self._lifted)} expressions of parameters evaluated first")
        if self._logarithms:
            parts.append("logarithms, as for every geometric program")
        eliminated = self._elimination.shape[1]
        if eliminated:
            parts.append(f"{eliminated} auxiliary variables eliminated")
        return "; ".join(parts)

    @property
    def output_shapes(self) -> list[tuple[tuple[int, ...], bool]]:
        """The shape of each output, and whether it is complex."""
        found = [self._primal[key] if is_primal else self._dual[key] for is_primal, key in self._outputs]
        return [(shape, imag is not None) for _, imag, shape in found]

    def _of_reduced(self, wanted: list[tuple[bool, int]]) -> list[Output] | None:
        """Variables as maps of the reduced solution; None if one of them was eliminated."""
        found: list[Output] = []
        for is_primal, key in wanted:
            real, imag, shape = self._primal[key] if is_primal else self._dual[key]
            kept = self._elimination.kept if is_primal else self._elimination.kept_rows
            parts = [None if part is None else _restrict(part, kept) for part in (real, imag)]
            if parts[0] is None or (imag is not None and parts[1] is None):
                return None
            found.append((parts[0], parts[1], shape))
        return found

    # ---------------------------------------------------------------- plain torch

    @property
    def compiled(self) -> Substitution | None:
        """``bind`` for the compiled kernels; None where they do not take the program."""
        return self._elimination.compiled

    def is_ordinary(self, u: NDArray[np.float64]) -> bool:
        """Whether ``compiled`` gives the numbers of ``bind`` for u (B, k), which it does but for units of rows."""
        return self._units.are_one(u)

    def pieces(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Parameter values ``(B, *shape)`` as the pieces ``(B, ...)`` of one vector; differentiable."""
        if self._lifted:
            # Where a lifted expression overflows, its infinite derivative times zero would be NaN.
            with torch.no_grad():
                finite = torch.isfinite(_join(self._pieces(values))).all(-1)
            values = [torch.where(finite.reshape(-1, *(1,) * (v.ndim - 1)), v, v.detach()) for v in values]
        return self._pieces(values)

    def bind(self, pieces: Sequence[Tensor]) -> Bound:
        """Conic data for the pieces of the parameter vector; differentiable."""
        u, finite = _clean(_join(pieces))
        data = self._units.bind(u)
        with torch.no_grad():
            finite = finite & torch.isfinite(torch.cat(data, 1)).all(-1)
        return Bound(data, u, finite)

    def _pieces(self, values: Sequence[Tensor]) -> list[Tensor]:
        by_id = dict(zip(self._parameter_ids, values, strict=True))
        values = [*values, *(evaluate(by_id) for evaluate in self._lifted)]
        pieces = []
        for value in values:
            pieces += [value.real, value.imag] if value.is_complex() else [value]
        pieces += [values[k].log() for k in self._logarithms]
        return pieces or [torch.zeros(1, 0, dtype=torch.float64)]

    def recover(self, x: Tensor, v: Tensor, pieces: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The requested outputs from the conic solution; differentiable."""
        primal_only = self._direct is not None and all(is_primal for is_primal, _ in self._outputs)
        y = v
        if not primal_only:
            x, y = self._units.undo(x, self.program.cones.project_dual(v), _clean(_join(pieces))[0])
        if self._direct is not None:
            raw = [
                _assemble(x if is_primal else y, maps)
                for (is_primal, _), maps in zip(self._outputs, self._direct, strict=True)
            ]
        else:
            x, y = self._elimination.expand(x, y, _clean(_join(pieces))[0])
            raw = [
                _assemble(x, self._primal[key]) if is_primal else _assemble(y, self._dual[key])
                for is_primal, key in self._outputs
            ]
        return tuple(
            value.exp() if self.gp and is_primal else value for value, (is_primal, _) in zip(raw, self._outputs, strict=True)
        )

    def admissible(self, values: Sequence[Tensor]) -> Tensor:
        """Whether parameters have their declared attributes, ``(B,)``."""
        like = _rows(values[0]).real[:, 0] if values[0].numel() else values[0].real.new_zeros(values[0].shape[0])
        good = self.declared.admissible(dict(zip(self._parameter_ids, values, strict=True)), like)
        for value in values:
            good = good & torch.isfinite(_rows(value)).all(1)
        for k in self._logarithms:
            if k < len(values):
                good = good & (_rows(values[k]) > 0).all(1)
        return good

    @cached_property
    def plan(self) -> Plan | None:
        """What ``inspect`` computes, for a compiled kernel; None where torch does it."""
        maps, specs = self._direct_primal, zip(self._parameter_ids, self.parameters, strict=True)
        if self.program.structure is None or self.gp or maps is None or any(p.is_complex for p in self.parameters):
            return None
        if any(imag is not None for _, imag, _ in maps):
            return None
        parameters = [(key, spec.inner) for key, spec in specs]
        variables = [(key, shape, real.matrix) for key, (real, _, shape) in zip(self._primal, maps, strict=True)]
        return plan_checks(self.declared, parameters, variables, self._elimination, self.sign)

    def inspect(self, values: Sequence[Tensor], u: Tensor, point: Point, tolerance: float) -> tuple[Tensor, Tensor]:
        """The declared objective ``(B,)`` and the largest relative violation ``(B,)`` at a candidate solution."""
        plan = self.plan if u.device.type == "cpu" else None
        if plan is not None:
            measures, found = np.zeros((len(u), 6)), np.empty((len(u), 2))
            measures[:, 5] = point.value.numpy()
            sweep(len(u), [plan.task(u.numpy(), point.x.numpy(), measures, found, tolerance)])
            return torch.from_numpy(found[:, 0]), torch.from_numpy(found[:, 1])
        x, y, canonical = point.x, point.y, point.value
        if self._elimination.has_constant:
            canonical = canonical + self._elimination.constant(u)
        if self._direct_primal is None:
            full, _ = self._elimination.expand(*self._units.undo(x, y, u), u)
            variables = {key: self._variable(full, maps) for key, maps in self._primal.items()}
        else:
            pairs = zip(self._primal, self._direct_primal, strict=True)
            variables = {key: self._variable(x, maps) for key, maps in pairs}
        by_id = dict(zip(self._parameter_ids, values, strict=True))
        canonical = canonical if self.sign > 0 else -canonical
        return self.declared({**by_id, **variables}, canonical.exp() if self.gp else canonical, tolerance)

    def everything(
        self, values: Sequence[Tensor], x: Tensor, y: Tensor
    ) -> tuple[dict[str, Tensor], tuple[tuple[Tensor, ...], ...]]:
        """All variables by name, and the dual variables of each declared constraint."""
        u, _ = _clean(_join(self.pieces(values)))
        x, y = self._elimination.expand(*self._units.undo(x, y, u), u)
        primal = {name: self._variable(x, self._primal[key]) for name, key in self._variable_ids.items()}
        return primal, tuple(tuple(_assemble(y, self._dual[key]) for key in ids) for ids in self._dual_ids)

    def _variable(self, x: Tensor, maps: Output) -> Tensor:
        value = _assemble(x, maps)
        return value.exp() if self.gp else value


def _clean(u: Tensor) -> tuple[Tensor, Tensor]:
    """Parameters with zeros where an element's are not numbers, and which elements' are, ``(B,)`` bool."""
    finite = torch.isfinite(u).all(-1)
    return torch.where(finite.unsqueeze(-1), u, 0.0), finite


def _join(pieces: Sequence[Tensor]) -> Tensor:
    """The parameter vector, ``(B, k)``."""
    return torch.cat([_rows(piece) for piece in pieces], 1)


def _rows(tensor: Tensor) -> Tensor:
    """``(B, *shape)`` -> ``(B, size)``, also when there is nothing in it."""
    return tensor.flatten(1) if tensor.ndim > 1 else tensor.unsqueeze(1)


def _restrict(linear: SparseLinear, kept: NDArray[np.int64]) -> SparseLinear | None:
    """The map from the kept entries alone; None if it reads others."""
    matrix = sp.csc_array(linear.matrix)
    other = np.setdiff1d(np.arange(matrix.shape[1]), kept)
    return None if matrix[:, other].nnz else SparseLinear(matrix[:, kept])


def _output(maps: tuple[sp.csr_array, sp.csr_array | None], shape: tuple[int, ...]) -> Output:
    real, imag = maps
    return SparseLinear(real), None if imag is None else SparseLinear(imag), shape


def _assemble(vector: Tensor, output: Output) -> Tensor:
    real, imag, shape = output
    value = real(vector)
    if imag is not None:
        value = torch.complex(value, imag(vector))
    return value if value.shape[1:] == shape else value.reshape(vector.shape[0], *shape)


def declare(
    problem: Problem,
    parameters: Sequence[Parameter] | None,
    variables: Variable | Sequence[Variable] | None,
    gp: bool,
) -> tuple[ConvexProblem | NonconvexProblem, bool]:
    """The node of a cvxpy problem, and whether its output is a bare variable rather than a list.

    A problem that is DCP (or is to be read as a geometric one) is a cone program, any other a nonlinear program.

    Raises
    ------
    DeclarationError
        See ``ConvexProblem`` and ``NonconvexProblem``.
    """
    if not isinstance(problem, cp.Problem):
        raise DeclarationError(
            f"problem must be a cvxpy.Problem, or a TorchProblem, FixedPoint, Root or ODE, got {type(problem).__name__}."
        )
    bare = isinstance(variables, cp.Variable)
    outputs = problem.variables() if variables is None else [variables] if bare else list(variables)
    if isinstance(parameters, cp.Parameter):
        raise DeclarationError(f"parameters must be a list of cvxpy.Parameter objects; write [{parameters.name()}].")
    given = problem.parameters() if parameters is None else list(parameters)
    if gp or problem.is_dcp():
        return ConvexProblem(problem, given, outputs, gp), bare
    check_arguments(problem, given, outputs)
    return NonconvexProblem(problem, given, outputs, explain(problem)), bare

"""From a DPP cvxpy problem to a conic program and the linear maps around it.

cvxpy's reductions rename, split and shrink parameters, variables and constraints on the way to the solver. All of that
is linear, with at most two entries a row, so it is recorded once as sparse matrices:

* ``parameters``: user parameters (flattened in C order, complex as real pairs) -> cvxpy's parameter vector theta;
* ``data``: theta -> the values of ``P, q, d, A, b``;
* ``variables``: x -> the user's variables;   ``duals``: y -> the ``dual_variables`` of the user's constraints.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import cvxpy as cp
import cvxpy.settings as settings
import numpy as np
import scipy.sparse as sp
import torch
from cvxpy.constraints import SOC, ExpCone, NonNeg, PowCone3D, PowConeND, SvecPSD
from cvxpy.reductions.complex2real.complex2real import Complex2Real
from cvxpy.reductions.cvx_attr2constr import SYMMETRIC_ATTRIBUTES, CvxAttr2Constr, lower_value
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ParamConeProg
from cvxpy.reductions.dgp2dcp.dgp2dcp import Dgp2Dcp
from cvxpy.reductions.solution import Solution
from cvxpy.reductions.solvers.conic_solvers.conic_solver import ConicSolver
from cvxpy.utilities.psd_utils import TriangleKind
from numpy.typing import NDArray

from ddn_cvx.cones import Cone, Product
from ddn_cvx.declare.atoms import is_compact
from ddn_cvx.declare.in_cone import InCone
from ddn_cvx.errors import DeclarationError
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.program.cone_units import ConeUnits
from ddn_cvx.program.conic import ConicProgram

ORDINARY = 16.0
"""Coefficients in rows of curved cones between this and its reciprocal are left as they are."""


class _Waist(ConicSolver):
    """Tells cvxpy which conic form we read; never solves anything."""

    MIP_CAPABLE: ClassVar = False
    BOUNDED_VARIABLES: ClassVar = False
    SUPPORTED_CONSTRAINTS: ClassVar = [*ConicSolver.SUPPORTED_CONSTRAINTS, SOC, SvecPSD, ExpCone, PowCone3D, PowConeND]
    PSD_TRIANGLE_KIND = TriangleKind.UPPER
    PSD_SQRT2_SCALING = True
    EXP_CONE_ORDER: ClassVar = [0, 1, 2]

    def name(self) -> str:
        return "DDN_CVX"

    def import_solver(self) -> None:
        """Nothing to import."""

    def supports_quad_obj(self) -> bool:
        return True

    def cite(self, data: object) -> str:
        return ""

    def solve_via_data(self, *args: object, **kwargs: object) -> None:
        raise DeclarationError("this solver only canonicalises; call the layer instead of problem.solve()")


@dataclass(frozen=True)
class LinearSource:
    """Where a block of theta comes from: ``sum_k coefficient_k * root.flat[index_k]``, of the root's part."""

    root: int
    """Position in the list of parameters."""
    part: str
    """``"real"``, ``"imag"`` or ``"log"``."""
    terms: tuple[tuple[float, NDArray[np.int64]], ...]
    """Coefficients and index arrays, shaped like the block."""

    def map(self, function: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> LinearSource:
        return LinearSource(self.root, self.part, tuple((c, function(index)) for c, index in self.terms))


@dataclass(frozen=True)
class Canonical:
    """A conic program with the maps into and out of it (scipy sparse matrices)."""

    program: ConicProgram
    data: sp.csr_array
    """(nnz(P) + n + 1 + nnz(A) + m, size of theta + 1): theta, 1 -> the values of P, q, d, A, b."""
    sources: tuple[tuple[int, LinearSource], ...]
    """For each block of theta, its first position and where it comes from."""
    variables: dict[int, tuple[sp.csr_array, sp.csr_array | None]]
    """Variable id -> the maps from x to its real and imaginary parts, in C order."""
    duals: dict[int, tuple[sp.csr_array, sp.csr_array | None]]
    """Dual variable id -> the maps from y to its real and imaginary parts, in C order."""


def canonicalise(problem: cp.Problem, parameters: Sequence[cp.Parameter], gp: bool) -> Canonical:
    """Run cvxpy's reductions once and record what they do.

    Raises
    ------
    DeclarationError
        A dual variable that cvxpy cannot map through its reductions.
    """
    with warnings.catch_warnings():
        # cvxpy warns its own reductions about reading sparse leaves
        warnings.filterwarnings("ignore", message="Reading from a sparse CVXPY expression")
        data, chain, inverse = _stand_in(problem).get_problem_data(_Waist(), gp=gp, enforce_dpp=True)
    program: ParamConeProg = data[settings.PARAM_PROB]
    others = _others(program, chain, problem)
    maps = _variable_maps(program, chain, problem.variables())
    visible = np.zeros(program.x.size, bool)
    for real, imag in maps.values():
        visible[sp.csc_array(abs(real) if imag is None else abs(real) + abs(imag)).sum(axis=0) > 0] = True
    conic, matrix, units = _problem_data(program, others, visible)
    # An auxiliary variable with a price that is a parameter: if it is not unique, neither is the derivative with respect to
    # the price (the epigraph variable of w |y| at w = 0).
    prices = sp.csr_array(matrix[conic.P.nnz : conic.P.nnz + conic.n, :-1])
    conic.visible[np.diff(prices.indptr) > 0] = True
    return Canonical(
        program=conic,
        data=matrix,
        sources=tuple(_parameter_sources(program, chain, parameters)),
        variables=maps,
        duals=_dual_maps(program, chain, inverse, problem, others.place, units),
    )


class _Others(NamedTuple):
    """Cones that cvxpy does not know."""

    cones: tuple[Cone, ...]
    place: NDArray[np.int64]
    """The row of the program for each of cvxpy's: theirs come last."""


def _stand_in(problem: cp.Problem) -> cp.Problem:
    """The problem with half-lines in the place of cones that cvxpy does not know: as many rows, which it leaves alone."""
    if not any(isinstance(c, InCone) for c in problem.constraints):
        return problem
    constraints = [NonNeg(c.args[0], constr_id=c.id) if isinstance(c, InCone) else c for c in problem.constraints]
    return cp.Problem(problem.objective, constraints)


def _others(pp: ParamConeProg, chain: Any, problem: cp.Problem) -> _Others:
    names = chain.compose_constr_id_map()
    inside = {names.get(c.id, c.id): c for c in problem.constraints if isinstance(c, InCone)}
    kept, moved, cones, start = list[NDArray[np.int64]](), list[NDArray[np.int64]](), list[Cone](), 0
    for constraint in pp.constraints:
        rows = np.arange(start, start + constraint.size)
        (moved if constraint.id in inside else kept).append(rows)
        cones += inside[constraint.id].cones if constraint.id in inside else []
        start += constraint.size
    order = np.concatenate([np.zeros(0, np.int64), *kept, *moved])
    return _Others(tuple(cones), order.argsort())


def _problem_data(
    pp: ParamConeProg, others: _Others, visible: NDArray[np.bool_]
) -> tuple[ConicProgram, sp.csr_array, NDArray[np.float64]]:
    """The program, the map to its values, and the factor of each row."""
    n, m, width = pp.x.size, int(pp.constr_size), pp.total_param_size + 1
    # cvxpy stacks [A | b] column by column; entry (i, j) is row j * m + i of the tensor, and its sign is s = Ax + b.
    stored, tensor = _nonempty_rows(pp.A if m else sp.coo_array((0, width)))
    if others.cones:
        stored = stored - stored % m + others.place[stored % m]
        order = stored.argsort()
        stored, tensor = stored[order], tensor[order]
    A = _pattern(stored[stored < n * m], m, n)
    A_map = -tensor[: A.nnz]  # in the order of the pattern
    b_map = _spread(tensor[A.nnz :], stored[A.nnz :] - n * m, m)
    if pp.P is None:
        P = Pattern.of(sp.csc_array((n, n)))
        P_map = sp.csr_array((0, width))
    else:
        entries, quadratic = _nonempty_rows(pp.P)
        i, j = entries % n, entries // n
        place = np.maximum(i, j) * n + np.minimum(i, j)
        upper = np.unique(place)
        P = _pattern(upper, n, n)
        # Either triangle may hold the numbers: the symmetric part is what the quadratic form sees.
        halves = (np.where(i == j, 1.0, 0.5), (np.searchsorted(upper, place), np.arange(len(place))))
        P_map = sp.csr_array(halves, (P.nnz, len(place))) @ quadratic
    q = sp.csr_array(pp.q)
    dims = pp.cone_dims
    power = tuple((float(a), 1.0 - float(a)) for a in dims.p3d) + tuple(tuple(map(float, a)) for a in dims.pnd)
    nonneg = dims.nonneg - sum(cone.dim for cone in others.cones)
    cones = Product(dims.zero, nonneg, tuple(dims.soc), tuple(dims.psd), dims.exp, power, others.cones)
    conic = ConicProgram(P, A, cones, visible)
    sizes = torch.from_numpy(abs(A_map).sum(axis=1)).unsqueeze(0)  # parameters count as 1
    rows, columns = (units[0].numpy() for units in ConeUnits(conic, visible, ORDINARY).of(sizes))
    factors = (columns[P.rows] * columns[P.cols], columns, np.ones(1), rows[A.rows] * columns[A.cols], rows)
    matrix = sp.diags_array(np.concatenate(factors)) @ sp.vstack([P_map, q[:n], q[n : n + 1], A_map, b_map])
    return conic, sp.csr_array(matrix), rows


def _nonempty_rows(matrix: Any) -> tuple[NDArray[np.int64], sp.csr_array]:
    """The numbers of the rows that store something, ascending, and these rows. Of rows there may be as many as a dense
    matrix has entries, so nothing here is as long as that."""
    coo = sp.coo_array(matrix, dtype=float)
    rows, place = np.unique(coo.coords[0].astype(np.int64), return_inverse=True)
    return rows, sp.csr_array((coo.data, (place, coo.coords[1])), shape=(len(rows), coo.shape[1]))


def _pattern(places: NDArray[np.int64], rows: int, cols: int) -> Pattern:
    """The pattern with entries at these places, ascending, of a matrix stacked column by column."""
    count = np.bincount(places // max(rows, 1), minlength=cols)
    return Pattern((rows, cols), np.append(0, np.cumsum(count)).astype(np.int64), places % max(rows, 1))


def _spread(matrix: sp.csr_array, rows: NDArray[np.int64], length: int) -> sp.csr_array:
    """A matrix with these rows among ``length``, the others empty."""
    return sp.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), (length, len(rows))) @ matrix


def _parameter_sources(pp: ParamConeProg, chain: Any, parameters: Sequence[cp.Parameter]) -> list[tuple[int, LinearSource]]:
    sources: dict[int, dict[str, LinearSource]] = {
        p.id: {part: _root(k, p, part) for part in ("real", "imag")} for k, p in enumerate(parameters)
    }
    for reduction in chain.reductions:
        if isinstance(reduction, Complex2Real):
            for old, (real, imag) in reduction.canon_methods._parameters.items():
                origin = sources[old.id]
                if real is not None:
                    sources[real.id] = {"real": origin["real"]}
                if imag is not None:
                    part = origin["imag"]
                    sources[imag.id] = {"real": part.map(_strict_upper) if old.is_hermitian() else part}
        elif isinstance(reduction, Dgp2Dcp):
            for old, new in reduction.canon_methods._parameters.items():
                root = sources[old.id]["real"]
                sources[new.id] = {"real": LinearSource(root.root, "log", root.terms)}
        elif isinstance(reduction, CvxAttr2Constr):
            for old, new in reduction._parameters.items():
                whole = sources[old.id]["real"]
                sources[new.id] = {"real": whole if is_compact(old) else whole.map(_Lower(old))}
    return [(int(pp.param_id_to_col[p.id]), sources[p.id]["real"]) for p in pp.parameters]


def _strict_upper(index: NDArray[np.int64]) -> NDArray[np.int64]:
    return index[np.triu_indices(index.shape[0], k=1)]


@dataclass(frozen=True)
class _Lower:
    """The reduced representation (triangle, diagonal, nonzeros) of an array shaped like a parameter."""

    parameter: cp.Parameter

    def __call__(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(lower_value(self.parameter, index)).astype(np.int64)


def _root(position: int, parameter: cp.Parameter, part: str) -> LinearSource:
    """The parameter itself; symmetric and Hermitian ones are averaged with their (conjugate) transpose,
    so that a gradient is that of the symmetric argument and not twice its triangle."""
    if is_compact(parameter):
        return LinearSource(position, part, ((1.0, np.arange(len(parameter.sparse_idx[0]))),))
    index = np.arange(parameter.size).reshape(parameter.shape)
    attributes = parameter.attributes
    if parameter.ndim == 2 and any(attributes[a] for a in [*SYMMETRIC_ATTRIBUTES, "hermitian"]):
        sign = -0.5 if part == "imag" else 0.5
        return LinearSource(position, part, ((0.5, index), (sign, index.T)))
    return LinearSource(position, part, ((1.0, index),))


Inverse = Callable[[NDArray[np.float64]], dict[int, Any]]


def _linear_maps(
    apply: Inverse, size: int, shapes: dict[int, tuple[int, ...]]
) -> dict[int, tuple[sp.csr_array, sp.csr_array | None]]:
    """The matrices of a linear function with at most one entry a row, found by probing it with two vectors and
    verified with a third."""
    probe = np.random.default_rng(0).standard_normal(size)
    ones, counts, check = apply(np.ones(size)), apply(np.arange(1.0, size + 1)), apply(probe)
    maps: dict[int, tuple[sp.csr_array, sp.csr_array | None]] = {}
    for key, shape in shapes.items():
        if key not in ones:
            if int(np.prod(shape)) == 0:
                maps[key] = (sp.csr_array((0, size)), None)
            continue
        parts: list[sp.csr_array | None] = []
        for part in (np.real, np.imag):
            one, count, expected = (part(_dense(v[key])).reshape(shape).ravel() for v in (ones, counts, check))
            filled = np.flatnonzero(one)
            column = np.rint(count[filled] / one[filled]).astype(np.int64) - 1
            matrix = sp.csr_array((one[filled], (filled, column)), shape=(len(one), size))
            if not np.allclose(matrix @ probe, expected, atol=1e-12):
                return maps
            parts.append(matrix)
        complex_valued = np.iscomplexobj(_dense(ones[key]))
        maps[key] = (parts[0], parts[1] if complex_valued else None)
    return maps


def _dense(value: Any) -> NDArray[Any]:
    return np.asarray(value.toarray() if sp.issparse(value) else value)


def _variable_maps(
    pp: ParamConeProg, chain: Any, variables: Sequence[cp.Variable]
) -> dict[int, tuple[sp.csr_array, sp.csr_array | None]]:
    def apply(x: NDArray[np.float64]) -> dict[int, Any]:
        values: dict[int, Any] = pp.split_solution(x)
        for reduction in reversed(chain.reductions):
            if isinstance(reduction, Dgp2Dcp):
                # exp() is applied in torch; here only the names change.
                for old, (new,) in reduction.var_id_map.items():
                    if new in values:
                        values[old] = values.pop(new)
            else:
                values = reduction.var_forward(values)
        return values

    return _linear_maps(apply, pp.x.size, {v.id: v.shape for v in variables})


def _dual_maps(
    pp: ParamConeProg,
    chain: Any,
    inverse: Any,
    problem: cp.Problem,
    place: NDArray[np.int64],
    units: NDArray[np.float64],
) -> dict[int, tuple[sp.csr_array, sp.csr_array | None]]:
    saved = [[dual.value for dual in c.dual_variables] for c in problem.constraints]

    def apply(y: NDArray[np.float64]) -> dict[int, Any]:
        rows: dict[int, Any] = {}
        y, start = (units * y)[place], 0
        for constraint in pp.constraints:
            rows[constraint.id] = y[start : start + constraint.size]
            start += constraint.size
        primal = {pp.x.id: np.zeros(pp.x.size)}
        solution = Solution(settings.OPTIMAL, 0.0, primal, rows, {})
        for reduction, data in reversed(list(zip(chain.reductions[:-1], inverse[:-1], strict=True))):
            solution = reduction.invert(solution, data)
        values: dict[int, Any] = {}
        for constraint in problem.constraints:
            if constraint.id in solution.dual_vars:
                constraint.save_dual_value(solution.dual_vars[constraint.id])
                values.update({dual.id: dual.value for dual in constraint.dual_variables})
        return values

    shapes = {dual.id: dual.shape for c in problem.constraints for dual in c.dual_variables}
    try:
        return _linear_maps(apply, len(place), shapes)
    finally:
        for constraint, values in zip(problem.constraints, saved, strict=True):
            for dual, value in zip(constraint.dual_variables, values, strict=True):
                dual.save_value(value)

"""A zoo of small cvxpy problems whose solution, and so whose derivative, is known without cvxpy.

Each entry declares a problem, draws parameter values and, where one exists, gives the answer in closed form
(or by an elementary numpy/scipy computation good to about 1e-12). A conformance suite builds a layer from
`entry.build()` and compares its outputs with `reference_solution`, its derivatives with `reference_jacobian`.
Outputs may be dual variables; their sign is that of cvxpy's `constraint.dual_variables[i].value`.

Tags. The cones a conic solver sees after cvxpy's reductions: `zero nonneg soc psd exp pow3d pownd`, and `qp`
where the objective stays quadratic. The declaration: `lp gp maximize unconstrained complex sparse`; `dual` if
an output is dual; `autodpp` if convex for fixed parameters but not DPP by cvxpy's rules, with `atom` if the
reason is an atom that takes no parameters rather than a product of them. Set apart: `degenerate`, where the
derivative does not exist or is not unique, and `nonunique`, where the solution is one of many.

The module is long for one reason: it is a catalogue, read entry by entry.
"""

import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import cvxpy
import numpy as np
from scipy.linalg import convolution_matrix
from scipy.optimize import brentq, lsq_linear, nnls
from scipy.special import expit, lambertw, softmax

cp: Any = cvxpy  # cvxpy's star imports are invisible to type checkers
Array: TypeAlias = Any  # an ndarray; numpy's own annotations turn into Any at the first product
Answer = Callable[[list[Array]], list[Array]]
Built = tuple[cvxpy.Problem, list[cvxpy.Parameter], list[cvxpy.Variable]]
Declared = tuple[cvxpy.Problem, list[cvxpy.Variable]]


@dataclass(frozen=True)
class Input:
    """One parameter: its shape, how to draw a value, and the attributes it is declared with."""

    shape: tuple[int, ...]
    draw: Callable[[np.random.Generator], Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One problem. `solution(*values)` gives the outputs, `derivative(values, tangents)` their tangents.

    `solution` is None where only a solver knows it, `derivative` wherever differences will do.
    """

    name: str
    inputs: Mapping[str, Input]
    declare: Callable[..., Declared]
    solution: Callable[..., list[Array]] | None
    derivative: Callable[..., list[Array]] | None
    tags: frozenset[str]

    def build(self) -> Built:
        """Fresh cvxpy objects: problem, parameters (in the order of `sample`), outputs (of `solution`)."""
        parameters = {k: cp.Parameter(i.shape, name=k, **i.attributes) for k, i in self.inputs.items()}
        problem, outputs = self.declare(**parameters)
        return problem, list(parameters.values()), outputs

    def sample(self, rng: np.random.Generator) -> list[Array]:
        """Parameter values: at a regular point, well away from any kink, unless tagged `degenerate`."""
        for _ in range(100):
            values = [np.asarray(i.draw(rng)) for i in self.inputs.values()]
            if "degenerate" in self.tags or self._is_smooth_near(values, rng):
                return values
        raise RuntimeError(f"{self.name}: no regular point in 100 draws; change how its inputs are drawn")

    def _is_smooth_near(self, values: list[Array], rng: np.random.Generator) -> bool:
        """Do difference quotients with a wide and a narrow stencil agree? Across a kink they cannot."""
        admissible = [directions(parameter) for parameter in self.build()[1]]
        for _ in range(4):
            tangent = [np.tensordot(rng.standard_normal(len(d)), d, 1) for d in admissible]
            answer = partial(reference_solution, self)
            wide, narrow = (_quotient(answer, values, tangent, h) for h in (2e-2, 1e-3))
            if not all(np.allclose(w, n, rtol=1e-3, atol=1e-3) for w, n in zip(wide, narrow, strict=True)):
                return False
        return True


def reference_solution(entry: Entry, values: list[Array]) -> list[Array]:
    """The outputs at `values`: the closed form where there is one, else `tight_solve`."""
    if entry.solution is None:
        return tight_solve(entry, values)
    return [np.asarray(output) for output in entry.solution(*values)]


def tight_solve(entry: Entry, values: list[Array]) -> list[Array]:
    """The outputs by Clarabel, as accurately as it can; RuntimeError if residuals or gap stay above 1e-8.

    Steps half-way to the boundary keep the iterates central, which is worth 3 to 5 digits of x. On curved
    cones too tight a tolerance spoils the residuals again, so of several tolerances the best answer is taken.
    """
    problem, parameters, outputs = entry.build()
    best, found = 1e-8, list[Any]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cvxpy on DPP, on dense access to sparse leaves, on inaccuracy
        for parameter, value in zip(parameters, values, strict=True):
            parameter.value = value
        data, chain, inverse = problem.get_problem_data(cp.CLARABEL, gp="gp" in entry.tags, solver_opts={})
        for tolerance in (1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9):
            raw = chain.solve_via_data(
                problem,
                data,
                solver_opts={
                    **dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), tolerance),
                    **dict.fromkeys(("iterative_refinement_reltol", "iterative_refinement_abstol"), 1e-16),
                    "iterative_refinement_max_iter": 50,
                    "max_step_fraction": 0.5,
                    "presolve_enable": False,
                },
            )
            gap = abs(raw.obj_val - raw.obj_val_dual) / (1 + abs(raw.obj_val))
            error = np.max([gap, raw.r_prim, raw.r_dual])
            if str(raw.status) in ("Solved", "AlmostSolved") and error < best:
                problem.unpack_results(raw, chain, inverse)
                best, found = error, [output.value for output in outputs]
            if best < 1e-13:
                break
    if not found:
        raise RuntimeError(f"{entry.name}: Clarabel stops with {raw.status}, residuals or gap {error:.1e}")
    return [dense(y) for y in found]


def dense(value: Any) -> Array:
    """cvxpy gives the value of a diagonal variable as a sparse array."""
    return np.asarray(value.toarray() if hasattr(value, "toarray") else value)


def directions(parameter: cvxpy.Parameter) -> Array:
    """A real basis `(k, *shape)` of the perturbations which stay within the parameter's attributes."""
    units = np.eye(parameter.size).reshape(parameter.size, *parameter.shape)
    has = parameter.attributes
    if has["hermitian"] or has["symmetric"] or has["PSD"] or has["NSD"]:
        n = parameter.shape[0]
        unit, upper = units.reshape(n, n, n, n), list(itertools.combinations(range(n), 2))
        even = [unit[i, i] for i in range(n)] + [unit[i, j] + unit[j, i] for i, j in upper]
        odd = [1j * (unit[i, j] - unit[j, i]) for i, j in upper if has["hermitian"]]
        return np.stack(even + odd)
    if has["sparsity"] or has["diag"]:
        pattern = np.zeros(parameter.shape, bool)
        pattern[parameter.sparse_idx if has["sparsity"] else np.diag_indices(len(pattern))] = True
        return units[pattern.ravel()]
    if has["imag"]:
        return 1j * units
    return np.concatenate([units, 1j * units]) if has["complex"] else units


def reference_jacobian(entry: Entry, values: list[Array], tight: bool = False) -> list[list[Array]]:
    """`J[i][j]` `(k, *output_i.shape)`: the derivative of output i along the k `directions` of parameter j.

    Central differences of the closed form (step 1e-3), or of `tight_solve` where there is none or `tight` is
    set (step 1e-2: truncation and noise of the solver are then both about 1e-8 of the derivative).
    """
    by_solver = tight or entry.solution is None
    answer, h = (tight_solve, 1e-2) if by_solver else (reference_solution, 1e-3)
    columns = []
    for j, parameter in enumerate(entry.build()[1]):
        still = [np.zeros_like(value) for value in values]
        tangents = ([*still[:j], d, *still[j + 1 :]] for d in directions(parameter))
        quotients = [_quotient(partial(answer, entry), values, tangent, h) for tangent in tangents]
        columns.append([np.stack(output) for output in zip(*quotients, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def _quotient(f: Answer, x: list[Array], tangent: list[Array], h: float) -> list[Array]:
    """Sixth-order central difference of f at x along the tangent."""
    points = [f([v + k * h * t for v, t in zip(x, tangent, strict=True)]) for k in (-3, -2, -1, 1, 2, 3)]
    return [np.tensordot([-1, 9, -45, 45, -9, 1], y, 1) / (60 * h) for y in zip(*points, strict=True)]


# How parameters are drawn.


def fixed(value: Any) -> Input:
    return Input(np.shape(value), lambda rng: np.array(value, float))


def normal(*shape: int, **attributes: Any) -> Input:
    return Input(shape, lambda rng: rng.standard_normal(shape), attributes)


def uniform(low: float, high: float, *shape: int, **attributes: Any) -> Input:
    return Input(shape, lambda rng: rng.uniform(low, high, shape), attributes)


def signed(low: float, high: float, *shape: int) -> Input:
    return Input(shape, lambda rng: rng.uniform(low, high, shape) * rng.choice([-1.0, 1.0], shape))


def complex_normal(*shape: int) -> Input:
    draw = normal(*shape).draw
    return Input(shape, lambda rng: draw(rng) + 1j * draw(rng), {"complex": True})


def symmetric(n: int) -> Input:
    return Input((n, n), lambda rng: (m := rng.standard_normal((n, n))) + m.T, {"symmetric": True})


def hermitian(n: int) -> Input:
    return Input((n, n), lambda rng: (m := complex_normal(n, n).draw(rng)) + m.conj().T, {"hermitian": True})


def definite(n: int) -> Input:
    return Input((n, n), lambda rng: (m := rng.standard_normal((n, n))) @ m.T / n + np.eye(n), {"PSD": True})


# Elementary answers.


def simplex(p: Array, total: Any = 1.0) -> Array:
    """Projection of p onto {x >= 0, sum x = total}: sort and threshold (Held, Wolfe and Crowder 1974)."""
    u = np.sort(p)[::-1]
    thresholds = (np.cumsum(u) - total) / np.arange(1, p.size + 1)
    return np.maximum(p - thresholds[u > thresholds][-1], 0)


def l1_ball(p: Array, radius: Any) -> Array:
    return np.sign(p) * simplex(np.abs(p), radius) if np.abs(p).sum() > radius else p


def shrink(s: Array, t: Any) -> Array:
    return np.sign(s) * np.maximum(np.abs(s) - t, 0)


def spectral(f: Callable[[Array], Array], s: Array) -> Array:
    """f applied to the eigenvalues of the Hermitian matrix s."""
    w, v = np.linalg.eigh(s)
    return (v * f(w)) @ v.conj().T


def lstsq(a: Array, b: Array) -> Array:
    return np.linalg.lstsq(a, b, rcond=None)[0]


def newton(gradient: Callable[[Array], Array], hessian: Callable[[Array], Array], x: Array) -> Array:
    for _ in range(50):
        x = x - np.linalg.solve(hessian(x), gradient(x))
    return x


def vertex(c: Array, g: Array, h: Array) -> list[Array]:
    """The optimal vertex of min c'x, gx <= h, and its multipliers, by trying every basis."""
    for basis in map(list, itertools.combinations(range(h.size), c.size)):
        x, y = np.linalg.solve(g[basis], h[basis]), np.zeros(h.size)
        y[basis] = np.linalg.solve(g[basis].T, -c)
        if (g @ x <= h + 1e-9).all() and (y >= -1e-9).all():
            return [x, y]
    raise ValueError("the linear program has no optimal vertex")


# The catalogue.

ZOO: dict[str, Entry] = {}


def entry(
    tags: str,
    solution: Callable[..., list[Any]] | None,
    derivative: Callable[..., list[Any]] | None = None,
    **inputs: Input,
) -> Callable[[Callable[..., Declared]], Callable[..., Declared]]:
    """Register the decorated declaration, which receives the parameters that `inputs` describes, by name."""

    def register(declare: Callable[..., Declared]) -> Callable[..., Declared]:
        name = declare.__name__
        ZOO[name] = Entry(name, inputs, declare, solution, derivative, frozenset(tags.split()))
        return declare

    return register


def minimise(objective: Any, *constraints: Any) -> cvxpy.Problem:
    return cvxpy.Problem(cvxpy.Minimize(objective), list(constraints))


def maximise(objective: Any, *constraints: Any) -> cvxpy.Problem:
    return cvxpy.Problem(cvxpy.Maximize(objective), list(constraints))


# Projections and proximal maps.


def _simplex_tangent(values: list[Array], tangents: list[Array]) -> list[Array]:
    support = simplex(*values) > 0
    return [np.where(support, tangents[0] - tangents[0][support].mean(), 0)]


@entry("qp zero nonneg", lambda p: [simplex(p)], _simplex_tangent, p=normal(5))
def simplex_projection(p: Any) -> Declared:
    x = cp.Variable(5)
    return minimise(cp.sum_squares(x - p), x >= 0, cp.sum(x) == 1), [x]


@entry("qp zero nonneg dual", lambda p: [np.maximum(p, 0), 2 * np.maximum(-p, 0)], p=signed(0.1, 2, 4))
def relu(p: Any) -> Declared:
    x = cp.Variable(4)
    sign = x >= 0
    return minimise(cp.sum_squares(x - p), sign), [x, sign.dual_variables[0]]


@entry(
    "qp zero nonneg",
    lambda p, low, high: [np.clip(p, low, high)],
    p=normal(5),
    low=uniform(-1, -0.3, 5),
    high=uniform(0.2, 1),
)
def box_projection(p: Any, low: Any, high: Any) -> Declared:
    x = cp.Variable(5)
    return minimise(cp.sum_squares(x - p), low <= x, x <= high), [x]


@entry("qp zero nonneg maximize dual", lambda p: [x := simplex(p), np.max(p - x)], p=normal(4))
def sparsemax(p: Any) -> Declared:
    x = cp.Variable(4)
    total = cp.sum(x) == 1
    return maximise(p @ x - cp.sum_squares(x) / 2, total, x >= 0), [x, total.dual_variables[0]]


@entry(
    "qp zero nonneg soc dual",
    lambda p, r: [p * r / (n := np.linalg.norm(p)), 2 * (n - r)],
    p=signed(0.5, 1.5, 4),
    r=uniform(0.3, 0.8, nonneg=True),
)
def l2_ball_projection(p: Any, r: Any) -> Declared:
    x = cp.Variable(4)
    ball = cp.norm(x, 2) <= r
    return minimise(cp.sum_squares(x - p), ball), [x, ball.dual_variables[0]]


def _project_onto_cones(s: Array, p: Array) -> list[Array]:
    """Columns (s_j, p_j) outside the cone and its polar; the dual is twice what the projection adds."""
    n = np.linalg.norm(p, axis=0)
    t, x = (s + n) / 2, p * (s + n) / (2 * n)
    return [t, x, 2 * (t - s), 2 * (x - p)]


@entry("qp zero soc dual", _project_onto_cones, s=uniform(-0.5, 0.5, 2), p=signed(0.4, 1.5, 3, 2))
def soc_projection(s: Any, p: Any) -> Declared:
    t, x = cp.Variable(2), cp.Variable((3, 2))
    cones = cp.SOC(t, x, axis=0)
    return minimise(cp.sum_squares(t - s) + cp.sum_squares(x - p), cones), [t, x, *cones.dual_variables]


@entry("qp zero nonneg", lambda p: [l1_ball(p, 1)], p=signed(0.3, 1.5, 5))
def l1_ball_projection(p: Any) -> Declared:
    x = cp.Variable(5)
    return minimise(cp.sum_squares(x - p), cp.norm1(x) <= 1), [x]


@entry(
    "qp zero nonneg unconstrained", lambda p, weight: [shrink(p, weight)], p=normal(5), weight=uniform(0.3, 0.8, nonneg=True)
)
def soft_threshold(p: Any, weight: Any) -> Declared:
    x = cp.Variable(5)
    return minimise(cp.sum_squares(x - p) / 2 + weight * cp.norm1(x)), [x]


@entry("qp zero nonneg unconstrained", lambda p: [p - l1_ball(p, 1)], p=signed(0.3, 1.5, 4))
def norm_inf_prox(p: Any) -> Declared:
    x = cp.Variable(4)
    return minimise(cp.sum_squares(x - p) / 2 + cp.norm_inf(x)), [x]


def _total_variation(p: Array, weight: Array) -> list[Array]:
    """x = p - D'u, where u solves the dual: least squares within |u| <= weight."""
    d = np.diff(np.eye(p.size), axis=0)
    return [p - d.T @ lsq_linear(d.T, p, (-weight, weight), method="bvls", tol=1e-15).x]


@entry("qp zero nonneg unconstrained", _total_variation, p=normal(6), weight=uniform(0.2, 0.5, nonneg=True))
def total_variation_prox(p: Any, weight: Any) -> Declared:
    x = cp.Variable(6)
    return minimise(cp.sum_squares(x - p) / 2 + weight * cp.tv(x)), [x]


def _group_shrink(p: Array) -> list[Array]:
    n = np.linalg.norm(p, axis=1, keepdims=True)
    return [p * shrink(n, 1.0) / n]


@entry("qp zero soc unconstrained", _group_shrink, p=normal(4, 2))
def group_lasso_prox(p: Any) -> Declared:
    x = cp.Variable((4, 2))
    return minimise(cp.sum_squares(x - p) / 2 + cp.sum(cp.norm(x, 2, axis=1))), [x]


@entry("qp zero psd unconstrained", lambda p: [spectral(lambda w: np.maximum(w, 0), p)], p=symmetric(3))
def psd_projection(p: Any) -> Declared:
    x = cp.Variable((3, 3), PSD=True)
    return minimise(cp.sum_squares(x - p)), [x]


def _singular_shrink(p: Array, weight: Array) -> list[Array]:
    u, s, vt = np.linalg.svd(p, full_matrices=False)
    return [u * shrink(s, weight) @ vt]


@entry("qp zero psd unconstrained", _singular_shrink, p=normal(3, 2), weight=uniform(0.3, 0.8, nonneg=True))
def trace_norm_prox(p: Any, weight: Any) -> Declared:
    x = cp.Variable((3, 2))
    return minimise(cp.sum_squares(x - p) / 2 + weight * cp.normNuc(x)), [x]


def _pnorm_ball(p: Array, exponent: float, size: Callable[[Array, float], Array]) -> list[Array]:
    """|x_i| = size(|p_i|, m), with the multiplier m that puts x on the unit sphere of the norm."""
    m = brentq(lambda m: np.sum(size(np.abs(p), m) ** exponent) - 1, 1e-6, 1e3, xtol=1e-15, rtol=1e-15)
    return [np.sign(p) * size(np.abs(p), m)]


@entry(
    "qp zero nonneg pow3d",
    lambda p: _pnorm_ball(p, 3, lambda a, m: (np.sqrt(1 + 4 * m * a) - 1) / (2 * m)),
    p=signed(0.7, 1.5, 3),
)
def pnorm_3_ball_projection(p: Any) -> Declared:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(x - p), cp.pnorm(x, 3, approx=False) <= 1), [x]


@entry(
    "qp zero nonneg pow3d",
    lambda p: _pnorm_ball(p, 1.5, lambda a, m: (np.sqrt(m * m + 4 * a) - m) ** 2 / 4),
    p=signed(0.7, 1.5, 3),
)
def pnorm_1_5_ball_projection(p: Any) -> Declared:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(x - p), cp.pnorm(x, 1.5, approx=False) <= 1), [x]


# Least squares and regression.


def _constrained_least_squares(a: Array, b: Array, c: Array, d: Array) -> list[Array]:
    kkt = np.block([[a.T @ a, c.T], [c, np.zeros((2, 2))]])
    return np.split(np.linalg.solve(kkt, np.concatenate([a.T @ b, d])), [3])


@entry("qp zero dual", _constrained_least_squares, a=normal(4, 3), b=normal(4), c=normal(2, 3), d=normal(2))
def constrained_least_squares(a: Any, b: Any, c: Any, d: Any) -> Declared:
    x = cp.Variable(3)
    equality = c @ x == d
    return minimise(cp.sum_squares(a @ x - b) / 2, equality), [x, equality.dual_variables[0]]


@entry(
    "qp zero unconstrained",
    lambda a, b, weight: [np.linalg.solve(a.T @ a + weight * np.eye(3), a.T @ b)],
    a=normal(4, 3),
    b=normal(4),
    weight=uniform(0.2, 1, nonneg=True),
)
def ridge_regression(a: Any, b: Any, weight: Any) -> Declared:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(a @ x - b) + weight * cp.sum_squares(x)), [x]


@entry("qp zero nonneg unconstrained", lambda a, b: [nnls(a, b)[0]], a=normal(5, 3), b=normal(5))
def nonnegative_least_squares(a: Any, b: Any) -> Declared:
    x = cp.Variable(3, nonneg=True)
    return minimise(cp.sum_squares(a @ x - b)), [x]


@entry("soc unconstrained", lambda a, b: [lstsq(a, b)], a=normal(5, 2), b=normal(5))
def minimum_norm_residual(a: Any, b: Any) -> Declared:
    x = cp.Variable(2)
    return minimise(cp.norm(a @ x - b, 2)), [x]


DESIGN = np.array([[1, 0.2], [-0.5, 1], [0.3, -1.2], [1.4, 0.6], [-1, -0.7], [0.1, 1.5], [0.8, -0.4]])


def _huber(b: Array) -> list[Array]:
    """Reweighting finds the piece of this piecewise quadratic, Newton's method then its minimum, exactly."""
    x = np.zeros(2)
    for _ in range(50):
        weighted = DESIGN.T / np.maximum(1, np.abs(DESIGN @ x - b))
        x = np.linalg.solve(weighted @ DESIGN, weighted @ b)
    return [
        newton(
            lambda x: DESIGN.T @ np.clip(DESIGN @ x - b, -1, 1),
            lambda x: (DESIGN.T * (np.abs(DESIGN @ x - b) <= 1)) @ DESIGN,
            x,
        )
    ]


@entry("qp zero nonneg unconstrained", _huber, b=normal(7))
def huber_fit(b: Any) -> Declared:
    x = cp.Variable(2)
    return minimise(cp.sum(cp.huber(DESIGN @ x - b, 1.0))), [x]


LABELS = np.array([1.0, -1, 1, 1, -1])


def _logistic(a: Array) -> list[Array]:
    def slope(x: Array) -> Array:
        return expit(-LABELS * (a @ x))

    return [
        newton(
            lambda x: x - a.T @ (LABELS * slope(x)), lambda x: np.eye(2) + (a.T * slope(x) * (1 - slope(x))) @ a, np.zeros(2)
        )
    ]


@entry("qp nonneg exp unconstrained", _logistic, a=normal(5, 2))
def logistic_regression(a: Any) -> Declared:
    x = cp.Variable(2)
    loss = cp.sum(cp.logistic(cp.multiply(-LABELS, a @ x))) + cp.sum_squares(x) / 2
    return minimise(loss), [x]


MIXING = np.array([[2.0, -1, 0], [0.5, 1, 0.3], [0, -0.4, 1.5]])


@entry("qp zero unconstrained", lambda a, c: [np.linalg.pinv(a) @ c @ np.linalg.inv(MIXING)], a=normal(4, 2), c=normal(4, 3))
def matrix_regression(a: Any, c: Any) -> Declared:
    x = cp.Variable((2, 3))
    return minimise(cp.sum_squares(a @ x @ MIXING - c)), [x]


@entry(
    "qp zero autodpp atom unconstrained",
    lambda kernel, b: [lstsq(convolution_matrix(kernel, 4), b)],
    kernel=normal(3),
    b=normal(6),
)
def deconvolution(kernel: Any, b: Any) -> Declared:
    """cvxpy calls no convolution with a parameter DPP, though it is as affine as a product."""
    x = cp.Variable(4)
    return minimise(cp.sum_squares(cp.convolve(kernel, x) - b)), [x]


@entry(
    "qp zero autodpp atom unconstrained",
    lambda p, c: [np.einsum("ij,ikjl->kl", p, c.reshape(2, 3, 3, 2)) / np.sum(p**2)],
    p=normal(2, 3),
    c=normal(6, 6),
)
def kronecker_fit(p: Any, c: Any) -> Declared:
    """As for convolutions: affine in the parameter, but not DPP."""
    x = cp.Variable((3, 2))
    return minimise(cp.sum_squares(cp.kron(p, x) - c)), [x]


@entry(
    "qp zero unconstrained", lambda p, q: [(p.reshape(2, 3) + q.reshape(2, 3, order="F")) / 2], p=normal(3, 2), q=normal(6)
)
def reshape_orders(p: Any, q: Any) -> Declared:
    x = cp.Variable((2, 3))
    by_row, by_column = cp.reshape(x, (3, 2), order="C"), cp.vec(x, order="F")
    return minimise(cp.sum_squares(by_row - p) + cp.sum_squares(by_column - q)), [x]


# Linear programs.


def _linear_program(c: Array, g: Array, h: Array) -> list[Array]:
    x, y = vertex(c, np.vstack([g, -np.eye(2)]), np.concatenate([h, np.zeros(2)]))
    return [x, y[:3], y[3:]]


@entry("lp nonneg dual", _linear_program, c=uniform(-2, -0.5, 2), g=uniform(0.5, 1.5, 3, 2), h=uniform(1, 2, 3))
def linear_program(c: Any, g: Any, h: Any) -> Declared:
    x = cp.Variable(2)
    upper, lower = g @ x <= h, x >= 0
    return minimise(c @ x, upper, lower), [x, upper.dual_variables[0], lower.dual_variables[0]]


@entry(
    "lp nonneg unconstrained",
    lambda b: [np.median(b)],
    lambda values, tangents: [tangents[0][np.argsort(values[0])[2]]],
    b=normal(5),
)
def median(b: Any) -> Declared:
    x = cp.Variable()
    return minimise(cp.norm1(x - b) + 3), [x]


@entry("lp zero", lambda a, b: [np.linalg.solve(a, b)], a=normal(2, 2), b=normal(2))
def feasibility(a: Any, b: Any) -> Declared:
    x = cp.Variable(2)
    return minimise(0, a @ x == b), [x]


# Semidefinite programs and determinants.


def _frustrated(rng: np.random.Generator) -> Array:
    """Correlations whose signs contradict each other: exactly one eigenvalue is negative."""
    upper = np.triu(rng.uniform(0.6, 0.8, (3, 3)) * [[0, 1, 1], [0, 0, -1], [0, 0, 0]])
    return upper + upper.T + np.diag(rng.uniform(0.8, 1.2, 3))


@entry("qp zero psd dual", None, p=Input((3, 3), _frustrated, {"symmetric": True}))
def nearest_correlation(p: Any) -> Declared:
    x = cp.Variable((3, 3), symmetric=True)
    ones, cone = cp.diag(x) == 1, x >> 0
    return minimise(cp.sum_squares(x - p), ones, cone), [x, ones.dual_variables[0], cone.dual_variables[0]]


def _max_cut(w: Array) -> list[Array]:
    """Three unit vectors in balance: their angles supplement those of the triangle with sides 1/w."""
    a, b, c = 1 / w
    u, v, t = (-(q * q + r * r - p * p) / (2 * q * r) for p, q, r in ((a, b, c), (b, c, a), (c, a, b)))
    return [np.array([[1, u, v], [u, 1, t], [v, t, 1]])]


@entry("zero psd", _max_cut, w=uniform(0.8, 1.2, 3))
def max_cut_relaxation(w: Any) -> Declared:
    x = cp.Variable((3, 3), PSD=True)
    return minimise(w[0] * x[0, 1] + w[1] * x[0, 2] + w[2] * x[1, 2], cp.diag(x) == 1), [x]


def _top(s: Array) -> list[Array]:
    w, v = np.linalg.eigh(s)
    return [w[-1], np.outer(v[:, -1], v[:, -1])]


def _top_tangent(values: list[Array], tangents: list[Array]) -> list[Array]:
    w, v = np.linalg.eigh(values[0])
    top, rest = v[:, -1], v[:, :-1]
    turn = rest @ (rest.T @ tangents[0] @ top / (w[-1] - w[:-1]))
    return [top @ tangents[0] @ top, np.outer(turn, top) + np.outer(top, turn)]


@entry("psd dual", _top, _top_tangent, s=symmetric(3))
def largest_eigenvalue(s: Any) -> Declared:
    t = cp.Variable()
    cone = t * np.eye(3) - s >> 0
    return minimise(t, cone), [t, cone.dual_variables[0]]


@entry(
    "psd exp maximize unconstrained",
    lambda s: [np.linalg.inv(s)],
    lambda values, tangents: [-(x := np.linalg.inv(values[0])) @ tangents[0] @ x],
    s=definite(3),
)
def inverse_covariance(s: Any) -> Declared:
    x = cp.Variable((3, 3), symmetric=True)
    return maximise(cp.log_det(x) - cp.trace(s @ x)), [x]


def _chain_precision(s: Array) -> list[Array]:
    """The graph 0 - 1 - 2 is decomposable: inverses of cliques less that of their separator."""
    x = np.zeros((3, 3))
    x[:2, :2] += np.linalg.inv(s[:2, :2])
    x[1:, 1:] += np.linalg.inv(s[1:, 1:])
    x[1, 1] -= 1 / s[1, 1]
    return [x]


@entry("zero psd exp", _chain_precision, s=definite(3))
def covariance_selection(s: Any) -> Declared:
    x = cp.Variable((3, 3), PSD=True)
    return minimise(cp.trace(s @ x) - cp.log_det(x), x[0, 2] == 0), [x]


# Entropies, logarithms and exponentials.


def _softmax_tangent(values: list[Array], tangents: list[Array]) -> list[Array]:
    x = softmax(values[0])
    return [x * (tangents[0] - x @ tangents[0])]


@entry("zero exp maximize", lambda p: [softmax(p)], _softmax_tangent, p=normal(4))
def softmax_by_entropy(p: Any) -> Declared:
    x = cp.Variable(4)
    return maximise(p @ x + cp.sum(cp.entr(x)), cp.sum(x) == 1), [x]


@entry("exp maximize unconstrained", lambda p: [expit(p)], p=normal(3))
def sigmoid_by_entropy(p: Any) -> Declared:
    x = cp.Variable(3)
    return maximise(p @ x + cp.sum(cp.entr(x) + cp.entr(1 - x))), [x]


FACES = np.arange(1.0, 6)


def _loaded_die(mean: Array) -> list[Array]:
    eta = newton(
        lambda e: np.array([softmax(e * FACES) @ FACES - mean]),
        lambda e: np.array([[(x := softmax(e * FACES)) @ FACES**2 - (x @ FACES) ** 2]]),
        np.zeros(1),
    )
    return [softmax(eta * FACES), -eta[0]]


@entry("zero exp maximize dual", _loaded_die, mean=uniform(2, 4))
def entropy_with_mean(mean: Any) -> Declared:
    x = cp.Variable(5)
    average = FACES @ x == mean
    return maximise(cp.sum(cp.entr(x)), cp.sum(x) == 1, average), [x, average.dual_variables[0]]


def _block_scaling(q: Array, mass: Array) -> list[Array]:
    return [np.concatenate([mass * q[:2] / q[:2].sum(), (1 - mass) * q[2:] / q[2:].sum()])]


@entry("zero exp", _block_scaling, q=uniform(0.2, 1, 5, pos=True), mass=uniform(0.2, 0.8))
def kl_projection(q: Any, mass: Any) -> Declared:
    x = cp.Variable(5)
    return minimise(cp.sum(cp.kl_div(x, q)), cp.sum(x) == 1, cp.sum(x[:2]) == mass), [x]


def _transport(cost: Array, rows: Array, columns: Array) -> list[Array]:
    """Sinkhorn's scaling; the last column takes what is left, so that no constraint is redundant."""
    columns = np.append(columns, rows.sum() - columns.sum())
    kernel, u = np.exp(-cost), np.ones(2)
    for _ in range(200):
        v = columns / (kernel.T @ u)
        u = rows / (kernel @ v)
    return [u[:, None] * kernel * v]


@entry("zero exp", _transport, cost=normal(2, 3), rows=uniform(0.5, 1, 2), columns=uniform(0.2, 0.4, 2))
def entropic_transport(cost: Any, rows: Any, columns: Any) -> Declared:
    x = cp.Variable((2, 3))
    marginals = [cp.sum(x, axis=1) == rows, cp.sum(x, axis=0)[:2] == columns]
    return minimise(cp.sum(cp.multiply(cost, x)) - cp.sum(cp.entr(x)), *marginals), [x]


def _soft_maximum_prox(p: Array) -> list[Array]:
    return [newton(lambda x: x - p + softmax(x), lambda x: np.eye(4) + np.diag(s := softmax(x)) - np.outer(s, s), p)]


@entry("qp zero nonneg exp unconstrained", _soft_maximum_prox, p=normal(4))
def log_sum_exp_prox(p: Any) -> Declared:
    x = cp.Variable(4)
    return minimise(cp.sum_squares(x - p) / 2 + cp.log_sum_exp(x)), [x]


def _water_filling(noise: Array, power: Array) -> list[Array]:
    x = simplex(-noise, power)
    return [x, 1 / np.min(noise + x)]


@entry("zero nonneg exp maximize dual", _water_filling, noise=uniform(0.3, 2, 4), power=uniform(1, 2))
def water_filling(noise: Any, power: Any) -> Declared:
    x = cp.Variable(4)
    total = cp.sum(x) == power
    return maximise(cp.sum(cp.log(noise + x)), total, x >= 0), [x, total.dual_variables[0]]


@entry(
    "exp maximize unconstrained",
    lambda odds: [0.6 - 0.4 / odds],
    lambda values, tangents: [0.4 / values[0] ** 2 * tangents[0]],
    odds=uniform(0.8, 2),
)
def kelly_bet(odds: Any) -> Declared:
    x = cp.Variable()
    return maximise(0.6 * cp.log(1 + odds * x) + 0.4 * cp.log(1 - x)), [x]


def _exponential_budget(a: Array, b: Array, budget: Array) -> list[Array]:
    """Maximise y log(z/y) over ay + bz <= budget: u = z/y solves u (log u - 1) = a/b, by Lambert's W."""
    u = np.exp(1 + lambertw(a / (b * np.e)).real)
    y = budget / (a + b * u)
    return [y * np.log(u), y, u * y, -np.ones(2), a / (b * u), 1 / u]


@entry("nonneg exp maximize dual", _exponential_budget, a=uniform(0.5, 2, 2), b=uniform(0.5, 2, 2), budget=uniform(1, 2, 2))
def exponential_cone(a: Any, b: Any, budget: Any) -> Declared:
    x, y, z = cp.Variable(2), cp.Variable(2), cp.Variable(2)
    cones = cp.ExpCone(x, y, z)
    limit = cp.multiply(a, y) + cp.multiply(b, z) <= budget
    return maximise(cp.sum(x), cones, limit), [x, y, z, *cones.dual_variables]


# Powers, geometric means, and geometric programs.


@entry("nonneg soc maximize", lambda price, wealth: [wealth / (3 * price)], price=uniform(0.5, 2, 3), wealth=uniform(1, 2))
def geometric_mean(price: Any, wealth: Any) -> Declared:
    x = cp.Variable(3)
    return maximise(cp.geo_mean(x), price @ x <= wealth), [x]


SHARES = np.array([0.2, 0.3, 0.5])


@entry(
    "nonneg pownd maximize", lambda price, wealth: [SHARES * wealth / price], price=uniform(0.5, 2, 3), wealth=uniform(1, 2)
)
def cobb_douglas_demand(price: Any, wealth: Any) -> Declared:
    x = cp.Variable(3)
    return maximise(cp.geo_mean(x, SHARES, approx=False), price @ x <= wealth), [x]


EXPONENTS = np.array([0.3, 0.6])


def _power_budget(p: Array, q: Array, wealth: Array) -> list[Array]:
    x, y = EXPONENTS * wealth / p, (1 - EXPONENTS) * wealth / q
    z = x**EXPONENTS * y ** (1 - EXPONENTS)
    return [x, y, z, p * z / wealth, q * z / wealth, -np.ones(2)]


@entry("nonneg pow3d maximize dual", _power_budget, p=uniform(0.5, 2, 2), q=uniform(0.5, 2, 2), wealth=uniform(1, 2, 2))
def power_cone(p: Any, q: Any, wealth: Any) -> Declared:
    x, y, z = cp.Variable(2), cp.Variable(2), cp.Variable(2)
    cones = cp.PowCone3D(x, y, z, EXPONENTS)
    limit = cp.multiply(p, x) + cp.multiply(q, y) <= wealth
    return maximise(cp.sum(z), cones, limit), [x, y, z, *cones.dual_variables]


COLUMN_SHARES = np.array([[0.2, 0.1], [0.3, 0.3], [0.5, 0.6]])


def _power_columns(price: Array, wealth: Array) -> list[Array]:
    x = COLUMN_SHARES * wealth / price
    z = np.prod(x**COLUMN_SHARES, axis=0)
    return [x, z, price * z / wealth, -np.ones(2)]


@entry("nonneg pownd maximize dual", _power_columns, price=uniform(0.5, 2, 3, 2), wealth=uniform(1, 2, 2))
def power_cone_columns(price: Any, wealth: Any) -> Declared:
    x, z = cp.Variable((3, 2)), cp.Variable(2)
    cones = cp.PowConeND(x, z, COLUMN_SHARES, axis=0)
    limit = cp.sum(cp.multiply(price, x), axis=0) <= wealth
    return maximise(cp.sum(z), cones, limit), [x, z, *cones.dual_variables]


def _box(area: Array, cost: Array) -> list[Array]:
    """The three faces cost the same: hw = area / (3 cost_0), and so on."""
    hw, hd, wd = area / (3 * cost)
    return [np.sqrt(hw * hd / wd), np.sqrt([hw * wd / hd, hd * wd / hw])]


@entry("gp nonneg exp maximize", _box, area=uniform(1, 3, pos=True), cost=uniform(0.5, 2, 3, pos=True))
def box_volume(area: Any, cost: Any) -> Declared:
    h, wd = cp.Variable(pos=True), cp.Variable(2, pos=True)
    faces = cost[0] * h * wd[0] + cost[1] * h * wd[1] + cost[2] * wd[0] * wd[1]
    return maximise(h * wd[0] * wd[1], faces <= area), [h, wd]


@entry(
    "gp zero nonneg exp",
    lambda p, q, r: [x := np.sqrt(p / q), r * np.sqrt(x)],
    p=uniform(0.5, 2, pos=True),
    q=uniform(0.5, 2, pos=True),
    r=uniform(0.5, 2, pos=True),
)
def monomial_equality(p: Any, q: Any, r: Any) -> Declared:
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    return minimise(p / x + q * x, y == r * x**0.5), [x, y]


# Ways to declare: products of parameters, several variables, attributes, complex numbers.


def _minimum_variance(s: Array) -> list[Array]:
    x = np.linalg.solve(s, np.ones(3))
    return [x / x.sum()]


@entry("qp zero autodpp", _minimum_variance, s=definite(3))
def minimum_variance_portfolio(s: Any) -> Declared:
    x = cp.Variable(3)
    return minimise(cp.quad_form(x, s), cp.sum(x) == 1), [x]


@entry(
    "qp zero autodpp", lambda p, q, c: [c / (p * q * (c @ c))], p=uniform(0.5, 2), q=uniform(0.5, 2), c=signed(0.5, 1.5, 3)
)
def product_of_parameters(p: Any, q: Any, c: Any) -> Declared:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(x), p * q * (c @ x) == 1), [x]


@entry("qp autodpp unconstrained", lambda p, q: [np.exp(q) / (2 * p**2)], p=uniform(0.7, 1.5), q=normal(3))
def exponential_and_square(p: Any, q: Any) -> Declared:
    x = cp.Variable(3)
    return minimise(p**2 * cp.sum_squares(x) - cp.exp(q) @ x), [x]


@entry("qp zero autodpp", lambda p: [(1 / p) / np.sum(1 / p**2)], p=uniform(0.5, 2, 3, pos=True))
def division_by_parameter(p: Any) -> Declared:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(x), cp.sum(x / p) == 1), [x]


@entry("qp zero soc maximize", None, factor=normal(3, 3), gain=normal(3))
def robust_portfolio(factor: Any, gain: Any) -> Declared:
    x = cp.Variable(3)
    utility = gain @ x - cp.norm(factor.T @ x, 2) - cp.sum_squares(x) / 2
    return maximise(utility, cp.sum(x) == 1), [x]


def _every_cone(p: Array, s: Array, price: Array) -> list[Array]:
    x, v = simplex(p), softmax(p)
    u = p * min(1, 0.5 / np.linalg.norm(p))
    return [x, u, spectral(lambda w: np.maximum(w, 0), s), v, (0.3 / price) ** 0.3 * 0.7**0.7]


@entry("qp zero nonneg soc psd exp pow3d", _every_cone, p=normal(3), s=symmetric(2), price=uniform(0.5, 2))
def every_cone(p: Any, s: Any, price: Any) -> Declared:
    """Independent problems in one program: what it tests is the order of the cones."""
    x, u, v, t = cp.Variable(3), cp.Variable(3), cp.Variable(3), cp.Variable((2, 2), PSD=True)
    a, b, z = cp.Variable(), cp.Variable(), cp.Variable()
    cones = [cp.PowCone3D(a, b, z, 0.3), cp.norm(u, 2) <= 0.5, x >= 0]
    fit = cp.sum_squares(x - p) + cp.sum_squares(u - p) + cp.sum_squares(t - s)
    linear = [cp.sum(x) == 1, cp.sum(v) == 1, price * a + b <= 1]
    return minimise(fit - p @ v - cp.sum(cp.entr(v)) - z, *cones, *linear), [x, u, t, v, z]


@entry(
    "zero soc",
    lambda a, cost: [x := a / (a @ a), np.linalg.norm(x) / np.sqrt(cost)],
    a=signed(0.5, 1.5, 3),
    cost=uniform(0.5, 2, pos=True),
)
def quadratic_over_linear(a: Any, cost: Any) -> Declared:
    x, t = cp.Variable(3), cp.Variable()
    return minimise(cp.quad_over_lin(x, t) + cost * t, a @ x == 1), [x, t]


def _coupled_rows(p: Array, q: Array) -> list[Array]:
    price = (p - q.sum(1)) / 4
    return [p - price, q + price[:, None], price]


@entry("qp zero dual", _coupled_rows, p=normal(2), q=normal(2, 3))
def two_variables(p: Any, q: Any) -> Declared:
    x, y = cp.Variable(2), cp.Variable((2, 3))
    rows = x == cp.sum(y, axis=1)
    problem = minimise(cp.sum_squares(x - p) / 2 + cp.sum_squares(y - q) / 2, rows)
    return problem, [x, y, rows.dual_variables[0]]


@entry("qp zero unconstrained", lambda p: [p], p=normal(2, 3))
def constant_terms(p: Any) -> Declared:
    x = cp.Variable((2, 3))
    return minimise(cp.sum_squares(x - p) + cp.sum_squares(p) + 3), [x]


def _symmetric_part(p: Array, trace: Array) -> list[Array]:
    return [(p + p.T) / 2 + np.eye(3) * (trace - np.trace(p)) / 3]


@entry("qp zero", _symmetric_part, p=normal(3, 3), trace=normal())
def symmetric_variable(p: Any, trace: Any) -> Declared:
    x = cp.Variable((3, 3), symmetric=True)
    return minimise(cp.sum_squares(x - p), cp.trace(x) == trace), [x]


@entry("qp zero unconstrained", lambda p: [np.diag(np.diag(p))], p=normal(3, 3))
def diagonal_variable(p: Any) -> Declared:
    x = cp.Variable((3, 3), diag=True)
    return minimise(cp.sum_squares(x - p)), [x]


PATTERN = np.array([[0, 1, 1], [0, 0, 2]])


@entry("qp zero unconstrained sparse", lambda p: [np.where([[1, 0, 0], [1, 0, 1]], p, 0)], p=normal(2, 3))
def sparse_variable(p: Any) -> Declared:
    x = cp.Variable((2, 3), sparsity=tuple(PATTERN))
    return minimise(cp.sum_squares(x - p)), [x]


def _draw_sparse(rng: np.random.Generator) -> Array:
    value = np.zeros((2, 3))
    value[tuple(PATTERN)] = rng.standard_normal(3)
    return value


@entry(
    "qp zero unconstrained sparse",
    lambda s, b: [np.linalg.solve(s.T @ s + np.eye(3), s.T @ b)],
    s=Input((2, 3), _draw_sparse, {"sparsity": tuple(PATTERN)}),
    b=normal(2),
)
def sparse_parameter(s: Any, b: Any) -> Declared:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(s @ x - b) + cp.sum_squares(x)), [x]


@entry(
    "qp zero unconstrained",
    lambda d, b: [b / np.diag(d)],
    d=Input((3, 3), lambda rng: np.diag(rng.uniform(0.5, 2, 3)), {"diag": True}),
    b=normal(3),
)
def diagonal_parameter(d: Any, b: Any) -> Declared:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(d @ x - b)), [x]


@entry(
    "qp zero nonneg unconstrained",
    lambda p, low: [np.clip(p, low, [0.5, 1, 1.5]), np.maximum(p, 0), np.minimum(p, 0)],
    p=normal(3),
    low=uniform(-1, -0.3, 3),
)
def bounded_variables(p: Any, low: Any) -> Declared:
    x = cp.Variable(3, bounds=[low, np.array([0.5, 1, 1.5])])
    y, z = cp.Variable(3, nonneg=True), cp.Variable(3, nonpos=True)
    return minimise(sum(cp.sum_squares(v - p) for v in (x, y, z))), [x, y, z]


@entry("qp zero unconstrained complex", lambda a, b: [lstsq(a, b)], a=complex_normal(3, 2), b=complex_normal(3))
def complex_least_squares(a: Any, b: Any) -> Declared:
    x = cp.Variable(2, complex=True)
    return minimise(cp.sum_squares(a @ x - b)), [x]


@entry(
    "qp zero unconstrained complex",
    lambda p, q: [1j * (p.imag + q.imag)],
    p=complex_normal(3),
    q=Input((3,), lambda rng: 1j * rng.standard_normal(3), {"imag": True}),
)
def imaginary_part(p: Any, q: Any) -> Declared:
    x = cp.Variable(3, imag=True)
    return minimise(cp.sum_squares(x - p - q)), [x]


@entry("qp zero psd complex", lambda p: [spectral(lambda w: np.maximum(w, 0), p)], p=hermitian(3))
def hermitian_projection(p: Any) -> Declared:
    """Its real form has a dual that is not unique (every eigenvalue is double), though x is."""
    x = cp.Variable((3, 3), hermitian=True)
    return minimise(cp.sum_squares(x - p), x >> 0), [x]


# Degenerate points: the solution is known, the derivative is not compared.


@entry("lp zero nonneg degenerate nonunique", lambda c: [np.array([0.5, 0.5, 0])], c=fixed([1, 1, 2]))
def tied_costs(c: Any) -> Declared:
    x = cp.Variable(3, nonneg=True)
    return minimise(c @ x, cp.sum(x) == 1), [x]


@entry("qp zero unconstrained degenerate nonunique", lambda p: [np.full(2, p / 2)], p=fixed(1.5))
def valley(p: Any) -> Declared:
    x = cp.Variable(2)
    return minimise(cp.square(cp.sum(x) - p)), [x]


@entry("lp nonneg degenerate", lambda h: [np.ones(2)], h=fixed([1, 1, 2]))
def overdetermined_vertex(h: Any) -> Declared:
    x = cp.Variable(2)
    return minimise(-x[0] - 1.5 * x[1], np.array([[1, 0], [0, 1], [1, 1]]) @ x <= h), [x]


@entry("qp zero nonneg degenerate", lambda p: [np.array([1.0, 0, 0])], p=fixed([1, 0, -1]))
def weakly_active_bound(p: Any) -> Declared:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(x - p), x >= 0), [x]


@entry("qp zero nonneg soc degenerate", lambda p: [p], p=fixed([0.6, 0.8]))
def weakly_active_ball(p: Any) -> Declared:
    x = cp.Variable(2)
    return minimise(cp.sum_squares(x - p), cp.norm(x, 2) <= 1), [x]


@entry("qp zero degenerate", lambda p, total: [p + (total - p.sum()) / 3], p=normal(3), total=normal())
def redundant_equalities(p: Any, total: Any) -> Declared:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(x - p), cp.sum(x) == total, 2 * cp.sum(x) == 2 * total), [x]


@entry("qp zero nonneg degenerate", lambda p, high: [np.minimum(p, high)], p=normal(3), high=normal(3))
def duplicated_constraint(p: Any, high: Any) -> Declared:
    x = cp.Variable(3)
    return minimise(cp.sum_squares(x - p), x <= high, x <= high), [x]


@entry("psd degenerate", lambda s: [np.array(2.0)], s=fixed(np.diag([2, 2, 1])))
def tied_eigenvalue(s: Any) -> Declared:
    t = cp.Variable()
    return minimise(t, t * np.eye(3) - (s + s.T) / 2 >> 0), [t]

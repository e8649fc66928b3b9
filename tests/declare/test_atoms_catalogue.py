"""The catalogue of atoms in their variants, and that it, like the registry of rules, is complete."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import cvxpy.atoms
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.affine.binary_operators import MulExpression
from cvxpy.atoms.affine.wraps import Wrap, nonneg_wrap, nonpos_wrap, nsd_wrap, psd_wrap, skew_symmetric_wrap, symmetric_wrap
from cvxpy.atoms.atom import Atom
from cvxpy.utilities.warn import CvxpyDeprecationWarning
from packaging.version import Version

from ddn_cvx.declare.atoms_affine import SCATTER
from ddn_cvx.declare.atoms_base import RULES, UNSUPPORTED
from ddn_cvx.declare.atoms_numeric import NUMERIC

Shape = tuple[int, ...]

COMPLEX = ("complex", "hermitian", "density")
# The variable attribute that makes cvxpy accept the expression.
ATTRIBUTES = {
    "positive": "pos", "nonneg": "nonneg", "boolean": "boolean", "complex": "complex", "definite": "symmetric",
    "symmetric": "symmetric", "hermitian": "hermitian", "density": "hermitian",
}  # fmt: skip


@dataclass(frozen=True)
class Arg:
    """A leaf to make, and where to draw its values."""

    domain: str
    shape: Shape

    def leaf(self) -> cp.Variable | cp.Parameter:
        if self.domain.startswith("parameter"):
            return cp.Parameter(self.shape, nonneg=self.domain == "parameter positive")
        attributes = {ATTRIBUTES[self.domain]: True} if self.domain in ATTRIBUTES else {}
        return cp.Variable(self.shape, **attributes)

    def draw(self, rng: np.random.Generator, batch: Shape = ()) -> np.ndarray:
        x = rng.normal(size=batch + self.shape)
        if self.domain in ("positive", "parameter positive"):
            return np.exp(0.5 * x)
        if self.domain == "unit":
            return rng.uniform(0.1, 0.9, size=x.shape)
        if self.domain == "boolean":
            return (x > 0).astype(float)
        if self.domain == "contraction":
            return rng.uniform(0.05, 0.8 / self.shape[-1], size=x.shape)
        if self.domain in ("complex", "hermitian"):
            x = x + 1j * rng.normal(size=x.shape)
        if self.domain in ("definite", "hermitian"):
            return x @ x.conj().swapaxes(-1, -2) / self.shape[-1] + 0.5 * np.eye(self.shape[-1])
        if self.domain == "density":
            x = x + 1j * rng.normal(size=x.shape)
            x = x @ x.conj().swapaxes(-1, -2) + 0.5 * np.eye(self.shape[-1])
            return x / np.trace(x, axis1=-2, axis2=-1)[..., None, None]
        if self.domain == "symmetric":
            return x + x.swapaxes(-1, -2)
        return x


def arg(domain: str) -> Callable[..., Arg]:
    return lambda *shape: Arg(domain, shape)


real, positive, unit, contraction = map(arg, ("real", "positive", "unit", "contraction"))
complex_, hermitian, definite, symmetric = map(arg, ("complex", "hermitian", "definite", "symmetric"))
nonneg, boolean, parameter, positive_parameter = map(arg, ("nonneg", "boolean", "parameter", "parameter positive"))
density = arg("density")


NEW_ATOMS = Version(cp.__version__) >= Version("1.9.3")
"""Whether cvxpy can state all of the cases: 1.9.0 cannot state those that are ``new``."""


@dataclass(frozen=True)
class Case:
    build: Callable[..., cp.Expression]
    args: tuple[Arg, ...]
    smooth: bool
    repeats: bool  # the same rule on another shape: of interest for its value only

    def make(self) -> tuple[cp.Expression, list[Any]]:
        leaves = [a.leaf() for a in self.args]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CvxpyDeprecationWarning)  # conv
            return self.build(*leaves), leaves


CASES: dict[str, Case] = {}


def case(
    name: str,
    build: Callable[..., cp.Expression],
    *args: Arg,
    smooth: bool = True,
    repeats: bool = False,
    new: bool = False,
) -> None:
    assert name not in CASES
    if NEW_ATOMS or not new:
        CASES[name] = Case(build, args, smooth, repeats)


RNG = np.random.default_rng(7)
A23, A34, A33, V3, V4 = (RNG.normal(size=s) for s in ((2, 3), (3, 4), (3, 3), 3, 4))
C23 = RNG.normal(size=(2, 3)) + 1j * RNG.normal(size=(2, 3))
S33 = A33 + A33.T
H33 = S33 + 1j * (A33 - A33.T)
AXES: list[dict[str, Any]] = [
    {}, {"keepdims": True}, {"axis": 0}, {"axis": 1, "keepdims": True}, {"axis": -1}, {"axis": (0, 1)},
]  # fmt: skip


def label(options: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in options.items())


# elementwise
for name, build, domain in [
    ("exp", cp.exp, real), ("log", cp.log, positive), ("log1p", cp.log1p, positive), ("entr", cp.entr, positive),
    ("logistic", cp.logistic, real), ("xexp", cp.xexp, positive), ("sin", cp.nlp.sin, real), ("cos", cp.nlp.cos, real),
    ("tan", cp.nlp.tan, unit), ("sinh", cp.nlp.sinh, real), ("tanh", cp.nlp.tanh, real), ("asinh", cp.nlp.asinh, real),
    ("atanh", cp.nlp.atanh, unit), ("normcdf", cp.nlp.normcdf, real), ("square", cp.square, real),
    ("sqrt", cp.sqrt, positive), ("inv_pos", cp.inv_pos, positive), ("one_minus_pos", cp.one_minus_pos, unit),
    ("inv_prod", cp.inv_prod, positive), ("harmonic_mean", cp.harmonic_mean, positive),
]:  # fmt: skip
    for shape in ((), (3,), (2, 3)):
        if shape or name != "harmonic_mean":
            new = name == "inv_prod" and len(shape) == 2
            case(f"{name}{shape}", build, domain(*shape), repeats=len(shape) < 2, new=new)
for name, build, domain in [
    ("abs", cp.abs, real), ("abs complex", cp.abs, complex_), ("pos", cp.pos, real), ("neg", cp.neg, real),
    ("huber", lambda x: cp.huber(x, 0.7), real), ("loggamma", cp.loggamma, positive), ("ceil", cp.ceil, real),
    ("floor", cp.floor, real), ("scalene", lambda x: cp.scalene(x, 2.0, 3.0), real), ("log_normcdf", cp.log_normcdf, real),
]:  # fmt: skip
    for shape in ((), (2, 3)):
        case(f"{name}{shape}", build, domain(*shape), smooth=False, repeats=len(shape) < 2)
for p in (0, 1, 2, 3, 4, -1, -2, 0.5, 1.5, -0.3, 2.7):
    case(f"power {p}", lambda x, p=p: cp.power(x, p), positive(2, 3))
    case(f"power exact {p}", lambda x, p=p: cp.power(x, p, approx=False), positive(3), repeats=True)
for p in (2, 3, -1):
    case(f"power {p} of negative", lambda x, p=p: cp.power(x, p), real(3))
case("power parameter", cp.power, positive(2, 3), positive_parameter())
case("power constant base", lambda x: cp.power(2.0, x), real(3))
case("huber parameter", lambda x, m: cp.huber(x, m), real(4), positive_parameter(), smooth=False)
case("sign", cp.sign, real(3), smooth=False)
case("length", cp.length, real(4), smooth=False)
case("length short", lambda x: cp.length(cp.multiply(x, np.array([1.0, 1, 0, 0]))), real(4), smooth=False)
for name, build in (("rel_entr", cp.rel_entr), ("kl_div", cp.kl_div)):
    case(name, build, positive(2, 3), positive(2, 3))
    case(f"{name} scalar", build, positive(), positive(3))
    case(f"{name} broadcast", build, positive(3), positive(2, 3))
for name, build in (("maximum", cp.maximum), ("minimum", cp.minimum)):
    case(name, build, real(2, 3), real(2, 3), real(), smooth=False)
    case(f"{name} broadcast", build, real(3), real(2, 3), smooth=False)
case("And", lambda x, y: cp.logic.And(x, y), boolean(3), boolean(3), smooth=False)
case("Or", lambda x, y, z: cp.logic.Or(x, y, z), boolean(3), boolean(3), boolean(3), smooth=False)
case("Xor", lambda x, y, z: cp.logic.Xor(x, y, z), boolean(3), boolean(3), boolean(3), smooth=False)
case("Not", lambda x: cp.logic.Not(x), boolean(3), smooth=False)

# sums and products
case("add", lambda x, y: x + y + 1.5, real(2, 3), real(2, 3))
case("add scalar", lambda x, y: x + y, real(2, 3), real())
case("add broadcast", lambda x, y: x + y, real(3), real(2, 3))
case("add broadcast matrices", lambda x, y: x + y, real(1, 3), real(2, 1))
case("add 3d", lambda x, y: x + y, real(2, 1, 3), real(4, 1))
case("add complex", lambda x, y: x + y, complex_(3), real(3))
case("subtract and negate", lambda x, y: -(x - y), real(3), real(3))
case("multiply", cp.multiply, real(2, 3), real(2, 3))
case("multiply scalars", lambda x, y: x * y, real(), real(1, 1))
case("multiply broadcast", cp.multiply, real(3), real(2, 3))
case("multiply sparse", lambda x: cp.multiply(sp.csc_array(np.eye(3)), x), real(3, 3))
case("multiply complex", lambda x: cp.multiply(C23, x), real(2, 3))
case("divide", lambda x, y: x / y, real(2, 3), positive(2, 3))
case("divide scalar", lambda x, y: x / y, real(2, 3), positive())
case("divide scalars", lambda x, y: x / y, real(), positive(1, 1))
case("divide broadcast", lambda x, y: x / y, real(3), positive(2, 3))
for a, b in (((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((3,), (5, 3, 2)),
             ((5, 2, 3), (3,)), ((4, 1, 2, 3), (5, 3, 2)), ((1, 3), (3,)), ((3,), (3, 1))):  # fmt: skip
    new = len(a) == 3 and len(b) == 1
    case(f"matmul {a} {b}", lambda x, y: x @ y, real(*a), real(*b), new=new)
    case(f"MulExpression {a} {b}", MulExpression, real(*a), real(*b), new=new)
case("matmul constant left", lambda x: A23 @ x, real(3))
case("matmul constant right", lambda x: x @ A23, real(2))
case("matmul sparse constant", lambda x: sp.csc_array(A23) @ x, real(3, 2))
case("matmul complex constant", lambda x: C23 @ x, real(3))
case("matmul complex", lambda x, y: x @ y, complex_(2, 3), real(3, 2))
case("outer", cp.outer, real(3), real(2))
case("vdot", cp.vdot, real(3), real(3))
case("einsum", lambda x, y: cp.einsum("ij,jk->ik", x, y), real(2, 3), real(3, 2))
case("einsum trace", lambda x: cp.einsum("ii->", x), real(3, 3))
case("kron right", lambda x: cp.kron(A23, x), real(2, 2))
case("kron left", lambda x: cp.kron(x, A23), real(2, 2))
case("kron both", cp.kron, parameter(2, 2), real(1, 3))
case("conv", lambda x: cp.conv(V3, x), real(5))
case("conv column", lambda x: cp.conv(V4, x), real(3, 1))
case("convolve", cp.convolve, parameter(3), real(5))
case("convolve short", lambda x: cp.convolve(V4, x), real(2))
case("convolve complex", lambda x: cp.convolve(C23[0], x), real(4))
case("trace", cp.trace, real(3, 3))
case("trace 3d", cp.trace, real(2, 3, 3))
case("trace of product", lambda x, y: cp.trace(x @ y), real(2, 3), real(3, 2))

# shapes
for order in "FC":
    case(f"reshape {order}", lambda x, o=order: cp.reshape(x, (3, 4), order=o), real(2, 6))
    case(f"reshape 3d {order}", lambda x, o=order: cp.reshape(x, (3, 2, 2), order=o), real(2, 6))
    case(f"reshape to matrix {order}", lambda x, o=order: cp.reshape(x, (3, 2), order=o), real(6))
    case(f"reshape scalar {order}", lambda x, o=order: cp.reshape(x, (1, 1), order=o), real())
    case(f"vec {order}", lambda x, o=order: cp.vec(x, order=o), real(2, 3))
case("flatten", lambda x: x.flatten(order="F"), real(2, 3))
case("squeeze", cp.squeeze, real(1, 3, 1))
case("transpose", lambda x: x.T, real(2, 3))
case("transpose vector", lambda x: x.T, real(3))
case("transpose 3d", lambda x: x.T, real(2, 3, 4))
case("permute_dims", lambda x: cp.permute_dims(x, [1, 2, 0]), real(2, 3, 4))
case("swapaxes", lambda x: cp.swapaxes(x, 0, -1), real(2, 3, 4))
case("moveaxis", lambda x: cp.moveaxis(x, [0], [-1]), real(2, 3, 4))
case("hermitian transpose", lambda x: x.H, complex_(2, 3))
case("broadcast_to", lambda x: cp.broadcast_to(x, (2, 3)), real(3))
case("broadcast_to scalar", lambda x: cp.broadcast_to(x, (2, 3)), real())
case("promote", lambda x: cp.promote(x, (2, 3)), real())
case("promote ones", lambda x: x + np.ones((2, 3)), real(1, 1))
for k in (-1, 0, 2):
    case(f"diag_vec {k}", lambda x, k=k: cp.diag(x, k), real(3))
    case(f"diag_mat {k}", lambda x, k=k: cp.diag(x, k), real(4, 4))
case("upper_tri", cp.upper_tri, real(4, 4))
case("upper_tri 3d", cp.upper_tri, real(2, 3, 3))
case("vec_to_upper_tri", lambda x: cp.vec_to_upper_tri(x, strict=True), real(6))
for wrapper in (Wrap, symmetric_wrap, psd_wrap, nsd_wrap, skew_symmetric_wrap, nonneg_wrap, nonpos_wrap):
    case(wrapper.__name__, wrapper, real(3, 3))
case("hermitian_wrap", cp.hermitian_wrap, hermitian(3, 3))
for part in (cp.real, cp.imag, cp.conj):
    case(part.__name__, part, complex_(2, 3))
    case(f"{part.__name__} of real", part, real(3))
case("hstack vectors", lambda x, y, z: cp.hstack([x, y, z]), real(2), real(3), real())
case("hstack matrices", lambda x, y: cp.hstack([x, y]), real(2, 2), real(2, 3))
case("hstack complex", lambda x, y: cp.hstack([x, y]), complex_(2), real(3))
case("vstack vectors", lambda x, y: cp.vstack([x, y]), real(3), real(2, 3))
case("vstack scalars", lambda x, y: cp.vstack([x, y, 1.0]), real(), real())
case("bmat", lambda x, y: cp.bmat([[x, y], [np.ones((1, 2)), 2.0]]), real(2, 2), real(2, 1), new=True)
for axis in (0, 1, None):
    case(f"concatenate {axis}", lambda x, y, a=axis: cp.concatenate([x, y], axis=a), real(2, 2), real(2, 2))
case("stack", lambda x, y: cp.stack([x, y], axis=1), real(2, 3), real(2, 3))
case("partial_trace", lambda x: cp.partial_trace(x, (2, 3), 0), real(6, 6))
case("partial_transpose", lambda x: cp.partial_transpose(x, (2, 3), 1), real(6, 6))
for key_name, key in {
    "[1]": 1, "[-1]": -1, "[1, 2]": (1, 2), "[:, 1]": (slice(None), 1), "[0:1, 1:]": (slice(0, 1), slice(1, None)),
    "[::-1]": slice(None, None, -1), "[:, ::2]": (slice(None), slice(None, None, 2)),
    "[::-1, 1]": (slice(None, None, -1), 1), "[:0]": slice(0, 0),
    "[-2:]": slice(-2, None), "[2:0:-1, ::-2]": (slice(2, 0, -1), slice(None, None, -2)),
    "[[2, 0, 2]]": [2, 0, 2], "[[0, 1], [1, 2]]": ([0, 1], [1, 2]), "[1, [0, 2]]": (1, [0, 2]), "[None, 1]": (None, 1),
    "[...]": Ellipsis, "[mask]": np.arange(9).reshape(3, 3) % 2 == 0, "[array]": np.array([[0, 1], [2, 0]]),
}.items():  # fmt: skip
    case(f"index {key_name}", lambda x, k=key: x[k], real(3, 3))
case("index vector", lambda x: x[1:3], real(4))
case("index vector element", lambda x: x[2], real(4))
case("index vector backwards", lambda x: x[::-1], real(4))
case("index 3d", lambda x: x[1, :, 0:2], real(2, 3, 4))

# reductions
for options in AXES:
    for name, build in (("sum", cp.sum), ("log_sum_exp", cp.log_sum_exp), ("sum_squares", cp.sum_squares)):
        case(f"{name} {label(options)}", lambda x, b=build, o=options: b(x, **o), real(2, 3))
    case(f"prod {label(options)}", lambda x, o=options: cp.prod(x, **o), real(2, 3))
    case(f"quad_over_lin {label(options)}", lambda x, y, o=options: cp.quad_over_lin(x, y, **o), real(2, 3), positive())
    for name, build in (("max", cp.max), ("min", cp.min), ("norm1", cp.norm1), ("norm_inf", cp.norm_inf), ("ptp", cp.ptp)):
        if name in ("norm1", "norm_inf") and options.get("axis") == (0, 1):
            continue
        case(f"{name} {label(options)}", lambda x, b=build, o=options: b(x, **o), real(2, 3), smooth=False)
    for k in (1, 1.5, 2, 7):
        case(
            f"sum_largest {k} {label(options)}",
            lambda x, k=k, o=options: cp.sum_largest(x, k, **o),
            real(2, 3),
            smooth=False,
        )
    if options.get("axis") != (0, 1):
        case(f"pnorm 2 {label(options)}", lambda x, o=options: cp.pnorm(x, 2, **o), real(2, 3))
    if "axis" not in options:
        case(f"pnorm exact {label(options)}", lambda x, o=options: cp.pnorm(x, 2.3, approx=False, **o), real(2, 3))
        for p in (3, 1.7):
            case(f"pnorm {p} {label(options)}", lambda x, p=p, o=options: cp.pnorm(x, p, **o), real(2, 3))
        for p in (0.5, -1, -1.5):
            case(f"pnorm {p} {label(options)}", lambda x, p=p, o=options: cp.pnorm(x, p, **o), positive(2, 3))
    for approx in (True, False):
        case(
            f"geo_mean {approx} {label(options)}",
            lambda x, a=approx, o=options: cp.geo_mean(x, approx=a, **o),
            positive(2, 3),
            new=True,
        )
    case(f"mean {label(options)}", lambda x, o=options: cp.mean(x, **o), real(2, 3), new=options.get("axis") in (-1, (0, 1)))
    case(f"var {label(options)}", lambda x, o=options: cp.var(x, **o), real(2, 3), new="axis" in options)
for axes in ((0, 2), (1, 2), 1):
    case(f"sum 3d {axes}", lambda x, a=axes: cp.sum(x, axis=a), real(2, 3, 2))
    case(f"max 3d {axes}", lambda x, a=axes: cp.max(x, axis=a, keepdims=True), real(2, 3, 2), smooth=False)
    case(f"prod 3d {axes}", lambda x, a=axes: cp.prod(x, axis=a), real(2, 3, 2))
case("sum scalar", cp.sum, real())
case("geo_mean weights", lambda x: cp.geo_mean(x, [1, 0, 2, 0.5]), positive(4))
for approx in (True, False):
    case(f"geo_mean vector {approx}", lambda x, a=approx: cp.geo_mean(x, approx=a), positive(3), repeats=True)
case("geo_mean weights matrix", lambda x: cp.geo_mean(x, [1, 0, 2, 3], axis=None), positive(2, 2), new=True)
case("geo_mean weights axis", lambda x: cp.geo_mean(x, [1, 2, 3], axis=1), positive(2, 3), new=True)
case("pnorm complex", lambda x: cp.pnorm(x, 3), complex_(3))
case("norm2 complex", lambda x: cp.norm(x, 2), complex_(3))
case("sum_squares complex", cp.sum_squares, complex_(2, 3))
case("sum_smallest", lambda x: cp.sum_smallest(x, 2), real(4), smooth=False)
case("cvar", lambda x: cp.cvar(x, 0.6), real(5), smooth=False)
case("std", cp.std, real(2, 3))
case("std axis", lambda x: cp.std(x, axis=0), real(4, 3))
case("norm matrix 1", lambda x: cp.norm(x, 1), real(2, 3), smooth=False)
case("norm matrix inf", lambda x: cp.norm(x, "inf"), real(2, 3), smooth=False)
case("norm fro", lambda x: cp.norm(x, "fro"), real(2, 3))
case("mixed_norm", lambda x: cp.mixed_norm(x, 2, 1), real(2, 3))
case("tv vector", cp.tv, real(5), smooth=False)
case("tv matrix", cp.tv, real(3, 3))
case("diff", lambda x: cp.diff(x, 2, axis=1), real(2, 4))
case("dotsort", lambda x: cp.dotsort(x, np.array([1.0, -2.0, 3.0, 0.0])), real(4), smooth=False)
case("dotsort short", lambda x: cp.dotsort(x, [2.0, 1.0]), real(2, 2), smooth=False)
case("dotsort parameter", cp.dotsort, real(4), parameter(3), smooth=False)
case("dist_ratio", lambda x: cp.dist_ratio(x, V3, np.zeros(3)), real(3))
case("dist_ratio matrix", lambda x: cp.dist_ratio(x, A23, 1.0), real(2, 3))
for name, build in (("cumsum", cp.cumsum), ("cumprod", cp.cumprod), ("cummax", cp.cummax)):
    for axis in (0, 1):
        case(f"{name} {axis}", lambda x, b=build, a=axis: b(x, axis=a), real(2, 3), smooth=name != "cummax")
    case(f"{name} vector", build, real(4), smooth=name != "cummax")
case("cumsum flat", lambda x: cp.cumsum(x, axis=None), real(2, 3))

# matrices
case("log_det", cp.log_det, definite(3, 3))
case("log_det hermitian", cp.log_det, hermitian(3, 3))
case("tr_inv", cp.tr_inv, definite(3, 3))
case("tr_inv hermitian", cp.tr_inv, hermitian(3, 3))
case("matrix_frac vector", cp.matrix_frac, real(3), definite(3, 3))
case("matrix_frac matrix", cp.matrix_frac, real(3, 2), definite(3, 3))
case("matrix_frac complex", cp.matrix_frac, complex_(3), definite(3, 3))
case("quad_form", lambda x: cp.quad_form(x, S33), real(3))
case("quad_form column", lambda x: cp.quad_form(x, S33), real(3, 1))
case("quad_form complex", lambda x: cp.quad_form(x, H33), complex_(3))
case("quad_form parameter", lambda x, p: cp.quad_form(x, p, assume_PSD=True), real(3), Arg("parameter symmetric", (3, 3)))
case("gmatmul", lambda x: cp.gmatmul(A23, x), positive(3))
case("gmatmul matrix", lambda x: cp.gmatmul(A23, x), positive(3, 2))
case("gmatmul parameter", lambda x, a: cp.gmatmul(a, x), positive(3), parameter(2, 3))
case("eye_minus_inv", cp.eye_minus_inv, contraction(3, 3))
case("resolvent", lambda x: cp.resolvent(x, 2.0), contraction(3, 3))
case("pf_eigenvalue", cp.pf_eigenvalue, positive(3, 3))
case("pf_eigenvalue 1x1", cp.pf_eigenvalue, positive(1, 1))
case("diff_pos", lambda x, y: cp.diff_pos(x + 5, y), positive(3), unit(3))
case("lambda_max", cp.lambda_max, symmetric(3, 3))
case("lambda_max 3d", cp.lambda_max, symmetric(2, 3, 3))
case("lambda_max hermitian", cp.lambda_max, hermitian(3, 3))
case("lambda_min", cp.lambda_min, symmetric(3, 3))
for k in (1, 2, 1.5, 3):
    case(f"lambda_sum_largest {k}", lambda x, k=k: cp.lambda_sum_largest(x, k), symmetric(3, 3))
case("lambda_sum_smallest", lambda x: cp.lambda_sum_smallest(x, 2), symmetric(3, 3))
case("condition_number", cp.condition_number, definite(3, 3))
case("gen_lambda_max", cp.gen_lambda_max, symmetric(3, 3), definite(3, 3))
for shape in ((2, 3), (3, 2), (3, 3)):
    case(f"sigma_max {shape}", cp.sigma_max, real(*shape))
    case(f"normNuc {shape}", cp.normNuc, real(*shape))
case("sigma_max complex", cp.sigma_max, complex_(2, 3))
case("normNuc complex", cp.normNuc, complex_(3, 2))
case("von_neumann_entr", cp.von_neumann_entr, definite(3, 3))
case("von_neumann_entr hermitian", cp.von_neumann_entr, hermitian(3, 3))
case("quantum_rel_entr", cp.quantum_rel_entr, density(3, 3), density(3, 3))
case("quantum_rel_entr real", cp.quantum_rel_entr, density(2, 2), definite(2, 2))
case("quantum_cond_entr", lambda x: cp.quantum_cond_entr(x, (2, 2)), density(4, 4))


def test_every_atom_of_cvxpy_has_a_rule_or_a_reason() -> None:
    for module in pkgutil.walk_packages(cvxpy.atoms.__path__, "cvxpy.atoms."):
        importlib.import_module(module.name)

    def subclasses(cls: type) -> Iterator[type]:
        for sub in cls.__subclasses__():
            yield sub
            yield from subclasses(sub)

    concrete = {c.__name__ for c in subclasses(Atom) if not inspect.isabstract(c) and c.__module__.startswith("cvxpy.")}
    assert len(concrete) > 90
    assert concrete - RULES.keys() - UNSUPPORTED.keys() == set()
    assert UNSUPPORTED.keys() <= concrete
    assert not UNSUPPORTED.keys() & RULES.keys()


def test_every_rule_is_exercised() -> None:
    used: set[str] = set()
    for name in CASES:
        expr, _ = CASES[name].make()
        used |= {type(atom).__name__ for atom in descendants(expr)}
    elsewhere = {"perspective", "SymbolicQuadForm", NUMERIC, SCATTER}  # test_atoms_compiler.py
    assert RULES.keys() - used == elsewhere


def descendants(expr: Any) -> Iterator[Any]:
    yield expr
    for child in expr.args:
        yield from descendants(child)

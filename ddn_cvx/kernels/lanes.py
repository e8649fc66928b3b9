"""A number type of eight lanes: what is written for one instance of a problem computes eight of them, side by side.

An array of lanes is a view of a float64 array whose last dimension is the lane. Its items are registers of eight numbers, so
arithmetic, comparisons, ``abs``, ``min``, ``max``, ``math.sqrt`` and the functions of ``dense`` work on it as they stand,
and a function that uses ``where`` in place of branches takes numbers and lanes alike. No loop over lanes is left for the
compiler to find, so such a kernel compiles as fast as one for numbers. A lane never sees what is in another.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.core.typeconv.castgraph import Conversion
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model
from numba.np.arrayobj import populate_array

LANES = 8
BYTES = 8 * LANES

_NUMBER = ir.VectorType(ir.DoubleType(), LANES)
_TRUTH = ir.VectorType(ir.IntType(1), LANES)
_INTEGER = ir.VectorType(ir.IntType(64), LANES)


class Lanes(types.Type):
    """Eight numbers."""

    def __init__(self) -> None:
        super().__init__("Lanes")

    def can_convert_from(self, typingctx: Any, other: Any) -> Any:
        return Conversion.safe if isinstance(other, types.Float | types.Integer) else None

    def unify(self, typingctx: Any, other: Any) -> Any:
        return self if isinstance(other, types.Float | types.Integer) else None


class Mask(types.Type):
    """Eight truth values."""

    def __init__(self) -> None:
        super().__init__("Mask")

    def can_convert_from(self, typingctx: Any, other: Any) -> Any:
        return Conversion.safe if isinstance(other, types.Boolean) else None

    def unify(self, typingctx: Any, other: Any) -> Any:
        return self if isinstance(other, types.Boolean) else None


LANE, MASK = Lanes(), Mask()

_operation: Callable[..., Any] = intrinsic

_ORDERED = ("contract",)
"""Sums are fused but keep their order: it would change with the length of a loop, and so with what other lanes need."""


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _NUMBER)


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _TRUTH)


def _spread(builder: Any, value: Any, kind: Any) -> Any:
    """The same value in all lanes."""
    index = ir.IntType(32)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(index, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(index, LANES), [0] * LANES))


@lower_cast(types.Float, Lanes)
@lower_cast(types.Integer, Lanes)
def _number_to_lanes(context: Any, builder: Any, source: Any, target: Any, value: Any) -> Any:
    return _spread(builder, context.cast(builder, value, source, types.float64), _NUMBER)


@lower_cast(types.Boolean, Mask)
def _truth_to_mask(context: Any, builder: Any, source: Any, target: Any, value: Any) -> Any:
    return _spread(builder, context.cast(builder, value, source, types.boolean), _TRUTH)


def _define(function: Any, kind: Any, others: Any, result: Any, arity: int, emit: Callable[..., Any]) -> None:
    """``function`` of ``arity`` arguments, at least one of ``kind`` and the rest of ``others``."""

    class Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            some = any(isinstance(a, kind) for a in args)
            if len(args) == arity and some and all(isinstance(a, (kind, *others)) for a in args):
                return signature(result, *[LANE if kind is Lanes else MASK] * arity)
            return None

    infer_global(function)(Template)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, *args)

    lower_builtin(function, *[kind] * arity)(lower)


def _call(name: str) -> Callable[..., Any]:
    """An operation of LLVM on lanes."""

    def emit(builder: Any, *args: Any) -> Any:
        kind = ir.FunctionType(_NUMBER, [_NUMBER] * len(args))
        return builder.call(builder.module.declare_intrinsic(f"{name}.v{LANES}f64", (), kind), args)

    return emit


def _arithmetic(instruction: str) -> Callable[..., Any]:
    def emit(builder: Any, a: Any, b: Any) -> Any:
        return getattr(builder, instruction)(a, b, flags=_ORDERED)

    return emit


def _compare(sign: str) -> Callable[..., Any]:
    def emit(builder: Any, a: Any, b: Any) -> Any:
        return (builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered)(sign, a, b)

    return emit


def _choose(sign: str) -> Callable[..., Any]:
    """``a`` where ``a sign b``, else b: what ``max`` and ``min`` are on numbers."""

    def emit(builder: Any, a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered(sign, a, b), a, b)

    return emit


_REALS = types.Float, types.Integer
for _name, _instruction in ("add", "fadd"), ("sub", "fsub"), ("mul", "fmul"), ("truediv", "fdiv"):
    for _operator in (getattr(operator, _name), getattr(operator, "i" + _name)):
        _define(_operator, Lanes, _REALS, LANE, 2, _arithmetic(_instruction))
for _sign, _operator in zip(
    ("<", "<=", ">", ">=", "==", "!="),
    (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne),
    strict=True,
):
    _define(_operator, Lanes, _REALS, MASK, 2, _compare(_sign))
_define(operator.neg, Lanes, (), LANE, 1, lambda builder, a: builder.fneg(a))
_define(abs, Lanes, (), LANE, 1, _call("llvm.fabs"))
_define(math.sqrt, Lanes, (), LANE, 1, _call("llvm.sqrt"))
_define(max, Lanes, _REALS, LANE, 2, _choose(">"))
_define(min, Lanes, _REALS, LANE, 2, _choose("<"))
for _operator in (operator.and_, operator.iand):
    _define(_operator, Mask, (types.Boolean,), MASK, 2, lambda builder, a, b: builder.and_(a, b))
for _operator in (operator.or_, operator.ior):
    _define(_operator, Mask, (types.Boolean,), MASK, 2, lambda builder, a, b: builder.or_(a, b))
_define(operator.invert, Mask, (), MASK, 1, lambda builder, a: builder.not_(a))


@_operation
def where(typingctx: Any, condition: Any, one: Any, other: Any) -> Any:
    """``one`` where the condition holds, else ``other``; both are computed."""
    lanes = isinstance(condition, Mask)
    kind = LANE if lanes or isinstance(one, Lanes) or isinstance(other, Lanes) else types.float64

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(*args)

    return kind(MASK if lanes else types.boolean, kind, kind), emit


@_operation
def anywhere(typingctx: Any, condition: Any) -> Any:
    """Whether it holds in a lane."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if not isinstance(condition, Mask):
            return args[0]
        bits = ir.IntType(LANES)
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], bits), ir.Constant(bits, 0))

    return types.boolean(condition), emit


@_operation
def rounded(typingctx: Any, x: Any) -> Any:
    """To the nearest integer."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call("llvm.rint")(builder, *args)

    return LANE(LANE), emit


@_operation
def power_of_two(typingctx: Any, x: Any) -> Any:
    """``2^x`` for integers x from -1022 to 1023."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        # The last bits of x + 1023 + 2^52 are x + 1023; the addition must stay as it is.
        moved = builder.fadd(args[0], ir.Constant(_NUMBER, [float(2**52 + 1023)] * LANES), flags=("nsz",))
        return builder.bitcast(builder.shl(builder.bitcast(moved, _INTEGER), ir.Constant(_INTEGER, [52] * LANES)), _NUMBER)

    return LANE(LANE), emit


@_operation
def exponent(typingctx: Any, x: Any) -> Any:
    """The integer e with ``2^e <= x < 2^(e + 1)``, of positive normal numbers."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.lshr(builder.bitcast(args[0], _INTEGER), ir.Constant(_INTEGER, [52] * LANES))
        start = ir.Constant(_NUMBER, [2.0**52] * LANES)
        moved = builder.bitcast(builder.or_(bits, builder.bitcast(start, _INTEGER)), _NUMBER)
        return builder.fsub(moved, ir.Constant(_NUMBER, [float(2**52 + 1023)] * LANES), flags=("nsz",))

    return LANE(LANE), emit


@_operation
def in_lanes(typingctx: Any, raw: Any) -> Any:
    """The view as lanes, (n,), of a float64 array (n, LANES) in one piece that begins at a multiple of ``BYTES``."""
    result = types.Array(LANE, 1, "C")

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        given, view = context.make_array(raw)(context, builder, args[0]), context.make_array(result)(context, builder)
        step = context.get_constant(types.intp, BYTES)
        populate_array(
            view,
            data=builder.bitcast(given.data, view.data.type),
            shape=[cgutils.unpack_tuple(builder, given.shape)[0]],
            strides=[step],
            itemsize=step,
            meminfo=given.meminfo,
            parent=given.parent,
        )
        return impl_ret_borrowed(context, builder, result, view._getvalue())

    return result(raw), emit

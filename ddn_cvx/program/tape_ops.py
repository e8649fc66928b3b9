"""What the operations of torch do to arrays of nodes: the table by which a traced function becomes a graph of scalars.

A tensor that depends on y or on parameters is an array of nodes, int64; truth values are nodes that are 0 or 1. Where torch
has a rule of its own for a derivative at a kink or at the end of a domain (``relu``, ``clamp``, ``norm`` ...), so has the
graph. What is not in the table is refused: the function then stays with torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddn_cvx.kernels import tape as op
from ddn_cvx.program.scalar_graph import ONE, ZERO, Graph

Nodes = NDArray[np.int64]


class NotScalarError(Exception):
    """The function cannot be written as a graph of scalars; the message says why."""


class Operations:
    """The table, for one graph: a method for each operation of torch, by its name and with its arguments."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def find(self, name: str) -> Callable[..., Any]:
        """The operation ``aten::name``.

        Raises
        ------
        NotScalarError
        """
        if name in _UNARY:
            return lambda x: self.each(lambda a: self.graph.node(_UNARY[name], a), x)
        if name in _COMPARE:
            code, swap = _COMPARE[name]
            return lambda x, y: self.each(lambda a, b: self.graph.node(code, *((b, a) if swap else (a, b))), x, y)
        found: Callable[..., Any] | None = getattr(self, f"_{name.strip('_')}", None)
        if found is None:
            raise NotScalarError(f"torch.ops.aten.{name} is not in the table")
        return found

    # ------------------------------------------------------------------------------------------------ helpers

    def nodes(self, value: Any) -> Nodes:
        """Anything an operation may get as nodes."""
        if isinstance(value, np.ndarray):
            return value
        numbers = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if numbers.dtype.kind not in "fiub":
            raise NotScalarError(f"numbers of type {numbers.dtype}")
        flat = [self.graph.constant(float(v)) for v in numbers.ravel()]
        return np.array(flat, dtype=np.int64).reshape(numbers.shape)

    def each(self, function: Callable[..., int], *values: Any) -> Nodes:
        """``function`` of the entries, broadcast."""
        arrays = np.broadcast_arrays(*(self.nodes(v) for v in values))
        flat = [function(*entries) for entries in zip(*(a.ravel().tolist() for a in arrays), strict=True)]
        return np.array(flat, dtype=np.int64).reshape(arrays[0].shape)

    # ------------------------------------------------------------------------------------------------ arithmetic

    def _add(self, x: Any, y: Any, alpha: float = 1) -> Nodes:
        return self.each(self.graph.add, x, y if alpha == 1 else self._mul(y, alpha))

    def _sub(self, x: Any, y: Any, alpha: float = 1) -> Nodes:
        return self.each(self.graph.sub, x, y if alpha == 1 else self._mul(y, alpha))

    def _rsub(self, x: Any, y: Any, alpha: float = 1) -> Nodes:
        return self._sub(y, x, alpha)

    def _mul(self, x: Any, y: Any) -> Nodes:
        return self.each(self.graph.mul, x, y)

    def _div(self, x: Any, y: Any, rounding_mode: str | None = None) -> Nodes:
        found = self.each(self.graph.div, x, y)
        if rounding_mode is None:
            return found
        if rounding_mode != "floor":
            raise NotScalarError(f"division with rounding_mode={rounding_mode!r}")
        return self.each(lambda a: self.graph.node(op.FLOOR, a), found)

    def _neg(self, x: Any) -> Nodes:
        return self.each(self.graph.neg, x)

    def _pow(self, x: Any, y: Any) -> Nodes:
        return self.each(self.graph.power, x, y)

    def _square(self, x: Any) -> Nodes:
        return self._mul(x, x)

    def _reciprocal(self, x: Any) -> Nodes:
        return self._div(1.0, x)

    def _rsqrt(self, x: Any) -> Nodes:
        return self._pow(x, -0.5)

    def _log2(self, x: Any) -> Nodes:
        return self._div(self.find("log")(x), math.log(2.0))

    def _log10(self, x: Any) -> Nodes:
        return self._div(self.find("log")(x), math.log(10.0))

    def _exp2(self, x: Any) -> Nodes:
        return self.find("exp")(self._mul(x, math.log(2.0)))

    def _sgn(self, x: Any) -> Nodes:
        return self.find("sign")(x)

    def _addcmul(self, x: Any, y: Any, z: Any, value: float = 1) -> Nodes:
        return self._add(x, self._mul(y, z), value)

    def _addcdiv(self, x: Any, y: Any, z: Any, value: float = 1) -> Nodes:
        return self._add(x, self._div(y, z), value)

    def _lerp(self, x: Any, y: Any, weight: Any) -> Nodes:
        return self._add(x, self._mul(weight, self._sub(y, x)))

    def _atan2(self, x: Any, y: Any) -> Nodes:
        return self.each(lambda a, b: self.graph.node(op.ATAN2, a, b), x, y)

    def _maximum(self, x: Any, y: Any) -> Nodes:
        return self.each(lambda a, b: self.graph.node(op.MAX, a, b), x, y)

    def _minimum(self, x: Any, y: Any) -> Nodes:
        return self.each(lambda a, b: self.graph.node(op.MIN, a, b), x, y)

    def _xlogy(self, x: Any, y: Any) -> Nodes:
        g = self.graph

        def one(a: int, b: int) -> int:
            log = g.node(op.LOG, b)
            none = g.mul(g.node(op.EQ, a, ZERO), g.node(op.LE, b, ZERO))
            value = g.when(g.node(op.NE, a, ZERO), g.node(op.MUL, a, log) if a > ONE else g.mul(a, log))
            return g.ruled(
                value,
                (a, b),
                lambda node, slope: [(a, g.when(g.no(none), g.mul(slope, log))), (b, g.div(g.mul(slope, a), b))],
            )

        return self.each(one, x, y)

    def _logaddexp(self, x: Any, y: Any) -> Nodes:
        """``max(x, y) + log1p(exp(-|x - y|))``; the same infinity twice is that infinity."""
        g = self.graph

        def one(a: int, b: int) -> int:
            ahead = g.sub(a, b)
            tail = g.node(op.LOG1P, g.node(op.EXP, g.neg(g.node(op.ABS, ahead))))
            value = g.add(g.node(op.MAX, a, b), g.where(g.node(op.EQ, a, b), g.constant(math.log(2.0)), tail))

            def rule(node: int, slope: int) -> list[tuple[int, int]]:
                return [(z, g.mul(slope, g.node(op.SIGMOID, d))) for z, d in ((a, ahead), (b, g.neg(ahead)))]

            return g.ruled(value, (a, b), rule)

        return self.each(one, x, y)

    def _special_entr(self, x: Any) -> Nodes:
        """``-x log(x)``; minus infinity below zero."""
        g = self.graph

        def one(a: int) -> int:
            log = g.node(op.LOG, a)
            inside = g.neg(g.when(g.node(op.NE, a, ZERO), g.mul(a, log)))
            value = g.where(g.node(op.LT, a, ZERO), g.constant(-math.inf), inside)
            return g.ruled(value, (a,), lambda node, slope: [(a, g.neg(g.mul(slope, g.add(ONE, log))))])

        return self.each(one, x)

    # ------------------------------------------------------------------------------------------------ truth values

    def _logical_and(self, x: Any, y: Any) -> Nodes:
        return self._mul(self._truth(x), self._truth(y))

    def _logical_or(self, x: Any, y: Any) -> Nodes:
        return self._maximum(self._truth(x), self._truth(y))

    def _logical_xor(self, x: Any, y: Any) -> Nodes:
        return self.find("ne")(self._truth(x), self._truth(y))

    def _logical_not(self, x: Any) -> Nodes:
        return self.each(self.graph.no, x)

    _bitwise_and, _bitwise_or, _bitwise_xor, _bitwise_not = _logical_and, _logical_or, _logical_xor, _logical_not

    def _truth(self, x: Any) -> Nodes:
        return self.find("ne")(x, 0.0)

    def _where(self, condition: Any, x: Any, y: Any) -> Nodes:
        return self.each(self.graph.where, condition, x, y)

    def _masked_fill(self, x: Any, mask: Any, value: Any) -> Nodes:
        return self._where(mask, value, x)

    # ------------------------------------------------------------------------------------------------ functions with kinks

    def passed(self, value: int, x: int, mask: int) -> int:
        """``value`` with the derivative of x where ``mask``, zero elsewhere."""
        return self.graph.ruled(value, (x,), lambda node, slope: [(x, self.graph.when(mask, slope))])

    def _relu(self, x: Any) -> Nodes:
        g = self.graph
        return self.each(lambda a: self.passed(g.node(op.MAX, a, ZERO), a, g.no(g.node(op.LE, a, ZERO))), x)

    def _clamp(self, x: Any, min: Any = None, max: Any = None) -> Nodes:
        g = self.graph

        def one(code: int) -> Callable[[int, int], int]:
            def limited(a: int, b: int) -> int:
                value = g.node(code, a, b)
                inside = g.node(op.LE, b, a) if code == op.MAX else g.node(op.LE, a, b)

                def rule(node: int, slope: int) -> list[tuple[int, int]]:
                    return [(a, g.when(inside, slope)), (b, g.when(g.no(inside), slope))]

                return g.ruled(value, (a, b), rule)

            return limited

        x = self.nodes(x) if min is None else self.each(one(op.MAX), x, min)
        return x if max is None else self.each(one(op.MIN), x, max)

    def _clamp_min(self, x: Any, min: Any) -> Nodes:
        return self._clamp(x, min)

    def _clamp_max(self, x: Any, max: Any) -> Nodes:
        return self._clamp(x, None, max)

    def _hardtanh(self, x: Any, low: float = -1.0, high: float = 1.0) -> Nodes:
        g, ends = self.graph, (self.graph.constant(low), self.graph.constant(high))

        def one(a: int) -> int:
            inside = g.mul(g.node(op.LT, ends[0], a), g.node(op.LT, a, ends[1]))
            return self.passed(g.node(op.MIN, g.node(op.MAX, a, ends[0]), ends[1]), a, inside)

        return self.each(one, x)

    def _leaky_relu(self, x: Any, slope: float = 0.01) -> Nodes:
        g = self.graph
        return self.each(lambda a: g.where(g.node(op.LT, ZERO, a), a, g.mul(g.constant(slope), a)), x)

    def _elu(self, x: Any, alpha: float = 1.0, scale: float = 1.0, inside: float = 1.0) -> Nodes:
        g = self.graph

        def one(a: int) -> int:
            bent = g.node(op.EXPM1, g.mul(g.constant(inside), g.node(op.MIN, a, ZERO)))
            return g.mul(g.constant(scale), g.where(g.node(op.LT, ZERO, a), a, g.mul(g.constant(alpha), bent)))

        return self.each(one, x)

    def _softplus(self, x: Any, beta: float = 1.0, threshold: float = 20.0) -> Nodes:
        g = self.graph

        def one(a: int) -> int:
            u = g.mul(g.constant(beta), a)
            straight = g.node(op.LT, g.constant(threshold), u)
            bent = g.div(g.node(op.LOG1P, g.node(op.EXP, u)), g.constant(beta))
            slope_here = g.where(straight, ONE, g.node(op.SIGMOID, u))
            return g.ruled(g.where(straight, a, bent), (a,), lambda node, slope: [(a, g.mul(slope, slope_here))])

        return self.each(one, x)

    def _log_sigmoid_forward(self, x: Any) -> tuple[Nodes, None]:
        """``min(x, 0) - log1p(exp(-|x|))``."""
        g = self.graph

        def one(a: int) -> int:
            tail = g.node(op.LOG1P, g.node(op.EXP, g.neg(g.node(op.ABS, a))))
            value = g.sub(g.node(op.MIN, a, ZERO), tail)
            return g.ruled(value, (a,), lambda node, slope: [(a, g.mul(slope, g.node(op.SIGMOID, g.neg(a))))])

        return self.each(one, x), None

    def _silu(self, x: Any) -> Nodes:
        return self._mul(x, self.find("sigmoid")(x))

    def _gelu(self, x: Any, approximate: str = "none") -> Nodes:
        if approximate == "none":
            bent = self.find("erf")(self._mul(x, math.sqrt(0.5)))
        else:
            cubic = self._add(x, self._mul(self._pow(x, 3), 0.044715))
            bent = self.find("tanh")(self._mul(cubic, math.sqrt(2.0 / math.pi)))
        return self._mul(self._mul(x, 0.5), self._add(bent, 1.0))


_UNARY = {
    **{"exp": op.EXP, "log": op.LOG, "sqrt": op.SQRT, "sin": op.SIN, "cos": op.COS, "tan": op.TAN, "tanh": op.TANH},
    **{"sigmoid": op.SIGMOID, "abs": op.ABS, "sign": op.SIGN, "floor": op.FLOOR, "expm1": op.EXPM1, "log1p": op.LOG1P},
    **{"asin": op.ASIN, "acos": op.ACOS, "atan": op.ATAN, "sinh": op.SINH, "cosh": op.COSH, "asinh": op.ASINH},
    **{"acosh": op.ACOSH, "atanh": op.ATANH, "erf": op.ERF, "erfc": op.ERFC},
}
_COMPARE = {
    **{"lt": (op.LT, False), "le": (op.LE, False), "gt": (op.LT, True), "ge": (op.LE, True)},
    **{"eq": (op.EQ, False), "ne": (op.NE, False)},
}

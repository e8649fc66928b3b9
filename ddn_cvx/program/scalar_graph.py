"""A function of scalars as a graph, in which nothing occurs twice, and its derivatives as more of the same graph.

A node is an integer; its arguments are smaller ones. Sums and products with zero and one vanish as they are written down,
so that what is sparse stays sparse: a derivative that is zero everywhere is the node ``ZERO``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import or_

import numpy as np

from ddn_cvx.kernels import tape as op

INPUT, CONSTANT, RULED = -1, -2, -3
"""Nodes that are no operation. A ruled node has the value of its first argument, and a derivative of its own."""

THETA, POINT, WEIGHT = 1, 2, 4
"""What a value depends on: parameters, y, multipliers."""

ZERO, ONE = 0, 1
"""The first two nodes."""

LIMIT = 200_000
"""Nodes of a graph; a second's work at most."""
VISITS = 600_000
"""Nodes that reverse sweeps may pass in all."""

Pieces = Iterable[tuple[int, int]]
Rule = Callable[[int, int], Pieces]
"""``(node, slope) -> [(argument, what this adds to its slope)]``."""

_SYMMETRIC = {op.ADD, op.MUL, op.MIN, op.MAX, op.EQ, op.NE}
_FLAT = {op.LT, op.LE, op.EQ, op.NE, op.SIGN, op.FLOOR}
"""Operations whose derivative is zero."""


class TooLargeError(Exception):
    """The graph has too many nodes, or takes more than ``VISITS`` steps to differentiate."""


_FOLD: dict[int, Callable[[float, float], float]] = {
    **{op.ADD: np.add, op.SUB: np.subtract, op.MUL: np.multiply, op.DIV: np.divide, op.POW: np.power, op.ATAN2: np.arctan2},
    **{op.LT: np.less, op.LE: np.less_equal, op.EQ: np.equal, op.NE: np.not_equal, op.MIN: np.minimum, op.MAX: np.maximum},
    op.WHEN: lambda a, b: b if a != 0.0 else 0.0,
}
_FOLD_ONE: dict[int, Callable[[float], float]] = {
    **{op.NEG: np.negative, op.SQRT: np.sqrt, op.EXP: np.exp, op.LOG: np.log, op.SIN: np.sin, op.COS: np.cos},
    **{op.TANH: np.tanh, op.ABS: np.abs, op.SIGN: np.sign, op.FLOOR: np.floor, op.EXPM1: np.expm1, op.LOG1P: np.log1p},
    **{op.TAN: np.tan, op.ASIN: np.arcsin, op.ACOS: np.arccos, op.ATAN: np.arctan, op.SINH: np.sinh, op.COSH: np.cosh},
    **{op.ASINH: np.arcsinh, op.ACOSH: np.arccosh, op.ATANH: np.arctanh, op.ERF: math.erf, op.ERFC: math.erfc},
    op.SIGMOID: lambda a: 1.0 / (1.0 + np.exp(-a)),
}


def _fold(code: int, a: float, b: float) -> float:
    with np.errstate(all="ignore"):
        return float(_FOLD[code](np.float64(a), np.float64(b)) if code in _FOLD else _FOLD_ONE[code](np.float64(a)))


class Graph:
    """Nodes, as lists of their parts.

    Parameters
    ----------
    limit : int
        How many there may be.

    Attributes
    ----------
    op, a, b : list of int
        Operation and arguments of each node.
    value : dict of int -> float
        Of the constants.
    reads : list of int
        Which kinds of inputs the value of each node depends on.
    varies : list of int
        With respect to which of them, y and parameters, its derivative is not zero.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.op: list[int] = []
        self.a: list[int] = []
        self.b: list[int] = []
        self.reads: list[int] = []
        self.varies: list[int] = []
        self.value: dict[int, float] = {}
        self._constants: dict[float, int] = {}
        self._known: dict[tuple[int, int, int], int] = {}
        self._rules: list[tuple[Sequence[int], Rule]] = []
        self._visits = 0
        self.constant(0.0), self.constant(1.0)

    # ------------------------------------------------------------------------------------------------ nodes

    def _new(self, code: int, a: int, b: int, reads: int, varies: int) -> int:
        if len(self.op) >= self.limit:
            raise TooLargeError
        self.op.append(code)
        self.a.append(a)
        self.b.append(b)
        self.reads.append(reads)
        self.varies.append(varies)
        return len(self.op) - 1

    def input(self, kind: int) -> int:
        """A number that is given when the tape runs."""
        return self._new(INPUT, -1, -1, kind, kind & (POINT | THETA))

    def constant(self, value: float) -> int:
        """A number; zeros of both signs are the same."""
        value = float(value) + 0.0
        found = self._constants.get(value)
        if found is None:  # NaN is found by nobody
            found = self._new(CONSTANT, -1, -1, 0, 0)
            self.value[found] = value
            self._constants[value] = found
        return found

    def ruled(self, value: int, arguments: Sequence[int], rule: Rule) -> int:
        """The same value with a derivative of its own."""
        if not self.varies[value]:
            return value
        self._rules.append((arguments, rule))
        varies = reduce(or_, (self.varies[a] for a in arguments), 0)
        return self._new(RULED, value, len(self._rules) - 1, self.reads[value], varies)

    def held(self, value: int) -> int:
        """The same value, as a constant for derivatives."""
        return self.ruled(value, (), lambda node, slope: ())

    def node(self, code: int, a: int, b: int = -1) -> int:
        """An operation on one or two nodes, without a look for anything simpler."""
        if b < 0:
            b = a
        elif a > b and code in _SYMMETRIC:
            a, b = b, a
        key = (code, a, b)
        found = self._known.get(key)
        if found is None:
            if self.op[a] == CONSTANT and self.op[b] == CONSTANT:
                return self.constant(_fold(code, self.value[a], self.value[b]))
            varies = 0 if code in _FLAT else self.varies[a] | self.varies[b]
            found = self._new(code, a, b, self.reads[a] | self.reads[b], varies)
            self._known[key] = found
        return found

    # ------------------------------------------------------------------------------------------------ arithmetic

    def add(self, a: int, b: int) -> int:
        """``a + b``."""
        if a == ZERO:
            return b
        if b == ZERO:
            return a
        if self.op[b] == op.NEG:
            return self.sub(a, self.a[b])
        if self.op[a] == op.NEG:
            return self.sub(b, self.a[a])
        return self.mul(self.constant(2.0), a) if a == b else self.node(op.ADD, a, b)

    def sub(self, a: int, b: int) -> int:
        """``a - b``."""
        if b == ZERO:
            return a
        if a == ZERO:
            return self.neg(b)
        return self.add(a, self.a[b]) if self.op[b] == op.NEG else self.node(op.SUB, a, b)

    def neg(self, a: int) -> int:
        """``-a``."""
        code = self.op[a]
        if code == op.NEG:
            return self.a[a]
        if code == op.SUB:
            return self.node(op.SUB, self.b[a], self.a[a])
        return self.node(op.NEG, a)

    def mul(self, a: int, b: int) -> int:
        """``a b``; zero times anything is zero."""
        if a == ZERO or b == ZERO:
            return ZERO
        if a == ONE:
            return b
        if b == ONE:
            return a
        kind = self.op
        if kind[a] == op.NEG:
            return self.neg(self.mul(self.a[a], b))
        if kind[b] == op.NEG:
            return self.neg(self.mul(a, self.a[b]))
        if kind[b] == CONSTANT:
            a, b = b, a
        if kind[a] == CONSTANT:
            if self.value[a] == -1.0:
                return self.neg(b)
            if kind[b] == op.MUL and kind[self.a[b]] == CONSTANT:
                return self.mul(self.constant(self.value[a] * self.value[self.a[b]]), self.b[b])
        return self.node(op.MUL, a, b)

    def div(self, a: int, b: int) -> int:
        """``a / b``."""
        if b == ONE or (a == ZERO and b != ZERO):
            return a
        if self.op[b] == CONSTANT:
            value = self.value[b]
            if value != 0.0 and math.isfinite(value) and math.frexp(value)[0] in (0.5, -0.5):
                return self.mul(a, self.constant(1.0 / value))  # exact
        return self.neg(self.div(self.a[a], b)) if self.op[a] == op.NEG else self.node(op.DIV, a, b)

    def when(self, condition: int, a: int) -> int:
        """a where the condition is not zero, else zero."""
        if self.op[condition] == CONSTANT:
            return a if self.value[condition] != 0.0 else ZERO
        return ZERO if a == ZERO else self.node(op.WHEN, condition, a)

    def no(self, condition: int) -> int:
        """1 where the condition is zero."""
        return self.node(op.EQ, condition, ZERO)

    def where(self, condition: int, a: int, b: int) -> int:
        """a where the condition is not zero, else b."""
        return a if a == b else self.add(self.when(condition, a), self.when(self.no(condition), b))

    def power(self, a: int, b: int) -> int:
        """``a ** b``; small whole exponents are products."""
        if self.op[b] != CONSTANT:
            return self.node(op.POW, a, b)
        exponent = self.value[b]
        if exponent == 0.5:
            return self.node(op.SQRT, a)
        if exponent < 0.0 and (exponent == -0.5 or (exponent.is_integer() and exponent >= -8.0)):
            return self.div(ONE, self.power(a, self.constant(-exponent)))
        if exponent.is_integer() and 0.0 <= exponent <= 8.0:
            result, square, left = ONE, a, int(exponent)
            while left:
                result = self.mul(result, square) if left & 1 else result
                left >>= 1
                square = self.mul(square, square) if left else square
            return result
        return self.node(op.POW, a, b)

    def total(self, nodes: Iterable[int]) -> int:
        """The sum, from left to right."""
        result = ZERO
        for node in nodes:
            result = self.add(result, node)
        return result

    # ------------------------------------------------------------------------------------------------ derivatives

    def gradient(self, root: int, inputs: Sequence[int], kind: int = POINT) -> dict[int, int]:
        """Derivatives of ``root`` with respect to ``inputs`` (nodes of one kind), those that are not zero, by one reverse
        sweep."""
        if not self.varies[root] & kind:
            return {}
        slopes, beneath = {root: ONE}, self._beneath(root, kind)
        self._visits += len(beneath)
        if self._visits > VISITS:
            raise TooLargeError
        for node in sorted(beneath, reverse=True):
            slope = slopes.get(node, ZERO)
            if slope == ZERO:
                continue
            for argument, piece in self._pieces(node, slope, kind):
                if self.varies[argument] & kind:
                    known = slopes.get(argument)
                    slopes[argument] = piece if known is None else self.add(known, piece)
        return {k: slopes[k] for k in inputs if slopes.get(k, ZERO) != ZERO}

    def _beneath(self, root: int, kind: int) -> set[int]:
        """The operations with such a derivative on which ``root`` depends, itself included."""
        found, stack = set(), [root]
        while stack:
            node = stack.pop()
            if node in found or self.op[node] == INPUT:
                continue
            found.add(node)
            arguments = self._rules[self.b[node]][0] if self.op[node] == RULED else (self.a[node], self.b[node])
            stack += [a for a in arguments if self.varies[a] & kind]
        return found

    def _pieces(self, node: int, slope: int, kind: int) -> Pieces:
        """What ``slope``, the derivative with respect to ``node``, adds to the derivatives with respect to its arguments."""
        code, a, b = self.op[node], self.a[node], self.b[node]
        if code == op.ADD:
            return (a, slope), (b, slope)
        if code == op.SUB:
            return (a, slope), (b, self.neg(slope))
        if code == op.MUL:
            if a == b:
                return ((a, self.mul(self.mul(self.constant(2.0), a), slope)),)
            return [(x, self.mul(slope, y)) for x, y in ((a, b), (b, a)) if self.varies[x] & kind]
        if code == op.NEG:
            return ((a, self.neg(slope)),)
        if code == op.DIV:
            over = self.div(slope, b)
            return [(a, over)] + ([(b, self.neg(self.mul(over, node)))] if self.varies[b] & kind else [])
        if code == op.WHEN:
            return ((b, self.when(a, slope)),)
        if code == RULED:
            return self._rules[b][1](node, slope)
        if code in (op.MIN, op.MAX):
            half = self.when(self.node(op.EQ, a, b), self.mul(self.constant(0.5), slope))
            return [(x, self.add(self.when(self._ahead(code, x, y), slope), half)) for x, y in ((a, b), (b, a))]
        if code == op.POW:
            return self._power_pieces(node, slope, kind)
        if code == op.ATAN2:
            length = self.add(self.mul(a, a), self.mul(b, b))
            over = self.div(slope, length)
            return (a, self.mul(over, b)), (b, self.neg(self.mul(over, a)))
        return ((a, self._chain(code, node, a, slope)),)

    def _power_pieces(self, node: int, slope: int, kind: int) -> Pieces:
        a, b = self.a[node], self.b[node]
        if self.varies[a] & kind:
            down = self.mul(self.mul(slope, b), self.power(a, self.sub(b, ONE)))
            yield a, self.when(self.node(op.NE, b, ZERO), down)
        if self.varies[b] & kind:  # zero to whatever is positive stays zero
            still = self.mul(self.node(op.EQ, a, ZERO), self.node(op.LE, ZERO, b))
            yield b, self.when(self.no(still), self.mul(slope, self.mul(node, self.node(op.LOG, a))))

    def _chain(self, code: int, node: int, a: int, slope: int) -> int:
        """``slope`` times the derivative of a function of one argument."""
        square = self.mul
        if code == op.EXP:
            return self.mul(slope, node)
        if code == op.SIN:
            return self.mul(slope, self.node(op.COS, a))
        if code == op.COS:
            return self.neg(self.mul(slope, self.node(op.SIN, a)))
        if code == op.LOG:
            return self.div(slope, a)
        if code == op.SQRT:
            return self.div(self.mul(self.constant(0.5), slope), node)
        if code == op.TANH:
            return self.mul(slope, self.sub(ONE, square(node, node)))
        if code == op.SIGMOID:
            return self.mul(slope, self.mul(node, self.sub(ONE, node)))
        if code == op.ABS:
            return self.mul(slope, self.node(op.SIGN, a))
        if code == op.EXPM1:
            return self.mul(slope, self.add(node, ONE))
        if code == op.LOG1P:
            return self.div(slope, self.add(a, ONE))
        if code == op.TAN:
            return self.mul(slope, self.add(ONE, square(node, node)))
        if code == op.ATAN:
            return self.div(slope, self.add(ONE, square(a, a)))
        if code == op.ASIN:
            return self.div(slope, self.node(op.SQRT, self.sub(ONE, square(a, a))))
        if code == op.ACOS:
            return self.neg(self.div(slope, self.node(op.SQRT, self.sub(ONE, square(a, a)))))
        if code == op.SINH:
            return self.mul(slope, self.node(op.COSH, a))
        if code == op.COSH:
            return self.mul(slope, self.node(op.SINH, a))
        if code == op.ASINH:
            return self.div(slope, self.node(op.SQRT, self.add(square(a, a), ONE)))
        if code == op.ACOSH:
            return self.div(slope, self.node(op.SQRT, self.sub(square(a, a), ONE)))
        if code == op.ATANH:
            return self.div(slope, self.sub(ONE, square(a, a)))
        assert code in (op.ERF, op.ERFC)
        bell = self.mul(self.constant(2.0 / math.sqrt(math.pi)), self.node(op.EXP, self.neg(square(a, a))))
        return self.mul(slope, bell if code == op.ERF else self.neg(bell))

    def _ahead(self, code: int, a: int, b: int) -> int:
        """Whether the smaller or the larger of two is a."""
        return self.node(op.LT, a, b) if code == op.MIN else self.node(op.LT, b, a)

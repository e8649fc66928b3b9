"""From a graph of scalars to code: which operations are needed, in which order, and where their results are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddn_cvx.kernels import tape as op
from ddn_cvx.kernels.tape import Code, Tape
from ddn_cvx.program.scalar_graph import CONSTANT, INPUT, RULED, THETA, ZERO, Graph

PROLOGUE, VALUES, FIRST, SECOND = range(4)


class Outputs(NamedTuple):
    """Nodes."""

    f: int
    h: list[int]
    g: list[int]
    gradient: list[int]
    jh: dict[tuple[int, int], int]
    """``(row, column) -> node``, where it is not zero."""
    jg: dict[tuple[int, int], int]
    hessian: dict[tuple[int, int], int]
    """The lower triangle."""


class Inputs(NamedTuple):
    """Nodes."""

    y: list[int]
    lam: list[int]
    mu: list[int]
    theta: list[int]

    @property
    def all(self) -> list[int]:
        """In the order of the slots."""
        return [*self.y, *self.lam, *self.mu, *self.theta]


def differentiate(graph: Graph, given: Inputs, values: Sequence[int]) -> Outputs:
    """All derivatives of the program whose ``values`` are f, h and g, one after another."""
    f, h, g = _parts(given, values)
    place = {node: k for k, node in enumerate(given.y)}

    def row(root: int) -> dict[int, int]:
        return {place[k]: slope for k, slope in graph.gradient(root, given.y).items()}

    slope = row(f)
    jh = {(i, k): node for i, root in enumerate(h) for k, node in row(root).items()}
    jg = {(i, k): node for i, root in enumerate(g) for k, node in row(root).items()}
    bent = row(_lagrangian(graph, given, values))
    hessian = {(i, k): node for i, root in bent.items() for k, node in row(root).items() if k <= i}
    return Outputs(f, h, g, [slope.get(k, ZERO) for k in range(len(place))], jh, jg, dict(sorted(hessian.items())))


def pull_back(graph: Graph, given: Inputs, values: Sequence[int], weights: Inputs) -> Outputs:
    """In the place of g, the derivatives of ``u . grad_y L + a . h + b . g`` with respect to the parameters, for weights u,
    a and b that are called y, λ and μ."""
    _, h, g = _parts(given, values)
    slope = graph.gradient(_lagrangian(graph, given, values), given.y)
    pairs = [(u, slope.get(y, ZERO)) for u, y in zip(weights.y, given.y, strict=True)]
    pairs += [*zip(weights.lam, h, strict=True), *zip(weights.mu, g, strict=True)]
    found = graph.gradient(graph.total(graph.mul(a, b) for a, b in pairs), given.theta, THETA)
    return Outputs(ZERO, [], [found.get(k, ZERO) for k in given.theta], [], {}, {}, {})


def _parts(given: Inputs, values: Sequence[int]) -> tuple[int, list[int], list[int]]:
    p = len(given.lam)
    return values[0], list(values[1 : 1 + p]), list(values[1 + p :])


def _lagrangian(graph: Graph, given: Inputs, values: Sequence[int]) -> int:
    return graph.add(values[0], graph.total(map(graph.mul, (*given.lam, *given.mu), values[1:])))


def generate(graph: Graph, inputs: Sequence[int], outputs: Outputs, limit: int) -> Tape | None:
    """The tape, or None if it would have more than ``limit`` instructions. ``inputs`` are y, λ, μ and the parameters."""
    o = outputs
    roots = {
        VALUES: [o.f, *o.h, *o.g],
        FIRST: [*o.gradient, *o.jh.values(), *o.jg.values()],
        SECOND: list(o.hessian.values()),
    }
    made = _Generator(graph, inputs, roots)
    if sum(map(len, made.order)) > limit:
        return None
    code = [made.emit(segment) for segment in range(4)]
    slot = made.slot_of

    def slots(nodes: Sequence[int]) -> op.Ints:
        return np.array([slot(k) for k in nodes], dtype=np.int64)

    def entries(matrix: dict[tuple[int, int], int]) -> tuple[op.Ints, op.Ints, op.Ints]:
        places = np.array(list(matrix), dtype=np.int64).reshape(-1, 2).T.copy()
        return places[0], places[1], slots(list(matrix.values()))

    constants = np.zeros(made.count)
    for node, place in made.slots.items():
        if graph.op[node] == CONSTANT:
            constants[place] = graph.value[node]
    vectors = {"f": slots([o.f]), "h": slots(o.h), "g": slots(o.g), "gradient": slots(o.gradient)}
    named = {"jh": o.jh, "jg": o.jg, "hess": o.hessian}
    parts = ("row", "col", "slot")
    matrices = {f"{k}_{part}": a for k, v in named.items() for part, a in zip(parts, entries(v), strict=True)}
    return Tape(made.count, constants, code[0], code[1], code[2], code[3], **vectors, **matrices)


class _Generator:
    """Operations in the order of their segments, and slots for their results.

    What a later segment reads, or the caller, keeps its slot for good: the segments may be run again and again, ``values``
    more often than the others. All else gives its slot back after its last use.
    """

    def __init__(self, graph: Graph, inputs: Sequence[int], roots: dict[int, list[int]]):
        self.graph = graph
        self.slots = {node: k for k, node in enumerate(inputs)}
        self.count = len(inputs)
        self.order: list[list[int]] = [[], [], [], []]
        self._same: dict[int, int] = {}
        self._known: dict[tuple[int, int, int], int] = {}
        self._segment: dict[int, int] = {}
        self._spare: list[int] = []
        for segment, nodes in roots.items():
            for node in nodes:
                self._visit(node, segment)
        self._lasting = {self._same[node] for nodes in roots.values() for node in nodes}
        self._uses: Counter[int] = Counter()
        for segment, order in enumerate(self.order):
            for node in order:
                for argument in self._arguments(node):
                    self._uses[argument] += 1
                    if self._segment.get(argument, segment) != segment:
                        self._lasting.add(argument)

    def slot_of(self, node: int) -> int:
        """Where the value of ``node`` is found."""
        return self.slots[self._same[node]]

    def emit(self, segment: int) -> Code:
        """The code of one segment, ``(k, 4)``."""
        products, sums = self._sums_of_products(segment)
        lines = [node for node in self.order[segment] if node not in products]
        reads = [self._arguments(sums[node][1] if node in sums else node) for node in lines]
        last = {argument: k for k, arguments in enumerate(reads) for argument in arguments}
        end = {start: node for node, (start, _) in sums.items()}
        code = np.empty((len(lines), 4), dtype=np.int32)
        for k, (node, arguments) in enumerate(zip(lines, reads, strict=True)):
            places = [self.slots[a] for a in arguments]
            for argument in set(arguments):
                if last[argument] == k and self._segment.get(argument) == segment and argument not in self._lasting:
                    self._spare.append(self.slots[argument])
            if node in sums:
                self.slots[node] = self.slots[sums[node][0]]
            else:
                final = node
                while final in end:
                    final = end[final]
                self._place(node, final in self._lasting)
            code[k] = op.FMA if node in sums else self.graph.op[node], self.slots[node], places[0], places[-1]
        return code

    def _sums_of_products(self, segment: int) -> tuple[set[int], dict[int, tuple[int, int]]]:
        """Products that are needed only to be added to something that is needed for nothing else: these products, and for
        each of the sums the other term and the product."""
        graph = self.graph
        products: set[int] = set()
        sums: dict[int, tuple[int, int]] = {}
        for node in self.order[segment]:
            if graph.op[node] != op.ADD:
                continue
            pair = self._arguments(node)
            if any(self._segment.get(a) != segment or a in self._lasting or self._uses[a] != 1 for a in pair):
                continue
            for start, product in (pair, pair[::-1]):
                if graph.op[product] == op.MUL and start not in products:
                    products.add(product)
                    sums[node] = start, product
                    break
        return products, sums

    def _arguments(self, node: int) -> tuple[int, ...]:
        a, b = self.graph.a[node], self.graph.b[node]
        return (self._same[a],) if a == b else (self._same[a], self._same[b])

    def _place(self, node: int, lasting: bool = True) -> None:
        if lasting or not self._spare:
            self.slots[node] = self.count
            self.count += 1
        else:
            self.slots[node] = self._spare.pop()

    def _visit(self, root: int, segment: int) -> None:
        """Put what ``root`` needs in order, arguments first, and find the one node that stands for all that are the same."""
        graph, same, stack = self.graph, self._same, [root]
        while stack:
            node = stack[-1]
            code, a, b = graph.op[node], graph.a[node], graph.b[node]
            if node in same:
                stack.pop()
            elif code in (INPUT, CONSTANT):
                same[node] = node
                if code == CONSTANT:
                    self._place(node)
            elif a not in same:
                stack.append(a)
            elif code == RULED:
                same[node] = same[a]
            elif b not in same:
                stack.append(b)
            else:
                same[node] = self._known.setdefault((code, same[a], same[b]), node)
                if same[node] == node:
                    where = PROLOGUE if graph.reads[node] == THETA else segment
                    self._segment[node] = where
                    self.order[where].append(node)

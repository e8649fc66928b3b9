"""The problem as declared, for a compiled kernel that checks candidate solutions (``kernels.verification``).

The declared expressions are traced as they are evaluated (``program.tape_trace``), so that cvxpy's canonical form has no
part in what the kernel computes. Sums are taken apart into products, which is all that the polynomials of a quadratic
program need; other operations are done one by one. What cannot be traced stays with torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddn_cvx.declare.as_declared import AsDeclared
from ddn_cvx.kernels import tape as op
from ddn_cvx.kernels.verification import SUM, Plan
from ddn_cvx.program.elimination import Elimination
from ddn_cvx.program.scalar_graph import CONSTANT, INPUT, POINT, RULED, THETA, ZERO, Graph, TooLargeError
from ddn_cvx.program.tape_ops import NotScalarError
from ddn_cvx.program.tape_trace import trace

LIMIT = 60_000
"""Nodes of the traced expressions at most, a tenth of a second's work; torch is as fast for larger ones."""

Nodes = NDArray[np.int64]
Leaves = Sequence[tuple[int, tuple[int, ...]]]
"""Ids and shapes."""
Variables = Sequence[tuple[int, tuple[int, ...], sp.csr_array]]
"""Ids and shapes, and maps from the variables of the program."""


def plan_checks(
    declared: AsDeclared, parameters: Leaves, variables: Variables, elimination: Elimination, sign: float
) -> Plan | None:
    """What the kernel has to compute, for parameters that come first in the parameter vector one after the other; None if
    it cannot."""
    width, n = elimination.map.linear.shape[1], elimination.reduced.n
    if width + n > LIMIT:
        return None
    graph = Graph(LIMIT)
    u, x = (np.array([graph.input(kind) for _ in range(size)], np.int64) for kind, size in ((THETA, width), (POINT, n)))
    inputs: list[tuple[int, Nodes]] = []
    start = 0
    for key, shape in parameters:
        size = int(np.prod(shape))
        inputs.append((key, u[start : start + size].reshape(1, *shape)))
        start += size
    try:
        inputs += [(key, _apply(graph, matrix, x).reshape(1, *shape)) for key, shape, matrix in variables]
        sides = _trace(graph, declared, inputs)
        constant = _constant(graph, elimination, u)
        return None if sides is None else _Rows(graph, [*u, *x]).plan(sides, sign, constant)
    except (NotScalarError, TooLargeError, RuntimeError):
        return None  # the last of these is torch's, of what it cannot trace


class _Sides(NamedTuple):
    """Nodes of the objective, of the two sides of all constraints, equalities first, and of what should be semidefinite."""

    objective: int
    left: Nodes
    right: Nodes
    equalities: int
    matrices: list[Nodes]


def _trace(graph: Graph, declared: AsDeclared, inputs: Sequence[tuple[int, Nodes]]) -> _Sides | None:
    counts: list[int] = []

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        objective, args = declared.evaluate({key: t for (key, _), t in zip(inputs, tensors, strict=True)}, 1)
        equalities, inequalities, others = declared.checks.sides(args, 1)
        matrices = [X for kind, (X, *_), _ in others if kind == "PSD" and not X.is_complex()]
        counts[:] = [len(others) - len(matrices), len(matrices), sum(pair[0].shape[1] for pair in equalities)]
        pairs = [*equalities, *inequalities]
        return objective, *matrices, *(pair[0] for pair in pairs), *(pair[1] for pair in pairs)

    tensors = [(torch.ones(nodes.shape, dtype=torch.float64), nodes) for _, nodes in inputs]
    objective, *found = trace(graph, function, tensors)
    others, number, equalities = counts
    if others:
        return None
    matrices, flat = [square.reshape(square.shape[-2:]) for square in found[:number]], [t.ravel() for t in found[number:]]
    nothing = np.empty(0, np.int64)
    left, right = (np.concatenate([nothing, *half]) for half in (flat[: len(flat) // 2], flat[len(flat) // 2 :]))
    return _Sides(int(objective[0]), left, right, equalities, matrices)


def _apply(graph: Graph, matrix: sp.csr_array, nodes: Nodes) -> Nodes:
    """``matrix @ nodes``."""
    found = []
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        terms = zip(matrix.data[start:stop].tolist(), nodes[matrix.indices[start:stop]].tolist(), strict=True)
        found.append(graph.total(graph.mul(graph.constant(factor), node) for factor, node in terms))
    return np.array(found, np.int64)


def _constant(graph: Graph, elimination: Elimination, u: Nodes) -> int:
    """``Elimination.constant``."""
    values = elimination.value_map
    flat = zip(_apply(graph, values.linear.matrix, u).tolist(), values.offset.tolist(), strict=True)
    d, c, q_E = np.split(np.array([graph.add(a, graph.constant(b)) for a, b in flat], np.int64), np.cumsum(values.sizes)[:2])
    half = _apply(graph, 0.5 * elimination.P_EE.matrix, c)
    products = [graph.mul(a, graph.add(b, e)) for a, b, e in zip(c.tolist(), q_E.tolist(), half.tolist(), strict=True)]
    return graph.total([int(d[0]), *products])


Place = tuple[str, int]
"""Among the constants, the inputs or the rows."""
Product = tuple[float, Place, Place]
Term = tuple[float, int, int]
"""The same, with the places numbered through."""
_SUMMED = {op.ADD, op.SUB, op.NEG, op.MUL}


Operation = tuple[int, Place, Place]


class _Rows:
    """Sums of products, and other operations, from the nodes of a graph."""

    def __init__(self, graph: Graph, inputs: Sequence[int]):
        self.graph = graph
        self.constants = [1.0]
        self.places: dict[int, Place] = {int(node): ("input", k) for k, node in enumerate(inputs)}
        self.inputs = len(inputs)
        """Of nodes that have been needed."""
        self.rows: list[list[Product] | Operation] = []

    def plan(self, sides: _Sides, sign: float, constant: int) -> Plan:
        entries = [square.ravel() for square in sides.matrices]
        roots = np.concatenate([[sides.objective, constant], sides.left, sides.right, *entries]).tolist()
        self.uses = self._count(roots)
        found = [self.place(root) for root in roots]
        first = {"constant": 0, "input": len(self.constants), "row": len(self.constants) + self.inputs}

        def position(place: Place) -> int:
            return first[place[0]] + place[1]

        starts, runs, operations = [0], [], []
        for k, row in enumerate(self.rows):
            if isinstance(row, list):
                operations.append((SUM, 0, 0, 0))
                runs += _runs([(factor, position(a), position(b)) for factor, a, b in row])
            else:
                operations.append((row[0], first["row"] + k, position(row[1]), position(row[2])))
            starts.append(len(runs))
        orders = np.array([len(square) for square in sides.matrices], np.int64)
        places = np.array([position(place) for place in found], np.int64)
        left, right, squares = np.split(places[2:], [len(sides.left), 2 * len(sides.left)])
        return Plan(
            np.array(self.constants),
            np.array(starts, np.int64),
            np.array(operations, np.int32).reshape(-1, 4),
            np.array([run[0] for run in runs], np.float64),
            np.array([run[1:] for run in runs], np.int64).reshape(-1, 5),
            int(places[0]),
            sign,
            int(places[1]),
            left.copy(),
            right.copy(),
            sides.equalities,
            orders,
            squares.copy(),
            2.0 * (self.inputs + len(runs)) + 20.0 * len(operations) + float((orders**3).sum()),
        )

    def _count(self, roots: Sequence[int]) -> Counter[int]:
        """How often each node is needed."""
        uses, stack = Counter[int](), list(roots)
        while stack:
            node = stack.pop()
            uses[node] += 1
            if uses[node] == 1 and self.graph.op[node] not in (INPUT, CONSTANT):
                stack.append(self.graph.a[node])
                if self.graph.op[node] not in (RULED, op.NEG):
                    stack.append(self.graph.b[node])
        return uses

    def place(self, node: int) -> Place:
        """Where the value of a node is found."""
        while self.graph.op[node] == RULED:
            node = self.graph.a[node]
        if node not in self.places:
            code = self.graph.op[node]
            if code == CONSTANT:
                self.places[node] = self._store(self.graph.value[node])
            else:
                row = list(self._terms(node)) if code in _SUMMED else self._operation(node)
                self.places[node] = "row", len(self.rows)
                self.rows.append(row)
        return self.places[node]

    def _operation(self, node: int) -> Operation:
        return self.graph.op[node], self.place(self.graph.a[node]), self.place(self.graph.b[node])

    def _store(self, value: float) -> Place:
        self.constants.append(value)
        return "constant", len(self.constants) - 1

    def _terms(self, root: int) -> Iterator[Product]:
        """A node as a sum of products, from left to right; what others need too is a row of its own."""
        graph, one = self.graph, ("constant", 0)
        stack = [(1.0, root)]
        while stack:
            factor, node = stack.pop()
            code, a, b = graph.op[node], graph.a[node], graph.b[node]
            shared = node != root and self.uses[node] > 1
            if code in (INPUT, CONSTANT) or shared:
                if node != ZERO:
                    yield factor, self.place(node), one
            elif code in (op.ADD, op.SUB):
                stack += [(factor if code == op.ADD else -factor, b), (factor, a)]
            elif code == op.NEG:
                stack.append((-factor, a))
            elif code == RULED:
                stack.append((factor, a))
            elif code == op.DIV and graph.op[b] == CONSTANT:
                stack.append((factor / graph.value[b], a))
            elif code == op.MUL and graph.op[a] == CONSTANT:
                if graph.op[b] in (INPUT, op.MUL):  # a place for each such number: neighbours make a run
                    yield factor, self._store(graph.value[a]), self.place(b)
                else:
                    stack.append((factor * graph.value[a], b))
            elif code == op.MUL:
                yield factor, self.place(a), self.place(b)
            else:
                yield factor, self.place(node), one


def _runs(terms: Sequence[Term]) -> list[tuple[float, int, int, int, int, int]]:
    """Neighbours whose factor is the same and whose places advance evenly, together."""
    found: list[tuple[float, int, int, int, int, int]] = []
    for factor, a, b in terms:
        if found:
            same, first, step, other, step_b, count = found[-1]
            if count == 1 and same == factor:
                found[-1] = factor, first, a - first, other, b - other, 2
                continue
            if same == factor and a == first + count * step and b == other + count * step_b:
                found[-1] = same, first, step, other, step_b, count + 1
                continue
        found.append((factor, a, 0, b, 0, 1))
    return found

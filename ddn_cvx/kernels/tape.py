"""Runs a tape: the arithmetic of a small nonlinear program and of its derivatives, one scalar operation after another.

Several instances are computed side by side, as the lanes of a row of the workspace: what it costs to look at an
instruction is shared, and the loop over the lanes vectorises. What is computed in a lane depends on that lane only.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddn_cvx.kernels.jit import jit, lean

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Code = NDArray[np.int32]

LANES = 8
"""Instances that are computed side by side."""

ADD, SUB, MUL, DIV, FMA, COPY, NEG, WHEN, POW, SQRT, EXP, LOG, SIN, COS, TANH, SIGMOID = range(16)
LT, LE, EQ, NE, MIN, MAX, ABS, SIGN, FLOOR, EXPM1, LOG1P, TAN, ASIN, ACOS, ATAN, SINH = range(16, 32)
COSH, ASINH, ACOSH, ATANH, ATAN2, ERF, ERFC = range(32, 39)
"""The operations. Comparisons give 0 and 1, ``WHEN`` is b where a is not 0, else 0, ``FMA`` adds a * b to what is there."""
BENT = (LT, LE, EQ, NE, MIN, MAX, ABS, SIGN, FLOOR)
"""Those with kinks or jumps."""


class Tape(NamedTuple):
    """A program ``f, h, g`` in n variables with p equalities, m inequalities and t scalar parameters, and its derivatives.

    The workspace has a row for each slot. At first it holds ``constants``; y is in the slots ``0 .. n - 1``, then come
    λ (p), μ (m) and the parameters (t). Code is ``(k, 4)``: operation, where the result goes, and its one or two arguments.
    ``prologue`` reads the parameters only and is run once; ``values`` reads y as well; ``first`` is run after ``values`` at
    the same y, and ``second``, which reads λ and μ too, after ``first``.
    """

    slots: int
    constants: Floats
    """``(slots,)``."""
    prologue: Code
    values: Code
    """f, h and g."""
    first: Code
    """Gradient of f, and the Jacobians."""
    second: Code
    """Hessian of the Lagrangian ``f + λ'h + μ'g``."""
    f: Ints
    """Slot of the objective, ``(1,)``."""
    h: Ints
    g: Ints
    gradient: Ints
    jh_row: Ints
    jh_col: Ints
    jh_slot: Ints
    jg_row: Ints
    jg_col: Ints
    jg_slot: Ints
    hess_row: Ints
    hess_col: Ints
    hess_slot: Ints
    """The Hessian's lower triangle with the diagonal."""


@lean
def run(code: Any, work: Any) -> None:
    """Execute ``code`` (k, 4) for all lanes of ``work`` (slots, lanes)."""
    lanes = range(work.shape[1])
    for k in range(len(code)):
        op, out, a, b = code[k, 0], work[code[k, 1]], work[code[k, 2]], work[code[k, 3]]
        if op == ADD:
            for i in lanes:
                out[i] = a[i] + b[i]
        elif op == SUB:
            for i in lanes:
                out[i] = a[i] - b[i]
        elif op == MUL:
            for i in lanes:
                out[i] = a[i] * b[i]
        elif op == DIV:
            for i in lanes:
                out[i] = a[i] / b[i]
        elif op == FMA:
            for i in lanes:
                out[i] += a[i] * b[i]
        elif op == COPY:
            for i in lanes:
                out[i] = a[i]
        elif op == NEG:
            for i in lanes:
                out[i] = -a[i]
        elif op == WHEN:
            for i in lanes:
                out[i] = b[i] if a[i] != 0.0 else 0.0
        else:
            _seldom(op, out, a, b)


@lean
def _seldom(op: int, out: Any, a: Any, b: Any) -> None:
    """The operations that take so long that a call more does not matter."""
    lanes = range(len(out))
    if op == POW:
        for i in lanes:
            out[i] = a[i] ** b[i]
    elif op == SQRT:
        for i in lanes:
            out[i] = math.sqrt(a[i])
    elif op == EXP:
        for i in lanes:
            out[i] = math.exp(a[i])
    elif op == LOG:
        for i in lanes:
            out[i] = math.log(a[i])
    elif op == SIN:
        for i in lanes:
            out[i] = math.sin(a[i])
    elif op == COS:
        for i in lanes:
            out[i] = math.cos(a[i])
    elif op == TANH:
        for i in lanes:
            out[i] = math.tanh(a[i])
    elif op == SIGMOID:
        for i in lanes:
            out[i] = 1.0 / (1.0 + math.exp(-a[i]))
    elif op == LT:
        for i in lanes:
            out[i] = 1.0 if a[i] < b[i] else 0.0
    elif op == LE:
        for i in lanes:
            out[i] = 1.0 if a[i] <= b[i] else 0.0
    elif op == EQ:
        for i in lanes:
            out[i] = 1.0 if a[i] == b[i] else 0.0
    elif op == NE:
        for i in lanes:
            out[i] = 1.0 if a[i] != b[i] else 0.0
    elif op == MIN:  # NaN, if one of them is
        for i in lanes:
            out[i] = a[i] if a[i] < b[i] or a[i] != a[i] else b[i]
    elif op == MAX:
        for i in lanes:
            out[i] = a[i] if a[i] > b[i] or a[i] != a[i] else b[i]
    elif op == ABS:
        for i in lanes:
            out[i] = abs(a[i])
    elif op == SIGN:  # zero of NaN, as in torch
        for i in lanes:
            out[i] = (1.0 if a[i] > 0.0 else 0.0) - (1.0 if a[i] < 0.0 else 0.0)
    elif op == FLOOR:
        for i in lanes:
            out[i] = math.floor(a[i]) if math.isfinite(a[i]) else a[i]
    elif op == EXPM1:
        for i in lanes:
            out[i] = math.expm1(a[i])
    elif op == LOG1P:
        for i in lanes:
            out[i] = math.log1p(a[i])
    elif op == TAN:
        for i in lanes:
            out[i] = math.tan(a[i])
    elif op == ASIN:
        for i in lanes:
            out[i] = math.asin(a[i])
    elif op == ACOS:
        for i in lanes:
            out[i] = math.acos(a[i])
    elif op == ATAN:
        for i in lanes:
            out[i] = math.atan(a[i])
    elif op == SINH:
        for i in lanes:
            out[i] = math.sinh(a[i])
    elif op == COSH:
        for i in lanes:
            out[i] = math.cosh(a[i])
    elif op == ASINH:
        for i in lanes:
            out[i] = math.asinh(a[i])
    elif op == ACOSH:
        for i in lanes:
            out[i] = math.acosh(a[i])
    elif op == ATANH:
        for i in lanes:
            out[i] = math.atanh(a[i])
    elif op == ATAN2:
        for i in lanes:
            out[i] = math.atan2(a[i], b[i])
    elif op == ERF:
        for i in lanes:
            out[i] = math.erf(a[i])
    else:
        for i in lanes:
            out[i] = math.erfc(a[i])


@lean
def _load(tape: Any, work: Any, first: int, last: int, inputs: Any) -> None:
    """The elements ``first .. last - 1``, at least one, into the lanes, the last again into those that are left."""
    for lane in range(work.shape[1]):
        source = inputs[min(first + lane, last - 1)]
        for k in range(len(source)):
            work[k, lane] = source[k]


@lean
def _store(work: Any, slots: Any, first: int, last: int, out: Any) -> None:
    """``out`` (B, k) from k slots."""
    for b in range(first, last):
        for k in range(len(slots)):
            out[b, k] = work[slots[k], b - first]


@lean
def _store_matrix(work: Any, rows: Any, columns: Any, slots: Any, first: int, last: int, out: Any) -> None:
    """The entries of the pattern in ``out`` (B, ., n)."""
    for b in range(first, last):
        for k in range(len(slots)):
            out[b, rows[k], columns[k]] = work[slots[k], b - first]


@jit
def evaluate(first: int, last: int, tape: Any, order: int, inputs: Any, vectors: Any, matrices: Any) -> None:
    """Values, and first derivatives if ``order`` is 1 or 2, and the Hessian if it is 2, for elements ``first .. last - 1``.

    ``inputs`` (B, n + p + m + t) are y, λ, μ and the parameters; ``vectors`` are f (B, 1), h (B, p), g (B, m) and the
    gradient (B, n); ``matrices`` are the Jacobians (B, p, n) and (B, m, n), and the symmetric Hessian (B, n, n),
    zero at first.
    """
    f, h, g, gradient = vectors
    jh, jg, hessian = matrices
    work = np.empty((tape.slots, LANES))
    for slot in range(tape.slots):
        work[slot, :] = tape.constants[slot]
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        _load(tape, work, start, stop, inputs)
        run(tape.prologue, work)
        run(tape.values, work)
        _store(work, tape.f, start, stop, f)
        _store(work, tape.h, start, stop, h)
        _store(work, tape.g, start, stop, g)
        if order > 0:
            run(tape.first, work)
            _store(work, tape.gradient, start, stop, gradient)
            _store_matrix(work, tape.jh_row, tape.jh_col, tape.jh_slot, start, stop, jh)
            _store_matrix(work, tape.jg_row, tape.jg_col, tape.jg_slot, start, stop, jg)
        if order > 1:
            run(tape.second, work)
            _store_matrix(work, tape.hess_row, tape.hess_col, tape.hess_slot, start, stop, hessian)
            for k in range(len(tape.hess_slot)):
                i, j = tape.hess_row[k], tape.hess_col[k]
                for b in range(start, stop):
                    hessian[b, j, i] = hessian[b, i, j]

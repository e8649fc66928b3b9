"""From the functions of a nonlinear program to a tape that needs no Python (``kernels.tape``).

The functions are traced once, at one instance, into a graph of scalars, which is differentiated there. A tape is only used
if it says the same as torch: values, gradient, Jacobians and Hessian are compared at several points before it is used at
all, and the values again at the start of each solve, since what the functions refer to may have changed in the meantime.
Whatever cannot be traced, or has a derivative that is not that of its value, stays with torch.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddn_cvx.kernels.jit import spread
from ddn_cvx.kernels.tape import Floats, Tape, evaluate
from ddn_cvx.program.scalar_graph import LIMIT, POINT, THETA, WEIGHT, Graph, TooLargeError
from ddn_cvx.program.tape_code import differentiate, generate
from ddn_cvx.program.tape_ops import NotScalarError
from ddn_cvx.program.tape_trace import trace

if TYPE_CHECKING:
    from ddn_cvx.program.nonlinear import NonlinearProgram, Theta

INSTRUCTIONS = 60_000
"""Of a tape at most; beyond, torch's own kernels for arrays are not slower."""
CLOSE = 1e-9
"""Relative difference between tape and torch that is rounding."""
POINTS = 4
"""At which a new tape is compared with torch."""
TIMES = 3
"""Tapes that are made for a program whose functions change."""

Key = tuple[Any, ...]


class Derivatives(NamedTuple):
    """What a tape says about B points; what was not asked for is empty."""

    f: Tensor
    h: Tensor
    g: Tensor
    gradient: Tensor
    Jh: Tensor
    Jg: Tensor
    H: Tensor


def pack(program: NonlinearProgram, y: Tensor, theta: Theta, lam: Tensor | None = None, mu: Tensor | None = None) -> Floats:
    """What the first slots of a tape hold: y, λ, μ and the parameters, ``(B, n + p + m + t)`` float64."""
    batch = len(y)
    lam = y.new_zeros(batch, program.p) if lam is None else lam
    mu = y.new_zeros(batch, program.m) if mu is None else mu
    parts = [y, lam, mu]
    for tensor, own in zip(theta.tensors, theta.batched, strict=True):
        parts.append(tensor.reshape(batch, -1) if own else tensor.reshape(1, -1).expand(batch, -1))
    joined: Floats = torch.cat([part.detach() for part in parts], 1).numpy()
    return joined


def derivatives(program: NonlinearProgram, tape: Tape, inputs: Floats, order: int) -> Derivatives:
    """Run ``tape`` for ``inputs`` (``pack``): values, first derivatives if ``order`` is at least 1, Hessian if it is 2."""
    batch, n, p, m = len(inputs), program.n, program.p, program.m
    vectors = (np.empty((batch, 1)), np.empty((batch, p)), np.empty((batch, m)), np.empty((batch, n if order else 0)))
    rows = (p, m) if order else (0, 0)
    matrices = (*(np.empty((batch, r, n)) for r in rows), np.empty((batch, n if order > 1 else 0, n)))
    length = sum(map(len, (tape.prologue, tape.values, tape.first, tape.second)[: 2 + order]))
    spread(evaluate, batch, length, tape, order, inputs, vectors, matrices)
    f, *others = (torch.from_numpy(a) for a in (*vectors, *matrices))
    return Derivatives(f[:, 0], *others)


def build(program: NonlinearProgram, y: Tensor, theta: Theta) -> Tape | str:
    """The tape of ``program`` for parameters of these shapes, compared with torch near ``y`` (B, n); or why not."""
    n, p, m = program.n, program.p, program.m
    counts = [math.prod(t.shape[own:]) for t, own in zip(theta.tensors, theta.batched, strict=True)]
    if n + p + m + sum(counts) > LIMIT // 4:
        return "it has too many parameters"
    graph = Graph()
    places = [[graph.input(kind) for _ in range(size)] for kind, size in ((POINT, n), (WEIGHT, p), (WEIGHT, m))]
    places += [[graph.input(THETA) for _ in range(size)] for size in counts]
    first = torch.zeros(1, dtype=torch.int64)
    point, some = y[:1].detach().clone(), theta.detach().take(first)
    tensors = [point, *(t.clone() for t in some.tensors)]
    shaped = [np.array(k, dtype=np.int64).reshape(t.shape) for k, t in zip((places[0], *places[3:]), tensors, strict=True)]

    def function(y: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return program.values(y, type(theta)(tensors, theta.batched))

    try:
        outputs = trace(graph, function, list(zip(tensors, shaped, strict=True)))
        values = [int(k) for nodes in outputs for k in nodes.ravel()]
        found = differentiate(graph, *places[:3], values)
        tape = generate(graph, [k for part in places for k in part], found, INSTRUCTIONS)
    except NotScalarError as reason:
        return f"{reason}"
    except TooLargeError:
        tape = None
    except RuntimeError as reason:  # of torch, which says what cannot be traced
        return f"{reason}"
    if tape is None:
        return "it is too large"
    return tape if _agrees(program, tape, y, theta) else "its derivatives are not those of its values"


class Tapes:
    """The tapes of a program, for parameters of different shapes.

    Attributes
    ----------
    refused : dict
        Why there is no tape for parameters of some shapes.
    """

    def __init__(self) -> None:
        self._found: dict[Key, Tape] = {}
        self._made: Counter[Key] = Counter()
        self.refused: dict[Key, str] = {}

    def known(self, y: Tensor, theta: Theta) -> Tape | None:
        """The tape that was last confirmed, for tensors that are plain numbers on the CPU."""
        return self._found.get(_key(theta)) if self._found and len(y) and _is_plain(y, theta) else None

    def confirm(self, program: NonlinearProgram, y: Tensor, theta: Theta) -> Tape | None:
        """The tape, made if there is none, whose values at ``y`` (B, n) are those of the functions as they are now."""
        key = _key(theta)
        if key in self.refused or not len(y) or not program.is_dense or not _is_plain(y, theta):
            return None
        with torch.no_grad():
            values = program.values(y, theta)
        tape = self._found.get(key)
        if tape is not None and _has_values(program, tape, y, theta, values):
            return tape
        self._found.pop(key, None)
        self._made[key] += 1
        made = build(program, y, theta) if self._made[key] <= TIMES else "its functions change from one solve to the next"
        if isinstance(made, Tape) and not _has_values(program, made, y, theta, values):
            made = "its functions treat a batch otherwise than one instance"
        if isinstance(made, Tape):
            self._found[key] = made
            return made
        self.refused[key] = made
        return None


def _key(theta: Theta) -> Key:
    return theta.batched, tuple(t.shape[own:] for t, own in zip(theta.tensors, theta.batched, strict=True))


def _is_plain(y: Tensor, theta: Theta) -> bool:
    return all(
        type(t) in (Tensor, torch.nn.Parameter)
        and t.dtype == torch.float64
        and t.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        for t in (y, *theta.tensors)
    )


def _has_values(program: NonlinearProgram, tape: Tape, y: Tensor, theta: Theta, values: tuple[Tensor, ...]) -> bool:
    found = derivatives(program, tape, pack(program, y, theta), 0)
    return all(_close(a, b) for a, b in zip(found[:3], values, strict=True))


def _agrees(program: NonlinearProgram, tape: Tape, y: Tensor, theta: Theta) -> bool:
    """Whether torch has the same derivatives at some points, at one of which all are finite."""
    chance = torch.Generator().manual_seed(0)
    rows = torch.arange(POINTS) % len(y)
    some, point = theta.detach().take(rows), y.detach()[rows]
    noise = torch.rand(point.shape, generator=chance, dtype=torch.float64)
    size = 1.0 + point.abs()
    steps = (0.01 * size * noise, 0.3 * size * (noise - 0.5), 0.5 + noise - point, 0.1 * size * noise)
    point = point + torch.stack([step[k] for k, step in enumerate(steps)])
    lam = torch.rand(POINTS, program.p, generator=chance, dtype=torch.float64) + 0.5
    mu = torch.rand(POINTS, program.m, generator=chance, dtype=torch.float64) + 0.5
    first, H = program.first_by_torch(point, some), program.hessian_by_torch(point, some, lam, mu)
    found = derivatives(program, tape, pack(program, point, some, lam, mu), 2)
    wanted = (first.f, first.h, first.g, first.gradient, first.Jh, first.Jg, H)
    finite = torch.stack([t.reshape(POINTS, -1).isfinite().all(-1) for t in wanted]).all(0)
    # Outside the domain of a function torch's derivatives are NaN in places where they are zero by structure.
    same = all(_close(a, b) for a, b in zip(found[:3], wanted[:3], strict=True))
    same = same and all(_close(a[finite], b[finite]) for a, b in zip(found[3:], wanted[3:], strict=True))
    return same and bool(finite.any())


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, next to the largest entry of the same point; NaN equals NaN."""
    if not b.numel():
        return True
    a, b = a.reshape(len(b), -1), b.reshape(len(b), -1)
    size = torch.where(b.isfinite(), b.abs(), 0.0).amax(-1, keepdim=True)
    same = ((a - b).abs() <= CLOSE * (1.0 + size)) | (a == b) | (a.isnan() & b.isnan())
    return bool(same.all())

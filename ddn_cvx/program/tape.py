"""From the functions of a nonlinear program to a tape that needs no Python (``kernels.tape``).

The functions are traced once, at one instance, into a graph of scalars, which is differentiated there. A tape is only used
if it says the same as torch: values, gradient, Jacobians and Hessian are compared at several points before it is used at
all, and the values again at the start of each solve, since what the functions refer to may have changed in the meantime.
Whatever cannot be traced, or has a derivative that is not that of its value, stays with torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddn_cvx.kernels.jit import spread
from ddn_cvx.kernels.tape import BENT, Floats, Tape, evaluate
from ddn_cvx.program.scalar_graph import POINT, THETA, WEIGHT, Graph, TooLargeError
from ddn_cvx.program.tape_code import Inputs, differentiate, generate, pull_back
from ddn_cvx.program.tape_ops import NotScalarError
from ddn_cvx.program.tape_trace import trace

if TYPE_CHECKING:
    from ddn_cvx.program.nonlinear import NonlinearProgram, Theta

INSTRUCTIONS = 60_000
"""Of a tape at most; beyond, torch's own kernels for arrays are not slower."""
PARAMETERS = 2000
"""Numbers that the functions may depend on besides y: each element of a batch gets its own."""
CLOSE = 1e-9
"""Relative difference between tape and torch that is rounding."""
POINTS = 4
"""At which a new tape is compared with torch."""
TIMES = 3
"""Tapes that are made for a program whose functions change."""

Key = tuple[Any, ...]
Values = tuple[Tensor, Tensor, Tensor]


class Derivatives(NamedTuple):
    """What a tape says about B points; what was not asked for is empty."""

    f: Tensor
    h: Tensor
    g: Tensor
    gradient: Tensor
    Jh: Tensor
    Jg: Tensor
    H: Tensor


def pack(
    program: NonlinearProgram, y: Tensor, theta: Theta, lam: Tensor | None = None, mu: Tensor | None = None, *more: Tensor
) -> Floats:
    """What the first slots of a tape hold: y, λ, μ and the parameters, ``(B, n + p + m + t)`` float64, and what else there
    is."""
    batch = len(y)
    lam = y.new_zeros(batch, program.p) if lam is None else lam
    mu = y.new_zeros(batch, program.m) if mu is None else mu
    parts = [y, lam, mu]
    for tensor, own in zip(theta.tensors, theta.batched, strict=True):
        parts.append(tensor.reshape(batch, -1) if own else tensor.reshape(1, -1).expand(batch, -1))
    joined: Floats = torch.cat([part.detach() for part in (*parts, *more)], 1).numpy()
    return joined


def derivatives(program: NonlinearProgram, tape: Tape, inputs: Floats, order: int) -> Derivatives:
    """Run ``tape`` for ``inputs`` (``pack``): values, first derivatives if ``order`` is at least 1, Hessian if it is 2."""
    batch, n, p, m = len(inputs), program.n, program.p, program.m
    vectors = (np.empty((batch, 1)), np.empty((batch, p)), np.empty((batch, m)), np.empty((batch, n if order else 0)))
    rows = (p, m) if order else (0, 0)
    matrices = (*(np.zeros((batch, r, n)) for r in rows), np.zeros((batch, n if order > 1 else 0, n)))
    length = sum(map(len, (tape.prologue, tape.values, tape.first, tape.second)[: 2 + order]))
    spread(evaluate, batch, length, tape, order, inputs, vectors, matrices)
    f, *others = (torch.from_numpy(a) for a in (*vectors, *matrices))
    return Derivatives(f[:, 0], *others)


class Traced(NamedTuple):
    """The tapes of a program for parameters of certain shapes."""

    tape: Tape
    pull: Tape | None
    """The derivatives with respect to the parameters (``tape_code.pull_back``)."""
    bent: bool
    """Whether there are operations with kinks or jumps among the values."""


def build(program: NonlinearProgram, y: Tensor, theta: Theta) -> Traced | str:
    """The tapes of ``program`` for parameters of these shapes, compared with torch near ``y`` (B, n); or why not."""
    n, p, m = program.n, program.p, program.m
    counts = [math.prod(t.shape[own:]) for t, own in zip(theta.tensors, theta.batched, strict=True)]
    if sum(counts) > PARAMETERS:
        return f"it has {sum(counts)} parameters, more than {PARAMETERS}"
    graph = Graph()

    def inputs(kind: int, size: int) -> list[int]:
        return [graph.input(kind) for _ in range(size)]

    parameters = [inputs(THETA, size) for size in counts]
    given = Inputs(inputs(POINT, n), inputs(WEIGHT, p), inputs(WEIGHT, m), [k for part in parameters for k in part])
    point, some = y[:1].detach().clone(), theta.detach().take(torch.zeros(1, dtype=torch.int64))
    tensors = [point, *(t.clone() for t in some.tensors)]
    shaped = [np.array(k, dtype=np.int64).reshape(t.shape) for k, t in zip((given.y, *parameters), tensors, strict=True)]

    def function(y: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return program.values(y, type(theta)(tensors, theta.batched))

    try:
        outputs = trace(graph, function, list(zip(tensors, shaped, strict=True)))
        values = [int(k) for nodes in outputs for k in nodes.ravel()]
        tape = generate(graph, given.all, differentiate(graph, given, values), INSTRUCTIONS)
    except NotScalarError as reason:
        return f"{reason}"
    except TooLargeError:
        return "it is too large"
    except RuntimeError as reason:  # of torch, which says what cannot be traced
        return f"{reason}"
    if tape is None:
        return "it is too large"
    points = _Points.near(program, y, theta)
    if not points.agree(tape):
        return "its derivatives are not those of its values"
    try:
        weights = Inputs(inputs(WEIGHT, n), inputs(WEIGHT, p), inputs(WEIGHT, m), [])
        pulled = pull_back(graph, given, values, weights)
        pull = generate(graph, [*given.all, *weights.all], pulled, INSTRUCTIONS)
    except TooLargeError:
        pull = None
    bent = bool(np.isin(tape.values[:, 0], BENT).any())
    return Traced(tape, pull if pull is not None and points.agree_on_pull(pull) else None, bent)


def pulled(program: NonlinearProgram, pull: Tape, inputs: Floats, theta: Theta) -> list[Tensor]:
    """The derivatives that ``pull`` gives at ``inputs``, shaped like the parameters; those that are shared are summed."""
    batch, size = len(inputs), len(pull.g)
    found, none = np.empty((batch, size)), np.empty((batch, 0))
    empty = np.empty((batch, 0, 0))
    length = len(pull.prologue) + len(pull.values)
    spread(evaluate, batch, length, pull, 0, inputs, (np.empty((batch, 1)), none, found, none), (empty, empty, empty))
    counts = [math.prod(t.shape[own:]) for t, own in zip(theta.tensors, theta.batched, strict=True)]
    parts = torch.from_numpy(found).split(counts, 1)
    pairs = zip(parts, theta.tensors, theta.batched, strict=True)
    return [part.reshape(t.shape) if own else part.sum(0).reshape(t.shape) for part, t, own in pairs]


class Tapes:
    """The tapes of a program, for parameters of different shapes.

    Attributes
    ----------
    refused : dict
        Why there is no tape for parameters of some shapes.
    """

    def __init__(self) -> None:
        self._found: dict[Key, Traced] = {}
        self._made: Counter[Key] = Counter()
        self.refused: dict[Key, str] = {}
        self._here: Key = ()

    def known(self, y: Tensor, theta: Theta, *others: Tensor) -> Traced | None:
        """The tapes that were last confirmed, for tensors that are plain numbers on the CPU."""
        return self._found.get(_key(theta)) if self._found and len(y) and _is_plain(y, *others, *theta.tensors) else None

    def confirm(self, program: NonlinearProgram, y: Tensor, theta: Theta, values: Values | None = None) -> Tape | None:
        """The tape, made if there is none, whose values at ``y`` (B, n) are those of the functions as they are now."""
        key = _key(theta)
        if key in self.refused or not len(y) or not program.is_dense or not _is_plain(y, *theta.tensors):
            return None
        traced = self._found.get(key)
        here = tuple((t.data_ptr(), t._version, t.shape) for t in (y, *theta.tensors))
        if traced is not None and values is None and here == self._here:
            return traced.tape  # the layer, which knew the values, has just confirmed it; now its solver asks
        if values is None:
            with torch.no_grad():
                values = program.values(y, theta)
        else:
            self._here = here
        values = values[0].detach(), values[1].detach(), values[2].detach()
        if traced is not None and _has_values(program, traced.tape, y, theta, values):
            return traced.tape
        self._found.pop(key, None)
        self._made[key] += 1
        made = build(program, y, theta) if self._made[key] <= TIMES else "its functions change from one solve to the next"
        if isinstance(made, Traced) and not _has_values(program, made.tape, y, theta, values):
            made = "its functions treat a batch otherwise than one instance"
        if isinstance(made, Traced):
            self._found[key] = made
            return made.tape
        self.refused[key] = made
        return None


def _key(theta: Theta) -> Key:
    return theta.batched, tuple(t.shape[own:] for t, own in zip(theta.tensors, theta.batched, strict=True))


def _is_plain(*tensors: Tensor) -> bool:
    return all(
        type(t) in (Tensor, torch.nn.Parameter)
        and t.dtype == torch.float64
        and t.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        for t in tensors
    )


def _has_values(program: NonlinearProgram, tape: Tape, y: Tensor, theta: Theta, values: Values) -> bool:
    """Where torch's are finite: where they are not, nothing is lost, as answers are judged by torch's values."""
    found = derivatives(program, tape, pack(program, y, theta), 0)
    finite = torch.cat([v.reshape(len(y), -1) for v in values], 1).isfinite().all(1)
    return all(_close(a[finite], b[finite]) for a, b in zip(found[:3], values, strict=True))


@dataclass(frozen=True)
class _Points:
    """Points at which a new tape is compared with torch."""

    program: NonlinearProgram
    y: Tensor
    theta: Theta
    lam: Tensor
    mu: Tensor

    @staticmethod
    def near(program: NonlinearProgram, y: Tensor, theta: Theta) -> _Points:
        """Two next to y, one further away, and one near ones, where most functions are defined."""
        chance = torch.Generator().manual_seed(0)
        rows = torch.arange(POINTS) % len(y)
        point = y.detach()[rows]
        noise = torch.rand(point.shape, generator=chance, dtype=torch.float64)
        size = 1.0 + point.abs()
        steps = (0.01 * size * noise, 0.3 * size * (noise - 0.5), 0.5 + noise - point, 0.1 * size * noise)
        point = point + torch.stack([step[k] for k, step in enumerate(steps)])
        lam, mu = (0.5 + torch.rand(POINTS, k, generator=chance, dtype=torch.float64) for k in (program.p, program.m))
        return _Points(program, point, theta.detach().take(rows), lam, mu)

    def agree(self, tape: Tape) -> bool:
        """Whether torch has the same values and derivatives where they are finite, which they are at one point at least."""
        program, y, theta, lam, mu = self.program, self.y, self.theta, self.lam, self.mu
        first, H = program.first_by_torch(y, theta), program.hessian_by_torch(y, theta, lam, mu)
        found = derivatives(program, tape, pack(program, y, theta, lam, mu), 2)
        wanted = (first.f, first.h, first.g, first.gradient, first.Jh, first.Jg, H)
        # Outside the domain of a function torch's derivatives are NaN also where they are zero by structure.
        finite = torch.stack([t.reshape(POINTS, -1).isfinite().all(-1) for t in wanted]).all(0)
        same = all(_close(a[finite], b[finite]) for a, b in zip(found, wanted, strict=True))
        return same and bool(finite.any())

    def agree_on_pull(self, pull: Tape) -> bool:
        """Whether torch has the same derivatives with respect to the parameters."""
        first = self.program.first_by_torch(self.y, self.theta)
        finite = torch.cat((first.f.unsqueeze(1), first.gradient, first.h, first.g), 1).isfinite().all(1)
        rows = torch.nonzero(finite).flatten()
        y, lam, mu, some = self.y[rows], self.lam[rows], self.mu[rows], self.theta.take(rows)
        weights = 1.0 + y, 2.0 - lam, 2.0 - mu
        with torch.enable_grad():
            point, theta = y.clone().requires_grad_(), some.follow()
            f, h, g = self.program.values(point, theta)
            total = f.sum() + (lam * h).sum() + (mu * g).sum()
            slope = _slopes(total, [point])[0]
            paired = sum((a * b).sum() for a, b in zip(weights, (slope, h, g), strict=True))
            wanted = _slopes(torch.as_tensor(paired), theta.tensors)
        found = pulled(self.program, pull, pack(self.program, y, some, lam, mu, *weights), some)
        return all(_close(a.reshape(1, -1), b.reshape(1, -1)) for a, b in zip(found, wanted, strict=True))


def _slopes(total: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    if not total.requires_grad or not leaves:
        return [torch.zeros_like(t) for t in leaves]
    return torch.autograd.grad(total, leaves, create_graph=True, materialize_grads=True)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(alike(a, b, CLOSE).all())


def alike(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """Points ``(B,)`` at which both (B, ...) are equal but for rounding, next to the largest entry; NaN equals NaN."""
    a, b = a.reshape(len(b), b[:1].numel()), b.reshape(len(b), b[:1].numel())
    size = torch.where(b.isfinite(), b.abs(), 0.0).sum(-1, keepdim=True)
    return (((a - b).abs() <= tolerance * (1.0 + size)) | (a == b) | (a.isnan() & b.isnan())).all(-1)

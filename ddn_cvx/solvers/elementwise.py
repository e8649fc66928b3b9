"""Batches for solvers that take one instance at a time, and what such solvers do alike."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from math import inf, nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddn_cvx.errors import InputError
from ddn_cvx.kernels.jit import processors
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.program.epigraph import Epigraph
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace
from ddn_cvx.solvers.deadline import GRACE, Hand, OutOfTime, limit
from ddn_cvx.solvers.guard import is_breakdown

WITHOUT_POINT = (Status.INFEASIBLE, Status.UNBOUNDED, Status.INVALID_DATA)
"""What a solver returns along with these is a certificate or nothing, not a solution: it stays NaN."""

PARALLEL_WORK = 2000
"""Batches of fewer numbers than this are solved in the calling thread: starting others takes as long."""

EXACT = 1e-9
"""Relative tolerance of the closed forms below."""


class Answer(NamedTuple):
    """What a solver says about one instance; the vectors are anything numpy can copy from."""

    status: Status
    iterations: int
    x: Any
    y: Any
    s: Any


def solve_each(
    program: ConicProgram,
    data: ConicData,
    worker: Callable[[], Callable[[int], Answer]],
    workspace: Workspace,
    threads: int | None = 1,
) -> RawSolution:
    """Call ``worker()(i)`` for every element ``i`` whose data are finite, and collect the answers.

    ``threads`` share the batch; ``None`` is as many as there are processors. Each thread has a worker of its
    own, and its own store in the workspace. Where there is a time limit it is for each element: a thread that
    needs more is left behind, and another one goes on with the next element.
    """
    batch = data.q.shape[0]
    raw = RawSolution.empty(program, batch, data.q)
    finite = is_finite(data)
    raw.status[~finite] = int(Status.INVALID_DATA)
    x, y, s, status, iterations = (t.numpy() for t in (raw.x, raw.y, raw.s, raw.status, raw.iterations))

    seconds, stop = limit(), threading.Event()

    def run(elements: list[int]) -> None:
        with _timed(worker, seconds) as one:
            for i in elements:
                if stop.is_set():
                    return
                take(i, one)

    def take(i: int, one: Callable[[int], Answer]) -> None:
        try:
            answer = one(i)
        except BaseException as error:
            if not is_breakdown(error):
                raise
            return  # the element stays NUMERICAL_ERROR
        status[i], iterations[i] = answer.status, answer.iterations
        if answer.status not in WITHOUT_POINT:
            x[i], y[i], s[i] = answer.x, answer.y, answer.s
            x[i] += 0.0  # no negative zeros

    todo = torch.nonzero(finite).flatten().tolist()
    threads = processors() if threads is None else threads
    if min(threads, len(todo)) < 2 or sum(values.numel() for values in data) < PARALLEL_WORK:
        run(todo)
        return raw
    # Threads do not survive a fork, hence the process in the key. Four parts a thread even out the work.
    pool = workspace.get((os.getpid(), threads), lambda: ThreadPoolExecutor(threads))
    parts = min(4 * threads, len(todo))
    try:
        list(pool.map(run, (todo[len(todo) * k // parts : len(todo) * (k + 1) // parts] for k in range(parts))))
    finally:
        stop.set()  # after an error or Ctrl-C the others need not go on
    return raw


@contextmanager
def _timed(worker: Callable[[], Callable[[int], Answer]], seconds: float) -> Iterator[Callable[[int], Answer]]:
    """The worker, in a thread that is left behind with an element that takes longer than ``seconds``."""
    if seconds == inf:
        yield worker()
        return
    hands: list[tuple[Hand, Callable[[int], Answer]]] = []

    def one(i: int) -> Answer:
        if not hands:
            hand = Hand()
            hands.append((hand, hand.do(worker, inf)))
        hand, own = hands[0]
        begin = time.monotonic()
        try:
            answer = hand.do(lambda: own(i), seconds + GRACE)
        except OutOfTime:
            hands.pop()[0].release()
            return Answer(Status.TIME_LIMIT, 0, nan, nan, nan)
        late = answer.status == Status.ITERATION_LIMIT and time.monotonic() - begin >= seconds
        return answer._replace(status=Status.TIME_LIMIT) if late else answer

    try:
        yield one
    finally:
        for hand, _ in hands:
            hand.release()


def is_finite(data: ConicData) -> Tensor:
    """Which elements hold neither NaN nor infinity, ``(B,)`` bool."""
    return torch.stack([values.isfinite().all(-1) for values in data]).all(0)


def closed_form(program: ConicProgram, data: ConicData) -> RawSolution:
    """The solution of a program that has no variables or no constraints.

    Without variables ``s = b`` must lie in the cone; without constraints ``x = -P^+ q`` is stationary or no
    point is.
    """
    raw = RawSolution.empty(program, data.q.shape[0], data.q)
    finite = is_finite(data)
    P, q, A, b = (values.nan_to_num(0.0, 0.0, 0.0) for values in data)
    if program.n == 0:
        # Moreau: the distance of b to K is the norm of the projection of -b onto the dual cone.
        x, s, otherwise = q, b, Status.INFEASIBLE
        error, size = program.cones.project_dual(-b), b
    else:
        dense, _ = program.dense(ConicData(P, q, A, b))
        eigenvalues, vectors = torch.linalg.eigh(dense)
        least = EXACT * eigenvalues.abs().amax(-1, keepdim=True)
        inverse = torch.where(eigenvalues > least, 1 / eigenvalues, 0.0)
        x = -((vectors * inverse[:, None]) @ (vectors.mT @ q[:, :, None])).squeeze(-1)
        s, otherwise = b, Status.UNBOUNDED
        error, size = program.P_times(P, x) + q, q
        error[(eigenvalues < -least).any(-1)] = torch.inf  # concave in some direction
    solved = finite & (torch.linalg.vector_norm(error, dim=-1) <= EXACT * (1 + torch.linalg.vector_norm(size, dim=-1)))
    raw.status[:] = torch.where(solved, int(Status.SOLVED), int(otherwise))
    raw.status[~finite] = int(Status.INVALID_DATA)
    for vector, value in ((raw.x, x), (raw.s, s), (raw.y, torch.zeros_like(b))):
        vector[solved] = value[solved]
    return raw


def solve_epigraph(
    program: ConicProgram,
    data: ConicData,
    workspace: Workspace,
    solve: Callable[[ConicProgram, ConicData], RawSolution],
) -> RawSolution:
    """Solve a program with a quadratic objective by a solver that wants a linear one."""
    epigraph = workspace.get(("epigraph", program), lambda: Epigraph(program))
    raw = solve(epigraph.program, epigraph.lift(data))
    kept = torch.as_tensor(epigraph.kept)
    return RawSolution(raw.x[:, : program.n], raw.y[:, kept], raw.s[:, kept], raw.status, raw.iterations)


@contextmanager
def requires(package: str) -> Iterator[None]:
    """Around the import of an optional package: say how to get it."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"this solver needs the Python package '{package}', which cannot be imported ({error}); "
            f"install it with `pip install {package}` or choose another solver"
        ) from error


def options(solver: Solver, *without: str) -> dict[str, Any]:
    """The options of a solver by name, except those named."""
    names = (option.name for option in fields(solver))  # type: ignore[arg-type]  # every solver is a dataclass
    return {name: getattr(solver, name) for name in names if name not in without}

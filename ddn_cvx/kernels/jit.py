"""How the kernels are compiled, and how a batch is shared among threads.

A kernel is a function of numpy arrays that handles the elements ``first .. last - 1`` of a batch, one at a time or eight
side by side (``lanes``), with scratch space of its own. What it computes for an element does not depend on its batch mates
or on the number of threads, to the last bit. Kernels release the global interpreter lock, and are compiled once a machine:
numba keeps them on disk.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numba

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"}}
# Sums may be reordered and fused; NaN and infinity keep their meaning.


def jit(function: Callable[..., Any]) -> Any:
    """For kernels, which Python calls."""
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # neither beside this file nor in the user's directory may a cache be written
        return numba.njit(**_OPTIONS)(function)


inner: Callable[..., Any] = partial(numba.njit, no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)
"""For functions that only kernels call."""

lean: Callable[..., Any] = partial(inner, _nrt=False)
"""The same for functions that allocate nothing. They count no references to arrays: a view costs nothing then, where an
atomic operation at its begin and end is as much as a row of ten numbers. They must not return arrays, in tuples neither:
a caller that does count would give up a reference that nobody holds. What they call must not allocate either."""

view: Callable[..., Any] = partial(lean, inline="always")
"""For functions that return a part of an array they are given, which ``lean`` ones may do only as a part of their caller."""

SHARE = 40_000
"""Batches with less work than this, in operations, stay in the calling thread: waking others takes as long."""

EVEN = 4_000_000
"""Batches with more work than this are cut into more parts than there are threads: elements differ, but parts cost, too."""
PART = 20_000_000
"""Operations after which a kernel comes back to Python, so that Ctrl-C and a time limit are noticed in large batches."""

PATIENCE = 2.0
"""Seconds after which the user is told what takes so long."""

_told: list[bool] = []
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def processors() -> int:
    """How many processors this process may use: as ``DDN_CVX_NUM_THREADS`` says, or its share of those that the system
    lets it run on, if torchrun started several processes."""
    asked, ranks = os.environ.get("DDN_CVX_NUM_THREADS", ""), os.environ.get("LOCAL_WORLD_SIZE", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count // int(ranks)) if ranks.isdecimal() and int(ranks) else count


class Task(NamedTuple):
    """``kernel(first, last, *arguments)`` over a batch."""

    kernel: Any
    work: float
    """Operations for one element."""
    arguments: tuple[Any, ...]
    grain: int = 1
    """Elements that the kernel does side by side: fewer take as long."""


def spread(
    kernel: Any,
    batch: int,
    work: float,
    *arguments: Any,
    threads: int | None = None,
    over: Callable[[], bool] | None = None,
    grain: int = 1,
) -> list[slice]:
    """``kernel(first, last, *arguments)`` over the whole batch; ``work`` and ``grain`` are those of the ``Task``."""
    return sweep(batch, [Task(kernel, work, arguments, grain)], threads, over)


def sweep(
    batch: int, tasks: Sequence[Task], threads: int | None = None, over: Callable[[], bool] | None = None
) -> list[slice]:
    """Do the tasks one after the other, for each part of the batch by itself: threads are woken once for all of them.

    What a task computes for an element may be what later tasks need for that element. Where ``over()`` becomes true no
    further part is begun; returns the elements that are left.
    """
    for kernel, _, arguments, _ in tasks:
        if not kernel.overloads:
            with _compiling():
                kernel(0, 0, *arguments)
    work, grain = batch * sum(task.work for task in tasks), max(task.grain for task in tasks)
    if batch <= grain or work < SHARE:  # to ask how many there are takes as long as a small kernel
        threads = 1
    elif threads is None:
        threads = processors()
    alone = threads < 2
    if alone and work < PART and over is None:
        for kernel, _, arguments, _ in tasks:
            kernel(0, batch, *arguments)
        return []
    parts = 1 + int(work / PART)
    if not alone:
        parts = max(parts, threads if work < EVEN else 2 * threads)
    grains = -(-batch // grain)
    parts = max(1, min(parts, grains))
    ends = [min(batch, grain * (grains * k // parts)) for k in range(parts + 1)]
    left = deque(pairwise(ends))
    late: list[slice] = []

    def help_out() -> None:
        while left:
            try:
                first, last = left.popleft()
            except IndexError:  # another thread took the last part
                return
            if over is not None and over():
                late.append(slice(first, last))
                continue
            for kernel, _, arguments, _ in tasks:
                kernel(first, last, *arguments)

    if alone:
        help_out()
        return late
    key = os.getpid(), threads  # threads do not survive a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads - 1, thread_name_prefix="ddn_cvx")
    helpers = [_pools[key].submit(help_out) for _ in range(threads - 1)]
    try:
        help_out()
        for helper in helpers:  # one that has not begun is not waited for, so that a busy pool delays nobody
            if not helper.cancel():
                helper.result()
    finally:
        left.clear()  # after an error or Ctrl-C nothing more is begun
    return late


@contextmanager
def _compiling() -> Iterator[None]:
    """Says so if the first call of a kernel is a long one."""

    def tell() -> None:
        if not _told:
            _told.append(True)
            print("ddn_cvx: compiling its kernels for this machine, once (a minute at most) ...", file=sys.stderr)

    timer = threading.Timer(PATIENCE, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()

"""How the kernels are compiled, and how a batch is shared among threads.

A kernel is a function of numpy arrays that handles the elements ``first .. last - 1`` of a batch, one at a time, with
scratch space of its own. What it computes for an element does not depend on its batch mates or on the number of threads,
to the last bit. Kernels release the global interpreter lock, and are compiled once a machine: numba keeps them on disk.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

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

PART = 20_000_000
"""Operations after which a kernel comes back to Python, so that Ctrl-C and a time limit are noticed in large batches."""

PATIENCE = 2.0
"""Seconds after which the user is told what takes so long."""

_told: list[bool] = []
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(
    kernel: Any,
    batch: int,
    work: float,
    *arguments: Any,
    threads: int | None = None,
    over: Callable[[], bool] | None = None,
) -> list[slice]:
    """``kernel(first, last, *arguments)`` over the whole batch; ``work`` is operations for one element.

    Where ``over()`` becomes true no further part is begun; returns the elements that are left.
    """
    left: list[slice] = []

    def part(first: int, last: int) -> None:
        if over is not None and over():
            left.append(slice(first, last))
        else:
            kernel(first, last, *arguments)

    if not kernel.overloads:
        with _compiling():
            kernel(0, 0, *arguments)
    threads = processors() if threads is None else threads
    parts = min(batch, 1 + int(batch * work / PART))
    if threads < 2 or batch < 2 or batch * work < SHARE:
        for k in range(parts):
            part(batch * k // parts, batch * (k + 1) // parts)
        return left
    key = os.getpid(), threads  # threads do not survive a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads - 1, thread_name_prefix="ddn_cvx")
    parts = min(max(2 * threads, parts), batch)
    stops = [batch * k // parts for k in range(parts + 1)]
    waiting = [_pools[key].submit(part, stops[k], stops[k + 1]) for k in range(1, parts)]
    try:
        part(0, stops[1])
        # What no thread has begun is done here, so that a busy pool delays nobody.
        for k, future in enumerate(waiting, 1):
            if future.cancel():
                part(stops[k], stops[k + 1])
        for future in waiting:
            if not future.cancelled():
                future.result()
    finally:
        for future in waiting:  # after an error or Ctrl-C
            future.cancel()
    return left


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

"""How the kernels are compiled, and how a batch is shared among threads.

A kernel is a function of numpy arrays that handles the elements ``first .. last - 1`` of a batch, one at a time, with
scratch space of its own. What it computes for an element does not depend on its batch mates or on the number of threads,
to the last bit. Kernels release the global interpreter lock, and are compiled once a machine: numba keeps them on disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numba

jit: Callable[..., Any] = partial(
    numba.njit, nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"}
)
"""Sums may be reordered and fused; NaN and infinity keep their meaning."""

SHARE = 40_000
"""Batches with less work than this, in floating-point operations, stay in the calling thread: waking others takes as long."""

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(kernel: Callable[..., None], batch: int, work: float, *arguments: Any, threads: int | None = None) -> None:
    """``kernel(first, last, *arguments)`` over the whole batch; ``work`` is operations for one element."""
    threads = processors() if threads is None else threads
    if threads < 2 or batch < 2 or batch * work < SHARE:
        kernel(0, batch, *arguments)
        return
    key = os.getpid(), threads  # threads do not survive a fork
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads - 1, thread_name_prefix="ddn_cvx")
    parts = min(2 * threads, batch)
    stops = [batch * k // parts for k in range(parts + 1)]
    waiting = [_pools[key].submit(kernel, stops[k], stops[k + 1], *arguments) for k in range(1, parts)]
    kernel(0, stops[1], *arguments)
    # What no thread has begun is done here, so that a busy pool delays nobody.
    for k, future in enumerate(waiting, 1):
        if future.cancel():
            kernel(stops[k], stops[k + 1], *arguments)
    for future in waiting:
        if not future.cancelled():
            future.result()

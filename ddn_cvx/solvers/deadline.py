"""The time a solve may take, and how it ends when that is over.

Solvers are nested (``Auto`` calls others), so the deadline is not an argument of ``solve`` but a context variable, set
around a solve by ``guard.guarded``. Solvers of this package look at it between iterations or elements. Work that cannot look
is done in a thread that is left behind when its time is over: Python has no safe way to stop it, except at the end of the
process, where it has to be stopped.
"""

from __future__ import annotations

import atexit
import ctypes
import math
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

import torch

T = TypeVar("T")

GRACE = 0.05
"""Seconds that a solver with a limit of its own has to come back by itself."""

PARTING = 2.0
"""Seconds that the end of the process waits at most for threads that were left behind and are told to end."""

_limit: ContextVar[tuple[float, float]] = ContextVar("time_limit", default=(math.inf, math.inf))


class OutOfTime(Exception):
    """The work is still not done, and was left behind."""


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Inside, a solve may take so many seconds; None is no limit."""
    if seconds is None:
        yield
        return
    token = _limit.set((seconds, time.monotonic() + seconds))
    try:
        yield
    finally:
        _limit.reset(token)


def limit() -> float:
    """Seconds that a solve may take, or infinity."""
    return _limit.get()[0]


def remaining() -> float:
    """Seconds that are left, or infinity."""
    deadline = _limit.get()[1]
    return math.inf if deadline == math.inf else deadline - time.monotonic()


def expired() -> bool:
    """Whether the time is over."""
    return remaining() <= 0


def clock() -> Callable[[], bool] | None:
    """``expired`` for threads that do not know of this context; None if there is no limit."""
    deadline = _limit.get()[1]
    return None if deadline == math.inf else lambda: time.monotonic() >= deadline


class Hand:
    """A thread that does one piece of work after another for its owner, and is left behind when one takes too long."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        context, grad = copy_context(), torch.is_grad_enabled()
        # A daemon: what hangs must not keep the process from ending.
        self._thread = threading.Thread(target=lambda: context.run(self._run, grad), daemon=True, name="ddn_cvx time limit")
        self._thread.start()
        _hands.add(self)

    def _run(self, grad: bool) -> None:
        with torch.set_grad_enabled(grad):
            while (work := self._work.get()) is not None:
                try:
                    self._results.put((work(), None))
                except BaseException as error:
                    self._results.put((None, error))

    def do(self, work: Callable[[], T], seconds: float) -> T:
        """The result of ``work``; ``OutOfTime`` if there is none after so many seconds, and then this thread is lost."""
        self._work.put(work)
        try:
            result: T
            result, error = self._results.get(timeout=None if seconds == math.inf else max(seconds, 0.0))
        except queue.Empty:
            raise OutOfTime from None
        if error is not None:
            raise error
        return result

    def release(self) -> None:
        """Let the thread end, once it has done what it is doing."""
        self._work.put(None)

    def stop(self) -> None:
        """Let the thread end as soon as it runs Python code: a step on the way to the end of the process, not before, since
        what it was doing stays half done."""
        self.release()
        if self._thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(SystemExit))

    def wait(self, seconds: float) -> None:
        """Until the thread has ended, or so long."""
        self._thread.join(max(seconds, 0.0))


_hands: weakref.WeakSet[Hand] = weakref.WeakSet()


@atexit.register
def _part() -> None:
    """End what was left behind. A thread that comes back to Python while the interpreter is taken down is killed there,
    and where that happens below C++ code (a function under ``vmap``, say) the process aborts."""
    hands, end = list(_hands), time.monotonic() + PARTING
    for hand in hands:
        hand.stop()
    for hand in hands:
        hand.wait(end - time.monotonic())


def in_time(work: Callable[[], T], seconds: float) -> T:
    """The result of ``work``; ``OutOfTime`` if there is none after so many seconds."""
    hand = Hand()
    try:
        return hand.do(work, seconds)
    finally:
        hand.release()

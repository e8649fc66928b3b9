"""Memory that is used again: only when nobody can see it any more, and not too much of it."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch

from ddn_cvx.kernels import memory

SIZE = 2 * memory.SMALL


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    monkeypatch.setattr(memory, "FREE", type(memory.FREE)(list))
    monkeypatch.setattr(memory, "HELD", [0])


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_freed_memory_is_used_again() -> None:
    first = memory.empty(2, SIZE // 2)
    assert first.shape == (2, SIZE // 2) and first.flags.c_contiguous and first.flags.writeable
    where = address(first)
    assert address(memory.empty(SIZE)) != where
    del first
    assert address(memory.empty(SIZE)) == where


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[1:3],
        lambda a: a.reshape(2, -1)[1],
        lambda a: torch.from_numpy(a[5:]).reshape(-1)[2:],
        lambda a: torch.from_numpy(a).detach().numpy()[3:],
        lambda a: memoryview(a),
    ],
)
def test_whatever_looks_at_it_keeps_it(view: object) -> None:
    array = memory.empty(SIZE)
    where, seen = address(array), view(array)  # type: ignore[operator]
    del array
    assert address(memory.empty(SIZE)) != where
    del seen
    gc.collect()
    assert where in [address(memory.empty(SIZE)), address(memory.empty(SIZE))]


def test_small_arrays_are_numpys() -> None:
    memory.empty(3)
    assert not memory.FREE and memory.empty(0, 5).shape == (0, 5)


def test_kept_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "KEPT", 3 * SIZE)
    for k in range(20):
        memory.empty(SIZE + k)  # no two alike
        assert sum(size * len(free) for size, free in memory.FREE.items()) == memory.HELD[0] <= memory.KEPT
    memory.empty(4 * SIZE)  # more than may be kept
    assert memory.HELD[0] <= memory.KEPT and not memory.FREE[4 * SIZE]


def test_threads_never_share() -> None:
    """Each writes its number and finds it again."""
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(200):
            array = memory.empty(SIZE)
            array[:] = number
            if (array != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

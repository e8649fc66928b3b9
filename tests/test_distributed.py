"""DistributedDataParallel with two gloo processes gives the gradients and the losses of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import cvxpy as cp
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import ddn_cvx as ddn
from ddn_cvx.kernels import jit

ROOT = Path(__file__).parents[1]


def model() -> nn.Sequential:
    torch.manual_seed(0)
    x, p = cp.Variable(3), cp.Parameter(3)
    layer = ddn.DeclarativeLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0]), [p], x)
    return nn.Sequential(nn.Linear(4, 3), layer, nn.Linear(3, 2)).double()


def inputs() -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def work(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        parallel = nn.parallel.DistributedDataParallel(model())
        parallel(inputs()[rank::2]).square().mean().backward()
        if rank == 0:
            torch.save([p.grad for p in parallel.parameters()], Path(folder) / "gradients.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, args=(port, str(tmp_path)), nprocs=2)
    single = model()
    single(inputs()).square().mean().backward()
    for found, parameter in zip(torch.load(tmp_path / "gradients.pt"), single.parameters(), strict=True):
        assert torch.allclose(found, parameter.grad, atol=1e-12)


def losses(folder: Path, name: str, *launcher: str) -> list[float]:
    """Of a few steps of the example."""
    curve = folder / f"{name}.json"
    script = [str(ROOT / "examples/distributed/train.py"), "--steps", "4", "--batch", "8", "--curve", str(curve)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, *script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[float] = json.loads(curve.read_text())
    return found


def test_torchrun_gives_the_losses_of_one_process(tmp_path: Path) -> None:
    two = losses(tmp_path, "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    one = losses(tmp_path, "one")
    assert len(set(one)) == 4
    assert two == pytest.approx(one, rel=0, abs=1e-10)


def test_processes_of_a_machine_share_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name in ("LOCAL_WORLD_SIZE", "DDN_CVX_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert jit.processors() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert jit.processors() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "20")
    assert jit.processors() == 1
    monkeypatch.setenv("DDN_CVX_NUM_THREADS", "5")
    assert jit.processors() == 5

"""DistributedDataParallel with two gloo processes gives the gradients of one process."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import cvxpy as cp
import torch
import torch.multiprocessing as mp
from torch import nn

import ddn_cvx as ddn


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

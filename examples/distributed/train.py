"""Training with an optimisation layer inside on several processes: the loss curve is that of one process.

    python examples/distributed/train.py                                     one process
    torchrun --nproc-per-node=2 examples/distributed/train.py --check        two, held against one

The model is that of ``python -m ddn_cvx demo``: a network predicts the weights of a total-variation denoiser, and learns
from the error of the denoised signal alone. Each process draws the same batch and keeps its share of it;
``DistributedDataParallel`` averages the gradients. Everything is float64, so that nothing but the order of sums differs:
with ``--check`` the first process also trains alone, and the script fails if the losses differ by more than 1e-10.

GPUs are used, over nccl, if there is one for each process; otherwise processors, over gloo.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import trange

from ddn_cvx.demo import Denoiser, sample

LENGTH, SEED, ACCEPTED = 32, 0, 1e-10


@contextmanager
def processes() -> Iterator[tuple[int, int, torch.device]]:
    """Rank, number of processes and device of this one: ``(0, 1, ...)`` if it was not started by torchrun."""
    local, here = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= here
    device = torch.device("cuda", local) if on_gpus else torch.device("cpu")
    torch.set_num_threads(1)  # the tensors are small: threads would only wait for each other
    if "RANK" not in os.environ:
        yield 0, 1, device
        return
    if on_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size(), device
    finally:
        dist.destroy_process_group()


def train(steps: int, batch: int, rank: int, world: int, device: torch.device) -> Tensor:
    """The mean loss over the whole batch at each step, ``(steps,)``.

    The processes' losses are added in the end, in the tensor that is returned: older versions of torch can wait for
    themselves in ``destroy_process_group`` of a gloo group if what was added last has been given up just before (the
    group's thread frees it, and wants Python's lock for that). So keep the result until the group is gone.
    """
    torch.manual_seed(SEED)
    model: nn.Module = Denoiser(LENGTH).double().to(device)
    if world > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(SEED + 1)
    losses = torch.empty(steps, dtype=torch.float64, device=device)
    for step in trange(steps, desc=f"training, {world} process{'es' if world > 1 else ''}", disable=rank > 0):
        clean, noisy = (t[rank::world].double().to(device) for t in sample(batch, generator))
        loss = nn.functional.mse_loss(model(noisy), clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses[step] = loss.detach()
    if world > 1:
        dist.all_reduce(losses)
    return losses.div_(world)  # the shares of the batch are equally large


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="training steps (default 150)")
    parser.add_argument("--batch", type=int, default=32, help="signals in a step, over all processes (default 32)")
    parser.add_argument("--check", action="store_true", help=f"also train alone, and fail beyond {ACCEPTED:g}")
    parser.add_argument("--curve", type=Path, help="where to save the losses (JSON)")
    parser.add_argument("--plot", type=Path, help="where to save a plot of the losses")
    arguments = parser.parse_args()
    with processes() as (rank, world, device):
        if arguments.batch % world:
            parser.error(f"--batch must be a multiple of the {world} processes, for averages of averages to be averages.")
        shared = train(arguments.steps, arguments.batch, rank, world, device)
    if rank:
        return
    curves: dict[int, list[float]] = {world: shared.tolist()}
    if arguments.check and world > 1:
        curves[1] = train(arguments.steps, arguments.batch, 0, 1, device).tolist()
    for count, losses in curves.items():
        print(f"{count} on {device.type}: loss {losses[0]:.6f} at first, {losses[-1]:.6f} after {len(losses)} steps")
    if arguments.curve:
        arguments.curve.write_text(json.dumps(curves[world]), encoding="utf-8")
    if arguments.plot:
        plot(curves, arguments.plot)
    if arguments.check:
        sys.exit(compare(curves, world))


def compare(curves: dict[int, list[float]], world: int) -> int:
    """Say how far apart the curves are; 0 if they agree."""
    if world == 1:
        print(f"--check compares several processes with one: torchrun --nproc-per-node=2 {sys.argv[0]} --check")
        return 2
    worst = max(abs(a - b) for a, b in zip(curves[world], curves[1], strict=True))
    agree = worst <= ACCEPTED
    print(f"{'met' if agree else 'MISSED'}: losses of {world} processes and of one differ by {worst:.1e} at most")
    return 0 if agree else 1


def plot(curves: dict[int, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(curves), figsize=(5 * len(curves), 3.6), layout="constrained", squeeze=False)
    left = panels[0, 0]
    for (count, losses), style in zip(curves.items(), ("-", ":"), strict=False):
        left.plot(losses, style, lw=2 if style == "-" else 4, label=f"{count} process{'es' if count > 1 else ''}")
    left.set(xlabel="step", ylabel="mean squared error", title="training loss")
    left.legend()
    if len(curves) == 2:
        a, b = (torch.tensor(losses, dtype=torch.float64) for losses in curves.values())
        right = panels[0, 1]
        right.semilogy((a - b).abs().clamp_min(1e-18), ".", label="difference (below 1e-18 drawn there)")
        right.axhline(ACCEPTED, color="tab:red", linestyle="--", label="accepted")
        right.set(xlabel="step", title="difference of the losses")
        right.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()

"""``python -m ddn_cvx demo``: train a model with an optimisation layer inside and watch the loss fall."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ddn_cvx.demo import run


def main() -> None:
    """Parse the command line and run the chosen command."""
    parser = argparse.ArgumentParser(prog="python -m ddn_cvx", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="learn a total-variation denoiser end to end (under a minute)")
    demo.add_argument("--steps", type=int, default=150, help="training steps (default 150)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the data and of the network (default 0)")
    demo.add_argument("--plot", type=Path, default=Path("ddn_cvx_demo.png"), help="where to save the plot")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the demo's tensors are small: threads would only wait for each other
    run(arguments.steps, arguments.seed, arguments.plot)


if __name__ == "__main__":
    main()

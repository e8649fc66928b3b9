"""``python -m ddn_cvx demo`` trains a model with an optimisation layer inside; ``gallery`` lists the ready-made nodes;
``doctor`` checks the installation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ddn_cvx.demo import run
from ddn_cvx.doctor import run as run_doctor
from ddn_cvx.errors import InputError
from ddn_cvx.gallery import listing, run as run_example


def main() -> None:
    """Parse the command line and run the chosen command."""
    parser = argparse.ArgumentParser(prog="python -m ddn_cvx", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="learn a total-variation denoiser end to end (under a minute)")
    demo.add_argument("--steps", type=int, default=150, help="training steps (default 150)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the data and of the network (default 0)")
    demo.add_argument("--plot", type=Path, default=Path("ddn_cvx_demo.png"), help="where to save the plot")
    gallery = commands.add_parser("gallery", help="list the ready-made nodes, or run the example of one")
    gallery.add_argument("name", nargs="?", help="the node whose example to run")
    gallery.add_argument("rest", nargs=argparse.REMAINDER, help="arguments of the example, such as --quick or --help")
    commands.add_parser("doctor", help="what is installed, and whether every path gives the right answer here")
    arguments = parser.parse_args()
    if arguments.command == "doctor":
        sys.exit(run_doctor())
    if arguments.command == "gallery" and arguments.name is None:
        print(listing())
        return
    if arguments.command == "gallery":
        sys.exit(_example(parser, arguments.name, arguments.rest))
    torch.set_num_threads(1)  # the demo's tensors are small: threads would only wait for each other
    run(arguments.steps, arguments.seed, arguments.plot)


def _example(parser: argparse.ArgumentParser, name: str, rest: list[str]) -> int:
    try:
        return run_example(name, rest)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

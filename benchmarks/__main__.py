"""``python -m benchmarks run`` measures a suite; ``python -m benchmarks report FILE.json`` shows it again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from benchmarks import nonlinear_suite, report
from benchmarks.peers import Peer, installed
from benchmarks.runner import run
from benchmarks.suites import SUITES, USUAL_PEERS


class _Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=_Named)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("run", help="measure a suite and print the table")
    measure.add_argument("--suite", choices=[*SUITES, "nonlinear"], default="convex")
    measure.add_argument("--rounds", type=int, default=7, help="interleaved repetitions (default 7)")
    measure.add_argument("--only", action="append", metavar="NAME", help="rows by name, wildcards allowed; may be repeated")
    measure.add_argument("--peers", action="append", metavar="NAME", help="peers by name, likewise")
    measure.add_argument("--budget", type=float, default=420.0, help="seconds for the whole suite, about (default 420)")
    measure.add_argument("--device", default="cpu", help="where those peers work that can: cpu or cuda (default cpu)")
    measure.add_argument("--seed", type=int, default=0, help="seed of the problem data (default 0)")
    measure.add_argument("--out", type=Path, metavar="FILE.json", help="save here, with the table (.md) and a plot (.png)")
    show = commands.add_parser("report", help="print the table of a saved run and draw its plot again")
    show.add_argument("file", type=Path)
    options = parser.parse_args(arguments)

    if options.command == "report":
        results = report.load(options.file)
        report.save(results, options.file)
        print(report.markdown(results))
        return
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    if not options.budget > 0:
        parser.error(f"--budget must be positive, got {options.budget}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no graphics processor here")
    results = _nonlinear(options, parser) if options.suite == "nonlinear" else _layers(options, parser)
    print(report.markdown(results))
    if options.out is not None:
        for path in report.save(results, options.out):
            print(f"wrote {path}")


def _layers(options: argparse.Namespace, parser: argparse.ArgumentParser) -> report.Results:
    rows = _chosen(SUITES[options.suite], options.only, "--only", parser)
    peers = _chosen(_told(installed()), options.peers or USUAL_PEERS.get(options.suite), "--peers", parser)
    return run(options.suite, rows, peers, options.rounds, options.seed, options.budget, options.device)


def _nonlinear(options: argparse.Namespace, parser: argparse.ArgumentParser) -> report.Results:
    peers = _chosen(_told(nonlinear_suite.participants()), options.peers, "--peers", parser)
    rows = _chosen(nonlinear_suite.contests(peers), options.only, "--only", parser)
    return nonlinear_suite.run(rows, peers, options.rounds, options.seed, options.budget)


def _told(found: tuple[list[Peer], list[str]]) -> list[Peer]:
    """Those who can take part; who is missing is printed."""
    peers, skipped = found
    for line in skipped:
        print(line)
    return peers


def _chosen(those: Sequence[T], patterns: list[str] | None, option: str, parser: argparse.ArgumentParser) -> list[T]:
    chosen = [it for it in those if _wanted(it.name, patterns)]
    if not chosen:
        parser.error(f"{option} matches none of: " + "; ".join(it.name for it in those))
    return chosen


def _wanted(name: str, patterns: list[str] | None) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


if __name__ == "__main__":
    main()

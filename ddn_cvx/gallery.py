"""``python -m ddn_cvx gallery``: the ready-made nodes in a list, and their examples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ddn_cvx.errors import InputError
from ddn_cvx.nodes.catalogue import CATALOGUE

EXAMPLES = Path(__file__).parents[1] / "examples"


def listing() -> str:
    """One line for each node."""
    width = max(map(len, CATALOGUE))
    return "\n".join(f"{entry.name:{width}}  {entry.title}  [{entry.kind}; {entry.source}]" for entry in CATALOGUE.values())


def script(name: str) -> Path:
    """The example of a node.

    Raises
    ------
    InputError
        No such node, or the examples are not beside the package.
    """
    if name not in CATALOGUE:
        raise InputError(f"There is no node {name!r}; `python -m ddn_cvx gallery` lists them.")
    path = EXAMPLES / f"{CATALOGUE[name].example}.py"
    if not path.exists():
        raise InputError(f"{path} is not there: examples come with the source, not with an installed package. Clone it.")
    return path


def run(name: str, arguments: list[str]) -> int:
    """Run the example of a node with the arguments, and return its exit status."""
    path = os.pathsep.join(filter(None, (str(EXAMPLES.parent), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(script(name)), *arguments]
    return subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": path}).returncode

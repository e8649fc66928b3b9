"""Every example runs (a few steps of it), and the command that lists and runs them works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddn_cvx.errors import InputError
from ddn_cvx.gallery import listing, script
from ddn_cvx.nodes import CATALOGUE

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning", str(path), "--quick", "--plot", str(plot)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert plot.stat().st_size > 5000


def test_listing_has_a_line_for_every_node() -> None:
    lines = listing().splitlines()
    assert [line.split()[0] for line in lines] == list(CATALOGUE)


def test_unknown_node_is_refused() -> None:
    with pytest.raises(InputError, match="gallery"):
        script("no-such-node")


def test_command_runs_an_example(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ddn_cvx", "gallery", "l2-ball", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "--seeds" in done.stdout, done.stderr

"""``python -m ddn_cvx doctor``: what is installed, and whether every path gives the right answer on this machine.

Each self-check compares an answer and its gradient with a closed form. The report says what to do about each finding.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import cvxpy as cp
import torch
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx.kernels import active_set, jit
from ddn_cvx.options import Options

ACCEPTED = 1e-6
"""Largest error of an answer or of a gradient."""
LIMIT = 30
"""Seconds that the look at torch's own batched LU may take; where it is broken it may hang."""

OPTIONAL = {
    "torchdiffeq": "differential equations as layers",
    "osqp": 'solver="OSQP"',
    "piqp": 'solver="PIQP"',
    "daqp": 'solver="DAQP"',
    "qoco": 'solver="QOCO"',
    "cvxopt": 'solver="CVXOPT"',
    "highspy": 'solver="HIGHS"',
    "scikit-learn": "examples of the gallery",
    "scikit-image": "examples of the gallery",
}
SOLVERS = ("clarabel", "scs", "ecos", "diffcp")
PACKAGES = ("torch", "cvxpy", "numpy", "scipy", "numba")


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    outcome: str
    """"ok", "note" (worth knowing, nothing is broken) or "FAILED"."""
    detail: str
    advice: str = ""


Pair = tuple[Tensor, Tensor]
Check = Callable[[], tuple[Pair, Pair]]
"""The answer beside the right one, and the gradient beside the right one."""


def examine(checks: dict[str, Check] | None = None, progress: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """Everything that is found, in the order of the report.

    Parameters
    ----------
    checks : dict, optional
        Self-checks by name. Default: ``CHECKS``.
    progress : callable
        Gets a line before whatever may take a while.
    """
    found = [*_versions(), *solvers(), *_machine()]
    progress("looking at torch's batched LU ...")
    found.append(batched_lu())
    for name, check in (CHECKS if checks is None else checks).items():
        progress(f"checking {name} (its first call compiles the kernels for this machine: up to a minute, once) ...")
        found.append(checked(name, check))
    return found


def run() -> int:
    """Print the report as a table; 1 if a self-check failed, else 0."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    with console.status("looking around ...") as status:
        found = examine(progress=lambda line: status.update(line) if console.is_terminal else print(line, file=sys.stderr))
    table = Table("", "", "found", "what to do", title="ddn_cvx doctor", title_justify="left")
    colours = {"ok": "green", "note": "yellow", "FAILED": "bold red"}
    for one in found:
        table.add_row(one.name, f"[{colours[one.outcome]}]{one.outcome}[/]", _plain(one.detail), _plain(one.advice))
    console.print(table)
    failed = [one.name for one in found if one.outcome == "FAILED"]
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "everything that was checked is right")
    return 1 if failed else 0


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def installed(package: str) -> str | None:
    """The version of a package; None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Finding]:
    listed = ", ".join(f"{package} {installed(package)}" for package in PACKAGES)
    yield Finding("versions", "ok", f"ddn_cvx {ddn.__version__}, Python {platform.python_version()}, {listed}")


def solvers() -> Iterator[Finding]:
    """Which solver packages and extras are installed, and what the others would be for."""
    there = [f"{name} {version}" for name in (*SOLVERS, *OPTIONAL) if (version := installed(name))]
    yield Finding("solvers and extras", "ok", ", ".join(there))
    for name in SOLVERS:
        if installed(name) is None:
            outcome = "FAILED" if name == "clarabel" else "note"
            yield Finding(name, outcome, "not installed", f"pip install {name}")
    missing = [name for name in OPTIONAL if installed(name) is None]
    if missing:
        uses = "; ".join(f"{name}: {OPTIONAL[name]}" for name in missing)
        yield Finding("optional packages", "note", f"not installed. {uses}", f"pip install {' '.join(missing)}")


def _machine() -> Iterator[Finding]:
    threads, processors = torch.get_num_threads(), jit.processors()
    asked = os.environ.get("OMP_NUM_THREADS", "not set")
    detail = f"{processors} for compiled kernels, {threads} for torch (OMP_NUM_THREADS {asked})"
    advice = "" if threads == 1 else "small tensors do not profit from torch's threads: OMP_NUM_THREADS=1 on a busy machine"
    yield Finding("threads", "ok", detail, advice)
    if torch.cuda.is_available():
        yield Finding(
            "GPU", "ok", torch.cuda.get_device_name(), "see the how-to page on scaling out for what is worth moving"
        )
    else:
        yield Finding("GPU", "ok", "none that torch can use")
    folder = Path(active_set.solve.stats.cache_path or "")
    if active_set.solve.stats.cache_path and os.access(folder if folder.exists() else folder.parent, os.W_OK):
        yield Finding("kernel cache", "ok", str(folder))
    else:
        yield Finding(
            "kernel cache",
            "note",
            "cannot be written: every process compiles the kernels again",
            "set NUMBA_CACHE_DIR to a folder that can be written",
        )


_LU = """
import torch
torch.set_num_threads(2)
A = torch.randn(4, 200, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
x = torch.linalg.solve(A, torch.ones(4, 200, 1, dtype=torch.float64))
print(float((A @ x - 1).abs().max()))
"""


def batched_lu(command: Sequence[str] = (sys.executable, "-c", _LU)) -> Finding:
    """Whether torch's batched LU is right with two threads, which it is not in every build; asked in another process."""
    harmless = "nothing for this package, which does not use it; in your own code use Cholesky, QR or one thread"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    try:
        done = subprocess.run(list(command), env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return Finding("torch's batched LU", "note", f"with two threads hangs: no answer in {LIMIT} s", harmless)
    lines = done.stdout.split()
    try:
        error = float(lines[-1]) if done.returncode == 0 and lines else float("nan")
    except ValueError:
        error = float("nan")
    if error <= 1e-6:
        return Finding("torch's batched LU", "ok", f"right with two threads here (residual {error:.0e})")
    what = "raises an error" if done.returncode else f"is wrong (residual {error:.0e})"
    return Finding("torch's batched LU", "note", f"{what} with two threads", harmless)


def checked(name: str, check: Check) -> Finding:
    """What a self-check found."""
    begun = time.perf_counter()
    try:
        errors = [float((found.detach() - right).abs().max()) for found, right in check()]
    except ModuleNotFoundError as error:
        return Finding(name, "note", f"not checked: {error}", f"pip install {error.name}" if error.name else "")
    except Exception as error:  # whatever it is, the report has to say it and go on
        line = str(error).splitlines()[0] if str(error) else ""
        return Finding(name, "FAILED", f"{type(error).__name__}: {line}", "install the versions of constraints.txt")
    detail = f"answer off by {errors[0]:.0e}, gradient by {errors[1]:.0e}; {time.perf_counter() - begun:.1f} s"
    if not all(error <= ACCEPTED for error in errors):
        return Finding(name, "FAILED", detail, "do not trust results of this path; install the versions of constraints.txt")
    return Finding(name, "ok", detail)


def _compare(layer: ddn.DeclarativeLayer, x: list[float], y: list[float], slope: list[list[float]]) -> tuple[Pair, Pair]:
    """The layer at x and its Jacobian there, row by row, beside y and ``slope``."""
    point = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    found = layer(point)
    rows = [torch.autograd.grad(part, point, retain_graph=True)[0][0] for part in found[0]]
    right = torch.tensor(slope, dtype=torch.float64)
    return (found[0], torch.tensor(y, dtype=torch.float64)), (torch.stack(rows), right)


def _simplex(**options: Unpack[Options]) -> tuple[Pair, Pair]:
    """The projection of (1, 1/2, -1) onto the simplex."""
    y, x = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y - x)), [cp.sum(y) == 1, y >= 0])
    layer = ddn.DeclarativeLayer(problem, [x], y, **options)
    slope = [[0.5, -0.5, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    return _compare(layer, [1.0, 0.5, -1.0], [0.75, 0.25, 0.0], slope)


def _ball(**options: Unpack[Options]) -> tuple[Pair, Pair]:
    """The projection of (3, 4) onto the unit ball."""
    y, x = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y - x)), [cp.norm(y) <= 1])
    layer = ddn.DeclarativeLayer(problem, [x], y, **options)
    return _compare(layer, [3.0, 4.0], [0.6, 0.8], _TANGENT)


_TANGENT = [[0.64 / 5, -0.48 / 5], [-0.48 / 5, 0.36 / 5]]


def _circle(solver: ddn.CompiledInteriorPoint | ddn.NonlinearInteriorPoint) -> tuple[Pair, Pair]:
    """The projection of (3, 4) onto the unit circle."""
    node = ddn.TorchProblem(
        (2,),
        lambda y, x: (y - x).square().sum(),
        equality=lambda y, x: y.square().sum() - 1,
        initial=lambda x: x,
        parameters=[(2,)],
    )
    return _compare(ddn.DeclarativeLayer(node, solver=solver), [3.0, 4.0], [0.6, 0.8], _TANGENT)


def _root() -> tuple[Pair, Pair]:
    """Heron's fixed point y = (y + x / y) / 2, which is the square root."""
    node = ddn.FixedPoint((1,), lambda y, x: (y + x / y) / 2, initial=lambda x: torch.ones_like(x), parameters=[(1,)])
    return _compare(ddn.DeclarativeLayer(node), [4.0], [2.0], [[0.25]])


def _decay() -> tuple[Pair, Pair]:
    """y' = -y from 1 to the time 1."""
    if installed("torchdiffeq") is None:
        raise ModuleNotFoundError("differential equations need torchdiffeq", name="torchdiffeq")
    node = ddn.ODE((1,), lambda t, y: -y, span=(0.0, 1.0))
    value = float(torch.tensor(-1.0, dtype=torch.float64).exp())
    return _compare(ddn.DeclarativeLayer(node, solver=ddn.Torchdiffeq(rtol=1e-9, atol=1e-9)), [1.0], [value], [[value]])


CHECKS: dict[str, Check] = {
    "cone program, compiled": lambda: _simplex(solver=ddn.Mehrotra()),
    "cone program, torch": lambda: _ball(solver=ddn.ConicInteriorPoint(), adjoint=ddn.Implicit(weakly_active="average")),
    "nonlinear program, compiled": lambda: _circle(ddn.CompiledInteriorPoint()),
    "nonlinear program, torch": lambda: _circle(ddn.NonlinearInteriorPoint()),
    "fixed point": _root,
    "differential equation": _decay,
}

"""What a type checker says of a user's program: strict, and with the types of the installed package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ddn_cvx

pytest.importorskip("mypy")

ROOT = Path(__file__).parents[1]
PROGRAM = '''
import cvxpy as cp
import torch
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx.extend import Adjoint, Solver
from ddn_cvx.nodes import LpBall
from ddn_cvx.testing import check_layer

x, p = cp.Variable(3), cp.Parameter(3)
problem = cp.Problem(cp.Minimize(p @ x), [x >= 0, x <= 1])
point = torch.ones(2, 3)

bare = ddn.DeclarativeLayer(problem, [p], x, solver=ddn.Mehrotra(threads=1), adjoint=ddn.Smoothed(0.1))
reveal_type(bare(point))
named = ddn.DeclarativeLayer(problem, variables=x)
reveal_type(named(param=point))
several = ddn.DeclarativeLayer(problem, [p], [x, problem.constraints[0].dual_variables[0]], on_failure="nan")
reveal_type(several(point))
reveal_type(ddn.DeclarativeLayer(problem)(point))
solution = several.solve(point)
reveal_type(solution.statuses)
reveal_type(solution.primal)
reveal_type(bare.with_solver("clarabel", max_iter=10)(point))


def objective(y: Tensor, x: Tensor) -> Tensor:
    return (y - x).square().sum()


reveal_type(ddn.DeclarativeLayer(ddn.TorchProblem((3,), objective))(point))
reveal_type(ddn.DeclarativeLayer(ddn.TorchProblem(3, objective))(point))
reveal_type(ddn.DeclarativeLayer(ddn.TorchProblem({"y": (3,), "t": ()}, lambda v, x: v["t"] ** 2))(point))
reveal_type(ddn.DeclarativeLayer(ddn.FixedPoint((3,), lambda y, x: 0.5 * y + x))(point))
reveal_type(ddn.DeclarativeLayer(ddn.ODE({"y": ()}, lambda t, y: y, span=(0.0, 1.0)))(point))
reveal_type(LpBall(3)(point, torch.tensor(1.0)))


def train(layer: ddn.DeclarativeLayer[Tensor], solver: Solver, adjoint: Adjoint) -> None:
    torch.autograd.grad(layer(point).sum(), point)
    check_layer(layer, point.double(), step=1e-6)


train(bare, ddn.SCS(eps_abs=1e-6), ddn.Implicit(weakly_active="average"))
'''.strip()  # fmt: skip
WRONG = """
import ddn_cvx as ddn

ddn.Mehrotra(thread=1)
ddn.Implicit(weakly_active="both")
ddn.DeclarativeLayer(ddn.TorchProblem(3, lambda y: y.sum()), on_failure="ignore")
ddn.DeclarativeLayer(ddn.TorchProblem({"y": (3,)}, lambda v: v["y"].sum()))().sum()
""".strip()
TENSOR, DICT = "torch._tensor.Tensor", "dict[str, torch._tensor.Tensor]"


def checked(program: str, folder: Path) -> list[str]:
    """The lines that ``mypy --strict`` prints, with no configuration but that of a user."""
    (folder / "program.py").write_text(program)
    (folder / "mypy.ini").write_text("[mypy]\nstrict = true\nfollow_imports = silent\n")
    (folder / "ddn_cvx").symlink_to(ROOT / "ddn_cvx")
    cache = ROOT / ".mypy_cache" / "of_users"
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", str(cache), "program.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return done.stdout.splitlines()


def test_types_are_shipped() -> None:
    assert (Path(ddn_cvx.__file__).parent / "py.typed").exists()
    assert "ddn_cvx = py.typed" in (ROOT / "setup.cfg").read_text()


def test_layers_say_what_comes_out(tmp_path: Path) -> None:
    said = checked(PROGRAM, tmp_path)
    assert not [line for line in said if ": error:" in line], "\n".join(said)
    revealed = [found[1] for found in map(re.compile(r'Revealed type is "(.*)"').search, said) if found]
    assert revealed == [
        TENSOR,
        TENSOR,
        f"tuple[{TENSOR}, ...]",
        f"tuple[{TENSOR}, ...]",
        "list[ddn_cvx.solution.Status]",
        DICT,
        TENSOR,
        TENSOR,
        TENSOR,
        DICT,
        TENSOR,
        DICT,
        TENSOR,
    ]


def test_mistakes_are_found(tmp_path: Path) -> None:
    said = checked(WRONG, tmp_path)
    assert [int(line.split(":")[1]) for line in said if ": error:" in line] == [3, 4, 5, 6], "\n".join(said)

"""The rules of the package's shape, checked from the syntax tree of every module.

The tables say what is allowed; the functions find what is not. Each rule is also shown a line that breaks it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "ddn_cvx"

# Imports go one way, from left to right:
#   errors, solution, checks, forward_mode, kernels <- cones <- linalg <- program <- {declare | solvers | adjoint} <- layer
#   <- {nodes | compat | testing}
# Each part of the package, and the parts it may import. Siblings in braces never meet.
GROUND = {"errors", "solution", "checks", "forward_mode"}
# Compiled functions of numpy arrays: they know nothing of the package, and nothing but them knows numba.
KERNELS = {"kernels"}
CORE = GROUND | KERNELS | {"cones", "linalg", "program"}
CALLS = {"call", "call_parts", "nonlinear_call", "root_call", "ode_call"}
# What the compiler of torch sees of a layer.
TRACED = {"signature", "custom_op"}
CHOICES = {"inputs", "failure", "explain", "diagnose", "solver_for", "options"}
LAYER = CORE | CALLS | TRACED | CHOICES | {"declare", "solvers", "adjoint", "layer"}
OUTSIDE = LAYER | {"nodes", "compat", "testing", "extend", "__init__"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "solution": {"errors"},
    "checks": {"errors"},
    "forward_mode": set(),
    "kernels": KERNELS,
    "cones": GROUND,
    "linalg": GROUND | KERNELS | {"cones"},
    "program": GROUND | KERNELS | {"cones", "linalg"},
    "declare": CORE,
    "solvers": CORE,
    "adjoint": CORE,
    "inputs": GROUND | {"program"},
    "failure": GROUND | {"program"},
    "call_parts": GROUND | {"linalg", "program", "inputs"},
    "call": CORE | {"solvers", "inputs", "failure", "diagnose"},
    "nonlinear_call": CORE | {"call_parts", "solvers", "inputs", "failure", "declare", "adjoint", "diagnose"},
    "ode_call": CORE | {"call_parts", "solvers", "inputs", "failure", "declare", "adjoint"},
    "root_call": CORE | {"call_parts", "solvers", "inputs", "failure", "declare", "adjoint", "diagnose"},
    "diagnose": GROUND,
    "explain": CORE | {"declare", "solvers", "adjoint", "inputs"},
    "solver_for": CORE | {"declare", "solvers"},
    "options": CORE | {"declare", "adjoint", "solver_for"},
    "signature": GROUND | {"declare"},
    "custom_op": GROUND | {"signature"},
    "layer": LAYER - {"layer"},
    "nodes": {"__init__", "extend"},  # ready-made nodes use what users use
    "gallery": {"nodes", "errors"},
    "compat": LAYER,
    "testing": LAYER,
    "extend": CORE | {"solvers", "adjoint"},
    "__init__": OUTSIDE - {"__init__"},
    "__main__": OUTSIDE | {"demo", "gallery", "doctor"},
    "doctor": OUTSIDE,
    "demo": OUTSIDE,
}

# cvxpy declares problems; behind the waist only the adapter of cvxpy's own solver interfaces knows it.
MAY_IMPORT_CVXPY = ("declare/*", "solvers/cvxpy_any.py", "compat/*", "nodes/*", "__main__.py", "demo.py", "doctor.py")

# A solver package is imported by `solvers/NAME.py` alone, inside a function: none is needed at import.
SOLVER_PACKAGES = ("clarabel", "cvxopt", "daqp", "diffcp", "ecos", "highspy", "osqp", "piqp", "qoco", "scs", "torchdiffeq")
ALSO_MAY_IMPORT = {"adjoint/diffcp.py": "diffcp", "compat/cvxpylayers.py": "diffcp"}

# Batched LU on CPU returns garbage or hangs in some builds of torch; only linalg/ may call it, guarded.
LU = re.compile(
    r"torch\.(linalg\.(solve|inv|tensorsolve|tensorinv|det|slogdet)(_ex)?|linalg\.lu\w*|lu|lu_solve|lu_unpack"
    r"|inverse|det|logdet|slogdet)"
)

# A loop over a range of the batch is for solvers that take one instance at a time.
BATCH = re.compile(r"\b(B|batch|batch_size|n_batch|num_batch)\b")

# Code that is made from text, unpickled or handed to a shell: whoever writes the text runs it.
DANGEROUS = re.compile(
    r"(builtins\.)?(eval|exec|compile|__import__)|os\.(system|popen|exec\w*|spawn\w*)|subprocess\.get(status)?output"
    r"|(pickle|cloudpickle|dill|joblib|marshal|shelve)\.(loads?|open|Unpickler)|torch\.load|numpy\.load|yaml\.(unsafe_)?load"
)

MAX_LINES = 400  # a longer module says the reason at its top


@dataclass(frozen=True)
class Import:
    """`import torch.linalg as la`: dotted `torch.linalg`, local name `la`, which means `torch.linalg`."""

    dotted: str
    local: str
    meaning: str
    statement: ast.stmt

    @property
    def package(self) -> str:
        return self.dotted.split(".")[0]


@dataclass(frozen=True)
class Module:
    """One source file, `path` relative to the package."""

    path: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def part(self) -> str:
        """`layer` for layer.py, `cones` for cones/psd.py."""
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def dotted(self) -> list[str]:
        return [PACKAGE, *self.path.removesuffix(".py").split("/")]

    @cached_property
    def imports(self) -> list[Import]:
        """Every import, written out absolutely: `from ..program import base` is `ddn_cvx.program.base`."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    root = alias.name.split(".")[0]
                    local, meaning = (alias.asname, alias.name) if alias.asname else (root, root)
                    found.append(Import(alias.name, local, meaning, node))
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(self.dotted[: len(self.dotted) - node.level]) if node.level else ""
                origin = ".".join(filter(None, [base, node.module]))
                for alias in node.names:
                    dotted = f"{origin}.{alias.name}"
                    found.append(Import(dotted, alias.asname or alias.name, dotted, node))
        return found

    @cached_property
    def lazy(self) -> set[ast.AST]:
        """Nodes that importing the module does not run: inside functions, and under `if TYPE_CHECKING`."""
        later: list[ast.AST] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                later.append(node)
            elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                later += node.body
        return {inner for node in later for inner in ast.walk(node)}

    def mentions(self) -> Iterator[tuple[str, int]]:
        """Dotted names as used, with imported names written out, and their lines."""
        meaning = {one.local: one.meaning for one in self.imports}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute | ast.Name):
                head, dot, tail = ast.unparse(node).partition(".")
                yield meaning.get(head, head) + dot + tail, node.lineno


def wrong_direction(module: Module) -> Iterator[str]:
    if module.part not in MAY_IMPORT:
        yield f"{module.path}: '{module.part}' is not in MAY_IMPORT; say what it may import"
        return
    for one in module.imports:
        if one.package == PACKAGE:
            target = [*one.dotted.split("."), "__init__"][1]
            target = target if target in MAY_IMPORT else "__init__"
            if target != module.part and target not in MAY_IMPORT[module.part]:
                yield f"{module.path}:{one.statement.lineno}: {module.part} may not import {target}"


def misplaced_cvxpy(module: Module) -> Iterator[str]:
    for one in module.imports:
        if one.package == "cvxpy" and not any(fnmatch(module.path, p) for p in MAY_IMPORT_CVXPY):
            yield f"{module.path}:{one.statement.lineno}: imports cvxpy"


def misplaced_solver(module: Module) -> Iterator[str]:
    for one in module.imports:
        where = f"{module.path}:{one.statement.lineno}: imports {one.package}"
        if one.package not in SOLVER_PACKAGES:
            continue
        if module.path != f"solvers/{one.package}.py" and ALSO_MAY_IMPORT.get(module.path) != one.package:
            yield f"{where}, which is for solvers/{one.package}.py"
        elif one.statement not in module.lazy:
            yield f"{where} outside a function"


def batched_lu(module: Module) -> Iterator[str]:
    if module.part != "linalg":
        for name, line in module.mentions():
            if LU.fullmatch(name):
                yield f"{module.path}:{line}: {name} outside linalg/"


def loop_over_batch(module: Module) -> Iterator[str]:
    if module.part == "solvers":
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.For | ast.comprehension):
            over = ast.unparse(node.iter)
            if over.startswith("range(") and BATCH.search(over):
                yield f"{module.path}:{node.iter.lineno}: Python loop over the batch: {over}"


def runs_text(module: Module) -> Iterator[str]:
    meaning = {one.local: one.meaning for one in module.imports}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            head, dot, tail = ast.unparse(node.func).partition(".")
            name = meaning.get(head, head) + dot + tail
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            safe = name == "torch.load" and options.get("weights_only") == "True"
            if (DANGEROUS.fullmatch(name) and not safe) or options.get("shell", "False") != "False":
                yield f"{module.path}:{node.lineno}: {name} runs what a text or a file says"


def too_long(module: Module) -> Iterator[str]:
    lines = module.source.splitlines()
    if len(lines) > MAX_LINES and "reason" not in "\n".join(lines[:20]):
        yield f"{module.path}: {len(lines)} lines, and its top does not say the reason"


def foreign_private(module: Module) -> Iterator[str]:
    """A name with an underscore belongs to the module that it stands in."""
    ours = [one for one in module.imports if one.package == PACKAGE]
    for one in ours:
        if re.match(r"_[a-zA-Z]", one.dotted.split(".")[-1]):
            yield f"{module.path}:{one.statement.lineno}: imports {one.dotted}"
    for name, line in module.mentions():
        head, *tail = name.split(".")
        if head == PACKAGE and any(name.startswith(f"{one.meaning}.") for one in ours) and re.match(r"_[a-zA-Z]", tail[-1]):
            yield f"{module.path}:{line}: {name} is another module's"


def undocumented(module: Module) -> Iterator[str]:
    if not ast.get_docstring(module.tree):
        yield f"{module.path}: its top does not say what lives there"


def stale_map(module: Module) -> Iterator[str]:
    """The file that opens a folder names what is in it: each word in double backticks at the left is a file there."""
    if not re.fullmatch(r"(adjoint|declare|kernels|linalg|program|solvers)/__init__\.py", module.path):
        return
    there = [path.stem for path in (ROOT / PACKAGE / module.part).glob("*.py")]
    for line in (ast.get_docstring(module.tree, clean=False) or "").splitlines():
        listed = re.match(r"    ((``[\w*]+``(, |,$)?)+)", line)
        for name in re.findall(r"[\w*]+", listed[1]) if listed else ():
            if not any(fnmatch(one, name) for one in there):
                yield f"{module.path}: there is no {name}"


def unread_option(module: Module) -> Iterator[str]:
    """Each option of a solver or an adjoint is read somewhere besides its check: none is accepted and ignored."""
    if module.part not in ("solvers", "adjoint"):
        return
    checks = {n for f in ast.walk(module.tree) if getattr(f, "name", "") == "__post_init__" for n in ast.walk(f)}
    read = {n.attr for n in ast.walk(module.tree) if isinstance(n, ast.Attribute) and n not in checks}
    handed_on = re.search(r"\boptions\(self\b", module.source) is not None  # all of them, to the package that has them
    for kind in ast.walk(module.tree):
        if isinstance(kind, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in kind.decorator_list):
            if not any(re.search(r"Solver|Compiled|Adjoint|Integrator", ast.unparse(base)) for base in kind.bases):
                continue
            for option in kind.body:
                if isinstance(option, ast.AnnAssign) and "ClassVar" not in ast.unparse(option.annotation):
                    name = ast.unparse(option.target)
                    if name not in read and not handed_on:
                        yield f"{module.path}:{option.lineno}: option '{name}' of {kind.name} is never read"


def bare_forward_rule(module: Module) -> Iterator[str]:
    """torch runs the forward rule of a custom function so that modes further out are lost; ours keep them."""
    for kind in ast.walk(module.tree):
        if isinstance(kind, ast.ClassDef) and any(ast.unparse(base).endswith("autograd.Function") for base in kind.bases):
            for rule in kind.body:
                if isinstance(rule, ast.FunctionDef) and rule.name == "jvp" and isinstance(rule.body[-1], ast.Return):
                    computes = any(isinstance(node, ast.Call) for line in rule.body for node in ast.walk(line))
                    if computes and "forward_rule" not in map(ast.unparse, rule.decorator_list):
                        yield f"{module.path}:{rule.lineno}: jvp of {kind.name} without forward_rule"


RULES = [
    *(wrong_direction, misplaced_cvxpy, misplaced_solver, batched_lu, loop_over_batch, runs_text, too_long),
    *(foreign_private, undocumented, stale_map, unread_option, bare_forward_rule),
]

MODULES = [
    Module(path.relative_to(ROOT / PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
]


AROUND = [
    Module(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    for folder in ("benchmarks", "docs", "examples", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def test_what_is_around_the_package_uses_public_names() -> None:
    complaints = [complaint for module in AROUND for complaint in foreign_private(module)]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule) -> None:
    complaints = [complaint for module in MODULES for complaint in rule(module)]
    assert not complaints, "\n".join(complaints)


# Rule, file, a source that breaks it, and one that keeps it.
EXAMPLES = [
    (wrong_direction, "declare/a.py", "from ddn_cvx.solvers import base", "from ddn_cvx.program import base"),
    (wrong_direction, "solvers/a.py", "from ..adjoint.base import Adjoint", "from .base import Solver"),
    (wrong_direction, "adjoint/a.py", "from ddn_cvx import layer", "from ddn_cvx import errors"),
    (wrong_direction, "cones/a.py", "import ddn_cvx", "import torch"),
    (wrong_direction, "cones/a.py", "def f():\n    import ddn_cvx.program", "import ddn_cvx.errors"),
    (wrong_direction, "nodes/a.py", "from ddn_cvx.layer import X", "from ddn_cvx import DeclarativeLayer"),
    (wrong_direction, "elsewhere.py", "", None),
    (misplaced_cvxpy, "layer.py", "from cvxpy import Problem", "import numpy"),
    (misplaced_cvxpy, "solvers/scs.py", "def f():\n    import cvxpy.settings as s", "import scipy"),
    (misplaced_cvxpy, "program/base.py", "import cvxpy", None),
    (misplaced_solver, "solvers/scs.py", "import scs", "def f():\n    import scs"),
    (misplaced_solver, "solvers/scs.py", "def f():\n    import ecos", "if TYPE_CHECKING:\n    import scs"),
    (misplaced_solver, "adjoint/other.py", "def f():\n    import diffcp", None),
    (misplaced_solver, "adjoint/diffcp.py", "from diffcp import X", "def f():\n    from diffcp import X"),
    (batched_lu, "layer.py", "import torch\ntorch.linalg.solve(a)", "import torch\ntorch.linalg.cholesky(a)"),
    (batched_lu, "layer.py", "from torch import linalg as la\nla.lu_factor_ex(a)", "la.lu_factor_ex(a)"),
    (batched_lu, "layer.py", "import torch as t\nt.linalg.inv_ex(a)", "import numpy as np\nnp.linalg.inv(a)"),
    (batched_lu, "layer.py", "from torch.linalg import inv\ninv(a)", "inv(a)"),
    (batched_lu, "layer.py", "import torch\ntorch.inverse(a)", "import torch\ntorch.linalg.eigh(a)"),
    (loop_over_batch, "layer.py", "for i in range(batch): pass", "for i in range(len(batch_shape)): pass"),
    (loop_over_batch, "layer.py", "[f(i) for i in range(len(batch))]", "[f(i) for i in range(cones)]"),
    (runs_text, "layer.py", "eval(text)", "model.eval()"),
    (runs_text, "layer.py", "exec(text)", "import ast\nast.literal_eval(text)"),
    (runs_text, "layer.py", "import pickle as p\np.loads(data)", "import pickle\npickle.dumps(data)"),
    (runs_text, "layer.py", "from os import system\nsystem(text)", "import re\nre.compile(text)"),
    (
        runs_text,
        "layer.py",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import subprocess\nsubprocess.run([text])",
    ),
    (runs_text, "layer.py", "import torch\ntorch.load(path)", "import torch\ntorch.load(path, weights_only=True)"),
    (foreign_private, "a.py", "from ddn_cvx.cones.base import _x", "from torch import _x"),
    (foreign_private, "a.py", "from ddn_cvx.cones import base\nbase._x()", "from ddn_cvx.cones import base\nbase.x()"),
    (undocumented, "a.py", "x = 1", '"""What lives here."""'),
    (stale_map, "solvers/__init__.py", '"""M.\n\n    ``gone``  x\n"""', '"""M.\n\n    ``conic_*``, ``scs``  x\n"""'),
    (
        unread_option,
        "solvers/a.py",
        "@dataclass\nclass A(Solver):\n    x: int = 1\n    def __post_init__(self): check(self.x)",
        "@dataclass\nclass A(Solver):\n    x: int = 1\n    def solve(self): return self.x",
    ),
    (
        bare_forward_rule,
        "adjoint/a.py",
        "class A(torch.autograd.Function):\n    def jvp(ctx, t): return f(t)",
        "class A(torch.autograd.Function):\n    @forward_rule\n    def jvp(ctx, saved, t): return f(t)",
    ),
    (too_long, "layer.py", "x = 1\n" * 401, '"""Long for a reason."""\n' + "x = 1\n" * 401),
]


@pytest.mark.parametrize("rule, path, bad, good", EXAMPLES)
def test_rule_can_fail(rule, path: str, bad: str, good: str | None) -> None:
    assert list(rule(Module(path, bad)))
    if good is not None:
        assert not list(rule(Module(path, good)))


def test_imports_without_any_solver_package() -> None:
    """cvxpy brings some of them; ours must not ask for any, ECOS (GPL) least of all."""
    code = f"import sys; sys.modules.update(dict.fromkeys({SOLVER_PACKAGES!r})); import {PACKAGE}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("part", ["kernels", "solvers"])
def test_each_file_is_in_the_map_of_its_folder(part: str) -> None:
    listed = re.findall(r"``([\w*]+)``", (ROOT / PACKAGE / part / "__init__.py").read_text(encoding="utf-8"))
    files = [path.stem for path in (ROOT / PACKAGE / part).glob("*.py") if path.stem != "__init__"]
    assert [name for name in files if not any(fnmatch(name, one) for one in listed)] == []

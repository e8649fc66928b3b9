"""What a solver does wrong, or the world around it, is noticed, hurts one element at most, and never the process.

Wrong answers are covered by ``test_mutation.py`` (lost constraints) and ``test_never_wrong.py`` (hostile numbers); here are
solvers that raise, hang, return nonsense or the answer of a neighbour; interrupts, forks, threads and long runs.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import cvxpy as cp
import pytest
import torch
from torch import Tensor

import ddn_cvx as ddn
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solvers import elementwise
from ddn_cvx.solvers.base import RawSolution, Solver, Workspace

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))  # where pytest looks only for the tests there
endurance = import_module("endurance")
S = ddn.Status
BAD = 2
"""The element of every batch that the broken solvers stumble over: it is the one whose first number is above 5."""


def points(batch: int = 5) -> Tensor:
    found = torch.randn(batch, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found[BAD, 0] = 7.0
    return found


def projection(solver: object = None, **options: Any) -> ddn.DeclarativeLayer:
    x, p = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    return ddn.DeclarativeLayer(problem, [p], x, solver=solver, **options)


@dataclass(frozen=True)
class Broken(Solver):
    """A solver that does something else with the bad element."""

    name: ClassVar[str] = "broken"
    minds_units: ClassVar[bool] = False
    fault: Callable[[RawSolution, Tensor], RawSolution]
    """What becomes of the answers, given which elements are bad."""

    def unsupported(self, program: ConicProgram) -> str | None:
        return None

    def solve(
        self, program: ConicProgram, data: ConicData, workspace: Workspace, warm: RawSolution | None = None
    ) -> RawSolution:
        raw = ddn.Clarabel(threads=1).solve(program, data, workspace)
        return self.fault(raw, (data.q.abs() > 10).any(1) | (data.b.abs() > 5).any(1))


def raises(error: BaseException) -> Callable[[RawSolution, Tensor], RawSolution]:
    def fault(raw: RawSolution, bad: Tensor) -> RawSolution:
        if bool(bad.any()):
            raise error
        return raw

    return fault


HANG = 60.0
"""Seconds that a solver hangs, unless the test ends before: far more than a busy machine needs to leave it behind."""
released = threading.Event()


@pytest.fixture(autouse=True)
def release() -> Iterator[None]:
    """What hangs in a test goes on when the test is over."""
    released.clear()
    yield
    released.set()


def hangs(raw: RawSolution, bad: Tensor) -> RawSolution:
    if bool(bad.any()):
        released.wait(HANG)
    return raw


def put(field: str, value: Callable[[Tensor], Tensor]) -> Callable[[RawSolution, Tensor], RawSolution]:
    """Another value in a field of the bad elements."""

    def fault(raw: RawSolution, bad: Tensor) -> RawSolution:
        old = getattr(raw, field)
        return replace(raw, **{field: torch.where(bad.reshape(-1, *(1,) * (old.ndim - 1)), value(old), old)})

    return fault


# ---------------------------------------------------------------- solvers that raise


@pytest.mark.parametrize(
    "error", [RuntimeError("no pivot"), ZeroDivisionError("zero"), torch.linalg.LinAlgError("singular")], ids=repr
)
def test_an_element_on_which_a_solver_raises_is_the_only_one_to_fail(error: BaseException) -> None:
    expected = projection("clarabel")(points())
    layer = projection(Broken(raises(error)), on_failure="nan")
    p = points().requires_grad_()
    with pytest.warns(ddn.DegradedAnswerWarning, match=f"the solver raised {type(error).__name__}"):
        found = layer(p)
    assert found.isnan().all(1).nonzero().flatten().tolist() == [BAD]
    rest = [0, 1, 3, 4]
    assert torch.equal(found[rest], expected[rest])
    found[rest].square().sum().backward()
    assert p.grad is not None and not p.grad[BAD].any() and p.grad[rest].isfinite().all()
    with pytest.raises(ddn.SolverError, match=r"(?s)1 of 5.*NUMERICAL_ERROR at \(2,\).*raised") as caught:
        projection(Broken(raises(error)))(points())
    assert caught.value.__cause__ is error


def test_a_solver_that_always_raises_fails_for_all() -> None:
    def fault(raw: RawSolution, bad: Tensor) -> RawSolution:
        raise RuntimeError("out of order")

    with pytest.raises(ddn.SolverError, match=r"(?s)5 of 5.*out of order"):
        projection(Broken(fault))(points())


@pytest.mark.parametrize("error", [TypeError("a mistake"), NotImplementedError("later"), KeyboardInterrupt()], ids=repr)
def test_mistakes_in_a_solver_are_not_hidden(error: BaseException) -> None:
    with pytest.raises(type(error)):
        projection(Broken(raises(error)), on_failure="nan")(points())


def own_solver(fault: Callable[[Tensor], None], **options: Any) -> ddn.DeclarativeLayer:
    """The mean of the parameter in each entry, by a function of the user's own."""

    def solve(p: Tensor) -> Tensor:
        fault(p)
        return p.mean(-1, keepdim=True)

    problem = ddn.TorchProblem((1,), lambda y, p: ((y - p) ** 2).sum(-1), solve=solve, batched=True)
    return ddn.DeclarativeLayer(problem, **options)


def test_functions_of_the_user_that_raise() -> None:
    def fault(p: Tensor) -> None:
        if bool((p > 5).any()):
            raise RuntimeError("no consensus")

    with pytest.warns(ddn.DegradedAnswerWarning, match="no consensus"):
        found = own_solver(fault).solve(points())
    assert found.statuses == [S.SOLVED, S.SOLVED, S.NUMERICAL_ERROR, S.SOLVED, S.SOLVED]
    assert torch.allclose(found.outputs[0][[0, 1, 3, 4], 0], points()[[0, 1, 3, 4]].mean(-1))


# ---------------------------------------------------------------- answers that are none


def rolled(t: Tensor) -> Tensor:
    return t.roll(1, 0)


FAULTS = {
    "NaN": put("x", lambda x: torch.full_like(x, torch.nan)),
    "infinity in the multipliers": put("y", lambda y: torch.full_like(y, torch.inf)),
    "a perturbed point": put("x", lambda x: x + 0.3),
    "wrong multipliers": put("y", lambda y: -y),
    "no multipliers": put("y", torch.zeros_like),
    "a neighbour's point": put("x", rolled),
    "claims to be infeasible": put("status", lambda s: torch.full_like(s, int(S.INFEASIBLE))),
    "a status that does not exist": put("status", lambda s: torch.full_like(s, 99)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_answers_are_noticed_or_repaired(fault: str) -> None:
    expected = projection("clarabel").solve(points())
    solver = Broken(FAULTS[fault])
    rest = [0, 1, 3, 4]
    for polish_steps in (0, 10):
        found = projection(solver, polish_steps=polish_steps).solve(points())
        assert torch.equal(found.status[rest], expected.status[rest])
        assert torch.allclose(found.outputs[0][rest], expected.outputs[0][rest], atol=1e-7)
        if found.statuses[BAD] == S.SOLVED:  # polished, or the fault was in what the check does not need
            assert torch.allclose(found.outputs[0][BAD], expected.outputs[0][BAD], atol=1e-6)
        else:
            assert found.outputs[0][BAD].isnan().all()
    unpolished = projection(solver, polish_steps=0).solve(points()).statuses[BAD]
    assert (unpolished == S.SOLVED) == fault.startswith(("claims", "a status"))


def test_swapped_elements_are_noticed() -> None:
    def swap(raw: RawSolution, bad: Tensor) -> RawSolution:
        order = torch.tensor([1, 0, 2, 3, 4])
        return replace(raw, x=raw.x[order], y=raw.y[order], s=raw.s[order])

    statuses = projection(Broken(swap), polish_steps=0).solve(points()).statuses
    assert [s == S.SOLVED for s in statuses] == [False, False, True, True, True]


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("x", lambda x: x[:, :-1], r"'x' as a tensor \(5, 3\)"),
        ("y", lambda y: y[:1], r"'y' as a tensor"),
        ("x", lambda x: x.float(), "torch.float64 on cpu, got .* torch.float32"),
        ("status", lambda s: s.tolist(), "'status' .* got list"),
    ],
)
def test_answers_of_a_wrong_form_are_errors(field: str, value: Callable[[Any], Any], message: str) -> None:
    solver = Broken(lambda raw, bad: replace(raw, **{field: value(getattr(raw, field))}))
    with pytest.raises(ddn.InputError, match=message):
        projection(solver)(points())


# ---------------------------------------------------------------- solvers that take too long


@contextmanager
def left_behind() -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < HANG / 2


def test_a_solver_that_hangs_is_left_behind() -> None:
    layer = projection(Broken(hangs), time_limit=1.0)
    with left_behind():
        found = layer.solve(points())
    assert found.statuses == [S.TIME_LIMIT] * 5  # the solver takes batches: nobody knows which element it was
    good = points()[[0, 1, 3, 4]]
    assert torch.equal(layer(good), projection("clarabel")(good))
    with pytest.raises(ddn.SolverError, match="TIME_LIMIT"):
        layer(points())


def test_a_function_of_the_user_that_hangs_is_left_behind() -> None:
    with left_behind():
        found = own_solver(lambda p: released.wait(HANG), time_limit=0.2).solve(points())
    assert found.statuses == [S.TIME_LIMIT] * 5


def test_one_element_that_hangs_does_not_hurt_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapters have the limit for each element; ECOS has none of its own."""
    import ecos

    honest = ecos.solve

    def slow(c: Any, G: Any, h: Any, dims: Any, *equal: Any, **options: Any) -> Any:
        if abs(h).max() > 10 or abs(c).max() > 10:
            released.wait(HANG)
        return honest(c, G, h, dims, *equal, **options)

    x, p = cp.Variable(3), cp.Parameter(3)
    linear = cp.Problem(cp.Minimize(p @ x), [cp.norm(x) <= 1])
    cost = points()
    cost[BAD, 0] = 70.0
    expected = ddn.DeclarativeLayer(linear, [p], x, solver="ecos")(cost)
    monkeypatch.setattr(ecos, "solve", slow)
    with left_behind():
        found = ddn.DeclarativeLayer(linear, [p], x, solver="ecos", time_limit=2.0, on_failure="nan").solve(cost)
    assert found.statuses == [S.SOLVED, S.SOLVED, S.TIME_LIMIT, S.SOLVED, S.SOLVED]
    assert torch.equal(found.outputs[0][[0, 1, 3, 4]], expected[[0, 1, 3, 4]])


def conic_problem() -> tuple[cp.Problem, Any, Any]:
    x, p = cp.Variable(3), cp.Parameter(3)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.norm(x) <= 1, cp.sum(x) == 0.3]), p, x


def torch_problem() -> ddn.TorchProblem:
    return ddn.TorchProblem((3,), lambda y, p: ((y - p) ** 2).sum() + (y**4).sum(), lambda y, p: (y**2).sum() - 1)


def layers(time_limit: float | None) -> dict[str, ddn.DeclarativeLayer]:
    """A layer for each kind of solver of this package."""
    problem, p, x = conic_problem()

    def cone(solver: str) -> ddn.DeclarativeLayer:
        return ddn.DeclarativeLayer(problem, [p], x, solver=solver, time_limit=time_limit)

    found = {name: projection(name, time_limit=time_limit) for name in ("active_set", "interior_point", "osqp")}
    found |= {name: cone(name) for name in ("mehrotra", "conic_interior_point", "first_order", "clarabel", "scs", "diffcp")}
    for name in ("auto", "nonlinear_interior_point", "compiled_interior_point", "augmented_lagrangian"):
        found[f"nonlinear {name}"] = ddn.DeclarativeLayer(torch_problem(), solver=name, time_limit=time_limit)
    smooth = ddn.TorchProblem((3,), lambda y, p: ((y - p) ** 4).sum() + y.square().sum())
    for name in ("newton", "lbfgs"):
        found[name] = ddn.DeclarativeLayer(smooth, solver=name, time_limit=time_limit)
    map_ = ddn.FixedPoint((3,), lambda z, p: torch.tanh(0.5 * z + p))
    for name in ("anderson", "broyden", "newton_krylov"):
        found[name] = ddn.DeclarativeLayer(map_, solver=name, time_limit=time_limit)
    found["ode"] = ddn.DeclarativeLayer(
        ddn.ODE((3,), lambda t, y, p: p - y, span=(0.0, 1.0), initial=0.0), time_limit=time_limit
    )
    return found


def test_no_solver_ignores_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time at all elements are TIME_LIMIT, and with enough of it all is as without a limit."""
    p = points()
    for (name, layer), free in zip(layers(60.0).items(), layers(None).values(), strict=True):
        assert torch.equal(layer(p), free(p)), name
    monkeypatch.setattr(elementwise, "GRACE", 0.0)
    for name, layer in layers(1e-9).items():
        layer.polish_steps = 0
        statuses = layer.solve(p).statuses
        assert S.TIME_LIMIT in statuses, (name, statuses)
        assert set(statuses) <= {S.TIME_LIMIT, S.SOLVED, S.INACCURATE}, (name, statuses)


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), "1"])
def test_the_limit_is_a_number_of_seconds(limit: Any) -> None:
    with pytest.raises(ddn.InputError, match="time_limit must be a number of seconds above 0 or None"):
        projection(time_limit=limit)


LEFT_BEHIND = """
import torch, ddn_cvx as ddn


def endless(p):
    while True:
        torch.func.vmap(torch.func.grad(lambda v: (v * v).sum()))(p)


problem = ddn.TorchProblem((1,), lambda y, p: ((y - p) ** 2).sum(-1), solve=endless, batched=True)
layer = ddn.DeclarativeLayer(problem, time_limit=0.1, on_failure="nan")
print([status.name for status in layer.solve(torch.ones(1, 3, dtype=torch.float64)).statuses])
"""


def test_work_left_behind_does_not_abort_the_end_of_the_process() -> None:
    """Killed below C++ code by the interpreter's end, a thread would take the process along with a signal."""
    command = [sys.executable, "-W", "ignore", "-c", LEFT_BEHIND]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=600)
    assert done.returncode == 0 and done.stdout == "['TIME_LIMIT']\n", (done.returncode, done.stderr)


# ---------------------------------------------------------------- interrupts

PRELUDE = """
import sys, time, cvxpy as cp, torch
import ddn_cvx as ddn
n = 12
x, p = cp.Variable(n), cp.Parameter(n)
quadratic = cp.Problem(cp.Minimize(cp.sum_squares(x - p) + cp.sum(x)), [cp.sum(x) == 1, x >= 0, x <= 0.9])
LAYERS = {
    "compiled": lambda: (ddn.DeclarativeLayer(quadratic, [p], x, solver="mehrotra"), 400_000),
    "clarabel": lambda: (ddn.DeclarativeLayer(quadratic, [p], x, solver="clarabel"), 100_000),
    "torch": lambda: (ddn.DeclarativeLayer(quadratic, [p], x, solver="interior_point"), 100_000),
}
"""
INTERRUPTED = (
    PRELUDE
    + """
layer, batch = LAYERS[sys.argv[1]]()
layer(torch.randn(2, n, dtype=torch.float64))
q = torch.randn(batch, n, dtype=torch.float64)
print("solving", flush=True)
try:
    while True:
        layer(q)
except KeyboardInterrupt:
    print(time.process_time(), flush=True)
"""
)


def processor_seconds(pid: int) -> float:
    """What a process has used so far, which a busy machine does not change."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the processor time of another process is read from /proc")
@pytest.mark.parametrize("name", ["compiled", "clarabel", "torch"])
def test_an_interrupt_stops_promptly(name: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", INTERRUPTED, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == "solving\n"
        begin = processor_seconds(process.pid)
        while processor_seconds(process.pid) < begin + 0.5:
            time.sleep(0.05)
        begin = processor_seconds(process.pid)
        process.send_signal(signal.SIGINT)
        try:
            end, _ = process.communicate(timeout=600)
        finally:
            process.kill()
        assert process.returncode == 0 and float(end) - begin < 1.0


# ---------------------------------------------------------------- processes and threads

LOADERS = '''
import sys, cvxpy as cp, torch
import ddn_cvx as ddn
from torch.utils.data import DataLoader, Dataset


def build(solver):
    x, p = cp.Variable(8), cp.Parameter(8)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    return ddn.DeclarativeLayer(problem, [p], x, solver=solver)


class Projections(Dataset):
    """Each item is a batch, large enough that threads share it, solved where the item is made."""

    def __init__(self):
        self.points = torch.randn(4, 500, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.layers = [build(None), build("clarabel"), build("interior_point")]

    def __len__(self):
        return len(self.points)

    def __getitem__(self, i):
        return torch.stack([layer(self.points[i]) for layer in self.layers])


if __name__ == "__main__":
    data = Projections()
    before = [data[i] for i in range(len(data))]  # the parent's threads exist before the fork
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=sys.argv[1], timeout=500)
    for expected, found in zip(before, loader, strict=True):
        assert torch.equal(expected, found)
    assert torch.equal(data[0], before[0])  # and the parent goes on
    print("equal")
'''


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_layers_work_in_workers_of_a_data_loader(context: str, tmp_path: Path) -> None:
    script = tmp_path / "loaders.py"
    script.write_text(LOADERS, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), context]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0 and done.stdout == "equal\n", done.stderr


AUTO: dict[str, Callable[[], ddn.DeclarativeLayer]] = {
    "polyhedral": projection,
    "cones": lambda: ddn.DeclarativeLayer(conic_problem()[0]),
    "nonlinear": lambda: ddn.DeclarativeLayer(torch_problem()),
    "fixed point": lambda: ddn.DeclarativeLayer(ddn.FixedPoint((3,), lambda z, p: torch.tanh(0.5 * z + p))),
    "root": lambda: ddn.DeclarativeLayer(ddn.Root((3,), lambda z, p: z**3 + z - p)),
}


def forth_and_back(layer: ddn.DeclarativeLayer, p: Tensor) -> tuple[Tensor, Tensor]:
    p = p.clone().requires_grad_()
    found = layer(p)
    out = found if isinstance(found, Tensor) else found[0]
    out.square().sum().backward()
    assert p.grad is not None
    return out.detach(), p.grad


@pytest.mark.parametrize("kind", AUTO)
def test_the_same_bits_again(kind: str) -> None:
    """By the same layer, and by another one; forward and backward."""
    p = points(40).clamp(max=1.5)
    first = forth_and_back(AUTO[kind](), p)
    layer = AUTO[kind]()
    for _ in range(3):
        for one, other in zip(forth_and_back(layer, p), first, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", AUTO)
def test_two_threads_call_one_layer(kind: str) -> None:
    layer, batches = AUTO[kind](), [points(30).clamp(max=1.5), points(30).clamp(max=1.5).neg() + 0.1]
    expected = [forth_and_back(AUTO[kind](), p) for p in batches]
    found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    start = threading.Barrier(2)

    def work(k: int) -> None:
        start.wait()
        for repeat in range(5):
            found[k, repeat] = forth_and_back(layer, batches[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    for (k, _), pair in found.items():
        assert all(torch.equal(one, other) for one, other in zip(pair, expected[k], strict=True))


@pytest.mark.parametrize("name", endurance.LAYERS)
def test_training_does_not_fill_the_memory(name: str) -> None:
    """The short form of ``tests/fuzz/endurance.py``: a leaked batch a step would be 400 bytes and more."""
    layer = endurance.LAYERS[name]()
    endurance.readings(layer, 30)  # compiled code, caches, threads
    found = endurance.readings(layer, 300, every=10)
    assert endurance.slope(found) < 4096, found[1]


# ---------------------------------------------------------------- files


def test_weights_are_loaded_without_running_code() -> None:
    """A state dict holds tensors only, of the layer and of the modules that its functions are."""

    class Energy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(3, dtype=torch.float64) + 0.5)

        def forward(self, y: Tensor, x: Tensor) -> Tensor:
            return (self.weight * (y - x) ** 2).sum() + (y**4).sum()

    def build() -> torch.nn.Module:
        learned = ddn.DeclarativeLayer(ddn.TorchProblem((3,), Energy()))
        return torch.nn.Sequential(torch.nn.Linear(3, 3, dtype=torch.float64), projection(), learned)

    model, other = build(), build()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert any("weight" in name for name in state if not name.startswith("0."))
    other.load_state_dict(state)
    p = points()
    assert torch.equal(other(p), model(p))

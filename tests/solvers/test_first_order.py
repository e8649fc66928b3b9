"""The first-order method: optimality conditions, other solvers' answers, certificates, batches, warm starts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from programs import CONES, interior, kkt_residual, random_program, select
from scipy.optimize import linprog

from ddn_cvx.cones import Product
from ddn_cvx.errors import InputError
from ddn_cvx.linalg.pattern import Pattern
from ddn_cvx.linalg.products import Products, symmetric
from ddn_cvx.program.conic import ConicData, ConicProgram
from ddn_cvx.solution import Status
from ddn_cvx.solvers.base import RawSolution, Workspace
from ddn_cvx.solvers.clarabel import Clarabel
from ddn_cvx.solvers.first_order import FirstOrder


def solve(program: ConicProgram, data: ConicData, warm: RawSolution | None = None, **options: float) -> RawSolution:
    return FirstOrder(**options).solve(program, data, Workspace(), warm)


@pytest.mark.parametrize(
    "cones, quadratic",
    [("linear", True), ("linear", False), ("second-order", True), ("semidefinite", False), ("exponential", False)],
)
def test_small_programs_against_clarabel(cones: str, quadratic: bool) -> None:
    program, data = random_program(CONES[cones], quadratic=quadratic)
    raw = solve(program, data)
    assert raw.status.tolist() == [Status.SOLVED] * 3
    assert kkt_residual(program, data, raw).max() < 1e-6
    expected = Clarabel().solve(program, data, Workspace())
    torch.testing.assert_close(program.objective(raw.x, data), program.objective(expected.x, data), rtol=1e-5, atol=1e-5)


def sparse_lp(m: int, n: int, seed: int) -> tuple[ConicProgram, ConicData, sp.csc_array]:
    """``min c'x  s.t.  A x = b, x >= 0`` with a known solution."""
    rng = np.random.default_rng(seed)
    A = sp.csc_array(sp.random_array((m, n), density=4 / m, rng=rng) + sp.eye_array(m, n))
    rows = sp.csc_array(sp.vstack([A, -sp.eye_array(n)]))
    rows.sort_indices()
    x = np.maximum(rng.standard_normal(n), 0)
    c = A.T @ rng.standard_normal(m) + np.where(x > 0, 0.0, rng.random(n))
    program = ConicProgram(Pattern.of(sp.csc_array((n, n))), Pattern.of(rows), Product(m, n))
    parts = (np.zeros(0), c, rows.data, np.append(A @ x, np.zeros(n)))
    return program, ConicData(*(torch.as_tensor(p).unsqueeze(0) for p in parts)), A


def test_a_sparse_linear_program_against_highs() -> None:
    program, data, A = sparse_lp(150, 300, 0)
    raw = solve(program, data)
    found = linprog(data.q[0].numpy(), A_eq=A, b_eq=data.b[0, :150].numpy(), method="highs")
    assert raw.status.tolist() == [Status.SOLVED]
    assert float((data.q * raw.x).sum()) == pytest.approx(found.fun, rel=1e-6)
    assert kkt_residual(program, data, raw).max() < 1e-6


def without_solution(cones: Product, infeasible: bool, seed: int) -> tuple[ConicProgram, ConicData]:
    """Programs with a strict certificate."""
    rng, m, n = np.random.default_rng(seed), cones.size, 4
    program = ConicProgram(Pattern.of(np.triu(np.ones((n, n)))), Pattern.of(np.ones((m, n))), cones)
    A, q, b = rng.standard_normal((m, n)), rng.standard_normal(n), rng.standard_normal(m)
    P = np.zeros((n, n))
    if infeasible:  # A'y = 0 and b'y = -1
        y = interior(cones, rng, dual=True)
        A -= np.outer(y, y @ A) / (y @ y)
        b -= (b @ y + 1) * y / (y @ y)
    else:  # -Ax is inside K and q'x = -1
        x, s = rng.standard_normal(n), interior(cones, rng, dual=False)
        s[: cones.zero] = 0
        A -= np.outer(A @ x + s, x) / (x @ x)
        q -= (q @ x + 1) * x / (x @ x)
        if cones.is_polyhedral:  # curved, but not along the ray
            R = rng.standard_normal((2, n))
            R -= np.outer(R @ x, x) / (x @ x)
            P = R.T @ R
        b = A @ rng.standard_normal(n) + s
    parts = (P[program.P.rows, program.P.cols], q, A[program.A.rows, program.A.cols], b)
    return program, ConicData(*(torch.as_tensor(p).unsqueeze(0) for p in parts))


@pytest.mark.parametrize("infeasible", [True, False])
@pytest.mark.parametrize("cones", ["linear", "second-order", "semidefinite"])
def test_programs_without_solution_get_a_certificate(cones: str, infeasible: bool) -> None:
    raw = solve(*without_solution(CONES[cones], infeasible, 1), max_iterations=20_000)
    assert raw.status.tolist() == [Status.INFEASIBLE if infeasible else Status.UNBOUNDED]
    assert bool(raw.x.isnan().all())


def test_each_element_has_its_own_end() -> None:
    """Solved, infeasible, unbounded and invalid ones in one batch, which shrinks on the way; as each is alone."""
    rows = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    program = ConicProgram(Pattern.of(sp.csc_array((2, 2))), Pattern.of(sp.csc_array(rows)), Product(1, 2))
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [torch.nan, 0.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 3.0, -1.0], [0.0, 1.0, -2.0], [0.0, 5.0, -1.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    A = torch.tensor([[1.0, -1.0, 1.0], [1.0, -1.0, 1.0], [0.0, -1.0, 1.0], [1.0, -1.0, 1.0]], dtype=torch.float64)
    data = ConicData(torch.zeros(4, 0, dtype=torch.float64), q, A, b)
    raw = solve(program, data)
    assert raw.status.tolist() == [Status.SOLVED, Status.INFEASIBLE, Status.UNBOUNDED, Status.INVALID_DATA]
    assert float(raw.x[0, 0]) == pytest.approx(1.0, abs=1e-6)
    for i in range(4):
        alone = solve(program, select(data, [i]))
        assert alone.status.item() == raw.status[i].item() and alone.iterations.item() == raw.iterations[i].item()
        torch.testing.assert_close(alone.x[0], raw.x[i], rtol=1e-9, atol=1e-9, equal_nan=True)


def test_a_warm_start_at_the_solution_ends_at_the_first_look() -> None:
    program, data = random_program(CONES["second-order"])
    cold = solve(program, data)
    warm = solve(program, data, cold, tolerance=1e-7)
    assert bool((warm.iterations == FirstOrder().check_every).all()) and bool((cold.iterations > warm.iterations).all())
    lost = replace(cold, x=torch.full_like(cold.x, torch.nan))  # nothing to start from: as without
    assert solve(program, data, lost).iterations.tolist() == cold.iterations.tolist()


def test_it_says_so_when_it_gives_up() -> None:
    raw = solve(*random_program(CONES["linear"]), max_iterations=40, inaccurate_tolerance=1e-9)
    assert raw.status.tolist() == [Status.ITERATION_LIMIT] * 3 and raw.iterations.tolist() == [40] * 3
    program, data = random_program(CONES["linear"])
    assert solve(program, select(data, [])).x.shape == (0, 7)
    with pytest.raises(InputError, match="tolerance"):
        FirstOrder(tolerance=0.0)


@pytest.mark.parametrize("shared", [True, False])
def test_products(shared: bool) -> None:
    rng = np.random.default_rng(0)
    pattern = Pattern.of(sp.random_array((5, 7), density=0.4, rng=rng))
    values = torch.as_tensor(rng.standard_normal((3, pattern.nnz)))
    values = values[:1].expand(3, -1) if shared else values
    dense = torch.as_tensor(np.stack([pattern.matrix(v).toarray() for v in values.numpy()]))
    products = Products(pattern, values)
    x, y = torch.as_tensor(rng.standard_normal((3, 7))), torch.as_tensor(rng.standard_normal((3, 5)))
    assert products.shared is shared
    torch.testing.assert_close(products(x), (dense @ x.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(products.transposed(y), (dense.mT @ y.unsqueeze(-1)).squeeze(-1))
    upper = Pattern.of(sp.triu(sp.random_array((6, 6), density=0.5, rng=rng)))
    whole, which = symmetric(upper)
    data = rng.standard_normal(upper.nnz)
    half = upper.matrix(data).toarray()
    np.testing.assert_array_equal(whole.matrix(data[which]).toarray(), half + np.triu(half, 1).T)

"""The batched interior-point method against closed forms, cvxpy and scipy, and the independence of batch elements."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize
import torch

from ddn_cvx.solution import Status
from ddn_cvx.solvers import interior_point
from ddn_cvx.solvers.interior_point import InteriorPoint, solve_qp

SOLVED, INACCURATE, INFEASIBLE, UNBOUNDED, ITERATION_LIMIT, NUMERICAL_ERROR = list(Status)[:6]


@pytest.fixture(autouse=True)
def threads(request):
    """One thread unless the test says otherwise: what is tested here is too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", 1))
    yield
    torch.set_num_threads(before)


def tensors(*arrays):
    return [torch.tensor(np.array(array), dtype=torch.float64) for array in arrays]


def random_qp(n, equalities, inequalities, batch, kind="strict", seed=0):
    """Feasible and bounded: b and q come from a point and multipliers, of which half are active (``strict`` has any q)."""
    rng = np.random.default_rng([n, equalities, inequalities, seed])
    rank = {"strict": n, "valley": n // 3 + 1, "linear": 0}[kind]
    L = rng.standard_normal((batch, rank, n))
    P = np.swapaxes(L, 1, 2) @ L + (0.1 * np.eye(n) if kind == "strict" else 0)
    A = rng.standard_normal((batch, equalities + inequalities, n))
    x = rng.standard_normal((batch, n))
    active = rng.random((batch, inequalities)) < 0.5
    b = np.einsum("bij,bj->bi", A, x)
    b[:, equalities:] += np.where(active, 0, rng.random(active.shape))
    y = np.concatenate([rng.standard_normal((batch, equalities)), np.where(active, rng.random(active.shape), 0)], 1)
    q = -np.einsum("bij,bj->bi", P, x) - np.einsum("bij,bi->bj", A, y)
    return tensors(P, rng.standard_normal((batch, n)) if kind == "strict" else q, A, b)


def residual(P, q, A, b, zero, x, y, s):
    """The largest violation of the optimality conditions, relative to the largest of the numbers in each, ``(B,)``."""

    def product(M, v):
        return torch.einsum("bij,bj->bi", M, v)

    def relative(terms):
        size = torch.stack([1 + term.abs().amax(1) for term in terms if term.shape[1]]).amax(0)
        return sum(terms).abs().amax(1) / size if terms[0].shape[1] else torch.zeros(len(q))

    stationarity = relative([product(P, x), q, product(A.mT, y)])
    feasibility = relative([product(A, x), s, -b])
    negative = torch.cat([-s[:, zero:], -y[:, zero:], s[:, :zero].abs(), torch.zeros(len(q), 1)], 1).amax(1)
    gap = (s * y).sum(1).abs() / (1 + torch.maximum((q * x).sum(1).abs(), (b * y).sum(1).abs()))
    return torch.stack([stationarity, feasibility, negative, gap]).amax(0)


def assert_same(left, right, rows=slice(None)):
    """Bit for bit, NaN included."""
    for one, other in zip(left, right, strict=True):
        assert torch.equal(one[rows].nan_to_num(nan=-7), other.nan_to_num(nan=-7))


SHAPES = [(1, 0, 1), (2, 1, 1), (4, 0, 7), (5, 2, 6), (10, 3, 5), (11, 0, 30), (20, 7, 33), (50, 10, 50), (64, 0, 20)]


@pytest.mark.parametrize("kind", ["strict", "valley", "linear"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_optimality_conditions_and_objective(shape, kind):
    n, equalities, _ = shape
    data = random_qp(*shape, batch=6, kind=kind)
    x, y, s, status, iterations = solve_qp(*data, equalities)
    assert status.tolist() == [SOLVED] * 6
    assert iterations.max() <= 20
    assert residual(*data, equalities, x, y, s).max() < 1e-9
    P, q, A, b = (t[0].numpy() for t in data)
    if kind == "linear":
        rows = (A[equalities:], b[equalities:], A[:equalities], b[:equalities])
        found = scipy.optimize.linprog(q, *rows, bounds=(None, None))
        value = found.fun
    else:
        v = cp.Variable(n)
        rows = [A[:equalities] @ v == b[:equalities]] * (equalities > 0) + [A[equalities:] @ v <= b[equalities:]]
        problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(v, cp.psd_wrap(P)) + q @ v), rows)
        value = problem.solve(solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert abs(float(0.5 * x[0] @ data[0][0] @ x[0] + data[1][0] @ x[0]) - value) < 1e-7 * (1 + abs(value))
    if kind == "strict":
        np.testing.assert_allclose(x[0], v.value, atol=1e-5)


def simplex(points):
    batch, n = points.shape
    P = np.broadcast_to(2 * np.eye(n), (batch, n, n))
    A = np.broadcast_to(np.concatenate([np.ones((1, n)), -np.eye(n)]), (batch, n + 1, n))
    return tensors(P, -2 * points, A, np.broadcast_to(np.eye(n + 1)[0], (batch, n + 1)))


@pytest.mark.parametrize("n", [1, 7, 10, 50])
def test_projection_on_the_simplex(n):
    points = np.random.default_rng(n).standard_normal((20, n))
    x, _, _, status, _ = solve_qp(*simplex(points), 1)
    ordered = -np.sort(-points, 1)
    excess = (np.cumsum(ordered, 1) - 1) / np.arange(1, n + 1)
    threshold = np.take_along_axis(excess, (ordered > excess).sum(1, keepdims=True) - 1, 1)
    assert (status == SOLVED).all()
    np.testing.assert_allclose(x, np.maximum(points - threshold, 0), atol=1e-6)


@pytest.mark.parametrize("turned", [False, True], ids=["separable", "dense"])
def test_projection_on_a_box(turned):
    rng = np.random.default_rng(1)
    points, low, high = rng.standard_normal((20, 9)), -rng.random((20, 9)), rng.random((20, 9))
    Q = np.linalg.qr(rng.standard_normal((9, 9)))[0] if turned else np.eye(9)  # the same in other coordinates
    A = np.broadcast_to(np.concatenate([Q.T, -Q.T]), (20, 18, 9))
    x, y, s, status, _ = solve_qp(
        *tensors(np.broadcast_to(np.eye(9), (20, 9, 9)), -points @ Q.T, A, np.concatenate([high, -low], 1)), 0
    )
    assert (status == SOLVED).all()
    np.testing.assert_allclose(x.numpy() @ Q, np.clip(points, low, high), atol=1e-6)
    np.testing.assert_allclose(y[:, :9] - y[:, 9:], points - np.clip(points, low, high), atol=1e-6)
    assert (((y > 1e-4) & (s > 1e-4)).sum(), (s < 0).sum(), (y < 0).sum()) == (0, 0, 0)


def test_nonnegative_least_squares():
    rng = np.random.default_rng(2)
    F, f = rng.standard_normal((5, 20, 8)), rng.standard_normal((5, 20))
    A = np.broadcast_to(-np.eye(8), (5, 8, 8))
    x, *_ = solve_qp(*tensors(np.swapaxes(F, 1, 2) @ F, -np.einsum("bij,bi->bj", F, f), A, np.zeros((5, 8))), 0)
    for i in range(5):
        np.testing.assert_allclose(x[i], scipy.optimize.nnls(F[i], f[i])[0], atol=1e-6)


@pytest.mark.parametrize("equalities", [0, 1, 4])
def test_equalities_only_are_one_linear_system(equalities):
    P, q, A, b = random_qp(7, equalities, 0, batch=4)
    x, y, s, status, iterations = solve_qp(P, q, A, b, equalities)
    K = np.zeros((4, 7 + equalities, 7 + equalities))
    K[:, :7, :7], K[:, 7:, :7], K[:, :7, 7:] = P, A, A.mT
    right = np.linalg.solve(K, torch.cat([-q, b], 1).numpy()[..., None])[..., 0]
    assert status.tolist() == [SOLVED] * 4 and iterations.max() <= 3 and not s.any()
    np.testing.assert_allclose(torch.cat([x, y], 1), right, atol=1e-8)


@pytest.mark.parametrize("kind", ["strict", "valley", "linear"])
def test_degenerate_constraints(kind):
    P, q, A, b = random_qp(10, 2, 14, batch=8, kind=kind)
    x, *_ = solve_qp(P, q, A, b, 2)
    value = (0.5 * (x[:, None] @ P)[:, 0] * x + q * x).sum(1)
    for rows, signs, zero in (
        ([0, 1, 0, 1, *range(2, 16)], [1] * 18, 4),  # repeated equalities
        ([0, 1, *range(2, 16), *range(2, 16)], [1] * 30, 2),  # repeated inequalities
        ([0, 1, 0, 1, *range(2, 16)], [1, 1, -1, -1] + [1] * 14, 0),  # equalities as two inequalities: no interior
    ):
        sign = torch.tensor(signs, dtype=torch.float64)
        data = P, q, A[:, rows] * sign[:, None], b[:, rows] * sign
        x, y, s, status, _ = solve_qp(*data, zero)
        assert status.tolist() == [SOLVED] * 8
        assert residual(*data, zero, x, y, s).max() < 1e-9
        torch.testing.assert_close((0.5 * (x[:, None] @ P)[:, 0] * x + q * x).sum(1), value, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["strict", "linear"])
def test_bad_scaling_of_rows_columns_objective_and_bounds(kind):
    P, q, A, b = random_qp(10, 3, 20, batch=8, kind=kind)
    x, *_ = solve_qp(P, q, A, b, 3)
    value = 0.5 * (x[:, None] @ P)[:, 0] * x + q * x
    rng = np.random.default_rng(3)
    rows, columns = tensors(10 ** rng.uniform(-6, 6, 23), 10 ** rng.uniform(-6, 6, 10))
    bent = P * columns * columns[:, None], q * columns, A * columns * rows[:, None], b * rows
    for data, change in (
        (bent, columns),
        ((P * 1e8, q * 1e8, A, b), 1),
        ((P * 1e-8, q * 1e-8, A, b), 1),
        ((P, q * 1e6, A, b * 1e6), 1e-6),
        ((P, q * 1e-6, A, b * 1e-6), 1e6),
    ):
        other, _, _, status, _ = solve_qp(*data, 3)
        assert status.tolist() == [SOLVED] * 8
        other = other * change
        other_value = 0.5 * (other[:, None] @ P)[:, 0] * other + q * other
        np.testing.assert_allclose(other_value.sum(1), value.sum(1), rtol=1e-7, atol=1e-7)
        if kind == "strict":  # else there may be several solutions
            np.testing.assert_allclose(other, x, atol=1e-6)


def test_bounds_far_away_do_no_harm():
    P, q, A, b = random_qp(10, 2, 5, batch=8)
    x, *_ = solve_qp(P, q, A, b, 2)
    box = torch.eye(10, dtype=torch.float64).expand(8, 10, 10)
    far = torch.full((8, 20), 1e6, dtype=torch.float64)
    other, _, _, status, _ = solve_qp(P, q, torch.cat([A, box, -box], 1), torch.cat([b, far], 1), 2)
    assert status.tolist() == [SOLVED] * 8
    np.testing.assert_allclose(other, x, atol=1e-6)


def infeasible(n, equalities, inequalities, batch, quadratic, margin=0.3):
    """With multipliers ``y`` that prove it: ``A'y = 0``, ``b'y = -margin``."""
    rng = np.random.default_rng([n, equalities, inequalities])
    m = equalities + inequalities
    y = rng.random((batch, m)) - 0.5 * (np.arange(m) < equalities)
    A, b = rng.standard_normal((batch, m, n)), rng.standard_normal((batch, m))
    A[:, -1] = -np.einsum("bij,bi->bj", A[:, :-1], y[:, :-1]) / y[:, -1:]
    b[:, -1] = -((b[:, :-1] * y[:, :-1]).sum(1) + margin) / y[:, -1]
    L = rng.standard_normal((batch, n, n))
    return tensors(quadratic * np.swapaxes(L, 1, 2) @ L, rng.standard_normal((batch, n)), A, b)


def unbounded(n, equalities, inequalities, batch, quadratic):
    """With a ray ``d`` that proves it: ``Pd = 0``, ``Ed = 0``, ``Gd <= 0``, ``q'd < 0``."""
    rng = np.random.default_rng([n, equalities, inequalities])
    m = equalities + inequalities
    d = rng.standard_normal((batch, n))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    off = np.eye(n) - d[:, :, None] * d[:, None]
    slope = rng.random((batch, m)) * (rng.random((batch, m)) < 0.7) * (np.arange(m) >= equalities)
    A = rng.standard_normal((batch, m, n)) @ off - slope[..., None] * d[:, None]
    b = np.einsum("bij,bj->bi", A, rng.standard_normal((batch, n))) + rng.random((batch, m)) * (np.arange(m) >= equalities)
    q = (rng.standard_normal((batch, 1, n)) @ off)[:, 0] - d / n
    L = rng.standard_normal((batch, n // 2 + 1, n)) @ off
    return tensors(quadratic * np.swapaxes(L, 1, 2) @ L, q, A, b)


HOPELESS = [(3, 0, 8), (5, 1, 12), (10, 3, 9), (30, 5, 40)]


@pytest.mark.parametrize("quadratic", [0, 1], ids=["linear", "quadratic"])
@pytest.mark.parametrize("shape", HOPELESS, ids=str)
def test_infeasibility_is_certified(shape, quadratic):
    zero = shape[1]
    P, q, A, b = infeasible(*shape, batch=8, quadratic=quadratic)
    x, y, s, status, _ = solve_qp(P, q, A, b, zero)
    assert status.tolist() == [INFEASIBLE] * 8
    assert x.isnan().all() and s.isnan().all() and (y[:, zero:] >= 0).all()
    torch.testing.assert_close((b * y).sum(1), -torch.ones(8, dtype=torch.float64))
    assert ((y[:, None] @ A).abs().squeeze(1) / (y.abs()[:, None] @ A.abs()).squeeze(1)).max() < 1e-7


@pytest.mark.parametrize("quadratic", [0, 1], ids=["linear", "quadratic"])
@pytest.mark.parametrize("shape", HOPELESS, ids=str)
def test_unboundedness_is_certified(shape, quadratic):
    zero = shape[1]
    P, q, A, b = unbounded(*shape, batch=8, quadratic=quadratic)
    x, y, s, status, _ = solve_qp(P, q, A, b, zero)
    assert status.tolist() == [UNBOUNDED] * 8
    assert y.isnan().all() and s.isnan().all()
    torch.testing.assert_close((q * x).sum(1), -torch.ones(8, dtype=torch.float64))
    change = (x[:, None] @ A.mT)[:, 0] / x.norm(dim=1, keepdim=True)
    assert (x[:, None] @ P).abs().max() < 1e-7 * x.abs().max()
    assert change[:, zero:].max() < 1e-7 and not (change[:, :zero].abs() > 1e-7).any()


@pytest.mark.parametrize("margin", [1e-1, 1e-2, 1e-3])
def test_slight_infeasibility_is_never_solved(margin):
    points = np.random.default_rng(4).standard_normal((6, 5))
    P, q, A, b = simplex(points)
    A[:, 1:], b[:, 1:] = -A[:, 1:], (1 - margin) / 5  # sum x = 1 with x <= (1 - margin) / 5
    assert solve_qp(P, q, A, b, 1)[3].tolist() == [INFEASIBLE] * 6
    b[:, 1:] = (1 + margin) / 5
    assert solve_qp(P, q, A, b, 1)[3].tolist() == [SOLVED] * 6


def test_trivially_impossible_rows_and_free_directions():
    P, q, A, b = random_qp(4, 1, 3, batch=4)
    A[0, 0], b[0, 0] = 0, 1  # 0'x = 1
    A[1, 3], b[1, 3] = 0, -1  # 0'x <= -1
    A[2, 3], b[2, 3] = 0, 1  # 0'x <= 1
    P[3], A[3], b[3] = 0, 0, 0  # no constraint, linear objective
    assert solve_qp(P, q, A, b, 1)[3].tolist() == [INFEASIBLE, INFEASIBLE, SOLVED, UNBOUNDED]
    assert solve_qp(P, 0 * q, A, b, 1)[3].tolist() == [INFEASIBLE, INFEASIBLE, SOLVED, SOLVED]


def test_unconstrained():
    P, q, A, b = random_qp(6, 0, 0, batch=3, kind="valley")
    P[2] += torch.eye(6)
    q[0] = P[0] @ torch.ones(6, dtype=torch.float64)
    q[1] = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y, s, status, _ = solve_qp(P, q, A, b, 0)
    assert status.tolist() == [SOLVED, UNBOUNDED, SOLVED] and y.shape == s.shape == (3, 0)
    np.testing.assert_allclose(P[0] @ x[0], -q[0], atol=1e-8)
    np.testing.assert_allclose(x[2], np.linalg.solve(P[2], -q[2]), atol=1e-8)


def test_iteration_limit_gives_no_answer():
    data = random_qp(10, 3, 12, batch=3)
    x, y, s, status, iterations = solve_qp(*data, 3, InteriorPoint(max_iterations=2))
    assert status.tolist() == [ITERATION_LIMIT] * 3 and iterations.tolist() == [2] * 3
    assert x.isnan().all() and y.isnan().all() and s.isnan().all()


def test_what_cannot_be_reached_is_reported_as_inaccurate():
    """With solved_tolerance out of reach, the best iterate comes back, and is as good as it can be."""
    data = random_qp(10, 3, 12, batch=3)
    options = InteriorPoint(tolerance=1e-30, solved_tolerance=1e-30)
    x, y, s, status, _ = solve_qp(*data, 3, options)
    assert status.tolist() == [INACCURATE] * 3
    assert residual(*data, 3, x, y, s).max() < 1e-12


def test_indefinite_objective_is_not_solved():
    P, q, A, b = random_qp(6, 1, 8, batch=2)
    P[0] = -P[0]
    status = solve_qp(P, q, A, b, 1)[3]
    assert status[0] not in (SOLVED, INACCURATE) and status[1] == SOLVED


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_one_element_is_solved_like_many_by_two_threads(threads):
    data = random_qp(64, 33, 20, batch=3)  # large enough for kernels to share even one product between threads
    assert_same(solve_qp(*data, 33), solve_qp(*(t[1:2] for t in data), 33), [1])


@pytest.mark.parametrize("shape", [(5, 2, 7), (10, 3, 5), (21, 4, 33), (30, 0, 31), (8, 0, 0), (9, 4, 0)], ids=str)
def test_elements_do_not_depend_on_each_other(shape):
    n, zero, inequalities = shape
    data = random_qp(*shape, batch=12)
    together = solve_qp(*data, zero)
    assert (together[3] == SOLVED).all()
    for rows in ([0], [11], [2, 5, 7], list(range(1, 12))):
        assert_same(together, solve_qp(*(t[rows] for t in data), zero), rows)
    P, q, A, b = (t.clone() for t in data)
    q[0, 0] = torch.nan
    P[4], A[4], b[4] = 0, 0, 0  # unbounded
    P[9], A[9], b[9] = torch.eye(n), 0, torch.arange(len(b[9])) >= zero  # separable
    expected = {0: NUMERICAL_ERROR, 4: UNBOUNDED, 9: SOLVED}
    if inequalities:
        A[6, -1], b[6, -1], expected[6] = 0, -1, INFEASIBLE
    mixed = solve_qp(P, q, A, b, zero)
    assert {row: int(mixed[3][row]) for row in expected} == expected
    rows = [row for row in range(12) if row not in expected]
    assert_same(together, [t[rows] for t in mixed], rows)


def test_separable_elements_do_not_depend_on_dense_ones():
    dense = random_qp(10, 1, 10, batch=4)
    separable = simplex(np.random.default_rng(5).standard_normal((4, 10)))
    order = [4, 0, 5, 1, 2, 6, 7, 3]
    both = solve_qp(*(torch.cat(pair)[order] for pair in zip(dense, separable, strict=True)), 1)
    apart = [torch.cat(pair)[order] for pair in zip(solve_qp(*dense, 1), solve_qp(*separable, 1), strict=True)]
    assert_same(both, apart)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", range(4))
def test_data_that_are_not_finite(place, bad):
    data = random_qp(6, 2, 7, batch=3)
    right = solve_qp(*data, 2)
    data[place][1].view(-1)[-1] = bad
    answer = solve_qp(*data, 2)
    assert answer[3].tolist() == [SOLVED, NUMERICAL_ERROR, SOLVED]
    assert all(t[1].isnan().all() for t in answer[:3])
    assert_same(right, [t[[0, 2]] for t in answer], [0, 2])


def test_sizes():
    for batch, shape in ((0, (4, 1, 3)), (0, (4, 0, 0)), (4096, (3, 1, 4)), (1, (300, 20, 250))):
        data = random_qp(*shape, batch=batch)
        x, y, s, status, iterations = solve_qp(*data, shape[1])
        assert x.shape == data[1].shape and y.shape == s.shape == data[3].shape
        assert status.shape == iterations.shape == (batch,) and (status == SOLVED).all()
        assert {status.dtype, iterations.dtype} == {torch.int64}


def test_large_batches_are_solved_in_chunks(monkeypatch):
    data = random_qp(6, 2, 7, batch=10)
    whole = solve_qp(*data, 2)
    monkeypatch.setattr(interior_point, "_CHUNK", 3 * 6 * (6 + 9))
    assert_same(whole, solve_qp(*data, 2))


def test_the_answer_is_made_of_ordinary_tensors():
    """It can be part of a graph, unlike what inference mode makes."""
    data = [t.requires_grad_() for t in random_qp(4, 1, 3, batch=2)]
    x, y, s, *_ = solve_qp(*data, 1)
    assert not (x.requires_grad or y.requires_grad or s.requires_grad)
    (data[1] * x).sum().backward()
    torch.testing.assert_close(data[1].grad, x)


@pytest.mark.parametrize("option", ["max_iterations", "tolerance", "regularisation"])
def test_options_must_be_positive(option):
    with pytest.raises(ValueError, match=option):
        InteriorPoint(**{option: 0})

"""Other forms of a program: the epigraph of its objective, other orders of its rows."""

import numpy as np
import pytest
import torch
from programs import CONES, kkt_residual, random_program, svec

from ddn_cvx.cones import Product
from ddn_cvx.program.epigraph import Epigraph
from ddn_cvx.program.row_order import RowOrder, scs_cones, scs_rows
from ddn_cvx.solvers.base import RawSolution, Workspace
from ddn_cvx.solvers.scs import SCS


def lower_svec(matrix):
    """SCS's order: lower triangle column by column."""
    k = len(matrix)
    return np.array([matrix[i, j] * (1 if i == j else np.sqrt(2)) for j in range(k) for i in range(j, k)])


def test_scs_order_is_the_lower_triangle():
    matrices = [np.arange(k * k).reshape(k, k) for k in (4, 1, 3)]
    matrices = [m + m.T for m in matrices]
    cones = Product(1, 2, (3,), (4, 1, 3), 1, ((0.3, 0.7),))
    head, tail = -np.arange(1.0, 7), 1000 + np.arange(6.0)
    ours = np.concatenate([head, *map(svec, matrices), tail])
    theirs = np.concatenate([head, *map(lower_svec, matrices), tail])
    np.testing.assert_array_equal(ours[scs_rows(cones)], theirs)
    assert scs_cones(cones) == {"z": 1, "l": 2, "q": [3], "s": [4, 1, 3], "ep": 1, "p": [0.3]}


def test_rows_are_selected_and_reordered():
    program, data = random_program(CONES["second-order"])
    rows = np.array([4, 1, 8, 0])
    order = RowOrder.of(program.A, rows)
    _, A = program.dense(data)
    for values, dense in zip(data.A.numpy(), A.numpy(), strict=True):
        matrix = order.pattern.matrix(values[order.entries])
        np.testing.assert_array_equal(matrix.toarray(), dense[rows])
        assert matrix.has_sorted_indices


@pytest.mark.parametrize("cones", [c for c in CONES if c != "higher power"])  # SCS, used here, has none of these
def test_epigraph_has_the_same_solution(cones):
    program, data = random_program(CONES[cones])
    epigraph = Epigraph(program)
    linear = epigraph.lift(data)
    assert epigraph.program.P.nnz == 0 and epigraph.program.m == epigraph.program.cones.size
    raw = SCS().solve(program, data, Workspace())
    x, y, s = epigraph.point(data, raw.x, raw.y, raw.s)
    lifted = RawSolution(x, y, s, raw.status, raw.iterations)
    assert kkt_residual(epigraph.program, linear, lifted).max() < 1e-5
    np.testing.assert_allclose((linear.q * x).sum(1), program.objective(raw.x, data), rtol=1e-9)
    assert torch.equal(y[:, epigraph.kept], raw.y) and torch.equal(s[:, epigraph.kept], raw.s)
    wide = epigraph.embed(raw.x, raw.y, raw.s)
    assert torch.equal(wide[1][:, epigraph.kept], raw.y) and wide[1].count_nonzero() == raw.y.count_nonzero()


def test_factor_is_a_square_root():
    program, data = random_program(CONES["linear"])
    epigraph = Epigraph(program)
    F, (P, _) = epigraph.factor(data), program.dense(data)
    used = P[:, :-1, :-1]  # the last variable is not in P
    np.testing.assert_allclose(F.mT @ F, used, atol=1e-12)
    bad = data._replace(P=data.P * torch.tensor([-1.0, 1.0, torch.nan])[:, None])
    assert epigraph.factor(bad).isnan().flatten(1).all(1).tolist() == [True, False, True]

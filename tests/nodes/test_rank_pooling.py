"""Rank pooling: what reversal and rotation do to it, subspaces of every dimension, bad input."""

from __future__ import annotations

import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx.nodes import RankPooling, SubspacePooling
from ddn_cvx.nodes.rank_pooling import ENTRIES


def frames(which: int = 2) -> torch.Tensor:
    (v,) = ENTRIES[which].sample(4, torch.Generator().manual_seed(3))
    return v


def test_order_is_seen_but_by_principal_components() -> None:
    v, still = frames(0), frames()
    rank, subspace, pca = RankPooling(6, 4), SubspacePooling(6, 4, 2, starts=8), SubspacePooling(6, 4, 2, C=0.0)
    assert (rank(v) - rank(v.flip(1))).norm(dim=-1).min() > 0.1
    assert (span(subspace(still)) - span(subspace(still.flip(1)))).norm(dim=(-1, -2)).min() > 0.1
    assert torch.allclose(span(pca(still)), span(pca(still.flip(1))), atol=1e-8)


def span(U: torch.Tensor) -> torch.Tensor:
    return U @ U.mT


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_axes_are_orthonormal_principal_and_turn_with_the_frames(dimension: int) -> None:
    v, node = frames(), SubspacePooling(6, 4, dimension, C=0.3)
    U = node(v)
    inside = (v @ U).mT @ (v @ U)
    strength = inside.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(U.mT @ U, torch.eye(dimension, dtype=U.dtype), atol=1e-9)
    assert torch.allclose(inside, torch.diag_embed(strength), atol=1e-8) and bool((strength.diff() <= 0).all())
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=U.dtype, generator=torch.Generator().manual_seed(0))).Q
    assert torch.allclose(node(v @ turn.mT), turn @ U, atol=1e-7)


def test_frames_that_say_nothing() -> None:
    still = torch.zeros(2, 6, 4, dtype=torch.float64, requires_grad=True)
    u = RankPooling(6, 4)(still)
    assert u.abs().max() < 1e-9 and bool(torch.autograd.grad(u.sum(), still)[0].isfinite().all())
    U = SubspacePooling(6, 4, 2)(still.detach())  # every subspace is as good
    assert torch.allclose(U.mT @ U, torch.eye(2, dtype=U.dtype), atol=1e-8)


@pytest.mark.parametrize(
    "build",
    [
        lambda: RankPooling(0, 2), lambda: RankPooling(2, 2, C=0.0), lambda: RankPooling(2, 2, epsilon=float("nan")),
        lambda: SubspacePooling(3, 2, 3), lambda: SubspacePooling(3, 2, 1, C=-1.0),
        lambda: SubspacePooling(3, 2, 1, margin=-1.0), lambda: SubspacePooling(3, 2, 1, starts=0),
    ],
)  # fmt: skip
def test_bad_declarations(build) -> None:
    with pytest.raises(ddn.DeclarationError):
        build()


def test_sequence_of_another_length_is_refused() -> None:
    with pytest.raises(ddn.InputError, match="v must be"):
        SubspacePooling(3, 2, 1)(torch.zeros(2, 4, 2))
    with pytest.raises(ddn.InputError):
        RankPooling(3, 2)(torch.zeros(2, 4, 2))

"""Soft greedy choice: the greedy algorithm and exhaustive search, the multilinear extension, limits, bad input."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx.nodes import SoftGreedy
from ddn_cvx.nodes.summaries import coverage, gains


def similarities(batch: int, points: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, points, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(s: torch.Tensor, chosen: tuple[int, ...]) -> torch.Tensor:
    return s[..., list(chosen)].amax(-1).mean(-1)


def test_within_the_bound_of_the_best_of_all_sets() -> None:
    s, k = similarities(20, 9, 8) ** 4, 3
    best = torch.stack([value(s, chosen) for chosen in combinations(range(8), k)]).amax(0)
    y = SoftGreedy(8, k, temperature=1e-6)(s)
    assert torch.allclose(y, y.round(), atol=1e-9) and bool((y.sum(-1).round() == k).all())
    assert bool((coverage(s, y) >= (1 - torch.exp(torch.tensor(-1.0))) * best).all())
    soft = SoftGreedy(8, k, temperature=0.02)(s)
    chosen = torch.zeros_like(soft).scatter(-1, soft.topk(k).indices, 1.0)
    assert bool((coverage(s, chosen) >= (1 - torch.exp(torch.tensor(-1.0))) * best).all())


def test_at_low_temperature_it_is_the_greedy_algorithm() -> None:
    s = similarities(5, 12, 7)
    for one, y in zip(s, SoftGreedy(7, 3, temperature=1e-7)(s), strict=True):
        chosen: tuple[int, ...] = ()
        for _ in range(3):
            rest = [j for j in range(7) if j not in chosen]
            chosen = (*chosen, max(rest, key=lambda j: float(value(one, (*chosen, j)))))
        assert sorted(chosen) == (y > 0.5).nonzero().flatten().tolist()


def test_the_extension_is_the_mean_over_random_sets() -> None:
    s, y = similarities(2, 4, 5), torch.tensor([[0.2, 0.0, 1.0, 0.7, 0.5], [0.1, 0.9, 0.3, 0.0, 0.4]], dtype=torch.float64)
    mean = torch.zeros(2, dtype=torch.float64)
    for size in range(1, 6):
        for chosen in combinations(range(5), size):
            inside = torch.zeros(5, dtype=torch.bool)
            inside[list(chosen)] = True
            mean += torch.where(inside, y, 1 - y).prod(-1) * value(s, chosen)
    assert torch.allclose(coverage(s, y), mean)
    for j in range(5):
        certain = torch.where(torch.arange(5) == j, 1.0, y)
        assert torch.allclose(gains(s, y)[:, j], coverage(s, certain) - coverage(s, y))


def test_choosing_all_batches_and_equal_elements() -> None:
    s = similarities(6, 4, 3)
    assert torch.allclose(SoftGreedy(3, 3)(s), torch.ones(6, 3, dtype=torch.float64))
    node = SoftGreedy(3, 1, temperature=0.3)
    assert torch.allclose(node(s.reshape(2, 3, 4, 3)).reshape(6, 3), node(s), atol=1e-9)
    assert torch.allclose(node(s[0]), node(s)[0], atol=1e-9)
    assert torch.allclose(node(torch.ones(4, 3)), torch.full((3,), 1 / 3), atol=1e-6)


def test_steps_one_by_one_are_the_choice_of_many() -> None:
    s = similarities(5, 7, 6)
    one, chosen = SoftGreedy(6, 1, temperature=0.05), torch.zeros(5, 6, dtype=torch.float64)
    for _ in range(3):
        chosen = one(s, chosen)
    assert torch.allclose(chosen, SoftGreedy(6, 3, temperature=0.05)(s), atol=1e-9)
    assert torch.allclose(one(s, chosen[0])[0], one(s, chosen)[0], atol=1e-9)
    assert torch.allclose(one(s[0], chosen)[0], one(s, chosen)[0], atol=1e-9)


def test_bad_arguments_and_input_are_refused() -> None:
    for arguments, word in (((3, 0), "k must"), ((3, 4), "k must"), ((3, 1, 0.0), "temperature")):
        with pytest.raises(ddn.DeclarationError, match=word):
            SoftGreedy(*arguments)
    for s, word in (
        (torch.ones(2, 4), "points"),
        (torch.ones(3), "points"),
        (torch.ones(0, 3), "point"),
        (-torch.ones(2, 3), "negative"),
    ):
        with pytest.raises(ddn.InputError, match=word):
            SoftGreedy(3, 1)(s)
    for chosen, word in (
        (torch.zeros(2), "chosen must be"),
        (torch.tensor([0.5, -0.5, 0.0]), "between"),
        (torch.tensor([1.0, 1.0, 0.5]), "room"),
        (torch.tensor([float("nan"), 0.0, 0.0]), "between"),
    ):
        with pytest.raises(ddn.InputError, match=word):
            SoftGreedy(3, 1)(torch.ones(2, 3), chosen)

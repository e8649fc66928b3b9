"""Checks of shapes and values: what is let through, what is refused, and what they do where values cannot be looked at."""

from __future__ import annotations

import pytest
import torch

from ddn_cvx import InputError
from ddn_cvx.nodes.checks import check_shapes, check_values


def test_letters_stand_for_one_size() -> None:
    x = torch.zeros(7, 5, 2)
    check_shapes(x=(x, ("N", 2)), w=(torch.zeros(5), ("N",)), y=(torch.zeros(3, 5, 4), ("N", "d")))
    for given, message in (
        ({"x": (x, ("N", 3))}, r"x must be \(\*batch, N, 3\), got \(7, 5, 2\)"),
        ({"x": (x, ("N", 2)), "w": (torch.zeros(4), ("N",))}, r"w must be \(\*batch, 5\), got \(4,\)"),
        ({"x": (torch.zeros(2), ("N", 2))}, r"x must be \(\*batch, N, 2\), got \(2,\)"),
        ({"x": (torch.zeros(0, 2), ("N", 2))}, r"got \(0, 2\)"),
    ):
        with pytest.raises(InputError, match=message):
            check_shapes(**given)


def test_bad_values_raise_and_are_nan_inside_vmap() -> None:
    def checked(w: torch.Tensor) -> torch.Tensor:
        return check_values(w, ~(w < 0), "w must not be negative.")

    good, bad = torch.tensor([[1.0, 0.0], [2.0, torch.nan]]), torch.tensor([[1.0, -1.0], [2.0, 3.0]])
    assert checked(good) is good
    with pytest.raises(InputError, match="must not be negative"):
        checked(bad)
    found = torch.vmap(checked)(bad)
    assert torch.equal(found.isnan(), bad < 0) and torch.equal(found[1], bad[1])

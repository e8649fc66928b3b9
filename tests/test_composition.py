"""Nodes inside the objectives of nodes: derivatives against the same problems solved without the package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import ddn_cvx as ddn

EXAMPLES = Path(__file__).parents[1] / "examples"
POINT = torch.tensor([[0.8, 0.5]], dtype=torch.float64)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The script, imported."""
    spec = importlib.util.spec_from_file_location("bilevel_composition", EXAMPLES / "bilevel_composition.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["bilevel_composition"] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


def inside(inner: ddn.DeclarativeLayer) -> ddn.DeclarativeLayer:
    """The node whose objective calls another."""
    return ddn.DeclarativeLayer(
        ddn.TorchProblem((2,), lambda u, a: (u - a).square().sum() + inner(u).square().sum(), parameters=[(2,)])
    )


@pytest.mark.parametrize("name", ["ball in a circle", "network, circle, quadratic program in a row"])
def test_against_the_problem_solved_alone(example: ModuleType, name: str) -> None:
    assert max(example.errors(example.compositions()[name](), POINT)) < 1e-8


@pytest.mark.parametrize("name", ["ball", "halfplane"])
def test_second_derivatives_of_a_node_that_contains_a_node(example: ModuleType, name: str) -> None:
    layer = inside(getattr(example, name)())
    a = POINT.clone().requires_grad_()
    assert gradcheck(layer, (a,))
    assert gradgradcheck(layer, (a,), atol=1e-5)


def test_transforms_of_a_node_that_contains_a_node(example: ModuleType) -> None:
    layer = inside(example.ball())
    points = torch.cat((POINT, 2 * POINT))
    each = torch.func.vmap(torch.func.jacrev(layer))(points)
    forward = torch.func.vmap(torch.func.jacfwd(layer))(points)
    torch.testing.assert_close(each, forward, rtol=1e-9, atol=1e-9)
    # Beyond the ball |w| = 1/2, so that the objective of the outer node does not depend on the inner one.
    torch.testing.assert_close(each[1], torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-9)


INNER = {
    "fixed point": lambda **given: ddn.FixedPoint((2,), lambda w, u: 0.5 * w.tanh() + u, **given),
    "root": lambda **given: ddn.Root((2,), lambda w, u: w + w**3 - u, **given),
    "problem": lambda **given: ddn.TorchProblem((2,), lambda w, u: (w - u).square().sum() + w.pow(4).sum(), **given),
}


@pytest.mark.parametrize("outer", [ddn.TorchProblem, ddn.FixedPoint])
@pytest.mark.parametrize("name", INNER)
def test_an_inner_node_without_shapes_is_refused(name: str, outer: Any) -> None:
    """It would take an instance for a batch, also where shapes happen to fit."""

    def around(inner: ddn.DeclarativeLayer) -> Any:
        if outer is ddn.FixedPoint:
            return ddn.DeclarativeLayer(ddn.FixedPoint((2,), lambda u, a: 0.1 * inner(u) + a))
        return ddn.DeclarativeLayer(ddn.TorchProblem((2,), lambda u, a: (u - a - 0.1 * inner(u)).square().sum()))

    with pytest.raises(ddn.DeclarationError, match=r"declare it with parameters=\[shape"):
        around(ddn.DeclarativeLayer(INNER[name]()))(POINT)
    found = around(ddn.DeclarativeLayer(INNER[name](parameters=[(2,)])))(POINT)
    again = ddn.DeclarativeLayer(INNER[name]())(found)  # outside of any function the first dimension is the batch
    torch.testing.assert_close(found, POINT + 0.1 * again, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", INNER)
def test_a_mapped_node_without_shapes_is_refused(name: str) -> None:
    """``torch.func.vmap`` takes a dimension away, and what is left in front need not be a batch."""
    layer, declared = (ddn.DeclarativeLayer(INNER[name](**given)) for given in ({}, {"parameters": [(2,)]}))
    points = torch.cat((POINT, 2 * POINT))
    for transformed in (lambda f: f, torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises(ddn.DeclarationError, match=r"inside torch.func.vmap.*declare it with parameters=\[shape"):
            torch.func.vmap(transformed(layer))(points)
    torch.testing.assert_close(torch.func.vmap(declared)(points), layer(points), rtol=0, atol=1e-8)
    # Forward mode maps over directions, not over inputs.
    jacobian = torch.func.jacfwd(layer)(points)
    torch.testing.assert_close(jacobian[0, :, 0], torch.func.jacfwd(declared)(points[0]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", INNER)
def test_a_mapped_node_may_say_that_its_first_dimension_is_the_batch(name: str) -> None:
    layer = ddn.DeclarativeLayer(INNER[name](parameters="batched"))
    batches = torch.stack((torch.cat((POINT, 2 * POINT)), torch.cat((3 * POINT, POINT))))  # (2, 2, 2)
    each = torch.stack([layer(batch) for batch in batches])
    torch.testing.assert_close(torch.func.vmap(layer)(batches), each, rtol=0, atol=1e-8)
    inside = ddn.TorchProblem((2,), lambda y, x: (y - layer(x.unsqueeze(0))[0]).square().sum(), parameters=[(2,)])
    torch.testing.assert_close(ddn.DeclarativeLayer(inside)(POINT), layer(POINT), rtol=0, atol=1e-6)

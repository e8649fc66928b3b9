"""Every node of the catalogue: its answers, its derivatives, its behaviour on bad input, its example and its page."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import ddn_cvx as ddn
from ddn_cvx.nodes import CATALOGUE, Entry
from ddn_cvx.testing import check_layer, check_node

ROOT = Path(__file__).parents[2]
WITHOUT_VMAP = ("sparse-least-squares", "portfolio", "cut-relaxation")
"""Sparse tensors, and a loop that ends when values say so: their notes say that they are not for ``torch.vmap``."""
every_node = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)


def build(entry: Entry) -> nn.Module:
    torch.manual_seed(0)
    return entry.build()


def sample(entry: Entry, batch: int = 3, seed: int = 0) -> tuple[torch.Tensor, ...]:
    return entry.sample(batch, torch.Generator().manual_seed(seed))


@every_node
def test_answers_and_derivatives(entry: Entry) -> None:
    inputs = sample(entry)
    reference = entry.reference(*inputs) if entry.reference else None
    check_node(build(entry), *inputs, reference=reference, tolerance=entry.tolerance, second_order=entry.second_order)


@every_node
def test_layers_hold_what_they_promise(entry: Entry) -> None:
    node = build(entry)
    if isinstance(node, ddn.DeclarativeLayer):
        check_layer(node, *sample(entry, 2, seed=1), second_order=False)
    else:
        assert any(isinstance(part, ddn.DeclarativeLayer) for part in node.modules()), "no declarative layer inside"


@every_node
def test_nan_stays_in_its_row(entry: Entry) -> None:
    """A NaN in one element raises; with ``on_failure="nan"`` the others keep their answers."""
    node, inputs = build(entry), sample(entry)
    right = [out.detach() for out in tree_leaves(node(*inputs))]
    bad = tuple(t.clone() for t in inputs)
    bad[0][1] = torch.nan
    with pytest.raises(ddn.DeclarativeError):
        node(*bad)
    for part in node.modules():
        if isinstance(part, ddn.DeclarativeLayer):
            part.on_failure = "nan"
    for out, good in zip(tree_leaves(node(*bad)), right, strict=True):
        assert out[1].isnan().any()
        assert torch.allclose(out[[0, 2]], good[[0, 2]], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("entry", [e for e in CATALOGUE.values() if "any size" not in e.tags], ids=lambda entry: entry.name)
def test_wrong_shapes_are_refused(entry: Entry) -> None:
    node, inputs = build(entry), sample(entry)
    wrong = torch.cat((inputs[0], inputs[0]), -1) if inputs[0].ndim > 1 else inputs[0].unsqueeze(-1).expand(-1, 7)
    with pytest.raises(ddn.InputError):
        node(wrong, *inputs[1:])


@every_node
def test_leading_dimensions(entry: Entry) -> None:
    """None, and two, give what one gives."""
    node, inputs = build(entry), sample(entry, 6)
    whole = tree_leaves(node(*inputs))
    for lead, rows in (((2, 3), slice(None)), ((), 4)):
        found = tree_leaves(node(*(t[rows].reshape((*lead, *t.shape[1:])) for t in inputs)))
        for out, right in zip(found, whole, strict=True):
            right = right[rows].reshape((*lead, *right.shape[1:]))
            assert out.shape == right.shape and torch.allclose(out, right, rtol=1e-6, atol=1e-6 + 10 * entry.tolerance)


@pytest.mark.parametrize(
    "entry", [e for e in CATALOGUE.values() if e.name not in WITHOUT_VMAP], ids=lambda entry: entry.name
)
def test_vmap(entry: Entry) -> None:
    node, inputs = build(entry), sample(entry)

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        return sum(out.square().sum() for out in tree_leaves(node(*inputs)))

    for out, right in zip(tree_leaves(torch.vmap(node)(*inputs)), tree_leaves(node(*inputs)), strict=True):
        assert torch.allclose(out, right, rtol=1e-6, atol=1e-6 + 10 * entry.tolerance)
    if entry.kind == "ode":  # the adjoint equation needs all elements to have the same weights
        return
    right = torch.func.grad(loss, tuple(range(len(inputs))))(*inputs)
    for slope, one in zip(torch.vmap(torch.func.grad(loss, tuple(range(len(inputs)))))(*inputs), right, strict=True):
        assert torch.allclose(slope, one, rtol=1e-4, atol=1e-5)


@every_node
def test_is_a_module_like_any_other(entry: Entry) -> None:
    net = nn.Sequential(build(entry))
    assert not net.eval().training and repr(net)
    state, inputs = net.state_dict(), sample(entry)
    out = tree_leaves(net[0](*inputs))
    assert net.state_dict().keys() == state.keys() and not nn.Sequential(build(entry)).load_state_dict(state).missing_keys
    for one, other in zip(tree_leaves(net.double()[0](*inputs)), out, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-10)


@every_node
def test_copies_give_the_same(entry: Entry) -> None:
    node, inputs = build(entry), sample(entry)
    for one, other in zip(tree_leaves(node(*inputs)), tree_leaves(copy.deepcopy(node)(*inputs)), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-10)


@every_node
def test_has_an_example_and_a_page(entry: Entry) -> None:
    assert (ROOT / "examples" / f"{entry.example}.py").exists()
    page = ROOT / "docs" / "gallery" / f"{entry.example}.md"
    assert entry.name in page.read_text(encoding="utf-8"), f"{page.name} does not name the node"


def test_names_are_unique() -> None:
    from ddn_cvx.nodes.catalogue import ENTRIES

    assert len(CATALOGUE) == len(ENTRIES)

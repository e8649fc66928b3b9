"""Contacts: what collisions conserve, rolling, resting, discs side by side, and bad input."""

from __future__ import annotations

import pytest
import torch

import ddn_cvx as ddn
from ddn_cvx.nodes import ContactStep, Discs

F64 = torch.float64


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


@pytest.mark.parametrize("friction", [0.0, 0.3])
def test_collision_conserves_momentum_and_does_not_gain_energy(friction: float) -> None:
    world, mass = Discs(2, 0.2, 2.0, gravity=0.0), numbers(1.0, 3.0)
    at = torch.tensor([[0.8, 1.0], [1.15, 1.15]], dtype=F64)
    v = torch.tensor([[1.0, 0.2, -3.0], [-1.0, 0.0, 0.0]], dtype=F64)
    _, after = world(at, v, mass, numbers(friction)[0], numbers(1.0)[0])
    inertia = torch.stack((mass, mass, 0.02 * mass), -1)
    before, now = ((inertia * u.square()).sum() for u in (v, after))
    assert torch.allclose(mass @ v[:, :2], mass @ after[:, :2], atol=1e-10)
    assert not torch.allclose(v, after, atol=0.1)
    assert now == pytest.approx(before.item(), abs=1e-9) if friction == 0 else now < before - 1e-3


@pytest.mark.parametrize("wall", ["left", "right", "floor"])
def test_discs_turn_back_where_the_wall_is(wall: str) -> None:
    """At 2 m/s, half of which is left: within a step of 0.02 s of touching it."""
    toward, near = {
        "left": ((-2.0, 0.0), (0.25, 1.0)),
        "right": ((2.0, 0.0), (1.75, 1.0)),
        "floor": ((0.0, -2.0), (1.0, 0.25)),
    }[wall]
    world, at, v = Discs(1, 0.2, 2.0, gravity=0.0), numbers(*near).view(1, 2), numbers(*toward, 0.0).view(1, 3)
    places = []
    for _ in range(5):
        at, v = world(at, v, numbers(1.0), numbers(0.0)[0], numbers(0.5)[0])
        places.append(at)
    assert torch.allclose(v[0, :2], -0.5 * numbers(*toward), atol=1e-9)
    deepest = (torch.stack(places)[:, 0] - numbers(*near)).norm(dim=-1).max().item()
    assert 0.05 <= deepest <= 0.09


def test_disc_at_rest_stays_and_a_sliding_one_ends_rolling() -> None:
    world, at = Discs(1, 0.2, 50.0), torch.tensor([[[1.0, 0.2]], [[1.0, 0.2]]], dtype=F64)
    v = torch.tensor([[[0.0, 0.0, 0.0]], [[3.0, 0.0, 0.0]]], dtype=F64)
    for _ in range(60):
        at, v = world(at, v, numbers(1.0), numbers(0.3)[0], numbers(0.0)[0])
    assert torch.allclose(at[0], torch.tensor([[1.0, 0.2]], dtype=F64), atol=1e-9)
    assert v[1, 0, 0].item() == pytest.approx(2.0, abs=1e-6)  # two thirds of the speed are left
    assert v[1, 0, 2].item() == pytest.approx(-10.0, abs=1e-5)


def test_derivative_of_a_film_with_many_contacts_is_that_of_differences() -> None:
    world = Discs(3, 0.2, 2.0)
    generator = torch.Generator().manual_seed(1)
    at = torch.tensor([[0.5, 0.6], [1.0, 1.1], [1.5, 0.6]], dtype=F64)
    v = torch.randn(3, 3, generator=generator, dtype=F64) * numbers(2.0, 2.0, 5.0)

    def end(parameters: torch.Tensor) -> torch.Tensor:
        here, moving = at, v
        for _ in range(30):
            mass = torch.cat((parameters.new_ones(1), parameters[:2]))
            here, moving = world(here, moving, mass, parameters[2], parameters[3])
        return here.square().sum()

    parameters = numbers(2.0, 0.6, 0.25, 0.7).requires_grad_()
    (slope,) = torch.autograd.grad(end(parameters), parameters)
    with torch.no_grad():
        steps = 1e-6 * torch.eye(4, dtype=F64)
        differences = torch.stack([end(parameters + s) - end(parameters - s) for s in steps]) / 2e-6
    assert differences.abs().min() > 1e-3 and torch.allclose(slope, differences, rtol=1e-4, atol=1e-5)


def test_bad_declarations_and_shapes() -> None:
    with pytest.raises(ddn.DeclarationError, match="contacts"):
        ContactStep(3, 0)
    with pytest.raises(ddn.DeclarationError, match="radius"):
        Discs(2, 0.0, 1.0)
    with pytest.raises(ddn.InputError, match="mass must be"):
        Discs(2, 0.2, 2.0)(torch.ones(2, 2), torch.zeros(2, 3), torch.ones(3), torch.zeros(()), torch.zeros(()))
    with pytest.raises(ddn.InputError, match="normals must be"):
        one = torch.ones(2)
        ContactStep(2, 1)(one, one, torch.ones(2, 2), torch.ones(1, 2), torch.ones(1), torch.ones(()))

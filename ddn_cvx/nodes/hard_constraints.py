"""Hard constraints on what a network returns: the nearest point at which they hold exactly.

    y = argmin_u 1/2 |u - x|^2   subject to   h(u; c) = 0

Márquez-Neila, Salzmann & Fua (2017) impose constraints in training, where they hold on average; as the last node of the
network they hold for each output. ``BoneLengths`` is the constraint of human poses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddn_cvx import DeclarationError, DeclarativeLayer, TorchProblem
from ddn_cvx.nodes.checks import check_shapes, check_values
from ddn_cvx.nodes.entry import Entry, Inputs


class HardConstraint(DeclarativeLayer[Tensor]):
    """``(x (*batch, n), c (*batch, k)) -> y (*batch, n)``, the point near x with ``h(y, c) = 0``.

    Newton's method for the optimality conditions starts at x. Where several points are nearest, one of them is returned.

    Parameters
    ----------
    n : int
        Size of a point.
    constraint : callable
        h of one instance: ``h(y (n,), c (k,))`` -> a tensor of any shape. It may be a module: its weights are parameters.
    parameters : int
        k.

    Raises
    ------
    DeclarationError
        n below one, or a constraint that is not callable.
    SolverError
        No point with h = 0 was found.

    Examples
    --------
    >>> on_circle = HardConstraint(2, lambda y, r: y.square().sum() - r.square(), 1)
    >>> on_circle(torch.tensor([3.0, 4.0]), torch.tensor([10.0]))
    tensor([6., 8.])
    """

    def __init__(self, n: int, constraint: Callable[[Tensor, Tensor], Tensor], parameters: int):
        if n < 1:
            raise DeclarationError(f"n must be at least 1, got {n!r}.")
        if not callable(constraint):
            raise DeclarationError(f"constraint must be callable, got {type(constraint).__name__}.")
        super().__init__(
            TorchProblem(
                (n,),
                objective=lambda y, x, c: 0.5 * (y - x).square().sum(),
                equality=lambda y, x, c: constraint(y, c),
                initial=lambda x, c: x,
                parameters=[(n,), (parameters,)],
            )
        )


class BoneLengths(nn.Module):
    """``(joints (*batch, J, d), lengths (*batch, E)) -> (*batch, J, d)``, the joints moved least so that bone e, from
    ``bones[e][0]`` to ``bones[e][1]``, has length ``lengths[e] > 0``.

    Parameters
    ----------
    bones : sequence of (int, int)
        The joints at the two ends of each bone. No cycles, or lengths that fit them.
    dimension : int
        d, 2 or 3 as a rule.

    Raises
    ------
    DeclarationError
        No bones, a bone from a joint to itself, or a negative joint.
    InputError
        Inputs of other shapes, or a length that is not above zero.
    SolverError
        The lengths are impossible, or a bone of the input has length zero, which leaves its direction open.

    Examples
    --------
    >>> joints = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    >>> BoneLengths([(0, 1)], 2)(joints, torch.tensor([1.0]))
    tensor([[0.0000, 0.5000],
            [0.0000, 1.5000]])
    """

    def __init__(self, bones: Sequence[tuple[int, int]], dimension: int = 3):
        super().__init__()
        if not bones or any(a == b or min(a, b) < 0 for a, b in bones):
            raise DeclarationError(f"bones must be pairs of different joints, counted from 0, got {list(bones)!r}.")
        count = 1 + max(max(bone) for bone in bones)
        self.joints, self.bones, self.dimension = count, len(bones), dimension
        tails, heads = [a for a, _ in bones], [b for _, b in bones]

        def excess(y: Tensor, lengths: Tensor) -> Tensor:
            at = y.view(count, dimension)
            return 0.5 * ((at[heads] - at[tails]).square().sum(-1) - lengths.square())

        self.layer = HardConstraint(count * dimension, excess, len(bones))

    def forward(self, joints: Tensor, lengths: Tensor) -> Tensor:
        """The joints, in their dtype."""
        check_shapes(joints=(joints, (self.joints, self.dimension)), lengths=(lengths, (self.bones,)))
        lengths = check_values(lengths, ~(lengths <= 0), "lengths must be above 0.")
        found: Tensor = self.layer(joints.flatten(-2), lengths)
        return found.unflatten(-1, (self.joints, self.dimension))


# ---------------------------------------------------------------- the catalogue's entries

_ARM = ((0, 1), (1, 2), (1, 3))


def _sample(batch: int, generator: torch.Generator) -> Inputs:
    """Joints whose bones are up to a third too long or too short."""
    steps = torch.randn(batch, 3, 2, generator=generator, dtype=torch.float64)
    unit = steps / steps.norm(dim=-1, keepdim=True)
    root, elbow = torch.zeros_like(unit[:, 0]), unit[:, 0]
    joints = torch.stack((root, elbow, elbow + unit[:, 1], elbow + unit[:, 2]), 1)
    return joints, 0.7 + 0.6 * torch.rand(batch, 3, generator=generator, dtype=torch.float64)


def _project(joints: Tensor, lengths: Tensor) -> Tensor:
    """Sequential quadratic programming by scipy, which for a half square is Gauss and Newton's method on the constraints."""
    from scipy.optimize import minimize

    tails, heads = [a for a, _ in _ARM], [b for _, b in _ARM]
    found = []
    for x, wanted in zip(joints.numpy(), lengths.numpy(), strict=True):
        shape = x.shape

        def cost(u: Any, x: Any = x) -> Any:
            return 0.5 * ((u - x.ravel()) ** 2).sum(), u - x.ravel()

        def excess(u: Any, wanted: Any = wanted, shape: Any = shape) -> Any:
            at = u.reshape(shape)
            return ((at[heads] - at[tails]) ** 2).sum(-1) - wanted**2

        rule = {"type": "eq", "fun": excess}
        answer = minimize(cost, x.ravel(), jac=True, method="SLSQP", constraints=rule, options={"ftol": 1e-16})
        found.append(torch.from_numpy(answer.x.reshape(shape)))
    return torch.stack(found)


ENTRIES = (
    Entry(
        name="bone-lengths",
        title="the nearest pose with bones of given lengths",
        kind="nonlinear",
        source="Márquez-Neila, Salzmann & Fua, 2017",
        build=lambda: BoneLengths(_ARM, 2),
        sample=_sample,
        reference=_project,
        example="16_hard_constraints",
        tolerance=1e-6,
        tags=frozenset({"projection", "pose"}),
    ),
)

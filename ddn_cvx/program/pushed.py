"""A nonlinear program with a linear term added to its objective: where its solution goes if it is pushed."""

from __future__ import annotations

from torch import Tensor

from ddn_cvx.program.nonlinear import NonlinearProgram, Theta


def pushed(program: NonlinearProgram, theta: Theta, push: Tensor) -> tuple[NonlinearProgram, Theta]:
    """``program`` with ``push . y`` in its objective, and its parameters: ``theta``, then ``push`` (B, n)."""

    def own(wider: Theta) -> Theta:
        return Theta(wider.tensors[:-1], wider.batched[:-1])

    def evaluate(y: Tensor, wider: Theta) -> tuple[Tensor, Tensor, Tensor]:
        f, h, g = program.values(y, own(wider))
        return f + (wider.tensors[-1] * y).sum(-1), h, g

    def box(wider: Theta) -> tuple[Tensor, Tensor]:
        return program.bounds(own(wider), wider.tensors[-1])

    bounds = box if program.has_bounds else None
    new = NonlinearProgram(
        program.n, program.p, program.m, evaluate, bounds, visible=program.visible, matrices=program.is_dense
    )
    return new, Theta((*theta.tensors, push), (*theta.batched, True))

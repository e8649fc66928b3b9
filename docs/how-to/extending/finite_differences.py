"""An adjoint that knows nothing of the mathematics: it solves again at parameters that are a
little larger and a little smaller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddn_cvx.extend import (
    ConicData,
    NonlinearAdjoint,
    NonlinearSolve,
    Solve,
    Solved,
    State,
    Theta,
)

Solution = tuple[Tensor, ...]
Flags = tuple[bool, ...]
Again = Callable[[tuple[Tensor, ...]], Solution]


@dataclass(frozen=True)
class FiniteDifferences(NonlinearAdjoint):
    """Reverse mode of first order: two solves of the batch for each number of an element."""

    step: float = 1e-5
    """Added to and subtracted from each number (default 1e-5)."""

    def attach(
        self, solve: Solve, data: ConicData, extra: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        numbers = ConicData(*(t.detach() for t in data))
        *found, ok = solve(numbers, *(t.detach() for t in extra))

        def again(tensors: tuple[Tensor, ...]) -> Solution:
            return solve.again(ConicData(*tensors))[:2]

        x, v = _differentiable(again, self.step, (True,) * 4, ok, tuple(found), data)
        return x, v, ok

    def attach_nonlinear(self, solve: NonlinearSolve, theta: Theta, batch: int) -> Solved:
        solved = solve(theta.detach(), batch)

        def again(tensors: tuple[Tensor, ...]) -> Solution:
            there, none = Theta(tensors, theta.batched), torch.zeros_like(solved.answer.y)
            return tuple(solve.perturbed(there, none, solved.answer)[0])

        found, flags = tuple(solved.answer), theta.batched
        moving = _differentiable(again, self.step, flags, solved.ok, found, theta.tensors)
        state = State(*moving)
        return solved._replace(state=state, answer=state)


def _differentiable(
    again: Again, step: float, batched: Flags, ok: Tensor, found: Solution, tensors: Solution
) -> Solution:
    out: Solution = _Differences.apply(again, step, batched, ok, found, *tensors)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return out


class _Differences(torch.autograd.Function):
    """What has been found, with the derivatives of ``again`` with respect to tensors that
    belong to an element each (``batched``) or to all of them."""

    @staticmethod
    def forward(
        ctx: Any,
        again: Again,
        step: float,
        batched: Flags,
        ok: Tensor,
        found: Solution,
        *tensors: Tensor,
    ) -> Solution:
        ctx.again, ctx.step, ctx.batched = again, step, batched
        ctx.save_for_backward(ok, *tensors)
        return tuple(t.clone() for t in found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        ok, *tensors = ctx.saved_tensors
        gradients: list[Tensor | None] = []
        for i, (tensor, own) in enumerate(zip(tensors, ctx.batched, strict=True)):
            if not ctx.needs_input_grad[5 + i]:
                gradients.append(None)
                continue
            flat = tensor.reshape(len(tensor), -1) if own else tensor.reshape(1, -1)
            slopes = torch.zeros_like(flat)
            for k in range(flat.shape[1]):
                shift = torch.zeros_like(flat).index_fill(1, torch.tensor(k), ctx.step)
                up, down = (ctx.again(_moved(tensors, i, sign * shift)) for sign in (1, -1))
                terms = [
                    (g * (a - b)).sum(-1) / (2 * ctx.step)
                    for g, a, b in zip(cotangents, up, down, strict=True)
                ]
                slope = torch.where(ok, sum(terms), 0.0)
                slopes[:, k] = slope if own else slope.sum()
            gradients.append(slopes.reshape(tensor.shape))
        return (None, None, None, None, None, *gradients)


def _moved(tensors: list[Tensor], i: int, shift: Tensor) -> Solution:
    return (*tensors[:i], tensors[i] + shift.reshape(tensors[i].shape), *tensors[i + 1 :])

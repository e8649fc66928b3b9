"""What can be found out about a user's functions by running them once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddn_cvx.errors import DeclarationError
from ddn_cvx.program.nonlinear import Evaluate, Theta

STEPS = {"round", "floor", "ceil", "trunc", "sign"}
"""Operations with a zero derivative."""


def few(theta: Theta) -> tuple[Theta, int]:
    """Two elements of a batch, or as many as there are, and their number."""
    own = [t for t, of_batch in zip(theta.tensors, theta.batched, strict=True) if of_batch]
    count = min(len(own[0]), 2) if own else 1
    device = theta.tensors[0].device if theta.tensors else None
    return theta.detach().take(torch.arange(count, device=device)), count


def probe(evaluate: Evaluate, theta: Theta, y: Tensor, batched: bool) -> tuple[Tensor, Tensor]:
    """Run the functions once, at ``y`` (B, n); returns the equalities and inequalities ``(B, .)``.

    Raises
    ------
    DeclarationError
        They cannot be evaluated or differentiated, do not depend on the variable, or mix the elements of a batch.
    """
    y = y.detach().requires_grad_()
    with torch.enable_grad():
        try:
            f, h, g = evaluate(y, theta)
            torch.func.grad(lambda y: sum(t.sum() for t in evaluate(y, theta)))(y.detach())
        except RuntimeError as error:
            raise DeclarationError(
                f"The functions of the problem cannot be evaluated: {error}\nFunctions of one instance are vmapped: "
                "write them without .item(), .numpy(), data-dependent control flow and in-place writes, or write them "
                "for a batch and pass batched=True. An autograd.Function needs setup_context."
            ) from error
        for name, value in (("objective", f), ("equality", h), ("inequality", g)):
            if value.numel():
                _require_derivative(name, value, y)
    if batched:
        _require_independent(evaluate, theta, y)
    return h, g


def _require_independent(evaluate: Evaluate, theta: Theta, y: Tensor) -> None:
    """Two different rows together must give what they give alone."""
    row = theta.take(torch.zeros(1, dtype=torch.int64))
    other = Theta(tuple(t * 1.1 + 0.01 if own else t for t, own in zip(row.tensors, row.batched, strict=True)), row.batched)
    pairs = zip(row.tensors, other.tensors, row.batched, strict=True)
    both = Theta(tuple(torch.cat((a, b)) if own else a for a, b, own in pairs), row.batched)
    y = y.detach()[:1]
    try:
        together, alone = evaluate(torch.cat((y, 1.1 * y + 0.01)), both), evaluate(y, row)
    except RuntimeError:  # the second row left the domain of the functions
        return
    for name, a, b in zip(("objective", "equality", "inequality"), together, alone, strict=True):
        if not torch.allclose(a[:1], b, rtol=1e-6, atol=1e-9, equal_nan=True):
            raise DeclarationError(f"{name} mixes the elements of the batch: each may only depend on its own row.")


def _require_derivative(name: str, value: Tensor, y: Tensor) -> None:
    """Refuse what does not depend on the variable, or only through steps, whose derivative is zero wherever it exists."""
    hint = "Compute it from its first argument by differentiable torch operations, without .detach(), .item() or numpy."
    if not value.requires_grad:
        raise DeclarationError(f"{name} does not depend on the variable. {hint}")
    (slope,) = torch.autograd.grad(value.sum(), y, retain_graph=True, materialize_grads=True)
    steps = sorted(_operations(value) & STEPS)
    if steps and not bool(slope.any()):
        raise DeclarationError(
            f"{name} has no derivative: it depends on the variable through {', '.join(steps)} alone. {hint}"
        )


def _operations(value: Tensor) -> set[str]:
    """The names of the operations that a result comes from."""
    found: dict[Any, str] = {}
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = node.name().removesuffix("0").removesuffix("Backward").lower()
            waiting += [inner for inner, _ in node.next_functions]
    return set(found.values())

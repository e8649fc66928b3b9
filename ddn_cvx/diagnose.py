"""What is special about the answers of a layer, and what to do about it: residuals, active constraints, conditioning, flags,
and the gradient held against differences of the layer itself."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ddn_cvx.errors import DeclarativeError
from ddn_cvx.solution import Regularity, Solution, Status

ILL_CONDITIONED = 1e10
STEP = 1e-6
ACCEPTED = 1e-4
"""Relative difference of a gradient from finite differences that is put down to rounding."""


@dataclass(frozen=True)
class Diagnosis:
    """What ``layer.diagnose()`` reports, for each element of the batch, flat; ``print`` shows a table."""

    solution: Solution
    """Status, residuals (primal, dual, gap), multipliers (``dual``) and regularity flags."""
    active: Tensor
    """Which inequality rows of the program (bounds last, if it has them) hold with equality, ``(B, rows)`` bool."""
    condition: Tensor
    """Condition number of the KKT matrix (of the Jacobian, for equations) in units of its rows, ``(B,)``; infinite where it
    is singular to rounding, NaN where it is not formed or the element is not solved."""
    slope: Tensor
    """Derivative of a random combination of outputs along a random direction of the parameters, by the layer, ``(B,)``."""
    forward_difference: Tensor
    """The same by a difference to one side, ``(B,)``."""
    backward_difference: Tensor
    """The same by a difference to the other side; the two differ at a kink."""
    note: str
    """Why there is no check of the gradient, if there is none."""

    @property
    def gradient_error(self) -> Tensor:
        """``|slope - central difference|``, relative, ``(B,)``; NaN where there is no difference."""
        central = (self.forward_difference + self.backward_difference) / 2
        return (self.slope - central).abs() / (1 + torch.maximum(self.slope.abs(), central.abs()))

    @property
    def kink(self) -> Tensor:
        """Where the differences to both sides differ, ``(B,)`` bool."""
        forth, back = self.forward_difference, self.backward_difference
        return (forth - back).abs() > 10 * ACCEPTED * (1 + torch.maximum(forth.abs(), back.abs()))

    @property
    def advice(self) -> list[list[str]]:
        """For each element what is wrong or special, and what to do; empty where there is nothing."""
        parts = zip(
            self.solution.statuses,
            self.solution.regularities,
            self.condition.tolist(),
            self.gradient_error.tolist(),
            self.kink.tolist(),
            strict=True,
        )
        return [list(_advice(*part)) for part in parts]

    @property
    def healthy(self) -> bool:
        """Whether there is nothing to say about any element."""
        return not any(self.advice)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=125)
        console.print(self.__rich__())
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title="diagnosis" + (f" ({self.note})" if self.note else ""), title_justify="left")
        for heading in (
            "element",
            "status",
            "primal",
            "dual",
            "gap",
            "active",
            "condition",
            "flags",
            "gradient",
            "what to do",
        ):
            table.add_column(heading, overflow="fold")
        residuals = (self.solution.primal_residual, self.solution.dual_residual, self.solution.gap)
        columns = zip(
            self.solution.statuses,
            *(r.reshape(-1).tolist() for r in residuals),
            self.active.sum(-1).tolist(),
            self.condition.tolist(),
            self.solution.regularities,
            self.gradient_error.tolist(),
            self.advice,
            strict=True,
        )
        for k, (status, primal, dual, gap, active, condition, flags, error, advice) in enumerate(columns):
            numbers = (
                f"{primal:.0e}",
                f"{dual:.0e}",
                f"{gap:.0e}",
                f"{active} of {self.active.shape[1]}",
                f"{condition:.0e}",
            )
            names = ", ".join(flag.name or "" for flag in flags) or "-"
            table.add_row(str(k), status.name, *numbers, names, f"off by {error:.0e}", "; ".join(advice) or "nothing")
        return table


def _advice(status: Status, flags: Regularity, condition: float, error: float, kink: bool) -> Iterator[str]:
    if status is not Status.SOLVED:
        yield status.remedy
        return
    if Regularity.SINGULAR_HESSIAN in flags:
        yield "the solution is not unique: add a small quadratic term"
    if Regularity.RANK_DEFICIENT in flags:
        yield "active constraints depend on each other: drop redundant ones (multipliers are not unique)"
    if Regularity.WEAKLY_ACTIVE in flags or kink:
        yield "a kink: no unique derivative here; choose with Implicit(weakly_active=...) or use Smoothed()"
    if Regularity.SINGULAR_JACOBIAN in flags:
        yield "the equations do not determine the answer: add an equation or start elsewhere"
    if condition > ILL_CONDITIONED and not flags:
        yield "badly conditioned: rescale the parameters or regularise"
    if error > ACCEPTED and not kink and not flags:
        yield "the gradient is not that of the answers: a detached dependence, several solutions, or an inexact adjoint"


def diagnose(
    call: Callable[..., Any],
    solve: Callable[..., Solution],
    inspect: Callable[[Sequence[Any], Mapping[str, Any], Solution], tuple[Tensor, Tensor]],
    dims: Sequence[int],
    args: Sequence[Any],
    named: Mapping[str, Any],
    seed: int,
) -> Diagnosis:
    """See ``DeclarativeLayer.diagnose``.

    Parameters
    ----------
    call, solve
        Those of the layer, without raising for elements that fail.
    inspect
        The active rows and the condition numbers.
    dims
        How many dimensions one instance of each parameter has, in the order of the leaves of ``args`` and ``named``.
    """
    leaves, tree = pytree.tree_flatten((list(args), dict(named)))
    precise = [t.detach().to(torch.complex128 if t.is_complex() else torch.float64) for t in leaves]
    with torch.no_grad():
        exact, names = pytree.tree_unflatten(precise, tree)
        solution = solve(*exact, **names)
        active, condition = inspect(exact, names, solution)
    batch, count = solution.status.shape, solution.status.numel()
    nothing = torch.full((count,), torch.nan, dtype=torch.float64, device=solution.status.device)
    if not count or not leaves or any(t.layout != torch.strided or t.is_complex() for t in precise):
        note = "gradient not checked: there is nothing to vary" if not leaves else "gradient not checked"
        return Diagnosis(solution, active, condition, nothing, nothing, nothing, note)
    precise = [t.expand((*batch, *t.shape[t.ndim - d :])).contiguous() for t, d in zip(precise, dims, strict=True)]
    generator = torch.Generator().manual_seed(seed)

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)

    directions = [random(t) for t in precise]
    weights: list[Tensor] = []

    def combined(points: Sequence[Tensor]) -> Tensor:
        """A random combination of the outputs of each element, ``(B,)``."""
        inputs, extra = pytree.tree_unflatten(list(points), tree)
        found = pytree.tree_leaves(call(*inputs, **extra))
        if not weights:
            weights.extend(random(t) for t in found)
        return torch.stack([(w * t).reshape(count, -1).sum(1) for w, t in zip(weights, found, strict=True)]).sum(0)

    def moved(step: float) -> Tensor:
        with torch.no_grad():
            return combined([t + step * d for t, d in zip(precise, directions, strict=True)])

    try:
        points = [t.clone().requires_grad_() for t in precise]
        here = combined(points)
        solved = here.isfinite()
        gradients = torch.autograd.grad(torch.where(solved, here, 0.0).sum(), points, allow_unused=True)
        parts = [(g * d).reshape(count, -1).sum(1) for g, d in zip(gradients, directions, strict=True) if g is not None]
        slope = torch.where(solved, torch.stack([*parts, torch.zeros_like(here)]).sum(0), torch.nan)
        forth, back = (moved(STEP) - here.detach()) / STEP, (here.detach() - moved(-STEP)) / STEP
    except DeclarativeError as error:
        note = f"gradient not checked: {str(error).splitlines()[0]}"
        return Diagnosis(solution, active, condition, nothing, nothing, nothing, note)
    return Diagnosis(solution, active, condition, slope, forth, back, "")


def condition_numbers(matrices: Tensor, solved: Tensor) -> Tensor:
    """After rows were brought to unit size, symmetric ones by both sides; ``(B, k, k) -> (B,)``."""
    if not matrices.shape[-1]:
        return torch.where(solved, 1.0, torch.nan).double()
    safe = torch.where(solved.reshape(-1, 1, 1), matrices, torch.eye(matrices.shape[-1], dtype=matrices.dtype).to(matrices))
    size = safe.abs().amax(-1, keepdim=True)
    values = torch.linalg.svdvals(safe / torch.where(size > 0, size, 1.0))
    found = values[..., 0] / values[..., -1]
    singular = values[..., -1] <= 100 * torch.finfo(values.dtype).eps * values[..., 0]
    return torch.where(solved, torch.where(singular, torch.inf, found), torch.nan)

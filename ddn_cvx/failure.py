"""The error of a call some of whose elements have no solution."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ddn_cvx.errors import DegradedAnswerWarning, SolverError
from ddn_cvx.program.base import ParameterSpec
from ddn_cvx.solution import Status


def raise_failures(
    status: Tensor,
    shape: tuple[int, ...],
    specs: Sequence[ParameterSpec],
    values: Sequence[Tensor],
    cause: BaseException | None = None,
) -> None:
    """Raise ``SolverError`` if an element is not solved.

    Parameters
    ----------
    status : Tensor (B,) int64
    shape : tuple of int
        The leading batch dimensions, with product B.
    specs, values
        The parameters, to name those that hold NaN or infinity.
    cause : BaseException, optional
        What the solver raised.
    """
    wrong = status != int(Status.SOLVED)
    if not bool(wrong.any()):
        return
    failed = [int(i) for i in torch.nonzero(wrong).unbind()]  # not tolist(), which torch 2.6 refuses inside its transforms
    total = len(status)
    codes = [Status(int(status[i])) for i in failed]
    shape = shape if torch.Size(shape).numel() == total else (total,)
    indices = tuple(_unravel(i, shape) for i in failed)
    lines = [f"{len(failed)} of {total} batch elements have no solution."]
    for code in sorted(set(codes)):
        where = [str(index) for index, c in zip(indices, codes, strict=True) if c == code]
        listed = ", ".join(where[:8]) + (f" and {len(where) - 8} more" if len(where) > 8 else "")
        lines.append(f"  {code.name} at {listed or '()'}: {code.remedy}.")
    if Status.INVALID_DATA in codes:
        culprits = [s.name for s, v in zip(specs, values, strict=True) if not bool(torch.isfinite(v).all())]
        lines += [f"  Parameter {name!r} holds NaN or infinity." for name in culprits]
    if cause is not None:
        lines.append(f"  The solver raised {type(cause).__name__}: {cause}")
    lines.append('Pass on_failure="nan" to get NaN for just these elements, or call layer.solve() for the details.')
    raise SolverError("\n".join(lines), tuple(codes), indices) from cause


def warn_of(cause: BaseException | None) -> None:
    """Say what the solver raised where no ``SolverError`` does."""
    if cause is not None:
        message = f"Elements without an answer: the solver raised {type(cause).__name__}: {cause}"
        warnings.warn(message, DegradedAnswerWarning, stacklevel=2)


def _unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    out: list[int] = []
    for size in reversed(shape):
        out.append(index % size)
        index //= size
    return tuple(reversed(out))

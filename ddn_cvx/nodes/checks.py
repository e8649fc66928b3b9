"""What nodes ask of their inputs; an error names the input, what was expected and what came."""

from __future__ import annotations

import torch
from torch import Tensor

from ddn_cvx import InputError


def check_shapes(**given: tuple[Tensor, tuple[int | str, ...]]) -> None:
    """Refuse a tensor that is not ``(*batch, *shape)``, for ``name=(tensor, shape)``.

    A letter in a shape stands for any size from 1, the same one wherever it occurs.

    Raises
    ------
    InputError
        For the first tensor of another shape.

    Examples
    --------
    >>> check_shapes(x=(torch.zeros(5, 2), ("N", 2)), weights=(torch.zeros(4), ("N",)))
    Traceback (most recent call last):
    ddn_cvx.errors.InputError: weights must be (*batch, 5), got (4,).
    """
    sizes: dict[str, int] = {}
    for name, (tensor, shape) in given.items():
        wanted = [sizes.get(size, size) if isinstance(size, str) else size for size in shape]
        last = tensor.shape[-len(shape) :]
        right = (size > 0 if isinstance(want, str) else size == want for size, want in zip(last, wanted, strict=False))
        if len(last) < len(shape) or not all(right):
            raise InputError(f"{name} must be (*batch, {', '.join(map(str, wanted))}), got {tuple(tensor.shape)}.")
        sizes.update((letter, size) for letter, size in zip(shape, last, strict=True) if isinstance(letter, str))


def check_values(tensor: Tensor, good: Tensor, message: str) -> Tensor:
    """The tensor, if all of it is good.

    Parameters
    ----------
    tensor : Tensor
    good : Tensor
        Booleans that broadcast to it. What is NaN should be good: layers say where it is.
    message : str
        Of the error.

    Returns
    -------
    Tensor
        As it was; inside ``torch.vmap``, where one cannot look at values, with NaN where it is not good.

    Raises
    ------
    InputError
        Something is not good.
    """
    try:
        fine = bool(good.all())
    except RuntimeError:  # of vmap
        return torch.where(good, tensor, torch.nan)
    if not fine:
        raise InputError(message)
    return tensor

"""What is checked of single numbers that are given as options."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from ddn_cvx.errors import InputError


def require_positive(name: str, value: Any) -> None:
    """Raise ``InputError`` unless the value is a number above zero, and finite."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise InputError(f"{name} must be a positive number, got {value!r}.")


def require_whole(name: str, value: Any, least: int) -> None:
    """Raise ``InputError`` unless the value is a whole number of at least ``least``."""
    if not is_whole(value, least):
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}.")


def is_whole(value: Any, least: int) -> bool:
    """Whether the value is a whole number of at least ``least``."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least

"""What is checked of numbers that are given as options."""

from __future__ import annotations

import math
import re
from dataclasses import fields
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


def require_positive_options(solver: Any, *names: str) -> None:
    """Raise ``InputError`` unless each of these options, or each there is, is a number above zero, and an integer where that
    is its type; an option that is None by default may be None."""
    known = {option.name: option for option in fields(solver)}
    for name in names or known:
        value, option = getattr(solver, name), known[name]
        if value is None and option.default is None:
            continue
        whole = "int" in re.findall(r"\w+", str(option.type))
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value > 0:
            kind = "an integer" if whole else "a number"
            raise InputError(f"option '{name}' of {type(solver).__name__} must be {kind} above 0, got {value!r}")

"""What is checked of the options of a solver, of whatever kind, when it is made."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ddn_cvx.errors import InputError


def require_positive(owner: str, solver: Any, *names: str) -> None:
    """Raise ``InputError`` unless each of these options, or each there is, is a number above zero; an option that is None
    by default may be None."""
    default = {option.name: option.default for option in fields(solver)}
    for name in names or default:
        value = getattr(solver, name)
        if value is None and default[name] is None:
            continue
        if not isinstance(value, int | float) or not value > 0:
            raise InputError(f"option '{name}' of {owner} must be a number above 0, got {value!r}")

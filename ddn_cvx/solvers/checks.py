"""What is checked of the options of a solver, of whatever kind, when it is made."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from ddn_cvx.errors import InputError


def require_positive(owner: str, solver: Any, *names: str) -> None:
    """Raise ``InputError`` unless each of these options, or each there is, is a number above zero, and an integer where that
    is its type; an option that is None by default may be None."""
    known = {option.name: option for option in fields(solver)}
    for name in names or known:
        value, option = getattr(solver, name), known[name]
        if value is None and option.default is None:
            continue
        whole = "int" in re.findall(r"\w+", str(option.type))
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value > 0:
            raise InputError(
                f"option '{name}' of {owner} must be {'an integer' if whole else 'a number'} above 0, got {value!r}"
            )

"""From a name or an object, and options, to a solver: what all registries have alike."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from ddn_cvx.errors import InputError

T = TypeVar("T")


def register(kind: type[T]) -> type[T]:
    """Make a solver known by its name: ``solver="name"``. A decorator, above ``@dataclass``.

    Raises
    ------
    InputError
        The name is that of another solver, or not in lower case.
    """
    known: dict[str, type] = kind.known  # type: ignore[attr-defined]  # every class of solvers has a table
    name: str = kind.name  # type: ignore[attr-defined]
    other = known.get(name, kind)
    if (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__) or name != name.lower():
        raise InputError(f"{kind.__name__}.name must be a new one in lower case; {name!r} is that of {other.__name__}.")
    known[name] = kind
    return kind


def find(solver: object, options: Mapping[str, Any] | None, kinds: Mapping[str, type[T]], base: type[T], what: str) -> T:
    """The solver for a name (``named``), an object of type ``base``, or None (which is "auto"); ``what`` is solved.

    Raises
    ------
    InputError
        An unknown name or option, or options next to a solver object, which has its own.
    """
    given = own(solver, options, base)
    if given is not None:
        return given
    name, known = "auto" if solver is None else solver, ", ".join(sorted(kinds))
    if not isinstance(name, str):
        raise InputError(f"solver of a {what} must be a name ({known}) or a {base.__name__} object, got {solver!r}")
    kind = named(name, kinds)
    if kind is None:
        raise InputError(f"no solver '{name}' for a {what} is known{hint(name.lower(), kinds)}. Known: {known}")
    return build(kind, name, options)


def named(name: str, kinds: Mapping[str, type[T]]) -> type[T] | None:
    """The class with this name, in any case, or whose own name this is: "newton_krylov", "NewtonKrylov"."""
    plain = name.lower()
    return kinds.get(plain) or next((kind for kind in kinds.values() if kind.__name__.lower() == plain), None)


def own(solver: object, options: Mapping[str, Any] | None, base: type[T]) -> T | None:
    """The solver if it is an object already, which may have no further options."""
    if not isinstance(solver, base):
        return None
    if options:
        raise InputError(f"options {sorted(options)} belong into the solver object: {type(solver).__name__}(...)")
    return solver


def build(kind: type[T], name: str, options: Mapping[str, Any] | None) -> T:
    """A solver with options, which are the fields of its class."""
    known = {option.name: option for option in fields(kind)}  # type: ignore[arg-type]  # every solver is a dataclass
    given = options or {}
    for option in given:
        if option not in known:
            listed = ", ".join(known) or "none"
            raise InputError(f"solver '{name}' has no option '{option}'{hint(option, known)}. It has: {listed}")
    missing = [k for k, o in known.items() if k not in given and o.default is MISSING and o.default_factory is MISSING]
    if missing:
        raise InputError(f"solver '{name}' needs the options {', '.join(missing)}")
    return kind(**given)


def hint(name: str, known: Iterable[str]) -> str:
    """What may have been meant."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""

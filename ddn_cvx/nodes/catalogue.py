"""Every ready-made node: those of the files beside this one, each of which says in ``ENTRIES`` what it has."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

from ddn_cvx.nodes.entry import Entry

_FILES = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
_FOUND: list[Entry] = [
    entry
    for name in _FILES
    if f"{__package__}.{name}" != __name__
    for entry in getattr(import_module(f"{__package__}.{name}"), "ENTRIES", ())
]
ENTRIES: tuple[Entry, ...] = tuple(sorted(_FOUND, key=lambda entry: entry.example))
CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}
"""By name, in the order of the gallery."""

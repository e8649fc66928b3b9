"""Folds the scripts that the pages of the gallery include, so that a page reads from its figure to its end.

The pages include the files that run (``literalinclude``); on the site each of them is a closed box with its name.
"""

from __future__ import annotations

import re
from typing import Any

INCLUDED = re.compile(r"^```\{literalinclude\} \.\./\.\./(examples/\w+\.py)\n(?:.+\n)*?```$", re.MULTILINE)


def scripts(text: str) -> list[str]:
    """The examples that a page includes: ``examples/name.py``."""
    return INCLUDED.findall(text)


def folded(text: str) -> str:
    """The page with a box around each of them."""
    return INCLUDED.sub(lambda found: f":::{{dropdown}} {found[1]}\n:icon: code\n\n{found[0]}\n:::", text)


def fold(app: object, page: str, source: list[str]) -> None:
    """Sphinx's event "source-read"."""
    if page.startswith("gallery/"):
        source[0] = folded(source[0])


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("source-read", fold)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

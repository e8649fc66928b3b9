"""Appends to each page of the gallery the scripts that it is about: the one of its own name and those that it names.

So a page shows the whole program, and what it shows is the file that runs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"


def scripts(name: str, text: str) -> list[str]:
    """The examples that belong to the page ``gallery/name.md`` with this text, its own first."""
    named = re.findall(r"examples/(\w+)\.py", text)
    return [script for script in dict.fromkeys((name, *named)) if (EXAMPLES / f"{script}.py").exists()]


def listing(script: str) -> str:
    """A closed box with the file; for readers of the site, not of the source."""
    return (
        f":::{{dropdown}} The whole script: examples/{script}.py\n:icon: code\n\n"
        f"```{{literalinclude}} ../../examples/{script}.py\n:language: python\n```\n:::\n"
    )


def append(app: object, page: str, source: list[str]) -> None:
    """Sphinx's event "source-read"."""
    folder, _, name = page.rpartition("/")
    if folder == "gallery" and name != "index":
        source[0] += "\n" + "\n".join(map(listing, scripts(name, source[0])))


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("source-read", append)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Every Python block of the README and the documentation runs: a page from top to bottom in one namespace.

A block that should not run is not a `python` block: it is fenced as `text`, `bash` or `{code-block} python`.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if page.exists() and "_build" not in page.parts
]
BLOCK = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[str]:
    """The Python blocks of a page, padded with empty lines so that a traceback shows the page's own line."""
    return ["\n" * text.count("\n", 0, found.start("code")) + dedent(found["code"]) for found in BLOCK.finditer(text)]


def with_code() -> list[Path]:
    return [page for page in PAGES if blocks(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", with_code(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_block_is_overlooked(page: Path) -> None:
    """A fence that opens with ```` ```python ```` in a way `blocks` does not read would pass for tested."""
    text = page.read_text(encoding="utf-8")
    opened = re.findall(r"^[ \t>]*(?:```+|~~~+) *(?:python|py|python3)\b", text, re.MULTILINE | re.IGNORECASE)
    assert len(opened) == len(blocks(text))


def test_blocks_keep_their_line_numbers() -> None:
    text = "A page.\n\n```python\na = 1\n```\n\n- a list\n\n  ```python\n  assert a == 2\n  ```\n\n```text\n```\n"
    first, second = blocks(text)
    assert first == "\n\n\na = 1\n"
    namespace: dict[str, object] = {}
    exec(compile(first, "page", "exec"), namespace)
    with pytest.raises(AssertionError) as failure:
        exec(compile(second, "page", "exec"), namespace)
    assert failure.traceback[-1].lineno == 9  # counted from zero: the tenth line of the page

"""Every Python block of the README and the documentation runs: a page from top to bottom in one namespace.

A block that should not run is not a `python` block: it is fenced as `text`, `bash` or `{code-block} python`.
"""

from __future__ import annotations

import json
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
GALLERY = ROOT / "docs" / "gallery"
CARD = re.compile(
    r"^:::\{grid-item-card\} (?P<title>.+)\n:link: (?P<page>\w+)\n:link-type: doc\n:img-top: (?P<figure>\S+)\n"
    r":img-alt: \S.*\n\n(?P<line>\S.*)\n:::$",
    re.MULTILINE,
)
BLOCK = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[str]:
    """The Python blocks of a page, padded with empty lines so that a traceback shows the page's own line."""
    return ["\n" * text.count("\n", 0, found.start("code")) + dedent(found["code"]) for found in BLOCK.finditer(text)]


def with_code() -> list[Path]:
    return [page for page in PAGES if blocks(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", with_code(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(page.parent / "extending")  # files that a page shows and imports
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block in blocks(page.read_text(encoding="utf-8")):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_block_is_overlooked(page: Path) -> None:
    """A fence that opens with ```` ```python ```` in a way `blocks` does not read would pass for tested."""
    text = page.read_text(encoding="utf-8")
    opened = re.findall(r"^[ \t>]*(?:```+|~~~+) *(?:python|py|python3)\b", text, re.MULTILINE | re.IGNORECASE)
    assert len(opened) == len(blocks(text))


def test_the_report_of_a_layer_is_the_printed_one() -> None:
    """But for its numbers, which are those of a cost model that is measured anew now and then."""
    text = (ROOT / "docs" / "how-to" / "choose-a-solver.md").read_text(encoding="utf-8")
    start = text.index("```text\n") + len("```text\n")
    namespace: dict[str, object] = {}
    for block in blocks(text[:start]):
        exec(compile(block, "page", "exec"), namespace)
    shown, printed = text[start : text.index("```", start)], str(namespace["report"])
    numbers = re.compile(r"[\d.]+ (?:µs|ms|s)\b")
    assert numbers.sub("#", shown).split() == numbers.sub("#", printed).split()


MEASURED = {
    "projection onto the simplex, n = 100": "simplex-100",
    "QP, 10 variables, 3 equalities, 5 inequalities": "qp-10-3-5",
    "QP, 50 variables, 10 equalities, 50 inequalities": "qp-50-10-50",
    "QP, 128 variables, 128 inequalities": "qp-128-0-128",
    "LP in a box, 50 variables, 50 inequalities": "lp-50-50-box",
    "second-order cones, 20 variables, 40 rows": "socp-20-40",
    "semidefinite, 8 x 8, 4 equalities": "sdp-8-4",
    "logistic regression, 10 weights, 30 samples": "logistic-10-30",
    "softmax by entropy, n = 10": "softmax-10",
}


def test_the_figures_of_the_readme_are_the_saved_ones() -> None:
    saved = {
        row["name"]: row["results"]
        for suite in ("qp", "cones")
        for row in json.loads((ROOT / "benchmarks" / "results" / f"{suite}.json").read_text(encoding="utf-8"))["rows"]
    }
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (.+) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 12
    for problem, batch, figures in rows:
        results = saved[f"{MEASURED[problem]}-batch-{batch}"]
        peers = [results[peer] for peer in ("ddn_cvx", "cvxpylayers (default)")]
        ours, theirs = (peer["seconds"]["median"] for peer in peers)
        shown = [float(cell.removesuffix(" ms")) for cell in figures.split(" | ")]
        assert shown[:3] == pytest.approx([1e3 * ours, 1e3 * theirs, theirs / ours], rel=0.03), problem
        assert [f"{error:.0e}" for error in shown[3:]] == [f"{peer['gradient_error']:.0e}" for peer in peers], problem


def test_blocks_keep_their_line_numbers() -> None:
    text = "A page.\n\n```python\na = 1\n```\n\n- a list\n\n  ```python\n  assert a == 2\n  ```\n\n```text\n```\n"
    first, second = blocks(text)
    assert first == "\n\n\na = 1\n"
    namespace: dict[str, object] = {}
    exec(compile(first, "page", "exec"), namespace)
    with pytest.raises(AssertionError) as failure:
        exec(compile(second, "page", "exec"), namespace)
    assert failure.traceback[-1].lineno == 9  # counted from zero: the tenth line of the page


def test_every_page_of_the_gallery_has_a_card() -> None:
    """One card a page, with a line of text and a figure that the page shows."""
    text = (GALLERY / "index.md").read_text(encoding="utf-8")
    cards = {found["page"]: found["figure"] for found in CARD.finditer(text)}
    listed = "".join(f"{found['title']} <{found['page']}>\n" for found in CARD.finditer(text))
    assert text.endswith(f"```{{toctree}}\n:hidden:\n\n{listed}```\n")  # the sidebar has the order of the cards
    assert len(cards) == text.count("{grid-item-card}")
    assert sorted(cards) == sorted(page.stem for page in GALLERY.glob("*.md") if page.stem != "index")
    for page, figure in cards.items():
        assert (GALLERY / figure).exists(), figure
        assert f"]({figure})" in (GALLERY / f"{page}.md").read_text(encoding="utf-8"), f"{page} does not show {figure}"


def test_every_example_is_shown_on_a_page_of_the_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    """And every page shows one; on the site they are folded."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "_extensions")
    from example_sources import folded, scripts

    programs = {
        f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py") if "__main__" in path.read_text("utf-8")
    }
    texts = [page.read_text(encoding="utf-8") for page in GALLERY.glob("*.md") if page.stem != "index"]
    assert programs <= {script for text in texts for script in scripts(text)}
    for text in texts:
        assert (
            0
            < len(scripts(text))
            == text.count("{literalinclude} ../../examples")
            == folded(text).count(":::{dropdown} examples/")
        )


def test_figures_have_alternative_texts() -> None:
    for page in PAGES:
        assert "![](" not in page.read_text(encoding="utf-8"), page

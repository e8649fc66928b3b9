"""Sphinx configuration: MyST pages, the furo theme, and the API from the docstrings. Nothing is fetched, nothing is run."""

import shutil
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

_setup = ConfigParser()
_setup.read(HERE.parent / "setup.cfg", encoding="utf-8")

project = "ddn_cvx"
author = copyright = "the ddn_cvx authors"
release = version = _setup["metadata"]["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # formulas are set without a network, too
    "sphinx_design",
    "sphinx_copybutton",
    "example_sources",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"ddn_cvx {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_copy_source = False  # the search page quotes the text of the pages from HTML
html_show_sourcelink = False
pygments_style, pygments_dark_style = "friendly", "github-dark"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
napoleon_google_docstring = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

# The saved benchmark results become pages; nothing is measured when the documentation is built.
shutil.copytree(HERE.parent / "benchmarks" / "results", HERE / "_results", dirs_exist_ok=True)


def keep_sentence(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """The text of a field is text: napoleon takes what comes before a colon for its type, unless that is empty."""
    if what in ("attribute", "property", "data") and lines:
        lines[0] = f": {lines[0]}"


FACTS = ("name", "minds_time", "minds_units", "on_device", "any_cone")


def options_only(app: Any, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """The page of the solvers shows their options; what else a solver has is for those who write one."""
    return True if app.env.docname == "api-solvers" and (callable(thing) or name in FACTS) else None


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-skip-member", options_only)
    app.connect("autodoc-process-docstring", keep_sentence, priority=400)  # before napoleon

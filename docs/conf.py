"""Sphinx configuration: MyST pages, the furo theme, and the API from the docstrings."""

import shutil
from configparser import ConfigParser
from pathlib import Path

_setup = ConfigParser()
_setup.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")

project = "ddn_cvx"
author = copyright = "the ddn_cvx authors"
release = version = _setup["metadata"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"ddn_cvx {release}"

autodoc_member_order = "bysource"
napoleon_google_docstring = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

# The saved benchmark results become pages; nothing is measured when the documentation is built.
shutil.copytree(Path(__file__).parents[1] / "benchmarks" / "results", Path(__file__).parent / "_results", dirs_exist_ok=True)
